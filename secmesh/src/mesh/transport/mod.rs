//! Carries messages between the nodes of a mesh: gRPC over mutual TLS 1.3, one connection per pair, or
//! envelopes through NATS ([`Carrier`]). Whoever sends and receives does not know which.
//!
//! Who may connect is known beforehand, by key ([`AllowedPeers`]). A stranger fails in the TLS
//! handshake; none of its bytes reach HTTP/2 or code of ours. What a member sends is one frame of at
//! most 64 KiB after the other, and is handed on unread: messages authenticate themselves.
//!
//! Direct: both ends may dial. If both do at once, the connection dialled by the node with the lower id
//! stays. A message waits up to 30 s for a peer that is away; beyond that, and when a queue is full,
//! messages are lost and counted, so after [`TransportEvent::PeerUp`] say again what matters.

mod counters;
mod dial;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grpc;
mod inbox;
mod join;
mod knock;
mod limit;
mod listen;
#[cfg(feature = "nats")]
mod nats;
mod peers;
mod queue;
mod registry;
mod session;
mod tls;

pub use counters::Counters;
pub use frame::MAX_BODY as MAX_MESSAGE;
pub use inbox::TransportEvents;
pub use join::{JoinError, join};
pub use limit::RateLimitedLog;
#[cfg(feature = "nats")]
pub use nats::NatsError;
pub use peers::{AllowedPeers, PeerIdentity};

use std::collections::{HashMap, HashSet};
use std::io;
#[cfg(feature = "nats")]
use std::net::Ipv4Addr;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::identity::TlsIdentity;
use super::ids::{MeshId, NodeId, TicketId};
use crate::clock::Clock;
use counters::count;

/// Requests to join that are worked on at once.
const JOINS: usize = 8;
const LOG_PERIOD: Duration = Duration::from_mins(1);
const LOG_KEYS: usize = 1024;
/// In the log's keys, for what does not come from an address.
#[cfg(feature = "nats")]
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What takes messages from node to node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Carrier {
    /// Connections between the nodes.
    #[default]
    Grpc,
    /// A message broker. Joining stays direct.
    Nats(NatsConfig),
}

/// How to reach NATS servers with `JetStream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// Addresses of the servers of one cluster, `nats://HOST:PORT` or `tls://HOST:PORT`.
    pub servers: Vec<String>,
    /// User, with `password_file`.
    pub user: Option<String>,
    /// File with the password; nobody else may read it.
    pub password_file: Option<PathBuf>,
    /// File with a token; nobody else may read it.
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) that the servers' ones have to follow from. With it TLS is required.
    pub ca_file: Option<PathBuf>,
    /// Certificate (PEM) that is shown to the servers, with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM); nobody else may read it.
    pub key_file: Option<PathBuf>,
    /// Copies of the stream, where this node makes it.
    pub replicas: usize,
    /// How long the stream keeps a message, where this node makes it.
    pub max_age: Duration,
    /// How many bytes the stream keeps, where this node makes it.
    pub max_bytes: u64,
}

/// What the transport needs to begin.
pub struct TransportConfig {
    /// Where to listen; `[::]:4747` takes IPv4 as well.
    pub listen: SocketAddr,
    /// This node.
    pub node: NodeId,
    /// Its TLS key.
    pub tls: TlsIdentity,
    /// The mesh; peers of another are refused.
    pub mesh: MeshId,
    /// What takes messages to peers and from them.
    pub carrier: Carrier,
    /// Who may connect; shared, and changed from outside.
    pub allowed: Arc<AllowedPeers>,
    /// Peers to dial; see [`TransportHandle::set_peers`].
    pub peers: Vec<PeerAddress>,
    /// For the age of waiting messages and the rate of log lines.
    pub clock: Arc<dyn Clock>,
}

/// Where to reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress {
    /// The peer.
    pub node: NodeId,
    /// SHA-256 of its TLS key's `SubjectPublicKeyInfo`.
    pub spki_sha256: [u8; 32],
    /// Its address.
    pub address: SocketAddr,
}

