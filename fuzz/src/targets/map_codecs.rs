//! What crosses the kernel boundary as bytes.

use std::net::{IpAddr, Ipv6Addr};

use aya::Pod;
use secmesh::addr::Prefix;
use secmesh::dataplane::fuzzing;
use secmesh::sense::observation::{Observation, What};
use secmesh_common::account::SourceSlot;
use secmesh_common::block::{Addr4, Addr6, AllowEntry, BlockEntry, Net4};
use secmesh_common::config::{Config, RateClass};
use secmesh_common::counters::{Counter, Counters};
use secmesh_common::event::{Event, EventKind};

use crate::feed::Feed;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut event = Event {
        ts_ns: 5_000,
        first_ns: 4_000,
        count: 200,
        packets: 300,
        ifindex: 2,
        wire_len: 60,
        sport: 4_000,
        dport: 80,
        kind: EventKind::Rate as u8,
        family: 4,
        proto: 6,
        detail: 2,
        class: RateClass::Syn as u8,
        ..Event::default()
    };
    let mut seeds = Vec::new();
    for kind in 0..5 {
        for family in [4, 6, 0] {
            event.kind = kind;
            event.family = family;
            for src in [[7; 16], Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 1, 2).octets()] {
                event.src = src;
                event.dst = src;
                seeds.push([&[0], fuzzing::bytes_of_event(&event).as_slice()].concat());
            }
        }
    }
    let prefixes = [
        "192.0.2.7",
        "192.0.2.0/24",
        "0.0.0.0/0",
        "2001:db8::/32",
        "::/0",
        "::1",
    ];
    for prefix in prefixes
        .iter()
        .filter_map(|text| text.parse::<Prefix>().ok())
    {
        seeds.push([&[1], prefix.to_bytes().as_slice()].concat());
    }
    seeds.extend((0..12).map(|n| [&[2], [n; 320].as_slice()].concat()));
    seeds
}

pub(super) fn run(input: &[u8]) {
    let mut feed = Feed::new(input);
    match feed.u8() % 3 {
        0 => event(feed.rest()),
        1 => key(&mut feed),
        _ => values(feed.rest()),
    }
}

/// A record of the ring: read field by field here, by the documented order and widths.
fn event(input: &[u8]) {
    let whole = input.len() == size_of::<Event>();
    assert_eq!(fuzzing::decode_event(input).is_some(), whole);
    // Of a longer input the front: an exact length is hard to hit.
    let record = input.get(..size_of::<Event>()).unwrap_or(input);
    let decoded = fuzzing::decode_event(record);
    let Some(event) = decoded else { return };
    assert_eq!(fuzzing::bytes_of_event(&event), record);
    let mut feed = Feed::new(record);
    // Little-endian, as every machine that this runs on; the kernel writes its own order.
    assert_eq!((event.ts_ns, event.first_ns), (feed.u64(), feed.u64()));
    assert_eq!((event.src, event.dst), (feed.array(), feed.array()));
    assert_eq!((event.count, event.packets), (feed.u32(), feed.u32()));
    assert_eq!((event.ifindex, event.wire_len), (feed.u32(), feed.u32()));
    assert_eq!((event.sport, event.dport), (feed.u16(), feed.u16()));
    assert_eq!((event.kind, event.family), (feed.u8(), feed.u8()));
    assert_eq!((event.proto, event.detail), (feed.u8(), feed.u8()));
    assert_eq!((event.class, event.open), (feed.u8(), feed.u8()));

    let known = EventKind::from_u8(event.kind)
        .filter(|_| matches!(event.family, 4 | 6))
        .filter(|kind| *kind != EventKind::Rate || RateClass::from_u8(event.class).is_some());
    let observation = Observation::from_event(&event);
    assert_eq!(observation.is_some(), known.is_some(), "{event:?}");
    let Some(observation) = observation else {
        return;
    };
    assert_eq!(observation.src, observation.src.to_canonical());
    assert_eq!(
        (observation.ts_ns, observation.first_ns),
        (event.ts_ns, event.first_ns)
    );
    assert_eq!(observation.packets, event.packets);
    match observation.what {
        What::Rate { class, count } => {
            assert_eq!((class as u8, count), (event.class, event.count));
        }
        What::Contact {
            dst, port, proto, ..
        } => {
            assert_eq!((port, proto), (event.dport, event.proto));
            assert_eq!(dst, dst.to_canonical());
        }
        What::Tripwire { port, proto } => {
            assert_eq!((port, proto), (event.dport, event.proto));
        }
        What::Packet => {}
    }
}

/// A prefix becomes a trie key and comes back; the key's bytes are what the kernel's trie wants.
fn key(feed: &mut Feed<'_>) {
    let family = feed.u8();
    let length = feed.u8();
    let address = feed.array::<16>();
    let [a, b, c, d, ..] = address;
    let address = if family.is_multiple_of(2) {
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(address)
    };
    let Ok(prefix) = Prefix::truncating(address, length) else {
        return;
    };
    let bytes = fuzzing::trie_key(&prefix);
    let octets = match prefix.addr() {
        IpAddr::V4(v4) => [v4.octets().as_slice(), &[0; 4]].concat(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let expected = [u32::from(prefix.len()).to_ne_bytes().as_slice(), &octets].concat();
    assert_eq!(bytes, expected, "{prefix}");
    assert_eq!(fuzzing::prefix_of_trie_key(&bytes), Some(prefix));
}

/// Bytes become a value and the value the same bytes: no padding that could leak or differ.
fn value<T: Pod>(bytes: &[u8]) -> Option<T> {
    let (taken, _) = bytes.split_at_checked(size_of::<T>())?;
    let value = fuzzing::pod_from_bytes::<T>(taken)?;
    assert_eq!(fuzzing::bytes_of_pod(&value), taken);
    Some(value)
}

fn values(bytes: &[u8]) {
    if let Some(entry) = value::<BlockEntry>(bytes) {
        let mut feed = Feed::new(bytes);
        assert_eq!((entry.expires_ns, entry.hits), (feed.u64(), feed.u64()));
        assert_eq!((entry.bytes, entry.first_hit_ns), (feed.u64(), feed.u64()));
        assert_eq!(entry.last_hit_ns, feed.u64());
        assert_eq!((entry.rule, entry.flags), (feed.u32(), feed.u32()));
    }
    let _address: (Option<Addr4>, Option<Addr6>) = (value(bytes), value(bytes));
    let _net: Option<Net4> = value(bytes);
    let _allow: Option<AllowEntry> = value(bytes);
    let _slot: Option<SourceSlot> = value(bytes);
    if let Some(config) = value::<Config>(bytes) {
        // Any bytes in the map give a time or none, never a trap.
        assert_eq!(
            config.clock_ns(config.event_tick_ns).is_none(),
            config.tick_ns == 0
        );
    }
    if let Some(counters) = value::<Counters>(bytes) {
        let mut sum = Counters::default();
        sum.add(&counters);
        for counter in Counter::ALL {
            assert_eq!(
                sum.get(*counter),
                counters.get(*counter),
                "{}",
                counter.name()
            );
        }
    }
}
