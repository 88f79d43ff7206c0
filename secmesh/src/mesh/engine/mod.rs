//! The decision core: messages, evidence and the time go in, votes and decisions come out.
//!
//! No socket, no clock, no random source: the same inputs give the same outputs, which is what
//! the simulation in the tests relies on. The runtime around it carries out [`Output`]s in order.
//!
//! - `answers`: how much one peer may have in one second
//! - `votes`: own evidence, peers' votes, when this node votes what
//! - `decisions`: certificates and releases, from votes or from peers
//! - `limits`: the budget and the circuit breaker
//! - `membership`: admissions, tickets
//! - `digest`: what this node has, in hashes
//! - `departed`: how long what nodes that have left stated is kept
//! - `epochs`: the epoch in force, and the agreement on what comes next
//! - `epoch_lies`: proofs that a node contradicted itself in it
//! - `next_epoch`: who would be in the next one with which weight, and whether a proposed one is that
//! - `seals`: ML-DSA-44 on the epoch in force
//! - `redraw`: when too few of a committee are left for its epoch
//! - `proofs`: when a lie was told, and whether it is forgiven
//! - `quarantine`: what this node has against others, and who is cut off
//! - `catchup`: epochs that this node has missed
//! - `filling`: epochs in the middle that this node has skipped
//! - `inventory`: what a peer is told when it connects
//! - `spread`: who has which certificate, and asking for it
//! - `seats`: who hears what where a committee decides
//! - `forks`: proofs that a node signed two ledgers
//! - `incidents`: the bounded table of what is being voted on
//! - `statements`: what this node states about the others; where everybody stands
//! - `standby`: whether a spare server is wanted
//! - `standings`: the evidence and the epochs: what each node deserves to weigh, and whether all is here
//! - `vouched`: the epoch that the operator vouched for with this node's ticket: it begins there
//! - `work`: how many signatures one peer may have checked for nothing
//! - `turn`: who agrees at once and who only if that was not enough
//! - `questions`: test questions
//! - `sync`: how the statements of all nodes reach all nodes

mod answers;
mod catchup;
mod decisions;
mod departed;
mod digest;
mod epoch_lies;
mod epochs;
mod filling;
mod forks;
mod incidents;
mod inventory;
mod io;
mod limits;
mod membership;
mod next_epoch;
mod proofs;
mod quarantine;
mod questions;
mod redraw;
mod seals;
mod seats;
mod spread;
mod standby;
mod standings;
mod statements;
mod sync;
mod turn;
mod view;
mod votes;
mod vouched;
mod window;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::answers::Answers;
pub use self::digest::Digest;
use self::filling::Filling;
use self::incidents::Incidents;
pub use self::incidents::{Incident, IncidentKey, MAX_DECIDED, MAX_OPEN, MAX_OPEN_PER_VOTER};
use self::inventory::Counted;
pub use self::io::{
    Automatic, CommitteeState, Input, Output, Policy, QuorumLevel, QuorumState, RefusalReason,
    VoteSummary,
};
pub use self::limits::MAX_NETWORKS_PER_HOUR;
use self::quarantine::Conduct;
pub use self::quarantine::Suspicion;
use self::seats::Handed;
use self::spread::Spread;
pub use self::standby::COMING_US;
use self::statements::Statements;
pub use self::sync::SyncCounters;
pub use self::view::{IncidentView, RestoreError};
use self::window::ReplayWindow;
use self::work::Work;
use super::admission::{AdmittedRecord, EpochMark, SignedGrant};
use super::crypto::Signer;
use super::decision::Decision;
use super::epoch::{CertifiedEpoch, Chain, EpochProof, EpochSeal, Lock, LockState, SignedRemoval};
use super::genesis::Genesis;
use super::ids::{DecisionId, Hash, IncidentId, MeshId, NodeId, TicketId};
use super::message::{EquivocationProof, Message};
use super::roster::{Registry, Roster};
use super::simulation::{self, Bug, planted};
use super::subject::Subject;
use super::swim::Liveness;
use super::trust::EpochFold;
use super::vote::{Action, AttackClass, BUCKET_US, Ballot, bucket_of};
use super::wire::{MAX_MESSAGE, UNKNOWN_CODE, WireError};
use crate::addr::Prefix;
use crate::ledger::fork::LedgerForkProof;

