//! The parser on arbitrary bytes, and beside an independent one on well-formed packets.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a packet that cannot be built is a failed test"
)]

use etherparse::{
    IpNumber, Ipv4Extensions, Ipv6Extensions, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use proptest::prelude::*;
use secmesh_common::packet::{
    Captured, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, Fragment, MAX_OFFSET, Malformed, PROTO_ICMP,
    PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, parse_ethernet, parse_from_network, tcp_flags,
};

fn address(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *four = word.to_ne_bytes();
    }
    bytes
}

/// What a packet is made of.
#[derive(Debug, Clone)]
struct Shape {
    source: [u8; 16],
    destination: [u8; 16],
    v6: bool,
    tags: u8,
    transport: Transport,
    payload: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Transport {
    Tcp { ports: (u16, u16), flags: u8 },
    Udp { ports: (u16, u16) },
    Icmp { request: bool },
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        (any::<(u16, u16)>(), 0..64_u8).prop_map(|(ports, flags)| Transport::Tcp { ports, flags }),
        any::<(u16, u16)>().prop_map(|ports| Transport::Udp { ports }),
        any::<bool>().prop_map(|request| Transport::Icmp { request }),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        any::<bool>(),
        0..=2_u8,
        transport(),
        proptest::collection::vec(any::<u8>(), 0..64),
    )
        .prop_map(
            |(source, destination, v6, tags, transport, payload)| Shape {
                source,
                destination,
                v6,
                tags,
                transport,
                payload,
            },
        )
}

