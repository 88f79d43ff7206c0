//! What the transport counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counters of the transport since its start.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: AtomicU64,)+ }

        impl Counters {
            /// All counters with their names.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)+]
            }
        }
    };
}

counters! {
    /// Connections to peers that came up.
    connections_up,
    /// Connections to peers that ended.
    connections_down,
    /// Connections closed because the peer was quarantined.
    sessions_quarantined,
    /// Attempts to reach a peer that failed.
    dial_failed,
    /// Times that a peer was met at its address, where messages go through a broker.
    peers_found,
    /// Second connections to a peer that were given up for the other one.
    duplicate_connections,
    /// Messages received.
    messages_received,
    /// Messages dropped because too many of that peer waited already; only where all come through one broker.
    incoming_dropped,
    /// Times that a peer had used up its share of the agent's time and was heard later.
    incoming_held_back,
    /// Messages handed to the kernel.
    messages_sent,
    /// Signs of life asked for on connections on which nothing was said for seconds.
    pings_sent,
    /// Oldest messages dropped because a peer's queue was full.
    outgoing_dropped,
    /// Messages dropped because they waited too long for a peer to come back.
    outgoing_expired,
    /// Messages not sent because they are larger than a frame.
    outgoing_too_large,
    /// Requests to join that were handed on.
    join_requests,
    /// Accepting a connection failed, for want of file descriptors or memory.
    accept_failed,
    /// Refused: too many handshakes at once.
    refused_busy,
    /// Refused: too many handshakes from one source at once.
    refused_source_busy,
    /// Refused: the handshake took too long.
    refused_handshake_timeout,
    /// Refused: no certificate.
    refused_no_certificate,
    /// Refused: a certificate that is not known here.
    refused_unknown_certificate,
    /// Refused: a node that is quarantined.
    refused_quarantined,
    /// Refused: a known certificate, shown by somebody without its key.
    refused_bad_signature,
    /// Refused: not TLS 1.3 as spoken here.
    refused_tls_incompatible,
    /// Refused: not TLS at all.
    refused_not_tls,
    /// Refused: the handshake failed or was given up in another way.
    refused_handshake_failed,
    /// Refused: another mesh.
    refused_wrong_mesh,
    /// Refused: another protocol version.
    refused_wrong_version,
    /// Refused: a frame over the limit.
    refused_oversized,
    /// Refused: a frame that is not allowed there, or makes no sense.
    refused_bad_frame,
    /// Refused: too many requests to join at once.
    refused_join_busy,
    /// Refused: a member that has connected anew more than once a second, over long.
    refused_reconnecting,
    /// Refused: a member that connects directly, where `[mesh] carrier` is another one.
    refused_other_carrier,
    /// Connections to a NATS server that came up.
    nats_connected,
    /// Times that no NATS server could be connected to, or it refused.
    nats_connect_failed,
    /// Connections to a NATS server that ended.
    nats_disconnected,
    /// Times that the mesh's stream could not be read.
    nats_receiving_failed,
    /// Peers that said farewell through NATS: nobody has to wait for their silence.
    nats_farewells,
    /// Envelopes that no NATS server took.
    nats_publish_failed,
    /// Refused: bytes out of the stream that are no envelope.
    refused_envelope_malformed,
    /// Refused: an envelope for another mesh or node.
    refused_envelope_not_ours,
    /// Refused: an envelope by nobody who is a member.
    refused_envelope_stranger,
    /// Refused: an envelope in the name of a member, not signed by it, or altered.
    refused_envelope_bad_signature,
    /// Refused: an envelope that was taken already, or older than what was.
    refused_envelope_replayed,
    /// Refused: an envelope of an earlier session, or out of an earlier life of the sender or of this node.
    refused_envelope_stale,
    /// Refused: an envelope before which others are missing; the session begins anew.
    refused_envelope_missing,
    /// Refused: a hello too soon after another.
    refused_envelope_hurried,
}

/// Counts one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
