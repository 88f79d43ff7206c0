//! The files that a writer writes to: locked, created, opened, and read once to go on where they end.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::LedgerError;
use super::fault::VerifyError;
use super::files::segment_path;
use super::format::{Header, encode_header};
use super::segment::{EntryRef, Visit};
use super::tree::LogTree;
use super::writer::LedgerKeys;
use crate::merkle::Frontier;
use crate::state::{PRIVATE, write_atomic};

const LOCK: &str = "lock";

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> LedgerError {
    move |source| LedgerError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn corrupt(fault: VerifyError) -> LedgerError {
    LedgerError::Corrupt {
        path: fault.file.clone(),
        fault,
    }
}

impl From<VerifyError> for LedgerError {
    fn from(fault: VerifyError) -> Self {
        corrupt(fault)
    }
}

pub(super) fn open_segment(path: &Path) -> Result<File, LedgerError> {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(OFlag::O_NOFOLLOW.bits());
    options.open(path).map_err(io_error("open", path))
}

/// The tree, while the segments are read.
pub(super) struct Growing {
    dir: PathBuf,
    pub tree: Option<LogTree>,
    pub last_time: u64,
}

impl Growing {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            tree: None,
            last_time: 0,
        }
    }
}

impl Visit for Growing {
    fn segment(&mut self, header: &Header) {
        match &mut self.tree {
            Some(tree) => tree.next_segment(),
            None => self.tree = Some(LogTree::new(self.dir.clone(), header.start.clone())),
        }
    }

    fn entry(&mut self, entry: &EntryRef<'_>) {
        if let Some(tree) = &mut self.tree {
            tree.push(entry.leaf);
        }
        self.last_time = self.last_time.max(entry.head.time_unix_us);
    }
}

pub(super) fn lock(dir: &Path) -> Result<Flock<File>, LedgerError> {
    if !dir.exists() {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(dir)
            .map_err(io_error("create", dir))?;
    }
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        .mode(PRIVATE)
        .custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(&path).map_err(io_error("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => LedgerError::InUse(dir.to_owned()),
        e => io_error("lock", &path)(e.into()),
    })
}

pub(super) fn create_segment(
    dir: &Path,
    keys: &LedgerKeys,
    start: &Frontier,
) -> Result<PathBuf, LedgerError> {
    let path = segment_path(dir, start.size());
    let header = encode_header(keys.node, &keys.key, keys.pq.public(), start);
    write_atomic(&path, &header, PRIVATE)?;
    Ok(path)
}
