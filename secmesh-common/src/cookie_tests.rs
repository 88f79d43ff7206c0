extern crate std;
use std::vec::Vec;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, TcpOptionElement};
use proptest::prelude::*;

use super::*;

fn wire<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

fn check_tcp(tcp: &TcpHeaderSlice<'_>, of: &SynAck) {
    assert!(tcp.syn() && tcp.ack());
    assert!(!tcp.fin() && !tcp.rst() && !tcp.psh() && !tcp.urg() && !tcp.ece() && !tcp.cwr());
    assert_eq!(
        (tcp.source_port(), tcp.destination_port()),
        (of.server_port, of.client_port)
    );
    assert_eq!(
        (tcp.sequence_number(), tcp.acknowledgment_number()),
        (of.seq, of.ack)
    );
    assert_eq!(tcp.window_size(), of.window);
    let options: Vec<_> = tcp.options_iterator().map(Result::unwrap).collect();
    assert_eq!(options, [TcpOptionElement::MaximumSegmentSize(of.mss)]);
}

prop_compose! {
    fn syn_acks()(client: [u32; 4], server: [u32; 4], client_port: u16, server_port: u16,
                  seq: u32, ack: u32, mss: u16, window: u16) -> SynAck {
        SynAck { client, server, client_port, server_port, seq, ack, mss, window }
    }
}

proptest! {
    #[test]
    fn an_ipv4_answer_is_what_an_independent_library_makes_of_the_same_fields(of in syn_acks()) {
        let bytes = wire(of.words4());
        let ip = Ipv4HeaderSlice::from_slice(&bytes).unwrap();
        let header = ip.to_header();
        prop_assert_eq!(ip.header_checksum(), header.calc_header_checksum());
        prop_assert_eq!(ip.total_len() as usize, bytes.len());
        prop_assert_eq!((ip.ttl(), ip.protocol().0, ip.dont_fragment()), (64, 6, true));
        prop_assert_eq!(ip.source(), of.server[0].to_ne_bytes());
        prop_assert_eq!(ip.destination(), of.client[0].to_ne_bytes());
        let tcp = TcpHeaderSlice::from_slice(&bytes[20..]).unwrap();
        prop_assert_eq!(tcp.calc_checksum_ipv4(&ip, &[]).unwrap(), tcp.checksum());
        check_tcp(&tcp, &of);
    }

    #[test]
    fn an_ipv6_answer_is_what_an_independent_library_makes_of_the_same_fields(of in syn_acks()) {
        let bytes = wire(of.words6());
        let ip = Ipv6HeaderSlice::from_slice(&bytes).unwrap();
        prop_assert_eq!(ip.payload_length() as usize, bytes.len() - 40);
        prop_assert_eq!((ip.hop_limit(), ip.next_header().0), (64, 6));
        prop_assert_eq!(Vec::from(ip.source()), wire(of.server));
        prop_assert_eq!(Vec::from(ip.destination()), wire(of.client));
        let tcp = TcpHeaderSlice::from_slice(&bytes[40..]).unwrap();
        prop_assert_eq!(tcp.calc_checksum_ipv6(&ip, &[]).unwrap(), tcp.checksum());
        check_tcp(&tcp, &of);
    }

    #[test]
    fn every_mss_is_one_that_the_family_allows(mtu: u32, tags in 0u8..3) {
        for (family, least) in [(Family::V4, 536), (Family::V6, 1220)] {
            let mss = announced_mss(family, mtu, tags);
            prop_assert!(mss >= least);
            prop_assert!(u32::from(mss) <= mtu.max(u32::from(least)));
        }
    }
}

#[test]
fn sums_of_all_ones_and_all_zeros_fold_right() {
    for words in [[u32::MAX; 4], [0; 4]] {
        let of = SynAck {
            client: words,
            server: words,
            client_port: u16::MAX,
            server_port: u16::MAX,
            seq: words[0],
            ack: words[0],
            mss: u16::MAX,
            window: u16::MAX,
        };
        let bytes = wire(of.words6());
        let ip = Ipv6HeaderSlice::from_slice(&bytes).unwrap();
        let tcp = TcpHeaderSlice::from_slice(&bytes[40..]).unwrap();
        assert_eq!(tcp.calc_checksum_ipv6(&ip, &[]).unwrap(), tcp.checksum());
    }
}

