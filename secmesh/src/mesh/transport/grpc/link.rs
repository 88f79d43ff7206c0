//! One gRPC call, either end: frames in, frames out, and the connection below it.

use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};

use super::codec::Outgoing;
use crate::mesh::transport::frame::{Frame, FrameError};

/// Frames between a session and the stream, at most: those are out of the queue, and lost when the connection
/// ends. Few, so that a peer that reads nothing is noticed.
pub(super) const AHEAD: usize = 16;
/// Time for a clean end.
const FAREWELL: Duration = Duration::from_millis(200);

/// A call that is up. Dropping it ends the connection at once; [`Link::close`] does so cleanly.
pub(in crate::mesh::transport) struct Link {
    pub(in crate::mesh::transport) reader: Reader,
    pub(in crate::mesh::transport) writer: Writer,
    pub(super) connection: Connection,
}

/// The HTTP/2 connection below a call, which has a task of its own.
pub(super) struct Connection {
    /// Asks the task for a clean end.
    pub(super) finish: CancellationToken,
    /// Ends the task, and all that HTTP/2 has spawned, when dropped.
    pub(super) kill: DropGuard,
    /// Closes when the task has ended.
    pub(super) ended: oneshot::Receiver<()>,
}

/// The frames that come.
pub(in crate::mesh::transport) struct Reader {
    pub(super) stream: Streaming<Result<Frame, FrameError>>,
    /// The other end did, beside the call, what is not allowed.
    pub(super) misused: CancellationToken,
}

/// Where frames go.
pub(in crate::mesh::transport) struct Writer {
    pub(super) frames: mpsc::Sender<Outgoing>,
}

impl Reader {
    /// The next frame. Cancel-safe.
    pub(in crate::mesh::transport) async fn read(&mut self) -> Result<Frame, FrameError> {
        let message = tokio::select! {
            message = self.stream.message() => message,
            () = self.misused.cancelled() => return Err(FrameError::Bad),
        };
        match message {
            Ok(Some(frame)) => frame,
            Ok(None) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            // What breaks the rules of HTTP/2 ends the connection and the stream with it; which of the two
            // is noticed first is chance.
            Err(_) if self.misused.is_cancelled() => Err(FrameError::Bad),
            Err(status) => Err(broken(&status)),
        }
    }
}

impl Writer {
    /// Hands a frame on; waits while the peer reads too slowly. The caller has checked its size.
    pub(in crate::mesh::transport) async fn write(&self, frame: Frame) -> io::Result<()> {
        self.frames
            .send(Outgoing::Frame(frame))
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Sends what is no frame.
    #[cfg(test)]
    pub(in crate::mesh::transport) async fn write_raw(&self, bytes: &[u8]) {
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        let _ = self.frames.send(Outgoing::Raw(bytes)).await;
    }
}

impl Link {
    /// Ends the call and the connection: what was handed on is sent, if the peer takes it in a fifth of a
    /// second.
    pub(in crate::mesh::transport) async fn close(self) {
        let Self {
            reader,
            writer,
            connection,
        } = self;
        drop((reader, writer));
        connection.finish.cancel();
        // An error means that it has ended already.
        let _ = timeout(FAREWELL, connection.ended).await;
        drop(connection.kill);
    }
}

/// What a stream's end means.
pub(super) fn broken(status: &Status) -> FrameError {
    match status.code() {
        Code::OutOfRange => FrameError::Oversized,
        Code::Unimplemented | Code::InvalidArgument => FrameError::Bad,
        _ => FrameError::Io(io::Error::other(said(status))),
    }
}

/// The innermost reason, which is the one that helps.
fn said(status: &Status) -> String {
    let mut inner: &dyn std::error::Error = status;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    if text.is_empty() {
        status.code().to_string()
    } else {
        text
    }
}
