//! The rules of `quorum.md`, one test each.

use super::*;

#[test]
fn two_witnesses_make_all_four_block_under_one_decision() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.run();
    for i in 1..=4 {
        assert!(!net.blocks(i, subject()), "one witness is not enough");
    }
    net.sees(2, subject());
    net.run();
    let ids: BTreeSet<_> = (1..=4).flat_map(|i| net.decided(i, subject())).collect();
    assert_eq!(ids.len(), 1);
    for i in 1..=4 {
        assert!(net.blocks(i, subject()), "node {i}");
        let decision = net.engines[&i].active_block(&subject()).unwrap();
        assert_eq!(decision.expires_unix_us, T0 + 60 * S + 3_600 * S);
    }
    net.nobody_contradicts_itself();
}

#[test]
fn who_saw_nothing_watches() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.run();
    for i in 2..=4 {
        let expected = Output::Watch {
            subject: subject(),
            until_unix_us: T0 + WATCH_US,
            reported_by: node_id(1),
        };
        assert!(net.outputs[&i].contains(&expected), "node {i}");
        assert_eq!(net.own_verdicts(i), []);
    }
    // The first contact of a watching node completes the decision.
    net.tick(130 * S);
    net.sees(3, subject());
    assert!(!net.blocks(3, subject()), "the first sighting is over");
    net.sees(1, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

#[test]
fn evidence_of_another_class_counts() {
    let mut net = Net::four();
    net.sees_class(1, subject(), AttackClass::PortScan);
    net.run();
    net.sees_class(2, subject(), AttackClass::UdpFlood);
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

#[test]
fn sightings_on_both_sides_of_a_minute_meet() {
    let mut net = Net::four();
    net.now = T0 + 59 * S;
    net.sees(1, subject());
    net.now = T0 + 61 * S;
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    net.nobody_contradicts_itself();
}

#[test]
fn seven_nodes_need_those_who_saw_nothing_to_concur() {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=7).all(|i| net.blocks(i, subject())));
    let concurring = (3..=7).filter(|i| net.own_verdicts(*i).contains(&Verdict::Concur));
    assert!(concurring.count() >= 1);
}

#[test]
fn the_allowlist_of_a_node_is_stronger_than_any_quorum() {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    net.policies[&7].allowed.borrow_mut().insert(subject());
    net.sees(7, subject());
    assert_eq!(net.refused(7, RefusalReason::Allowlisted), 1);
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=6).all(|i| net.blocks(i, subject())));
    assert!(!net.blocks(7, subject()));
    assert_eq!(net.decided(7, subject()).len(), 0);
    assert_eq!(net.own_verdicts(7), [Verdict::Reject]);
    let vetoes = net.outputs[&7]
        .iter()
        .filter(|o| matches!(o, Output::Vetoed { subject: s, .. } if *s == subject()));
    assert_eq!(vetoes.count(), 1);
}

#[test]
fn a_node_does_not_vote_itself_into_or_out_of_anything() {
    let mut net = Net::four();
    let node_two: Prefix = "10.0.0.2".parse().unwrap();
    net.sees(1, node_two);
    net.sees(2, node_two);
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, node_two)));
    net.sees(3, node_two);
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, node_two)));
}

#[test]
fn a_half_with_two_witnesses_acts_and_the_other_half_learns_of_it() {
    let mut net = Net::four();
    net.split(&[1, 2], &[3, 4]);
    net.sees(1, subject());
    net.sees(2, subject());
    net.sees(3, subject());
    net.run();
    assert!(net.blocks(1, subject()) && net.blocks(2, subject()));
    assert!(!net.blocks(3, subject()) && !net.blocks(4, subject()));
    net.connect_all();
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    net.nobody_contradicts_itself();
}

#[test]
fn two_lone_witnesses_decide_once_they_can_talk() {
    let mut net = Net::four();
    net.split(&[1, 2], &[3, 4]);
    net.sees(1, subject());
    net.sees(3, subject());
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, subject())));
    net.connect_all();
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

