//! gRPC over the TLS connections of this mesh: one call per connection.
//!
//! The service is `docs/mesh.proto`; its messages are the frames of [`super::frame`]. TLS has shown who the
//! other end is before HTTP/2 begins. A member's connection takes one `Session`, a ticket's one `Join`;
//! anything else ends the connection.

mod client;
mod codec;
mod link;
mod server;

use std::time::Duration;

use hyper::rt::Executor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use client::open;
#[cfg(test)]
pub(super) use client::{Raw, raw};
pub(super) use link::{Link, Reader, Writer};
pub(super) use server::accept;

use super::frame::MAX_ENCODED;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Members talk.
    Session,
    /// Somebody with a ticket asks to join.
    Join,
}

impl Method {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Session => "/secmesh.mesh.v1.Mesh/Session",
            Self::Join => "/secmesh.mesh.v1.Mesh/Join",
        }
    }
}

/// Largest header list that is taken, in bytes as HTTP/2 counts them; ours has some 200.
const HEADERS: u32 = 4096;
/// Bytes that may be on their way to us unread, of a stream and of a connection: four of the largest frames.
const WINDOW: u32 = 256 * 1024;
/// Bytes that HTTP/2 keeps for a peer that does not read.
const SEND_BUFFER: usize = 128 * 1024;
/// Largest HTTP/2 frame; the smallest that the RFC allows (9113, 6.5.2).
const HTTP2_FRAME: u32 = 16 * 1024;
/// Streams at once: one is the call, a second is refused by us rather than by HTTP/2, and so is counted.
const STREAMS: u32 = 2;
/// Streams that the other end opened and gave up before we looked ("rapid reset", CVE-2023-44487).
const RESETS_PENDING: usize = 4;
/// Streams that we had to refuse, for which we still take late frames.
const RESETS_LOCAL: usize = 8;
/// Time between two signs of life of HTTP/2 itself. The session has its own, which say that the agent lives
/// too; this one ends what they cannot: a connection on which no call came to be.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(6);
const MAX_MESSAGE: usize = MAX_ENCODED;

/// Runs what HTTP/2 spawns, until the connection is killed.
#[derive(Clone)]
struct Tasks {
    tracker: TaskTracker,
    kill: CancellationToken,
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let kill = self.kill.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = kill.cancelled() => {}
                _ = future => {}
            }
        });
    }
}

/// Whether a connection ended because the other end broke the rules of HTTP/2, not because it went away.
fn broke_rules(error: &hyper::Error) -> bool {
    let mut inner = std::error::Error::source(error);
    while let Some(source) = inner {
        if let Some(h2) = source.downcast_ref::<h2::Error>() {
            return !h2.is_io() && !h2.is_remote() && h2.reason() != Some(h2::Reason::NO_ERROR);
        }
        inner = source.source();
    }
    error.is_parse()
}
