//! A connection to a member, from the first message to the last.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::counters::count;
use super::frame::{Frame, FrameError, Kind};
use super::grpc::{Link, Reader, Writer};
use super::peers::{AllowedPeers, PeerIdentity};
use super::registry::{self, Place, Slot};
use super::{Inner, TransportEvent};
use crate::mesh::ids::NodeId;

/// How often a sign of life is sent.
const PING: Duration = Duration::from_secs(2);
/// How long a peer may be silent, or refuse to read, before it counts as gone.
const SILENCE: Duration = Duration::from_secs(6);

/// Carries messages both ways until the connection ends, and gives the place back.
pub(super) async fn run(
    inner: &Inner,
    mut link: Link,
    source: SocketAddr,
    node: NodeId,
    spki: [u8; 32],
    place: Place,
) {
    let pong = Pong::default();
    let why = tokio::select! {
        why = read(inner, &mut link.reader, source, node, &pong) => why,
        why = write(inner, &link.writer, &place.slot, &pong) => why,
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

#[derive(Default)]
struct Pong {
    owed: AtomicBool,
    wake: Notify,
}

async fn read(
    inner: &Inner,
    reader: &mut Reader,
    source: SocketAddr,
    node: NodeId,
    pong: &Pong,
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
            Err(_) => return "the peer was silent for 6 s",
        };
        match frame.kind {
            Kind::Message => {
                count(&inner.counters.messages_received);
                let bytes = frame.body;
                registry::tell(inner, TransportEvent::Message { from: node, bytes }).await;
            }
            Kind::Ping => {
                pong.owed.store(true, Ordering::Release);
                pong.wake.notify_one();
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

async fn write(inner: &Inner, writer: &Writer, slot: &Slot, pong: &Pong) -> &'static str {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut due = false;
        tokio::select! {
            () = slot.queue.pushed.notified() => {}
            () = pong.wake.notified() => {}
            _ = ping.tick() => due = true,
        }
        match timeout(SILENCE, burst(inner, writer, slot, pong, due)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return "the peer closed it or it broke",
            Err(_) => return "the peer read nothing for 6 s",
        }
    }
}

/// Sends what there is to send. Bounded, so that signs of life come through a long queue.
async fn burst(
    inner: &Inner,
    writer: &Writer,
    slot: &Slot,
    pong: &Pong,
    ping: bool,
) -> std::io::Result<()> {
    if ping {
        writer.write(Frame::new(Kind::Ping, Bytes::new())).await?;
    }
    if pong.owed.swap(false, Ordering::AcqRel) {
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
