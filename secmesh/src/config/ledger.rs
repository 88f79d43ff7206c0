//! `[ledger]`: how much of the record is kept, and how often peers are shown it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Checker;
use super::values;
use crate::ledger::Retention;

/// `[ledger]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    /// A segment is closed at this size, in MiB: 1 to 64. Default 8.
    pub segment_mib: u32,
    /// Oldest segments go when all are larger than this together, in MiB: 16 to 1,048,576. Default 512.
    pub keep_mib: u32,
    /// How often a checkpoint is signed and shown to witnesses, if there is something new: 1 s to 1 h.
    /// Default 30 s.
    #[serde(with = "values::duration")]
    pub checkpoint: Duration,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            segment_mib: 8,
            keep_mib: 512,
            checkpoint: Duration::from_secs(30),
        }
    }
}

impl LedgerConfig {
    pub(super) fn check(&self, check: &mut Checker) {
        check.count("segment_mib", self.segment_mib, 1..=64);
        check.count("keep_mib", self.keep_mib, 16..=1 << 20);
        check.duration(
            "checkpoint",
            self.checkpoint,
            Duration::from_secs(1)..=Duration::from_hours(1),
        );
    }

    /// The same for the ledger.
    pub fn retention(&self) -> Retention {
        Retention {
            segment_bytes: u64::from(self.segment_mib) << 20,
            total_bytes: u64::from(self.keep_mib) << 20,
        }
    }
}
