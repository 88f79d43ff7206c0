//! Epochs: what joins, leaves and lies does to who counts.

use super::*;
use crate::mesh::admission::NodeRecord;
use crate::mesh::epoch::{EpochVote, Removal, SignedEpochVote, SignedRemoval, Step};
use crate::mesh::evidence::{Body, Misconduct, ProofKind, Statement};
use crate::mesh::genesis::Params;

pub(super) fn removal(i: u8, now: u64) -> SignedRemoval {
    Removal {
        mesh: genesis().mesh_id(),
        node: node_id(i),
        issued_unix_us: now,
    }
    .sign(&operator())
}

/// Time for a round that nobody answers.
pub(super) fn wait(net: &mut Net, seconds: u64) {
    for _ in 0..seconds * 2 {
        net.tick(S / 2);
        net.run();
    }
}

pub(super) fn hashes(net: &Net) -> BTreeSet<Hash> {
    net.engines
        .values()
        .map(|e| e.roster().epoch_hash())
        .collect()
}

fn weights(net: &Net, i: u8) -> Vec<u32> {
    let roster = net.engines[&i].roster();
    (1..=9)
        .filter_map(|n| roster.get(&node_id(n)))
        .map(|m| m.weight)
        .collect()
}

pub(super) fn length() -> u64 {
    u64::from(Params::default().epoch_s) * S
}

/// A mesh of one that three others have joined.
pub(super) fn grown() -> Net {
    let mut net = Net::new(&["a"]);
    for (i, zone) in [(2, "b"), (3, "c"), (4, "d")] {
        let joiner = by_ticket(i, zone, 0x70 + i);
        net.input(1, Input::Admit(Box::new(joiner)));
        net.run();
        let known: Vec<AdmittedRecord> = net.engines[&1].admissions().cloned().collect();
        net.add(i, known);
        net.connect_all();
        net.run();
    }
    net
}

#[test]
fn a_mesh_grows_from_one_to_four_with_a_quorum_as_soon_as_the_fourth_is_there() {
    let net = grown();
    assert_eq!(hashes(&net).len(), 1, "all agree");
    assert_eq!(weights(&net, 4), [100; 4]);
    assert_eq!(net.roster().epoch(), 4);
    assert_eq!(net.engines[&4].quorum().state, QuorumLevel::Full);
}

#[test]
fn the_fifth_node_has_no_weight_before_its_probation_is_over_and_then_a_tenth_at_a_time() {
    let mut net = Net::four();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    assert_eq!(weights(&net, 1), [100, 100, 100, 100, 0]);
    let mut seen = Vec::new();
    for _ in 0..6 {
        net.tick(length());
        // Once it has weight it is its turn to propose at times, and nobody runs it here.
        wait(&mut net, 5);
        seen.push(weights(&net, 3)[4]);
    }
    assert_eq!(seen, [0, 0, 40, 84, 100, 100]);
    assert_eq!(hashes(&net).len(), 1);
    assert_eq!(net.roster().epoch(), 8);
}

#[test]
fn no_epoch_forms_without_t_hi() {
    let mut net = Net::four();
    net.split(&[1, 2], &[3, 4]);
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.input(3, Input::Admit(Box::new(by_ticket(6, "f", 0x71))));
    net.tick(length());
    wait(&mut net, 60);
    assert_eq!(hashes(&net).len(), 1);
    assert_eq!(net.roster().epoch(), 1, "two of four are no T_hi");
    net.connect_all();
    wait(&mut net, 120);
    assert_eq!(hashes(&net).len(), 1);
    assert!(net.engines.values().all(|e| e.roster().len() == 6));
}

#[test]
fn three_of_four_form_an_epoch_and_the_fourth_catches_up() {
    let mut net = Net::four();
    net.split(&[1, 2, 3], &[4]);
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    wait(&mut net, 10);
    for _ in 0..5 {
        net.tick(length());
        wait(&mut net, 10);
    }
    assert!(net.engines[&1].roster().epoch() >= 6);
    assert_eq!(net.engines[&4].roster().epoch(), 1);
    net.connect_all();
    net.run();
    assert_eq!(hashes(&net).len(), 1);
}

