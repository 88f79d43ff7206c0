use std::collections::BTreeMap;

use proptest::prelude::*;

use super::fold::Checks;
use super::*;
use crate::mesh::evidence::testing::*;
use crate::mesh::evidence::{
    Body, CulpritKeys, Dossier, EvidenceSet, Frontier, LogHead, Misconduct, Outcome, OutcomeKind,
    ProofKind, Remediation, Ruling, Say, Statement,
};
use crate::mesh::ids::{DecisionId, NodeId};
use crate::mesh::testing::*;

fn rules() -> Rules {
    Rules::new(&genesis(), Params::default())
}

/// Nodes 1 to `count`, 100 each.
fn members(count: u8) -> Members {
    (1..=count)
        .map(|i| {
            let keys = CulpritKeys::of(&record(i, "a"));
            (node_id(i), Member { keys, weight: 100 })
        })
        .collect()
}

/// The standings when all of it is one epoch.
fn standings(logs: &Logs, count: u8) -> BTreeMap<NodeId, Standing> {
    let members = members(count);
    let frontier = logs.set.frontier();
    let boundary = Boundary {
        frontier: &frontier,
        members: &members,
    };
    fold(&logs.set, &[boundary], &rules())
        .unwrap()
        .into_iter()
        .collect()
}

fn weight(standings: &BTreeMap<NodeId, Standing>, i: u8) -> u32 {
    standings[&node_id(i)].weight(&Params::default())
}

fn address(i: u8) -> crate::addr::Prefix {
    format!("198.51.100.{i}").parse().unwrap()
}

#[test]
fn nobody_knows_anything_and_all_weigh_the_same() {
    let standings = standings(&Logs::default(), 4);
    for i in 1..=4 {
        assert_eq!(weight(&standings, i), 100);
        assert_eq!(standings[&node_id(i)].per_mille(), 500);
    }
}

#[test]
fn the_operators_verdict_counts_against_all_who_confirmed_and_once() {
    let mut logs = Logs::default();
    for carrier in [1, 2, 3] {
        logs.says(
            carrier,
            T0,
            verdict(subject(), Ruling::FalsePositive, &[2, 3], T0),
        );
    }
    let standings = standings(&logs, 4);
    for liar in [2, 3] {
        let standing = &standings[&node_id(liar)];
        assert_eq!((standing.alpha, standing.beta), (0, 4 * ONE));
        // ⌊200 · 1 / 6⌋
        assert_eq!(weight(&standings, liar), 33);
    }
    assert_eq!(weight(&standings, 1), 100);
}

#[test]
fn one_verdict_in_two_epochs_counts_once() {
    let mut logs = Logs::default();
    let body = verdict(subject(), Ruling::FalsePositive, &[2], T0);
    logs.says(1, T0, body.clone());
    let members = members(4);
    let mut fold = Fold::new(rules());
    let mut checks = Checks::default();
    let mut told = Vec::new();
    let mut tell = |change| told.push(change);
    let first = logs.set.frontier();
    fold.epoch(&logs.set, &first, &members, &mut checks, &mut tell)
        .unwrap();
    logs.says(3, T0, body);
    let second = logs.set.frontier();
    fold.epoch(&logs.set, &second, &members, &mut checks, &mut tell)
        .unwrap();
    // Faded by a sixteenth, and nothing added.
    assert_eq!(
        fold.standings()[&node_id(2)].beta,
        4 * ONE - ((4 * ONE) >> 4)
    );
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].because[0].author, node_id(1));
    assert_eq!(told[0].because[0].subject, Some(subject()));
}

#[test]
fn a_report_counts_as_far_as_more_than_a_third_says_the_same() {
    let mut logs = Logs::default();
    // W = 400, so 134 are needed: two others.
    logs.says(2, T0, outcome(OutcomeKind::Miss, subject(), &[1]));
    assert_eq!(weight(&standings(&logs, 4), 1), 100, "one reporter");
    logs.says(3, T0, outcome(OutcomeKind::Miss, subject(), &[1]));
    let both = standings(&logs, 4);
    assert_eq!(both[&node_id(1)].beta, 2 * ONE);
    assert_eq!(weight(&both, 1), 50);
    // Two liars of seven say the same as often as they like.
    let mut logs = Logs::default();
    for i in 0..50 {
        for liar in [2, 3] {
            logs.says(liar, T0, outcome(OutcomeKind::Miss, address(i), &[1]));
        }
    }
    assert_eq!(weight(&standings(&logs, 7), 1), 100);
}

