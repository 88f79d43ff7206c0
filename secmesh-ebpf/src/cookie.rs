//! Connection attempts to flooded listeners of this host are answered here, with the kernel's own SYN
//! cookies.
//!
//! Calm, one attempt per destination and [`PROBE_CALM_NS`] asks the listener's socket for a cookie; a
//! listener that does not overflow gives none, and the attempt goes on to it like every other. When it gives
//! one, flood mode begins: its socket is asked once a second, and cookies come from the address and ports
//! alone.
//!
//! [`PROBE_CALM_NS`]: secmesh_common::cookie::PROBE_CALM_NS

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple, xdp_md},
    helpers::{
        bpf_check_mtu, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie,
        bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
        bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_head,
        bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
    },
    programs::XdpContext,
};
use secmesh_common::{
    block::Addr6,
    config::{Config, features},
    cookie::{
        LISTENERS, Listener, OWN_OF_VLAN, Scratch, SynAck, VERIFIED, Verified, WORDS4, address_key,
        announced_mss, announced_window, is_attempt, is_return, listener_tag, turned_link,
        verified_tag,
    },
    counters::{Counter, Counters},
    packet::{Bytes as _, Family, Fragment, PROTO_TCP, Packet},
    port::{COOKIE_ALWAYS, COOKIE_AUTO},
};

use crate::{
    block,
    clock::now_ns,
    count::bump,
    frame::Frame,
    maps::{
        CONFIG, COOKIE_ADDRESS, COOKIE_FLOOD, COOKIE_LISTENER, COOKIE_SCRATCH, COOKIE_VERIFIED,
        PORT,
    },
    observe::{cleared, tuple_of},
};

/// Nothing to say about the packet.
pub const GO_ON: u8 = 0;
/// It returns no cookie of ours; see [`secmesh_common::reason::Reason::BadCookie`].
pub const BAD: u8 = 1;
/// The frame is now the answer: send it back.
pub const ANSWERED: u8 = 2;
/// It would have been challenged, but the allowlist names its source.
pub const ALLOWED: u8 = 3;

/// `BPF_TCP_LISTEN` (include/uapi/linux/bpf.h).
const LISTEN: u32 = 10;
/// No header starts beyond this offset ([`secmesh_common::packet::MAX_OFFSET`] is 1024); a mask, which tells
/// the verifier too.
const OFFSETS: usize = 0x7ff;
/// Flags of a port that has cookies.
const COOKIES: u16 = COOKIE_AUTO | COOKIE_ALWAYS;

/// Whether [`secmesh_cookie`] has anything to do: for a segment of an established connection, as long as no
/// listener is flooded, one load beyond the configuration.
#[inline(always)]
pub fn concerns(packet: &Packet, config: &Config) -> bool {
    if config.features & features::COOKIES == 0 || packet.proto != PROTO_TCP {
        return false;
    }
    if !is_attempt(packet.tcp_flags) {
        if !is_return(packet.tcp_flags) || !config.enforces(|| now_ns(config)) {
            return false;
        }
        let Some(flood) = COOKIE_FLOOD.get(0) else {
            return false;
        };
        if !flood.flooded(now_ns(config)) {
            return false;
        }
    }
    port_flags(packet.dport) & COOKIES != 0
}

#[inline(always)]
fn port_flags(port: u16) -> u16 {
    PORT.get(u32::from(port)).map_or(0, |policy| policy.flags)
}

/// Judges a segment that [`concerns`] cookies: one of the verdicts of this module.
///
/// While a listener is flooded, what belongs to a connection that is known is left to it: what returns a cookie
/// goes to the socket of its addresses and ports and never to the listener. Most often that is one in its last
/// minute whose client uses the port again; the kernel lets go of it for an attempt. The socket is looked up out
/// here because the stack has no room for it beside that of [`secmesh_cookie`].
#[inline(always)]
pub fn judge(ctx: &XdpContext, packet: &Packet, config: &Config) -> u8 {
    if COOKIE_FLOOD
        .get(0)
        .is_some_and(|flood| flood.flooded(now_ns(config)))
    {
        match secmesh_state(ctx.ctx, packet) {
            LISTEN => {}
            0 if is_attempt(packet.tcp_flags) => {}
            _ => return GO_ON,
        }
    }
    secmesh_cookie(ctx.ctx, packet)
}

