//! Tests of rotation, and of proofs across segments.

use super::*;
use crate::merkle::{verify_consistency, verify_inclusion};

const SMALL: Retention = Retention {
    segment_bytes: 4096,
    total_bytes: u64::MAX,
};

fn open_with(dir: &Path, retention: Retention) -> Ledger {
    Ledger::open(dir, keys(), retention, 99).unwrap().0
}

fn append(ledger: &mut Ledger, from: u64, to: u64) {
    for n in from..=to {
        ledger.append(n, &note(n)).unwrap();
        if n % 3 == 0 {
            ledger.sync().unwrap();
        }
    }
    ledger.sync().unwrap();
}

#[test]
fn a_ledger_of_many_segments_is_one_log() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let mut ledger = open_with(&dir, SMALL);
    append(&mut ledger, 1, 150);
    drop(ledger);
    let mut ledger = open_with(&dir, SMALL);
    append(&mut ledger, 151, 300);
    let report = verify(&dir).unwrap();
    assert_eq!((report.entries, report.head), (300, ledger.head()));
    assert!(report.segments > 5, "{}", report.segments);
    let entries = all(&dir);
    assert_eq!(entries.len(), 300);
    assert!((1..).zip(&entries).all(|(n, e)| e.seq == n));
    // A segment copied elsewhere is checked by itself.
    let (before, path) = files::segments(&dir).unwrap()[2].clone();
    let copy = temp.path().join("copy");
    std::fs::copy(path, &copy).unwrap();
    assert_eq!(verify(&copy).unwrap().first_entry, before + 1);
}

#[test]
fn a_segment_that_is_missing_swapped_or_cut_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    append(&mut open_with(&dir, SMALL), 1, 200);
    let segments = files::segments(&dir).unwrap();
    let (_, second) = &segments[1];
    let (_, third) = &segments[2];
    let (two, three) = (
        read_capped(second, 1 << 20).unwrap(),
        read_capped(third, 1 << 20).unwrap(),
    );
    std::fs::remove_file(second).unwrap();
    assert!(matches!(verify(&dir).unwrap_err().what, Fault::Gap { .. }));
    put(second, &three);
    assert!(verify(&dir).is_err());
    put(second, &two[..two.len() - 1]);
    let error = Ledger::open(&dir, keys(), SMALL, 0).unwrap_err();
    assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    put(second, &two);
    verify(&dir).unwrap();
}

#[test]
fn proofs_hold_across_segments_and_after_old_ones_are_gone() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let mut ledger = open_with(
        &dir,
        Retention {
            segment_bytes: 4096,
            total_bytes: 40 << 10,
        },
    );
    let (mut roots, mut leaves) = (vec![crate::merkle::empty_root()], Vec::new());
    for n in 1..=700 {
        ledger.append(n, &note(n)).unwrap();
        ledger.sync().unwrap();
        roots.resize(usize::try_from(ledger.entries()).unwrap() + 1, [0; 32]);
        *roots.last_mut().unwrap() = ledger.head();
    }
    assert!(ledger.dropped() > 100, "{}", ledger.dropped());
    let kept: u64 = files::segments(&dir)
        .unwrap()
        .iter()
        .map(|(_, path)| path.metadata().unwrap().len())
        .sum();
    assert!(kept <= (40 << 10) + 8192, "{kept}");
    let report = verify(&dir).unwrap();
    assert_eq!(report.first_entry, ledger.dropped() + 1);
    assert_eq!(report.head, ledger.head());
    for entry in all(&dir) {
        let head = format::BodyHead {
            seq: entry.seq,
            time_unix_us: entry.time_unix_us,
            kind: entry.kind,
        };
        leaves.push((
            entry.seq,
            crate::merkle::leaf_hash(&format::encode_body(head, &entry.payload)),
        ));
    }
    // And the same after a restart, when the tree comes out of the files.
    let (size, root) = (ledger.entries(), ledger.head());
    drop(ledger);
    let ledger = open_with(&dir, Retention::default());
    assert_eq!((ledger.entries(), ledger.head()), (size, root));
    for (seq, leaf) in leaves.iter().step_by(7).chain(leaves.last()) {
        let proof = ledger.inclusion(*seq, size).unwrap();
        verify_inclusion(leaf, seq - 1, size, &proof, &root).unwrap();
    }
    for old in (ledger.dropped()..=size).step_by(11) {
        let old_root = roots[usize::try_from(old).unwrap()];
        if old_root == [0; 32] {
            // Between two syncs, which only dropping makes.
            continue;
        }
        let proof = ledger.consistency(old, size).unwrap();
        verify_consistency(old, size, &proof, &old_root, &root).unwrap();
    }
    assert!(matches!(
        ledger.inclusion(3, size),
        Err(LedgerError::Merkle(_))
    ));
}

