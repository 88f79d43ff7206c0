//! The agreement on one epoch record: rounds of proposal, prevote, precommit, with locks.
//!
//! After Buchman, Kwon and Milosevic, "The latest gossip on BFT consensus" (arXiv 1807.04938), with the
//! epoch's number in place of the height. What differs: a proposal that was near to being decided carries
//! the prevotes that show it (nobody has to have kept them), and what is not answered is said again every
//! [`RESEND_US`], because a message may be lost with a connection.

mod steps;

use std::collections::{BTreeMap, BTreeSet};

use super::cert::CertifiedEpoch;
use super::record::EpochRecord;
use super::state::{LockState, OwnVote};
use super::vote::{EpochProof, EpochVote, Proposal, SignedEpochVote, Step, VoteSet};
use crate::mesh::crypto::Signer;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::roster::Roster;
use crate::mesh::simulation::{Bug, planted};

/// How often what this node said last is said again while nothing is decided, microseconds.
pub const RESEND_US: u64 = 2_000_000;
/// How long the first round waits for a proposal, and then for prevotes and precommits, microseconds.
const PROPOSE_US: u64 = 1_000_000;
const VOTE_US: u64 = 500_000;
/// A wait is never longer, microseconds.
const LONGEST_US: u64 = 30_000_000;
/// Votes of rounds further ahead than this are refused: with waits of up to [`LONGEST_US`] that is three weeks,
/// and nobody drives the others to the last round there is with one message.
const MAX_AHEAD: u32 = 65_536;
/// Votes of this many rounds before and after the own one are kept. Who is further ahead says it again.
const KEPT_ROUNDS: u32 = 8;

/// What the agreement asks the node around it.
pub trait App {
    /// The record this node would propose now; none if nothing is due by what it knows.
    fn fresh(&self) -> Option<EpochRecord>;
    /// Whether this node, by what it knows now, finds that a record may be the next epoch.
    fn is_valid(&self, record: &EpochRecord) -> bool;
    /// Whether a record may be the next epoch by what never changes: asked about a value that `T_hi` has
    /// prevoted for, or that this node is locked on. What [`App::is_valid`] asks beyond that (who was
    /// removed or replaced since, whether it is time) may change while others hold a lock.
    fn is_sound(&self, record: &EpochRecord) -> bool;
    /// The members of a record, if all of them are known here.
    fn members(&self, record: &EpochRecord) -> Option<BTreeSet<NodeId>>;
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockOut {
    /// Put this on the disk before anything that follows leaves.
    Persist(Vec<u8>),
    /// Send a proposal to everybody.
    Propose(Box<Proposal>),
    /// Send a vote to everybody.
    Vote(SignedEpochVote),
    /// The record is decided. `announce`: this node proposed it and tells everybody.
    Decided(Box<CertifiedEpoch>, bool),
    /// A voter contradicted itself.
    Lied(Box<EpochProof>),
}

/// Who takes part in an agreement, and on what.
#[derive(Debug, Clone)]
pub struct LockConfig {
    /// The epoch before: its voters decide.
    pub before: Roster,
    /// This node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
    /// Its vote key.
    pub signer: Signer,
}

/// How far an agreement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Decided,
}

/// The agreement on the epoch after `config.before`, as one voter sees it.
#[derive(Debug, Clone)]
pub struct Lock {
    config: LockConfig,
    number: u64,
    phase: Phase,
    round: u32,
    step: Step,
    deadline: Option<u64>,
    resend_at: u64,
    proposed: bool,
    /// Own prevote and precommit of this round.
    own: BTreeMap<Step, OwnVote>,
    locked: Option<(u32, Hash)>,
    /// The prevotes that locked it.
    polka: Option<VoteSet>,
    /// Own precommit of the last round that had one: who is a round behind may need it.
    last: Option<(u32, OwnVote)>,
    /// The value that `T_hi` prevoted for last, and where: what this node proposes when it is its turn.
    near: Option<(u32, Hash, VoteSet)>,
    records: BTreeMap<Hash, EpochRecord>,
    /// Proposed value and the earlier round with enough prevotes, by round.
    proposals: BTreeMap<u32, Proposal>,
    votes: BTreeMap<(u32, Step), BTreeMap<NodeId, OwnVote>>,
    /// The highest round each voter was heard in.
    ahead: BTreeMap<NodeId, u32>,
    muted: bool,
}

