//! Admissions, tickets, proofs.

use std::borrow::Cow;

use super::io::{Output, QuorumState, RefusalReason};
use super::proofs::Told;
use super::{Call, Engine, Looking};
use crate::mesh::admission::{AdmissionError, AdmittedRecord, SignedGrant};
use crate::mesh::evidence::Misconduct;
use crate::mesh::ids::NodeId;
use crate::mesh::message::{EquivocationProof, Message};
use crate::mesh::roster::{MAX_NODES, Offered, Roster};
use crate::mesh::simulation::{Bug, planted};

/// Most open tickets.
const MAX_GRANTS: usize = 1_024;

impl Engine {
    /// `local`: this node lets the joiner in right now, so the ticket has to be valid right now.
    pub(super) fn admit(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        admitted: AdmittedRecord,
        local: bool,
    ) {
        match admitted.verify(&self.config.genesis) {
            Ok(()) => {}
            Err(AdmissionError::WrongMesh(_)) => {
                return self.refuse(call, from, RefusalReason::WrongMesh);
            }
            Err(AdmissionError::TicketExpired) => {
                return self.refuse(call, from, RefusalReason::TicketExpired);
            }
            Err(AdmissionError::Signature { .. } | AdmissionError::WrongNodeId) => {
                return self.refuse(call, from, RefusalReason::BadAdmission);
            }
        }
        // From peers it is taken: earlier epochs cannot be read without it, and it is in no later one.
        if local && self.removals.contains_key(&admitted.record.node) {
            return self.refuse(call, from, RefusalReason::Removed);
        }
        let future = call.now.saturating_add(self.skew_us());
        if admitted.record.joined_unix_us > future {
            return self.refuse(call, from, RefusalReason::FromFuture);
        }
        let known = self.registry.records().any(|r| *r == admitted);
        if let Some(grant) = admitted.grant().filter(|_| local && !known) {
            if call.now > grant.grant.expires_unix_us {
                return self.refuse(call, from, RefusalReason::TicketExpired);
            }
            if self.registry.is_used(&grant.grant.ticket) {
                return self.refuse(call, from, RefusalReason::Replayed);
            }
        }
        match self.registry.offer(admitted.clone()) {
            Offered::Unchanged => return,
            Offered::Full => return self.refuse(call, from, RefusalReason::Full),
            Offered::Burned => {
                // Everybody has to see both records to come to the same roster.
                call.out.push(Output::Broadcast(
                    Message::Admission(Box::new(admitted.clone())).to_bytes(),
                ));
                call.out.push(Output::TicketBurned(Box::new(admitted)));
                self.refuse(call, from, RefusalReason::TicketReused);
                return self.membership_known(call);
            }
            Offered::Changed => {}
        }
        if let Some(ticket) = admitted.ticket() {
            self.grants.remove(&ticket);
            call.out.push(Output::GrantUsed {
                ticket,
                node: admitted.record.node,
            });
        }
        call.out.push(Output::Broadcast(
            Message::Admission(Box::new(admitted.clone())).to_bytes(),
        ));
        call.out.push(Output::Admitted(Box::new(admitted)));
        self.membership_known(call);
    }

    /// A new epoch is in force. Votes of the old one no longer count, so what this node has evidence for is
    /// voted on again, and what came too early is looked at again.
    pub(super) fn new_epoch(&mut self, call: &mut Call<'_>) {
        self.incidents
            .prune(call.now, self.valid_us(), self.roster.epoch_hash());
        let subjects: Vec<_> = self.evidence.keys().copied().collect();
        for (subject, class) in subjects {
            self.act_on(call, subject, Some(class));
        }
        self.act_on_nodes(call);
        self.look_again(call);
    }

    /// Looks at what was put aside once more. What comes of that may be an epoch, and then there is more to
    /// look at; it is done in a loop and not in itself, so that peers cannot make it deep.
    pub(super) fn look_again(&mut self, call: &mut Call<'_>) {
        if self.looking != Looking::No {
            self.looking = Looking::Again;
            return;
        }
        for _ in 0..super::MAX_PENDING {
            self.looking = Looking::Once;
            for (until, from, bytes) in std::mem::take(&mut self.pending) {
                if until > call.now {
                    self.message(call, from, &bytes);
                }
            }
            if self.looking == Looking::Once {
                break;
            }
        }
        self.looking = Looking::No;
    }

