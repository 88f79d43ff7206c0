//! One frame of every shape that the parser knows, with what it must make of it.

use secmesh_common::packet::{Family, Fragment, Malformed, Packet, Words, tcp_flags};

use crate::frames::{
    ARP, DESTINATION_PORT, DESTINATION4, DESTINATION6, Element, IPV4, IPV6, QINQ, QINQ_OLD,
    SOURCE_PORT, SOURCE4, SOURCE6, VLAN, authentication, chain, ethernet, extension,
    fragment_header, icmp, ipv4, ipv6, patched, protocol as proto, tcp, udp,
};

/// A frame and what is expected of it.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// What it is; reads as the subject of a sentence.
    pub name: &'static str,
    /// The whole frame.
    pub frame: Vec<u8>,
    /// What the parser must say.
    pub expected: Result<Packet, Malformed>,
    /// Where the network header begins.
    pub network_at: usize,
}

/// Where the network header is behind an Ethernet header without tags.
const PLAIN: usize = 14;
/// Don't fragment.
const DF: u16 = 0x4000;
/// More fragments.
const MF: u16 = 0x2000;

fn words4(address: [u8; 4]) -> Words {
    [u32::from_ne_bytes(address), 0, 0, 0]
}

fn words6(address: [u8; 16]) -> Words {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

fn neither() -> Packet {
    Packet::empty(0)
}

fn v4(proto: u8) -> Packet {
    Packet {
        src: words4(SOURCE4),
        dst: words4(DESTINATION4),
        family: Family::V4,
        proto,
        ..neither()
    }
}

fn v6(proto: u8) -> Packet {
    Packet {
        src: words6(SOURCE6),
        dst: words6(DESTINATION6),
        family: Family::V6,
        proto,
        ..neither()
    }
}

fn with_ports(packet: Packet) -> Packet {
    Packet {
        sport: SOURCE_PORT,
        dport: DESTINATION_PORT,
        ..packet
    }
}

fn with_flags(packet: Packet, tcp_flags: u8) -> Packet {
    Packet {
        tcp_flags,
        ..with_ports(packet)
    }
}

fn with_type(packet: Packet, icmp_type: u8) -> Packet {
    Packet {
        icmp_type,
        ..packet
    }
}

fn fragment(packet: Packet, fragment: Fragment) -> Packet {
    Packet { fragment, ..packet }
}

fn tagged(packet: Packet, vlan_tags: u8) -> Packet {
    Packet {
        vlan_tags,
        ..packet
    }
}

/// A fixture whose network header is behind `tags` VLAN tags.
fn behind(
    tags: usize,
    name: &'static str,
    frame: Vec<u8>,
    expected: Result<Packet, Malformed>,
) -> Fixture {
    let expected = expected.map(|packet| Packet {
        wire_len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        ..packet
    });
    Fixture {
        name,
        frame,
        expected,
        network_at: PLAIN + 4 * tags,
    }
}

fn good(name: &'static str, frame: Vec<u8>, expected: Packet) -> Fixture {
    behind(0, name, frame, Ok(expected))
}

fn bad(name: &'static str, frame: Vec<u8>, expected: Malformed) -> Fixture {
    behind(0, name, frame, Err(expected))
}

fn eth4(packet: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, packet)
}

fn eth6(packet: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV6, packet)
}

/// An IPv6 frame with these extension headers.
fn eth6_chain(elements: &[Element], last: u8, payload: &[u8]) -> Vec<u8> {
    let (next, bytes) = chain(elements, last, payload);
    eth6(&ipv6(next, &bytes))
}

/// All of them.
pub fn all() -> Vec<Fixture> {
    [
        over_ipv4(),
        over_ipv6(),
        extension_headers(),
        fragments(),
        vlan_tags(),
        not_ip(),
        malformed_network(),
        malformed_extensions(),
        malformed_transport(),
    ]
    .concat()
}

