//! Epochs in the engine: when one is due, what it would be, and what changes when it is there.

use std::collections::BTreeSet;

use super::io::{Output, RefusalReason};
use super::work::Worth;
use super::{Call, Engine};
use crate::mesh::epoch::{
    App, CertifiedEpoch, EpochRecord, Lock, LockConfig, LockOut, LockState, MAX_REMOVAL_AGE_S,
    Proposal, SignedEpochVote, SignedRemoval, StoredEpochs,
};
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::roster::{MAX_NODES, NodeRecord, Roster};
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::wire::WireError;

/// How often one peer is told how far this node is, microseconds.
const ASK_US: u64 = 5_000_000;
/// Every so many times it is asked for epochs that this node has skipped in place of that.
const GAP_TURNS: u64 = 6;

/// The engine as the agreement sees it.
struct Here<'a> {
    engine: &'a Engine,
    now: u64,
}

impl App for Here<'_> {
    fn fresh(&self) -> Option<EpochRecord> {
        self.engine.fresh_epoch(self.now)
    }

    fn is_valid(&self, record: &EpochRecord) -> bool {
        self.engine.is_next_epoch(self.now, record)
    }

    fn is_sound(&self, record: &EpochRecord) -> bool {
        self.engine.is_sound_epoch(record).is_some()
    }

    fn members(&self, record: &EpochRecord) -> Option<BTreeSet<NodeId>> {
        self.engine.epoch_members(record)
    }
}

impl Engine {
    /// The record of the current epoch; none on a node that has joined and not yet heard of any.
    pub fn epoch(&self) -> Option<&CertifiedEpoch> {
        self.chain.tip()
    }

    /// All epochs that are kept, first to last.
    pub fn epochs(&self) -> &[CertifiedEpoch] {
        self.chain.epochs()
    }

    /// When this node learned of the current epoch, microseconds since 1970.
    pub const fn epoch_since_us(&self) -> u64 {
        self.epoch_since_us
    }

    /// Number and round of the agreement that is under way, if one is.
    pub fn agreement(&self) -> Option<(u64, u32)> {
        let lock = self.lock.as_ref()?;
        Some((lock.number(), lock.round()?))
    }

    /// Whether the membership that is known here differs from the epoch's: an admission or a removal
    /// waits for the next one.
    pub const fn is_membership_due(&self) -> bool {
        self.membership_due
    }

    /// Who may be connected to: everybody in the roster or admitted and waiting for it, except whom the
    /// operator has removed and the roster no longer holds.
    pub fn reachable_records(&self) -> Vec<&NodeRecord> {
        let members = self.roster.members().map(|(_, member)| &member.record);
        let waiting = self.registry.admissible().into_iter().filter(|record| {
            !self.removals.contains_key(&record.node) && self.roster.get(&record.node).is_none()
        });
        members.chain(waiting).collect()
    }

    /// Nodes that the operator has removed.
    pub fn removals(&self) -> impl Iterator<Item = &SignedRemoval> {
        self.removals.values()
    }

    /// Begins with the first epoch, if its members are known.
    pub(super) fn begin_epochs(&mut self) {
        let params = &self.config.genesis.params;
        let first = self.registry.first_epoch(self.mesh, params);
        if self.chain.tip().is_some() || first.members.is_empty() || !self.may_begin_with(&first) {
            return;
        }
        if let Some(roster) = self.registry.roster(&first) {
            self.chain.push(CertifiedEpoch::first(first));
            self.roster = roster;
            self.renew_lock();
        }
    }

    pub(super) fn renew_lock(&mut self) {
        let mut lock = Lock::new(LockConfig {
            before: self.roster.clone(),
            node: self.config.node,
            incarnation: self.config.incarnation,
            signer: self.config.signer.clone(),
        });
        if let Some(state) = self.lock_state.take_if(|s| s.number <= lock.number())
            && state.number == lock.number()
        {
            // Of the same number but after another epoch: nothing of it can be said again.
            if !lock.restore(state) {
                lock.mute();
            }
        } else if self.lock_state.is_some() {
            lock.mute();
        }
        self.lock = Some(lock);
        self.membership_due = self.is_membership_changed();
    }