/// [`judge`] without connections that are known. A function of its own to the verifier, as `secmesh_observe` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_cookie(ctx: *mut xdp_md, packet: *const Packet) -> u8 {
    let (Some(counters), Some(config)) = (crate::count::counters(), CONFIG.get(0)) else {
        return GO_ON;
    };
    if packet.is_null() {
        return GO_ON;
    }
    // SAFETY: the one caller passes a packet on its stack, all of it written; the verifier checks that.
    let packet = unsafe { &*packet };
    let ctx = XdpContext::new(ctx);
    let now = now_ns(config);
    let tag = listener_tag(
        &packet.dst,
        packet.family,
        packet.dport,
        (ctx.ingress_ifindex() as u32, packet.vlan_tags != 0),
        config.table_seed,
    );
    if is_attempt(packet.tcp_flags) {
        attempt(&ctx, packet, tag, now, config, counters)
    } else {
        returned(&ctx, packet, tag, now, config, counters)
    }
}

/// The destination's entry, if it has or can take one of its two.
#[inline(always)]
fn listener(tag: u64, now: u64, claim: bool) -> Option<&'static mut Listener> {
    const MASK: u64 = LISTENERS as u64 - 1;
    let place = (tag & MASK) as u32;
    // SAFETY: array entries are never freed while the program runs. Other CPUs may write the same entry; see
    // `Listener` for what that can do.
    let first = unsafe { &mut *COOKIE_LISTENER.get_ptr_mut(place)? };
    if first.tag == tag {
        return Some(first);
    }
    // SAFETY: as above; the other one of the pair.
    let second = unsafe { &mut *COOKIE_LISTENER.get_ptr_mut(place ^ 1)? };
    if second.tag == tag {
        return Some(second);
    }
    if !claim {
        return None;
    }
    let free = if first.is_free(now) {
        first
    } else if second.is_free(now) {
        second
    } else {
        return None;
    };
    // SAFETY: the same memory, and all its bytes may be anything before they are cleared.
    let free = cleared(unsafe { &mut *core::ptr::from_mut(free).cast::<MaybeUninit<Listener>>() });
    free.tag = tag;
    Some(free)
}

/// The source's entry, whoever is in it.
#[inline(always)]
fn verified(tag: u64) -> Option<&'static mut Verified> {
    const MASK: u64 = VERIFIED as u64 - 1;
    let entry = COOKIE_VERIFIED.get_ptr_mut((tag & MASK) as u32)?;
    // SAFETY: array entries are never freed while the program runs. Two CPUs that write the same entry leave
    // one's tag with the other's end, which is the same end to the tick.
    Some(unsafe { &mut *entry })
}

/// This CPU's scratch space.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    let scratch = COOKIE_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a per-CPU entry; XDP runs to its end on one CPU, so nobody else writes it meanwhile.
    Some(unsafe { &mut *scratch })
}

/// Copies the two headers to where the cookie helpers are to find them. Of the IP header they read version
/// and addresses only (net/ipv4/syncookies.c), so extension headers and options do not matter.
#[inline(always)]
fn copy_headers(ctx: &XdpContext, packet: &Packet, scratch: &mut Scratch) -> Option<()> {
    if matches!(packet.family, Family::V4) {
        scratch.ip[0] = u32::from_ne_bytes([0x45, 0, 0, 0]);
        scratch.ip[3] = packet.src[0];
        scratch.ip[4] = packet.dst[0];
    } else {
        let (s, d) = (&packet.src, &packet.dst);
        let first = u32::from_ne_bytes([0x60, 0, 0, 0]);
        scratch.ip = [first, 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]];
    }
    let at = usize::from(packet.l4) & OFFSETS;
    let fixed = Frame::new(ctx).load_words::<5>(at)?;
    scratch.tcp[0] = fixed[0];
    scratch.tcp[1] = fixed[1];
    scratch.tcp[2] = fixed[2];
    scratch.tcp[3] = fixed[3];
    scratch.tcp[4] = fixed[4];
    let [offset, _, _, _] = fixed[3].to_ne_bytes();
    let options = (u32::from(offset >> 4) * 4).wrapping_sub(20) & 0x3f;
    if options > 40 {
        return None;
    }
    scratch.tcp_len = 20 + options;
    if options > 0 {
        let from = (at + 20) as u32;
        let to = scratch.tcp.as_mut_ptr().wrapping_add(5).cast();
        // SAFETY: at most forty bytes into the forty after the fixed header; the helper checks the frame's
        // end (Linux 5.18, net/core/filter.c).
        if unsafe { bpf_xdp_load_bytes(ctx.ctx, from, to, between(1, options)) } != 0 {
            return None;
        }
    }
    Some(())
}