/// How many earlier epochs' rosters are at hand; those of older epochs that are kept are made when needed.
pub const KNOWN_EPOCHS: usize = 16;
/// Most decisions that are remembered at one time.
pub const MAX_DECISIONS: usize = 65_536;
/// As many more that are no blocks: releases, and decisions on nodes.
pub const RESERVED_DECISIONS: usize = 4_096;
/// Most pieces of own evidence that are alive at one time.
pub const MAX_EVIDENCE: usize = 65_536;
/// Most subjects watched on a peer's word.
pub const MAX_WATCHED: usize = 16_384;
/// How long a subject is watched after a peer's report, in microseconds.
pub const WATCH_US: u64 = 15 * 60 * 1_000_000;
/// How long a node waits before it agrees to a release, in microseconds: time for a node that still sees
/// the attack to say so. One that was never attacked always sees quiet.
pub const RELEASE_WAIT_US: u64 = 2 * 1_000_000;
/// Networks that may be blocked at one time (class 2): beyond that this node votes for no more, so that no run of
/// escalations takes a good part of the world off the mesh. At most 16,384 IPv4 addresses.
pub const MAX_NETWORKS: usize = 64;
/// Most own votes remembered so as not to contradict them.
pub const MAX_OWN_VOTES: usize = 65_536;
/// Most messages of a not yet known epoch that are put aside; a peer has its share of them by the number of nodes,
/// and two at least.
pub const MAX_PENDING: usize = 256;

/// What an engine starts with.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The mesh; its signature has been verified by whoever loaded it.
    pub genesis: Genesis,
    /// This node.
    pub node: NodeId,
    /// This node's incarnation.
    pub incarnation: u64,
    /// Its vote key.
    pub signer: Signer,
    /// How long a detector's word counts as own evidence, in seconds. Longer lets a peer's first
    /// sighting find this node's older one; shorter forgets sooner what is over.
    pub evidence_ttl_s: u32,
}

/// What this node saw itself.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    root: Hash,
    detector: Hash,
    until_us: u64,
}

/// One call's surroundings.
struct Call<'a> {
    now: u64,
    policy: &'a dyn Policy,
    out: &'a mut Vec<Output>,
}

/// Whether what was put aside is being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looking {
    No,
    Once,
    /// And has to be once more.
    Again,
}

/// Slot in which a node signs at most one vote.
type VoteSlot = (Hash, IncidentId, u32);

