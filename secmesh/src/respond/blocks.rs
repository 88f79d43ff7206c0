//! Desired against enforced: what should be in the kernel's block maps, why, until when, and whether it
//! is there.
//!
//! Several decisions may want the same prefix blocked. Each is a [`Claim`]; the entry ends with the last
//! of them. A trie answers with its longest match only, so a prefix inside another one is kept as long
//! as the outer one: otherwise the inner one's end would open a hole in the outer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
};

use secmesh_common::block::{BlockEntry, origin};

use crate::{
    addr::Prefix,
    api::types::Origin,
    dataplane::{BlockTable, TableError},
};

/// Prefixes and addresses that may be desired at once.
pub const MAX_DESIRED: usize = 1 << 20;
/// Claims that one tick ends.
pub const ENDS_PER_TICK: usize = 4096;
/// Failed writes that are tried again per tick.
const RETRIES_PER_TICK: usize = 256;

/// An entry whose end is off by more is written again, ns. Twice what makes a clock step.
const MAX_DRIFT_NS: u64 = 4_000_000_000;

/// Identifies a claim: the decision's id.
pub type ClaimId = String;

/// One decision's wish to have a prefix blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose decision.
    pub origin: Origin,
    /// When it ends, unix µs.
    pub expires_unix_us: u64,
    /// The controller's number for it, shown in the map entry.
    pub rule: u32,
}

/// Where entries are written: the kernel's maps, or a stand-in where a test has no kernel.
pub trait Kernel {
    /// Writes or extends an entry.
    ///
    /// # Errors
    ///
    /// Whatever keeps the entry from being enforced.
    fn put(
        &mut self,
        prefix: &Prefix,
        expires_ns: u64,
        rule: u32,
        flags: u32,
    ) -> Result<(), TableError>;
    /// Removes an entry.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    fn remove(&mut self, prefix: &Prefix) -> Result<(), TableError>;
    /// Reads an entry.
    fn get(&self, prefix: &Prefix) -> Option<BlockEntry>;
    /// Removes an entry that nobody wants, and says whether it was still there.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    fn remove_stray(&mut self, prefix: &Prefix) -> Result<bool, TableError> {
        let was_there = self.get(prefix).is_some();
        self.remove(prefix)?;
        Ok(was_there)
    }
}

impl Kernel for BlockTable {
    fn put(
        &mut self,
        prefix: &Prefix,
        expires_ns: u64,
        rule: u32,
        flags: u32,
    ) -> Result<(), TableError> {
        Self::put(self, prefix, expires_ns, rule, flags)
    }

    fn remove(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        Self::remove(self, prefix)
    }

    fn get(&self, prefix: &Prefix) -> Option<BlockEntry> {
        Self::get(self, prefix)
    }

    fn remove_stray(&mut self, prefix: &Prefix) -> Result<bool, TableError> {
        Self::remove_stray(self, prefix)
    }
}

#[derive(Debug, Default)]
struct Desired {
    claims: BTreeMap<ClaimId, Claim>,
    not_enforced: Option<String>,
}

impl Desired {
    fn expires(&self) -> u64 {
        self.claims
            .values()
            .map(|c| c.expires_unix_us)
            .max()
            .unwrap_or(0)
    }

    /// The claim that lasts longest speaks for the entry.
    fn speaker(&self) -> Option<&Claim> {
        self.claims.values().max_by_key(|c| c.expires_unix_us)
    }
}

/// Why a claim is not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Nothing more can be wanted; the claim is not kept.
    #[error(
        "this node wants {0} prefixes blocked already, as many as it keeps; end some (`secmesh unblock`), or block a network in place of its addresses"
    )]
    Limit(usize),
    /// The entry could not be written; the claim is kept, and tried again.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// What should be blocked.
#[derive(Debug)]
pub struct Blocks {
    limit: usize,
    desired: BTreeMap<Prefix, Desired>,
    /// The prefixes among them that are no single addresses.
    networks: BTreeSet<Prefix>,
    /// When each claim ends, soonest first, so that a tick looks at what is due and at nothing else.
    ends: BTreeSet<(u64, Prefix, ClaimId)>,
    /// What should be in the kernel and is not.
    failed: BTreeSet<Prefix>,
}

