//! The next segment, and the end of the oldest ones.

use super::{Ledger, corrupt};
use crate::ledger::LedgerError;
use crate::ledger::carry;
use crate::ledger::fault::VerifyError;
use crate::ledger::files::{self, segment_path};
use crate::ledger::format::decode_header;
use crate::ledger::open::{create_segment, io_error, open_segment};
use crate::ledger::segment::{MAX_SEGMENT, MAX_TAIL};

/// Bytes that a segment may have where the next cannot be begun: readers take one commit more.
const FULL: u64 = MAX_SEGMENT - MAX_TAIL as u64;

impl Ledger {
    /// Begins the next segment if this one is full. To be called after a commit only.
    ///
    /// Where there is none to be had (no descriptors, no space) this one goes on and the next commit tries again,
    /// until readers would not take it: then the ledger has failed.
    pub(super) fn next_segment_if_full(&mut self) {
        let bytes = self.segments.back().map_or(0, |(_, bytes)| *bytes);
        if bytes < self.retention.segment_bytes || self.failed.is_some() {
            return;
        }
        let Err(error) = self.next_segment() else {
            self.cannot_rotate = false;
            self.has_rotated = true;
            return;
        };
        if bytes >= FULL {
            self.failed = Some(error.to_string());
        }
        if !std::mem::replace(&mut self.cannot_rotate, true) {
            tracing::error!(%error, path = %self.path.display(), bytes, "the ledger cannot begin its next segment and goes on with this one; it is tried again");
        }
    }

    fn next_segment(&mut self) -> Result<(), LedgerError> {
        let start = self.tree.frontier().clone();
        let path = segment_path(&self.dir, start.size());
        let created = create_segment(&self.dir, &self.keys, &start)
            .and_then(|_| Ok((open_segment(&path)?, path.metadata().map_or(0, |m| m.len()))));
        let (file, length) = match created {
            Ok(created) => created,
            Err(error) => {
                // This segment goes on: a next one that begins here would contradict it after a restart.
                let removed = match std::fs::remove_file(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    Err(e) => Err(e),
                    Ok(()) => std::fs::File::open(&self.dir).and_then(|dir| dir.sync_all()),
                };
                if removed.is_err() {
                    self.failed = Some(error.to_string());
                }
                return Err(error);
            }
        };
        self.file = file;
        self.path = path;
        self.tree.next_segment();
        self.segments.push_back((start.size(), length));
        Ok(())
    }

    /// Drops the oldest segments where all together have too many bytes. What is still needed out of them is
    /// appended before.
    ///
    /// # Errors
    /// An I/O error, or what is wrong with a segment. Nothing that is needed is gone then, and it can be tried
    /// again.
    pub(super) fn drop_old(&mut self) -> Result<(), LedgerError> {
        let mut total: u64 = self.segments.iter().map(|(_, bytes)| *bytes).sum();
        if total <= self.retention.total_bytes {
            return Ok(());
        }
        // An eighth at a time, since each time everything is looked through.
        let target = self.retention.total_bytes / 8 * 7;
        let mut gone = 0;
        for (_, bytes) in &self.segments {
            if total <= target || self.segments.len() - gone <= 2 {
                break;
            }
            total = total.saturating_sub(*bytes);
            gone += 1;
        }
        let Some((first, _)) = self.segments.get(gone).copied() else {
            return Ok(());
        };
        let keep = carry::out_of(&self.dir, first, self.time_unix_us)?;
        for (kind, json) in keep {
            // Over as many segments as it takes.
            self.append_encoded(self.time_unix_us, kind, &json)?;
        }
        self.commit()?;
        let start = files::read(&segment_path(&self.dir, first)).map_err(corrupt)?;
        let header = decode_header(&start).map_err(|what| {
            corrupt(VerifyError {
                file: segment_path(&self.dir, first),
                entry: 0,
                offset: 0,
                what,
            })
        })?;
        // The oldest first: a crash in between leaves a log without a hole.
        for _ in 0..gone {
            let Some((before, _)) = self.segments.front().copied() else {
                break;
            };
            let path = segment_path(&self.dir, before);
            std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
            self.segments.pop_front();
        }
        self.tree.drop_before(header.start);
        Ok(())
    }
}
