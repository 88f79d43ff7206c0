//! What wrong answers to test questions have to cost, counted anew.

use std::collections::BTreeMap;

use secmesh::mesh::epoch::CertifiedEpoch;
use secmesh::mesh::evidence::{Body, OutcomeKind, Ruling};
use secmesh::mesh::ids::NodeId;

use crate::oracle::{Oracle, Violation, broken};

/// What was said of nodes, by (of whom, by whom).
#[derive(Debug, Default)]
pub struct Heard {
    wrong: BTreeMap<(NodeId, NodeId), u32>,
    right: BTreeMap<(NodeId, NodeId), u32>,
    hits: BTreeMap<(NodeId, NodeId), u32>,
    /// An operator found that a block was right: that speaks for whoever confirmed it.
    praised: bool,
}

impl Heard {
    /// Takes a statement.
    pub fn take(&mut self, author: NodeId, body: &Body) {
        match body {
            Body::Reveal(reveal) => {
                let Some(answer) = reveal.answer else { return };
                let right = answer.say == reveal.expected;
                let into = if right {
                    &mut self.right
                } else {
                    &mut self.wrong
                };
                *into.entry((reveal.target, author)).or_default() += 1;
            }
            Body::Outcome(outcome) if outcome.kind == OutcomeKind::Hit => {
                for vote in outcome.dossier.votes().signed_votes() {
                    *self.hits.entry((vote.vote.voter, author)).or_default() += 1;
                }
            }
            Body::Verdict(signed, _) => {
                self.praised |= signed.verdict.ruling == Ruling::TruePositive;
            }
            _ => {}
        }
    }

    /// The most that anybody reports of this kind of a node.
    fn most(of: &BTreeMap<(NodeId, NodeId), u32>, node: &NodeId) -> u32 {
        let about = of.iter().filter(|((of, _), _)| of == node);
        about.map(|(_, count)| *count).max().unwrap_or(0)
    }
}

impl Oracle {
    /// An epoch that rests on what was heard: the liars whose wrong answers are vouched for weigh less than in the
    /// epoch before. Gives how many there are.
    ///
    /// Only as long as nobody's weight has changed: then what more than a third of the weight vouches for follows
    /// from the reports alone.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn judges(&self, epoch: &CertifiedEpoch, heard: &Heard) -> Result<u64, Violation> {
        let record = &epoch.record;
        let weights = |number: u64| {
            let epoch = self.epochs.get(self.numbered.get(&number)?)?;
            let voters = epoch.voters.iter();
            Some(
                voters
                    .map(|(n, v)| (*n, v.weight))
                    .collect::<BTreeMap<_, _>>(),
            )
        };
        let (Some(first), Some(now)) = (weights(1), weights(record.number)) else {
            return Ok(0);
        };
        let unchanged = (1..record.number).all(|number| weights(number).as_ref() == Some(&first));
        if !unchanged || heard.praised || first.len() < 4 {
            return Ok(0);
        }
        let total: u64 = first.values().sum();
        let mut fallen = 0;
        for liar in &self.liars {
            let (Some(was), Some(is)) = (first.get(liar), now.get(liar)) else {
                continue;
            };
            let mut reports: Vec<(u32, u64)> = heard
                .wrong
                .iter()
                .filter(|((of, by), _)| of == liar && !self.liars.contains(by))
                .filter_map(|((_, by), count)| Some((*count, *first.get(by)?)))
                .collect();
            reports.sort_unstable_by_key(|(count, _)| std::cmp::Reverse(*count));
            let mut weight = 0;
            let vouched = reports.iter().find_map(|(count, own)| {
                weight += own;
                (weight > total / 3).then_some(*count)
            });
            // No more than eight of one reporter count in an epoch; two misses each, and two hits at most.
            let wrong = vouched.unwrap_or(0).min(8);
            let hits = Heard::most(&heard.right, liar) + Heard::most(&heard.hits, liar);
            if wrong == 0 || hits >= 2 * wrong {
                continue;
            }
            if is >= was {
                return broken(
                    "answers",
                    format!(
                        "{liar} has answered {wrong} test questions wrongly and weighs {is} in epoch {}",
                        record.number
                    ),
                );
            }
            fallen += 1;
        }
        Ok(fallen)
    }
}
