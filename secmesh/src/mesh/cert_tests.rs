use super::super::testing::*;
use super::*;
use crate::mesh::vote::AttackClass;
use Verdict::{Concur, Confirm};
use proptest::prelude::*;

fn block() -> Action {
    Action::block(subject(), AttackClass::PortScan, &Params::default())
}

fn verify(roster: &Roster, certificate: &Certificate) -> Result<CertVerdict, CertError> {
    certificate.verify(roster, &Params::default(), &nobody())
}

fn four() -> Roster {
    roster(&["a", "b", "c", "d"])
}

#[test]
fn two_witnesses_of_four_suffice() {
    let roster = four();
    let certificate = certificate(&roster, block(), &[(1, Confirm), (3, Confirm)]);
    let verdict = verify(&roster, &certificate).unwrap();
    assert_eq!(
        (verdict.weight, verdict.needed, verdict.total),
        (200, 134, 400)
    );
    assert_eq!((verdict.confirms, verdict.zones), (2, 2));
}

#[test]
fn one_witness_never_suffices_where_there_are_others() {
    let roster = four();
    let votes = [(1, Confirm), (2, Concur), (3, Concur), (4, Concur)];
    assert!(matches!(
        verify(&roster, &certificate(&roster, block(), &votes)),
        Err(CertError::TooFewWitnesses { confirms: 1, .. })
    ));
}

#[test]
fn two_witnesses_of_one_zone_do_not_suffice_where_there_are_two() {
    let split = roster(&["a", "a", "b", "b"]);
    assert!(matches!(
        verify(
            &split,
            &certificate(&split, block(), &[(1, Confirm), (2, Confirm)])
        ),
        Err(CertError::TooFewWitnesses { zones: 1, .. })
    ));
    assert!(
        verify(
            &split,
            &certificate(&split, block(), &[(1, Confirm), (3, Confirm)])
        )
        .is_ok()
    );
    let together = roster(&["a", "a", "a", "a"]);
    let both = certificate(&together, block(), &[(1, Confirm), (2, Confirm)]);
    assert!(verify(&together, &both).is_ok());
}

#[test]
fn small_meshes_need_everybody() {
    let one = roster(&["a"]);
    assert!(verify(&one, &certificate(&one, block(), &[(1, Confirm)])).is_ok());
    assert!(verify(&one, &certificate(&one, block(), &[])).is_err());
    for n in 2..=3_u8 {
        let roster = roster(&["a", "b", "c"][..usize::from(n)]);
        let all: Vec<_> = (1..=n)
            .map(|i| (i, if i <= 2 { Confirm } else { Concur }))
            .collect();
        assert!(verify(&roster, &certificate(&roster, block(), &all)).is_ok());
        assert!(verify(&roster, &certificate(&roster, block(), &all[1..])).is_err());
    }
}

#[test]
fn the_subject_does_not_judge_itself_and_stays_in_the_denominator() {
    let roster = four();
    let node_two = Action {
        subject: "10.0.0.2".parse().unwrap(),
        ..block()
    };
    let with_subject = certificate(&roster, node_two, &[(1, Confirm), (2, Confirm)]);
    assert_eq!(
        verify(&roster, &with_subject),
        Err(CertError::TooLight {
            weight: 100,
            needed: 134,
            total: 400
        })
    );
    let others = certificate(&roster, node_two, &[(1, Confirm), (3, Confirm)]);
    assert_eq!(verify(&roster, &others).unwrap().total, 400);
}

#[test]
fn the_weights_of_the_counterexample_are_safe() {
    // 1, 3, 3: without the subject (a 3) in the denominator, one honest node could be outvoted by
    // what is a third of the whole. Three nodes need everybody, so nobody can judge a member.
    let members = (1..)
        .zip([1, 3, 3])
        .map(|(i, w)| (record(i, &format!("z{i}")), w));
    let roster = Roster::with_weights(genesis().mesh_id(), members);
    let node_three = Action {
        subject: "10.0.0.3".parse().unwrap(),
        ..block()
    };
    let all = certificate(
        &roster,
        node_three,
        &[(1, Confirm), (2, Confirm), (3, Confirm)],
    );
    assert_eq!(
        verify(&roster, &all),
        Err(CertError::TooLight {
            weight: 4,
            needed: 7,
            total: 7
        })
    );
}

#[test]
fn a_proved_liar_weighs_nothing_and_stays_in_the_denominator() {
    let roster = four();
    let certificate = certificate(&roster, block(), &[(1, Confirm), (2, Confirm)]);
    let liar = BTreeSet::from([node_id(2)]);
    assert_eq!(
        certificate.verify(&roster, &Params::default(), &liar),
        Err(CertError::TooLight {
            weight: 100,
            needed: 134,
            total: 400
        })
    );
}

#[test]
fn one_vote_does_not_count_twice() {
    let roster = four();
    let mut twice = certificate(&roster, block(), &[(1, Confirm), (1, Confirm)]);
    assert_eq!(verify(&roster, &twice), Err(CertError::VoterOrder));
    twice.votes[1].sequence += 1;
    assert_eq!(verify(&roster, &twice), Err(CertError::VoterOrder));
}

