use super::super::testing::*;
use super::*;
use crate::mesh::crypto::Signer;
use proptest::prelude::*;

#[test]
fn every_admission_verifies_and_survives_the_wire() {
    for admitted in [admitted(1, "a"), by_ticket(2, "b", 0x70)] {
        admitted.verify(&genesis()).unwrap();
        let read = AdmittedRecord::from_bytes(&admitted.to_bytes()).unwrap();
        assert_eq!(read, admitted);
    }
}

#[test]
fn any_changed_byte_of_an_admission_is_refused() {
    for admitted in [admitted(1, "a"), by_ticket(2, "b", 0x70)] {
        let bytes = admitted.to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x01;
            if let Ok(read) = AdmittedRecord::from_bytes(&changed) {
                assert!(read.verify(&genesis()).is_err(), "byte {at}");
            }
        }
    }
}

#[test]
fn nobody_enters_a_vote_key_they_do_not_hold() {
    let stolen = record(1, "a").admit_by_operator(&signer(2), &operator());
    assert!(stolen.verify(&genesis()).is_err());
}

#[test]
fn only_the_operator_and_the_ticket_admit() {
    let forged = record(1, "a").admit_by_operator(&signer(1), &signer(9));
    assert!(forged.verify(&genesis()).is_err());
    let wrong_ticket = record(1, "a").admit_by_ticket(&signer(1), grant(0x70), &signer(9));
    assert!(wrong_ticket.verify(&genesis()).is_err());
    let mut own_grant = grant(0x70).grant;
    own_grant.expires_unix_us += 1;
    let own_grant = own_grant.sign(&signer(9));
    let ticket = Signer::from_secret(&[0x70; 32]);
    let forged = record(1, "a").admit_by_ticket(&signer(1), own_grant, &ticket);
    assert!(forged.verify(&genesis()).is_err());
}

#[test]
fn a_ticket_admits_only_while_it_is_valid() {
    let ticket = Signer::from_secret(&[0x70; 32]);
    for joined in [T0 - 601 * S, T0 + 601 * S] {
        let mut late = record(2, "a");
        late.joined_unix_us = joined;
        let late = late.admit_by_ticket(&signer(2), grant(0x70), &ticket);
        assert_eq!(late.verify(&genesis()), Err(AdmissionError::TicketExpired));
    }
}

#[test]
fn thresholds_follow_the_table() {
    for (n, needed, t_lo, t_hi) in [
        (1, 100, 34, 67),
        (2, 200, 67, 134),
        (3, 300, 101, 201),
        (4, 134, 134, 267),
        (7, 234, 234, 467),
    ] {
        let zones = vec!["a"; n];
        let roster = roster(&zones);
        assert_eq!(
            (roster.deciding().needed(), roster.t_lo(), roster.t_hi()),
            (needed, t_lo, t_hi),
            "{n} nodes"
        );
    }
    assert!(roster(&[]).deciding().needed() > roster(&[]).total());
}

#[test]
fn tolerance_says_what_is_in_the_way() {
    assert_eq!(roster(&["a"]).tolerance(), Tolerance::Single);
    assert_eq!(
        roster(&["a", "b", "c", "d"]).tolerance(),
        Tolerance::Tolerant
    );
    for (zones, all) in [
        (vec!["a", "b"], true),
        (vec!["a", "b", "c"], true),
        (vec!["a", "a", "b", "c"], false),
    ] {
        let tolerance = roster(&zones).tolerance();
        assert!(
            matches!(tolerance, Tolerance::NotByzantineTolerant { needs_all, .. } if needs_all == all),
            "{zones:?}: {tolerance:?}"
        );
    }
    let weights = [300, 100, 100, 100, 100];
    let heavy = Roster::with_weights(
        genesis().mesh_id(),
        (1..)
            .zip(weights)
            .map(|(i, w)| (record(i, &format!("z{i}")), w)),
    );
    let tolerance = heavy.tolerance();
    assert!(
        matches!(tolerance, Tolerance::NotByzantineTolerant { .. }),
        "{tolerance:?}"
    );
}

