//! What goes into the ledger.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One thing worth remembering. Identifiers are lower-case hex, signed bytes are standard base64,
/// times are unix microseconds; `Value` fields belong to the part of the program that writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// The agent started.
    Started {
        /// Version of the program.
        version: String,
        /// Id of the node.
        node: String,
        /// Incarnation of the node.
        incarnation: u64,
        /// Number of the epoch in force.
        epoch: u64,
        /// `monitor` or `enforce`.
        mode: String,
    },
    /// The agent stopped on request.
    Stopped {
        /// Why.
        reason: String,
    },
    /// A detector raised an alert.
    Alert {
        /// The alert.
        alert: Value,
    },
    /// This node signed a vote; written before the vote leaves.
    VoteSigned {
        /// The signed bytes.
        vote: String,
    },
    /// A vote of another node was accepted.
    VoteSeen {
        /// Id of the voter.
        voter: String,
        /// What the vote says, as JSON; the signed bytes are in the certificate, if there is one.
        vote: String,
    },
    /// A decision came into force.
    Decision {
        /// Id of the decision.
        decision: String,
        /// `quorum`, `unilateral` or `operator`.
        origin: String,
        /// What is to be done.
        action: Value,
        /// The certificate's bytes, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certificate: Option<String>,
    },
    /// What became of a decision on this node.
    Effect {
        /// Id of the decision.
        decision: String,
        /// Address or prefix.
        subject: String,
        /// What happened.
        what: EffectKind,
        /// Why, where that needs saying.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The allowlist changed.
    Allow {
        /// The prefix.
        prefix: String,
        /// Added, or removed.
        added: bool,
        /// Who did it: `operator`, `configuration`, or a node id.
        by: String,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The mode changed.
    Mode {
        /// `monitor` or `enforce`.
        mode: String,
        /// Who did it.
        by: String,
    },
    /// Something happened to an imported list.
    List {
        /// Its name.
        list: String,
        /// `imported`, `removed`, `ended`, `not_enforced` or `refused`.
        what: String,
        /// Spans of addresses in it.
        spans: usize,
        /// Where it came from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// Who did it.
        by: String,
        /// Whether risky prefixes in it were imported on purpose.
        overridden: bool,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Why not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A node was admitted to the mesh.
    Admitted {
        /// Id of the node.
        node: String,
        /// Its name.
        name: String,
        /// The signed admission.
        admission: String,
    },
    /// An invitation was made or seen.
    Grant {
        /// The signed grant.
        grant: String,
        /// When it expires.
        expires_unix_us: u64,
    },
    /// A voter signed two things that exclude each other.
    Equivocation {
        /// Id of the voter.
        voter: String,
        /// The proof: both signed votes.
        proof: String,
        /// Hash over the two votes, to find the same proof in other ledgers.
        hash: String,
    },
    /// A node signed two ledgers.
    LedgerFork {
        /// Id of the node.
        node: String,
        /// The proof: both checkpoints.
        proof: String,
        /// Hash over the proof.
        hash: String,
    },
    /// A record that is still needed, out of a segment that was dropped.
    Carried {
        /// Number that it had.
        entry: u64,
        /// When it was made.
        time_unix_us: u64,
        /// What it said.
        what: Box<Record>,
    },
    /// An epoch came into force.
    Epoch {
        /// Its number.
        number: u64,
        /// Hash of its record.
        hash: String,
        /// Record and precommits.
        epoch: String,
    },
    /// A node sealed an epoch with ML-DSA-44.
    EpochSeal {
        /// Number of the epoch.
        number: u64,
        /// Id of the node.
        node: String,
        /// The seal.
        seal: String,
    },
    /// The operator removed a node.
    Removal {
        /// Id of the node.
        node: String,
        /// The signed removal.
        removal: String,
    },
    /// A node was cut off, or taken back.
    Quarantine {
        /// Id of the node.
        node: String,
        /// Its name.
        name: String,
        /// `quarantined` or `readmitted`.
        what: String,
        /// Why: `misconduct`, `hostile_node`, `mesh_abuse` or `manual`.
        class: String,
        /// Id of the decision.
        decision: String,
        /// When this node learned of it.
        certified_unix_us: u64,
        /// Where the node was met.
        addresses: Vec<String>,
        /// The votes, or the operator's order.
        warrant: String,
    },
    /// What became of a block that this node made alone while the mesh could not decide.
    Ratification {
        /// Id of the decision.
        decision: String,
        /// The address.
        subject: String,
        /// `proposed`, `ratified` or `expired`.
        what: String,
    },
    /// An operator asked for something about a node.
    Asked {
        /// `quarantine` or `readmit`.
        what: String,
        /// Id of the node.
        subject: String,
        /// Who asked.
        by: String,
        /// Whether with the operator key.
        signed: bool,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The failure detector found a node in another state than before; at most one per node, state and minute.
    Liveness {
        /// Id of the node.
        node: String,
        /// `alive`, `suspect` or `down`.
        state: String,
    },
    /// What the reachable nodes can decide has changed.
    Quorum {
        /// `FULL`, `DEGRADED`, `ISOLATED`, `SINGLE` or `NOT-BFT`.
        state: String,
        /// Weight in reach.
        reachable: u64,
        /// Weight of all.
        total: u64,
    },
    /// Messages were refused.
    Refused {
        /// Whose: an address or a node id.
        source: String,
        /// Why.
        reason: String,
        /// How many since the last such record.
        count: u64,
    },
    /// The ledger was cut back to its last signature after a crash.
    Recovered {
        /// How much of an unfinished write was there.
        truncated_bytes: u64,
    },
}

/// What became of a decision on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// It is in the kernel's map.
    Enforced,
    /// It could not be put there.
    NotEnforced,
    /// Its time ran out.
    Ended,
    /// It was taken back.
    Released,
    /// This node's allowlist forbade it.
    Vetoed,
}

impl Record {
    /// The number that stands for this kind of record in the file. Numbers are never reused.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Started { .. } => 1,
            Self::Stopped { .. } => 2,
            Self::Alert { .. } => 3,
            Self::VoteSigned { .. } => 4,
            Self::VoteSeen { .. } => 5,
            Self::Decision { .. } => 6,
            Self::Effect { .. } => 7,
            Self::Allow { .. } => 8,
            Self::Mode { .. } => 9,
            Self::Admitted { .. } => 10,
            Self::Grant { .. } => 11,
            Self::Equivocation { .. } => 12,
            Self::Refused { .. } => 13,
            Self::Recovered { .. } => 14,
            Self::List { .. } => 15,
            Self::LedgerFork { .. } => 16,
            Self::Carried { .. } => 17,
            Self::Epoch { .. } => 22,
            Self::Removal { .. } => 23,
            Self::EpochSeal { .. } => 24,
            Self::Quarantine { .. } => 25,
            Self::Asked { .. } => 26,
            Self::Liveness { .. } => 32,
            Self::Quorum { .. } => 33,
            Self::Ratification { .. } => 27,
        }
    }
}
