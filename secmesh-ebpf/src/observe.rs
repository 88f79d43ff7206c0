//! Per-source accounting and the events that come of it.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NO_SRC_ADDR, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT,
        bpf_fib_lookup, bpf_sock_tuple, xdp_md,
    },
    helpers::{
        bpf_fib_lookup as fib_lookup, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::XdpContext,
};
use secmesh_common::{
    account::{
        HARDLY_KNOWN, Observed, SourceSlot, account, credit, over_limit, over_mesh_limit,
        over_stray_limit, place,
    },
    block::{Addr4, Addr6},
    config::{
        Config,
        features::{ATTACKS, ATTACKS_ALL, SOURCE_LIMITS},
    },
    counters::{Counter, Counters},
    event::{Event, EventKind, OPEN_NO, OPEN_UNKNOWN, OPEN_YES},
    packet::{Family, PROTO_UDP, Packet},
    reason::Reason,
    sanity::{STRAYS, is_plain, is_segment},
};

use crate::{
    attack,
    block::bytes16,
    clock::now_ns,
    cookie,
    count::bump,
    frame,
    maps::{BUDGET, EVENTS, HASH_SEED, SOURCES, WATCH4, WATCH6},
};

/// Parses the rest of a packet that nothing blocked and accounts it: [`observe`] as a function of its own to the
/// verifier, which then checks it once and not again for every way through the stages before it: the
/// instructions of stages add up instead of multiplying.
///
/// One function for both, and the counters and the configuration handed over: a call costs about as much as a
/// stage on processors where every return is guarded (retpolines, safe returns).
///
/// Returns 0 if there is nothing more to do with the packet than to let it pass, else the number of a
/// [`Reason`] in the lowest byte with [`FOUND`] set, or the number of a [`Malformed`] there with [`REFUSED`], or
/// what is to be asked next: [`ASK_ATTACK`], [`ASK_COOKIE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_observe(
    ctx: *mut xdp_md,
    packet: *mut Packet,
    config: *const Config,
    counters: *mut Counters,
) -> u32 {
    if packet.is_null() || config.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: the one caller passes a packet on its stack, all of it written, and entries of two maps; the
    // verifier checks that.
    let (packet, config, counters) = unsafe { (&mut *packet, &*config, &mut *counters) };
    // Never so: it tells the verifier, which knows nothing of the caller, that offsets are small.
    if packet.l3 >= 64 {
        return 0;
    }
    let ctx = XdpContext::new(ctx);
    if let Err(malformed) = frame::payload(&ctx, packet) {
        return REFUSED | malformed as u32;
    }
    if let Some(reason) = observe(&ctx, packet, config, counters) {
        return FOUND | reason as u32;
    }
    let mut next = 0;
    if config.features & ATTACKS != 0 && (config.features & ATTACKS_ALL != 0 || !is_plain(packet)) {
        next |= ASK_ATTACK;
    }
    if cookie::concerns(packet, config) {
        next |= ASK_COOKIE;
    }
    next
}

/// Bit of [`secmesh_observe`]'s answer: the packet's source is over a limit.
pub const FOUND: u32 = 1 << 8;
/// Bit of the answer: the packet could not be parsed, and was not accounted.
pub const REFUSED: u32 = 1 << 9;
/// Bit of the answer: `secmesh_attack` has to see the packet.
pub const ASK_ATTACK: u32 = 1 << 10;
/// Bit of the answer: `secmesh_cookie` has to see the packet.
pub const ASK_COOKIE: u32 = 1 << 11;

/// No [`Reason`] has this number.
pub const NO_REASON: u8 = u8::MAX;

/// Accounts a packet that nothing blocked, reports what is worth it, and says which of its source's limits
/// it breaks, if one.
#[inline(always)]
fn observe(
    ctx: &XdpContext,
    packet: &Packet,
    config: &Config,
    counters: &mut Counters,
) -> Option<Reason> {
    let now = now_ns(config);
    let segment = config.checks & STRAYS != 0 && is_segment(packet);
    let Some(slot) = claim(packet, now) else {
        bump(counters, Counter::SourcesContended);
        return segment.then(|| attack::stray(ctx, packet, true, config))?;
    };
    let seen = account(slot, packet, now, config);
    let mut over = if config.features & SOURCE_LIMITS != 0 {
        over_limit(slot, packet, &seen, now, config)
    } else {
        None
    };
    if seen.connection
        && over.is_none()
        && attack::to_mesh(packet, config)
        && over_mesh_limit(slot, &seen, now, config)
    {
        over = Some(Reason::MeshLimit);
    }
    let watched = config.watched > 0 && is_watched(packet, now);
    if seen.rate_count != 0 || seen.contact || watched {
        let first = slot.first_ns;
        let packets = slot.packets;
        report(
            ctx, packet, config, counters, &seen, watched, now, first, packets,
        );
    }
    if over.is_none() && segment {
        if over_stray_limit(slot, now, config) {
            let reason = attack::stray(ctx, packet, false, config);
            if reason.is_none() {
                credit(slot, config);
            }
            return reason;
        }
        if slot.packets < HARDLY_KNOWN {
            return attack::stray(ctx, packet, true, config);
        }
    }
    over
}

