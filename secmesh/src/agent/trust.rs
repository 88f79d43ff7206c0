//! Evidence on the nodes: outcomes from the kernel's counters, verdicts and questions; and what is shown.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tracing::{error, info, warn};

use super::{
    core::{Agent, QUIET_US},
    requests::Answer,
};
use crate::{
    addr::Prefix,
    api::{
        trust::{TrustChange, TrustNode, TrustReason, TrustTotals, TrustView, VerdictTerms},
        types::{DecisionState, Origin},
    },
    entropy,
    mesh::{
        engine::{Engine, Input},
        evidence::{
            EvidenceFile, EvidenceFileError, OutcomeKind, Ruling,
            store::{MAX_FILE, stored_bytes},
        },
        ids::{DecisionId, NodeId},
        trust::{Change, ONE, Params, Standing},
    },
    respond::Now,
    state::StateDir,
};

/// Blocks whose outcome is waited for.
const MAX_OUTCOMES: usize = 4096;
/// Outcomes looked at per tick.
const OUTCOMES_PER_TICK: usize = 256;
/// How long after a decision its source must still come, µs.
const STILL_COMES_US: u64 = 5_000_000;
/// When an outcome is looked at first, and again, µs.
const LOOK_US: u64 = 10_000_000;
/// The longest that an outcome is waited for at a time, µs.
const LONGEST_US: u64 = LOOK_US + QUIET_US;
/// Packets that make it no accident.
const MIN_PACKETS: u64 = 16;

/// A file shorter than this is not written anew while the agent runs: it would stand still for that.
const CROWDED: u64 = MAX_FILE / 2;
/// So many bytes of no use are let be.
const LITTLE: u64 = 1 << 20;

/// What is waited for.
#[derive(Debug)]
pub(super) struct TrustWork {
    file: EvidenceFile,
    /// From which length on it is looked at how much of the file is still of use.
    crowded: u64,
    /// When to look at a decision's outcome, unix µs.
    outcomes: BTreeSet<(u64, String, Prefix)>,
    /// When the next test question is asked, unix µs.
    next_question_us: u64,
    /// Statements that the disk did not take.
    pub(super) not_kept: u64,
    /// Blocks whose outcome nobody waits for, because too many do.
    pub(super) outcomes_dropped: u64,
}

impl TrustWork {
    /// Opens the evidence log and gives the engine what is in it.
    pub(super) fn open(
        state: &StateDir,
        engine: &mut Engine,
        now_unix_us: u64,
    ) -> Result<Self, EvidenceFileError> {
        let mesh = engine.genesis().mesh_id();
        let (file, found) = EvidenceFile::open(state.path(), mesh, engine.node())?;
        if found.truncated > 0 {
            warn!(
                bytes = found.truncated,
                "the evidence log ended in an unfinished statement (a crash); it was cut off"
            );
        }
        let mut skipped = 0_usize;
        for statement in &found.statements {
            skipped += usize::from(engine.restore_statement(statement).is_err());
        }
        if skipped > 0 {
            warn!(skipped, "statements of another version, left out");
        }
        // The file may be an older copy, or have lost its end: what this node has stated, its peers say.
        engine.evidence_restored(false);
        let mut work = Self {
            file,
            crowded: 0,
            outcomes: BTreeSet::new(),
            next_question_us: now_unix_us,
            not_kept: 0,
            outcomes_dropped: 0,
        };
        // What this program cannot read, a later one may.
        if skipped == 0 {
            work.tidy(engine);
        }
        Ok(work)
    }

    /// Writes the evidence log anew without what this node has let go of, if that is the greater part.
    fn tidy(&mut self, engine: &Engine) {
        let before = self.file.bytes();
        if before < self.crowded {
            return;
        }
        let useful = stored_bytes(engine.evidence());
        let most = useful.saturating_mul(2).saturating_add(LITTLE);
        self.crowded = most.max(CROWDED);
        if before < most {
            return;
        }
        let statements = engine.evidence().iter().map(|s| s.to_bytes());
        match self.file.rewrite(statements) {
            Ok(()) => info!(
                before,
                after = self.file.bytes(),
                "the evidence log was written anew without the statements of nodes that have left"
            ),
            Err(error) => {
                warn!(%error, "the evidence log keeps the statements of nodes that have left");
            }
        }
    }

