//! Who is in the mesh, with which weight, and what that means for a quorum.
//!
//! Every node folds the same grow-only set of admitted records into the same [`Roster`], whatever
//! the order in which it heard of them. A roster is an epoch: its hash is in every vote. All nodes
//! weigh [`NODE_WEIGHT`] for now; epochs with learned weights come later and change nothing here
//! but the numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

pub use super::admission::{
    Admission, AdmissionError, AdmittedRecord, Grant, NodeRecord, SignedGrant,
};
use super::crypto;
pub use super::genesis::{Genesis, Params, SignedGenesis};
use super::ids::{Hash, TicketId, Zone};
pub use super::ids::{MeshId, NodeId};
use super::wire::Encoder;
use crate::addr::Prefix;

const EPOCH_TAG: &str = "secmesh/epoch/1";

/// Most nodes in one mesh.
pub const MAX_NODES: usize = 1_024;
/// Weight of every node until weights are learned.
pub const NODE_WEIGHT: u32 = 100;

/// What came of offering a record to a [`Registry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is new; the roster has to be built again.
    Changed,
    /// It was known, or its ticket is burned already.
    Unchanged,
    /// It is the second record under its ticket, which proves that the ticket was used twice. Neither
    /// is in the roster any more; the roster has to be built again.
    Burned,
    /// The mesh is full.
    Full,
}

/// The grow-only set of admitted records.
///
/// A ticket is used once. Two different records under one ticket are a proof that it was not, and then
/// neither counts: any other rule lets whoever holds the ticket's key change who it is, as often as it
/// likes and with an epoch each time. Of several records under one node id the least by (time of joining,
/// hash) stays. So all nodes that know the same records have the same roster.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    // Shared between copies: a mesh's nodes know the same records, and a simulation has all nodes in one place.
    by_ticket: Arc<BTreeMap<TicketId, TicketUse>>,
    by_operator: Arc<BTreeMap<Hash, AdmittedRecord>>,
}

/// What is known of a ticket.
#[derive(Debug, Clone)]
enum TicketUse {
    /// Used, as it should be.
    Once(Box<AdmittedRecord>),
    /// Used twice, and the proof of that.
    Burned(Box<[AdmittedRecord; 2]>),
}

fn rank(admitted: &AdmittedRecord) -> (u64, NodeId, Hash) {
    let record = &admitted.record;
    (record.joined_unix_us, record.node, record.hash())
}

impl Registry {
    /// Takes a record that [`AdmittedRecord::verify`] has accepted.
    pub fn offer(&mut self, admitted: AdmittedRecord) -> Offered {
        let full = self.by_ticket.len() + self.by_operator.len() >= MAX_NODES;
        let Some(ticket) = admitted.ticket() else {
            let hash = admitted.record.hash();
            if self.by_operator.contains_key(&hash) {
                return Offered::Unchanged;
            }
            if full {
                return Offered::Full;
            }
            Arc::make_mut(&mut self.by_operator).insert(hash, admitted);
            return Offered::Changed;
        };
        match self.by_ticket.get(&ticket) {
            Some(TicketUse::Burned(_)) => Offered::Unchanged,
            Some(TicketUse::Once(kept)) if kept.record.hash() == admitted.record.hash() => {
                Offered::Unchanged
            }
            Some(TicketUse::Once(kept)) => {
                let proof = Box::new([AdmittedRecord::clone(kept), admitted]);
                Arc::make_mut(&mut self.by_ticket).insert(ticket, TicketUse::Burned(proof));
                Offered::Burned
            }
            None if full => Offered::Full,
            None => {
                Arc::make_mut(&mut self.by_ticket)
                    .insert(ticket, TicketUse::Once(Box::new(admitted)));
                Offered::Changed
            }
        }
    }

    /// Whether a ticket was used.
    pub fn is_used(&self, ticket: &TicketId) -> bool {
        self.by_ticket.contains_key(ticket)
    }

