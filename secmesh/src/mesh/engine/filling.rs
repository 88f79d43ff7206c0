//! Epochs in the middle that this node has skipped, from the record that is known backwards.
//!
//! The standings follow from the last [`WINDOW`] epochs, so as long as one of them is missing this node can say
//! nothing about the next. The first record after a gap names the one before it by hash, and that the one before
//! it: so whoever sends them, they are the right ones or none. What lies further back than the window is not needed for
//! that, and perhaps kept by nobody. It is asked for once of each peer, as long as there is room: decisions of those
//! epochs may be in force, and who comes later learns them from here.
//!
//! One peer is asked at a time, and only its answer is looked at: no other can disturb it.

use std::collections::BTreeMap;

use super::catchup::SENT_AT_ONCE;
use super::io::{Output, RefusalReason};
use super::{Call, Engine};
use crate::mesh::epoch::{CertifiedEpoch, EpochError, carries};
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::trust::WINDOW;

/// Rows that one answer may begin: the peer may have gaps, too.
const MAX_ROWS: u8 = 8;

/// Peers that are asked for what is far back before it is given up.
const MAX_FAR_ASKED: usize = 8;

/// What one peer has answered so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Filling {
    /// Who was asked last.
    asked: Option<NodeId>,
    /// Epochs in a row, each but the first signed by the one before it. At most a window of them.
    row: Vec<CertifiedEpoch>,
    /// Rows that its answer has begun.
    rows: u8,
    /// The epoch after a gap further back, and how many were asked for what is before it.
    far: (u64, usize),
    /// Those of the window that would not be taken as a link by who comes from before the gap: for the standings only,
    /// neither stored nor passed on.
    behind: BTreeMap<u64, CertifiedEpoch>,
}

/// A gap.
#[derive(Clone, Copy)]
struct Gap<'a> {
    /// The epoch before it.
    before: &'a CertifiedEpoch,
    /// The one after it.
    link: &'a CertifiedEpoch,
    /// Number of the first epoch that is wanted.
    from: u64,
}

impl Engine {
    /// Number of the earliest epoch that the standings follow from.
    pub(super) fn window_from(&self) -> u64 {
        let window = u64::try_from(WINDOW).unwrap_or(u64::MAX);
        let tip = self.chain.tip().map_or(0, |tip| tip.record.number);
        tip.saturating_sub(window).max(1)
    }

