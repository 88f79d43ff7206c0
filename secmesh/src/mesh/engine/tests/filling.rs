//! Epochs in the middle that a node has skipped.

use super::catchup::{certified, made_up, member};
use super::epochs::{grown, hashes, length, wait};
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

/// A mesh that one node began, long after; and node 5, admitted without a word on the epoch to begin with, which has
/// heard of the latest epoch before all others.
fn late_comer() -> Net {
    let mut net = grown();
    for _ in 0..2 * WINDOW {
        net.tick(length());
        wait(&mut net, 2);
    }
    let newcomer = record(5, "e").admit_by_operator(&signer(5), &operator());
    let mut known: Vec<AdmittedRecord> = net.engines[&1].admissions().cloned().collect();
    known.retain(|admitted| admitted.record.node != node_id(5));
    net.add(5, known);
    net.connect(5, 1);
    net.queue.clear();
    let epochs = net.engines[&1].epochs();
    let last: Vec<CertifiedEpoch> = epochs[epochs.len() - 2..].to_vec();
    for epoch in &last {
        net.inject(1, 5, &Message::Epoch(Box::new(epoch.clone())));
    }
    net.queue.clear();
    let _ = newcomer;
    assert_eq!(numbers(&net, 5).len(), 3);
    net
}

fn numbers(net: &Net, i: u8) -> Vec<u64> {
    let epochs = net.engines[&i].epochs();
    epochs.iter().map(|e| e.record.number).collect()
}

/// An epoch further on, and the one that it names, as who has the first node's key makes them up.
fn made_up_by_the_first_node(net: &mut Net) -> bool {
    let tip = net.engines[&5].roster().epoch();
    let all: Vec<AdmittedRecord> = net.engines[&1].admissions().cloned().collect();
    let record = |number, previous| {
        let members = all.iter().map(|a| {
            let first = a.record.node == node_id(1);
            member(a, if first { 10_000 } else { 0 }, 1)
        });
        made_up(number, previous, members.collect())
    };
    let link = certified(record(tip + 4, Hash([7; 32])), &[1]);
    let next = certified(record(tip + 5, link.record.hash()), &[1]);
    for epoch in [link, next] {
        net.inject(1, 5, &Message::Epoch(Box::new(epoch)));
    }
    net.queue.clear();
    net.engines[&5].roster().epoch() != tip
}

#[test]
fn the_first_nodes_key_alone_carries_nobody_over_a_gap_who_knows_more() {
    let mut net = late_comer();
    assert_eq!(numbers(&net, 5)[0], 1);
    assert!(!made_up_by_the_first_node(&mut net));
    // Nor after a restart, when only the standings' epochs have come.
    let stored = net.engines[&5].stored_epochs().to_bytes();
    net.epochs.insert(5, stored);
    net.crash(5);
    assert_eq!(numbers(&net, 5).len(), 3);
    net.input(5, Input::PeerUp(node_id(1)));
    net.queue.clear();
    assert!(!made_up_by_the_first_node(&mut net));
}

#[test]
fn who_jumped_over_all_that_came_after_the_first_epoch_fills_it_in() {
    let mut net = late_comer();
    net.connect_all();
    seconds(&mut net, 150);
    assert_eq!(hashes(&net).len(), 1);
    let tip = net.roster().epoch();
    assert!(
        numbers(&net, 5).into_iter().eq(1..=tip),
        "{:?}",
        numbers(&net, 5)
    );
    computes_the_same_as_others(&net);
}

fn computes_the_same_as_others(net: &Net) {
    let trust = |i: u8| format!("{:?}", net.engines[&i].trust());
    assert!(net.engines[&5].trust().whole);
    assert_eq!(trust(5), trust(1));
}

#[test]
fn what_nobody_keeps_any_more_is_asked_for_a_few_times_and_then_no_more() {
    let mut net = late_comer();
    for i in 1..=4 {
        let engine = net.engines.get_mut(&i).unwrap();
        while engine.drop_one_epoch() {}
        // From one node to four without a gap, for whoever begins there.
        let kept = numbers(&net, i);
        assert_eq!(kept[..4], [1, 2, 3, 4], "{kept:?}");
        assert!(kept.len() < WINDOW + 8, "{kept:?}");
    }
    net.connect_all();
    seconds(&mut net, 400);
    computes_the_same_as_others(&net);
    let asked = |net: &Net| {
        let sent = net.outputs[&5].iter();
        let wants = sent.filter_map(|output| match output {
            Output::Send { bytes, .. } => match Message::from_bytes(bytes) {
                Ok(Message::EpochWant(number)) => Some(number),
                _ => None,
            },
            _ => None,
        });
        wants.filter(|n| *n < net.roster().epoch() - 4).count()
    };
    let before = asked(&net);
    assert!(before > 0);
    seconds(&mut net, 200);
    assert_eq!(asked(&net), before);
}
