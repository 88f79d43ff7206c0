//! Looking through the tables, a slice at a time: what somebody else changed is written again.
//!
//! What should be there is known here word by word: the host tables and the guards have copies, ranges and their
//! index follow from what was compiled. So an audit reads the kernel's arrays once, from end to end, and writes
//! only where they differ.

use aya::maps::{Array, MapData};
use secmesh_common::list::{
    GROUP6_SHIFT, INDEX4, ListBucket4, ListBucket6, ListRange4, ListRange6, Listed,
};

use super::{
    Four, ListTables, Six, beside, bucket4, bucket6, count, kernel_expiry, listed, pair, refused,
    soonest,
};
use crate::{
    dataplane::{
        TableError,
        cuckoo::{Geometry as _, Value},
    },
    respond::Now,
};

/// Ends of ranges may differ by so many units: they follow from two clocks that drift apart.
const MAX_DRIFT: u32 = 4;

/// Whether an end in the kernel is the one that is wanted. Of what has ended any end before now is right: it stays
/// until the lists are replaced, and is obeyed by nobody.
fn same_end(there: u32, wanted_unix_s: u64, now: Now) -> bool {
    let wanted = kernel_expiry(wanted_unix_s, now);
    let has_ended = wanted_unix_s.saturating_mul(1_000_000) <= now.unix_us;
    there.abs_diff(wanted) <= MAX_DRIFT || (has_ended && there <= wanted)
}

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

/// What of a bucket's table beside differs from what should be there, slot by slot.
fn audit_beside<K>(
    map: &mut Array<MapData, Listed>,
    name: &'static str,
    first: u32,
    slots: &[Option<(K, Value)>],
    found: &mut Differences,
) -> Result<(), TableError> {
    for (at, wanted) in (first..).zip(slots) {
        let there = map.get(&at, 0).map_err(refused(name))?;
        let right = listed(wanted.as_ref().map(|(_, value)| *value));
        if (there.expires, there.list) == (right.expires, right.list) {
            continue;
        }
        found.note(wanted.is_some(), true);
        map.set(at, right, 0).map_err(refused(name))?;
    }
    Ok(())
}

/// Notes the slots whose addresses differ; whether there are any.
fn wrong_slots<A: PartialEq, K>(
    there: &[A],
    right: &[A],
    slots: &[Option<(K, Value)>],
    found: &mut Differences,
) -> bool {
    let mut any = false;
    for ((there, right), wanted) in there.iter().zip(right).zip(slots) {
        if there != right {
            found.note(wanted.is_some(), true);
            any = true;
        }
    }
    any
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
            Phase::Guard4 | Phase::Guard6 => self.guard.words(),
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

    /// Addresses, their ends, and the soonest of them. One that is too soon only costs a look beside, and a bucket
    /// that was never written says that nothing in it is in force.
    fn audit_bucket4(&mut self, n: u32, found: &mut Differences) -> Result<(), TableError> {
        let seed = self.config.get().table_seed;
        let slots = self.hosts4.bucket(n);
        let first = beside::<Four>(n, 0);
        audit_beside(&mut self.maps.listed4, "LISTED4", first, slots, found)?;
        let map = &mut self.maps.hosts4;
        let there = map.get(&n, 0).map_err(refused("LIST4"))?;
        let untouched = there == ListBucket4::default() && slots.iter().all(Option::is_none);
        if untouched {
            return Ok(());
        }
        let right = bucket4(n, slots, soonest(slots), seed, self.hosts4.buckets());
        let wrong = wrong_slots(&there.addrs, &right.addrs, slots, found);
        let late = there.soonest > right.soonest;
        if !(wrong || late) {
            return Ok(());
        }
        found.note(late && !wrong, false);
        map.set(n, right, 0).map_err(refused("LIST4"))
    }

    fn audit_bucket6(&mut self, n: u32, found: &mut Differences) -> Result<(), TableError> {
        let (seed, buckets) = (self.config.get().table_seed, self.hosts6.buckets());
        let group = n >> GROUP6_SHIFT;
        if n.is_multiple_of(1 << GROUP6_SHIFT) {
            let right = soonest(self.hosts6.group(n));
            let map = &mut self.maps.soonest6;
            if map.get(&group, 0).map_err(refused("SOONEST6"))? > right {
                found.note(true, false);
                map.set(group, right, 0).map_err(refused("SOONEST6"))?;
            }
        }
        let slots = self.hosts6.bucket(n);
        let first = beside::<Six>(n, 0);
        audit_beside(&mut self.maps.listed6, "LISTED6", first, slots, found)?;
        let map = &mut self.maps.hosts6;
        let there = map.get(&n, 0).map_err(refused("LIST6"))?;
        // Never written, and nobody would look here for the address that is all zeros.
        let untouched = there == ListBucket6::default()
            && slots.iter().all(Option::is_none)
            && !Six::places(0, seed, buckets).contains(&n);
        if untouched {
            return Ok(());
        }
        let right = bucket6(n, slots, seed, buckets);
        if !wrong_slots(&there.addrs, &right.addrs, slots, found) {
            return Ok(());
        }
        map.set(n, right, 0).map_err(refused("LIST6"))
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
        let same = ListRange4 {
            expires: right.expires,
            ..there
        } == right;
        if !same || !same_end(there.expires, span.expires_unix_s, now) {
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
        let same = ListRange6 {
            expires: right.expires,
            ..there
        } == right;
        if !same || !same_end(there.expires, span.expires_unix_s, now) {
            found.note(true, false);
            map.set(at, right, 0).map_err(refused("RANGE6"))?;
        }
        let [high, _] = right.start;
        let map = &mut self.maps.search6;
        if map.get(&at, 0).map_err(refused("SEARCH6"))? != high {
            found.note(true, false);
            map.set(at, high, 0).map_err(refused("SEARCH6"))?;
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
