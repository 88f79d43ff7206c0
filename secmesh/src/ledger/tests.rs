//! Tests of the ledger: what is written is read back, and what was touched is found.

mod carry;
mod checkpoints;
mod crash;
mod handle;
mod large;
mod proofs;
mod segments;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::format::{Tail, classify_tail, decode_header};
use super::*;
use crate::mesh::pq::PqSigner;
use crate::state::{read_capped, write_atomic};

const NODE: [u8; 16] = [9; 16];

fn pq(n: u8) -> Arc<PqSigner> {
    Arc::new(PqSigner::from_seed(&[n; 32]).unwrap())
}

fn keys() -> LedgerKeys {
    static PQ: OnceLock<Arc<PqSigner>> = OnceLock::new();
    LedgerKeys {
        node: NODE,
        key: SigningKey::from_bytes(&[7; 32]),
        pq: Arc::clone(PQ.get_or_init(|| pq(7))),
    }
}

fn note(n: u64) -> Record {
    Record::Refused {
        source: "192.0.2.1".to_owned(),
        reason: "test".to_owned(),
        count: n,
    }
}

fn open(dir: &Path) -> Result<(Ledger, OpenReport), LedgerError> {
    Ledger::open(dir, keys(), Retention::default(), 99)
}

/// The first segment of a ledger.
fn first_of(dir: &Path) -> PathBuf {
    files::segment_path(dir, 0)
}

/// A ledger of `n` entries, each under a seal of its own; returns its only segment, that segment's
/// bytes, and where header and entries end.
fn sample(root: &Path, n: u64) -> (PathBuf, PathBuf, Vec<u8>, Vec<usize>) {
    let dir = root.join("ledger");
    let (mut ledger, report) = open(&dir).unwrap();
    assert!(report.created);
    let path = first_of(&dir);
    let length = || usize::try_from(path.metadata().unwrap().len()).unwrap();
    let mut at = vec![length()];
    for i in 1..=n {
        assert_eq!(ledger.append(1000 + i, &note(i)).unwrap(), i);
        ledger.sync().unwrap();
        at.push(length());
    }
    drop(ledger);
    let bytes = read_capped(&path, 1 << 20).unwrap();
    assert_eq!(decode_header(&bytes).unwrap().length, at[0]);
    (dir, path, bytes, at)
}

fn put(path: &Path, bytes: &[u8]) {
    write_atomic(path, bytes, 0o600).unwrap();
}

fn all(path: &Path) -> Vec<Entry> {
    iter(path).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, ..) = sample(temp.path(), 5);
    let (mut ledger, report) = open(&dir).unwrap();
    assert_eq!(
        report,
        OpenReport {
            created: false,
            entries: 5,
            truncated_bytes: 0
        }
    );
    assert_eq!(ledger.append(2000, &note(6)).unwrap(), 6);
    assert_eq!(ledger.append(2000, &note(7)).unwrap(), 7);
    assert_eq!(verify(&dir).unwrap().entries, 5, "not synced yet");
    ledger.sync().unwrap();
    let report = verify(&dir).unwrap();
    assert_eq!((report.entries, report.head), (7, ledger.head()));
    assert_eq!((report.first_entry, report.segments), (1, 1));
    assert_eq!(
        (report.first_unix_us, report.last_unix_us),
        (Some(1001), Some(2000))
    );
    assert_eq!((report.node_id, report.torn_tail_bytes), (NODE, 0));
    assert_eq!(report.pq, *keys().pq.public());
    for (n, entry) in (1..).zip(all(&dir)) {
        assert_eq!((entry.seq, entry.record().unwrap()), (n, note(n)));
    }
    // The root is the one that RFC 6962 says.
    let mut tree = crate::merkle::Frontier::default();
    for entry in all(&dir) {
        let head = format::BodyHead {
            seq: entry.seq,
            time_unix_us: entry.time_unix_us,
            kind: entry.kind,
        };
        tree.push(&format::encode_body(head, &entry.payload));
    }
    assert_eq!(tree.root(), report.head);
}

#[test]
fn another_key_or_node_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, ..) = sample(temp.path(), 1);
    let key = SigningKey::from_bytes(&[8; 32]);
    let fault = verify_with_key(&dir, Some(&key.verifying_key()), |_| {}).unwrap_err();
    assert!(matches!(fault.what, Fault::WrongKey));
    let with = |keys| Ledger::open(&dir, keys, Retention::default(), 0);
    for other in [
        LedgerKeys { key, ..keys() },
        LedgerKeys {
            node: [1; 16],
            ..keys()
        },
    ] {
        assert!(matches!(with(other), Err(LedgerError::NotOurs(_))));
    }
}

#[test]
fn one_writer_at_a_time() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let held = open(&dir).unwrap();
    assert!(matches!(open(&dir), Err(LedgerError::InUse(_))));
    drop(held);
    open(&dir).unwrap();
}

#[test]
fn a_ledger_of_an_earlier_version_is_named_and_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    let old = temp.path().join("ledger.log");
    put(&old, b"SECMLEDG\x00\x01and so on");
    let dir = temp.path().join("ledger");
    let error = open(&dir).unwrap_err().to_string();
    assert!(error.contains("earlier version"), "{error}");
    assert!(!dir.exists());
    assert!(matches!(verify(&old).unwrap_err().what, Fault::Version(1)));
}

