//! What a voter does in a round: it proposes, prevotes, precommits, waits, and goes on to the next.

use std::collections::{BTreeMap, BTreeSet};

use super::{App, KEPT_ROUNDS, LONGEST_US, Lock, LockOut, PROPOSE_US, Phase, VOTE_US};
use crate::mesh::epoch::BOOTSTRAP_VOTERS;
use crate::mesh::epoch::cert::{CertifiedEpoch, needed};
use crate::mesh::epoch::record::EpochRecord;
use crate::mesh::epoch::rules;
use crate::mesh::epoch::vote::{EpochVote, Proposal, Step, VoteSet};
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::simulation::{Bug, planted};

impl Lock {
    /// One step, if one can be made.
    pub(super) fn turn(&mut self, now: u64, app: &dyn App, out: &mut Vec<LockOut>) -> bool {
        if self.decide(app, out) {
            return false;
        }
        if !self.is_voter() {
            return false;
        }
        let own = (self.phase != Phase::Waiting).then_some(self.round);
        let seen = self.ahead.iter().map(|(v, round)| (*round, self.weight(v)));
        // Where everybody has to agree nobody is expected to lie, and one alone may be the rest.
        let enough = if self.config.before.voters() < BOOTSTRAP_VOTERS {
            1
        } else {
            self.config.before.t_lo()
        };
        if let Some(round) = rules::catch_up(own, seen, enough) {
            return self.enter(round, now);
        }
        if self.phase == Phase::Waiting {
            let due = app.fresh().is_some()
                || self
                    .proposals
                    .get(&0)
                    .is_some_and(|p| app.is_valid(&p.record));
            if due {
                self.enter(0, now);
            }
            return due;
        }
        // Who crashed between its proposal and its prevote comes back without either, and waits like all others.
        if self.step == Step::Propose && !planted(Bug::ProposerStuck) {
            let end = now.saturating_add(self.wait(PROPOSE_US));
            self.deadline.get_or_insert(end);
        }
        // A clock that was set back must not make a wait longer.
        let latest = now.saturating_add(LONGEST_US);
        self.deadline = self.deadline.map(|at| at.min(latest));
        let late = self.deadline.is_some_and(|at| now >= at);
        match self.step {
            Step::Propose => self.turn_propose(late, app, out),
            Step::Prevote => self.turn_prevote(now, late, app, out),
            Step::Precommit => self.turn_precommit(now, late, app),
        }
    }

    /// Begins a round. False for one that was begun already: what was said in it must stay known.
    pub(super) fn enter(&mut self, round: u32, now: u64) -> bool {
        if self.phase != Phase::Waiting && round <= self.round {
            return false;
        }
        self.phase = Phase::Running;
        self.round = round;
        self.step = Step::Propose;
        self.proposed = false;
        self.own.clear();
        self.deadline = Some(now.saturating_add(self.wait(PROPOSE_US)));
        let kept = round.saturating_sub(KEPT_ROUNDS);
        self.votes.retain(|(r, _), _| *r >= kept);
        self.proposals.retain(|r, _| *r >= kept);
        let wanted: BTreeSet<Hash> = self
            .proposals
            .values()
            .filter_map(|p| p.signed.vote.value)
            .chain(self.near.as_ref().map(|(_, value, _)| *value))
            .chain(self.locked.map(|(_, value)| value))
            .collect();
        self.records.retain(|value, _| wanted.contains(value));
        true
    }

    fn wait(&self, first: u64) -> u64 {
        let longer = (first / 2).saturating_mul(u64::from(self.round));
        first.saturating_add(longer).min(LONGEST_US)
    }

