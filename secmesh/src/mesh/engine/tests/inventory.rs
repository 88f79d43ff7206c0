//! A peer that connects is told what it lacks, and nothing that it has.

use super::*;
use crate::mesh::inventory::{BUCKETS, Inventory};

fn messages_of(net: &Net, kinds: impl Fn(&Message) -> bool) -> usize {
    net.outputs
        .values()
        .flatten()
        .filter_map(|output| match output {
            Output::Send { bytes, .. } => Message::from_bytes(bytes).ok(),
            _ => None,
        })
        .flat_map(|message| match message {
            Message::Batch(parts) => parts
                .iter()
                .filter_map(|part| Message::from_bytes(part).ok())
                .collect(),
            other => vec![other],
        })
        .filter(kinds)
        .count()
}

fn subject_number(i: u8) -> Prefix {
    format!("198.51.100.{i}").parse().unwrap()
}

fn decide(net: &mut Net, i: u8) {
    net.sees(1, subject_number(i));
    net.sees(2, subject_number(i));
    net.run();
}

#[test]
fn a_reconnect_tells_nothing_that_is_known() {
    let mut net = Net::four();
    for i in 0..20 {
        decide(&mut net, i);
    }
    net.split(&[4], &[1, 2, 3]);
    net.outputs.clear();
    net.connect(1, 4);
    net.run();
    let told = messages_of(&net, |m| {
        matches!(m, Message::Admission(_) | Message::Certificate(_))
    });
    assert_eq!(told, 0);
    assert_eq!(messages_of(&net, |m| matches!(m, Message::Inventory(_))), 2);
}

#[test]
fn who_was_away_is_told_what_was_decided_meanwhile_and_no_more() {
    let mut net = Net::four();
    for i in 0..20 {
        decide(&mut net, i);
    }
    net.split(&[4], &[1, 2, 3]);
    for i in 20..23 {
        decide(&mut net, i);
        assert!(net.blocks(3, subject_number(i)) && !net.blocks(4, subject_number(i)));
    }
    net.outputs.clear();
    net.connect(1, 4);
    net.run();
    for i in 0..23 {
        assert!(net.blocks(4, subject_number(i)), "{i}");
    }
    assert_eq!(
        messages_of(&net, |m| matches!(m, Message::Certificate(_))),
        3
    );
    assert_eq!(messages_of(&net, |m| matches!(m, Message::Admission(_))), 0);
}

#[test]
fn what_was_lost_on_the_way_is_told_again_without_a_reconnect() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.sees(2, subject());
    // Nothing reaches node 4.
    for _ in 0..1_000 {
        net.queue.retain(|packet| packet.to != 4);
        if net.queue.is_empty() {
            break;
        }
        let packet = net.queue.remove(0);
        net.deliver(&packet);
    }
    assert!(net.blocks(1, subject()) && !net.blocks(4, subject()));
    for _ in 0..240 {
        net.tick(S);
        net.run();
    }
    assert!(net.blocks(4, subject()));
}

/// What node 1 sends node 4 when that says it has this.
fn told(net: &mut Net, inventory: Inventory) -> Vec<Message> {
    net.outputs.clear();
    net.inject(4, 1, &Message::Inventory(Box::new(inventory)));
    net.queue.clear();
    net.outputs[&1]
        .iter()
        .filter_map(|output| match output {
            Output::Send { bytes, .. } => Message::from_bytes(bytes).ok(),
            _ => None,
        })
        .collect()
}

