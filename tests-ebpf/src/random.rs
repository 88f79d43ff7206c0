//! Random enough for sources and ports, at a nanosecond instead of a helper call.

use crate::maps::{SEED, State};

/// The next number: xorshift64 (Marsaglia, 2003), whose state is never zero, with its high bits mixed in
/// by a multiplication.
#[inline(always)]
pub fn next(state: &mut State) -> u64 {
    let mut x = state.random;
    if x == 0 {
        x = SEED.load() | 1;
    }
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    state.random = x;
    x.wrapping_mul(0x2545_f491_4f6c_dd1d)
}
