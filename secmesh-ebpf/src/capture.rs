//! Heads of dropped packets for `secmesh capture`.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{xdp_action::XDP_DROP, xdp_md},
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use secmesh_common::{
    capture::{CAPTURES_PER_TICK, Captured, MAX_SNAP},
    config::Config,
    counters::Counter,
    reason::Reason,
};

use crate::{
    clock::now_ns,
    count::bump,
    maps::{CAPTURE_BUDGET, CAPTURES, CONFIG},
};

/// Where an answer carries its reason: the number of the [`Reason`] and one, above the XDP action.
const REASON_SHIFT: u32 = 8;

/// An XDP action with the reason for it.
#[inline(always)]
pub fn with_reason(action: u32, reason: Reason) -> u32 {
    action | ((reason as u32 + 1) << REASON_SHIFT)
}

/// Takes the reason off an answer, and captures the packet if somebody wants those of that reason.
#[inline(always)]
pub fn take(ctx: &XdpContext, answer: u32, config: &Config) -> u32 {
    if answer >> REASON_SHIFT == 0 {
        return answer;
    }
    if config.capture != 0 {
        secmesh_capture(ctx.ctx, answer);
    }
    answer & ((1 << REASON_SHIFT) - 1)
}

/// A function of its own to the verifier: see `secmesh_observe`.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "fields of one record, written in place with one reason"
)]
pub extern "C" fn secmesh_capture(ctx: *mut xdp_md, answer: u32) -> u32 {
    let (Some(counters), Some(config)) = (crate::count::counters(), CONFIG.get(0)) else {
        return 0;
    };
    let reason = ((answer >> REASON_SHIFT) - 1) & 63;
    if config.capture >> reason & 1 == 0 {
        return 0;
    }
    let ctx = XdpContext::new(ctx);
    let now = now_ns(config);
    if !within_budget(config, now) {
        bump(counters, Counter::CaptureLost);
        return 0;
    }
    let Some(mut entry) = CAPTURES.reserve(0) else {
        bump(counters, Counter::CaptureLost);
        return 0;
    };
    // SAFETY: the helper only reads the context it is given (Linux 5.18, net/core/filter.c).
    let wire_len = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) } as u32;
    let wanted = if u64::from(wire_len) < config.capture_snap {
        wire_len
    } else {
        config.capture_snap as u32
    };
    // From 1 to MAX_SNAP, in a form that the verifier follows; an XDP frame has at least its 14 bytes.
    let head_len = (wanted.wrapping_sub(1) & (MAX_SNAP as u32 - 1)) + 1;
    let record: *mut Captured = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; the fields are written in place because it is larger
    // than half the stack.
    unsafe {
        addr_of_mut!((*record).ts_ns).write(now);
        addr_of_mut!((*record).ifindex).write(ctx.ingress_ifindex() as u32);
        addr_of_mut!((*record).wire_len).write(wire_len);
        addr_of_mut!((*record).head_len).write(head_len);
        addr_of_mut!((*record).reason).write(reason as u8);
        addr_of_mut!((*record).dropped).write(u8::from(answer & 0xff == XDP_DROP));
        addr_of_mut!((*record).pad).write([0; 2]);
    }
    // SAFETY: the helper writes at most MAX_SNAP bytes into the record's head (Linux 5.18, net/core/filter.c).
    let loaded = unsafe {
        bpf_xdp_load_bytes(
            ctx.as_ptr().cast(),
            0,
            addr_of_mut!((*record).head).cast(),
            head_len,
        )
    };
    if loaded != 0 {
        entry.discard(0);
        bump(counters, Counter::CaptureLost);
        return 0;
    }
    entry.submit(0);
    bump(counters, Counter::Captured);
    0
}

#[inline(always)]
fn within_budget(config: &Config, now: u64) -> bool {
    let Some(budget) = CAPTURE_BUDGET.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a per-CPU entry; XDP runs to its end on one CPU.
    let budget = unsafe { &mut *budget };
    if now.wrapping_sub(budget.tick_start_ns) >= config.event_tick_ns {
        budget.tick_start_ns = now;
        budget.used = 0;
    }
    if budget.used >= CAPTURES_PER_TICK {
        return false;
    }
    budget.used += 1;
    true
}
