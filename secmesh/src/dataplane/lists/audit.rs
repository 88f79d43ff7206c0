//! Looking through the tables, a slice at a time: what somebody else changed is written again.
//!
//! What should be there is known here word by word: the host tables and the guards have copies, ranges and their
//! index follow from what was compiled. So an audit reads the kernel's arrays once, from end to end, and writes
//! only where they differ.

use secmesh_common::list::INDEX4;

use super::{ListTables, count};
use crate::{
    dataplane::{TableError, tables::unconfigured},
    respond::Now,
};

/// How far an audit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditCursor {
    phase: Phase,
    at: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    #[default]
    Config,
    Hosts4,
    Hosts6,
    Ranges4,
    Ranges6,
    Index,
    Nets,
    Guard4,
    Guard6,
}

impl Phase {
    fn next(self) -> Option<Self> {
        Some(match self {
            Self::Config => Self::Hosts4,
            Self::Hosts4 => Self::Hosts6,
            Self::Hosts6 => Self::Ranges4,
            Self::Ranges4 => Self::Ranges6,
            Self::Ranges6 => Self::Index,
            Self::Index => Self::Nets,
            Self::Nets => Self::Guard4,
            Self::Guard4 => Self::Guard6,
            Self::Guard6 => return None,
        })
    }
}

/// Differences that were put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Differences {
    /// Entries that were missing or wrong.
    pub added: usize,
    /// Entries that nobody wanted.
    pub removed: usize,
}

impl Differences {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.added + self.removed > 0
    }

    /// Counts an entry that is wrong, or one that is left over.
    pub(in crate::dataplane) fn note(&mut self, wrong: bool, left_over: bool) {
        if wrong {
            self.added += 1;
        } else if left_over {
            self.removed += 1;
        }
    }
}

/// What one slice found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audited {
    /// In the lists' tables: hosts, ranges, entries of the index, buckets of networks.
    pub lists: Differences,
    /// In the guards: words.
    pub guards: Differences,
    /// In the kernel's configuration: 1 if it differed.
    pub config: Differences,
    /// Whether the audit came to its end.
    pub done: bool,
}

impl ListTables {
    /// Looks at the next `slice` entries from `cursor` on, and moves it. The last [`ListTables::replace`] must
    /// have worked.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn audit(
        &mut self,
        cursor: &mut AuditCursor,
        slice: u32,
        now: Now,
    ) -> Result<Audited, TableError> {
        let mut found = Audited::default();
        let config = self.config.get();
        let half = config.list_half & 1;
        let all = match cursor.phase {
            Phase::Config => {
                if self.config.put_right().map_err(unconfigured)? {
                    found.config.added = 1;
                }
                0
            }
            // Empty tables, that the kernel does not look into.
            Phase::Hosts4 if config.list_hosts4 == 0 && self.hosts4.len() == 0 => 0,
            Phase::Hosts6 if config.list_hosts6 == 0 && self.hosts6.len() == 0 => 0,
            Phase::Hosts4 => self.hosts4.buckets(),
            Phase::Hosts6 => self.hosts6.buckets(),
            Phase::Ranges4 => count(self.current.ranges4.len()),
            Phase::Ranges6 => count(self.current.ranges6.len()),
            Phase::Index if self.current.ranges4.is_empty() => 0,
            Phase::Index => INDEX4,
            Phase::Nets => self.ranges.nets.audited(),
            Phase::Guard4 | Phase::Guard6 => self.guard.words(),
        };
        let end = cursor.at.saturating_add(slice).min(all);
        for n in cursor.at..end {
            match cursor.phase {
                Phase::Config => {}
                Phase::Hosts4 => self.hosts4.audit(n, &mut found.lists)?,
                Phase::Hosts6 => self.hosts6.audit(n, &mut found.lists)?,
                Phase::Ranges4 => {
                    let spans = &self.current.ranges4;
                    self.ranges.audit4(half, n, spans, now, &mut found.lists)?;
                }
                Phase::Ranges6 => {
                    let spans = &self.current.ranges6;
                    self.ranges.audit6(half, n, spans, now, &mut found.lists)?;
                }
                Phase::Index => {
                    let spans = &self.current.ranges4;
                    self.ranges.audit_index(half, n, spans, &mut found.lists)?;
                }
                Phase::Nets => self.ranges.nets.audit(half, n, &mut found.lists)?,
                Phase::Guard4 | Phase::Guard6 => {
                    let missing = self.guard.audit(cursor.phase == Phase::Guard4, n)?;
                    if let Some(missing) = missing {
                        found.guards.note(missing, true);
                    }
                }
            }
        }
        if end < all {
            cursor.at = end;
            return Ok(found);
        }
        match cursor.phase.next() {
            Some(phase) => *cursor = AuditCursor { phase, at: 0 },
            None => found.done = true,
        }
        Ok(found)
    }
}