    /// The first gap in the window, with nothing known behind its end; else the last one before it.
    fn gap(&self) -> Option<Gap<'_>> {
        self.near_gap().or_else(|| self.far_gap())
    }

    fn near_gap(&self) -> Option<Gap<'_>> {
        let from = self.window_from();
        let epochs = self.chain.epochs();
        epochs.windows(2).find_map(|pair| {
            let [before, link] = pair else { return None };
            let from = from.max(before.record.number + 1);
            let mut between = from..link.record.number;
            let missing = between.any(|number| !self.filling.behind.contains_key(&number));
            missing.then_some(Gap { before, link, from })
        })
    }

    /// Of a gap further back, so much as one answer has.
    fn far_gap(&self) -> Option<Gap<'_>> {
        let (before, link) = self.chain.last_gap()?;
        let part = u64::try_from(SENT_AT_ONCE).unwrap_or(u64::MAX);
        let first = link.record.number.saturating_sub(part.saturating_sub(1));
        let from = first.max(before.record.number + 1);
        let asked = match self.filling.far {
            (number, asked) if number == link.record.number => asked,
            _ => 0,
        };
        let more = asked <= self.connected.len().min(MAX_FAR_ASKED);
        (more && self.chain.has_room(SENT_AT_ONCE)).then_some(Gap { before, link, from })
    }

    /// The latest epoch that is missing among those to fold: the number before the gap.
    #[cfg(test)]
    pub(super) fn gap_after(&self) -> Option<u64> {
        self.near_gap().map(|gap| gap.before.record.number)
    }

    /// The epochs to fold, first to last; none if some are missing.
    pub(super) fn window(&self) -> Option<Vec<&CertifiedEpoch>> {
        let from = self.window_from();
        let tip = self.chain.tip()?.record.number;
        let behind = self.filling.behind.range(from..);
        let mut all: BTreeMap<u64, &CertifiedEpoch> =
            behind.map(|(n, epoch)| (*n, epoch)).collect();
        let chain = self.chain.after(from.saturating_sub(1)).iter();
        all.extend(chain.map(|epoch| (epoch.record.number, epoch)));
        let whole = all.keys().copied().eq(from..=tip);
        whole.then(|| all.into_values().collect())
    }

    /// Asks the next peer for what is missing; false if nothing is.
    pub(super) fn ask_to_fill(&mut self, call: &mut Call<'_>) -> bool {
        let Some(gap) = self.gap() else {
            return false;
        };
        let after = gap.from.saturating_sub(1);
        let (link, near) = (gap.link.record.number, self.near_gap().is_some());
        // A turn of its own: with that of other questions it might be the same peer each time, and a liar.
        let asked = self.filling.asked;
        let mut later = self.connected.iter().filter(|p| Some(**p) > asked);
        let next = later.next().or_else(|| self.connected.first());
        let Some(peer) = next.copied() else {
            return false;
        };
        if !near {
            let far = &mut self.filling.far;
            *far = (link, if far.0 == link { far.1 + 1 } else { 1 });
        }
        self.filling.asked = Some(peer);
        self.filling.row.clear();
        self.filling.rows = 0;
        call.out.push(Output::Send {
            to: peer,
            bytes: Message::EpochWant(after).to_bytes(),
        });
        true
    }

    /// Takes an epoch that is not later than the current one, if it was asked for.
    pub(super) fn fill(&mut self, call: &mut Call<'_>, from: NodeId, epoch: &CertifiedEpoch) {
        let number = epoch.record.number;
        let Some(gap) = self.gap() else {
            return;
        };
        let link = &gap.link.record;
        let closes = number == link.number && epoch.record.hash() == link.hash();
        if self.filling.asked != Some(from) || !(gap.from..=link.number).contains(&number) {
            return;
        }
        let last = self.filling.row.last();
        let is_next = last.is_some_and(|last| last.record.number.checked_add(1) == Some(number));
        let goes_on = if is_next {
            let Some(job) = self.begin_epoch(call, from, epoch) else {
                return;
            };
            let last = self.filling.row.last();
            let checked = last.map_or(Ok(()), |last| self.follows(last, epoch));
            self.end_epoch(job, checked.as_ref().err());
            checked.is_ok()
        } else {
            false
        };
        if !goes_on {
            if self.filling.rows >= MAX_ROWS {
                return self.refuse(call, from, RefusalReason::TooMuchWork);
            }
            self.filling.rows += 1;
            self.filling.row.clear();
        }
        self.filling.row.push(epoch.clone());
        if goes_on && closes {
            self.filled();
        }
    }

    /// Whether an epoch comes right after another, names it by hash, and was signed by it.
    fn follows(&self, before: &CertifiedEpoch, epoch: &CertifiedEpoch) -> Result<(), EpochError> {
        let (number, known) = (epoch.record.number, before.record.number);
        let roster = self.registry.roster(&before.record);
        let after = self.epoch_members(&epoch.record);
        let (roster, after) = roster.zip(after).ok_or(EpochError::UnknownMember(number))?;
        if known.checked_add(1) != Some(number) || epoch.record.previous != roster.epoch_hash() {
            return Err(EpochError::NotNext { number, known });
        }
        epoch.verify(&roster, &after)
    }

    /// The row ends with the record after the gap, so all of it is true.
    fn filled(&mut self) {
        let mut row = std::mem::take(&mut self.filling.row);
        let Some(Gap { before, .. }) = self.gap() else {
            return;
        };
        let number = before.record.number;
        let next = row
            .first()
            .is_some_and(|first| self.follows(before, first).is_ok());
        // Who follows the chain jumps over a gap only with signatures that carry an epoch before it.
        let carried = |pair: &[CertifiedEpoch]| match pair {
            [link, epoch] => {
                let signed = self.signed_by(&link.record, epoch);
                let mut stones = self.chain.stones_until(number);
                stones.any(|stone| carries(&stone.record, &signed))
            }
            _ => false,
        };
        let from = if next {
            0
        } else {
            let pairs = row.windows(2);
            let last = row.len().saturating_sub(1);
            pairs.into_iter().position(carried).unwrap_or(last)
        };
        let kept = row.split_off(from);
        for epoch in row.iter().chain(&kept) {
            self.registry.keep(&epoch.record);
        }
        self.chain.fill_gap(&kept);
        let from = self.window_from();
        let behind = &mut self.filling.behind;
        behind.retain(|number, _| *number >= from);
        let row = row.into_iter().filter(|epoch| epoch.record.number >= from);
        behind.extend(row.map(|epoch| (epoch.record.number, epoch)));
    }
}
