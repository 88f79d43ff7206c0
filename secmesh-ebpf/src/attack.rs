//! Packets that no conversation contains, and floods that only the whole host sees.
//!
//! A limit of the host never says by itself that a packet goes: where sockets can tell, they are asked, but
//! only beyond the limit, so that a benign packet does not pay for it.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, xdp_md},
    helpers::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
        bpf_xdp_load_bytes,
    },
    programs::XdpContext,
};
use secmesh_common::{
    config::{Config, features},
    counters::Counter,
    event::{Event, EventKind, OPEN_NO},
    limit::{Booking, Limit, SHARED_AMPLIFIED, SHARED_FRAGMENTS, SHARED_STRAYS, SHARED_TOTAL},
    packet::{
        Bytes as _, Family, Fragment, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet,
        tcp_flags::{ACK, FIN, RST, SYN},
    },
    port::{LIMIT_TCP, LIMIT_UDP, MESH, PORT_LIMITS, PortPolicy, TRIPWIRE_TCP, TRIPWIRE_UDP},
    reason::Reason,
    sanity::{insane, is_amplifier, is_tiny, stray_reason},
};

use crate::{
    block::{atomic_add, bytes16},
    clock::now_ns,
    count::{bump, counters},
    frame::Frame,
    maps::{CONFIG, EVENTS, PORT, PORT_LIMIT, SHARED},
    observe::{NO_REASON, cleared, tuple_of, within_budget},
};

/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const LISTEN: u32 = 10;

/// The stage as a function of its own to the verifier: see `secmesh_observe`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_attack(
    ctx: *mut xdp_md,
    packet: *const Packet,
    config: *const Config,
) -> u8 {
    if packet.is_null() || config.is_null() {
        return NO_REASON;
    }
    // SAFETY: the one caller passes a packet on its stack, all of it written, and the configuration's entry; the
    // verifier checks that.
    let (packet, config) = unsafe { (&*packet, &*config) };
    let ctx = XdpContext::new(ctx);
    judge(&ctx, packet, config).map_or(NO_REASON, |reason| reason as u8)
}

/// 1 if a packet that could not be parsed (`refused` is the number of a `Malformed`) is a tiny fragment, and
/// that check is on. A function of its own, or the compiler threads each reason's way through the parser.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_tiny(packet: *const Packet, refused: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    if packet.is_null() || config.checks & Reason::TinyFragment.bit() == 0 {
        return 0;
    }
    // SAFETY: as in `secmesh_attack`.
    u32::from(is_tiny(unsafe { &*packet }, refused))
}

#[inline(always)]
fn judge(ctx: &XdpContext, packet: &Packet, config: &Config) -> Option<Reason> {
    let checks = config.checks;
    // The broadcast address of Ethernet is six bytes of ones; no other address begins with four. Only an echo
    // is judged by it.
    let to_everybody = matches!(packet.proto, PROTO_ICMP)
        && Frame::new(ctx).load_words::<1>(0) == Some([u32::MAX]);
    if let Some(reason) = insane(packet, to_everybody, checks) {
        return Some(reason);
    }
    let broken = |reason: Reason, index: u32, limit: &Limit| {
        checks & reason.bit() != 0
            && limit.cost_ns != 0
            && !admit(limit, SHARED.get_ptr_mut(index), now_ns(config))
    };
    if !matches!(packet.fragment, Fragment::Whole)
        && broken(
            Reason::FragmentFlood,
            SHARED_FRAGMENTS,
            &config.fragment_limit,
        )
    {
        return Some(Reason::FragmentFlood);
    }
    if config.features & features::PORTS != 0
        && let Some(reason) = port(ctx, packet, config)
    {
        return Some(reason);
    }
    if checks & Reason::Amplification.bit() != 0
        && config.features & features::FORWARDS == 0
        && is_amplifier(packet)
        && broken(
            Reason::Amplification,
            SHARED_AMPLIFIED,
            &config.amplified_limit,
        )
        && secmesh_unasked(ctx.ctx, packet) != 0
    {
        return Some(Reason::Amplification);
    }
    broken(Reason::TotalLimit, SHARED_TOTAL, &config.total_limit).then_some(Reason::TotalLimit)
}