impl Lock {
    /// The agreement on the epoch after `config.before`.
    pub fn new(config: LockConfig) -> Self {
        let number = config.before.epoch().saturating_add(1);
        Self {
            config,
            number,
            phase: Phase::Waiting,
            round: 0,
            step: Step::Propose,
            deadline: None,
            resend_at: 0,
            proposed: false,
            own: BTreeMap::new(),
            locked: None,
            polka: None,
            last: None,
            near: None,
            records: BTreeMap::new(),
            proposals: BTreeMap::new(),
            votes: BTreeMap::new(),
            ahead: BTreeMap::new(),
            muted: false,
        }
    }

    /// Only listens: this node has signed something about a later epoch, so what it knows is older than what
    /// it has said, and it could contradict itself.
    pub const fn mute(&mut self) {
        self.muted = true;
    }

    /// Goes on where `state` left off. False if it is about another epoch, which leaves this unchanged.
    pub fn restore(&mut self, state: LockState) -> bool {
        let before = &self.config.before;
        if (state.mesh, state.number, state.previous)
            != (before.mesh(), self.number, before.epoch_hash())
        {
            return false;
        }
        if state.is_unsigned() {
            return true;
        }
        self.phase = Phase::Running;
        self.round = state.round;
        self.proposed = state.proposed;
        for (step, own) in [
            (Step::Prevote, state.prevote),
            (Step::Precommit, state.precommit),
        ] {
            if let Some(own) = own {
                self.step = step;
                self.own.insert(step, own);
                self.count(self.round, step, self.config.node, own);
            }
        }
        if let Some((record, polka)) = state.locked {
            let value = record.hash();
            self.locked = Some((polka.round, value));
            self.near = Some((polka.round, value, polka.clone()));
            self.polka = Some(polka);
            self.records.insert(value, record);
        }
        self.last = state.last;
        // It may have proposed and come back without the proposal. Nothing was prevoted, so nil is safe,
        // and the others do not wait for this node.
        if self.step == Step::Propose && !planted(Bug::ProposerStuck) {
            self.deadline = Some(0);
        }
        true
    }

    /// Number of the epoch that is agreed on.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Round, if the agreement has begun.
    pub fn round(&self) -> Option<u32> {
        (self.phase != Phase::Waiting).then_some(self.round)
    }

    fn state(&self) -> LockState {
        let before = &self.config.before;
        LockState {
            mesh: before.mesh(),
            number: self.number,
            previous: before.epoch_hash(),
            round: self.round,
            proposed: self.proposed,
            prevote: self.own.get(&Step::Prevote).copied(),
            precommit: self.own.get(&Step::Precommit).copied(),
            locked: self.locked.and_then(|(round, value)| {
                let record = self.records.get(&value)?.clone();
                let polka = self.polka.clone().filter(|polka| polka.round == round)?;
                Some((record, polka))
            }),
            last: self.last,
        }
    }

    fn weight(&self, node: &NodeId) -> u64 {
        self.config
            .before
            .get(node)
            .map_or(0, |member| u64::from(member.weight))
    }

    fn is_voter(&self) -> bool {
        let me = self.config.before.get(&self.config.node);
        !self.muted
            && me.is_some_and(|m| m.weight > 0 && m.record.incarnation == self.config.incarnation)
    }

    /// Whose turn it is: the voters one after the other, beginning elsewhere for each number.
    pub fn proposer(&self, round: u32) -> Option<NodeId> {
        let voters: Vec<NodeId> = self
            .config
            .before
            .members()
            .filter(|(_, member)| member.weight > 0)
            .map(|(node, _)| *node)
            .collect();
        let turn = u128::from(self.number) + u128::from(round);
        let at = turn.checked_rem(u128::try_from(voters.len()).ok()?)?;
        voters.get(usize::try_from(at).ok()?).copied()
    }

    /// Takes a proposal. False if it is not one of the proposer of its round, or forged.
    pub fn take_proposal(&mut self, proposal: Proposal, out: &mut Vec<LockOut>) -> bool {
        let vote = proposal.signed.vote;
        if self.proposer(vote.round) != Some(vote.voter) || !self.take_vote(proposal.signed, out) {
            return false;
        }
        // One record per round: of what a liar proposes besides, only the proof is of use.
        let held = self.votes.get(&(vote.round, Step::Propose));
        let held = held.and_then(|votes| votes.get(&vote.voter));
        // The signature does not cover the prevotes: a copy that shows more of them is the better one.
        let better = self.proposals.get(&vote.round).is_none_or(|held| {
            held.polka != proposal.polka && self.shown(&proposal) > self.shown(held)
        });
        if held.is_some_and(|(value, _)| *value == vote.value) && better {
            let value = proposal.record.hash();
            self.records
                .entry(value)
                .or_insert_with(|| proposal.record.clone());
            self.proposals.insert(vote.round, proposal);
        }
        true
    }

