//! How certificates spread: a few nodes send them, the others only tell *that* they have one, and who lacks
//! it asks one of them.
//!
//! A certificate is as long as the quorum is large. If everyone with a vote in it sent it to everyone, each node
//! would receive a third of n copies, each of a third of n votes: bytes that grow with the square of n. Most
//! nodes have the votes and make the certificate themselves. The others are those that a liar sent
//! its vote past, or that are connected to only some of the mesh.

use std::collections::BTreeMap;

use super::io::{Output, RefusalReason};
use super::{Call, Engine, Incident, IncidentKey};
use crate::mesh::cert::Certificate;
use crate::mesh::decision::{Decision, Warrant};
use crate::mesh::ids::{DecisionId, NodeId};
use crate::mesh::message::{Announcement, Message, pack};

/// Up to so many nodes, everybody whose vote is in a certificate sends it in full.
const SMALL_MESH: usize = 24;
/// In larger ones, so many nodes do, drawn by the decision's hash. More than one or two, since a liar that told
/// two nodes different things is found by comparing certificates.
const SENDERS: usize = 8;
/// Most decisions that are being asked for.
pub const MAX_WANTED: usize = 1_024;
/// Most of those that one peer may have been first to announce.
const MAX_WANTED_PER_PEER: usize = 64;
/// Most peers remembered per decision that said they have it.
const MAX_HOLDERS: usize = 16;
/// How long an answer may take before the next peer is asked, in microseconds.
const ANSWER_US: u64 = 1_000_000;
/// How long a decision is asked for, in microseconds.
const WANTED_US: u64 = 60 * 1_000_000;
/// Most decisions that are told together; further ones are told at once.
const MAX_UNTOLD: usize = 1_024;
/// Most certificates given to one peer between two ticks.
const MAX_SERVED: u32 = 64;

/// A decision that others have taken and this node has not.
#[derive(Debug, Clone)]
struct Wanted {
    incident: IncidentKey,
    until_us: u64,
    asked_us: Option<u64>,
    first: NodeId,
    /// Who has it and was not asked yet.
    holders: Vec<NodeId>,
}

/// What is asked for, and what was given.
#[derive(Debug, Clone, Default)]
pub(super) struct Spread {
    wanted: BTreeMap<DecisionId, Wanted>,
    served: BTreeMap<NodeId, u32>,
    /// Decisions that this node has and, in a large mesh, says so of at the next tick.
    untold: Vec<Announcement>,
}

impl Engine {
    /// Tells everybody that this node has the certificate; sends it if that falls to this node and it `made` it.
    pub(super) fn announce(&mut self, call: &mut Call<'_>, decision: &Decision, made: bool) {
        self.spread.wanted.remove(&decision.id);
        if let Warrant::Votes(certificate) = &decision.warrant {
            if made && self.is_sender(decision, certificate) {
                call.out.push(Output::Broadcast(
                    Message::Certificate(Box::new(certificate.clone())).to_bytes(),
                ));
                return;
            }
            let announcement = Announcement {
                decision: decision.id,
                incident: decision.incident,
                round: certificate.round,
            };
            // Of n nodes almost n say it to n: most of a large mesh's messages about a decision, and none that
            // anybody waits for who has the votes. So the votes go first.
            if self.roster.len() > SMALL_MESH && self.spread.untold.len() < MAX_UNTOLD {
                self.spread.untold.push(announcement);
            } else {
                call.out
                    .push(Output::Broadcast(Message::Decided(announcement).to_bytes()));
            }
        }
    }

    /// Says of what was decided since the last tick that it is here, all at once.
    fn tell_decided(&mut self, call: &mut Call<'_>) {
        let untold = std::mem::take(&mut self.spread.untold);
        let parts = untold
            .into_iter()
            .map(|announcement| Message::Decided(announcement).to_bytes());
        for bytes in pack(parts) {
            call.out.push(Output::Broadcast(bytes));
        }
    }

