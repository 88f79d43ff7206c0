//! What goes into the engine and what comes out.

use std::fmt;

use serde::Serialize;

use crate::addr::Prefix;
use crate::ledger::fork::LedgerForkProof;
use crate::mesh::admission::{AdmittedRecord, SignedGrant};
use crate::mesh::decision::{Decision, SignedRelease};
use crate::mesh::epoch::{CertifiedEpoch, EpochProof, EpochSeal, Sealed, SignedRemoval};
use crate::mesh::evidence::{OutcomeKind, ProofKind, SignedVerdict};
use crate::mesh::ids::{DecisionId, Hash, IncidentId, NodeId, TicketId};
use crate::mesh::message::EquivocationProof;
use crate::mesh::roster::Tolerance;
use crate::mesh::subject::Subject;
use crate::mesh::swim::{Liveness, SwimMessage};
use crate::mesh::vote::{ActionKind, AttackClass, Verdict};
use crate::mesh::witness::LedgerMessage;

/// What happens to the engine. Every call carries the time.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// A detector on this node fired. Repeat it while the attack lasts: that renews the evidence.
    OwnEvidence {
        /// Who attacks: a single address, or its /24 (IPv6 /64) with class network.
        subject: Prefix,
        /// How.
        class: AttackClass,
        /// Commits to the evidence kept on this node.
        evidence_root: Hash,
        /// Names the detector and its settings.
        detector_hash: Hash,
    },
    /// The operator of this node wants a mesh-wide block: this node's `Confirm`, class manual.
    OperatorBlock {
        /// Whom; a single address.
        subject: Prefix,
    },
    /// The operator of this node wants a mesh-wide block to end.
    OperatorRelease {
        /// Whom to let in again.
        subject: Prefix,
        /// Signed with the operator key it takes effect at once; without, it is put to the vote.
        signed: Option<Box<SignedRelease>>,
    },
    /// This node saw a peer attack it: the peer's proven address is the source of an alert. Repeat it while
    /// that lasts.
    NodeAttacks {
        /// The peer.
        node: NodeId,
        /// Commits to the evidence kept on this node.
        evidence_root: Hash,
        /// Names the detector and its settings.
        detector_hash: Hash,
    },
    /// A peer sent something that is no frame of this protocol.
    Garbage(NodeId),
    /// The operator of this node wants a node cut off: this node's `Confirm`, class manual.
    OperatorQuarantine {
        /// Whom.
        node: NodeId,
    },
    /// The operator of this node wants a node back: put to the vote.
    OperatorReadmit {
        /// Whom.
        node: NodeId,
    },
    /// An order signed with the operator key: it takes effect at once.
    Order(Box<SignedRelease>),
    /// A peer sent something.
    Message {
        /// The peer, as the transport has authenticated it.
        from: NodeId,
        /// What it sent.
        bytes: &'a [u8],
    },
    /// A connection to a peer stands.
    PeerUp(NodeId),
    /// The last connection to a peer is gone.
    PeerDown(NodeId),
    /// The failure detector beside the engine ([`crate::mesh::swim`]) has another opinion of a node.
    Liveness {
        /// The node.
        node: NodeId,
        /// Whether it is there.
        now: Liveness,
    },
    /// Somebody has set the wall clock; the time in this call is by the new one.
    ClockSet,
    /// Time passes; at least once a second.
    Tick,
    /// This node let somebody join (or starts with this record).
    Admit(Box<AdmittedRecord>),
    /// The operator of this node made a ticket.
    OpenGrant(Box<SignedGrant>),
    /// What became of a block of the mesh on this host.
    Outcome {
        /// The block.
        decision: DecisionId,
        /// Whether the source kept coming, or was harmless by the word of this node's operator.
        kind: OutcomeKind,
        /// Packets that were dropped for it.
        packets: u64,
    },
    /// The operator's verdict on blocks of the mesh, handed in at this node.
    Verdict(Box<SignedVerdict>),
    /// Ask a peer a test question.
    Question {
        /// Random bytes: they choose whom, about what, and hide the answer.
        seed: [u8; 32],
    },
    /// What was done to a node by a decision of the mesh helped, or did not.
    Remediated {
        /// The node.
        node: NodeId,
        /// The decision.
        decision: DecisionId,
        /// Whether it helped.
        succeeded: bool,
    },
    /// This node, as a witness, has found that another signed two ledgers.
    LedgerFork(Box<LedgerForkProof>),
    /// This node's answer to [`Output::Seal`].
    Sealed(Box<EpochSeal>),
    /// The operator takes a node out of the mesh.
    Remove(Box<SignedRemoval>),
}