#[test]
fn a_committee_is_tolerant_if_its_seats_are() {
    let with = |zone: &dyn Fn(u8) -> String, heavy: u32, seats: usize| {
        let weight = |i: u8| if i == 1 { heavy } else { 100 };
        let members = (1..=16).map(|i| (record(i, &zone(i)), weight(i)));
        Roster::with_weights(genesis().mesh_id(), members).with_committee(seats)
    };
    let own = |i: u8| format!("z{i}");
    let why = |roster: Roster| match roster.tolerance() {
        Tolerance::NotByzantineTolerant { why, needs_all } => {
            assert!(!needs_all);
            why
        }
        other => format!("{other:?}"),
    };
    assert_eq!(why(with(&own, 100, 4)), "Tolerant");
    assert_eq!(why(with(&own, 100, 0)), "Tolerant");
    // Less than a third of the weight, and two of four seats.
    let heavy = with(&own, 700, 4);
    assert_eq!(heavy.liars_withstood(), 0);
    assert_eq!(
        why(heavy),
        "node n1 weighs so much that it may have a third of the 4 seats"
    );
    // Zones of a quarter each: which has two of five seats, if one has, is luck.
    let quarters = |i: u8| format!("z{}", i % 4);
    let roster = with(&quarters, 100, 5);
    assert_eq!(roster.tolerance_of_weights(), Tolerance::Tolerant);
    let told = why(roster);
    assert!(told.starts_with("zone z") && told.contains(" of 5 seats of this epoch"));
}

#[test]
fn a_full_mesh_takes_nobody_else() {
    let mut registry = Registry::default();
    let template = admitted(1, "a");
    for i in 0..MAX_NODES {
        // Not verified here: only the count matters.
        let mut another = template.clone();
        another.record.joined_unix_us = i as u64;
        assert_eq!(registry.offer(another), Offered::Changed);
    }
    assert_eq!(registry.offer(admitted(2, "a")), Offered::Full);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_roster_does_not_depend_on_the_order_of_arrival(
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        seen_twice in 0..8_usize,
    ) {
        // Two operator records, tickets used once, one ticket used by three nodes, and one node
        // that comes with two tickets.
        let all = [
            admitted(1, "a"), admitted(2, "b"),
            by_ticket(3, "a", 0x70), by_ticket(4, "a", 0x70), by_ticket(5, "a", 0x70),
            by_ticket(6, "b", 0x71), by_ticket(6, "b", 0x72), by_ticket(7, "c", 0x73),
        ];
        let mut expected = Registry::default();
        for record in &all {
            expected.offer(record.clone());
        }
        let who = |registry: &Registry| -> Vec<NodeId> {
            registry.admissible().iter().map(|r| r.node).collect()
        };
        let mut registry = Registry::default();
        for at in order.into_iter().chain([seen_twice]) {
            registry.offer(all[at].clone());
        }
        prop_assert_eq!(who(&registry), who(&expected));
        prop_assert_eq!(who(&registry).len(), 4);
        for burned in [3, 4, 5] {
            prop_assert!(!who(&registry).contains(&node_id(burned)), "a ticket used twice admits nobody");
        }
    }
}

#[test]
fn of_a_burned_ticket_a_few_records_are_at_hand_and_those_of_an_epoch_are_kept() {
    let mut registry = Registry::default();
    registry.offer(admitted(1, "a"));
    let first = registry.first_epoch(genesis().mesh_id(), &genesis().params);
    for i in 2..=20 {
        registry.offer(by_ticket(i, "b", 0x70));
    }
    assert_eq!(registry.records().count(), 3);
    let hash = |i| by_ticket(i, "b", 0x70).record.hash();
    let at_hand = |r: &Registry, i| r.by_hash(&hash(i)).is_some();
    let known: Vec<u8> = (2..=20).filter(|i| at_hand(&registry, *i)).collect();
    assert_eq!(known, [2, 3, 17, 18, 19, 20]);
    let mut epoch = first;
    epoch.members.push(crate::mesh::epoch::EpochMember {
        record: hash(17),
        weight: 100,
        since: 2,
        proved: crate::mesh::evidence::ProofSet::default(),
    });
    registry.keep(&epoch);
    assert_eq!(registry.records().count(), 4);
    for i in 21..=30 {
        registry.offer(by_ticket(i, "b", 0x70));
    }
    assert!(at_hand(&registry, 17) && !at_hand(&registry, 18));
    assert!(registry.roster(&epoch).is_some());
    // None of them is let into a next epoch for that.
    assert_eq!(registry.admissible().len(), 1);
}
