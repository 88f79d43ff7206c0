//! A ledger that something happened to.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ed25519_dalek::SigningKey;
use secmesh::ledger::bundle::ProofFile;
use secmesh::ledger::checkpoint::{AuthorKeys, Checkpoint, SignedCheckpoint};
use secmesh::ledger::fork::LedgerForkProof;
use secmesh::ledger::note::{MAX_NOTE, Note};
use secmesh::ledger::{
    EffectKind, Entry, Ledger, LedgerKeys, Record, Retention, iter, verify, verify_with_key,
};
use secmesh::mesh::crypto::sha256;
use secmesh::mesh::pq::PqSigner;
use tempfile::NamedTempFile;

use crate::feed::Feed;

/// A ledger as an agent wrote it.
struct Original {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Root after so many entries.
    heads: Vec<[u8; 32]>,
    key: SigningKey,
    checkpoint: SignedCheckpoint,
    proof: ProofFile,
    author: AuthorKeys,
}

fn records() -> Vec<Record> {
    vec![
        Record::Started {
            version: "0.1.0".to_owned(),
            node: "00".to_owned(),
            incarnation: 1,
            epoch: 1,
            mode: "enforce".to_owned(),
        },
        Record::Alert {
            alert: serde_json::json!({"subject": "192.0.2.7", "count": 200}),
        },
        Record::VoteSigned {
            vote: "AAAA".to_owned(),
        },
        Record::Decision {
            decision: "d1".to_owned(),
            origin: "quorum".to_owned(),
            action: serde_json::json!({"kind": "block"}),
            certificate: Some("AAAA".to_owned()),
        },
        Record::Effect {
            decision: "d1".to_owned(),
            subject: "192.0.2.7".to_owned(),
            what: EffectKind::Enforced,
            reason: None,
        },
        Record::Refused {
            source: "192.0.2.9".to_owned(),
            reason: "rate".to_owned(),
            count: 3,
        },
        Record::Stopped {
            reason: "SIGTERM".to_owned(),
        },
    ]
}

fn make() -> anyhow::Result<Original> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("ledger");
    let key = SigningKey::from_bytes(&[5; 32]);
    let keys = LedgerKeys {
        node: [1; 16],
        key: key.clone(),
        pq: Arc::new(PqSigner::from_seed(&[5; 32])?),
    };
    let author = keys.public();
    let (mut ledger, _) = Ledger::open(&path, keys, Retention::default(), 1_000)?;
    let mut heads = vec![ledger.head()];
    for (time, record) in (1_000..).zip(records()) {
        ledger.append(time, &record)?;
        ledger.sync()?;
        heads.push(ledger.head());
    }
    let checkpoint = ledger.publish(1_700_000_000_000_000)?;
    drop(ledger);
    let mut bytes = Vec::new();
    File::open(path.join("00000000000000000001.seg"))?.read_to_end(&mut bytes)?;
    let proof = ProofFile::make(&path, 3, None)?;
    let entries = iter(&path)?.collect::<Result<_, _>>()?;
    Ok(Original {
        bytes,
        entries,
        heads,
        key,
        checkpoint,
        proof,
        author,
    })
}

fn original() -> Option<&'static Original> {
    static ORIGINAL: OnceLock<Option<Original>> = OnceLock::new();
    ORIGINAL.get_or_init(|| make().ok()).as_ref()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = records()
        .iter()
        .filter_map(|record| serde_json::to_vec(record).ok())
        .map(|json| [&[2], json.as_slice()].concat())
        .collect();
    if let Some(original) = original() {
        seeds.push([&[0], original.bytes.as_slice()].concat());
        // Nothing done; a bit changed in the header, in an entry, in a length; cut; appended; moved.
        for edits in [
            [1].as_slice(),
            &[1, 0, 20, 0, 1],
            &[1, 0, 150, 0, 1],
            &[1, 0, 127, 5, 1],
            &[1, 1, 200, 1],
            &[1, 1, 171, 5],
            &[1, 2, 90, 0],
            &[1, 3, 171, 5, 44, 6],
            &[1, 1, 200, 1, 2, 40, 0],
        ] {
            seeds.push(edits.to_vec());
        }
    }
    seeds
}

pub(super) fn run(input: &[u8]) {
    let mut feed = Feed::new(input);
    match feed.u8() % 3 {
        0 => on_disk(feed.rest(), looked_at),
        1 => damaged(&mut feed),
        _ => record(feed.rest()),
    }
}

/// Puts the bytes into a file, in memory where the machine has such a place.
fn on_disk(bytes: &[u8], look: impl Fn(&[u8], &Path)) {
    thread_local! {
        static FILE: RefCell<Option<NamedTempFile>> = const { RefCell::new(None) };
    }
    FILE.with_borrow_mut(|slot| {
        if slot.is_none() {
            let memory = Path::new("/dev/shm");
            *slot = NamedTempFile::new_in(memory)
                .or_else(|_| NamedTempFile::new())
                .ok();
        }
        let Some(file) = slot else { return };
        let written = rewrite(file.as_file_mut(), bytes);
        assert!(
            written.is_ok(),
            "cannot write {}: {written:?}",
            file.path().display()
        );
        look(bytes, file.path());
    });
}