/// What the engine wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Put these bytes (a ballot) on the disk, durably, before any later output of this call is
    /// carried out. If that fails, drop the rest of the call's `Broadcast`s and `Send`s.
    Persist(Vec<u8>),
    /// Append this statement to the evidence log on the disk. An own one durably, before any later output
    /// of this call is carried out; if that fails, drop the rest of the call's `Broadcast`s and `Send`s.
    KeepEvidence {
        /// The statement.
        bytes: Vec<u8>,
        /// Whether this node made it.
        own: bool,
    },
    /// A node is proved to have done what no honest node does; a statement about it follows, here or by
    /// another node.
    Caught {
        /// Who.
        node: NodeId,
        /// What.
        proof: ProofKind,
    },
    /// Put these bytes (what this node has signed about the next epoch) on the disk in place of what it was
    /// before, durably, before any later output of this call is carried out. If that fails, as above.
    PersistEpoch(Vec<u8>),
    /// An epoch is in force. Put [`super::Engine::stored_epochs`] on the disk, durably, before any later
    /// output of this call is carried out. If that fails, as above.
    Epoch(Box<CertifiedEpoch>),
    /// Another record of the current number is certified as well: a third of the weight or more lies, or keys
    /// were stolen. This node stays with its own. It comes once per epoch.
    ForkedEpoch(Box<CertifiedEpoch>),
    /// Sign this with the node's ML-DSA-44 key and hand it in as [`Input::Sealed`]; signing draws random
    /// bytes, so the engine does not.
    Seal(Sealed),
    /// A seal on the current epoch was accepted; with those before it, they weigh `weight` of the epoch
    /// before.
    SealSeen {
        /// The seal.
        seal: Box<EpochSeal>,
        /// Weight that has sealed so far.
        weight: u64,
    },
    /// The operator has removed a node; it leaves with the next epoch. Put
    /// [`super::Engine::stored_epochs`] on the disk.
    Removal(Box<SignedRemoval>),
    /// A node is proved to have lied about an epoch; its weight is zero from now on.
    EpochLie(Box<EpochProof>),
    /// Send to every connected peer.
    Broadcast(Vec<u8>),
    /// Send to one peer.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        bytes: Vec<u8>,
    },
    /// Watch this subject closely until then: a peer saw it attack.
    Watch {
        /// Whom.
        subject: Prefix,
        /// Until when, microseconds since 1970.
        until_unix_us: u64,
        /// Who says so.
        reported_by: NodeId,
    },
    /// A block was decided; its certificate is checked and this node does not veto it.
    Decide(Box<Decision>),
    /// A release was decided: end the mesh-wide blocks of the subject.
    Release(Box<Decision>),
    /// A node is cut off from now on: close its sessions, let it connect no more, drop what comes from its
    /// addresses.
    Quarantine(Box<Decision>),
    /// A node is taken back: undo that.
    Readmit(Box<Decision>),
    /// A block was decided that this node does not take part in.
    Vetoed {
        /// Which.
        decision: DecisionId,
        /// Whom it would have blocked.
        subject: Prefix,
        /// Why not.
        reason: String,
    },
    /// A node is proved to have lied; its weight is zero from now on.
    Equivocation(Box<EquivocationProof>),
    /// A node is proved to have signed two ledgers: a strike. It comes once per node.
    LedgerFork(Box<LedgerForkProof>),
    /// A peer sent something for this node as a witness, or as one that has witnesses.
    Ledger {
        /// The peer, who is in the roster.
        from: NodeId,
        /// What it sent; never a fork.
        message: Box<LedgerMessage>,
    },
    /// A peer sent something for the failure detector.
    Swim {
        /// The peer.
        from: NodeId,
        /// What it sent.
        message: Box<SwimMessage>,
    },
    /// A node was admitted, and is in the roster from the next epoch on; keep the record on the disk.
    Admitted(Box<AdmittedRecord>),
    /// A second record under one ticket: neither of the two is in the roster any more. This is the one
    /// that came last; keep it on the disk.
    TicketBurned(Box<AdmittedRecord>),
    /// Connections with this ticket's key may join.
    GrantOpened(Box<SignedGrant>),
    /// No longer, because this node used it.
    GrantUsed {
        /// The ticket.
        ticket: TicketId,
        /// Who used it.
        node: NodeId,
    },
    /// A vote was accepted or cast.
    VoteSeen(VoteSummary),
    /// Something was refused, and counted.
    Refused {
        /// Who sent it; this node's own id for what was asked for here.
        from: NodeId,
        /// Why.
        reason: RefusalReason,
    },
    /// The state of the quorum has changed.
    QuorumState(QuorumState),
}

