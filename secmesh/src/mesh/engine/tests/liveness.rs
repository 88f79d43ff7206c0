//! Who is in reach by the failure detector; and what a node has, in hashes.

use super::*;
use crate::mesh::swim::Liveness;

impl Net {
    fn found(&mut self, by: u8, about: u8, now: Liveness) {
        self.input(
            by,
            Input::Liveness {
                node: node_id(about),
                now,
            },
        );
    }

    fn reach(&self, by: u8) -> (QuorumLevel, u64) {
        let quorum = self.engines[&by].quorum();
        (quorum.state, quorum.reachable_weight)
    }
}

#[test]
fn the_weight_in_reach_is_of_those_who_are_there_and_the_state_follows_it() {
    let mut net = Net::four();
    assert_eq!(net.reach(1), (QuorumLevel::Full, 400));
    net.found(1, 2, Liveness::Suspect);
    assert_eq!(net.reach(1), (QuorumLevel::Full, 400), "it has its moment");
    net.found(1, 2, Liveness::Down);
    assert_eq!(net.reach(1), (QuorumLevel::Full, 300));
    net.found(1, 3, Liveness::Down);
    assert_eq!(net.reach(1), (QuorumLevel::Degraded, 200));
    net.found(1, 4, Liveness::Down);
    assert_eq!(net.reach(1), (QuorumLevel::Isolated, 100));
    // Each change is told once.
    let told = net.outputs[&1]
        .iter()
        .filter(|output| matches!(output, Output::QuorumState(_)))
        .count();
    assert_eq!(told, 3);

    // Not connected: only who answers through others counts.
    net.input(1, Input::PeerDown(node_id(2)));
    net.found(1, 2, Liveness::Suspect);
    assert_eq!(net.reach(1), (QuorumLevel::Isolated, 100));
    net.found(1, 2, Liveness::Alive);
    assert_eq!(net.reach(1), (QuorumLevel::Degraded, 200));
    net.found(1, 2, Liveness::Down);
    // A connection counts at once, whatever was found before.
    net.input(1, Input::PeerUp(node_id(2)));
    assert_eq!(net.reach(1), (QuorumLevel::Degraded, 200));
    // Who is not a member weighs nothing and is not kept.
    net.found(1, 9, Liveness::Alive);
    assert_eq!(net.reach(1), (QuorumLevel::Degraded, 200));
    assert_eq!(net.engines[&1].liveness.len(), 2);
}

#[test]
fn equal_nodes_have_equal_digests_and_each_difference_shows() {
    let mut net = Net::four();
    let now = net.now;
    let digest = |net: &mut Net, i: u8| net.engines.get_mut(&i).unwrap().whole_digest(now);
    let whole = digest(&mut net, 1);
    for i in 2..=4 {
        assert_eq!(digest(&mut net, i), whole);
    }
    for i in 1..=2 {
        net.input(i, Input::OperatorBlock { subject: subject() });
    }
    net.run();
    let decided = digest(&mut net, 1);
    assert_eq!(decided, digest(&mut net, 4));
    assert_eq!(decided.decisions, whole.decisions + 1);
    assert_ne!(
        (&decided.all, &decided.decisions_hash),
        (&whole.all, &whole.decisions_hash)
    );
    assert_eq!(decided.roster, whole.roster);
    // What has ended is in nobody's.
    let later = now + 48 * 3_600 * 1_000_000;
    let ended = net.engines.get_mut(&1).unwrap().whole_digest(later);
    assert_eq!(ended.decisions_hash, whole.decisions_hash);
    net.engines.get_mut(&3).unwrap().zeroed.insert(node_id(2));
    let other = digest(&mut net, 3);
    assert_ne!((other.all, other.liars), (decided.all, decided.liars));
}

#[test]
fn what_is_sent_because_a_peer_lacks_it_is_counted() {
    let mut net = Net::four();
    net.split(&[1, 2, 3], &[4]);
    for i in 1..=2 {
        net.input(i, Input::OperatorBlock { subject: subject() });
    }
    net.run();
    let before: u64 = (1..=4)
        .map(|i| net.engines[&i].sync_counters().entries_sent)
        .sum();
    net.connect_all();
    net.run();
    let after: u64 = (1..=4)
        .map(|i| net.engines[&i].sync_counters().entries_sent)
        .sum();
    assert!((1..=3).contains(&(after - before)), "{before}, {after}");
    assert!(net.engines[&4].decisions().count() > 0);
}
