//! Epochs that a node has missed: what it takes, and what it does not.

use super::epochs::{hashes, length, removal, wait};
use super::*;
use crate::mesh::epoch::{
    CertifiedEpoch, EpochMember, EpochParams, EpochRecord, EpochVote, Step, VoteSet,
};
use crate::mesh::evidence::{ProofKind, ProofSet};
use crate::mesh::genesis::Params;
use crate::mesh::trust::WINDOW;

pub(super) fn member(admitted: &AdmittedRecord, weight: u32, since: u64) -> EpochMember {
    EpochMember {
        record: admitted.record.hash(),
        weight,
        since,
        proved: ProofSet::default(),
    }
}

pub(super) fn made_up(number: u64, previous: Hash, members: Vec<EpochMember>) -> EpochRecord {
    let mut members = members;
    members.sort_by_key(|m| m.record);
    EpochRecord {
        mesh: genesis().mesh_id(),
        number,
        previous,
        members,
        params: EpochParams::of(&Params::default()),
        frontier: crate::mesh::evidence::Frontier::default(),
    }
}

pub(super) fn certified(record: EpochRecord, voters: &[u8]) -> CertifiedEpoch {
    let mut signatures: Vec<_> = voters
        .iter()
        .map(|i| {
            let vote = EpochVote {
                mesh: record.mesh,
                number: record.number,
                previous: record.previous,
                round: 0,
                step: Step::Precommit,
                value: Some(record.hash()),
                voter: node_id(*i),
                incarnation: 1,
            };
            (node_id(*i), vote.sign(&signer(*i)).signature)
        })
        .collect();
    signatures.sort_unstable();
    CertifiedEpoch {
        record,
        precommits: VoteSet {
            round: 0,
            signatures,
        },
    }
}

#[test]
fn what_a_minority_of_the_epoch_before_signed_is_no_epoch_whatever_they_weighed_once() {
    // Node 4 was away since the first epoch; twelve are in the mesh by now, and three of the first four have
    // precommitted in a round that decided nothing.
    let mut net = Net::four();
    let mut all = records(&["a", "b", "c", "d"]);
    for i in 5..=12 {
        let joiner = by_ticket(i, &format!("z{i}"), 0x70 + i);
        net.inject(1, 4, &Message::Admission(Box::new(joiner.clone())));
        all.push(joiner);
    }
    net.queue.clear();
    let members: Vec<EpochMember> = all
        .iter()
        .zip(1..)
        .map(|(a, i)| member(a, 100, if i <= 4 { 1 } else { 7 }))
        .collect();
    let link = made_up(19, Hash([19; 32]), members.clone());
    let next = made_up(20, link.hash(), members);
    let light = certified(next.clone(), &[1, 2, 3]);
    let heavy = certified(next, &[1, 2, 3, 5, 6, 7, 8, 9, 10]);
    // And what only those who came later signed: nobody of whom node 4 knows.
    let strangers = certified(heavy.record.clone(), &[5, 6, 7, 8, 9, 10, 11, 12, 1]);
    let link = certified(link, &[]);
    for epoch in [&light, &link, &light, &link, &strangers] {
        net.inject(1, 4, &Message::Epoch(Box::new(epoch.clone())));
        assert_eq!(net.engines[&4].roster().epoch(), 1);
    }
    for epoch in [&link, &heavy] {
        net.inject(1, 4, &Message::Epoch(Box::new(epoch.clone())));
    }
    assert_eq!(net.engines[&4].roster().epoch_hash(), heavy.record.hash());
}

#[test]
fn one_key_makes_no_epoch_of_any_number_and_weight() {
    let first = admitted(1, "a");
    let joiner = by_ticket(2, "b", 0x70);
    let mut net = Net::new(&["a"]);
    net.add(2, vec![first.clone(), joiner.clone()]);
    net.connect(1, 2);
    net.queue.clear();
    for (number, weight, since) in [
        (1 << 63, u32::MAX, 1),
        (1 << 63, 100, 1),
        (2, u32::MAX, 1),
        (2, 10_001, 1),
        (2, 100, 3),
    ] {
        let first_hash = net.engines[&2].roster().epoch_hash();
        let members = vec![member(&first, weight, since), member(&joiner, 0, 2)];
        let link = made_up(number - 1, Hash([1; 32]), members.clone());
        let previous = if number == 2 { first_hash } else { link.hash() };
        let link = certified(link, &[1]);
        let forged = certified(made_up(number, previous, members), &[1]);
        for epoch in [link, forged] {
            net.inject(1, 2, &Message::Epoch(Box::new(epoch)));
        }
        let epoch = net.engines[&2].roster().epoch();
        assert_eq!(epoch, 1, "number {number}, weight {weight}, since {since}");
    }
}