/// The source's slot, if it has one or can take one.
#[inline(always)]
fn claim(packet: &Packet, now: u64) -> Option<&'static mut SourceSlot> {
    let place = place(packet, HASH_SEED.load());
    let first = SOURCES.get_ptr_mut(place.first)?;
    // SAFETY: array entries are never freed while the program runs. Other CPUs may write the same slot;
    // its fields are independent counters (see secmesh_common::account).
    let first = unsafe { &mut *first };
    if first.holds(place.tag) {
        return Some(first);
    }
    let second = SOURCES.get_ptr_mut(place.second)?;
    // SAFETY: as above; if both places are one slot, `first` is not used after this.
    let second = unsafe { &mut *second };
    if second.holds(place.tag) {
        return Some(second);
    }
    let weaker = if first.resistance(now) <= second.resistance(now) {
        first
    } else {
        second
    };
    weaker.contend(place.tag, now).then_some(weaker)
}

#[inline(always)]
fn is_watched(packet: &Packet, now: u64) -> bool {
    let until = match packet.family {
        Family::V4 => WATCH4.get_ptr(Addr4 {
            addr: packet.src[0].to_ne_bytes(),
        }),
        Family::V6 => WATCH6.get_ptr(Addr6 {
            addr: bytes16(&packet.src),
        }),
        Family::Other => None,
    };
    // SAFETY: the pointer came from a map lookup of this program run; one aligned u64 is read.
    until.is_some_and(|until| unsafe { *until } > now)
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "BPF has no heap and 512 bytes of stack: a struct would be copied there for nothing"
)]
fn report(
    ctx: &XdpContext,
    packet: &Packet,
    config: &Config,
    counters: &mut Counters,
    seen: &Observed,
    watched: bool,
    now: u64,
    first: u64,
    packets: u32,
) {
    let mut open = OPEN_UNKNOWN;
    let kind = if seen.rate_count != 0 {
        EventKind::Rate
    } else if seen.contact {
        open = secmesh_open(ctx.ctx, packet);
        // A datagram to an open UDP port is a service at work or the answer to a question of ours.
        if open == OPEN_YES && packet.proto == PROTO_UDP && !watched {
            return;
        }
        EventKind::Contact
    } else {
        EventKind::Sample
    };
    if !within_budget(config, now) {
        bump(counters, Counter::EventsOverBudget);
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        bump(counters, Counter::EventsRingFull);
        return;
    };
    let detail = if packet.tcp_flags != 0 {
        packet.tcp_flags
    } else {
        packet.icmp_type
    };
    entry.write(Event {
        ts_ns: now,
        first_ns: first,
        src: bytes16(&packet.src),
        dst: bytes16(&packet.dst),
        count: seen.rate_count,
        packets,
        ifindex: ctx.ingress_ifindex() as u32,
        wire_len: packet.wire_len,
        sport: packet.sport,
        dport: packet.dport,
        kind: kind as u8,
        family: packet.family as u8,
        proto: packet.proto,
        detail,
        class: seen.rate_class,
        open,
        pad: [0; 6],
    });
    // Flags 0: the kernel wakes the reader only when it had caught up (kernel/bpf/ringbuf.c).
    entry.submit(0);
    bump(counters, Counter::EventsSent);
}

#[inline(always)]
pub fn within_budget(config: &Config, now: u64) -> bool {
    let Some(budget) = BUDGET.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a per-CPU entry; XDP runs to its end on one CPU.
    let budget = unsafe { &mut *budget };
    if now.wrapping_sub(budget.tick_start_ns) >= config.event_tick_ns {
        budget.tick_start_ns = now;
        budget.used = 0;
    }
    if budget.used >= u64::from(config.event_budget) {
        return false;
    }
    budget.used += 1;
    true
}

/// The packet's addresses and ports as the socket look-ups want them, and how long that is.
#[inline(always)]
pub fn tuple_of(packet: &Packet, tuple: &mut MaybeUninit<bpf_sock_tuple>) -> Option<u32> {
    let tuple = cleared(tuple);
    let size = match packet.family {
        Family::V4 => {
            let v4 = &mut tuple.__bindgen_anon_1;
            // SAFETY: writing fields of a union of plain integers.
            let v4 = unsafe { &mut v4.ipv4 };
            v4.saddr = packet.src[0];
            v4.daddr = packet.dst[0];
            v4.sport = packet.sport.to_be();
            v4.dport = packet.dport.to_be();
            12
        }
        Family::V6 => {
            let v6 = &mut tuple.__bindgen_anon_1;
            // SAFETY: writing fields of a union of plain integers.
            let v6 = unsafe { &mut v6.ipv6 };
            v6.saddr = packet.src;
            v6.daddr = packet.dst;
            v6.sport = packet.sport.to_be();
            v6.dport = packet.dport.to_be();
            size_of::<bpf_sock_tuple>() as u32
        }
        Family::Other => return None,
    };
    Some(size)
}