/// A claim whose time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// What was blocked.
    pub prefix: Prefix,
    /// Whose claim it was.
    pub id: ClaimId,
    /// What the kernel had counted by then: packets and bytes.
    pub hits: Option<(u64, u64)>,
}

const fn flags_of(origin: Origin) -> u32 {
    match origin {
        Origin::Quorum => origin::MESH,
        Origin::Unilateral => origin::NODE,
        Origin::Operator => origin::OPERATOR,
        Origin::Quarantine => origin::QUARANTINE,
    }
}

/// Unix time as a reading of the kernel's clock.
fn kernel_ns(unix_us: u64, now_unix_us: u64, now_ns: u64) -> u64 {
    let ahead = unix_us.saturating_sub(now_unix_us);
    let behind = now_unix_us.saturating_sub(unix_us);
    now_ns
        .saturating_add(ahead.saturating_mul(1000))
        .saturating_sub(behind.saturating_mul(1000))
}

/// Longest time left, µs, that an end keeps when the wall clock is set: a day, as long as a block of the mesh
/// can last, and a minute for its bucket.
const KEPT_US: u64 = 86_460_000_000;

/// When a decision ends that was to end at `expires`, now that the wall clock was set from `before` to
/// `after` (all unix µs).
///
/// Its time left is what counts, and is kept: neither does a wrong step let an attacker in, nor does it hold
/// anybody for longer. With more than a day left it is the earlier clock that cannot be trusted (a machine
/// that boots in 1970 and reads its ledger); then the end is what it says.
pub fn end_after_step(expires: u64, before: u64, after: u64) -> u64 {
    match expires.checked_sub(before) {
        Some(left) if left <= KEPT_US => after.saturating_add(left),
        Some(_) => expires,
        // Over already; it must not begin again.
        None => expires.min(after),
    }
}

/// Both clocks, read together.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Unix time, µs.
    pub unix_us: u64,
    /// `CLOCK_MONOTONIC`, ns.
    pub mono_ns: u64,
}

impl Default for Blocks {
    fn default() -> Self {
        Self::with_limit(MAX_DESIRED)
    }
}

impl Blocks {
    /// For at most `limit` prefixes and addresses.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            desired: BTreeMap::new(),
            networks: BTreeSet::new(),
            ends: BTreeSet::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Adds a claim and writes the entry.
    ///
    /// # Errors
    ///
    /// If the entry could not be written; the claim stays and is tried again, and until then shows as
    /// not enforced. [`ClaimError::Limit`] if more than [`MAX_DESIRED`] are wanted; then the claim is not
    /// kept.
    pub fn claim(
        &mut self,
        kernel: &mut dyn Kernel,
        now: Now,
        prefix: Prefix,
        id: ClaimId,
        claim: Claim,
    ) -> Result<(), ClaimError> {
        if self.desired.len() >= self.limit && !self.desired.contains_key(&prefix) {
            return Err(ClaimError::Limit(self.limit));
        }
        let end = (claim.expires_unix_us, prefix, id.clone());
        let claims = &mut self.desired.entry(prefix).or_default().claims;
        if let Some(old) = claims.insert(id.clone(), claim) {
            self.ends.remove(&(old.expires_unix_us, prefix, id));
        }
        self.ends.insert(end);
        if !prefix.is_single() {
            self.networks.insert(prefix);
            // Inner prefixes must not end before this one.
            for inner in self.inside(&prefix) {
                // Its own state keeps the outcome.
                drop(self.write(kernel, now, &inner));
            }
        }
        Ok(self.write(kernel, now, &prefix)?)
    }