fn rewrite(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}

/// Any bytes: read without harm, and both ways of reading agree.
fn looked_at(bytes: &[u8], path: &Path) {
    let checked = verify(path);
    let Ok(entries) = iter(path) else {
        assert!(checked.is_err(), "verified, but cannot be read");
        return;
    };
    let mut read = 0_u64;
    let mut good = true;
    for entry in entries {
        match entry {
            Ok(entry) => {
                read += 1;
                assert_eq!(entry.seq, read);
                assert!(good, "an entry after an error");
                assert!(entry.payload.len() <= bytes.len());
            }
            Err(_) => good = false,
        }
    }
    if let Ok(report) = checked {
        assert!(good && report.entries == read, "{report:?} beside {read}");
        assert!(report.torn_tail_bytes <= bytes.len() as u64);
    }
}

/// The good ledger with edits: what is still read is what was written, from the front and in order.
fn damaged(feed: &mut Feed<'_>) {
    let Some(original) = original() else { return };
    let mut bytes = original.bytes.clone();
    while !feed.is_empty() && bytes.len() < 2 * original.bytes.len() {
        let kind = feed.u8();
        let at = usize::from(feed.u16()) % (bytes.len() + 1);
        match kind % 4 {
            0 => {
                let xor = feed.u8();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= xor;
                }
            }
            1 => bytes.truncate(at),
            2 => bytes.resize(bytes.len() + at % 512, feed.u8()),
            _ => {
                let from = usize::from(feed.u16()) % (bytes.len() + 1);
                let piece = bytes.get(from..).unwrap_or_default().to_vec();
                bytes.truncate(at);
                bytes.extend(piece);
            }
        }
    }
    on_disk(&bytes, |bytes, path| {
        looked_at(bytes, path);
        let key = original.key.verifying_key();
        if let Ok(report) = verify_with_key(path, Some(&key), |_| {}) {
            let head = usize::try_from(report.entries)
                .ok()
                .and_then(|entries| original.heads.get(entries));
            assert_eq!(
                head,
                Some(&report.head),
                "another history verifies: {report:?}"
            );
            assert_eq!(report.node_id, [1; 16]);
            if report.torn_tail_bytes == 0 {
                assert!(
                    original.bytes.starts_with(bytes),
                    "other bytes verify: {:?}",
                    sha256(bytes)
                );
            }
            if let Ok(entries) = iter(path) {
                for (read, wrote) in entries.zip(&original.entries) {
                    assert_eq!(read.as_ref().ok(), Some(wrote));
                }
            }
        }
    });
}

pub(super) fn note_seeds() -> Vec<Vec<u8>> {
    let Some(original) = original() else {
        return Vec::new();
    };
    let note = original.checkpoint.note.to_string();
    let mut seeds = vec![
        note.clone().into_bytes(),
        original.checkpoint.checkpoint.text().into_bytes(),
        "text\n\n\u{2014} key AAAAAAAA\n".as_bytes().to_vec(),
    ];
    seeds.extend(serde_json::to_vec(&original.proof).ok());
    seeds
}

/// A signed note, a checkpoint, a proof of an entry, a proof of a fork: what is read is written again,
/// and nothing that was not signed verifies.
pub(super) fn note(input: &[u8]) {
    let Some(original) = original() else { return };
    if let Ok(note) = Note::parse(input) {
        assert!(input.len() <= MAX_NOTE);
        assert_eq!(note.to_string().as_bytes(), input);
        if let Ok(checkpoint) = Checkpoint::parse(note.text()) {
            assert_eq!(checkpoint.text(), note.text());
        }
        if let Ok(signed) = SignedCheckpoint::verify(input, &original.author) {
            assert_eq!(signed.checkpoint, original.checkpoint.checkpoint, "forged");
            assert_eq!(signed.time_s, original.checkpoint.time_s);
        }
    }
    if let Ok(proof) = ProofFile::parse(input)
        && let Ok(proved) = proof.verify()
        && proved.author == original.author
    {
        let entry = usize::try_from(proved.entry.seq - 1)
            .ok()
            .and_then(|n| original.entries.get(n));
        assert_eq!(entry, Some(&proved.entry), "an entry that is not there");
    }
    if let Ok(fork) = LedgerForkProof::from_bytes(input) {
        assert_eq!(fork.to_bytes(), input);
        let (key, pq) = (&original.author.key, original.author.pq.hash());
        assert!(fork.verify_with(key, &pq).is_err(), "nobody here lied");
    }
}

/// A record's JSON, there and back.
fn record(json: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(json) else {
        return;
    };
    let written = serde_json::to_vec(&record);
    assert!(written.is_ok(), "{record:?}: {written:?}");
    let written = written.unwrap_or_default();
    assert_eq!(
        serde_json::from_slice::<Record>(&written).ok(),
        Some(record)
    );
}
