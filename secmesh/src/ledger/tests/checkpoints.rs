//! Tests of notes, checkpoints and what they prove.

use super::checkpoint::{AuthorKeys, Checkpoint, CheckpointError, SignedCheckpoint};
use super::fork::{LedgerForkProof, contradict};
use super::note::{MAX_SIGNATURES, Note, NoteError, SignatureType, key_id};
use super::*;

fn signed(size: u64, root: u8, time_s: u64) -> SignedCheckpoint {
    let keys = keys();
    let checkpoint = Checkpoint::of(&NODE, size, [root; 32]);
    let note = checkpoint.sign(&keys.key, &keys.pq, time_s).unwrap();
    SignedCheckpoint::verify(note.to_string().as_bytes(), &keys.public()).unwrap()
}

/// The note in the specification (`c2sp.org/signed-note`), and the Go implementation's key for it.
const PETER: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\n\
    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

#[test]
fn the_published_note_is_read_and_its_key_has_the_published_id() {
    let note = Note::parse(PETER.as_bytes()).unwrap();
    assert_eq!(note.to_string(), PETER);
    assert!(note.text().ends_with("your problem is.\n"));
    // PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW
    let key = mesh_hex("1a5cd907143c384c41e830c5bce12aa8817ec5649aaabf2c31388b35b2d744d6");
    let id = key_id("PeterNeumann", SignatureType::Ed25519, &key);
    assert_eq!(id, [0xc7, 0x4f, 0x20, 0xa3]);
    let signature = note.signature("PeterNeumann", id).unwrap();
    crate::mesh::crypto::verify(&key, note.text().as_bytes(), &signature.try_into().unwrap())
        .unwrap();
}

fn mesh_hex(text: &str) -> [u8; 32] {
    crate::mesh::ids::from_hex(text).unwrap()
}

#[test]
fn a_note_has_one_spelling() {
    let good = signed(5, 1, 9).note.to_string();
    assert_eq!(Note::parse(good.as_bytes()).unwrap().to_string(), good);
    let bad = |text: String| Note::parse(text.as_bytes()).unwrap_err();
    assert_eq!(bad(good.replace('\n', "\r\n")), NoteError::NotText);
    assert_eq!(bad(good.replace("\n\n", "\n")), NoteError::NoSignatures);
    assert_eq!(bad(good.trim_end().to_owned()), NoteError::NoSignatures);
    assert_eq!(bad(format!("{good}x\n")), NoteError::Signature(3));
    assert_eq!(
        bad(good.replace("\u{2014} ", "- ")),
        NoteError::Signature(1)
    );
    assert_eq!(bad(good.replace("= \n", "\n").replace("=\n", "\n")), {
        let lines: Vec<&str> = good.lines().skip(4).collect();
        let first = lines.iter().position(|l| l.ends_with('=')).unwrap();
        NoteError::Signature(first + 1)
    });
    let line = good.lines().last().unwrap();
    let many = format!("{good}{}", format!("{line}\n").repeat(MAX_SIGNATURES));
    assert!(matches!(
        bad(many),
        NoteError::TooLong(_) | NoteError::TooManySignatures
    ));
    for text in [
        "a\n05\nAA==\n",
        "a\n5\nAAAA\nmore\n",
        "a\n5\n",
        "",
        "\n5\nAA\n",
    ] {
        assert_eq!(
            Checkpoint::parse(text),
            Err(CheckpointError::Text),
            "{text:?}"
        );
    }
    let text = Checkpoint::of(&NODE, 5, [1; 32]).text();
    assert_eq!(
        text,
        "secmesh/09090909090909090909090909090909\n5\nAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"
    );
    assert_eq!(Checkpoint::parse(&text).unwrap().text(), text);
    assert!(Checkpoint::parse(&text.replace("\n5\n", "\n+5\n")).is_err());
}