fn over_ipv4() -> Vec<Fixture> {
    use tcp_flags::{ACK, FIN, PSH, RST, SYN, URG};
    let segment = |name, flags| {
        let frame = eth4(&ipv4(&[], DF, proto::TCP, &tcp(flags)));
        good(name, frame, with_flags(v4(proto::TCP), flags))
    };
    let options = [7, 39, 4];
    let longest = [1; 40];
    vec![
        segment("a SYN", SYN),
        segment("a SYN-ACK", SYN | ACK),
        segment("an ACK", ACK),
        segment("a data segment", PSH | ACK),
        segment("a FIN-ACK", FIN | ACK),
        segment("a bare FIN", FIN),
        segment("a RST", RST),
        segment("a RST-ACK", RST | ACK),
        segment("a null probe", 0),
        segment("a Xmas probe", FIN | PSH | URG),
        segment("a segment with every flag", 0xff),
        segment("a SYN with ECN flags", SYN | 0xc0),
        good(
            "a datagram over IPv4",
            eth4(&ipv4(&[], 0, proto::UDP, &udp(b"data"))),
            with_ports(v4(proto::UDP)),
        ),
        good(
            "an empty datagram over IPv4",
            eth4(&ipv4(&[], 0, proto::UDP, &udp(b""))),
            with_ports(v4(proto::UDP)),
        ),
        good(
            "an ICMP echo request",
            eth4(&ipv4(&[], 0, proto::ICMP, &icmp(8))),
            with_type(v4(proto::ICMP), 8),
        ),
        good(
            "an ICMPv6 number over IPv4",
            eth4(&ipv4(&[], 0, proto::ICMPV6, &icmp(128))),
            v4(proto::ICMPV6),
        ),
        good(
            "GRE over IPv4",
            eth4(&ipv4(&[], 0, proto::GRE, &[0; 8])),
            v4(proto::GRE),
        ),
        good(
            "an IPv4 header without payload",
            eth4(&ipv4(&[], 0, 253, &[])),
            v4(253),
        ),
        good(
            "a datagram behind IPv4 options",
            eth4(&ipv4(&options, 0, proto::UDP, &udp(b"x"))),
            with_ports(v4(proto::UDP)),
        ),
        good(
            "a SYN behind the most IPv4 options",
            eth4(&ipv4(&longest, 0, proto::TCP, &tcp(SYN))),
            with_flags(v4(proto::TCP), SYN),
        ),
        good(
            "a short packet with Ethernet padding",
            [eth4(&ipv4(&[], 0, proto::UDP, &udp(b""))), vec![0; 18]].concat(),
            with_ports(v4(proto::UDP)),
        ),
        good(
            "a packet as long as a jumbo frame, in two buffers",
            eth4(&ipv4(&[], 0, proto::UDP, &udp(&[0x55; 6000]))),
            with_ports(v4(proto::UDP)),
        ),
    ]
}

fn over_ipv6() -> Vec<Fixture> {
    use tcp_flags::{ACK, SYN};
    vec![
        good(
            "a SYN over IPv6",
            eth6(&ipv6(proto::TCP, &tcp(SYN))),
            with_flags(v6(proto::TCP), SYN),
        ),
        good(
            "an ACK over IPv6",
            eth6(&ipv6(proto::TCP, &tcp(ACK))),
            with_flags(v6(proto::TCP), ACK),
        ),
        good(
            "a datagram over IPv6",
            eth6(&ipv6(proto::UDP, &udp(b"data"))),
            with_ports(v6(proto::UDP)),
        ),
        good(
            "an ICMPv6 echo request",
            eth6(&ipv6(proto::ICMPV6, &icmp(128))),
            with_type(v6(proto::ICMPV6), 128),
        ),
        good(
            "an ICMP number over IPv6",
            eth6(&ipv6(proto::ICMP, &icmp(8))),
            v6(proto::ICMP),
        ),
        good(
            "ESP over IPv6",
            eth6(&ipv6(proto::ESP, &[0; 16])),
            v6(proto::ESP),
        ),
        good(
            "an IPv6 header with no next header",
            eth6(&ipv6(proto::NONE, &[])),
            v6(proto::NONE),
        ),
        good(
            "a SYN in a jumbogram, whose payload length is zero",
            patched(eth6(&ipv6(proto::TCP, &tcp(SYN))), PLAIN + 4, &[0, 0]),
            with_flags(v6(proto::TCP), SYN),
        ),
    ]
}

fn one_unit(next: u8) -> Vec<u8> {
    extension(next, 0)
}

