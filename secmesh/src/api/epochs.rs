//! What the agent says of the epoch in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Who decides on behalf of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitteeView {
    /// Ids of the nodes with a seat, and how many each has.
    pub seats: BTreeMap<String, u32>,
    /// All seats.
    pub total: u64,
    /// Seats that a decision of class 1 needs.
    pub t_lo: u64,
    /// Seats that a decision of class 2 needs.
    pub t_hi: u64,
}

/// The epoch in force, and what comes next.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EpochView {
    /// Its number; 0 on a node that has joined and not yet heard of any.
    pub number: u64,
    /// Hash of its record.
    pub hash: String,
    /// Hash of the record before.
    pub previous: String,
    /// When this node learned of it, unix µs.
    pub since_unix_us: u64,
    /// When the next one is due at the latest, unix µs.
    pub ends_unix_us: u64,
    /// For how many epochs a node that joins has no weight.
    pub probation: u32,
    /// Everybody in it.
    pub members: Vec<EpochMemberView>,
    /// Who decides on behalf of all in this epoch; none if everybody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committee: Option<CommitteeView>,
    /// W: the sum of the weights.
    pub total_weight: u64,
    /// Weight that a decision of class 1 needs, unless a committee decides.
    pub t_lo: u64,
    /// Weight that the next epoch needs, and a decision of class 2 unless a committee decides.
    pub t_hi: u64,
    /// So many nodes may lie, whichever they are.
    #[serde(default)]
    pub liars_withstood: usize,
    /// Why less than a third of liars could do harm; none if they cannot.
    pub not_byzantine_tolerant: Option<String>,
    /// Names of the nodes whose precommits certify it; nobody's do the first one.
    pub signed_by: Vec<String>,
    /// Weight of the epoch before that has sealed it with ML-DSA-44; none for the first epoch, or when the
    /// epoch before is not known here.
    pub sealed_weight: Option<u64>,
    /// The round it was decided in.
    pub round: u32,
    /// How many statements of which author the weights rest on.
    pub evidence: Vec<(String, u64)>,
    /// Names of admitted nodes that wait for the next epoch.
    pub waiting: Vec<String>,
    /// Names of members that leave with the next epoch.
    pub leaving: Vec<String>,
    /// Ids of nodes that the operator has removed, those that are gone too.
    pub removed: Vec<String>,
    /// Number and round of the next one, while it is being agreed on.
    pub agreement: Option<(u64, u32)>,
    /// Epochs that are kept.
    pub kept: usize,
}

/// A member of the epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EpochMemberView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its weight.
    pub weight: u64,
    /// The first epoch it was in.
    pub since: u64,
    /// The first epoch in which it may have weight, if that is still to come.
    pub probation_until: Option<u64>,
}
