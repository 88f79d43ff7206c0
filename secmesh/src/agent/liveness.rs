//! The failure detector beside the engine: its time, its messages, and what it finds.

use tracing::{info, warn};

use super::core::Agent;
use crate::api::types::Peer;
use crate::entropy::{self, EntropyError};
use crate::ledger::Record;
use crate::mesh::engine::{Input, QuorumLevel, QuorumState};
use crate::mesh::identity::Identity;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::swim::{Life, Liveness, Output, Swim, SwimMessage};

/// The detector, and what was done with what it said.
pub(super) struct Watchman {
    pub swim: Swim,
    /// Epoch and members it was told of.
    told: Option<Hash>,
    /// The state of the quorum that the record has.
    recorded: Option<QuorumLevel>,
}

impl Watchman {
    /// A detector for this node; whom it asks is left to chance.
    pub fn start(identity: &Identity) -> Result<Self, EntropyError> {
        let mut seed = [0; 32];
        entropy::fill(&mut seed)?;
        let me = Life {
            node: identity.node_id(),
            incarnation: identity.incarnation(),
        };
        Ok(Self {
            swim: Swim::new(me, seed),
            told: None,
            recorded: None,
        })
    }
}

impl Agent {
    /// The monotonic clock, which nobody sets, in the detector's unit.
    fn swim_us(&self) -> u64 {
        self.clock.mono_ns() / 1_000
    }

    /// Lets the detector do something, and does what it wants.
    async fn watchman(&mut self, act: impl FnOnce(&mut Swim, u64, &mut Vec<Output>)) {
        let (now_us, mut out) = (self.swim_us(), Vec::new());
        act(&mut self.watchman.swim, now_us, &mut out);
        for output in out {
            match output {
                // Behind the votes, as everything: a node that can sign nothing any more has no weight, and
                // its silence shows it.
                Output::Send { to, bytes } => self.leave(Some(to), bytes).await,
                Output::Liveness { node, now } => {
                    self.noted(node, now);
                    Box::pin(self.drive(Input::Liveness { node, now })).await;
                }
            }
        }
    }

    pub(super) async fn swim_up(&mut self, node: NodeId) {
        self.watchman(|swim, now, out| swim.peer_up(now, node, out))
            .await;
    }

    pub(super) async fn swim_down(&mut self, node: NodeId) {
        self.watchman(|swim, now, out| swim.peer_down(now, node, out))
            .await;
    }

    /// A message came from a peer, of whatever kind.
    pub(super) async fn swim_heard(&mut self, node: NodeId) {
        self.watchman(|swim, now, out| swim.heard(now, node, out))
            .await;
    }

    pub(super) async fn swim_message(&mut self, from: NodeId, message: SwimMessage) {
        self.watchman(|swim, now, out| swim.message(now, from, &message, out))
            .await;
    }

    pub(super) async fn swim_tick(&mut self) {
        let epoch = self.engine.roster().epoch_hash();
        if self.watchman.told != Some(epoch) {
            self.watchman.told = Some(epoch);
            let members: Vec<Life> = self
                .engine
                .roster()
                .members()
                .map(|(node, member)| Life {
                    node: *node,
                    incarnation: member.record.incarnation,
                })
                .collect();
            self.watchman(|swim, now, out| swim.set_members(now, members, out))
                .await;
        }
        self.watchman(Swim::tick).await;
    }

    /// For the record and for people; one line per node, state and minute.
    fn noted(&mut self, node: NodeId, now: Liveness) {
        if self.refusal_log.allow((node, now.name())).is_none() {
            return;
        }
        let name = self.name_of(&node);
        match now {
            Liveness::Alive => info!(peer = %name, "is there"),
            Liveness::Suspect => warn!(peer = %name, "does not answer: suspected"),
            Liveness::Down => warn!(peer = %name, "is down: nothing was heard of it"),
        }
        self.record(&Record::Liveness {
            node: node.to_string(),
            state: now.name().to_owned(),
        });
    }

    /// The engine says what the reachable nodes can decide.
    pub(super) fn quorum_changed(&mut self, state: &QuorumState) {
        info!(
            reachable = state.reachable_weight,
            total = state.total_weight,
            nodes = state.nodes,
            "quorum is {}",
            state.state
        );
        if self.watchman.recorded != Some(state.state) {
            self.watchman.recorded = Some(state.state);
            self.record(&Record::Quorum {
                state: state.state.to_string(),
                reachable: state.reachable_weight,
                total: state.total_weight,
            });
        }
    }

    /// How many members are in each state.
    pub(super) fn liveness_counts(&self) -> [(&'static str, u64); 3] {
        Liveness::ALL.map(|state| {
            let members = self.engine.roster().members();
            let there = members.filter(|(node, _)| self.shown_liveness(node) == Some(state));
            (state.name(), there.count().try_into().unwrap_or(u64::MAX))
        })
    }

    /// What is shown of a peer's being there.
    pub(super) fn shown_liveness(&self, node: &NodeId) -> Option<Liveness> {
        self.watchman.swim.liveness(node)
    }

    /// The nodes of the mesh, for people.
    pub(super) fn peers(&mut self) -> Vec<Peer> {
        let trust = self.trust_weights();
        let me = self.engine.node();
        let connected = self.engine.connected();
        let liars = self.engine.liars();
        let roster = self.engine.roster();
        // Those who wait for the next epoch are there too, with the weight they have: none.
        self.engine
            .reachable_records()
            .into_iter()
            .map(|record| Peer {
                id: record.node.to_string(),
                name: record.name.to_string(),
                zone: record.zone.to_string(),
                address: record.address.map(|a| a.to_string()),
                connected: record.node == me || connected.contains(&record.node),
                liveness: self.shown_liveness(&record.node),
                reachable: self.engine.is_reachable(&record.node),
                weight: roster.get(&record.node).map_or(0, |m| u64::from(m.weight)),
                trust: trust(&record.node),
                equivocated: liars.contains(&record.node),
                quarantined: self.engine.is_quarantined(&record.node),
                this_node: record.node == me,
            })
            .collect()
    }
}
