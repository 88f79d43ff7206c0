//! What one epoch's statements say, before anybody believes them.

use std::collections::{BTreeMap, BTreeSet};

use super::fold::{Members, Rules};
use super::history::{MAX_BY_AUTHOR, MAX_REFERENCES, Reference};
use crate::addr::Prefix;
use crate::mesh::admission::NodeRecord;
use crate::mesh::evidence::{
    Body, Dossier, EvidenceSet, OutcomeKind, ProofKind, Reveal, Ruling, Statement,
};
use crate::mesh::ids::{DecisionId, Hash, NodeId};
use crate::mesh::simulation::{Bug, planted};

/// What nodes report of each other; each kind is counted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Report {
    OutcomeHit,
    OutcomeMiss,
    Right,
    Wrong,
    Failed,
    Succeeded,
}

impl Report {
    pub(super) const COUNT: usize = 6;

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// Results of signature checks, so that folding again costs none. A node's id names its key, so a result
/// never changes.
#[derive(Debug, Clone, Default)]
pub struct Checks(BTreeMap<(NodeId, u64, u8), bool>);

impl Checks {
    fn get(&mut self, key: (NodeId, u64, u8), check: impl FnOnce() -> bool) -> bool {
        *self.0.entry(key).or_insert_with(check)
    }

    /// Forgets the results for statements of these authors.
    pub(super) fn forget(&mut self, gone: &BTreeSet<NodeId>) {
        self.0.retain(|(author, ..), _| !gone.contains(author));
    }

    #[cfg(test)]
    pub(super) fn authors(&self) -> BTreeSet<NodeId> {
        self.0.keys().map(|(author, ..)| *author).collect()
    }
}

/// What one statement comes to.
enum Finding {
    Nothing,
    Forged,
    /// Of whom, what.
    Reports(Vec<(NodeId, Report)>),
    Verdict {
        issued_at_us: u64,
        id: Hash,
        ruling: Ruling,
        voters: Vec<NodeId>,
    },
    Caught(NodeId, ProofKind),
    /// About somebody who is no member (yet).
    Later,
}

/// What one epoch's statements say.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    /// Who was caught, by what; with the first statement that says so.
    pub(super) caught: BTreeMap<(NodeId, ProofKind), Reference>,
    /// By (of whom, kind, by whom): how often.
    pub(super) reports: BTreeMap<(NodeId, Report, NodeId), u32>,
    /// The operator's verdicts with the voters they concern.
    pub(super) verdicts: BTreeMap<(u64, Hash), (Ruling, BTreeSet<NodeId>)>,
    pub(super) because: BTreeMap<(NodeId, Report), Vec<Reference>>,
    pub(super) because_verdict: BTreeMap<(NodeId, Ruling), Vec<Reference>>,
    /// Statements to look at again when there are other members.
    pub(super) later: BTreeSet<(NodeId, u64)>,
}

fn reference(statement: &Statement) -> Reference {
    let head = statement.head();
    let (subject, decision): (Option<Prefix>, Option<DecisionId>) = match &statement.body {
        Body::Outcome(outcome) => {
            let votes = outcome.dossier.votes();
            (votes.action.subject.prefix(), Some(votes.decision()))
        }
        Body::Verdict(signed, dossier) => (
            Some(signed.verdict.subject),
            Some(dossier.votes().decision()),
        ),
        Body::Reveal(reveal) => (Some(reveal.subject), None),
        Body::Remediation(remediation) => (None, Some(remediation.decision)),
        Body::Question(_) | Body::Misconduct(_) => (None, None),
    };
    Reference {
        author: head.author,
        sequence: head.sequence,
        made_at_us: head.made_at_us,
        subject,
        decision,
    }
}

fn push(list: &mut Vec<Reference>, statement: &Statement) {
    let author = statement.head().author;
    let by_author = list.iter().filter(|r| r.author == author).count();
    if list.len() < MAX_REFERENCES && by_author < MAX_BY_AUTHOR {
        list.push(reference(statement));
    }
}

/// Looks at statements with the keys of one epoch's members.
pub(super) struct Reader<'a> {
    pub(super) set: &'a EvidenceSet,
    pub(super) rules: &'a Rules,
    pub(super) members: &'a Members,
    pub(super) checks: &'a mut Checks,
    /// Verdicts on decisions of earlier epochs have counted, or come too late.
    pub(super) from: u64,
}

