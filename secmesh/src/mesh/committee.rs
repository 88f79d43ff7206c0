//! The committee: who decides on behalf of a large mesh, drawn anew for each epoch.
//!
//! In a mesh of some hundred nodes, a third of as many votes for each decision is more than anybody needs to hear. A
//! mesh may be founded with a committee (`secmesh init --committee 128`): then as many *seats* are drawn for each epoch,
//! each counts one, and only they count in decisions. Who has no seat says what it saw, takes the certificates and
//! checks them. Epochs, and with them weights and the next draw, are certified by two thirds of all weight as ever.
//!
//! **The draw** is a systematic sample by weight. All nodes with weight stand in a line, in the order of SHA-256(tag,
//! hash of the epoch record, node id), each as long as its weight. *c* marks at equal distances W/c, the first at a
//! place that follows from the hash, are the seats: a node has as many as there are marks on it.
//!
//! **What that withstands.** On a node of weight w fall ⌊wc/W⌋ or ⌈wc/W⌉ marks, whatever the hash. So the fewest nodes
//! that could ever have a third of the seats follow from the weights alone, for any draw, also for one that a proposer
//! has chosen among many: [`liars_withstood`].

use super::crypto::sha256;
use super::ids::{Hash, NodeId};
use super::wire::Encoder;

const TAG: &str = "secmesh/committee/1";

fn hash_of(epoch: &Hash, rest: &[u8]) -> [u8; 32] {
    let mut e = Encoder::tagged(TAG);
    e.fixed(epoch.as_bytes()).fixed(rest);
    sha256(&e.finish())
}

/// Who has how many of the `seats` in the epoch with this hash, in ascending order of their ids. `voters` are all nodes
/// with weight, and their weights. With as many voters as seats, or fewer, everybody decides: then there is no
/// committee, and this is empty.
pub fn draw(
    epoch: &Hash,
    seats: usize,
    voters: impl IntoIterator<Item = (NodeId, u32)>,
) -> Vec<(NodeId, u32)> {
    let mut line: Vec<([u8; 32], NodeId, u128)> = voters
        .into_iter()
        .map(|(node, weight)| (hash_of(epoch, node.as_bytes()), node, u128::from(weight)))
        .collect();
    let total: u128 = line.iter().map(|(_, _, weight)| weight).sum();
    if seats == 0 || line.len() <= seats || total == 0 {
        return Vec::new();
    }
    line.sort_unstable();
    let drawn = hash_of(epoch, &[]);
    let first = drawn.iter().take(8);
    let first = first.fold(0_u128, |n, byte| n << 8 | u128::from(*byte)) % total;
    // In units of 1/seats, so that all is in whole numbers: mark k is at first + k * total.
    let seats = seats as u128;
    // How many marks are before this place: the least k with first + k * total >= place * seats.
    let marks_before = |place: u128| (place * seats).saturating_sub(first).div_ceil(total);
    let mut end = 0;
    let mut seated: Vec<(NodeId, u32)> = line
        .into_iter()
        .filter_map(|(_, node, weight)| {
            let begin = end;
            end += weight;
            let marks = marks_before(end) - marks_before(begin);
            let marks = u32::try_from(marks).unwrap_or(u32::MAX);
            (marks > 0).then_some((node, marks))
        })
        .collect();
    seated.sort_unstable();
    seated
}

/// How many nodes may lie, whichever they are and whatever is drawn: the most that have less than a third of all
/// weight, and less than a third of `seats` in any draw. `weights`: of all nodes that have any; `seats` is 0, or not
/// below their number, where everybody decides.
pub fn liars_withstood(weights: impl IntoIterator<Item = u32>, seats: usize) -> usize {
    let mut weights: Vec<u64> = weights.into_iter().map(u64::from).collect();
    weights.sort_unstable_by(|a, b| b.cmp(a));
    let total: u64 = weights.iter().sum();
    let seats = match seats {
        all if all >= weights.len() => 0,
        seats => seats as u64,
    };
    // The heaviest have the most seats, too.
    let (mut weight, mut marks) = (0_u64, 0_u64);
    let safe = weights.iter().take_while(|own| {
        weight += **own;
        marks += (**own * seats).div_ceil(total.max(1));
        3 * weight < total && (seats == 0 || 3 * marks < seats)
    });
    safe.count()
}

#[cfg(test)]
#[path = "committee_tests.rs"]
mod tests;
