//! Why a node stands where it stands.

use serde::{Deserialize, Serialize};

use crate::addr::Prefix;
use crate::mesh::evidence::{ProofKind, Ruling};
use crate::mesh::ids::{DecisionId, NodeId};

/// Most statements named for one change.
pub const MAX_REFERENCES: usize = 8;
/// Most of them by one author: nobody fills the list alone.
pub const MAX_BY_AUTHOR: usize = 2;

/// What changed a standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum Cause {
    /// Blocks that it confirmed held: the sources kept coming.
    OutcomeHit,
    /// Blocks that it confirmed were harmless by the word of nodes' operators.
    OutcomeMiss,
    /// The operator's verdict on a block that it confirmed.
    Verdict {
        /// What the operator says.
        ruling: Ruling,
    },
    /// It answered test questions right.
    QuestionRight,
    /// It answered test questions wrong.
    QuestionWrong,
    /// It was proved to have lied.
    Proof {
        /// What was proved.
        proof: ProofKind,
    },
    /// What was done to it failed.
    RemediationFailed,
    /// What was done to it helped.
    RemediationSucceeded,
}

/// A statement that led to a change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reference {
    /// Whose log it is in.
    pub author: NodeId,
    /// Its place there.
    pub sequence: u64,
    /// When its author says that it signed it, microseconds since 1970. Nobody checks that, and nothing follows from
    /// it: what happened when is told by the epoch whose certified frontier holds the statement.
    pub made_at_us: u64,
    /// Whom it is about, if somebody outside the mesh.
    pub subject: Option<Prefix>,
    /// Which decision it is about.
    pub decision: Option<DecisionId>,
}

/// One change of one node's standing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Number of the epoch.
    pub epoch: u64,
    /// Whose standing.
    pub node: NodeId,
    /// Why.
    #[serde(flatten)]
    pub cause: Cause,
    /// Hits that were added.
    pub hits: u32,
    /// Misses that were added.
    pub misses: u32,
    /// Strikes afterwards.
    pub strikes: u32,
    /// The statements, at most [`MAX_REFERENCES`], and [`MAX_BY_AUTHOR`] of one author.
    pub because: Vec<Reference>,
}
