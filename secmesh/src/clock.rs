//! The one place that asks the kernel for the time.
//!
//! Everything that decides by time takes a [`Clock`] (or a plain number), so that `replay` and the
//! tests say what time it is.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

/// A source of time.
pub trait Clock: Send + Sync {
    /// Wall clock: microseconds since 1970-01-01 UTC. May jump in both directions.
    fn unix_us(&self) -> u64;
    /// Monotonic clock: nanoseconds since boot, the clock of the kernel's timestamps
    /// (`bpf_ktime_get_ns`). Never goes back; does not run while the machine is suspended.
    fn mono_ns(&self) -> u64;
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// Whole seconds and nanoseconds of a kernel clock.
fn read(clock: ClockId) -> (u64, u64) {
    // These two clocks always exist (clock_gettime(2)); should a sandbox forbid the call, time
    // stands at zero, and to the mesh everything is then from the future: it fails closed.
    clock_gettime(clock).map_or((0, 0), |time| {
        (
            u64::try_from(time.tv_sec()).unwrap_or(0),
            u64::try_from(time.tv_nsec()).unwrap_or(0),
        )
    })
}

impl Clock for SystemClock {
    fn unix_us(&self) -> u64 {
        let (seconds, nanos) = read(ClockId::CLOCK_REALTIME);
        seconds
            .saturating_mul(1_000_000)
            .saturating_add(nanos / 1_000)
    }

    fn mono_ns(&self) -> u64 {
        let (seconds, nanos) = read(ClockId::CLOCK_MONOTONIC);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    }
}

/// A clock that stands still until it is told to move. Both clocks move together.
#[derive(Debug, Default)]
pub struct ManualClock {
    unix_us: AtomicU64,
    mono_ns: AtomicU64,
}

impl ManualClock {
    /// A clock at the given wall-clock time, freshly booted.
    pub const fn new(unix_us: u64) -> Self {
        Self {
            unix_us: AtomicU64::new(unix_us),
            mono_ns: AtomicU64::new(0),
        }
    }

    /// Lets `us` microseconds pass on both clocks.
    pub fn advance_us(&self, us: u64) {
        self.unix_us.fetch_add(us, Ordering::SeqCst);
        self.mono_ns
            .fetch_add(us.saturating_mul(1_000), Ordering::SeqCst);
    }

    /// Makes the wall clock jump; the monotonic clock does not notice.
    pub fn set_unix_us(&self, unix_us: u64) {
        self.unix_us.store(unix_us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn unix_us(&self) -> u64 {
        self.unix_us.load(Ordering::SeqCst)
    }

    fn mono_ns(&self) -> u64 {
        self.mono_ns.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_runs_and_is_in_this_century() {
        let clock = SystemClock;
        let (unix, mono) = (clock.unix_us(), clock.mono_ns());
        assert!(unix > 1_700_000_000_000_000 && unix < 4_102_444_800_000_000);
        assert!(clock.mono_ns() >= mono && mono > 0);
    }

    #[test]
    fn the_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(5);
        assert_eq!((clock.unix_us(), clock.mono_ns()), (5, 0));
        clock.advance_us(3);
        assert_eq!((clock.unix_us(), clock.mono_ns()), (8, 3_000));
        clock.set_unix_us(1);
        assert_eq!((clock.unix_us(), clock.mono_ns()), (1, 3_000));
    }
}
