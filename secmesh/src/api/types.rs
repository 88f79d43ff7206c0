//! What can be asked of an agent, and what it answers. `--json` prints these answers as they are.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    addr::Prefix,
    api::lists::ListTotals,
    dataplane::{AttachedInterface, CookieMode, FlowInterface, Mode},
    mesh::{swim::Liveness, vote::AttackClass},
    respond::lists::ListName,
};

pub use super::decisions::{
    AllowView, CertificateView, DecisionScope, DecisionState, DecisionView, Explanation,
    IncidentView, KernelEntry, Origin, VoteView,
};
pub use super::epochs::{CommitteeView, EpochMemberView, EpochView};

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`Status`].
    Status {},
    /// [`MetricsText`].
    Metrics {},
    /// `Vec<`[`Peer`]`>`.
    Peers {},
    /// [`EpochView`].
    Epoch {},
    /// [`crate::mesh::engine::Digest`].
    MeshDigest {},
    /// [`Done`]. Removes a node from the mesh.
    RemoveNode {
        /// The removal with the operator's signature, base64.
        signed: String,
    },
    /// `Vec<`[`Alert`]`>`, newest first.
    Alerts {
        /// At most this many.
        limit: usize,
    },
    /// [`Listing`] of [`crate::sense::flow::FlowRecord`], in the order in which they ended.
    Flows {
        /// Only records from this number on; without it the newest ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
        /// At most this many.
        limit: usize,
    },
    /// [`Listing`] of [`crate::sense::process::ProcessRecord`], oldest first.
    Processes {
        /// Only records from this number on; without it the newest ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
        /// At most this many.
        limit: usize,
    },
    /// `Vec<`[`DecisionView`]`>`, newest first.
    Decisions {
        /// Also those that have ended.
        all: bool,
        /// Only those whose subject covers or lies in this prefix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subject: Option<Prefix>,
    },
    /// [`Explanation`].
    Explain {
        /// The address or prefix.
        subject: Prefix,
    },
    /// [`Done`]. Blocks on this node; proposes it to the mesh too if `mesh`.
    Block {
        /// Address or prefix.
        subject: Prefix,
        /// For how long, seconds.
        ttl_s: u64,
        /// Also propose it to the mesh (single addresses).
        mesh: bool,
        /// Why, for the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Block it although it is risky (see [`crate::respond::risky`]); takes a reason, and is recorded.
        #[serde(default)]
        override_risky: bool,
    },
    /// [`Done`]. Ends every block of the subject on this node and proposes the release to the mesh.
    Unblock {
        /// Address or prefix.
        subject: Prefix,
        /// A release signed by the operator key, base64 of its canonical bytes; without it the mesh
        /// votes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed: Option<String>,
        /// The subject was harmless: evidence on the nodes that confirmed the block.
        #[serde(default)]
        false_positive: bool,
        /// The same as a verdict signed by the operator key, base64 of its canonical bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verdict: Option<String>,
    },
    /// [`VerdictTerms`](super::trust::VerdictTerms): what an operator's verdict has to cover.
    VerdictTerms {
        /// Address or prefix.
        subject: Prefix,
    },
    /// [`TrustView`](super::trust::TrustView).
    Trust {
        /// Only the node with this name, or whose id begins so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// [`Done`]. Has a node cut off: this node's vote for it or, signed, at once.
    Quarantine {
        /// Its name or id.
        node: String,
        /// Why, for the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// An order signed by the operator key, base64 of its canonical bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed: Option<String>,
    },
    /// [`Done`]. Has a node taken back: this node's vote for it or, signed, at once.
    Readmit {
        /// Its name or id.
        node: String,
        /// An order signed by the operator key, base64 of its canonical bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed: Option<String>,
    },
    /// [`ReleaseTerms`]: what an operator's signature on an order about a node has to cover.
    OrderTerms {
        /// Its name or id.
        node: String,
        /// Whether it is taken back; else it is cut off.
        readmit: bool,
    },
    /// [`ReleaseTerms`]: what an operator's signature has to cover.
    ReleaseTerms {
        /// Address or prefix.
        subject: Prefix,
    },
    /// `Vec<`[`AllowView`]`>`.
    AllowList {},
    /// [`Done`].
    AllowAdd {
        /// Address or prefix.
        prefix: Prefix,
        /// Why, for the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// [`Done`].
    AllowRemove {
        /// Address or prefix, exactly as it was added.
        prefix: Prefix,
    },
    /// [`Done`].
    SetMode {
        /// The mode wanted.
        mode: Mode,
        /// Go back to monitor unless [`Request::ConfirmMode`] comes within this many seconds; only with
        /// [`Mode::Enforce`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_s: Option<u64>,
        /// Where the asker's SSH session comes from: enforcing must not drop it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ssh_peer: Option<IpAddr>,
    },
    /// [`Done`]. Enforce for good what [`Request::SetMode`] began for a while.
    ConfirmMode {},
    /// [`ListsView`](super::lists::ListsView): imported lists.
    Lists {},
    /// [`ListTicket`](super::lists::ListTicket). Takes over a list that a command has staged.
    ListLoad {
        /// Its name.
        name: ListName,
        /// The process that staged it.
        staged_by: u32,
    },
    /// [`ListTicket`](super::lists::ListTicket). Ends a list.
    ListRemove {
        /// Its name.
        name: ListName,
    },
    /// [`InviteTerms`]: what a ticket has to contain.
    InviteTerms {},
    /// [`Done`]. Opens a ticket whose grant the operator signed.
    OpenGrant {
        /// Base64 of the signed grant's canonical bytes.
        grant: String,
    },
    /// [`CaptureStarted`]. Captures heads of dropped packets; one capture at a time.
    CaptureStart {
        /// Names of reasons; empty means all.
        reasons: Vec<String>,
        /// Bytes of each packet.
        snap: usize,
        /// Its end, seconds from now. It also ends when nobody asks for its packets for 5 s.
        seconds: u64,
    },
    /// [`CaptureBatch`]: what was captured since the last time.
    CaptureNext {
        /// The capture.
        id: u64,
    },
    /// [`Done`]. Ends a capture.
    CaptureStop {
        /// The capture.
        id: u64,
    },
}

/// A capture began.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct CaptureStarted {
    /// What it is called in further requests.
    pub id: u64,
}

