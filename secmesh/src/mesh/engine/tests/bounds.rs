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
    net.disconnect(1, 2);
    net.connect(1, 2);
    net.run();
    assert_eq!(net.engines[&2].decisions().count(), 300);
}