    fn is_sender(&self, decision: &Decision, certificate: &Certificate) -> bool {
        let me = self.config.node;
        let nodes = self.roster.len();
        if nodes <= SMALL_MESH {
            return certificate.votes.iter().any(|vote| vote.voter == me);
        }
        let [a, b, c, d, ..] = *decision.id.as_bytes();
        let first = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(0) % nodes;
        let own = self.roster.members().position(|(node, _)| *node == me);
        own.is_some_and(|own| (own + nodes - first) % nodes < SENDERS)
    }

    pub(super) fn peer_decided(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        announced: &Announcement,
    ) {
        if self.decisions.contains_key(&announced.decision) {
            return;
        }
        if let Some(wanted) = self.spread.wanted.get_mut(&announced.decision) {
            if wanted.holders.len() < MAX_HOLDERS && !wanted.holders.contains(&from) {
                wanted.holders.push(from);
            }
            return;
        }
        let quota = (2 * MAX_WANTED / self.roster.len().max(1)).clamp(2, MAX_WANTED_PER_PEER);
        let mine = self.spread.wanted.values().filter(|w| w.first == from);
        if self.spread.wanted.len() >= MAX_WANTED || mine.count() >= quota {
            return self.refuse(call, from, RefusalReason::Full);
        }
        let incident = (announced.incident, announced.round);
        self.spread.wanted.insert(
            announced.decision,
            Wanted {
                incident,
                until_us: call.now.saturating_add(WANTED_US),
                asked_us: None,
                first: from,
                holders: vec![from],
            },
        );
        // Where the incident is known, votes are on their way; a tick is soon enough to ask. Not if the announcement
        // names an incident that leads to something else: who announces first must not keep others from asking.
        if !self.is_of(&announced.decision, &incident) {
            self.ask_for(call, announced.decision);
        }
    }

    /// Whether an incident is known here, and a decision is what it leads to.
    fn is_of(&self, id: &DecisionId, key: &IncidentKey) -> bool {
        self.incidents.get(key).is_some_and(|i| {
            let decision = i.action.decision(self.mesh, i.epoch_hash, key.0, key.1);
            decision == *id
        })
    }

    fn ask_for(&mut self, call: &mut Call<'_>, id: DecisionId) {
        let Some(wanted) = self.spread.wanted.get_mut(&id) else {
            return;
        };
        if wanted.holders.is_empty() {
            return;
        }
        let to = wanted.holders.remove(0);
        wanted.asked_us = Some(call.now);
        call.out.push(Output::Send {
            to,
            bytes: Message::WantDecision(id).to_bytes(),
        });
    }

    /// At each tick: asks for what did not come, and tells what came.
    pub(super) fn ask_for_decisions(&mut self, call: &mut Call<'_>) {
        self.tell_decided(call);
        let now = call.now;
        self.spread.served.clear();
        let over: Vec<DecisionId> = self
            .spread
            .wanted
            .iter()
            .filter(|(id, wanted)| {
                let decided = |i: &Incident| i.decided && self.is_of(id, &wanted.incident);
                // Clocks step back, too.
                wanted.until_us <= now
                    || wanted.until_us > now.saturating_add(WANTED_US)
                    || self.decisions.contains_key(id)
                    || self.incidents.get(&wanted.incident).is_some_and(decided)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.spread.wanted.remove(&id);
        }
        let due: Vec<DecisionId> = self
            .spread
            .wanted
            .iter()
            .filter(|(_, w)| {
                w.asked_us
                    .is_none_or(|asked| now.saturating_sub(asked) >= ANSWER_US)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.ask_for(call, id);
        }
    }

    pub(super) fn peer_wants(&mut self, call: &mut Call<'_>, from: NodeId, id: DecisionId) {
        let Some(Decision {
            warrant: Warrant::Votes(certificate),
            ..
        }) = self.decisions.get(&id)
        else {
            return;
        };
        let certificate = certificate.clone();
        let served = self.spread.served.entry(from).or_default();
        if *served >= MAX_SERVED {
            return self.refuse(call, from, RefusalReason::Full);
        }
        *served += 1;
        call.out.push(Output::Send {
            to: from,
            bytes: Message::Certificate(Box::new(certificate)).to_bytes(),
        });
    }
}