#[test]
fn a_removed_node_is_out_with_the_next_epoch_and_never_comes_back() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    net.input(2, Input::Remove(Box::new(removal(5, net.now))));
    net.run();
    wait(&mut net, 5);
    for i in 1..=5 {
        assert_eq!(net.engines[&i].roster().len(), 4, "node {i}");
        assert!(net.engines[&i].roster().get(&node_id(5)).is_none());
    }
    net.sees(5, subject());
    assert_eq!(net.refused(5, RefusalReason::NotAMember), 1);
    // Nor under a ticket of its own.
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    assert_eq!(net.refused(1, RefusalReason::Removed), 1);
    assert!(net.engines.values().all(|e| e.roster().len() == 4));
}

#[test]
fn a_removal_takes_the_operators_signature() {
    let mut net = Net::four();
    let forged = Removal {
        mesh: genesis().mesh_id(),
        node: node_id(4),
        issued_unix_us: net.now,
    }
    .sign(&signer(1));
    net.inject(1, 2, &Message::Removal(Box::new(forged)));
    assert_eq!(net.refused(2, RefusalReason::BadSignature), 1);
    assert_eq!(net.engines[&2].roster().len(), 4);
}

#[test]
fn one_of_two_that_is_gone_for_good_can_be_removed() {
    let mut net = Net::new(&["a", "b"]);
    net.disconnect(1, 2);
    net.engines.remove(&2);
    net.tick(length());
    wait(&mut net, 10);
    assert_eq!(net.roster().epoch(), 1, "alone it decides nothing");
    net.input(1, Input::Remove(Box::new(removal(2, net.now))));
    wait(&mut net, 10);
    assert_eq!(net.roster().len(), 1);
    assert_eq!(net.engines[&1].quorum().state, QuorumLevel::Single);
}

#[test]
fn a_new_incarnation_takes_the_place_of_the_old_one() {
    let mut net = Net::four();
    let mut record = record(4, "d");
    record.incarnation = 2;
    record.node = NodeRecord::derive_id(&record.vote_key, 2);
    let node = record.node;
    let again = record.admit_by_ticket(&signer(4), grant(0x70), &signer(0x70));
    net.input(1, Input::Admit(Box::new(again)));
    wait(&mut net, 5);
    let roster = net.engines[&1].roster();
    assert_eq!(roster.len(), 4);
    assert!(roster.get(&node).is_some() && roster.get(&node_id(4)).is_none());
}

/// A prevote of `node` for a record that nobody made.
fn lie(net: &Net, node: u8, value: u8) -> SignedEpochVote {
    EpochVote {
        mesh: genesis().mesh_id(),
        number: 2,
        previous: net.roster().epoch_hash(),
        round: 0,
        step: Step::Prevote,
        value: Some(Hash([value; 32])),
        voter: node_id(node),
        incarnation: 1,
    }
    .sign(&signer(node))
}

#[test]
fn whoever_contradicts_itself_about_an_epoch_is_proved_to_lie_everywhere() {
    let mut net = Net::four();
    let (a, b) = (lie(&net, 4, 1), lie(&net, 4, 2));
    net.inject(4, 1, &Message::EpochVote(Box::new(a)));
    net.inject(4, 1, &Message::EpochVote(Box::new(b)));
    net.run();
    for i in 1..=3 {
        assert!(net.engines[&i].liars().contains(&node_id(4)), "node {i}");
    }
    // And it is stated, so that it counts against the node's standing as any equivocation does.
    for i in 1..=3 {
        let caught = net.outputs[&i].iter().any(|output| {
            matches!(output, Output::Caught { node, proof: ProofKind::EpochEquivocation }
                if *node == node_id(4))
        });
        assert!(caught, "node {i}");
    }
    wait(&mut net, 60);
    let stated = |bytes: &Vec<u8>| {
        let body = Statement::from_bytes(bytes).map(|s| s.body);
        matches!(body, Ok(Body::Misconduct(Misconduct::EpochEquivocation(_))))
    };
    for i in 1..=3 {
        assert!(net.evidence[&i].iter().any(stated), "node {i}");
    }
}

