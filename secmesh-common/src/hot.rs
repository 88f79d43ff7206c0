//! Hot sources: those that a decision blocks and that are sending now, where one load reaches them.

use crate::{
    list::native,
    packet::{Family, Words},
};

/// Key of a hot-source slot: a sum of multiplications by secret odd numbers, which do not wait for each other.
#[inline(always)]
pub const fn place(words: &Words, family: Family, seed: u64) -> u32 {
    const SHIFT: u32 = u64::BITS - SLOTS.trailing_zeros();
    let [low, high] = native(words);
    let hash = low.wrapping_mul(seed | 1);
    let hash = match family {
        Family::V4 | Family::Other => hash,
        Family::V6 => {
            hash.wrapping_add((high ^ (seed >> 32)).wrapping_mul(seed.rotate_left(23) | 1))
        }
    };
    (hash >> SHIFT) as u32
}

/// Slots for sources that are being dropped right now; a power of two.
pub const SLOTS: usize = 1 << 12;

/// How often a hot source's counts are added to its block entry, ns: a tenth of a second.
pub const FLUSH_NS: u64 = 95 << FLUSH_SHIFT;

/// [`HotSource::flushed`] is `CLOCK_MONOTONIC` ns, shifted right by this.
const FLUSH_SHIFT: u32 = 20;

/// A source that a decision blocks and that is sending: what its block entry says, where one load reaches
/// it, and counts that its block entry has not got yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct HotSource {
    /// The address as the packet has it; IPv4 in the first word.
    pub addr: Words,
    /// [`lease`] when all the rest was last compared; 0 if never.
    pub lease: u64,
    /// When the block ends, `CLOCK_MONOTONIC` ns.
    pub expires_ns: u64,
    /// When its last packet came, `CLOCK_MONOTONIC` ns.
    pub last_ns: u64,
    /// Bytes not yet in the entry.
    pub bytes: u64,
    /// Packets not yet in the entry: what comes in [`FLUSH_NS`] and a timer tick.
    pub hits: u32,
    /// When the entry was brought up to date, 2²⁰ ns. Comes round in 52 days; the counts of a slot that nobody asked for
    /// so long may then wait for another [`FLUSH_NS`].
    pub flushed: u32,
    /// [`crate::config::Config::hot_generation`] when the slot was filled; another one empties it.
    pub generation: u32,
    /// 4 or 6; 0 is a free slot.
    pub family: u32,
}

const _: () = assert!(size_of::<HotSource>() == 64, "one cache line");

impl HotSource {
    /// What [`Self::flushed`] is at `now_ns`, `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub const fn flush_time(now_ns: u64) -> u32 {
        ((now_ns >> FLUSH_SHIFT) & 0xffff_ffff) as u32
    }

    /// Whether the counts have to go into the entry.
    #[inline(always)]
    pub const fn is_stale(&self, now_ns: u64) -> bool {
        Self::flush_time(now_ns).wrapping_sub(self.flushed) >= Self::flush_time(FLUSH_NS)
    }
}

/// What a slot's lease is good for, by [`crate::lease::key`].
///
/// Within one timer tick and one epoch of the configuration nothing changes that the slot was compared with, so the
/// address is all that is left to compare. Families are told apart here, since the addresses of both begin in the same
/// place.
#[inline(always)]
pub const fn lease(key: u64, family: Family) -> u64 {
    match family {
        Family::V4 | Family::Other => key,
        Family::V6 => !key,
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for HotSource {}
