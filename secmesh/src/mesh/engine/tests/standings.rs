//! Evidence becomes weight: the next epoch's, the same for everybody, and the votes weigh it.

use proptest::prelude::*;

use super::epochs::removal;
use super::*;
use crate::mesh::evidence::testing::{equivocation, outcome, verdict};
use crate::mesh::evidence::{Body, Frontier, OutcomeKind, Ruling, Statement};
use crate::mesh::genesis::Params;

/// What node `i` would state next by what node `at` knows of it.
fn next(net: &Net, at: u8, i: u8, body: Body) -> Statement {
    let head = net.engines[&at].evidence().head(&node_id(i));
    let at = (head.size, head.root);
    Statement::new(
        genesis().mesh_id(),
        &signer(i),
        node_id(i),
        at,
        net.now,
        body,
    )
}

/// The first epoch counts from the first tick.
pub(super) fn begun(mut net: Net) -> Net {
    net.tick(S);
    net.run();
    net
}

pub(super) fn four() -> Net {
    begun(Net::four())
}

fn give(net: &mut Net, from: u8, to: u8, statement: &Statement) {
    let message = EvidenceMessage::Statements(vec![statement.clone()]);
    net.inject(from, to, &Message::Evidence(Box::new(message)));
}

/// Everybody hears at once that node `i` states something.
pub(super) fn says(net: &mut Net, i: u8, body: Body) {
    let statement = next(net, i, i, body);
    for to in net.ids() {
        give(net, i, to, &statement);
    }
}

fn address(i: u8) -> Prefix {
    format!("198.51.100.{i}").parse().unwrap()
}

fn weights(net: &Net, i: u8) -> Vec<u32> {
    let roster = net.engines[&i].roster();
    (1..=9)
        .filter_map(|n| roster.get(&node_id(n)))
        .map(|m| m.weight)
        .collect()
}

fn tips(net: &Net) -> BTreeSet<Hash> {
    net.engines
        .values()
        .map(|e| e.roster().epoch_hash())
        .collect()
}

fn certified(net: &Net, i: u8) -> Frontier {
    net.engines[&i].epoch().unwrap().record.frontier.clone()
}

pub(super) fn seconds(net: &mut Net, count: u64) {
    for _ in 0..count * 2 {
        net.tick(S / 2);
        net.run();
    }
}

pub(super) fn an_epoch(net: &mut Net) {
    net.tick(u64::from(Params::default().epoch_s) * S);
    net.run();
    seconds(net, 12);
}

#[test]
fn a_verdict_lowers_the_weight_of_who_confirmed_by_a_tenth_of_all_per_epoch_and_then_it_heals() {
    let mut net = four();
    says(
        &mut net,
        1,
        verdict(subject(), Ruling::FalsePositive, &[2], T0),
    );
    let mut seen = Vec::new();
    for _ in 0..20 {
        an_epoch(&mut net);
        assert_eq!(tips(&net).len(), 1);
        seen.push(weights(&net, 3)[1]);
    }
    // 400 / 10, then 360 / 10 reach the target of ⌊200 · 1/(1 + β + 1)⌋; then the decay of β carries it up.
    assert_eq!(seen[..4], [60, 34, 36, 37], "{seen:?}");
    assert!(seen[3..].is_sorted() && seen[19] > 55, "{seen:?}");
    assert_eq!(weights(&net, 1)[0], 100);
}

#[test]
fn votes_weigh_what_the_epoch_says() {
    let mut net = begun(Net::new(&["a", "b", "c", "d", "e", "f", "g"]));
    for n in 1..=3 {
        let body = verdict(
            address(n),
            Ruling::FalsePositive,
            &[5, 6, 7],
            T0 + u64::from(n),
        );
        says(&mut net, 1, body);
    }
    for _ in 0..6 {
        an_epoch(&mut net);
    }
    let now = weights(&net, 1);
    let distrusted: u32 = now[4..].iter().sum();
    assert_eq!(now[..4], [100; 4], "{now:?}");
    // Three of seven are more than a third at 100 each, and less by what the epoch says.
    assert!(u64::from(distrusted) < net.roster().t_lo(), "{now:?}");
    net.split(&[5, 6, 7], &[1, 2, 3, 4]);
    for i in [5, 6, 7] {
        net.sees(i, subject());
    }
    net.run();
    for i in [5, 6, 7] {
        assert!(net.decided(i, subject()).is_empty(), "node {i}");
        assert_eq!(net.engines[&i].quorum().state, QuorumLevel::Isolated);
    }
    // Two of those who kept theirs do.
    net.sees(1, subject());
    net.sees(4, subject());
    net.run();
    assert!(net.blocks(1, subject()) && net.blocks(4, subject()));
}