    /// The roster of the epoch with this hash, if it is the current one or one that is kept: a block may last
    /// for many epochs, and its certificate with it.
    pub(super) fn roster_of(&self, epoch_hash: &crate::mesh::ids::Hash) -> Option<Cow<'_, Roster>> {
        let recent = std::iter::once(&self.roster).chain(&self.known);
        let mut recent = recent.filter(|roster| roster.epoch_hash() == *epoch_hash);
        if let Some(roster) = recent.next() {
            return Some(Cow::Borrowed(roster));
        }
        let epoch = self.chain.find(epoch_hash)?;
        self.registry.roster(&epoch.record).map(Cow::Owned)
    }

    /// Whether there is a record of the epoch with this hash; its roster need not be made for that.
    pub(super) fn knows_epoch(&self, epoch_hash: &crate::mesh::ids::Hash) -> bool {
        let mut recent = std::iter::once(&self.roster).chain(&self.known);
        recent.any(|roster| roster.epoch_hash() == *epoch_hash)
            || self.chain.find(epoch_hash).is_some()
    }

    pub(super) fn open_grant(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        grant: SignedGrant,
        local: bool,
    ) {
        match grant.verify(&self.config.genesis) {
            Ok(()) => {}
            Err(AdmissionError::WrongMesh(_)) => {
                return self.refuse(call, from, RefusalReason::WrongMesh);
            }
            Err(_) => return self.refuse(call, from, RefusalReason::BadAdmission),
        }
        let ticket = grant.grant.ticket;
        if self.grants.contains_key(&ticket) || self.registry.is_used(&ticket) {
            if local {
                self.refuse(call, from, RefusalReason::Replayed);
            }
            return;
        }
        if grant.grant.expires_unix_us <= call.now {
            return self.refuse(call, from, RefusalReason::TicketExpired);
        }
        if self.grants.len() >= MAX_GRANTS {
            return self.refuse(call, from, RefusalReason::Full);
        }
        self.grants.insert(ticket, grant.clone());
        let grant = Box::new(grant);
        call.out
            .push(Output::Broadcast(Message::Grant(grant.clone()).to_bytes()));
        call.out.push(Output::GrantOpened(grant));
    }

    pub(super) fn peer_proof(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        proof: &EquivocationProof,
    ) {
        if !self.is_lie_news(proof) {
            return;
        }
        if proof.votes().0.vote.mesh != self.mesh {
            return self.refuse(call, from, RefusalReason::WrongMesh);
        }
        match proof.verify(&self.roster) {
            Ok(()) => self.accuse(call, proof),
            // The voter's admission may still be on its way.
            Err(None) => self.put_aside(call, from, &Message::Equivocation(Box::new(*proof))),
            Err(Some(_)) => self.refuse(call, from, RefusalReason::BadSignature),
        }
    }

    /// Takes a verified proof: the voter weighs nothing from now on, and everybody hears of it.
    pub(super) fn accuse(&mut self, call: &mut Call<'_>, proof: &EquivocationProof) {
        let voter = proof.voter();
        if !self.is_lie_news(proof)
            || (self.proofs.len() >= MAX_NODES && !self.proofs.contains_key(&voter))
            || planted(Bug::EquivocationIgnored)
        {
            return;
        }
        self.proofs.insert(voter, *proof);
        self.zeroed.insert(voter);
        let proof = Box::new(*proof);
        call.out.push(Output::Broadcast(
            Message::Equivocation(proof.clone()).to_bytes(),
        ));
        call.out.push(Output::Equivocation(proof.clone()));
        self.proved(voter, &proof.to_bytes(), Told::equivocation(&proof));
        self.catch(call, Misconduct::Equivocation(proof));
        self.act_on_node(call, voter);
    }

    pub(super) fn report_state(&mut self, call: &mut Call<'_>) {
        // One call connects or disconnects one peer at most, and liars only get more.
        let basis = (
            self.roster.epoch_hash(),
            self.connected.len(),
            self.zeroed.len(),
        );
        if self.state_basis == Some(basis) {
            return;
        }
        self.state_basis = Some(basis);
        let state: QuorumState = self.quorum();
        if self.last_state.as_ref() != Some(&state) {
            self.last_state = Some(state.clone());
            call.out.push(Output::QuorumState(state));
        }
    }
}
