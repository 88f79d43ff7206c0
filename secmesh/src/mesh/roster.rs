//! Who is in the mesh, with which weight, and what that means for a quorum.
//!
//! The [`Registry`] is the grow-only set of admitted records: who may be a member. The [`Roster`] is who
//! is one, with which weight, in one certified epoch ([`super::epoch`]); the epoch's hash is in every vote.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

pub use self::tolerance::Tolerance;
pub use super::admission::{
    Admission, AdmissionError, AdmittedRecord, Grant, NodeRecord, SignedGrant,
};
use super::committee;
use super::crypto;
use super::epoch::{EpochParams, EpochRecord};
pub use super::genesis::{Genesis, Params, SignedGenesis};
use super::ids::{Hash, TicketId};
pub use super::ids::{MeshId, NodeId};
use super::simulation::{Bug, planted};
use super::subject::Subject;
pub use super::threshold::Weights;
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
    /// Seats of the committee; 0: everybody decides.
    seats: usize,
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
    /// An empty one, of a mesh with these numbers.
    pub fn new(params: &Params) -> Self {
        Self {
            seats: usize::try_from(params.committee).unwrap_or(usize::MAX),
            ..Self::default()
        }
    }

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
        let roster = Roster {
            number: epoch.number,
            hash: epoch.hash(),
            ..Roster::with_weights(epoch.mesh, members?)
        };
        Some(roster.with_committee(self.seats))
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

/// Those who decide, where not everybody does.
#[derive(Debug, PartialEq, Eq)]
struct Committee {
    /// Who has how many seats, in ascending order of the nodes.
    seats: Vec<(NodeId, u32)>,
    /// Each seat weighs one.
    weights: Weights,
}

/// The nodes of one epoch and their weights.
///
/// Its own thresholds are those of all weight, by which epochs are certified. Decisions go by those of
/// [`Roster::deciding`], which differ if the mesh has a committee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    mesh: MeshId,
    members: Arc<BTreeMap<NodeId, Member>>,
    weights: Weights,
    committee: Option<Arc<Committee>>,
    /// How many nodes may lie, in a mesh that was founded with a committee.
    withstood: Option<usize>,
    number: u64,
    /// Zones of those with weight: asked for with each vote.
    zone_count: usize,
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
            weights: Weights::of(kept.values().map(|m| m.weight)),
            committee: None,
            withstood: None,
            number: u64::try_from(kept.len()).unwrap_or(u64::MAX),
            zone_count: kept
                .values()
                .filter(|m| m.weight > 0)
                .map(|m| &m.record.zone)
                .collect::<BTreeSet<_>>()
                .len(),
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

    /// The same with the committee that its hash draws, if there are fewer seats than nodes with weight.
    #[must_use]
    pub fn with_committee(self, seats: usize) -> Self {
        // Asked for with each certificate of an epoch with a committee.
        let withstood = (seats > 0).then(|| self.withstood_with(seats));

        let voters = self.members.iter().filter(|(_, m)| m.weight > 0);
        let by_head = planted(Bug::SeatsByHead);
        let voters = voters.map(|(node, m)| (*node, if by_head { 1 } else { m.weight }));
        let foreseen = Hash(*self.mesh.as_bytes());
        let hash = if planted(Bug::SeatsForeseen) {
            &foreseen
        } else {
            &self.hash
        };
        let seats = committee::draw(hash, seats, voters);
        let committee = (!seats.is_empty()).then(|| {
            let weights = Weights::of(seats.iter().map(|(_, seats)| *seats));
            Arc::new(Committee { seats, weights })
        });
        Self {
            committee,
            withstood,
            ..self
        }
    }

    fn withstood_with(&self, seats: usize) -> usize {
        let weights = self.members.values().map(|m| m.weight);
        committee::liars_withstood(weights.filter(|weight| *weight > 0), seats)
    }

    /// The weights that decisions are counted by: the seats of the committee, or the weights of all if there is none.
    pub fn deciding(&self) -> &Weights {
        let committee = self.committee.as_ref();
        committee.map_or(&self.weights, |committee| &committee.weights)
    }

    /// Who sits on the committee, with how many seats, in ascending order of their ids; none if everybody decides.
    pub fn seats(&self) -> Option<&[(NodeId, u32)]> {
        self.committee.as_ref().map(|c| c.seats.as_slice())
    }

    /// Whether a node's vote counts in decisions; anybody's if there is no committee.
    pub fn has_seat(&self, node: &NodeId) -> bool {
        self.seats()
            .is_none_or(|seats| seats.binary_search_by_key(node, |(of, _)| *of).is_ok())
    }

    /// What a node's vote weighs in a decision: its seats, or its weight if there is no committee; 0 for who is not in
    /// the roster.
    pub fn vote_weight(&self, node: &NodeId) -> u64 {
        let Some(seats) = self.seats() else {
            return self.get(node).map_or(0, |m| u64::from(m.weight));
        };
        let own = seats.binary_search_by_key(node, |(of, _)| *of).ok();
        let own = own.and_then(|at| seats.get(at));
        own.map_or(0, |(_, seats)| u64::from(*seats))
    }

    /// How many nodes may lie, whichever they are: [`committee::liars_withstood`].
    pub fn liars_withstood(&self) -> usize {
        self.withstood.unwrap_or_else(|| self.withstood_with(0))
    }

    /// The weights of all nodes.
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// W of all nodes: see [`Weights::total`].
    pub const fn total(&self) -> u64 {
        self.weights.total()
    }

    /// [`Weights::t_lo`] of all nodes.
    pub const fn t_lo(&self) -> u64 {
        self.weights.t_lo()
    }

    /// [`Weights::t_hi`] of all nodes.
    pub const fn t_hi(&self) -> u64 {
        self.weights.t_hi()
    }

    /// Nodes that have weight. Those on probation have none and decide nothing.
    pub const fn voters(&self) -> usize {
        self.weights.voters()
    }

    /// How many zones nodes that have weight are in.
    pub const fn zone_count(&self) -> usize {
        self.zone_count
    }

    /// [`Weights::needed_class_2`] of all nodes: what it takes to begin a new epoch.
    pub fn needed_for_epoch(&self) -> u64 {
        self.weights.needed_class_2()
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

#[path = "roster_tolerance.rs"]
mod tolerance;

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
