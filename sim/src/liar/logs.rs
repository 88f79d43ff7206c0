//! Lies in its log of statements, and a second ledger.

use std::rc::Rc;

use secmesh::ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use secmesh::mesh::cert::{CertVote, Certificate};
use secmesh::mesh::evidence::{
    Body, Dossier, EvidenceMessage, Misconduct, Outcome, OutcomeKind, Question, Remediation,
    Statement,
};
use secmesh::mesh::ids::{DecisionId, Hash, NodeId};
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::Verdict;
use secmesh::mesh::witness::{LedgerMessage, Offer};

use super::{Liar, Said, Scene, bytes};
use crate::cast::{self, S};
use crate::rng::Rng;

/// Large statements that it makes at a time: about as many as a message holds.
const LARGE: usize = 30;
/// Votes in each.
const LARGE_VOTES: u8 = 8;

fn messages(statements: Vec<Statement>) -> Rc<[u8]> {
    let statements = EvidenceMessage::Statements(statements);
    bytes(&Message::Evidence(Box::new(statements)))
}

fn message(statement: Statement) -> Rc<[u8]> {
    messages(vec![statement])
}

impl Liar {
    fn statement(&self, scene: &Scene<'_>, body: Body) -> Statement {
        Statement::new(
            scene.genesis.mesh_id(),
            &self.signer,
            self.id,
            (self.log.size(), Hash(self.log.root())),
            scene.wall_us,
            body,
        )
    }

    fn tell_all(&mut self, scene: &Scene<'_>, body: Body, said: &mut Vec<Said>) {
        let statement = self.statement(scene, body);
        self.log.push(&statement.head().to_bytes());
        let message = message(statement);
        said.extend(scene.peers.iter().map(|to| (*to, Rc::clone(&message))));
    }

    fn blame(scene: &Scene<'_>, rng: &mut Rng) -> Option<Body> {
        let node = rng.pick(&scene.honest).copied()?;
        Some(Body::Remediation(Remediation {
            node,
            decision: DecisionId(rng.bytes32()),
            succeeded: false,
        }))
    }

    /// Two statements under one number, each to some.
    pub(super) fn fork_log(&mut self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        let (Some(one), Some(target)) = (Self::blame(scene, rng), rng.pick(&scene.honest)) else {
            return;
        };
        let other = Body::Question(Question {
            target: *target,
            commitment: Hash(rng.bytes32()),
        });
        let one = self.statement(scene, one);
        let other = self.statement(scene, other);
        self.log.push(&one.head().to_bytes());
        let (one, other) = (message(one), message(other));
        for to in &scene.peers {
            let wire = if rng.percent(50) { &one } else { &other };
            said.push((*to, Rc::clone(wire)));
        }
    }

    /// Shows the first of its peers a statement, and all others a log that begins with another one and goes on. What it
    /// says is of no use; with `large` statements it is long.
    pub(super) fn fork_log_for_one(
        &mut self,
        scene: &Scene<'_>,
        rng: &mut Rng,
        large: bool,
        said: &mut Vec<Said>,
    ) {
        let (Some((one, others)), Some(blame)) =
            (scene.peers.split_first(), Self::blame(scene, rng))
        else {
            return;
        };
        if self.log.size() == 0 {
            said.push((*one, message(self.statement(scene, blame.clone()))));
        }
        let made: Vec<Statement> = (0..if large { LARGE } else { 1 })
            .filter_map(|_| {
                let body = if large {
                    self.large(scene)
                } else {
                    Self::blame(scene, rng)
                };
                let statement = self.statement(scene, body?);
                self.log.push(&statement.head().to_bytes());
                Some(statement)
            })
            .collect();
        let wire = messages(made);
        said.extend(others.iter().map(|to| (*to, Rc::clone(&wire))));
    }

    /// As much as an outcome can hold, with votes that nobody signed.
    fn large(&mut self, scene: &Scene<'_>) -> Option<Body> {
        let action = Self::action(scene, cast::victim(self.group, 5));
        let mine = self.ballot_with(scene, action, Verdict::Confirm, |_| {});
        let vote = &mine.signed.vote;
        let votes = (0..LARGE_VOTES).map(|n| CertVote {
            voter: NodeId([n; 16]),
            ..CertVote::from(&mine.signed)
        });
        let certificate = Certificate {
            action,
            mesh: vote.mesh,
            epoch: vote.epoch,
            epoch_hash: vote.epoch_hash,
            round: vote.round,
            bucket: vote.bucket,
            votes: votes.collect(),
        };
        Some(Body::Outcome(Outcome {
            kind: OutcomeKind::Hit,
            packets: self.log.size(),
            dossier: Dossier::new(certificate).ok()?,
        }))
    }

    /// What was done to honest nodes did not help, it says; so do the others of its kind.
    pub(super) fn frame_in_log(&mut self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        if let Some(body) = Self::blame(scene, rng) {
            self.tell_all(scene, body, said);
        }
    }

    /// A proof that is none, or a block that turned out wrong with votes that nobody signed.
    pub(super) fn forge_in_log(&mut self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        let forged = if rng.percent(60) {
            let proof = self.forged_proof(rng).map(Box::new);
            proof.map(|proof| Body::Misconduct(Misconduct::Equivocation(proof)))
        } else {
            let victim = cast::victim(self.group, rng.index(3));
            self.forged_certificate(scene, victim, rng)
                .and_then(|certificate| Dossier::new(certificate).ok())
                .map(|dossier| {
                    Body::Outcome(Outcome {
                        kind: OutcomeKind::Miss,
                        packets: 0,
                        dossier,
                    })
                })
        };
        if let Some(body) = forged {
            self.tell_all(scene, body, said);
        }
    }

    /// Shows two ledgers of one size to two witnesses.
    pub(super) fn fork_ledger(&mut self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        if !scene.witnesses {
            return;
        }
        self.ledger += rng.below(3) + 1;
        for to in rng.some(&scene.peers, 2) {
            let checkpoint = Checkpoint::of(&self.id.0, self.ledger, rng.bytes32());
            let key = cast::pq(self.index);
            let time_s = scene.wall_us / S;
            let Ok(note) = checkpoint.sign(&cast::ledger_key(self.index), &key, time_s) else {
                return;
            };
            let signed = SignedCheckpoint {
                checkpoint,
                time_s,
                note,
            };
            let offer = Offer {
                old_size: 0,
                proof: Vec::new(),
                note: signed.bare().to_string().into_bytes(),
                pq: Some(key.public().clone()),
            };
            let offer = LedgerMessage::Offer(Box::new(offer));
            said.push((to, bytes(&Message::Ledger(offer))));
        }
    }
}
