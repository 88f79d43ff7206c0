//! When a committee of which too few are in reach is drawn anew before its epoch is over.
//!
//! Seats of nodes that are down are replaced by the next draw, and by nothing else: who is in reach is each node's own
//! finding, and must not decide who counts. But where too few seats for decisions of class 2 are left, and two thirds of
//! all weight are there, the next draw need not wait for an hour. It is an epoch like any other, certified by `T_hi` of
//! all weight, so it takes as many who miss the seats themselves.
//!
//! What that is worth to somebody who wants more epochs than there would be: four in the time of one, and only if more
//! than a third of the seats stay away.

use super::Engine;

/// How long seats have to be missed first, microseconds.
const MISSED_US: u64 = 60 * 1_000_000;
/// An epoch lasts for this part of its length at least.
const PART: u64 = 4;

impl Engine {
    /// At each tick: notes since when too few seats are there.
    pub(super) fn miss_seats(&mut self, now: u64) {
        let since = self.seats_missed_since.map_or(now, |since| since.min(now));
        self.seats_missed_since = self.are_seats_missing().then_some(since);
    }

    fn are_seats_missing(&self) -> bool {
        let Some(seats) = self.roster.seats() else {
            return false;
        };
        let silent = self.silent();
        // Who only others say they hear is missed, or one of them could say so for ever.
        let met = |node: &crate::mesh::ids::NodeId| {
            let connected = *node == self.config.node || self.connected.contains(node);
            connected && self.is_reachable(node) && !silent.contains(node)
        };
        let there = seats.iter().filter(|(seat, _)| met(seat));
        let there: u64 = there.map(|(_, seats)| u64::from(*seats)).sum();
        if there >= self.roster.deciding().t_hi() {
            return false;
        }
        let all = self.roster.members().map(|(node, _)| node);
        self.weight_of(all.filter(|node| met(node))) >= self.roster.needed_for_epoch()
    }

    /// Whether this node would begin the next epoch for that.
    pub(super) fn is_redraw_due(&self, now: u64) -> bool {
        self.is_redraw_due_after(now, MISSED_US)
    }

    /// Whether it agrees that another one does: that one may have noticed sooner.
    pub(super) fn may_redraw(&self, now: u64) -> bool {
        self.is_redraw_due_after(now, MISSED_US / 2)
    }

    fn is_redraw_due_after(&self, now: u64, missed_us: u64) -> bool {
        let length = u64::from(self.config.genesis.params.epoch_s).saturating_mul(1_000_000);
        let least = self.epoch_since_us.saturating_add(length / PART);
        let missed = self.seats_missed_since;
        missed.is_some_and(|since| now >= since.saturating_add(missed_us)) && now >= least
    }
}