/// What changes in two epochs when node 2 dates its twenty statements like this; without the dates.
fn told(dated: impl Fn(u64) -> u64) -> (BTreeMap<NodeId, Standing>, Vec<Change>) {
    let mut logs = Logs::default();
    let mut fold = Fold::new(rules());
    let mut checks = Checks::default();
    let mut told = Vec::new();
    for epoch in 0..2_u8 {
        for i in 0..10 {
            let at = dated(u64::from(epoch * 10 + i));
            let body = outcome(OutcomeKind::Miss, address(epoch * 10 + i), &[1]);
            logs.says(2, at, body);
        }
        for reporter in [3, 4] {
            let body = outcome(OutcomeKind::Miss, address(100 + epoch), &[1]);
            logs.says(reporter, T0, body);
        }
        let frontier = logs.set.frontier();
        let mut tell = |change| told.push(change);
        fold.epoch(&logs.set, &frontier, &members(4), &mut checks, &mut tell)
            .unwrap();
    }
    for reference in told.iter_mut().flat_map(|change| &mut change.because) {
        reference.made_at_us = 0;
    }
    let standings = fold.standings().iter();
    (standings.map(|(n, s)| (*n, s.clone())).collect(), told)
}

#[test]
fn what_an_author_dates_moves_nothing_and_nobody_fills_a_history_alone() {
    let (standings, changes) = told(|_| T0);
    for dates in [
        &(|n: u64| n * 3_600_000_000) as &dyn Fn(u64) -> u64,
        &|n| T0 + n * 3_600_000_000,
        &|n| u64::MAX - n,
        &|_| 0,
    ] {
        assert_eq!(told(dates), (standings.clone(), changes.clone()));
    }
    // An entry per epoch, not per hour that somebody states, and all who said so are in it.
    assert_eq!(changes.len(), 2);
    for change in &changes {
        let mut by: BTreeMap<NodeId, usize> = BTreeMap::new();
        for reference in &change.because {
            *by.entry(reference.author).or_default() += 1;
        }
        let named = [(node_id(2), 2), (node_id(3), 1), (node_id(4), 1)];
        assert_eq!(by, BTreeMap::from(named), "{change:?}");
    }
}

#[test]
fn nobody_pumps_itself_or_a_friend() {
    let mut logs = Logs::default();
    for i in 0..50 {
        logs.says(2, T0, outcome(OutcomeKind::Hit, address(i), &[2, 3]));
        logs.says(3, T0, outcome(OutcomeKind::Hit, address(i), &[2, 3]));
        logs.question(2, 3, Say::Hostile, Say::Hostile);
        logs.question(3, 2, Say::Hostile, Say::Hostile);
    }
    let standings = standings(&logs, 7);
    for liar in [2, 3] {
        assert_eq!(
            standings[&node_id(liar)],
            Standing {
                idle_epochs: 1,
                ..Standing::default()
            }
        );
    }
}

#[test]
fn hits_count_as_often_as_others_saw_them_and_never_lift_above_a_newcomer() {
    let mut logs = Logs::default();
    for reporter in [2, 3, 4] {
        logs.says(reporter, T0, outcome(OutcomeKind::Hit, subject(), &[1]));
    }
    let standings = standings(&logs, 4);
    let standing = &standings[&node_id(1)];
    assert_eq!((standing.alpha, standing.beta), (ONE, 0));
    assert_eq!(standing.per_mille(), 666);
    assert_eq!(weight(&standings, 1), 100);
}

