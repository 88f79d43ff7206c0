//! What a peer is told when it connects: what it lacks, and this node's own open votes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::answers::Answer;
use super::io::{Output, RefusalReason};
use super::{Call, Engine};
use crate::mesh::crypto::sha256;
use crate::mesh::decision::{Decision, Warrant};
use crate::mesh::ids::{DecisionId, Hash, NodeId};
use crate::mesh::inventory::{Inventory, Sums, bucket_of, differing, sums};
use crate::mesh::message::{Message, pack};
use crate::mesh::roster::{MAX_NODES, Roster};
use crate::mesh::wire::MAX_MESSAGE;
use crate::mesh::witness::LedgerMessage;

/// Most batches of the backlog sent to one peer per call: 2 MiB, so that a peer that comes up
/// does not keep this node from voting.
const BACKLOG_STEP: usize = 32;
/// A peer that has other things is told what is here, too, unless it was told so recently, microseconds.
pub(super) const TELL_AGAIN_US: u64 = 5 * 1_000_000;
/// Most batches that wait for one peer.
const MAX_BACKLOG: usize = 1_024;
/// Bytes that a part takes in a batch beyond itself.
const PART_OVERHEAD: usize = 2;

fn short(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Anything by the hash of what it is.
fn hashed(what: u8, bytes: &[u8]) -> u64 {
    short(&sha256(&[&[what], bytes].concat()))
}

/// The decisions by votes that today's roster and their own would have made, as counted: a peer that connects
/// makes all of them count, and one that connects again and again must not make that cost anything.
#[derive(Debug, Default, Clone)]
pub(super) struct Counted {
    /// What it follows from: the epoch, how many are proved liars (they only get more), who is cut off since when.
    basis: Option<(Hash, usize, BTreeMap<NodeId, u64>)>,
    pub(super) enough: BTreeSet<DecisionId>,
    /// How many were counted.
    #[cfg(test)]
    pub(super) times: usize,
}

impl Engine {
    /// Counts the decisions that are new since the last time, or all if that follows from something else by now.
    fn count_decisions(&mut self) {
        let (epoch, liars) = (self.roster.epoch_hash(), self.zeroed.len());
        let known = self.counted.basis.as_ref();
        if known.is_none_or(|k| (k.0, k.1) != (epoch, liars) || k.2 != self.quarantined) {
            self.counted.enough.clear();
            self.counted.basis = Some((epoch, liars, self.quarantined.clone()));
        }
        let known = &self.counted.enough;
        let decisions = self.decisions.values();
        let mut new: Vec<&Decision> = decisions.filter(|d| !known.contains(&d.id)).collect();
        // Those of one epoch together: the roster of an old one has to be made.
        new.sort_by_key(|decision| match &decision.warrant {
            Warrant::Votes(certificate) => Some(certificate.epoch_hash),
            Warrant::Operator(_) => None,
        });
        #[cfg(test)]
        let times = new.len();
        let mut own = None;
        let new: Vec<DecisionId> = new
            .into_iter()
            .filter(|decision| self.is_enough(decision, &mut own))
            .map(|decision| decision.id)
            .collect();
        #[cfg(test)]
        {
            self.counted.times += times;
        }
        let enough = &mut self.counted.enough;
        enough.extend(new);
        enough.retain(|id| self.decisions.contains_key(id));
    }

    /// What today's roster would not have decided, or what is over by another clock, a peer would refuse.
    fn is_told(&self, now: u64, decision: &Decision) -> bool {
        if decision.expires_unix_us <= now.saturating_add(self.skew_us()) {
            return false;
        }
        // As counted last; the inventory that the peer was told follows from the same.
        self.counted.enough.contains(&decision.id) || self.is_enough(decision, &mut None)
    }

    /// `own`: the roster of the epoch of the decision before, if that is at hand.
    fn is_enough<'a>(&'a self, decision: &Decision, own: &mut Option<Cow<'a, Roster>>) -> bool {
        match &decision.warrant {
            Warrant::Operator(_) => true,
            Warrant::Votes(certificate) => {
                let silent = self.silent_at(certificate.bucket);
                // By today's weights, and by those of its own epoch, as whoever lacks it will check. Where there is
                // no committee, the first needs no roster of before, which may have to be made.
                let without = self.config.genesis.params.committee == 0;
                let today = || certificate.count(&self.roster, &silent).check().is_ok();
                if without && !today() {
                    return false;
                }
                let epoch = &certificate.epoch_hash;
                if own.as_ref().is_none_or(|own| own.epoch_hash() != *epoch) {
                    *own = self.roster_of(epoch);
                }
                own.as_deref().is_some_and(|own| {
                    let enough = |roster: &Roster| certificate.stands_today(roster, own, &silent);
                    enough(own) && (without || enough(&self.roster))
                })
            }
        }
    }

    /// The ids of all that peers should have too. The same thing has the same id on every node, also where
    /// its proof differs: a decision with another choice of votes, a liar with other lies.
    pub(super) fn inventory(&mut self, now: u64) -> Vec<u64> {
        self.count_decisions();
        let records = self
            .registry
            .records()
            .map(|r| hashed(1, r.record.hash().as_bytes()));
        let grants = self
            .grants
            .keys()
            .map(|ticket| hashed(2, ticket.as_bytes()));
        let proofs = self.proofs.keys().map(|voter| hashed(3, voter.as_bytes()));
        let forks = self.forks.keys().map(|author| hashed(4, author.as_bytes()));
        let removals = self.removals.keys().map(|node| hashed(5, node.as_bytes()));
        let lies = self
            .epoch_proofs
            .keys()
            .map(|voter| hashed(6, voter.as_bytes()));
        let decisions = self
            .decisions
            .values()
            .filter(|decision| self.is_told(now, decision))
            .map(|decision| short(decision.id.as_bytes()));
        records
            .chain(grants)
            .chain(proofs)
            .chain(forks)
            .chain(removals)
            .chain(lies)
            .chain(decisions)
            .collect()
    }

    pub(super) fn peer_up(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if peer == self.config.node
            || (self.connected.len() >= MAX_NODES && !self.connected.contains(&peer))
        {
            return;
        }
        if self.is_quarantined(&peer) {
            return self.refuse(call, peer, RefusalReason::Quarantined);
        }
        self.connected.insert(peer);
        if self.seen.len() < 2 * MAX_NODES {
            self.seen.insert(peer);
        }
        self.statements.sync.stir(call.now);
        if self.answers.begin_anew(peer, call.now) {
            self.statements.sync.begin_anew(&peer);
        }
        // Own votes on what is still open, so that a mesh that was split can decide after all.
        let votes = self
            .own_votes
            .values()
            .filter(|ballot| self.is_for(&peer, ballot))
            .filter(|ballot| {
                let vote = &ballot.signed.vote;
                vote.epoch_hash == self.roster.epoch_hash()
                    && self
                        .incidents
                        .get(&(vote.incident, vote.round))
                        .is_some_and(|i| !i.decided && i.is_open(call.now))
            })
            .map(|ballot| Message::Vote(Box::new(*ballot)));
        let parts = self.epoch_parts().into_iter().chain(votes);
        let batches: VecDeque<Vec<u8>> = pack(parts.map(|message| message.to_bytes())).into();
        self.backlog.insert(peer, batches);
        self.tell_sums_soon(call, peer);
        self.send_backlog_to(call, peer);
        if self.roster.get(&peer).is_none() {
            // It was admitted and has now been started: its epoch may come.
            self.membership_known(call);
        }
    }

    /// Says what is here to a peer that came up: at once, or as soon as it may have that again.
    fn tell_sums_soon(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if self.answers.may(peer, call.now, Answer::Sums) {
            self.statements.sync.tell_later.remove(&peer);
            self.tell_sums(call, peer);
        } else if self.connected.contains(&peer) {
            self.statements.sync.tell_later.insert(peer);
        }
    }

    /// Says what had to wait because the peer had as much within a second already.
    pub(super) fn tell_now(&mut self, call: &mut Call<'_>) {
        for peer in std::mem::take(&mut self.statements.sync.tell_later) {
            self.tell_sums_soon(call, peer);
        }
        for (peer, theirs) in std::mem::take(&mut self.statements.sync.unanswered) {
            if self.answers.may(peer, call.now, Answer::Names) {
                self.answer_sums(call, peer, &theirs);
            } else {
                self.statements.sync.unanswered.insert(peer, theirs);
            }
        }
    }

    /// Says what is here in 256 sums; the peer answers with what it has where its own differ.
    pub(super) fn tell_sums(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if self.connected.contains(&peer) {
            self.statements.sync.told.insert(peer, call.now);
        }
        let message = Inventory::Sums(sums(self.inventory(call.now)));
        call.out.push(Output::Send {
            to: peer,
            bytes: Message::Inventory(Box::new(message)).to_bytes(),
        });
    }

    /// What was refused as dated wrongly may be right by the clock as it is now: compares with everybody.
    /// Twice, since a peer may have told this node what it has just before.
    pub(super) fn clock_set(&mut self, call: &mut Call<'_>) {
        self.compare_soon(call);
        self.tell_everybody(call);
    }

    /// Compares with everybody in a few seconds, when the others are where this node is.
    pub(super) const fn compare_soon(&mut self, call: &Call<'_>) {
        self.statements.sync.told_again_us = Some(call.now.saturating_add(TELL_AGAIN_US));
    }

    pub(super) fn tell_everybody(&mut self, call: &mut Call<'_>) {
        for peer in self.connected.clone() {
            self.tell_sums(call, peer);
        }
    }

    /// Names what is here where a peer's sums are others.
    fn answer_sums(&mut self, call: &mut Call<'_>, from: NodeId, theirs: &Sums) {
        let ids = self.inventory(call.now);
        let mine = sums(ids.iter().copied());
        let told = self.statements.sync.told.get(&from).copied();
        if *mine != *theirs && told.is_none_or(|at| call.now.abs_diff(at) >= TELL_AGAIN_US) {
            // Its sums brought it nothing yet: what it lacks follows from these.
            self.tell_sums(call, from);
        }
        for message in differing(&mine, theirs, &ids) {
            call.out.push(Output::Send {
                to: from,
                bytes: Message::Inventory(Box::new(message)).to_bytes(),
            });
        }
    }

    pub(super) fn peer_inventory(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        inventory: Inventory,
    ) {
        if !self.connected.contains(&from) {
            return;
        }
        match inventory {
            Inventory::Sums(theirs) => {
                if self.may_answer(call, from, Answer::Names) {
                    self.answer_sums(call, from, &theirs);
                } else {
                    self.statements.sync.unanswered.insert(from, theirs);
                }
            }
            Inventory::Ids { buckets, ids } => {
                let waiting = self.backlog.get(&from).map_or(0, VecDeque::len);
                let room = MAX_BACKLOG.saturating_sub(waiting);
                if room == 0 {
                    return self.refuse(call, from, RefusalReason::Full);
                }
                let buckets = self.may_tell(call, from, buckets);
                if buckets.is_empty() {
                    return;
                }
                let lacks = |id: u64| {
                    buckets.binary_search(&bucket_of(id)).is_ok() && ids.binary_search(&id).is_err()
                };
                // Two batches that follow each other hold more than one could.
                let mut left = room * MAX_MESSAGE / 2;
                let mut cut = false;
                let lacking: Vec<Vec<u8>> = self
                    .lacking(call.now, &lacks)
                    .take_while(|part| {
                        left = left.saturating_sub(part.len() + PART_OVERHEAD);
                        cut |= left == 0;
                        left > 0
                    })
                    .collect();
                self.statements.sync.counters.entries(&lacking);
                let batches = pack(lacking);
                self.backlog.entry(from).or_default().extend(batches);
                if cut {
                    // The rest when the two compare themselves again.
                    self.refuse(call, from, RefusalReason::Full);
                }
                if self.may_hurry(call.now, from) {
                    self.send_backlog_to(call, from);
                }
            }
        }
    }

    /// All that has an id that `lacks` is true of, members first: they say whose the rest is.
    fn lacking<'a>(
        &'a self,
        now: u64,
        lacks: &'a dyn Fn(u64) -> bool,
    ) -> impl Iterator<Item = Vec<u8>> + 'a {
        let records = self
            .registry
            .records()
            .filter(|r| lacks(hashed(1, r.record.hash().as_bytes())))
            .map(|r| Message::Admission(Box::new(r.clone())));
        let grants = self
            .grants
            .iter()
            .filter(|(ticket, _)| lacks(hashed(2, ticket.as_bytes())))
            .map(|(_, g)| Message::Grant(Box::new(g.clone())));
        let proofs = self
            .proofs
            .iter()
            .filter(|(voter, _)| lacks(hashed(3, voter.as_bytes())))
            .map(|(_, p)| Message::Equivocation(Box::new(*p)));
        let forks = self
            .forks
            .iter()
            .filter(|(author, _)| lacks(hashed(4, author.as_bytes())))
            .map(|(_, p)| Message::Ledger(LedgerMessage::Fork(Box::new(p.clone()))));
        let removals = self
            .removals
            .iter()
            .filter(|(node, _)| lacks(hashed(5, node.as_bytes())))
            .map(|(_, removal)| Message::Removal(Box::new(*removal)));
        let lies = self
            .epoch_proofs
            .iter()
            .filter(|(voter, _)| lacks(hashed(6, voter.as_bytes())))
            .map(|(_, proof)| Message::EpochLie(Box::new(*proof)));
        let decisions = self
            .decisions
            .values()
            .filter(move |d| lacks(short(d.id.as_bytes())) && self.is_told(now, d))
            .map(|decision| match &decision.warrant {
                Warrant::Operator(signed) => Message::Release(Box::new(*signed)),
                Warrant::Votes(certificate) => Message::Certificate(Box::new(certificate.clone())),
            });
        records
            .chain(grants)
            .chain(proofs)
            .chain(forks)
            .chain(removals)
            .chain(lies)
            .chain(decisions)
            .map(|message| message.to_bytes())
    }

    /// Sends every peer the next part of what waits for it.
    pub(super) fn send_backlog(&mut self, call: &mut Call<'_>) {
        let peers: Vec<NodeId> = self.backlog.keys().copied().collect();
        for peer in peers {
            self.send_backlog_to(call, peer);
        }
    }

    fn send_backlog_to(&mut self, call: &mut Call<'_>, peer: NodeId) {
        let Some(batches) = self.backlog.get_mut(&peer) else {
            return;
        };
        for bytes in batches.drain(..batches.len().min(BACKLOG_STEP)) {
            call.out.push(Output::Send { to: peer, bytes });
        }
        if batches.is_empty() {
            self.backlog.remove(&peer);
        }
    }
}
