//! Lies about epochs.

use std::rc::Rc;

use secmesh::mesh::epoch::{
    CertifiedEpoch, EpochRecord, EpochVote, Proposal, Removal, SignedEpochVote, Step, VoteSet,
};
use secmesh::mesh::ids::Hash;
use secmesh::mesh::message::Message;

use super::{Liar, Said, Scene, bytes};
use crate::rng::Rng;

impl Liar {
    fn epoch_vote(
        &self,
        scene: &Scene<'_>,
        before: &EpochRecord,
        (round, step, value): (u32, Step, Option<Hash>),
    ) -> SignedEpochVote {
        EpochVote {
            mesh: scene.genesis.mesh_id(),
            number: before.number + 1,
            previous: before.hash(),
            round,
            step,
            value,
            voter: self.id,
            incarnation: 1,
        }
        .sign(&self.signer)
    }

    /// Proposals for the epoch after `before` that it has heard.
    fn heard_proposals(&self, before: &EpochRecord) -> Vec<Proposal> {
        self.heard
            .iter()
            .filter_map(|heard| match Message::from_bytes(heard) {
                Ok(Message::EpochProposal(proposal)) => Some(*proposal),
                _ => None,
            })
            .filter(|p| p.record.number == before.number + 1)
            .collect()
    }

    /// What it would like the next epoch to be.
    fn wished_epoch(&self, scene: &Scene<'_>, before: &EpochRecord, rng: &mut Rng) -> EpochRecord {
        let mut record = match rng.pick(&self.heard_proposals(before)) {
            Some(heard) => heard.record.clone(),
            None => EpochRecord {
                number: before.number + 1,
                previous: before.hash(),
                ..before.clone()
            },
        };
        let own = crate::cast::record(scene.genesis, self.index, self.zone).hash();
        match rng.below(4) {
            0 => {
                for member in &mut record.members {
                    if member.record == own {
                        member.weight = member.weight.saturating_mul(3).max(100);
                    }
                }
            }
            1 => {
                let other = rng.index(record.members.len());
                if let Some(member) = record.members.get_mut(other) {
                    member.weight /= 2;
                }
            }
            2 => {
                record.members.pop();
            }
            // As it should be, at a time when it may not be.
            _ => {}
        }
        record
    }

    /// Says one thing about the next epoch to some and another to others.
    pub(super) fn equivocate_on_epoch(
        &self,
        scene: &Scene<'_>,
        rng: &mut Rng,
        said: &mut Vec<Said>,
    ) {
        let Some(before) = &scene.record else { return };
        let proposed = self.heard_proposals(before);
        let one = rng.pick(&proposed).map(|p| p.record.hash());
        let other = if rng.percent(50) {
            None
        } else {
            Some(Hash(rng.bytes32()))
        };
        let step = *rng
            .pick(&[Step::Prevote, Step::Precommit])
            .unwrap_or(&Step::Prevote);
        let round = scene.round + u32::from(rng.percent(20));
        let votes = [one, other].map(|value| {
            let signed = self.epoch_vote(scene, before, (round, step, value));
            bytes(&Message::EpochVote(Box::new(signed)))
        });
        let both = rng.percent(20);
        for to in &scene.peers {
            let first = rng.percent(50);
            for (at, vote) in votes.iter().enumerate() {
                if both || (at == 0) == first {
                    said.push((*to, Rc::clone(vote)));
                }
            }
        }
    }

    /// Proposes different epochs to different nodes, and votes for each.
    pub(super) fn propose_epochs(&self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        let Some(before) = &scene.record else { return };
        let records = [(); 2].map(|()| self.wished_epoch(scene, before, rng));
        for to in &scene.peers {
            let record = &records[usize::from(rng.percent(50))];
            let value = Some(record.hash());
            let vote = |step| self.epoch_vote(scene, before, (scene.round, step, value));
            let proposal = Proposal {
                record: record.clone(),
                signed: vote(Step::Propose),
                polka: None,
            };
            said.push((*to, bytes(&Message::EpochProposal(Box::new(proposal)))));
            for step in [Step::Prevote, Step::Precommit] {
                said.push((*to, bytes(&Message::EpochVote(Box::new(vote(step))))));
            }
        }
    }

    /// An epoch that too few signed: itself, and others who signed something else.
    pub(super) fn forge_epoch(&self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        let Some(before) = &scene.record else { return };
        let record = self.wished_epoch(scene, before, rng);
        let round = scene.round;
        let own = self.epoch_vote(scene, before, (round, Step::Precommit, Some(record.hash())));
        let mut signatures = vec![(self.id, own.signature)];
        for heard in &self.heard {
            if let Ok(Message::EpochVote(signed)) = Message::from_bytes(heard)
                && rng.percent(60)
            {
                signatures.push((signed.vote.voter, signed.signature));
            }
        }
        signatures.sort_unstable();
        signatures.dedup_by_key(|(voter, _)| *voter);
        let epoch = CertifiedEpoch {
            record,
            precommits: VoteSet { round, signatures },
        };
        if let Some(to) = rng.pick(&scene.peers) {
            said.push((*to, bytes(&Message::Epoch(Box::new(epoch)))));
        }
    }

    /// Takes an honest node out, with its own key in place of the operator's.
    pub(super) fn forge_removal(&self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        if let Some(node) = rng.pick(&scene.honest).copied() {
            let removal = Removal {
                mesh: scene.genesis.mesh_id(),
                node,
                issued_unix_us: scene.wall_us,
            };
            let message = bytes(&Message::Removal(Box::new(removal.sign(&self.signer))));
            said.extend(scene.peers.iter().map(|to| (*to, Rc::clone(&message))));
        }
    }
}