#[test]
fn a_proposal_is_taken_only_from_its_proposer() {
    let mut net = Net::four();
    net.outputs.clear();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    let proposed = net.outputs.values().flatten().find_map(|o| match o {
        Output::Broadcast(bytes) => match Message::from_bytes(bytes) {
            Ok(Message::EpochProposal(proposal)) => Some(proposal),
            _ => None,
        },
        _ => None,
    });
    let proposed = proposed.unwrap();
    let by = (1..=4)
        .find(|i| node_id(*i) == proposed.signed.vote.voter)
        .unwrap();
    let (other, at) = if by == 1 {
        (2, 3)
    } else {
        (1, if by == 2 { 3 } else { 2 })
    };
    net.inject(other, at, &Message::EpochProposal(proposed));
    assert_eq!(net.refused(at, RefusalReason::NotOwnVote), 1);
}

#[test]
fn a_forged_epoch_is_refused() {
    let mut net = Net::four();
    let joiner = by_ticket(5, "e", 0x70);
    let mut alone = Net::four();
    alone.input(1, Input::Admit(Box::new(joiner.clone())));
    alone.run();
    let mut forged = alone.engines[&1].epoch().unwrap().clone();
    net.inject(4, 2, &Message::Admission(Box::new(joiner)));
    net.queue.clear();
    forged.record.members[0].weight += 1;
    net.inject(4, 2, &Message::Epoch(Box::new(forged.clone())));
    assert_eq!(net.refused(2, RefusalReason::BadEpoch), 1);
    forged.record.members[0].weight -= 1;
    forged.precommits.signatures.truncate(2);
    net.inject(4, 2, &Message::Epoch(Box::new(forged)));
    assert_eq!(net.refused(2, RefusalReason::BadEpoch), 2);
    assert_eq!(net.engines[&2].roster().epoch(), 1);
}

#[test]
fn an_epoch_survives_a_crash_of_everybody() {
    let mut net = Net::four();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    // What the disk tells of is from when this one was still a member.
    net.input(2, Input::Remove(Box::new(removal(5, net.now))));
    wait(&mut net, 5);
    let before = hashes(&net);
    for i in 1..=4 {
        net.crash(i);
    }
    assert_eq!(hashes(&net), before);
    net.links.clear();
    net.connect_all();
    net.run();
    net.tick(length());
    wait(&mut net, 5);
    assert_eq!(net.roster().epoch(), 4);
    assert_eq!(hashes(&net).len(), 1);
}

#[test]
fn a_node_whose_disk_is_older_than_what_it_signed_says_nothing_about_epochs() {
    let mut net = Net::four();
    let old = net.epochs.get(&2).cloned();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    net.tick(length());
    wait(&mut net, 3);
    assert_eq!(net.roster().epoch(), 3);
    // Its epochs are from before, what it signed last is not.
    match old {
        Some(old) => net.epochs.insert(2, old),
        None => net.epochs.remove(&2),
    };
    for j in [1, 3, 4] {
        net.disconnect(2, j);
    }
    net.crash(2);
    net.outputs.clear();
    net.input(2, Input::Admit(Box::new(by_ticket(6, "f", 0x71))));
    net.tick(length());
    let said = net.outputs[&2]
        .iter()
        .any(|o| matches!(o, Output::PersistEpoch(_)));
    assert!(!said, "it would vote on an epoch that is long decided");
    net.connect_all();
    wait(&mut net, 10);
    assert_eq!(hashes(&net).len(), 1);
}

#[test]
fn the_voters_of_the_epoch_before_seal_the_next_one_with_ml_dsa() {
    let mut net = grown();
    net.outputs.clear();
    net.tick(S);
    net.run();
    let mut asked = Vec::new();
    for i in 1..=4 {
        for output in net.outputs.remove(&i).unwrap_or_default() {
            if let Output::Seal(sealed) = output {
                asked.push((i, sealed));
            }
        }
    }
    // The fourth was not in the epoch before.
    assert_eq!(asked.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 2, 3]);
    for (i, sealed) in asked {
        // Somebody else's key is not taken for it.
        let forged = sealed.sign(&pq(9)).unwrap();
        net.input(i, Input::Sealed(Box::new(forged)));
        assert_eq!(net.refused(i, RefusalReason::BadSignature), 1);
        net.input(i, Input::Sealed(Box::new(sealed.sign(&pq(i)).unwrap())));
    }
    net.run();
    for i in 1..=4 {
        assert_eq!(
            net.engines[&i].sealed_weight(),
            Some((300, 300)),
            "node {i}"
        );
    }
}