impl Reader<'_> {
    /// The members that a dossier's votes are of; `None` if one of them never signed it.
    fn voters(&mut self, at: (NodeId, u64), dossier: &Dossier) -> Option<Vec<NodeId>> {
        if dossier.votes().mesh != self.rules.mesh {
            return None;
        }
        let mut voters = Vec::new();
        for (index, signed) in (1_u8..).zip(dossier.votes().signed_votes()) {
            let vote = &signed.vote;
            let Some(member) = self.members.get(&vote.voter) else {
                continue;
            };
            let genuine = self.checks.get((at.0, at.1, index), || {
                NodeRecord::derive_id(&member.keys.vote, vote.incarnation) == vote.voter
                    && signed.verify(&member.keys.vote).is_ok()
            });
            if !genuine {
                return None;
            }
            voters.push(vote.voter);
        }
        Some(voters)
    }

    fn answered(&mut self, at: (NodeId, u64), reveal: &Reveal) -> Finding {
        let (author, sequence) = at;
        let asked = (reveal.question < sequence)
            .then(|| self.set.get(&author, reveal.question))
            .flatten();
        let Some(Body::Question(question)) = asked.map(|statement| &statement.body) else {
            return Finding::Forged;
        };
        if question.target != reveal.target
            || question.commitment != reveal.commitment(self.rules.mesh, author)
        {
            return Finding::Forged;
        }
        let Some(answer) = reveal.answer else {
            return Finding::Nothing;
        };
        let Some(member) = self.members.get(&reveal.target) else {
            return Finding::Nothing;
        };
        let expected = reveal.expected_answer(self.rules.mesh, author);
        let genuine = self.checks.get((author, sequence, 0), || {
            answer.verify(&expected, &member.keys.vote).is_ok()
        });
        if !genuine {
            return Finding::Forged;
        }
        let report = if answer.say == reveal.expected || planted(Bug::WrongIsRight) {
            Report::Right
        } else {
            Report::Wrong
        };
        Finding::Reports(vec![(reveal.target, report)])
    }

    fn look(&mut self, statement: &Statement) -> Finding {
        let head = statement.head();
        let at = (head.author, head.sequence);
        let mesh = self.rules.mesh;
        match &statement.body {
            Body::Question(_) => Finding::Nothing,
            Body::Reveal(reveal) => self.answered(at, reveal),
            Body::Outcome(outcome) => {
                let report = match outcome.kind {
                    OutcomeKind::Hit => Report::OutcomeHit,
                    OutcomeKind::Miss => Report::OutcomeMiss,
                };
                self.voters(at, &outcome.dossier)
                    .map_or(Finding::Forged, |voters| {
                        Finding::Reports(voters.into_iter().map(|v| (v, report)).collect())
                    })
            }
            Body::Verdict(signed, dossier) => {
                let verdict = &signed.verdict;
                let fits = verdict.mesh == mesh
                    && dossier.votes().action.subject == verdict.subject
                    && verdict.incidents.contains(&dossier.votes().incident());
                let operator = &self.rules.operator_key;
                if !fits
                    || !self
                        .checks
                        .get((at.0, at.1, 0), || signed.verify(operator).is_ok())
                {
                    return Finding::Forged;
                }
                match self.voters(at, dossier) {
                    None => Finding::Forged,
                    // The voters signed the number. Who stated the verdict then may be gone with what it stated.
                    Some(_) if dossier.votes().epoch < self.from => Finding::Nothing,
                    Some(voters) => Finding::Verdict {
                        issued_at_us: verdict.issued_at_us,
                        id: verdict.id(),
                        ruling: verdict.ruling,
                        voters,
                    },
                }
            }
            Body::Misconduct(misconduct) => {
                let culprit = misconduct.culprit();
                let Some(member) = self.members.get(&culprit) else {
                    return Finding::Later;
                };
                let holds = self
                    .checks
                    .get((at.0, at.1, 0), || misconduct.holds(mesh, &member.keys));
                if holds || planted(Bug::ProofsUnchecked) {
                    Finding::Caught(culprit, misconduct.kind())
                } else {
                    Finding::Forged
                }
            }
            Body::Remediation(remediation) => Finding::Reports(vec![(
                remediation.node,
                if remediation.succeeded {
                    Report::Succeeded
                } else {
                    Report::Failed
                },
            )]),
        }
    }

    /// Adds one statement to the epoch's.
    pub(super) fn read(&mut self, statement: &Statement, into: &mut Epoch) {
        let head = statement.head();
        if !self.members.contains_key(&head.author) {
            // What outsiders report is nobody's evidence, but a proof is one whoever has it.
            if let Body::Misconduct(misconduct) = &statement.body {
                match self.look(statement) {
                    Finding::Caught(culprit, kind) => {
                        let reference = || reference(statement);
                        into.caught.entry((culprit, kind)).or_insert_with(reference);
                    }
                    _ if !self.members.contains_key(&misconduct.culprit()) => {
                        into.later.insert((head.author, head.sequence));
                    }
                    _ => {}
                }
            }
            return;
        }
        match self.look(statement) {
            Finding::Nothing => {}
            Finding::Later => {
                into.later.insert((head.author, head.sequence));
            }
            Finding::Forged => {
                into.caught
                    .entry((head.author, ProofKind::ForgedEvidence))
                    .or_insert_with(|| reference(statement));
            }
            Finding::Caught(culprit, kind) => {
                into.caught
                    .entry((culprit, kind))
                    .or_insert_with(|| reference(statement));
            }
            Finding::Reports(reports) => {
                let max = self.rules.params.reports_per_epoch;
                for (node, report) in reports {
                    let count = into.reports.entry((node, report, head.author)).or_default();
                    *count = count.saturating_add(1).min(max);
                    // What nodes say of themselves is no reason for anything.
                    if node != head.author {
                        push(into.because.entry((node, report)).or_default(), statement);
                    }
                }
            }
            Finding::Verdict {
                issued_at_us,
                id,
                ruling,
                voters,
            } => {
                for voter in &voters {
                    push(
                        into.because_verdict.entry((*voter, ruling)).or_default(),
                        statement,
                    );
                }
                let verdict = into.verdicts.entry((issued_at_us, id));
                verdict
                    .or_insert((ruling, BTreeSet::new()))
                    .1
                    .extend(voters);
            }
        }
    }
}