    /// Ends one claim; the entry goes if it was the last.
    ///
    /// # Errors
    ///
    /// If the kernel refused to remove the entry. It ends by its own time then.
    pub fn release(
        &mut self,
        kernel: &mut dyn Kernel,
        now: Now,
        prefix: &Prefix,
        id: &str,
    ) -> Result<(), TableError> {
        let Some(desired) = self.desired.get_mut(prefix) else {
            return Ok(());
        };
        if let Some(claim) = desired.claims.remove(id) {
            self.ends
                .remove(&(claim.expires_unix_us, *prefix, id.to_owned()));
        }
        if !desired.claims.is_empty() {
            return self.write(kernel, now, prefix);
        }
        self.desired.remove(prefix);
        self.networks.remove(prefix);
        self.failed.remove(prefix);
        kernel.remove(prefix)?;
        for inner in self.inside(prefix) {
            drop(self.write(kernel, now, &inner));
        }
        Ok(())
    }

    /// Ends claims whose time is over and tries failed writes again.
    pub fn tick(&mut self, kernel: &mut dyn Kernel, now: Now) -> Vec<Over> {
        let mut over = Vec::new();
        while let Some((ends, prefix, id)) = self.ends.first().cloned() {
            // The kernel ends them on time by itself; what does not fit here goes with the next tick.
            if ends > now.unix_us || over.len() >= ENDS_PER_TICK {
                break;
            }
            let hits = kernel.get(&prefix).map(|e| (e.hits, e.bytes));
            // The kernel stopped honouring the entry at the same time; a failed removal leaves garbage
            // that reconciling takes away.
            drop(self.release(kernel, now, &prefix, &id));
            self.ends.remove(&(ends, prefix, id.clone()));
            over.push(Over { prefix, id, hits });
        }
        let failed: Vec<Prefix> = self.failed.iter().take(RETRIES_PER_TICK).copied().collect();
        for prefix in failed {
            drop(self.write(kernel, now, &prefix));
        }
        over
    }

    /// Writes every desired entry and removes every other of `present`: after a start, and when the
    /// wall clock was set (the kernel counts on another clock).
    pub fn reconcile(
        &mut self,
        kernel: &mut dyn Kernel,
        now: Now,
        present: &BTreeSet<Prefix>,
    ) -> Reconciled {
        let mut done = Reconciled::default();
        let all: Vec<Prefix> = self.desired.keys().copied().collect();
        for prefix in all {
            if !present.contains(&prefix) {
                done.added += 1;
            }
            if self.write(kernel, now, &prefix).is_err() {
                done.failed += 1;
            }
        }
        for prefix in present {
            if !self.desired.contains_key(prefix) && kernel.remove(prefix).is_ok() {
                done.removed += 1;
            }
        }
        done
    }

    /// Looks up the next `limit` desired entries behind `after` and writes those that are missing or wrong
    /// again. Gives the last one it looked at, `None` once all were.
    pub fn repair(
        &mut self,
        kernel: &mut dyn Kernel,
        now: Now,
        after: Option<Prefix>,
        limit: usize,
    ) -> (Reconciled, Option<Prefix>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page: Vec<Prefix> = self
            .desired
            .range((from, Bound::Unbounded))
            .take(limit)
            .map(|(prefix, _)| *prefix)
            .collect();
        let mut done = Reconciled::default();
        for prefix in &page {
            // What has failed already is tried again by the tick.
            if self.failed.contains(prefix) || self.is_in_force(kernel, now, prefix) {
                continue;
            }
            match self.write(kernel, now, prefix) {
                Ok(()) => done.added += 1,
                Err(_) => done.failed += 1,
            }
        }
        let last = page.last().copied().filter(|_| page.len() == limit);
        (done, last)
    }

    /// Whether the kernel has the entry as it should be; its end may differ by what the two clocks drift
    /// apart.
    fn is_in_force(&self, kernel: &dyn Kernel, now: Now, prefix: &Prefix) -> bool {
        let Some(desired) = self.desired.get(prefix) else {
            return true;
        };
        let (Some(speaker), Some(entry)) = (desired.speaker(), kernel.get(prefix)) else {
            return false;
        };
        let until = desired.expires().max(self.cover(prefix));
        let ends = kernel_ns(until, now.unix_us, now.mono_ns);
        entry.rule == speaker.rule
            && entry.flags == flags_of(speaker.origin)
            && entry.expires_ns.abs_diff(ends) <= MAX_DRIFT_NS
    }

