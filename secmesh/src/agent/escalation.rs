//! From addresses to their network: the fifth blocked address of one /24 (IPv6 /64) puts the network to the
//! mesh, as class 2. A mesh of one node acts for itself.
//!
//! What is counted is what this node enforces on the mesh's word or its own, so every node that enforces the
//! same decisions comes to the same network by itself, and each is a witness of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tracing::{debug, info};

use super::core::{Agent, View};
use crate::{
    addr::Prefix,
    api::types::Origin,
    mesh::{
        crypto::sha256,
        engine::{Input, Policy as _},
        ids::Hash,
        vote::{ActionKind, AttackClass, BUCKET_US, network_of},
    },
    respond::Entry,
};

/// Distinct blocked addresses that make a network the subject.
pub(super) const ADDRESSES: usize = 5;
/// Networks that are looked at again with every tick; further ones come with their next address.
const MAX_CANDIDATES: usize = 1024;
/// Networks looked at per tick.
const PER_TICK: usize = 64;
/// How often the evidence is renewed until the mesh has decided, µs.
const RENEW_US: u64 = 5_000_000;
/// Releases by this node's operator that are remembered.
const MAX_RELEASED: usize = 1024;
/// Addresses named in a reason.
const MAX_NAMED: usize = 8;

/// Networks that may have reached the number.
#[derive(Debug, Default)]
pub(super) struct Escalation {
    /// When each is looked at next, unix µs.
    candidates: BTreeMap<Prefix, u64>,
    /// When a network was let go here: only addresses blocked after that count again.
    released: BTreeMap<Prefix, u64>,
    releases: VecDeque<Prefix>,
    /// Networks that were not put to the mesh because there were too many at once.
    pub dropped: u64,
}

impl Escalation {
    /// A block went into force.
    pub(super) fn blocked(&mut self, entry: &Entry) {
        if matches!(entry.origin, Origin::Operator | Origin::Quarantine) {
            return;
        }
        let Some(network) = network_of(&entry.subject) else {
            return;
        };
        if self.candidates.len() >= MAX_CANDIDATES && !self.candidates.contains_key(&network) {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.candidates.entry(network).or_insert(0);
    }

    /// A network was let go.
    pub(super) fn released(&mut self, network: &Prefix, now_unix_us: u64) {
        self.candidates.remove(network);
        if self.released.insert(*network, now_unix_us).is_none() {
            self.releases.push_back(*network);
        }
        if self.releases.len() > MAX_RELEASED
            && let Some(oldest) = self.releases.pop_front()
        {
            self.released.remove(&oldest);
        }
    }

    fn released_at(&self, network: &Prefix) -> u64 {
        self.released.get(network).copied().unwrap_or(0)
    }
}

/// The distinct addresses among `active` that count, in their order.
#[expect(
    single_use_lifetimes,
    reason = "anonymous lifetimes in `impl Trait` are not stable"
)]
fn counted<'a>(active: impl Iterator<Item = &'a Entry>, since_unix_us: u64) -> BTreeSet<Prefix> {
    active
        .filter(|e| {
            e.subject.is_single()
                && !matches!(e.origin, Origin::Operator | Origin::Quarantine)
                && e.created_unix_us > since_unix_us
        })
        .map(|e| e.subject)
        .collect()
}

/// Commits to the addresses.
fn evidence_root(network: &Prefix, addresses: &BTreeSet<Prefix>) -> Hash {
    let mut bytes = b"secmesh/network-evidence/1".to_vec();
    bytes.extend(network.to_bytes());
    for address in addresses {
        bytes.extend(address.to_bytes());
    }
    Hash(sha256(&bytes))
}

impl Agent {
    /// The addresses of `network` that this node blocks on the mesh's word or its own, since the network
    /// was last let go.
    fn blocked_in(&self, network: &Prefix) -> BTreeSet<Prefix> {
        let by_mesh = self
            .engine
            .decisions_about(network)
            .filter(|d| d.action.kind == ActionKind::Release)
            .map(|d| d.bucket.saturating_add(1).saturating_mul(BUCKET_US))
            .max()
            .unwrap_or(0);
        let since = by_mesh.max(self.escalation.released_at(network));
        counted(self.book.active_in(network), since)
    }