/// The shortest destination options.
const OPTIONS: Element = (proto::DESTINATION_OPTIONS, one_unit);

fn three_units(next: u8) -> Vec<u8> {
    extension(next, 2)
}

fn auth(next: u8) -> Vec<u8> {
    // Twelve bytes and a 96-bit check value, as with HMAC-SHA1-96.
    authentication(next, 4)
}

fn extension_headers() -> Vec<Fixture> {
    let syn = tcp(tcp_flags::SYN);
    let expected = with_flags(v6(proto::TCP), tcp_flags::SYN);
    let through =
        |name, elements: &[Element]| good(name, eth6_chain(elements, proto::TCP, &syn), expected);
    vec![
        through(
            "a SYN behind hop-by-hop options",
            &[(proto::HOP_BY_HOP, one_unit)],
        ),
        through(
            "a SYN behind a routing header",
            &[(proto::ROUTING, three_units)],
        ),
        through(
            "a SYN behind destination options",
            &[(proto::DESTINATION_OPTIONS, one_unit)],
        ),
        through(
            "a SYN behind an authentication header",
            &[(proto::AUTH, auth)],
        ),
        through(
            "a SYN behind a mobility header",
            &[(proto::MOBILITY, one_unit)],
        ),
        through("a SYN behind a HIP header", &[(proto::HIP, three_units)]),
        through("a SYN behind a Shim6 header", &[(proto::SHIM6, one_unit)]),
        through(
            "a SYN behind the order that RFC 8200 recommends",
            &[
                (proto::HOP_BY_HOP, one_unit),
                (proto::DESTINATION_OPTIONS, three_units),
                (proto::ROUTING, three_units),
                (proto::AUTH, auth),
                (proto::DESTINATION_OPTIONS, one_unit),
            ],
        ),
        through(
            "a SYN behind as many extension headers as are stepped over",
            &[OPTIONS; 6],
        ),
        through(
            "a SYN behind an atomic fragment header",
            &[(proto::FRAGMENT, |next| fragment_header(next, 0, false))],
        ),
        good(
            "an ICMPv6 message behind hop-by-hop options",
            eth6_chain(&[(proto::HOP_BY_HOP, one_unit)], proto::ICMPV6, &icmp(143)),
            with_type(v6(proto::ICMPV6), 143),
        ),
        good(
            "options and then no next header",
            eth6_chain(&[(proto::DESTINATION_OPTIONS, one_unit)], proto::NONE, &[]),
            v6(proto::NONE),
        ),
    ]
}

fn fragments() -> Vec<Fixture> {
    let datagram = udp(&[7; 24]);
    vec![
        good(
            "a first fragment over IPv4",
            eth4(&ipv4(&[], MF, proto::UDP, &datagram)),
            fragment(with_ports(v4(proto::UDP)), Fragment::First),
        ),
        good(
            "a middle fragment over IPv4",
            eth4(&ipv4(&[], MF | 3, proto::UDP, &[9; 16])),
            fragment(v4(proto::UDP), Fragment::Later),
        ),
        good(
            "a last fragment over IPv4 of one byte",
            eth4(&ipv4(&[], 185, proto::TCP, &[9])),
            fragment(v4(proto::TCP), Fragment::Later),
        ),
        good(
            "a first fragment over IPv6",
            eth6_chain(
                &[(proto::FRAGMENT, |next| fragment_header(next, 0, true))],
                proto::UDP,
                &datagram,
            ),
            fragment(with_ports(v6(proto::UDP)), Fragment::First),
        ),
        good(
            "a later fragment over IPv6",
            eth6_chain(
                &[(proto::FRAGMENT, |next| fragment_header(next, 185, true))],
                proto::TCP,
                &[9; 8],
            ),
            fragment(v6(proto::TCP), Fragment::Later),
        ),
        good(
            "a last fragment over IPv6 behind options",
            eth6_chain(
                &[
                    (proto::HOP_BY_HOP, one_unit),
                    (proto::FRAGMENT, |next| fragment_header(next, 370, false)),
                ],
                proto::ICMPV6,
                &[9],
            ),
            fragment(v6(proto::ICMPV6), Fragment::Later),
        ),
        // The rest of the chain may be in the first fragment only, so nothing here is a header.
        good(
            "a later fragment over IPv6 that names another extension header",
            eth6_chain(
                &[(proto::FRAGMENT, |next| fragment_header(next, 9, false))],
                proto::DESTINATION_OPTIONS,
                &[255; 8],
            ),
            fragment(v6(proto::DESTINATION_OPTIONS), Fragment::Later),
        ),
    ]
}

