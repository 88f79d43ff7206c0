//! Tests of what outlives its segment.

use serde_json::json;

use super::*;
use crate::mesh::epoch::{EpochProof, EpochVote, Step};
use crate::mesh::ids::Hash;
use crate::mesh::testing::{genesis, node_id, signer};
use base64::{Engine as _, prelude::BASE64_STANDARD};

const DAY: u64 = 86_400_000_000;

fn decision(id: &str, expires: u64) -> Record {
    Record::Decision {
        decision: id.to_owned(),
        origin: "quorum".to_owned(),
        action: json!({ "expires_unix_us": expires }),
        certificate: None,
    }
}

fn effect(id: &str, what: EffectKind) -> Record {
    Record::Effect {
        decision: id.to_owned(),
        subject: "192.0.2.1".to_owned(),
        what,
        reason: None,
    }
}

fn epoch_lie() -> EpochProof {
    let vote = |round| {
        EpochVote {
            mesh: genesis().mesh_id(),
            number: 2,
            previous: Hash([1; 32]),
            round: 0,
            step: Step::Precommit,
            value: Some(Hash([round; 32])),
            voter: node_id(4),
            incarnation: 1,
        }
        .sign(&signer(4))
    };
    EpochProof::new(vote(1), vote(2)).unwrap()
}

fn vote(n: u64) -> Record {
    Record::VoteSigned {
        vote: n.to_string(),
    }
}

/// Records as a reader sees them: those carried first, by the number they had.
fn known(dir: &Path) -> Vec<Record> {
    let mut carried: std::collections::BTreeMap<u64, Record> = std::collections::BTreeMap::new();
    let mut plain = Vec::new();
    for entry in all(dir) {
        match entry.record().unwrap() {
            Record::Carried { entry, what, .. } => {
                carried.insert(entry, *what);
            }
            record => plain.push(record),
        }
    }
    carried.into_values().chain(plain).collect()
}

#[test]
fn what_is_needed_outlives_its_segment_however_often_segments_go() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let retention = Retention {
        segment_bytes: 4096,
        total_bytes: 32 << 10,
    };
    let (mut ledger, _) = Ledger::open(&dir, keys(), retention, 0).unwrap();
    let fork = Record::LedgerFork {
        node: "aa".to_owned(),
        proof: "p".to_owned(),
        hash: "h".to_owned(),
    };
    let lie = Record::Equivocation {
        voter: "bb".to_owned(),
        proof: "p".to_owned(),
        hash: "h".to_owned(),
    };
    let epoch_lie = Record::Equivocation {
        voter: "bb".to_owned(),
        proof: BASE64_STANDARD.encode(epoch_lie().to_bytes()),
        hash: "h".to_owned(),
    };
    for record in [
        vote(1),
        vote(2),
        fork.clone(),
        lie.clone(),
        epoch_lie.clone(),
        decision("in force", DAY),
        decision("over", 5),
        decision("ended", DAY),
        effect("ended", EffectKind::Ended),
        decision("released", DAY),
        decision("released later", DAY),
        effect("released", EffectKind::Released),
    ] {
        ledger.append(10, &record).unwrap();
    }
    for n in 0..250 {
        ledger.append(10, &note(n)).unwrap();
        ledger.sync().unwrap();
    }
    ledger
        .append(11, &effect("released later", EffectKind::Released))
        .unwrap();
    for n in 0..1500 {
        ledger.append(12, &note(n)).unwrap();
        ledger.sync().unwrap();
    }
    assert!(ledger.dropped() > 1000);
    drop(ledger);
    let known = known(&dir);
    let place = |record: &Record| known.iter().position(|r| r == record);
    for needed in [
        &vote(2),
        &fork,
        &lie,
        &epoch_lie,
        &decision("in force", DAY),
        &decision("released", DAY),
    ] {
        assert!(place(needed).is_some(), "{needed:?} is gone");
    }
    for over in [vote(1), decision("over", 5), decision("ended", DAY)] {
        assert_eq!(place(&over), None, "{over:?} was carried for nothing");
    }
    // The end comes behind the decision, or the block would be put in force again.
    for id in ["released", "released later"] {
        let (begin, end) = (
            place(&decision(id, DAY)).unwrap(),
            place(&effect(id, EffectKind::Released)).unwrap(),
        );
        assert!(begin < end, "{id}");
    }
}

#[test]
fn more_ends_than_are_remembered_at_once_end_the_same_decisions() {
    use crate::ledger::carry;
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let retention = Retention {
        segment_bytes: 1 << 20,
        total_bytes: 64 << 20,
    };
    let (mut ledger, _) = Ledger::open(&dir, keys(), retention, 0).unwrap();
    for n in 0..3 {
        ledger
            .append(10, &decision(&format!("over {n}"), 5))
            .unwrap();
    }
    ledger.append(10, &decision("ended", DAY)).unwrap();
    ledger.append(10, &decision("released", DAY)).unwrap();
    ledger.append(10, &decision("in force", DAY)).unwrap();
    for id in ["released", "over 0", "over 1", "over 2", "gone", "and gone"] {
        ledger
            .append(11, &effect(id, EffectKind::Released))
            .unwrap();
    }
    ledger
        .append(12, &effect("ended", EffectKind::Ended))
        .unwrap();
    ledger.sync().unwrap();
    let carried = |most: usize| carry::no_more_than(most, &dir, 1_000, 20).unwrap();
    let all = carried(1_000);
    let text = |part: &(u8, Vec<u8>)| String::from_utf8(part.1.clone()).unwrap();
    let of = |id: &str| all.iter().filter(|part| text(part).contains(id)).count();
    assert_eq!((of("in force"), of("\"released\""), all.len()), (1, 2, 3));
    // As few as there are decisions to carry, ended ones counted.
    assert_eq!(carried(3), all);
    // What has no room is left behind, and nothing is carried without its end.
    let few: Vec<String> = carried(2).iter().map(text).collect();
    assert!(!few.iter().any(|part| part.contains("in force")), "{few:?}");
    assert_eq!(few.len(), 2, "{few:?}");
}
