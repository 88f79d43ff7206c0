//! Epochs by the clock: for what is shown as long as certified epochs do not take the weights.

use std::collections::BTreeMap;

use super::fold::{Checks, Fold, Members, Rules};
use super::history::Change;
use crate::mesh::evidence::{EvidenceSet, Frontier, LogHead};
use crate::mesh::ids::NodeId;

/// Length of such an epoch, in microseconds.
pub const EPOCH_US: u64 = 3_600 * 1_000_000;

/// The frontiers at the ends of the epochs in which something was said, by the times that authors state: a
/// function of the set alone. Times within a log only go forward; what is dated ahead of `until_epoch`
/// waits.
fn frontiers(set: &EvidenceSet, until_epoch: u64) -> BTreeMap<u64, Frontier> {
    let mut ends: BTreeMap<u64, BTreeMap<NodeId, u64>> = BTreeMap::new();
    let mut epoch_of: BTreeMap<NodeId, u64> = BTreeMap::new();
    for statement in set.iter() {
        let head = statement.head();
        let epoch = epoch_of.entry(head.author).or_default();
        *epoch = (head.made_at_us / EPOCH_US).max(*epoch);
        if *epoch <= until_epoch {
            ends.entry(*epoch)
                .or_default()
                .insert(head.author, head.sequence + 1);
        }
    }
    let mut frontier = Frontier::default();
    let mut out = BTreeMap::new();
    for (epoch, sizes) in ends {
        for (author, size) in sizes {
            if let Some(root) = set.root_at(&author, size) {
                // There are no more logs than a frontier has room for.
                drop(frontier.set(author, LogHead { size, root }));
            }
        }
        out.insert(epoch, frontier.clone());
    }
    out
}

/// Folds a set with epochs of [`EPOCH_US`]; the last one is still open. Gives the number of the first.
pub fn by_time(
    set: &EvidenceSet,
    rules: &Rules,
    members: &Members,
    now_unix_us: u64,
    checks: &mut Checks,
    story: &mut dyn FnMut(Change),
) -> (Fold, u64) {
    let now = now_unix_us / EPOCH_US;
    let mut fold = Fold::new(*rules);
    let frontiers = frontiers(set, now);
    let first = frontiers.keys().next().copied().unwrap_or(now);
    let mut next = first;
    for (epoch, frontier) in frontiers {
        fold.pass(epoch - next);
        let done = fold.epoch(set, &frontier, members, checks, &mut |mut change| {
            change.epoch = epoch;
            story(change);
        });
        debug_assert!(done.is_ok(), "what follows from the set is covered by it");
        next = epoch + 1;
    }
    fold.pass((now + 1).saturating_sub(next));
    (fold, first)
}
