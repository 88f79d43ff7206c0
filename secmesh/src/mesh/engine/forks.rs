//! Proofs that a node signed two ledgers: checked, kept, passed on once.
//!
//! Each becomes a statement in the evidence, so that the epochs take the weight of who did it.

use super::proofs::Told;
use super::{Call, Engine, Output, RefusalReason, RestoreError};
use crate::ledger::fork::{ForkError, LedgerForkProof};
use crate::mesh::crypto::CryptoError;
use crate::mesh::evidence::Misconduct;
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::roster::MAX_NODES;
use crate::mesh::witness::LedgerMessage;

impl Engine {
    /// A message about ledgers: proofs are for the engine, the rest is for the witness beside it.
    pub(super) fn about_ledgers(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        message: LedgerMessage,
    ) {
        if self.roster.get(&from).is_none() {
            return self.refuse(call, from, RefusalReason::UnknownVoter);
        }
        match message {
            LedgerMessage::Fork(proof) => self.fork(call, from, *proof),
            message => call.out.push(Output::Ledger {
                from,
                message: Box::new(message),
            }),
        }
    }

    /// Takes a proof from a peer or from this node's own witness.
    pub(super) fn fork(&mut self, call: &mut Call<'_>, from: NodeId, proof: LedgerForkProof) {
        let known = self.forks.contains_key(&proof.node());
        if !self.is_fork_news(&proof) || (self.forks.len() >= MAX_NODES && !known) {
            return;
        }
        match proof.verify(&self.roster) {
            Ok(()) => {}
            Err(ForkError::UnknownNode) => {
                // The node's admission may still be on its way.
                let message = Message::Ledger(LedgerMessage::Fork(Box::new(proof)));
                return self.put_aside(call, from, &message);
            }
            Err(ForkError::Checkpoint(_)) => {
                return self.refuse(call, from, RefusalReason::BadSignature);
            }
            Err(ForkError::NoContradiction) => {
                return self.refuse(call, from, RefusalReason::Malformed);
            }
        }
        self.forks.insert(proof.node(), proof.clone());
        let proof = Box::new(proof);
        self.catch(call, Misconduct::LedgerFork(proof.clone()));
        let message = Message::Ledger(LedgerMessage::Fork(proof.clone()));
        call.out.push(Output::Broadcast(message.to_bytes()));
        let node = proof.node();
        self.proved(node, &proof.to_bytes(), Told::fork(&proof));
        call.out.push(Output::LedgerFork(proof));
        self.act_on_node(call, node);
    }

    /// States what is known from before a restart and was not stated by then.
    pub(super) fn catch_forkers(&mut self, call: &mut Call<'_>) {
        let me = self.config.node;
        let unsaid: Vec<LedgerForkProof> = self
            .forks
            .values()
            .filter(|proof| proof.node() != me && !self.statements.is_caught(&proof.node()))
            .cloned()
            .collect();
        for proof in unsaid {
            self.catch(call, Misconduct::LedgerFork(Box::new(proof)));
        }
    }

    /// The proofs that nodes signed two ledgers, one per node.
    pub fn forks(&self) -> impl Iterator<Item = &LedgerForkProof> {
        self.forks.values()
    }

    /// Takes back a proof that a node signed two ledgers.
    ///
    /// # Errors
    /// [`RestoreError`]; the engine is unchanged then.
    pub fn restore_fork(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let proof = LedgerForkProof::from_bytes(bytes)?;
        proof
            .verify(&self.roster)
            .map_err(|_| RestoreError::Signature(CryptoError::BadSignature))?;
        let (node, told) = (proof.node(), Told::fork(&proof));
        if Self::is_later(self.forks.get(&node).map(Told::fork), told) {
            self.forks.insert(node, proof);
        }
        self.proved(node, bytes, told);
        Ok(())
    }
}