/// Some of a capture's packets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaptureBatch {
    /// In the order they came in on each processor.
    pub packets: Vec<CapturedPacket>,
    /// Packets of the capture so far that were lost because they came too fast.
    pub lost: u64,
    /// No more will come.
    pub over: bool,
}

/// The head of a dropped packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedPacket {
    /// When, unix µs, to one timer tick of the kernel.
    pub unix_us: u64,
    /// The interface it came in on.
    pub interface: String,
    /// Its length on the wire, bytes.
    pub wire_len: u32,
    /// Name of the reason.
    pub reason: String,
    /// Whether it was dropped; else (monitor mode) only counted.
    pub dropped: bool,
    /// Its first bytes, base64.
    pub data: String,
}

/// Something was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// What, in one sentence for people.
    pub message: String,
    /// The decision that came of it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

/// All metrics.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricsText {
    /// In the Prometheus text format, version 0.0.4.
    pub text: String,
}

/// Why a request failed; the command exits with 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong and what to do.
    pub error: String,
}

/// Records out of a store that forgets the oldest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listing<T> {
    /// The records.
    pub records: Vec<T>,
    /// Number of the record that comes after them: where to ask on.
    pub next: u64,
}

/// The flow table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsView {
    /// Flows that fit.
    pub slots: u32,
    /// Flows in it when it was last swept.
    pub in_use: u32,
    /// Interfaces, and whether both directions are seen.
    pub interfaces: Vec<FlowInterface>,
}

/// State of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: NodeView,
    /// Name of the mesh.
    pub mesh: String,
    /// Id of the mesh.
    pub mesh_id: String,
    /// Whether packets are dropped.
    pub mode: Mode,
    /// The switch to enforce that waits for a confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_confirm: Option<PendingConfirm>,
    /// Interfaces with our program.
    pub interfaces: Vec<AttachedInterface>,
    /// Interfaces that should have it and have not.
    #[serde(default)]
    pub waiting: Vec<WaitingInterface>,
    /// The flow table; absent if no flows are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<FlowsView>,
    /// Why processes are not watched: `off`, or what went wrong; absent if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_processes: Option<String>,
    /// What keeps the carrier of messages from its server; absent while it is connected or needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier_trouble: Option<String>,
    /// Number of the epoch that this node's ticket names, as long as no peer has shown it: until then the node takes
    /// part in nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaited_epoch: Option<u64>,
    /// State of the quorum: `state`, `reachable_weight`, `total_weight`, `t_lo`, `t_hi`, `needed`,
    /// `nodes`, `epoch`, `tolerance`, `quarantined_weight`.
    pub quorum: serde_json::Value,
    /// Nodes that are cut off.
    #[serde(default)]
    pub quarantined: Vec<QuarantineView>,
    /// Blocks that should be, and are, in the kernel.
    pub blocks: BlockTotals,
    /// Imported lists that should be, and are, in the kernel.
    #[serde(default)]
    pub lists: ListTotals,
    /// What comparing the other tables with what should be in them has found: `allowlist`, `lists`, `guards`,
    /// `config` (mode and limits).
    #[serde(default)]
    pub reconciled: BTreeMap<String, ReconcileTotals>,
    /// The limits and checks that the kernel's configuration holds.
    #[serde(default)]
    pub limits: LimitsView,
    /// Sources that peers reported and this node watches.
    pub watched: usize,
    /// SYN cookies.
    #[serde(default)]
    pub cookies: CookiesView,
    /// The kernel's packet counters by name.
    pub counters: BTreeMap<String, u64>,
    /// The controller's counters by name: refused messages by reason, bounded queues, detectors.
    pub controller: BTreeMap<String, u64>,
    /// What evidence says of the nodes.
    #[serde(default)]
    pub trust: super::trust::TrustTotals,
    /// State of the ledger.
    pub ledger: LedgerView,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Version of the agent.
    pub version: String,
}

