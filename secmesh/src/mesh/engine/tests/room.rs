//! What has room where there is little: certified evidence, and what the operator undoes.

use super::standings::{an_epoch, begun, says, seconds};
use super::*;
use crate::mesh::decision::OperatorRelease;
use crate::mesh::evidence::OutcomeKind;
use crate::mesh::evidence::testing::outcome;

fn address(i: u8) -> Prefix {
    format!("198.51.100.{i}").parse().unwrap()
}

#[test]
fn what_is_certified_is_taken_however_small_its_authors_share_has_become() {
    let mut net = begun(Net::four());
    for i in 1..=5 {
        says(&mut net, 1, outcome(OutcomeKind::Hit, address(i), &[2]));
    }
    an_epoch(&mut net);
    assert_eq!(net.engines[&4].certified_size(&node_id(1)), 5);
    // The mesh has grown: shares are smaller now. And node 4 has a new disk.
    for engine in net.engines.values_mut() {
        engine.statements.max_bytes = 4 * 500;
    }
    net.evidence.remove(&4);
    net.crash(4);
    net.engines.get_mut(&4).unwrap().statements.max_bytes = 4 * 500;
    net.links.clear();
    net.connect_all();
    seconds(&mut net, 20);
    assert_eq!(net.engines[&4].evidence().head(&node_id(1)).size, 5);
    assert!(net.engines[&4].trust().whole);
    // What nobody has certified yet has to keep to the share.
    says(&mut net, 1, outcome(OutcomeKind::Hit, address(6), &[2]));
    assert_eq!(net.engines[&4].evidence().head(&node_id(1)).size, 5);
    assert!(net.refused(4, RefusalReason::TooMuchEvidence) > 0);
    an_epoch(&mut net);
    let hashes: BTreeSet<Hash> = net
        .engines
        .values()
        .map(|e| e.roster().epoch_hash())
        .collect();
    assert_eq!((hashes.len(), net.roster().epoch()), (1, 3));
}

/// As many blocks as there may be; of no subject that is known.
fn fill(net: &mut Net) {
    net.sees(1, address(1));
    net.sees(2, address(1));
    net.run();
    let one = net.engines[&1].active_block(&address(1)).unwrap().clone();
    for engine in net.engines.values_mut() {
        let mut n = 0_u64;
        while engine.decisions.len() < MAX_DECISIONS {
            let mut id = DecisionId([0xff; 32]);
            id.0[..8].copy_from_slice(&n.to_be_bytes());
            engine.decisions.insert(id, Decision { id, ..one.clone() });
            n += 1;
        }
    }
}

#[test]
fn blocks_without_number_do_not_take_the_operators_way_out() {
    let mut net = Net::four();
    for i in [1, 2] {
        net.sees(i, subject());
    }
    net.run();
    fill(&mut net);
    let late = address(9);
    net.sees(1, late);
    net.sees(2, late);
    net.run();
    assert!(!net.blocks(1, late));
    assert!(net.refused(1, RefusalReason::Full) > 0);
    // A release, and a quarantine by proof.
    let draft = net.engines[&1].draft_order(Action::release(subject()), net.now, 60);
    let signed = Some(Box::new(draft.sign(&operator())));
    let subject = subject();
    net.input(1, Input::OperatorRelease { subject, signed });
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, subject)), "no way out");
    fill(&mut net);
    net.equivocate();
    assert!((1..=3).all(|i| net.cut_off(i, 4)));
    net.order(1, Action::readmit(node_id(4)));
    assert!((1..=3).all(|i| !net.cut_off(i, 4)));
    // When there is room again, what was refused is decided with the next vote.
    for engine in net.engines.values_mut() {
        engine.decisions.retain(|id, _| id.0[8..] != [0xff; 24]);
    }
    net.sees(3, late);
    net.settle(3);
    assert!((1..=3).all(|i| net.blocks(i, late)));
}