    fn wait(&mut self, due: u64, id: String, subject: Prefix) {
        if self.outcomes.len() >= MAX_OUTCOMES {
            self.outcomes_dropped += 1;
            return;
        }
        self.outcomes.insert((due, id, subject));
    }
}

impl Agent {
    /// Puts a statement on the disk. Own ones are rare, so that waiting for the disk here costs little; they
    /// must be there before they leave.
    pub(super) fn keep_evidence_statement(&mut self, bytes: &[u8], own: bool) {
        if let Err(error) = self.trust.file.append(bytes, own) {
            self.trust.not_kept += 1;
            if own {
                error!(%error, "an own statement is not on the disk: this node votes and states nothing more until it is restarted; enforcement and the witnessing of ledgers go on");
                self.outbox.silence();
            } else {
                warn!(%error, "a peer's statement is not on the disk; it comes again after the next start");
            }
        }
        self.trust.tidy(&self.engine);
    }

    /// What this node votes on must outlast a crash of all: the disk has the evidence before the vote.
    pub(super) fn sync_evidence(&mut self) -> Result<(), EvidenceFileError> {
        self.trust.file.sync()
    }

    /// A block of the mesh was put into force here: whether its source goes on is evidence.
    pub(super) fn await_outcome(&mut self, id: String, subject: Prefix, now_unix_us: u64) {
        self.trust.wait(first_look(now_unix_us), id, subject);
    }

    /// Looks at outcomes that are due, and asks a question when it is time.
    pub(super) async fn gather_evidence(&mut self, now: Now) {
        for _ in 0..OUTCOMES_PER_TICK {
            let Some((due, id, subject)) = self.trust.outcomes.first().cloned() else {
                break;
            };
            if !is_due(due, now.unix_us) {
                break;
            }
            self.trust.outcomes.pop_first();
            self.look_at_outcome(now, id, subject).await;
        }
        let interval = self.options.config.trust.question_interval;
        if self.options.config.trust.questions
            && (now.unix_us >= self.trust.next_question_us
                || self.trust.next_question_us > now.unix_us.saturating_add(2 * micros(interval)))
        {
            self.ask_question(now, interval).await;
        }
    }

    async fn look_at_outcome(&mut self, now: Now, id: String, subject: Prefix) {
        let Some(certified) = self
            .book
            .active_on(&subject)
            .find(|e| e.id == id && e.origin == Origin::Quorum && e.state == DecisionState::Active)
            .map(|e| e.certified_unix_us.unwrap_or(e.created_unix_us))
        else {
            return;
        };
        let entry = self.table.get(&subject);
        let came = entry.as_ref().is_some_and(|entry| {
            entry.hits >= MIN_PACKETS
                && self
                    .kernel_time(entry.last_hit_ns)
                    .is_some_and(|last| last >= certified.saturating_add(STILL_COMES_US))
        });
        if !came {
            self.trust.wait(next_look(now.unix_us), id, subject);
            return;
        }
        if let Ok(decision) = id.parse::<DecisionId>() {
            self.drive(Input::Outcome {
                decision,
                kind: OutcomeKind::Hit,
                packets: entry.map_or(0, |entry| entry.hits),
            })
            .await;
        }
    }

    async fn ask_question(&mut self, now: Now, interval: Duration) {
        let mut seed = [0; 32];
        if let Err(error) = entropy::fill(&mut seed) {
            warn!(%error, "no test question without random bytes");
        } else {
            self.drive(Input::Question { seed }).await;
        }
        // Somewhere between half the interval and one and a half, so that nobody can expect it.
        let micros = micros(interval);
        let jitter = seed
            .iter()
            .take(8)
            .fold(0_u64, |n, b| n << 8 | u64::from(*b))
            % micros.max(1);
        self.trust.next_question_us = now.unix_us.saturating_add(micros / 2 + jitter);
    }

    pub(super) fn verdict_terms(&self, subject: Prefix) -> Result<VerdictTerms, String> {
        let now = self.clock.unix_us();
        let draft = self
            .engine
            .draft_verdict(subject, Ruling::FalsePositive, now)
            .ok_or_else(|| {
                format!("no block of the mesh on exactly {subject} is in force, so there is nothing to judge; `secmesh decisions list` shows what is")
            })?;
        Ok(VerdictTerms {
            verdict: BASE64_STANDARD.encode(draft.to_bytes()),
        })
    }

