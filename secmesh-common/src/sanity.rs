//! Packets that no honest host sends, told by themselves alone: no state, no sockets, no clock.

use crate::{
    packet::{
        Family, Fragment, Malformed, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, Words,
        tcp_flags::{ACK, FIN, PSH, RST, SYN},
    },
    reason::Reason,
};

/// The checks of this module.
pub const SANITY: u64 =
    Reason::Land.bit() | Reason::TcpFlags.bit() | Reason::TinyFragment.bit() | Reason::Smurf.bit();

/// The checks on segments that belong to no connection.
pub const STRAYS: u64 = Reason::AckFlood.bit()
    | Reason::RstFlood.bit()
    | Reason::FinFlood.bit()
    | Reason::SynAckFlood.bit();

/// First byte of a TCP header that a later fragment may carry: the fixed header ends here.
const TCP_HEADER: u16 = 20;

#[inline(always)]
fn bytes(words: &Words) -> [u8; 4] {
    let [first, ..] = *words;
    first.to_ne_bytes()
}

/// Whether the packet is plainly none of what [`insane`] and [`is_amplifier`] look for: a segment in the midst
/// of a connection or a datagram from no such port, between addresses that nobody doubts. Most packets are, and
/// this is cheaper to see.
#[inline(always)]
pub fn is_plain(packet: &Packet) -> bool {
    let [first, .., last] = packet.src;
    let [other_first, .., other_last] = packet.dst;
    let [byte, ..] = first.to_ne_bytes();
    let harmless = match packet.proto {
        PROTO_TCP => packet.tcp_flags & !PSH == ACK,
        PROTO_UDP => !is_amplifier(packet),
        _ => false,
    };
    harmless
        && matches!(packet.fragment, Fragment::Whole)
        && ((first ^ other_first) | (last ^ other_last)) != 0
        && byte != 0
        && byte != 127
        && byte < 224
}

/// Which of `checks` the packet fails, the first of them.
///
/// `to_everybody` says that the frame was addressed to the broadcast address of its link.
#[inline(always)]
pub fn insane(packet: &Packet, to_everybody: bool, checks: u64) -> Option<Reason> {
    let failed = |reason: Reason| checks & reason.bit() != 0;
    if failed(Reason::Land) && is_land(packet) {
        return Some(Reason::Land);
    }
    match packet.proto {
        PROTO_TCP if matches!(packet.fragment, Fragment::Later) => (failed(Reason::TinyFragment)
            && overlaps_tcp_header(packet))
        .then_some(Reason::TinyFragment),
        PROTO_TCP => {
            (failed(Reason::TcpFlags) && is_nonsense(packet.tcp_flags)).then_some(Reason::TcpFlags)
        }
        PROTO_ICMP | PROTO_ICMPV6 => {
            (failed(Reason::Smurf) && is_smurf(packet, to_everybody)).then_some(Reason::Smurf)
        }
        _ => None,
    }
}

/// Whether a first fragment was refused because it is too small for the header that it has to carry (RFC 1858
/// section 3; RFC 7112 for IPv6).
///
/// `refused` is the number of a [`Malformed`].
#[inline(always)]
pub fn is_tiny(packet: &Packet, refused: u32) -> bool {
    const TRANSPORT: [Malformed; 4] = [
        Malformed::Tcp,
        Malformed::Udp,
        Malformed::Icmp,
        Malformed::ExtensionHeaders,
    ];
    let [a, b, c, d] = TRANSPORT;
    let transport = 1 << a as u32 | 1 << b as u32 | 1 << c as u32 | 1 << d as u32;
    matches!(packet.fragment, Fragment::First) && (transport >> (refused & 31)) & 1 != 0
}

/// Source and destination are the same, or the source cannot be on a wire: loopback, multicast, broadcast.
///
/// `0.0.0.0` and `::` can: hosts that have no address yet (RFC 2131, RFC 4862).
#[inline(always)]
fn is_land(packet: &Packet) -> bool {
    // Word by word: comparing arrays would become a call on the BPF target.
    let mut differ = 0;
    for (from, to) in packet.src.iter().zip(&packet.dst) {
        differ |= from ^ to;
    }
    if differ == 0 {
        return true;
    }
    let [first, second, third, last] = packet.src;
    match (packet.family, bytes(&packet.src)) {
        (Family::V4, [127 | 224..=239, ..] | [255, 255, 255, 255]) => true,
        (Family::V6, [0xff, ..]) => true,
        (Family::V6, _) => first | second | third == 0 && last == 1_u32.to_be(),
        _ => false,
    }
}

/// Every segment carries ACK but the first of each side (RFC 9293 section 3.5.2): SYN, or RST against one
/// that had none. So nothing without any of the three, and never SYN together with FIN or RST.
#[inline(always)]
fn is_nonsense(flags: u8) -> bool {
    flags & (SYN | ACK | RST) == 0 || (flags & SYN != 0 && flags & (FIN | RST) != 0)
}

