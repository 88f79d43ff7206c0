//! Statements among several engines: everybody gets them, once, and forks are found.

use std::sync::Arc;

use super::*;
use crate::mesh::evidence::testing::{bodies, fork, outcome};
use crate::mesh::evidence::{
    Body, Misconduct, OutcomeKind, ProofKind, Ruling, Say, SignedVerdict, Statement, message,
};
use crate::mesh::trust::{Cause, TrustReport};

fn head(net: &Net, i: u8) -> crate::mesh::evidence::LogHead {
    net.engines[&i].evidence().head(&node_id(i))
}

/// What node `i` would state next.
fn next(net: &Net, i: u8, body: Body) -> Statement {
    let head = head(net, i);
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

fn statements(net: &mut Net, from: u8, to: u8, statements: Vec<Statement>) {
    let message = EvidenceMessage::Statements(statements);
    net.inject(from, to, &Message::Evidence(Box::new(message)));
}

fn converged(net: &Net) -> bool {
    let hashes: BTreeSet<Hash> = net
        .engines
        .values()
        .map(|e| e.evidence().frontier_hash())
        .collect();
    hashes.len() == 1
}

fn settle(net: &mut Net, seconds: u64) {
    for _ in 0..seconds {
        net.tick(S);
        net.run();
    }
}

fn report(net: &mut Net, i: u8) -> Arc<TrustReport> {
    net.engines[&i].trust()
}

fn decided(net: &mut Net) -> DecisionId {
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    net.engines[&1].active_block(&subject()).unwrap().id
}

fn outcome_at(net: &mut Net, i: u8, decision: DecisionId, kind: OutcomeKind) {
    net.input(
        i,
        Input::Outcome {
            decision,
            kind,
            packets: 100,
        },
    );
}

#[test]
fn outcomes_reach_everybody_and_count_for_who_confirmed() {
    let mut net = Net::four();
    let decision = decided(&mut net);
    for i in 1..=4 {
        outcome_at(&mut net, i, decision, OutcomeKind::Hit);
        // The same once more says nothing.
        outcome_at(&mut net, i, decision, OutcomeKind::Hit);
    }
    net.run();
    assert!(converged(&net));
    assert_eq!(net.engines[&4].evidence().len(), 4);
    let reports: Vec<_> = (1..=4).map(|i| report(&mut net, i)).collect();
    for report in &reports {
        for i in 1..=4 {
            let trust = &report.nodes[&node_id(i)];
            // The two that confirmed were reported on by three others each; concurring earns nothing.
            let hits = if i <= 2 { crate::mesh::trust::ONE } else { 0 };
            assert_eq!(trust.standing.alpha, hits, "node {i}");
            assert_eq!(trust.changes.len(), usize::from(i <= 2));
        }
        assert_eq!(
            report.nodes[&node_id(1)].changes[0].cause,
            Cause::OutcomeHit
        );
        let why = &report.nodes[&node_id(1)].changes[0].because;
        assert_eq!(why[0].decision, Some(decision));
    }
}

fn operators(net: &Net, i: u8) -> SignedVerdict {
    net.engines[&i]
        .draft_verdict(subject(), Ruling::FalsePositive, net.now)
        .unwrap()
        .sign(&operator())
}

#[test]
fn the_operators_verdict_lowers_the_same_weights_everywhere() {
    let mut net = Net::four();
    decided(&mut net);
    let signed = operators(&net, 3);
    net.input(3, Input::Verdict(Box::new(signed.clone())));
    net.run();
    for i in 1..=4 {
        let report = report(&mut net, i);
        let weights: Vec<u32> = (1..=4).map(|n| report.nodes[&node_id(n)].weight).collect();
        assert_eq!(weights, [33, 33, 100, 100], "by node {i}");
    }
    // Nobody takes one that the operator did not sign.
    let mut forged = signed;
    forged.signature[0] ^= 1;
    let before = net.engines[&3].evidence().len();
    net.input(3, Input::Verdict(Box::new(forged)));
    assert_eq!(net.engines[&3].evidence().len(), before);
    assert_eq!(net.refused(3, RefusalReason::BadSignature), 1);
}

#[test]
fn who_was_away_gets_what_it_lacks_and_no_more() {
    let mut net = Net::four();
    let decision = decided(&mut net);
    net.split(&[4], &[1, 2, 3]);
    for i in 1..=3 {
        outcome_at(&mut net, i, decision, OutcomeKind::Hit);
    }
    net.run();
    assert!(!converged(&net));
    for i in 1..=3 {
        net.connect(4, i);
    }
    settle(&mut net, 12);
    assert!(converged(&net));
    // Once more: both sides have the same and say so in one hash each.
    net.split(&[4], &[1, 2, 3]);
    net.outputs.clear();
    net.connect(4, 1);
    net.run();
    let evidence: Vec<Message> = net
        .outputs
        .values()
        .flatten()
        .filter_map(|output| match output {
            Output::Send { bytes, .. } => Message::from_bytes(bytes).ok(),
            _ => None,
        })
        .filter(|message| matches!(message, Message::Evidence(_)))
        .collect();
    assert_eq!(evidence.len(), 2, "{evidence:?}");
    for message in evidence {
        let Message::Evidence(message) = message else {
            continue;
        };
        assert!(matches!(*message, EvidenceMessage::Summary(_)));
    }
}

#[test]
fn a_long_log_comes_in_bounded_parts() {
    let mut net = Net::four();
    net.split(&[4], &[1, 2, 3]);
    for _ in 0..200 {
        let body = bodies()[5].clone();
        let statement = next(&net, 1, body);
        statements(&mut net, 1, 2, vec![statement.clone()]);
        // Node 1 learns its own log back, as after a lost disk.
        statements(&mut net, 2, 1, vec![statement]);
    }
    net.connect(4, 2);
    net.outputs.clear();
    settle(&mut net, 10);
    assert_eq!(net.engines[&4].evidence().head(&node_id(1)).size, 200);
}

#[test]
fn two_statements_under_one_number_are_proved_to_everybody() {
    let mut net = Net::four();
    let (a, b) = (
        next(&net, 3, bodies()[0].clone()),
        next(&net, 3, bodies()[3].clone()),
    );
    statements(&mut net, 3, 1, vec![a]);
    statements(&mut net, 3, 2, vec![b]);
    settle(&mut net, 20);
    let caught = |net: &Net, i: u8| {
        net.outputs.get(&i).into_iter().flatten().any(|output| {
            matches!(output, Output::Caught { node, proof: ProofKind::EvidenceFork }
                if *node == node_id(3))
        })
    };
    assert!(caught(&net, 1) || caught(&net, 2));
    for i in [1, 2, 4] {
        let report = report(&mut net, i);
        assert_eq!(report.nodes[&node_id(3)].weight, 0, "by node {i}");
        assert_eq!(report.nodes[&node_id(1)].weight, 100);
    }
    // One proof is enough: the others did not state it again.
    let proofs = net.engines[&1]
        .evidence()
        .iter()
        .filter(|s| matches!(s.body, Body::Misconduct(_)))
        .count();
    assert_eq!(proofs, 1);
}

#[test]
fn an_equivocating_voter_is_proved_in_the_evidence_too() {
    let mut net = Net::four();
    let block = block(subject());
    let confirm = vote_of(&net, 3, block, Verdict::Confirm, 1);
    let reject = vote_of(&net, 3, block, Verdict::Reject, 2);
    net.inject(3, 1, &confirm);
    net.inject(3, 1, &reject);
    settle(&mut net, 10);
    for i in [1, 2, 4] {
        assert_eq!(report(&mut net, i).nodes[&node_id(3)].weight, 0);
    }
}

#[test]
fn statements_of_others_are_checked() {
    let mut net = Net::four();
    let good = next(&net, 3, bodies()[0].clone());
    let mut unsigned = good.clone();
    unsigned.signed.signature[0] ^= 1;
    statements(&mut net, 2, 1, vec![unsigned]);
    assert_eq!(net.refused(1, RefusalReason::BadSignature), 1);
    let stranger = Statement::new(
        genesis().mesh_id(),
        &signer(9),
        node_id(9),
        (0, head(&net, 1).root),
        net.now,
        bodies()[0].clone(),
    );
    statements(&mut net, 2, 1, vec![stranger]);
    assert_eq!(net.refused(1, RefusalReason::UnknownAuthor), 1);
    assert!(net.engines[&1].evidence().is_empty());
    // Whoever brings it.
    statements(&mut net, 2, 1, vec![good]);
    assert_eq!(net.engines[&1].evidence().len(), 1);
}

#[test]
fn a_node_may_say_so_much_and_no_more() {
    let mut net = Net::four();
    let mut set = crate::mesh::evidence::EvidenceSet::new(genesis().mesh_id());
    let mut all = Vec::new();
    for _ in 0..600 {
        let head = set.head(&node_id(3));
        let at = (head.size, head.root);
        let body = bodies()[0].clone();
        let statement = Statement::new(
            genesis().mesh_id(),
            &signer(3),
            node_id(3),
            at,
            net.now,
            body,
        );
        set.insert(statement.clone(), usize::MAX);
        all.push(statement);
    }
    for some in all.chunks(100) {
        statements(&mut net, 3, 1, some.to_vec());
    }
    // 256, and one for each 30 of the 500 seconds since it joined.
    assert_eq!(net.engines[&1].evidence().len(), 256 + 499 / 30);
    assert!(net.refused(1, RefusalReason::TooMuchEvidence) > 0);
}

#[test]
fn a_question_is_asked_answered_and_revealed() {
    let mut net = Net::four();
    decided(&mut net);
    settle(&mut net, 40);
    let mut kinds = BTreeSet::new();
    for n in 0..30_u8 {
        net.tick(2 * S);
        net.input(
            1,
            Input::Question {
                seed: [n; 32].map(|b| b.wrapping_mul(37)),
            },
        );
        net.run();
    }
    let mut right = 0;
    for statement in net.engines[&2].evidence().iter() {
        if let Body::Reveal(reveal) = &statement.body {
            kinds.insert(reveal.expected);
            right += usize::from(reveal.answer.unwrap().say == reveal.expected);
        }
    }
    assert_eq!(right, 30);
    assert_eq!(kinds, BTreeSet::from([Say::Hostile, Say::Harmless]));
    assert!(net.engines[&1].local_trust().score(&node_id(2)) > 500);
    // Only one asker: nothing is vouched for.
    let report = report(&mut net, 3);
    assert!(report.nodes.values().all(|n| n.standing.alpha == 0));
}

#[test]
fn who_does_not_answer_is_not_asked_first_and_loses_no_weight() {
    let mut net = Net::four();
    settle(&mut net, 40);
    let mut out = Vec::new();
    let policy = TestPolicy::default();
    let now = net.now;
    let engine = net.engines.get_mut(&1).unwrap();
    engine.handle(now, Input::Question { seed: [5; 32] }, &policy, &mut out);
    for output in &out {
        if let Output::KeepEvidence { bytes, .. } = output {
            net.evidence.entry(1).or_default().push(bytes.clone());
        }
    }
    let asked = out.iter().find_map(|o| match o {
        Output::Send { to, .. } => Some(*to),
        _ => None,
    });
    settle(&mut net, 40);
    let asked = asked.unwrap();
    assert!(net.engines[&1].local_trust().score(&asked) < 500);
    assert_eq!(report(&mut net, 1).nodes[&asked].weight, 100);
}

#[test]
fn who_lost_its_log_learns_it_back_before_it_says_anything() {
    let mut net = Net::four();
    let decision = decided(&mut net);
    outcome_at(&mut net, 1, decision, OutcomeKind::Hit);
    net.run();
    settle(&mut net, 6);
    assert_eq!(head(&net, 1).size, 1);
    // Its disk is gone, and nobody is there yet.
    net.split(&[1], &[2, 3, 4]);
    net.add(1, records(&["a", "b", "c", "d"]));
    let remediated = Input::Remediated {
        node: node_id(2),
        decision: DecisionId([1; 32]),
        succeeded: true,
    };
    net.input(1, remediated);
    assert_eq!(
        head(&net, 1).size,
        0,
        "it does not know how long its log is"
    );
    for i in 2..=4 {
        net.connect(1, i);
    }
    settle(&mut net, 20);
    assert_eq!(head(&net, 1).size, 2);
    assert!(converged(&net));
    for i in 1..=4 {
        assert_eq!(report(&mut net, i).nodes[&node_id(1)].weight, 100);
    }
}

#[test]
fn statements_come_back_from_the_disk() {
    let mut net = Net::four();
    let decision = decided(&mut net);
    for i in 1..=4 {
        outcome_at(&mut net, i, decision, OutcomeKind::Hit);
    }
    net.run();
    settle(&mut net, 6);
    let before = net.engines[&2].evidence().frontier();
    let mut again = engine(2, records(&["a", "b", "c", "d"]));
    for bytes in &net.evidence[&2] {
        again.restore_statement(bytes).unwrap();
    }
    again.evidence_restored(true);
    assert_eq!(again.evidence().frontier(), before);
    assert_eq!(
        format!("{:?}", again.trust()),
        format!("{:?}", report(&mut net, 2))
    );
}

#[test]
fn a_fork_proof_that_is_none_is_nobodys_trouble() {
    let mut net = Net::four();
    // Node 3 states a proof about node 4 that does not hold: it proves itself a forger.
    let Misconduct::EvidenceFork(mut heads) = fork(4) else {
        panic!("a fork");
    };
    heads.0.signature[0] ^= 1;
    let statement = next(&net, 3, Body::Misconduct(Misconduct::EvidenceFork(heads)));
    statements(&mut net, 3, 1, vec![statement]);
    settle(&mut net, 10);
    let report = report(&mut net, 2);
    assert_eq!(report.nodes[&node_id(4)].weight, 100);
    assert_eq!(report.nodes[&node_id(3)].weight, 0);
}

#[test]
fn what_several_peers_have_is_asked_of_one() {
    let mut net = Net::four();
    net.split(&[4], &[1, 2, 3]);
    let decision = decided(&mut net);
    for i in 1..=3 {
        outcome_at(&mut net, i, decision, OutcomeKind::Hit);
    }
    net.run();
    net.outputs.clear();
    for i in 1..=3 {
        net.connect(4, i);
    }
    settle(&mut net, 9);
    assert!(converged(&net));
    let received = [1, 2, 3]
        .iter()
        .flat_map(|i| net.outputs.get(i).into_iter().flatten())
        .filter_map(|output| match output {
            Output::Send { to, bytes } if *to == node_id(4) => Message::from_bytes(bytes).ok(),
            _ => None,
        })
        .filter_map(|message| match message {
            Message::Evidence(message) => Some(*message),
            _ => None,
        })
        .map(|message| match message {
            EvidenceMessage::Statements(statements) => statements.len(),
            _ => 0,
        })
        .sum::<usize>();
    assert_eq!(received, 3, "each statement once");
}

#[test]
fn a_ledger_fork_becomes_a_statement_that_takes_its_nodes_weight_everywhere() {
    let mut net = Net::four();
    settle(&mut net, 2);
    let Misconduct::LedgerFork(proof) = crate::mesh::evidence::testing::ledger_fork(3) else {
        panic!("a ledger fork");
    };
    net.input(1, Input::LedgerFork(proof.clone()));
    settle(&mut net, 10);
    for i in 1..=4 {
        let trust = report(&mut net, i);
        let standing = &trust.nodes[&node_id(3)].standing;
        assert_eq!(standing.proofs, [ProofKind::LedgerFork], "by node {i}");
        assert_eq!(trust.nodes[&node_id(3)].weight, 0);
    }
    assert!(converged(&net));
    let stated = net.engines[&2]
        .evidence()
        .iter()
        .filter(|s| matches!(s.body, Body::Misconduct(_)))
        .count();
    assert_eq!(
        stated, 1,
        "each waits its turn, and one statement is enough"
    );
    // One that does not hold proves who states it a forger.
    let mut bytes = proof.to_bytes();
    let last = bytes.len() - 20;
    bytes[last] = if bytes[last] == b'A' { b'B' } else { b'A' };
    if let Ok(forged) = LedgerForkProof::from_bytes(&bytes) {
        let body = Body::Misconduct(Misconduct::LedgerFork(Box::new(forged)));
        let statement = next(&net, 4, body);
        statements(&mut net, 4, 1, vec![statement]);
        settle(&mut net, 10);
        let trust = report(&mut net, 2);
        assert_eq!(
            trust.nodes[&node_id(4)].standing.proofs,
            [ProofKind::ForgedEvidence]
        );
    }
}

#[test]
fn a_ledger_fork_from_before_a_restart_is_stated_after_it() {
    let mut net = Net::four();
    let Misconduct::LedgerFork(proof) = crate::mesh::evidence::testing::ledger_fork(3) else {
        panic!("a ledger fork");
    };
    let engine = net.engines.get_mut(&2).unwrap();
    engine.restore_fork(&proof.to_bytes()).unwrap();
    settle(&mut net, 10);
    assert_eq!(report(&mut net, 4).nodes[&node_id(3)].weight, 0);
}

#[test]
fn a_number_that_no_log_reaches_is_refused_before_it_is_counted_on() {
    let mut net = Net::four();
    let mut statement = next(&net, 3, bodies()[0].clone());
    statement.signed.head.sequence = u64::MAX;
    statements(&mut net, 4, 1, vec![statement.clone()]);
    statement.signed.head.sequence = u64::MAX - 1;
    statements(&mut net, 4, 1, vec![statement]);
    settle(&mut net, 20);
    assert_eq!(head(&net, 1).size, 0);
    assert!(converged(&net));
}

/// A log of node 3 with so many statements, a first and others.
fn log_of_three(net: &Net, first: &Body, others: &Body, many: usize) -> Vec<Statement> {
    let mesh = genesis().mesh_id();
    let mut set = crate::mesh::evidence::EvidenceSet::new(mesh);
    for n in 0..many {
        let head = set.head(&node_id(3));
        let at = (head.size, head.root);
        let body = if n == 0 { first } else { others };
        let said = Statement::new(mesh, &signer(3), node_id(3), at, net.now, body.clone());
        set.insert(said, usize::MAX);
    }
    set.iter().map(|s| Statement::clone(s)).collect()
}

/// Requests and statements that honest nodes have sent each other about node 3.
fn talk_about_three(net: &Net) -> (usize, usize) {
    let outputs = [1, 2, 4].into_iter().filter_map(|i| net.outputs.get(&i));
    let mut talk = (0, 0);
    for output in outputs.flatten() {
        let Output::Send { bytes, .. } = output else {
            continue;
        };
        let Ok(Message::Evidence(message)) = Message::from_bytes(bytes) else {
            continue;
        };
        match *message {
            EvidenceMessage::Request(ranges) => {
                talk.0 += ranges.iter().filter(|r| r.author == node_id(3)).count();
            }
            EvidenceMessage::Statements(said) => {
                let of_three = said.iter().filter(|s| s.head().author == node_id(3));
                talk.1 += of_three.count();
            }
            _ => {}
        }
    }
    talk
}

/// Node 3 shows node 1, which is cut off, another log than the others. When they meet, the honest do not ask each other
/// for it again and again.
fn two_histories(short: Vec<Statement>, long: Vec<Statement>) {
    let mut net = Net::four();
    net.split(&[1], &[2, 3, 4]);
    statements(&mut net, 3, 1, short);
    let long: Vec<_> = long.into_iter().map(Arc::new).collect();
    for message in message::pack(&long, usize::MAX) {
        net.inject(3, 2, &Message::Evidence(Box::new(message)));
    }
    net.run();
    settle(&mut net, 3);
    net.outputs.clear();
    for peer in [2, 4] {
        net.connect(1, peer);
    }
    net.run();
    settle(&mut net, 10);
    assert_eq!(report(&mut net, 1).nodes[&node_id(3)].weight, 0, "caught");
    let (asked, said) = talk_about_three(&net);
    assert!(
        asked <= 8 && said <= 5 * long.len(),
        "{asked} asked, {said} said"
    );
    // Then there is nothing more to say about it.
    net.outputs.clear();
    settle(&mut net, 60);
    assert_eq!(talk_about_three(&net), (0, 0));
}

#[test]
fn two_histories_are_not_asked_for_again_and_again() {
    let net = Net::four();
    let short = log_of_three(&net, &bodies()[0], &bodies()[0], 3);
    two_histories(short, log_of_three(&net, &bodies()[3], &bodies()[0], 40));
}

#[test]
fn a_history_that_fills_an_answer_is_not_asked_for_again_and_again() {
    // Of an answer's messages only the first begins with what does not fit; the others look like what follows a gap.
    let net = Net::four();
    let large = outcome(OutcomeKind::Hit, subject(), &[1, 2, 3, 4, 5, 6, 7]);
    let short = log_of_three(&net, &bodies()[0], &bodies()[0], 3);
    two_histories(short, log_of_three(&net, &bodies()[3], &large, 200));
}
