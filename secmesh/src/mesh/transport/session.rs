//! A connection to a member, from the first message to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::counters::count;
use super::frame::{Frame, FrameError, Kind};
use super::grpc::{Link, Reader, Writer};
use super::peers::{AllowedPeers, PeerIdentity};
use super::registry::{self, Place, Slot};
use super::{Inner, TransportEvent};
use crate::clock::Clock;
use crate::mesh::ids::NodeId;

/// How long a peer may be silent before it is asked for a sign of life. Its answer says to both ends that the other
/// lives, and so does every message: where something is said now and then nothing is asked.
const ASK: Duration = Duration::from_secs(4);
/// By how much longer the node with the higher id waits: both have heard the same last, and one question does.
const COURTESY: Duration = Duration::from_millis(500);
/// How long an answer may take before the peer is asked once more.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a peer may be silent, or refuse to read, before it counts as gone.
const SILENCE: Duration = Duration::from_secs(8);

/// Carries messages both ways until the connection ends, and gives the place back.
pub(super) async fn run(
    inner: &Inner,
    mut link: Link,
    source: SocketAddr,
    node: NodeId,
    spki: [u8; 32],
    place: Place,
) {
    let patience = if inner.node < node {
        ASK
    } else {
        ASK + COURTESY
    };
    let signs = Signs::new(patience, &inner.clock);
    let why = tokio::select! {
        why = read(inner, &mut link.reader, source, node, &signs) => why,
        why = write(inner, &link.writer, &place.slot, &signs) => why,
        () = place.stop.cancelled() => "closed here",
        () = disallowed(&inner.allowed, inner.allowed.subscribe(), spki, node) => {
            if matches!(inner.allowed.get(&spki), Some(PeerIdentity::Quarantined(_))) {
                count(&inner.counters.sessions_quarantined);
                "the node is quarantined"
            } else {
                "its key is no longer allowed"
            }
        }
    };
    tracing::info!(peer = %node, %source, why, "the connection to a peer ended");
    link.close().await;
    registry::leave(inner, place).await;
    inner.registry.retain(&inner.allowed.members());
}

/// What the reading half tells the writing half.
struct Signs {
    /// The peer has asked for a sign of life.
    owed: AtomicBool,
    wake: Notify,
    /// How long the peer may be silent before it is asked.
    patience: Duration,
    clock: Arc<dyn Clock>,
    /// When the peer was heard last, on the monotonic clock.
    heard_ns: AtomicU64,
}

impl Signs {
    fn new(patience: Duration, clock: &Arc<dyn Clock>) -> Self {
        Self {
            owed: AtomicBool::new(false),
            wake: Notify::new(),
            patience,
            clock: Arc::clone(clock),
            heard_ns: AtomicU64::new(clock.mono_ns()),
        }
    }

    fn heard(&self) {
        self.heard_ns.store(self.clock.mono_ns(), Ordering::Relaxed);
    }

    /// In how long the peer is to be asked for a sign of life, if it is not heard until then; it was `asked` last
    /// at that time.
    fn ask_in(&self, asked: Option<u64>) -> Duration {
        let heard = self.heard_ns.load(Ordering::Relaxed);
        let (since, pause) = match asked {
            Some(asked) if asked >= heard => (asked, ASK_AGAIN),
            _ => (heard, self.patience),
        };
        let passed = self.clock.mono_ns().saturating_sub(since);
        pause.saturating_sub(Duration::from_nanos(passed))
    }
}

async fn read(
    inner: &Inner,
    reader: &mut Reader,
    source: SocketAddr,
    node: NodeId,
    signs: &Signs,
) -> &'static str {
    loop {
        let frame = match timeout(SILENCE, reader.read()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(e)) => {
                inner.refuse_frame(source, &e);
                if matches!(e, FrameError::Bad | FrameError::Oversized) {
                    registry::tell(inner, TransportEvent::Garbage { from: node }).await;
                }
                return if matches!(e, FrameError::Io(_)) {
                    "the peer closed it or it broke"
                } else {
                    "a bad frame"
                };
            }
            Err(_) => return "the peer was silent for 8 s",
        };
        signs.heard();
        match frame.kind {
            Kind::Message => {
                count(&inner.counters.messages_received);
                let bytes = frame.body;
                registry::tell(inner, TransportEvent::Message { from: node, bytes }).await;
            }
            Kind::Ping => {
                signs.owed.store(true, Ordering::Release);
                signs.wake.notify_one();
            }
            Kind::Pong => {}
            Kind::Hello | Kind::JoinRequest | Kind::JoinReply => {
                inner.refuse_frame(source, &FrameError::Bad);
                registry::tell(inner, TransportEvent::Garbage { from: node }).await;
                return "a frame that is not allowed there";
            }
        }
    }
}

async fn write(inner: &Inner, writer: &Writer, slot: &Slot, signs: &Signs) -> &'static str {
    let mut asked = None;
    loop {
        let mut ask = false;
        let pause = signs.ask_in(asked);
        tokio::select! {
            () = slot.queue.pushed.notified() => {}
            () = signs.wake.notified() => {}
            // It may have been heard meanwhile.
            () = sleep(pause) => ask = signs.ask_in(asked).is_zero(),
        }
        if ask {
            asked = Some(inner.clock.mono_ns());
        }
        match timeout(SILENCE, burst(inner, writer, slot, signs, ask)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return "the peer closed it or it broke",
            Err(_) => return "the peer read nothing for 8 s",
        }
    }
}

/// Sends what there is to send. Bounded, so that signs of life come through a long queue.
async fn burst(
    inner: &Inner,
    writer: &Writer,
    slot: &Slot,
    signs: &Signs,
    ask: bool,
) -> std::io::Result<()> {
    if ask {
        count(&inner.counters.pings_sent);
        writer.write(Frame::new(Kind::Ping, Bytes::new())).await?;
    }
    if signs.owed.swap(false, Ordering::AcqRel) {
        writer.write(Frame::new(Kind::Pong, Bytes::new())).await?;
    }
    for _ in 0..64 {
        let Some(message) = slot.queue.pop() else {
            return Ok(());
        };
        writer.write(Frame::new(Kind::Message, message)).await?;
        count(&inner.counters.messages_sent);
    }
    // There may be more: come back at once.
    slot.queue.pushed.notify_one();
    Ok(())
}

/// Returns when the key stands for this member no more.
async fn disallowed(
    allowed: &AllowedPeers,
    mut changed: watch::Receiver<()>,
    spki: [u8; 32],
    node: NodeId,
) {
    while allowed.get(&spki) == Some(PeerIdentity::Member(node)) {
        if changed.changed().await.is_err() {
            return;
        }
    }
}