/// A later fragment that writes over the fixed TCP header of the first (RFC 1858 section 4, RFC 3128).
#[inline(always)]
fn overlaps_tcp_header(packet: &Packet) -> bool {
    let units = match packet.family {
        Family::V4 => packet.fragment_field & 0x1fff,
        _ => packet.fragment_field >> 3,
    };
    // In units of eight bytes; 0 is no later fragment.
    units < TCP_HEADER.div_ceil(8)
}

/// An echo, or the answer to one, that is meant for many.
///
/// IPv6 hosts look for their neighbours so, from link-local addresses; nobody else has a reason to.
#[inline(always)]
fn is_smurf(packet: &Packet, to_everybody: bool) -> bool {
    let (source, destination) = (bytes(&packet.src), bytes(&packet.dst));
    match packet.family {
        Family::V4 => {
            // Echo and its reply (RFC 792).
            matches!(packet.icmp_type, 0 | 8)
                && !matches!(packet.fragment, Fragment::Later)
                && (to_everybody || matches!(destination, [224..=239, ..] | [255, 255, 255, 255]))
        }
        Family::V6 => {
            let [first, second, ..] = source;
            matches!(packet.icmp_type, 128 | 129)
                && matches!(destination, [0xff, ..])
                && !(first == 0xfe && second & 0xc0 == 0x80)
        }
        Family::Other => false,
    }
}

/// Whether the segment is no connection attempt, and so has to belong to a connection. What can belong to
/// none is not among them: it has its own name.
#[inline(always)]
pub fn is_segment(packet: &Packet) -> bool {
    packet.proto == PROTO_TCP
        && !matches!(packet.fragment, Fragment::Later)
        && packet.tcp_flags & (SYN | ACK) != SYN
        && !is_nonsense(packet.tcp_flags)
}

/// What a flood of such segments without connections is called.
#[inline(always)]
pub fn stray_reason(flags: u8) -> Reason {
    if flags & RST != 0 {
        Reason::RstFlood
    } else if flags & SYN != 0 {
        Reason::SynAckFlood
    } else if flags & FIN != 0 {
        Reason::FinFlood
    } else {
        Reason::AckFlood
    }
}