/// Length of the TCP header in the scratch space.
#[inline(always)]
fn tcp_len(scratch: &Scratch) -> u32 {
    between(20, scratch.tcp_len)
}

/// `length`, which is `least` to `least` + 63, in a form in which verifiers of Linux 6.1 and 6.12 see that: they
/// follow a mask and an addition, not a comparison of another register. What they must see is that a helper
/// never reads nothing and never reads beyond the scratch space, which is longer than that.
#[inline(always)]
fn between(least: u32, length: u32) -> u32 {
    let mut above = length.wrapping_sub(least);
    // SAFETY: a move to itself. It keeps the compiler from knowing what the mask would do.
    unsafe {
        asm!("{0} = {0}", inout(reg) above, options(nomem, nostack, preserves_flags));
    }
    (above & 0x3f) + least
}

/// What the socket of the packet's destination says.
enum Answer {
    /// Nobody listens there, or not on this host.
    Nobody,
    /// The packet belongs to a connection that is known; whether anybody listens was not asked.
    Taken,
    /// A listener that does not overflow.
    Calm,
    /// A listener that overflows, and its cookie.
    Cookie(u32),
}

/// The socket that the kernel would give the packet to, if it is one of this host. To be given back.
#[inline(always)]
fn socket(ctx: &XdpContext, packet: &Packet) -> *mut bpf_sock {
    let mut tuple = MaybeUninit::<bpf_sock_tuple>::uninit();
    let Some(size) = tuple_of(packet, &mut tuple) else {
        return core::ptr::null_mut();
    };
    let netns = i64::from(BPF_F_CURRENT_NETNS).cast_unsigned();
    // SAFETY: tuple and size match the family; the context is ours (net/core/filter.c).
    unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple.as_mut_ptr(), size, netns, 0) }
}

/// State of that socket (`BPF_TCP_*`), 0 for none. A function of its own to the verifier, with a stack of its
/// own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_state(ctx: *mut xdp_md, packet: *const Packet) -> u32 {
    if packet.is_null() {
        return 0;
    }
    // SAFETY: the callers pass on a packet that the verifier knows to be one.
    let found = socket(&XdpContext::new(ctx), unsafe { &*packet });
    if found.is_null() {
        return 0;
    }
    // SAFETY: a socket that was found and not given back yet; the verifier allows reading its state.
    let state = unsafe { (*found).state };
    // SAFETY: the reference came from the lookup above and is given back exactly once.
    unsafe { bpf_sk_release(found.cast()) };
    state
}

#[inline(always)]
fn ask(ctx: &XdpContext, packet: &Packet, scratch: &mut Scratch) -> Answer {
    let addr = Addr6 {
        addr: block::bytes16(&address_key(&packet.dst, packet.family)),
    };
    let Some(own) = COOKIE_ADDRESS.get_ptr(addr) else {
        return Answer::Nobody;
    };
    // SAFETY: an entry of a hash map, read once; should it be another one's by now, that is another address of this host's.
    if unsafe { own.read() } == OWN_OF_VLAN && packet.vlan_tags == 0 {
        return Answer::Nobody;
    }
    let found = socket(ctx, packet);
    if found.is_null() {
        return Answer::Nobody;
    }
    // SAFETY: a socket that was found and not given back yet; the verifier allows reading its state.
    let state = unsafe { (*found).state };
    let answer = if state == LISTEN {
        let tcp_len = tcp_len(scratch);
        // The helper sees by the version how much of the IP header there is.
        let ip = scratch.ip.as_mut_ptr().cast();
        let tcp = scratch.tcp.as_mut_ptr().cast();
        // SAFETY: both headers are in the scratch space with the lengths given. Marks the listener as overflown
        // if it gives a cookie.
        let cookie = unsafe { bpf_tcp_gen_syncookie(found.cast(), ip, 40, tcp, tcp_len) };
        if cookie < 0 {
            Answer::Calm
        } else {
            Answer::Cookie(cookie.cast_unsigned() as u32)
        }
    } else {
        Answer::Taken
    };
    // SAFETY: the reference came from the lookup above and is given back exactly once.
    unsafe { bpf_sk_release(found.cast()) };
    answer
}

