//! Appending to a ledger.

mod rotate;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use nix::fcntl::Flock;

use super::LedgerError;
use super::checkpoint::{AuthorKeys, Checkpoint, SignedCheckpoint};
use super::files::{self, CHECKPOINT};
use super::format::{BodyHead, MAX_PAYLOAD, encode_entry, encode_seal};
use super::note::MAX_NOTE;
use super::open::{Growing, corrupt, create_segment, io_error, lock, open_segment};
use super::reader;
use super::record::Record;
use super::tree::LogTree;
use crate::merkle::{self, Frontier, Hash};
use crate::mesh::pq::PqSigner;
use crate::state::{PRIVATE, write_atomic};

/// Buffered bytes that are put on the disk without waiting for a sync.
const BUFFER: usize = 1 << 20;
/// What the ledger of earlier versions was called, beside the directory.
const OLD: &str = "ledger.log";

/// The node's keys, as far as the ledger needs them.
#[derive(Debug, Clone)]
pub struct LedgerKeys {
    /// The node.
    pub node: [u8; 16],
    /// Its Ed25519 ledger key.
    pub key: SigningKey,
    /// Its ML-DSA-44 ledger key.
    pub pq: Arc<PqSigner>,
}

impl LedgerKeys {
    /// The public halves.
    pub fn public(&self) -> AuthorKeys {
        AuthorKeys {
            node: self.node,
            key: self.key.verifying_key().to_bytes(),
            pq: self.pq.public().clone(),
        }
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A segment is closed once it has this many bytes.
    pub segment_bytes: u64,
    /// Oldest segments go while all together have more bytes than this; the last two stay.
    pub total_bytes: u64,
}

impl Default for Retention {
    /// Segments of 8 MiB, half a gigabyte of them: some two million entries.
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            total_bytes: 512 << 20,
        }
    }
}

/// What [`Ledger::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// There was no ledger, a new one was begun.
    pub created: bool,
    /// Entries ever made, before anything was appended.
    pub entries: u64,
    /// Bytes of an unfinished write that were cut off; 0 if there was none. If not 0, a
    /// [`Record::Recovered`] was appended.
    pub truncated_bytes: u64,
}

/// A ledger open for appending. One at a time: its directory is locked.
#[derive(Debug)]
pub struct Ledger {
    _lock: Flock<File>,
    dir: PathBuf,
    file: File,
    path: PathBuf,
    keys: LedgerKeys,
    retention: Retention,
    buffer: Vec<u8>,
    /// Something was written since the last sync.
    unsynced: bool,
    syncs: u64,
    tree: LogTree,
    /// Entries before each segment, and its bytes.
    segments: VecDeque<(u64, u64)>,
    published: Option<SignedCheckpoint>,
    time_unix_us: u64,
    failed: Option<String>,
    /// The last try to begin a segment failed.
    cannot_rotate: bool,
    /// A segment was begun since old ones were looked for.
    has_rotated: bool,
}

impl Ledger {
    /// Opens the ledger in the directory `dir`, or begins one if there is none. `time_unix_us` dates
    /// the [`Record::Recovered`] that is appended if an unfinished write had to be cut off.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] if anything before such a write is wrong or the log is shorter than
    /// what was signed of it (nothing is then touched), [`LedgerError::NotOurs`],
    /// [`LedgerError::InUse`], [`LedgerError::OldFormat`], or an I/O error.
    pub fn open(
        dir: &Path,
        keys: LedgerKeys,
        retention: Retention,
        time_unix_us: u64,
    ) -> Result<(Self, OpenReport), LedgerError> {
        let old = dir.with_file_name(OLD);
        if old.exists() || dir.is_file() {
            return Err(LedgerError::OldFormat(if old.exists() {
                old
            } else {
                dir.to_owned()
            }));
        }
        let lock = lock(dir)?;
        let created = files::segments(dir)
            .map_err(io_error("list", dir))?
            .is_empty();
        if created {
            create_segment(dir, &keys, &Frontier::default())?;
        }
        let mut growing = Growing::new(dir);
        let log = reader::walk(dir, &mut growing)?;
        let (first, last) = (&log.header, &log.last);
        if first.node_id != keys.node || first.key != keys.key.verifying_key() {
            return Err(LedgerError::NotOurs(dir.to_owned()));
        }
        let published = reader::published(dir, &keys.public(), &log)?;
        let path = last.path.clone();
        let file = open_segment(&path)?;
        if last.torn > 0 {
            file.set_len(last.end)
                .and_then(|()| file.sync_all())
                .map_err(io_error("cut back", &path))?;
        }
        let torn = last.torn;
        let Growing {
            tree: Some(tree),
            last_time,
            ..
        } = growing
        else {
            return Err(LedgerError::NotOurs(dir.to_owned()));
        };
        let report = OpenReport {
            created,
            entries: tree.size(),
            truncated_bytes: torn,
        };
        let mut ledger = Self {
            _lock: lock,
            dir: dir.to_owned(),
            file,
            path,
            keys,
            retention,
            buffer: Vec::new(),
            unsynced: false,
            syncs: 0,
            tree,
            segments: log.segments.into(),
            published,
            time_unix_us: last_time.max(time_unix_us),
            failed: None,
            cannot_rotate: false,
            has_rotated: false,
        };
        if torn > 0 {
            ledger.append(
                time_unix_us,
                &Record::Recovered {
                    truncated_bytes: torn,
                },
            )?;
            ledger.sync()?;
        }
        Ok((ledger, report))
    }

