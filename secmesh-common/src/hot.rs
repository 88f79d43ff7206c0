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

/// How often a hot source's counts are added to its block entry, ns.
pub const FLUSH_NS: u64 = 100_000_000;

/// A source that a decision blocks and that is sending: what its block entry says, where one load reaches
/// it, and counts that its block entry has not got yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct HotSource {
    /// The address as the packet has it; IPv4 in the first word.
    pub addr: Words,
    /// When the block ends, `CLOCK_MONOTONIC` ns.
    pub expires_ns: u64,
    /// Packets not yet in the entry.
    pub hits: u64,
    /// Bytes not yet in the entry.
    pub bytes: u64,
    /// When the entry was brought up to date, `CLOCK_MONOTONIC` ns.
    pub flushed_ns: u64,
    /// When its last packet came, `CLOCK_MONOTONIC` ns.
    pub last_ns: u64,
    /// [`crate::config::Config::hot_generation`] when the slot was filled; another one empties it.
    pub generation: u32,
    /// 4 or 6; 0 is a free slot.
    pub family: u32,
}

const _: () = assert!(size_of::<HotSource>() == 64, "one cache line");

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for HotSource {}
