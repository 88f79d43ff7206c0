//! The agent's side of the socket.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::{MAX_REQUEST, types::Request};

/// Conversations at one time; further ones wait.
const MAX_CONVERSATIONS: usize = 64;
/// Longest wait for a request line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a client that takes its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A request, and where its answer goes. The answer is JSON; [`super::types::Failure`] says no.
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<serde_json::Value>,
}

/// A bound socket; removed from the file system when dropped.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds `path`. A socket that nobody listens on is taken away first; one that is in use is not.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made or the socket is in use.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent()
            && !dir.exists()
        {
            std::fs::create_dir_all(dir)?;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        }
        if path.exists() {
            if UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another agent listens there",
                ));
            }
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            path: path.to_path_buf(),
        })
    }

    /// Hands requests to `calls` until that channel closes.
    pub async fn run(self, calls: mpsc::Sender<Call>) {
        let slots = Arc::new(Semaphore::new(MAX_CONVERSATIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!(%error, "accepting on the local socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = calls.closed() => return,
            };
            let calls = calls.clone();
            tokio::spawn(async move {
                if let Err(error) = converse(stream, calls).await {
                    debug!(%error, "a local conversation ended early");
                }
                drop(slot);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good.
        drop(std::fs::remove_file(&self.path));
    }
}

async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST as u64));
    timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            let stopping = json!({"error": "the agent is stopping"});
            if calls.send(Call { request, reply }).await.is_err() {
                stopping
            } else {
                answer.await.unwrap_or(stopping)
            }
        }
        Err(error) => json!({"error": format!("not a request: {error}")}),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    timeout(ANSWER_TIMEOUT, async {
        writer.write_all(&bytes).await?;
        writer.shutdown().await
    })
    .await?
}