#[test]
fn who_lacks_the_proposers_evidence_fetches_it_before_it_votes() {
    let mut net = four();
    // Only the proposer of epoch 2, third in the order, has heard of it.
    let order: Vec<NodeId> = net.roster().members().map(|(n, _)| *n).collect();
    let proposer = order[2];
    let at = (1..=4).find(|i| node_id(*i) == proposer).unwrap();
    let author = if at == 1 { 2 } else { 1 };
    for n in 0..100 {
        let body = outcome(OutcomeKind::Hit, address(n), &[4]);
        let statement = next(&net, at, author, body);
        give(&mut net, author, at, &statement);
    }
    // No comparison comes first.
    let length = u64::from(Params::default().epoch_s) * S;
    net.now += length + S;
    net.outputs.clear();
    for i in net.ids() {
        let engine = net.engines.get_mut(&i).unwrap();
        engine.statements.sync.wait_from(net.now);
    }
    for i in net.ids() {
        net.input(i, Input::Tick);
    }
    net.run();
    assert_eq!(tips(&net).len(), 1);
    assert_eq!(net.roster().epoch(), 2);
    assert_eq!(certified(&net, 4).size(&node_id(author)), 100);
    for engine in net.engines.values() {
        let round = engine.epoch().unwrap().precommits.round;
        assert_eq!(round, 0, "in the first round");
    }
}

#[test]
fn who_wrote_two_histories_does_not_keep_the_others_from_agreeing() {
    let mut net = four();
    let (a, b) = (
        next(&net, 1, 4, outcome(OutcomeKind::Hit, address(1), &[1])),
        next(&net, 1, 4, outcome(OutcomeKind::Hit, address(2), &[1])),
    );
    // One history for nodes 1 and 4, another for 2 and 3; and an epoch is due before anybody has compared.
    net.tick(u64::from(Params::default().epoch_s) * S - S / 2);
    net.run();
    for to in [1, 4] {
        give(&mut net, 4, to, &a);
    }
    for to in [2, 3] {
        give(&mut net, 4, to, &b);
    }
    for _ in 0..3 {
        an_epoch(&mut net);
    }
    seconds(&mut net, 30);
    assert_eq!(tips(&net).len(), 1);
    assert!(net.roster().epoch() >= 3, "{}", net.roster().epoch());
    for i in 1..=3 {
        let trust = net.engines[&i].trust();
        assert!(trust.whole, "node {i}");
        assert_eq!(trust.nodes[&node_id(4)].weight, 0, "node {i}");
    }
    assert!(weights(&net, 1)[3] < 100, "the epochs act on it");
}

#[test]
fn another_history_than_the_certified_one_is_given_up() {
    let mut net = four();
    net.split(&[3], &[1, 2, 4]);
    let (a, b) = (
        next(&net, 1, 4, outcome(OutcomeKind::Hit, address(1), &[1])),
        next(&net, 1, 4, outcome(OutcomeKind::Hit, address(2), &[1])),
    );
    for to in [1, 2, 4] {
        give(&mut net, 4, to, &a);
    }
    give(&mut net, 4, 3, &b);
    an_epoch(&mut net);
    assert_eq!(certified(&net, 1).size(&node_id(4)), 1);
    net.connect_all();
    seconds(&mut net, 30);
    let root = certified(&net, 1).logs()[&node_id(4)].root;
    assert_eq!(net.engines[&3].evidence().head(&node_id(4)).root, root);
    an_epoch(&mut net);
    assert!(net.engines[&3].trust().whole);
    assert_eq!(tips(&net).len(), 1);
}

#[test]
fn another_history_that_is_shorter_than_the_certified_one_is_given_up_too() {
    let mut net = four();
    net.split(&[3], &[1, 2, 4]);
    let other = next(&net, 3, 4, outcome(OutcomeKind::Hit, address(9), &[1]));
    give(&mut net, 4, 3, &other);
    for n in 1..=3 {
        let said = next(&net, 1, 4, outcome(OutcomeKind::Hit, address(n), &[1]));
        for to in [1, 2] {
            give(&mut net, 4, to, &said);
        }
        net.run();
    }
    an_epoch(&mut net);
    assert_eq!(certified(&net, 1).size(&node_id(4)), 3);
    assert_eq!(net.engines[&3].evidence().head(&node_id(4)).size, 1);
    net.connect_all();
    seconds(&mut net, 30);
    let head = certified(&net, 1).logs()[&node_id(4)];
    assert_eq!(net.engines[&3].evidence().head(&node_id(4)), head);
    assert!(net.engines[&3].trust().whole);
}

