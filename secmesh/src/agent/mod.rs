//! The agent: one task that owns all state, and the streams that feed it.
//!
//! Kernel events, peers' messages and operators' requests meet in one loop ([`core`]). Nothing else
//! writes the maps, the book of decisions or the engine, so there is one order of events and no lock.

mod block;
mod capture;
mod cookies;
mod core;
mod descriptors;
mod effects;
mod epochs;
mod escalation;
mod evidence;
mod explain;
mod fair;
mod interfaces;
mod limits;
mod lists;
mod liveness;
mod membership;
mod met;
mod metrics;
mod mode;
mod notary;
mod outbox;
mod protect;
mod quarantine;
mod ratify;
mod reconcile;
mod recover;
mod requests;
mod setup;
mod small_tables;
mod trust;
mod unblock;
mod watch;
mod witnessed;

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    config::{Config, Mode},
    dataplane::DataplaneError,
    ledger::LedgerError,
    mesh::{identity::IdentityError, store::StoreError, transport::TransportError},
    state::StateError,
};

/// What an agent is started with: the configuration and what the command line says over it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration.
    pub config: Config,
    /// Interfaces; empty means the configured ones, or those with a default route.
    pub interfaces: Vec<String>,
    /// Mode; overrides the configuration and the state that an earlier agent left.
    pub mode: Option<Mode>,
    /// Where to listen for peers.
    pub listen: Option<SocketAddr>,
    /// Where this node keeps its things.
    pub state_dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// Whether to take the program off the interfaces when the agent stops.
    pub detach_on_exit: bool,
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel side.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Who we are.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Who the others are.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The imported lists.
    #[error(transparent)]
    Lists(#[from] crate::respond::lists::StoreError),
    /// The record.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What this node has signed cannot be read back.
    #[error(
        "the votes that this node has signed cannot all be read from the ledger {}: {why}; without them it may contradict itself, which counts as a lie for good\n  remedy: look at the disk and `secmesh ledger verify`, and start again; if it stays so, have the node removed (`secmesh peers remove`) and join anew with an empty state directory",
        path.display()
    )]
    OwnVotes {
        /// The ledger.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The statements of the nodes.
    #[error(transparent)]
    Evidence(#[from] crate::mesh::evidence::EvidenceFileError),
    /// The mesh port.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The local socket.
    #[error("local socket {}: {source}", socket.display())]
    Socket {
        /// Its path.
        socket: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The system has no interface that we should protect.
    #[error(
        "no interface to protect: none has a default route\n  remedy: name one with --interface, or in [dataplane] interfaces"
    )]
    NoInterface,
    /// Something uses a tripwire port.
    #[error(
        "[tripwire] {protocol} = [{port}]: something on this host listens on {protocol}/{port}, and everybody who uses it would be taken for an attacker\n  remedy: take the port out of [tripwire], or stop the service (`ss -lnp` names it)"
    )]
    TripwireUsed {
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The port.
        port: u16,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] crate::entropy::EntropyError),
}

impl AgentError {
    /// The command's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Dataplane(DataplaneError::Capability { .. }) => 4,
            _ => 1,
        }
    }
}

/// Runs an agent until it is told to stop by SIGINT or SIGTERM.
///
/// # Errors
///
/// Whatever keeps it from starting. Once it runs, trouble is logged, counted and shown in `status`.
pub async fn run(options: Options) -> Result<(), AgentError> {
    descriptors::raise();
    // On the heap: what starting needs is too much for the stack of whoever awaits this.
    let mut agent = Box::pin(setup::start(options)).await?;
    agent.run().await;
    Box::pin(agent.stop()).await
}
