//! Nodes that are cut off, and taken back.

use proptest::prelude::*;

use super::*;
use crate::mesh::cert::{CertError, CertVerdict};
use crate::mesh::decision::{OperatorRelease, Warrant};
use crate::mesh::vote::ActionKind;

fn against(i: u8, class: AttackClass) -> Action {
    Action::quarantine(node_id(i), class)
}

impl Net {
    pub(super) fn cut_off(&self, i: u8, node: u8) -> bool {
        self.engines[&i].is_quarantined(&node_id(node))
    }

    /// Node `i` sees node `bad` attack.
    pub(super) fn is_attacked(&mut self, i: u8, bad: u8) {
        let input = Input::NodeAttacks {
            node: node_id(bad),
            evidence_root: Hash([i; 32]),
            detector_hash: Hash([0xdd; 32]),
        };
        self.input(i, input);
    }

    /// Node 4 says one thing and another to node 1.
    pub(super) fn equivocate(&mut self) {
        for (sequence, verdict) in [(1001, Verdict::Confirm), (1002, Verdict::Reject)] {
            let vote = vote_of(self, 4, block(subject()), verdict, sequence);
            self.inject(4, 1, &vote);
        }
        self.run();
    }

    /// The operator's word about node `node`, handed in at node `i`.
    pub(super) fn order(&mut self, i: u8, action: Action) {
        let draft = self.engines[&i].draft_order(action, self.now, 60);
        self.input(i, Input::Order(Box::new(draft.sign(&operator()))));
        self.run();
    }

    pub(super) fn settle(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.tick(S);
            self.run();
        }
    }

    pub(super) fn warrants(&self, i: u8) -> Vec<(Vec<u8>, u64)> {
        self.engines[&i]
            .decisions()
            .map(|d| (d.warrant.to_bytes(), d.certified_unix_us))
            .collect()
    }
}

#[test]
fn who_contradicts_itself_is_cut_off_by_the_three_others() {
    let mut net = Net::four();
    net.equivocate();
    let mut ids = BTreeSet::new();
    for i in 1..=3 {
        assert!(net.cut_off(i, 4), "node {i}");
        let decision = net.engines[&i].quarantine_of(&node_id(4)).unwrap();
        ids.insert(decision.id);
        assert_eq!(decision.action, against(4, AttackClass::Misconduct));
        let verdict = decision.verdict.as_ref().unwrap();
        assert_eq!(
            (verdict.needed, verdict.total, verdict.weight),
            (267, 400, 300)
        );
        assert!(verdict.votes.iter().all(|v| v.voter != node_id(4)));
        let quorum = net.engines[&i].quorum();
        assert_eq!(
            (
                quorum.reachable_weight,
                quorum.total_weight,
                quorum.quarantined_weight
            ),
            (300, 400, 100)
        );
        assert_eq!(quorum.state, QuorumLevel::Full);
        let told = net.outputs[&i].iter();
        assert_eq!(
            told.filter(|o| matches!(o, Output::Quarantine(_))).count(),
            1
        );
    }
    assert_eq!(ids.len(), 1);
    // They go on, and nothing of it is taken any more.
    let before = net.refused(1, RefusalReason::Quarantined);
    let vote = vote_of(
        &net,
        4,
        block("203.0.113.9".parse().unwrap()),
        Verdict::Confirm,
        2000,
    );
    net.inject(4, 1, &vote);
    assert_eq!(net.refused(1, RefusalReason::Quarantined), before + 1);
    for i in [1, 2] {
        net.sees(i, subject());
        net.run();
    }
    assert!((1..=3).all(|i| net.blocks(i, subject())));
    net.nobody_contradicts_itself();
}

#[test]
fn who_attacks_two_of_four_is_cut_off_and_who_attacks_one_is_not() {
    let mut net = Net::four();
    net.is_attacked(1, 4);
    net.run();
    net.settle(20);
    assert!((1..=4).all(|i| !net.cut_off(i, 4)), "on one node's word");
    net.is_attacked(2, 4);
    net.run();
    assert!((1..=3).all(|i| net.cut_off(i, 4)));
    assert_eq!(net.own_verdicts(3), [Verdict::Concur]);
}