/// Whether a datagram comes from the port of a service that answers more than it is asked, and so is abused
/// for reflection: US-CERT TA14-017A and its successors.
#[inline(always)]
pub fn is_amplifier(packet: &Packet) -> bool {
    packet.proto == PROTO_UDP
        && matches!(
            packet.sport,
            // QOTD, chargen, DNS, TFTP, portmapper, NTP, NetBIOS, SNMP, CLDAP, SLP
            17 | 19 | 53 | 69 | 111 | 123 | 137 | 161 | 389 | 427
            // RIPv1, SSDP, ARD, WS-Discovery, mDNS, CoAP, Ubiquiti discovery, memcached, DHDiscover
            | 520 | 1900 | 3283 | 3702 | 5353 | 5683 | 10001 | 11211 | 37810
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(src: [u8; 4], dst: [u8; 4], proto: u8) -> Packet {
        Packet {
            src: [u32::from_ne_bytes(src), 0, 0, 0],
            dst: [u32::from_ne_bytes(dst), 0, 0, 0],
            family: Family::V4,
            proto,
            tcp_flags: ACK,
            ..Packet::empty(60)
        }
    }

    fn v6(src: [u8; 16], dst: [u8; 16], icmp_type: u8) -> Packet {
        let words = |a: [u8; 16]| {
            let mut words = [0; 4];
            for (word, part) in words.iter_mut().zip(a.chunks_exact(4)) {
                *word = u32::from_ne_bytes(part.try_into().unwrap());
            }
            words
        };
        Packet {
            src: words(src),
            dst: words(dst),
            family: Family::V6,
            proto: PROTO_ICMPV6,
            icmp_type,
            ..Packet::empty(60)
        }
    }

    const HERE: [u8; 4] = [192, 0, 2, 1];

    #[test]
    fn sources_that_cannot_be() {
        for (source, forged) in [
            (HERE, true),
            ([127, 0, 0, 1], true),
            ([224, 0, 0, 5], true),
            ([239, 255, 0, 1], true),
            ([255, 255, 255, 255], true),
            ([0, 0, 0, 0], false),
            ([240, 0, 0, 1], false),
            ([198, 51, 100, 7], false),
        ] {
            let verdict = insane(&v4(source, HERE, PROTO_TCP), false, u64::MAX);
            assert_eq!(verdict, forged.then_some(Reason::Land), "{source:?}");
            assert!(!(forged && is_plain(&v4(source, HERE, PROTO_TCP))));
        }
        assert!(is_plain(&v4([198, 51, 100, 7], HERE, PROTO_TCP)));
        let datagram = v4([198, 51, 100, 7], HERE, PROTO_UDP);
        assert!(is_plain(&datagram));
        // What another check has to see is not plain.
        assert!(!is_plain(&Packet {
            sport: 53,
            ..datagram
        }));
        assert!(!is_plain(&Packet {
            fragment: Fragment::First,
            ..datagram
        }));
        assert!(!is_plain(&v4(HERE, HERE, PROTO_UDP)));
        let mut here = [0; 16];
        here[0] = 0x20;
        let (mut loopback, mut group) = ([0; 16], [0; 16]);
        loopback[15] = 1;
        group[0] = 0xff;
        for (source, forged) in [
            (here, true),
            (loopback, true),
            (group, true),
            ([0; 16], false),
        ] {
            let verdict = insane(&v6(source, here, 135), false, u64::MAX);
            assert_eq!(verdict, forged.then_some(Reason::Land), "{source:?}");
        }
        assert_eq!(insane(&v4(HERE, HERE, PROTO_UDP), false, 0), None, "off");
    }

    #[test]
    fn every_combination_of_flags() {
        // What conversations contain; PSH, URG and the two ECN bits may come with any of them.
        let sane = [
            SYN,
            SYN | ACK,
            ACK,
            FIN | ACK,
            RST,
            RST | ACK,
            FIN | RST | ACK,
            FIN | RST,
        ];
        for flags in 0..=u8::MAX {
            let packet = Packet {
                tcp_flags: flags,
                ..v4([198, 51, 100, 7], HERE, PROTO_TCP)
            };
            let expected = !sane.contains(&(flags & (SYN | ACK | FIN | RST)));
            let verdict = insane(&packet, false, u64::MAX);
            assert_eq!(
                verdict,
                expected.then_some(Reason::TcpFlags),
                "{flags:#04x}"
            );
        }
    }

    #[test]
    fn fragments_over_the_header_and_beyond_it() {
        for (family, field, tiny) in [
            (Family::V4, 0x2001, true),
            (Family::V4, 2, true),
            (Family::V4, 3, false),
            (Family::V6, 8, true),
            (Family::V6, 16 | 1, true),
            (Family::V6, 24, false),
        ] {
            let packet = Packet {
                family,
                fragment: Fragment::Later,
                fragment_field: field,
                tcp_flags: 0,
                ..v4([198, 51, 100, 7], HERE, PROTO_TCP)
            };
            let verdict = insane(&packet, false, u64::MAX);
            assert_eq!(verdict, tiny.then_some(Reason::TinyFragment), "{field:#x}");
            let udp = Packet {
                proto: PROTO_UDP,
                ..packet
            };
            assert_eq!(insane(&udp, false, u64::MAX), None);
        }
    }

    #[test]
    fn echoes_to_many() {
        let echo = |dst, icmp_type| Packet {
            icmp_type,
            ..v4([198, 51, 100, 7], dst, PROTO_ICMP)
        };
        let smurf = |packet: Packet, all| insane(&packet, all, u64::MAX) == Some(Reason::Smurf);
        assert!(smurf(echo([255; 4], 8), false) && smurf(echo([224, 0, 0, 1], 8), false));
        assert!(smurf(echo([192, 0, 2, 255], 8), true) && smurf(echo(HERE, 0), true));
        assert!(!smurf(echo(HERE, 8), false) && !smurf(echo(HERE, 3), true));
        let (mut everybody, mut global, mut local) = ([0; 16], [0; 16], [0; 16]);
        (everybody[0], everybody[15]) = (0xff, 1);
        global[0] = 0x20;
        (local[0], local[1]) = (0xfe, 0x80);
        assert!(smurf(v6(global, everybody, 128), false));
        assert!(!smurf(v6(local, everybody, 128), true));
        assert!(
            !smurf(v6(global, everybody, 135), true),
            "neighbour discovery"
        );
    }

    #[test]
    fn segments_without_a_connection_have_a_name() {
        for (flags, reason) in [
            (ACK, Reason::AckFlood),
            (RST, Reason::RstFlood),
            (RST | ACK, Reason::RstFlood),
            (FIN | ACK, Reason::FinFlood),
            (SYN | ACK, Reason::SynAckFlood),
        ] {
            assert_eq!(stray_reason(flags), reason);
            assert_ne!(STRAYS & reason.bit(), 0);
        }
        let packet = v4([198, 51, 100, 7], HERE, PROTO_TCP);
        assert!(is_segment(&packet));
        assert!(!is_segment(&Packet {
            tcp_flags: SYN,
            ..packet
        }));
        let later = Packet {
            fragment: Fragment::Later,
            ..packet
        };
        assert!(!is_segment(&later));
    }
}