    fn turn_propose(&mut self, late: bool, app: &dyn App, out: &mut Vec<LockOut>) -> bool {
        if !self.proposed && self.proposer(self.round) == Some(self.config.node) {
            self.propose(app, out);
        }
        let mut choice = None;
        if let Some(proposal) = self.proposals.get(&self.round) {
            let record = &proposal.record;
            let value = record.hash();
            let polka = proposal
                .polka
                .as_ref()
                .filter(|polka| self.is_polka(record, polka, app))
                .map(|polka| polka.round);
            let shown = proposal.polka.is_none() || polka.is_some();
            // What others may be locked on is not asked again what may have changed since.
            let held = polka.is_some() || self.locked.is_some_and(|(_, own)| own == value);
            let valid = app.is_valid(record) || (held && app.is_sound(record));
            if shown && valid {
                let locked = self.locked.as_ref().filter(|_| !planted(Bug::LockIgnored));
                let may = rules::may_prevote(locked, &value, polka, self.round);
                choice = Some(may.then_some(value));
            }
        }
        // What it needs in order to judge the proposal may still be on its way.
        if choice.is_none() && late {
            choice = Some(None);
        }
        let Some(value) = choice else { return false };
        self.say(Step::Prevote, value, out);
        self.step = Step::Prevote;
        self.deadline = None;
        true
    }

    /// Whether these prevotes, of an earlier round, suffice for this record.
    fn is_polka(&self, record: &EpochRecord, polka: &VoteSet, app: &dyn App) -> bool {
        let Some(after) = app.members(record) else {
            return false;
        };
        let before = &self.config.before;
        polka
            .weight(record, Step::Prevote, before)
            .is_ok_and(|weight| rules::is_quorum(weight, needed(before, &after)))
    }

    fn propose(&mut self, app: &dyn App, out: &mut Vec<LockOut>) {
        let near = self.near.as_ref().and_then(|(_, value, polka)| {
            Some((self.records.get(value)?.clone(), Some(polka.clone())))
        });
        let Some((record, polka)) = near.or_else(|| Some((app.fresh()?, None))) else {
            return;
        };
        let value = record.hash();
        self.proposed = true;
        let vote = self.vote(Step::Propose, Some(value));
        let proposal = Proposal {
            record: record.clone(),
            signed: vote.sign(&self.config.signer),
            polka,
        };
        self.records.insert(value, record);
        self.proposals.insert(self.round, proposal.clone());
        out.push(LockOut::Persist(self.state().to_bytes()));
        out.push(LockOut::Propose(Box::new(proposal)));
    }

    fn turn_prevote(
        &mut self,
        now: u64,
        late: bool,
        app: &dyn App,
        out: &mut Vec<LockOut>,
    ) -> bool {
        let choice = self
            .quorum_for(self.round, Step::Prevote, app)
            .or_else(|| late.then_some(None));
        if let Some(value) = choice {
            // Only what this node finds sound itself: more than a third of liars must not carry it. That it
            // was eligible, honest voters among the `T_hi` have found.
            let value = value.filter(|v| self.records.get(v).is_some_and(|r| app.is_sound(r)));
            if let Some(value) = value {
                let polka = self.signatures(self.round, Step::Prevote, value);
                self.locked = Some((self.round, value));
                self.near = Some((self.round, value, polka.clone()));
                self.polka = Some(polka);
            }
            self.say(Step::Precommit, value, out);
            self.step = Step::Precommit;
            self.deadline = None;
            return true;
        }
        self.arm(now, Step::Prevote, app);
        false
    }

    fn turn_precommit(&mut self, now: u64, late: bool, app: &dyn App) -> bool {
        // Prevotes that come late still tell what to propose next.
        if let Some(Some(value)) = self.quorum_for(self.round, Step::Prevote, app)
            && self.near.as_ref().is_none_or(|(at, ..)| *at < self.round)
            && self.records.contains_key(&value)
        {
            let polka = self.signatures(self.round, Step::Prevote, value);
            self.near = Some((self.round, value, polka));
        }
        if late {
            return self.enter(self.round.saturating_add(1), now);
        }
        self.arm(now, Step::Precommit, app);
        false
    }

    /// Starts the wait of this step as soon as a quorum has spoken in it, whatever it said. Who was heard in
    /// a later step or round is past this one: a liar may have helped it there and then fallen silent.
    fn arm(&mut self, now: u64, step: Step, app: &dyn App) {
        let voted = |step: Step, voter: &NodeId| {
            let votes = self.votes.get(&(self.round, step));
            votes.is_some_and(|votes| votes.contains_key(voter))
        };
        let spoken: u64 = self
            .config
            .before
            .members()
            .filter(|(voter, _)| {
                let later = self.ahead.get(*voter).is_some_and(|at| *at > self.round);
                later || voted(step, voter) || voted(Step::Precommit, voter)
            })
            .map(|(_, member)| u64::from(member.weight))
            .sum();
        if self.deadline.is_none() && rules::is_quorum(spoken, self.needed_of_anybody(app)) {
            self.deadline = Some(now.saturating_add(self.wait(VOTE_US)));
        }
    }

