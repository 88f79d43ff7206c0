//! What bad input gets: refused, counted, named.

use super::*;
use crate::mesh::ids::MeshId;
use crate::mesh::vote::bucket_of;

fn four_ballot(net: &Net, i: u8, now: u64) -> Ballot {
    ballot(net.roster(), i, block(subject()), Verdict::Confirm, 1, now)
}

fn inject_changed(change: impl FnOnce(&mut Ballot), now: u64) -> Net {
    let mut net = Net::four();
    net.now = now;
    let mut made = four_ballot(&net, 2, T0);
    change(&mut made);
    net.inject(2, 1, &Message::Vote(Box::new(made)));
    net
}

/// Signs again after a change, as a liar would.
fn resign(ballot: &mut Ballot) {
    let vote = &mut ballot.signed.vote;
    vote.action_hash = ballot.action.hash();
    vote.incident = ballot
        .action
        .incident(vote.mesh, vote.epoch_hash, vote.bucket);
    ballot.signed = vote.sign(&signer(2));
}

#[test]
fn every_way_to_be_wrong_has_its_name() {
    use RefusalReason as R;
    type Change = fn(&mut Ballot);
    let cases: &[(R, u64, Change)] = &[
        (R::BadSignature, T0, |b| b.signed.signature[3] ^= 1),
        (R::BadSignature, T0, |b| {
            b.signed.vote.evidence_root.0[0] ^= 1;
        }),
        (R::WrongMesh, T0, |b| {
            b.signed.vote.mesh = MeshId([1; 32]);
            resign(b);
        }),
        (R::WrongEpoch, T0, |b| {
            b.signed.vote.epoch_hash = Hash([1; 32]);
            resign(b);
        }),
        (R::WrongEpoch, T0, |b| {
            b.signed.vote.epoch = 3;
            resign(b);
        }),
        (R::UnknownVoter, T0, |b| {
            b.signed.vote.incarnation = 2;
            resign(b);
        }),
        (R::NotOwnVote, T0, |b| b.signed.vote.voter = node_id(3)),
        (R::Expired, T0 + 151 * S, |_| {}),
        (R::FromFuture, T0 - 31 * S, |_| {}),
        (R::WrongAction, T0, |b| {
            b.action.ttl_s = 86_400;
            resign(b);
        }),
        (R::WrongAction, T0, |b| {
            b.action.subject = "203.0.113.0/24".parse().unwrap();
            resign(b);
        }),
        (R::WrongAction, T0, |b| {
            b.signed.vote.round = 1;
            resign(b);
        }),
        (R::Malformed, T0, |b| b.signed.vote.action_hash.0[0] ^= 1),
        (R::Malformed, T0, |b| b.signed.vote.incident.0[0] ^= 1),
        (R::Malformed, T0, |b| {
            b.signed.vote.valid_for_s = 121;
            resign(b);
        }),
        (R::Malformed, T0, |b| {
            b.signed.vote.bucket += 2;
            resign(b);
        }),
    ];
    for (n, (reason, now, change)) in cases.iter().enumerate() {
        let net = inject_changed(change, *now);
        assert_eq!(net.refused(1, *reason), 1, "case {n}: {reason}");
        assert!(
            net.engines[&1].incidents(None).is_empty(),
            "case {n}: {reason}"
        );
    }
    let good = inject_changed(|_| {}, T0 + 149 * S);
    assert_eq!(
        good.engines[&1].incidents(None).len(),
        1,
        "the same vote unchanged"
    );
}

#[test]
fn noise_and_oversized_messages_are_refused() {
    let mut net = Net::four();
    for (bytes, reason) in [
        (vec![0; MAX_MESSAGE + 1], RefusalReason::Oversized),
        (vec![], RefusalReason::Malformed),
        (vec![7; 300], RefusalReason::Malformed),
    ] {
        net.deliver(&Packet {
            from: 2,
            to: 1,
            bytes,
        });
        assert_eq!(net.refused(1, reason).min(1), 1, "{reason}");
    }
    let nested = Message::Batch(vec![Message::Batch(vec![]).to_bytes()]);
    net.inject(2, 1, &nested);
    assert_eq!(net.refused(1, RefusalReason::Malformed), 3);
}

#[test]
fn a_replayed_vote_is_refused_while_and_after_its_incident() {
    let mut net = Net::four();
    let vote = Message::Vote(Box::new(four_ballot(&net, 2, T0)));
    net.inject(2, 1, &vote);
    net.inject(2, 1, &vote);
    assert_eq!(net.refused(1, RefusalReason::Replayed), 1);
    // The same number on something else is a replay too.
    let other: Prefix = "203.0.113.8".parse().unwrap();
    net.inject(2, 1, &vote_of(&net, 2, block(other), Verdict::Confirm, 1));
    assert_eq!(net.refused(1, RefusalReason::Replayed), 2);
    net.tick(400 * S);
    net.inject(2, 1, &vote);
    assert_eq!(net.refused(1, RefusalReason::Expired), 1);
}

#[test]
fn a_vote_does_not_travel_through_a_third_node() {
    let mut net = Net::four();
    let vote = Message::Vote(Box::new(four_ballot(&net, 2, T0)));
    net.inject(3, 1, &vote);
    assert_eq!(net.refused(1, RefusalReason::NotOwnVote), 1);
    // Nor does anybody tell a node what it said itself.
    let own = Message::Vote(Box::new(four_ballot(&net, 1, T0)));
    net.inject(1, 1, &own);
    assert_eq!(net.refused(1, RefusalReason::NotOwnVote), 2);
}

#[test]
fn certificates_that_prove_nothing_are_refused_by_name() {
    use RefusalReason as R;
    use Verdict::{Concur, Confirm};
    let mut net = Net::four();
    let roster = net.roster().clone();
    let make = |votes: &[(u8, Verdict)]| certificate(&roster, block(subject()), votes);
    let mut unsigned = make(&[(1, Confirm), (2, Confirm)]);
    unsigned.votes[0].signature = [0; 64];
    let mut old = make(&[(1, Confirm), (2, Confirm)]);
    old.bucket = bucket_of(T0 - 3_700 * S);
    let mut early = make(&[(1, Confirm), (2, Confirm)]);
    early.bucket = bucket_of(T0 + 300 * S);
    for (reason, certificate) in [
        (R::TooLight, make(&[(4, Confirm)])),
        (
            R::TooFewWitnesses,
            make(&[(4, Confirm), (3, Concur), (2, Concur)]),
        ),
        (R::BadSignature, unsigned),
        (R::Expired, old),
        (R::FromFuture, early),
        (
            R::UnknownVoter,
            make(&[(1, Confirm), (2, Confirm), (9, Confirm)]),
        ),
    ] {
        net.inject(4, 1, &Message::Certificate(Box::new(certificate)));
        assert_eq!(net.refused(1, reason), 1, "{reason}");
        assert!(!net.blocks(1, subject()));
    }
}

#[test]
fn reasons_have_stable_names() {
    for reason in RefusalReason::ALL {
        let json = serde_json::to_string(reason).unwrap();
        assert_eq!(json, format!("\"{}\"", reason.name()));
    }
}
