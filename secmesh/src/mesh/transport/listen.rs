//! The listening side.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::counters::count;
use super::frame::{Frame, FrameError, Kind};
use super::grpc::{self, Link, Method};
use super::limit::{Busy, HandshakePermit};
use super::peers::PeerIdentity;
use super::{Inner, join, knock, registry, session, tls};
use crate::mesh::identity::spki_of;
use crate::mesh::ids::{NodeId, TicketId};

/// Time for the TLS handshake and the first frame together.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);
const BACKLOG: u32 = 256;

/// Listens; `[::]` takes IPv4 too, whatever the system's default, and falls back to IPv4 alone where
/// the kernel has no IPv6.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(v6) => match TcpSocket::new_v6() {
            Err(e)
                if e.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
                    && v6.ip().is_unspecified() =>
            {
                tracing::warn!("this kernel has no IPv6; listening on IPv4 only");
                return bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port())));
            }
            socket => {
                let socket = socket?;
                setsockopt(&socket, sockopt::Ipv6V6Only, &!v6.ip().is_unspecified())?;
                socket
            }
        },
    };
    // Or a restart would wait for the old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until the transport stops.
pub(super) async fn accept(inner: Arc<Inner>, listener: TcpListener) {
    let mut allowed = inner.allowed.subscribe();
    loop {
        let accepted = tokio::select! {
            () = inner.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
            // The set lives as long as this task, so the channel does not close.
            _ = allowed.changed() => {
                inner.registry.retain(&inner.allowed.members());
                continue;
            }
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors or memory: trying again at once would only burn time.
                count(&inner.counters.accept_failed);
                if let Some(held_back) = inner.log.allow((Ipv4Addr::UNSPECIFIED.into(), "accept")) {
                    tracing::warn!(%error, held_back, "cannot accept connections");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let known = inner
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&source.ip());
        match inner.handshakes.begin(source.ip(), known) {
            Ok(permit) => {
                let task = serve(Arc::clone(&inner), stream, source, permit);
                inner.tasks.spawn(task);
            }
            Err(Busy::Everywhere) => inner.refuse(
                source,
                &inner.counters.refused_busy,
                "too many handshakes at once",
            ),
            Err(Busy::Source) => {
                inner.refuse(
                    source,
                    &inner.counters.refused_source_busy,
                    "too many handshakes from there at once",
                );
            }
        }
    }
}

/// A connection whose other end has shown who it is.
enum Welcome {
    Member {
        link: Link,
        node: NodeId,
        spki: [u8; 32],
    },
    Joiner {
        link: Link,
        ticket: TicketId,
        request: Bytes,
    },
}

async fn serve(inner: Arc<Inner>, stream: TcpStream, source: SocketAddr, permit: HandshakePermit) {
    let welcome = tokio::select! {
        () = inner.stop.cancelled() => return,
        welcome = timeout(HANDSHAKE, welcome(&inner, stream, source)) => welcome,
    };
    match welcome {
        Err(_) => inner.refuse(
            source,
            &inner.counters.refused_handshake_timeout,
            "the handshake took over 5 s",
        ),
        Ok(None) => {}
        Ok(Some(Welcome::Joiner {
            link,
            ticket,
            request,
        })) => {
            drop(permit);
            join::answer(&inner, link, source, ticket, request).await;
        }
        Ok(Some(Welcome::Member { link, node, spki })) => {
            // The answer to the Hello is the promise that this connection counts.
            let Some(place) = registry::enter(&inner, node, source, false).await else {
                return;
            };
            // Not earlier: what waits for its place is limited as handshakes are.
            drop(permit);
            let said = timeout(HANDSHAKE, link.writer.write(Frame::hello(&inner.mesh))).await;
            if !matches!(said, Ok(Ok(()))) {
                return registry::leave(&inner, place).await;
            }
            tracing::info!(peer = %node, %source, "a peer connected");
            session::run(&inner, link, source, node, spki, place).await;
        }
    }
}

/// The handshake. `None` if the other end was refused, which is then counted.
async fn welcome(inner: &Inner, stream: TcpStream, source: SocketAddr) -> Option<Welcome> {
    // Failing that, messages are late but not lost.
    let _ = stream.set_nodelay(true);
    let mut stream = match inner.server.accept(stream).await {
        Ok(stream) => stream,
        Err(e) => {
            let (counter, reason) = tls::refusal(&e, &inner.counters);
            inner.refuse(source, counter, reason);
            return None;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let spki = certificates.first().and_then(spki_of);
    // Asked again: it may have been removed since the handshake looked.
    let who = spki.and_then(|spki| inner.allowed.get(&spki).map(|who| (spki, who)));
    let Some((spki, who)) = who else {
        inner.refuse(
            source,
            &inner.counters.refused_unknown_certificate,
            "a certificate that is not known here",
        );
        return None;
    };
    if let PeerIdentity::Quarantined(_) = who {
        inner.refuse(
            source,
            &inner.counters.refused_quarantined,
            "the node is quarantined",
        );
        return None;
    }
    if let PeerIdentity::Member(node) = who
        && !inner.direct
        && node != inner.node
        && knock::is_knock(&mut stream).await
    {
        knock::met(inner, node, source).await;
        return None;
    }
    match first_words(inner, stream, spki, who).await {
        Ok(welcome) => Some(welcome),
        Err(FrameError::Io(_)) => {
            inner.refuse(
                source,
                &inner.counters.refused_handshake_failed,
                "left before its first message",
            );
            None
        }
        Err(e) => {
            inner.refuse_frame(source, &e);
            None
        }
    }
}

/// The call that the other end makes, and its first frame.
async fn first_words(
    inner: &Inner,
    stream: TlsStream<TcpStream>,
    spki: [u8; 32],
    who: PeerIdentity,
) -> Result<Welcome, FrameError> {
    let method = match who {
        // Somebody who has our own key.
        PeerIdentity::Member(node) if node == inner.node => return Err(FrameError::Bad),
        PeerIdentity::Member(_) if !inner.direct => return Err(FrameError::Carrier),
        PeerIdentity::Member(_) => Method::Session,
        PeerIdentity::Quarantined(_) => return Err(FrameError::Bad),
        PeerIdentity::Ticket(_) => Method::Join,
    };
    let mut link = grpc::accept(&inner.tasks, &inner.stop, stream, method).await?;
    let first = link.reader.read().await?;
    match who {
        PeerIdentity::Member(node) => {
            first.check_hello(&inner.mesh)?;
            Ok(Welcome::Member { link, node, spki })
        }
        PeerIdentity::Ticket(ticket) if first.kind == Kind::JoinRequest => Ok(Welcome::Joiner {
            link,
            ticket,
            request: first.body,
        }),
        PeerIdentity::Ticket(_) | PeerIdentity::Quarantined(_) => Err(FrameError::Bad),
    }
}
