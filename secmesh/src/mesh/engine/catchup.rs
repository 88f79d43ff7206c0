//! Epochs that this node has missed: from peers, and from the disk.
//!
//! An epoch is taken on the word of the one before it. Where epochs in between are no longer to be had, the
//! record named by `previous` comes first (the *link*), and the signatures have to carry the link's roster
//! *and* an epoch that is known here. The first alone would be anybody's roster; the second alone would be a
//! minority of today's.

use std::collections::BTreeSet;

use super::answers::Answer;
use super::io::{Output, RefusalReason};
use super::work::{Job, Worth};
use super::{Call, Engine, KNOWN_EPOCHS};
use crate::mesh::epoch::{
    CertifiedEpoch, EpochError, EpochRecord, MAX_WEIGHT, StoredEpochs, carries,
};
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::message::Message;
use crate::mesh::roster::Roster;
use crate::mesh::trust::WINDOW;

/// Most epochs sent to one peer at one time; it asks again.
pub(super) const SENT_AT_ONCE: usize = 64;
/// No epoch is further ahead of a known one than this: a century of hours.
const MAX_JUMP: u64 = 1 << 20;

impl Engine {
    pub(super) fn ask_epochs(&self, call: &mut Call<'_>, peer: NodeId) {
        let number = self.known_until();
        call.out.push(Output::Send {
            to: peer,
            bytes: Message::EpochWant(number).to_bytes(),
        });
    }

    /// The same because of what the peer has sent.
    pub(super) fn ask_for_epochs(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if self.may_answer(call, peer, Answer::AskEpochs) {
            self.ask_epochs(call, peer);
        }
    }

    /// A peer has told how far it is.
    pub(super) fn peer_epoch_want(&mut self, call: &mut Call<'_>, from: NodeId, number: u64) {
        if number > self.roster.epoch() {
            self.ask_for_epochs(call, from);
        } else {
            self.send_epochs(call, from, number);
        }
    }

    pub(super) fn send_epochs(&mut self, call: &mut Call<'_>, to: NodeId, after: u64) {
        if self.chain.after(after).is_empty() || !self.may_answer(call, to, Answer::Epochs) {
            return;
        }
        let epochs = self.chain.after(after);
        let mut parts: Vec<Vec<u8>> = self
            .removals
            .values()
            .map(|removal| Message::Removal(Box::new(*removal)).to_bytes())
            .collect();
        let mut last = after;
        for epoch in epochs.iter().take(SENT_AT_ONCE) {
            let number = epoch.record.number;
            // After a gap also those who came in it.
            let here = last.saturating_add(1)..=number;
            last = number;
            let new = epoch.record.members.iter();
            let new = new.filter(|m| here.contains(&m.since));
            parts.extend(
                new.filter_map(|m| self.registry.by_hash(&m.record))
                    .map(|a| Message::Admission(Box::new(a.clone())).to_bytes()),
            );
            // The first epoch follows from the admissions.
            if number > 1 {
                parts.push(Message::Epoch(Box::new(epoch.clone())).to_bytes());
            }
        }
        for bytes in crate::mesh::message::pack(parts) {
            call.out.push(Output::Send { to, bytes });
        }
    }

    pub(super) fn peer_epoch(&mut self, call: &mut Call<'_>, from: NodeId, epoch: CertifiedEpoch) {
        let (number, own) = (epoch.record.number, self.roster.epoch());
        if let Some(mark) = self.awaited() {
            return self.towards_vouched(call, from, epoch, mark);
        }
        if number <= own {
            if self.is_before_chain(number) {
                self.gather(&epoch);
                self.go_before_chain();
            } else {
                self.fill(call, from, &epoch);
            }
            if number == own && epoch.record.hash() != self.roster.epoch_hash() {
                self.other_epoch(call, from, epoch);
            }
            return;
        }
        let link = self
            .links
            .get(&from)
            .filter(|link| link.record.hash() == epoch.record.previous)
            .cloned();
        let Some(job) = self.begin_epoch(call, from, &epoch) else {
            return;
        };
        let checked = match &link {
            _ if own.checked_add(1) == Some(number) => self.check_next(&epoch).map(|()| None),
            Some(link) => self.check_jump(link, &epoch).map(Some),
            None => Err(EpochError::NotNext { number, known: own }),
        };
        self.end_epoch(job, checked.as_ref().err());
        match checked {
            Ok(roster) => {
                if let Some((link, roster)) = link.zip(roster) {
                    self.step_over(link, roster);
                }
                self.adopt(call, epoch);
                self.agree(call);
            }
            // An admission or a removal may still be on its way.
            Err(EpochError::UnknownMember(_) | EpochError::NotRemoved { .. }) => {
                for epoch in link.into_iter().chain([epoch]) {
                    self.put_aside(call, from, &Message::Epoch(Box::new(epoch)));
                }
            }
            // Or the epochs in between are. They are asked for once, and again every few seconds.
            Err(EpochError::NotNext { .. } | EpochError::TooLight { .. })
                if number > own.saturating_add(1) && self.connected.contains(&from) =>
            {
                if self.links.insert(from, epoch).is_none() {
                    self.ask_for_epochs(call, from);
                }
            }
            Err(_) => self.refuse(call, from, RefusalReason::BadEpoch),
        }
    }

