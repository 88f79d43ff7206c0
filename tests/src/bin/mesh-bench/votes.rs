//! How many votes one core takes in: read from their bytes and verified, as a node does with each.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::genesis::Params;
use secmesh::mesh::ids::{Hash, MeshId, NodeId};
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::{Action, AttackClass, Ballot, Verdict, Vote, bucket_of};
use xtask::bench::{Bar, Row, median};

use crate::Effort;

/// Voters that the votes are of.
const VOTERS: u8 = 30;
/// 2023-11-14, microseconds since 1970.
const NOW: u64 = 1_700_000_040_000_000;

fn message(signer: &Signer, voter: u8, sequence: u64) -> Result<Vec<u8>> {
    let params = Params::default();
    let [.., a, b] = sequence.to_be_bytes();
    let subject = format!("45.80.{a}.{b}").parse()?;
    let action = Action::block(subject, AttackClass::SynFlood, &params);
    let (mesh, epoch_hash, bucket) = (MeshId([7; 32]), Hash([8; 32]), bucket_of(NOW));
    let vote = Vote {
        mesh,
        epoch: 1,
        epoch_hash,
        incident: action.incident(mesh, epoch_hash, bucket),
        round: 0,
        bucket,
        action_hash: action.hash(),
        verdict: Verdict::Confirm,
        evidence_root: Hash([1; 32]),
        detector_hash: Hash([2; 32]),
        voter: NodeId([voter; 16]),
        incarnation: 1,
        sequence,
        issued_at_us: NOW,
        valid_for_s: params.vote_valid_s,
    };
    let ballot = Ballot {
        action,
        signed: vote.sign(signer),
    };
    Ok(Message::Vote(Box::new(ballot)).to_bytes())
}

pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    let signers: Vec<(u8, Signer)> = (1..=VOTERS)
        .map(|i| (i, Signer::from_secret(&[i; 32])))
        .collect();
    let mut votes = Vec::new();
    for sequence in 1..=effort.votes {
        for (voter, signer) in &signers {
            votes.push((signer.public(), message(signer, *voter, sequence)?));
        }
    }
    let mut rates = Vec::new();
    for _ in 0..effort.turns {
        let start = Instant::now();
        let mut taken = 0_u32;
        for (key, bytes) in &votes {
            if let Message::Vote(ballot) = Message::from_bytes(bytes)? {
                ballot.signed.verify(key).context("an honest vote")?;
                taken += 1;
            }
        }
        ensure!(usize::try_from(taken)? == votes.len(), "votes were lost");
        rates.push(f64::from(taken) / start.elapsed().as_secs_f64());
    }
    Ok(vec![
        Row::new(
            "votes",
            "votes read and verified by a core",
            median(rates),
            "1/s",
        )
        .bar(Bar::AtLeast(20_000.0))
        .note("Ed25519, strict, one at a time"),
    ])
}