/// What happens on the transport.
#[derive(Debug)]
pub enum TransportEvent {
    /// A connection to a peer came up. A second one without a [`TransportEvent::PeerDown`] between
    /// does not occur.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// Where it really is: a connection to or from there was made with its key. What a peer says
        /// of its own address is only its word. None if it is reached through others.
        ip: Option<IpAddr>,
    },
    /// A peer that is reached through others was met at this address: its key was shown there. Only of use while the
    /// peer is up.
    PeerAt {
        /// The peer.
        node: NodeId,
        /// Where it is.
        ip: IpAddr,
    },
    /// The connection to a peer ended.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// A peer sent a message.
    Message {
        /// The peer that carried it, which need not be its author.
        from: NodeId,
        /// The message.
        bytes: Bytes,
    },
    /// A peer sent something that is no frame; the connection ends.
    Garbage {
        /// The peer.
        from: NodeId,
    },
    /// Somebody with a ticket asks to join.
    JoinRequest {
        /// The ticket whose key opened the connection.
        ticket: TicketId,
        /// The request.
        bytes: Bytes,
        /// Takes the answer, at most [`MAX_MESSAGE`] bytes, within 10 s; dropping it refuses.
        reply: oneshot::Sender<Vec<u8>>,
    },
}

/// Why the transport cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; see `ss -tlnp` for who uses the port, or set [mesh] listen"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The TLS library refuses its configuration.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The settings of NATS cannot be used.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// This program was built without NATS.
    #[error(
        "[mesh] carrier = \"nats\": this secmesh was built without it; use one built with the feature `nats`, or carrier = \"grpc\""
    )]
    NoNats,
}

