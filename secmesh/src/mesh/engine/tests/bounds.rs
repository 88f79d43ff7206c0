//! Nothing grows without a limit.

use super::*;
use std::net::{IpAddr, Ipv4Addr};

fn address(n: u32) -> Prefix {
    Prefix::host(IpAddr::V4(Ipv4Addr::from_bits(0xcb00_7100 + n)))
}

#[test]
fn one_liar_does_not_fill_the_table() {
    let mut net = Net::four();
    let roster = net.roster().clone();
    let all = u32::try_from(MAX_OPEN_PER_VOTER).unwrap() + 40;
    for n in 0..all {
        let vote = ballot(
            &roster,
            4,
            block(address(n)),
            Verdict::Confirm,
            u64::from(n) + 1,
            T0,
        );
        net.inject(4, 1, &Message::Vote(Box::new(vote)));
    }
    assert_eq!(net.engines[&1].open_incidents(), MAX_OPEN_PER_VOTER);
    assert_eq!(net.refused(1, RefusalReason::TooManyIncidents), 40);
    // Everybody else is heard.
    let other: Prefix = "198.51.100.1".parse().unwrap();
    net.sees(1, other);
    net.sees(2, other);
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, other)));
    // And the liar's part is over when its votes are.
    net.tick(400 * S);
    assert_eq!(net.engines[&1].open_incidents(), 0);
}

#[test]
fn who_has_used_up_its_places_is_refused_before_anything_is_verified() {
    let mut net = Net::four();
    let roster = net.roster().clone();
    let quota = u32::try_from(MAX_OPEN_PER_VOTER).unwrap();
    let vote = |n: u32| {
        let action = block(address(n));
        ballot(&roster, 4, action, Verdict::Confirm, u64::from(n) + 1, T0)
    };
    let forged = |n: u32| {
        let mut vote = vote(n);
        vote.signed.signature[0] ^= 1;
        Message::Vote(Box::new(vote))
    };
    for n in 0..quota {
        net.inject(4, 1, &Message::Vote(Box::new(vote(n))));
    }
    // Known already, or a number used already: what the signature is makes no difference.
    net.inject(4, 1, &Message::Vote(Box::new(vote(0))));
    assert_eq!(net.refused(1, RefusalReason::Replayed), 1);
    net.inject(4, 1, &forged(quota + 1));
    assert_eq!(net.refused(1, RefusalReason::TooManyIncidents), 1);
    assert_eq!(net.refused(1, RefusalReason::BadSignature), 0);
    // Where something is open it counts again.
    net.inject(4, 1, &forged(5));
    assert_eq!(net.refused(1, RefusalReason::BadSignature), 1);
}

#[test]
fn who_goes_on_beyond_its_places_is_cut_off() {
    let mut net = Net::four();
    let roster = net.roster().clone();
    for n in 0..u32::try_from(MAX_OPEN_PER_VOTER).unwrap() {
        let action = block(address(n));
        let vote = ballot(&roster, 4, action, Verdict::Confirm, u64::from(n) + 1, T0);
        for to in [1, 2] {
            net.inject(4, to, &Message::Vote(Box::new(vote)));
        }
    }
    let more = ballot(
        &roster,
        4,
        block(address(9_999)),
        Verdict::Confirm,
        9_999,
        T0,
    );
    let more = Message::Vote(Box::new(more));
    // As much as an honest node has to say when all that is open is refused twice.
    for _ in 0..2 * MAX_OPEN {
        for to in [1, 2] {
            net.inject(4, to, &more);
        }
    }
    net.run();
    assert!((1..=3).all(|i| !net.engines[&i].is_quarantined(&node_id(4))));
    for _ in 0..2 * MAX_OPEN {
        for to in [1, 2] {
            net.inject(4, to, &more);
        }
    }
    net.run();
    assert!((1..=3).all(|i| net.engines[&i].is_quarantined(&node_id(4))));
}

/// A vote of an epoch that nobody knows.
fn of_another_epoch(voter: u8, n: u32, epoch: u64) -> Message {
    let roster = Net::four().roster().clone();
    let action = block(address(n));
    let mut ballot = ballot(&roster, voter, action, Verdict::Confirm, 1, T0);
    let vote = &mut ballot.signed.vote;
    vote.epoch = epoch;
    vote.epoch_hash = Hash([9; 32]);
    vote.incident = action.incident(vote.mesh, vote.epoch_hash, vote.bucket);
    Message::Vote(Box::new(ballot))
}

#[test]
fn one_liar_does_not_push_out_what_others_sent_ahead_of_an_epoch() {
    let mut net = Net::four();
    let next = net.roster().epoch() + 1;
    net.inject(2, 1, &of_another_epoch(2, 1, next));
    let junk = of_another_epoch(4, 2, next);
    for _ in 0..2 * MAX_PENDING {
        net.inject(4, 1, &junk);
    }
    let aside = |net: &Net, i: u8| {
        let pending = net.engines[&1].pending.iter();
        pending.filter(|(_, from, _)| *from == id_at(i)).count()
    };
    let share = MAX_PENDING / 4;
    assert_eq!((aside(&net, 2), aside(&net, 4)), (1, share));
    let dropped = u64::try_from(2 * MAX_PENDING - share).unwrap();
    assert_eq!(net.refused(1, RefusalReason::AsideFull), dropped);
    // Of others' votes and of epochs that are over nothing is kept.
    net.inject(3, 1, &of_another_epoch(2, 1, next));
    net.inject(3, 1, &of_another_epoch(3, 1, next - 1));
    assert_eq!(aside(&net, 3), 0);
}

#[test]
fn a_decided_incident_frees_its_place() {
    let mut net = Net::new(&["a"]);
    for n in 0..600 {
        net.sees(1, address(n));
    }
    assert_eq!(net.engines[&1].open_incidents(), 0);
    assert_eq!(net.engines[&1].decisions().count(), 600);
}

#[test]
fn repeated_evidence_costs_one_vote_a_minute() {
    let mut net = Net::four();
    for _ in 0..50 {
        net.now += S;
        net.sees(1, subject());
        net.run();
    }
    assert_eq!(net.own_verdicts(1).len(), 1);
    net.sees(2, subject());
    net.run();
    // While the block has a while to go, it needs no second one.
    for _ in 0..300 {
        net.tick(S);
        net.sees(1, subject());
        net.run();
    }
    assert_eq!(net.own_verdicts(1).len(), 1);
    assert_eq!(net.decided(1, subject()).len(), 1);
}

#[test]
fn a_block_is_renewed_before_it_ends_while_the_attack_lasts() {
    let mut net = Net::four();
    for _ in 0..380 {
        net.tick(10 * S);
        net.sees(1, subject());
        net.sees(2, subject());
        net.run();
    }
    assert!(net.decided(3, subject()).len() >= 2);
    assert!((1..=4).all(|i| net.blocks(i, subject())));
}

#[test]
fn a_peer_that_comes_back_is_told_in_messages_of_bounded_size() {
    let mut net = Net::new(&["a", "b"]);
    net.disconnect(1, 2);
    // Decisions made while alone would need both; so decide together first, then forget.
    net.connect_all();
    for n in 0..300 {
        net.sees(1, address(n));
        net.sees(2, address(n));
        net.run();
    }
    net.add(2, records(&["a", "b"]));
    // Twice in this second they met already.
    net.now += S;
    net.disconnect(1, 2);
    net.connect(1, 2);
    net.run();
    assert_eq!(net.engines[&2].decisions().count(), 300);
}