/// The decision core of one node.
#[derive(Debug)]
#[cfg_attr(feature = "simulation", derive(Clone))]
pub struct Engine {
    config: EngineConfig,
    mesh: MeshId,
    registry: Registry,
    /// The last later epoch that a connected peer has sent and that does not follow the current one: the next
    /// from that peer may name it.
    links: BTreeMap<NodeId, CertifiedEpoch>,
    /// The last epoch of which two certified records were seen.
    forked: u64,
    /// The current epoch, and the way to it.
    chain: Chain,
    /// The epoch that this node's ticket names: it begins there, and before it believes nobody.
    vouched: Option<EpochMark>,
    /// The first epoch of the chain when earlier ones were asked for last.
    asked_before: u64,
    /// Epochs that go before the chain, as soon as they reach it.
    earlier: Chain,
    /// Epochs that this node has skipped, on their way.
    filling: Filling,
    roster: Roster,
    /// Rosters of earlier epochs, latest first.
    known: VecDeque<Roster>,
    grants: BTreeMap<TicketId, SignedGrant>,
    connected: BTreeSet<NodeId>,
    /// Nodes that were connected since this one began: they run, or did. Who was admitted and never started
    /// is proposed by nobody, or it would get weight that nobody can use.
    seen: BTreeSet<NodeId>,
    /// What the failure detector says of members; of others, only the connection counts.
    liveness: BTreeMap<NodeId, Liveness>,
    answers: Answers,
    work: Work,
    /// What the counting of decisions came to.
    counted: Counted,
    /// What is still to be sent to a peer that came up.
    backlog: BTreeMap<NodeId, VecDeque<Vec<u8>>>,
    sequence: u64,
    own_votes: BTreeMap<VoteSlot, Ballot>,
    /// Latest bucket of an own vote that is not remembered any more. In it and before it nothing can be said
    /// without perhaps contradicting that, whatever the clock says.
    forgotten: Option<u64>,
    /// Sequence number and bucket of the first vote that the disk still had.
    first_restored: Option<(u64, u64)>,
    incidents: Incidents,
    /// Releases that peers asked for and this node would agree to, since when.
    considered: BTreeMap<IncidentKey, u64>,
    /// Blocks that this node would agree to, and when it does if no certificate came by then.
    in_turn: BTreeMap<IncidentKey, u64>,
    /// Own sightings on their way to a committee that this node has no seat on.
    handed: Handed,
    evidence: BTreeMap<(Prefix, AttackClass), Evidence>,
    windows: BTreeMap<NodeId, ReplayWindow>,
    proofs: BTreeMap<NodeId, EquivocationProof>,
    forks: BTreeMap<NodeId, LedgerForkProof>,
    /// Keys of `proofs`, in the form the counting rule takes.
    zeroed: BTreeSet<NodeId>,
    decisions: BTreeMap<DecisionId, Decision>,
    /// Blocks and releases in `decisions`, by subject.
    by_subject: BTreeMap<Subject, BTreeSet<DecisionId>>,
    /// Those of them that block a network.
    networks: BTreeSet<DecisionId>,
    /// Who is cut off, since the bucket of its first quarantine in force.
    quarantined: BTreeMap<NodeId, u64>,
    conduct: Conduct,
    watched: BTreeMap<Prefix, u64>,
    /// Certificates that others have.
    spread: Spread,
    /// Messages of an epoch this node does not know yet: it, or an admission, is still on its way.
    pending: VecDeque<(u64, NodeId, Vec<u8>)>,
    /// The agreement on the next epoch.
    lock: Option<Lock>,
    /// What this node signed last about an epoch, from the disk, until the epoch before that is known.
    lock_state: Option<LockState>,
    removals: BTreeMap<NodeId, SignedRemoval>,
    /// Who was let in and is in no epoch yet, since when that was first counted.
    coming_since: BTreeMap<NodeId, u64>,
    /// When a spare was told no last, and why.
    spare_answer: Option<(u64, String)>,
    /// Seals on the current epoch, by who made them.
    seals: BTreeMap<NodeId, EpochSeal>,
    /// The epoch that this node's own was asked for last.
    seal_asked: u64,
    /// What the evidence says each node deserves.
    standings: EpochFold,
    /// When the current epoch was adopted here; 0 before the first tick.
    epoch_since_us: u64,
    /// Since when too few of the committee are in reach.
    seats_missed_since: Option<u64>,
    /// Admissions or removals wait for the next epoch.
    membership_due: bool,
    epoch_proofs: BTreeMap<NodeId, EpochProof>,
    /// Who was told last how far this node is, and when.
    asked: NodeId,
    asked_us: u64,
    turns_asked: u64,
    looking: Looking,
    refusals: BTreeMap<RefusalReason, u64>,
    last_state: Option<QuorumState>,
    /// What `last_state` follows from: epoch, number of connected peers, number of proved liars. None when
    /// something else has changed: who answers, who is cut off.
    state_basis: Option<(Hash, usize, usize)>,
    /// Signed evidence on the nodes.
    statements: Statements,
}

