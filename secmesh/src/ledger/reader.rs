//! Reading a ledger: segment by segment, in bounded memory, trusting nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;

use super::checkpoint::{AuthorKeys, Checkpoint, SignedCheckpoint};
use super::fault::{Fault, VerifyError};
use super::files::{self, CHECKPOINT};
use super::format::{Header, Seal};
use super::note::{MAX_NOTE, Note};
use super::record::Record;
use super::segment::{EntryRef, Scan, Visit, scan};
use crate::merkle::{Frontier, Hash};
use crate::mesh::pq::PqPublic;
use crate::state::read_capped;

/// What a good ledger says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// How many entries were ever made.
    pub entries: u64,
    /// Number of the first that is still there; those before went with old segments.
    pub first_entry: u64,
    /// How many segments there are.
    pub segments: usize,
    /// Time of the first entry that is there, in unix microseconds.
    pub first_unix_us: Option<u64>,
    /// Time of the last, in unix microseconds.
    pub last_unix_us: Option<u64>,
    /// Root of the Merkle tree over all entries: stands for the whole content.
    pub head: Hash,
    /// The node that wrote it.
    pub node_id: [u8; 16],
    /// Its public Ed25519 ledger key.
    pub key: [u8; 32],
    /// Its public ML-DSA-44 ledger key.
    pub pq: PqPublic,
    /// Bytes of an unfinished write at the end: a crash, or a writer at work. 0 if there is none.
    pub torn_tail_bytes: u64,
    /// The last checkpoint, verified by the two keys and by the entries. Absent for a single segment,
    /// and before the first one was made.
    pub checkpoint: Option<SignedCheckpoint>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub seq: u64,
    /// When it was written, in unix microseconds, by the node's clock.
    pub time_unix_us: u64,
    /// Kind of record, see [`Record::kind`].
    pub kind: u8,
    /// JSON of the record.
    pub payload: Vec<u8>,
}

impl Entry {
    /// Decodes the record.
    ///
    /// # Errors
    /// If the JSON is not a record this version knows.
    pub fn record(&self) -> Result<Record, serde_json::Error> {
        serde_json::from_slice(&self.payload)
    }

    fn of(entry: &EntryRef<'_>) -> Self {
        Self {
            seq: entry.head.seq,
            time_unix_us: entry.head.time_unix_us,
            kind: entry.head.kind,
            payload: entry.payload.to_vec(),
        }
    }
}

/// The segment that is written to.
#[derive(Debug, Clone)]
pub(super) struct LastSegment {
    pub path: PathBuf,
    /// Where the last sealed entry ends.
    pub end: u64,
    pub torn: u64,
}

/// All segments together.
#[derive(Debug)]
pub(super) struct Whole {
    /// Of the first segment.
    pub header: Header,
    pub sealed: Frontier,
    /// Entries before each segment, and its bytes.
    pub segments: Vec<(u64, u64)>,
    pub last: LastSegment,
    /// The file beside the segments, read before them: a writer may publish another meanwhile.
    checkpoint: Option<Vec<u8>>,
    /// Root at the size of the checkpoint, if a seal has that size.
    root_at_checkpoint: Option<Hash>,
}

/// Reads segments one after the other and checks that each continues the one before.
struct Walk {
    paths: VecDeque<(u64, PathBuf)>,
    /// One file was given rather than a directory.
    single: bool,
    whole: Option<Whole>,
    checkpoint: Option<Vec<u8>>,
    checkpoint_size: Option<u64>,
}

/// Passes on, and notes the root that has the checkpoint's size.
struct Watching<'v, V> {
    visit: &'v mut V,
    size: Option<u64>,
    root: Option<Hash>,
}

impl<V: Visit> Visit for Watching<'_, V> {
    fn segment(&mut self, header: &Header) {
        if Some(header.start.size()) == self.size {
            self.root = Some(header.start.root());
        }
        self.visit.segment(header);
    }

    fn entry(&mut self, entry: &EntryRef<'_>) {
        self.visit.entry(entry);
    }

    fn sealed(&mut self, seal: &Seal) {
        if Some(seal.size) == self.size {
            self.root = Some(seal.root);
        }
        self.visit.sealed(seal);
    }
}

impl Walk {
    fn open(path: &Path) -> Result<Self, VerifyError> {
        let fail = |what| at(path, 0, what);
        let checkpoint = checkpoint_bytes(path);
        let paths: VecDeque<_> = files::segments(path).map_err(|e| fail(e.into()))?.into();
        if paths.is_empty() {
            return Err(fail(Fault::NotALedger));
        }
        Ok(Self {
            paths,
            single: path.is_file(),
            whole: None,
            checkpoint_size: checkpoint.as_deref().and_then(claimed_size),
            checkpoint,
        })
    }