    /// Goes as far towards the next epoch as what is known allows.
    pub(super) fn agree(&mut self, call: &mut Call<'_>) {
        self.date_epoch(call.now);
        // More than one only where this node decides alone.
        for _ in 0..4 {
            let Some(mut lock) = self.lock.take() else {
                return;
            };
            let mut out = Vec::new();
            let here = Here {
                engine: self,
                now: call.now,
            };
            lock.advance(call.now, &here, &mut out);
            self.lock = Some(lock);
            if !self.carry_out(call, out) {
                return;
            }
        }
    }

    /// True if an epoch was decided.
    fn carry_out(&mut self, call: &mut Call<'_>, out: Vec<LockOut>) -> bool {
        let mut decided = false;
        for item in out {
            match item {
                LockOut::Persist(state) => call.out.push(Output::PersistEpoch(state)),
                LockOut::Propose(proposal) => call.out.push(Output::Broadcast(
                    Message::EpochProposal(proposal).to_bytes(),
                )),
                LockOut::Vote(signed) => call.out.push(Output::Broadcast(
                    Message::EpochVote(Box::new(signed)).to_bytes(),
                )),
                LockOut::Lied(proof) => self.accuse_epoch(call, &proof),
                LockOut::Decided(epoch, announce) => {
                    let bytes = Message::Epoch(epoch.clone()).to_bytes();
                    decided |= self.adopt(call, *epoch);
                    if announce && decided {
                        call.out.push(Output::Broadcast(bytes));
                    }
                }
            }
        }
        decided
    }

    /// Makes a verified epoch the current one.
    pub(super) fn adopt(&mut self, call: &mut Call<'_>, epoch: CertifiedEpoch) -> bool {
        let Some(roster) = self.registry.roster(&epoch.record) else {
            return false;
        };
        if !self.chain.push(epoch.clone()) {
            return false;
        }
        self.registry.keep(&epoch.record);
        self.shorten_chain();
        let weights = |roster: &Roster| -> Vec<(NodeId, u32)> {
            let members = roster.members();
            members
                .map(|(node, member)| (*node, member.weight))
                .collect()
        };
        if weights(&roster) != weights(&self.roster) {
            // What was too light by the weights of before may be enough now, and was not taken then.
            self.compare_soon(call);
        }
        self.put_in_force(roster);
        self.links.clear();
        self.epoch_since_us = call.now;
        self.seals.clear();
        self.let_go();
        self.renew_lock();
        call.out.push(Output::Epoch(Box::new(epoch)));
        self.new_epoch(call);
        if !planted(Bug::NewcomerWaits) {
            self.compare_with_newcomers(call);
        }
        true
    }

    /// Who is not in the roster is refused statements, and refuses them. So with the epoch in which it comes in,
    /// both sides compare what they have once more, and forget that they have asked before.
    fn compare_with_newcomers(&mut self, call: &mut Call<'_>) {
        let Some(before) = self.known.front() else {
            return;
        };
        let is_new = |node: &NodeId| before.get(node).is_none() && self.roster.get(node).is_some();
        let am_new = is_new(&self.config.node);
        let connected = self.connected.iter();
        let peers: Vec<NodeId> = connected.filter(|p| am_new || is_new(p)).copied().collect();
        for peer in peers {
            self.statements.forget_requests(&peer);
            self.compare_with(call, peer);
        }
    }