fn vlan_tags() -> Vec<Fixture> {
    let syn = ipv4(&[], 0, proto::TCP, &tcp(tcp_flags::SYN));
    let ping = ipv6(proto::ICMPV6, &icmp(128));
    let expected4 = with_flags(v4(proto::TCP), tcp_flags::SYN);
    let expected6 = with_type(v6(proto::ICMPV6), 128);
    vec![
        behind(
            1,
            "a SYN in a VLAN",
            ethernet(&[VLAN], IPV4, &syn),
            Ok(tagged(expected4, 1)),
        ),
        behind(
            1,
            "an ICMPv6 echo request in a VLAN",
            ethernet(&[VLAN], IPV6, &ping),
            Ok(tagged(expected6, 1)),
        ),
        behind(
            2,
            "a SYN in a VLAN in a provider's VLAN",
            ethernet(&[QINQ, VLAN], IPV4, &syn),
            Ok(tagged(expected4, 2)),
        ),
        behind(
            2,
            "an ICMPv6 echo request in two tags of the old kind",
            ethernet(&[QINQ_OLD, VLAN], IPV6, &ping),
            Ok(tagged(expected6, 2)),
        ),
        // More tags than are stepped over: whatever is inside is passed unseen, and counted as such.
        behind(
            3,
            "a SYN below three tags",
            ethernet(&[QINQ, VLAN, VLAN], IPV4, &syn),
            Ok(tagged(neither(), 2)),
        ),
        behind(
            1,
            "a priority tag around ARP",
            ethernet(&[VLAN], ARP, &[0; 28]),
            Ok(tagged(neither(), 1)),
        ),
    ]
}

fn not_ip() -> Vec<Fixture> {
    vec![
        good("ARP", ethernet(&[], ARP, &[0; 28]), neither()),
        good("LLDP", ethernet(&[], 0x88cc, &[2; 46]), neither()),
        good(
            "an 802.3 length field",
            ethernet(&[], 46, &[0x42; 46]),
            neither(),
        ),
        good(
            "a frame that is only an Ethernet header",
            ethernet(&[], 0x9000, &[]),
            neither(),
        ),
    ]
}

fn malformed_network() -> Vec<Fixture> {
    let packet4 = ipv4(&[], 0, proto::UDP, &udp(b"data"));
    let packet6 = ipv6(proto::UDP, &udp(b"data"));
    let long = u16::try_from(packet4.len() + 1).unwrap_or(0).to_be_bytes();
    vec![
        behind(
            1,
            "a frame that ends inside its VLAN tag",
            ethernet(&[], VLAN, &[0, 1]),
            Err(Malformed::Vlan),
        ),
        behind(
            2,
            "a frame that ends inside its second VLAN tag",
            ethernet(&[QINQ], VLAN, &[0, 1, 8]),
            Err(Malformed::Vlan),
        ),
        bad(
            "an IPv4 frame without IPv4",
            eth4(&[]),
            Malformed::Ipv4Header,
        ),
        bad(
            "an IPv4 header of sixteen bytes",
            patched(eth4(&packet4), PLAIN, &[0x44]),
            Malformed::Ipv4Header,
        ),
        bad(
            "version 6 in an IPv4 frame",
            eth4(&packet6),
            Malformed::IpVersion,
        ),
        bad(
            "version 4 in an IPv6 frame",
            eth6(&[packet4.clone(), vec![0; 20]].concat()),
            Malformed::IpVersion,
        ),
        bad(
            "an IPv4 total length beyond the frame",
            patched(eth4(&packet4), PLAIN + 2, &long),
            Malformed::IpLength,
        ),
        bad(
            "an IPv4 total length below its header",
            patched(eth4(&packet4), PLAIN + 2, &[0, 19]),
            Malformed::IpLength,
        ),
        bad(
            "an IPv4 header length beyond its total length",
            patched(eth4(&packet4), PLAIN, &[0x4f]),
            Malformed::IpLength,
        ),
        bad(
            "an IPv6 frame without IPv6",
            eth6(&[0x60; 39]),
            Malformed::Ipv6Header,
        ),
        bad(
            "an IPv6 payload length beyond the frame",
            patched(eth6(&packet6), PLAIN + 4, &[0xff, 0xff]),
            Malformed::IpLength,
        ),
    ]
}

