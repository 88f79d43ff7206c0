//! The packet parser: Ethernet, up to two VLAN tags, IPv4, IPv6 with a bounded walk over extension
//! headers, and the first bytes of TCP, UDP and ICMP.
//!
//! The same code runs in XDP and in user space; only the way a byte is fetched differs ([`Bytes`]).
//! Every loop is bounded by a constant and every offset stays below [`MAX_OFFSET`], which is what lets
//! the kernel's verifier follow it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets below MAX_OFFSET and lengths of 16 bits"
)]

use network_types::{
    eth::EthHdr,
    icmp::Icmpv4Hdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
    vlan::VlanHdr,
};

/// No header that we read starts beyond this offset from the start of the frame, in bytes.
///
/// Ethernet 14, two tags 8, IPv6 40, six extension headers of at most 2048 bytes would be more; a
/// packet that long in headers is refused as [`Malformed::ExtensionHeaders`].
pub const MAX_OFFSET: usize = 1024;

/// VLAN tags that are stepped over (802.1Q inside 802.1ad).
pub const MAX_VLAN_TAGS: usize = 2;

/// IPv6 extension headers that are stepped over before a packet is refused.
///
/// RFC 8200 section 4.1 recommends an order with at most seven; deployed stacks send at most two.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;

/// Protocol number of ICMP (RFC 792).
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of TCP (RFC 9293).
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP (RFC 768).
pub const PROTO_UDP: u8 = 17;
/// Protocol number of ICMPv6 (RFC 4443).
pub const PROTO_ICMPV6: u8 = 58;

const EXT_HOP_BY_HOP: u8 = 0;
const EXT_ROUTING: u8 = 43;
const EXT_FRAGMENT: u8 = 44;
const EXT_AUTH: u8 = 51;
const EXT_DEST_OPTIONS: u8 = 60;
const EXT_MOBILITY: u8 = 135;
const EXT_HIP: u8 = 139;
const EXT_SHIM6: u8 = 140;

/// TCP flag bits, as in byte 13 of the header (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// Finish.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledge.
    pub const ACK: u8 = 0x10;
    /// Urgent.
    pub const URG: u8 = 0x20;
}

/// Where the parser gets its bytes.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` if the captured data ends before them.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `N` words in the frame's own byte order at `offset`, aligned or not; as [`Bytes::load`].
    fn load_words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// The first and the last word of the `N` bytes at `offset`; as [`Bytes::load_words`].
    #[inline(always)]
    fn load_ends<const N: usize>(&self, offset: usize) -> Option<[u32; 2]> {
        let [first] = self.load_words(offset)?;
        let [last] = self.load_words(offset + N - size_of::<u32>())?;
        Some([first, last])
    }

    /// Whether the frame was at least `length` bytes long on the wire.
    ///
    /// This differs from what [`Bytes::load`] can reach when a capture was cut or a frame is spread
    /// over several buffers.
    fn wire_len_at_least(&self, length: usize) -> bool;

    /// Length of the frame, in bytes: on the wire in a capture, of the first buffer in the kernel, where
    /// asking for more costs a call that hardly any packet needs.
    fn first_len(&self) -> u32;
}

/// A frame in memory, of which only the first bytes may have been captured.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'a> {
    /// The bytes that were captured.
    pub data: &'a [u8],
    /// Length of the frame on the wire, in bytes; at least `data.len()`.
    pub wire_len: u32,
}

impl<'a> Captured<'a> {
    /// A frame that was captured whole.
    pub fn whole(data: &'a [u8]) -> Self {
        Self {
            data,
            wire_len: u32::try_from(data.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Bytes for Captured<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N)?;
        self.data.get(offset..end)?.try_into().ok()
    }

    fn load_words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (n, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.load::<4>(offset.checked_add(4 * n)?)?);
        }
        Some(words)
    }

    fn wire_len_at_least(&self, length: usize) -> bool {
        self.wire_len as usize >= length
    }

    fn first_len(&self) -> u32 {
        self.wire_len
    }
}