#[test]
fn liars_below_a_third_cut_nobody_off() {
    // Two of seven: both say that they saw node 3 attack, from two zones.
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    for i in [1, 2] {
        net.is_attacked(i, 3);
        net.run();
    }
    net.settle(90);
    for i in 1..=7 {
        assert!(!net.cut_off(i, 3), "node {i} believes two liars");
    }
    for i in 4..=7 {
        assert_eq!(net.own_verdicts(i), [], "node {i} agreed with two liars");
    }
    // With a third witness one of the three is honest.
    net.is_attacked(5, 3);
    net.run();
    net.settle(6);
    assert!((1..=7).filter(|i| *i != 3).all(|i| net.cut_off(i, 3)));
}

#[test]
fn the_circuit_breaker_and_the_budget_hold_and_the_operator_overrides_them() {
    let mut net = Net::four();
    net.disconnect(1, 3);
    net.is_attacked(1, 4);
    assert_eq!(net.refused(1, RefusalReason::CircuitBreaker), 1);
    assert_eq!(net.own_verdicts(1), [], "voted with 200 of 267 left");
    net.order(1, OperatorRelease::quarantine(node_id(4)));
    assert!(net.cut_off(1, 4) && net.cut_off(2, 4));

    let zones = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let mut net = Net::new(&zones);
    for bad in [8, 9, 10] {
        for i in 1..=4 {
            net.is_attacked(i, bad);
            net.run();
        }
    }
    assert!((1..=7).all(|i| net.cut_off(i, 8) && net.cut_off(i, 9)));
    assert!(
        (1..=7).all(|i| !net.cut_off(i, 10)),
        "three within the hour"
    );
    assert!(net.refused(1, RefusalReason::OverBudget) > 0);
    net.now += 3_700 * S;
    net.settle(1);
    for i in 1..=4 {
        net.is_attacked(i, 10);
        net.run();
    }
    net.settle(12);
    assert!((1..=7).all(|i| net.cut_off(i, 10)), "an hour later");
}

#[test]
fn the_operator_takes_back_and_what_was_known_is_forgiven() {
    let mut net = Net::four();
    net.equivocate();
    net.settle(70);
    // Unsigned, against proof: no.
    net.input(1, Input::OperatorReadmit { node: node_id(4) });
    net.run();
    net.settle(5);
    assert!((1..=3).all(|i| net.cut_off(i, 4)));
    assert!(net.own_verdicts(2).contains(&Verdict::Reject));
    net.order(2, Action::readmit(node_id(4)));
    for i in 1..=3 {
        assert!(!net.cut_off(i, 4), "node {i}");
        let told = net.outputs[&i].iter();
        assert_eq!(told.filter(|o| matches!(o, Output::Readmit(_))).count(), 1);
    }
    net.settle(200);
    assert!(
        (1..=3).all(|i| !net.cut_off(i, 4)),
        "cut off again for the same"
    );
    // Something new counts.
    for i in [1, 2] {
        net.is_attacked(i, 4);
        net.run();
    }
    assert!((1..=3).all(|i| net.cut_off(i, 4)));
}

#[test]
fn without_proof_two_thirds_take_back() {
    let mut net = Net::four();
    for i in [1, 2] {
        net.is_attacked(i, 4);
        net.run();
    }
    assert!(net.cut_off(3, 4));
    // Ten minutes later nobody has anything against it any more.
    net.now += 601 * S;
    net.settle(1);
    net.input(3, Input::OperatorReadmit { node: node_id(4) });
    net.run();
    assert!(net.cut_off(3, 4), "on one node's word");
    net.settle(4);
    assert!((1..=3).all(|i| !net.cut_off(i, 4)));
}

