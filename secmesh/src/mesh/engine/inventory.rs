//! What a peer is told when it connects: what it lacks, and this node's own open votes.

use std::collections::{BTreeMap, VecDeque};

use super::io::{Output, RefusalReason};
use super::{Call, Engine};
use crate::mesh::crypto::sha256;
use crate::mesh::decision::{Decision, Warrant};
use crate::mesh::ids::NodeId;
use crate::mesh::inventory::{Inventory, bucket_of, differing, sums};
use crate::mesh::message::{Message, pack};
use crate::mesh::roster::MAX_NODES;
use crate::mesh::witness::LedgerMessage;

/// Most batches of the backlog sent to one peer per call: 2 MiB, so that a peer that comes up
/// does not keep this node from voting.
const BACKLOG_STEP: usize = 32;
/// Most batches that wait for one peer.
const MAX_BACKLOG: usize = 1_024;

fn short(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Anything by the hash of what it is.
fn hashed(what: u8, bytes: &[u8]) -> u64 {
    short(&sha256(&[&[what], bytes].concat()))
}

impl Engine {
    /// What today's roster would not have decided, or what is over by another clock, a peer would refuse.
    fn is_told(&self, now: u64, decision: &Decision) -> bool {
        if decision.expires_unix_us <= now.saturating_add(self.skew_us()) {
            return false;
        }
        match &decision.warrant {
            Warrant::Operator(_) => true,
            Warrant::Votes(certificate) => certificate
                .count(&self.roster, &self.zeroed)
                .check()
                .is_ok(),
        }
    }

    /// The ids of all that peers should have too. The same thing has the same id on every node, also where
    /// its proof differs: a decision with another choice of votes, a liar with other lies.
    fn inventory(&self, now: u64) -> Vec<u64> {
        let records = self
            .registry
            .records()
            .map(|r| hashed(1, r.record.hash().as_bytes()));
        let grants = self
            .grants
            .keys()
            .map(|ticket| hashed(2, ticket.as_bytes()));
        let proofs = self.proofs.keys().map(|voter| hashed(3, voter.as_bytes()));
        let forks = self.forks.keys().map(|author| hashed(4, author.as_bytes()));
        let decisions = self
            .decisions
            .values()
            .filter(|decision| self.is_told(now, decision))
            .map(|decision| short(decision.id.as_bytes()));
        records
            .chain(grants)
            .chain(proofs)
            .chain(forks)
            .chain(decisions)
            .collect()
    }

    pub(super) fn peer_up(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if peer == self.config.node
            || (self.connected.len() >= MAX_NODES && !self.connected.contains(&peer))
        {
            return;
        }
        self.connected.insert(peer);
        if self.seen.len() < 2 * MAX_NODES {
            self.seen.insert(peer);
        }
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
        let parts = self.epoch_parts().into_iter().chain(votes);
        let batches: VecDeque<Vec<u8>> = pack(parts.map(|message| message.to_bytes())).into();
        self.backlog.insert(peer, batches);
        self.tell_sums(call, peer);
        self.send_backlog(call);
        if self.roster.get(&peer).is_none() {
            // It was admitted and has now been started: its epoch may come.
            self.membership_known(call);
        }
    }

    /// Says what is here in 256 sums; the peer answers with what it has where its own differ.
    pub(super) fn tell_sums(&self, call: &mut Call<'_>, peer: NodeId) {
        let message = Inventory::Sums(sums(self.inventory(call.now)));
        call.out.push(Output::Send {
            to: peer,
            bytes: Message::Inventory(Box::new(message)).to_bytes(),
        });
    }

    pub(super) fn peer_inventory(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        inventory: Inventory,
    ) {
        if !self.connected.contains(&from) {
            return;
        }
        match inventory {
            Inventory::Sums(theirs) => {
                let ids = self.inventory(call.now);
                let mine = sums(ids.iter().copied());
                for message in differing(&mine, &theirs, &ids) {
                    call.out.push(Output::Send {
                        to: from,
                        bytes: Message::Inventory(Box::new(message)).to_bytes(),
                    });
                }
            }
            Inventory::Ids { buckets, ids } => {
                let lacks = |id: u64| {
                    buckets.binary_search(&bucket_of(id)).is_ok() && ids.binary_search(&id).is_err()
                };
                let parts: Vec<Vec<u8>> = self.lacking(call.now, &lacks).collect();
                let batches = pack(parts);
                let waiting = self.backlog.entry(from).or_default();
                if waiting.len() + batches.len() > MAX_BACKLOG {
                    return self.refuse(call, from, RefusalReason::Full);
                }
                waiting.extend(batches);
                self.send_backlog(call);
            }
        }
    }

    /// All that has an id that `lacks` is true of, members first: they say whose the rest is.
    fn lacking<'a>(
        &'a self,
        now: u64,
        lacks: &'a dyn Fn(u64) -> bool,
    ) -> impl Iterator<Item = Vec<u8>> + 'a {
        let records = self
            .registry
            .records()
            .filter(|r| lacks(hashed(1, r.record.hash().as_bytes())))
            .map(|r| Message::Admission(Box::new(r.clone())));
        let grants = self
            .grants
            .iter()
            .filter(|(ticket, _)| lacks(hashed(2, ticket.as_bytes())))
            .map(|(_, g)| Message::Grant(Box::new(g.clone())));
        let proofs = self
            .proofs
            .iter()
            .filter(|(voter, _)| lacks(hashed(3, voter.as_bytes())))
            .map(|(_, p)| Message::Equivocation(Box::new(*p)));
        let forks = self
            .forks
            .iter()
            .filter(|(author, _)| lacks(hashed(4, author.as_bytes())))
            .map(|(_, p)| Message::Ledger(LedgerMessage::Fork(Box::new(p.clone()))));
        let decisions = self
            .decisions
            .values()
            .filter(move |d| lacks(short(d.id.as_bytes())) && self.is_told(now, d))
            .map(|decision| match &decision.warrant {
                Warrant::Operator(signed) => Message::Release(Box::new(*signed)),
                Warrant::Votes(certificate) => Message::Certificate(Box::new(certificate.clone())),
            });
        records
            .chain(grants)
            .chain(proofs)
            .chain(forks)
            .chain(decisions)
            .map(|message| message.to_bytes())
    }

    pub(super) fn send_backlog(&mut self, call: &mut Call<'_>) {
        let backlog: &mut BTreeMap<NodeId, VecDeque<Vec<u8>>> = &mut self.backlog;
        for (peer, batches) in backlog.iter_mut() {
            for bytes in batches.drain(..batches.len().min(BACKLOG_STEP)) {
                call.out.push(Output::Send { to: *peer, bytes });
            }
        }
        backlog.retain(|_, batches| !batches.is_empty());
    }
}
