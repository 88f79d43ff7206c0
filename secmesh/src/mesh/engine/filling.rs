//! Epochs in the middle that this node has skipped, from the record that is known backwards.
//!
//! The standings follow from the last [`WINDOW`] epochs, so as long as one of them is missing this node can say
//! nothing about the next. The first record after a gap names the one before it by hash, and that the one before
//! it: so whoever sends them, they are the right ones or none. What lies further back than the window is not needed,
//! and perhaps kept by nobody.
//!
//! One peer is asked at a time, and only its answer is looked at: no other can disturb it.

use std::collections::BTreeMap;

use super::{Call, Engine, Output};
use crate::mesh::epoch::{CertifiedEpoch, carries};
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::trust::WINDOW;

/// What one peer has answered so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Filling {
    /// Who was asked last.
    asked: Option<NodeId>,
    /// Epochs in a row, each but the first signed by the one before it. At most a window of them.
    row: Vec<CertifiedEpoch>,
    /// Those of the window that would not be taken as a link by who comes from before the gap: for the standings only,
    /// neither stored nor passed on.
    behind: BTreeMap<u64, CertifiedEpoch>,
}

/// A gap: the epoch before it, and the one after it.
type Gap<'a> = (&'a CertifiedEpoch, &'a CertifiedEpoch);

impl Engine {
    /// Number of the earliest epoch that the standings follow from.
    pub(super) fn window_from(&self) -> u64 {
        let window = u64::try_from(WINDOW).unwrap_or(u64::MAX);
        let tip = self.chain.tip().map_or(0, |tip| tip.record.number);
        tip.saturating_sub(window).max(1)
    }

    /// The first gap in the window, with nothing known behind its end.
    fn gap(&self) -> Option<Gap<'_>> {
        let from = self.window_from();
        let epochs = self.chain.epochs();
        epochs.windows(2).find_map(|pair| {
            let [a, b] = pair else { return None };
            let mut between = from.max(a.record.number + 1)..b.record.number;
            let missing = between.any(|number| !self.filling.behind.contains_key(&number));
            missing.then_some((a, b))
        })
    }

    /// The latest epoch that is missing among those to fold: the number before the gap.
    #[cfg(test)]
    pub(super) fn gap_after(&self) -> Option<u64> {
        self.gap().map(|(before, _)| before.record.number)
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
        let Some((before, _)) = self.gap() else {
            return false;
        };
        let from = self.window_from().saturating_sub(1);
        let after = before.record.number.max(from);
        // A turn of its own: with that of other questions it might be the same peer each time, and a liar.
        let asked = self.filling.asked;
        let mut later = self.connected.iter().filter(|p| Some(**p) > asked);
        let next = later.next().or_else(|| self.connected.first());
        let Some(peer) = next.copied() else {
            return false;
        };
        self.filling.asked = Some(peer);
        self.filling.row.clear();
        call.out.push(Output::Send {
            to: peer,
            bytes: Message::EpochWant(after).to_bytes(),
        });
        true
    }

    /// Takes an epoch that is not later than the current one, if it was asked for.
    pub(super) fn fill(&mut self, from: NodeId, epoch: &CertifiedEpoch) {
        let number = epoch.record.number;
        let Some((before, link)) = self.gap() else {
            return;
        };
        let wanted = before.record.number + 1..=link.record.number;
        if self.filling.asked != Some(from)
            || !wanted.contains(&number)
            || number < self.window_from()
        {
            return;
        }
        let last = self.filling.row.last();
        let goes_on = last.is_some_and(|last| self.follows(last, epoch));
        let closes = number == link.record.number && epoch.record.hash() == link.record.hash();
        if !goes_on {
            self.filling.row.clear();
        }
        self.filling.row.push(epoch.clone());
        if goes_on && closes {
            self.filled();
        }
    }

    /// Whether an epoch names another by hash, and was signed by it.
    fn follows(&self, before: &CertifiedEpoch, epoch: &CertifiedEpoch) -> bool {
        let roster = self.registry.roster(&before.record);
        let after = self.epoch_members(&epoch.record);
        before.record.number.checked_add(1) == Some(epoch.record.number)
            && roster.zip(after).is_some_and(|(roster, after)| {
                epoch.record.previous == roster.epoch_hash()
                    && epoch.verify(&roster, &after).is_ok()
            })
    }

    /// The row ends with the record after the gap, so all of it is true.
    fn filled(&mut self) {
        let mut row = std::mem::take(&mut self.filling.row);
        let Some((before, _)) = self.gap() else {
            return;
        };
        let number = before.record.number;
        let next = row.first().is_some_and(|first| self.follows(before, first));
        // Who follows the chain jumps over a gap only with signatures that carry an epoch before it.
        let carried = |pair: &[CertifiedEpoch]| match pair {
            [link, epoch] => {
                let signed = self.signed_by(&link.record, epoch);
                let mut stones = self.chain.stones().filter(|s| s.record.number <= number);
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
        behind.extend(row.into_iter().map(|epoch| (epoch.record.number, epoch)));
    }
}
