//! Appending to a ledger.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::LedgerError;
use super::format::{BodyHead, Hash, MAX_PAYLOAD, encode_entry, encode_header};
use super::reader::{Link, Reader};
use super::record::Record;
use crate::state::{PRIVATE, write_atomic};

/// Buffered bytes that are written out without waiting for a sync.
const BUFFER: usize = 1 << 20;
/// How many of the last signatures opening checks. The chain is checked in full, and the last
/// signature covers it; checking every one of a long ledger would delay the start by minutes.
const SIGNATURES_AT_OPEN: usize = 1024;

/// What [`Ledger::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// There was no ledger, a new one was begun.
    pub created: bool,
    /// Entries found, before anything was appended.
    pub entries: u64,
    /// Bytes of an unfinished entry that were cut off; 0 if there was none. If not 0, a
    /// [`Record::Recovered`] was appended.
    pub truncated_bytes: u64,
}

/// A ledger open for appending. One at a time: the file is locked.
#[derive(Debug)]
pub struct Ledger {
    file: Flock<File>,
    path: PathBuf,
    key: SigningKey,
    buffer: Vec<u8>,
    chain: Hash,
    next_seq: u64,
    failed: Option<String>,
}

impl Ledger {
    /// Opens the ledger, or begins one if there is none. `time_unix_us` dates the
    /// [`Record::Recovered`] that is appended if a torn tail had to be cut off.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] if anything before a torn tail is wrong (the file is then not
    /// touched), [`LedgerError::NotOurs`], [`LedgerError::InUse`], or an I/O error.
    pub fn open(
        path: &Path,
        node_id: [u8; 16],
        key: SigningKey,
        time_unix_us: u64,
    ) -> Result<(Self, OpenReport), LedgerError> {
        let created = !path.exists();
        if created {
            write_atomic(path, &encode_header(node_id, &key), PRIVATE)?;
        }
        let io = |action| {
            move |source| LedgerError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(path).map_err(io("open"))?;
        let file =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
                Errno::EWOULDBLOCK => LedgerError::InUse(path.to_owned()),
                e => io("lock")(e.into()),
            })?;
        let reader = scan(path, node_id, &key)?;
        if reader.torn > 0 {
            file.set_len(reader.offset)
                .and_then(|()| file.sync_all())
                .map_err(io("cut back"))?;
        }
        let mut ledger = Self {
            file,
            path: path.to_owned(),
            key,
            buffer: Vec::new(),
            chain: reader.chain,
            next_seq: reader.next_seq,
            failed: None,
        };
        if reader.torn > 0 {
            ledger.append(
                time_unix_us,
                &Record::Recovered {
                    truncated_bytes: reader.torn,
                },
            )?;
            ledger.sync()?;
        }
        let report = OpenReport {
            created,
            entries: reader.next_seq - 1,
            truncated_bytes: reader.torn,
        };
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
            seq: self.next_seq,
            time_unix_us,
            kind,
        };
        self.chain = encode_entry(&mut self.buffer, &self.key, &self.chain, head, json);
        self.next_seq += 1;
        if self.buffer.len() >= BUFFER {
            self.write_out()?;
        }
        Ok(head.seq)
    }

    /// Puts everything appended so far on the disk.
    ///
    /// # Errors
    /// An I/O error. The ledger then takes nothing more: after a failed sync the kernel may have
    /// dropped the data and says so only once, so trying again would prove nothing.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.usable()?;
        self.write_out()?;
        let result = self.file.sync_data();
        self.checked("sync", result)
    }

    /// Chain hash of the last entry appended.
    pub fn head(&self) -> [u8; 32] {
        self.chain
    }

    /// How many entries there are, with those not yet synced.
    pub fn entries(&self) -> u64 {
        self.next_seq - 1
    }

    fn usable(&self) -> Result<(), LedgerError> {
        self.failed
            .clone()
            .map_or(Ok(()), |why| Err(LedgerError::Failed(why)))
    }

    fn write_out(&mut self) -> Result<(), LedgerError> {
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        self.checked("write", result)
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
    pub(super) fn on_full_disk(key: SigningKey) -> Self {
        let path = PathBuf::from("/dev/full");
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        let file = Flock::lock(file, FlockArg::LockSharedNonblock)
            .map_err(|(_, e)| e)
            .unwrap();
        Self {
            file,
            path,
            key,
            buffer: Vec::new(),
            chain: [0; 32],
            next_seq: 1,
            failed: None,
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

fn scan(path: &Path, node_id: [u8; 16], key: &SigningKey) -> Result<Reader, LedgerError> {
    let corrupt = |fault| LedgerError::Corrupt {
        path: path.to_owned(),
        fault,
    };
    let mut reader = Reader::open(path).map_err(corrupt)?;
    if reader.header.node_id != node_id || reader.header.key != key.verifying_key() {
        return Err(LedgerError::NotOurs(path.to_owned()));
    }
    let mut last: VecDeque<Link> = VecDeque::with_capacity(SIGNATURES_AT_OPEN);
    while let Some(link) = reader.next().map_err(corrupt)? {
        if last.len() == SIGNATURES_AT_OPEN {
            last.pop_front();
        }
        last.push_back(link);
    }
    for link in &last {
        reader.signed(link).map_err(corrupt)?;
    }
    Ok(reader)
}