    /// All records: those of the roster, those that lost to another one of the same node id, and both
    /// records of each burned ticket, which prove that it is.
    pub fn records(&self) -> impl Iterator<Item = &AdmittedRecord> {
        let by_ticket = self.by_ticket.values().flat_map(|used| match used {
            TicketUse::Once(record) => std::slice::from_ref(&**record),
            TicketUse::Burned(proof) => proof.as_slice(),
        });
        self.by_operator.values().chain(by_ticket)
    }

    /// The records that count.
    fn valid(&self) -> impl Iterator<Item = &AdmittedRecord> {
        let by_ticket = self.by_ticket.values().filter_map(|used| match used {
            TicketUse::Once(record) => Some(&**record),
            TicketUse::Burned(_) => None,
        });
        self.by_operator.values().chain(by_ticket)
    }

    /// One record per node id, in the order of joining.
    fn in_order(&self) -> Vec<&NodeRecord> {
        let mut records: Vec<_> = self.valid().collect();
        records.sort_by_cached_key(|admitted| rank(admitted));
        let mut seen = BTreeSet::new();
        records.retain(|admitted| seen.insert(admitted.record.node));
        records.iter().map(|admitted| &admitted.record).collect()
    }

    /// The roster that follows from the set.
    pub fn roster(&self, mesh: MeshId) -> Roster {
        let members = self.in_order().into_iter().cloned();
        Roster::with_weights(mesh, members.map(|record| (record, NODE_WEIGHT)))
    }

    /// The rosters there were before the last `count` nodes joined, latest first: what a node
    /// that starts needs in order to understand certificates from before.
    pub fn earlier_rosters(&self, mesh: MeshId, count: usize) -> Vec<Roster> {
        let records = self.in_order();
        (1..records.len())
            .rev()
            .take(count)
            .map(|len| {
                let members = records
                    .iter()
                    .take(len)
                    .map(|r| ((*r).clone(), NODE_WEIGHT));
                Roster::with_weights(mesh, members)
            })
            .collect()
    }
}

/// One node of a roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub record: NodeRecord,
    /// What its vote weighs.
    pub weight: u32,
}

/// What a roster can withstand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tolerance {
    /// One node: it decides alone.
    Single,
    /// Liars below a third of the weight could still do harm, or nodes are too few.
    NotByzantineTolerant {
        /// Why, for people.
        why: String,
        /// Whether a decision needs every node (rosters of two or three).
        needs_all: bool,
    },
    /// Less than a third of the weight may lie.
    Tolerant,
}

/// The nodes of one epoch and their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    mesh: MeshId,
    members: Arc<BTreeMap<NodeId, Member>>,
    total: u64,
    /// Number of zones, and the largest weight: asked for with each vote.
    zone_count: usize,
    max_weight: u32,
    hash: Hash,
}

impl Roster {
    /// A roster of the given records and weights (a later record of the same node replaces an
    /// earlier one; those beyond [`MAX_NODES`] are left out).
    pub fn with_weights(
        mesh: MeshId,
        members: impl IntoIterator<Item = (NodeRecord, u32)>,
    ) -> Self {
        let mut kept = BTreeMap::new();
        for (record, weight) in members {
            if kept.len() < MAX_NODES || kept.contains_key(&record.node) {
                kept.insert(record.node, Member { record, weight });
            }
        }
        let mut e = Encoder::tagged(EPOCH_TAG);
        e.fixed(mesh.as_bytes())
            .u64(u64::try_from(kept.len()).unwrap_or(u64::MAX));
        for member in kept.values() {
            e.fixed(member.record.hash().as_bytes()).u32(member.weight);
        }
        Self {
            mesh,
            total: kept.values().map(|m| u64::from(m.weight)).sum(),
            zone_count: kept
                .values()
                .map(|m| &m.record.zone)
                .collect::<BTreeSet<_>>()
                .len(),
            max_weight: kept.values().map(|m| m.weight).max().unwrap_or(0),
            hash: Hash(crypto::sha256(&e.finish())),
            members: Arc::new(kept),
        }
    }