    /// The answer to `secmesh trust`.
    pub(super) fn trust_view(&mut self, only: Option<&str>) -> Answer {
        let report = self.engine.trust();
        let me = self.engine.node();
        let nodes: Vec<TrustNode> = self
            .engine
            .roster()
            .members()
            .filter(|(node, member)| {
                only.is_none_or(|wanted| {
                    !wanted.is_empty()
                        && (member.record.name.as_str() == wanted
                            || node.to_string().starts_with(wanted))
                })
            })
            .map(|(node, member)| {
                let trust = report.nodes.get(node).cloned().unwrap_or_default();
                let standing = &trust.standing;
                TrustNode {
                    id: node.to_string(),
                    name: member.record.name.to_string(),
                    target: trust.weight,
                    epoch_weight: u64::from(member.weight),
                    votes_with: if self.engine.liars().contains(node) {
                        0
                    } else {
                        u64::from(member.weight)
                    },
                    alpha: points(standing.alpha),
                    beta: points(standing.beta),
                    per_mille: standing.per_mille(),
                    strikes: standing.strikes,
                    proofs: standing.proofs.clone(),
                    idle_epochs: standing.idle_epochs,
                    statements: trust.statements,
                    local_per_mille: self.engine.local_trust().score(node),
                    this_node: *node == me,
                    changes: trust.changes.iter().map(|c| self.change_view(c)).collect(),
                }
            })
            .collect();
        if let (Some(wanted), true) = (only, nodes.is_empty()) {
            return Err(format!(
                "no node has the name, or an id that begins with, `{wanted}`; `secmesh peers` shows them"
            ));
        }
        let view = TrustView {
            epoch: report.epoch,
            epoch_s: u64::from(self.engine.genesis().params.epoch_s),
            complete: report.whole,
            statements: self.engine.evidence().len(),
            frontier: self.engine.evidence().frontier_hash().to_string(),
            nodes,
        };
        serde_json::to_value(&view).map_err(|e| e.to_string())
    }

    fn change_view(&self, change: &Change) -> TrustChange {
        TrustChange {
            epoch: change.epoch,
            cause: change.cause,
            hits: change.hits,
            misses: change.misses,
            strikes: change.strikes,
            because: change
                .because
                .iter()
                .map(|reference| TrustReason {
                    author: reference.author.to_string(),
                    author_name: self.name_of(&reference.author),
                    sequence: reference.sequence,
                    made_unix_us: self.plausible(reference.made_at_us),
                    subject: reference.subject,
                    decision: reference.decision.map(|d| d.to_string()),
                })
                .collect(),
        }
    }

    /// A time that an author states, moved to where it can be: not before the mesh was, and not after now.
    fn plausible(&self, made_at_us: u64) -> u64 {
        let created = self.engine.genesis().created_unix_us;
        between(made_at_us, created, self.clock.unix_us())
    }

    /// For `status`.
    pub(super) fn trust_totals(&mut self) -> TrustTotals {
        let report = self.engine.trust();
        let full = Standing::default().weight(&Params::default());
        TrustTotals {
            statements: self.engine.evidence().len(),
            lowered: report
                .nodes
                .iter()
                .filter(|(_, trust)| trust.weight < full)
                .map(|(node, trust)| (self.name_of(node), trust.weight))
                .collect(),
        }
    }

    /// The weight that follows from the evidence, for `peers`.
    pub(super) fn trust_weights(&mut self) -> impl Fn(&NodeId) -> u32 + use<> {
        let report = self.engine.trust();
        move |node| report.nodes.get(node).map_or(0, |trust| trust.weight)
    }
}

/// The time nearest to `stated` that is neither before `first` nor after `last`.
const fn between(stated: u64, first: u64, last: u64) -> u64 {
    if stated > last {
        last
    } else if stated < first {
        first
    } else {
        stated
    }
}

/// When to look at what has come of a block that is in force from now on.
const fn first_look(now_unix_us: u64) -> u64 {
    now_unix_us.saturating_add(LOOK_US)
}

/// When to look again at one whose source is quiet.
const fn next_look(now_unix_us: u64) -> u64 {
    now_unix_us.saturating_add(LONGEST_US)
}

/// Whether to look at an outcome. A clock that was set back must not make it wait.
const fn is_due(due: u64, now_unix_us: u64) -> bool {
    due <= now_unix_us || due > now_unix_us.saturating_add(LONGEST_US)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}

