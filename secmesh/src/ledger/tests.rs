//! Tests of the ledger: what is written is read back, and what was touched is found.

mod crash;
mod handle;

use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::format::{HEADER, Tail, classify_tail};
use super::*;
use crate::state::{read_capped, write_atomic};

const NODE: [u8; 16] = [9; 16];

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn note(n: u64) -> Record {
    Record::Refused {
        source: "192.0.2.1".to_owned(),
        reason: "test".to_owned(),
        count: n,
    }
}

fn open(path: &Path) -> Result<(Ledger, OpenReport), LedgerError> {
    Ledger::open(path, NODE, key(), 99)
}

/// A ledger of `n` entries; returns its bytes and where each entry begins, and the end.
fn sample(dir: &Path, n: u64) -> (PathBuf, Vec<u8>, Vec<usize>) {
    let path = dir.join("ledger.log");
    let (mut ledger, report) = open(&path).unwrap();
    assert!(report.created);
    let mut at = vec![HEADER];
    for i in 1..=n {
        assert_eq!(ledger.append(1000 + i, &note(i)).unwrap(), i);
        ledger.sync().unwrap();
        at.push(usize::try_from(path.metadata().unwrap().len()).unwrap());
    }
    drop(ledger);
    let bytes = read_capped(&path, 1 << 20).unwrap();
    (path, bytes, at)
}

fn put(path: &Path, bytes: &[u8]) {
    write_atomic(path, bytes, 0o600).unwrap();
}

#[test]
fn what_is_written_is_read_back() {
    let temp = tempfile::tempdir().unwrap();
    let (path, ..) = sample(temp.path(), 5);
    let (mut ledger, report) = open(&path).unwrap();
    assert_eq!(
        report,
        OpenReport {
            created: false,
            entries: 5,
            truncated_bytes: 0
        }
    );
    let mode = Record::Mode {
        mode: "enforce".to_owned(),
        by: "operator".to_owned(),
    };
    assert_eq!(ledger.append(2000, &mode).unwrap(), 6);
    ledger.sync().unwrap();
    let report = verify_with_key(&path, Some(&key().verifying_key())).unwrap();
    assert_eq!((report.entries, report.head), (6, ledger.head()));
    assert_eq!(
        (report.first_unix_us, report.last_unix_us),
        (Some(1001), Some(2000))
    );
    assert_eq!((report.node_id, report.torn_tail_bytes), (NODE, 0));
    let entries: Vec<Entry> = iter(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.len(), 6);
    assert_eq!(entries[2].record().unwrap(), note(3));
    assert_eq!(
        (entries[5].kind, entries[5].record().unwrap()),
        (mode.kind(), mode)
    );
}

#[test]
fn another_key_or_node_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (path, ..) = sample(temp.path(), 1);
    let other = SigningKey::from_bytes(&[8; 32]);
    let fault = verify_with_key(&path, Some(&other.verifying_key())).unwrap_err();
    assert!(matches!(fault.what, Fault::WrongKey));
    assert!(matches!(
        Ledger::open(&path, NODE, other, 0),
        Err(LedgerError::NotOurs(_))
    ));
    assert!(matches!(
        Ledger::open(&path, [1; 16], key(), 0),
        Err(LedgerError::NotOurs(_))
    ));
}

#[test]
fn one_writer_at_a_time() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("l");
    let held = open(&path).unwrap();
    assert!(matches!(open(&path), Err(LedgerError::InUse(_))));
    drop(held);
    open(&path).unwrap();
}

#[test]
fn too_large_a_record_is_refused_and_the_ledger_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let (path, ..) = sample(temp.path(), 1);
    let (mut ledger, _) = open(&path).unwrap();
    let big = Record::Stopped {
        reason: "x".repeat(MAX_PAYLOAD),
    };
    assert!(matches!(
        ledger.append(1, &big),
        Err(LedgerError::TooLarge { .. })
    ));
    let fits = Record::Stopped {
        reason: "x".repeat(MAX_PAYLOAD - 100),
    };
    assert_eq!(ledger.append(1, &fits).unwrap(), 2);
    ledger.sync().unwrap();
    assert_eq!(verify(&path).unwrap().entries, 2);
}

#[test]
fn every_flipped_byte_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let (path, bytes, at) = sample(temp.path(), 4);
    for i in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[i] ^= flip;
            put(&path, &bad);
            let fault = verify(&path).expect_err(&format!("byte {i} ^ {flip:#x} was not found"));
            let entry = at.iter().filter(|start| **start <= i).count();
            assert_eq!(fault.entry, entry as u64, "byte {i} ^ {flip:#x}: {fault}");
            open(&path).expect_err("and nothing is appended to it");
            assert_eq!(
                read_capped(&path, 1 << 20).unwrap(),
                bad,
                "nor is it touched"
            );
        }
    }
}

