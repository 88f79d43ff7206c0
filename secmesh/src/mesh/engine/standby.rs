//! Whether a spare server is wanted: who is cut off, and who has come in their place.
//!
//! Both follow from what the mesh has certified or the operator has signed, so that every member counts the same,
//! also after a restart: in which epoch a node was cut off or last seen, and in which epoch each member came.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::mesh::decision::Warrant;
use crate::mesh::ids::{Hash, NodeId};

/// How long somebody who was let in and was never there counts as coming, microseconds. After that another may
/// come instead.
pub const COMING_US: u64 = 10 * 60 * 1_000_000;

/// How long a no to a spare holds, microseconds: spares ask again every two to five seconds.
const ANSWER_US: u64 = 1_000_000;

/// A node that came, or one that was lost. In one epoch who came is counted first: it was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Came,
    Lost,
}

/// How many are missing after these changes, each with the epoch it belongs to. More that come than are missing
/// are no stock for later: the mesh has grown.
fn missing_after(changes: &mut [(u64, Change)]) -> usize {
    changes.sort_unstable();
    changes
        .iter()
        .fold(0, |missing: usize, (_, change)| match change {
            Change::Came => missing.saturating_sub(1),
            Change::Lost => missing.saturating_add(1),
        })
}

impl Engine {
    /// How many nodes are cut off, or were removed by the operator, without anybody having come since. A node
    /// that is let in counts as soon as this node knows of it.
    pub fn missing(&mut self, now_unix_us: u64) -> usize {
        let mut lost: BTreeMap<NodeId, u64> = self
            .quarantined
            .keys()
            .filter_map(|node| Some((*node, self.cut_off_in(node)?)))
            .collect();
        let mut changes: Vec<(u64, Change)> = self
            .roster
            .members()
            .map(|(_, member)| (self.since(&member.record), Change::Came))
            .collect();
        for (node, (since, last)) in self.removed_members() {
            // Who was cut off before was lost then.
            lost.entry(node).or_insert(last);
            if self.roster.get(&node).is_none() {
                changes.push((since, Change::Came));
            }
        }
        changes.extend(lost.into_values().map(|epoch| (epoch, Change::Lost)));
        let coming = self.coming(now_unix_us);
        changes.extend(std::iter::repeat_n((u64::MAX, Change::Came), coming));
        missing_after(&mut changes)
    }

    /// Why this node lets no spare in now, for people; none if one is wanted. A no holds for a second: the count goes
    /// through epochs and admissions, and whoever has a ticket may ask without end.
    pub fn no_spare_wanted(&mut self, now_unix_us: u64) -> Option<String> {
        if let Some((said_us, why)) = &self.spare_answer
            && now_unix_us.abs_diff(*said_us) < ANSWER_US
        {
            return Some(why.clone());
        }
        let why = self.why_no_spare(now_unix_us);
        self.spare_answer = why.clone().map(|why| (now_unix_us, why));
        why
    }

    fn why_no_spare(&mut self, now_unix_us: u64) -> Option<String> {
        if self.is_quarantined(&self.config.node) {
            return Some("this member is cut off itself".to_owned());
        }
        if !self.is_member() {
            return Some("this member is not in the mesh's roster yet".to_owned());
        }
        // On the smaller side of a split nobody can say whether the other side has let somebody in.
        let quorum = self.quorum();
        let members = self.roster.members().map(|(node, _)| node);
        let there = members.filter(|node| self.is_reachable(node) && !self.is_quarantined(node));
        let there = there.filter(|node| !self.zeroed.contains(node));
        // By all weight, also where a committee decides: of its seats none may be left, and the next ones come with
        // whoever is let in.
        let (there, needed) = (self.weight_of(there), self.roster.t_hi());
        if there < needed {
            return Some(format!(
                "this member reaches {there} of the weight, and {needed} of {} are needed to let anybody in",
                self.roster.total()
            ));
        }
        (self.missing(now_unix_us) == 0).then(|| {
            let gone = self.quarantined.len();
            format!(
                "nobody is missing: {} nodes, {gone} of them cut off",
                quorum.nodes
            )
        })
    }

    /// The epoch of the decision by which a node was cut off. None if that is not known any more.
    fn cut_off_in(&self, node: &NodeId) -> Option<u64> {
        match &self.quarantine_of(node)?.warrant {
            Warrant::Votes(certificate) => Some(certificate.epoch),
            Warrant::Operator(order) => {
                let epoch = self.chain.find(&order.release.epoch_hash)?;
                Some(epoch.record.number)
            }
        }
    }

    /// Whom the operator has removed: its first and its last epoch. Who is in none that is kept is left out.
    fn removed_members(&self) -> BTreeMap<NodeId, (u64, u64)> {
        if self.removals.is_empty() {
            return BTreeMap::new();
        }
        let mut records: BTreeMap<NodeId, BTreeSet<Hash>> = BTreeMap::new();
        for admitted in self.registry.records() {
            if self.removals.contains_key(&admitted.record.node) {
                let known = records.entry(admitted.record.node).or_default();
                known.insert(admitted.record.hash());
            }
        }
        let last = |hashes: &BTreeSet<Hash>| {
            self.chain.epochs().iter().rev().find_map(|epoch| {
                let member = hashes.iter().find_map(|hash| epoch.record.member(hash))?;
                Some((member.since, epoch.record.number))
            })
        };
        records
            .into_iter()
            .filter_map(|(node, hashes)| Some((node, last(&hashes)?)))
            .collect()
    }

    /// How many were let in and are in no epoch yet. Those that were never there count for [`COMING_US`] from when
    /// they were first counted, so that one that never starts keeps nobody else out for good.
    fn coming(&mut self, now: u64) -> usize {
        let coming: BTreeSet<NodeId> = self
            .reachable_records()
            .into_iter()
            .map(|record| record.node)
            .filter(|node| self.roster.get(node).is_none() && *node != self.config.node)
            .collect();
        self.coming_since.retain(|node, _| coming.contains(node));
        coming
            .into_iter()
            .filter(|node| {
                let since = *self.coming_since.entry(*node).or_insert(now);
                self.seen.contains(node) || now.saturating_sub(since) < COMING_US
            })
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::Change::{Came, Lost};
    use super::*;

    #[test]
    fn who_comes_later_fills_a_gap_once() {
        let missing = |changes: &[(u64, Change)]| missing_after(&mut changes.to_vec());
        assert_eq!(missing(&[]), 0);
        assert_eq!(missing(&[(1, Came), (1, Came), (1, Came)]), 0);
        // Whoever was there before, or came with the very epoch, is no replacement.
        assert_eq!(missing(&[(1, Came), (7, Lost), (7, Came)]), 1);
        assert_eq!(missing(&[(8, Came), (7, Lost)]), 0);
        assert_eq!(missing(&[(u64::MAX, Came), (7, Lost), (7, Lost)]), 1);
        // Growth between two losses is no stock for the second.
        assert_eq!(
            missing(&[(3, Lost), (4, Came), (5, Came), (6, Came), (7, Lost)]),
            1
        );
        // A replacement that is lost too.
        assert_eq!(missing(&[(3, Lost), (4, Came), (9, Lost)]), 1);
    }
}