#[test]
fn a_node_that_was_away_for_long_catches_up_over_what_the_others_have_dropped() {
    let mut net = Net::four();
    net.split(&[1, 2, 3], &[4]);
    for i in 5..8 {
        net.input(1, Input::Admit(Box::new(by_ticket(i, "e", 0x70 + i))));
        wait(&mut net, 3);
        net.input(1, Input::Remove(Box::new(removal(i, net.now))));
        wait(&mut net, 3);
    }
    assert_eq!(net.engines[&1].roster().epoch(), 7);
    // What the standings follow from is not dropped.
    let kept_whole = WINDOW + 1;
    for _ in 0..kept_whole {
        net.tick(length());
        wait(&mut net, 3);
    }
    let tip = net.engines[&1].roster().epoch();
    assert!(tip > 70, "{tip}");
    for i in 1..=3 {
        let engine = net.engines.get_mut(&i).unwrap();
        while engine.drop_one_epoch() {}
        let kept: Vec<u64> = engine.epochs().iter().map(|e| e.record.number).collect();
        let last = tip + 1 - u64::try_from(kept_whole).unwrap();
        assert!(
            kept.iter().copied().eq([1].into_iter().chain(last..=tip)),
            "{kept:?}"
        );
        let bytes = engine.stored_epochs().to_bytes();
        net.epochs.insert(i, bytes);
    }
    // They understand what they have kept.
    net.crash(2);
    assert_eq!(net.engines[&2].roster().epoch(), tip);
    net.links.clear();
    net.connect_all();
    net.run();
    // More than one answer's worth.
    wait(&mut net, 20);
    assert_eq!(hashes(&net).len(), 1);
    assert_eq!(net.engines[&4].roster().epoch(), tip);
    net.crash(4);
    assert_eq!(net.engines[&4].roster().epoch(), tip);
    net.links.clear();
    net.connect_all();
    net.tick(length());
    wait(&mut net, 5);
    assert_eq!(hashes(&net).len(), 1);
    assert!(net.engines[&4].roster().epoch() > tip);
}

#[test]
fn the_largest_epoch_fits_a_message_with_every_signature_on_it() {
    use crate::mesh::epoch::{MAX_MEMBERS, Proposal};
    use crate::mesh::evidence::LogHead;
    let hash = |i: usize| Hash(crate::mesh::crypto::sha256(&i.to_be_bytes()));
    let node = |i: usize| NodeId(hash(i).0[..16].try_into().unwrap());
    let of = |members: usize, authors: usize| {
        let members = (0..members).map(|i| EpochMember {
            record: hash(i),
            weight: 100,
            since: 1,
            proved: ProofSet::default(),
        });
        let mut record = made_up(2, hash(0), members.collect());
        // As large as it gets.
        record.members[0].proved = ProofSet::from_iter([ProofKind::LedgerFork]);
        for i in 0..authors {
            let (size, root) = (1, hash(i));
            record
                .frontier
                .set(node(i), LogHead { size, root })
                .unwrap();
        }
        record
    };
    let record = of(MAX_MEMBERS, MAX_MEMBERS);
    assert!(record.fits());
    assert!(!of(MAX_MEMBERS + 1, 0).fits());
    assert!(!of(MAX_MEMBERS, MAX_MEMBERS + 50).fits());
    for members in [1, 100, 300, MAX_MEMBERS, MAX_MEMBERS + 1] {
        for authors in [0, 350, 377, 378, 489, 490, 935, 936, 1_000] {
            let fits = of(members, authors).fits();
            assert_eq!(
                EpochRecord::has_room(members, authors),
                fits,
                "{members} {authors}"
            );
        }
    }
    for record in [of(MAX_MEMBERS + 1, 0), of(MAX_MEMBERS, MAX_MEMBERS + 50)] {
        assert!(EpochRecord::from_bytes(&record.to_bytes()).is_err());
    }
    let mut signatures: Vec<_> = (0..MAX_MEMBERS).map(|i| (node(i), [7; 64])).collect();
    signatures.sort_unstable();
    let votes = VoteSet {
        round: 0,
        signatures,
    };
    let vote = EpochVote {
        mesh: record.mesh,
        number: 2,
        previous: record.previous,
        round: 1,
        step: Step::Propose,
        value: Some(record.hash()),
        voter: node_id(1),
        incarnation: 1,
    };
    let proposal = Proposal {
        record: record.clone(),
        signed: vote.sign(&signer(1)),
        polka: Some(votes.clone()),
    };
    let epoch = CertifiedEpoch {
        record,
        precommits: votes,
    };
    for message in [
        Message::Epoch(Box::new(epoch)),
        Message::EpochProposal(Box::new(proposal)),
    ] {
        let bytes = message.to_bytes();
        let packed = crate::mesh::message::pack([bytes.clone()]);
        assert_eq!(packed.len(), 1, "{} bytes are not sent", bytes.len());
        assert!(packed.iter().all(|batch| batch.len() <= MAX_MESSAGE));
        assert_eq!(Message::from_bytes(&bytes), Ok(message));
    }
}

#[test]
fn two_certified_records_of_one_number_are_told_of_and_made_up_ones_are_not() {
    let mut net = Net::four();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    net.run();
    wait(&mut net, 3);
    let own = net.engines[&2].epoch().unwrap().record.clone();
    assert_eq!(own.number, 2);
    let mut other = own.clone();
    other.params.length_s += 1;
    let forked = |net: &Net| {
        let out = net.outputs[&2].iter();
        out.filter(|o| matches!(o, Output::ForkedEpoch(_))).count()
    };
    let light = certified(other.clone(), &[1, 3]);
    net.inject(1, 2, &Message::Epoch(Box::new(light)));
    assert_eq!(net.refused(2, RefusalReason::BadEpoch), 1);
    assert_eq!(
        (
            net.refused_or_none(2, RefusalReason::ForkedEpoch),
            forked(&net)
        ),
        (0, 0)
    );
    let certified = certified(other, &[1, 3, 4]);
    for _ in 0..2 {
        net.inject(1, 2, &Message::Epoch(Box::new(certified.clone())));
    }
    assert_eq!(net.refused(2, RefusalReason::ForkedEpoch), 2);
    assert_eq!(forked(&net), 1);
    assert_eq!(net.engines[&2].roster().epoch_hash(), own.hash());
}