    /// Why a network is blocked, in words; `None` for an address, or if nothing of it is blocked here.
    pub(super) fn network_reason(&self, network: &Prefix) -> Option<String> {
        if network.is_single() {
            return None;
        }
        let addresses = self.blocked_in(network);
        if addresses.is_empty() {
            return None;
        }
        let named: Vec<String> = addresses
            .iter()
            .take(MAX_NAMED)
            .map(ToString::to_string)
            .collect();
        let more = addresses.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Some(format!(
            "{} addresses of it are blocked: {}{more}",
            addresses.len(),
            named.join(", ")
        ))
    }

    /// Looks at the networks that may have reached the number.
    pub(super) async fn escalate(&mut self) {
        let now_unix_us = self.clock.unix_us();
        let due: Vec<Prefix> = self
            .escalation
            .candidates
            .iter()
            .filter(|(_, due)| **due <= now_unix_us)
            .map(|(network, _)| *network)
            .take(PER_TICK)
            .collect();
        for network in due {
            self.escalate_to(network, now_unix_us).await;
        }
    }

    async fn escalate_to(&mut self, network: Prefix, now_unix_us: u64) {
        let addresses = self.blocked_in(&network);
        let active = self.book.active_on(&network).next().is_some()
            || self.engine.active_block(&network).is_some();
        if addresses.len() < ADDRESSES || active {
            self.escalation.candidates.remove(&network);
            return;
        }
        let view = View {
            allowlist: &self.allowlist,
            protected: &self.protected,
            table: &self.table,
            now_ns: self.clock.mono_ns(),
            chosen: &BTreeMap::new(),
            automatic: self.options.config.mesh.quarantine,
        };
        if let Some(why) = view.vetoes(&network) {
            debug!(%network, why, "not escalated");
            self.escalation.candidates.remove(&network);
            return;
        }
        if self.engine.roster().len() < 2 {
            self.escalation.candidates.remove(&network);
            let reason = self.network_reason(&network).unwrap_or_default();
            info!(%network, reason, "the whole network is blocked on this node");
            self.claim_unilaterally(network, AttackClass::Network, reason);
            return;
        }
        self.escalation
            .candidates
            .insert(network, now_unix_us.saturating_add(RENEW_US));
        info!(%network, addresses = addresses.len(), "putting the whole network to the mesh");
        self.drive(Input::OwnEvidence {
            subject: network,
            class: AttackClass::Network,
            evidence_root: evidence_root(&network, &addresses),
            detector_hash: Hash(sha256(b"secmesh/network-escalation/1")),
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{DecisionScope, DecisionState};

    fn entry(subject: &str, origin: Origin, created_unix_us: u64) -> Entry {
        Entry {
            id: format!("{subject} {origin:?}"),
            subject: subject.parse().unwrap(),
            class: AttackClass::SynFlood,
            scope: DecisionScope::Node,
            origin,
            state: DecisionState::Active,
            incident: None,
            reason: None,
            created_unix_us,
            certified_unix_us: None,
            enforced_unix_us: None,
            expires_unix_us: 1000,
            votes: Vec::new(),
            certificate: None,
            rule: 1,
            overridden: Vec::new(),
            final_hits: None,
        }
    }

    #[test]
    fn addresses_count_once_operators_blocks_and_networks_do_not() {
        let all = [
            entry("192.0.2.1", Origin::Quorum, 5),
            entry("192.0.2.1", Origin::Unilateral, 6),
            entry("192.0.2.2", Origin::Operator, 7),
            entry("192.0.2.3", Origin::Unilateral, 8),
            entry("192.0.2.0/24", Origin::Quorum, 9),
        ];
        assert_eq!(counted(all.iter(), 0).len(), 2);
        assert_eq!(counted(all.iter(), 6).len(), 1, "before a release");
    }

    #[test]
    fn only_single_addresses_make_candidates_and_their_number_is_bounded() {
        let mut escalation = Escalation::default();
        escalation.blocked(&entry("192.0.2.1", Origin::Operator, 1));
        escalation.blocked(&entry("192.0.2.0/24", Origin::Quorum, 1));
        assert!(escalation.candidates.is_empty());
        for n in 0..=MAX_CANDIDATES {
            let subject = format!("10.{}.{}.1", n >> 8, n & 255);
            escalation.blocked(&entry(&subject, Origin::Unilateral, 1));
        }
        assert_eq!(escalation.candidates.len(), MAX_CANDIDATES);
        assert_eq!(escalation.dropped, 1);
        let network = "10.0.0.0/24".parse().unwrap();
        escalation.released(&network, 77);
        assert_eq!(escalation.released_at(&network), 77);
        assert!(!escalation.candidates.contains_key(&network));
    }
}
