//! The flow table: one place for both directions, aggregates, and how connections end.

use proptest::prelude::*;
use secmesh_common::{
    flow::{Arrival, FINE_GAPS, FIRM, FlowEnd, FlowLimits, FlowSlot, Step, flow_place, state},
    packet::{
        Family, PROTO_TCP, Packet,
        tcp_flags::{ACK, FIN, PSH, RST, SYN},
    },
};

const LIMITS: FlowLimits = FlowLimits {
    idle: 1000,
    active: 10_000,
};

fn segment(flags: u8, payload: u32) -> Packet {
    Packet {
        src: [1, 2, 3, 4],
        dst: [5, 6, 7, 8],
        sport: 1000,
        dport: 80,
        family: Family::V6,
        proto: PROTO_TCP,
        tcp_flags: flags,
        l3: 14,
        l4: 54,
        l3_rest: 20 + payload,
        ..Packet::empty(74 + payload)
    }
}

fn answer(flags: u8) -> Packet {
    let there = segment(flags, 0);
    Packet {
        src: there.dst,
        dst: there.src,
        sport: there.dport,
        dport: there.sport,
        ..there
    }
}

fn at(units: u64) -> Arrival {
    Arrival {
        now_ns: units << 10,
        tcp_len: 20,
        window: 7,
        ..Arrival::default()
    }
}

fn begin(packet: &Packet, arrival: &Arrival) -> FlowSlot {
    let place = flow_place(packet, 0, 9, 63);
    FlowSlot::begin(place.tag, &place, packet, arrival)
}

/// Counts a packet, after what has to come before it.
fn take(slot: &mut FlowSlot, packet: &Packet, units: u64) -> Option<FlowEnd> {
    let place = flow_place(packet, 0, 9, 63);
    assert_eq!(slot.tag, place.tag);
    assert_eq!(slot.next_step(packet, units << 10, &LIMITS), Step::Count);
    let way = slot.way(&place);
    slot.count(way, packet, &at(units))
}

#[test]
fn a_connection_is_firm_when_both_sides_completed_it_and_ends_with_the_last_acknowledgement() {
    let mut slot = begin(&segment(SYN, 0), &at(0));
    assert_eq!(take(&mut slot, &segment(SYN, 0), 0), None);
    assert_eq!(take(&mut slot, &answer(SYN | ACK), 1), None);
    assert_ne!(slot.resistance(2 << 10, &LIMITS), FIRM);
    assert_eq!(take(&mut slot, &segment(ACK, 0), 2), None);
    assert_eq!(slot.resistance(2 << 10, &LIMITS), FIRM);
    assert_eq!(slot.resistance(2000 << 10, &LIMITS), 0, "silence ends it");
    assert_eq!(take(&mut slot, &segment(FIN | ACK, 0), 3), None);
    assert_eq!(take(&mut slot, &answer(FIN | ACK), 4), None);
    assert_eq!(slot.state, state::CLOSING);
    assert_eq!(slot.due(2_000_000 << 10, &LIMITS), Some(FlowEnd::Fin));
    assert_eq!(take(&mut slot, &segment(ACK, 0), 5), Some(FlowEnd::Fin));
    slot.state = state::ENDED;
    let late = slot.next_step(&answer(ACK), 6 << 10, &LIMITS);
    assert_eq!(late, Step::Late);
    let anew = slot.next_step(&segment(SYN, 0), 6 << 10, &LIMITS);
    assert_eq!(anew, Step::Begin);
}

#[test]
fn resets_silence_and_age_end_a_flow() {
    let mut slot = begin(&segment(SYN, 0), &at(0));
    assert_eq!(take(&mut slot, &segment(SYN, 0), 0), None);
    let step = |slot: &FlowSlot, units: u64| slot.next_step(&answer(ACK), units << 10, &LIMITS);
    assert_eq!(step(&slot, 1001), Step::Record(FlowEnd::Idle));
    for units in (500..10_000).step_by(500) {
        assert_eq!(take(&mut slot, &answer(ACK), units), None);
    }
    assert_eq!(step(&slot, 10_000), Step::Record(FlowEnd::Active));
    assert_eq!(take(&mut slot, &answer(RST), 9999), Some(FlowEnd::Reset));
}

#[test]
fn who_answers_did_not_begin() {
    let slot = begin(
        &answer(SYN | ACK),
        &Arrival {
            outgoing: 1,
            ..at(0)
        },
    );
    assert_eq!((slot.sport, slot.dport, slot.outgoing), (1000, 80, 0));
    assert_eq!(slot.src, segment(0, 0).src);
}

#[test]
fn times_are_measured_finely_at_the_beginning_only() {
    let mut slot = begin(&segment(ACK, 0), &at(0));
    for units in 0..200 {
        take(&mut slot, &segment(ACK, 0), units);
    }
    assert_eq!(slot.gaps, FINE_GAPS);
    assert_eq!(slot.gap_sum, u32::from(FINE_GAPS));
    take(&mut slot, &segment(ACK, 0), 700);
    assert_eq!(
        (slot.gap_max, slot.last, slot.ways[0].gap_max),
        (501, 700, 501)
    );
    // The cheap clock may be behind.
    take(&mut slot, &segment(ACK, 0), 650);
    assert_eq!((slot.last, slot.ways[0].last), (700, 700));
}

proptest! {
    #[test]
    fn both_directions_have_one_place_and_other_flows_another(
        addresses in any::<([u32; 4], [u32; 4])>(), ports in any::<(u16, u16)>(), seed: u64, v6: bool,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let there = Packet {
            src: addresses.0, dst: addresses.1, sport: ports.0, dport: ports.1, family, ..segment(ACK, 0)
        };
        let back = Packet {
            src: there.dst, dst: there.src, sport: there.dport, dport: there.sport, ..there
        };
        let (a, b) = (flow_place(&there, 3, seed, 1023), flow_place(&back, 3, seed, 1023));
        prop_assert_eq!((a.tag, a.first, a.second), (b.tag, b.first, b.second));
        prop_assert!(a.first < 1024 && a.second < 1024 && a.tag & 1 == 1);
        prop_assert_ne!(a.tag, flow_place(&there, 4, seed, 1023).tag);
        let other = Packet { dport: there.dport ^ 1, ..there };
        prop_assert_ne!(a.tag, flow_place(&other, 3, seed, 1023).tag);
    }

    #[test]
    fn an_aggregate_counts_as_the_packets_that_the_card_makes_of_it(
        size in 1u32..1500, whole in 1u32..40, rest in 1u32..1500,
    ) {
        let rest = rest.min(size);
        let mut apart = begin(&segment(ACK, 0), &at(0));
        for n in 0..=whole {
            let last = n == whole;
            let flags = if last { ACK | PSH } else { ACK };
            apart.count(0, &segment(flags, if last { rest } else { size }), &at(0));
        }
        let mut joined = begin(&segment(ACK, 0), &at(0));
        let arrival = Arrival { segments: whole + 1, segment_size: size, ..at(0) };
        joined.count(0, &segment(ACK | PSH, whole * size + rest), &arrival);
        for slot in [&mut apart, &mut joined] {
            // It came at once: there are no times between.
            slot.ways[0].gaps = 0;
            slot.gaps = 0;
            slot.score = 0;
        }
        prop_assert_eq!(apart, joined);
    }
}
