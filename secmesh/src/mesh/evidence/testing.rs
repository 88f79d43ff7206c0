//! Fixtures: logs of the test nodes.

use super::question::commitment;
use super::*;
use crate::addr::Prefix;
use crate::mesh::genesis::Params;
use crate::mesh::ids::{Hash, to_hex};
use crate::mesh::message::{EquivocationProof, Message};
use crate::mesh::testing::*;
use crate::mesh::vote::{Action, AttackClass, Verdict};

/// A set that the tests' nodes write to.
#[derive(Debug, Clone)]
pub struct Logs {
    pub set: EvidenceSet,
    pub all: Vec<Statement>,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            set: EvidenceSet::new(genesis().mesh_id()),
            all: Vec::new(),
        }
    }
}

impl Logs {
    /// Node `i` states something at `now`.
    pub fn says(&mut self, i: u8, now: u64, body: Body) -> u64 {
        let head = self.set.head(&node_id(i));
        let at = (head.size, head.root);
        let statement = Statement::new(self.set.mesh(), &signer(i), node_id(i), at, now, body);
        self.all.push(statement.clone());
        assert_eq!(self.set.insert(statement, usize::MAX), Inserted::New);
        head.size
    }

    /// Node `asker` asks `target`, who says `say` where `expected` is right.
    pub fn question(&mut self, asker: u8, target: u8, expected: Say, say: Say) {
        let mesh = self.set.mesh();
        let (from, to) = (node_id(asker), node_id(target));
        let nonce = [u8::try_from(self.all.len() % 256).unwrap(); 32];
        let commitment = commitment(mesh, from, to, &subject(), expected, &nonce);
        let asked = Question {
            target: to,
            commitment,
        };
        let question = self.says(asker, T0, Body::Question(asked));
        let mut reveal = Reveal {
            question,
            target: to,
            subject: subject(),
            expected,
            nonce,
            answer: None,
        };
        let answer = Answer {
            say,
            ..reveal.expected_answer(mesh, from)
        };
        reveal.answer = Some(answer.sign(&signer(target)));
        self.says(asker, T0, Body::Reveal(reveal));
    }
}

/// Votes of these nodes for a block of `subject`.
pub fn dossier(subject: Prefix, voters: &[u8]) -> Dossier {
    let roster = roster(&["a", "b", "c", "d", "e", "f", "g"]);
    let block = Action::block(subject, AttackClass::SynFlood, &Params::default());
    let votes: Vec<_> = voters.iter().map(|i| (*i, Verdict::Confirm)).collect();
    Dossier::new(certificate(&roster, block, &votes)).unwrap()
}

pub fn outcome(kind: OutcomeKind, subject: Prefix, voters: &[u8]) -> Body {
    Body::Outcome(Outcome {
        kind,
        packets: 1_000,
        dossier: dossier(subject, voters),
    })
}

pub fn verdict(subject: Prefix, ruling: Ruling, voters: &[u8], now: u64) -> Body {
    let dossier = dossier(subject, voters);
    let verdict = OperatorVerdict {
        mesh: genesis().mesh_id(),
        subject,
        ruling,
        incidents: vec![dossier.votes().incident()],
        issued_at_us: now,
    };
    Body::Verdict(verdict.sign(&operator()), dossier)
}

pub fn equivocation(i: u8) -> Misconduct {
    let roster = roster(&["a", "b", "c", "d", "e", "f", "g"]);
    let block = Action::block(subject(), AttackClass::SynFlood, &Params::default());
    let vote = ballot(&roster, i, block, Verdict::Confirm, 1, T0).signed;
    let lie = ballot(&roster, i, block, Verdict::Reject, 2, T0).signed;
    Misconduct::Equivocation(Box::new(EquivocationProof::new(vote, lie).unwrap()))
}

/// Node `i` signs two ledgers of one size.
pub fn ledger_fork(i: u8) -> Misconduct {
    ledger_fork_at(i, T0 / S)
}