    /// Adds an entry to the buffer and returns its number. It is on the disk after the next
    /// [`Ledger::sync`].
    ///
    /// # Errors
    /// [`LedgerError::TooLarge`], [`LedgerError::Encode`] (the ledger stays usable), or an I/O error
    /// (it does not).
    pub fn append(&mut self, time_unix_us: u64, record: &Record) -> Result<u64, LedgerError> {
        self.append_encoded(time_unix_us, record.kind(), &encode(record)?)
    }

    /// As [`Ledger::append`], with the JSON that [`encode`] made.
    pub(super) fn append_encoded(
        &mut self,
        time_unix_us: u64,
        kind: u8,
        json: &[u8],
    ) -> Result<u64, LedgerError> {
        self.usable()?;
        if json.len() > MAX_PAYLOAD {
            return Err(LedgerError::TooLarge { bytes: json.len() });
        }
        let head = BodyHead {
            seq: self.entries().saturating_add(1),
            time_unix_us,
            kind,
        };
        let leaf = encode_entry(&mut self.buffer, head, json);
        self.tree.push(leaf);
        self.time_unix_us = self.time_unix_us.max(time_unix_us);
        if self.buffer.len() >= BUFFER {
            self.commit()?;
            self.next_segment_if_full();
        }
        Ok(head.seq)
    }

