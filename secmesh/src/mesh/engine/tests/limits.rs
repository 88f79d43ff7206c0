//! The budget and the circuit breaker, for what is decided and for what is under way.

use super::*;

const TEN: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// Which of these nodes `i` has cut off.
fn gone(net: &Net, i: u8, nodes: std::ops::RangeInclusive<u8>) -> Vec<u8> {
    nodes.filter(|node| net.cut_off(i, *node)).collect()
}

#[test]
fn nodes_framed_at_once_are_not_cut_off_beyond_budget_and_breaker() {
    // What each of them sees, all within one round trip.
    let mut net = Net::new(&TEN);
    for i in 1..=6 {
        for bad in 7..=10 {
            net.is_attacked(i, bad);
        }
    }
    net.run();
    net.settle(150);
    assert_eq!(gone(&net, 1, 1..=10).len(), 2, "the budget of an hour");
    assert_eq!(net.engines[&1].quorum().state, QuorumLevel::Full);
    // The breaker at four: one may go, and then no other.
    let mut net = Net::four();
    for i in 1..=2 {
        for bad in 3..=4 {
            net.is_attacked(i, bad);
        }
    }
    net.is_attacked(3, 4);
    net.is_attacked(4, 3);
    net.run();
    net.settle(150);
    assert_eq!(gone(&net, 1, 1..=4).len(), 1);
    assert!(net.refused(1, RefusalReason::CircuitBreaker) > 0);
}

#[test]
fn what_was_voted_for_before_a_restart_counts() {
    let mut net = Net::new(&TEN);
    net.is_attacked(1, 8);
    net.is_attacked(1, 9);
    net.crash(1);
    net.connect_all();
    for peer in 2..=10 {
        net.input(1, Input::PeerUp(node_id(peer)));
    }
    let votes = net.own_verdicts(1).len();
    net.is_attacked(1, 10);
    assert_eq!(net.own_verdicts(1).len(), votes, "a third within the hour");
    assert!(net.refused(1, RefusalReason::OverBudget) > 0);
}

#[test]
fn nodes_that_voted_for_different_ones_come_to_decide_some() {
    let zones: Vec<String> = (b'a'..=b'l').map(|z| char::from(z).to_string()).collect();
    let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
    let mut net = Net::new(&zones);
    // Half of them see two first, and half the two others: each has voted for as many as it may.
    let see = |net: &mut Net| {
        for i in 1..=8 {
            let order = if i <= 4 {
                [9, 10, 11, 12]
            } else {
                [11, 12, 9, 10]
            };
            for bad in order {
                net.is_attacked(i, bad);
            }
        }
    };
    see(&mut net);
    net.run();
    assert!(gone(&net, 1, 1..=12).is_empty(), "no two thirds for any");
    for _ in 0..8 {
        net.settle(60);
        see(&mut net);
        net.run();
    }
    assert_eq!(gone(&net, 1, 1..=12).len(), 2);
    net.nobody_contradicts_itself();
}

#[test]
fn a_node_that_two_incidents_are_about_is_one_on_the_budget() {
    let mut net = Net::new(&TEN);
    // Half see attacks, and half garbage: two classes, and two incidents.
    for i in 1..=4 {
        net.is_attacked(i, 8);
    }
    for i in 5..=7 {
        for _ in 0..32 {
            net.input(i, Input::Garbage(node_id(8)));
        }
    }
    net.run();
    net.settle(6);
    assert!((1..=7).all(|i| net.cut_off(i, 8)));
    for bad in [9, 10] {
        for i in 1..=5 {
            net.is_attacked(i, bad);
            net.run();
        }
        net.settle(6);
    }
    assert_eq!(gone(&net, 1, 1..=10), [8, 9], "two nodes, no more");
}

#[test]
fn who_is_cut_off_is_not_voted_on_again() {
    let mut net = Net::four();
    for i in [1, 2] {
        net.is_attacked(i, 4);
        net.run();
    }
    assert!(net.cut_off(3, 4));
    let votes = net.own_verdicts(3).len();
    // A second incident on it, of those that have not heard yet.
    let again = Action::quarantine(node_id(4), AttackClass::MeshAbuse);
    for (i, sequence) in [(1, 900), (2, 901)] {
        let vote = vote_of(&net, i, again, Verdict::Confirm, sequence);
        net.inject(i, 3, &vote);
    }
    assert_eq!(net.own_verdicts(3).len(), votes);
}

#[test]
fn networks_under_way_count_like_those_that_are_blocked() {
    let mut net = Net::four();
    let network = |n: u8| -> Prefix { format!("198.51.{n}.0/24").parse().unwrap() };
    for n in 0..80 {
        for i in 1..=4 {
            net.sees_class(i, network(n), AttackClass::Network);
        }
    }
    net.run();
    let blocked = (0..80).filter(|n| net.blocks(1, network(*n))).count();
    assert_eq!(blocked, MAX_NETWORKS);
}

#[test]
fn who_does_not_answer_is_not_left_for_the_breaker() {
    let mut net = Net::four();
    // Still connected, and silent.
    let input = Input::Liveness {
        node: node_id(3),
        now: Liveness::Down,
    };
    net.input(1, input);
    net.is_attacked(1, 4);
    assert_eq!(net.own_verdicts(1), [], "voted with 200 of 267 left");
    assert_eq!(net.refused(1, RefusalReason::CircuitBreaker), 1);
}

#[test]
fn who_is_heard_of_only_is_not_left_for_the_breaker() {
    let mut net = Net::four();
    net.input(1, Input::PeerDown(node_id(3)));
    // Others say that it answers them: it may vote, but who says so may lie.
    let input = Input::Liveness {
        node: node_id(3),
        now: Liveness::Alive,
    };
    net.input(1, input);
    assert!(net.engines[&1].is_reachable(&node_id(3)));
    net.is_attacked(1, 4);
    assert_eq!(net.own_verdicts(1), [], "voted with 200 of 267 met");
    assert_eq!(net.refused(1, RefusalReason::CircuitBreaker), 1);
}

#[test]
fn wishes_that_too_few_share_keep_no_proved_liar_in() {
    let mut net = Net::new(&TEN);
    // Three operators (none of them more than a third) want two nodes out: as many as an hour allows.
    for i in 1..=3 {
        for node in [9, 10] {
            net.input(
                i,
                Input::OperatorQuarantine {
                    node: node_id(node),
                },
            );
        }
    }
    net.run();
    assert!(gone(&net, 5, 1..=10).is_empty());
    // The six others are not enough without them.
    net.equivocate();
    net.settle(6);
    assert_eq!(gone(&net, 5, 1..=10), [4]);
    // The breaker counts the wishes all the same: with these two and one more out, too few would be left.
    for i in [1, 2, 3, 5, 6] {
        net.is_attacked(i, 8);
    }
    net.run();
    net.settle(60);
    assert_eq!(gone(&net, 5, 1..=10), [4]);
    assert!(net.refused(1, RefusalReason::CircuitBreaker) > 0);
}