    pub(super) fn begin_epoch(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        epoch: &CertifiedEpoch,
    ) -> Option<Job> {
        let signatures = epoch.precommits.signatures.len();
        self.begin_work(call, from, &epoch.to_bytes(), signatures)
    }

    pub(super) fn end_epoch(&mut self, job: Job, error: Option<&EpochError>) {
        let worth = match error {
            Some(EpochError::Signature { .. }) => Worth::Forged,
            Some(EpochError::TooLight { .. }) => Worth::Wasted,
            _ => Worth::Paid,
        };
        self.end_work(job, worth);
    }

    /// Another record of the current number. With enough signatures it is what must not be, and whoever signed
    /// both has lied; without, it is anybody's bytes.
    fn other_epoch(&mut self, call: &mut Call<'_>, from: NodeId, epoch: CertifiedEpoch) {
        let after = self.epoch_members(&epoch.record);
        let Some(job) = self.begin_epoch(call, from, &epoch) else {
            return;
        };
        let holds = self
            .before()
            .zip(after)
            .map(|(before, after)| epoch.verify(before, &after));
        let error = holds.as_ref().and_then(|holds| holds.as_ref().err());
        if holds.is_none() || error.is_some() {
            self.end_epoch(job, error);
            return self.refuse(call, from, RefusalReason::BadEpoch);
        }
        // Known by now: the same again is of no use.
        self.end_work(job, Worth::Wasted);
        self.refuse(call, from, RefusalReason::ForkedEpoch);
        if self.forked != epoch.record.number {
            self.forked = epoch.record.number;
            call.out.push(Output::ForkedEpoch(Box::new(epoch)));
        }
    }

    /// Whether a certified epoch may follow the current one. Its weights are not computed again: more than a
    /// third of those who signed it are honest and did. Nor is it refused for a member that was removed: that
    /// may have been later.
    fn check_next(&self, epoch: &CertifiedEpoch) -> Result<(), EpochError> {
        let after = self.check_record(&epoch.record)?;
        self.check_roster(&epoch.record, &after)?;
        epoch.verify(&self.roster, &after)
    }

    /// Whether a certified epoch may be taken whose predecessor, `link`, is known only by the hash in it. Gives
    /// the link's roster.
    fn check_jump(
        &self,
        link: &CertifiedEpoch,
        epoch: &CertifiedEpoch,
    ) -> Result<Roster, EpochError> {
        let (number, known) = (epoch.record.number, self.roster.epoch());
        if known == 0 || number.saturating_sub(known) > MAX_JUMP {
            return Err(EpochError::NotNext { number, known });
        }
        self.check_record(&link.record)?;
        let after = self.check_record(&epoch.record)?;
        self.check_roster(&epoch.record, &after)?;
        let roster = self.registry.roster(&link.record);
        let roster = roster.ok_or(EpochError::UnknownMember(number))?;
        epoch.verify(&roster, &after)?;
        let signed = self.signed_by(&link.record, epoch);
        if self.chain.stones().any(|s| carries(&s.record, &signed)) {
            return Ok(roster);
        }
        Err(EpochError::TooLight {
            number,
            before: known,
            weight: self.signed_weight(&signed),
            needed: self.roster.needed_for_epoch(),
        })
    }

    fn signed_weight(&self, signed: &BTreeSet<Hash>) -> u64 {
        let members = self.roster.members().map(|(_, member)| member);
        members
            .filter(|m| signed.contains(&m.record.hash()))
            .map(|m| u64::from(m.weight))
            .sum()
    }