impl Shape {
    /// The packet as etherparse writes it.
    fn frame(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = |v6| -> etherparse::IpHeaders {
            let (source, destination) = (self.source, self.destination);
            if v6 {
                etherparse::IpHeaders::Ipv6(
                    etherparse::Ipv6Header {
                        hop_limit: 64,
                        source,
                        destination,
                        ..Default::default()
                    },
                    Ipv6Extensions::default(),
                )
            } else {
                let four = |a: [u8; 16]| [a[0], a[1], a[2], a[3]];
                etherparse::IpHeaders::Ipv4(
                    etherparse::Ipv4Header {
                        time_to_live: 64,
                        source: four(source),
                        destination: four(destination),
                        ..Default::default()
                    },
                    Ipv4Extensions::default(),
                )
            }
        };
        let id = |n: u16| etherparse::VlanId::try_new(n).unwrap();
        let builder = match self.tags {
            0 => ethernet.ip(ip(self.v6)),
            1 => ethernet.single_vlan(id(5)).ip(ip(self.v6)),
            _ => ethernet.double_vlan(id(5), id(6)).ip(ip(self.v6)),
        };
        let mut frame = Vec::new();
        match &self.transport {
            Transport::Tcp { ports, flags } => {
                let mut tcp = etherparse::TcpHeader::new(ports.0, ports.1, 1, 1000);
                tcp.fin = flags & tcp_flags::FIN != 0;
                tcp.syn = flags & tcp_flags::SYN != 0;
                tcp.rst = flags & tcp_flags::RST != 0;
                tcp.psh = flags & tcp_flags::PSH != 0;
                tcp.ack = flags & tcp_flags::ACK != 0;
                tcp.urg = flags & tcp_flags::URG != 0;
                builder.tcp_header(tcp).write(&mut frame, &self.payload)
            }
            Transport::Udp { ports } => builder
                .udp(ports.0, ports.1)
                .write(&mut frame, &self.payload),
            Transport::Icmp { request } => match (self.v6, request) {
                (true, true) => builder
                    .icmpv6_echo_request(1, 2)
                    .write(&mut frame, &self.payload),
                (true, false) => builder
                    .icmpv6_echo_reply(1, 2)
                    .write(&mut frame, &self.payload),
                (false, true) => builder
                    .icmpv4_echo_request(1, 2)
                    .write(&mut frame, &self.payload),
                (false, false) => builder
                    .icmpv4_echo_reply(1, 2)
                    .write(&mut frame, &self.payload),
            },
        }
        .unwrap();
        frame
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn no_bytes_make_the_parser_panic(
        data in proptest::collection::vec(any::<u8>(), 0..2048),
        more_on_the_wire in 0..4096_u32,
    ) {
        let whole = Captured::whole(&data);
        let cut = Captured { data: &data, wire_len: whole.wire_len + more_on_the_wire };
        for bytes in [whole, cut] {
            let _ = parse_ethernet(&bytes);
            for ethertype in [ETHERTYPE_IPV4, ETHERTYPE_IPV6, 0] {
                for offset in [0, 4, 14, 63] {
                    let _ = parse_from_network(&bytes, ethertype, offset);
                }
            }
        }
    }

    #[test]
    fn a_frame_that_promises_ip_and_is_noise_makes_no_panic(
        version in prop_oneof![Just(0x45_u8), Just(0x4f), Just(0x60), any::<u8>()],
        tags in 0..4_usize,
        noise in proptest::collection::vec(any::<u8>(), 0..1600),
    ) {
        let mut frame = vec![0; 12];
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 1]);
        }
        frame.extend(if version == 0x60 { [0x86, 0xdd] } else { [8, 0] });
        frame.push(version);
        frame.extend(&noise);
        let _ = parse_ethernet(&Captured::whole(&frame));
        let long = Captured { data: &frame, wire_len: u32::MAX };
        let _ = parse_ethernet(&long);
    }

    #[test]
    fn well_formed_packets_are_read_as_etherparse_wrote_them(shape in shape()) {
        let frame = shape.frame();
        let packet = parse_ethernet(&Captured::whole(&frame))
            .map_err(|reason| TestCaseError::fail(format!("{reason:?}: {frame:02x?}")))?;
        prop_assert_eq!(packet.vlan_tags, shape.tags);
        prop_assert_eq!(packet.wire_len as usize, frame.len());
        prop_assert_eq!(packet.fragment, Fragment::Whole);
        if shape.v6 {
            prop_assert_eq!(packet.family, Family::V6);
            prop_assert_eq!(address(packet.src), shape.source);
            prop_assert_eq!(address(packet.dst), shape.destination);
        } else {
            prop_assert_eq!(packet.family, Family::V4);
            prop_assert_eq!(&address(packet.src)[..4], &shape.source[..4]);
            prop_assert_eq!(&address(packet.dst)[..4], &shape.destination[..4]);
            prop_assert_eq!(&packet.src[1..], &[0, 0, 0]);
        }
        match shape.transport {
            Transport::Tcp { ports, flags } => {
                prop_assert_eq!(packet.proto, PROTO_TCP);
                prop_assert_eq!((packet.sport, packet.dport), ports);
                prop_assert_eq!(packet.tcp_flags, flags);
            }
            Transport::Udp { ports } => {
                prop_assert_eq!(packet.proto, PROTO_UDP);
                prop_assert_eq!((packet.sport, packet.dport), ports);
            }
            Transport::Icmp { request } => {
                let (proto, kind) = match (shape.v6, request) {
                    (false, true) => (PROTO_ICMP, 8),
                    (false, false) => (PROTO_ICMP, 0),
                    (true, true) => (PROTO_ICMPV6, 128),
                    (true, false) => (PROTO_ICMPV6, 129),
                };
                prop_assert_eq!((packet.proto, packet.icmp_type), (proto, kind));
            }
        }
    }

    #[test]
    fn what_is_accepted_after_a_mutation_is_what_etherparse_finds_there(
        shape in shape(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut frame = shape.frame();
        let at = at.index(frame.len());
        frame[at] = value;
        let Ok(packet) = parse_ethernet(&Captured::whole(&frame)) else { return Ok(()); };
        let Ok(theirs) = SlicedPacket::from_ethernet(&frame) else { return Ok(()); };
        match &theirs.net {
            Some(NetSlice::Ipv4(ip)) => {
                prop_assert_eq!(packet.family, Family::V4);
                prop_assert_eq!(&address(packet.src)[..4], &ip.header().source()[..]);
            }
            Some(NetSlice::Ipv6(ip)) => {
                prop_assert_eq!(packet.family, Family::V6);
                prop_assert_eq!(address(packet.src), ip.header().source());
                prop_assert_eq!(address(packet.dst), ip.header().destination());
            }
            _ => return Ok(()),
        }
        match &theirs.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                prop_assert_eq!(packet.proto, PROTO_TCP);
                prop_assert_eq!((packet.sport, packet.dport), (tcp.source_port(), tcp.destination_port()));
            }
            Some(TransportSlice::Udp(udp)) => {
                prop_assert_eq!(packet.proto, PROTO_UDP);
                prop_assert_eq!((packet.sport, packet.dport), (udp.source_port(), udp.destination_port()));
            }
            _ => {}
        }
    }

    #[test]
    fn a_capture_cut_behind_the_headers_reads_like_the_whole_frame(shape in shape(), keep in 0..400_usize) {
        let frame = shape.frame();
        let whole = parse_ethernet(&Captured::whole(&frame));
        let keep = keep.min(frame.len());
        let cut = parse_ethernet(&Captured { data: &frame[..keep], wire_len: Captured::whole(&frame).wire_len });
        // Either the headers are there, and then nothing differs, or the packet is refused.
        if let Ok(packet) = cut {
            prop_assert_eq!(Ok(packet), whole);
        } else {
            prop_assert!(keep < frame.len());
        }
    }

    #[test]
    fn ethernet_is_nothing_but_an_offset(shape in shape()) {
        let frame = shape.frame();
        let at = 14 + 4 * usize::from(shape.tags);
        let ethertype = if shape.v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        let network = &frame[at..];
        let raw = parse_from_network(&Captured::whole(network), ethertype, 0).unwrap();
        let framed = parse_ethernet(&Captured::whole(&frame)).unwrap();
        prop_assert_eq!(raw.src, framed.src);
        prop_assert_eq!((raw.sport, raw.dport, raw.proto), (framed.sport, framed.dport, framed.proto));
        prop_assert_eq!(raw.wire_len as usize, network.len());
    }
}