#[test]
fn too_large_a_record_is_refused_and_the_ledger_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, ..) = sample(temp.path(), 1);
    let (mut ledger, _) = open(&dir).unwrap();
    let big = |size| Record::Stopped {
        reason: "x".repeat(size),
    };
    assert!(matches!(
        ledger.append(1, &big(MAX_PAYLOAD)),
        Err(LedgerError::TooLarge { .. })
    ));
    assert_eq!(ledger.append(1, &big(MAX_PAYLOAD - 100)).unwrap(), 2);
    ledger.sync().unwrap();
    assert_eq!(verify(&dir).unwrap().entries, 2);
}

#[test]
fn every_flipped_byte_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, path, bytes, at) = sample(temp.path(), 3);
    for i in (0..40).chain(1000..1010).chain(at[0] - 80..bytes.len()) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[i] ^= flip;
            put(&path, &bad);
            let fault = verify(&dir).expect_err(&format!("byte {i} ^ {flip:#x} was not found"));
            let entry = at.iter().filter(|start| **start <= i).count() as u64;
            // In a seal, the fault is that of the entry before it or of the next one.
            assert!(
                fault.entry == entry || fault.entry == entry + 1,
                "byte {i} ^ {flip:#x}, entry {entry}: {fault}"
            );
            open(&dir).expect_err("and nothing is appended to it");
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
    let (dir, path, bytes, at) = sample(temp.path(), 3);
    for cut in (0..60).chain(at[0] - 4..bytes.len()) {
        put(&path, &bytes[..cut]);
        if cut < at[0] {
            assert!(verify(&dir).is_err(), "cut at {cut}");
            open(&dir).unwrap_err();
            continue;
        }
        let whole = at.iter().filter(|end| **end <= cut).count() - 1;
        let torn = (cut - at[whole]) as u64;
        let report = verify(&dir).unwrap();
        assert_eq!(
            (report.entries, report.torn_tail_bytes),
            (whole as u64, torn),
            "cut at {cut}"
        );
        let (_, opened) = open(&dir).unwrap();
        assert_eq!(
            (opened.entries, opened.truncated_bytes),
            (whole as u64, torn),
            "cut at {cut}"
        );
        let after = verify(&dir).unwrap();
        assert_eq!(after.torn_tail_bytes, 0);
        let entries = all(&dir);
        if torn > 0 {
            assert_eq!(after.entries, whole as u64 + 1);
            let recovered = Record::Recovered {
                truncated_bytes: torn,
            };
            assert_eq!(entries[whole].record().unwrap(), recovered);
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
    let (dir, path, bytes, at) = sample(temp.path(), 3);
    let mut zeros = bytes.clone();
    zeros.resize(bytes.len() + 4096, 0);
    put(&path, &zeros);
    let report = verify(&dir).unwrap();
    assert_eq!((report.entries, report.torn_tail_bytes), (3, 4096));
    // The last entry half written, half zeros.
    let mut half = bytes.clone();
    half[at[2] + 40..].fill(0);
    put(&path, &half);
    assert_eq!(verify(&dir).unwrap().entries, 2);
    // Zeros where whole entries follow are damage.
    let mut hole = bytes;
    hole[at[0]..at[1]].fill(0);
    put(&path, &hole);
    assert_eq!(verify(&dir).unwrap_err().entry, 1);
}

#[test]
fn reordered_removed_and_repeated_entries_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, path, bytes, at) = sample(temp.path(), 4);
    let part = |n: usize| &bytes[at[n]..at[n + 1]];
    let header = &bytes[..at[0]];
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
        assert_eq!(verify(&dir).unwrap_err().entry, entry, "{order:?}");
        open(&dir).unwrap_err();
    }
}

/// Somebody who can write the file, but has no key, changes an entry and mends every checksum and
/// root. What is left is the signature.
#[test]
fn a_rewritten_entry_without_the_key_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, path, bytes, at) = sample(temp.path(), 1);
    let mut forged = bytes[..at[0]].to_vec();
    let head = format::BodyHead {
        seq: 1,
        time_unix_us: 1001,
        kind: 13,
    };
    let json = serde_json::to_vec(&note(2)).unwrap();
    let leaf = format::encode_entry(&mut forged, head, &json);
    // The node's own seal stays behind it.
    let seal = bytes.len() - (format::FRAME + format::SEAL + format::CHECK);
    put(&path, &[forged.as_slice(), &bytes[seal..]].concat());
    assert!(matches!(verify(&dir).unwrap_err().what, Fault::Corrupt(_)));
    let other = SigningKey::from_bytes(&[66; 32]);
    format::encode_seal(&mut forged, &other, &NODE, 1, leaf);
    put(&path, &forged);
    assert!(matches!(verify(&dir).unwrap_err().what, Fault::Signature));
    open(&dir).unwrap_err();
    // With a header of the forger's own, it is consistent in itself: the key must be known.
    let begun = LedgerKeys {
        key: other,
        ..keys()
    };
    std::fs::remove_file(&path).unwrap();
    drop(Ledger::open(&dir, begun, Retention::default(), 0).unwrap());
    assert!(verify(&dir).is_ok());
    assert!(verify_with_key(&dir, Some(&keys().key.verifying_key()), |_| {}).is_err());
    open(&dir).unwrap_err();
}

#[test]
fn a_tail_longer_than_one_write_is_damage() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, path, mut bytes, _) = sample(temp.path(), 1);
    bytes.resize(bytes.len() + (5 << 20), 0);
    put(&path, &bytes);
    assert_eq!(verify(&dir).unwrap_err().entry, 2);
    assert_eq!(classify_tail(&[], 1), Tail::Torn);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn arbitrary_files_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..3000), keep in 0usize..2600) {
        static ORIGINAL: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = ORIGINAL.get_or_init(|| sample(tempfile::tempdir().unwrap().path(), 2).2);
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x");
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
        let _ = classify_tail(&tail, seq);
    }
}
