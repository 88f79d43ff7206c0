//! Proofs that a node signed two different votes on one epoch in one step.

use super::io::{Output, RefusalReason};
use super::proofs::Told;
use super::view::RestoreError;
use super::{Call, Engine};
use crate::mesh::cert::CertError;
use crate::mesh::crypto::PublicKey;
use crate::mesh::epoch::EpochProof;
use crate::mesh::evidence::Misconduct;
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::roster::MAX_NODES;

impl Engine {
    pub(super) fn peer_epoch_lie(&mut self, call: &mut Call<'_>, from: NodeId, proof: &EpochProof) {
        if !self.is_epoch_lie_news(proof) {
            return;
        }
        if proof.mesh() != self.mesh {
            return self.refuse(call, from, RefusalReason::WrongMesh);
        }
        match self.key_of(proof) {
            None => self.put_aside(call, from, &Message::EpochLie(Box::new(*proof))),
            Some(key) if proof.verify(&key).is_err() => {
                self.refuse(call, from, RefusalReason::BadSignature);
            }
            Some(_) => self.accuse_epoch(call, proof),
        }
    }

    fn key_of(&self, proof: &EpochProof) -> Option<PublicKey> {
        self.registry
            .records()
            .map(|admitted| &admitted.record)
            .find(|r| r.node == proof.voter() && r.incarnation == proof.incarnation())
            .map(|record| record.vote_key)
    }

    /// Takes a verified proof: the voter weighs nothing in decisions from now on. In the agreement on
    /// epochs it keeps its weight, or nodes that know and nodes that do not would count differently.
    pub(super) fn accuse_epoch(&mut self, call: &mut Call<'_>, proof: &EpochProof) {
        let voter = proof.voter();
        let known = self.epoch_proofs.contains_key(&voter);
        if !self.is_epoch_lie_news(proof) || (self.epoch_proofs.len() >= MAX_NODES && !known) {
            return;
        }
        self.epoch_proofs.insert(voter, *proof);
        self.zeroed.insert(voter);
        let proof = Box::new(*proof);
        call.out.push(Output::Broadcast(
            Message::EpochLie(proof.clone()).to_bytes(),
        ));
        self.proved(voter, &proof.to_bytes(), Told::epoch(&proof));
        call.out.push(Output::EpochLie(proof.clone()));
        self.catch(call, Misconduct::EpochEquivocation(proof));
        self.act_on_node(call, voter);
    }

    pub(super) fn restore_epoch_proof(&mut self, proof: EpochProof) -> Result<(), RestoreError> {
        let voter = proof.voter();
        let key = self
            .key_of(&proof)
            .ok_or(RestoreError::Certificate(CertError::UnknownVoter(voter)))?;
        proof.verify(&key)?;
        self.zeroed.insert(voter);
        let told = Told::epoch(&proof);
        if Self::is_later(self.epoch_proofs.get(&voter).map(Told::epoch), told) {
            self.epoch_proofs.insert(voter, proof);
        }
        self.proved(voter, &proof.to_bytes(), told);
        Ok(())
    }
}