impl Engine {
    /// An engine for the node in `config`. `records` are the admissions known so far, this node's
    /// own among them; those that do not verify are left out.
    pub fn new(config: EngineConfig, records: impl IntoIterator<Item = AdmittedRecord>) -> Self {
        let mesh = config.genesis.mesh_id();
        let mut registry = Registry::new(&config.genesis.params);
        for admitted in records {
            if admitted.verify(&config.genesis).is_ok() {
                registry.offer(admitted);
            }
        }
        let mut engine = Self {
            config,
            mesh,
            registry,
            links: BTreeMap::new(),
            forked: 0,
            chain: Chain::default(),
            vouched: None,
            asked_before: 0,
            earlier: Chain::default(),
            filling: Filling::default(),
            roster: Roster::with_weights(mesh, []),
            known: VecDeque::new(),
            grants: BTreeMap::new(),
            connected: BTreeSet::new(),
            seen: BTreeSet::new(),
            liveness: BTreeMap::new(),
            answers: Answers::default(),
            work: Work::default(),
            counted: Counted::default(),
            backlog: BTreeMap::new(),
            sequence: 0,
            own_votes: BTreeMap::new(),
            forgotten: None,
            first_restored: None,
            incidents: Incidents::default(),
            considered: BTreeMap::new(),
            in_turn: BTreeMap::new(),
            handed: Handed::new(),
            evidence: BTreeMap::new(),
            windows: BTreeMap::new(),
            proofs: BTreeMap::new(),
            forks: BTreeMap::new(),
            zeroed: BTreeSet::new(),
            decisions: BTreeMap::new(),
            by_subject: BTreeMap::new(),
            networks: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            conduct: Conduct::default(),
            watched: BTreeMap::new(),
            spread: Spread::default(),
            pending: VecDeque::new(),
            lock: None,
            lock_state: None,
            removals: BTreeMap::new(),
            coming_since: BTreeMap::new(),
            spare_answer: None,
            seals: BTreeMap::new(),
            seal_asked: 0,
            standings: EpochFold::default(),
            epoch_since_us: 0,
            seats_missed_since: None,
            membership_due: false,
            epoch_proofs: BTreeMap::new(),
            asked: NodeId([0; 16]),
            asked_us: 0,
            turns_asked: 0,
            looking: Looking::No,
            refusals: BTreeMap::new(),
            last_state: None,
            state_basis: None,
            statements: Statements::new(mesh),
        };
        engine.vouched = engine.mark_of_ticket();
        engine.begin_epochs();
        engine
    }

    /// Takes one input at a time (`now_unix_us`: wall clock, microseconds since 1970) and appends
    /// what is to be done to `out`, in the order in which it is to be done.
    pub fn handle(
        &mut self,
        now_unix_us: u64,
        input: Input<'_>,
        policy: &dyn Policy,
        out: &mut Vec<Output>,
    ) {
        if planted(Bug::ReachableOnly) {
            simulation::note_reachable(self.quorum().reachable_weight);
        }
        let call = &mut Call {
            now: now_unix_us,
            policy,
            out,
        };
        match input {
            Input::OwnEvidence {
                subject,
                class,
                evidence_root,
                detector_hash,
            } => self.own_evidence(call, subject, class, evidence_root, detector_hash),
            Input::OperatorBlock { subject } => self.operator_block(call, subject),
            Input::OperatorRelease { subject, signed } => match signed {
                Some(signed) => self.signed_release(call, self.config.node, *signed, true),
                None => self.propose_release(call, Action::release(subject)),
            },
            Input::NodeAttacks {
                node,
                evidence_root,
                detector_hash,
            } => self.node_attacks(call, node, evidence_root, detector_hash),
            Input::Garbage(node) => self.refuse(call, node, RefusalReason::Malformed),
            Input::OperatorQuarantine { node } => self.operator_quarantine(call, node),
            Input::OperatorReadmit { node } => self.propose_release(call, Action::readmit(node)),
            Input::Order(signed) => self.signed_release(call, self.config.node, *signed, true),
            Input::Message { from, bytes } => self.message(call, from, bytes),
            Input::Liveness { node, now } => self.is_there(node, now),
            Input::PeerUp(peer) => {
                // At once, until somebody knows better.
                self.liveness.remove(&peer);
                self.state_basis = None;
                self.peer_up(call, peer);
                self.compare_with(call, peer);
            }
            Input::PeerDown(peer) => {
                self.connected.remove(&peer);
                self.answers.forget_before(call.now);
                self.backlog.remove(&peer);
                self.links.remove(&peer);
                self.statements.peer_down(&peer, call.now);
            }
            Input::ClockSet => self.clock_set(call),
            Input::Tick => self.tick(call),
            Input::Admit(admitted) => self.admit(call, self.config.node, *admitted, true),
            Input::OpenGrant(grant) => self.open_grant(call, self.config.node, *grant, true),
            Input::Outcome {
                decision,
                kind,
                packets,
            } => self.outcome(call, decision, kind, packets),
            Input::Verdict(verdict) => self.verdict(call, &verdict),
            Input::Question { seed } => self.ask(call, seed),
            Input::Remediated {
                node,
                decision,
                succeeded,
            } => self.remediated(call, node, decision, succeeded),
            Input::LedgerFork(proof) => self.fork(call, self.config.node, *proof),
            Input::Sealed(seal) => self.seal(call, self.config.node, *seal),
            Input::Remove(removal) => self.remove(call, self.config.node, *removal, true),
        }
        self.report_state(call);
    }