#[test]
fn who_joins_later_learns_what_nodes_that_have_left_stated_and_votes() {
    let mut net = begun(Net::new(&["a", "b", "c", "d", "e"]));
    says(
        &mut net,
        5,
        verdict(subject(), Ruling::FalsePositive, &[2], T0),
    );
    an_epoch(&mut net);
    net.input(1, Input::Remove(Box::new(removal(5, net.now))));
    seconds(&mut net, 8);
    assert_eq!(net.roster().len(), 4);
    net.engines.remove(&5);
    // The fixtures' tickets are out of date by now.
    let ticket = Signer::from_secret(&[0x70; 32]);
    let mut grant = grant(0x70).grant;
    grant.expires_unix_us = net.now + 600 * S;
    let joiner = record(6, "f").admit_by_ticket(&signer(6), grant.sign(&operator()), &ticket);
    net.input(1, Input::Admit(Box::new(joiner)));
    net.run();
    let known = net.engines[&1].admissions().cloned().collect();
    net.add(6, known);
    net.connect_all();
    seconds(&mut net, 20);
    assert_eq!(net.engines[&6].evidence().head(&node_id(5)).size, 1);
    for _ in 0..4 {
        an_epoch(&mut net);
    }
    assert_eq!(tips(&net).len(), 1);
    let (old, new) = (net.engines[&1].trust(), net.engines[&6].trust());
    assert!(new.whole);
    assert_eq!(format!("{old:?}"), format!("{new:?}"));
}

#[test]
fn standings_and_weights_are_the_same_after_a_crash_of_everybody() {
    let mut net = four();
    says(
        &mut net,
        1,
        verdict(subject(), Ruling::FalsePositive, &[2], T0),
    );
    for _ in 0..3 {
        an_epoch(&mut net);
    }
    let before = format!("{:?}", net.engines[&3].trust());
    let tip = tips(&net);
    for i in 1..=4 {
        net.crash(i);
    }
    assert_eq!(tips(&net), tip);
    assert_eq!(format!("{:?}", net.engines[&3].trust()), before);
    net.links.clear();
    net.connect_all();
    net.run();
    an_epoch(&mut net);
    assert_eq!(tips(&net).len(), 1);
    assert!(net.roster().epoch() >= 5);
}

#[test]
fn nobody_freezes_an_honest_log_by_a_proof_that_is_none() {
    let mut net = four();
    let mut forged = equivocation(2);
    if let crate::mesh::evidence::Misconduct::Equivocation(proof) = &mut forged {
        let mut bytes = proof.to_bytes();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        **proof = EquivocationProof::from_bytes(&bytes).unwrap();
    }
    says(&mut net, 4, Body::Misconduct(forged));
    says(&mut net, 2, outcome(OutcomeKind::Hit, subject(), &[1]));
    an_epoch(&mut net);
    assert_eq!(certified(&net, 1).size(&node_id(2)), 1);
}

/// What a random schedule says: bodies by their authors, in the order in which each said them.
fn body_of(n: u8, whom: u8, what: u8) -> Body {
    match what % 4 {
        0 => outcome(OutcomeKind::Hit, address(n), &[whom]),
        1 => outcome(OutcomeKind::Miss, address(n), &[whom]),
        2 => verdict(
            address(n),
            Ruling::FalsePositive,
            &[whom],
            T0 + u64::from(n),
        ),
        _ => verdict(address(n), Ruling::TruePositive, &[whom], T0 + u64::from(n)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Statements reach the nodes in any order, at any time between epochs; whoever holds the same frontier
    /// computes the same record, and in the end all weights and standings are the same bits.
    #[test]
    fn the_same_frontier_gives_the_same_bits_whatever_came_first(
        said in proptest::collection::vec((1..=4_u8, 1..=4_u8, any::<u8>(), 0..3_usize), 1..24),
        shuffled in Just((0..96_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut net = four();
        let mut logs = crate::mesh::evidence::testing::Logs::default();
        for epoch in 0..3 {
            let mut told = Vec::new();
            for (n, (who, whom, what, _)) in (0_u8..).zip(&said).filter(|(_, s)| s.3 == epoch) {
                logs.says(*who, net.now, body_of(n, *whom, *what));
                let said = logs.all.last().unwrap().clone();
                // Who says it has it.
                give(&mut net, *who, *who, &said);
                told.push(said);
            }
            // To each node, each statement, in one shuffled order; what comes too early is fetched.
            for at in &shuffled {
                let (to, which) = (1 + u8::try_from(at % 4).unwrap(), at / 4);
                if let Some(statement) = told.get(which) {
                    let from = if to == 1 { 2 } else { 1 };
                    give(&mut net, from, to, statement);
                }
            }
            an_epoch(&mut net);
            prop_assert_eq!(tips(&net).len(), 1);
        }
        seconds(&mut net, 20);
        prop_assert!(net.roster().epoch() >= 4);
        let first = format!("{:?}", net.engines[&1].trust());
        for engine in net.engines.values() {
            prop_assert!(engine.trust().whole);
            prop_assert_eq!(&format!("{:?}", engine.trust()), &first);
        }
        // A node that joins knowing nothing, given statements and epochs in its own order.
        let mut late = engine(1, records(&["a", "b", "c", "d"]));
        let stored = StoredEpochs::from_bytes(&net.epochs[&1]).unwrap();
        for statement in logs.all.iter().rev().chain(&logs.all).cycle().take(24 * 48) {
            late.restore_statement(&statement.to_bytes()).unwrap();
        }
        late.restore_epochs(stored).unwrap();
        prop_assert_eq!(&format!("{:?}", late.trust()), &first);
    }
}
