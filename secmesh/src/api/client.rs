//! The command's side of the socket.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    MAX_LINE,
    types::{Failure, Request},
};

/// Longest wait for an answer. Everything but a ledger flush is answered from memory.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no agent answers on {}: {source}\n  remedy: start it with `secmesh run`, or name its socket with --socket", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The socket is not ours to use.
    #[error("not permitted to use {}\n  remedy: run the command as root", socket.display())]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
    },
    /// The conversation broke.
    #[error("talking to the agent: {0}")]
    Io(#[from] io::Error),
    /// The answer is not what it should be; agent and command are of different versions.
    #[error("the agent's answer is not understood ({0}); are agent and command of one version?")]
    Answer(#[from] serde_json::Error),
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// Asks the agent at `socket`.
///
/// # Errors
///
/// Whatever keeps the answer from coming, or the agent's refusal.
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, ClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted {
            socket: socket.to_path_buf(),
        },
        _ => ClientError::NotRunning {
            socket: socket.to_path_buf(),
            source,
        },
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE as u64)).read_line(&mut answer)?;
    let value: serde_json::Value = serde_json::from_str(&answer)?;
    if let Some(error) = value.get("error")
        && value.as_object().is_some_and(|o| o.len() == 1)
        && error.is_string()
    {
        let failure: Failure = serde_json::from_value(value)?;
        return Err(ClientError::Refused(failure.error));
    }
    Ok(serde_json::from_value(value)?)
}
