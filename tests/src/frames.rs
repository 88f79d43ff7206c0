//! Frames put together by hand, byte by byte, so that a mistake in somebody's packet library is not
//! repeated here. `secmesh-common`'s own tests compare with such a library.

/// The source of every fixture over IPv4.
pub const SOURCE4: [u8; 4] = [198, 51, 100, 7];
/// The destination of every fixture over IPv4.
pub const DESTINATION4: [u8; 4] = [192, 0, 2, 1];
/// The source of every fixture over IPv6: `2001:db8:1::7`.
pub const SOURCE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// The destination of every fixture over IPv6: `2001:db8:2::1`.
pub const DESTINATION6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The source port of every fixture.
pub const SOURCE_PORT: u16 = 40_000;
/// The destination port of every fixture.
pub const DESTINATION_PORT: u16 = 8_443;

/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// `EtherType` of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// `EtherType` of an 802.1ad tag.
pub const QINQ: u16 = 0x88a8;
/// `EtherType` of the tag that switches used before 802.1ad.
pub const QINQ_OLD: u16 = 0x9100;
/// `EtherType` of ARP.
pub const ARP: u16 = 0x0806;

/// Protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE, a transport that the parser does not look into.
    pub const GRE: u8 = 47;
    /// ESP, likewise.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AUTH: u8 = 51;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
    /// IPv6 "no next header".
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Mobility header.
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol.
    pub const HIP: u8 = 139;
    /// Shim6.
    pub const SHIM6: u8 = 140;
}

/// An Ethernet frame with these tags (`EtherType`s, outermost first) around `payload`.
pub fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (tag, id) in tags.iter().zip(100u16..) {
        frame.extend_from_slice(&tag.to_be_bytes());
        frame.extend_from_slice(&id.to_be_bytes());
    }
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An IPv4 packet; `options` is padded to a multiple of four bytes, `fragment` is the whole 16-bit field.
pub fn ipv4(options: &[u8], fragment: u16, proto: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_from(SOURCE4, options, fragment, proto, payload)
}

/// As [`ipv4`], from this source.
pub fn ipv4_from(
    source: [u8; 4],
    options: &[u8],
    fragment: u16,
    proto: u8,
    payload: &[u8],
) -> Vec<u8> {
    let words = options.len().div_ceil(4);
    let header = 20 + 4 * words;
    let version_and_length = 0x40 | u8::try_from(5 + words).unwrap_or(15);
    let total = u16::try_from(header + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![version_and_length, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0x12, 0x34]);
    packet.extend_from_slice(&fragment.to_be_bytes());
    // Nobody on this path reads the checksum.
    packet.extend_from_slice(&[64, proto, 0, 0]);
    packet.extend_from_slice(&source);
    packet.extend_from_slice(&DESTINATION4);
    packet.extend_from_slice(options);
    packet.resize(header, 0);
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 packet; `payload` starts with the header that `next` names.
pub fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    ipv6_from(SOURCE6, next, payload)
}

/// As [`ipv6`], from this source.
pub fn ipv6_from(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[next, 64]);
    packet.extend_from_slice(&source);
    packet.extend_from_slice(&DESTINATION6);
    packet.extend_from_slice(payload);
    packet
}

/// An extension header of `8 * (units + 1)` bytes whose contents are padding.
pub fn extension(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![next, units];
    let body = 8 * (usize::from(units) + 1) - 4;
    // One PadN option (RFC 8200) as long as it goes; only its first bytes matter to anyone here.
    header.extend_from_slice(&[1, u8::try_from(body).unwrap_or(255)]);
    header.resize(4 + body, 0);
    header
}

/// An authentication header of `4 * (units + 2)` bytes (RFC 4302).
pub fn authentication(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![next, units];
    header.resize(4 * (usize::from(units) + 2), 0xa5);
    header
}

/// An IPv6 fragment header; `offset` in units of eight bytes.
pub fn fragment_header(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let field = (offset << 3) | u16::from(more);
    let mut header = vec![next, 0];
    header.extend_from_slice(&field.to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, 9]);
    header
}

