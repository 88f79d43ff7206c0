//! What one message of a member can make this node send is bounded, however often it asks in it.

use super::*;
use crate::mesh::ids::NodeId;
use crate::mesh::inventory::{BUCKETS, Inventory};
use crate::mesh::message::pack;

/// What node 1 sends node 4 for one message that holds this as often as it fits.
fn answers(net: &mut Net, asked: &Message) -> (usize, Vec<Message>) {
    let part = asked.to_bytes();
    let times = (MAX_MESSAGE - 64) / (part.len() + 2);
    let mut batches = pack(std::iter::repeat_n(part, times));
    assert_eq!(batches.len(), 1);
    net.queue.clear();
    net.outputs.clear();
    let bytes = batches.remove(0);
    net.deliver(&Packet {
        from: 4,
        to: 1,
        bytes,
    });
    net.queue.clear();
    let sent = net.outputs[&1].iter().filter_map(|output| match output {
        Output::Send { to, bytes } if *to == node_id(4) => Message::from_bytes(bytes).ok(),
        _ => None,
    });
    (times, sent.collect())
}

fn grown_by_epochs() -> Net {
    let mut net = Net::four();
    for _ in 0..3 {
        net.tick(u64::from(genesis().params.epoch_s) * S);
        net.run();
    }
    assert!(net.roster().epoch() >= 3);
    net
}

#[test]
fn epochs_are_sent_once_a_second() {
    let mut net = grown_by_epochs();
    net.tick(S);
    let (times, sent) = answers(&mut net, &Message::EpochWant(0));
    assert!(times > 1_000);
    assert_eq!(sent.len(), 1);
    assert_eq!(
        net.refused(1, RefusalReason::TooOften),
        u64::try_from(times).unwrap() - 1
    );
    // Another peer is answered all the same, and this one a second later.
    let want = Message::EpochWant(0);
    net.outputs.clear();
    net.inject(3, 1, &want);
    assert_eq!(net.outputs[&1].len(), 1);
    net.tick(S);
    assert_eq!(answers(&mut net, &want).1.len(), 1);
}

#[test]
fn who_is_ahead_is_asked_a_few_times_a_second() {
    let mut net = grown_by_epochs();
    net.tick(S);
    assert_eq!(answers(&mut net, &Message::EpochWant(u64::MAX)).1.len(), 4);
}

#[test]
fn what_is_missing_is_named_and_told_once_a_second() {
    let mut net = Net::four();
    for i in 0..20 {
        let subject = format!("198.51.100.{i}").parse().unwrap();
        net.sees(1, subject);
        net.sees(2, subject);
        net.run();
    }
    net.tick(S);
    let sums = Inventory::Sums(Box::new([0; BUCKETS]));
    let (times, sent) = answers(&mut net, &Message::Inventory(Box::new(sums)));
    assert!(times > 10);
    assert_eq!(sent.len(), 1);
    let nothing = Inventory::Ids {
        buckets: (0..=u8::MAX).collect(),
        ids: Vec::new(),
    };
    let nothing = Message::Inventory(Box::new(nothing));
    let (times, sent) = answers(&mut net, &nothing);
    assert!(times > 100);
    assert_eq!(sent.len(), 1);
    assert!(net.engines[&1].backlog.is_empty());
    net.tick(S);
    assert_eq!(answers(&mut net, &nothing).1.len(), 1);
}

#[test]
fn the_sizes_of_the_logs_are_told_once_a_second() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    net.tick(60 * S);
    net.run();
    net.tick(S);
    let other = EvidenceMessage::Summary(Hash([7; 32]));
    let (times, sent) = answers(&mut net, &Message::Evidence(Box::new(other)));
    assert!(times > 1_000);
    assert_eq!(sent.len(), 1);
}

#[test]
fn what_is_missing_is_built_only_as_far_as_there_is_room() {
    let mut net = Net::four();
    let peer: NodeId = node_id(4);
    for i in 0..20 {
        let subject = format!("198.51.100.{i}").parse().unwrap();
        net.sees(1, subject);
        net.sees(2, subject);
        net.run();
    }
    let nothing = Inventory::Ids {
        buckets: (0..=u8::MAX).collect(),
        ids: Vec::new(),
    };
    let nothing = Message::Inventory(Box::new(nothing));
    let engine = net.engines.get_mut(&1).unwrap();
    let full: VecDeque<Vec<u8>> = std::iter::repeat_n(vec![0], 1_024).collect();
    engine.backlog.insert(peer, full);
    answers(&mut net, &nothing);
    assert_eq!(net.engines[&1].backlog[&peer].len(), 1_024);
    assert!(net.refused(1, RefusalReason::Full) > 100);
    assert_eq!(net.refused(1, RefusalReason::TooOften), 0);
}