#[test]
fn a_checkpoint_needs_both_signatures_by_the_right_keys() {
    let keys = keys();
    let note = signed(5, 1, 9).note;
    let verify = |note: &Note, author: &AuthorKeys| {
        SignedCheckpoint::verify(note.to_string().as_bytes(), author).map(|s| s.time_s)
    };
    assert_eq!(verify(&note, &keys.public()), Ok(9));
    let id = |kind, key: &[u8]| key_id(&checkpoint::origin(&NODE), kind, key);
    let ed = id(SignatureType::Ed25519, keys.key.verifying_key().as_bytes());
    assert_eq!(
        verify(&note.with_only(|s| s.id == ed), &keys.public()),
        Err(CheckpointError::MlDsa44)
    );
    assert_eq!(
        verify(&note.with_only(|s| s.id != ed), &keys.public()),
        Err(CheckpointError::Ed25519)
    );
    let other = |change: fn(&mut AuthorKeys)| {
        let mut author = keys.public();
        change(&mut author);
        verify(&note, &author)
    };
    assert_eq!(other(|a| a.node = [1; 16]), Err(CheckpointError::WrongLog));
    assert_eq!(
        other(|a| a.pq = pq(1).public().clone()),
        Err(CheckpointError::MlDsa44)
    );
    assert_eq!(
        other(|a| a.key = SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes()),
        Err(CheckpointError::Ed25519)
    );
    // The time is signed too: it decides about rollbacks.
    let mut moved = note.with_only(|s| s.id == ed);
    let mut line = note.signatures()[1].clone();
    line.signature[7] ^= 1;
    moved.add(line);
    assert_eq!(
        verify(&moved, &keys.public()),
        Err(CheckpointError::MlDsa44)
    );
}

#[test]
fn a_cosignature_is_of_its_witness_its_time_and_its_checkpoint() {
    let witness = SigningKey::from_bytes(&[4; 32]);
    let public = witness.verifying_key().to_bytes();
    let mut one = signed(5, 1, 9);
    let cosignature = one.cosign(&[4; 16], &witness, 100);
    assert_eq!(one.verify_cosignature(&cosignature, &public), Ok(()));
    let bad = Err(CheckpointError::Cosignature);
    let later = checkpoint::Cosignature {
        time_s: 101,
        ..cosignature
    };
    assert_eq!(one.verify_cosignature(&later, &public), bad);
    assert_eq!(
        signed(6, 1, 9).verify_cosignature(&cosignature, &public),
        bad
    );
    assert_eq!(
        one.verify_cosignature(&cosignature, &keys().public().key),
        bad
    );
    assert_eq!(one.cosignature(&[4; 16], &public), Ok(None));
    one.add(&cosignature, &public);
    assert_eq!(one.cosignature(&[4; 16], &public), Ok(Some(cosignature)));
    let again =
        SignedCheckpoint::verify(one.note.to_string().as_bytes(), &keys().public()).unwrap();
    assert_eq!(again, one);
    assert_eq!(one.bare().signatures().len(), 2);
}

#[test]
fn only_a_contradiction_is_a_proof() {
    // Size, root, time.
    let cases = [
        ((5, 1, 9), (5, 1, 9), false, "the same"),
        ((5, 1, 9), (5, 1, 10), false, "the same, signed again"),
        ((5, 1, 9), (5, 2, 9), true, "one size, two roots"),
        ((5, 1, 9), (5, 2, 20), true, "one size, two roots, later"),
        ((5, 1, 9), (6, 2, 9), false, "growth within one second"),
        ((5, 1, 9), (6, 2, 10), false, "growth"),
        ((5, 1, 10), (6, 2, 9), true, "a rollback"),
    ];
    let author = keys().public();
    for ((s1, r1, t1), (s2, r2, t2), lies, what) in cases {
        let (a, b) = (signed(s1, r1, t1), signed(s2, r2, t2));
        assert_eq!(contradict(&a, &b), lies, "{what}");
        assert_eq!(contradict(&b, &a), lies, "{what}, the other way");
        let proof = LedgerForkProof::new(&author, &a, &b);
        assert_eq!(proof.is_some(), lies, "{what}");
        let Some(proof) = proof else { continue };
        assert_eq!(LedgerForkProof::new(&author, &b, &a), Some(proof.clone()));
        let hash = author.pq.hash();
        assert_eq!(proof.verify_with(&author.key, &hash), Ok(()));
        assert!(proof.verify_with(&author.key, &[0; 32]).is_err());
        assert!(proof.verify_with(&[1; 32], &hash).is_err());
        let bytes = proof.to_bytes();
        assert_eq!(LedgerForkProof::from_bytes(&bytes), Ok(proof));
        for cut in [0, 20, 1400, bytes.len() - 1] {
            assert!(LedgerForkProof::from_bytes(&bytes[..cut]).is_err());
        }
    }
}

