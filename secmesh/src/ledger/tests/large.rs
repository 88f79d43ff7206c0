//! A million entries.

use super::*;
use crate::merkle::{verify_consistency, verify_inclusion};

const MILLION: u64 = 1_000_000;

#[test]
fn a_million_entries_are_written_reopened_proved_and_verified() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let retention = Retention {
        segment_bytes: 8 << 20,
        total_bytes: u64::MAX,
    };
    let (mut ledger, _) = Ledger::open(&dir, keys(), retention, 0).unwrap();
    let json = serde_json::to_vec(&note(7)).unwrap();
    let mut middle = None;
    for n in 1..=MILLION {
        ledger.append_encoded(n, 13, &json).unwrap();
        if n % 500 == 0 {
            ledger.sync().unwrap();
        }
        if n == MILLION / 2 + 1 {
            middle = Some((n, ledger.head()));
        }
    }
    let signed = ledger.publish(1_000_000_000_000).unwrap();
    let (size, root) = (signed.checkpoint.size, signed.checkpoint.root);
    drop(ledger);
    let (ledger, report) = Ledger::open(&dir, keys(), retention, 0).unwrap();
    assert_eq!((report.entries, ledger.head()), (MILLION, root));
    for seq in [1, 2, 999, 500_000, MILLION] {
        let head = format::BodyHead {
            seq,
            time_unix_us: seq,
            kind: 13,
        };
        let leaf = crate::merkle::leaf_hash(&format::encode_body(head, &json));
        let proof = ledger.inclusion(seq, size).unwrap();
        assert!(proof.len() <= 20);
        verify_inclusion(&leaf, seq - 1, size, &proof, &root).unwrap();
    }
    let (old, old_root) = middle.unwrap();
    let proof = ledger.consistency(old, size).unwrap();
    verify_consistency(old, size, &proof, &old_root, &root).unwrap();
    let mut told = 0;
    let report = verify_with_key(&dir, None, |n| told = n).unwrap();
    assert_eq!(
        (report.entries, report.head, told),
        (MILLION, root, MILLION)
    );
    assert_eq!(report.checkpoint, Some(signed));
}