#[test]
fn every_cut_is_a_torn_tail_or_an_edge() {
    let temp = tempfile::tempdir().unwrap();
    let (path, bytes, at) = sample(temp.path(), 3);
    for cut in 0..bytes.len() {
        put(&path, &bytes[..cut]);
        if cut < HEADER {
            assert!(matches!(verify(&path).unwrap_err().what, Fault::NotALedger));
            open(&path).unwrap_err();
            continue;
        }
        let whole = at.iter().filter(|end| **end <= cut).count() - 1;
        let torn = (cut - at[whole]) as u64;
        let report = verify(&path).unwrap();
        assert_eq!(
            (report.entries, report.torn_tail_bytes),
            (whole as u64, torn),
            "cut at {cut}"
        );
        let (_, opened) = open(&path).unwrap();
        assert_eq!(
            (opened.entries, opened.truncated_bytes),
            (whole as u64, torn),
            "cut at {cut}"
        );
        let after = verify(&path).unwrap();
        assert_eq!(after.torn_tail_bytes, 0);
        let entries: Vec<Entry> = iter(&path).unwrap().collect::<Result<_, _>>().unwrap();
        if torn > 0 {
            assert_eq!(after.entries, whole as u64 + 1);
            assert_eq!(
                entries[whole].record().unwrap(),
                Record::Recovered {
                    truncated_bytes: torn
                }
            );
            assert_eq!(entries[whole].time_unix_us, 99);
        }
        for (n, entry) in entries.iter().take(whole).enumerate() {
            assert_eq!(entry.record().unwrap(), note(n as u64 + 1));
        }
    }
}

#[test]
fn blocks_that_were_never_written_are_a_torn_tail() {
    let temp = tempfile::tempdir().unwrap();
    let (path, bytes, at) = sample(temp.path(), 3);
    let mut zeros = bytes.clone();
    zeros.resize(bytes.len() + 4096, 0);
    put(&path, &zeros);
    let report = verify(&path).unwrap();
    assert_eq!((report.entries, report.torn_tail_bytes), (3, 4096));
    // The last entry half written, half zeros.
    let mut half = bytes.clone();
    half[at[2] + 60..].fill(0);
    put(&path, &half);
    assert_eq!(verify(&path).unwrap().entries, 2);
    // Zeros where whole entries follow are damage.
    let mut hole = bytes;
    hole[at[0]..at[1]].fill(0);
    put(&path, &hole);
    assert_eq!(verify(&path).unwrap_err().entry, 1);
}

#[test]
fn reordered_removed_and_repeated_entries_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let (path, bytes, at) = sample(temp.path(), 4);
    let part = |n: usize| &bytes[at[n]..at[n + 1]];
    let header = &bytes[..HEADER];
    for (order, entry) in [
        (&[1usize, 0, 2, 3][..], 1),
        (&[0, 2, 1, 3], 2),
        (&[0, 1, 3, 2], 3),
        (&[1, 2, 3], 1),
        (&[0, 1, 3], 3),
        (&[0, 0, 1, 2, 3], 2),
        (&[0, 1, 2, 3, 3], 5),
    ] {
        let mut bad = header.to_vec();
        for n in order {
            bad.extend_from_slice(part(*n));
        }
        put(&path, &bad);
        assert_eq!(verify(&path).unwrap_err().entry, entry, "{order:?}");
        open(&path).unwrap_err();
    }
}

#[test]
fn a_rewritten_chain_without_the_key_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let (path, ..) = sample(temp.path(), 2);
    // Somebody who can write the file, but has another key, begins it anew.
    std::fs::remove_file(&path).unwrap();
    let forger = SigningKey::from_bytes(&[66; 32]);
    let (mut forged, _) = Ledger::open(&path, NODE, forger, 0).unwrap();
    forged.append(1, &note(1)).unwrap();
    forged.sync().unwrap();
    drop(forged);
    assert!(
        verify(&path).is_ok(),
        "consistent in itself, so the key must be known from elsewhere"
    );
    assert!(verify_with_key(&path, Some(&key().verifying_key())).is_err());
    open(&path).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_files_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..3000), keep in 0usize..1000) {
        let temp = tempfile::tempdir().unwrap();
        let (path, bytes, _) = sample(temp.path(), 2);
        let mut bad = bytes[..keep.min(bytes.len())].to_vec();
        bad.extend_from_slice(&tail);
        put(&path, &bad);
        let verified = verify(&path);
        let listed: Vec<_> = iter(&path).map(|entries| entries.take(10).collect()).unwrap_or_default();
        if verified.is_ok() {
            prop_assert!(listed.iter().all(Result::is_ok));
            prop_assert!(listed.len() <= 2, "no entry comes out of nothing");
        }
    }

    #[test]
    fn arbitrary_tails_never_panic(tail in proptest::collection::vec(0u8..3, 0..2000), seq in 0u64..70000) {
        let _ = classify_tail(&tail, &[0; 32], seq);
    }
}

#[test]
fn a_tail_longer_than_one_write_is_damage() {
    let temp = tempfile::tempdir().unwrap();
    let (path, mut bytes, _) = sample(temp.path(), 1);
    bytes.resize(bytes.len() + (5 << 20), 0);
    put(&path, &bytes);
    assert_eq!(verify(&path).unwrap_err().entry, 2);
    assert_eq!(classify_tail(&[], &[0; 32], 1), Tail::Torn);
}