#[test]
fn a_false_positive_by_a_reliable_node_costs_less() {
    let mut logs = Logs::default();
    let members = members(4);
    let mut fold = Fold::new(rules());
    let mut checks = Checks::default();
    for i in 0..60 {
        for reporter in [2, 3, 4] {
            logs.says(reporter, T0, outcome(OutcomeKind::Hit, address(i), &[1]));
        }
        let frontier = logs.set.frontier();
        fold.epoch(&logs.set, &frontier, &members, &mut checks, &mut |_| {})
            .unwrap();
    }
    logs.says(
        2,
        T0,
        verdict(subject(), Ruling::FalsePositive, &[1, 3], T0),
    );
    let frontier = logs.set.frontier();
    fold.epoch(&logs.set, &frontier, &members, &mut checks, &mut |_| {})
        .unwrap();
    assert_eq!(fold.weight(&node_id(1)), 100);
    assert_eq!(fold.weight(&node_id(3)), 33);
    // And is forgotten with time: toward neutral, counted in epochs.
    fold.pass(40);
    assert!(
        fold.weight(&node_id(3)) > 80,
        "{}",
        fold.weight(&node_id(3))
    );
    fold.pass(1_000_000);
    let standing = &fold.standings()[&node_id(3)];
    assert!(standing.beta < ONE, "{standing:?}");
}

#[test]
fn test_questions_count_when_enough_askers_say_the_same() {
    let mut logs = Logs::default();
    logs.question(2, 1, Say::Harmless, Say::Hostile);
    assert_eq!(standings(&logs, 4)[&node_id(1)].beta, 0);
    logs.question(3, 1, Say::Hostile, Say::Harmless);
    assert_eq!(standings(&logs, 4)[&node_id(1)].beta, 2 * ONE);
    let mut logs = Logs::default();
    logs.question(2, 1, Say::Harmless, Say::Harmless);
    logs.question(3, 1, Say::Hostile, Say::Hostile);
    assert_eq!(standings(&logs, 4)[&node_id(1)].alpha, ONE);
}

#[test]
fn proofs_zero_the_liar_for_good_and_silence_it() {
    let mut logs = Logs::default();
    logs.says(1, T0, Body::Misconduct(equivocation(3)));
    logs.says(2, T0, Body::Misconduct(fork(4)));
    // With the two proved, nobody is left of a third who reports on 1.
    logs.says(3, T0, outcome(OutcomeKind::Miss, subject(), &[1]));
    logs.says(4, T0, outcome(OutcomeKind::Miss, subject(), &[1]));
    let found = standings(&logs, 4);
    assert_eq!(weight(&found, 3), 0);
    assert_eq!(weight(&found, 4), 0);
    assert_eq!(weight(&found, 1), 100);
    assert_eq!(weight(&found, 2), 100);
}

#[test]
fn a_proof_about_somebody_who_joins_later_counts_then() {
    let mut logs = Logs::default();
    logs.says(1, T0, Body::Misconduct(equivocation(5)));
    let frontier = logs.set.frontier();
    let (few, all) = (members(4), members(5));
    let boundary = |members| Boundary {
        frontier: &frontier,
        members,
    };
    let standings: BTreeMap<_, _> = fold(&logs.set, &[boundary(&few), boundary(&all)], &rules())
        .unwrap()
        .into_iter()
        .collect();
    assert_eq!(weight(&standings, 5), 0);
    assert_eq!(weight(&standings, 1), 100, "it is no forgery");
}

/// Takes the votes of a dossier and changes one signature.
fn forged(body: &Body) -> Body {
    let Body::Outcome(outcome) = body else {
        panic!("an outcome");
    };
    let mut votes = outcome.dossier.votes().clone();
    votes.votes[0].signature[0] ^= 1;
    Body::Outcome(Outcome {
        dossier: Dossier::new(votes).unwrap(),
        ..outcome.clone()
    })
}

#[test]
fn forged_evidence_proves_itself() {
    let mut logs = Logs::default();
    let hit = outcome(OutcomeKind::Hit, subject(), &[1]);
    logs.says(2, T0, forged(&hit));
    // A verdict that the operator never signed.
    let Body::Verdict(mut signed, dossier) = verdict(subject(), Ruling::FalsePositive, &[1], T0)
    else {
        panic!("a verdict");
    };
    signed.signature[0] ^= 1;
    logs.says(3, T0, Body::Verdict(signed, dossier));
    // A proof that is none.
    let mut accused = equivocation(1);
    if let Misconduct::Equivocation(proof) = &mut accused {
        let (first, second) = (*proof.votes().0, *proof.votes().1);
        let mut invented = second;
        invented.signature[0] ^= 1;
        **proof = crate::mesh::message::EquivocationProof::new(first, invented).unwrap();
    }
    logs.says(4, T0, Body::Misconduct(accused));
    // An answer that is not what the commitment says.
    logs.question(5, 1, Say::Hostile, Say::Hostile);
    let Some(Body::Reveal(mut reveal)) = logs.all.last().map(|s| s.body.clone()) else {
        panic!("a reveal");
    };
    reveal.expected = Say::Harmless;
    logs.says(5, T0, Body::Reveal(reveal));
    // The same without an answer, which would have given it away by itself.
    logs.question(6, 1, Say::Hostile, Say::Hostile);
    let Some(Body::Reveal(mut reveal)) = logs.all.last().map(|s| s.body.clone()) else {
        panic!("a reveal");
    };
    reveal.nonce[0] ^= 1;
    reveal.answer = None;
    logs.says(6, T0, Body::Reveal(reveal));
    let standings = standings(&logs, 7);
    assert_eq!(weight(&standings, 1), 100);
    for liar in 2..=6 {
        assert_eq!(weight(&standings, liar), 0, "node {liar}");
        assert_eq!(
            standings[&node_id(liar)].proofs,
            [ProofKind::ForgedEvidence]
        );
    }
}