    /// Puts everything appended so far on the disk, under the node's signature.
    ///
    /// # Errors
    /// An I/O error. The ledger then takes nothing more: after a failed sync the kernel may have
    /// dropped the data and says so only once, so trying again would prove nothing.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.usable()?;
        self.commit()?;
        self.next_segment_if_full();
        if self.has_rotated {
            let dropped = self.drop_old();
            // What it begins itself is looked at with the next one, or it would never end where much is carried.
            self.has_rotated = false;
            if let Err(error) = dropped {
                // What was to be written is on the disk, and more is kept than was asked for.
                self.usable()?;
                tracing::error!(%error, "old segments of the ledger stay; it is tried again with the next one");
            }
        }
        Ok(())
    }

    /// Hands everything appended so far to the operating system, under the node's signature: the end of this process
    /// does not lose it, that of the machine may until the next [`Ledger::sync`].
    ///
    /// # Errors
    /// As [`Ledger::sync`].
    pub fn write(&mut self) -> Result<(), LedgerError> {
        self.usable()?;
        self.write_out()
    }

    fn write_out(&mut self) -> Result<(), LedgerError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (size, root) = (self.entries(), self.head());
        let mut buffer = std::mem::take(&mut self.buffer);
        encode_seal(&mut buffer, &self.keys.key, &self.keys.node, size, root);
        let written = self.file.write_all(&buffer);
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        buffer.clear();
        self.buffer = buffer;
        self.checked("write", written)?;
        self.unsynced = true;
        if let Some((_, bytes)) = self.segments.back_mut() {
            *bytes = bytes.saturating_add(length);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), LedgerError> {
        self.write_out()?;
        if self.unsynced {
            let synced = self.file.sync_data();
            self.checked("sync", synced)?;
            self.unsynced = false;
            self.syncs = self.syncs.saturating_add(1);
        }
        Ok(())
    }

    /// How often the disk was waited for since it was opened.
    pub const fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Root of all entries appended, which stands for the whole content.
    pub fn head(&self) -> Hash {
        self.tree.frontier().root()
    }

    /// How many entries were ever made, with those not yet synced.
    pub const fn entries(&self) -> u64 {
        self.tree.size()
    }

    /// Entries that were dropped with old segments.
    pub const fn dropped(&self) -> u64 {
        self.tree.dropped()
    }

    /// The last checkpoint, with the cosignatures that came for it.
    pub const fn published(&self) -> Option<&SignedCheckpoint> {
        self.published.as_ref()
    }

    /// Signs a checkpoint of what is on the disk and stores it before anybody sees it. The same again
    /// when nothing was appended since.
    ///
    /// # Errors
    /// An I/O error, or [`LedgerError::Pq`].
    pub fn publish(&mut self, now_unix_us: u64) -> Result<SignedCheckpoint, LedgerError> {
        self.usable()?;
        self.commit()?;
        let checkpoint = Checkpoint::of(&self.keys.node, self.entries(), self.head());
        if let Some(last) = &self.published
            && last.checkpoint == checkpoint
        {
            return Ok(last.clone());
        }
        // Never earlier than the last one: a smaller tree with a later time would prove a rollback.
        let last = self.published.as_ref().map_or(0, |last| last.time_s);
        let time_s = (now_unix_us / 1_000_000).max(last);
        let note = checkpoint.sign(&self.keys.key, &self.keys.pq, time_s)?;
        let signed = SignedCheckpoint {
            checkpoint,
            time_s,
            note,
        };
        self.store(&signed)?;
        self.published = Some(signed.clone());
        Ok(signed)
    }

    /// Puts a witness's signature, which was verified, beside the checkpoint it is for, if that is
    /// still the last one.
    ///
    /// # Errors
    /// An I/O error.
    pub fn cosigned(&mut self, signed: &SignedCheckpoint) -> Result<(), LedgerError> {
        let Some(last) = &mut self.published else {
            return Ok(());
        };
        if last.checkpoint != signed.checkpoint {
            return Ok(());
        }
        for signature in signed.note.signatures() {
            if signature.name != signed.checkpoint.origin {
                last.note.add(signature.clone());
            }
        }
        let last = last.clone();
        self.store(&last)
    }

    fn store(&self, signed: &SignedCheckpoint) -> Result<(), LedgerError> {
        let bytes = signed.note.to_string().into_bytes();
        if bytes.len() > MAX_NOTE {
            return Ok(());
        }
        Ok(write_atomic(&self.dir.join(CHECKPOINT), &bytes, PRIVATE)?)
    }

    /// Proves that the first `old` entries are the beginning of the first `new`.
    ///
    /// # Errors
    /// [`LedgerError::Merkle`].
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, LedgerError> {
        Ok(merkle::consistency(&self.tree, old, new)?)
    }

    /// Proves that entry `number` (from 1) is among the first `size`.
    ///
    /// # Errors
    /// [`LedgerError::Merkle`].
    pub fn inclusion(&self, number: u64, size: u64) -> Result<Vec<Hash>, LedgerError> {
        Ok(merkle::inclusion(
            &self.tree,
            number.saturating_sub(1),
            size,
        )?)
    }

    fn usable(&self) -> Result<(), LedgerError> {
        self.failed
            .clone()
            .map_or(Ok(()), |why| Err(LedgerError::Failed(why)))
    }

    fn checked(
        &mut self,
        action: &'static str,
        result: std::io::Result<()>,
    ) -> Result<(), LedgerError> {
        result.map_err(|source| {
            self.failed = Some(format!("cannot {action} {}: {source}", self.path.display()));
            LedgerError::Io {
                action,
                path: self.path.clone(),
                source,
            }
        })
    }

    /// A ledger on a device that has no space.
    #[cfg(test)]
    pub(super) fn on_full_disk(keys: LedgerKeys) -> Self {
        let path = PathBuf::from("/dev/full");
        let open = || File::options().append(true).open(&path).unwrap();
        let shared = nix::fcntl::FlockArg::LockSharedNonblock;
        let lock = Flock::lock(open(), shared).map_err(|(_, e)| e).unwrap();
        Self {
            _lock: lock,
            dir: PathBuf::from("/nonexistent"),
            file: open(),
            path,
            keys,
            retention: Retention::default(),
            buffer: Vec::new(),
            unsynced: false,
            syncs: 0,
            tree: LogTree::new(PathBuf::from("/nonexistent"), Frontier::default()),
            segments: VecDeque::from([(0, 0)]),
            published: None,
            time_unix_us: 0,
            failed: None,
            cannot_rotate: false,
            has_rotated: false,
        }
    }
}

/// JSON of a record, if it is not too large.
pub(super) fn encode(record: &Record) -> Result<Vec<u8>, LedgerError> {
    let json = serde_json::to_vec(record).map_err(LedgerError::Encode)?;
    if json.len() > MAX_PAYLOAD {
        return Err(LedgerError::TooLarge { bytes: json.len() });
    }
    Ok(json)
}
