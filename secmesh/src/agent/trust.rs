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
        evidence::{EvidenceFile, EvidenceFileError, OutcomeKind, Ruling, SignedVerdict},
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
/// Packets that make it no accident.
const MIN_PACKETS: u64 = 16;

/// What is waited for.
#[derive(Debug)]
pub(super) struct TrustWork {
    file: EvidenceFile,
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
        engine.evidence_restored(found.existed && skipped == 0);
        Ok(Self {
            file,
            outcomes: BTreeSet::new(),
            next_question_us: now_unix_us,
            not_kept: 0,
            outcomes_dropped: 0,
        })
    }
}

impl Agent {
    /// Puts a statement on the disk. Own ones are rare, so that waiting for the disk here costs little; they
    /// must be there before they leave.
    pub(super) fn keep_evidence_statement(&mut self, bytes: &[u8], own: bool) {
        if let Err(error) = self.trust.file.append(bytes, own) {
            self.trust.not_kept += 1;
            if own {
                error!(%error, "an own statement is not on the disk: this node says nothing more to its peers until it is restarted; enforcement goes on");
                self.outbox.silence();
            } else {
                warn!(%error, "a peer's statement is not on the disk; it comes again after the next start");
            }
        }
    }

    /// What this node votes on must outlast a crash of all: the disk has the evidence before the vote.
    pub(super) fn sync_evidence(&mut self) -> Result<(), EvidenceFileError> {
        self.trust.file.sync()
    }

    /// A block of the mesh was put into force here: whether its source goes on is evidence.
    pub(super) fn await_outcome(&mut self, id: String, subject: Prefix, now_unix_us: u64) {
        if self.trust.outcomes.len() >= MAX_OUTCOMES {
            self.trust.outcomes_dropped += 1;
            return;
        }
        let due = now_unix_us.saturating_add(LOOK_US);
        self.trust.outcomes.insert((due, id, subject));
    }

    /// Looks at outcomes that are due, and asks a question when it is time.
    pub(super) async fn gather_evidence(&mut self, now: Now) {
        for _ in 0..OUTCOMES_PER_TICK {
            let Some((due, id, subject)) = self.trust.outcomes.first().cloned() else {
                break;
            };
            // A clock that was set back must not make them wait.
            if due > now.unix_us && due <= now.unix_us.saturating_add(LOOK_US) {
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
            self.await_outcome(id, subject, now.unix_us.saturating_add(QUIET_US));
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

    /// What the operator says of blocks of the mesh, before they are ended.
    pub(super) async fn judge(
        &mut self,
        subject: Prefix,
        false_positive: bool,
        verdict: Option<String>,
    ) -> Result<(), String> {
        if let Some(text) = verdict {
            let bytes = BASE64_STANDARD
                .decode(text)
                .map_err(|e| format!("the signed verdict is not base64: {e}"))?;
            let signed = SignedVerdict::from_bytes(&bytes)
                .map_err(|e| format!("the signed verdict is not understood: {e}"))?;
            signed
                .verify(&self.engine.genesis().operator_key)
                .map_err(|e| format!("the signed verdict is refused: {e}"))?;
            if signed.verdict.subject != subject {
                return Err(format!(
                    "the signed verdict is about {}, not {subject}",
                    signed.verdict.subject
                ));
            }
            info!(%subject, ruling = %signed.verdict.ruling, "the operator's verdict");
            self.drive(Input::Verdict(Box::new(signed))).await;
        } else if false_positive {
            let decisions: Vec<DecisionId> = self
                .engine
                .decisions_about(&subject)
                .map(|decision| decision.id)
                .collect();
            let packets = self.table.get(&subject).map_or(0, |entry| entry.hits);
            for decision in decisions {
                self.drive(Input::Outcome {
                    decision,
                    kind: OutcomeKind::Miss,
                    packets,
                })
                .await;
            }
        }
        Ok(())
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
                    made_unix_us: reference.made_at_us,
                    subject: reference.subject,
                    decision: reference.decision.map(|d| d.to_string()),
                })
                .collect(),
        }
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

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}

/// Fixed point as a number; exact.
fn points(fixed: u64) -> f64 {
    u32::try_from(fixed).map_or(f64::MAX, f64::from) / f64::from(u32::try_from(ONE).unwrap_or(1))
}