    /// The wall clock was set from `before` to `after` (unix µs) in one moment: what was to last ten minutes
    /// still does. [`Blocks::reconcile`] next.
    pub fn clock_was_set(&mut self, before: u64, after: u64) {
        for desired in self.desired.values_mut() {
            for claim in desired.claims.values_mut() {
                claim.expires_unix_us = end_after_step(claim.expires_unix_us, before, after);
            }
        }
        self.ends = self
            .desired
            .iter()
            .flat_map(|(prefix, desired)| {
                let claims = desired.claims.iter();
                claims.map(|(id, claim)| (claim.expires_unix_us, *prefix, id.clone()))
            })
            .collect();
    }

    fn write(
        &mut self,
        kernel: &mut dyn Kernel,
        now: Now,
        prefix: &Prefix,
    ) -> Result<(), TableError> {
        let cover = self.cover(prefix);
        let Some(desired) = self.desired.get_mut(prefix) else {
            return Ok(());
        };
        let Some(speaker) = desired.speaker() else {
            return Ok(());
        };
        let flags = flags_of(speaker.origin);
        let until = desired.expires().max(cover);
        let expires_ns = kernel_ns(until, now.unix_us, now.mono_ns);
        let result = kernel.put(prefix, expires_ns, speaker.rule, flags);
        desired.not_enforced = result.as_ref().err().map(ToString::to_string);
        if result.is_err() {
            self.failed.insert(*prefix);
        } else {
            self.failed.remove(prefix);
        }
        result
    }

    /// The latest end of the networks around a network. Addresses have maps of their own, which are
    /// asked before the networks' and fall through when they have ended.
    fn cover(&self, prefix: &Prefix) -> u64 {
        if prefix.is_single() {
            return 0;
        }
        self.networks
            .iter()
            .filter(|outer| *outer != prefix && outer.contains(prefix))
            .filter_map(|outer| self.desired.get(outer))
            .map(Desired::expires)
            .max()
            .unwrap_or(0)
    }

    fn inside(&self, outer: &Prefix) -> Vec<Prefix> {
        self.networks
            .iter()
            .filter(|p| *p != outer && outer.contains(p))
            .copied()
            .collect()
    }

    /// Why `prefix` is not in the kernel although it should be.
    pub fn not_enforced(&self, prefix: &Prefix) -> Option<&str> {
        self.desired.get(prefix)?.not_enforced.as_deref()
    }

    /// The widest desired prefix that `addr` is in, if there is one.
    pub fn covering(&self, addr: IpAddr) -> Option<Prefix> {
        let host = Prefix::host(addr);
        (0..=host.len())
            .filter_map(|len| Prefix::truncating(host.addr(), len).ok())
            .find(|prefix| self.desired.contains_key(prefix))
    }

    /// Whether `prefix` should be blocked.
    pub fn is_desired(&self, prefix: &Prefix) -> bool {
        self.desired.contains_key(prefix)
    }

    /// The claims on exactly `prefix`.
    pub fn claims(&self, prefix: &Prefix) -> Vec<(ClaimId, Claim)> {
        self.desired.get(prefix).map_or_else(Vec::new, |d| {
            d.claims
                .iter()
                .map(|(i, c)| (i.clone(), c.clone()))
                .collect()
        })
    }

    /// How many prefixes are desired, how many of them are enforced, and which are not, with the reason
    /// (at most `limit` of those).
    pub fn totals(&self, limit: usize) -> (usize, usize, BTreeMap<String, String>) {
        let named = self
            .failed
            .iter()
            .take(limit)
            .filter_map(|p| Some((p.to_string(), self.desired.get(p)?.not_enforced.clone()?)))
            .collect();
        let desired = self.desired.len();
        (desired, desired.saturating_sub(self.failed.len()), named)
    }

    /// Number of desired networks by family: (IPv4, IPv6).
    pub fn network_counts(&self) -> (u32, u32) {
        let v4 = self.networks.iter().filter(|p| p.is_ipv4()).count();
        let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
        (count(v4), count(self.networks.len() - v4))
    }
}

/// What reconciling changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// Entries that were missing.
    pub added: usize,
    /// Entries that nobody wants any more.
    pub removed: usize,
    /// Entries that could not be written.
    pub failed: usize,
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