#[test]
fn the_mss_of_common_links() {
    for (family, mtu, tags, mss) in [
        (Family::V4, 1500, 0, 1460),
        (Family::V4, 1500, 1, 1460),
        (Family::V4, 1500, 2, 1456),
        (Family::V6, 1500, 0, 1440),
        (Family::V6, 1280, 2, 1220),
        (Family::V4, 9000, 0, 8960),
        (Family::V4, 65_536, 0, 65_495),
        (Family::V4, 68, 0, 536),
    ] {
        assert_eq!(announced_mss(family, mtu, tags), mss, "{mtu}");
    }
    assert_eq!(announced_window(1460), 14_600);
    assert_eq!(announced_window(8960), 65_535);
}

#[test]
fn only_pure_attempts_are_answered_and_only_acknowledgements_checked() {
    use tcp_flags::{ACK, FIN, PSH, RST, SYN, URG};
    for flags in [SYN, SYN | PSH, SYN | URG, SYN | 0xc0] {
        assert!(is_attempt(flags) && !is_return(flags), "{flags:#x}");
    }
    for flags in [SYN | ACK, SYN | FIN, SYN | RST, RST, FIN, 0, RST | ACK] {
        assert!(!is_attempt(flags) && !is_return(flags), "{flags:#x}");
    }
    for flags in [ACK, ACK | PSH, ACK | FIN] {
        assert!(is_return(flags) && !is_attempt(flags), "{flags:#x}");
    }
}

#[test]
fn a_listener_is_asked_often_when_calm_and_once_a_second_in_a_flood() {
    let mut listener = Listener {
        tag: 1,
        ..Listener::default()
    };
    let now = 5_000_000_000;
    assert!(listener.probe_due(now));
    assert!(!listener.probe_due(now + PROBE_CALM_NS - 1));
    assert!(listener.probe_due(now + PROBE_CALM_NS));
    listener.marked_ns = now + PROBE_CALM_NS;
    assert!(!listener.probe_due(now + PROBE_FLOOD_NS));
    assert!(listener.probe_due(now + PROBE_CALM_NS + PROBE_FLOOD_NS));
    let end = listener.marked_ns + FLOOD_HOLD_NS;
    assert!(listener.flooded(end - 1) && !listener.is_free(end - 1));
    assert!(!listener.flooded(end) && listener.is_free(end));
    // A clock that another CPU read a tick later.
    assert!(listener.flooded(listener.marked_ns - 1));
}

#[test]
fn a_verified_source_is_not_challenged_until_its_time_is_over_or_it_floods() {
    let mut entry = Verified::default();
    let (tag, now) = (7 | 1 << 63, 1_000_000_000_000);
    assert!(!entry.admits(tag, now));
    entry.verify(tag, now);
    assert!(!entry.admits(tag + 1, now));
    let passed = (0..1000).filter(|_| entry.admits(tag, now)).count();
    assert_eq!(passed, 256);
    // Another handshake does not give a new burst.
    entry.verify(tag, now);
    assert!(!entry.admits(tag, now));
    assert!(entry.admits(tag, now + VERIFIED_NS - 1));
    assert!(!entry.admits(tag, now + VERIFIED_NS));
}

#[test]
fn the_key_of_an_ipv4_address_is_the_mapped_one() {
    let words = [word([192, 0, 2, 1]), 0, 0, 0];
    let mapped = std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
    assert_eq!(wire(address_key(&words, Family::V4)), mapped.octets());
    assert_eq!(address_key(&[1, 2, 3, 4], Family::V6), [1, 2, 3, 4]);
}

#[test]
fn link_addresses_change_over() {
    let words = [
        word([1, 2, 3, 4]),
        word([5, 6, 7, 8]),
        word([9, 10, 11, 12]),
    ];
    let turned = wire(turned_link(&words));
    assert_eq!(turned, [7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6]);
    assert_eq!(turned_link(&turned_link(&words)), words);
}

#[test]
fn destinations_differ_by_address_port_family_and_interface() {
    let a = [1, 0, 0, 0];
    let tags = [
        listener_tag(&a, Family::V4, 80, (2, false), 9),
        listener_tag(&[2, 0, 0, 0], Family::V4, 80, (2, false), 9),
        listener_tag(&a, Family::V4, 81, (2, false), 9),
        listener_tag(&a, Family::V6, 80, (2, false), 9),
        listener_tag(&a, Family::V4, 80, (3, false), 9),
        listener_tag(&a, Family::V4, 80, (2, true), 9),
        listener_tag(&a, Family::V4, 80, (2, false), 10),
    ];
    for (n, tag) in tags.iter().enumerate() {
        assert!(*tag != 0 && !tags[..n].contains(tag));
    }
}
