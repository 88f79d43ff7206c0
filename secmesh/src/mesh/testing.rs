//! Fixtures for the tests of the mesh: an operator, nodes with known keys, votes.

use std::cell::Cell;
use std::collections::BTreeSet;

use super::admission::{AdmittedRecord, EpochMark, Grant, NodeRecord, SignedGrant};
use super::cert::{CertVote, Certificate};
use super::crypto::Signer;
use super::genesis::{Genesis, Params};
use super::ids::{Hash, Name, NodeId, TicketId, Zone};
use super::pq::PqSigner;
use super::roster::{Registry, Roster};
use super::vote::{Action, Ballot, Verdict, Vote, bucket_of};
use crate::addr::Prefix;

/// The start of a bucket.
pub const T0: u64 = 1_700_000_040_000_000;
/// One second.
pub const S: u64 = 1_000_000;

pub fn operator() -> Signer {
    Signer::from_secret(&[0xee; 32])
}

thread_local! {
    static SEATS: Cell<u32> = const { Cell::new(0) };
}

/// The test's mesh has a committee for as long as this lives.
pub struct WithCommittee;

impl WithCommittee {
    pub fn of(seats: u32) -> Self {
        SEATS.set(seats);
        Self
    }
}

impl Drop for WithCommittee {
    fn drop(&mut self) {
        SEATS.set(0);
    }
}

pub fn genesis() -> Genesis {
    Genesis {
        mesh_name: Name::new("test").unwrap(),
        operator_key: operator().public(),
        created_unix_us: T0 - 1_000 * S,
        params: Params {
            committee: SEATS.get(),
            ..Params::default()
        },
    }
}

pub fn signer(i: u8) -> Signer {
    Signer::from_secret(&[i; 32])
}

/// The ML-DSA-44 key of node `i`.
pub fn pq(i: u8) -> PqSigner {
    PqSigner::from_seed(&[i; 32]).unwrap()
}

pub fn node_id(i: u8) -> NodeId {
    NodeRecord::derive_id(&signer(i).public(), 1)
}

/// Node `i`, in a zone, at 10.0.0.i.
pub fn record(i: u8, zone: &str) -> NodeRecord {
    NodeRecord {
        mesh: genesis().mesh_id(),
        node: node_id(i),
        name: Name::new(&format!("n{i}")).unwrap(),
        zone: Zone::new(zone).unwrap(),
        incarnation: 1,
        vote_key: signer(i).public(),
        ledger_key: signer(i).public(),
        pq_key_hash: pq(i).public().hash(),
        tls_spki_sha256: [i; 32],
        address: Some(format!("10.0.0.{i}:4747").parse().unwrap()),
        joined_unix_us: T0 - 500 * S + u64::from(i),
    }
}

pub fn admitted(i: u8, zone: &str) -> AdmittedRecord {
    record(i, zone).admit_by_operator(&signer(i), &operator())
}

pub fn grant(ticket: u8) -> SignedGrant {
    Grant {
        mesh: genesis().mesh_id(),
        ticket: TicketId([ticket; 16]),
        ticket_key: Signer::from_secret(&[ticket; 32]).public(),
        name_hint: Some(Name::new("n9").unwrap()),
        issued_unix_us: T0 - 600 * S,
        expires_unix_us: T0 + 600 * S,
        epoch: None,
    }
    .sign(&operator())
}

/// The same with the epoch to begin with.
pub fn grant_of(ticket: u8, epoch: EpochMark) -> SignedGrant {
    Grant {
        epoch: Some(epoch),
        ..grant(ticket).grant
    }
    .sign(&operator())
}

/// Node `i` admitted with ticket `ticket`.
pub fn by_ticket(i: u8, zone: &str, ticket: u8) -> AdmittedRecord {
    let key = Signer::from_secret(&[ticket; 32]);
    record(i, zone).admit_by_ticket(&signer(i), grant(ticket), &key)
}

/// Nodes 1, 2, … one per zone given.
pub fn records(zones: &[&str]) -> Vec<AdmittedRecord> {
    (1..)
        .zip(zones)
        .map(|(i, zone)| admitted(i, zone))
        .collect()
}

pub fn roster(zones: &[&str]) -> Roster {
    let mut registry = Registry::new(&genesis().params);
    for record in records(zones) {
        registry.offer(record);
    }
    let first = registry.first_epoch(genesis().mesh_id(), &genesis().params);
    registry.roster(&first).unwrap()
}

pub fn subject() -> Prefix {
    "203.0.113.7".parse().unwrap()
}

pub fn ballot(
    roster: &Roster,
    i: u8,
    action: Action,
    verdict: Verdict,
    sequence: u64,
    now: u64,
) -> Ballot {
    let bucket = bucket_of(now);
    let vote = Vote {
        mesh: roster.mesh(),
        epoch: roster.epoch(),
        epoch_hash: roster.epoch_hash(),
        incident: action.incident(roster.mesh(), roster.epoch_hash(), bucket),
        round: 0,
        bucket,
        action_hash: action.hash(),
        verdict,
        evidence_root: Hash([i; 32]),
        detector_hash: Hash([0xdd; 32]),
        voter: node_id(i),
        incarnation: 1,
        sequence,
        issued_at_us: now,
        valid_for_s: 120,
    };
    Ballot {
        action,
        signed: vote.sign(&signer(i)),
    }
}

pub fn certificate(roster: &Roster, action: Action, votes: &[(u8, Verdict)]) -> Certificate {
    let mut votes: Vec<CertVote> = votes
        .iter()
        .map(|(i, verdict)| {
            let signed = ballot(roster, *i, action, *verdict, 1, T0).signed;
            CertVote::from(&signed)
        })
        .collect();
    votes.sort_by_key(|v| v.voter);
    Certificate {
        action,
        mesh: roster.mesh(),
        epoch: roster.epoch(),
        epoch_hash: roster.epoch_hash(),
        round: 0,
        bucket: bucket_of(T0),
        votes,
    }
}

pub fn nobody() -> BTreeSet<NodeId> {
    BTreeSet::new()
}
