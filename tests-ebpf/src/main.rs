//! Kernel programs of the tests and benchmarks; never part of what is shipped.
//!
//! | program | what it does |
//! | --- | --- |
//! | `livegen` | makes each frame anew from a template, with another source, and sends it |
//! | `walk` | gives each frame another source and hands it on to the program that is measured |
//! | `play` | puts one frame of a list after the other in a frame's place and hands it on |
//! | `bare_drop` | drops: the ceiling of everything that drops |
//! | `bare_pass` | passes: what a pass cannot be cheaper than |
//! | `bare_read` | drops whatever source it reads: the ceiling of everything that looks at the packet |
//! | `bare_line` | drops after a look at one cache line of a table, by the source: the ceiling of every blocklist |
//! | `bare_hash` | drops the IPv4 sources that are in a hash map of the kernel: the least that a blocklist can be |
//! | `edge` | stands behind the generator: lets in only what is for one address, counts and drops the rest |
//! | `tag`, `untag` | put VLAN tags on what leaves an interface and take them off what comes |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::inline_always,
    reason = "what is not inlined becomes a BPF call, and the verifier forgets what it knew of the packet's bounds"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "the low bits of a random word are what is wanted, and sums are folded first"
)]
#![expect(
    missing_docs,
    reason = "the xdp attribute makes a second, undocumented function of each entry point"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the xdp attribute's wrapper hands the context over"
)]

mod frame;
mod maps;
mod random;
mod tags;

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
    helpers::bpf_xdp_adjust_head,
    macros::xdp,
    programs::XdpContext,
};

use crate::{
    frame::{ETHER_TYPE_AT, LENGTH4, LENGTH6, LENGTH6_UDP, SOURCE4_AT, SOURCE6_AT},
    maps::State,
};

/// Bytes before a frame, so that it begins a cache line; see `livegen.rs` in `tests`.
const AHEAD: i32 = 16;

/// Makes one frame and sends it; run by `BPF_PROG_TEST_RUN` with live frames, never attached.
///
/// The kernel runs it over the same few pages again and again, and what the receiver did to a page is
/// still in it. So every byte is written anew.
#[xdp]
pub fn livegen(ctx: XdpContext) -> u32 {
    match generate(&ctx) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn generate(ctx: &XdpContext) -> Option<()> {
    // SAFETY: the helper moves the beginning of this frame, of which nothing has been read yet.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, AHEAD) } != 0 {
        return None;
    }
    let state = maps::state()?;
    let random = random::next(state);
    // Read once: the verifier compares what it has in a register, not what it could read again.
    let start = ctx.data();
    if maps::IPV6.load() != 0 {
        let is_datagram = maps::UDP.load() != 0;
        let length = if is_datagram { LENGTH6_UDP } else { LENGTH6 };
        if start + length > ctx.data_end() {
            return None;
        }
        let source = source(state, random)?;
        if is_datagram {
            frame::write6::<{ LENGTH6_UDP / 8 }>(start, source, random);
        } else {
            frame::write6::<{ LENGTH6 / 8 }>(start, source, random);
        }
    } else {
        if start + LENGTH4 > ctx.data_end() {
            return None;
        }
        let [source, _] = source(state, random)?;
        frame::write4(start, source as u32, random);
    }
    state.frames += 1;
    Some(())
}

/// The next source: of the list if there is one, else a random one, as [`maps::SOURCES`] has them.
#[inline(always)]
fn source(state: &mut State, random: u64) -> Option<[u64; 2]> {
    let count = maps::SOURCE_COUNT.load();
    if count > 0 {
        return listed(state, count);
    }
    Some(if maps::IPV6.load() != 0 {
        let more = random::next(state);
        // 2001:db8::/32, for documentation (RFC 3849).
        [u64::from(0x2001_0db8_u32.to_be()) | random << 32, more]
    } else {
        // A first byte of 11 to 74: unicast, routable, and none that the kernel throws out as a martian.
        let first = 11 + (random & 0x3f) as u32;
        let word = (first << 24 | (random >> 8) as u32 & 0x00ff_ffff).to_be();
        [word.into(), 0]
    })
}

/// The next source of the list.
///
/// In order and not by chance: the list is shuffled already, and reading it in order costs the generator
/// no cache misses of its own.
#[inline(always)]
fn listed(state: &mut State, count: u32) -> Option<[u64; 2]> {
    let mut at = state.position;
    if at >= count {
        at = 0;
    }
    state.position = at + 1;
    maps::SOURCES.get(at).copied()
}