/// Fixed point as a number; exact.
fn points(fixed: u64) -> f64 {
    u32::try_from(fixed).map_or(f64::MAX, f64::from) / f64::from(u32::try_from(ONE).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::crypto::Signer;
    use crate::mesh::engine::{EngineConfig, Output, Policy};
    use crate::mesh::evidence::{Body, Remediation, Statement};
    use crate::mesh::ids::Hash;
    use crate::mesh::testing::{T0, genesis, node_id, records, signer};

    struct NoPolicy;

    impl Policy for NoPolicy {
        fn vetoes(&self, _: &Prefix) -> Option<String> {
            None
        }

        fn is_quiet(&self, _: &Prefix) -> bool {
            true
        }
    }

    fn engine() -> Engine {
        let config = EngineConfig {
            genesis: genesis(),
            node: node_id(1),
            incarnation: 1,
            signer: Signer::from_secret(&[1; 32]),
            evidence_ttl_s: 60,
        };
        Engine::new(config, records(&["a", "b", "c", "d"]))
    }

    /// What the engine states when it is told that something helped, or not.
    fn states(engine: &mut Engine, succeeded: bool) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let input = Input::Remediated {
            node: node_id(2),
            decision: DecisionId([1; 32]),
            succeeded,
        };
        engine.handle(T0, input, &NoPolicy, &mut out);
        out.into_iter()
            .filter_map(|output| match output {
                Output::KeepEvidence { bytes, own: true } => Some(bytes),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_node_with_a_log_that_may_be_an_older_copy_hears_its_peers_before_it_states_anything() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temp.path().join("state")).unwrap();
        let mut before = engine();
        let mut work = TrustWork::open(&state, &mut before, T0).unwrap();
        before.evidence_restored(true);
        let stated = states(&mut before, true);
        assert_eq!(stated.len(), 1);
        work.file.append(&stated[0], true).unwrap();
        drop(work);
        let mut after = engine();
        TrustWork::open(&state, &mut after, T0).unwrap();
        assert_eq!(after.evidence().head(&node_id(1)).size, 1);
        assert_eq!(states(&mut after, false), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_log_that_is_mostly_of_no_use_is_written_anew_at_the_start() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temp.path().join("state")).unwrap();
        let mut before = engine();
        let mut work = TrustWork::open(&state, &mut before, T0).unwrap();
        before.evidence_restored(true);
        let own = states(&mut before, true);
        work.file.append(&own[0], true).unwrap();
        let body = Body::Remediation(Remediation {
            node: node_id(2),
            decision: DecisionId([1; 32]),
            succeeded: true,
        });
        // Of a node that was never in an epoch that is known here, as of one that has left.
        let mesh = before.genesis().mesh_id();
        let empty = (0, Hash(crate::merkle::empty_root()));
        let gone = Statement::new(mesh, &signer(9), node_id(9), empty, T0, body).to_bytes();
        while work.file.bytes() < LITTLE + 4_096 {
            work.file.append(&gone, false).unwrap();
        }
        let mut after = engine();
        let work = TrustWork::open(&state, &mut after, T0).unwrap();
        assert!(work.file.bytes() < 4_096, "{}", work.file.bytes());
        drop(work);
        let mut again = engine();
        let mut work = TrustWork::open(&state, &mut again, T0).unwrap();
        assert_eq!(again.evidence().head(&node_id(1)).size, 1);
        assert_eq!(again.evidence().len(), 1);
        // Little is let be.
        work.file.append(&gone, true).unwrap();
        let bytes = work.file.bytes();
        let work = TrustWork::open(&state, &mut engine(), T0).unwrap();
        assert_eq!(work.file.bytes(), bytes);
    }

    #[test]
    fn a_stated_time_is_shown_where_it_can_be() {
        for (stated, shown) in [(0, 10), (10, 10), (15, 15), (20, 20), (u64::MAX, 20)] {
            assert_eq!(between(stated, 10, 20), shown);
        }
        // A clock that is behind the genesis: nothing was made in the future.
        assert_eq!(between(15, 10, 5), 5);
    }

    #[test]
    fn an_outcome_is_looked_at_when_it_is_due_and_not_before() {
        let now = 1_700_000_000_000_000;
        for due in [first_look(now), next_look(now)] {
            assert!(due > now && !is_due(due, now) && !is_due(due, due - 1));
            assert!(is_due(due, due));
            // The clock was set back by an hour.
            assert!(is_due(due, now - 3_600_000_000));
        }
    }
}