#[test]
fn one_node_decides_alone_two_and_three_only_together() {
    let mut one = Net::new(&["a"]);
    one.sees(1, subject());
    assert!(one.blocks(1, subject()));
    let mut two = Net::new(&["a", "a"]);
    two.sees(1, subject());
    two.run();
    assert!(!two.blocks(1, subject()));
    two.sees(2, subject());
    two.run();
    assert!(two.blocks(1, subject()) && two.blocks(2, subject()));
    let mut three = Net::new(&["a", "b", "c"]);
    three.split(&[1, 2], &[3]);
    three.sees(1, subject());
    three.sees(2, subject());
    three.run();
    assert!(!three.blocks(1, subject()), "the third one has no say yet");
    three.connect_all();
    three.run();
    assert!((1..=3).all(|i| three.blocks(i, subject())));
}

#[test]
fn the_state_names_what_is_possible() {
    let state = |net: &Net| net.engines[&1].quorum().state;
    let mut net = Net::four();
    assert_eq!(state(&net), QuorumLevel::Full);
    net.disconnect(1, 2);
    assert_eq!(state(&net), QuorumLevel::Full);
    net.disconnect(1, 3);
    assert_eq!(state(&net), QuorumLevel::Degraded);
    net.disconnect(1, 4);
    assert_eq!(state(&net), QuorumLevel::Isolated);
    assert_eq!(state(&Net::new(&["a"])), QuorumLevel::Single);
    assert_eq!(state(&Net::new(&["a", "b"])), QuorumLevel::NotBft);
    assert_eq!(state(&Net::new(&["a"; 4])), QuorumLevel::NotBft);
    let json = serde_json::to_value(net.engines[&1].quorum()).unwrap();
    assert_eq!(json["state"], "ISOLATED");
    assert_eq!(json["reachable_weight"], 100);
}

#[test]
fn an_operator_is_one_witness() {
    let mut net = Net::four();
    net.input(1, Input::OperatorBlock { subject: subject() });
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, subject())));
    net.input(4, Input::OperatorBlock { subject: subject() });
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

fn blocked() -> Net {
    let mut net = Net::four();
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    net
}

#[test]
fn a_release_works_from_any_node_when_the_subject_is_quiet() {
    for i in 1..=4 {
        let mut net = blocked();
        let release = Input::OperatorRelease {
            subject: subject(),
            signed: None,
        };
        net.input(i, release);
        net.run();
        assert!(
            (1..=4).all(|i| net.blocks(i, subject())),
            "the others wait for a contradiction"
        );
        net.tick(RELEASE_WAIT_US);
        net.run();
        assert!((1..=4).all(|i| !net.blocks(i, subject())));
    }
}

#[test]
fn a_release_is_rejected_while_the_attack_lasts_and_can_be_asked_for_again() {
    let mut net = blocked();
    for i in 2..=4 {
        *net.policies[&i].noisy.borrow_mut() = true;
    }
    let ask = || Input::OperatorRelease {
        subject: subject(),
        signed: None,
    };
    net.input(1, ask());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    // One liar and one node that was never attacked are not enough: those that are attacked contradict.
    *net.policies[&4].noisy.borrow_mut() = false;
    net.input(1, ask());
    net.run();
    net.tick(RELEASE_WAIT_US);
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    for i in 2..=3 {
        *net.policies[&i].noisy.borrow_mut() = false;
    }
    net.input(1, ask());
    net.run();
    net.tick(RELEASE_WAIT_US);
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, subject())));
    net.nobody_contradicts_itself();
}

#[test]
fn the_operators_signature_releases_at_once_and_the_block_stays_gone() {
    let mut net = blocked();
    let old = net.engines[&1]
        .active_block(&subject())
        .unwrap()
        .warrant
        .clone();
    let draft = net.engines[&3].draft_order(Action::release(subject()), net.now, 60);
    let forged = Box::new(draft.sign(&signer(3)));
    net.input(
        3,
        Input::OperatorRelease {
            subject: subject(),
            signed: Some(forged),
        },
    );
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    let signed = Box::new(draft.sign(&operator()));
    net.input(
        3,
        Input::OperatorRelease {
            subject: subject(),
            signed: Some(signed),
        },
    );
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, subject())));
    let crate::mesh::decision::Warrant::Votes(certificate) = old else {
        panic!("a block has votes");
    };
    net.inject(2, 4, &Message::Certificate(Box::new(certificate)));
    assert!(!net.blocks(4, subject()));
    assert_eq!(net.refused(4, RefusalReason::Released), 1);
    // The same attacker is blocked again when it comes back.
    net.now += 61 * S;
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    // And the old release does nothing to the new block.
    net.inject(3, 4, &Message::Release(Box::new(draft.sign(&operator()))));
    assert!(net.blocks(4, subject()));
}

