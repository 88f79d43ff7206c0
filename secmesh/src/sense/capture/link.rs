//! What the first bytes of a captured frame are, and where the network layer starts behind them.
//! Numbers and layouts: <https://www.tcpdump.org/linktypes.html>.

use super::input::Endian;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
/// The header of `LINKTYPE_LINUX_SLL`: packet type, ARPHRD, address length, address, protocol.
const COOKED_V1_LEN: usize = 16;
/// The header of `LINKTYPE_LINUX_SLL2`: protocol, reserved, interface, ARPHRD, packet type,
/// address length, address.
const COOKED_V2_LEN: usize = 20;
/// VLAN tags looked through behind a cooked header; as many as the packet parser accepts.
const MAX_VLAN_TAGS: usize = 2;

/// For error messages.
pub(super) const SUPPORTED: &str =
    "Ethernet (1), raw IP (12, 14, 101, 228, 229), Linux cooked (113, 276) and loopback (0, 108)";

/// A supported link layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// Ethernet, with any VLAN tags (1).
    Ethernet,
    /// An IP packet whose first four bits say its version (12, 14, 101).
    RawIp,
    /// An IPv4 packet (228).
    RawIpv4,
    /// An IPv6 packet (229).
    RawIpv6,
    /// What `tcpdump -i any` wrote until libpcap 1.10 (113).
    LinuxCooked,
    /// What `tcpdump -i any` writes since (276).
    LinuxCooked2,
    /// BSD loopback: an address family in the capturing machine's byte order (0), or in network
    /// byte order (108).
    Loopback,
}

/// Where the packet parser starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameStart {
    /// At the beginning, with an Ethernet header.
    Ethernet,
    /// At the network layer.
    Network {
        /// The network protocol as an ethertype: 0x0800 for IPv4, 0x86dd for IPv6, others as found.
        ethertype: u16,
        /// Offset of the network header in the frame's data; never beyond its end.
        offset: usize,
    },
    /// Nowhere: the frame is too short for its link header or names no known protocol.
    Opaque,
}

impl LinkType {
    /// The supported link type with this number. For pcap headers the caller removes the flag bits
    /// above the low 16.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Ethernet,
            12 | 14 | 101 => Self::RawIp,
            228 => Self::RawIpv4,
            229 => Self::RawIpv6,
            113 => Self::LinuxCooked,
            276 => Self::LinuxCooked2,
            0 | 108 => Self::Loopback,
            _ => return None,
        })
    }

    /// Where the network layer starts in a frame of this link type.
    pub fn start(self, data: &[u8]) -> FrameStart {
        let network = match self {
            Self::Ethernet => return FrameStart::Ethernet,
            Self::RawIp => by_version(data).map(|ethertype| (ethertype, 0)),
            Self::RawIpv4 => Some((ETHERTYPE_IPV4, 0)),
            Self::RawIpv6 => Some((ETHERTYPE_IPV6, 0)),
            Self::LinuxCooked => cooked(data, 14, COOKED_V1_LEN),
            Self::LinuxCooked2 => cooked(data, 0, COOKED_V2_LEN),
            Self::Loopback => by_family(data).map(|ethertype| (ethertype, 4)),
        };
        match network {
            Some((ethertype, offset)) if offset <= data.len() => {
                FrameStart::Network { ethertype, offset }
            }
            _ => FrameStart::Opaque,
        }
    }
}

fn by_version(data: &[u8]) -> Option<u16> {
    match data.first()? >> 4 {
        4 => Some(ETHERTYPE_IPV4),
        6 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}

/// The address family, whichever byte order it was written in: all known ones fit one byte, so the
/// two readings cannot be confused.
fn by_family(data: &[u8]) -> Option<u16> {
    let family = data.first_chunk::<4>()?;
    let family = u32::from_le_bytes(*family).min(u32::from_be_bytes(*family));
    match family {
        2 => Some(ETHERTYPE_IPV4),
        // Linux; NetBSD and OpenBSD; FreeBSD; macOS.
        10 | 24 | 28 | 30 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}

fn cooked(data: &[u8], protocol_at: usize, header_len: usize) -> Option<(u16, usize)> {
    let mut ethertype = Endian::Big.u16_at(data, protocol_at)?;
    let mut offset = header_len;
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            break;
        }
        // Two bytes of tag control, then the ethertype of what follows.
        ethertype = Endian::Big.u16_at(data, offset.saturating_add(2))?;
        offset = offset.saturating_add(4);
    }
    Some((ethertype, offset))
}