#[test]
fn a_forged_proof_does_not_count() {
    let author = keys().public();
    let (a, b) = (signed(5, 1, 9), signed(5, 2, 9));
    let bytes = LedgerForkProof::new(&author, &a, &b).unwrap().to_bytes();
    // Whatever is changed, the signatures notice or it is another node's.
    for at in (0..bytes.len()).step_by(97) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        if let Ok(proof) = LedgerForkProof::from_bytes(&changed) {
            let whose = proof.node().0 == NODE;
            assert!(
                !whose || proof.verify_with(&author.key, &author.pq.hash()).is_err(),
                "byte {at}"
            );
        }
    }
}

#[test]
fn publishing_survives_a_restart_and_its_time_never_falls() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("l");
    let (mut ledger, _) = open(&dir).unwrap();
    ledger.append(1, &note(1)).unwrap();
    let first = ledger.publish(50_000_000).unwrap();
    assert_eq!((first.checkpoint.size, first.time_s), (1, 50));
    assert_eq!(first.checkpoint.root, ledger.head());
    assert_eq!(ledger.publish(60_000_000).unwrap(), first, "nothing new");
    let witness = SigningKey::from_bytes(&[4; 32]);
    let mut seen = first.clone();
    let key = witness.verifying_key().to_bytes();
    seen.add(&first.cosign(&[4; 16], &witness, 51), &key);
    ledger.cosigned(&seen).unwrap();
    drop(ledger);
    let report = verify(&dir).unwrap().checkpoint.unwrap();
    assert_eq!(report, seen);
    // The clock was set back: the next one is not dated before the last.
    let (mut ledger, _) = open(&dir).unwrap();
    assert_eq!(ledger.published(), Some(&seen));
    ledger.append(1, &note(2)).unwrap();
    let second = ledger.publish(10_000_000).unwrap();
    assert_eq!((second.checkpoint.size, second.time_s), (2, 50));
    assert!(!contradict(&first, &second));
    // A cosignature for the one before comes too late to be kept.
    ledger.cosigned(&seen).unwrap();
    assert_eq!(ledger.published(), Some(&second));
}

#[test]
fn a_ledger_shorter_than_its_checkpoint_or_another_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, path, bytes, at) = sample(temp.path(), 4);
    open(&dir).unwrap().0.publish(1).unwrap();
    put(&path, &bytes[..at[3]]);
    let fault = verify(&dir).unwrap_err();
    assert!(
        matches!(
            fault.what,
            Fault::CutBack {
                entries: 3,
                signed: 4
            }
        ),
        "{fault}"
    );
    assert!(matches!(open(&dir), Err(LedgerError::Corrupt { .. })));
    // Rewritten by the holder of the keys, and longer.
    std::fs::remove_file(&path).unwrap();
    let kept = read_capped(&dir.join(files::CHECKPOINT), 1 << 20).unwrap();
    std::fs::remove_file(dir.join(files::CHECKPOINT)).unwrap();
    let (mut ledger, _) = open(&dir).unwrap();
    for n in 10..16 {
        ledger.append(1, &note(n)).unwrap();
        ledger.sync().unwrap();
    }
    drop(ledger);
    verify(&dir).unwrap();
    put(&dir.join(files::CHECKPOINT), &kept);
    let fault = verify(&dir).unwrap_err();
    assert!(matches!(fault.what, Fault::Rewritten(4)), "{fault}");
    assert!(matches!(open(&dir), Err(LedgerError::Corrupt { .. })));
    // A checkpoint that is not one.
    put(&dir.join(files::CHECKPOINT), b"nonsense");
    assert!(matches!(
        verify(&dir).unwrap_err().what,
        Fault::Checkpoint(_)
    ));
}

proptest! {
    #[test]
    fn arbitrary_notes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in "[a-z/0-9\n \u{2014}+=]{0,300}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            if let Ok(note) = Note::parse(bytes) {
                prop_assert_eq!(note.to_string().into_bytes(), bytes);
            }
        }
        let _ = Checkpoint::parse(&text);
        let _ = LedgerForkProof::from_bytes(&bytes);
    }
}