#[test]
fn every_block_ends() {
    let mut net = blocked();
    net.tick(3_659 * S);
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    net.tick(S);
    assert!((1..=4).all(|i| net.engines[&i].active_block(&subject()).is_none()));
}

#[test]
fn a_restarted_node_says_what_it_said_before_or_nothing() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.run();
    // It forgets everything but its disk, and now its allowlist protects the subject.
    net.add(1, records(&["a", "b", "c", "d"]));
    for bytes in net.disks[&1].clone() {
        net.engines
            .get_mut(&1)
            .unwrap()
            .restore_vote(&bytes)
            .unwrap();
    }
    assert_eq!(net.engines[&1].sequence(), 1);
    net.policies[&1].allowed.borrow_mut().insert(subject());
    net.sees(2, subject());
    net.sees(3, subject());
    net.run();
    net.nobody_contradicts_itself();
    assert!(net.engines.values().all(|e| e.liars().is_empty()));
    assert_eq!(net.own_verdicts(1), [Verdict::Confirm]);
    // Its next vote has the next number.
    net.sees(1, "203.0.113.99".parse().unwrap());
    let last = Ballot::from_bytes(net.disks[&1].last().unwrap()).unwrap();
    assert_eq!(last.signed.vote.sequence, 2);
}

#[test]
fn a_restarted_node_keeps_its_decisions_and_refuses_foreign_votes() {
    let net = blocked();
    let decision = net.engines[&2].active_block(&subject()).unwrap().clone();
    let mut again = engine(2, records(&["a", "b", "c", "d"]));
    let bytes = decision.warrant.to_bytes();
    let restored = again.restore_decision(T0 + S, &bytes, decision.certified_unix_us, None);
    assert_eq!(restored.unwrap(), Some(&decision));
    let late = engine(2, records(&["a", "b", "c", "d"]))
        .restore_decision(decision.expires_unix_us, &bytes, 0, None)
        .map(Option::<&Decision>::cloned);
    assert_eq!(late.unwrap(), None);
    assert!(again.restore_vote(&net.disks[&1][0]).is_err());
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(again.restore_decision(T0, &damaged, 0, None).is_err());
}

#[test]
fn a_liar_is_found_out_everywhere_and_weighs_nothing() {
    let mut net = Net::four();
    // What it is worth without being cut off for it.
    for policy in net.policies.values() {
        *policy.automatic.borrow_mut() = Automatic::Off;
    }
    let confirm = vote_of(&net, 4, block(subject()), Verdict::Confirm, 1);
    let reject = vote_of(&net, 4, block(subject()), Verdict::Reject, 1);
    net.inject(4, 1, &confirm);
    net.inject(4, 1, &reject);
    net.run();
    for i in 1..=3 {
        assert!(net.engines[&i].liars().contains(&node_id(4)), "node {i}");
    }
    // With its first vote still on the table, one honest witness is not two.
    net.sees(1, subject());
    net.run();
    assert!((1..=3).all(|i| !net.blocks(i, subject())));
    assert_eq!(net.engines[&1].quorum().reachable_weight, 300);
    assert_eq!(net.engines[&1].quorum().total_weight, 400);
    net.inject(
        4,
        2,
        &vote_of(
            &net,
            4,
            block("203.0.113.8".parse().unwrap()),
            Verdict::Confirm,
            2,
        ),
    );
    assert_eq!(net.refused(2, RefusalReason::EquivocatingVoter), 1);
    // The proof outlives a restart.
    let proof = net.engines[&1].proofs().next().unwrap().to_bytes();
    let mut again = engine(1, records(&["a", "b", "c", "d"]));
    again.restore_proof(&proof).unwrap();
    assert!(again.liars().contains(&node_id(4)));
}

#[test]
fn a_lie_told_to_different_nodes_is_found_in_the_certificate() {
    let mut net = Net::four();
    let confirm = vote_of(&net, 4, block(subject()), Verdict::Confirm, 1);
    let reject = vote_of(&net, 4, block(subject()), Verdict::Reject, 2);
    net.inject(4, 3, &reject);
    net.inject(4, 1, &confirm);
    net.sees(1, subject());
    net.run();
    for i in 1..=3 {
        assert!(net.engines[&i].liars().contains(&node_id(4)), "node {i}");
    }
}