    /// The next segment; `false` after the last.
    fn next(&mut self, visit: &mut impl Visit) -> Result<bool, VerifyError> {
        let Some((before, path)) = self.paths.pop_front() else {
            return Ok(false);
        };
        let bytes = files::read(&path)?;
        let mut watching = Watching {
            visit,
            size: self.checkpoint_size,
            root: None,
        };
        let scan = scan(&bytes, &mut watching).map_err(|fault| VerifyError {
            file: path.clone(),
            entry: fault.entry,
            offset: fault.offset.try_into().unwrap_or(u64::MAX),
            what: fault.what,
        })?;
        let root = watching.root;
        self.take(before, &path, bytes.len(), scan, root)?;
        Ok(true)
    }

    fn take(
        &mut self,
        before: u64,
        path: &Path,
        length: usize,
        scan: Scan,
        root: Option<Hash>,
    ) -> Result<(), VerifyError> {
        let found = scan.header.start.size();
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let last = LastSegment {
            end: number(scan.end),
            torn: number(scan.torn),
            path: path.to_owned(),
        };
        let length = number(length).saturating_sub(last.torn);
        if !self.single && found != before {
            return Err(at(path, found, gap(before, found)));
        }
        let Some(whole) = &mut self.whole else {
            self.whole = Some(Whole {
                header: scan.header,
                sealed: scan.sealed,
                segments: vec![(found, length)],
                last,
                checkpoint: self.checkpoint.take(),
                root_at_checkpoint: root,
            });
            return Ok(());
        };
        if scan.header.start != whole.sealed {
            return Err(at(path, found, gap(whole.sealed.size(), found)));
        }
        if scan.header.node_id != whole.header.node_id
            || scan.header.key != whole.header.key
            || scan.header.pq != whole.header.pq
        {
            return Err(at(path, 0, Fault::WrongKey));
        }
        if whole.last.torn > 0 {
            let what = Fault::Corrupt("an unfinished write in the middle of the ledger");
            return Err(at(&whole.last.path, whole.sealed.size(), what));
        }
        whole.sealed = scan.sealed;
        whole.segments.push((found, length));
        whole.last = last;
        whole.root_at_checkpoint = whole.root_at_checkpoint.or(root);
        Ok(())
    }
}

fn at(file: &Path, entry: u64, what: Fault) -> VerifyError {
    VerifyError {
        file: file.to_owned(),
        entry,
        offset: 0,
        what,
    }
}

const fn gap(expected: u64, found: u64) -> Fault {
    Fault::Gap {
        expected: expected.saturating_add(1),
        found: found.saturating_add(1),
    }
}

/// Reads and checks everything.
pub(super) fn walk(path: &Path, visit: &mut impl Visit) -> Result<Whole, VerifyError> {
    let mut walk = Walk::open(path)?;
    while walk.next(visit)? {}
    walk.whole.ok_or_else(|| at(path, 0, Fault::NotALedger))
}

fn checkpoint_bytes(dir: &Path) -> Option<Vec<u8>> {
    let path = dir.join(CHECKPOINT);
    path.exists()
        .then(|| read_capped(&path, u64::try_from(MAX_NOTE).unwrap_or(0)).unwrap_or_default())
}

/// The size that the checkpoint claims; whether it may is for [`published`] to say.
fn claimed_size(bytes: &[u8]) -> Option<u64> {
    let note = Note::parse(bytes).ok()?;
    Some(Checkpoint::parse(note.text()).ok()?.size)
}

/// The checkpoint beside the segments, if there is one, checked against keys and entries.
pub(super) fn published(
    dir: &Path,
    author: &AuthorKeys,
    whole: &Whole,
) -> Result<Option<SignedCheckpoint>, VerifyError> {
    let Some(bytes) = &whole.checkpoint else {
        return Ok(None);
    };
    let fail = |what| at(&dir.join(CHECKPOINT), 0, what);
    let signed = SignedCheckpoint::verify(bytes, author)
        .map_err(|e| fail(Fault::Checkpoint(e.to_string())))?;
    let (entries, size) = (whole.sealed.size(), signed.checkpoint.size);
    if size > entries {
        return Err(fail(Fault::CutBack {
            entries,
            signed: size,
        }));
    }
    // A checkpoint is made where a seal is. One from before the first segment that is kept cannot be
    // compared any more.
    if size >= whole.header.start.size() && whole.root_at_checkpoint != Some(signed.checkpoint.root)
    {
        return Err(fail(Fault::Rewritten(size)));
    }
    Ok(Some(signed))
}

