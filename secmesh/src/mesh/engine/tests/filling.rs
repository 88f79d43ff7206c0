//! Epochs in the middle that a node has skipped.

use super::standings::{an_epoch, four, says, seconds};
use super::*;
use crate::mesh::evidence::Ruling;
use crate::mesh::evidence::testing::verdict;
use crate::mesh::trust::WINDOW;

/// Node 4 is away for so many epochs.
fn away(epochs: usize) -> Net {
    let mut net = four();
    net.split(&[4], &[1, 2, 3]);
    says(
        &mut net,
        1,
        verdict(subject(), Ruling::FalsePositive, &[2], T0),
    );
    for _ in 0..epochs {
        an_epoch(&mut net);
    }
    net
}

/// The latest epoch, and the one that it names, reach node 4 before all others: whoever wants to can send them so.
fn skips(net: &mut Net, from: u8) {
    let early = net.engines[&4].roster().epoch();
    net.connect(4, from);
    net.queue.clear();
    let epochs = net.engines[&1].epochs();
    let last: Vec<CertifiedEpoch> = epochs[epochs.len() - 2..].to_vec();
    for epoch in &last {
        net.inject(from, 4, &Message::Epoch(Box::new(epoch.clone())));
    }
    net.queue.clear();
    let engine = &net.engines[&4];
    assert_eq!(engine.roster().epoch(), last[1].record.number);
    assert_eq!(engine.gap_after(), Some(early));
    assert!(!engine.trust().whole, "by what it has not");
}

fn computes_the_same(net: &Net) {
    assert_eq!(net.engines[&4].gap_after(), None);
    assert!(net.engines[&4].trust().whole);
    assert_eq!(
        format!("{:?}", net.engines[&1].trust()),
        format!("{:?}", net.engines[&4].trust())
    );
}

#[test]
fn who_skipped_epochs_asks_for_them_and_computes_the_same() {
    let mut net = away(5);
    skips(&mut net, 1);
    for i in 2..=3 {
        net.connect(4, i);
    }
    seconds(&mut net, 60);
    computes_the_same(&net);
    // They are a part of what it knows, and were checked: it can tell others.
    assert_eq!(net.engines[&4].epochs(), net.engines[&1].epochs());
    let stored = net.engines[&4].stored_epochs().to_bytes();
    net.epochs.insert(4, stored);
    let tip = net.engines[&4].roster().epoch();
    net.crash(4);
    assert_eq!(net.engines[&4].roster().epoch(), tip);
}

#[test]
fn a_liar_that_sends_the_first_of_a_long_gap_again_and_again_keeps_nobody_from_filling_it() {
    let mut net = away(WINDOW + 8);
    let early = net.engines[&4].roster().epoch();
    skips(&mut net, 2);
    for i in [1, 3] {
        net.connect(4, i);
    }
    let first = net.engines[&1].epochs().iter();
    let first = first.clone().find(|e| e.record.number == early + 1);
    let first = Message::Epoch(Box::new(first.unwrap().clone()));
    for _ in 0..150 {
        // Before, between and after what the others send.
        net.inject(2, 4, &first);
        net.tick(S);
        net.inject(2, 4, &first);
        while !net.queue.is_empty() {
            let packet = net.queue.remove(0);
            let is_answer = (packet.from, packet.to) == (2, 4);
            if !is_answer {
                net.deliver(&packet);
            }
            net.inject(2, 4, &first);
        }
    }
    computes_the_same(&net);
    an_epoch(&mut net);
    assert_eq!(
        net.engines[&4].roster().epoch(),
        net.engines[&1].roster().epoch()
    );
}

#[test]
fn a_gap_is_filled_as_far_as_the_standings_go_where_nobody_keeps_the_rest() {
    let mut net = away(WINDOW + 8);
    skips(&mut net, 1);
    for i in 1..=3 {
        let engine = net.engines.get_mut(&i).unwrap();
        while engine.drop_one_epoch() {}
        assert!(engine.epochs().len() <= WINDOW + 2);
    }
    for i in 2..=3 {
        net.connect(4, i);
    }
    seconds(&mut net, 90);
    computes_the_same(&net);
    let tip = net.engines[&4].roster().epoch();
    // And it understands what it has put on the disk.
    let stored = net.engines[&4].stored_epochs().to_bytes();
    net.epochs.insert(4, stored);
    net.crash(4);
    assert_eq!(net.engines[&4].roster().epoch(), tip);
}

#[test]
fn other_epochs_than_those_of_this_mesh_fill_no_gap() {
    let mut net = away(5);
    let early = net.engines[&4].roster().epoch();
    skips(&mut net, 1);
    let good: Vec<CertifiedEpoch> = net.engines[&1].epochs().to_vec();
    let asked = |net: &mut Net| {
        let policy = net.policies[&4].clone();
        let mut out = Vec::new();
        let mut call = Call {
            now: net.now,
            policy: &policy,
            out: &mut out,
        };
        let engine = net.engines.get_mut(&4).unwrap();
        assert!(engine.ask_to_fill(&mut call));
    };
    asked(&mut net);
    for epoch in good.iter().filter(|e| e.record.number > early) {
        let mut other = epoch.clone();
        if epoch.record.number == early + 3 {
            other.record.members[0].weight += 1;
        }
        net.inject(1, 4, &Message::Epoch(Box::new(other)));
    }
    assert!(net.engines[&4].gap_after().is_some());
    // Nor do those that another peer sends.
    asked(&mut net);
    net.connect(4, 2);
    net.queue.clear();
    for epoch in good.iter().filter(|e| e.record.number > early) {
        net.inject(2, 4, &Message::Epoch(Box::new(epoch.clone())));
    }
    assert_eq!(net.engines[&4].gap_after(), Some(early));
    for epoch in good.iter().filter(|e| e.record.number > early) {
        net.inject(1, 4, &Message::Epoch(Box::new(epoch.clone())));
    }
    computes_the_same(&net);
}
