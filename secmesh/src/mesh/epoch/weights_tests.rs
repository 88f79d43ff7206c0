use super::*;
use proptest::prelude::*;

fn zone(i: usize) -> Zone {
    Zone::new(&format!("z{i}")).unwrap()
}

fn candidate(i: u8, zone_of: usize, since: u64, before: u32, target: u32) -> Candidate {
    Candidate {
        node: NodeId([i; 16]),
        zone: zone(zone_of),
        joined_unix_us: u64::from(i),
        since,
        before,
        target,
    }
}

fn next(candidates: &[Candidate], number: u64, probation: u32) -> Vec<u32> {
    let total = candidates.iter().map(|c| u64::from(c.before)).sum();
    let voters = candidates.iter().filter(|c| c.before > 0).count();
    next_weights(candidates, number, probation, total, voters)
}

#[test]
fn the_first_four_have_their_weight_at_once_and_the_fifth_waits() {
    let mut all: Vec<Candidate> = (1..=5).map(|i| candidate(i, i.into(), 2, 0, 100)).collect();
    all[0].before = 100;
    assert_eq!(next(&all, 2, 3), [100, 100, 100, 100, 0]);
}

#[test]
fn after_probation_weight_comes_a_tenth_of_w_at_a_time() {
    let mut all: Vec<Candidate> = (1..=4)
        .map(|i| candidate(i, i.into(), 1, 100, 100))
        .collect();
    all.push(candidate(5, 5, 2, 0, 100));
    assert_eq!(next(&all, 4, 3)[4], 0, "still on probation");
    for expected in [40, 84, 100] {
        let weights = next(&all, 5, 3);
        assert_eq!(weights, [100, 100, 100, 100, expected]);
        all[4].before = weights[4];
    }
}

#[test]
fn a_zone_never_gets_a_third() {
    // Ten nodes in one zone and one in each of three others.
    let all: Vec<Candidate> = (1..=13)
        .map(|i| candidate(i, if i <= 10 { 0 } else { i.into() }, 1, 100, 100))
        .collect();
    let weights = next(&all, 9, 3);
    let first: u32 = weights[..10].iter().sum();
    assert_eq!(weights[10..], [100, 100, 100]);
    assert_eq!(first, 149, "3 * 149 < 449, and no more does");
}

#[test]
fn with_three_zones_the_caps_cannot_be_kept_and_nothing_is_taken() {
    let all: Vec<Candidate> = (1..=6)
        .map(|i| candidate(i, usize::from(i % 3), 1, 100, 100))
        .collect();
    assert_eq!(next(&all, 9, 3), [100; 6]);
}

#[test]
fn when_a_voter_is_removed_one_on_probation_takes_its_place_only_below_four() {
    let mut all: Vec<Candidate> = (1..=3)
        .map(|i| candidate(i, i.into(), 1, 100, 100))
        .collect();
    all.push(candidate(4, 4, 8, 0, 100));
    all.push(candidate(5, 5, 8, 0, 100));
    assert_eq!(next_weights(&all, 9, 3, 400, 4), [100, 100, 100, 100, 0]);
}

#[test]
fn a_caught_liar_keeps_its_seat_until_it_has_no_weight() {
    let mut all: Vec<Candidate> = (1..=4)
        .map(|i| candidate(i, i.into(), 1, 100, if i == 4 { 0 } else { 100 }))
        .collect();
    all.push(candidate(5, 5, 8, 0, 100));
    // One on probation beside it would be a quarter of the weight at once.
    assert_eq!(next_weights(&all, 9, 3, 400, 4), [100, 100, 100, 60, 0]);
    all[3].before = 0;
    assert_eq!(next_weights(&all, 9, 3, 300, 3), [100, 100, 100, 0, 100]);
}

fn mesh() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec((0..7_usize, 0..400_u32, 0..400_u32, 1..12_u64), 1..40).prop_map(
        |all| {
            all.into_iter()
                .zip(1_u8..)
                .map(|((zone, before, target, since), i)| candidate(i, zone, since, before, target))
                .collect()
        },
    )
}

proptest! {
    #[test]
    fn caps_and_moves_hold_for_any_mesh(all in mesh(), number in 12..20_u64, probation in 0..6_u32) {
        let before: u64 = all.iter().map(|c| u64::from(c.before)).sum();
        let voters = all.iter().filter(|c| c.before > 0).count();
        let weights = next(&all, number, probation);
        prop_assert_eq!(&weights, &next(&all, number, probation));
        prop_assert_eq!(weights.len(), all.len());
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let mut zones: BTreeMap<&Zone, u64> = BTreeMap::new();
        for (c, w) in all.iter().zip(&weights) {
            *zones.entry(&c.zone).or_default() += u64::from(*w);
        }
        zones.retain(|_, sum| *sum > 0);
        if zones.len() >= 4 {
            prop_assert!(zones.values().all(|sum| sum * 3 < total), "{:?} of {}", zones, total);
        }
        for (c, w) in all.iter().zip(&weights) {
            let on_probation = number < c.since + u64::from(probation);
            prop_assert!(c.before > 0 || !on_probation || voters < 4 || *w == 0);
        }
        let rising: u64 = all.iter().zip(&weights).map(|(c, w)| u64::from(w.saturating_sub(c.before))).sum();
        if voters >= 4 {
            prop_assert!(rising <= before / 10, "{} of {}", rising, before);
        }
        // Where no cap is in the way nothing falls by more either.
        if voters >= 4 && zones.len() < 4 {
            let moved: u64 = all.iter().zip(&weights).map(|(c, w)| u64::from(w.abs_diff(c.before))).sum();
            prop_assert!(moved <= before / 10);
        }
    }
}
