//! How much checking of signatures one peer may cost this node.
//!
//! A certificate or an epoch carries up to some hundred signatures, and a seal one of ML-DSA-44; who sends forged ones
//! has them checked for the price of sending. So each peer has a budget of signatures that were checked for nothing:
//! what holds and is new costs its sender nothing, however much of it comes at once after a partition. What was found
//! forged is known by its hash for a while and not checked again, whoever sends it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::io::RefusalReason;
use super::{Call, Engine};
use crate::mesh::crypto;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::roster::MAX_NODES;

/// Signatures of one peer that may be checked for nothing at one time: eleven of the largest certificates.
pub const BURST: u32 = 4_096;
/// And each second from then on: about a hundredth of a core.
pub const PER_SECOND: u32 = 256;
/// What a seal costs, in signatures of Ed25519.
pub const SEAL: usize = 4;
/// Most forged things that are remembered.
pub const MAX_FORGED: usize = 4_096;

/// What a peer has left.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    /// Up to when it was refilled, microseconds since 1970.
    at_us: u64,
}

/// What all peers have left, and what was forged.
#[derive(Debug, Default, Clone)]
pub(super) struct Work {
    budgets: BTreeMap<NodeId, Budget>,
    forged: BTreeSet<Hash>,
    /// The same in the order in which it came.
    order: VecDeque<Hash>,
    checked: u64,
}

/// Something that is to be checked, paid for by its sender.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    from: NodeId,
    hash: Hash,
    price: u32,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// It holds, or no signature was looked at: the sender gets back what it paid.
    Paid,
    /// It was of no use.
    Wasted,
    /// A signature in it is forged.
    Forged,
}

impl Work {
    /// Takes `price` from what a peer has left. False if it has not that much.
    fn pay(&mut self, peer: NodeId, now_us: u64, price: u32) -> bool {
        if !self.budgets.contains_key(&peer) && self.budgets.len() >= MAX_NODES {
            // Whoever is full again is as good as new. Peers are members, and those are not more.
            self.budgets.retain(|_, budget| {
                budget.refill(now_us);
                budget.left < BURST
            });
            if self.budgets.len() >= MAX_NODES {
                return false;
            }
        }
        let budget = self.budgets.entry(peer).or_insert(Budget {
            left: BURST,
            at_us: now_us,
        });
        budget.refill(now_us);
        let left = budget.left.checked_sub(price);
        budget.left = left.unwrap_or(budget.left);
        left.is_some()
    }

    fn give_back(&mut self, peer: &NodeId, price: u32) {
        if let Some(budget) = self.budgets.get_mut(peer) {
            budget.left = budget.left.saturating_add(price).min(BURST);
        }
    }

    fn remember(&mut self, forged: Hash) {
        if self.forged.insert(forged) {
            self.order.push_back(forged);
        }
        while self.order.len() > MAX_FORGED
            && let Some(oldest) = self.order.pop_front()
        {
            self.forged.remove(&oldest);
        }
    }
}

impl Budget {
    fn refill(&mut self, now_us: u64) {
        // A clock that was set back must not make the peer wait for it.
        let gained = now_us.saturating_sub(self.at_us) / 1_000 * u64::from(PER_SECOND) / 1_000;
        if gained > 0 || now_us < self.at_us {
            self.at_us = now_us;
        }
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(gained).min(BURST);
    }
}

impl Engine {
    /// Begins a check of so many signatures in these bytes. None, and that is counted, if they are known to be forged
    /// or the peer has cost too much already: then nothing is checked.
    pub(super) fn begin_work(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        bytes: &[u8],
        signatures: usize,
    ) -> Option<Job> {
        let hash = Hash(crypto::sha256(bytes));
        if self.work.forged.contains(&hash) {
            self.refuse(call, from, RefusalReason::BadSignature);
            return None;
        }
        let price = u32::try_from(signatures.max(1)).unwrap_or(u32::MAX);
        if from != self.config.node && !self.work.pay(from, call.now, price) {
            self.refuse(call, from, RefusalReason::TooMuchWork);
            return None;
        }
        self.work.checked = self.work.checked.saturating_add(u64::from(price));
        Some(Job { from, hash, price })
    }

    /// Says what came of it.
    pub(super) fn end_work(&mut self, job: Job, worth: Worth) {
        match worth {
            Worth::Paid => self.work.give_back(&job.from, job.price),
            Worth::Wasted => {}
            Worth::Forged => self.work.remember(job.hash),
        }
    }

    /// Signatures in certificates, epochs and seals of peers that were checked, or paid for, since this one began.
    pub const fn signatures_checked(&self) -> u64 {
        self.work.checked
    }
}
