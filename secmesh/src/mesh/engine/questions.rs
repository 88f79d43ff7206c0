//! Test questions: asking peers what this node knows the answer to, and answering theirs.

use super::io::RefusalReason;
use super::statements::{number, tell};
use super::{Call, Engine};
use crate::addr::Prefix;
use crate::mesh::crypto::sha256;
use crate::mesh::evidence::{Body, EvidenceMessage, Question, Reveal, Say, SignedAnswer, question};
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::vote::{ActionKind, AttackClass, network_of};

/// Open test questions.
const MAX_QUESTIONS: usize = 16;
/// How long an answer may take, microseconds.
const ANSWER_US: u64 = 30 * 1_000_000;
/// A decision has to be this old, and a peer connected for this long, before it is asked about, microseconds.
const SETTLED_US: u64 = 30 * 1_000_000;
/// Questions that one peer may ask, one per this time, microseconds.
const QUESTION_US: u64 = 1_000_000;

/// A question that was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenQuestion {
    sequence: u64,
    target: NodeId,
    subject: Prefix,
    expected: Say,
    nonce: [u8; 32],
    until_us: u64,
}

fn pick<T>(items: &[T], number: u64) -> Option<&T> {
    let len = u64::try_from(items.len()).ok().filter(|len| *len > 0)?;
    items.get(usize::try_from(number % len).ok()?)
}

fn reveal_of(open: &OpenQuestion, answer: Option<SignedAnswer>) -> Reveal {
    Reveal {
        question: open.sequence,
        target: open.target,
        subject: open.subject,
        expected: open.expected,
        nonce: open.nonce,
        answer,
    }
}

impl Engine {
    /// Whether this node holds an address for hostile: the question that nodes are tested with.
    fn holds_hostile(&self, now: u64, subject: &Prefix) -> bool {
        let blocked = |subject: &Prefix| {
            self.active_block(subject)
                .is_some_and(|d| d.expires_unix_us > now)
        };
        let seen = AttackClass::ALL.iter().any(|class| {
            self.evidence
                .get(&(*subject, *class))
                .is_some_and(|e| e.until_us > now)
        });
        blocked(subject) || seen || network_of(subject).as_ref().is_some_and(blocked)
    }

    /// An address that nobody has anything against, as far as this node knows.
    fn harmless(&self, now: u64, seed: &[u8; 32]) -> Option<Prefix> {
        (0..8_u8).find_map(|turn| {
            let drawn = sha256(&[seed.as_slice(), &[turn]].concat());
            let [a, b, c, d, ..] = drawn;
            // Unicast, and neither "this network" nor loopback.
            let first = 1 + a % 223;
            let subject = Prefix::host(std::net::Ipv4Addr::new(first, b, c, d).into());
            (first != 127 && !self.holds_hostile(now, &subject)).then_some(subject)
        })
    }

    /// Asks a peer a question whose answer this node knows.
    pub(super) fn ask(&mut self, call: &mut Call<'_>, seed: [u8; 32]) {
        let now = call.now;
        let settled = |since: u64| now.saturating_sub(since) >= SETTLED_US;
        let peers: Vec<NodeId> = self
            .statements
            .up_since
            .iter()
            .filter(|(peer, since)| settled(**since) && self.roster.get(peer).is_some())
            .map(|(peer, _)| *peer)
            .collect();
        let Some(target) = pick(&peers, number(&seed, 0)).copied() else {
            return;
        };
        if self.statements.questions.len() >= MAX_QUESTIONS || !self.statements.sure {
            return;
        }
        let blocked: Vec<Prefix> = if number(&seed, 8).is_multiple_of(2) {
            self.decisions
                .values()
                .filter(|d| d.action.kind == ActionKind::Block && !d.action.is_class_2())
                .filter(|d| settled(d.certified_unix_us))
                .filter(|d| d.expires_unix_us > now.saturating_add(2 * ANSWER_US))
                .filter_map(|d| d.action.subject.prefix())
                .collect()
        } else {
            Vec::new()
        };
        let known = pick(&blocked, number(&seed, 16)).copied();
        let (subject, expected) = match known {
            Some(subject) => (subject, Say::Hostile),
            None => match self.harmless(now, &seed) {
                Some(subject) => (subject, Say::Harmless),
                None => return,
            },
        };
        let nonce = sha256(&[seed.as_slice(), b"nonce"].concat());
        let commitment = question::commitment(
            self.mesh,
            self.config.node,
            target,
            &subject,
            expected,
            &nonce,
        );
        let question = Question { target, commitment };
        let Some(sequence) = self.state(call, Body::Question(question)) else {
            return;
        };
        self.statements.questions.insert(
            commitment,
            OpenQuestion {
                sequence,
                target,
                subject,
                expected,
                nonce,
                until_us: now.saturating_add(ANSWER_US),
            },
        );
        let message = EvidenceMessage::Question {
            commitment,
            subject,
        };
        tell(call, target, message);
    }

    pub(super) fn asked(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        commitment: Hash,
        subject: Prefix,
    ) {
        if !subject.is_single() || self.roster.get(&from).is_none() {
            return self.refuse(call, from, RefusalReason::NothingToJudge);
        }
        let last = self.statements.answered.get(&from).copied();
        if last.is_some_and(|last| call.now.abs_diff(last) < QUESTION_US) {
            return self.refuse(call, from, RefusalReason::TooMuchEvidence);
        }
        let roster = &self.roster;
        self.statements
            .answered
            .retain(|peer, _| roster.get(peer).is_some());
        self.statements.answered.insert(from, call.now);
        let say = if self.holds_hostile(call.now, &subject) {
            Say::Hostile
        } else {
            Say::Harmless
        };
        let answer = question::Answer {
            mesh: self.mesh,
            asker: from,
            target: self.config.node,
            commitment,
            subject,
            say,
        }
        .sign(&self.config.signer);
        tell(call, from, EvidenceMessage::Answer { commitment, answer });
    }

    pub(super) fn answered(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        commitment: Hash,
        answer: SignedAnswer,
    ) {
        let open = self.statements.questions.get(&commitment).copied();
        let Some(open) = open.filter(|open| open.target == from) else {
            return self.refuse(call, from, RefusalReason::NothingToJudge);
        };
        let reveal = reveal_of(&open, Some(answer));
        let expected = reveal.expected_answer(self.mesh, self.config.node);
        let genuine = self
            .roster
            .get(&from)
            .is_some_and(|member| answer.verify(&expected, &member.record.vote_key).is_ok());
        if !genuine {
            self.statements.local.failed(from);
            return self.refuse(call, from, RefusalReason::BadSignature);
        }
        self.statements.questions.remove(&commitment);
        // What was right when it was asked may have become wrong since: then nothing is proved.
        let hostile = self.holds_hostile(call.now, &open.subject);
        let still_so = hostile == (open.expected == Say::Hostile);
        if still_so && answer.say != open.expected {
            self.statements.local.failed(from);
        } else {
            self.statements.local.served(from);
        }
        let reveal = reveal_of(&open, still_so.then_some(answer));
        self.state(call, Body::Reveal(reveal));
    }

    /// Ends questions that nobody has answered in time.
    pub(super) fn end_questions(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        let over: Vec<(Hash, OpenQuestion)> = self
            .statements
            .questions
            .iter()
            .filter(|(_, open)| open.until_us <= now)
            .map(|(commitment, open)| (*commitment, *open))
            .collect();
        for (commitment, open) in over {
            self.statements.questions.remove(&commitment);
            self.statements.local.failed(open.target);
            let reveal = reveal_of(&open, None);
            self.state(call, Body::Reveal(reveal));
        }
    }
}