#[test]
fn an_announcement_that_names_another_incident_keeps_nobody_from_asking() {
    let mut net = Net::four();
    for i in [1, 2] {
        net.sees(i, subject());
        net.run();
    }
    let known = net.engines[&3].active_block(&subject()).unwrap().clone();
    // Node 3 misses the second one.
    net.split(&[1, 2, 4], &[3]);
    for i in [1, 2] {
        net.sees(i, address(1));
    }
    net.run();
    let missed = net.engines[&1].active_block(&address(1)).unwrap().clone();
    assert!(!net.blocks(3, address(1)));
    net.outputs.remove(&3);
    let announce = |incident| {
        Message::Decided(crate::mesh::message::Announcement {
            decision: missed.id,
            incident,
            round: 0,
        })
    };
    net.inject(4, 3, &announce(known.incident));
    net.inject(1, 3, &announce(missed.incident));
    let wants = |net: &Net, to: u8| {
        let want = Message::WantDecision(missed.id).to_bytes();
        let to = node_id(to);
        let sent = net.outputs.get(&3).into_iter().flatten();
        sent.filter(|o| matches!(o, Output::Send { to: t, bytes } if *t == to && *bytes == want))
            .count()
    };
    assert_eq!(wants(&net, 4), 1);
    net.queue.clear();
    for _ in 0..3 {
        net.tick(S);
    }
    assert_eq!(wants(&net, 1), 1, "who has it was forgotten");
}

#[test]
fn the_word_of_who_was_cut_off_since_stops_no_readmission() {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    for i in 1..=4 {
        net.is_attacked(i, 7);
        net.run();
    }
    net.settle(6);
    assert!(net.cut_off(1, 7));
    net.now += 601 * S;
    net.settle(1);
    net.input(1, Input::OperatorReadmit { node: node_id(7) });
    net.run();
    let no = vote_of(&net, 6, Action::readmit(node_id(7)), Verdict::Reject, 900);
    for to in 1..=5 {
        net.inject(6, to, &no);
    }
    // Node 6 has said no, and is cut off while the others still wait.
    net.order(2, OperatorRelease::quarantine(node_id(6)));
    assert!(net.cut_off(1, 6) && net.cut_off(1, 7));
    net.settle(4);
    assert!((1..=5).all(|i| !net.cut_off(i, 7)));
}

#[test]
fn a_newcomer_that_no_record_has_room_for_waits_and_stops_nobody() {
    use crate::mesh::epoch::{Chain, EpochRecord};
    use crate::mesh::evidence::LogHead;
    let zones: Vec<String> = (0..64).map(|n| format!("z{n}")).collect();
    let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
    for (authors, room) in [(900_u16, true), (1_000, false)] {
        // As many have left the mesh, and what they said stays.
        let mut engine = engine(1, records(&zones));
        let mut record: EpochRecord = engine.epoch().unwrap().record.clone();
        // Where it is not known who was in the last epochs, none of them is left out.
        record.number = 100;
        for n in 0..authors {
            let mut author = NodeId([0xee; 16]);
            author.0[..2].copy_from_slice(&n.to_be_bytes());
            let (size, root) = (1, Hash([1; 32]));
            record.frontier.set(author, LogHead { size, root }).unwrap();
        }
        engine.chain = Chain::default();
        engine.chain.push(CertifiedEpoch::first(record));
        let joiner = by_ticket(100, "new", 0x70);
        engine.seen.insert(joiner.record.node);
        let (policy, mut out) = (TestPolicy::default(), Vec::new());
        engine.handle(T0, Input::Admit(Box::new(joiner)), &policy, &mut out);
        assert_eq!(engine.left_out(), usize::from(!room));
        assert_eq!(engine.is_membership_due(), room, "it would be due for ever");
        // The operator's removal is not kept from the next record.
        let removal = epochs::removal(64, T0);
        engine.handle(T0, Input::Remove(Box::new(removal)), &policy, &mut out);
        assert!(engine.is_membership_due());
    }
}
