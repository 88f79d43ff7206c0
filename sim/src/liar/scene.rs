//! What liars see.

use secmesh::addr::Prefix;
use secmesh::mesh::epoch::EpochRecord;
use secmesh::mesh::genesis::Genesis;
use secmesh::mesh::ids::{Hash, NodeId};

/// What a liar knows when it acts.
#[derive(Debug, Clone)]
pub struct Scene<'a> {
    /// The mesh.
    pub genesis: &'a Genesis,
    /// Number and hash of the epoch that honest nodes are in.
    pub epoch: (u64, Hash),
    /// The time.
    pub wall_us: u64,
    /// The record of that epoch.
    pub record: Option<EpochRecord>,
    /// The round in which honest nodes agree on the next one.
    pub round: u32,
    /// Whether nodes witness each other's ledgers.
    pub witnesses: bool,
    /// Nodes that do not lie.
    pub honest: Vec<NodeId>,
    /// Who can be reached.
    pub peers: Vec<usize>,
    /// Who really attacks.
    pub attackers: Vec<Prefix>,
    /// Nodes that are cut off somewhere.
    pub cut_off: Vec<NodeId>,
}
