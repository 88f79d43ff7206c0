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
    clippy::indexing_slicing,
    reason = "constant and masked indices, which the verifier checks too; `get` would add branches"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason serves all writes to one record"
)]
#![expect(
    missing_docs,
    reason = "the xdp attribute makes a second, undocumented function of the entry point"
)]

mod attack;
mod block;
mod capture;
mod clock;
mod cookie;
mod count;
mod flood;
mod flow;
mod frame;
mod hot;
mod lease;
mod list;
mod maps;
mod nets;
mod observe;
mod plain;
mod process;
mod quick;
mod routine;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::debug;
use secmesh_common::{
    config::Config,
    counters::{Counter, Counters, LATELY_HOT, LATELY_LEASED},
    packet::{Bytes as _, Family, Malformed, Packet, parse_addresses},
    reason::Reason,
};

use crate::{block::Verdict, count::bump, frame::Frame};

/// Every packet of a protected interface passes here first.
#[xdp(frags)]
#[inline(always)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the xdp attribute's wrapper hands the context over"
)]
pub fn secmesh(ctx: XdpContext) -> u32 {
    frame::reserve_stack();
    let Some(counters) = count::counters() else {
        return XDP_PASS;
    };
    let Some(config) = maps::CONFIG.get(0) else {
        return XDP_PASS;
    };
    if counters.lately == LATELY_HOT && hot::look(&ctx, config, counters) {
        return XDP_DROP;
    }
    let is_flood = flood::is_on(counters);
    if is_flood && flood::look(&ctx, config, counters) {
        return XDP_DROP;
    }
    // From before the tables are asked: what is written meanwhile ends the lease that this packet may bring.
    let key = clock::lease_key(config);
    let mut seen = 0;
    let mut known = routine::NO;
    if counters.lately == LATELY_LEASED {
        known = lease::look(&ctx, config, counters, key);
    }
    if known == routine::NO && is_flood {
        seen = quick::UNSEEN | quick::FLOOD;
    } else if known == routine::NO {
        seen = quick::look(&ctx, config, counters, key);
        if seen == quick::DROPPED {
            return XDP_DROP;
        }
        if seen == 0 {
            known = routine::secmesh_routine(ctx.ctx, config, counters, key);
        }
    }
    if known == routine::PASSED {
        return XDP_PASS;
    }
    let answer = match parse_addresses(&Frame::new(&ctx)) {
        Ok(mut packet) if known == routine::ACCOUNTED => pass(&ctx, &mut packet, config, counters),
        Ok(mut packet) => judge(&ctx, &mut packet, seen, config, counters),
        Err(reason) => malformed(&ctx, reason, config, counters),
    };
    capture::take(&ctx, answer, config)
}

/// Counts the rest of a packet of which its source's account is all that there is to say.
#[inline(always)]
fn pass(ctx: &XdpContext, packet: &mut Packet, config: &Config, counters: &mut Counters) -> u32 {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += u64::from(packet.wire_len);
    if frame::payload(ctx, packet).is_ok() {
        flow::routine(ctx, packet, config, counters);
    }
    bump(counters, Counter::Pass);
    XDP_PASS
}

/// The stages, in their order. Each says why the packet should go, or lets it on to the next.
#[inline(always)]
fn judge(
    ctx: &XdpContext,
    packet: &mut Packet,
    seen: u64,
    config: &Config,
    counters: &mut Counters,
) -> u32 {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += u64::from(packet.wire_len);
    if matches!(packet.family, Family::Other) {
        bump(counters, Counter::PassOther);
        return XDP_PASS;
    }
    match block::check(packet, seen, config, counters) {
        Verdict::Clear => {}
        Verdict::Vetted(reason) => return deny(reason, config, counters),
        Verdict::Blocked(reason) => {
            if !block::allowed(packet) {
                return deny(reason, config, counters);
            }
            // The allowlist wins over blocks, not over what cannot be parsed.
            if let Err(malformed) = frame::payload(ctx, packet) {
                return refuse(ctx, malformed, config, counters);
            }
            flow::incoming(ctx, packet, config, counters);
            bump(counters, Counter::PassAllowlist);
            return XDP_PASS;
        }
    }
    let answer = observe::secmesh_observe(ctx.ctx, packet, config, counters);
    if answer != 0
        && let Some(verdict) = further(ctx, packet, answer, config, counters)
    {
        return verdict;
    }
    flow::incoming(ctx, packet, config, counters);
    bump(counters, Counter::Pass);
    XDP_PASS
}

