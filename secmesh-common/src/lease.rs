//! Leases: that a packet passed, known for the rest of the kernel's timer tick.
//!
//! A source's transfer is many packets of one kind. Once one of them passed unasked ([`crate::account::is_routine`]),
//! the next has the same answer as long as the clock, the configuration and what is blocked stay what they are, but for
//! the limits. So the slot of the source says when that was, and the next packet of that kind within the same tick
//! books its limits and passes. Nothing is booked ahead or afterwards: the slot is what it would be without leases.
//!
//! A lease is good for one value of [`Config::epoch`], which the controller changes with everything that it writes, and
//! for one tick: whatever else changes, also by another hand than the controller's, holds from the next tick on.
#![expect(
    clippy::indexing_slicing,
    reason = "every index is a constant below its array's length"
)]

use crate::{
    account::{ARRIVAL_STRAY, MAX_SCORE, SourceSlot, due},
    config::{Config, RateClass},
    limit::{BYTES_PER_UNIT, Limit, SourceLimit},
    list::native,
    packet::{PROTO_TCP, PROTO_UDP, Packet},
};

/// What the controller adds to [`Config::epoch`]. Below it is room for the tick: at a thousand a second for 34 years.
pub const EPOCH: u64 = 1 << 40;

/// Where [`Config::leased`] keeps which limit.
pub const PACKETS: usize = 0;
/// As [`PACKETS`].
pub const BYTES: usize = 1;
/// As [`PACKETS`].
pub const DATAGRAMS: usize = 2;
/// As [`PACKETS`].
pub const STRAY: usize = 3;
/// Limits in [`Config::leased`].
pub const LIMITS: usize = 4;

/// What a lease of tick number `ticks` is good for, by [`Config::epoch`]. Never 0, which is none: the kernel counts ticks
/// from below 2³² (`INITIAL_JIFFIES` in include/linux/jiffies.h).
#[inline(always)]
pub const fn key(ticks: u64, epoch: u64) -> u64 {
    epoch.wrapping_add(ticks)
}

/// Writes into the slot that `packet`, which was routine, passed; `key` is from before anything was asked.
#[inline(always)]
pub fn grant(slot: &mut SourceSlot, packet: &Packet, key: u64) {
    match packet.proto {
        // While an attempt is open, an acknowledgement may complete it.
        PROTO_TCP if slot.count[RateClass::Syn as usize] == 0 => slot.lease_tcp = key,
        PROTO_UDP => {
            slot.lease_dst = native(&packet.dst);
            slot.lease_ports = (u32::from(packet.sport) << 16) | u32::from(packet.dport);
            slot.lease_udp = key;
        }
        _ => {}
    }
}

/// Where the flow of packets like those with a lease is to be looked for first.
#[inline(always)]
pub fn flow_of(slot: &mut SourceSlot, proto: u8) -> &mut u32 {
    if proto == PROTO_TCP {
        &mut slot.flow_tcp
    } else {
        &mut slot.flow_udp
    }
}

/// Accounts a plain segment ([`crate::sanity::is_plain`]) if the slot has a lease with this `key` for it and its limits
/// have room; else changes nothing.
#[inline(always)]
pub fn segment(slot: &mut SourceSlot, key: u64, wire_len: u32, config: &Config) -> bool {
    slot.lease_tcp == key && booked(slot, ARRIVAL_STRAY, STRAY, wire_len, config)
}

/// The same of a datagram between `ports` (from, to) and to `dst`.
#[inline(always)]
pub fn datagram(
    slot: &mut SourceSlot,
    key: u64,
    dst: [u64; 2],
    ports: u32,
    wire_len: u32,
    config: &Config,
) -> bool {
    let class = RateClass::Udp as usize;
    let count = slot.count[class].saturating_add(1);
    let levels = &config.rates[class];
    if slot.lease_udp != key
        || slot.lease_ports != ports
        || slot.lease_dst != dst
        || due(count, levels.watch, levels.alert)
        || !booked(slot, SourceLimit::Udp as usize, DATAGRAMS, wire_len, config)
    {
        return false;
    }
    slot.count[class] = count;
    true
}

/// Books a packet in the limits of all packets and in the one of its kind, which is `limit` in [`Config::leased`] and
/// `arrival` in the slot, if all have room.
#[inline(always)]
fn booked(
    slot: &mut SourceSlot,
    arrival: usize,
    limit: usize,
    wire_len: u32,
    config: &Config,
) -> bool {
    // The packet that brought the lease came within this tick, so its time is this one's. It was booked, so no arrival
    // is before that; one that another CPU wrote back is not within the limit, and its packet goes the longer way.
    let now_ns = slot.last_ns;
    let end = |limit: &Limit, arrival: u64, units: u32| {
        let end = arrival.wrapping_add(limit.cost_ns.wrapping_mul(u64::from(units)));
        (end.wrapping_sub(now_ns) <= limit.burst_ns).then_some(end)
    };
    let limits = &config.leased;
    let arrivals = &mut slot.arrival_ns;
    let units = wire_len.div_ceil(BYTES_PER_UNIT);
    let (packets, bytes) = (SourceLimit::Packets as usize, SourceLimit::Bytes as usize);
    let (Some(of_packets), Some(of_bytes), Some(of_kind)) = (
        end(&limits[PACKETS], arrivals[packets], 1),
        end(&limits[BYTES], arrivals[bytes], units),
        end(&limits[limit], arrivals[arrival], 1),
    ) else {
        return false;
    };
    arrivals[packets] = of_packets;
    arrivals[bytes] = of_bytes;
    arrivals[arrival] = of_kind;
    #[expect(
        clippy::implicit_saturating_add,
        reason = "`saturating_add` is twice as many instructions on the BPF target, for every packet"
    )]
    if slot.packets != u32::MAX {
        slot.packets += 1;
    }
    if slot.score < MAX_SCORE {
        slot.score += 1;
    }
    true
}