/// One link of a chain: a header's number, and its bytes given the number of what follows.
pub type Element = (u8, fn(u8) -> Vec<u8>);

/// A chain of extension headers before `last`: gives the first one's number and all bytes.
pub fn chain(elements: &[Element], last: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes = payload.to_vec();
    let mut next = last;
    for (number, build) in elements.iter().rev() {
        let mut header = build(next);
        header.append(&mut bytes);
        bytes = header;
        next = *number;
    }
    (next, bytes)
}

/// A TCP segment without data.
pub fn tcp(flags: u8) -> Vec<u8> {
    tcp_to(SOURCE_PORT, DESTINATION_PORT, flags)
}

/// A TCP segment without data between these ports.
pub fn tcp_to(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut segment = ports(source, destination);
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    segment
}

/// The checksum of RFC 1071 over all parts, straightforward: sixteen-bit words one by one, carries added at
/// once. Parts but the last have an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let mut pair = pair.iter().copied();
        let (first, second) = (pair.next().unwrap_or(0), pair.next().unwrap_or(0));
        sum += u32::from(u16::from_be_bytes([first, second]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// A UDP datagram.
pub fn udp(data: &[u8]) -> Vec<u8> {
    udp_to(SOURCE_PORT, DESTINATION_PORT, data)
}

/// A UDP datagram between these ports.
pub fn udp_to(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = ports(source, destination);
    let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    datagram
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// An ICMP or `ICMPv6` message of this type.
pub fn icmp(kind: u8) -> Vec<u8> {
    vec![kind, 0, 0, 0, 0, 1, 0, 1]
}

/// Copies `bytes` over the frame from `at` on; what would go beyond its end is left out.
#[must_use]
pub fn patched(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    for (place, byte) in frame.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
    frame
}

/// `frame`, which has no tags and no options, with lengths at the borders of what can be parsed, each with what is odd about
/// it and whether it can be. It is sent as `sent` bytes, zeros at its end.
#[must_use]
pub fn of_odd_length(frame: &[u8], ipv4: bool, sent: usize) -> Vec<(&'static str, Vec<u8>, bool)> {
    let length = |value: usize| {
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        patched(
            frame.to_vec(),
            if ipv4 { 16 } else { 18 },
            &value.to_be_bytes(),
        )
    };
    let longest = sent - if ipv4 { 14 } else { 54 };
    let mut all = vec![
        ("as long as it can be", length(longest), true),
        ("longer than its frame", length(longest + 1), false),
        ("far longer", length(usize::MAX), false),
    ];
    if ipv4 {
        let bare = |byte| patched(frame.to_vec(), 14, &[byte]);
        all.extend([
            ("no longer than its header", length(20), true),
            ("shorter than its header", length(19), false),
            ("of no length", length(0), false),
            ("with options", bare(0x46), true),
            ("with a header too short", bare(0x44), false),
            ("of another version", bare(0x55), false),
        ]);
    }
    all
}

/// The first `length` bytes, with the length in the IP header made to agree where there is one.
///
/// Without that nearly every truncation would be refused for its IP length and no other check be tried.
#[must_use]
pub fn cut(frame: &[u8], length: usize, network_at: usize) -> Vec<u8> {
    let frame: Vec<u8> = frame.iter().take(length).copied().collect();
    let rest = frame.len().saturating_sub(network_at);
    match frame.get(network_at).map(|first| first >> 4) {
        Some(4) => {
            let total = u16::try_from(rest).unwrap_or(u16::MAX);
            patched(frame, network_at + 2, &total.to_be_bytes())
        }
        Some(6) => {
            let payload = u16::try_from(rest.saturating_sub(40)).unwrap_or(u16::MAX);
            patched(frame, network_at + 4, &payload.to_be_bytes())
        }
        _ => frame,
    }
}

/// A frame as hexadecimal digits, for messages.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