/// Books one unit in a limit that all CPUs share; `false` if it is beyond.
#[inline(always)]
fn admit(limit: &Limit, arrival: Option<*mut u64>, now: u64) -> bool {
    let Some(arrival) = arrival else {
        return true;
    };
    // SAFETY: an aligned u64 of an array entry, which is never freed while the program runs.
    let seen = unsafe { arrival.read_volatile() };
    match limit.shared(seen, now) {
        Booking::Refuse => return false,
        // SAFETY: as above.
        Booking::AdmitAfterIdle => unsafe { arrival.write_volatile(now) },
        Booking::Admit => {}
    }
    atomic_add(arrival, limit.cost_ns);
    true
}

#[inline(always)]
fn policy(packet: &Packet) -> Option<PortPolicy> {
    if matches!(packet.fragment, Fragment::Later) {
        return None;
    }
    PORT.get(u32::from(packet.dport)).copied()
}

/// Whether the packet goes to the port that the mesh listens on.
#[inline(always)]
pub fn to_mesh(packet: &Packet, config: &Config) -> bool {
    config.mesh_limit.cost_ns != 0 && policy(packet).is_some_and(|policy| policy.flags & MESH != 0)
}

/// What is special about the destination port.
#[inline(always)]
fn port(ctx: &XdpContext, packet: &Packet, config: &Config) -> Option<Reason> {
    let policy = policy(packet)?;
    if policy.flags == 0 {
        return None;
    }
    let (tripwire, limited) = match packet.proto {
        // A limit of a TCP port is one of connections: what is open goes on.
        PROTO_TCP => (
            policy.flags & TRIPWIRE_TCP != 0,
            policy.flags & LIMIT_TCP != 0 && packet.tcp_flags & (SYN | ACK) == SYN,
        ),
        PROTO_UDP => (
            policy.flags & TRIPWIRE_UDP != 0,
            policy.flags & LIMIT_UDP != 0,
        ),
        _ => return None,
    };
    if tripwire {
        report(ctx, packet, config);
    }
    if !limited || config.checks & Reason::PortLimit.bit() == 0 {
        return None;
    }
    // A pair for each port: TCP, then UDP.
    let index = u32::from(policy.limit) + u32::from(packet.proto == PROTO_UDP);
    let shared = PORT_LIMIT.get_ptr_mut(index & (PORT_LIMITS as u32 - 1))?;
    // SAFETY: an array entry, which is never freed while the program runs; the controller writes the limit
    // only before it sets the port's flag.
    let limit = unsafe { (*shared).limit };
    if limit.cost_ns == 0 {
        return None;
    }
    // SAFETY: a field of the same entry.
    let arrival = unsafe { &raw mut (*shared).arrival_ns };
    (!admit(&limit, Some(arrival), now_ns(config))).then_some(Reason::PortLimit)
}

#[inline(always)]
fn report(ctx: &XdpContext, packet: &Packet, config: &Config) {
    let Some(counters) = counters() else {
        return;
    };
    bump(counters, Counter::Tripwire);
    let now = now_ns(config);
    if !within_budget(config, now) {
        bump(counters, Counter::EventsOverBudget);
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        bump(counters, Counter::EventsRingFull);
        return;
    };
    entry.write(Event {
        ts_ns: now,
        first_ns: now,
        src: bytes16(&packet.src),
        dst: bytes16(&packet.dst),
        count: 1,
        packets: 1,
        ifindex: ctx.ingress_ifindex() as u32,
        wire_len: packet.wire_len,
        sport: packet.sport,
        dport: packet.dport,
        kind: EventKind::Tripwire as u8,
        family: packet.family as u8,
        proto: packet.proto,
        detail: packet.tcp_flags,
        class: 0,
        open: OPEN_NO,
        pad: [0; 6],
    });
    entry.submit(0);
    bump(counters, Counter::EventsSent);
}

