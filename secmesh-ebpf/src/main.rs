//! Entry points of secmesh's kernel programs; one file per stage of the packet's way.
#![no_std]
#![no_main]
#![expect(
    internal_features,
    reason = "atomic_xadd is the only way to an atomic addition on this target"
)]
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(
    clippy::inline_always,
    reason = "what is not inlined becomes a BPF call, and the verifier forgets what it knew of the packet's bounds"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "64-bit helper results whose values are 32-bit by contract; a checked conversion would add a branch per packet"
)]
#![expect(
    missing_docs,
    reason = "the xdp attribute makes a second, undocumented function of the entry point"
)]

mod block;
mod clock;
mod count;
mod frame;
mod maps;
mod observe;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::debug;
use secmesh_common::{
    config::Config,
    counters::{Counter, Counters},
    packet::{Bytes as _, Family, Malformed, Packet, parse_ethernet},
};

use crate::{block::Verdict, count::bump, frame::Frame};

/// Every packet of a protected interface passes here first.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the xdp attribute's wrapper hands the context over"
)]
pub fn secmesh(ctx: XdpContext) -> u32 {
    let Some(counters) = count::counters() else {
        return XDP_PASS;
    };
    let Some(config) = maps::CONFIG.get(0) else {
        return XDP_PASS;
    };
    match parse_ethernet(&Frame::new(&ctx)) {
        Ok(packet) => judge(&ctx, &packet, config, counters),
        Err(reason) => malformed(&ctx, reason, config, counters),
    }
}

#[inline(always)]
fn judge(ctx: &XdpContext, packet: &Packet, config: &Config, counters: &mut Counters) -> u32 {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += u64::from(packet.wire_len);
    if matches!(packet.family, Family::Other) {
        bump(counters, Counter::PassOther);
        return XDP_PASS;
    }
    let (dropped, would) = match block::check(packet, config, counters) {
        Verdict::Clear => {
            bump(counters, Counter::Pass);
            observe::observe(ctx, packet, config, counters);
            return XDP_PASS;
        }
        Verdict::Allowed => {
            bump(counters, Counter::PassAllowlist);
            return XDP_PASS;
        }
        Verdict::Exact => (Counter::DropExact, Counter::WouldDropExact),
        Verdict::Prefix => (Counter::DropPrefix, Counter::WouldDropPrefix),
    };
    drop_or_pass(config, dropped, would, counters)
}

#[inline(always)]
fn malformed(ctx: &XdpContext, reason: Malformed, config: &Config, counters: &mut Counters) -> u32 {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += u64::from(Frame::new(ctx).first_len());
    bump(counters, Counter::from(reason));
    debug!(ctx, "malformed packet, reason {}", reason as u8);
    drop_or_pass(
        config,
        Counter::DropMalformed,
        Counter::WouldDropMalformed,
        counters,
    )
}

#[inline(always)]
fn enforcing(config: &Config) -> bool {
    config.enforces(|| clock::now_ns(config))
}

#[inline(always)]
fn drop_or_pass(config: &Config, dropped: Counter, would: Counter, counters: &mut Counters) -> u32 {
    if enforcing(config) {
        bump(counters, dropped);
        XDP_DROP
    } else {
        bump(counters, would);
        XDP_PASS
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
