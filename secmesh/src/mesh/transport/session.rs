//! A connection to a member, from the first message to the last.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::counters::count;
use super::frame::{self, FrameError, Kind};
use super::peers::{AllowedPeers, PeerIdentity};
use super::registry::{self, Place, Slot};
use super::{Inner, TransportEvent};
use crate::mesh::ids::NodeId;

/// How often a sign of life is sent.
const PING: Duration = Duration::from_secs(2);
/// How long a peer may be silent, or refuse to read, before it counts as gone.
const SILENCE: Duration = Duration::from_secs(6);

/// Carries messages both ways until the connection ends, and gives the place back.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send>(
    inner: &Inner,
    stream: S,
    source: SocketAddr,
    node: NodeId,
    spki: [u8; 32],
    place: Place,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let pong = Pong::default();
    let why = tokio::select! {
        why = read(inner, &mut reader, source, node, &pong) => why,
        why = write(inner, &mut writer, &place.slot, &pong) => why,
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
    // A farewell for the sake of a clean end; the peer may be gone, and gets no second chance.
    let _ = timeout(Duration::from_millis(200), writer.shutdown()).await;
    registry::leave(inner, place).await;
    inner.registry.retain(&inner.allowed.members());
}

#[derive(Default)]
struct Pong {
    owed: AtomicBool,
    wake: Notify,
}

async fn read<R: AsyncRead + Unpin>(
    inner: &Inner,
    reader: &mut R,
    source: SocketAddr,
    node: NodeId,
    pong: &Pong,
) -> &'static str {
    loop {
        let frame = match timeout(SILENCE, frame::read(reader)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(e)) => {
                inner.refuse_frame(source, &e);
                if matches!(e, FrameError::Bad | FrameError::Oversized(_)) {
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
        match frame {
            (Kind::Message, bytes) => {
                count(&inner.counters.messages_received);
                registry::tell(inner, TransportEvent::Message { from: node, bytes }).await;
            }
            (Kind::Ping, _) => {
                pong.owed.store(true, Ordering::Release);
                pong.wake.notify_one();
            }
            (Kind::Pong, _) => {}
            (Kind::Hello | Kind::JoinRequest | Kind::JoinReply, _) => {
                inner.refuse_frame(source, &FrameError::Bad);
                registry::tell(inner, TransportEvent::Garbage { from: node }).await;
                return "a frame that is not allowed there";
            }
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    inner: &Inner,
    writer: &mut W,
    slot: &Slot,
    pong: &Pong,
) -> &'static str {
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
async fn burst<W: AsyncWrite + Unpin>(
    inner: &Inner,
    writer: &mut W,
    slot: &Slot,
    pong: &Pong,
    ping: bool,
) -> std::io::Result<()> {
    if ping {
        frame::write(writer, Kind::Ping, &[]).await?;
    }
    if pong.owed.swap(false, Ordering::AcqRel) {
        frame::write(writer, Kind::Pong, &[]).await?;
    }
    for _ in 0..64 {
        let Some(message) = slot.queue.pop() else {
            return writer.flush().await;
        };
        frame::write(writer, Kind::Message, &message).await?;
        count(&inner.counters.messages_sent);
    }
    // There may be more: come back at once.
    slot.queue.pushed.notify_one();
    writer.flush().await
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