/// Limits and checks in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsView {
    /// Limits that are set.
    pub limits: Vec<LimitView>,
    /// Names of the reasons, other than blocks, that packets are dropped for.
    pub checks: Vec<String>,
}

/// A limit in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitView {
    /// Its key below `[limits]`.
    pub name: String,
    /// What it lets through per second: packets, connections or bytes.
    pub per_second: u64,
    /// What it lets through at once, in the same.
    pub burst: u64,
}

/// An interface that is not protected and should be; it is as soon as that is possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingInterface {
    /// Its name.
    pub name: String,
    /// What is in the way; begins with `absent` if there is no such interface.
    pub why: String,
}

/// A switch to enforce that is taken back unless it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingConfirm {
    /// Whole seconds that are left.
    pub seconds_left: u64,
}

/// SYN cookies of this host's listeners.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CookiesView {
    /// Ports that have them (at most 1024).
    pub ports: Vec<CookieView>,
    /// Number of ports that have them.
    pub total: usize,
    /// `net.ipv4.tcp_syncookies`; none if it cannot be read.
    pub syncookies: Option<u8>,
    /// What keeps them from being as configured.
    pub trouble: Option<String>,
}

/// A port with SYN cookies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CookieView {
    /// The port.
    pub port: u16,
    /// `auto` or `always`.
    pub mode: CookieMode,
    /// Whether a listener there overflowed within the last seconds, so that attempts are answered.
    pub flooded: bool,
}

/// Who a node is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
}

/// Blocks, desired against enforced.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BlockTotals {
    /// Prefixes that should be blocked.
    pub desired: usize,
    /// Of those, in the kernel's maps.
    pub enforced: usize,
    /// Of those, not there, with the reason by prefix (at most 100).
    pub not_enforced: BTreeMap<String, String>,
    /// What comparing the two has found since the agent started.
    #[serde(default)]
    pub reconciled: ReconcileTotals,
}

/// Differences between what is desired and what the kernel's maps hold, found while the agent ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileTotals {
    /// Comparisons that came to their end.
    pub runs: u64,
    /// Entries that were missing or wrong, and were written.
    pub added: u64,
    /// Entries that nobody wanted, and were removed.
    pub removed: u64,
    /// Differences that could not be put right.
    pub failed: u64,
    /// How long the last comparison took, from its begin to its end, ms.
    #[serde(default)]
    pub last_ms: u64,
}

/// State of the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LedgerView {
    /// Entries in it.
    pub entries: u64,
    /// Hash of the last one, hex.
    pub head: String,
    /// `running` or why not.
    pub state: String,
    /// Entries that were not recorded because the queue was full.
    pub dropped: u64,
}

/// A node of the mesh.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an answer of its own, as JSON has it; no two exclude each other"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Where it says it can be reached.
    pub address: Option<String>,
    /// Whether we are connected to it.
    pub connected: bool,
    /// Whether it answers; absent for this node, and for those that wait for the next epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Liveness>,
    /// Whether its weight counts as reachable: it is there, or answers through others.
    #[serde(default)]
    pub reachable: bool,
    /// Its weight in this epoch.
    pub weight: u64,
    /// The weight that follows from the evidence; see `secmesh trust`.
    #[serde(default)]
    pub trust: u32,
    /// Whether it was proved to lie.
    pub equivocated: bool,
    /// Whether it is cut off; see `secmesh status`.
    #[serde(default)]
    pub quarantined: bool,
    /// Whether it is this node.
    pub this_node: bool,
}

/// A node that is cut off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuarantineView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub class: AttackClass,
    /// The decision.
    pub decision: String,
    /// Whether the operator's signature did it, and not votes.
    pub by_operator: bool,
    /// When this node learned of it, unix µs.
    pub since_unix_us: u64,
    /// Where it was met, and whether the kernel drops what comes from there.
    pub addresses: Vec<(IpAddr, bool)>,
    /// The votes.
    pub votes: Vec<VoteView>,
}

/// What an operator's release has to name; base64 is canonical bytes, hex is an id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseTerms {
    /// Base64 of the unsigned release.
    pub release: String,
}

/// What a ticket has to contain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteTerms {
    /// Base64 of the signed genesis.
    pub genesis: String,
    /// Addresses of members.
    pub addresses: Vec<String>,
    /// Hex SHA-256 of the members' TLS keys.
    pub pins: Vec<String>,
    /// Number of the epoch that is in force; 0 while the node knows of none.
    pub epoch: u64,
    /// Hex hash of that epoch's record.
    pub epoch_hash: String,
}
