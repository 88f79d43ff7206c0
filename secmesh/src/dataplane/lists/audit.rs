//! Looking through the tables, a slice at a time: what somebody else changed is written again.
//!
//! What should be there is known here word by word: the host tables and the guards have copies, ranges and their
//! index follow from what was compiled. So an audit reads the kernel's arrays once, from end to end, and writes
//! only where they differ.

use secmesh_common::list::{INDEX4, ListBucket4, ListBucket6, ListRange4, ListRange6};

use super::{ListTables, count, kernel_expiry, pair, refused};
use crate::{dataplane::TableError, respond::Now};

/// Ends of ranges may differ by so many units: they follow from two clocks that drift apart.
const MAX_DRIFT: u32 = 4;

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
            Self::Index => Self::Guard4,
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

    fn note(&mut self, wrong: bool, left_over: bool) {
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
    /// In the lists' tables: hosts, ranges, entries of the index.
    pub lists: Differences,
    /// In the guards: words.
    pub guards: Differences,
    /// In the kernel's configuration: 1 if it differed.
    pub config: Differences,
    /// Whether the audit came to its end.
    pub done: bool,
}

/// Whether a host of the kernel's table differs from the one that should be there: wrong, or left over.
fn differs<A: PartialEq>(
    wanted: Option<(A, (u32, u16))>,
    addr: A,
    expires: u32,
    list: u16,
) -> (bool, bool) {
    match wanted {
        Some(host) => (host != (addr, (expires, list)), false),
        None => (false, expires != 0),
    }
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
                if self.config.put_right().map_err(|e| TableError::Kernel {
                    map: "CONFIG",
                    reason: e.to_string(),
                })? {
                    found.config.added = 1;
                }
                0
            }
            // Empty tables, that the kernel does not look into.
            Phase::Hosts4 if config.list_hosts4 == 0 && self.hosts4.len() == 0 => 0,
            Phase::Hosts6 if config.list_hosts6 == 0 && self.hosts6.len() == 0 => 0,
            Phase::Hosts4 => self.maps.hosts4.len(),
            Phase::Hosts6 => self.maps.hosts6.len(),
            Phase::Ranges4 => count(self.current.ranges4.len()),
            Phase::Ranges6 => count(self.current.ranges6.len()),
            Phase::Index if self.current.ranges4.is_empty() => 0,
            Phase::Index => INDEX4,
            Phase::Guard4 | Phase::Guard6 => count(secmesh_common::list::GUARD_WORDS),
        };
        let end = cursor.at.saturating_add(slice).min(all);
        for n in cursor.at..end {
            match cursor.phase {
                Phase::Config => {}
                Phase::Hosts4 => self.audit_bucket4(n, &mut found.lists)?,
                Phase::Hosts6 => self.audit_bucket6(n, &mut found.lists)?,
                Phase::Ranges4 => {
                    self.audit_range4(n, half * config.list_room4, now, &mut found.lists)?;
                }
                Phase::Ranges6 => {
                    self.audit_range6(n, half * config.list_room6, now, &mut found.lists)?;
                }
                Phase::Index => self.audit_index(n, half, &mut found.lists)?,
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

    fn audit_bucket4(&mut self, n: u32, found: &mut Differences) -> Result<(), TableError> {
        let map = &mut self.maps.hosts4;
        let there = map.get(&n, 0).map_err(refused("LIST4"))?;
        let mut right = ListBucket4::default();
        let mut any = false;
        for ((host, to), wanted) in there
            .hosts
            .iter()
            .zip(&mut right.hosts)
            .zip(self.hosts4.bucket(n))
        {
            let addr = u32::from_be_bytes(host.addr);
            let (wrong, left_over) = differs(*wanted, addr, host.expires, host.list);
            found.note(wrong, left_over);
            any |= wrong || left_over;
            if let Some((addr, (expires, list))) = *wanted {
                to.addr = addr.to_be_bytes();
                to.expires = expires;
                to.list = list;
                to.hits = if wrong { 0 } else { host.hits };
            }
        }
        if any {
            map.set(n, right, 0).map_err(refused("LIST4"))?;
        }
        Ok(())
    }

    fn audit_bucket6(&mut self, n: u32, found: &mut Differences) -> Result<(), TableError> {
        let map = &mut self.maps.hosts6;
        let there = map.get(&n, 0).map_err(refused("LIST6"))?;
        let mut right = ListBucket6::default();
        let mut any = false;
        for ((host, to), wanted) in there
            .hosts
            .iter()
            .zip(&mut right.hosts)
            .zip(self.hosts6.bucket(n))
        {
            let addr = u128::from_be_bytes(host.addr);
            let (wrong, left_over) = differs(*wanted, addr, host.expires, host.list);
            found.note(wrong, left_over);
            any |= wrong || left_over;
            if let Some((addr, (expires, list))) = *wanted {
                to.addr = addr.to_be_bytes();
                to.expires = expires;
                to.list = list;
                to.hits = if wrong { 0 } else { host.hits };
            }
        }
        if any {
            map.set(n, right, 0).map_err(refused("LIST6"))?;
        }
        Ok(())
    }

    fn audit_range4(
        &mut self,
        n: u32,
        base: u32,
        now: Now,
        found: &mut Differences,
    ) -> Result<(), TableError> {
        let Some(span) = self.current.ranges4.get(n as usize) else {
            return Ok(());
        };
        let at = base.saturating_add(n);
        let map = &mut self.maps.ranges4;
        let there = map.get(&at, 0).map_err(refused("RANGE4"))?;
        let right = ListRange4 {
            start: span.start,
            end: span.end,
            expires: kernel_expiry(span.expires_unix_s, now),
            list: span.list,
            flags: 0,
            hits: there.hits,
        };
        let drift = there.expires.abs_diff(right.expires);
        let same = ListRange4 {
            expires: right.expires,
            ..there
        } == right;
        if !same || drift > MAX_DRIFT {
            found.note(true, false);
            map.set(at, right, 0).map_err(refused("RANGE4"))?;
        }
        Ok(())
    }

    fn audit_range6(
        &mut self,
        n: u32,
        base: u32,
        now: Now,
        found: &mut Differences,
    ) -> Result<(), TableError> {
        let Some(span) = self.current.ranges6.get(n as usize) else {
            return Ok(());
        };
        let at = base.saturating_add(n);
        let map = &mut self.maps.ranges6;
        let there = map.get(&at, 0).map_err(refused("RANGE6"))?;
        let right = ListRange6 {
            start: pair(span.start),
            end: pair(span.end),
            expires: kernel_expiry(span.expires_unix_s, now),
            list: span.list,
            flags: 0,
            hits: there.hits,
        };
        let drift = there.expires.abs_diff(right.expires);
        let same = ListRange6 {
            expires: right.expires,
            ..there
        } == right;
        if !same || drift > MAX_DRIFT {
            found.note(true, false);
            map.set(at, right, 0).map_err(refused("RANGE6"))?;
        }
        Ok(())
    }

    fn audit_index(
        &mut self,
        block: u32,
        half: u32,
        found: &mut Differences,
    ) -> Result<(), TableError> {
        let right = count(
            self.current
                .ranges4
                .partition_point(|s| u64::from(s.start) < u64::from(block) << 16),
        );
        let at = half * INDEX4 + block;
        let map = &mut self.maps.index;
        if map.get(&at, 0).map_err(refused("INDEX"))? != right {
            found.note(true, false);
            map.set(at, right, 0).map_err(refused("INDEX"))?;
        }
        Ok(())
    }
}