/// A connection attempt.
#[inline(always)]
fn attempt(
    ctx: &XdpContext,
    packet: &Packet,
    tag: u64,
    now: u64,
    config: &Config,
    counters: &mut Counters,
) -> u8 {
    let Some(listener) = listener(tag, now, true) else {
        bump(counters, Counter::CookieFailed);
        return GO_ON;
    };
    listener.port = packet.dport;
    listener.family = packet.family as u16;
    let Some(scratch) = scratch() else {
        return GO_ON;
    };
    if copy_headers(ctx, packet, scratch).is_none() {
        return GO_ON;
    }
    let mut cookie = None;
    if listener.probe_due(now) {
        match ask(ctx, packet, scratch) {
            Answer::Nobody => {
                // One by one, or the compiler makes a call of `memset` of the two (see `cleared`).
                for word in [&raw mut listener.marked_ns, &raw mut listener.listens_ns] {
                    // SAFETY: fields of the entry in hand.
                    unsafe { word.write_volatile(0) };
                }
                return GO_ON;
            }
            Answer::Taken => {
                // The next one asks.
                listener.probed_ns = 0;
                return GO_ON;
            }
            Answer::Calm => listener.listens_ns = now,
            Answer::Cookie(made) => {
                listener.listens_ns = now;
                listener.marked_ns = now;
                note_flood(now);
                cookie = Some(made);
            }
        }
    }
    let wanted = if config.enforces(|| now_ns(config)) {
        listener.flooded(now)
    } else {
        listener.flooded(now)
            || port_flags(packet.dport) & COOKIE_ALWAYS != 0 && listener.listens(now)
    };
    if !wanted {
        return GO_ON;
    }
    // A fragmented attempt has no business here, and put together by the kernel it would have got past us.
    if !matches!(packet.fragment, Fragment::Whole) {
        return BAD;
    }
    let source = verified_tag(&packet.src, packet.family, config.table_seed);
    if verified(source).is_some_and(|entry| entry.admits(source, now)) {
        return GO_ON;
    }
    if block::allowed(packet) {
        return ALLOWED;
    }
    if !config.enforces(|| now_ns(config)) {
        bump(counters, Counter::WouldCookie);
        return GO_ON;
    }
    let Some(cookie) = cookie.or_else(|| make(packet, scratch)) else {
        bump(counters, Counter::CookieFailed);
        return GO_ON;
    };
    let seq = u32::from_be(scratch.tcp[1]);
    if answer(ctx, packet, cookie, seq.wrapping_add(1), scratch) {
        bump(counters, Counter::CookieSent);
        ANSWERED
    } else {
        bump(counters, Counter::CookieFailed);
        GO_ON
    }
}

/// Some listener gave a cookie just now.
#[inline(always)]
fn note_flood(now: u64) {
    if let Some(flood) = COOKIE_FLOOD.get_ptr_mut(0) {
        // SAFETY: one aligned u64 of a live map value; CPUs write the same time to the tick.
        unsafe { (*flood).marked_ns = now };
    }
}

/// A cookie without a socket.
#[inline(always)]
fn make(packet: &Packet, scratch: &mut Scratch) -> Option<u32> {
    let ip = scratch.ip.as_mut_ptr();
    let tcp = scratch.tcp.as_mut_ptr().cast();
    let tcp_len = tcp_len(scratch);
    let cookie = if matches!(packet.family, Family::V4) {
        // SAFETY: both headers are in the scratch space with the lengths that the helper takes (Linux 6.0).
        unsafe { bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp, tcp_len) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp, tcp_len) }
    };
    (cookie >= 0).then_some(cookie.cast_unsigned() as u32)
}

