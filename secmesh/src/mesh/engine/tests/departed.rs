//! What nodes that have left stated: it ends with the window, on all nodes alike, and what it proved stays.

use super::catchup::member;
use super::epochs::{hashes, length, removal, wait};
use super::standings::{an_epoch, begun, says};
use super::*;
use crate::mesh::admission::{EpochMark, Grant};
use crate::mesh::evidence::testing::{equivocation, outcome, verdict};
use crate::mesh::evidence::{
    Body, Dossier, Frontier, LogHead, OperatorVerdict, OutcomeKind, ProofKind, Ruling, Statement,
};
use crate::mesh::trust::WINDOW;

/// The last epoch whose record has evidence of who was in epoch `last` and in none after it.
const fn read_until(last: u64) -> u64 {
    last + WINDOW as u64 + 1
}

/// Seven nodes; 7 has stated `said` and left. Gives the last epoch that it was in.
fn one_left(said: Vec<Body>) -> (Net, u64) {
    let mut net = begun(Net::new(&["a", "b", "c", "d", "e", "f", "g"]));
    for body in said {
        says(&mut net, 7, body);
    }
    an_epoch(&mut net);
    assert!(certified_of(&net, 1, 7) > 0);
    let last = net.roster().epoch();
    net.input(1, Input::Remove(Box::new(removal(7, net.now))));
    wait(&mut net, 8);
    assert!(net.roster().get(&node_id(7)).is_none());
    assert_eq!(net.roster().epoch(), last + 1);
    net.engines.remove(&7);
    net.links.retain(|(a, b)| *a != 7 && *b != 7);
    (net, last)
}

fn epochs_until(net: &mut Net, number: u64) {
    while net.roster().epoch() < number {
        net.tick(length());
        wait(net, 2);
    }
    assert_eq!(net.roster().epoch(), number);
    assert_eq!(hashes(net).len(), 1);
}

fn certified_of(net: &Net, at: u8, author: u8) -> u64 {
    net.engines[&at].certified_size(&node_id(author))
}

fn kept_of(net: &Net, author: u8) -> Vec<u64> {
    let engines = net.engines.values();
    engines
        .map(|e| e.evidence().head(&node_id(author)).size)
        .collect()
}

fn weight(net: &Net, i: u8) -> u32 {
    net.roster().get(&node_id(i)).unwrap().weight
}

fn proofs(net: &Net, at: u8, of: u8) -> Vec<ProofKind> {
    let trust = net.engines[&at].trust();
    trust.nodes[&node_id(of)].standing.proofs.clone()
}

#[test]
fn who_left_leaves_the_evidence_with_the_window_and_what_it_proved_stays() {
    let (mut net, last) = one_left(vec![
        Body::Misconduct(equivocation(2)),
        outcome(OutcomeKind::Hit, subject(), &[3]),
    ]);
    epochs_until(&mut net, read_until(last));
    assert_eq!(certified_of(&net, 1, 7), 2);
    assert_eq!(kept_of(&net, 7), [2; 6]);
    assert_eq!(weight(&net, 2), 0);
    let before = net.roster().epoch_hash();
    epochs_until(&mut net, read_until(last) + 1);
    assert_eq!(certified_of(&net, 1, 7), 0);
    assert_eq!(kept_of(&net, 7), [0; 6], "all let go of it");
    assert!(net.engines[&1].standings.checked(&node_id(7)).is_empty());
    assert_ne!(net.roster().epoch_hash(), before);
    epochs_until(&mut net, read_until(last) + 6);
    // Nobody but 7 had stated it.
    assert_eq!(weight(&net, 2), 0);
    for i in 1..=6 {
        assert_eq!(proofs(&net, i, 2), [ProofKind::Equivocation], "node {i}");
        assert!(net.engines[&i].trust().whole);
        assert_eq!(net.engines[&i].evidence().len(), 0, "nor is it stated anew");
    }
    // What a node's disk still holds is let go of again, and it goes on as the others.
    assert_eq!(net.evidence[&3].len(), 2);
    net.crash(3);
    assert_eq!(kept_of(&net, 7), [0; 6]);
    net.links.clear();
    net.connect_all();
    let now = net.roster().epoch();
    epochs_until(&mut net, now + 2);
    let trust = |net: &Net, i: u8| format!("{:?}", net.engines[&i].trust());
    assert_eq!(trust(&net, 3), trust(&net, 4));
}