struct Times<F> {
    first: Option<u64>,
    last: Option<u64>,
    entries: u64,
    progress: F,
}

impl<F: FnMut(u64)> Visit for Times<F> {
    fn entry(&mut self, entry: &EntryRef<'_>) {
        self.first = self.first.or(Some(entry.head.time_unix_us));
        self.last = Some(entry.head.time_unix_us);
        self.entries = self.entries.saturating_add(1);
    }

    fn sealed(&mut self, _: &Seal) {
        (self.progress)(self.entries);
    }
}

/// Checks a ledger, a copy of one, or one segment of it, with the keys its header names: every entry,
/// every root, the signatures that cover them, and the checkpoint. Memory does not grow with the
/// ledger. Reads while an agent writes are fine.
///
/// # Errors
/// [`VerifyError`] for the first thing that is wrong.
pub fn verify(path: &Path) -> Result<VerifyReport, VerifyError> {
    verify_with_key(path, None, |_| {})
}

/// As [`verify`]; with `expected` the ledger must be signed with that key. `progress` is told now and
/// then how many entries were checked.
///
/// # Errors
/// As [`verify`], and [`Fault::WrongKey`].
pub fn verify_with_key(
    path: &Path,
    expected: Option<&VerifyingKey>,
    progress: impl FnMut(u64),
) -> Result<VerifyReport, VerifyError> {
    let mut times = Times {
        first: None,
        last: None,
        entries: 0,
        progress,
    };
    let whole = walk(path, &mut times)?;
    let header = &whole.header;
    if expected.is_some_and(|key| *key != header.key) {
        return Err(at(path, 0, Fault::WrongKey));
    }
    let author = AuthorKeys {
        node: header.node_id,
        key: header.key.to_bytes(),
        pq: header.pq.clone(),
    };
    let checkpoint = published(path, &author, &whole)?;
    Ok(VerifyReport {
        entries: whole.sealed.size(),
        first_entry: header.start.size().saturating_add(1),
        segments: whole.segments.len(),
        first_unix_us: times.first,
        last_unix_us: times.last,
        head: whole.sealed.root(),
        node_id: author.node,
        key: author.key,
        pq: author.pq,
        torn_tail_bytes: whole.last.torn,
        checkpoint,
    })
}

/// The entries of a ledger in order; see [`iter`].
pub struct Entries {
    walk: Walk,
    node_id: [u8; 16],
    waiting: VecDeque<Entry>,
    fault: Option<VerifyError>,
}

struct Collect<'q>(&'q mut VecDeque<Entry>);

impl Visit for Collect<'_> {
    fn entry(&mut self, entry: &EntryRef<'_>) {
        self.0.push_back(Entry::of(entry));
    }
}

impl Entries {
    /// The node that wrote the ledger.
    pub const fn node_id(&self) -> [u8; 16] {
        self.node_id
    }

    /// Reads the next segment. What is good before a fault comes out before the fault does.
    fn more(&mut self) -> bool {
        match self.walk.next(&mut Collect(&mut self.waiting)) {
            Ok(more) => {
                if let Some(whole) = &self.walk.whole {
                    self.node_id = whole.header.node_id;
                }
                more
            }
            Err(fault) => {
                self.fault = Some(fault);
                self.walk.paths.clear();
                false
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, VerifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.waiting.pop_front() {
                return Some(Ok(entry));
            }
            if let Some(fault) = self.fault.take() {
                return Some(Err(fault));
            }
            if !self.more() && self.waiting.is_empty() && self.fault.is_none() {
                return None;
            }
        }
    }
}

/// Reads a ledger entry by entry, checking as it goes. Ends before an unfinished write, and after the
/// first fault.
///
/// # Errors
/// [`VerifyError`] if there is no ledger or its first header is wrong.
pub fn iter(path: &Path) -> Result<Entries, VerifyError> {
    let mut entries = Entries {
        walk: Walk::open(path)?,
        node_id: [0; 16],
        waiting: VecDeque::new(),
        fault: None,
    };
    entries.more();
    match entries.fault.take() {
        Some(fault) if fault.entry == 0 => Err(fault),
        fault => {
            entries.fault = fault;
            Ok(entries)
        }
    }
}
