//! Keys and values of the block and allow maps.

/// Why an entry is in a block map; the low byte of [`BlockEntry::flags`].
pub mod origin {
    /// A certified decision of the mesh.
    pub const MESH: u32 = 1;
    /// This node's own decision (class 0), at most 15 minutes.
    pub const NODE: u32 = 2;
    /// An operator's command on this node.
    pub const OPERATOR: u32 = 3;
    /// The address of a node that the mesh has cut off.
    pub const QUARANTINE: u32 = 4;
}

/// Key of the exact IPv4 block map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Addr4 {
    /// The address, network byte order.
    pub addr: [u8; 4],
}

/// Key of the exact IPv6 block map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Addr6 {
    /// The address, network byte order.
    pub addr: [u8; 16],
}

/// Data part of an IPv4 prefix key.
///
/// A trie stores the value right behind the key's data; the padding keeps the value's 64-bit counters
/// aligned (`trie_lookup_elem` in `kernel/bpf/lpm_trie.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Net4 {
    /// The network address, network byte order.
    pub addr: [u8; 4],
    /// Always zero.
    pub pad: [u8; 4],
}

/// Data part of an IPv6 prefix key.
pub type Net6 = Addr6;

/// Value of the block maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BlockEntry {
    /// When the block ends, `CLOCK_MONOTONIC` ns. An entry past its end blocks nothing.
    pub expires_ns: u64,
    /// Packets that met this entry.
    pub hits: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// When the first one came, `CLOCK_MONOTONIC` ns (coarse), or 0.
    pub first_hit_ns: u64,
    /// When the last one came, `CLOCK_MONOTONIC` ns (coarse), or 0.
    pub last_hit_ns: u64,
    /// The controller's number for the decision.
    pub rule: u32,
    /// [`origin`] in the low byte; the rest is zero.
    pub flags: u32,
}

/// Value of the allow maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct AllowEntry {
    /// Packets that a block entry would have dropped and this one let through.
    pub overrides: u64,
    /// The controller's number for the reason.
    pub rule: u32,
    /// Zero.
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<Addr4>() == 4, "layout");
    assert!(size_of::<Addr6>() == 16, "layout");
    assert!(size_of::<Net4>() == 8, "layout");
    assert!(size_of::<BlockEntry>() == 48, "layout");
    assert!(size_of::<AllowEntry>() == 16, "layout");
};

#[cfg(feature = "user")]
mod pod {
    use super::{Addr4, Addr6, AllowEntry, BlockEntry, Net4};
    // SAFETY: repr(C), only integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for Addr4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Addr6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Net4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BlockEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AllowEntry {}
}