    /// A copy of this engine for another node of its mesh: what it knows, without checking it again.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn copy_for(&self, config: EngineConfig) -> Self {
        let mut copy = Self {
            config,
            ..self.clone()
        };
        copy.renew_lock();
        copy
    }

    /// As if all other nodes of the roster had connected and had nothing to tell.
    #[cfg(feature = "simulation")]
    pub fn assume_all_connected(&mut self) {
        self.connected = self.roster.members().map(|(node, _)| *node).collect();
        self.connected.remove(&self.config.node);
        self.seen.extend(&self.connected);
        self.last_state = Some(self.quorum());
    }

    fn refuse(&mut self, call: &mut Call<'_>, from: NodeId, reason: RefusalReason) {
        self.count_refusal(call, from, reason);
        self.note_refusal(call, from, reason);
    }

    /// As [`Engine::refuse`], of what is no fault of who sent it.
    fn count_refusal(&mut self, call: &mut Call<'_>, from: NodeId, reason: RefusalReason) {
        *self.refusals.entry(reason).or_default() += 1;
        call.out.push(Output::Refused { from, reason });
    }

    fn message(&mut self, call: &mut Call<'_>, from: NodeId, bytes: &[u8]) {
        if self.is_quarantined(&from) && !planted(Bug::CutOffHeard) {
            return self.refuse(call, from, RefusalReason::Quarantined);
        }
        if bytes.len() > MAX_MESSAGE {
            return self.refuse(call, from, RefusalReason::Oversized);
        }
        match Message::from_bytes(bytes) {
            Ok(Message::Batch(parts)) => {
                for part in parts {
                    match Message::from_bytes(&part) {
                        Ok(message) if !message.is_batch() => {
                            self.one_message(call, from, message);
                        }
                        Err(error) => self.refuse(call, from, unread(&error)),
                        Ok(_) => self.refuse(call, from, RefusalReason::Malformed),
                    }
                }
            }
            Ok(message) => self.one_message(call, from, message),
            Err(error) => self.refuse(call, from, unread(&error)),
        }
    }

    fn one_message(&mut self, call: &mut Call<'_>, from: NodeId, message: Message) {
        match message {
            Message::Vote(ballot) => self.peer_vote(call, from, &ballot),
            Message::Certificate(certificate) => self.peer_certificate(call, from, *certificate),
            Message::Admission(admitted) => self.admit(call, from, *admitted, false),
            Message::Grant(grant) => self.open_grant(call, from, *grant, false),
            Message::Equivocation(proof) => self.peer_proof(call, from, &proof),
            Message::Decided(announced) => self.peer_decided(call, from, &announced),
            Message::WantDecision(id) => self.peer_wants(call, from, id),
            Message::Release(signed) => self.signed_release(call, from, *signed, false),
            Message::Evidence(message) => self.evidence_message(call, from, *message),
            Message::Inventory(message) => self.peer_inventory(call, from, *message),
            Message::Ledger(message) => self.about_ledgers(call, from, message),
            Message::EpochProposal(proposal) => self.peer_epoch_proposal(call, from, *proposal),
            Message::EpochVote(signed) => self.peer_epoch_vote(call, from, *signed),
            Message::EpochWant(number) => self.peer_epoch_want(call, from, number),
            Message::Epoch(epoch) => self.peer_epoch(call, from, *epoch),
            Message::EpochLie(proof) => self.peer_epoch_lie(call, from, &proof),
            Message::EpochSeal(seal) => self.seal(call, from, *seal),
            Message::Removal(removal) => self.remove(call, from, *removal, false),
            Message::Swim(message) => call.out.push(Output::Swim { from, message }),
            // The caller takes batches apart and refuses nested ones.
            Message::Batch(_) => self.refuse(call, from, RefusalReason::Malformed),
        }
    }

    /// Puts a message of an unknown epoch aside until something of the membership changes.
    ///
    /// Nothing of it can be checked yet, so each peer has places of its own; one more takes that of its oldest.
    fn put_aside(&mut self, call: &mut Call<'_>, from: NodeId, message: &Message) {
        let share = (MAX_PENDING / self.roster.len().max(1)).max(2);
        let own = |(_, sender, _): &(u64, NodeId, Vec<u8>)| *sender == from;
        let waiting = self.pending.iter().filter(|p| own(p)).count();
        if waiting >= share || self.pending.len() >= MAX_PENDING {
            let oldest = self.pending.iter().position(own);
            let freed = oldest.and_then(|at| self.pending.remove(at)).is_some();
            self.refuse(call, from, RefusalReason::AsideFull);
            if !freed {
                return;
            }
        }
        let until = call.now.saturating_add(2 * BUCKET_US);
        self.pending.push_back((until, from, message.to_bytes()));
        self.count_refusal(call, from, RefusalReason::WrongEpoch);
    }

    fn valid_us(&self) -> u64 {
        u64::from(self.config.genesis.params.vote_valid_s) * 1_000_000
    }

    fn skew_us(&self) -> u64 {
        u64::from(self.config.genesis.params.max_skew_s) * 1_000_000
    }

    fn tick(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        self.evidence.retain(|_, e| e.until_us > now);
        self.watched.retain(|_, until| *until > now);
        self.grants.retain(|_, g| g.grant.expires_unix_us > now);
        self.pending.retain(|(until, ..)| *until > now);
        self.incidents
            .prune(now, self.valid_us(), self.roster.epoch_hash());
        // A vote can name a bucket only until the next one ends; after that the slot is safe to
        // forget. Clocks may step back by as much as they may differ, and by more: that a bucket was
        // forgotten is remembered.
        let oldest = bucket_of(now.saturating_sub(self.skew_us())).saturating_sub(3);
        let forgotten = &mut self.forgotten;
        self.own_votes.retain(|_, ballot| {
            let bucket = ballot.signed.vote.bucket;
            if bucket < oldest {
                *forgotten = (*forgotten).max(Some(bucket));
            }
            bucket >= oldest
        });
        let ended: Vec<DecisionId> = self
            .decisions
            .values()
            .filter(|d| d.expires_unix_us <= now && !planted(Bug::BlockNeverEnds))
            .map(|d| d.id)
            .collect();
        for id in ended {
            self.forget(&id);
        }
        self.agree_to_releases(call);
        self.concur_late(call);
        self.hand_on(call);
        self.ask_for_decisions(call);
        self.tick_quarantine(call);
        self.tick_epochs(call);
        self.send_backlog(call);
        self.tick_statements(call);
    }
}

/// What a later version says is no garbage: nodes are upgraded one at a time.
fn unread(error: &WireError) -> RefusalReason {
    match error {
        WireError::Invalid { why, .. } if *why == UNKNOWN_CODE => RefusalReason::UnknownKind,
        _ => RefusalReason::Malformed,
    }
}

#[cfg(test)]
mod tests;