/// What the stage before said of a packet that does not simply pass; `None` if it passes after all.
#[inline(always)]
fn further(
    ctx: &XdpContext,
    packet: &mut Packet,
    answer: u32,
    config: &Config,
    counters: &mut Counters,
) -> Option<u32> {
    let number = answer as u8;
    if answer & observe::REFUSED != 0 {
        let malformed = Malformed::from_u8(number)?;
        let tiny = attack::secmesh_tiny(packet, malformed as u32) != 0;
        let reason = if tiny {
            Reason::TinyFragment
        } else {
            Reason::Malformed
        };
        return Some(refuse_as(ctx, malformed, reason, config, counters));
    }
    // Also what fails a check below is accounted: it is evidence.
    let found = if answer & observe::FOUND != 0 {
        number
    } else if answer & observe::ASK_ATTACK != 0 {
        attack::secmesh_attack(ctx.ctx, packet, config)
    } else {
        observe::NO_REASON
    };
    if let Some(reason) = Reason::from_u8(found) {
        // Whoever is named as the source of a forged packet did not send it.
        if !matches!(reason, Reason::Land) && block::allowed(packet) {
            flow::incoming(ctx, packet, config, counters);
            bump(counters, Counter::PassAllowlistOther);
            return Some(XDP_PASS);
        }
        return Some(deny(reason, config, counters));
    }
    // After the accounting: what a limit drops is not answered, so nobody has us send more than that limit
    // to an address that is not his, and the detectors see what is answered.
    if answer & observe::ASK_COOKIE != 0 {
        match cookie::judge(ctx, packet, config) {
            cookie::ANSWERED => return Some(XDP_TX),
            cookie::ALLOWED => {
                bump(counters, Counter::PassAllowlistOther);
                return Some(XDP_PASS);
            }
            cookie::BAD => {
                if block::allowed(packet) {
                    bump(counters, Counter::PassAllowlistOther);
                    return Some(XDP_PASS);
                }
                return Some(deny(Reason::BadCookie, config, counters));
            }
            _ => {}
        }
    }
    None
}

#[inline(always)]
fn malformed(ctx: &XdpContext, reason: Malformed, config: &Config, counters: &mut Counters) -> u32 {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += u64::from(Frame::new(ctx).first_len());
    refuse(ctx, reason, config, counters)
}

#[inline(always)]
fn refuse(ctx: &XdpContext, why: Malformed, config: &Config, counters: &mut Counters) -> u32 {
    refuse_as(ctx, why, Reason::Malformed, config, counters)
}

#[inline(always)]
fn enforcing(config: &Config) -> bool {
    config.enforces(|| clock::now_ns(config))
}

/// Refuses a packet that cannot be parsed, for a reason that may say more than that it cannot.
#[inline(always)]
fn refuse_as(
    ctx: &XdpContext,
    why: Malformed,
    reason: Reason,
    config: &Config,
    counters: &mut Counters,
) -> u32 {
    bump(counters, Counter::from(why));
    debug!(ctx, "malformed packet, reason {}", why as u8);
    deny(reason, config, counters)
}

/// The only way to a dropped packet. The answer carries its reason for [`capture::take`].
#[inline(always)]
fn deny(reason: Reason, config: &Config, counters: &mut Counters) -> u32 {
    if enforcing(config) {
        bump(counters, reason.dropped());
        capture::with_reason(XDP_DROP, reason)
    } else {
        bump(counters, reason.would_drop());
        capture::with_reason(XDP_PASS, reason)
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
