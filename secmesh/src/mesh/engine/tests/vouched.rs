//! A node whose ticket names an epoch begins there, and with no other history.

use super::catchup::{certified, made_up, member};
use super::epochs::{grown, hashes, length, wait};
use super::*;
use crate::mesh::admission::{EpochMark, Grant};
use crate::mesh::epoch::CertifiedEpoch;

fn granted(ticket: u8, epoch: Option<EpochMark>) -> SignedGrant {
    Grant {
        epoch,
        expires_unix_us: T0 + 1_000_000 * S,
        ..grant(ticket).grant
    }
    .sign(&operator())
}

/// Node `i` with a ticket that names this epoch.
fn joiner(i: u8, epoch: Option<EpochMark>) -> AdmittedRecord {
    let ticket = 0x70 + i;
    record(i, &format!("z{i}")).admit_by_ticket(
        &signer(i),
        granted(ticket, epoch),
        &Signer::from_secret(&[ticket; 32]),
    )
}

fn mark_of(engine: &Engine) -> EpochMark {
    EpochMark {
        number: engine.roster().epoch(),
        hash: engine.roster().epoch_hash(),
    }
}

/// Node `i` with all that a member tells who joins, connected to nobody.
fn add(net: &mut Net, admitted: &AdmittedRecord, i: u8) {
    let mut all: Vec<AdmittedRecord> = net.engines[&1].admissions().cloned().collect();
    all.push(admitted.clone());
    net.add(i, all);
}

/// Epochs 2 to 8 as who has the first node's key makes them up: it alone has weight.
fn forged(net: &Net, newcomer: &AdmittedRecord) -> Vec<CertifiedEpoch> {
    let mut all: Vec<AdmittedRecord> = net.engines[&1].admissions().cloned().collect();
    all.push(newcomer.clone());
    let mut epochs: Vec<CertifiedEpoch> = Vec::new();
    for number in 2..=8 {
        let previous = epochs
            .last()
            .map_or_else(|| roster(&["a"]).epoch_hash(), |epoch| epoch.record.hash());
        let members = all.iter().map(|a| {
            let first = a.record.node == node_id(1);
            member(a, if first { 10_000 } else { 0 }, if first { 1 } else { 2 })
        });
        epochs.push(certified(
            made_up(number, previous, members.collect()),
            &[1],
        ));
    }
    epochs
}

fn show(net: &mut Net, to: u8, epochs: &[CertifiedEpoch]) {
    net.input(to, Input::PeerUp(node_id(1)));
    for epoch in epochs {
        net.inject(1, to, &Message::Epoch(Box::new(epoch.clone())));
    }
}

#[test]
fn a_history_that_the_first_nodes_key_makes_up_is_not_the_one_of_the_ticket() {
    let mut net = grown();
    let mark = mark_of(&net.engines[&2]);
    assert_eq!(mark.number, 4);
    let (wary, naive) = (joiner(5, Some(mark)), joiner(6, None));
    add(&mut net, &wary, 5);
    add(&mut net, &naive, 6);
    for (i, newcomer) in [(5, &wary), (6, &naive)] {
        let epochs = forged(&net, newcomer);
        show(&mut net, i, &epochs);
    }
    // That such a history holds where no ticket stands against it is what the ticket is for.
    assert_eq!(net.engines[&6].roster().epoch(), 8);
    assert_eq!(net.engines[&5].awaited(), Some(mark));
    assert_eq!(net.engines[&5].roster().epoch(), 0);
    assert!(net.refused(5, RefusalReason::NotOfTicket) >= 1);
    // Nor is there anything that one node decides for this one.
    let alone = certificate(&roster(&["a"]), block(subject()), &[(1, Verdict::Confirm)]);
    net.inject(1, 5, &Message::Certificate(Box::new(alone)));
    assert!(!net.blocks(5, subject()));

    net.engines.remove(&6);
    net.input(2, Input::Admit(Box::new(wary)));
    net.connect_all();
    wait(&mut net, 10);
    assert_eq!(hashes(&net).len(), 1);
    assert!(net.engines[&5].roster().get(&node_id(5)).is_some());
    assert_eq!(net.engines[&5].awaited(), None);
    // Later either: what is known by now does not include the first epoch's one key.
    let later = certified(
        made_up(
            net.engines[&5].roster().epoch() + 1,
            net.engines[&5].roster().epoch_hash(),
            forged(&net, &joiner(7, None))[0].record.members.clone(),
        ),
        &[1],
    );
    let before = net.engines[&5].roster().epoch_hash();
    net.inject(1, 5, &Message::Epoch(Box::new(later)));
    assert_eq!(net.engines[&5].roster().epoch_hash(), before);
}

#[test]
fn a_history_that_leaves_the_vouched_epoch_out_is_refused_and_the_right_one_taken_after_it() {
    let mut net = grown();
    let mark = mark_of(&net.engines[&2]);
    let newcomer = joiner(5, Some(mark));
    add(&mut net, &newcomer, 5);
    let mut epochs = forged(&net, &newcomer);
    epochs.retain(|epoch| epoch.record.number != mark.number);
    show(&mut net, 5, &epochs);
    assert_eq!(net.engines[&5].roster().epoch(), 0);
    assert!(net.refused(5, RefusalReason::NotOfTicket) >= 1);
    net.input(2, Input::Admit(Box::new(newcomer)));
    net.connect_all();
    wait(&mut net, 10);
    assert_eq!(hashes(&net).len(), 1);
}

