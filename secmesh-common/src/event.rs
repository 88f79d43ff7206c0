//! Records of the event ring.

/// What an event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// A source's count of one [`crate::config::RateClass`] reached a level; `class`, `count`.
    Rate = 1,
    /// A source tried a (host, port) that it had not tried in this window; `open` tells whether
    /// something listens there.
    Contact = 2,
    /// A packet of a watched source.
    Sample = 3,
    /// A packet to a tripwire port.
    Tripwire = 4,
}

impl EventKind {
    /// The kind with this number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Rate),
            2 => Some(Self::Contact),
            3 => Some(Self::Sample),
            4 => Some(Self::Tripwire),
            _ => None,
        }
    }
}

/// Nobody asked whether the port is open.
pub const OPEN_UNKNOWN: u8 = 0;
/// A socket of this host takes packets for that port.
pub const OPEN_YES: u8 = 1;
/// No socket of this host does.
pub const OPEN_NO: u8 = 2;

/// One record; fixed size, so that reserving it costs one constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Event {
    /// When, `CLOCK_MONOTONIC` ns (coarse).
    pub ts_ns: u64,
    /// When the run of packets that led here began, `CLOCK_MONOTONIC` ns (coarse).
    pub first_ns: u64,
    /// Source address; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination address; IPv4 in the first four bytes.
    pub dst: [u8; 16],
    /// The count that was reached ([`EventKind::Rate`]).
    pub count: u32,
    /// Packets of this source in the current run, saturating.
    pub packets: u32,
    /// Interface it came in on.
    pub ifindex: u32,
    /// Length of the packet on the wire, bytes.
    pub wire_len: u32,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// [`EventKind`].
    pub kind: u8,
    /// 4 or 6.
    pub family: u8,
    /// Transport protocol number.
    pub proto: u8,
    /// TCP flags, or the ICMP type.
    pub detail: u8,
    /// [`crate::config::RateClass`] ([`EventKind::Rate`]).
    pub class: u8,
    /// [`OPEN_UNKNOWN`], [`OPEN_YES`] or [`OPEN_NO`].
    pub open: u8,
    /// Zero.
    pub pad: [u8; 6],
}

const _: () = assert!(size_of::<Event>() == 80, "layout");
