//! The carrier NATS: messages go through `JetStream`, in envelopes that need no trust in the servers.
//!
//! One task has all pairings and does everything in turn. The port of the mesh stays open for who joins with a
//! ticket: that conversation is direct.

mod bus;
mod options;
mod pairing;

pub use options::NatsError;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::bus::Bus;
use self::pairing::{Draft, Outcome, Pairing, Refusal, Rhythm};
use super::counters::count;
use super::peers::PeerIdentity;
use super::{Inner, NatsConfig, TransportEvent, registry};
use crate::entropy;
use crate::mesh::envelope::{Envelope, EnvelopeKind, Nonce, SignedEnvelope};
use crate::mesh::identity::ed25519_spki_sha256;
use crate::mesh::ids::NodeId;

const TICK: Duration = Duration::from_millis(250);
/// For all farewells together: a server that takes nothing does not hold up a stop.
const LEAVE: Duration = Duration::from_secs(1);
/// Messages to one peer before the others have their turn.
const BURST: usize = 64;

/// What [`start`] needs, with the files read.
pub(super) struct Prepared {
    config: NatsConfig,
    options: async_nats::ConnectOptions,
}

/// Reads the files that the settings name.
pub(super) fn prepare(config: NatsConfig) -> Result<Prepared, NatsError> {
    for server in &config.servers {
        server.parse::<async_nats::ServerAddr>()?;
    }
    let options = options::connect_options(&config)?;
    Ok(Prepared { config, options })
}

/// Carries messages until the transport stops.
pub(super) async fn run(inner: Arc<Inner>, prepared: Prepared) {
    let Prepared { config, options } = prepared;
    let bus = tokio::select! {
        () = inner.stop.cancelled() => return,
        bus = Bus::connect(&inner, &config, options) => bus,
    };
    let bus = match bus {
        Ok(bus) => bus,
        Err(error) => {
            // Only what trying again cannot mend comes back: the addresses were checked before.
            tracing::error!(%error, "cannot use NATS; the mesh stays apart until this agent is restarted");
            return;
        }
    };
    let (sender, arrived) = mpsc::channel(bus::ARRIVED);
    inner
        .tasks
        .spawn(bus.clone().receive(Arc::clone(&inner), config, sender));
    Carrier {
        inner,
        bus,
        pairings: HashMap::new(),
    }
    .run(arrived)
    .await;
}

struct Carrier {
    inner: Arc<Inner>,
    bus: Bus,
    /// One per member: who is none gets no place.
    pairings: HashMap<NodeId, Pairing>,
}

impl Carrier {
    async fn run(mut self, mut arrived: mpsc::Receiver<Bytes>) {
        let inner = Arc::clone(&self.inner);
        let mut allowed = inner.allowed.subscribe();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.members().await;
        loop {
            tokio::select! {
                () = inner.stop.cancelled() => break,
                // The set lives as long as `inner`, so the channel does not close.
                _ = allowed.changed() => self.members().await,
                bytes = arrived.recv() => match bytes {
                    Some(bytes) => self.take(&bytes).await,
                    None => break,
                },
                _ = tick.tick() => self.tick().await,
                () = inner.pushed.notified() => self.send_waiting().await,
            }
        }
        drop(arrived);
        // Who is not told notices the silence.
        let _ = timeout(LEAVE, self.leave()).await;
    }

    /// A nonce for the pairing's next session. Without randomness there is none, and no session begins.
    fn fresh(&self) -> Option<Nonce> {
        let nonce = entropy::bytes().ok();
        if nonce.is_none()
            && let Some(held_back) = self.inner.log.allow((super::NOWHERE, "entropy"))
        {
            tracing::warn!(
                held_back,
                "no randomness from the kernel: nothing is taken from NATS"
            );
        }
        nonce
    }

    /// Follows the set of members.
    async fn members(&mut self) {
        let members = self.inner.allowed.members();
        let now = self.inner.clock.mono_ns();
        let gone: Vec<NodeId> = self
            .pairings
            .keys()
            .filter(|node| !members.contains(node))
            .copied()
            .collect();
        for node in gone {
            if self.pairings.remove(&node).is_some_and(|p| p.is_up()) {
                self.down(node).await;
            }
        }
        self.inner.registry.retain(&members);
        for node in members {
            if node != self.inner.node
                && !self.pairings.contains_key(&node)
                && let Some(own) = self.fresh()
            {
                let second = self.inner.node > node;
                self.pairings.insert(node, Pairing::new(own, second, now));
            }
        }
    }

    /// Judges what came through the stream: the cheapest question first.
    async fn take(&mut self, bytes: &Bytes) {
        let c = &self.inner.counters;
        let Ok(signed) = SignedEnvelope::from_bytes(bytes) else {
            return count(&c.refused_envelope_malformed);
        };
        let envelope = &signed.envelope;
        if envelope.mesh != self.inner.mesh || envelope.recipient != self.inner.node {
            return count(&c.refused_envelope_not_ours);
        }
        let pin = ed25519_spki_sha256(&envelope.sender);
        let Some(PeerIdentity::Member(node)) = self.inner.allowed.get(&pin) else {
            return count(&c.refused_envelope_stranger);
        };
        if signed.verify().is_err() {
            return count(&c.refused_envelope_bad_signature);
        }
        let now = self.inner.clock.mono_ns();
        let (Some(fresh), Some(pairing)) = (self.fresh(), self.pairings.get_mut(&node)) else {
            // This node's own key, or a member that `members` has not seen yet and that will say it again.
            return count(&c.refused_envelope_stranger);
        };
        let (outcomes, refusal) = pairing.take(envelope, now, fresh);
        if envelope.kind == EnvelopeKind::Farewell && refusal.is_none() {
            count(&c.nats_farewells);
        }
        let counter = refusal.map(|refusal| match refusal {
            Refusal::Stale => &c.refused_envelope_stale,
            Refusal::Replayed => &c.refused_envelope_replayed,
            Refusal::Missing => &c.refused_envelope_missing,
            Refusal::Hurried => &c.refused_envelope_hurried,
        });
        if let Some(counter) = counter {
            count(counter);
            if let Some(held_back) = self.inner.log.allow((super::NOWHERE, "envelope")) {
                tracing::warn!(peer = %node, ?refusal, held_back, "refused an envelope that came through NATS");
            }
        }
        self.apply(node, outcomes).await;
    }

