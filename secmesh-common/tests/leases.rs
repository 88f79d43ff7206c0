//! Leases change nothing but the price: what is known of a source and of its flow, and what becomes of each packet, is
//! what it would be without them.

use proptest::prelude::*;
use secmesh_common::{
    account::{
        HARDLY_KNOWN, Observed, SourceSlot, account, is_routine, over_limit, over_stray_limit,
    },
    config::{Config, RateClass, RateLevels, features::SOURCE_LIMITS},
    flow::{
        Again, Arrival, FINE_GAPS, FlowEnd, FlowLimits, FlowSlot, LOCKED, Step, flow_place, state,
    },
    lease::{EPOCH, datagram, grant, key, segment},
    limit::{Limit, SourceLimit},
    list::native,
    packet::{
        Family, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet,
        tcp_flags::{ACK, FIN, PSH, RST, SYN},
    },
    reason::Reason,
    sanity::{STRAYS, is_plain, is_segment},
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// Of the kernel's timer.
const TICK: u64 = 4 * MS;
/// Ticks at the beginning.
const START: u64 = 1_000_000;

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

fn ports(packet: &Packet) -> u32 {
    (u32::from(packet.sport) << 16) | u32::from(packet.dport)
}

/// What is known of a source, and the same without leases.
#[derive(Default)]
struct Pair {
    leased: SourceSlot,
    plain: SourceSlot,
}

/// What account and limits have to say, as the kernel asks them.
fn judge(
    slot: &mut SourceSlot,
    packet: &Packet,
    now: u64,
    config: &Config,
) -> (Observed, Option<Reason>, bool) {
    let seen = account(slot, packet, now, config);
    let limited = config.features & SOURCE_LIMITS != 0;
    let over = limited
        .then(|| over_limit(slot, packet, &seen, now, config))
        .flatten();
    let asked = over.is_none() && config.checks & STRAYS != 0 && is_segment(packet);
    let stray = asked && over_stray_limit(slot, now, config);
    (seen, over, stray)
}

impl Pair {
    /// Takes a packet both ways; whether it had a lease.
    fn take(&mut self, packet: &Packet, ticks: u64, config: &Config) -> bool {
        let now = ticks * TICK;
        let key = key(ticks, config.epoch);
        let (slot, length) = (&mut self.leased, packet.wire_len);
        let before = *slot;
        let leased = is_plain(packet)
            && match packet.proto {
                PROTO_TCP => segment(slot, key, length, config),
                _ => datagram(
                    slot,
                    key,
                    native(&packet.dst),
                    ports(packet),
                    length,
                    config,
                ),
            };
        let said = if leased {
            (Observed::default(), None, false)
        } else {
            assert_eq!(*slot, before, "asking changed something");
            let routine = is_plain(packet) && is_routine(slot, packet, now, config);
            let said = judge(slot, packet, now, config);
            if routine {
                grant(slot, packet, key);
            }
            said
        };
        assert_eq!(
            said,
            judge(&mut self.plain, packet, now, config),
            "{packet:?}"
        );
        assert_eq!(without_lease(&self.leased), self.plain, "{packet:?}");
        leased
    }
}

fn without_lease(slot: &SourceSlot) -> SourceSlot {
    SourceSlot {
        lease_tcp: 0,
        lease_udp: 0,
        lease_dst: [0; 2],
        lease_ports: 0,
        ..*slot
    }
}

fn config(limits: &[Limit; SourceLimit::COUNT + 1], watch: u32, checks: u64) -> Config {
    let [source_limits @ .., stray_limit] = *limits;
    let levels = RateLevels {
        window_ns: SECOND,
        watch,
        alert: 200,
    };
    Config {
        features: SOURCE_LIMITS,
        checks,
        source_limits,
        stray_limit,
        rates: [levels; RateClass::COUNT],
        contact_window_ns: 10 * SECOND,
        tick_ns: TICK,
        ..Config::default()
    }
    .settled()
}

const EASY: Limit = Limit::per_second(1_000_000, 1_000_000, TICK);

/// A source that is known, and what it may send is leased to it.
fn known(config: &Config, packet: &Packet) -> Pair {
    let mut pair = Pair::default();
    for _ in 0..=HARDLY_KNOWN {
        pair.take(packet, START, config);
    }
    assert!(pair.take(packet, START, config));
    pair
}

#[test]
fn a_lease_ends_with_its_tick_and_with_its_epoch() {
    let config = config(&[EASY; SourceLimit::COUNT + 1], 1 << 20, u64::MAX);
    let segment = Packet {
        tcp_flags: ACK,
        ..packet(PROTO_TCP)
    };
    for packet in [segment, packet(PROTO_UDP)] {
        let mut pair = known(&config, &packet);
        assert!(!pair.take(&packet, START + 1, &config));
        assert!(pair.take(&packet, START + 1, &config));
        let changed = Config {
            epoch: config.epoch + EPOCH,
            ..config
        };
        assert!(!pair.take(&packet, START + 1, &changed));
        assert!(pair.take(&packet, START + 1, &changed));
    }
}

#[test]
fn a_lease_is_for_packets_of_its_kind() {
    let config = config(&[EASY; SourceLimit::COUNT + 1], 1 << 20, u64::MAX);
    let ack = Packet {
        tcp_flags: ACK,
        ..packet(PROTO_TCP)
    };
    let mut pair = known(&config, &ack);
    assert!(!pair.take(&packet(PROTO_UDP), START, &config));
    // Any of its connections, but for what may complete one.
    assert!(pair.take(&Packet { dport: 81, ..ack }, START, &config));
    let syn = Packet {
        tcp_flags: SYN,
        ..ack
    };
    assert!(!pair.take(&syn, START, &config));
    let other = Packet { sport: 1001, ..ack };
    assert!(!pair.take(&other, START, &config));
    assert!(!pair.take(&other, START, &config));
    assert!(!pair.take(&ack, START, &config), "this one completes it");
    assert!(pair.take(&other, START, &config));

    let datagram = packet(PROTO_UDP);
    for other in [
        Packet {
            dport: 81,
            ..datagram
        },
        Packet {
            sport: 1001,
            ..datagram
        },
        Packet {
            dst: [7, 0, 0, 0],
            ..datagram
        },
        ack,
    ] {
        let mut pair = known(&config, &datagram);
        assert!(!pair.take(&other, START, &config), "{other:?}");
    }
}

#[test]
fn a_limit_that_is_not_asked_does_not_end_a_lease() {
    let hard = [Limit::per_second(1, 1, TICK); SourceLimit::COUNT + 1];
    let none = [Limit::NONE; SourceLimit::COUNT + 1];
    let unlimited = Config {
        features: 0,
        ..config(&hard, 1 << 20, !STRAYS)
    };
    let segment = Packet {
        tcp_flags: ACK,
        ..packet(PROTO_TCP)
    };
    for (config, why) in [
        (config(&hard, 1 << 20, Reason::Land.bit()), "no such check"),
        (unlimited.settled(), "no limits"),
        (config(&none, 1 << 20, u64::MAX), "limits of nothing"),
    ] {
        for packet in [segment, packet(PROTO_UDP)] {
            let mut pair = known(&config, &packet);
            // More than the score goes up to.
            let leased = (0..5000).filter(|_| pair.take(&packet, START, &config));
            // But for those that are reported.
            assert!(leased.count() >= 4990, "{why}: {packet:?}");
        }
    }
}

fn limit() -> impl Strategy<Value = Limit> {
    (1..3000_u64, prop_oneof![1..16_u64, 1..300_u64], 0..4_u8).prop_map(|(rate, burst, off)| {
        if off == 0 {
            Limit::NONE
        } else {
            Limit::per_second(rate, burst, TICK)
        }
    })
}

proptest! {
    #[test]
    fn of_a_source_the_same_is_known_and_said(
        limits in proptest::array::uniform7(limit()),
        watch in 1..32_u32,
        checks in prop_oneof![Just(u64::MAX), any::<u64>()],
        packets in proptest::collection::vec(
            (
                prop_oneof![8 => Just(0_u8), 1 => Just(1), 1 => Just(2), 8 => Just(3), 2 => Just(4)],
                prop_oneof![8 => Just(0_u16), 1 => 0..3_u16],
                prop_oneof![8 => Just(60_u32), 1 => 40..1500_u32],
                prop_oneof![32 => Just(0_u64), 4 => 0..4_u64, 1 => 0..4000_u64],
                prop_oneof![32 => Just(false), 1 => Just(true)],
            ),
            0..400,
        ),
    ) {
        let mut config = config(&limits, watch, checks);
        let (mut pair, mut ticks) = (Pair::default(), START);
        for (kind, port, wire_len, gap, changed) in packets {
            ticks += gap;
            if changed {
                config.stray_limit = limits[usize::from(port)];
                config.epoch = config.epoch.wrapping_add(EPOCH);
                config = config.settled();
            }
            let tcp = |tcp_flags: u8| Packet { tcp_flags, sport: 1000 + port, ..packet(PROTO_TCP) };
            let of_kind = match kind {
                0 => tcp(ACK),
                1 => tcp(SYN),
                2 => packet(PROTO_ICMP),
                3 => Packet { dport: 80 + port, ..packet(PROTO_UDP) },
                _ => tcp(ACK | PSH),
            };
            pair.take(&Packet { wire_len, ..of_kind }, ticks, &config);
        }
    }

    #[test]
    fn of_a_flow_the_same_is_known(
        ipv6 in any::<bool>(),
        tcp in any::<bool>(),
        packets in proptest::collection::vec(
            (
                any::<bool>(),
                prop_oneof![8 => Just(0_u32), 8 => Just(1000), 4 => 0..1400_u32],
                prop_oneof![64 => Just(ACK), 16 => Just(ACK | PSH), 1 => Just(SYN), 1 => Just(SYN | ACK), 1 => Just(FIN | ACK), 1 => Just(RST)],
                prop_oneof![64 => Just(0_u64), 8 => 0..4_u64, 1 => 0..4000_u64],
            ),
            0..600,
        ),
    ) {
        let mut pair = FlowPair::default();
        let mut ticks = START;
        for (back, payload, flags, gap) in packets {
            ticks += gap;
            pair.take(&flow_packet(ipv6, tcp, back, payload, flags), ticks);
        }
    }
}

fn flow_packet(ipv6: bool, tcp: bool, back: bool, payload: u32, flags: u8) -> Packet {
    let header = if tcp { 20 } else { 8 };
    let (ip, family) = if ipv6 {
        (40, Family::V6)
    } else {
        (20, Family::V4)
    };
    let there = Packet {
        src: [1, 0, 0, if ipv6 { 4 } else { 0 }],
        dst: [1, 0, 0, 5],
        sport: 1000,
        dport: 80,
        family,
        proto: if tcp { PROTO_TCP } else { PROTO_UDP },
        tcp_flags: if tcp { flags } else { 0 },
        l3: 14,
        l4: 14 + ip,
        l3_rest: header + payload,
        ..Packet::empty(14 + u32::from(ip) + header + payload)
    };
    let there = Packet {
        dst: if ipv6 { there.dst } else { [2, 0, 0, 0] },
        ..there
    };
    if back {
        Packet {
            src: there.dst,
            dst: there.src,
            sport: there.dport,
            dport: there.sport,
            ..there
        }
    } else {
        there
    }
}

const LIMITS: FlowLimits = FlowLimits {
    idle: 15_000_000,
    active: 60_000_000,
};

/// A flow that may be counted again, and the same flow without that.
#[derive(Default)]
struct FlowPair {
    again: FlowSlot,
    plain: FlowSlot,
}

/// Counts a packet as the kernel does.
fn count(slot: &mut FlowSlot, packet: &Packet, now_ns: u64) -> Option<FlowEnd> {
    let place = flow_place(packet, 3, 9, 63);
    let arrival = Arrival {
        now_ns,
        ifindex: 3,
        tcp_len: if packet.proto == PROTO_TCP { 20 } else { 0 },
        window: 7,
        ..Arrival::default()
    };
    let begin = match slot.next_step(packet, now_ns, &LIMITS) {
        Step::Late => return None,
        step => slot.tag == 0 || step != Step::Count,
    };
    if begin {
        *slot = FlowSlot::begin(place.tag, &place, packet, &arrival);
    }
    let way = slot.way(&place);
    let end = slot.count(way, packet, &arrival);
    if end.is_some() {
        slot.state = state::ENDED;
    }
    end
}

fn again(packet: &Packet, ticks: u64) -> Again {
    let header = if packet.proto == PROTO_TCP { 20 } else { 8 };
    Again {
        src: packet.src,
        dst: packet.dst,
        ports: ports(packet),
        ifindex: 3,
        now_ns: ticks * TICK,
        wire_len: packet.wire_len,
        payload: packet.l3_rest - header,
        proto: packet.proto,
        family: packet.family,
        flags: packet.tcp_flags,
    }
}

impl FlowPair {
    /// Takes a packet both ways; whether it was counted again.
    fn take(&mut self, packet: &Packet, ticks: u64) -> bool {
        let now_ns = ticks * TICK;
        let before = self.again;
        let again = is_plain(packet) && self.again.count_again(&again(packet, ticks));
        if !again {
            assert_eq!(self.again, before, "asking changed something");
            let _end = count(&mut self.again, packet, now_ns);
        }
        let end = count(&mut self.plain, packet, now_ns);
        assert!(!again || end.is_none(), "{packet:?}: {end:?}");
        assert_eq!(self.again, self.plain, "{packet:?}");
        again
    }
}

#[test]
fn a_transfer_is_counted_again_and_again() {
    for (ipv6, tcp, answered) in [
        (false, false, false),
        (false, true, false),
        (true, true, true),
        (true, false, true),
        (false, true, true),
    ] {
        let mut pair = FlowPair::default();
        let mut ticks = START;
        if answered && tcp {
            for (back, flags) in [(false, SYN), (true, SYN | ACK), (false, ACK)] {
                pair.take(&flow_packet(ipv6, tcp, back, 0, flags), ticks);
            }
        }
        for n in 0..4 * FINE_GAPS {
            let back = answered && n % 2 == 1;
            pair.take(&flow_packet(ipv6, tcp, back, 1000, ACK), ticks);
        }
        ticks += 1;
        for back in [false, true] {
            if back && !answered {
                continue;
            }
            let packet = flow_packet(ipv6, tcp, back, 1000, ACK);
            assert!(!pair.take(&packet, ticks), "the first of a tick");
        }
        // One side's packets are counted so while the other's come between them.
        for back in [false, true] {
            if back && !answered {
                continue;
            }
            let packet = flow_packet(ipv6, tcp, back, 1000, ACK);
            assert!(pair.take(&packet, ticks), "{packet:?}");
            assert!(pair.take(&packet, ticks), "{packet:?}");
            // Longer than any before.
            let longer = flow_packet(ipv6, tcp, back, 1001, ACK);
            assert!(!pair.take(&longer, ticks));
            assert!(pair.take(&longer, ticks));
        }
    }
}

/// A flow of both sides whose packets are counted again, in its last tick.
fn flow(ipv6: bool, tcp: bool) -> FlowSlot {
    let mut pair = FlowPair::default();
    if tcp {
        for (back, flags) in [(false, SYN), (true, SYN | ACK), (false, ACK)] {
            pair.take(&flow_packet(ipv6, tcp, back, 0, flags), START);
        }
    }
    for n in 0..4 * FINE_GAPS {
        pair.take(&flow_packet(ipv6, tcp, n % 2 == 1, 1000, ACK), START);
    }
    for back in [false, true, false, true] {
        pair.take(&flow_packet(ipv6, tcp, back, 1000, ACK), START + 1);
    }
    // More than the score goes up to.
    for _ in 0..5000 {
        assert!(pair.take(&flow_packet(ipv6, tcp, false, 1000, ACK), START + 1));
    }
    pair.again
}

#[test]
fn a_packet_of_another_flow_is_not_counted_in_this_one() {
    type Other = fn(&mut Again);
    let others: [(&str, Other); 12] = [
        ("source", |p| p.src[0] ^= 1),
        ("destination", |p| p.dst[0] ^= 1),
        ("both", |p| (p.src[0], p.dst[0]) = (9, 9)),
        ("port from", |p| p.ports ^= 0x1_0000),
        ("port to", |p| p.ports ^= 1),
        ("ports", |p| p.ports = p.ports.rotate_left(16)),
        ("interface", |p| p.ifindex = 4),
        ("protocol", |p| p.proto ^= PROTO_TCP ^ PROTO_UDP),
        ("longer", |p| p.wire_len += 1),
        ("shorter", |p| p.wire_len = 53),
        ("more in it", |p| p.payload += 1),
        ("later", |p| p.now_ns += TICK),
    ];
    let of_ipv6: [(&str, Other); 3] = [
        ("end of the source", |p| p.src[3] ^= 1),
        ("end of the destination", |p| p.dst[3] ^= 1),
        ("family", |p| p.family = Family::V4),
    ];
    for (ipv6, tcp, back) in [
        (false, false, false),
        (true, false, true),
        (true, true, false),
        (false, true, true),
    ] {
        let slot = flow(ipv6, tcp);
        let own = again(&flow_packet(ipv6, tcp, back, 1000, ACK), START + 1);
        assert!({ slot }.count_again(&own));
        for (what, change) in others.iter().chain(of_ipv6.iter().filter(|_| ipv6)) {
            let (mut other, mut after) = (own, slot);
            change(&mut other);
            assert!(!after.count_again(&other), "{what}, {ipv6} {tcp} {back}");
            assert_eq!(after, slot, "{what}");
        }
    }
}

#[test]
fn a_flow_that_is_not_as_it_was_is_looked_at() {
    type Other = fn(&mut FlowSlot);
    let others: [(&str, Other); 11] = [
        ("free", |slot| slot.tag = 0),
        ("being written", |slot| {
            slot.tag = LOCKED;
        }),
        ("opening", |slot| slot.state = state::OPENING),
        ("closing", |slot| slot.state = state::CLOSING),
        ("recorded", |slot| slot.state = state::ENDED),
        ("at its beginning", |slot| slot.gaps = FINE_GAPS - 1),
        ("silent on one side", |slot| slot.ways[0].last -= 1),
        ("silent", |slot| slot.last -= 1),
        ("begun again", |slot| slot.first_ns += TICK),
        ("without a packet", |slot| slot.ways[0].packets = 0),
        ("with more in each", |slot| {
            slot.ways[0].payload_min = 1001;
        }),
    ];
    let own = again(&flow_packet(true, true, false, 1000, ACK), START + 1);
    let slot = flow(true, true);
    for (what, change) in others {
        let mut before = slot;
        change(&mut before);
        let mut after = before;
        assert!(!after.count_again(&own), "{what}");
        assert_eq!(after, before, "{what}");
    }
}