/// Why a packet could not be parsed. Each has a counter of its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Malformed {
    /// Shorter than an Ethernet header.
    Ethernet = 0,
    /// Ends inside a VLAN tag.
    Vlan = 1,
    /// Ends inside the IPv4 header, or its header length is below 20 bytes.
    Ipv4Header = 2,
    /// IP version field disagrees with the EtherType.
    IpVersion = 3,
    /// IPv4 total length or IPv6 payload length does not fit the frame.
    IpLength = 4,
    /// Ends inside the IPv6 header.
    Ipv6Header = 5,
    /// Ends inside an extension header, or has too many or too long ones.
    ExtensionHeaders = 6,
    /// Ends inside the TCP header, or its data offset is below 20 bytes or beyond the packet.
    Tcp = 7,
    /// Ends inside the UDP header, or its length field is below 8 bytes.
    Udp = 8,
    /// Ends inside the ICMP header.
    Icmp = 9,
}

impl Malformed {
    /// The reason with this number.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Ethernet),
            1 => Some(Self::Vlan),
            2 => Some(Self::Ipv4Header),
            3 => Some(Self::IpVersion),
            4 => Some(Self::IpLength),
            5 => Some(Self::Ipv6Header),
            6 => Some(Self::ExtensionHeaders),
            7 => Some(Self::Tcp),
            8 => Some(Self::Udp),
            9 => Some(Self::Icmp),
            _ => None,
        }
    }
}

/// Network protocol of a parsed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// Neither IPv4 nor IPv6 (ARP, LLDP, …), or below more VLAN tags than are stepped over.
    Other = 0,
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// Position of a packet in a fragmented datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fragment {
    /// Not fragmented.
    Whole = 0,
    /// First fragment: the transport header is here.
    First = 1,
    /// A later fragment: there is no transport header to look at.
    Later = 2,
}

/// An address as four 32-bit words in network byte order; IPv4 uses the first word only.
pub type Words = [u32; 4];

/// What the parser found.
///
/// Without padding: in the kernel a pointer to it crosses function boundaries, where every byte must have been
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// Source address.
    pub src: Words,
    /// Destination address.
    pub dst: Words,
    /// Length of the frame in bytes, or up to the end of its IP packet if that is more (a frame in several
    /// buffers).
    pub wire_len: u32,
    /// Bytes that follow the IP header by its own word: IPv4 without options, IPv6 without the fixed header
    /// (0 for a jumbogram).
    pub l3_rest: u32,
    /// Source port (TCP, UDP), host byte order; 0 where there is none.
    pub sport: u16,
    /// Destination port (TCP, UDP), host byte order; 0 where there is none.
    pub dport: u16,
    /// Where the network header starts, bytes from the start of the frame.
    pub l3: u16,
    /// Where the transport header starts, bytes from the start of the frame; 0 before
    /// [`parse_payload`] has run and for packets that have none.
    pub l4: u16,
    /// Flags and offset of the fragment as the header has them (IPv4: 3 and 13 bits; IPv6: 13, 2 and 1),
    /// host byte order; 0 if there is no fragment header.
    pub fragment_field: u16,
    /// Network protocol.
    pub family: Family,
    /// Transport protocol number after extension headers; meaningless for [`Family::Other`].
    pub proto: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
    /// ICMP or ICMPv6 type, or 0.
    pub icmp_type: u8,
    /// Fragment position.
    pub fragment: Fragment,
    /// VLAN tags stepped over.
    pub vlan_tags: u8,
}

const _: () = assert!(
    size_of::<Packet>() == 2 * 16 + 2 * 4 + 5 * 2 + 6,
    "no padding"
);

impl Packet {
    /// Nothing known but the length.
    pub const fn empty(wire_len: u32) -> Self {
        Self {
            src: [0; 4],
            dst: [0; 4],
            wire_len,
            sport: 0,
            dport: 0,
            family: Family::Other,
            proto: 0,
            tcp_flags: 0,
            icmp_type: 0,
            fragment: Fragment::Whole,
            fragment_field: 0,
            vlan_tags: 0,
            l3: 0,
            l4: 0,
            l3_rest: 0,
        }
    }

    /// The same without where its headers are: what remains is what the packet says, not how it says it.
    #[must_use]
    pub const fn unplaced(self) -> Self {
        Self {
            l3: 0,
            l4: 0,
            l3_rest: 0,
            fragment_field: 0,
            ..self
        }
    }

