//! Who was taken back: what it did before is forgiven, and what it does after that is not.

use super::*;
use crate::ledger::fork::LedgerForkProof;
use crate::mesh::epoch::{EpochProof, EpochVote, Step};
use crate::mesh::evidence::Misconduct;
use crate::mesh::evidence::testing::ledger_fork_at;

/// Two votes of node 4 that contradict each other, signed now.
fn lie(net: &Net) -> EquivocationProof {
    let vote = |verdict, sequence| match vote_of(net, 4, block(subject()), verdict, sequence) {
        Message::Vote(ballot) => ballot.signed,
        _ => panic!("a vote"),
    };
    EquivocationProof::new(vote(Verdict::Confirm, 700), vote(Verdict::Reject, 701)).unwrap()
}

/// The same about an epoch.
fn epoch_lie(net: &Net, number: u64, round: u32) -> EpochProof {
    let vote = |value| {
        EpochVote {
            mesh: genesis().mesh_id(),
            number,
            previous: net.roster().epoch_hash(),
            round,
            step: Step::Precommit,
            value,
            voter: node_id(4),
            incarnation: 1,
        }
        .sign(&signer(4))
    };
    EpochProof::new(vote(None), vote(Some(Hash([7; 32])))).unwrap()
}

fn fork(net: &Net) -> LedgerForkProof {
    match ledger_fork_at(4, net.now / S) {
        Misconduct::LedgerFork(proof) => *proof,
        _ => panic!("a ledger fork"),
    }
}

fn out(net: &Net) -> bool {
    let all = (1..=3).all(|i| net.cut_off(i, 4));
    assert!(all || (1..=3).all(|i| !net.cut_off(i, 4)));
    all
}

/// Cut off for this, and taken back by the operator.
fn pardoned(prove: impl Fn(&mut Net)) -> Net {
    let mut net = Net::four();
    prove(&mut net);
    net.run();
    assert!(out(&net), "for the first one");
    net.order(2, Action::readmit(node_id(4)));
    assert!(!out(&net));
    // The same again says nothing new, nor in a later minute.
    prove(&mut net);
    net.settle(130);
    assert!(!out(&net), "for the same");
    net
}

#[test]
fn a_new_contradiction_counts_and_the_old_one_does_not() {
    let first = Rc::new(RefCell::new(None));
    let net = &mut pardoned(|net| {
        let proof = *first.borrow_mut().get_or_insert_with(|| lie(net));
        net.inject(1, 2, &Message::Equivocation(Box::new(proof)));
    });
    let second = Message::Equivocation(Box::new(lie(net)));
    net.inject(1, 2, &second);
    net.run();
    assert!(out(net));
}

#[test]
fn a_new_lie_about_an_epoch_counts_and_one_of_before_does_not() {
    let mut net = pardoned(|net| {
        let proof = epoch_lie(net, 2, 0);
        net.inject(1, 2, &Message::EpochLie(Box::new(proof)));
    });
    // What was agreed on when it was taken back.
    let proof = epoch_lie(&net, 2, 1);
    net.inject(1, 2, &Message::EpochLie(Box::new(proof)));
    net.settle(6);
    assert!(!out(&net));
    let proof = epoch_lie(&net, 3, 0);
    net.inject(1, 2, &Message::EpochLie(Box::new(proof)));
    net.run();
    assert!(out(&net));
}

#[test]
fn a_new_fork_of_its_ledger_counts_and_what_contradicts_the_old_one_does_not() {
    let first = Rc::new(RefCell::new(None));
    let mut net = pardoned(|net| {
        let proof = first.borrow_mut().get_or_insert_with(|| fork(net)).clone();
        net.input(1, Input::LedgerFork(Box::new(proof)));
    });
    let proof = fork(&net);
    net.input(1, Input::LedgerFork(Box::new(proof)));
    net.run();
    assert!(out(&net));
}

#[test]
fn a_restart_forgives_nothing_that_came_after_the_readmission() {
    for new in [false, true] {
        let mut net = Net::four();
        let old = lie(&net);
        net.inject(1, 2, &Message::Equivocation(Box::new(old)));
        net.run();
        net.order(2, Action::readmit(node_id(4)));
        let kept = net.warrants(1);
        net.settle(130);
        let mut proofs = vec![old];
        if new {
            // It is known, and the breaker keeps the others from acting on it.
            proofs.push(lie(&net));
        }
        net.crash(1);
        let now = net.now;
        let engine = net.engines.get_mut(&1).unwrap();
        // As the agent does: proofs first, in any order.
        for proof in proofs.iter().rev() {
            engine.restore_proof(&proof.to_bytes()).unwrap();
        }
        for (bytes, at) in kept {
            engine.restore_decision(now, &bytes, at, None).unwrap();
        }
        assert!(!net.cut_off(1, 4));
        // Long enough to look through what was stated, too.
        net.settle(70);
        let held = net.engines[&1].suspicions(net.now);
        let held: Vec<NodeId> = held.iter().map(|s| s.node).collect();
        assert_eq!(held.contains(&node_id(4)), new, "{held:?}");
    }
}
