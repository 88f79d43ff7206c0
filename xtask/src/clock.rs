//! The machine's clocks.
//!
//! Everything in a lab runs on one machine, so times taken here compare with times that the agents
//! and the kernel took.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Wall clock, microseconds since 1970; 0 when the clock stands before that.
pub fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

/// Turns a kernel time (`CLOCK_MONOTONIC`, nanoseconds) into wall-clock microseconds.
///
/// Right to some microseconds: the two clocks are read one after the other.
pub fn unix_us_of_mono_ns(mono_ns: u64) -> Option<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    let now_ns = u64::try_from(Duration::from(now).as_nanos()).ok()?;
    let ago_us = now_ns.saturating_sub(mono_ns) / 1_000;
    Some(unix_us().saturating_sub(ago_us))
}

/// Calls `ask` every `pause` until it gives something, or until `limit` has passed.
///
/// # Errors
/// The error of `ask`, which ends the waiting at once.
pub fn wait_until<T>(
    limit: Duration,
    pause: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_time_of_now_is_the_wall_clock_of_now() {
        let mono = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        let mono_ns = u64::try_from(Duration::from(mono).as_nanos()).unwrap();
        let (before, wall) = (unix_us(), unix_us_of_mono_ns(mono_ns).unwrap());
        let second_ago = unix_us_of_mono_ns(mono_ns - 1_000_000_000).unwrap();
        // As long as this process was kept waiting in between: then it is right within that.
        let slack = 50_000 + unix_us() - before;
        assert!(wall.abs_diff(before) < slack);
        assert!((before - second_ago).abs_diff(1_000_000) < slack);
    }

    #[test]
    fn waiting_ends_at_the_limit_or_at_the_answer() {
        let never: Option<()> =
            wait_until(Duration::from_millis(20), Duration::from_millis(5), || {
                Ok(None)
            })
            .unwrap();
        assert!(never.is_none());
        let mut calls = 0;
        let third = wait_until(Duration::from_secs(5), Duration::from_millis(1), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(third.unwrap(), Some(3));
    }
}
