//! What this node blocked alone while the mesh could not decide: put to the mesh once it can, and recorded.

use std::collections::BTreeMap;

use tracing::info;

use super::core::Agent;
use crate::{addr::Prefix, api::types::Origin, ledger::Record, mesh::engine::QuorumLevel};

/// Blocks that wait at most; further ones end by themselves.
const MAX_WAITING: usize = 4_096;
/// Put to the mesh per look, so that a long absence does not become a flood of votes.
const PER_LOOK: usize = 64;
/// How often it is looked at them, µs.
const LOOK_US: u64 = 1_000_000;

/// How a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The mesh blocks it too.
    ByMesh,
    /// Only this node does.
    Alone,
    /// Nobody does any more.
    Over,
}

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is put to the mesh.
    Proposed,
    /// The mesh has decided the same.
    Ratified,
    /// It has ended and the mesh has not decided the same.
    Expired,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Ratified => "ratified",
            Self::Expired => "expired",
        }
    }
}

#[derive(Debug)]
struct Waiting {
    decision: String,
    proposed: bool,
}

/// The blocks that wait for the mesh.
#[derive(Debug, Default)]
pub(super) struct Ratification {
    impaired: bool,
    waiting: BTreeMap<Prefix, Waiting>,
    looked_us: u64,
    /// How many were put to the mesh, ratified, ended without it, and not kept for want of room.
    pub proposed: u64,
    pub ratified: u64,
    pub expired: u64,
    pub dropped: u64,
}

impl Ratification {
    /// The state of the quorum has changed. What was put to a mesh that cannot decide any more is put to it again
    /// when it can.
    pub fn quorum(&mut self, level: QuorumLevel) {
        self.impaired = matches!(level, QuorumLevel::Isolated | QuorumLevel::Degraded);
        if self.impaired {
            for waiting in self.waiting.values_mut() {
                waiting.proposed = false;
            }
        }
    }

    /// The engine has taken it: this node has voted for it.
    pub fn took(&mut self, subject: &Prefix) {
        if let Some(waiting) = self.waiting.get_mut(subject) {
            waiting.proposed = true;
            self.proposed = self.proposed.saturating_add(1);
        }
    }

    /// This node has blocked for itself.
    pub fn blocked_alone(&mut self, subject: Prefix, decision: &str) {
        if !self.impaired {
            return;
        }
        let known = self.waiting.contains_key(&subject);
        if self.waiting.len() >= MAX_WAITING && !known {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.waiting.insert(
            subject,
            Waiting {
                decision: decision.to_owned(),
                proposed: false,
            },
        );
    }

    /// What is to be done and recorded now. What is to be proposed comes again until it was taken.
    fn look(&mut self, standing: impl Fn(&Prefix) -> Standing) -> Vec<(Prefix, String, Step)> {
        let mut steps = Vec::new();
        let mut proposals = 0;
        for (subject, waiting) in &mut self.waiting {
            let step = match standing(subject) {
                Standing::ByMesh => Step::Ratified,
                Standing::Over => Step::Expired,
                Standing::Alone if self.impaired || waiting.proposed => continue,
                Standing::Alone if proposals >= PER_LOOK => continue,
                Standing::Alone => Step::Proposed,
            };
            if step == Step::Proposed {
                proposals += 1;
            }
            steps.push((*subject, waiting.decision.clone(), step));
        }
        for (subject, _, step) in &steps {
            let count = match step {
                Step::Proposed => continue,
                Step::Ratified => &mut self.ratified,
                Step::Expired => &mut self.expired,
            };
            *count = count.saturating_add(1);
            self.waiting.remove(subject);
        }
        steps
    }
}

impl Agent {
    /// Puts to the mesh what waits for it, if it can decide, and records what became of the rest.
    pub(super) async fn ratify(&mut self) {
        let now = self.clock.unix_us();
        if now.abs_diff(self.ratification.looked_us) < LOOK_US {
            return;
        }
        self.ratification.looked_us = now;
        let book = &self.book;
        let steps = self.ratification.look(|subject| {
            let mut standing = Standing::Over;
            for entry in book.active_on(subject) {
                match entry.origin {
                    Origin::Quorum => return Standing::ByMesh,
                    Origin::Unilateral => standing = Standing::Alone,
                    Origin::Operator | Origin::Quarantine => {}
                }
            }
            standing
        });
        for (subject, decision, step) in steps {
            if step == Step::Proposed && !self.propose(subject).await {
                continue;
            }
            info!(%subject, decision, what = step.name(), "a block of this node alone, made while the mesh could not decide");
            self.record(&Record::Ratification {
                decision,
                subject: subject.to_string(),
                what: step.name().to_owned(),
            });
        }
    }