    async fn tick(&mut self) {
        // What was not sent to peers that cannot be reached is not sent later than it is worth.
        let now = self.inner.clock.mono_ns();
        let mut connected = self.bus.is_connected();
        let nodes: Vec<NodeId> = self.pairings.keys().copied().collect();
        let rhythm = Rhythm::of(nodes.len());
        for node in nodes {
            let Some(fresh) = self.fresh() else { return };
            let outcomes = match self.pairings.get_mut(&node) {
                Some(pairing) => pairing.tick(now, fresh, connected, rhythm),
                None => continue,
            };
            self.expire(node, now);
            // A server that takes nothing is asked once a round and not once a peer.
            connected &= self.apply(node, outcomes).await;
        }
        if connected {
            self.send_waiting().await;
        }
    }

    fn expire(&self, node: NodeId, now_ns: u64) {
        let expired = self.inner.registry.slot(node).queue.expire(now_ns);
        self.inner
            .counters
            .outgoing_expired
            .fetch_add(expired, Ordering::Relaxed);
    }

    async fn send_waiting(&mut self) {
        if !self.bus.is_connected() {
            return;
        }
        let nodes: Vec<NodeId> = self.pairings.keys().copied().collect();
        for node in nodes {
            let slot = self.inner.registry.slot(node);
            let now = self.inner.clock.mono_ns();
            for sent in 0..=BURST {
                let Some(pairing) = self.pairings.get_mut(&node).filter(|p| p.has_session()) else {
                    break;
                };
                if sent == BURST {
                    // There may be more: come back, after what has come in.
                    self.inner.pushed.notify_one();
                    break;
                }
                let Some((since, body)) = slot.queue.pop_dated() else {
                    break;
                };
                let Some(draft) = pairing.message(now) else {
                    break;
                };
                if !self.post(node, draft, body.clone()).await {
                    // The server takes nothing now, or all is stopping; it is tried again with the next tick.
                    if let Some(pairing) = self.pairings.get_mut(&node) {
                        pairing.take_back();
                    }
                    return slot.queue.put_back(since, body);
                }
                count(&self.inner.counters.messages_sent);
            }
        }
    }

    /// Signs and publishes, unless all stops meanwhile. False if the server did not take it.
    async fn post(&self, to: NodeId, draft: Draft, body: Bytes) -> bool {
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => false,
            taken = self.publish(to, draft, body) => taken,
        }
    }

    async fn publish(&self, to: NodeId, draft: Draft, body: Bytes) -> bool {
        let signer = self.inner.tls.signer();
        let envelope = Envelope {
            mesh: self.inner.mesh,
            sender: signer.public(),
            recipient: to,
            nonce: draft.nonce,
            echo: draft.echo,
            sequence: draft.sequence,
            kind: draft.kind,
            body,
        };
        let bytes = envelope.sign(signer).to_bytes();
        let taken = self.bus.publish(&to, bytes).await;
        if !taken {
            count(&self.inner.counters.nats_publish_failed);
        }
        taken
    }

    /// Does what a pairing wants. False if the server did not take what was to be sent.
    async fn apply(&mut self, node: NodeId, outcomes: Vec<Outcome>) -> bool {
        let mut taken = true;
        for outcome in outcomes {
            match outcome {
                Outcome::Up => self.up(node).await,
                Outcome::Down => self.down(node).await,
                Outcome::Message(bytes) => {
                    count(&self.inner.counters.messages_received);
                    let event = TransportEvent::Message { from: node, bytes };
                    // Not waited for: the others' messages stand behind it.
                    self.inner.events.offer(event);
                }
                Outcome::Send(draft) => taken &= self.post(node, draft, Bytes::new()).await,
            }
        }
        taken
    }

    async fn up(&self, node: NodeId) {
        count(&self.inner.counters.connections_up);
        self.expire(node, self.inner.clock.mono_ns());
        self.inner.registry.slot(node).connected.send_replace(true);
        tracing::info!(peer = %node, "a peer can be reached through NATS");
        registry::tell(&self.inner, TransportEvent::PeerUp { node, ip: None }).await;
    }

    async fn down(&self, node: NodeId) {
        count(&self.inner.counters.connections_down);
        self.inner.registry.slot(node).connected.send_replace(false);
        tracing::info!(peer = %node, "a peer cannot be reached through NATS any more");
        registry::tell(&self.inner, TransportEvent::PeerDown { node }).await;
    }

    /// Says farewell, so that nobody waits for this node, and leaves nothing of its own with the server.
    async fn leave(mut self) {
        if !self.bus.is_connected() {
            return;
        }
        let now = self.inner.clock.mono_ns();
        let drafts: Vec<(NodeId, Draft)> = self
            .pairings
            .iter_mut()
            .filter_map(|(node, pairing)| Some((*node, pairing.farewell(now)?)))
            .collect();
        for (node, draft) in drafts {
            if !self.publish(node, draft, Bytes::new()).await {
                return;
            }
        }
        self.bus.flush().await;
        self.bus.forget().await;
    }
}
