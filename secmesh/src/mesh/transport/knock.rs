//! Where peers are that are reached through a broker: whoever shows a peer's key at an address, in a handshake like those
//! of direct sessions, is there. No word is said after it.
//!
//! Without it nobody could tell that a node attacks, nor drop what comes from one that is cut off: what a peer says of
//! its own address is only its word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::counters::count;
use super::listen::HANDSHAKE;
use super::peers::PeerIdentity;
use super::{Inner, PeerAddress, TransportEvent, dial, registry};
use crate::entropy;
use crate::mesh::ids::NodeId;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A peer that only the broker reaches costs one attempt in so long.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Finds out where a peer is each time that it has become reachable, until `stop`.
pub(super) async fn keep_knocking(inner: Arc<Inner>, peer: PeerAddress, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = knock_forever(&inner, peer) => {}
    }
}

async fn knock_forever(inner: &Arc<Inner>, peer: PeerAddress) {
    loop {
        let mut connected = inner.registry.slot(peer.node).connected.subscribe();
        if connected.wait_for(|up| *up).await.is_err() {
            // The slot was forgotten and made anew; ask the new one.
            continue;
        }
        // Down again: what was found by then counts for a while, and the next time is asked anew.
        let mut gone = connected.clone();
        tokio::select! {
            () = changed(&mut gone) => continue,
            () = find(inner, peer) => {}
        }
        changed(&mut connected).await;
    }
}

/// Waits until the peer has become reachable no more, or nobody asks. Also if it is reachable again by now: a peer that
/// begins anew goes down and up in one moment, and may be elsewhere.
async fn changed(connected: &mut watch::Receiver<bool>) {
    drop(connected.changed().await);
}

/// Tries until it has succeeded.
async fn find(inner: &Arc<Inner>, peer: PeerAddress) {
    let mut pause = FIRST_PAUSE;
    loop {
        // Nodes that found each other at the same moment do not all come at the same moment. Without randomness there
        // is no jitter.
        let span = u64::try_from(pause.as_millis()).unwrap_or(0);
        let jitter = entropy::below(span + 1).unwrap_or(span / 2);
        sleep(pause / 2 + Duration::from_millis(jitter)).await;
        if inner.allowed.get(&peer.spki_sha256) == Some(PeerIdentity::Member(peer.node)) {
            match dial::connect(&inner.tls, vec![peer.spki_sha256], peer.address).await {
                Ok(stream) => {
                    // Ended in order, so that the other end has seen the whole handshake.
                    end(stream).await;
                    return met(inner, peer.node, peer.address).await;
                }
                Err(error) => {
                    count(&inner.counters.dial_failed);
                    if let Some(held_back) = inner.log.allow((peer.address.ip(), "knock")) {
                        tracing::info!(peer = %peer.node, address = %peer.address, %error, held_back, "cannot find a peer at its address: as long as that is so, attacks from there are not taken for its own");
                    }
                }
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn end(mut stream: tokio_rustls::client::TlsStream<TcpStream>) {
    use tokio::io::AsyncWriteExt as _;
    // The peer may have closed it by itself.
    let _ = timeout(HANDSHAKE, stream.shutdown()).await;
}

/// A member has shown its key to this node's port, where members have nothing to say. True if it was only that.
pub(super) async fn is_knock(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut first = [0; 1];
    // Whoever speaks HTTP/2 begins at once.
    matches!(
        timeout(HANDSHAKE, stream.read(&mut first)).await,
        Ok(Ok(0) | Err(_))
    )
}

/// A peer was met at an address.
pub(super) async fn met(inner: &Inner, node: NodeId, at: SocketAddr) {
    count(&inner.counters.peers_found);
    let ip = at.ip().to_canonical();
    registry::tell(inner, TransportEvent::PeerAt { node, ip }).await;
}
