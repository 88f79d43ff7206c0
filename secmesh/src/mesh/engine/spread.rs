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
#[cfg(test)]
use crate::mesh::ids::IncidentId;
use crate::mesh::ids::{DecisionId, NodeId};
use crate::mesh::message::{Announcement, Message, pack};
use crate::mesh::vote::bucket_of;

/// Up to so many nodes, everybody whose vote is in a certificate sends it in full.
const SMALL_MESH: usize = 24;
/// In larger ones, so many nodes do, drawn by the decision's hash. More than one or two, since a liar that told
/// two nodes different things is found by comparing certificates.
const SENDERS: usize = 8;
/// Most decisions that are being asked for.
pub const MAX_WANTED: usize = 1_024;
/// Most of those that one peer may have been first to announce.
const MAX_WANTED_PER_PEER: usize = 64;
/// The same in a mesh with a committee.
const MAX_WANTED_OF_FEW: usize = 256;
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

/// How many nodes, one after the other, each one tells of a decision of a committee, besides those below it in the
/// trees: who is below liars in all of them hears of it from somebody all the same.
const RUMOURS: u8 = 8;
/// How long it waits between two of them, microseconds.
const RUMOUR_US: u64 = 500_000;
/// Most decisions told to one of them.
const MAX_RUMOURS: usize = 1_024;
/// Minutes after which a decision is no news.
const FRESH_BUCKETS: u64 = 2;

fn announcement_of(decision: &Decision, certificate: &Certificate) -> Announcement {
    Announcement {
        decision: decision.id,
        incident: decision.incident,
        round: certificate.round,
    }
}

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
    /// Decisions of a committee that others are told of one by one, and how many are still to be.
    rumours: Vec<(Announcement, u8)>,
    /// When, and whom, this node told last.
    rumoured: Option<(u64, NodeId)>,
}

#[cfg(test)]
impl Spread {
    /// Leaves no room for further word.
    pub(super) fn fill(&mut self) {
        let announcement = Announcement {
            decision: DecisionId([0; 32]),
            incident: IncidentId([0; 32]),
            round: 0,
        };
        self.rumours = vec![(announcement, RUMOURS); MAX_RUMOURS];
    }

    /// Leaves no room for what is told at the next tick.
    pub(super) fn fill_untold(&mut self) {
        let announcement = Announcement {
            decision: DecisionId([0; 32]),
            incident: IncidentId([0; 32]),
            round: 0,
        };
        self.untold = vec![announcement; MAX_UNTOLD];
    }
}

