//! The bytes printed in the documentation are the bytes this code writes.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;

use super::admission::EpochMark;
use super::cert::Certificate;
use super::decision::OperatorRelease;
use super::envelope::{Envelope, EnvelopeKind, NO_NONCE};
use super::epoch::{
    CertifiedEpoch, EpochParams, EpochProof, EpochRecord, EpochVote, Proposal, Removal, Step,
    VoteSet,
};
use super::evidence::{Body, CulpritKeys, ProofKind, ProofSet, Statement};
use super::identity::Ticket;
use super::ids::to_hex;
use super::message::{Announcement, EquivocationProof, Message};
use super::roster::Roster;
use super::swim::message::{Life, Standing, SwimMessage, Update, What};
use super::testing::*;
use super::vote::{Action, AttackClass, Ballot, Verdict};
use crate::ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::mesh::genesis::Params;
use crate::mesh::wire::Encoder;

const PUBLISHED: &str = include_str!("../../../docs/vectors/protocol.json");

/// The genesis of a mesh with a committee of four, and who has how many seats (id, u32) of its nodes 1 to 7 in its first
/// epoch.
fn with_committee() -> (String, String) {
    let _guard = WithCommittee::of(4);
    let roster = roster(&["a", "b", "c", "d", "a", "b", "c"]);
    let mut e = Encoder::default();
    for (node, seats) in roster.seats().into_iter().flatten() {
        e.fixed(node.as_bytes()).u32(*seats);
    }
    (to_hex(&genesis().to_bytes()), to_hex(&e.finish()))
}

fn computed() -> BTreeMap<&'static str, String> {
    let roster = roster(&["a", "b", "c", "d"]);
    let block = Action::block(subject(), AttackClass::SynFlood, &Params::default());
    let vote = ballot(&roster, 1, block, Verdict::Confirm, 1, T0);
    let lie = ballot(&roster, 1, block, Verdict::Reject, 2, T0);
    let votes = [(1, Verdict::Confirm), (2, Verdict::Confirm)];
    let certificate: Certificate = certificate(&roster, block, &votes);
    let release = OperatorRelease::new(
        roster.mesh(),
        roster.epoch_hash(),
        Action::release(subject()),
        T0,
        60,
    );
    let checkpoint = Checkpoint::of(&node_id(1).0, 3, [7; 32]);
    let signed = SignedCheckpoint {
        note: checkpoint
            .sign(&SigningKey::from_bytes(&[1; 32]), &pq(1), T0 / S)
            .unwrap(),
        checkpoint: checkpoint.clone(),
        time_s: T0 / S,
    };
    let cosignature = signed.cosign(&node_id(2).0, &SigningKey::from_bytes(&[2; 32]), T0 / S);
    let proof = EquivocationProof::new(vote.signed, lie.signed).unwrap();
    let evidence = super::evidence::testing::vectors();
    let mut all = BTreeMap::from([
        ("operator_public_key", to_hex(&operator().public())),
        ("genesis", to_hex(&genesis().to_bytes())),
        (
            "signed_genesis",
            to_hex(&genesis().sign(&operator()).to_bytes()),
        ),
        ("mesh_id", genesis().mesh_id().to_string()),
        ("genesis_with_committee", with_committee().0),
        ("committee", with_committee().1),
        ("node_1_id", node_id(1).to_string()),
        ("node_1_pq_key_hash", to_hex(&pq(1).public().hash())),
        ("node_1_record", to_hex(&record(1, "a").to_bytes())),
        ("node_1_admitted", to_hex(&admitted(1, "a").to_bytes())),
        ("grant", to_hex(&grant(0x70).to_bytes())),
        (
            "node_5_admitted_by_ticket",
            to_hex(&by_ticket(5, "e", 0x70).to_bytes()),
        ),
        ("epoch_hash", roster.epoch_hash().to_string()),
        ("action", to_hex(&block.to_bytes())),
        ("action_hash", block.hash().to_string()),
        ("incident_id", vote.signed.vote.incident.to_string()),
        ("vote", to_hex(&vote.signed.vote.to_bytes())),
        ("vote_signature", to_hex(&vote.signed.signature)),
        ("ballot", to_hex(&vote.to_bytes())),
        (
            "vote_message",
            to_hex(&Message::Vote(Box::new(vote)).to_bytes()),
        ),
        ("certificate", to_hex(&certificate.to_bytes())),
        ("decision_id", certificate.decision().to_string()),
        ("checkpoint_text", to_hex(checkpoint.text().as_bytes())),
        (
            "checkpoint_ed25519_signature",
            to_hex(&signed.note.signatures()[0].signature),
        ),
        (
            "checkpoint_ed25519_key_id",
            to_hex(&signed.note.signatures()[0].id),
        ),
        (
            "checkpoint_ml_dsa_44_key_id",
            to_hex(&signed.note.signatures()[1].id),
        ),
        (
            "checkpoint_ml_dsa_44_message",
            to_hex(&checkpoint.cosigned(&checkpoint.origin, T0 / S)),
        ),
        ("checkpoint_cosignature", to_hex(&cosignature.signature)),
        ("equivocation_proof", to_hex(&proof.to_bytes())),
        (
            "operator_release",
            to_hex(&release.sign(&operator()).to_bytes()),
        ),
    ]);
    all.insert("swim_message", to_hex(&swim().to_bytes()));
    all.extend(evidence);
    all.insert("evidence_ledger_fork", ledger_fork());
    all.extend(computed_ticket(&roster));
    all.extend(computed_spread(&certificate));
    all.extend(computed_quarantine(&roster));
    all.extend(computed_epochs(&roster));
    all.extend(computed_envelopes(&roster, &vote));
    all
}

