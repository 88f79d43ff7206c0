//! The bytes printed in the documentation are the bytes this code writes.

use std::collections::BTreeMap;

use super::cert::Certificate;
use super::decision::OperatorRelease;
use super::ids::to_hex;
use super::message::{Announcement, EquivocationProof, Message};
use super::testing::*;
use super::vote::{Action, AttackClass, Verdict};
use crate::mesh::genesis::Params;

const PUBLISHED: &str = include_str!("../../../docs/vectors/protocol.json");

fn computed() -> BTreeMap<&'static str, String> {
    let roster = roster(&["a", "b", "c", "d"]);
    let block = Action::block(subject(), AttackClass::SynFlood, &Params::default());
    let vote = ballot(&roster, 1, block, Verdict::Confirm, 1, T0);
    let lie = ballot(&roster, 1, block, Verdict::Reject, 2, T0);
    let votes = [(1, Verdict::Confirm), (2, Verdict::Confirm)];
    let certificate: Certificate = certificate(&roster, block, &votes);
    let release = OperatorRelease::new(roster.mesh(), roster.epoch_hash(), subject(), T0, 60);
    let proof = EquivocationProof::new(vote.signed, lie.signed).unwrap();
    BTreeMap::from([
        ("operator_public_key", to_hex(&operator().public())),
        ("genesis", to_hex(&genesis().to_bytes())),
        (
            "signed_genesis",
            to_hex(&genesis().sign(&operator()).to_bytes()),
        ),
        ("mesh_id", genesis().mesh_id().to_string()),
        ("node_1_id", node_id(1).to_string()),
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
        (
            "decided_message",
            to_hex(
                &Message::Decided(Announcement {
                    decision: certificate.decision(),
                    incident: certificate.incident(),
                    round: 0,
                })
                .to_bytes(),
            ),
        ),
        (
            "want_decision_message",
            to_hex(&Message::WantDecision(certificate.decision()).to_bytes()),
        ),
        ("certificate", to_hex(&certificate.to_bytes())),
        ("decision_id", certificate.decision().to_string()),
        ("equivocation_proof", to_hex(&proof.to_bytes())),
        (
            "operator_release",
            to_hex(&release.sign(&operator()).to_bytes()),
        ),
    ])
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
    for (name, hex) in computed {
        assert_eq!(published[name], hex, "{name} in docs/vectors/protocol.json");
    }
}