#[test]
fn who_was_away_learns_of_it_and_an_old_quarantine_does_not_come_back() {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    net.split(&[7], &[1, 2, 3, 4, 5, 6]);
    for i in [1, 2, 3] {
        net.is_attacked(i, 4);
        net.run();
    }
    net.settle(6);
    assert!(net.cut_off(1, 4) && !net.cut_off(7, 4));
    net.connect(7, 1);
    net.run();
    assert!(net.cut_off(7, 4), "told when it came back");
    net.split(&[7], &[1]);
    net.now += 70 * S;
    net.order(1, Action::readmit(node_id(4)));
    assert!(!net.cut_off(1, 4) && net.cut_off(7, 4));
    net.connect(7, 1);
    net.run();
    assert!(!net.cut_off(7, 4) && !net.cut_off(1, 4));
}

#[test]
fn garbage_counts_and_what_a_later_version_says_does_not() {
    let mut net = Net::four();
    let mut later = Message::EpochWant(1).to_bytes();
    let at = later.len() - 9;
    later[at] = 250;
    for _ in 0..200 {
        let from = id_at(4);
        net.input(
            1,
            Input::Message {
                from,
                bytes: &later,
            },
        );
        net.input(
            2,
            Input::Message {
                from,
                bytes: &later,
            },
        );
    }
    net.run();
    assert_eq!(net.refused(1, RefusalReason::UnknownKind), 200);
    assert!(!net.cut_off(3, 4), "for being of a later version");
    for _ in 0..31 {
        net.input(1, Input::Garbage(node_id(4)));
        net.input(2, Input::Garbage(node_id(4)));
    }
    net.run();
    assert!(!net.cut_off(3, 4), "too early");
    for i in [1, 2] {
        net.input(i, Input::Garbage(node_id(4)));
        net.run();
    }
    assert!((1..=3).all(|i| net.cut_off(i, 4)));
    let decision = net.engines[&3].quarantine_of(&node_id(4)).unwrap();
    assert_eq!(decision.action.class, AttackClass::MeshAbuse);
}

#[test]
fn an_operator_may_forbid_it_or_all_but_proofs() {
    let mut net = Net::four();
    net.policies[&3].protected.borrow_mut().insert(node_id(4));
    for i in [1, 2] {
        net.is_attacked(i, 4);
        net.run();
    }
    net.settle(10);
    assert_eq!(net.own_verdicts(3), [Verdict::Reject]);
    assert!((1..=3).all(|i| !net.cut_off(i, 4)), "without T_hi");

    let mut net = Net::four();
    for i in 1..=3 {
        *net.policies[&i].automatic.borrow_mut() = Automatic::Proofs;
    }
    for i in 1..=3 {
        net.is_attacked(i, 4);
        net.run();
    }
    assert!(
        (1..=3).all(|i| !net.cut_off(i, 4)),
        "for what was only seen"
    );
    net.equivocate();
    assert!((1..=3).all(|i| net.cut_off(i, 4)));
}

#[test]
fn a_restart_changes_nothing_also_of_what_the_node_had_a_vote_in() {
    let mut net = Net::four();
    // Blocked with the votes of 3 and 4.
    for i in [3, 4] {
        net.sees(i, subject());
        net.run();
    }
    assert!(net.blocks(1, subject()));
    net.now += 61 * S;
    for i in [1, 2] {
        net.is_attacked(i, 4);
        net.run();
    }
    assert!(net.cut_off(1, 4));
    let mut kept = net.warrants(1);
    // Quarantines first, as the agent does.
    kept.sort_by_key(|(bytes, _)| {
        Warrant::from_bytes(bytes).unwrap().action().kind != ActionKind::Quarantine
    });
    net.crash(1);
    let now = net.now;
    let engine = net.engines.get_mut(&1).unwrap();
    for (bytes, at) in kept {
        engine.restore_decision(now, &bytes, at, None).unwrap();
    }
    assert!(net.cut_off(1, 4), "forgot who is cut off");
    assert!(
        net.blocks(1, subject()),
        "forgot what n4 once helped decide"
    );
}

