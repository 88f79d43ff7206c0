//! The pure function from one epoch's weights to the next one's.
//!
//! Same input, same bits, on every node. In this order: what the evidence says each node deserves; the
//! caps on that; at most a tenth of W moves; the caps again, because they are what safety rests on.

use std::collections::{BTreeMap, BTreeSet};

use crate::mesh::ids::{NodeId, Zone};
use crate::mesh::simulation::{Bug, planted};

/// Largest weight that the evidence can give a node.
pub const MAX_WEIGHT: u32 = 10_000;
/// While fewer nodes than this have weight, a node that joins gets its weight at once: fewer than four
/// nodes tolerate no liar anyway, and four have to be comfortable to get.
pub const BOOTSTRAP_VOTERS: usize = 4;

/// A member of the next epoch, before it has its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub zone: Zone,
    /// When it joined, microseconds since 1970, as its admission says.
    pub joined_unix_us: u64,
    /// The first epoch that it is in.
    pub since: u64,
    /// Its weight in the epoch before; 0 for a new one.
    pub before: u32,
    /// What it deserves by the evidence.
    pub target: u32,
}

/// The weights of epoch `number`, in the order of `candidates`.
///
/// `total` is W of the epoch before, `voters` how many nodes had weight in it.
pub fn next_weights(
    candidates: &[Candidate],
    number: u64,
    probation: u32,
    total: u64,
    voters: usize,
) -> Vec<u32> {
    let zones: Vec<&Zone> = candidates.iter().map(|c| &c.zone).collect();
    let seated = seated(candidates);
    let jumps = planted(Bug::WeightsJump);
    let entitled = |c: &Candidate| {
        let on_probation = number < c.since.saturating_add(u64::from(probation)) && !jumps;
        if c.before > 0 || seated.contains(&c.node) || !on_probation {
            u64::from(c.target.min(MAX_WEIGHT))
        } else {
            0
        }
    };
    let targets = capped(&zones, candidates.iter().map(entitled).collect());
    // Without four nodes of weight there is no quorum that a jump could break: everybody has to agree.
    let free = |c: &Candidate| voters < BOOTSTRAP_VOTERS || seated.contains(&c.node) || jumps;
    let moves: Vec<u64> = candidates
        .iter()
        .zip(&targets)
        .map(|(c, target)| {
            if free(c) {
                0
            } else {
                target.abs_diff(u64::from(c.before))
            }
        })
        .collect();
    let allowed = apportioned(total / 10, &moves);
    let moved = candidates
        .iter()
        .zip(&targets)
        .zip(allowed)
        .map(|((c, target), allowed)| {
            let before = u64::from(c.before);
            if free(c) {
                *target
            } else if *target >= before {
                before.saturating_add(allowed)
            } else {
                before.saturating_sub(allowed)
            }
        })
        .collect();
    capped(&zones, moved)
        .into_iter()
        .map(|weight| u32::try_from(weight).unwrap_or(u32::MAX))
        .collect()
}

/// Those without weight who get it at once because fewer than [`BOOTSTRAP_VOTERS`] have any, in the order
/// of joining.
fn seated(candidates: &[Candidate]) -> BTreeSet<NodeId> {
    // Who is on the way to no weight has it still: a seat beside it would be a jump with four in office.
    let standing = candidates.iter().filter(|c| c.before > 0).count();
    let mut waiting: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| c.before == 0 && c.target > 0)
        .collect();
    waiting.sort_by_key(|c| (c.since, c.joined_unix_us, c.node));
    waiting
        .into_iter()
        .take(BOOTSTRAP_VOTERS.saturating_sub(standing))
        .map(|c| c.node)
        .collect()
}

/// Lowers weights until no zone, and so no node, holds a third of the sum. Needs four zones with weight;
/// with fewer it cannot be done, and the weights stay as they are (the roster then says that it is not
/// Byzantine-tolerant).
fn capped(zones: &[&Zone], weights: Vec<u64>) -> Vec<u64> {
    let mut by_zone: BTreeMap<&Zone, u64> = BTreeMap::new();
    for (zone, weight) in zones.iter().zip(&weights) {
        let sum = by_zone.entry(zone).or_default();
        *sum = sum.saturating_add(*weight);
    }
    by_zone.retain(|_, sum| *sum > 0);
    let fits = |cap: u64| {
        let total: u64 = by_zone.values().map(|sum| (*sum).min(cap)).sum();
        total > cap.saturating_mul(3)
    };
    let largest = by_zone.values().copied().max().unwrap_or(0);
    if fits(largest) || !fits(1) {
        return weights;
    }
    // Whether it fits only ever changes from yes to no as the cap rises.
    let (mut low, mut high) = (1, largest);
    while high.saturating_sub(low) > 1 {
        let middle = low.midpoint(high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    let mut capped = weights;
    for (zone, sum) in by_zone {
        if sum <= low {
            continue;
        }
        let inside: Vec<u64> = zones
            .iter()
            .zip(&capped)
            .map(|(z, weight)| if *z == zone { *weight } else { 0 })
            .collect();
        let shares = apportioned(low, &inside);
        for ((z, weight), share) in zones.iter().zip(&mut capped).zip(shares) {
            if *z == zone {
                *weight = share;
            }
        }
    }
    capped
}

/// Divides at most `budget` among `wants` in proportion; nobody gets more than it wants, and if all of it
/// suffices everybody gets that. Largest remainders first, ties in order.
fn apportioned(budget: u64, wants: &[u64]) -> Vec<u64> {
    let sum: u128 = wants.iter().map(|want| u128::from(*want)).sum();
    if sum <= u128::from(budget) {
        return wants.to_vec();
    }
    let share = |want: u64| u128::from(want) * u128::from(budget);
    let mut parts: Vec<u64> = wants
        .iter()
        .map(|want| u64::try_from(share(*want) / sum).unwrap_or(u64::MAX))
        .collect();
    let given: u64 = parts.iter().sum();
    let mut order: Vec<(u128, usize)> = wants
        .iter()
        .enumerate()
        .map(|(at, want)| (share(*want) % sum, at))
        .collect();
    order.sort_by_key(|(remainder, at)| (std::cmp::Reverse(*remainder), *at));
    let left = usize::try_from(budget.saturating_sub(given)).unwrap_or(usize::MAX);
    for (_, at) in order.into_iter().take(left) {
        if let Some(part) = parts.get_mut(at) {
            *part += 1;
        }
    }
    parts
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