#[test]
fn strikes_grow_on_failure_and_go_with_success() {
    let remediation = |succeeded| {
        Body::Remediation(Remediation {
            node: node_id(1),
            decision: DecisionId([1; 32]),
            succeeded,
        })
    };
    let mut logs = Logs::default();
    let members = members(4);
    let mut fold = Fold::new(rules());
    let mut checks = Checks::default();
    let mut epoch = |logs: &Logs, fold: &mut Fold| {
        let frontier = logs.set.frontier();
        fold.epoch(&logs.set, &frontier, &members, &mut checks, &mut |_| {})
            .unwrap();
        (
            fold.standings()[&node_id(1)].strikes,
            fold.weight(&node_id(1)),
        )
    };
    // Against itself a node is believed.
    logs.says(1, T0, remediation(false));
    assert_eq!(epoch(&logs, &mut fold), (1, 50));
    logs.says(2, T0, remediation(false));
    assert_eq!(epoch(&logs, &mut fold), (1, 50), "one reporter");
    logs.says(3, T0, remediation(false));
    assert_eq!(epoch(&logs, &mut fold), (2, 25));
    // For itself it is not.
    logs.says(1, T0, remediation(true));
    logs.says(2, T0, remediation(true));
    assert_eq!(epoch(&logs, &mut fold), (2, 25));
    logs.says(3, T0, remediation(true));
    assert_eq!(epoch(&logs, &mut fold), (0, 100));
}

