//! How the kernel's timer ticks relate to its clock, measured where both can be read: in the kernel.

use std::time::Duration;

use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions, Xdp},
};

use super::DataplaneError;

/// Name of the program that reads both.
const PROGRAM: &str = "secmesh_clock";
/// Tick rates that kernels are built with (`kernel/Kconfig.hz`), per second.
const RATES: [u64; 5] = [1000, 300, 250, 200, 100];
/// Time between the two readings: the rates are at least a tick apart over it.
const BASELINE: Duration = Duration::from_millis(60);
/// Readings at most until the tick count moves: a hundredth of a second and more, at a microsecond each.
const MAX_READINGS: usize = 20_000;

/// Ticks and clock (ns), read together.
type Reading = (u64, u64);

/// `tick_ns` and `clock_offset_ns` of [`secmesh_common::config::Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TickClock {
    pub tick_ns: u64,
    pub offset_ns: u64,
}

/// Measures; `None` if the readings fit no rate that a kernel is built with. The program then asks the
/// clock instead, which costs more and is as right.
///
/// # Errors
///
/// If the program cannot be loaded or run.
pub(super) fn measure(ebpf: &mut Ebpf) -> Result<Option<TickClock>, DataplaneError> {
    let program: &mut Xdp = ebpf
        .program_mut(PROGRAM)
        .ok_or(DataplaneError::Missing(PROGRAM))?
        .try_into()
        .map_err(DataplaneError::Verifier)?;
    program.load().map_err(DataplaneError::Verifier)?;
    let first = read(program)?;
    std::thread::sleep(BASELINE);
    // The moment at which the count moves tells where in a tick we are.
    let mut readings = vec![first, read(program)?];
    let from = readings.last().map_or(0, |r| r.0);
    while readings.len() < MAX_READINGS {
        let reading = read(program)?;
        readings.push(reading);
        if reading.0 != from {
            break;
        }
    }
    Ok(relate(&readings))
}

fn read(program: &Xdp) -> Result<Reading, DataplaneError> {
    let packet = [0u8; 64];
    let mut out = [0u8; 64];
    program
        .test_run(TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })
        .map_err(DataplaneError::Verifier)?;
    let word = |at: usize| {
        out.get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    };
    Ok((word(0), word(8)))
}

/// The rate that the readings fit, and the offset: the clock is never behind the last tick, so the least
/// difference seen is the closest to the truth, and the first reading after a tick gives it to the
/// microsecond.
fn relate(readings: &[Reading]) -> Option<TickClock> {
    let (first, last) = (readings.first()?, readings.last()?);
    let ticks = last.0.checked_sub(first.0)?;
    let ns = last.1.checked_sub(first.1)?;
    let rate = RATES.into_iter().find(|rate| {
        let expected = ns * rate / 1_000_000_000;
        ticks.abs_diff(expected) <= 1
    })?;
    let tick_ns = 1_000_000_000 / rate;
    let offset_ns = readings
        .iter()
        .map(|(ticks, ns)| ns.wrapping_sub(ticks.wrapping_mul(tick_ns)))
        .min_by_key(|offset| {
            offset
                .wrapping_sub(last.1.wrapping_sub(last.0.wrapping_mul(tick_ns)))
                .cast_signed()
        })?;
    Some(TickClock { tick_ns, offset_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(rate: u64, boot_ticks: u64) -> Vec<Reading> {
        let tick = 1_000_000_000 / rate;
        let at = |ns: u64| (boot_ticks.wrapping_add(ns / tick), ns);
        let mut readings = vec![at(5_000_000_123)];
        let mut ns = 5_060_300_000;
        let from = at(ns).0;
        while at(ns).0 == from {
            ns += 20_000;
            readings.push(at(ns));
        }
        readings
    }

    #[test]
    fn every_rate_is_recognised_and_the_clock_is_right_to_a_tick() {
        for rate in RATES {
            // The kernel starts its count five minutes before it wraps at 32 bits.
            let readings = kernel(rate, 0xffff_ffff_u64 - 300 * rate);
            let clock = relate(&readings).unwrap();
            assert_eq!(clock.tick_ns, 1_000_000_000 / rate);
            for (ticks, ns) in readings {
                let by_ticks = ticks
                    .wrapping_mul(clock.tick_ns)
                    .wrapping_add(clock.offset_ns);
                assert!(
                    by_ticks <= ns + 20_000 && ns < by_ticks + clock.tick_ns,
                    "{rate}: {by_ticks} {ns}"
                );
            }
        }
    }

    #[test]
    fn readings_that_fit_nothing_give_nothing() {
        assert_eq!(relate(&[]), None);
        assert_eq!(relate(&[(5, 0), (4, 60_000_000)]), None);
        assert_eq!(relate(&[(0, 0), (9_000_000, 60_000_000)]), None);
    }
}
