//! The files of a ledger: a directory with one file per segment.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::fault::{Fault, VerifyError};
use super::segment::MAX_SEGMENT;

/// The latest checkpoint, a signed note.
pub(super) const CHECKPOINT: &str = "checkpoint";
const EXTENSION: &str = "seg";

/// The segment whose first entry comes after `before` others.
pub(super) fn segment_path(dir: &Path, before: u64) -> PathBuf {
    dir.join(format!("{:020}.{EXTENSION}", before.saturating_add(1)))
}

/// Segments in `dir` in order: entries before each, and its path. `dir` may also be one segment.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    if dir.is_file() {
        return Ok(vec![(0, dir.to_owned())]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != EXTENSION) {
            continue;
        }
        let first = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| stem.len() == 20)
            .and_then(|stem| stem.parse::<u64>().ok());
        if let Some(before) = first.and_then(|first| first.checked_sub(1)) {
            found.push((before, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a segment.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, VerifyError> {
    let fail = |what| VerifyError {
        file: path.to_owned(),
        entry: 0,
        offset: 0,
        what,
    };
    let inner = || {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        if size > MAX_SEGMENT {
            return Err(Fault::TooLarge(size));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        // The size now; what a writer appends while we read is not looked at.
        file.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    inner().map_err(fail)
}