#[test]
fn who_begins_at_a_vouched_epoch_of_later_comes_to_the_same() {
    let (mut net, last) = one_left(vec![
        Body::Misconduct(equivocation(2)),
        verdict(subject(), Ruling::FalsePositive, &[3], T0),
    ]);
    for (i, at) in [(8, read_until(last) - 1), (9, read_until(last) + 2)] {
        epochs_until(&mut net, at);
        let grant = Grant {
            epoch: Some(EpochMark {
                number: net.roster().epoch(),
                hash: net.roster().epoch_hash(),
            }),
            expires_unix_us: net.now + 600 * S,
            ..grant(0x70 + i).grant
        };
        let ticket = Signer::from_secret(&[0x70 + i; 32]);
        let joiner = record(i, "h").admit_by_ticket(&signer(i), grant.sign(&operator()), &ticket);
        net.input(1, Input::Admit(Box::new(joiner)));
        net.run();
        let known = net.engines[&1].admissions().cloned().collect();
        net.add(i, known);
        net.connect_all();
        wait(&mut net, 20);
        assert_eq!(hashes(&net).len(), 1, "node {i}");
        assert!(net.roster().get(&node_id(i)).is_some());
        let (old, new) = (net.engines[&1].trust(), net.engines[&i].trust());
        assert!(new.whole);
        assert_eq!(format!("{old:?}"), format!("{new:?}"));
    }
    // And it finds what the others propose right.
    for i in [8, 9] {
        let proposed = net.engines[&1].fresh_epoch(net.now + length()).unwrap();
        let found = net.engines[&i].fresh_epoch(net.now + length()).unwrap();
        assert_eq!(proposed, found);
    }
    assert_eq!(proofs(&net, 9, 2), [ProofKind::Equivocation]);
}

#[test]
fn a_record_has_to_let_go_when_it_is_time_and_not_before() {
    let (mut net, last) = one_left(vec![outcome(OutcomeKind::Hit, subject(), &[3])]);
    let sound = |net: &Net, change: &dyn Fn(&mut Frontier)| {
        let engine = &net.engines[&1];
        let certified = &engine.chain.tip().unwrap().record.frontier;
        let mut next = engine.proposed_frontier(certified);
        change(&mut next);
        engine.may_rest_on(certified, &next)
    };
    let nothing = |_: &mut Frontier| {};
    let without = |f: &mut Frontier| *f = f.of(|author| *author != node_id(7));
    let with = |f: &mut Frontier| {
        let root = Hash([7; 32]);
        f.set(node_id(7), LogHead { size: 9, root }).unwrap();
    };
    assert!(sound(&net, &nothing));
    assert!(!sound(&net, &without), "too early");
    assert!(!sound(&net, &with), "it has nothing more to say");
    epochs_until(&mut net, read_until(last));
    assert!(sound(&net, &nothing));
    assert!(sound(&net, &without), "it is the same now");
    assert!(!sound(&net, &with), "too late");
    // A member's may grow, and not end.
    let one = node_id(1);
    let grows = |f: &mut Frontier| {
        let root = Hash([7; 32]);
        f.set(one, LogHead { size: 1, root }).unwrap();
    };
    assert!(sound(&net, &grows));
}

#[test]
fn a_verdict_that_has_counted_does_not_count_again_when_who_stated_it_is_forgotten() {
    let stale = verdict(subject(), Ruling::FalsePositive, &[3], T0);
    let (mut net, last) = one_left(vec![stale.clone()]);
    assert!(weight(&net, 3) < 100);
    epochs_until(&mut net, read_until(last) + 1);
    let healed = weight(&net, 3);
    says(&mut net, 4, stale);
    let now = net.roster().epoch();
    epochs_until(&mut net, now + 3);
    assert!(certified_of(&net, 1, 4) == 1 && weight(&net, 3) >= healed);
    // One on what was decided lately does.
    let votes = certificate(net.roster(), block(subject()), &[(3, Verdict::Confirm)]);
    let dossier = Dossier::new(votes).unwrap();
    let fresh = OperatorVerdict {
        mesh: genesis().mesh_id(),
        subject: subject(),
        ruling: Ruling::FalsePositive,
        incidents: vec![dossier.votes().incident()],
        issued_at_us: net.now,
    };
    says(&mut net, 4, Body::Verdict(fresh.sign(&operator()), dossier));
    epochs_until(&mut net, now + 5);
    assert!(weight(&net, 3) < healed, "{}", weight(&net, 3));
}