/// Gives the frame the next source of the list and runs the program in [`maps::NEXT`] on it.
///
/// Takes frames in many buffers, as the program behind it does: the kernel joins only programs of one
/// kind by a tail call.
#[xdp(frags)]
pub fn walk(ctx: XdpContext) -> u32 {
    if rewrite(&ctx).is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: the kernel either runs the other program and never comes back, or comes back having done
    // nothing.
    unsafe { maps::NEXT.tail_call(&ctx, 0) };
    XDP_ABORTED
}

#[inline(always)]
fn rewrite(ctx: &XdpContext) -> Option<()> {
    let state = maps::state()?;
    let source = listed(state, maps::SOURCE_COUNT.load())?;
    let start = ctx.data();
    if maps::IPV6.load() != 0 {
        if start + LENGTH6 > ctx.data_end() {
            return None;
        }
        frame::store_address(start + SOURCE6_AT, source);
    } else {
        if start + LENGTH4 > ctx.data_end() {
            return None;
        }
        let [word, _] = source;
        frame::store_word(start + SOURCE4_AT, word as u32);
    }
    state.frames += 1;
    Some(())
}

/// Puts the next of [`maps::FRAMES`] in the frame's place and runs the program in [`maps::NEXT`] on it.
#[xdp(frags)]
pub fn play(ctx: XdpContext) -> u32 {
    if replace(&ctx).is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: as in `walk`.
    unsafe { maps::NEXT.tail_call(&ctx, 0) };
    XDP_ABORTED
}

#[inline(always)]
fn replace(ctx: &XdpContext) -> Option<()> {
    let state = maps::state()?;
    let at = state.position;
    state.position = if at + 1 < maps::FRAME_COUNT.load() {
        at + 1
    } else {
        0
    };
    let frame = maps::FRAMES.get(at)?;
    let start = ctx.data();
    if start + maps::FRAME > ctx.data_end() {
        return None;
    }
    for (n, word) in frame.iter().enumerate() {
        frame::store_word(start + 4 * n, *word);
    }
    Some(())
}

/// Drops.
#[xdp(frags)]
pub fn bare_drop(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// Passes.
#[xdp(frags)]
pub fn bare_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// A number of all bits of the source.
#[inline(always)]
fn folded_source(start: usize) -> u32 {
    let kind = frame::load_word(start + ETHER_TYPE_AT);
    if kind as u16 == u16::from_ne_bytes([0x86, 0xdd]) {
        frame::load_word(start + SOURCE6_AT)
            ^ frame::load_word(start + SOURCE6_AT + 4)
            ^ frame::load_word(start + SOURCE6_AT + 8)
            ^ frame::load_word(start + SOURCE6_AT + 12)
    } else {
        frame::load_word(start + SOURCE4_AT)
    }
}

/// Drops after a look at the EtherType and all of the source, which is never nothing but zeros.
#[xdp(frags)]
pub fn bare_read(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + LENGTH4 > ctx.data_end() {
        return XDP_ABORTED;
    }
    let source = folded_source(start);
    if source == 0 {
        return XDP_PASS;
    }
    XDP_DROP
}

/// Drops if a cache line that the source chooses, of [`maps::LINES`], has nothing but zeros, as all have; counts it.
#[xdp(frags)]
pub fn bare_line(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + LENGTH4 > ctx.data_end() {
        return XDP_ABORTED;
    }
    let hash = folded_source(start).wrapping_mul(0x9e37_79b1);
    let at = (u64::from(hash) * u64::from(maps::LINE_COUNT.load())) >> 32;
    let (Some(state), Some(line)) = (maps::state(), maps::LINES.get(at as u32)) else {
        return XDP_ABORTED;
    };
    if line.iter().fold(0, |all, word| all | word) != 0 {
        return XDP_PASS;
    }
    state.frames += 1;
    XDP_DROP
}

/// Drops IPv4 sources that are in [`maps::HASH`], and does nothing else.
#[xdp(frags)]
pub fn bare_hash(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + LENGTH4 > ctx.data_end() {
        return XDP_ABORTED;
    }
    let source = frame::load_word(start + SOURCE4_AT);
    if maps::HASH.get_ptr(source).is_some() {
        XDP_DROP
    } else {
        XDP_PASS
    }
}

/// Lets in what is for the protected address or is no IP, and drops the rest: the answers that spoofed
/// sources get must not keep the generator's own network stack busy.
#[xdp]
pub fn edge(ctx: XdpContext) -> u32 {
    if frame::is_for(&ctx, maps::EDGE.load()) {
        return XDP_PASS;
    }
    if let Some(state) = maps::state() {
        state.strangers += 1;
    }
    XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