#[test]
fn no_room_for_the_next_segment_stops_the_ledger_but_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let write = |dir: &Path, until: u64| {
        let mut ledger = open_with(dir, SMALL);
        for n in 1..=until {
            ledger.append(n, &note(1)).unwrap();
            ledger.sync().unwrap();
        }
        ledger
    };
    let sized = temp.path().join("sized");
    drop(write(&sized, 60));
    let (full, _) = files::segments(&sized).unwrap()[1].clone();
    let dir = temp.path().join("l");
    let mut ledger = write(&dir, full - 1);
    // The place of the next segment is taken.
    let taken = files::segment_path(&dir, full).join("x");
    std::fs::create_dir_all(&taken).unwrap();
    ledger.append(full, &note(1)).unwrap();
    ledger
        .sync()
        .expect("what was appended is on the disk all the same");
    assert!(matches!(
        ledger.append(1, &note(1)),
        Err(LedgerError::Failed(_))
    ));
    std::fs::remove_dir_all(taken.parent().unwrap()).unwrap();
    drop(ledger);
    assert_eq!(verify(&dir).unwrap().entries, full);
    append(&mut open_with(&dir, SMALL), full + 1, full + 10);
    verify(&dir).unwrap();
}

#[test]
fn a_next_segment_that_cannot_be_had_now_is_had_later() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, away) = (temp.path().join("l"), temp.path().join("away"));
    let mut ledger = open_with(&dir, SMALL);
    append(&mut ledger, 1, 10);
    // No file can be made where it should be, as without descriptors; the one that is open goes on.
    std::fs::rename(&dir, &away).unwrap();
    append(&mut ledger, 11, 100);
    std::fs::rename(&away, &dir).unwrap();
    let before = files::segments(&dir).unwrap().len();
    append(&mut ledger, 101, 200);
    assert!(files::segments(&dir).unwrap().len() > before + 1);
    let head = ledger.head();
    drop(ledger);
    let report = verify(&dir).unwrap();
    assert_eq!((report.entries, report.head), (200, head));
    append(&mut open_with(&dir, SMALL), 201, 210);
    verify(&dir).unwrap();
}

/// The largest segment, in KiB.
fn largest(dir: &Path) -> u64 {
    let segments = files::segments(dir).unwrap();
    let sizes = segments
        .iter()
        .map(|(_, path)| path.metadata().unwrap().len() >> 10);
    sizes.max().unwrap()
}

#[test]
fn a_burst_between_two_syncs_fills_as_many_segments_as_it_takes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let retention = Retention {
        segment_bytes: 1 << 20,
        total_bytes: u64::MAX,
    };
    let mut ledger = open_with(&dir, retention);
    let large = Record::Refused {
        source: "x".repeat(64 << 10),
        reason: "test".to_owned(),
        count: 1,
    };
    for n in 0..128 {
        ledger.append(n, &large).unwrap();
    }
    ledger.sync().unwrap();
    // One commit more than it should have, at most.
    assert!(largest(&dir) < 2560, "{} KiB", largest(&dir));
    assert_eq!(verify(&dir).unwrap().entries, 128);
}

#[test]
fn what_is_carried_fills_as_many_segments_as_it_takes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let retention = Retention {
        segment_bytes: 256 << 10,
        // An eighth goes at a time: more than fits a segment, and all of it is carried.
        total_bytes: 16 << 20,
    };
    let mut ledger = open_with(&dir, retention);
    for n in 0..250 {
        let decision = Record::Decision {
            decision: format!("{n}"),
            origin: "quorum".to_owned(),
            action: serde_json::json!({ "expires_unix_us": u64::MAX }),
            certificate: Some("c".repeat(64 << 10)),
        };
        ledger.append(n, &decision).unwrap();
        ledger.sync().unwrap();
    }
    let large = Record::Refused {
        source: "x".repeat(64 << 10),
        reason: "test".to_owned(),
        count: 1,
    };
    for n in 250..270 {
        ledger.append(n, &large).unwrap();
        ledger.sync().unwrap();
    }
    assert!(ledger.dropped() > 0);
    assert!(largest(&dir) < 1700, "{} KiB", largest(&dir));
    drop(ledger);
    let report = verify(&dir).unwrap();
    assert_eq!(report.head, open_with(&dir, retention).head());
}