/// This node's own view, which the engine asks for and never shares.
pub trait Policy {
    /// Whether this node's allowlist forbids acting against (part of) `subject`, and why.
    fn vetoes(&self, subject: &Prefix) -> Option<String>;
    /// Whether `subject` has not run into this node's block recently, so that a release may be
    /// agreed to.
    fn is_quiet(&self, subject: &Prefix) -> bool;
    /// Whether this node's operator forbids acting against a node, and why.
    fn vetoes_node(&self, _node: &NodeId) -> Option<String> {
        None
    }
    /// For what this node has a node cut off without being told.
    fn quarantines(&self) -> Automatic {
        Automatic::Sightings
    }
}

/// For what a node has another one cut off without its operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automatic {
    /// For nothing.
    Off,
    /// For proofs that it lied, which cannot be forged.
    Proofs,
    /// Also for what this node saw of it: attacks from its address, garbage on the mesh port. Whoever can send
    /// packets with that address as their source, to nodes with more than a third of the weight, can fake an
    /// attack.
    #[default]
    Sightings,
}

impl Automatic {
    /// The words for it in the configuration.
    pub const NAMES: &[&str] = &["off", "proofs", "sightings"];
}

/// A vote, for the ledger and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VoteSummary {
    /// Incident.
    pub incident: IncidentId,
    /// Whom it concerns.
    pub subject: Subject,
    /// What was voted on.
    pub action: ActionKind,
    /// Attack class.
    pub class: AttackClass,
    /// Who voted.
    pub voter: NodeId,
    /// What was said.
    pub verdict: Verdict,
    /// What the voter weighs in this epoch (0 once it was proved to lie).
    pub weight: u64,
    /// The voter's count of its votes.
    pub sequence: u64,
    /// When it was signed, microseconds since 1970.
    pub issued_at_us: u64,
    /// Whether this node cast it.
    pub own: bool,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// Why something was refused. Names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RefusalReason {
            $($(#[$doc])* $variant,)+
        }

        impl RefusalReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Stable name, as in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

reasons!(
    /// It is for another mesh.
    WrongMesh = "wrong_mesh",
    /// It is for an epoch this node does not know, or no longer votes in.
    WrongEpoch = "wrong_epoch",
    /// The voter is not in the roster under that incarnation.
    UnknownVoter = "unknown_voter",
    /// A signature does not verify.
    BadSignature = "bad_signature",
    /// It came too late, or what it is about is over.
    Expired = "expired",
    /// It is dated later than clocks may differ.
    FromFuture = "from_future",
    /// It was seen before.
    Replayed = "replayed",
    /// A vote came from a peer that is not the voter.
    NotOwnVote = "not_own_vote",
    /// Not a canonical message.
    Malformed = "malformed",
    /// Larger than a message may be.
    Oversized = "oversized",
    /// The allowlist of this node protects the subject.
    Allowlisted = "allowlisted",
    /// The voter, or the table, has too many open incidents.
    TooManyIncidents = "too_many_incidents",
    /// The voter was proved to lie.
    EquivocatingVoter = "equivocating_voter",
    /// The action is not one the mesh decides on (a network, another duration).
    WrongAction = "wrong_action",
    /// A certificate without enough weight.
    TooLight = "too_light",
    /// A certificate without enough witnesses.
    TooFewWitnesses = "too_few_witnesses",
    /// A certificate of an earlier epoch that today's roster would not have decided.
    OutvotedEpoch = "outvoted_epoch",
    /// A block that a later release has ended.
    Released = "released",
    /// The admission or ticket is not valid.
    BadAdmission = "bad_admission",
    /// The ticket has ended.
    TicketExpired = "ticket_expired",
    /// A second record under one ticket.
    TicketReused = "ticket_reused",
    /// The operator has removed a node of that id.
    Removed = "removed",
    /// A proposal, vote or certificate of an epoch that does not hold.
    BadEpoch = "bad_epoch",
    /// Another epoch of the number that is in force here: more than a third of the weight lied.
    ForkedEpoch = "forked_epoch",
    /// An epoch of the number that this node's ticket names, and not the one it names; or later ones that do
    /// not go through it.
    NotOfTicket = "not_of_ticket",
    /// A message of an epoch that is not known yet took the place of an older one of that peer, or found none.
    AsideFull = "aside_full",
    /// One peer asked for the same more often than it is answered in a second.
    TooOften = "too_often",
    /// This node may have voted on it before its clock was set back, and says nothing a second time.
    ClockSetBack = "clock_set_back",
    /// One peer has had too many signatures checked for nothing.
    TooMuchWork = "too_much_work",
    /// A limit of this node is reached.
    Full = "full",
    /// As many networks are blocked, or nodes were cut off within the hour, as may be.
    OverBudget = "over_budget",
    /// The voter or sender is cut off from the mesh.
    Quarantined = "quarantined",
    /// Nobody more is cut off: those who are, and those out of reach, would leave too few to decide.
    CircuitBreaker = "circuit_breaker",
    /// A vote that only a seat of the committee may give.
    NoSeat = "no_seat",
    /// Of a later version of the protocol.
    UnknownKind = "unknown_kind",
    /// This node is not in the roster and cannot vote.
    NotAMember = "not_a_member",
    /// A statement by nobody that this node knows.
    UnknownAuthor = "unknown_author",
    /// A statement that does not continue its author's log as it is known here.
    ForkedEvidence = "forked_evidence",
    /// More statements, questions or requests than one node may have.
    TooMuchEvidence = "too_much_evidence",
    /// A test question, its answer or a verdict that nothing here fits to.
    NothingToJudge = "nothing_to_judge",
);

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How much the reachable nodes can decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum QuorumLevel {
    /// Everything: the reachable weight is at least `T_hi`.
    #[serde(rename = "FULL")]
    Full,
    /// Blocks of single addresses and releases: at least `T_lo`.
    #[serde(rename = "DEGRADED")]
    Degraded,
    /// Nothing together; each node for itself.
    #[serde(rename = "ISOLATED")]
    Isolated,
    /// A mesh of one.
    #[serde(rename = "SINGLE")]
    Single,
    /// Decisions are possible and everybody is needed or a liar could do harm; shown in place of
    /// `FULL`.
    #[serde(rename = "NOT-BFT")]
    NotBft,
}

/// The committee of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CommitteeState {
    /// Seats.
    pub seats: u64,
    /// Whether this node has one.
    pub own_seat: bool,
}