    /// Takes both ports out of the first word of a transport header.
    /// Takes the ports from the first word of a TCP or UDP header.
    #[inline(always)]
    pub fn set_ports(&mut self, word: u32) {
        let [from @ .., third, last] = word.to_ne_bytes();
        self.sport = u16::from_be_bytes(from);
        self.dport = u16::from_be_bytes([third, last]);
    }

    /// Whether an extension header follows the fixed IPv6 header: then [`parse_payload`] has a walk to make.
    #[inline(always)]
    pub const fn is_extended(&self) -> bool {
        matches!(self.family, Family::V6) && is_extension(self.proto)
    }

    /// The frame is at least `length` bytes long.
    #[inline(always)]
    fn extend_to(&mut self, length: usize) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.wire_len = self.wire_len.max(length);
    }
}

/// Parses a frame that starts with an Ethernet header.
///
/// # Errors
///
/// The first thing that is wrong with it.
#[inline(always)]
pub fn parse_ethernet<B: Bytes>(bytes: &B) -> Result<Packet, Malformed> {
    let mut packet = parse_addresses(bytes)?;
    parse_payload(bytes, &mut packet)?;
    Ok(packet)
}

/// The first half of [`parse_ethernet`]: up to the addresses, which is all that a block list needs.
///
/// # Errors
///
/// The first thing that is wrong up to there.
#[inline(always)]
pub fn parse_addresses<B: Bytes>(bytes: &B) -> Result<Packet, Malformed> {
    let mut packet = Packet::empty(bytes.first_len());
    let Some(eth) = bytes.load::<{ EthHdr::LEN }>(0) else {
        return Err(Malformed::Ethernet);
    };
    let mut ethertype = u16::from_be_bytes([eth[12], eth[13]]);
    let mut offset = EthHdr::LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(
            ethertype,
            ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD
        ) {
            break;
        }
        let Some(tag) = bytes.load::<{ VlanHdr::LEN }>(offset) else {
            return Err(Malformed::Vlan);
        };
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        offset += VlanHdr::LEN;
        packet.vlan_tags += 1;
    }
    parse_network(bytes, ethertype, offset, &mut packet)?;
    Ok(packet)
}

/// Parses from the network header on; for links without Ethernet.
///
/// `offset` is where the network header starts and must be below 64.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn parse_from_network<B: Bytes>(
    bytes: &B,
    ethertype: u16,
    offset: usize,
) -> Result<Packet, Malformed> {
    let mut packet = Packet::empty(bytes.first_len());
    parse_network(bytes, ethertype, offset, &mut packet)?;
    parse_payload(bytes, &mut packet)?;
    Ok(packet)
}

#[inline(always)]
fn parse_network<B: Bytes>(
    bytes: &B,
    ethertype: u16,
    offset: usize,
    packet: &mut Packet,
) -> Result<(), Malformed> {
    // `offset` is below 64 (see the callers).
    packet.l3 = offset as u16;
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(bytes, offset, packet),
        ETHERTYPE_IPV6 => parse_ipv6(bytes, offset, packet),
        _ => Ok(()),
    }
}

/// The second half of [`parse_ethernet`]: options, extension headers and the transport header.
///
/// # Errors
///
/// The first thing that is wrong from there on.
#[inline(always)]
pub fn parse_payload<B: Bytes>(bytes: &B, packet: &mut Packet) -> Result<(), Malformed> {
    if packet.is_extended() {
        parse_extended_payload(bytes, packet)
    } else {
        parse_plain_payload(bytes, packet)
    }
}