#[test]
fn logs_of_who_has_left_take_no_room_in_a_record_for_longer_than_the_window() {
    use crate::mesh::epoch::EpochRecord;
    let (mut net, last) = one_left(vec![outcome(OutcomeKind::Hit, subject(), &[3])]);
    let logs = |net: &Net| {
        let engine = &net.engines[&1];
        let certified = &engine.chain.tip().unwrap().record.frontier;
        engine.without_departed(certified).logs().len()
    };
    assert_eq!(logs(&net), 1);
    epochs_until(&mut net, read_until(last));
    assert_eq!(logs(&net), 0);
    // With as many nodes as there may be, so many others.
    let members: Vec<_> = (0..350_u16)
        .map(|n| {
            let mut member = member(&admitted(1, "a"), 100, 1);
            member.record.0[..2].copy_from_slice(&n.to_be_bytes());
            member
        })
        .collect();
    assert!(EpochRecord::has_room(members.len(), 350 + 27));
    assert!(!EpochRecord::has_room(members.len(), 350 + 28));
}

#[test]
fn a_record_with_proofs_has_one_form() {
    use crate::mesh::epoch::EpochRecord;
    let mut record = roster_record();
    let plain = record.to_bytes();
    assert_eq!(EpochRecord::from_bytes(&plain).unwrap(), record);
    record.members[2].proved = ProofKind::ALL.iter().copied().collect();
    let proved = record.to_bytes();
    assert_eq!(proved.len(), plain.len() + record.members.len());
    assert_eq!(EpochRecord::from_bytes(&proved).unwrap(), record);
    let at = |value: u8| {
        let mut bytes = proved.clone();
        // The last byte of the third of four members; behind it stand one more, and two for no logs.
        let place = bytes.len() - 45 - 2 - 1;
        assert_eq!(bytes[place], 0b1_1111);
        bytes[place] = value;
        EpochRecord::from_bytes(&bytes)
    };
    assert!(at(0b1).is_ok());
    assert!(at(0).is_err(), "it has another form");
    assert!(at(0b10_0000).is_err(), "nobody knows what that is");
}

fn roster_record() -> crate::mesh::epoch::EpochRecord {
    let engine = engine(1, records(&["a", "b", "c", "d"]));
    engine.epoch().unwrap().record.clone()
}

#[test]
fn what_was_not_certified_of_who_left_is_let_go_of_at_once() {
    let mut left_over = 0;
    for at in 1..=6_u8 {
        let mut net = begun(Net::new(&["a", "b", "c", "d", "e", "f", "g"]));
        says(&mut net, 7, outcome(OutcomeKind::Hit, subject(), &[3]));
        an_epoch(&mut net);
        // Only one has heard this.
        let head = net.engines[&1].evidence().head(&node_id(7));
        let (mesh, signer) = (genesis().mesh_id(), signer(7));
        let place = (head.size, head.root);
        let body = outcome(OutcomeKind::Hit, subject(), &[4]);
        let statement = Statement::new(mesh, &signer, node_id(7), place, net.now, body);
        let set = &mut net.engines.get_mut(&at).unwrap().statements.set;
        set.insert(statement, usize::MAX);
        net.split(&[7], &[1, 2, 3, 4, 5, 6]);
        net.engines.remove(&7);
        net.input(1, Input::Remove(Box::new(removal(7, net.now))));
        net.run();
        for _ in 0..8 {
            net.tick(S / 2);
            net.run();
        }
        assert!(net.roster().get(&node_id(7)).is_none());
        let certified = certified_of(&net, 1, 7);
        assert_eq!(kept_of(&net, 7), [certified; 6], "node {at}");
        left_over += u32::from(certified == 1);
    }
    assert!(left_over > 0, "it was certified each time");
}