/// Turns the frame into the SYN-ACK that answers it; `false` if the kernel does not let us.
#[inline(always)]
fn answer(ctx: &XdpContext, packet: &Packet, cookie: u32, ack: u32, scratch: &mut Scratch) -> bool {
    let mut mtu = 0;
    // SAFETY: interface 0 is the one that the packet came in on; the helper writes its MTU (Linux 5.12).
    let _fits = unsafe { bpf_check_mtu(ctx.as_ptr(), 0, &raw mut mtu, 0, 0) };
    let mss = announced_mss(packet.family, mtu, packet.vlan_tags);
    let syn_ack = SynAck {
        client: packet.src,
        server: packet.dst,
        client_port: packet.sport,
        server_port: packet.dport,
        seq: cookie,
        ack,
        mss,
        window: announced_window(mss),
    };
    let Some(link) = Frame::new(ctx).load_words::<3>(0) else {
        return false;
    };
    let mut link = turned_link(&link);
    let l3 = u32::from(packet.l3) & 0x3f;
    // SAFETY: the helper only reads the context it is given.
    let before = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    let rest = if matches!(packet.family, Family::V4) {
        44
    } else {
        64
    };
    let delta = (l3 + rest).wrapping_sub(before).cast_signed();
    // SAFETY: no pointer into the packet is used after this; the helper checks the new length.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 && !begin_earlier(ctx, delta, scratch) {
        return false;
    }
    // SAFETY: twelve bytes on our stack; the helper checks the frame's end.
    if unsafe { bpf_xdp_store_bytes(ctx.ctx, 0, link.as_mut_ptr().cast(), 12) } != 0 {
        return false;
    }
    let words = scratch.answer.as_mut_ptr();
    let stored = if matches!(packet.family, Family::V4) {
        // SAFETY: forty-four of the sixty-four bytes that are there.
        unsafe { words.cast::<[u32; WORDS4]>().write(syn_ack.words4()) };
        // SAFETY: as above; the helper checks the frame's end.
        unsafe { bpf_xdp_store_bytes(ctx.ctx, l3, words.cast(), 44) }
    } else {
        scratch.answer = syn_ack.words6();
        // SAFETY: all of it; the helper checks the frame's end.
        unsafe { bpf_xdp_store_bytes(ctx.ctx, l3, words.cast(), 64) }
    };
    stored == 0
}

/// Bytes by which the answer to an attempt without options is longer than it: the MSS option.
const LONGER: i32 = 4;

/// Makes the frame longer at its beginning, if there is no room behind it: in generic mode a socket buffer may end where
/// its frame does. The tags, and what else is between the link addresses and the IP header, move along; the addresses
/// and the packet are written after this.
#[inline(always)]
fn begin_earlier(ctx: &XdpContext, delta: i32, scratch: &mut Scratch) -> bool {
    /// Two tags and the type of what follows.
    const TAGS: u32 = 10;
    if delta != LONGER {
        return false;
    }
    let words = scratch.answer.as_mut_ptr().cast();
    // SAFETY: no pointer into the packet is used after this; the helper checks the new beginning.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -LONGER) } != 0 {
        return false;
    }
    // SAFETY: ten of the sixty-four bytes that are there; the helper checks the frame's end.
    let loaded = unsafe { bpf_xdp_load_bytes(ctx.ctx, 12 + LONGER as u32, words, TAGS) };
    // SAFETY: as above. What lies behind the type is the packet's, which is written over.
    loaded == 0 && unsafe { bpf_xdp_store_bytes(ctx.ctx, 12, words, TAGS) } == 0
}

/// A segment for a listener that may return a cookie, while some listener is flooded.
#[inline(always)]
fn returned(
    ctx: &XdpContext,
    packet: &Packet,
    tag: u64,
    now: u64,
    config: &Config,
    counters: &mut Counters,
) -> u8 {
    if !matches!(packet.fragment, Fragment::Whole) {
        return GO_ON;
    }
    let flooded = listener(tag, now, false).is_some_and(|entry| entry.flooded(now));
    if !flooded {
        return GO_ON;
    }
    let Some(scratch) = scratch() else {
        return GO_ON;
    };
    if copy_headers(ctx, packet, scratch).is_none() {
        return GO_ON;
    }
    if !check(packet, scratch) {
        return BAD;
    }
    bump(counters, Counter::CookieVerified);
    let source = verified_tag(&packet.src, packet.family, config.table_seed);
    if let Some(entry) = verified(source) {
        entry.verify(source, now);
    }
    GO_ON
}

#[inline(always)]
fn check(packet: &Packet, scratch: &mut Scratch) -> bool {
    let ip = scratch.ip.as_mut_ptr();
    let tcp = scratch.tcp.as_mut_ptr().cast();
    let wrong = if matches!(packet.family, Family::V4) {
        // SAFETY: both headers are in the scratch space with the lengths that the helper takes (Linux 6.0).
        unsafe { bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp) }
    };
    wrong == 0
}
