//! The per-source accounting: windows, handshakes, contacts, and who keeps a slot.
#![expect(
    clippy::indexing_slicing,
    reason = "helpers of tests: an index out of bounds is a failed test"
)]

use proptest::prelude::*;
use secmesh_common::{
    account::{
        COMPLETED_FACTOR, HARDLY_KNOWN, Observed, RUN_GAP_NS, SLOTS, SourceSlot, account,
        is_routine, is_tcp_probe, over_limit, over_stray_limit, place,
    },
    config::{Config, RateClass, RateLevels, features::SOURCE_LIMITS},
    limit::{Limit, SourceLimit},
    packet::{
        Family, Fragment, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet,
        tcp_flags::{ACK, FIN, PSH, RST, SYN, URG},
    },
    sanity::{is_plain, is_segment},
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// Any time but zero.
const START: u64 = 5000 * SECOND;

fn config() -> Config {
    let levels = RateLevels {
        window_ns: SECOND,
        watch: 16,
        alert: 200,
    };
    Config {
        rates: [levels; RateClass::COUNT],
        contact_window_ns: 10 * SECOND,
        ..Config::default()
    }
}

fn packet(proto: u8) -> Packet {
    Packet {
        src: [0x0100_0a0a, 0, 0, 0],
        dst: [0x0200_0a0a, 0, 0, 0],
        sport: 1000,
        dport: 80,
        family: Family::V4,
        proto,
        ..Packet::empty(60)
    }
}

fn tcp(flags: u8, sport: u16, dport: u16) -> Packet {
    Packet {
        tcp_flags: flags,
        sport,
        dport,
        ..packet(PROTO_TCP)
    }
}

fn syn_count(slot: &SourceSlot) -> u32 {
    slot.count[RateClass::Syn as usize]
}

/// Accounts packets one millisecond apart; gives the counts that were reported.
fn reported(
    slot: &mut SourceSlot,
    packets: impl IntoIterator<Item = Packet>,
    apart_ns: u64,
) -> Vec<u32> {
    let config = config();
    let mut now = START;
    let mut counts = Vec::new();
    for packet in packets {
        let seen = account(slot, &packet, now, &config);
        if seen.rate_count > 0 {
            counts.push(seen.rate_count);
        }
        now += apart_ns;
    }
    counts
}

#[test]
fn levels_are_reported_at_watch_alert_and_every_power_of_two_beyond() {
    let mut slot = SourceSlot::default();
    let datagrams = std::iter::repeat_n(packet(PROTO_UDP), 1100);
    assert_eq!(
        reported(&mut slot, datagrams, 1000),
        [16, 200, 256, 512, 1024]
    );
}

#[test]
fn each_class_has_a_count_of_its_own() {
    for (proto, class) in [
        (PROTO_UDP, RateClass::Udp),
        (PROTO_ICMP, RateClass::Icmp),
        (PROTO_ICMPV6, RateClass::Icmp),
    ] {
        let mut slot = SourceSlot::default();
        reported(&mut slot, std::iter::repeat_n(packet(proto), 50), 1000);
        for other in [RateClass::Syn, RateClass::Udp, RateClass::Icmp] {
            let expected = if other == class { 50 } else { 0 };
            assert_eq!(slot.count[other as usize], expected, "{proto} {other:?}");
        }
    }
    let mut slot = SourceSlot::default();
    reported(&mut slot, (0..50).map(|port| tcp(SYN, port, 80)), 1000);
    assert_eq!(slot.count, [50, 0, 0]);
}

#[test]
fn a_window_ends_and_the_next_begins_at_zero() {
    let mut slot = SourceSlot::default();
    let config = config();
    // 190 in every second never reach 200, however long it goes on.
    let mut now = START;
    for _ in 0..20 {
        for n in 1..=190_u32 {
            let seen = account(&mut slot, &packet(PROTO_UDP), now, &config);
            assert_eq!(seen.rate_count, if n == 16 { 16 } else { 0 });
            now += MS;
        }
        now += 810 * MS;
    }
    // The edge belongs to the new window.
    let mut slot = SourceSlot::default();
    account(&mut slot, &packet(PROTO_UDP), START, &config);
    account(&mut slot, &packet(PROTO_UDP), START + SECOND - 1, &config);
    assert_eq!(slot.count[RateClass::Udp as usize], 2);
    account(&mut slot, &packet(PROTO_UDP), START + SECOND, &config);
    assert_eq!(slot.count[RateClass::Udp as usize], 1);
}

#[test]
fn a_clock_that_stands_still_or_goes_back_breaks_nothing() {
    let mut slot = SourceSlot::default();
    let config = config();
    for now in [START, START, START - SECOND, 0, START, START + 1] {
        account(&mut slot, &packet(PROTO_UDP), now, &config);
    }
    assert_eq!(slot.count[RateClass::Udp as usize], 6);
}

fn handshakes(count: u16) -> impl Iterator<Item = Packet> {
    (1000..1000 + count).flat_map(|port| [tcp(SYN, port, 80), tcp(ACK, port, 80)])
}

/// From so many attempts in one window on, completing them does not help.
fn completed_flood() -> u32 {
    config().rates[RateClass::Syn as usize].alert * COMPLETED_FACTOR
}

#[test]
fn completed_handshakes_do_not_count_below_the_level_for_completed_ones() {
    let mut slot = SourceSlot::default();
    let below = u16::try_from(completed_flood() - 1).unwrap();
    assert_eq!(reported(&mut slot, handshakes(below), 1000), [0; 0]);
    assert_eq!(syn_count(&slot), 0);
}

#[test]
fn attempts_with_forged_acknowledgements_are_a_flood_in_the_end() {
    let mut slot = SourceSlot::default();
    let level = completed_flood();
    let counts = reported(&mut slot, handshakes(u16::try_from(level).unwrap()), 1000);
    assert_eq!(counts, [level]);
}

#[test]
fn attempts_are_counted_anew_in_each_window() {
    let mut slot = SourceSlot::default();
    // 2,000 handshakes, but over four seconds.
    assert_eq!(reported(&mut slot, handshakes(2000), MS), [0; 0]);
}

#[test]
fn a_bulk_transfer_cannot_pay_for_a_flood() {
    let mut slot = SourceSlot::default();
    // One connection that acknowledges all the time, and a hundred times as many attempts beside it.
    let mixed = (0..1000_u16).flat_map(|n| {
        [
            tcp(ACK, 50_000, 443),
            tcp(SYN, 1000 + n, 80),
            tcp(ACK | PSH, 50_000, 443),
        ]
    });
    let counts = reported(&mut slot, mixed, 1000);
    assert!(counts.contains(&200), "{counts:?}");
    // The transfer's ports may meet a flood port's bit in the filter, once per bit that is set again.
    assert!(syn_count(&slot) > 900, "{}", syn_count(&slot));
}

#[test]
fn acknowledgements_pay_for_one_attempt_each_and_never_in_advance() {
    let mut slot = SourceSlot::default();
    let early = std::iter::repeat_n(tcp(ACK, 1000, 80), 500);
    reported(&mut slot, early, 1000);
    assert_eq!(syn_count(&slot), 0);
    let attempts = std::iter::repeat_n(tcp(SYN, 1000, 80), 10);
    reported(&mut slot, attempts, 1000);
    assert_eq!(syn_count(&slot), 10);
    reported(
        &mut slot,
        std::iter::repeat_n(tcp(ACK, 1000, 80), 500),
        1000,
    );
    assert_eq!(syn_count(&slot), 9);
}

#[test]
fn syn_ack_and_reset_complete_nothing() {
    let mut slot = SourceSlot::default();
    reported(&mut slot, [tcp(SYN, 1000, 80)], 1000);
    reported(
        &mut slot,
        [
            tcp(SYN | ACK, 1000, 80),
            tcp(RST, 1000, 80),
            tcp(RST | ACK, 1000, 80),
        ],
        1000,
    );
    assert_eq!(syn_count(&slot), 1);
}

#[test]
fn probes_are_what_no_conversation_contains() {
    for flags in [SYN, SYN | FIN, 0, FIN, FIN | PSH | URG, PSH, URG, SYN | RST] {
        assert!(is_tcp_probe(flags), "{flags:#x}");
    }
    for flags in [SYN | ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK] {
        assert!(!is_tcp_probe(flags), "{flags:#x}");
    }
}

fn contacts(slot: &mut SourceSlot, packets: impl IntoIterator<Item = Packet>, at: u64) -> usize {
    let config = config();
    packets
        .into_iter()
        .filter(|p| account(slot, p, at, &config).contact)
        .count()
}

#[test]
fn a_port_is_a_contact_once_in_a_window_and_again_in_the_next() {
    let mut slot = SourceSlot::default();
    let many = || std::iter::repeat_n(tcp(SYN, 1000, 80), 100);
    assert_eq!(contacts(&mut slot, many(), START), 1);
    assert_eq!(contacts(&mut slot, many(), START + 10 * SECOND - 1), 0);
    assert_eq!(contacts(&mut slot, many(), START + 10 * SECOND), 1);
}

#[test]
fn port_host_and_protocol_make_a_contact_and_the_source_port_does_not() {
    let mut slot = SourceSlot::default();
    let base = tcp(SYN, 1000, 80);
    let other_host = Packet {
        dst: [77, 0, 0, 0],
        ..base
    };
    let datagram = Packet {
        tcp_flags: 0,
        proto: PROTO_UDP,
        ..base
    };
    assert_eq!(
        contacts(
            &mut slot,
            [base, tcp(SYN, 1000, 81), other_host, datagram],
            START
        ),
        4
    );
    assert_eq!(
        contacts(&mut slot, [tcp(SYN, 1001, 80), tcp(FIN, 9, 80)], START),
        0
    );
}

#[test]
fn a_scan_shows_nearly_all_its_first_ports() {
    // 256 bits: of twenty ports, the scan threshold, next to none may hide behind another.
    for base in 0..200_u16 {
        let mut slot = SourceSlot::default();
        let scan = (0..20).map(|n| tcp(SYN, 1000, base * 100 + n));
        assert!(contacts(&mut slot, scan, START) >= 15, "{base}");
    }
}

#[test]
fn later_fragments_count_as_packets_and_as_nothing_else() {
    let mut slot = SourceSlot::default();
    for proto in [PROTO_TCP, PROTO_UDP, PROTO_ICMP] {
        let later = Packet {
            fragment: Fragment::Later,
            tcp_flags: SYN,
            ..packet(proto)
        };
        assert_eq!(contacts(&mut slot, [later], START), 0);
    }
    assert_eq!((slot.count, slot.packets), ([0; 3], 3));
}

#[test]
fn a_silence_starts_a_new_run() {
    let mut slot = SourceSlot::default();
    let config = config();
    account(&mut slot, &packet(PROTO_UDP), START, &config);
    account(&mut slot, &packet(PROTO_UDP), START + RUN_GAP_NS, &config);
    assert_eq!((slot.packets, slot.first_ns), (2, START));
    let later = START + 2 * RUN_GAP_NS + 1;
    account(&mut slot, &packet(PROTO_UDP), later, &config);
    assert_eq!((slot.packets, slot.first_ns), (1, later));
}

/// The table as the kernel uses it.
struct Table {
    slots: Vec<SourceSlot>,
    contended: usize,
}

impl Table {
    const SEED: u64 = 0x5eed;

    fn new() -> Self {
        Self {
            slots: vec![SourceSlot::default(); SLOTS],
            contended: 0,
        }
    }

    fn see(&mut self, packet: &Packet, now: u64, config: &Config) -> bool {
        let at = place(packet, Self::SEED);
        let (a, b) = (at.first as usize, at.second as usize);
        let slot = if self.slots[a].holds(at.tag) {
            a
        } else if self.slots[b].holds(at.tag) {
            b
        } else {
            let weaker = if self.slots[a].resistance(now) <= self.slots[b].resistance(now) {
                a
            } else {
                b
            };
            if !self.slots[weaker].contend(at.tag, now) {
                self.contended += 1;
                return false;
            }
            weaker
        };
        account(&mut self.slots[slot], packet, now, config);
        true
    }

    fn holds(&self, packet: &Packet) -> bool {
        let at = place(packet, Self::SEED);
        [at.first, at.second]
            .iter()
            .any(|s| self.slots[*s as usize].holds(at.tag))
    }
}

#[test]
fn a_heavy_source_keeps_its_slot_under_a_hundred_thousand_spoofed_ones() {
    let config = config();
    let mut table = Table::new();
    let mut now = START;
    let heavy = packet(PROTO_UDP);
    let mut accounted = 0;
    for n in 0..100_000_u32 {
        let spoofed = Packet {
            src: [n.wrapping_mul(2_654_435_761) | 1, 0, 0, 0],
            ..packet(PROTO_UDP)
        };
        table.see(&spoofed, now, &config);
        if n % 10 == 0 {
            accounted += usize::from(table.see(&heavy, now, &config));
        }
        // A hundred thousand packets a second.
        now += 10_000;
    }
    assert_eq!(accounted, 10_000, "the heavy source was displaced");
    assert!(table.holds(&heavy));
    assert_eq!(table.slots.len(), SLOTS, "the table cannot grow");
}

#[test]
fn a_heavy_source_gets_a_slot_though_strangers_hold_both() {
    let config = config();
    let mut table = Table::new();
    let heavy = packet(PROTO_UDP);
    let at = place(&heavy, Table::SEED);
    // Both places are held by somebody who sent ten packets each.
    for slot in [at.first, at.second] {
        table.slots[slot as usize] = SourceSlot {
            tag: 1,
            score: 10,
            last_ns: START,
            ..SourceSlot::default()
        };
    }
    let needed = (0..100)
        .take_while(|_| !table.see(&heavy, START, &config))
        .count();
    assert_eq!(needed, table.contended);
    assert!((10..=20).contains(&needed), "{needed} packets were needed");
}

#[test]
fn a_silent_holder_gives_way_at_once() {
    let mut slot = SourceSlot {
        tag: 9,
        score: 4000,
        last_ns: START,
        ..SourceSlot::default()
    };
    assert!(!slot.contend(11, START + RUN_GAP_NS));
    assert!(slot.contend(11, START + RUN_GAP_NS + 1));
    assert!(slot.holds(11));
}

#[test]
fn a_long_lived_source_can_be_displaced_in_the_end() {
    let config = config();
    let mut slot = SourceSlot::default();
    assert!(slot.contend(9, START));
    for _ in 0..1_000_000 {
        account(&mut slot, &packet(PROTO_UDP), START, &config);
    }
    let needed = (0..10_000).take_while(|_| !slot.contend(11, START)).count();
    assert!(needed <= 4096, "{needed} packets");
}

/// Every limit on, the same for all.
fn limited(rate: u64, burst: u64) -> Config {
    let limit = Limit::per_second(rate, burst, MS);
    Config {
        features: SOURCE_LIMITS,
        checks: u64::MAX,
        source_limits: [limit; SourceLimit::COUNT],
        stray_limit: limit,
        ..config()
    }
}

/// Does with a packet what the kernel does; whether it was routine.
///
/// # Panics
/// If it was and there was something to say of it.
fn settle(slot: &mut SourceSlot, packet: &Packet, now: u64, config: &Config) -> bool {
    let before = *slot;
    let routine = is_plain(packet) && is_routine(slot, packet, now, config);
    assert_eq!(*slot, before, "asking changed something");
    let seen = account(slot, packet, now, config);
    let over = over_limit(slot, packet, &seen, now, config);
    let stray = is_segment(packet) && over_stray_limit(slot, now, config);
    if routine {
        assert_eq!(seen, Observed::default(), "{packet:?}");
        assert_eq!((over, stray), (None, false), "{packet:?}");
        assert!(slot.packets >= HARDLY_KNOWN, "{packet:?}");
    }
    routine
}

#[test]
fn a_transfer_is_routine_once_its_source_is_known_and_until_it_is_over_a_limit() {
    let config = limited(1000, 100);
    for packet in [
        tcp(ACK, 1000, 80),
        tcp(ACK | PSH, 1000, 80),
        packet(PROTO_UDP),
    ] {
        let mut slot = SourceSlot::default();
        let mut now = START;
        // Slower than the limit, and than what is reported of datagrams.
        let routine: Vec<bool> = (0..100)
            .map(|_| {
                now += 100 * MS;
                settle(&mut slot, &packet, now, &config)
            })
            .collect();
        let first = HARDLY_KNOWN as usize;
        assert!(routine[..first].iter().all(|routine| !routine));
        // Each new window begins with one that is not; of UDP both windows.
        let more = routine[first..].iter().filter(|routine| **routine).count();
        assert!(more >= 70, "{packet:?}: {routine:?}");
        // Faster than the limit.
        let many = (0..1000).filter(|_| settle(&mut slot, &packet, now, &config));
        let many = many.count();
        assert!((8..=100).contains(&many), "{packet:?}: {many}");
        now += RUN_GAP_NS + 1;
        assert!(!settle(&mut slot, &packet, now, &config), "a new run");
    }
}

#[test]
fn no_other_packet_is_routine() {
    let config = limited(1_000_000, 1_000_000);
    let mut slot = SourceSlot::default();
    for _ in 0..64 {
        settle(&mut slot, &tcp(ACK, 1000, 80), START, &config);
    }
    assert!(settle(&mut slot, &tcp(ACK, 1000, 80), START, &config));
    for other in [
        tcp(SYN, 1000, 80),
        tcp(FIN | ACK, 1000, 80),
        tcp(RST, 1000, 80),
        tcp(SYN | ACK, 1000, 80),
        packet(PROTO_ICMP),
        // A port of nobody's before.
        Packet {
            dport: 81,
            ..packet(PROTO_UDP)
        },
    ] {
        assert!(!settle(&mut slot, &other, START, &config), "{other:?}");
    }
}

proptest! {
    #[test]
    fn of_a_routine_packet_there_is_nothing_to_say(
        limits in proptest::collection::vec((1..3000_u64, prop_oneof![1..16_u64, 1..300_u64]), SourceLimit::COUNT + 1),
        watch in 1..32_u32,
        packets in proptest::collection::vec(
            (
                prop_oneof![8 => Just(0_u8), 1 => Just(1), 1 => Just(2), 8 => Just(3)],
                prop_oneof![8 => Just(0_u16), 1 => 0..3_u16],
                prop_oneof![8 => Just(60_u32), 1 => 40..1500_u32],
                prop_oneof![8 => Just(0_u64), 8 => 0..4 * MS, 1 => 0..12 * SECOND],
            ),
            0..400,
        ),
    ) {
        // Each its own, so that each is the first to be reached in some of the cases.
        let limits: Vec<Limit> = limits
            .into_iter()
            .map(|(rate, burst)| Limit::per_second(rate, burst, MS))
            .collect();
        let config = Config {
            source_limits: std::array::from_fn(|n| limits[n]),
            stray_limit: limits[SourceLimit::COUNT],
            rates: config().rates.map(|levels| RateLevels { watch, ..levels }),
            ..limited(1, 1)
        };
        let mut slot = SourceSlot::default();
        let mut now = START;
        for (kind, port, wire_len, gap) in packets {
            now += gap;
            let of_kind = match kind {
                0 => tcp(ACK, 1000 + port, 80),
                1 => tcp(SYN, 1000 + port, 80),
                2 => packet(PROTO_ICMP),
                _ => Packet { dport: 80 + port, ..packet(PROTO_UDP) },
            };
            settle(&mut slot, &Packet { wire_len, ..of_kind }, now, &config);
        }
    }

    #[test]
    fn places_are_in_the_table_and_tags_are_never_the_free_one(
        src in any::<[u32; 4]>(), seed in any::<u64>(), v6 in any::<bool>(),
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let at = place(&Packet { src, family, ..packet(PROTO_UDP) }, seed);
        prop_assert!((at.first as usize) < SLOTS && (at.second as usize) < SLOTS);
        prop_assert_ne!(at.tag, 0);
    }

    #[test]
    fn no_packet_at_no_time_makes_the_accounting_panic(
        packets in proptest::collection::vec(
            (any::<u8>(), any::<u8>(), any::<u16>(), any::<u16>(), any::<u64>(), any::<bool>()), 0..200),
        config in (any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()),
    ) {
        let (window_ns, watch, alert, contact_window_ns) = config;
        let config = Config {
            rates: [RateLevels { window_ns, watch, alert }; 3],
            contact_window_ns,
            ..Config::default()
        };
        let mut slot = SourceSlot::default();
        for (proto, tcp_flags, sport, dport, now, later) in packets {
            let fragment = if later { Fragment::Later } else { Fragment::Whole };
            let packet = Packet { proto, tcp_flags, sport, dport, fragment, ..packet(proto) };
            account(&mut slot, &packet, now, &config);
        }
    }

    #[test]
    fn open_attempts_never_exceed_the_attempts_made(
        flows in proptest::collection::vec((any::<bool>(), 0..64_u16), 0..400),
    ) {
        let mut slot = SourceSlot::default();
        let config = config();
        let mut attempts = 0;
        for (syn, port) in flows {
            attempts += u32::from(syn);
            account(&mut slot, &tcp(if syn { SYN } else { ACK }, port, 80), START, &config);
            prop_assert!(syn_count(&slot) <= attempts);
        }
    }
}