#[test]
fn a_block_outlasts_many_epochs_and_a_node_that_joins_then_still_takes_it() {
    let mut net = Net::four();
    let params = Params::default();
    assert!(params.epoch_s <= params.block_ttl_s * 2);
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    // Twenty epochs within the hour that the block lasts: somebody joins and leaves, over and over.
    for i in 10..20 {
        let joiner = by_ticket(i, &format!("z{i}"), 0x70 + i);
        net.input(1, Input::Admit(Box::new(joiner)));
        wait(&mut net, 3);
        net.input(1, Input::Remove(Box::new(removal(i, net.now))));
        wait(&mut net, 3);
    }
    assert!(net.roster().epoch() > 20, "{}", net.roster().epoch());
    net.crash(3);
    let warrant = net.engines[&1]
        .active_block(&subject())
        .unwrap()
        .warrant
        .to_bytes();
    let now = net.now;
    let engine = net.engines.get_mut(&3).unwrap();
    let restored = engine.restore_decision(now, &warrant, now, None);
    assert!(matches!(restored, Ok(Some(_))), "{restored:?}");
}

#[test]
fn who_was_admitted_and_never_started_gets_no_weight_and_holds_nobody_up() {
    let mut net = Net::four();
    net.all_run = false;
    // Seven at once, each with a ticket; none of them runs. With weight they would be most of the mesh.
    for i in 5..=11 {
        net.input(1, Input::Admit(Box::new(by_ticket(i, "z", 0x70 + i))));
    }
    net.run();
    wait(&mut net, 5);
    assert_eq!(net.roster().epoch(), 1, "nothing is due");
    assert!(net.engines.values().all(|e| !e.is_membership_due()));
    for _ in 0..6 {
        net.tick(length());
        wait(&mut net, 5);
    }
    assert!(net.roster().epoch() >= 6, "{}", net.roster().epoch());
    assert_eq!(hashes(&net).len(), 1);
    assert_eq!(net.roster().len(), 4);
    // One of them is started, and is in as soon as more than a third of the weight has met it.
    let known: Vec<AdmittedRecord> = net.engines[&1].admissions().cloned().collect();
    let running = engine(5, known);
    net.engines.insert(5, running);
    net.policies.entry(5).or_default();
    for i in 1..=2 {
        net.connect(5, i);
    }
    net.run();
    wait(&mut net, 20);
    assert_eq!(net.roster().len(), 5);
    assert!(net.engines[&2].roster().get(&node_id(5)).is_some());
}

#[test]
fn the_second_of_two_does_not_hold_up_the_first_before_it_runs() {
    let mut net = Net::new(&["a"]);
    net.all_run = false;
    net.input(1, Input::Admit(Box::new(by_ticket(2, "b", 0x72))));
    net.run();
    assert_eq!(net.engines[&1].quorum().state, QuorumLevel::Single);
    net.sees(1, subject());
    assert!(net.blocks(1, subject()));
}

#[test]
fn a_removal_and_a_proof_that_were_lost_are_told_again() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    let (a, b) = (lie(&net, 5, 1), lie(&net, 5, 2));
    net.inject(5, 1, &Message::EpochVote(Box::new(a)));
    net.inject(5, 1, &Message::EpochVote(Box::new(b)));
    net.input(1, Input::Remove(Box::new(removal(5, net.now))));
    // All that node 1 said of it is lost, on connections that stay.
    net.queue.clear();
    assert!(net.engines[&2].removals().next().is_none());
    wait(&mut net, 300);
    for i in 1..=4 {
        assert!(net.engines[&i].liars().contains(&node_id(5)), "node {i}");
        assert_eq!(net.engines[&i].roster().len(), 4, "node {i}");
    }
}