/// Zeros in place. Written word by word, so that the compiler does not make a call of `memset` of it: a call is
/// a stack frame of at least 32 bytes on Linux 6.1, and those of one chain must not be over 512 together.
#[inline(always)]
pub fn cleared<T>(value: &mut MaybeUninit<T>) -> &mut T {
    let words = value.as_mut_ptr().cast::<u32>();
    let mut n = 0;
    while n < size_of::<T>() / size_of::<u32>() {
        // SAFETY: inside the value: the kernel's structs here are whole numbers of aligned words.
        unsafe { words.add(n).write_volatile(0) };
        n += 1;
    }
    // SAFETY: every byte was written, and all-zero is a value of structs and unions of integers.
    unsafe { value.assume_init_mut() }
}

/// [`lookup_open`] as a function of its own to the verifier, with a stack of its own that is gone when other
/// look-ups need theirs.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_open(ctx: *mut xdp_md, packet: *const Packet) -> u8 {
    if packet.is_null() {
        return OPEN_UNKNOWN;
    }
    // SAFETY: the one caller passes on a packet that the verifier knows to be one.
    lookup_open(&XdpContext::new(ctx), unsafe { &*packet })
}

/// Whether a socket of this host takes packets for the packet's destination.
#[inline(always)]
fn lookup_open(ctx: &XdpContext, packet: &Packet) -> u8 {
    let mut room = Room {
        tuple: MaybeUninit::uninit(),
    };
    // SAFETY: both uses of the room may be uninitialised.
    let tuple = unsafe { &mut room.tuple };
    let Some(size) = tuple_of(packet, tuple) else {
        return OPEN_UNKNOWN;
    };
    let netns = i64::from(BPF_F_CURRENT_NETNS).cast_unsigned();
    let socket = if packet.proto == PROTO_UDP {
        // SAFETY: tuple and size match the family; the context is ours (net/core/filter.c).
        unsafe { bpf_sk_lookup_udp(ctx.as_ptr(), tuple.as_mut_ptr(), size, netns, 0) }
    } else {
        // SAFETY: as above. The `skc` form also finds a listener's request sockets.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple.as_mut_ptr(), size, netns, 0) }
    };
    if socket.is_null() {
        // What this host forwards has its socket elsewhere: nothing can be said about it.
        // SAFETY: as above; the tuple is not used after this.
        return if is_forwarded(ctx, packet, unsafe { &mut room.route }) {
            OPEN_UNKNOWN
        } else {
            OPEN_NO
        };
    }
    // SAFETY: the reference came from the lookup above and is given back exactly once.
    unsafe { bpf_sk_release(socket.cast()) };
    OPEN_YES
}

/// Room on the stack for two look-ups, one after the other: the frames of one chain of functions must not be over
/// 512 bytes together.
#[repr(C)]
union Room {
    tuple: MaybeUninit<bpf_sock_tuple>,
    route: MaybeUninit<bpf_fib_lookup>,
}

/// Whether this host would forward the packet to another one.
#[inline(always)]
fn is_forwarded(
    ctx: &XdpContext,
    packet: &Packet,
    route: &mut MaybeUninit<bpf_fib_lookup>,
) -> bool {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const FIB_SIZE: i32 = 64;
    const _: () = assert!(size_of::<bpf_fib_lookup>() == 64, "the kernel's layout");
    let route = cleared(route);
    match packet.family {
        Family::V4 => {
            route.family = AF_INET;
            route.__bindgen_anon_3.ipv4_src = packet.src[0];
            route.__bindgen_anon_4.ipv4_dst = packet.dst[0];
        }
        Family::V6 => {
            route.family = AF_INET6;
            route.__bindgen_anon_3.ipv6_src = packet.src;
            route.__bindgen_anon_4.ipv6_dst = packet.dst;
        }
        Family::Other => return false,
    }
    route.l4_protocol = packet.proto;
    route.ifindex = ctx.ingress_ifindex() as u32;
    // SAFETY: the struct lives on our stack and has the size we say (net/core/filter.c).
    let answer = unsafe { fib_lookup(ctx.as_ptr(), core::ptr::from_mut(route), FIB_SIZE, 0) };
    // A host that does not forward answers FWD_DISABLED; a destination that is its own, NOT_FWDED.
    matches!(
        u32::try_from(answer),
        Ok(BPF_FIB_LKUP_RET_SUCCESS
            | BPF_FIB_LKUP_RET_UNSUPP_LWT
            | BPF_FIB_LKUP_RET_NO_NEIGH
            | BPF_FIB_LKUP_RET_FRAG_NEEDED
            | BPF_FIB_LKUP_RET_NO_SRC_ADDR)
    )
}