#[test]
fn the_first_epoch_has_to_be_the_tickets_too() {
    let mut net = Net::new(&["a"]);
    let mark = mark_of(&net.engines[&1]);
    let hash = Hash([7; 32]);
    for (mark, begins) in [(mark, 1), (EpochMark { hash, ..mark }, 0)] {
        let newcomer = joiner(5, Some(mark));
        add(&mut net, &newcomer, 5);
        assert_eq!(net.engines[&5].roster().epoch(), begins);
    }
}

#[test]
fn who_joins_late_has_the_epochs_of_before_too_and_keeps_them_over_a_restart() {
    let mut net = grown();
    for _ in 0..80 {
        net.tick(length());
        wait(&mut net, 2);
    }
    let mark = mark_of(&net.engines[&3]);
    assert!(mark.number > 80);
    // The mesh goes on before the ticket is used.
    for _ in 0..80 {
        net.tick(length());
        wait(&mut net, 2);
    }
    let newcomer = joiner(5, Some(mark));
    add(&mut net, &newcomer, 5);
    net.input(2, Input::Admit(Box::new(newcomer)));
    net.connect_all();
    wait(&mut net, 60);
    assert_eq!(hashes(&net).len(), 1);
    let kept = |net: &Net, i: u8| -> Vec<u64> {
        let epochs = net.engines[&i].epochs();
        epochs.iter().map(|e| e.record.number).collect()
    };
    let tip = net.roster().epoch();
    assert!(kept(&net, 5).into_iter().eq(1..=tip), "{:?}", kept(&net, 5));
    assert_eq!(
        net.engines[&5].trust().nodes.len(),
        net.engines[&1].trust().nodes.len()
    );
    net.tick(length());
    wait(&mut net, 5);
    net.crash(5);
    let tip = net.engines[&5].roster().epoch();
    assert!(kept(&net, 5).into_iter().eq(1..=tip));
    // As short as it may be: what it began with stays, or nothing after it would be believed.
    let engine = net.engines.get_mut(&5).unwrap();
    while engine.drop_one_epoch() {}
    let short = kept(&net, 5);
    assert_eq!(short[0], mark.number);
    assert!(short.len() < 70, "{short:?}");
    let bytes = net.engines[&5].stored_epochs().to_bytes();
    net.epochs.insert(5, bytes);
    net.crash(5);
    assert_eq!(kept(&net, 5), short);
    net.links.clear();
    net.connect_all();
    wait(&mut net, 5);
    assert_eq!(hashes(&net).len(), 1);
}

#[test]
fn members_keep_the_epoch_of_a_ticket_that_nobody_has_used_yet() {
    let mut net = grown();
    let mark = mark_of(&net.engines[&1]);
    net.input(1, Input::OpenGrant(Box::new(granted(0x75, Some(mark)))));
    net.run();
    for _ in 0..80 {
        net.tick(length());
        wait(&mut net, 2);
    }
    // One that the members were told nothing of: as if they had kept more tickets than they do.
    let other = net.engines[&1].epochs()[6].record.clone();
    let forgotten = EpochMark {
        number: other.number,
        hash: other.hash(),
    };
    for i in 1..=4 {
        let engine = net.engines.get_mut(&i).unwrap();
        while engine.drop_one_epoch() {}
        let kept: Vec<u64> = engine.epochs().iter().map(|e| e.record.number).collect();
        assert!(kept.contains(&mark.number), "node {i}: {kept:?}");
        assert!(!kept.contains(&forgotten.number), "node {i}: {kept:?}");
    }
    let newcomer = joiner(5, Some(mark));
    add(&mut net, &newcomer, 5);
    net.input(2, Input::Admit(Box::new(newcomer)));
    net.connect_all();
    wait(&mut net, 20);
    assert_eq!(hashes(&net).len(), 1);
    assert!(net.engines[&5].roster().get(&node_id(5)).is_some());

    let newcomer = joiner(6, Some(forgotten));
    add(&mut net, &newcomer, 6);
    net.input(2, Input::Admit(Box::new(newcomer)));
    net.connect_all();
    wait(&mut net, 20);
    assert_eq!(net.engines[&6].awaited(), Some(forgotten));
    assert!(net.refused(6, RefusalReason::NotOfTicket) >= 1);
}

#[test]
fn epochs_are_kept_for_so_many_tickets_and_the_latest() {
    let mut net = Net::new(&["a"]);
    net.input(1, Input::OpenGrant(Box::new(grant(0x70))));
    for number in 1..=300_u16 {
        let mut signed = granted(0x71, None).grant;
        signed.ticket = TicketId([number.to_be_bytes(); 8].concat().try_into().unwrap());
        signed.epoch = Some(EpochMark {
            number: u64::from(number),
            hash: Hash([1; 32]),
        });
        net.input(1, Input::OpenGrant(Box::new(signed.sign(&operator()))));
    }
    let pinned = net.engines[&1].pinned_epochs();
    assert_eq!(pinned.len(), super::super::vouched::MAX_PINNED);
    assert!(pinned.into_iter().eq(45..=300));
}

#[test]
fn who_was_told_of_few_members_hears_of_the_others_and_begins_then() {
    let mut net = grown();
    let mark = mark_of(&net.engines[&2]);
    let newcomer = joiner(5, Some(mark));
    net.add(5, vec![admitted(1, "a"), newcomer.clone()]);
    net.input(1, Input::Admit(Box::new(newcomer)));
    net.connect_all();
    wait(&mut net, 10);
    assert_eq!(hashes(&net).len(), 1);
    assert!(net.engines[&5].roster().get(&node_id(5)).is_some());
}
