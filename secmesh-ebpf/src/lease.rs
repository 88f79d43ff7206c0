//! What a packet takes whose source had one like it let through within this timer tick: see [`secmesh_common::lease`].
//!
//! Asked only where the last packet passed so or brought a lease: what comes in a flood does not pay for it.

use aya_ebpf::programs::XdpContext;
use secmesh_common::{
    account::{SourceSlot, place_of},
    config::{Config, features::FLOWS},
    counters::Counters,
    flow::Again,
    lease::{datagram, flow_of, segment},
    list::native,
    packet::{Family, PROTO_TCP, PROTO_UDP, Words, tcp_flags},
};

use crate::{
    frame::{load_long_at, load_word_at},
    maps::{FLOW, HASH_SEED, SOURCES},
    plain::{BARE, BARE4, ETHERNET, HEADER4, HEADER6, PLAIN, PLAIN6},
    routine::{ACCOUNTED, NO, TCP, UDP, passed},
};

/// What says in the second word of an IPv4 header that the packet is a fragment.
const FRAGMENT: u32 = u32::from_ne_bytes([0x3f, 0xff, 0, 0]);

/// What is compared of the segments of a transfer, in the word that ends with its flags.
const SEGMENT_MASK: u32 = u32::from_ne_bytes([0, 0, 0, !tcp_flags::PSH]);
/// How they are in [`SEGMENT_MASK`].
const ACKNOWLEDGES: u32 = u32::from_ne_bytes([0, 0, 0, tcp_flags::ACK]);

/// [`crate::routine::PASSED`] or [`crate::routine::ACCOUNTED`] if the source has a lease with this `key` for packets
/// like this one; else [`NO`], and nothing has changed.
///
/// No function of its own: a call costs a fifth of what is here.
#[inline(always)]
pub fn look(ctx: &XdpContext, config: &Config, counters: &mut Counters, key: u64) -> u32 {
    let known = pass(ctx, config, counters, key).unwrap_or(NO);
    if known == NO {
        counters.lately = 0;
    }
    known
}

#[inline(always)]
fn pass(ctx: &XdpContext, config: &Config, counters: &mut Counters, key: u64) -> Option<u32> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET + HEADER4 + UDP > end {
        return None;
    }
    let mut packet = Again {
        src: [0; 4],
        dst: [0; 4],
        ports: 0,
        ifindex: 0,
        now_ns: 0,
        wire_len: (end - start) as u32,
        payload: 0,
        proto: 0,
        family: Family::V4,
        flags: 0,
    };
    let kind = load_word_at::<12, 0>(start);
    if kind & BARE == BARE4 {
        let [total @ .., _, _] = load_word_at::<16, 0>(start).to_ne_bytes();
        let last = ETHERNET + usize::from(u16::from_be_bytes(total));
        let second = load_word_at::<20, 0>(start);
        if second & FRAGMENT != 0 {
            return None;
        }
        let [.., proto] = second.to_ne_bytes();
        packet.proto = proto;
        packet.src[0] = load_word_at::<26, 0>(start);
        packet.dst[0] = load_word_at::<30, 0>(start);
        return transport::<{ ETHERNET + HEADER4 }>(ctx, packet, last, config, counters, key);
    }
    if kind & PLAIN != PLAIN6 || start + ETHERNET + HEADER6 + UDP > end {
        return None;
    }
    let [payload @ .., proto, _] = load_word_at::<18, 0>(start).to_ne_bytes();
    let last = ETHERNET + HEADER6 + usize::from(u16::from_be_bytes(payload));
    packet.proto = proto;
    packet.family = Family::V6;
    packet.src = load_words::<22, 30>(start);
    packet.dst = load_words::<38, 46>(start);
    transport::<{ ETHERNET + HEADER6 }>(ctx, packet, last, config, counters, key)
}

/// Four words from two loads.
#[inline(always)]
fn load_words<const LOW: usize, const HIGH: usize>(start: usize) -> Words {
    let (low, high) = (load_long_at::<LOW>(start), load_long_at::<HIGH>(start));
    [
        low as u32,
        (low >> 32) as u32,
        high as u32,
        (high >> 32) as u32,
    ]
}

/// `AT` is where the transport header begins, `last` where the packet ends.
#[inline(always)]
fn transport<const AT: usize>(
    ctx: &XdpContext,
    mut packet: Again,
    last: usize,
    config: &Config,
    counters: &mut Counters,
    key: u64,
) -> Option<u32> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if last > end - start {
        return None;
    }
    if packet.proto == PROTO_TCP {
        if start + AT + TCP > end {
            return None;
        }
        let word = load_word_at::<AT, 10>(start);
        let [_, _, offset, flags] = word.to_ne_bytes();
        let header = usize::from(offset >> 4) * 4;
        if word & SEGMENT_MASK != ACKNOWLEDGES
            || header < TCP
            || AT + header > last
            || packet.src == packet.dst
        {
            return None;
        }
        packet.flags = flags;
        packet.ports = u32::from_be(load_word_at::<AT, 0>(start));
        packet.payload = (last - AT - header) as u32;
        let slot = slot_of(&packet)?;
        if !segment(slot, key, packet.wire_len, config) {
            return None;
        }
        return Some(booked(ctx, slot, packet, config, counters));
    }
    if packet.proto != PROTO_UDP || AT + UDP > last {
        return None;
    }
    let [length @ .., _, _] = load_word_at::<AT, 4>(start).to_ne_bytes();
    if usize::from(u16::from_be_bytes(length)) < UDP {
        return None;
    }
    packet.payload = (last - AT - UDP) as u32;
    packet.ports = u32::from_be(load_word_at::<AT, 0>(start));
    let slot = slot_of(&packet)?;
    let dst = native(&packet.dst);
    if !datagram(slot, key, dst, packet.ports, packet.wire_len, config) {
        return None;
    }
    Some(booked(ctx, slot, packet, config, counters))
}

/// What is left to do with a packet that was accounted: [`PASSED`], or [`ACCOUNTED`] if its flow has to be looked for.
#[inline(always)]
fn booked(
    ctx: &XdpContext,
    slot: &mut SourceSlot,
    mut packet: Again,
    config: &Config,
    counters: &mut Counters,
) -> u32 {
    if config.features & FLOWS != 0 {
        packet.now_ns = slot.last_ns;
        packet.ifindex = ctx.ingress_ifindex() as u32;
        let Some(flow) = FLOW.get_ptr_mut(*flow_of(slot, packet.proto)) else {
            return ACCOUNTED;
        };
        // SAFETY: as in `crate::flow::claim`.
        if !unsafe { &mut *flow }.count_again(&packet) {
            return ACCOUNTED;
        }
    }
    passed(packet.wire_len, counters)
}

/// The slot of the source, if it has its first one.
#[inline(always)]
fn slot_of(packet: &Again) -> Option<&'static mut SourceSlot> {
    let place = place_of(&packet.src, packet.family, HASH_SEED.load());
    let slot = SOURCES.get_ptr_mut(place.first)?;
    // SAFETY: as in `crate::observe::claim`.
    let slot = unsafe { &mut *slot };
    slot.holds(place.tag).then_some(slot)
}
