//! Admissions, tickets, epochs, and what a peer is told when it connects.

use std::collections::VecDeque;

use super::io::{Output, QuorumState, RefusalReason};
use super::{Call, Engine, KNOWN_EPOCHS};
use crate::mesh::admission::{AdmissionError, AdmittedRecord, SignedGrant};
use crate::mesh::decision::Warrant;
use crate::mesh::ids::NodeId;
use crate::mesh::message::{EquivocationProof, Message, pack};
use crate::mesh::roster::{MAX_NODES, Offered, Roster};
use crate::mesh::simulation::{Bug, planted};

/// Most open tickets.
const MAX_GRANTS: usize = 1_024;
/// Most messages of the backlog sent to one peer per call: 2 MiB, so that a peer that comes up
/// does not keep this node from voting.
const BACKLOG_STEP: usize = 32;

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
                return self.new_epoch(call);
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
        self.new_epoch(call);
    }

    /// Builds the roster anew. Votes of the old epoch no longer count, so what this node has
    /// evidence for is voted on again, and what came too early is looked at again.
    fn new_epoch(&mut self, call: &mut Call<'_>) {
        let roster = self.registry.roster(self.mesh);
        if roster.epoch_hash() == self.roster.epoch_hash() {
            return;
        }
        let before = std::mem::replace(&mut self.roster, roster);
        let mut known: VecDeque<Roster> = VecDeque::from([before]);
        known.extend(self.known.drain(..));
        known.extend(self.registry.earlier_rosters(self.mesh, KNOWN_EPOCHS));
        let mut hashes = std::collections::BTreeSet::from([self.roster.epoch_hash()]);
        known.retain(|roster| hashes.insert(roster.epoch_hash()));
        known.truncate(KNOWN_EPOCHS);
        self.known = known;
        self.incidents
            .prune(call.now, self.valid_us(), self.roster.epoch_hash());
        let subjects: Vec<_> = self.evidence.keys().copied().collect();
        for (subject, class) in subjects {
            self.act_on(call, subject, Some(class));
        }
        for (until, from, bytes) in std::mem::take(&mut self.pending) {
            if until > call.now {
                self.message(call, from, &bytes);
            }
        }
    }

    /// The roster of the epoch with this hash, if it is the current one or one of the last 16.
    pub(super) fn roster_of(&self, epoch_hash: &crate::mesh::ids::Hash) -> Option<&Roster> {
        std::iter::once(&self.roster)
            .chain(&self.known)
            .find(|roster| roster.epoch_hash() == *epoch_hash)
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
        if self.proofs.contains_key(&proof.voter()) {
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
        if self.proofs.contains_key(&voter)
            || self.proofs.len() >= MAX_NODES
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
        call.out.push(Output::Equivocation(proof));
    }

    pub(super) fn peer_up(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if peer == self.config.node
            || (self.connected.len() >= MAX_NODES && !self.connected.contains(&peer))
        {
            return;
        }
        self.connected.insert(peer);
        let records = self
            .registry
            .records()
            .map(|r| Message::Admission(Box::new(r.clone())));
        let grants = self
            .grants
            .values()
            .map(|g| Message::Grant(Box::new(g.clone())));
        let proofs = self
            .proofs
            .values()
            .map(|p| Message::Equivocation(Box::new(*p)));
        // Own votes on what is still open, so that a mesh that was split can decide after all.
        let votes = self
            .own_votes
            .values()
            .filter(|ballot| {
                let vote = &ballot.signed.vote;
                vote.epoch_hash == self.roster.epoch_hash()
                    && self
                        .incidents
                        .get(&(vote.incident, vote.round))
                        .is_some_and(|i| !i.decided && i.is_open(call.now))
            })
            .map(|ballot| Message::Vote(Box::new(*ballot)));
        let decisions = self.decisions.values().filter_map(|decision| {
            match &decision.warrant {
                Warrant::Operator(signed) => Some(Message::Release(Box::new(*signed))),
                // What today's roster would not have decided, the peer would refuse.
                Warrant::Votes(certificate) => certificate
                    .count(&self.roster, &self.zeroed)
                    .check()
                    .is_ok()
                    .then(|| Message::Certificate(Box::new(certificate.clone()))),
            }
        });
        let parts = records
            .chain(grants)
            .chain(proofs)
            .chain(votes)
            .chain(decisions)
            .map(|message| message.to_bytes());
        let batches: VecDeque<Vec<u8>> = pack(parts).into();
        self.backlog.insert(peer, batches);
        self.send_backlog(call);
    }

    pub(super) fn send_backlog(&mut self, call: &mut Call<'_>) {
        for (peer, batches) in &mut self.backlog {
            for bytes in batches.drain(..batches.len().min(BACKLOG_STEP)) {
                call.out.push(Output::Send { to: *peer, bytes });
            }
        }
        self.backlog.retain(|_, batches| !batches.is_empty());
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