    /// Whether the proposal of a round that is held shows these prevotes.
    pub fn shows(&self, round: u32, polka: &Option<VoteSet>) -> bool {
        self.proposals
            .get(&round)
            .is_some_and(|held| held.polka == *polka)
    }

    /// Weight of the prevotes that a proposal shows; 0 if they are not genuine.
    fn shown(&self, proposal: &Proposal) -> u64 {
        proposal.polka.as_ref().map_or(0, |polka| {
            polka
                .weight(&proposal.record, Step::Prevote, &self.config.before)
                .unwrap_or(0)
        })
    }

    /// Takes a vote of any step. False if it is not a voter's of this agreement, or forged.
    pub fn take_vote(&mut self, signed: SignedEpochVote, out: &mut Vec<LockOut>) -> bool {
        let vote = signed.vote;
        let before = &self.config.before;
        let about = (vote.mesh, vote.number, vote.previous)
            == (before.mesh(), self.number, before.epoch_hash());
        let Some(member) = before.get(&vote.voter).filter(|m| {
            m.weight > 0
                && m.record.incarnation == vote.incarnation
                && vote.voter != self.config.node
        }) else {
            return false;
        };
        if vote.round > self.round.saturating_add(MAX_AHEAD) {
            return false;
        }
        let held = self
            .votes
            .get(&(vote.round, vote.step))
            .and_then(|votes| votes.get(&vote.voter))
            .copied();
        if held == Some((vote.value, signed.signature)) && about {
            return true;
        }
        if !about || signed.verify(&member.record.vote_key).is_err() {
            return false;
        }
        if let Some((value, signature)) = held {
            let other = SignedEpochVote {
                vote: EpochVote { value, ..vote },
                signature,
            };
            out.extend(EpochProof::new(other, signed).map(|p| LockOut::Lied(Box::new(p))));
            return true;
        }
        let ahead = self.ahead.entry(vote.voter).or_default();
        *ahead = vote.round.max(*ahead);
        if vote.round.abs_diff(self.round) <= KEPT_ROUNDS {
            self.count(
                vote.round,
                vote.step,
                vote.voter,
                (vote.value, signed.signature),
            );
        }
        true
    }

    fn count(&mut self, round: u32, step: Step, voter: NodeId, own: OwnVote) {
        let votes = self.votes.entry((round, step)).or_default();
        votes.entry(voter).or_insert(own);
    }

    /// Time has passed, or something was taken: goes as far as that allows.
    pub fn advance(&mut self, now: u64, app: &dyn App, out: &mut Vec<LockOut>) {
        // Bounded: every turn ends the agreement, a step, or the loop; rounds only end at deadlines.
        for _ in 0..64 {
            if self.phase == Phase::Decided || !self.turn(now, app, out) {
                break;
            }
        }
        // A clock that was set back must not make this node silent either.
        if !planted(Bug::ResendStuck) {
            self.resend_at = self.resend_at.min(now.saturating_add(RESEND_US));
        }
        if self.phase == Phase::Running && self.is_voter() && now >= self.resend_at {
            self.resend_at = now.saturating_add(RESEND_US);
            self.repeat(out);
        }
    }

    /// What this node said in this round, once more.
    pub fn repeat(&self, out: &mut Vec<LockOut>) {
        if self.phase != Phase::Running {
            return;
        }
        if let Some(mine) = self
            .proposals
            .get(&self.round)
            .filter(|p| p.signed.vote.voter == self.config.node)
        {
            out.push(LockOut::Propose(Box::new(mine.clone())));
        }
        let last = self
            .last
            .iter()
            .map(|(round, own)| (*round, Step::Precommit, *own));
        let own = self.own.iter().map(|(step, own)| (self.round, *step, *own));
        let older = last.filter(|(round, ..)| *round != self.round);
        for (round, step, (value, signature)) in older.chain(own) {
            let vote = EpochVote {
                round,
                ..self.vote(step, value)
            };
            out.push(LockOut::Vote(SignedEpochVote { vote, signature }));
        }
    }
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