/// The same, signed at this time, seconds since 1970.
pub fn ledger_fork_at(i: u8, time_s: u64) -> Misconduct {
    use crate::ledger::checkpoint::{AuthorKeys, Checkpoint, SignedCheckpoint};
    use crate::ledger::fork::LedgerForkProof;

    let key = ed25519_dalek::SigningKey::from_bytes(&[i; 32]);
    let (node, pq) = (node_id(i), pq(i));
    let keys = AuthorKeys {
        node: node.0,
        key: key.verifying_key().to_bytes(),
        pq: pq.public().clone(),
    };
    let checkpoint = |root: u8| {
        let note = Checkpoint::of(&node.0, 7, [root; 32])
            .sign(&key, &pq, time_s)
            .unwrap();
        SignedCheckpoint::verify(note.to_string().as_bytes(), &keys).unwrap()
    };
    let proof = LedgerForkProof::new(&keys, &checkpoint(1), &checkpoint(2)).unwrap();
    Misconduct::LedgerFork(Box::new(proof))
}

/// Two statements of node `i` under one number.
pub fn fork(i: u8) -> Misconduct {
    let say = |body| {
        Statement::new(
            genesis().mesh_id(),
            &signer(i),
            node_id(i),
            (0, Hash(crate::merkle::empty_root())),
            T0,
            body,
        )
        .signed
    };
    let helped = |succeeded| {
        Body::Remediation(Remediation {
            node: node_id(1),
            decision: crate::mesh::ids::DecisionId([9; 32]),
            succeeded,
        })
    };
    Misconduct::fork(say(helped(true)), say(helped(false))).unwrap()
}

/// One of each kind of body.
pub fn bodies() -> Vec<Body> {
    let mut logs = Logs::default();
    logs.question(1, 2, Say::Hostile, Say::Harmless);
    let mut bodies: Vec<Body> = logs.all.into_iter().map(|s| s.body).collect();
    if let Some(Body::Reveal(reveal)) = bodies.last().cloned() {
        bodies.push(Body::Reveal(Reveal {
            answer: None,
            ..reveal
        }));
    }
    bodies.extend([
        outcome(OutcomeKind::Hit, subject(), &[2, 3]),
        outcome(OutcomeKind::Miss, subject(), &[1]),
        verdict(subject(), Ruling::FalsePositive, &[1, 2], T0),
        Body::Misconduct(equivocation(3)),
        Body::Misconduct(fork(4)),
        Body::Misconduct(ledger_fork(3)),
        Body::Remediation(Remediation {
            node: node_id(2),
            decision: crate::mesh::ids::DecisionId([7; 32]),
            succeeded: false,
        }),
    ]);
    bodies
}

/// The published bytes.
pub fn vectors() -> Vec<(&'static str, String)> {
    let mut logs = Logs::default();
    logs.question(1, 2, Say::Hostile, Say::Hostile);
    logs.says(1, T0, outcome(OutcomeKind::Hit, subject(), &[2, 3]));
    logs.says(
        1,
        T0,
        verdict(subject(), Ruling::FalsePositive, &[2, 3], T0),
    );
    let hex = |at: usize| to_hex(&logs.all[at].to_bytes());
    let digest = EvidenceMessage::Digest {
        answer: false,
        frontier: logs.set.frontier(),
    };
    vec![
        ("evidence_question", hex(0)),
        ("evidence_reveal", hex(1)),
        ("evidence_outcome", hex(2)),
        ("evidence_verdict", hex(3)),
        ("evidence_frontier", to_hex(&logs.set.frontier().to_bytes())),
        (
            "evidence_frontier_hash",
            logs.set.frontier_hash().to_string(),
        ),
        (
            "evidence_digest_message",
            to_hex(&Message::Evidence(Box::new(digest)).to_bytes()),
        ),
        (
            "trust_params",
            to_hex(&crate::mesh::trust::Params::default().to_bytes()),
        ),
    ]
}