    pub(super) fn peer_epoch_proposal(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        proposal: Proposal,
    ) {
        // Its signature does not cover the prevotes that it shows: a copy without them, or with others, would
        // have locked nodes prevote nil.
        if from != proposal.signed.vote.voter {
            return self.refuse(call, from, RefusalReason::NotOwnVote);
        }
        // Its rounds end without it.
        if self.zeroed.contains(&proposal.signed.vote.voter) {
            return self.refuse(call, from, RefusalReason::EquivocatingVoter);
        }
        let number = proposal.record.number;
        if !self.is_about_next(call, from, number, || {
            Message::EpochProposal(Box::new(proposal.clone()))
        }) {
            return;
        }
        let frontier = proposal.record.frontier.clone();
        // The prevotes shown before are counted once more, to compare.
        let shown = proposal.polka.clone();
        let signatures = shown.as_ref().map_or(0, |p| p.signatures.len());
        let Some(job) = self.begin_work(call, from, &proposal.to_bytes(), 2 * signatures) else {
            return;
        };
        let round = proposal.signed.vote.round;
        let mut out = Vec::new();
        let taken = self
            .lock
            .as_mut()
            .is_some_and(|lock| lock.take_proposal(proposal, &mut out));
        let held = self.lock.as_ref().is_some_and(|l| l.shows(round, &shown));
        self.end_work(job, if held { Worth::Paid } else { Worth::Wasted });
        self.carry_out(call, out);
        if !taken {
            return self.refuse(call, from, RefusalReason::BadEpoch);
        }
        // It is judged when what it rests on is here, if that is before the round's time is over.
        self.fetch_up_to(call, from, &frontier);
        self.agree(call);
    }

    pub(super) fn peer_epoch_vote(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        signed: SignedEpochVote,
    ) {
        let number = signed.vote.number;
        if !self.is_about_next(call, from, number, || Message::EpochVote(Box::new(signed))) {
            return;
        }
        let mut out = Vec::new();
        let taken = self
            .lock
            .as_mut()
            .is_some_and(|lock| lock.take_vote(signed, &mut out));
        self.carry_out(call, out);
        if !taken {
            return self.refuse(call, from, RefusalReason::BadEpoch);
        }
        self.agree(call);
    }

    /// Whether a message is about the epoch after the current one. What is behind gets what it has
    /// missed, what is ahead is asked for it.
    fn is_about_next(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        number: u64,
        message: impl FnOnce() -> Message,
    ) -> bool {
        let own = self.roster.epoch();
        if number == own.saturating_add(1) {
            return true;
        }
        if number <= own {
            self.send_epochs(call, from, number.saturating_sub(1));
        } else {
            self.put_aside(call, from, &message());
            self.ask_for_epochs(call, from);
        }
        false
    }

    /// Takes the operator's word that a node is out. `local`: it was handed in here, now.
    pub(super) fn remove(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        removal: SignedRemoval,
        local: bool,
    ) {
        let node = removal.removal.node;
        if removal.removal.mesh != self.mesh {
            return self.refuse(call, from, RefusalReason::WrongMesh);
        }
        if self.removals.contains_key(&node) {
            if local {
                self.refuse(call, from, RefusalReason::Replayed);
            }
            return;
        }
        let issued = removal.removal.issued_unix_us;
        if issued > call.now.saturating_add(self.skew_us()) {
            return self.refuse(call, from, RefusalReason::FromFuture);
        }
        let oldest = call.now.saturating_sub(MAX_REMOVAL_AGE_S * 1_000_000);
        if local && issued < oldest {
            return self.refuse(call, from, RefusalReason::Expired);
        }
        if removal.verify(&self.config.genesis).is_err() {
            return self.refuse(call, from, RefusalReason::BadSignature);
        }
        if self.removals.len() >= MAX_NODES {
            return self.refuse(call, from, RefusalReason::Full);
        }
        self.removals.insert(node, removal);
        call.out.push(Output::Broadcast(
            Message::Removal(Box::new(removal)).to_bytes(),
        ));
        call.out.push(Output::Removal(Box::new(removal)));
        self.membership_known(call);
    }