/// An IPv6 frame with `count` destination options of `units` each, then a UDP header.
fn options(count: usize, units: u8) -> Vec<u8> {
    let mut payload = Vec::new();
    for index in 0..count {
        let next = if index + 1 == count { 17 } else { 60 };
        payload.extend([next, units, 1, 4]);
        payload.resize(payload.len() + 8 * (usize::from(units) + 1) - 4, 0);
    }
    payload.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    let mut frame = vec![0; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([if count == 0 { 17 } else { 60 }, 64]);
    frame.extend([7; 32]);
    frame.extend(payload);
    frame
}

#[test]
fn headers_are_read_up_to_the_greatest_offset_and_no_further() {
    // 14 + 40 bytes of headers, then 8 * (units + 1).
    for (units, offset) in [(119, 54 + 960), (120, 54 + 968), (121, 54 + 976)] {
        let parsed = parse_ethernet(&Captured::whole(&options(1, units)));
        if offset <= MAX_OFFSET {
            assert_eq!(parsed.map(|p| p.dport), Ok(2), "{offset}");
        } else {
            assert_eq!(parsed, Err(Malformed::ExtensionHeaders), "{offset}");
        }
    }
}

#[test]
fn six_extension_headers_are_stepped_over_and_seven_are_refused() {
    for count in 0..=6 {
        assert_eq!(
            parse_ethernet(&Captured::whole(&options(count, 0))).map(|p| p.sport),
            Ok(1),
            "{count}"
        );
    }
    for count in 7..10 {
        assert_eq!(
            parse_ethernet(&Captured::whole(&options(count, 0))),
            Err(Malformed::ExtensionHeaders),
            "{count}"
        );
    }
}

#[test]
fn protocol_numbers_are_the_assigned_ones() {
    assert_eq!(
        [PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMPV6],
        [
            IpNumber::ICMP.0,
            IpNumber::TCP.0,
            IpNumber::UDP.0,
            IpNumber::IPV6_ICMP.0
        ]
    );
}

#[test]
fn a_frame_shorter_than_ethernet_is_malformed() {
    for length in 0..14 {
        assert_eq!(
            parse_ethernet(&Captured::whole(&vec![0; length])),
            Err(Malformed::Ethernet)
        );
    }
}
