//! When a proved lie was told, and which lies a readmission forgives.
//!
//! A node that is taken back is forgiven what it signed up to the readmission's minute, whenever that is heard of and
//! also after a restart; a lie of later cuts it off again. Nodes keep no list of what was forgiven: it follows from
//! the date in the proof.

use super::Engine;
use crate::ledger::fork::LedgerForkProof;
use crate::mesh::decision::Warrant;
use crate::mesh::epoch::EpochProof;
use crate::mesh::evidence::{Body, Misconduct};
use crate::mesh::ids::NodeId;
use crate::mesh::message::EquivocationProof;
use crate::mesh::trust::Cause;
use crate::mesh::vote::{ActionKind, AttackClass, bucket_of};

/// When a lie was told, as its author signed it. Of the two halves of a lie the earlier one counts: who was taken
/// back goes on from something that contradicts what it signed before, and is to be forgiven that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// In this minute.
    Bucket(u64),
    /// When this epoch was agreed on; votes on epochs have no date.
    Epoch(u64),
}

impl Told {
    pub(super) fn equivocation(proof: &EquivocationProof) -> Self {
        let (first, second) = proof.votes();
        Self::Bucket(first.vote.bucket.min(second.vote.bucket))
    }

    pub(super) const fn epoch(proof: &EpochProof) -> Self {
        Self::Epoch(proof.number())
    }

    pub(super) fn fork(proof: &LedgerForkProof) -> Self {
        let since = proof.since_s().unwrap_or(0);
        Self::Bucket(bucket_of(since.saturating_mul(1_000_000)))
    }

    fn misconduct(misconduct: &Misconduct) -> Self {
        match misconduct {
            Misconduct::Equivocation(proof) => Self::equivocation(proof),
            Misconduct::EpochEquivocation(proof) => Self::epoch(proof),
            Misconduct::LedgerFork(proof) => Self::fork(proof),
            Misconduct::EvidenceFork(heads) => {
                let (a, b) = (heads.0.head.made_at_us, heads.1.head.made_at_us);
                Self::Bucket(bucket_of(a.min(b)))
            }
        }
    }
}

impl Engine {
    /// Whether a readmission of the node covers a lie.
    pub(super) fn is_forgiven(&self, node: NodeId, told: Told) -> bool {
        match told {
            Told::Bucket(bucket) => self.is_released(node, bucket),
            // What was being agreed on when it was taken back is forgiven too.
            Told::Epoch(number) => self
                .decisions_about(node)
                .filter(|d| d.action.kind == ActionKind::Readmit)
                .any(|d| number <= self.epoch_of(&d.warrant).saturating_add(1)),
        }
    }

    /// The epoch that something was decided in; the current one if that is kept no more.
    fn epoch_of(&self, warrant: &Warrant) -> u64 {
        match warrant {
            Warrant::Votes(certificate) => certificate.epoch,
            Warrant::Operator(signed) => {
                let found = self.chain.find(&signed.release.epoch_hash);
                found.map_or(self.roster.epoch(), |epoch| epoch.record.number)
            }
        }
    }

    /// Whether a proof says something that the known one of its kind does not: that one is forgiven, and this one
    /// is not.
    pub(super) fn is_news(&self, node: NodeId, known: Option<Told>, told: Told) -> bool {
        known.is_none_or(|known| self.is_forgiven(node, known) && !self.is_forgiven(node, told))
    }

    pub(super) fn is_lie_news(&self, proof: &EquivocationProof) -> bool {
        let known = self.proofs.get(&proof.voter()).map(Told::equivocation);
        self.is_news(proof.voter(), known, Told::equivocation(proof))
    }

    pub(super) fn is_epoch_lie_news(&self, proof: &EpochProof) -> bool {
        let known = self.epoch_proofs.get(&proof.voter()).map(Told::epoch);
        self.is_news(proof.voter(), known, Told::epoch(proof))
    }

    /// Holds against a node that was taken back what it was proved to have done after that.
    pub(super) fn prove_again(&mut self, node: NodeId) {
        let votes = self.proofs.get(&node);
        let epochs = self.epoch_proofs.get(&node);
        let forks = self.forks.get(&node);
        let found = [
            votes.map(|p| (p.to_bytes(), Told::equivocation(p))),
            epochs.map(|p| (p.to_bytes(), Told::epoch(p))),
            forks.map(|p| (p.to_bytes(), Told::fork(p))),
        ];
        for (bytes, told) in found.into_iter().flatten() {
            self.proved(node, &bytes, told);
        }
    }

    /// Proofs that peers have stated, and forged statements, which prove themselves.
    pub(super) fn look_at_proofs(&mut self) {
        let report = self.trust();
        for (node, trust) in &report.nodes {
            let misconduct = (*node, AttackClass::Misconduct);
            if *node == self.config.node || self.conduct.evidence.contains_key(&misconduct) {
                continue;
            }
            let Some(proof) = trust.standing.proofs.first() else {
                continue;
            };
            if !self.is_released(*node, 0) {
                self.proved(*node, &[proof.code()], Told::Bucket(u64::MAX));
                continue;
            }
            // Of one that was taken back, what has a date. It is in the history for as long as weights follow
            // from it.
            let dated = trust.changes.iter().filter_map(|change| {
                let Cause::Proof { proof } = change.cause else {
                    return None;
                };
                let why = change.because.first()?;
                let said = self.statements.set.get(&why.author, why.sequence)?;
                let told = match &said.body {
                    Body::Misconduct(misconduct) if misconduct.kind() == proof => {
                        Told::misconduct(misconduct)
                    }
                    _ => Told::Bucket(bucket_of(said.head().made_at_us)),
                };
                Some((proof, told))
            });
            let found: Vec<_> = dated.collect();
            for (proof, told) in found {
                self.proved(*node, &[proof.code()], told);
            }
        }
    }

    /// Whether a proof of a fork that a peer sends may say something new; whether it holds is not looked at.
    pub(super) fn is_fork_news(&self, proof: &LedgerForkProof) -> bool {
        let known = self.forks.get(&proof.node()).map(Told::fork);
        self.is_news(proof.node(), known, Told::fork(proof))
    }

    /// Keeps the later one of two proofs that come back from the disk in any order.
    pub(super) fn is_later(known: Option<Told>, told: Told) -> bool {
        match (known, told) {
            (Some(Told::Bucket(known)), Told::Bucket(told))
            | (Some(Told::Epoch(known)), Told::Epoch(told)) => told > known,
            _ => true,
        }
    }
}
