//! The epoch that the operator vouched for with this node's ticket.
//!
//! The first epoch follows from the operator's signatures alone and rests on one node's key; who has that key can
//! make up another history from there. So a node whose ticket names a later epoch does not begin with the first: it
//! takes part in none until it has the record with that very hash, from whomever. What came before follows
//! backwards, each record named by the hash in the one after it, what comes after by signatures.

use std::collections::BTreeSet;

use super::catchup::SENT_AT_ONCE;
use super::io::RefusalReason;
use super::{Call, Engine};
use crate::mesh::admission::{AdmittedRecord, EpochMark};
use crate::mesh::epoch::{CertifiedEpoch, Chain, EpochError, EpochRecord, names};
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::trust::WINDOW;

/// Epochs before the vouched one that are asked for together with it: an answer has twice as many.
const BEFORE: u64 = SENT_AT_ONCE as u64 / 2;
/// Most epochs that are kept for the sake of tickets; beyond that those of the oldest tickets go.
pub const MAX_PINNED: usize = 256;

impl Engine {
    /// What this node's own ticket names.
    pub(super) fn mark_of_ticket(&self) -> Option<EpochMark> {
        let mut own = self
            .registry
            .records()
            .filter(|admitted| admitted.record.node == self.config.node);
        own.find_map(AdmittedRecord::grant)?.grant.epoch
    }

    /// The epoch that this node's ticket names, as long as this node does not have it: until then it takes
    /// part in nothing.
    pub fn awaited(&self) -> Option<EpochMark> {
        self.vouched.filter(|_| self.chain.tip().is_none())
    }

    /// Whether this is where this node begins.
    pub(super) fn may_begin_with(&self, first: &EpochRecord) -> bool {
        self.vouched
            .is_none_or(|mark| mark.number == first.number && mark.hash == first.hash())
    }

    /// The number after which this node needs epochs.
    pub(super) fn known_until(&self) -> u64 {
        let begins = |mark: EpochMark| mark.number.saturating_sub(BEFORE);
        match self.chain.tip() {
            Some(tip) => tip.record.number,
            None => self.awaited().map_or(0, begins),
        }
    }

    /// An epoch has come while the vouched one is awaited.
    pub(super) fn towards_vouched(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        epoch: CertifiedEpoch,
        mark: EpochMark,
    ) {
        let number = epoch.record.number;
        if number < mark.number {
            self.gather(&epoch);
            return;
        }
        if number > mark.number {
            // The vouched one may have been on its way when this one was sent. It is asked for once, and again every
            // few seconds; who only has a history without it has another mesh to show.
            if !self.connected.contains(&from) || self.links.insert(from, epoch).is_some() {
                self.refuse(call, from, RefusalReason::NotOfTicket);
            } else {
                self.ask_for_epochs(call, from);
            }
            return;
        }
        if epoch.record.hash() != mark.hash {
            return self.refuse(call, from, RefusalReason::NotOfTicket);
        }
        match self.check_record(&epoch.record) {
            Ok(_) => {
                self.adopt(call, epoch);
                self.go_before_chain();
                self.agree(call);
            }
            // An admission may still be on its way.
            Err(EpochError::UnknownMember(_)) => {
                self.put_aside(call, from, &Message::Epoch(Box::new(epoch)));
            }
            Err(_) => self.refuse(call, from, RefusalReason::BadEpoch),
        }
    }

    /// Whether an epoch is earlier than all that this node has.
    pub(super) fn is_before_chain(&self, number: u64) -> bool {
        let first = self.chain.epochs().first();
        first.is_some_and(|first| number < first.record.number)
    }

    /// Puts an epoch behind those that wait for what comes after them; one that names none of them begins anew.
    /// Nothing is believed of them yet.
    pub(super) fn gather(&mut self, epoch: &CertifiedEpoch) {
        let goes_on = self.earlier.tip().is_some_and(|last| names(epoch, last));
        if !goes_on || self.earlier.epochs().len() > SENT_AT_ONCE {
            self.earlier = Chain::default();
        }
        self.earlier.push(epoch.clone());
    }

