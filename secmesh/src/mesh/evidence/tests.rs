use std::sync::Arc;

use proptest::prelude::*;

use super::message::{Range, pack};
use super::store::EVIDENCE_FILE;
use super::testing::*;
use super::*;
use crate::mesh::ids::{Hash, MeshId};
use crate::mesh::message::Message;
use crate::mesh::testing::*;
use crate::mesh::wire::MAX_MESSAGE;
use crate::state::{read_capped, write_atomic};

fn statements() -> Vec<Statement> {
    let mut logs = Logs::default();
    for body in bodies() {
        logs.says(1, T0, body);
    }
    logs.all
}

fn messages() -> Vec<EvidenceMessage> {
    let mut logs = Logs::default();
    logs.question(1, 2, Say::Hostile, Say::Harmless);
    let Body::Reveal(reveal) = &logs.all[1].body else {
        panic!("a reveal");
    };
    vec![
        EvidenceMessage::Summary(Hash([1; 32])),
        EvidenceMessage::Digest {
            answer: true,
            frontier: logs.set.frontier(),
        },
        EvidenceMessage::Request(vec![Range {
            author: node_id(1),
            from: 3,
            until: 9,
        }]),
        EvidenceMessage::Statements(statements()),
        EvidenceMessage::Question {
            commitment: Hash([2; 32]),
            subject: subject(),
        },
        EvidenceMessage::Answer {
            commitment: Hash([2; 32]),
            answer: reveal.answer.unwrap(),
        },
    ]
}

#[test]
fn everything_is_read_back() {
    for statement in statements() {
        let bytes = statement.to_bytes();
        assert!(bytes.len() <= MAX_STATEMENT);
        assert_eq!(Statement::from_bytes(&bytes), Ok(statement));
    }
    for message in messages() {
        let message = Message::Evidence(Box::new(message));
        assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
    }
    let frontier = Logs::default().set.frontier();
    assert_eq!(Frontier::from_bytes(&frontier.to_bytes()), Ok(frontier));
}

#[test]
fn a_body_that_the_head_does_not_commit_to_is_refused() {
    let [a, b, ..] = &statements()[..] else {
        panic!("two statements");
    };
    let mixed = Statement {
        signed: a.signed,
        body: b.body.clone(),
    };
    assert!(Statement::from_bytes(&mixed.to_bytes()).is_err());
}

#[test]
fn a_log_takes_its_statements_in_order_and_once() {
    let all = statements();
    let mut set = EvidenceSet::new(genesis().mesh_id());
    assert_eq!(
        set.insert(all[1].clone(), usize::MAX),
        Inserted::Gap(0),
        "the second before the first"
    );
    for statement in &all {
        assert_eq!(set.insert(statement.clone(), usize::MAX), Inserted::New);
        assert_eq!(set.insert(statement.clone(), usize::MAX), Inserted::Known);
    }
    let head = set.head(&node_id(1));
    assert_eq!(head.size, all.len() as u64);
    for (size, statement) in (0..).zip(&all) {
        assert_eq!(
            set.root_at(&node_id(1), size),
            Some(statement.head().before)
        );
    }
    assert!(set.covers(&set.frontier()));
    let mut more = set.frontier();
    let root = head.root;
    more.set(
        node_id(1),
        LogHead {
            size: head.size + 1,
            root,
        },
    )
    .unwrap();
    assert!(!set.covers(&more));
    let mut other = set.frontier();
    let size = head.size - 1;
    other.set(node_id(1), LogHead { size, root }).unwrap();
    assert!(!set.covers(&other), "another root at an earlier size");
    let mut small = EvidenceSet::new(genesis().mesh_id());
    assert_eq!(small.insert(all[0].clone(), 100), Inserted::Full);
}