#[test]
fn its_votes_count_for_nothing_in_what_is_decided_later() {
    let mut net = Net::four();
    net.now = T0 - 130 * S;
    for i in [1, 2] {
        net.is_attacked(i, 4);
        net.run();
    }
    assert!(net.cut_off(3, 4));
    net.now = T0 + S;
    let votes = [(1, Verdict::Confirm), (4, Verdict::Confirm)];
    let late = certificate(net.roster(), block(subject()), &votes);
    net.inject(1, 2, &Message::Certificate(Box::new(late.clone())));
    assert!(!net.blocks(2, subject()));
    assert_eq!(net.refused(2, RefusalReason::TooLight), 1);
    // The same is taken by a mesh that has nothing against node 4.
    let mut net = Net::four();
    net.inject(1, 2, &Message::Certificate(Box::new(late)));
    assert!(net.blocks(2, subject()));
}

#[test]
fn an_order_is_only_what_it_says() {
    let mut net = Net::four();
    let draft = net.engines[&1].draft_order(OperatorRelease::quarantine(node_id(4)), net.now, 60);
    // Not the operator.
    net.input(1, Input::Order(Box::new(draft.sign(&signer(2)))));
    assert_eq!(net.refused(1, RefusalReason::BadSignature), 1);
    // A block is nobody's order.
    let draft = net.engines[&1].draft_order(block(subject()), net.now, 60);
    let signed = draft.sign(&operator());
    assert!(signed.verify(&genesis()).is_err());
    assert!(crate::mesh::decision::SignedRelease::from_bytes(&signed.to_bytes()).is_err());
    net.input(1, Input::Order(Box::new(signed)));
    net.run();
    assert!(!net.blocks(1, subject()) && !net.cut_off(1, 4));
}

proptest! {
    /// The counting rule in one place: weight of T_hi without the node itself and without those who are cut off,
    /// W unchanged, two witnesses of two zones, and witnesses of T_lo.
    #[test]
    fn a_quarantine_is_decided_exactly_when_the_rule_says(
        weights in proptest::collection::vec(1_u32..200, 4..9),
        verdicts in proptest::collection::vec(0_u8..5, 8),
        silent in proptest::collection::btree_set(1_u8..9, 0..3),
    ) {
        let zones = ["a", "b", "c", "d", "a", "b", "c", "d"];
        let members = (1..).zip(&weights).map(|(i, weight)| {
            (record(i, zones[usize::from(i) - 1]), *weight)
        });
        let roster = Roster::with_weights(genesis().mesh_id(), members);
        let silent_ids: BTreeSet<NodeId> = silent.iter().map(|i| node_id(*i)).collect();
        let said = |i: u8| match verdicts[usize::from(i) - 1] {
            0 => Some(Verdict::Confirm),
            1 => Some(Verdict::Concur),
            2 => Some(Verdict::Reject),
            3 => Some(Verdict::Abstain),
            _ => None,
        };
        let nodes: Vec<u8> = (1..).zip(&weights).map(|(i, _)| i).collect();
        let votes: Vec<_> = nodes.iter().filter_map(|i| Some((node_id(*i), said(*i)?, T0))).collect();
        let counted = CertVerdict::count(
            &roster,
            &silent_ids,
            &against(1, AttackClass::HostileNode),
            votes,
        );
        let weight = |wanted: &[Verdict]| -> u64 {
            nodes
                .iter()
                .filter(|i| **i != 1 && !silent.contains(*i))
                .filter(|i| said(**i).is_some_and(|v| wanted.contains(&v)))
                .map(|i| u64::from(weights[usize::from(*i) - 1]))
                .sum()
        };
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let witnesses: Vec<u8> = nodes
            .iter()
            .copied()
            .filter(|i| *i != 1 && !silent.contains(i) && said(*i) == Some(Verdict::Confirm))
            .collect();
        let zones: BTreeSet<&str> = witnesses.iter().map(|i| zones[usize::from(*i) - 1]).collect();
        let expected = weight(&[Verdict::Confirm, Verdict::Concur]) * 3 > 2 * total
            && weight(&[Verdict::Confirm]) * 3 > total
            && witnesses.len() >= 2
            && zones.len() >= 2;
        prop_assert_eq!(counted.total, total);
        prop_assert_eq!(counted.check().is_ok(), expected, "{:?}", counted);
        if let Err(CertError::WitnessesTooLight { weight, needed }) = counted.check() {
            prop_assert!(weight < needed);
        }
    }
}
