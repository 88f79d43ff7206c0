//! What is special about a local port: one entry per number, for TCP and UDP.

/// Any packet to the TCP port names its source in an event.
pub const TRIPWIRE_TCP: u16 = 1 << 0;
/// Any packet to the UDP port names its source in an event.
pub const TRIPWIRE_UDP: u16 = 1 << 1;
/// Connection attempts to the TCP port are answered with cookies when the listener overflows.
pub const COOKIE_AUTO: u16 = 1 << 2;
/// Connection attempts to the TCP port are always answered with cookies.
pub const COOKIE_ALWAYS: u16 = 1 << 3;
/// The mesh listens on the TCP port.
pub const MESH: u16 = 1 << 4;
/// [`PortPolicy::limit`] is in force for TCP.
pub const LIMIT_TCP: u16 = 1 << 5;
/// [`PortPolicy::limit`] is in force for UDP.
pub const LIMIT_UDP: u16 = 1 << 6;
/// A TCP listener of this host is bound to the port.
pub const LISTENS_TCP: u16 = 1 << 7;

/// Entries of the port map: every port number.
pub const PORTS: usize = 1 << 16;

/// Entries of the port limits map: a pair for each limited port; the first pair is unused.
pub const PORT_LIMITS: usize = 256;

/// What is special about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PortPolicy {
    /// The bits of this module.
    pub flags: u16,
    /// Index of its pair in the port limits map: TCP there, UDP behind it.
    pub limit: u16,
}

/// A limit that everybody who sends to a port shares, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SharedLimit {
    /// The limit.
    pub limit: crate::limit::Limit,
    /// Theoretical arrival time, `CLOCK_MONOTONIC` ns.
    pub arrival_ns: u64,
}

const _: () = {
    assert!(size_of::<PortPolicy>() == 4, "layout");
    assert!(size_of::<SharedLimit>() == 24, "layout");
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for super::PortPolicy {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SharedLimit {}
}