    /// An admission or a removal came: perhaps an epoch is due, or one that was put aside can be read.
    pub(super) fn membership_known(&mut self, call: &mut Call<'_>) {
        self.begin_epochs();
        self.go_before_chain();
        self.membership_due = self.is_membership_changed();
        self.look_again(call);
        self.agree(call);
    }

    /// The epoch that the current one was certified by, if its roster is known here.
    pub(super) fn before(&self) -> Option<&Roster> {
        let number = self.roster.epoch().checked_sub(1)?;
        self.known.front().filter(|roster| roster.epoch() == number)
    }

    /// What a peer is told of epochs when it connects.
    pub(super) fn epoch_parts(&self) -> Vec<Message> {
        let own = self.known_until();
        let mut parts: Vec<Message> = self
            .removals
            .values()
            .map(|removal| Message::Removal(Box::new(*removal)))
            .collect();
        parts.extend(
            self.epoch_proofs
                .values()
                .map(|proof| Message::EpochLie(Box::new(*proof))),
        );
        parts.push(Message::EpochWant(own));
        let seals = self.seals.values();
        parts.extend(seals.map(|seal| Message::EpochSeal(Box::new(seal.clone()))));
        let mut said = Vec::new();
        if let Some(lock) = &self.lock {
            lock.repeat(&mut said);
        }
        parts.extend(said.into_iter().filter_map(|out| match out {
            LockOut::Propose(proposal) => Some(Message::EpochProposal(proposal)),
            LockOut::Vote(signed) => Some(Message::EpochVote(Box::new(signed))),
            _ => None,
        }));
        parts
    }

    /// The first epoch's age counts from when this node is first asked; and a clock that was set back must
    /// not make an epoch last longer.
    fn date_epoch(&mut self, now: u64) {
        if self.epoch_since_us == 0 || self.epoch_since_us > now.saturating_add(self.skew_us()) {
            self.epoch_since_us = now;
        }
    }

    pub(super) fn tick_epochs(&mut self, call: &mut Call<'_>) {
        self.date_epoch(call.now);
        if call.now.saturating_sub(self.asked_us) >= ASK_US || self.asked_us > call.now {
            self.asked_us = call.now;
            let turn = self.connected.range((
                std::ops::Bound::Excluded(self.asked),
                std::ops::Bound::Unbounded,
            ));
            let next = turn.chain(self.connected.iter()).next().copied();
            if let Some(peer) = next {
                self.asked = peer;
                // What was skipped is asked for less often: perhaps nobody keeps it any more.
                let turn = self.turns_asked.is_multiple_of(GAP_TURNS);
                let filling = turn && self.ask_to_fill(call);
                let before = self.missing_before().filter(|_| turn);
                match before.or_else(|| self.earlier_wanted()) {
                    Some(before) => call.out.push(Output::Send {
                        to: peer,
                        bytes: Message::EpochWant(before).to_bytes(),
                    }),
                    None if filling => {}
                    None => self.ask_epochs(call, peer),
                }
                self.turns_asked = self.turns_asked.wrapping_add(1);
            }
        }
        self.ask_for_seal(call);
        self.miss_seats(call.now);
        self.agree(call);
    }

    /// What has to be on the disk of all this, for [`Engine::restore_epochs`].
    pub fn stored_epochs(&self) -> StoredEpochs {
        StoredEpochs {
            epochs: self.chain.epochs().to_vec(),
            since_unix_us: self.epoch_since_us,
            removals: self.removals.values().copied().collect(),
        }
    }

    /// Takes back what this node signed last about an epoch, which [`Output::PersistEpoch`] put on the
    /// disk.
    ///
    /// # Errors
    /// [`WireError`]: what the disk holds is damaged. A node that starts all the same may contradict what
    /// it has said; so do not let it vote.
    pub fn restore_lock(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let state = LockState::from_bytes(bytes)?;
        if state.mesh == self.mesh && !planted(Bug::LockForgotten) {
            self.lock_state = Some(state);
            self.renew_lock();
        }
        Ok(())
    }
}