fn computed_ticket(roster: &Roster) -> BTreeMap<&'static str, String> {
    let mark = EpochMark {
        number: 1,
        hash: roster.epoch_hash(),
    };
    let grant = grant_of(0x70, mark).to_bytes();
    let ticket = Ticket {
        genesis: genesis().sign(&operator()).to_bytes(),
        grant: grant.clone(),
        seed: [0x70; 32],
        addresses: vec!["10.0.0.1:4747".to_owned()],
        pins: vec![[1; 32]],
    };
    BTreeMap::from([
        ("grant_of_epoch", to_hex(&grant)),
        ("ticket", ticket.encode().unwrap()),
    ])
}

fn computed_spread(certificate: &Certificate) -> BTreeMap<&'static str, String> {
    let announcement = Announcement {
        decision: certificate.decision(),
        incident: certificate.incident(),
        round: 0,
    };
    BTreeMap::from([
        (
            "decided_message",
            to_hex(&Message::Decided(announcement).to_bytes()),
        ),
        (
            "want_decision_message",
            to_hex(&Message::WantDecision(certificate.decision()).to_bytes()),
        ),
    ])
}

fn computed_quarantine(roster: &Roster) -> BTreeMap<&'static str, String> {
    let quarantine = Action::quarantine(node_id(4), AttackClass::Misconduct);
    let against = [1, 2, 3].map(|i| (i, Verdict::Confirm));
    let cut_off = certificate(roster, quarantine, &against);
    let readmit = OperatorRelease::new(
        roster.mesh(),
        roster.epoch_hash(),
        Action::readmit(node_id(4)),
        T0,
        60,
    );
    BTreeMap::from([
        ("quarantine_action", to_hex(&quarantine.to_bytes())),
        ("quarantine_incident_id", cut_off.incident().to_string()),
        ("quarantine_certificate", to_hex(&cut_off.to_bytes())),
        ("readmit_action", to_hex(&readmit.action.to_bytes())),
        (
            "operator_readmit",
            to_hex(&readmit.sign(&operator()).to_bytes()),
        ),
    ])
}

fn swim() -> Message {
    let life = |n| Life {
        node: node_id(n),
        incarnation: 1,
    };
    Message::Swim(Box::new(SwimMessage {
        incarnation: 1,
        refutations: 2,
        to: 1,
        what: What::Request {
            target: life(3),
            number: 7,
        },
        updates: vec![Update {
            life: life(3),
            refutations: 0,
            standing: Standing::Suspect,
        }],
    }))
}

fn computed_envelopes(roster: &Roster, vote: &Ballot) -> BTreeMap<&'static str, String> {
    let envelope = |kind, echo, sequence, body: Vec<u8>| {
        let envelope = Envelope {
            mesh: roster.mesh(),
            sender: signer(1).public(),
            recipient: node_id(2),
            nonce: [0xa1; 16],
            echo,
            sequence,
            kind,
            body: body.into(),
        };
        to_hex(&envelope.sign(&signer(1)).to_bytes())
    };
    let body = Message::Vote(Box::new(*vote)).to_bytes();
    BTreeMap::from([
        (
            "envelope_hello",
            envelope(EnvelopeKind::Hello, NO_NONCE, 0, Vec::new()),
        ),
        (
            "envelope_message",
            envelope(EnvelopeKind::Message, [0xb2; 16], 7, body),
        ),
    ])
}

