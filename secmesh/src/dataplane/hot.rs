//! The hot sources: what the program remembers of blocked sources that are sending now.
//!
//! They are the program's own state. It asks the block map again ten times a second, so a slot that somebody else
//! filled for a source that is not blocked, or emptied, is right again with the source's next packets. What it does
//! not ask again is the allowlist, and whether a block is a quarantine: those it asked before it filled the slot.

use std::net::IpAddr;

use secmesh_common::{
    block::origin,
    hot::{self, HotSource},
    packet::Family,
};

use super::{BlockTable, Differences, TableError, batch};
use crate::addr::Prefix;

impl BlockTable {
    /// Slots of hot sources.
    pub fn hot_slots(&self) -> u32 {
        u32::try_from(hot::SLOTS).unwrap_or(u32::MAX)
    }

    /// Looks at the next `count` slots from `first` on, and empties those that the program would not have filled:
    /// of sources that are allowed, or cut off by vote. Slots of sources that are not blocked are emptied and not
    /// counted; a block that ended at this instant leaves one, too.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn audit_hot(
        &mut self,
        first: u32,
        count: u32,
        is_allowed: impl Fn(&Prefix) -> bool,
    ) -> Result<Differences, TableError> {
        let refused = |e: aya::maps::MapError| TableError::Kernel {
            map: "HOT",
            reason: e.to_string(),
        };
        let mut found = Differences::default();
        let generation = self.config.get().hot_generation;
        let there = batch::get(&self.hot, first, count).map_err(refused)?;
        for (at, hot) in (first..).zip(there) {
            let Some(addr) = address(&hot).filter(|_| hot.generation == generation) else {
                continue;
            };
            let source = Prefix::host(addr);
            let entry = self.entry(&source);
            let unwanted = match entry {
                None => false,
                Some(entry) => is_allowed(&source) || entry.flags & 0xff == origin::QUARANTINE,
            };
            if entry.is_none() || unwanted {
                self.hot.set(at, HotSource::default(), 0).map_err(refused)?;
            }
            found.note(false, unwanted);
        }
        Ok(found)
    }
}

/// Whose slot it is.
fn address(hot: &HotSource) -> Option<IpAddr> {
    if hot.family == Family::V4 as u32 {
        let [first, ..] = hot.addr;
        return Some(IpAddr::from(first.to_ne_bytes()));
    }
    if hot.family != Family::V6 as u32 {
        return None;
    }
    let mut bytes = [0u8; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(hot.addr) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    Some(IpAddr::from(bytes))
}