#[test]
fn strangers_other_incarnations_and_other_epochs_do_not_count() {
    let roster = four();
    let stranger = certificate(
        &roster,
        block(),
        &[(1, Confirm), (9, Confirm), (2, Confirm)],
    );
    assert!(matches!(
        verify(&roster, &stranger),
        Err(CertError::UnknownVoter(_))
    ));
    let mut reborn = certificate(&roster, block(), &[(1, Confirm), (2, Confirm)]);
    reborn.votes[0].incarnation = 2;
    assert!(matches!(
        verify(&roster, &reborn),
        Err(CertError::UnknownVoter(_))
    ));
    let five = super::super::testing::roster(&["a", "b", "c", "d", "e"]);
    let certificate = certificate(&roster, block(), &[(1, Confirm), (2, Confirm)]);
    assert!(matches!(
        verify(&five, &certificate),
        Err(CertError::WrongEpoch { .. })
    ));
}

#[test]
fn votes_that_were_never_valid_together_do_not_add_up() {
    let roster = four();
    let mut apart = certificate(&roster, block(), &[(1, Confirm), (2, Confirm)]);
    let mut late = ballot(&roster, 2, block(), Confirm, 1, T0).signed.vote;
    late.issued_at_us = T0 + 119 * S;
    for (valid_for_s, expected) in [(120, Ok(())), (60, Err(CertError::NotConcurrent))] {
        for vote in &mut apart.votes {
            let i = if vote.voter == node_id(1) { 1 } else { 2 };
            let mut v = ballot(&roster, i, block(), Confirm, 1, T0).signed.vote;
            if i == 2 {
                v = late;
            }
            v.valid_for_s = valid_for_s;
            vote.issued_at_us = v.issued_at_us;
            vote.valid_for_s = valid_for_s;
            vote.signature = v.sign(&signer(i)).signature;
        }
        assert_eq!(verify(&roster, &apart).map(|_| ()), expected);
    }
}

#[test]
fn a_reject_in_a_certificate_is_refused() {
    let roster = four();
    let votes = [(1, Confirm), (2, Confirm), (3, Verdict::Reject)];
    assert!(verify(&roster, &certificate(&roster, block(), &votes)).is_err());
}

#[test]
fn the_decision_is_the_same_whichever_votes_prove_it() {
    let roster = four();
    let a = certificate(&roster, block(), &[(1, Confirm), (2, Confirm)]);
    let b = certificate(&roster, block(), &[(3, Confirm), (4, Confirm), (1, Concur)]);
    assert_eq!(a.decision(), b.decision());
    assert_eq!(a.expires_unix_us(), b.expires_unix_us());
}

#[test]
fn a_release_needs_weight_and_no_witnesses() {
    let roster = four();
    let release = Action::release(subject());
    assert!(
        verify(
            &roster,
            &certificate(&roster, release, &[(1, Confirm), (2, Concur)])
        )
        .is_ok()
    );
    assert!(verify(&roster, &certificate(&roster, release, &[(1, Confirm)])).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_changed_byte_of_a_certificate_passes(at: prop::sample::Index, change in 1_u8..) {
        let roster = four();
        let good = certificate(&roster, block(), &[(1, Confirm), (2, Confirm)]);
        let mut bytes = good.to_bytes();
        prop_assert_eq!(Certificate::from_bytes(&bytes).unwrap(), good);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(read) = Certificate::from_bytes(&bytes) {
            prop_assert_eq!(read.to_bytes(), bytes);
            prop_assert!(verify(&roster, &read).is_err());
        }
    }

    #[test]
    fn a_certificate_stands_exactly_when_the_rule_says_so(
        weights in proptest::collection::vec(1_u32..200, 1..9),
        zones in proptest::collection::vec(0_u8..3, 9),
        votes in proptest::collection::vec(prop::option::of(any::<bool>()), 9),
    ) {
        let n = weights.len();
        let members = (1..).zip(&weights).map(|(i, w)| {
            (record(i, &format!("z{}", zones[usize::from(i) - 1])), *w)
        });
        let roster = Roster::with_weights(genesis().mesh_id(), members);
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let given: Vec<(u8, Verdict)> = (1..).zip(&votes[..n]).filter_map(|(i, v)| {
            v.map(|own| (i, if own { Confirm } else { Concur }))
        }).collect();
        // The rule again, written another way.
        let weight: u64 = given.iter().map(|(i, _)| u64::from(weights[usize::from(*i) - 1])).sum();
        let enough = if n <= 3 { weight == total } else { 3 * weight > total };
        let witnesses: Vec<u8> =
            given.iter().filter(|(_, v)| *v == Confirm).map(|(i, _)| *i).collect();
        let seen: BTreeSet<u8> = witnesses.iter().map(|i| zones[usize::from(*i) - 1]).collect();
        let all: BTreeSet<u8> = zones[..n].iter().copied().collect();
        let witnessed = witnesses.len() >= n.min(2) && seen.len() >= all.len().min(2);
        let result = verify(&roster, &certificate(&roster, block(), &given));
        prop_assert_eq!(result.is_ok(), enough && witnessed, "{:?}", result);
    }
}