fn malformed_extensions() -> Vec<Fixture> {
    let syn = tcp(tcp_flags::SYN);
    let reason = Malformed::ExtensionHeaders;
    vec![
        bad(
            "a seventh extension header",
            eth6_chain(&[OPTIONS; 7], proto::TCP, &syn),
            reason,
        ),
        bad(
            "an extension header that is announced and not there",
            eth6(&ipv6(proto::ROUTING, &[])),
            reason,
        ),
        bad(
            "an extension header that is longer than the packet",
            eth6(&ipv6(
                proto::DESTINATION_OPTIONS,
                &[proto::TCP, 200, 1, 4, 0, 0, 0, 0],
            )),
            reason,
        ),
        bad(
            "an authentication header that is longer than the packet",
            eth6(&ipv6(proto::AUTH, &[proto::TCP, 60, 0, 0, 0, 0, 0, 0])),
            reason,
        ),
        bad(
            "half a fragment header",
            eth6(&ipv6(proto::FRAGMENT, &[proto::UDP, 0, 0, 1])),
            reason,
        ),
        bad(
            "a header behind more than a kilobyte of options",
            eth6_chain(
                &[(proto::DESTINATION_OPTIONS, |next| extension(next, 130))],
                proto::TCP,
                &syn,
            ),
            reason,
        ),
    ]
}

fn malformed_transport() -> Vec<Fixture> {
    let syn = tcp(tcp_flags::SYN);
    let short_offset = patched(syn.clone(), 12, &[0x40]);
    let long_offset = patched(syn.clone(), 12, &[0x60]);
    let head = |bytes: &[u8], length| bytes.iter().take(length).copied().collect::<Vec<u8>>();
    vec![
        bad(
            "a TCP header of nineteen bytes over IPv4",
            eth4(&ipv4(&[], 0, proto::TCP, &head(&syn, 19))),
            Malformed::Tcp,
        ),
        bad(
            "a TCP header of nineteen bytes over IPv6",
            eth6(&ipv6(proto::TCP, &head(&syn, 19))),
            Malformed::Tcp,
        ),
        bad(
            "a TCP data offset of sixteen bytes",
            eth4(&ipv4(&[], 0, proto::TCP, &short_offset)),
            Malformed::Tcp,
        ),
        bad(
            "a TCP data offset beyond the packet",
            eth4(&ipv4(&[], 0, proto::TCP, &long_offset)),
            Malformed::Tcp,
        ),
        bad(
            "no TCP header at all",
            eth4(&ipv4(&[], 0, proto::TCP, &[])),
            Malformed::Tcp,
        ),
        bad(
            "a first fragment too small for its TCP header",
            eth4(&ipv4(&[], MF, proto::TCP, &head(&syn, 8))),
            Malformed::Tcp,
        ),
        bad(
            "a UDP header of seven bytes",
            eth4(&ipv4(&[], 0, proto::UDP, &head(&udp(b""), 7))),
            Malformed::Udp,
        ),
        bad(
            "a UDP length of seven",
            eth4(&ipv4(&[], 0, proto::UDP, &patched(udp(b"x"), 4, &[0, 7]))),
            Malformed::Udp,
        ),
        bad(
            "a UDP length of zero outside a jumbogram",
            eth6(&ipv6(proto::UDP, &patched(udp(b"x"), 4, &[0, 0]))),
            Malformed::Udp,
        ),
        bad(
            "an ICMP header of three bytes",
            eth4(&ipv4(&[], 0, proto::ICMP, &[8, 0, 0])),
            Malformed::Icmp,
        ),
        bad(
            "an ICMPv6 header of three bytes",
            eth6(&ipv6(proto::ICMPV6, &[128, 0, 0])),
            Malformed::Icmp,
        ),
    ]
}