impl Engine {
    /// Tells everybody that this node has the certificate; sends it if that falls to this node and it `made` it.
    pub(super) fn announce(&mut self, call: &mut Call<'_>, decision: &Decision, made: bool) {
        self.spread.wanted.remove(&decision.id);
        if let Warrant::Votes(certificate) = &decision.warrant {
            if self.roster.seats().is_some() {
                return self.announce_down(call, decision, certificate, made);
            }
            if made && self.is_sender(decision, certificate) {
                call.out.push(Output::Broadcast(
                    Message::Certificate(Box::new(certificate.clone())).to_bytes(),
                ));
                return;
            }
            let announcement = announcement_of(decision, certificate);
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

    /// Where a committee decides: passes the certificate on to those who get it from this node, and tells others at
    /// the next tick, when it should have reached them. Not what has been decided long since: who catches up would
    /// wake everybody.
    fn announce_down(
        &mut self,
        call: &mut Call<'_>,
        decision: &Decision,
        certificate: &Certificate,
        made: bool,
    ) {
        if !made && bucket_of(call.now).saturating_sub(decision.bucket) > FRESH_BUCKETS {
            return;
        }
        let message = Message::Certificate(Box::new(certificate.clone()));
        self.send_down(call, &decision.id, &message.to_bytes());
        let announcement = announcement_of(decision, certificate);
        if self.spread.untold.len() >= MAX_UNTOLD {
            self.tell_decided(call);
        }
        self.spread.untold.push(announcement);
        // What finds no room here is found by the comparison of everything: within a minute.
        let rumours = &mut self.spread.rumours;
        if rumours.len() < MAX_RUMOURS {
            rumours.push((announcement, RUMOURS));
        } else {
            self.count_refusal(call, self.config.node, RefusalReason::Full);
        }
    }

    /// Tells the next peer of what was decided lately.
    fn spread_rumours(&mut self, call: &mut Call<'_>) {
        let last = self.spread.rumoured.unwrap_or((0, self.config.node));
        // A clock that was set back makes nobody wait longer.
        if self.spread.rumours.is_empty() || call.now.abs_diff(last.0) < RUMOUR_US {
            return;
        }
        let Some(to) = self.peer_after(Some(last.1)) else {
            return;
        };
        self.spread.rumoured = Some((call.now, to));
        let told = self.spread.rumours.iter_mut().map(|(announcement, left)| {
            *left = left.saturating_sub(1);
            Message::Decided(*announcement).to_bytes()
        });
        for bytes in pack(told) {
            call.out.push(Output::Send { to, bytes });
        }
        self.spread.rumours.retain(|(_, left)| *left > 0);
    }

    /// Says of what was decided since the last tick that it is here, all at once.
    fn tell_decided(&mut self, call: &mut Call<'_>) {
        let untold = std::mem::take(&mut self.spread.untold);
        if self.roster.seats().is_some() {
            return self.tell_some(call, untold);
        }
        let parts = untold
            .into_iter()
            .map(|announcement| Message::Decided(announcement).to_bytes());
        for bytes in pack(parts) {
            call.out.push(Output::Broadcast(bytes));
        }
    }

    fn tell_some(&self, call: &mut Call<'_>, untold: Vec<Announcement>) {
        let mut told: BTreeMap<NodeId, Vec<Vec<u8>>> = BTreeMap::new();
        for announcement in untold {
            let bytes = Message::Decided(announcement).to_bytes();
            for to in self.told_by_this(&announcement.decision) {
                told.entry(to).or_default().push(bytes.clone());
            }
        }
        told.retain(|to, _| self.connected.contains(to));
        for (to, parts) in told {
            for bytes in pack(parts) {
                call.out.push(Output::Send { to, bytes });
            }
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
        let quota = if self.roster.seats().is_some() {
            // A few tell for all.
            MAX_WANTED_OF_FEW
        } else {
            (2 * MAX_WANTED / self.roster.len().max(1)).clamp(2, MAX_WANTED_PER_PEER)
        };
        let mine = self.spread.wanted.values().filter(|w| w.first == from);
        let mine = mine.count();
        if mine >= quota || !self.has_room_for_wanted(mine) {
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

    /// Whether one more may be asked for, of a peer that was first to announce so many of them. Where a few tell for all,
    /// as few liars could fill the table with what they have made up: then whoever takes up most of it gives way.
    fn has_room_for_wanted(&mut self, mine: usize) -> bool {
        if self.spread.wanted.len() < MAX_WANTED {
            return true;
        }
        if self.roster.seats().is_none() {
            return false;
        }
        let mut taken: BTreeMap<NodeId, usize> = BTreeMap::new();
        for wanted in self.spread.wanted.values() {
            *taken.entry(wanted.first).or_default() += 1;
        }
        let most = taken.into_iter().max_by_key(|(_, count)| *count);
        let Some((most, _)) = most.filter(|(_, count)| *count > mine + 1) else {
            return false;
        };
        // What is made up, nobody else has.
        let theirs = self.spread.wanted.iter();
        let theirs = theirs.filter(|(_, wanted)| wanted.first == most);
        let worst = theirs.min_by_key(|(_, wanted)| wanted.holders.len());
        let worst = worst.map(|(id, _)| *id);
        worst.is_some_and(|id| self.spread.wanted.remove(&id).is_some())
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
        self.spread_rumours(call);
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
