//! Joining, tickets and epochs.

use super::*;

#[test]
fn a_node_joins_with_a_ticket_and_everybody_counts_it() {
    let mut net = Net::new(&["a", "b", "c"]);
    net.input(2, Input::OpenGrant(Box::new(grant(0x70))));
    net.run();
    assert!((1..=3).all(|i| net.engines[&i].open_grants().count() == 1));
    let joiner = by_ticket(4, "d", 0x70);
    // It may knock at any node.
    net.input(3, Input::Admit(Box::new(joiner.clone())));
    net.run();
    let mut all = records(&["a", "b", "c"]);
    all.push(joiner.clone());
    net.add(4, all);
    net.connect_all();
    net.run();
    let hashes: BTreeSet<_> = net
        .engines
        .values()
        .map(|e| e.roster().epoch_hash())
        .collect();
    assert_eq!(hashes.len(), 1);
    assert!(net.engines.values().all(|e| e.roster().len() == 4));
    assert!((1..=4).all(|i| net.engines[&i].open_grants().count() == 0));
    net.sees(4, subject());
    net.sees(1, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

#[test]
fn a_ticket_is_used_once() {
    let mut net = Net::new(&["a", "b", "c"]);
    net.input(1, Input::OpenGrant(Box::new(grant(0x70))));
    net.input(1, Input::Admit(Box::new(by_ticket(4, "d", 0x70))));
    net.run();
    net.input(2, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    assert_eq!(net.refused(2, RefusalReason::Replayed), 1);
    assert!(net.engines.values().all(|e| e.roster().len() == 4));
    // Nor does the same ticket, handed in again, open the door to a next one.
    net.input(2, Input::OpenGrant(Box::new(grant(0x70))));
    net.inject(3, 1, &Message::Grant(Box::new(grant(0x70))));
    assert_eq!(net.refused(2, RefusalReason::Replayed), 2);
    assert!(net.engines.values().all(|e| e.open_grants().count() == 0));
    // Two that use it at once on two sides of a split: it is burned, the same everywhere, and nobody can
    // change who it is by using its own ticket again.
    let mut net = Net::new(&["a", "b"]);
    net.disconnect(1, 2);
    net.input(1, Input::Admit(Box::new(by_ticket(5, "d", 0x71))));
    net.input(2, Input::Admit(Box::new(by_ticket(4, "d", 0x71))));
    net.connect_all();
    net.run();
    for engine in net.engines.values() {
        assert_eq!(engine.roster().len(), 2);
        assert_eq!(engine.admissions().count(), 4, "both records are the proof");
    }
    let epoch = net.roster().epoch_hash();
    net.inject(1, 2, &Message::Admission(Box::new(by_ticket(6, "d", 0x71))));
    assert!(
        net.engines
            .values()
            .all(|e| e.roster().epoch_hash() == epoch)
    );
}

#[test]
fn an_expired_ticket_opens_nothing() {
    let mut net = Net::new(&["a"]);
    net.now = T0 + 601 * S;
    net.input(1, Input::OpenGrant(Box::new(grant(0x70))));
    net.input(1, Input::Admit(Box::new(by_ticket(4, "d", 0x70))));
    assert_eq!(net.refused(1, RefusalReason::TicketExpired), 2);
    assert_eq!(net.engines[&1].roster().len(), 1);
}

#[test]
fn forged_admissions_are_refused() {
    let mut net = Net::new(&["a", "b"]);
    let forged = record(9, "z").admit_by_operator(&signer(9), &signer(9));
    net.inject(2, 1, &Message::Admission(Box::new(forged)));
    let forged = grant(0x70).grant.sign(&signer(2));
    net.inject(2, 1, &Message::Grant(Box::new(forged)));
    assert_eq!(net.refused(1, RefusalReason::BadAdmission), 2);
    assert_eq!(net.engines[&1].roster().len(), 2);
}

#[test]
fn the_first_node_cannot_go_on_deciding_by_the_rules_of_when_it_was_alone() {
    let mut net = epochs::grown();
    let alone = roster(&["a"]);
    let forged = certificate(&alone, block(subject()), &[(1, Verdict::Confirm)]);
    for i in 2..=4 {
        net.inject(1, i, &Message::Certificate(Box::new(forged.clone())));
        assert!(!net.blocks(i, subject()), "node {i}");
        assert_eq!(net.refused(i, RefusalReason::OutvotedEpoch), 1, "node {i}");
    }
}

#[test]
fn a_decision_of_the_epoch_before_reaches_a_node_that_joins() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    let joiner = by_ticket(5, "e", 0x70);
    net.input(1, Input::Admit(Box::new(joiner.clone())));
    net.run();
    let mut all = records(&["a", "b", "c", "d"]);
    all.push(joiner);
    net.add(5, all);
    net.connect_all();
    net.run();
    assert!(net.blocks(5, subject()));
}

#[test]
fn votes_of_the_old_epoch_no_longer_count_and_are_cast_again() {
    let mut net = Net::four();
    let old = vote_of(&net, 2, block(subject()), Verdict::Confirm, 1);
    net.sees(1, subject());
    net.run();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    assert_eq!(net.own_verdicts(1).len(), 2, "its evidence is still alive");
    net.inject(2, 1, &old);
    assert_eq!(net.refused(1, RefusalReason::WrongEpoch), 1);
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())));
    net.nobody_contradicts_itself();
}

#[test]
fn a_vote_that_overtakes_the_admission_is_not_lost() {
    let mut net = Net::four();
    let joiner = by_ticket(5, "e", 0x70);
    // Node 2 hears of the joiner, node 3 not yet.
    net.split(&[1, 2, 4], &[3]);
    net.input(2, Input::Admit(Box::new(joiner.clone())));
    for _ in 0..8 {
        net.run();
        // It may be the turn of the one that is cut off.
        net.tick(S / 2);
    }
    net.run();
    let vote = vote_of(&net, 2, block(subject()), Verdict::Confirm, 1);
    assert_eq!(net.roster().len(), 5);
    net.inject(2, 3, &vote);
    assert!(net.engines[&3].incidents(None).is_empty());
    let epoch = net.engines[&1].epoch().unwrap().clone();
    net.inject(1, 3, &Message::Epoch(Box::new(epoch)));
    assert!(net.engines[&3].incidents(None).is_empty());
    net.inject(1, 3, &Message::Admission(Box::new(joiner)));
    assert_eq!(net.engines[&3].incidents(Some(&subject())).len(), 1);
}

#[test]
fn a_ticket_burned_before_a_node_hears_of_its_first_use_does_not_lock_it_out() {
    let mut net = Net::four();
    net.split(&[4], &[1, 2, 3]);
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    assert_eq!(net.engines[&1].roster().len(), 5);
    // Whoever holds the ticket's key is the first to speak to node 4, with two other records of it.
    for i in [6, 7] {
        let other = Message::Admission(Box::new(by_ticket(i, "e", 0x70)));
        let bytes = other.to_bytes();
        net.deliver(&Packet {
            from: 5,
            to: 4,
            bytes,
        });
    }
    net.queue.clear();
    net.connect(1, 4);
    net.run();
    let epoch = net.engines[&1].roster().epoch_hash();
    assert_eq!(net.engines[&4].roster().epoch_hash(), epoch);
    // And it is still there after a restart.
    net.crash(4);
    assert_eq!(net.engines[&4].roster().epoch_hash(), epoch);
}