/// A segment that is no connection attempt: which flood it is part of, if it has no connection and comes
/// beyond a limit. `shared`: of the source nothing is known, so it is the host's limit that counts.
#[inline(always)]
pub fn stray(ctx: &XdpContext, packet: &Packet, shared: bool, config: &Config) -> Option<Reason> {
    let reason = stray_reason(packet.tcp_flags);
    if config.checks & reason.bit() == 0 || config.features & features::FORWARDS != 0 {
        return None;
    }
    if shared
        && (config.strays_limit.cost_ns == 0
            || admit(
                &config.strays_limit,
                SHARED.get_ptr_mut(SHARED_STRAYS),
                now_ns(config),
            ))
    {
        return None;
    }
    (secmesh_unasked(ctx.ctx, packet) != 0).then_some(reason)
}

/// 1 if no socket of this host has to do with the packet: TCP, no connection and no handshake that a cookie
/// of the kernel completes; UDP, no socket at all. A function of its own to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_unasked(ctx: *mut xdp_md, packet: *const Packet) -> u32 {
    if packet.is_null() {
        return 0;
    }
    // SAFETY: the callers pass on a packet that the verifier knows to be one.
    let packet = unsafe { &*packet };
    let ctx = XdpContext::new(ctx);
    let mut tuple = MaybeUninit::uninit();
    let Some(size) = tuple_of(packet, &mut tuple) else {
        return 0;
    };
    let netns = i64::from(BPF_F_CURRENT_NETNS).cast_unsigned();
    if packet.proto == PROTO_UDP {
        // SAFETY: tuple and size match the family; the context is ours (net/core/filter.c).
        let socket = unsafe { bpf_sk_lookup_udp(ctx.as_ptr(), tuple.as_mut_ptr(), size, netns, 0) };
        if socket.is_null() {
            return 1;
        }
        // SAFETY: the reference came from the lookup above and is given back exactly once.
        unsafe { bpf_sk_release(socket.cast()) };
        return 0;
    }
    // SAFETY: as above. The `skc` form also finds request and time-wait sockets.
    let socket = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple.as_mut_ptr(), size, netns, 0) };
    if socket.is_null() {
        return 1;
    }
    // SAFETY: a field of a referenced socket, read through the verifier's own translation.
    let listens = unsafe { (*socket).state } == LISTEN;
    let unasked = listens && !completes(&ctx, packet, socket);
    // SAFETY: the reference came from the lookup above and is given back exactly once.
    unsafe { bpf_sk_release(socket.cast()) };
    u32::from(unasked)
}

/// Whether the segment is the answer to a SYN cookie of `listener`.
#[inline(always)]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "three loads of one kind, with one reason"
)]
fn completes(ctx: &XdpContext, packet: &Packet, listener: *mut bpf_sock) -> bool {
    const IPV4: u32 = 20;
    const IPV6: u32 = 40;
    const TCP: u32 = 20;
    if packet.tcp_flags & (SYN | ACK | RST | FIN) != ACK {
        return false;
    }
    let (mut network, mut transport) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let network: &mut [u32; IPV6 as usize / 4] = cleared(&mut network);
    let transport: &mut [u32; TCP as usize / 4] = cleared(&mut transport);
    let length = match packet.family {
        Family::V4 => IPV4,
        _ => IPV6,
    };
    // SAFETY: each call writes what its length says into an array of at least that length.
    let loaded = unsafe {
        let network = network.as_mut_ptr().cast();
        let at = u32::from(packet.l3);
        let first = if length == IPV4 {
            bpf_xdp_load_bytes(ctx.as_ptr().cast(), at, network, IPV4)
        } else {
            bpf_xdp_load_bytes(ctx.as_ptr().cast(), at, network, IPV6)
        };
        first == 0
            && bpf_xdp_load_bytes(
                ctx.as_ptr().cast(),
                u32::from(packet.l4),
                transport.as_mut_ptr().cast(),
                TCP,
            ) == 0
    };
    if !loaded {
        return true;
    }
    // SAFETY: both headers are on our stack with the lengths that are said; the socket is referenced. The
    // helper refuses a listener that has not overflowed lately (net/core/filter.c).
    let checked = unsafe {
        bpf_tcp_check_syncookie(
            listener.cast(),
            network.as_mut_ptr().cast(),
            length,
            transport.as_mut_ptr().cast(),
            TCP,
        )
    };
    checked == 0
}
