use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn node(i: usize) -> NodeId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&u16::try_from(i).unwrap().to_be_bytes());
    NodeId(id)
}

fn drawn(epoch: u8, seats: usize, weights: &[u32]) -> Vec<(NodeId, u32)> {
    let nodes = (0..weights.len()).map(node);
    draw(
        &Hash([epoch; 32]),
        seats,
        nodes.zip(weights.iter().copied()),
    )
}

#[test]
fn everybody_decides_where_there_are_seats_for_all() {
    assert!(drawn(1, 8, &[100; 8]).is_empty());
    assert!(drawn(1, 8, &[100; 3]).is_empty());
    assert!(drawn(1, 0, &[100; 3]).is_empty());
    assert_eq!(drawn(1, 8, &[100; 9]).len(), 8);
}

#[test]
fn the_seats_are_where_the_marks_are() {
    let weights = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    let place = |rest: &[u8]| {
        // As docs/protocol.md has it: the tag with its length before it, the record's hash, then the id or nothing.
        let mut bytes = vec![19];
        bytes.extend(b"secmesh/committee/1");
        bytes.extend([7; 32]);
        bytes.extend(rest);
        sha256(&bytes)
    };
    let mut order: Vec<usize> = (0..10).collect();
    order.sort_by_key(|i| place(node(*i).as_bytes()));
    let line: Vec<usize> = order
        .iter()
        .flat_map(|i| std::iter::repeat_n(*i, weights[*i] as usize))
        .collect();
    let first = u64::from_be_bytes(place(&[])[..8].try_into().unwrap()) % 39;
    let mut expected: BTreeMap<NodeId, u32> = BTreeMap::new();
    for k in 0..6 {
        let mark = usize::try_from((first + k * 39) / 6).unwrap();
        *expected.entry(node(line[mark])).or_default() += 1;
    }
    assert_eq!(
        drawn(7, 6, &weights),
        expected.into_iter().collect::<Vec<_>>()
    );
}

#[test]
fn every_epoch_draws_anew_and_all_nodes_get_their_turn() {
    let mut turns: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut draws = BTreeSet::new();
    for epoch in 0..=255 {
        let seats = drawn(epoch, 10, &[100; 40]);
        assert!(seats.iter().all(|(_, marks)| *marks == 1));
        for (seat, _) in &seats {
            *turns.entry(*seat).or_default() += 1;
        }
        draws.insert(seats);
    }
    assert_eq!(draws.len(), 256);
    assert_eq!(turns.len(), 40);
    // 64 each on average.
    assert!(turns.values().all(|n| (20..=108).contains(n)), "{turns:?}");
}

proptest! {
    #[test]
    fn nobody_has_more_than_its_weight_and_all_seats_are_taken(
        weights in proptest::collection::vec(1_u32..10_000, 9..60),
        seats in 4_usize..9,
        epoch: u8,
    ) {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let drawn = drawn(epoch, seats, &weights);
        prop_assert_eq!(drawn.iter().map(|(_, marks)| *marks as usize).sum::<usize>(), seats);
        prop_assert!(drawn.is_sorted_by(|a, b| a.0 < b.0));
        let marks: BTreeMap<NodeId, u32> = drawn.into_iter().collect();
        for (i, weight) in weights.iter().enumerate() {
            let (part, own) = (u64::from(*weight) * seats as u64, marks.get(&node(i)).copied().unwrap_or(0));
            prop_assert!(u64::from(own) >= part / total && u64::from(own) <= part.div_ceil(total));
        }
        // So whoever lies, and whatever is drawn.
        let mut most: Vec<(u32, u32)> =
            weights.iter().enumerate().map(|(i, w)| (marks.get(&node(i)).copied().unwrap_or(0), *w)).collect();
        most.sort_unstable_by(|a, b| b.cmp(a));
        let liars = liars_withstood(weights.iter().copied(), seats);
        let captured: u32 = most.iter().take(liars).map(|(marks, _)| marks).sum();
        prop_assert!(3 * (captured as usize) < seats);
        let mut heavy = weights;
        heavy.sort_unstable_by(|a, b| b.cmp(a));
        prop_assert!(3 * heavy.iter().take(liars).map(|w| u64::from(*w)).sum::<u64>() < total);
    }
}

#[test]
fn what_a_committee_withstands() {
    for (weights, seats, liars) in [
        (vec![100; 350], 64, 21),
        (vec![100; 350], 128, 42),
        (vec![100; 350], 0, 116),
        (vec![100; 100], 100, 33),
        (vec![100; 3], 4, 0),
        (vec![], 4, 0),
        // Forty old nodes and many that are just off probation: it is the old ones that count.
        ([vec![100; 40], vec![1; 310]].concat(), 128, 14),
        ([vec![100; 40], vec![1; 310]].concat(), 0, 14),
        // 300 in one zone, which its cap gives little.
        ([vec![8; 300], vec![100; 50]].concat(), 128, 21),
        ([vec![8; 300], vec![100; 50]].concat(), 0, 24),
    ] {
        assert_eq!(
            liars_withstood(weights.clone(), seats),
            liars,
            "{seats} {weights:?}"
        );
    }
}