    /// What holds for every record, whoever signed it. Gives its members.
    pub(super) fn check_record(
        &self,
        record: &EpochRecord,
    ) -> Result<BTreeSet<NodeId>, EpochError> {
        let number = record.number;
        let impossible = |why| EpochError::Impossible { number, why };
        if record.mesh != self.mesh {
            return Err(EpochError::WrongMesh(record.mesh));
        }
        if record.members.iter().any(|m| m.weight > MAX_WEIGHT) {
            return Err(impossible("a member has more weight than there is"));
        }
        if record.members.iter().any(|m| m.since > number) {
            return Err(impossible("a member is in since a later epoch"));
        }
        self.epoch_members(record)
            .ok_or(EpochError::UnknownMember(number))
    }

    /// Records of the voters in `link` who signed the epoch after it, whose signatures were verified.
    pub(super) fn signed_by(&self, link: &EpochRecord, epoch: &CertifiedEpoch) -> BTreeSet<Hash> {
        let signatures = &epoch.precommits.signatures;
        let signed = |node: &NodeId| signatures.binary_search_by_key(node, |(n, _)| *n).is_ok();
        let voters = link.members.iter().filter(|m| m.weight > 0);
        voters
            .filter_map(|m| self.registry.by_hash(&m.record))
            .filter(|admitted| signed(&admitted.record.node))
            .map(|admitted| admitted.record.hash())
            .collect()
    }

    /// Puts the record that a later epoch names, and that was checked with it, between the current one and that.
    fn step_over(&mut self, link: CertifiedEpoch, roster: Roster) {
        self.registry.keep(&link.record);
        if self.chain.push(link) {
            self.put_in_force(roster);
        }
    }

    pub(super) fn put_in_force(&mut self, roster: Roster) {
        let before = std::mem::replace(&mut self.roster, roster);
        self.seats_missed_since = None;
        self.known.push_front(before);
        self.known.truncate(KNOWN_EPOCHS);
    }

    pub(super) fn shorten_chain(&mut self) {
        while self.chain.is_long() && self.drop_one_epoch() {}
    }

    /// Drops the earliest epoch that peers and this node can do without. False if there is none.
    pub(super) fn drop_one_epoch(&mut self) -> bool {
        let pinned = self.pinned_epochs();
        let begins = self.vouched.map_or(1, |mark| mark.number);
        let mut chain = std::mem::take(&mut self.chain);
        // The standings follow from the last ones.
        let dropped = chain.shorten(WINDOW + 1, begins, &pinned, |earlier, link, later| {
            carries(&earlier.record, &self.signed_by(&link.record, later))
        });
        self.chain = chain;
        dropped
    }

    /// Takes back the epochs of before a restart, each verified from those before it, beginning with the
    /// first. Call it, and [`Engine::restore_lock`], before the first input.
    ///
    /// # Errors
    /// [`EpochError`] for the first that does not follow; those before it are in force then, and the rest
    /// comes from the peers.
    pub fn restore_epochs(&mut self, stored: StoredEpochs) -> Result<(), EpochError> {
        for removal in stored.removals {
            let known = removal.removal.mesh == self.mesh;
            if known && removal.verify(&self.config.genesis).is_ok() {
                self.removals.insert(removal.removal.node, removal);
            }
        }
        let mut link: Option<CertifiedEpoch> = None;
        for epoch in self.restore_vouched(stored.epochs) {
            let (number, known) = (epoch.record.number, self.roster.epoch());
            if number == known && epoch.record.hash() == self.roster.epoch_hash() {
                continue;
            }
            if let Some(link) = link.take() {
                let roster = self.check_jump(&link, &epoch)?;
                self.step_over(link, roster);
            } else if known.checked_add(1) == Some(number) {
                self.check_next(&epoch)?;
            } else if number > known {
                link = Some(epoch);
                continue;
            } else {
                return Err(EpochError::NotNext { number, known });
            }
            let roster = self.registry.roster(&epoch.record);
            self.put_in_force(roster.ok_or(EpochError::UnknownMember(number))?);
            self.registry.keep(&epoch.record);
            self.chain.push(epoch);
        }
        self.epoch_since_us = stored.since_unix_us;
        self.renew_lock();
        match link {
            Some(link) => Err(EpochError::NotNext {
                number: link.record.number,
                known: self.roster.epoch(),
            }),
            None => Ok(()),
        }
    }
}
