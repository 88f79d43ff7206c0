//! Who is in the mesh, with which weight, and what that means for a quorum.
//!
//! The [`Registry`] is the grow-only set of admitted records: who may be a member. The [`Roster`] is who
//! is one, with which weight, in one certified epoch ([`super::epoch`]); the epoch's hash is in every vote.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

pub use super::admission::{
    Admission, AdmissionError, AdmittedRecord, Grant, NodeRecord, SignedGrant,
};
use super::crypto;
use super::epoch::{EpochParams, EpochRecord};
pub use super::genesis::{Genesis, Params, SignedGenesis};
use super::ids::{Hash, TicketId, Zone};
pub use super::ids::{MeshId, NodeId};
use super::subject::Subject;
use super::wire::Encoder;

const EPOCH_TAG: &str = "secmesh/epoch/1";

/// Most nodes in one mesh.
pub const MAX_NODES: usize = 1_024;
/// Most records that a [`Registry`] keeps: of a burned ticket two, and those that an epoch holds.
pub const MAX_RECORDS: usize = 3 * MAX_NODES;
/// Most further records of one burned ticket that are kept at hand, the latest ones.
const MAX_SPARE: usize = 4;
/// Weight of a node that nothing is known against or for.
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
    /// All of them by the hash of the node record, burned tickets' too.
    all: Arc<BTreeMap<Hash, AdmittedRecord>>,
    /// Further records of burned tickets. They count for nothing, but other nodes may have seen another one
    /// first, and a certified epoch may hold it.
    spare: BTreeMap<TicketId, VecDeque<AdmittedRecord>>,
    /// Those of them that a certified epoch holds, by hash; they are in `all` too.
    certified: BTreeSet<Hash>,
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
        let (hash, copy) = (admitted.record.hash(), admitted.clone());
        let ticket = admitted.ticket();
        let offered = self.sort_in(admitted);
        if matches!(offered, Offered::Changed | Offered::Burned) {
            Arc::make_mut(&mut self.all).entry(hash).or_insert(copy);
        } else if let (Offered::Unchanged, Some(ticket)) = (offered, ticket)
            && !self.all.contains_key(&hash)
        {
            let spare = self.spare.entry(ticket).or_default();
            spare.retain(|kept| kept.record.hash() != hash);
            if spare.len() >= MAX_SPARE {
                spare.pop_front();
            }
            spare.push_back(copy);
        }
        offered
    }

    /// An epoch was certified: its members' records are kept from now on, whatever became of their tickets.
    pub fn keep(&mut self, epoch: &EpochRecord) {
        for member in &epoch.members {
            if self.all.contains_key(&member.record) {
                continue;
            }
            if let Some(admitted) = self.by_hash(&member.record).cloned() {
                if self.certified.len() >= MAX_NODES {
                    return;
                }
                Arc::make_mut(&mut self.all).insert(member.record, admitted);
                self.certified.insert(member.record);
            }
        }
    }

    fn sort_in(&mut self, admitted: AdmittedRecord) -> Offered {
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

    /// All records: those of the roster, those that lost to another one of the same node id, both
    /// records of each burned ticket, which prove that it is, and further ones of it that an epoch holds.
    pub fn records(&self) -> impl Iterator<Item = &AdmittedRecord> {
        let by_ticket = self.by_ticket.values().flat_map(|used| match used {
            TicketUse::Once(record) => std::slice::from_ref(&**record),
            TicketUse::Burned(proof) => proof.as_slice(),
        });
        let certified = self.certified.iter().filter_map(|hash| self.all.get(hash));
        self.by_operator.values().chain(by_ticket).chain(certified)
    }

    /// The records that count.
    fn valid(&self) -> impl Iterator<Item = &AdmittedRecord> {
        let by_ticket = self.by_ticket.values().filter_map(|used| match used {
            TicketUse::Once(record) => Some(&**record),
            TicketUse::Burned(_) => None,
        });
        self.by_operator.values().chain(by_ticket)
    }

    /// The records that may be in a roster: one per node id, in the order of joining.
    pub fn admissible(&self) -> Vec<&NodeRecord> {
        let mut records: Vec<_> = self.valid().collect();
        records.sort_by_cached_key(|admitted| rank(admitted));
        let mut seen = BTreeSet::new();
        records.retain(|admitted| seen.insert(admitted.record.node));
        records.iter().map(|admitted| &admitted.record).collect()
    }

    /// The admission of the node record with this hash.
    pub fn by_hash(&self, record: &Hash) -> Option<&AdmittedRecord> {
        let spare = || self.spare.values().flatten();
        let hash = |admitted: &&AdmittedRecord| admitted.record.hash() == *record;
        self.all.get(record).or_else(|| spare().find(hash))
    }

    /// The first epoch: the nodes that the operator admitted in person.
    pub fn first_epoch(&self, mesh: MeshId, params: &Params) -> EpochRecord {
        let hashes = self.by_operator.keys().copied();
        EpochRecord::first(mesh, EpochParams::of(params), hashes)
    }

    /// The roster of an epoch; none if the admission of one of its members is not known.
    pub fn roster(&self, epoch: &EpochRecord) -> Option<Roster> {
        let members: Option<Vec<(NodeRecord, u32)>> = epoch
            .members
            .iter()
            .map(|m| Some((self.by_hash(&m.record)?.record.clone(), m.weight)))
            .collect();
        Some(Roster {
            number: epoch.number,
            hash: epoch.hash(),
            ..Roster::with_weights(epoch.mesh, members?)
        })
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
    number: u64,
    /// Zones of those with weight, and the largest weight: asked for with each vote.
    zone_count: usize,
    max_weight: u32,
    /// Those with weight.
    voters: usize,
    hash: Hash,
}

impl Roster {
    /// A roster that is no certified epoch's, of the given records and weights (a later record of the same node replaces an
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
            number: u64::try_from(kept.len()).unwrap_or(u64::MAX),
            zone_count: kept
                .values()
                .filter(|m| m.weight > 0)
                .map(|m| &m.record.zone)
                .collect::<BTreeSet<_>>()
                .len(),
            max_weight: kept.values().map(|m| m.weight).max().unwrap_or(0),
            voters: kept.values().filter(|m| m.weight > 0).count(),
            hash: Hash(crypto::sha256(&e.finish())),
            members: Arc::new(kept),
        }
    }

    /// The mesh.
    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Number of the epoch.
    pub const fn epoch(&self) -> u64 {
        self.number
    }

    /// Hash of the epoch's record.
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

    /// Nodes that have weight. Those on probation have none and decide nothing.
    pub const fn voters(&self) -> usize {
        self.voters
    }

    /// How many zones nodes that have weight are in.
    pub const fn zone_count(&self) -> usize {
        self.zone_count
    }

    /// The largest weight of a node: so many votes can be enough at the earliest.
    pub const fn max_weight(&self) -> u32 {
        self.max_weight
    }

    /// Whether a node decides only together with every other one (two or three nodes with weight).
    pub const fn needs_all(&self) -> bool {
        matches!(self.voters, 2..=3)
    }

    /// Weight that a decision of class 1, or a release, needs.
    pub fn needed(&self) -> u64 {
        if self.voters() < 4 {
            // A roster of nobody needs one weight nobody has.
            self.total.max(1)
        } else {
            self.t_lo()
        }
    }

    /// Weight that a decision of class 2 needs.
    pub fn needed_class_2(&self) -> u64 {
        if self.voters() < 4 {
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
        match self.voters() {
            0 => return not("nobody in the roster has weight".to_owned()),
            1 if self.members.len() == 1 => return Tolerance::Single,
            1 => return not("one node has all the weight; the others are on probation".to_owned()),
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
    pub fn is_subject(&self, node: &NodeId, subject: &Subject) -> bool {
        match subject {
            Subject::Node(subject) => subject == node,
            Subject::Net(prefix) => self
                .get(node)
                .and_then(|member| member.record.address)
                .is_some_and(|address: SocketAddr| prefix.contains_addr(address.ip())),
        }
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