/// [`parse_payload`] for a packet that is not [`Packet::is_extended`]: no loop.
///
/// # Errors
///
/// The first thing that is wrong from there on.
#[inline(always)]
pub fn parse_plain_payload<B: Bytes>(bytes: &B, packet: &mut Packet) -> Result<(), Malformed> {
    let length = packet.l3_rest as usize;
    let (at, rest) = match packet.family {
        Family::V4 => {
            let field = packet.fragment_field;
            if field & 0x3fff != 0 {
                if field & 0x1fff != 0 {
                    packet.fragment = Fragment::Later;
                    packet.l4 = 0;
                    return Ok(());
                }
                packet.fragment = Fragment::First;
            }
            // At most 64 + 60; the mask is for the verifier, as below.
            (usize::from(packet.l4 & 0x7f), length)
        }
        Family::V6 => {
            // Below 64 anyway; the mask is for the verifier, which loses that across the stack.
            let at = usize::from(packet.l3 & 0x3f) + Ipv6Hdr::LEN;
            packet.l4 = at as u16;
            // A payload length of zero is a jumbogram (RFC 2675); its real length is in an option.
            (at, if length == 0 { usize::MAX } else { length })
        }
        Family::Other => return Ok(()),
    };
    parse_transport(bytes, at, rest, packet)
}

#[inline(always)]
fn parse_ipv4<B: Bytes>(bytes: &B, offset: usize, packet: &mut Packet) -> Result<(), Malformed> {
    let Some([first, second, third, source, destination]) =
        bytes.load_words::<{ Ipv4Hdr::LEN / 4 }>(offset)
    else {
        return Err(Malformed::Ipv4Header);
    };
    let [version, _, length @ ..] = first.to_ne_bytes();
    if version >> 4 != 4 {
        return Err(Malformed::IpVersion);
    }
    let header_len = usize::from(version & 0x0f) * 4;
    if header_len < Ipv4Hdr::LEN {
        return Err(Malformed::Ipv4Header);
    }
    let total_len = usize::from(u16::from_be_bytes(length));
    if total_len < header_len || !bytes.wire_len_at_least(offset + total_len) {
        return Err(Malformed::IpLength);
    }
    packet.family = Family::V4;
    packet.extend_to(offset + total_len);
    packet.l3_rest = (total_len - header_len) as u32;
    // At most 64 + 60.
    packet.l4 = (offset + header_len) as u16;
    packet.src[0] = source;
    packet.dst[0] = destination;
    let [_, proto, ..] = third.to_ne_bytes();
    packet.proto = proto;
    let [_, _, fragment @ ..] = second.to_ne_bytes();
    packet.fragment_field = u16::from_be_bytes(fragment);
    Ok(())
}

#[inline(always)]
fn parse_ipv6<B: Bytes>(bytes: &B, offset: usize, packet: &mut Packet) -> Result<(), Malformed> {
    let Some([first, second, a @ ..]) = bytes.load_words::<{ Ipv6Hdr::LEN / 4 }>(offset) else {
        return Err(Malformed::Ipv6Header);
    };
    let [version, ..] = first.to_ne_bytes();
    if version >> 4 != 6 {
        return Err(Malformed::IpVersion);
    }
    let [length @ .., next, _] = second.to_ne_bytes();
    let payload_len = usize::from(u16::from_be_bytes(length));
    if !bytes.wire_len_at_least(offset + Ipv6Hdr::LEN + payload_len) {
        return Err(Malformed::IpLength);
    }
    packet.family = Family::V6;
    packet.extend_to(offset + Ipv6Hdr::LEN + payload_len);
    packet.src = [a[0], a[1], a[2], a[3]];
    packet.dst = [a[4], a[5], a[6], a[7]];
    packet.proto = next;
    packet.l3_rest = payload_len as u32;
    Ok(())
}