#[test]
fn a_release_that_arrives_late_does_not_end_a_later_block() {
    let mut net = Net::four();
    let draft = net.engines[&3].draft_order(Action::release(subject()), net.now, 60);
    net.now += 61 * S;
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    let release = Message::Release(Box::new(draft.sign(&operator())));
    net.inject(3, 4, &release);
    assert_eq!(net.engines[&4].decisions().count(), 2);
    assert!(net.blocks(4, subject()));
}

/// Ten nodes, of which 1 and 2 have seen something.
fn ten() -> Net {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    net.sees(1, subject());
    net.sees(2, subject());
    net
}

fn concurred(net: &Net) -> Vec<u8> {
    (1..=10)
        .filter(|i| net.own_verdicts(*i).contains(&Verdict::Concur))
        .collect()
}

#[test]
fn only_as_many_agree_as_are_needed() {
    let mut net = ten();
    net.run();
    // T_lo is 334: two witnesses and two more.
    let agreed = concurred(&net);
    assert_eq!(agreed.len(), 2, "{agreed:?}");
    for i in 1..=10 {
        assert!(net.blocks(i, subject()), "node {i}");
    }
    for _ in 0..20 {
        net.tick(S / 5);
        net.run();
    }
    assert_eq!(concurred(&net), agreed, "nobody comes later");
}

#[test]
fn who_keeps_its_vote_back_costs_a_delay_and_no_more() {
    // Whose turn it is, in a mesh like it.
    let mut net = ten();
    net.run();
    let first = concurred(&net);
    // The same again, and those say nothing, though they are connected.
    let mut net = ten();
    for _ in 0..200 {
        let Some(at) = net.queue.iter().position(|p| !first.contains(&p.to)) else {
            break;
        };
        let packet = net.queue.remove(at);
        net.deliver(&packet);
    }
    net.queue.clear();
    assert!((3..=10).all(|i| !net.blocks(i, subject())), "not at once");
    for _ in 0..2 {
        net.tick(turn::WAVE_US);
        for _ in 0..400 {
            let Some(at) = net.queue.iter().position(|p| !first.contains(&p.to)) else {
                break;
            };
            let packet = net.queue.remove(at);
            net.deliver(&packet);
        }
        net.queue.clear();
    }
    for i in (1..=10).filter(|i| !first.contains(i)) {
        assert!(net.blocks(i, subject()), "node {i}");
    }
}

#[test]
fn who_is_gone_is_not_waited_for() {
    let mut net = ten();
    net.run();
    let first = concurred(&net);
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    for gone in &first {
        let others: Vec<u8> = (1..=10).filter(|i| i != gone).collect();
        net.split(&[*gone], &others);
    }
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    for i in (1..=10).filter(|i| !first.contains(i)) {
        assert!(net.blocks(i, subject()), "node {i}");
    }
}

#[test]
fn a_clock_that_is_set_back_does_not_make_a_node_say_another_thing() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.run();
    // Long after, the vote is forgotten; then the clock is as it was.
    net.tick(600 * S);
    net.run();
    assert_eq!(net.own_verdicts(1).len(), 1);
    net.now = T0 + 5 * S;
    net.sees(1, subject());
    net.run();
    net.nobody_contradicts_itself();
    assert_eq!(net.own_verdicts(1).len(), 1);
    assert!(net.refused(1, RefusalReason::ClockSetBack) > 0);
    // Two minutes later it votes again.
    net.tick(120 * S);
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

#[test]
fn a_node_whose_disk_has_lost_its_older_votes_says_nothing_in_their_time() {
    let mut net = Net::four();
    for i in 0..3 {
        net.sees(1, format!("198.51.100.{i}").parse().unwrap());
        net.run();
    }
    let all = net.disks[&1].clone();
    for kept in [0, 2] {
        // With all of them it votes in that minute; with the last one only, it does not.
        net.disks.insert(1, all[kept..].to_vec());
        net.crash(1);
        let before = net.disks[&1].len();
        net.sees(1, format!("198.51.100.{}", 100 + kept).parse().unwrap());
        let cast = net.disks[&1].len() > before;
        assert_eq!(cast, kept == 0);
    }
    net.tick(180 * S);
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}