#[test]
fn a_frontier_that_is_not_known_is_no_frontier() {
    let mut logs = Logs::default();
    logs.says(1, T0, bodies()[0].clone());
    let members = members(4);
    let mut fold = Fold::new(rules());
    let mut frontier = logs.set.frontier();
    let root = logs.set.head(&node_id(1)).root;
    frontier.set(node_id(1), LogHead { size: 2, root }).unwrap();
    let mut checks = Checks::default();
    assert_eq!(
        fold.epoch(&logs.set, &frontier, &members, &mut checks, &mut |_| {}),
        Err(Missing)
    );
    fold.epoch(
        &logs.set,
        &logs.set.frontier(),
        &members,
        &mut checks,
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(
        fold.epoch(
            &logs.set,
            &Frontier::default(),
            &members,
            &mut checks,
            &mut |_| {}
        ),
        Err(Missing),
        "back behind an earlier one"
    );
}

#[test]
fn parameters_are_read_back_and_checked() {
    let params = Params::default();
    assert_eq!(Params::from_bytes(&params.to_bytes()), Ok(params));
    for bad in [
        Params { floor: 0, ..params },
        Params {
            floor: 101,
            ..params
        },
        Params {
            ceiling: 201,
            ..params
        },
        Params {
            k: 1 << 21,
            ..params
        },
    ] {
        assert!(Params::from_bytes(&bad.to_bytes()).is_err(), "{bad:?}");
    }
}

/// What a random schedule of statements says.
fn random_logs(steps: &[(u8, u8, u8)]) -> Logs {
    let mut logs = Logs::default();
    for (n, (who, whom, what)) in (0_u8..).zip(steps) {
        let (who, whom) = (1 + who % 5, 1 + whom % 5);
        let now = T0 + u64::from(n);
        match what % 9 {
            0 | 1 => {
                logs.says(who, now, outcome(OutcomeKind::Hit, address(n), &[whom]));
            }
            2 => {
                logs.says(who, now, outcome(OutcomeKind::Miss, address(n), &[whom]));
            }
            3 => {
                let ruling = Ruling::FalsePositive;
                logs.says(who, now, verdict(address(n), ruling, &[whom], now));
            }
            4 => logs.question(who, whom, Say::Hostile, Say::Hostile),
            5 => logs.question(who, whom, Say::Harmless, Say::Hostile),
            6 => {
                logs.says(
                    who,
                    now,
                    Body::Remediation(Remediation {
                        node: node_id(whom),
                        decision: DecisionId([n; 32]),
                        succeeded: what % 2 == 0,
                    }),
                );
            }
            7 if n % 7 == 0 => {
                logs.says(who, now, Body::Misconduct(equivocation(whom)));
            }
            8 if n % 11 == 0 => {
                let hit = outcome(OutcomeKind::Hit, address(n), &[whom]);
                logs.says(who, now, forged(&hit));
            }
            _ => {}
        }
    }
    logs
}

/// Puts statements into a set in some order, each again and again until it fits.
fn gathered(all: &[Statement], order: &[usize]) -> EvidenceSet {
    let mut set = EvidenceSet::new(genesis().mesh_id());
    for _ in 0..all.len() {
        for at in order {
            if let Some(statement) = all.get(*at) {
                set.insert(statement.clone(), usize::MAX);
            }
        }
        if set.len() == all.len() {
            break;
        }
    }
    set
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_same_frontiers_give_the_same_bits_in_whatever_order_statements_came(
        steps in proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..40),
        half: prop::sample::Index,
        order in Just((0..80_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let logs = random_logs(&steps);
        // The first epoch ends in the middle of it.
        let cut = half.index(logs.all.len() + 1);
        let first = gathered(&logs.all[..cut], &(0..80).collect::<Vec<_>>()).frontier();
        let last = logs.set.frontier();
        let all = members(5);
        let boundaries = [
            Boundary { frontier: &first, members: &all },
            Boundary { frontier: &last, members: &all },
        ];
        let expected = fold(&logs.set, &boundaries, &rules()).unwrap();
        let shuffled = gathered(&logs.all, &order);
        prop_assert_eq!(fold(&shuffled, &boundaries, &rules()).unwrap(), expected.clone());
        // A node that folded the first epoch before it had heard of anything of the second.
        let partial = gathered(&logs.all[..cut], &order);
        let mut early = Fold::new(rules());
        let mut checks = Checks::default();
        early.epoch(&partial, &first, &all, &mut checks, &mut |_| {}).unwrap();
        early.epoch(&shuffled, &last, &all, &mut checks, &mut |_| {}).unwrap();
        let early: Vec<_> = early.standings().clone().into_iter().collect();
        prop_assert_eq!(early, expected.clone());
        // Within the bounds, and no more than a newcomer.
        let params = Params::default();
        for (_, standing) in &expected {
            let weight = standing.weight(&params);
            prop_assert!(weight <= 100);
            prop_assert_eq!(weight == 0, !standing.proofs.is_empty());
            prop_assert!(standing.alpha <= 16 * u64::from(params.hits_per_epoch) * ONE);
        }
    }

    #[test]
    fn liars_below_a_third_move_no_honest_node_and_not_each_other(
        steps in proptest::collection::vec((0_u8..2, any::<u8>(), any::<u8>()), 1..60),
    ) {
        // Nodes 1 and 2 of seven say whatever they like; no signed votes of others are at hand but
        // those that everybody gave.
        let mut logs = Logs::default();
        for (n, (who, whom, what)) in (0_u8..).zip(&steps) {
            let (who, whom) = (1 + who, 1 + whom % 7);
            let now = T0 + u64::from(n);
            match what % 4 {
                0 => { logs.says(who, now, outcome(OutcomeKind::Hit, address(n), &[whom])); }
                1 => { logs.says(who, now, outcome(OutcomeKind::Miss, address(n), &[whom])); }
                2 => logs.question(who, whom, Say::Hostile, Say::Hostile),
                _ => logs.question(who, whom, Say::Harmless, Say::Hostile),
            }
        }
        for (node, standing) in standings(&logs, 7) {
            prop_assert_eq!((standing.alpha, standing.beta), (0, 0), "{}", node);
        }
    }
}