/// [`parse_payload`] for IPv6 with a walk over extension headers.
///
/// # Errors
///
/// The first thing that is wrong from there on.
#[inline(always)]
pub fn parse_extended_payload<B: Bytes>(bytes: &B, packet: &mut Packet) -> Result<(), Malformed> {
    let payload_len = packet.l3_rest as usize;
    let mut next = packet.proto;
    // Below 64 anyway; the mask is for the verifier, which loses that across the stack.
    let mut at = usize::from(packet.l3 & 0x3f) + Ipv6Hdr::LEN;
    let end = at + payload_len;
    // A payload length of zero is a jumbogram (RFC 2675); its real length is in an option we skip.
    let jumbo = payload_len == 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        if at > MAX_OFFSET {
            return Err(Malformed::ExtensionHeaders);
        }
        let Some(ext) = bytes.load::<4>(at) else {
            return Err(Malformed::ExtensionHeaders);
        };
        let len = match next {
            EXT_FRAGMENT => {
                packet.fragment_field = u16::from_be_bytes([ext[2], ext[3]]);
                if packet.fragment_field & 0xfff8 != 0 {
                    packet.fragment = Fragment::Later;
                } else if packet.fragment_field & 1 != 0 {
                    packet.fragment = Fragment::First;
                }
                8
            }
            // RFC 4302 counts 32-bit words minus two, the others 64-bit words minus one (RFC 8200).
            EXT_AUTH => (usize::from(ext[1]) + 2) * 4,
            _ => (usize::from(ext[1]) + 1) * 8,
        };
        next = ext[0];
        at += len;
        if !jumbo && at > end {
            return Err(Malformed::ExtensionHeaders);
        }
        if matches!(packet.fragment, Fragment::Later) {
            packet.proto = next;
            return Ok(());
        }
    }
    packet.proto = next;
    if is_extension(next) {
        return Err(Malformed::ExtensionHeaders);
    }
    if at > MAX_OFFSET {
        return Err(Malformed::ExtensionHeaders);
    }
    // At most MAX_OFFSET.
    packet.l4 = at as u16;
    let rest = if jumbo { usize::MAX } else { end - at };
    parse_transport(bytes, at, rest, packet)
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        EXT_HOP_BY_HOP
            | EXT_ROUTING
            | EXT_FRAGMENT
            | EXT_AUTH
            | EXT_DEST_OPTIONS
            | EXT_MOBILITY
            | EXT_HIP
            | EXT_SHIM6
    )
}

/// `rest` is how many bytes the IP header says follow `offset`.
#[inline(always)]
fn parse_transport<B: Bytes>(
    bytes: &B,
    offset: usize,
    rest: usize,
    packet: &mut Packet,
) -> Result<(), Malformed> {
    match packet.proto {
        PROTO_TCP => {
            if rest < TcpHdr::LEN {
                return Err(Malformed::Tcp);
            }
            // Up to byte 13, the flags.
            let Some([ports, last]) = bytes.load_ends::<14>(offset) else {
                return Err(Malformed::Tcp);
            };
            let [_, _, data_offset, flags] = last.to_ne_bytes();
            let data_offset = usize::from(data_offset >> 4) * 4;
            if data_offset < TcpHdr::LEN || data_offset > rest {
                return Err(Malformed::Tcp);
            }
            packet.set_ports(ports);
            packet.tcp_flags = flags;
        }
        PROTO_UDP => {
            if rest < UdpHdr::LEN {
                return Err(Malformed::Udp);
            }
            let Some([ports, second]) = bytes.load_words::<{ UdpHdr::LEN / 4 }>(offset) else {
                return Err(Malformed::Udp);
            };
            let [length @ .., _, _] = second.to_ne_bytes();
            let length = u16::from_be_bytes(length);
            // RFC 2675: zero is allowed in a jumbogram, whose `rest` is unbounded here.
            if usize::from(length) < UdpHdr::LEN && !(length == 0 && rest == usize::MAX) {
                return Err(Malformed::Udp);
            }
            packet.set_ports(ports);
        }
        PROTO_ICMP if matches!(packet.family, Family::V4) => {
            packet.icmp_type = parse_icmp(bytes, offset, rest)?;
        }
        PROTO_ICMPV6 if matches!(packet.family, Family::V6) => {
            packet.icmp_type = parse_icmp(bytes, offset, rest)?;
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn parse_icmp<B: Bytes>(bytes: &B, offset: usize, rest: usize) -> Result<u8, Malformed> {
    // ICMPv6 messages have at least four bytes (RFC 4443), ICMP ones eight, but RFC 792's own minimum
    // for what the kernel reads is the eight-byte header; the shorter bound serves both.
    const MIN: usize = 4;
    const _: () = assert!(MIN <= Icmpv4Hdr::LEN, "ICMP header is eight bytes");
    if rest < MIN {
        return Err(Malformed::Icmp);
    }
    let Some(h) = bytes.load::<MIN>(offset) else {
        return Err(Malformed::Icmp);
    };
    Ok(h[0])
}
