//! What time it is, as cheaply as it can be known.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::xdp,
    programs::XdpContext,
};
use secmesh_common::{config::Config, lease};

/// `CLOCK_MONOTONIC` to one timer tick, ns.
#[inline(always)]
pub fn now_ns(config: &Config) -> u64 {
    // SAFETY: no arguments, no effects (Linux 5.5); on 64-bit kernels the verifier makes one load of it.
    let ticks = unsafe { bpf_jiffies64() };
    match config.clock_ns(ticks) {
        Some(now) => now,
        // SAFETY: no arguments, no effects (Linux 5.11, kernel/bpf/helpers.c).
        None => unsafe { bpf_ktime_get_coarse_ns() },
    }
}

/// What a lease of now is good for.
#[inline(always)]
pub fn lease_key(config: &Config) -> u64 {
    // Read here and nowhere later: it says that what is written from now on is not known yet.
    // SAFETY: a field of the configuration's entry, which is never freed while the program runs; aligned.
    let epoch = unsafe { (&raw const config.epoch).read_volatile() };
    // SAFETY: as above.
    lease::key(unsafe { bpf_jiffies64() }, epoch)
}

/// Writes the count of timer ticks and `CLOCK_MONOTONIC`, read together, over the first sixteen bytes of
/// the packet.
///
/// Never attached: the controller runs it with `BPF_PROG_TEST_RUN` to learn how the two relate. No other
/// way tells a program outside the kernel where its tick count stands.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the xdp attribute's wrapper hands the context over"
)]
pub fn secmesh_clock(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + size_of::<[u64; 2]>() > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: no arguments, no effects.
    let ticks = unsafe { bpf_jiffies64() };
    // SAFETY: no arguments, no effects.
    let clock = unsafe { bpf_ktime_get_ns() };
    let out = start as *mut [u64; 2];
    // SAFETY: sixteen bytes from the start are inside the packet, as compared above; the start of a test
    // run's packet is aligned to more than eight.
    unsafe { out.write([ticks, clock]) };
    XDP_PASS
}