    /// Takes what was gathered if the first epoch of the chain names its last. The very first is never sent: it
    /// follows from the admissions.
    pub(super) fn go_before_chain(&mut self) {
        if self.is_before_chain(1) && !self.is_before_chain(2) {
            let params = &self.config.genesis.params;
            let first = self.registry.first_epoch(self.mesh, params);
            self.chain.put_before(&[CertifiedEpoch::first(first)]);
            return;
        }
        if self.chain.put_before(self.earlier.epochs()) {
            for epoch in std::mem::take(&mut self.earlier).epochs() {
                self.registry.keep(&epoch.record);
            }
            self.go_before_chain();
        }
    }

    /// The number after which the epochs are to be had that come right before the chain.
    fn right_before(&self) -> Option<u64> {
        let first = self.chain.epochs().first()?.record.number;
        let part = u64::try_from(SENT_AT_ONCE).unwrap_or(u64::MAX);
        (first > 1).then(|| first.saturating_sub(part.saturating_add(1)))
    }

    /// The same, if the standings follow from them.
    pub(super) fn missing_before(&self) -> Option<u64> {
        let first = self.chain.epochs().first()?.record.number;
        let window = u64::try_from(WINDOW).unwrap_or(u64::MAX);
        let needed = self.roster.epoch().saturating_sub(window).max(1);
        self.right_before().filter(|_| first > needed)
    }

    /// The same, if nobody was asked since this node went so far back: decisions of those epochs may be in force.
    pub(super) fn earlier_wanted(&mut self) -> Option<u64> {
        let before = self.right_before()?;
        let first = self.chain.epochs().first()?.record.number;
        let asked = std::mem::replace(&mut self.asked_before, first) == first;
        (!asked && self.chain.has_room(SENT_AT_ONCE)).then_some(before)
    }

    /// Epochs that are kept because somebody who is to join begins with them, and this node's own beginning.
    pub(super) fn pinned_epochs(&self) -> BTreeSet<u64> {
        let outside = |admitted: &&AdmittedRecord| {
            let node = &admitted.record.node;
            self.roster.get(node).is_none() && !self.removals.contains_key(node)
        };
        let waiting = self.registry.records().filter(outside);
        let grants = waiting.filter_map(AdmittedRecord::grant);
        let grants = grants.chain(self.grants.values());
        let mut pinned: BTreeSet<u64> = grants
            .filter_map(|signed| signed.grant.epoch)
            .map(|mark| mark.number)
            .collect();
        while pinned.len() > MAX_PINNED {
            pinned.pop_first();
        }
        pinned
    }

    /// Takes from the disk the vouched epoch and those that lead up to it, as long as none is in force, and gives
    /// back what comes after it.
    pub(super) fn restore_vouched(&mut self, stored: Vec<CertifiedEpoch>) -> Vec<CertifiedEpoch> {
        let Some(mark) = self.awaited() else {
            return stored;
        };
        let is_it = |epoch: &CertifiedEpoch| {
            epoch.record.number == mark.number && epoch.record.hash() == mark.hash
        };
        let Some(at) = stored.iter().position(is_it) else {
            return stored;
        };
        let mut before = stored;
        let after = before.split_off(at.saturating_add(1));
        let roster = before
            .last()
            .and_then(|vouched| self.registry.roster(&vouched.record));
        let Some(roster) = roster else {
            return before.into_iter().chain(after).collect();
        };
        let pairs = before.windows(2).enumerate().rev();
        let torn = pairs.into_iter().find(|(_, pair)| match pair {
            [a, b] => !names(b, a),
            _ => true,
        });
        for epoch in before.split_off(torn.map_or(0, |(at, _)| at.saturating_add(1))) {
            self.registry.keep(&epoch.record);
            self.chain.push(epoch);
        }
        self.put_in_force(roster);
        after
    }
}
