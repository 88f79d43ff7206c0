//! Certificates, admissions and proofs that are none.

use secmesh::addr::Prefix;
use secmesh::mesh::admission::AdmittedRecord;
use secmesh::mesh::cert::{CertVote, Certificate, MAX_CERT_VOTES};
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::message::{EquivocationProof, Message};
use secmesh::mesh::vote::{BUCKET_US, Ballot, Verdict};

use super::{Liar, Scene};
use crate::cast;
use crate::rng::Rng;

impl Liar {
    /// A certificate out of its own votes, those of its group, and honest votes that were about
    /// something else.
    pub(super) fn forged_certificate(
        &mut self,
        scene: &Scene<'_>,
        victim: Prefix,
        rng: &mut Rng,
    ) -> Option<Certificate> {
        let action = Self::action(scene, victim);
        let mine = self.ballot(scene, action, Verdict::Confirm);
        let head = mine.signed.vote;
        let mut votes = vec![CertVote::from(&mine.signed)];
        for ballot in &self.group_votes {
            if ballot.signed.vote.incident == head.incident {
                votes.push(CertVote::from(&ballot.signed));
            }
        }
        let template = *votes.first()?;
        for heard in &self.heard {
            if let Ok(Message::Vote(ballot)) = Message::from_bytes(heard)
                && rng.percent(50)
            {
                let signed = ballot.signed;
                votes.push(CertVote {
                    voter: signed.vote.voter,
                    verdict: Verdict::Confirm,
                    signature: signed.signature,
                    ..template
                });
            }
        }
        votes.sort_by_key(|v| v.voter);
        if rng.percent(70) {
            votes.dedup_by_key(|v| v.voter);
        }
        votes.truncate(MAX_CERT_VOTES);
        Some(Certificate {
            action,
            mesh: head.mesh,
            epoch: head.epoch,
            epoch_hash: head.epoch_hash,
            round: 0,
            bucket: head.bucket,
            votes,
        })
    }

    /// A good certificate with something taken away or changed.
    pub(super) fn stripped_certificate(&self, rng: &mut Rng) -> Option<Certificate> {
        let mut found: Vec<Certificate> = self
            .heard
            .iter()
            .filter_map(|heard| match Message::from_bytes(heard) {
                Ok(Message::Certificate(certificate)) => Some(*certificate),
                _ => None,
            })
            .collect();
        let mut certificate = found.pop()?;
        match rng.below(5) {
            0 => {
                certificate.votes.pop();
            }
            1 => certificate.votes.retain(|v| v.verdict == Verdict::Concur),
            2 => {
                for vote in &mut certificate.votes {
                    vote.verdict = Verdict::Confirm;
                }
                certificate.votes.truncate(2);
            }
            3 => certificate.bucket += rng.between(1, 100) * 60,
            _ => {
                if let Some(first) = certificate.votes.first().copied() {
                    certificate.votes.insert(0, first);
                }
            }
        }
        Some(certificate)
    }

    /// Somebody whom no operator let in.
    pub(super) fn stranger(&self, scene: &Scene<'_>, rng: &mut Rng) -> AdmittedRecord {
        let key = Signer::from_secret(&rng.bytes32());
        let mut record = cast::record(scene.genesis, 9_999, self.zone);
        record.vote_key = key.public();
        record.ledger_key = key.public();
        record.node = secmesh::mesh::admission::NodeRecord::derive_id(&key.public(), 1);
        record.admit_by_operator(&key, &self.signer)
    }

    /// A proof against an honest node: its vote, and one that it never signed or that is about something else.
    pub(super) fn forged_proof(&self, rng: &mut Rng) -> Option<EquivocationProof> {
        let votes: Vec<Ballot> = self
            .heard
            .iter()
            .filter_map(|heard| match Message::from_bytes(heard) {
                Ok(Message::Vote(ballot)) => Some(*ballot),
                _ => None,
            })
            .collect();
        let ballot = rng.pick(&votes)?;
        let mut other = ballot.signed;
        other.vote.verdict = match other.vote.verdict {
            Verdict::Reject => Verdict::Confirm,
            _ => Verdict::Reject,
        };
        other.vote.issued_at_us = other.vote.issued_at_us.saturating_add(BUCKET_US / 60);
        other.signature = other.vote.sign(&self.signer).signature;
        EquivocationProof::new(ballot.signed, other)
    }
}