#[test]
fn two_histories_are_found_and_proved() {
    let mut honest = Logs::default();
    let mut other = Logs::default();
    for (logs, subject) in [(&mut honest, "192.0.2.1"), (&mut other, "192.0.2.2")] {
        logs.says(
            1,
            T0,
            outcome(OutcomeKind::Hit, subject.parse().unwrap(), &[2]),
        );
        logs.says(1, T0, bodies()[0].clone());
    }
    // The second statement names another root before it.
    assert_eq!(
        honest.set.clone().insert(
            Statement::new(
                honest.set.mesh(),
                &signer(1),
                node_id(1),
                (2, other.set.head(&node_id(1)).root),
                T0,
                bodies()[0].clone(),
            ),
            usize::MAX
        ),
        Inserted::OtherHistory
    );
    for at in [0, 1] {
        let Inserted::Conflict(heads) = honest.set.insert(other.all[at].clone(), usize::MAX) else {
            panic!("statement {at} contradicts");
        };
        let proof = Misconduct::fork(heads.0, heads.1).unwrap();
        assert_eq!(proof.culprit(), node_id(1));
        assert!(proof.holds(genesis().mesh_id(), &CulpritKeys::of(&record(1, "a"))));
        assert!(!proof.holds(genesis().mesh_id(), &CulpritKeys::of(&record(2, "a"))));
        assert!(!proof.holds(MeshId([0; 32]), &CulpritKeys::of(&record(1, "a"))));
    }
    assert!(Misconduct::fork(honest.all[0].signed, honest.all[1].signed).is_none());
    assert!(Misconduct::fork(honest.all[0].signed, honest.all[0].signed).is_none());
}

#[test]
fn packing_keeps_order_and_size() {
    let mut logs = Logs::default();
    for _ in 0..60 {
        for body in bodies() {
            logs.says(1, T0, body);
        }
    }
    let all: Vec<Arc<Statement>> = logs.set.iter().cloned().collect();
    let packed = pack(&all, 1_000);
    let mut unpacked = Vec::new();
    for message in packed {
        let bytes = Message::Evidence(Box::new(message)).to_bytes();
        assert!(bytes.len() <= MAX_MESSAGE);
        let Ok(Message::Evidence(message)) = Message::from_bytes(&bytes) else {
            panic!("evidence");
        };
        let EvidenceMessage::Statements(statements) = *message else {
            panic!("statements");
        };
        unpacked.extend(statements.into_iter().map(Arc::new));
    }
    assert_eq!(unpacked, all);
    assert_eq!(pack(&all, 1).len(), 1);
}

fn open(dir: &std::path::Path) -> Result<(EvidenceFile, store::Recovered), EvidenceFileError> {
    EvidenceFile::open(dir, genesis().mesh_id(), node_id(1))
}

#[test]
fn the_file_gives_back_what_was_appended_whatever_a_crash_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<Vec<u8>> = statements().iter().map(Statement::to_bytes).collect();
    let (mut file, found) = open(dir.path()).unwrap();
    assert!(!found.existed);
    for bytes in &all {
        file.append(bytes, true).unwrap();
    }
    drop(file);
    let path = dir.path().join(EVIDENCE_FILE);
    let whole = read_capped(&path, 1 << 20).unwrap();
    let last = whole.len() - (4 + all.last().unwrap().len() + 8);
    for cut in [last, last + 1, last + 4, whole.len() - 1, whole.len()] {
        write_atomic(&path, &whole[..cut], 0o600).unwrap();
        let (mut file, found) = open(dir.path()).unwrap();
        assert!(found.existed);
        let kept = if cut == whole.len() {
            all.len()
        } else {
            all.len() - 1
        };
        assert_eq!(found.statements, all[..kept], "cut at {cut}");
        // What comes next is found again.
        file.append(&all[0], false).unwrap();
        drop(file);
        let (_, found) = open(dir.path()).unwrap();
        assert_eq!(found.statements.len(), kept + 1);
        assert_eq!(found.truncated, 0);
    }
    // A file system may lengthen a file before it writes what belongs there.
    let mut zeros = whole.clone();
    zeros.extend([0; 100]);
    write_atomic(&path, &zeros, 0o600).unwrap();
    assert_eq!(open(dir.path()).unwrap().1.statements, all);
}