fn computed_epochs(roster: &Roster) -> BTreeMap<&'static str, String> {
    let second = EpochRecord {
        number: 2,
        previous: roster.epoch_hash(),
        ..EpochRecord::first(
            roster.mesh(),
            EpochParams::of(&Params::default()),
            (1..=4)
                .zip(["a", "b", "c", "d"])
                .map(|(i, zone)| record(i, zone).hash()),
        )
    };
    let mut proved = second.clone();
    proved.members[1].weight = 60;
    proved.members[1].proved = ProofSet::from_iter([ProofKind::EvidenceFork]);
    let epoch_vote = |i: u8, step: Step| {
        EpochVote {
            mesh: roster.mesh(),
            number: 2,
            previous: roster.epoch_hash(),
            round: 0,
            step,
            value: Some(second.hash()),
            voter: node_id(i),
            incarnation: 1,
        }
        .sign(&signer(i))
    };
    let precommit = epoch_vote(1, Step::Precommit);
    let proposal = Proposal {
        record: second.clone(),
        signed: epoch_vote(1, Step::Propose),
        polka: None,
    };
    let mut signatures: Vec<_> = (1..=3)
        .map(|i| (node_id(i), epoch_vote(i, Step::Precommit).signature))
        .collect();
    signatures.sort_unstable();
    let certified = CertifiedEpoch {
        record: second.clone(),
        precommits: VoteSet {
            round: 0,
            signatures,
        },
    };
    let nil = EpochVote {
        value: None,
        ..precommit.vote
    };
    let lie_about_epoch = EpochProof::new(precommit, nil.sign(&signer(1))).unwrap();
    let removal = Removal {
        mesh: roster.mesh(),
        node: node_id(4),
        issued_unix_us: T0,
    };
    BTreeMap::from([
        ("epoch_2_record", to_hex(&second.to_bytes())),
        ("epoch_2_record_proved", to_hex(&proved.to_bytes())),
        ("epoch_2_hash", second.hash().to_string()),
        ("epoch_vote", to_hex(&precommit.to_bytes())),
        ("epoch_proposal", to_hex(&proposal.to_bytes())),
        ("certified_epoch", to_hex(&certified.to_bytes())),
        ("epoch_proof", to_hex(&lie_about_epoch.to_bytes())),
        ("removal", to_hex(&removal.sign(&operator()).to_bytes())),
        (
            "epoch_want_message",
            to_hex(&Message::EpochWant(2).to_bytes()),
        ),
    ])
}

/// ML-DSA signatures are hedged, so nobody writes these bytes twice: what is published is read, checked and
/// written again.
fn ledger_fork() -> String {
    let published: BTreeMap<String, String> = serde_json::from_str(PUBLISHED).unwrap();
    let bytes = published
        .get("evidence_ledger_fork")
        .map_or_else(fresh_ledger_fork, |hex| {
            let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (0..hex.len()).step_by(2).map(digits).collect()
        });
    let statement = Statement::from_bytes(&bytes).unwrap();
    assert!(statement.signed.verify(&signer(1).public()).is_ok());
    let Body::Misconduct(proof) = &statement.body else {
        panic!("not a proof");
    };
    assert_eq!(proof.kind(), ProofKind::LedgerFork);
    assert_eq!(proof.culprit(), node_id(3));
    let keys = |i| CulpritKeys::of(&record(i, "a"));
    assert!(proof.holds(genesis().mesh_id(), &keys(3)));
    assert!(!proof.holds(genesis().mesh_id(), &keys(2)));
    to_hex(&statement.to_bytes())
}

fn fresh_ledger_fork() -> Vec<u8> {
    let mut logs = super::evidence::testing::Logs::default();
    logs.says(
        1,
        T0,
        Body::Misconduct(super::evidence::testing::ledger_fork(3)),
    );
    logs.all.remove(0).to_bytes()
}

#[test]
fn the_published_vectors_are_what_the_code_writes() {
    let published: BTreeMap<String, String> = serde_json::from_str(PUBLISHED).unwrap();
    let computed = computed();
    let names: Vec<&str> = published.keys().map(String::as_str).collect();
    assert!(
        computed.keys().copied().eq(names),
        "docs/vectors/protocol.json should be\n{}",
        serde_json::to_string_pretty(&computed).unwrap()
    );
    if published
        != computed
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect()
    {
        eprintln!("{}", serde_json::to_string_pretty(&computed).unwrap());
    }
    for (name, hex) in computed {
        assert_eq!(published[name], hex, "{name} in docs/vectors/protocol.json");
    }
}