#[test]
fn exactly_what_is_missing_of_a_bucket_is_told() {
    let mut net = Net::four();
    for i in 0..20 {
        decide(&mut net, i);
    }
    net.now += S;
    // A peer that has nothing is named everything.
    let named = told(&mut net, Inventory::Sums(Box::new([0; BUCKETS])));
    let [Message::Inventory(named)] = named.as_slice() else {
        panic!("one message of ids: {named:?}");
    };
    let Inventory::Ids { ids, .. } = &**named else {
        panic!("ids");
    };
    // Four members and twenty decisions.
    assert_eq!(ids.len(), 24);
    let buckets: Vec<u8> = (0..=u8::MAX).collect();
    for lost in [None, Some(3), Some(17)] {
        let ids: Vec<u64> = (0..)
            .zip(ids)
            .filter(|(at, _)| Some(*at) != lost)
            .map(|(_, id)| *id)
            .collect();
        let buckets = buckets.clone();
        // It is told of a bucket once a second.
        net.now += S;
        let sent = told(&mut net, Inventory::Ids { buckets, ids });
        let parts = match sent.as_slice() {
            [] => 0,
            [Message::Batch(parts)] => parts.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(parts, usize::from(lost.is_some()));
    }
}

#[test]
fn a_removal_that_was_lost_on_the_way_is_told_again_without_a_reconnect() {
    // Both that stay are needed, and one has not heard of it.
    let mut net = Net::new(&["a", "b", "c"]);
    net.input(2, Input::Remove(Box::new(epochs::removal(3, net.now))));
    net.queue.clear();
    for _ in 0..240 {
        net.tick(S);
        net.run();
    }
    for i in [1, 2] {
        assert_eq!(net.engines[&i].roster().len(), 2, "node {i}");
    }
}

/// Comparisons that were begun: short ones, that say one hash.
fn comparisons(net: &Net) -> usize {
    messages_of(net, |message| match message {
        Message::Evidence(evidence) => matches!(**evidence, EvidenceMessage::Summary(_)),
        _ => false,
    })
}

#[test]
fn where_nothing_happens_nodes_compare_less_often_and_what_was_lost_is_found_all_the_same() {
    let seconds = |net: &mut Net, n: u64| {
        for _ in 0..n {
            net.tick(S);
            net.run();
        }
    };
    let mut net = Net::four();
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    let decision = net.engines[&1].active_block(&subject()).unwrap().id;
    seconds(&mut net, 60);
    net.outputs.clear();
    seconds(&mut net, 60);
    let quiet = comparisons(&net);
    assert!((4 * 10..=4 * 14).contains(&quiet), "{quiet}");

    // Something is said, and one node does not hear it.
    net.outputs.clear();
    let kind = crate::mesh::evidence::OutcomeKind::Hit;
    let outcome = Input::Outcome {
        decision,
        kind,
        packets: 100,
    };
    net.input(3, outcome);
    net.queue.retain(|packet| packet.to != 4);
    net.run();
    assert_eq!(net.engines[&4].evidence().len(), 0);
    seconds(&mut net, 3);
    for engine in net.engines.values() {
        assert_eq!(engine.evidence().len(), 1);
    }
    net.outputs.clear();
    seconds(&mut net, 20);
    let lively = comparisons(&net);
    assert!(lively >= 4 * 18, "{lively}");
}

/// What node 1 has sent node 4 of some kind since the last call.
fn sent(net: &mut Net, is: impl Fn(&Inventory) -> bool) -> usize {
    net.queue.clear();
    let outputs = net.outputs.remove(&1).unwrap_or_default();
    let sent = outputs.iter().filter_map(|output| match output {
        Output::Send { to, bytes } if *to == node_id(4) => Message::from_bytes(bytes).ok(),
        _ => None,
    });
    sent.filter(|message| matches!(message, Message::Inventory(inventory) if is(inventory)))
        .count()
}

#[test]
fn who_connects_again_and_again_is_told_no_more_than_who_stays() {
    let mut net = Net::four();
    for i in 0..20 {
        decide(&mut net, i);
    }
    net.now += S;
    let (sums, names) = (
        |i: &Inventory| matches!(i, Inventory::Sums(_)),
        |i: &Inventory| matches!(i, Inventory::Ids { .. }),
    );
    net.input(1, Input::PeerDown(node_id(4)));
    net.input(1, Input::PeerUp(node_id(4)));
    sent(&mut net, sums);
    let counted = net.engines[&1].counted.times;
    assert!(counted >= 20);
    let zero = Inventory::Sums(Box::new([0; BUCKETS]));
    let zero = Message::Inventory(Box::new(zero));
    net.now += S;
    for _ in 0..30 {
        net.input(1, Input::PeerDown(node_id(4)));
        net.input(1, Input::PeerUp(node_id(4)));
        net.queue.clear();
    }
    assert!((1..=2).contains(&sent(&mut net, sums)));
    for _ in 0..30 {
        net.input(1, Input::PeerDown(node_id(4)));
        net.input(1, Input::PeerUp(node_id(4)));
        net.inject(4, 1, &zero);
        net.queue.clear();
    }
    assert!((1..=2).contains(&sent(&mut net, names)));
    // It is not forgotten: the rest comes when the second is over.
    net.tick(S);
    let outputs = net.outputs.clone();
    assert_eq!(sent(&mut net, names), 1);
    net.outputs = outputs;
    assert!(sent(&mut net, sums) >= 1);
    assert_eq!(
        net.engines[&1].counted.times, counted,
        "what was counted once is not counted again"
    );
}

#[test]
fn what_was_counted_is_counted_again_when_somebody_is_proved_to_lie() {
    let mut net = Net::four();
    decide(&mut net, 1);
    net.tick(S);
    let id = *net.engines[&1].decisions().next().map(|d| &d.id).unwrap();
    let engine = net.engines.get_mut(&1).unwrap();
    let told = |engine: &mut Engine| !engine.inventory(T0 + S).is_empty();
    assert!(told(engine) && engine.counted.enough.contains(&id));
    // Two of those who confirmed it: without them it is nothing.
    engine.zeroed.extend([node_id(1), node_id(2)]);
    assert!(told(engine) && !engine.counted.enough.contains(&id));
}