    /// The mesh.
    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Number of the epoch: the count of nodes, since records only ever get more.
    pub fn epoch(&self) -> u64 {
        u64::try_from(self.members.len()).unwrap_or(u64::MAX)
    }

    /// Hash of the epoch: of mesh, records and weights, in the order of node ids.
    pub const fn epoch_hash(&self) -> Hash {
        self.hash
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The node with this id.
    pub fn get(&self, node: &NodeId) -> Option<&Member> {
        self.members.get(node)
    }

    /// All nodes, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.members.iter()
    }

    /// W: the sum of all weights. Fixed: neither unreachable nodes, nor liars, nor the subject of
    /// a decision are taken out of it.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// ⌊W/3⌋ + 1: at least one honest voter is among them.
    pub const fn t_lo(&self) -> u64 {
        self.total / 3 + 1
    }

    /// ⌊2W/3⌋ + 1: two such sets share an honest voter.
    pub const fn t_hi(&self) -> u64 {
        self.total * 2 / 3 + 1
    }

    /// The zones there are.
    pub fn zones(&self) -> BTreeSet<&Zone> {
        self.members.values().map(|m| &m.record.zone).collect()
    }

    /// How many zones there are.
    pub const fn zone_count(&self) -> usize {
        self.zone_count
    }

    /// The largest weight of a node: so many votes can be enough at the earliest.
    pub const fn max_weight(&self) -> u32 {
        self.max_weight
    }

    /// Whether a node decides only together with every other one (two or three nodes).
    pub fn needs_all(&self) -> bool {
        (2..=3).contains(&self.members.len())
    }

    /// Weight that a decision of class 1, or a release, needs.
    pub fn needed(&self) -> u64 {
        if self.needs_all() || self.members.len() < 2 {
            // A roster of nobody needs one weight nobody has.
            self.total.max(1)
        } else {
            self.t_lo()
        }
    }

    /// Weight that a decision of class 2 needs.
    pub fn needed_class_2(&self) -> u64 {
        if self.needs_all() || self.members.len() < 2 {
            self.needed()
        } else {
            self.t_hi()
        }
    }

    /// What the roster can withstand.
    pub fn tolerance(&self) -> Tolerance {
        let not = |why: String| Tolerance::NotByzantineTolerant {
            why,
            needs_all: self.needs_all(),
        };
        match self.members.len() {
            0 => return not("the roster is empty".to_owned()),
            1 => return Tolerance::Single,
            n @ 2..=3 => {
                return not(format!(
                    "{n} nodes: every one has to agree, so one that is down or lies stops a \
                     decision; four nodes or more are needed"
                ));
            }
            _ => {}
        }
        let third = |weight: u64| weight.saturating_mul(3) >= self.total;
        if let Some(m) = self.members.values().find(|m| third(u64::from(m.weight))) {
            return not(format!(
                "node {} holds {} of {} weight, a third or more",
                m.record.name, m.weight, self.total
            ));
        }
        let mut zones: BTreeMap<&Zone, u64> = BTreeMap::new();
        for m in self.members.values() {
            *zones.entry(&m.record.zone).or_default() += u64::from(m.weight);
        }
        match zones.iter().find(|(_, weight)| third(**weight)) {
            Some((zone, weight)) => not(format!(
                "zone {zone} holds {weight} of {} weight, a third or more: spread the nodes over \
                 more zones",
                self.total
            )),
            None => Tolerance::Tolerant,
        }
    }

    /// Whether `node` is what a decision on `subject` is about: its vote does not count then.
    pub fn is_subject(&self, node: &NodeId, subject: &Prefix) -> bool {
        self.get(node)
            .and_then(|member| member.record.address)
            .is_some_and(|address: SocketAddr| subject.contains_addr(address.ip()))
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
