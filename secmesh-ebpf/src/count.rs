//! Per-CPU counters.

use secmesh_common::{
    counters::{Counter, Counters},
    reason::Reason,
};

use crate::maps::COUNTERS;

/// This CPU's counters.
///
/// Looked up once per packet; `None` cannot happen for index 0 of a one-entry array, but the verifier
/// wants the question asked.
#[inline(always)]
pub fn counters() -> Option<&'static mut Counters> {
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: a per-CPU entry; XDP runs to its end on one CPU, so nobody else writes it meanwhile.
    Some(unsafe { &mut *counters })
}

/// Adds one.
#[inline(always)]
pub fn bump(counters: &mut Counters, counter: Counter) {
    *counters.get_mut(counter) += 1;
}

/// Counts a packet of `length` bytes, of which nothing was counted yet, as dropped.
#[inline(always)]
pub fn dropped(length: usize, reason: Reason, counters: &mut Counters) {
    bump(counters, Counter::RxPackets);
    counters.rx_bytes += length as u64;
    bump(counters, reason.dropped());
}
