//! Heads of dropped packets, on their way to `secmesh capture`.

/// Most bytes of one packet that are captured; a power of two.
pub const MAX_SNAP: usize = 256;

/// Heads that one CPU may send per tick of the event budget.
pub const CAPTURES_PER_TICK: u64 = 1000;

/// One record of the capture ring; fixed size, so that reserving it costs one constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Captured {
    /// When, `CLOCK_MONOTONIC` ns to one timer tick.
    pub ts_ns: u64,
    /// Interface it came in on.
    pub ifindex: u32,
    /// Length of the packet on the wire, bytes.
    pub wire_len: u32,
    /// Bytes of [`Captured::head`] that are the packet's; what follows is whatever was there.
    pub head_len: u32,
    /// [`crate::reason::Reason`].
    pub reason: u8,
    /// 1 if it was dropped, 0 if only counted (monitor mode).
    pub dropped: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// The packet's first bytes.
    pub head: [u8; MAX_SNAP],
}

const _: () = assert!(size_of::<Captured>() == 24 + MAX_SNAP, "layout");