    /// Puts one block to the mesh. False if there is nothing to show for it any more, or the engine does not
    /// take it now: then it is tried again until the block is over.
    async fn propose(&mut self, subject: Prefix) -> bool {
        let Some(evidence) = self.evidence.get(&subject).copied() else {
            return false;
        };
        self.drive(evidence.about(subject)).await;
        let incidents = self.engine.incidents(Some(&subject));
        let voted = incidents
            .iter()
            .any(|i| i.votes.iter().any(|vote| vote.own));
        if voted || self.engine.active_block(&subject).is_some() {
            self.ratification.took(&subject);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_blocked_alone_in_need_is_put_to_the_mesh_when_it_heals() {
        let mut waiting = Ratification::default();
        waiting.blocked_alone(p("192.0.2.1"), "a");
        assert!(waiting.look(|_| Standing::Alone).is_empty(), "no need");
        waiting.quorum(QuorumLevel::Isolated);
        for (subject, id) in [("192.0.2.2", "b"), ("192.0.2.3", "c"), ("192.0.2.4", "d")] {
            waiting.blocked_alone(p(subject), id);
        }
        assert!(waiting.look(|_| Standing::Alone).is_empty(), "too early");
        waiting.quorum(QuorumLevel::Full);
        let over = |subject: &Prefix| {
            if *subject == p("192.0.2.4") {
                Standing::Over
            } else {
                Standing::Alone
            }
        };
        assert_eq!(
            waiting.look(over),
            [
                (p("192.0.2.2"), "b".to_owned(), Step::Proposed),
                (p("192.0.2.3"), "c".to_owned(), Step::Proposed),
                (p("192.0.2.4"), "d".to_owned(), Step::Expired),
            ]
        );
        let again = waiting.look(|_| Standing::Alone);
        assert_eq!(again.len(), 2, "until it was taken");
        for (subject, ..) in again {
            waiting.took(&subject);
        }
        assert!(waiting.look(|_| Standing::Alone).is_empty(), "once");
        // The quorum falls again, and heals.
        waiting.quorum(QuorumLevel::Degraded);
        waiting.quorum(QuorumLevel::Full);
        let again = waiting.look(|_| Standing::Alone);
        assert_eq!(again.len(), 2, "the votes of before are void by now");
        for (subject, ..) in again {
            waiting.took(&subject);
        }
        let decided = |subject: &Prefix| {
            if *subject == p("192.0.2.2") {
                Standing::ByMesh
            } else {
                Standing::Over
            }
        };
        let last = waiting.look(decided);
        let steps: Vec<Step> = last.iter().map(|(_, _, step)| *step).collect();
        assert_eq!(steps, [Step::Ratified, Step::Expired]);
        assert!(waiting.look(|_| Standing::Over).is_empty());
        assert_eq!(
            (waiting.proposed, waiting.ratified, waiting.expired),
            (4, 1, 2)
        );
    }

    #[test]
    fn it_is_bounded_and_does_not_flood_the_mesh() {
        let mut waiting = Ratification::default();
        waiting.quorum(QuorumLevel::Degraded);
        for n in 0..=u32::try_from(MAX_WAITING).unwrap() {
            let subject = Prefix::host(std::net::Ipv4Addr::from_bits(n).into());
            waiting.blocked_alone(subject, "x");
        }
        assert_eq!((waiting.waiting.len(), waiting.dropped), (MAX_WAITING, 1));
        waiting.quorum(QuorumLevel::Full);
        assert_eq!(waiting.look(|_| Standing::Alone).len(), PER_LOOK);
    }
}
