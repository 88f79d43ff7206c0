//! The thread looks through the kernel's tables, a slice at a time, so that no import waits for it.

use std::time::Duration;

use tracing::{info, warn};

use super::{locked, worker::Worker};
use crate::{
    api::types::ReconcileTotals,
    dataplane::Differences,
    respond::{Now, lists::kernel::AuditCursor},
};

/// Pause between two slices: of the time at most half a processor is used.
pub const REST: Duration = Duration::from_millis(5);
/// Entries looked at in one slice, at some 300 ns each.
const SLICE: u32 = 8192;

/// A look through the tables that is under way.
#[derive(Debug, Clone, Copy)]
pub struct Auditing {
    cursor: AuditCursor,
    begun_ns: u64,
}

impl Auditing {
    /// Begins at the start of the first table.
    pub fn begin(now_ns: u64) -> Self {
        Self {
            cursor: AuditCursor::default(),
            begun_ns: now_ns,
        }
    }
}

fn add(totals: &mut ReconcileTotals, found: Differences) {
    let sum = |n: &mut u64, by: usize| *n = n.saturating_add(u64::try_from(by).unwrap_or(u64::MAX));
    sum(&mut totals.added, found.added);
    sum(&mut totals.removed, found.removed);
}

impl Worker {
    /// Goes on with a look through the tables, if there is one.
    pub fn audit_a_little(&mut self) {
        let Some(mut auditing) = self.auditing.take() else {
            return;
        };
        if locked(&self.shared.board).totals.error.is_some() {
            // What should be there is written again soon anyway.
            return;
        }
        let now = Now {
            unix_us: self.clock.unix_us(),
            mono_ns: self.clock.mono_ns(),
        };
        let result = self.kernel.audit(&mut auditing.cursor, SLICE, now);
        let mut board = locked(&self.shared.board);
        let audits = &mut board.totals.audits;
        let all = [&mut audits.lists, &mut audits.guards, &mut audits.config];
        match result {
            Ok(found) => {
                for (totals, found, what) in all
                    .into_iter()
                    .zip([found.lists, found.guards, found.config])
                    .zip(["lists", "guards", "configuration"])
                    .map(|((t, f), w)| (t, f, w))
                {
                    add(totals, found);
                    if found.any() {
                        warn!(
                            what,
                            missing = found.added,
                            left_over = found.removed,
                            "the kernel's tables differed from what is desired; put right"
                        );
                    }
                }
                if !found.done {
                    self.auditing = Some(auditing);
                    return;
                }
                let ms = now.mono_ns.saturating_sub(auditing.begun_ns) / 1_000_000;
                for totals in [&mut audits.lists, &mut audits.guards, &mut audits.config] {
                    totals.runs = totals.runs.saturating_add(1);
                    totals.last_ms = ms;
                }
                if ms > 10_000 {
                    info!(ms, "looked through the tables of lists and guards");
                }
            }
            Err(error) => {
                warn!(%error, "the tables of the lists cannot be looked through");
                audits.lists.failed = audits.lists.failed.saturating_add(1);
            }
        }
    }
}
