use proptest::prelude::*;
use secmesh_common::{
    flow::{Arrival, flow_place},
    packet::{PROTO_TCP, Packet},
};

use super::*;

fn packet() -> Packet {
    Packet {
        src: [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0],
        dst: [u32::from_ne_bytes([198, 51, 100, 2]), 0, 0, 0],
        sport: 40_000,
        dport: 443,
        family: Family::V4,
        proto: PROTO_TCP,
        tcp_flags: 0x02,
        l3: 14,
        l4: 34,
        l3_rest: 20,
        ..Packet::empty(54)
    }
}

fn export(at: &[u64]) -> FlowExport {
    let packet = packet();
    let place = flow_place(&packet, 3, 99, 1023);
    let arrival = |now_ns| Arrival {
        now_ns,
        ifindex: 3,
        tcp_len: 20,
        window: 512,
        ..Arrival::default()
    };
    let mut slot = FlowSlot::begin(place.tag, &place, &packet, &arrival(at[0]));
    for now in at {
        slot.count(0, &packet, &arrival(*now));
    }
    FlowExport {
        slot,
        ended_ns: 0,
        end: FlowEnd::Idle as u32,
        pad: 0,
    }
}

#[test]
fn units_are_microseconds_and_silences_split_active_periods() {
    const SECOND: u64 = 1_000_000_000;
    let flow = FlowRecord::from_export(
        &export(&[SECOND, 2 * SECOND, 10 * SECOND, 12 * SECOND]),
        |ns| ns / 1000,
    )
    .unwrap();
    let close = |is: u64, wanted: u64| assert!(is.abs_diff(wanted) < 10, "{is} is not {wanted}");
    assert_eq!(flow.first_unix_us, 1_000_000);
    close(flow.duration_us, 11_000_000);
    close(flow.last_unix_us, 12_000_000);
    assert_eq!((flow.forward.packets, flow.backward.packets), (4, 0));
    assert_eq!((flow.forward.bytes, flow.forward.payload_bytes), (216, 0));
    assert_eq!((flow.forward.syn, flow.forward.window), (4, 512));
    close(flow.forward.gaps.min_us, 1_000_000);
    close(flow.forward.gaps.max_us, 8_000_000);
    close(flow.forward.gaps.sum_us, 11_000_000);
    let squares = flow.forward.gaps.squares_us2 as f64;
    assert!((squares / 69e12 - 1.0).abs() < 1e-5, "{squares}");
    assert_eq!((flow.idle.count, flow.active.count), (1, 2));
    close(flow.idle.sum_us, 8_000_000);
    close(flow.active.min_us, 1_000_000);
    close(flow.active.max_us, 2_000_000);
    close(flow.active.sum_us, 3_000_000);
    assert_eq!(flow.src, "192.0.2.1".parse::<IpAddr>().unwrap());
    assert_eq!(flow.dst_port, 443);
}

#[test]
fn a_record_that_mixes_two_flows_is_noticed() {
    let good = export(&[1, 2]);
    assert!(is_whole(&good, 99));
    assert!(!is_whole(&good, 98));
    let mut mixed = good;
    mixed.slot.dport ^= 1;
    assert!(!is_whole(&mixed, 99));
}

#[test]
fn the_store_is_bounded_and_can_be_followed() {
    let mut recent = Recent::default();
    for n in 0..MAX_RECENT as u64 + 10 {
        recent.keep(n);
    }
    assert_eq!(recent.next(), MAX_RECENT as u64 + 10);
    assert_eq!(recent.list(None, 2), [recent.next() - 2, recent.next() - 1]);
    assert_eq!(
        recent.list(Some(recent.next() - 3), 2),
        [recent.next() - 3, recent.next() - 2]
    );
    assert_eq!(recent.list(Some(0), 1), [10]);
    assert!(recent.list(Some(recent.next()), 5).is_empty());
    assert!(recent.list(Some(u64::MAX), 5).is_empty());
}

proptest! {
    #[test]
    fn no_bytes_of_a_record_make_the_decoder_panic(
        bytes in proptest::collection::vec(any::<u8>(), size_of::<FlowExport>()),
    ) {
        // SAFETY: a plain structure of integers without padding; the length is its own.
        let export = unsafe { bytes.as_ptr().cast::<FlowExport>().read_unaligned() };
        let whole = is_whole(&export, 7);
        if let Some(flow) = FlowRecord::from_export(&export, |ns| ns / 1000) {
            prop_assert!(flow.forward.header_bytes <= flow.forward.bytes);
            let text = serde_json::to_string(&flow).unwrap();
            prop_assert_eq!(&serde_json::from_str::<FlowRecord>(&text).unwrap(), &flow);
        } else {
            prop_assert!(!whole || FlowEnd::from_u32(export.end).is_none());
        }
    }
}