    /// Weight that has to speak before this node goes on without a decision. With fewer than four voters
    /// it is everybody whom the operator has not removed, as far as is known here.
    fn needed_of_anybody(&self, app: &dyn App) -> u64 {
        let before = &self.config.before;
        if before.voters() >= BOOTSTRAP_VOTERS {
            return before.t_hi();
        }
        let all = || before.members().map(|(node, _)| *node).collect();
        let after = app.fresh().and_then(|record| app.members(&record));
        needed(before, &after.unwrap_or_else(all))
    }

    /// What a quorum said in this step: a value, or nil.
    #[expect(
        clippy::option_option,
        reason = "none: there is no quorum; some of none: there is one for nothing"
    )]
    fn quorum_for(&self, round: u32, step: Step, app: &dyn App) -> Option<Option<Hash>> {
        let before = &self.config.before;
        let mut sums: BTreeMap<Option<Hash>, u64> = BTreeMap::new();
        for (voter, (value, _)) in self.votes.get(&(round, step))? {
            let sum = sums.entry(*value).or_default();
            *sum = sum.saturating_add(self.weight(voter));
        }
        sums.into_iter().find_map(|(value, weight)| {
            let needed = match &value {
                None => self.needed_of_anybody(app),
                Some(_) if planted(Bug::PrecommitTLo) && step == Step::Prevote => before.t_lo(),
                Some(v) => needed(before, &app.members(self.records.get(v)?)?),
            };
            rules::is_quorum(weight, needed).then_some(value)
        })
    }

    fn signatures(&self, round: u32, step: Step, value: Hash) -> VoteSet {
        let votes = self.votes.get(&(round, step));
        VoteSet {
            round,
            signatures: votes
                .into_iter()
                .flatten()
                .filter(|(_, (v, _))| *v == Some(value))
                .map(|(voter, (_, signature))| (*voter, *signature))
                .collect(),
        }
    }

    fn decide(&mut self, app: &dyn App, out: &mut Vec<LockOut>) -> bool {
        let rounds: BTreeSet<u32> = self.votes.keys().map(|(round, _)| *round).collect();
        for round in rounds {
            let Some(Some(value)) = self.quorum_for(round, Step::Precommit, app) else {
                continue;
            };
            let Some(record) = self.records.get(&value) else {
                continue;
            };
            let certified = CertifiedEpoch {
                record: record.clone(),
                precommits: self.signatures(round, Step::Precommit, value),
            };
            self.phase = Phase::Decided;
            let mine = self.proposer(round) == Some(self.config.node);
            out.push(LockOut::Decided(Box::new(certified), mine));
            return true;
        }
        false
    }

    pub(super) fn vote(&self, step: Step, value: Option<Hash>) -> EpochVote {
        EpochVote {
            mesh: self.config.before.mesh(),
            number: self.number,
            previous: self.config.before.epoch_hash(),
            round: self.round,
            step,
            value,
            voter: self.config.node,
            incarnation: self.config.incarnation,
        }
    }

    /// Signs a prevote or precommit of this round; the disk first.
    pub(super) fn say(&mut self, step: Step, value: Option<Hash>, out: &mut Vec<LockOut>) {
        if self.own.contains_key(&step) {
            return;
        }
        let signed = self.vote(step, value).sign(&self.config.signer);
        let own = (value, signed.signature);
        self.own.insert(step, own);
        if step == Step::Precommit {
            self.last = Some((self.round, own));
        }
        self.count(self.round, step, self.config.node, own);
        out.push(LockOut::Persist(self.state().to_bytes()));
        out.push(LockOut::Vote(signed));
        if planted(Bug::EpochSendBeforePersist) {
            let last = out.len();
            out.swap(last - 2, last - 1);
        }
    }
}
