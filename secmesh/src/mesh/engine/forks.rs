//! Proofs that a node signed two ledgers: checked, kept, passed on once.
//!
//! They weigh nothing in a vote; a strike for it is the trust part's to give.

use super::{Call, Engine, Output, RefusalReason, RestoreError};
use crate::ledger::fork::{ForkError, LedgerForkProof};
use crate::mesh::crypto::CryptoError;
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
        if self.forks.contains_key(&proof.node()) || self.forks.len() >= MAX_NODES {
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
        let message = Message::Ledger(LedgerMessage::Fork(proof.clone()));
        call.out.push(Output::Broadcast(message.to_bytes()));
        let node = proof.node();
        self.proved(node, &proof.to_bytes());
        call.out.push(Output::LedgerFork(proof));
        self.act_on_node(call, node);
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
        self.proved(proof.node(), bytes);
        self.forks.insert(proof.node(), proof);
        Ok(())
    }
}