#[test]
fn a_file_written_anew_holds_what_it_was_given_and_takes_more() {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<Vec<u8>> = statements().iter().map(Statement::to_bytes).collect();
    let (mut file, _) = open(dir.path()).unwrap();
    for bytes in &all {
        file.append(bytes, false).unwrap();
    }
    let before = file.bytes();
    // What a crash left of an earlier try.
    write_atomic(&dir.path().join("evidence.log.new"), &[7; 9_000], 0o600).unwrap();
    file.rewrite(all[1..].iter().cloned()).unwrap();
    assert!(file.bytes() < before);
    let length = |dir: &std::path::Path| std::fs::metadata(dir.join(EVIDENCE_FILE)).unwrap().len();
    assert_eq!(length(dir.path()), file.bytes());
    file.append(&all[0], true).unwrap();
    drop(file);
    let (mut file, found) = open(dir.path()).unwrap();
    assert_eq!(found.statements[..all.len() - 1], all[1..]);
    assert_eq!(found.statements.last(), all.first());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // Where it cannot be written the old one stays, and is still appended to.
    std::fs::create_dir(dir.path().join("evidence.log.new")).unwrap();
    assert!(file.rewrite(all.iter().cloned()).is_err());
    file.append(&all[1], true).unwrap();
    drop(file);
    assert_eq!(open(dir.path()).unwrap().1.statements.len(), all.len() + 1);
}

#[test]
fn a_file_that_was_changed_or_is_anothers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(EVIDENCE_FILE);
    let (mut file, _) = open(dir.path()).unwrap();
    for statement in statements() {
        file.append(&statement.to_bytes(), true).unwrap();
    }
    drop(file);
    let whole = read_capped(&path, 1 << 20).unwrap();
    let mut damaged = whole.clone();
    damaged[200] ^= 1;
    write_atomic(&path, &damaged, 0o600).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("damaged") && error.contains("Do not put an older copy"),
        "{error}"
    );
    write_atomic(&path, &whole, 0o600).unwrap();
    let other = EvidenceFile::open(dir.path(), genesis().mesh_id(), node_id(2));
    assert!(other.unwrap_err().to_string().contains("another node"));
    let mut newer = whole;
    let at = newer.iter().position(|b| *b == b'1').unwrap();
    newer[at] = b'2';
    write_atomic(&path, &newer, 0o600).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
}

proptest! {
    #[test]
    fn whatever_is_read_is_written_the_same(
        which: prop::sample::Index, at: prop::sample::Index, value: u8,
    ) {
        let all = messages();
        let message = all[which.index(all.len())].clone();
        let mut bytes = Message::Evidence(Box::new(message)).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(message) = Message::from_bytes(&bytes) {
            prop_assert_eq!(message.to_bytes(), bytes);
        }
    }

    #[test]
    fn every_cut_is_refused(which: prop::sample::Index, cut: prop::sample::Index) {
        let all = statements();
        let bytes = all[which.index(all.len())].to_bytes();
        prop_assert!(Statement::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(Statement::from_bytes(&longer).is_err());
    }

    #[test]
    fn sets_agree_whatever_the_order(order in Just((0..20_usize).collect::<Vec<_>>()).prop_shuffle()) {
        let mut logs = Logs::default();
        for (i, body) in (0..20_u8).zip(bodies().into_iter().cycle()) {
            logs.says(1 + i % 4, T0 + u64::from(i), body);
        }
        let mut set = EvidenceSet::new(genesis().mesh_id());
        // What came too early is asked for again.
        for _ in 0..20 {
            for at in &order {
                set.insert(logs.all[*at].clone(), usize::MAX);
            }
        }
        prop_assert_eq!(set.frontier(), logs.set.frontier());
        prop_assert_eq!(set.frontier_hash(), logs.set.frontier_hash());
    }
}
