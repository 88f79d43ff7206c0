//! The packet parser.

use etherparse::{SlicedPacket, TransportSlice};
use secmesh_common::packet::{
    Captured, Family, Fragment, MAX_VLAN_TAGS, Malformed, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP,
    PROTO_UDP, Packet, Words, parse_ethernet, parse_from_network,
};
use secmesh_tests::fixtures;

/// Where the `EtherType` is in a frame without tags.
const ETHERTYPE_AT: usize = 12;
/// Where what follows an Ethernet header without tags begins.
const ETHERNET: usize = 14;
/// A frame is cut at each of its first bytes; all that the parser decides on is there.
const CUTS: usize = 160;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    fixtures::all()
        .into_iter()
        .map(|fixture| fixture.frame)
        .filter(|frame| frame.len() <= 2048)
        .collect()
}

pub(super) fn run(frame: &[u8]) {
    let whole = parse_ethernet(&Captured::whole(frame));
    for cut in 0..frame.len().min(CUTS) {
        cut_short(frame, cut, whole);
    }
    if let Ok(packet) = whole {
        fields(frame, &packet);
        padded(frame, packet);
        tagged(frame, packet);
        other_links(frame, packet);
        other_parser(frame, &packet);
    }
}

/// A capture that kept less of the frame says the same or nothing, never something else.
fn cut_short(frame: &[u8], length: usize, whole: Result<Packet, Malformed>) {
    let captured = Captured {
        data: frame.get(..length).unwrap_or_default(),
        wire_len: Captured::whole(frame).wire_len,
    };
    if let Ok(packet) = parse_ethernet(&captured) {
        assert_eq!(Ok(packet), whole, "of {length} bytes captured");
    }
}

fn bytes_of(words: &Words) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The fields are the bytes at the places that the RFCs name.
fn fields(frame: &[u8], packet: &Packet) {
    let tags = usize::from(packet.vlan_tags);
    assert!(tags <= MAX_VLAN_TAGS, "{packet:?}");
    let network = ETHERNET + 4 * tags;
    let at = |from: usize, length: usize| {
        frame
            .get(network + from..network + from + length)
            .unwrap_or_default()
    };
    assert!(packet.wire_len as usize >= frame.len(), "{packet:?}");
    assert_eq!(usize::from(packet.l3), network, "{packet:?}");
    let carries = packet.fragment != Fragment::Later && packet.family != Family::Other;
    assert_eq!(carries, packet.l4 != 0, "{packet:?}");
    if matches!(packet.proto, PROTO_TCP | PROTO_UDP) && carries {
        let ports = [packet.sport.to_be_bytes(), packet.dport.to_be_bytes()].concat();
        let transport = usize::from(packet.l4);
        assert_eq!(
            frame.get(transport..transport + 4),
            Some(ports.as_slice()),
            "{packet:?}"
        );
    }
    match packet.family {
        Family::Other => {
            let nothing = Packet {
                vlan_tags: packet.vlan_tags,
                wire_len: packet.wire_len,
                ..*packet
            };
            assert_eq!(nothing.src, [0; 4]);
            assert_eq!((packet.proto, packet.dport, packet.tcp_flags), (0, 0, 0));
        }
        Family::V4 => {
            assert_eq!(bytes_of(&packet.src), [at(12, 4), &[0; 12]].concat());
            assert_eq!(bytes_of(&packet.dst), [at(16, 4), &[0; 12]].concat());
            assert_eq!([packet.proto], at(9, 1));
            let field = at(6, 2)
                .first_chunk()
                .map_or(0, |bytes| u16::from_be_bytes(*bytes));
            let expected = match (field & 0x1fff, field & 0x2000) {
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First,
                _ => Fragment::Later,
            };
            assert_eq!(packet.fragment, expected);
        }
        Family::V6 => {
            assert_eq!(bytes_of(&packet.src), at(8, 16));
            assert_eq!(bytes_of(&packet.dst), at(24, 16));
        }
    }
    if packet.fragment == Fragment::Later {
        assert_eq!((packet.sport, packet.dport), (0, 0), "{packet:?}");
        assert_eq!((packet.tcp_flags, packet.icmp_type), (0, 0), "{packet:?}");
    }
    if !matches!(packet.proto, PROTO_TCP | PROTO_UDP) {
        assert_eq!((packet.sport, packet.dport), (0, 0), "{packet:?}");
    }
    assert!(packet.tcp_flags == 0 || packet.proto == PROTO_TCP);
    let icmp = match packet.family {
        Family::V4 => PROTO_ICMP,
        _ => PROTO_ICMPV6,
    };
    assert!(packet.icmp_type == 0 || packet.proto == icmp, "{packet:?}");
}

/// What follows the packet (Ethernet pads to 60 bytes) belongs to nobody.
fn padded(frame: &[u8], packet: Packet) {
    let longer = [frame, &[0xa5; 46]].concat();
    let wire_len = Captured::whole(&longer).wire_len;
    assert_eq!(
        parse_ethernet(&Captured::whole(&longer)),
        Ok(Packet { wire_len, ..packet }),
        "padded"
    );
}

/// One tag more changes where things are and nothing else.
fn tagged(frame: &[u8], packet: Packet) {
    if usize::from(packet.vlan_tags) >= MAX_VLAN_TAGS {
        return;
    }
    let (addresses, rest) = frame.split_at(ETHERTYPE_AT.min(frame.len()));
    for tag in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]] {
        let with_tag = [addresses, &tag, &[0, 7], rest].concat();
        let expected = Packet {
            vlan_tags: packet.vlan_tags + 1,
            wire_len: packet.wire_len + 4,
            ..packet
        };
        match parse_ethernet(&Captured::whole(&with_tag)) {
            // The tag may push the last header over the edge of what is read.
            Err(Malformed::ExtensionHeaders) if packet.family == Family::V6 => {}
            result => assert_eq!(
                result.map(Packet::unplaced),
                Ok(expected.unplaced()),
                "tagged"
            ),
        }
    }
}

/// The same packet on a link without Ethernet.
fn other_links(frame: &[u8], packet: Packet) {
    if packet.vlan_tags != 0 {
        return;
    }
    let (ethernet, network) = frame.split_at(ETHERNET.min(frame.len()));
    let ethertype = ethernet
        .last_chunk()
        .map_or(0, |bytes| u16::from_be_bytes(*bytes));
    assert_eq!(
        parse_from_network(&Captured::whole(frame), ethertype, ETHERNET),
        Ok(packet)
    );
    let wire_len = Captured::whole(network).wire_len;
    let expected = Packet { wire_len, ..packet };
    assert_eq!(
        parse_from_network(&Captured::whole(network), ethertype, 0).map(Packet::unplaced),
        Ok(expected.unplaced())
    );
}

/// Where somebody else's parser finds ports, they are ours.
fn other_parser(frame: &[u8], packet: &Packet) {
    if packet.family == Family::Other || packet.fragment == Fragment::Later {
        return;
    }
    let Ok(theirs) = SlicedPacket::from_ethernet(frame) else {
        return;
    };
    match theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(packet.proto, PROTO_TCP);
            assert_eq!(
                (packet.sport, packet.dport),
                (tcp.source_port(), tcp.destination_port())
            );
            assert_eq!(packet.tcp_flags & 2 != 0, tcp.syn());
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!(packet.proto, PROTO_UDP);
            assert_eq!(
                (packet.sport, packet.dport),
                (udp.source_port(), udp.destination_port())
            );
        }
        _ => {}
    }
}
