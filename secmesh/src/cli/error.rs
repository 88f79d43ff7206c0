//! Why a command failed, and the exit code that says so.

use std::io;

use crate::agent::AgentError;
use crate::api::client::ClientError;
use crate::config::ConfigError;
use crate::dataplane::DataplaneError;
use crate::entropy::EntropyError;
use crate::mesh::identity::{IdentityError, TicketError};
use crate::mesh::store::StoreError;
use crate::mesh::transport::JoinError;
use crate::state::StateError;

/// Failed or refused.
const FAILED: u8 = 1;
/// Bad usage or configuration.
const USAGE: u8 = 2;
/// The agent does not run.
const NOT_RUNNING: u8 = 3;
/// Not permitted.
const NOT_PERMITTED: u8 = 4;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The agent did not answer, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent stopped because of an error.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The kernel said no.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The node's keys cannot be used or made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The membership cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// No member let us in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// What was given as a ticket is none.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Standard output does not take more.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// The arguments contradict each other or the situation.
    #[error("{0}")]
    Usage(String),
    /// Anything else; says what to do.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// The exit code, 0 for a reader that went away (`secmesh alerts | head`).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::NotRunning { .. }) => NOT_RUNNING,
            Self::Client(ClientError::NotPermitted { .. }) => NOT_PERMITTED,
            Self::Dataplane(DataplaneError::Capability { .. }) => NOT_PERMITTED,
            Self::State(error)
            | Self::Identity(IdentityError::State(error))
            | Self::Store(StoreError::State(error)) => state(error),
            Self::Agent(AgentError::State(error)) => state(error),
            Self::Agent(AgentError::Identity(IdentityError::State(error))) => state(error),
            Self::Dataplane(DataplaneError::PinDir { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                NOT_PERMITTED
            }
            Self::Config(_) | Self::Usage(_) | Self::Ticket(_) => USAGE,
            Self::Agent(error) => error.exit_code(),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => FAILED,
        }
    }
}

fn state(error: &StateError) -> u8 {
    match error {
        StateError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            NOT_PERMITTED
        }
        StateError::WrongOwner { .. } => NOT_PERMITTED,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let io = |kind| io::Error::from(kind);
        let socket = PathBuf::from("/s");
        let denied = StateError::Io {
            action: "open",
            path: "/x".into(),
            source: io(io::ErrorKind::PermissionDenied),
        };
        let capability = DataplaneError::Capability {
            capability: "CAP_BPF",
            needed_for: "maps",
        };
        for (error, code) in [
            (
                ClientError::NotPermitted {
                    socket: socket.clone(),
                }
                .into(),
                4,
            ),
            (
                ClientError::NotRunning {
                    socket,
                    source: io(io::ErrorKind::NotFound),
                }
                .into(),
                3,
            ),
            (ClientError::Refused("no".to_owned()).into(), 1),
            (capability.into(), 4),
            (IdentityError::State(denied).into(), 4),
            (StateError::Missing("/x".into()).into(), 1),
            (TicketError::NotATicket.into(), 2),
            (CliError::Usage(String::new()), 2),
            (CliError::Failed(String::new()), 1),
            (CliError::Output(io(io::ErrorKind::BrokenPipe)), 0),
            (CliError::Output(io(io::ErrorKind::StorageFull)), 1),
        ] {
            let error: CliError = error;
            assert_eq!(error.exit_code(), code, "{error:?}");
        }
    }
}