/// What all tasks of one transport share.
struct Inner {
    node: NodeId,
    mesh: MeshId,
    tls: TlsIdentity,
    allowed: Arc<AllowedPeers>,
    server: tokio_rustls::TlsAcceptor,
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
    log: RateLimitedLog<(IpAddr, &'static str)>,
    handshakes: limit::HandshakeLimiter,
    joins: Arc<Semaphore>,
    known: RwLock<HashSet<IpAddr>>,
    registry: registry::Registry,
    /// Members have connections of their own to each other.
    direct: bool,
    /// What keeps the carrier from its server, for people; none while it is connected, or has none.
    trouble: Mutex<Option<String>>,
    /// Woken on each message that waits, for a carrier that looks after all queues.
    pushed: Notify,
    events: inbox::Feed,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Inner {
    /// Counts a refusal, and logs it once per source and minute.
    fn refuse(&self, source: SocketAddr, counter: &AtomicU64, reason: &'static str) {
        count(counter);
        if let Some(held_back) = self.log.allow((limit::source_of(source.ip()), reason)) {
            tracing::warn!(%source, reason, held_back, "refused a connection");
        }
    }

    /// As [`Inner::refuse`], for what came instead of a good frame. A broken connection is no
    /// refusal and is not logged.
    fn refuse_frame(&self, source: SocketAddr, error: &frame::FrameError) {
        let c = &self.counters;
        match error {
            frame::FrameError::Io(_) => {}
            frame::FrameError::Oversized => {
                self.refuse(source, &c.refused_oversized, "a frame over 64 KiB");
            }
            frame::FrameError::Bad => {
                self.refuse(source, &c.refused_bad_frame, "a frame that is not allowed");
            }
            frame::FrameError::Version(_) => {
                self.refuse(source, &c.refused_wrong_version, "another protocol version");
            }
            frame::FrameError::Mesh => self.refuse(source, &c.refused_wrong_mesh, "another mesh"),
            frame::FrameError::Carrier => self.refuse(
                source,
                &c.refused_other_carrier,
                "a member that connects directly; [mesh] carrier has to be the same on all nodes",
            ),
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// It waits to be sent; if the peer is away, for at most 30 s.
    Queued,
    /// The peer is not a member (or is this node).
    NotAMember,
    /// It is larger than [`MAX_MESSAGE`].
    TooLarge,
}

/// Starts transports.
#[derive(Debug)]
pub struct Transport;

impl Transport {
    /// Listens, and dials the peers.
    ///
    /// # Errors
    /// [`TransportError`]: the address is taken or not this machine's, or TLS cannot be set up.
    pub fn start(
        config: TransportConfig,
    ) -> Result<(TransportHandle, TransportEvents), TransportError> {
        let listener = listen::bind(config.listen).map_err(|source| TransportError::Listen {
            address: config.listen,
            source,
        })?;
        let address = listener
            .local_addr()
            .map_err(|source| TransportError::Listen {
                address: config.listen,
                source,
            })?;
        let server = tls::server(&config.tls, Arc::clone(&config.allowed))?.into();
        #[cfg(feature = "nats")]
        let nats = match &config.carrier {
            Carrier::Grpc => None,
            Carrier::Nats(nats) => Some(nats::prepare(nats.clone())?),
        };
        #[cfg(not(feature = "nats"))]
        if config.carrier != Carrier::Grpc {
            return Err(TransportError::NoNats);
        }
        let counters = Arc::new(Counters::default());
        let room = match config.carrier {
            Carrier::Grpc => inbox::ROOM,
            // One task takes what all peers send: it cannot wait for one of them.
            Carrier::Nats(_) => inbox::ROOM_SHARED,
        };
        let (events, receiver) =
            inbox::inbox(Arc::clone(&counters), Arc::clone(&config.clock), room);
        let inner = Arc::new(Inner {
            node: config.node,
            mesh: config.mesh,
            tls: config.tls,
            allowed: config.allowed,
            server,
            counters,
            log: RateLimitedLog::new(Arc::clone(&config.clock), LOG_PERIOD, LOG_KEYS),
            clock: config.clock,
            handshakes: limit::HandshakeLimiter::new(),
            joins: Arc::new(Semaphore::new(JOINS)),
            known: RwLock::default(),
            registry: registry::Registry::default(),
            direct: config.carrier == Carrier::Grpc,
            trouble: Mutex::default(),
            pushed: Notify::new(),
            events,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        inner
            .tasks
            .spawn(listen::accept(Arc::clone(&inner), listener));
        #[cfg(feature = "nats")]
        if let Some(nats) = nats {
            inner.tasks.spawn(nats::run(Arc::clone(&inner), nats));
        }
        let handle = TransportHandle {
            inner,
            address,
            dialers: Arc::default(),
        };
        handle.set_peers(config.peers);
        Ok((handle, receiver))
    }
}

/// Sends messages and steers a running transport. Cheap to clone. Dropping it stops nothing; see
/// [`TransportHandle::shutdown`].
#[derive(Clone)]
pub struct TransportHandle {
    inner: Arc<Inner>,
    address: SocketAddr,
    dialers: Arc<Mutex<HashMap<NodeId, (PeerAddress, CancellationToken)>>>,
}

impl TransportHandle {
    /// Where it listens; tells the port if it was given as 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Queues a message for one member. Never waits.
    pub fn send(&self, node: NodeId, message: Bytes) -> SendOutcome {
        if !self.inner.allowed.is_member(node) {
            return SendOutcome::NotAMember;
        }
        self.queue(node, message)
    }

    /// Queues a message for all members but this node. Never waits.
    pub fn broadcast(&self, message: &Bytes) {
        for node in self.inner.allowed.members() {
            self.queue(node, message.clone());
        }
    }

    fn queue(&self, node: NodeId, message: Bytes) -> SendOutcome {
        let inner = &self.inner;
        if node == inner.node {
            return SendOutcome::NotAMember;
        }
        if message.len() > MAX_MESSAGE {
            count(&inner.counters.outgoing_too_large);
            return SendOutcome::TooLarge;
        }
        let dropped = inner
            .registry
            .slot(node)
            .queue
            .push(inner.clock.mono_ns(), message);
        inner
            .counters
            .outgoing_dropped
            .fetch_add(dropped, Ordering::Relaxed);
        inner.pushed.notify_one();
        SendOutcome::Queued
    }

    /// Replaces the list of peers to dial; through a broker they are only met there, for their addresses. A connection that is up stays up, as long as its key is
    /// allowed. Peers without a known address are left out: they dial.
    pub fn set_peers(&self, peers: Vec<PeerAddress>) {
        let inner = &self.inner;
        *inner.known.write().unwrap_or_else(PoisonError::into_inner) = peers
            .iter()
            .map(|peer| peer.address.ip().to_canonical())
            .collect();
        let mut dialers = self.dialers.lock().unwrap_or_else(PoisonError::into_inner);
        dialers.retain(|_, (old, stop)| {
            let stays = peers.contains(old);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for peer in peers {
            if peer.node == inner.node
                || dialers.contains_key(&peer.node)
                || inner.stop.is_cancelled()
            {
                continue;
            }
            let stop = inner.stop.child_token();
            dialers.insert(peer.node, (peer, stop.clone()));
            if inner.direct {
                let task = dial::keep_dialling(Arc::clone(inner), peer, stop);
                inner.tasks.spawn(task);
            } else {
                let task = knock::keep_knocking(Arc::clone(inner), peer, stop);
                inner.tasks.spawn(task);
            }
        }
    }

    /// The peers that are connected now.
    pub fn connected(&self) -> Vec<NodeId> {
        self.inner.registry.connected()
    }

    /// What keeps the carrier from its server, and what to do about it; none while it is connected, or where peers
    /// are connected to directly.
    pub fn carrier_trouble(&self) -> Option<String> {
        let trouble = self.inner.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All counters with their names.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters.snapshot()
    }

    /// Closes all connections and stops listening; returns when all tasks have ended. Events may
    /// still be read afterwards. Waits for nothing that the receiver of events would have to do.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
