//! The calling side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::counters::count;
use super::frame::FrameError;
use super::listen::HANDSHAKE;
use super::peers::PeerIdentity;
use super::{Inner, PeerAddress, frame, registry, session, tls};
use crate::entropy;
use crate::mesh::identity::TlsIdentity;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Short, because a mesh that was split is to be one again within seconds; an attempt costs a packet or two.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A head start for the other side where its connection would be the one that stays.
const COURTESY: Duration = Duration::from_millis(300);

/// Opens a TLS connection to a server with one of `pins`, within the time for a handshake.
pub(super) async fn connect(
    identity: &TlsIdentity,
    pins: Vec<[u8; 32]>,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let config = tls::client(identity, pins).map_err(io::Error::other)?;
    let attempt = async {
        let stream = TcpStream::connect(address).await?;
        // Failing that, messages are late but not lost.
        let _ = stream.set_nodelay(true);
        TlsConnector::from(config)
            .connect(tls::server_name(), stream)
            .await
    };
    timeout(HANDSHAKE, attempt)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Dials a peer whenever no connection to it is up, until `stop`.
pub(super) async fn keep_dialling(inner: Arc<Inner>, peer: PeerAddress, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = dial_forever(&inner, peer) => {}
    }
}

async fn dial_forever(inner: &Arc<Inner>, peer: PeerAddress) {
    let mut pause = FIRST_PAUSE;
    if peer.node < inner.node {
        sleep(COURTESY).await;
    }
    loop {
        let mut connected = inner.registry.slot(peer.node).connected.subscribe();
        if connected.wait_for(|up| !up).await.is_err() {
            // The slot was forgotten and made anew; ask the new one.
            continue;
        }
        if inner.allowed.get(&peer.spki_sha256) == Some(PeerIdentity::Member(peer.node)) {
            match attempt(inner, peer).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    count(&inner.counters.dial_failed);
                    if let Some(held_back) = inner.log.allow((peer.address.ip(), "dial")) {
                        tracing::info!(peer = %peer.node, address = %peer.address, %error, held_back, "cannot reach a peer");
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        // Between a half and one and a half, so that nodes that lost each other at the same moment
        // do not come back at the same moment. Without randomness there is no jitter.
        let span = u64::try_from(pause.as_millis()).unwrap_or(0);
        let jitter = entropy::below(span + 1).unwrap_or(span / 2);
        sleep(pause / 2 + Duration::from_millis(jitter)).await;
    }
}

/// One attempt. Once the connection counts, it lives in a task of its own: it does not end because
/// nobody dials the peer any more.
async fn attempt(inner: &Arc<Inner>, peer: PeerAddress) -> Result<(), FrameError> {
    let mut stream = connect(&inner.tls, vec![peer.spki_sha256], peer.address).await?;
    let hello = async {
        frame::write_hello(&mut stream, &inner.mesh).await?;
        frame::read_hello(&mut stream, &inner.mesh).await
    };
    let refused = timeout(HANDSHAKE, hello)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
    if let Err(e) = refused {
        if !matches!(e, FrameError::Io(_)) {
            inner.refuse_frame(peer.address, &e);
        }
        // The other side keeps the connection that it dialled: no failure.
        return if *inner.registry.slot(peer.node).connected.borrow() {
            Ok(())
        } else {
            Err(e)
        };
    }
    let inner = Arc::clone(inner);
    let tasks = inner.tasks.clone();
    let session = async move {
        if let Some(place) = registry::enter(&inner, peer.node, peer.address, true).await {
            tracing::info!(peer = %peer.node, address = %peer.address, "connected to a peer");
            session::run(
                &inner,
                stream,
                peer.address,
                peer.node,
                peer.spki_sha256,
                place,
            )
            .await;
        }
    };
    let (entered, wait) = tokio::sync::oneshot::channel::<()>();
    tasks.spawn(async move {
        let _entered = entered;
        session.await;
    });
    // Until the session has ended: then it is time to dial again.
    let _ = wait.await;
    Ok(())
}