/// The state of the quorum as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuorumState {
    /// In one word.
    pub state: QuorumLevel,
    /// Weight of this node and of the nodes that are there: connected ones, unless they stopped answering,
    /// and those that answer through others; without proved liars and those who are cut off.
    pub reachable_weight: u64,
    /// Weight of those who are cut off; it counts in `total_weight`.
    pub quarantined_weight: u64,
    /// W.
    pub total_weight: u64,
    /// ⌊W/3⌋ + 1.
    pub t_lo: u64,
    /// ⌊2W/3⌋ + 1.
    pub t_hi: u64,
    /// Weight that a decision of class 1 needs: `t_lo`, or everything with two or three nodes.
    pub needed: u64,
    /// Who decides on behalf of all, and whose weights the numbers above are; none if everybody decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committee: Option<CommitteeState>,
    /// Nodes in the roster.
    pub nodes: usize,
    /// Those of them that have weight; the others are on probation, or the evidence gives them none.
    pub voters: usize,
    /// Number of the epoch.
    pub epoch: u64,
    /// Hash of its record.
    pub epoch_hash: Hash,
    /// What the roster can withstand, and why not more.
    pub tolerance: Tolerance,
}

impl fmt::Display for QuorumLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "FULL",
            Self::Degraded => "DEGRADED",
            Self::Isolated => "ISOLATED",
            Self::Single => "SINGLE",
            Self::NotBft => "NOT-BFT",
        })
    }
}
