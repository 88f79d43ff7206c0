//! The shortest way to a pass: what most packets of a transfer take.
//!
//! Headers are read here once more, and only those that nearly all packets have; the packet so stays in registers, of a
//! kind that is known to the compiler. It is accounted by the functions that the stages behind this one call. Whether it is
//! one of many of a source that is within its limits is found out before anything is changed, so all others begin anew
//! behind it.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use secmesh_common::{
    account::{account, is_routine, over_limit, over_stray_limit, place},
    config::{
        Config,
        features::{ATTACKS, ATTACKS_ALL, FLOWS, SOURCE_LIMITS},
    },
    counters::{Counter, Counters, LATELY_LEASED},
    lease,
    packet::{Family, PROTO_TCP, PROTO_UDP, Packet, tcp_flags},
    sanity::{STRAYS, is_plain},
};

use crate::{
    clock::now_ns,
    cookie,
    count::bump,
    frame::{load_word, load_word_at},
    maps::{HASH_SEED, SOURCES},
    plain::{ETHERNET, HEADER4, HEADER6},
};

/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of a UDP header.
pub const UDP: usize = 8;

/// Nothing is known of the packet, and nothing has changed.
pub const NO: u32 = 0;
/// The packet passes, and everything is counted.
pub const PASSED: u32 = 1;
/// The packet passes, its source's account has it, and the rest is to be counted.
pub const ACCOUNTED: u32 = 2;

/// Looks at a packet that [`crate::quick::look`] found plain and of no blocked neighbourhood: [`PASSED`] or
/// [`ACCOUNTED`] if nothing else can be said of it, else [`NO`].
///
/// A function of its own to the verifier, which so checks it once. What it would call had no room on the stack below it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_routine(
    ctx: *mut xdp_md,
    config: *const Config,
    counters: *mut Counters,
    key: u64,
) -> u32 {
    if config.is_null() || counters.is_null() {
        return NO;
    }
    // SAFETY: the one caller passes entries of two maps; the verifier checks that.
    let (config, counters) = unsafe { (&*config, &mut *counters) };
    pass(&XdpContext::new(ctx), config, counters, key).unwrap_or(NO)
}

#[inline(always)]
fn pass(ctx: &XdpContext, config: &Config, counters: &mut Counters, key: u64) -> Option<u32> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let mut packet = Packet::empty((end - start) as u32);
    packet.l3 = ETHERNET as u16;
    if start + ETHERNET + HEADER4 + UDP > end {
        return None;
    }
    let first = load_word_at::<ETHERNET, 0>(start).to_ne_bytes();
    if first[0] == 0x45 {
        let [_, _, length @ ..] = first;
        let rest = u32::from(u16::from_be_bytes(length)).wrapping_sub(HEADER4 as u32);
        let [_, _, fragment @ ..] = load_word_at::<ETHERNET, 4>(start).to_ne_bytes();
        let [_, proto, ..] = load_word_at::<ETHERNET, 8>(start).to_ne_bytes();
        packet.fragment_field = u16::from_be_bytes(fragment);
        if packet.fragment_field & 0x3fff != 0 {
            return None;
        }
        packet.family = Family::V4;
        packet.src[0] = load_word_at::<ETHERNET, 12>(start);
        packet.dst[0] = load_word_at::<ETHERNET, 16>(start);
        return transport::<{ ETHERNET + HEADER4 }>(
            ctx, packet, proto, rest, config, counters, key,
        );
    }
    if start + ETHERNET + HEADER6 + UDP > end || first[0] >> 4 != 6 {
        return None;
    }
    let [length @ .., proto, _] = load_word_at::<ETHERNET, 4>(start).to_ne_bytes();
    // A length of zero is a jumbogram's, which is too short here.
    let rest = u32::from(u16::from_be_bytes(length));
    packet.family = Family::V6;
    let mut n = 0;
    while n < 4 {
        packet.src[n] = load_word(start + ETHERNET + 8 + 4 * n);
        packet.dst[n] = load_word(start + ETHERNET + 24 + 4 * n);
        n += 1;
    }
    transport::<{ ETHERNET + HEADER6 }>(ctx, packet, proto, rest, config, counters, key)
}

/// `rest` is how many bytes the IP header says follow it; they are in the frame. `AT` is where they begin.
#[inline(always)]
fn transport<const AT: usize>(
    ctx: &XdpContext,
    mut packet: Packet,
    proto: u8,
    rest: u32,
    config: &Config,
    counters: &mut Counters,
    key: u64,
) -> Option<u32> {
    let (start, end) = (ctx.data(), ctx.data_end());
    packet.l4 = AT as u16;
    packet.l3_rest = rest;
    if proto == PROTO_TCP {
        if start + AT + TCP > end || rest < TCP as u32 {
            return None;
        }
        let [_, _, offset, flags] = load_word_at::<AT, 10>(start).to_ne_bytes();
        let offset = u32::from(offset >> 4) * 4;
        if offset < TCP as u32 || offset > rest || flags & !tcp_flags::PSH != tcp_flags::ACK {
            return None;
        }
        packet.proto = PROTO_TCP;
        packet.tcp_flags = flags;
        packet.set_ports(load_word_at::<AT, 0>(start));
        return settle(packet, config, counters, key);
    }
    if proto != PROTO_UDP || start + AT + UDP > end || rest < UDP as u32 {
        return None;
    }
    let [length @ .., _, _] = load_word_at::<AT, 4>(start).to_ne_bytes();
    if usize::from(u16::from_be_bytes(length)) < UDP {
        return None;
    }
    packet.proto = PROTO_UDP;
    packet.set_ports(load_word_at::<AT, 0>(start));
    settle(packet, config, counters, key)
}

/// Accounts the packet as `crate::observe` does, if that has nothing to say.
#[inline(always)]
fn settle(packet: Packet, config: &Config, counters: &mut Counters, key: u64) -> Option<u32> {
    // An end of enforcement would have to be compared with the clock.
    if config.watched != 0
        || config.enforce_until_ns != 0
        || config.features & ATTACKS_ALL != 0
        || (config.features & ATTACKS != 0 && !is_plain(&packet))
        || cookie::concerns(&packet, config)
    {
        return None;
    }
    let now = now_ns(config);
    let place = place(&packet, HASH_SEED.load());
    let slot = SOURCES.get_ptr_mut(place.first)?;
    // SAFETY: as in `crate::observe::claim`.
    let slot = unsafe { &mut *slot };
    if !slot.holds(place.tag) || !is_routine(slot, &packet, now, config) {
        return None;
    }
    // Another CPU may count the same source meanwhile; counts are lower bounds, and a limit lets one packet more through.
    let seen = account(slot, &packet, now, config);
    if config.features & SOURCE_LIMITS != 0 {
        let _within = over_limit(slot, &packet, &seen, now, config);
    }
    if packet.proto == PROTO_TCP && config.checks & STRAYS != 0 {
        let _within = over_stray_limit(slot, now, config);
    }
    lease::grant(slot, &packet, key);
    counters.lately = LATELY_LEASED;
    if config.features & FLOWS != 0 {
        return Some(ACCOUNTED);
    }
    Some(passed(packet.wire_len, counters))
}

/// Counts a packet that its source's account has, and its flow if it has one.
#[inline(always)]
pub fn passed(wire_len: u32, counters: &mut Counters) -> u32 {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += u64::from(wire_len);
    bump(counters, Counter::Pass);
    PASSED
}
