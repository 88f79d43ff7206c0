//! The bounds that limits promise, against clocks that tick.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use proptest::prelude::*;
use secmesh_common::limit::{Booking, Limit};

const MS: u64 = 1_000_000;

/// What the clock says at `ns`, with ticks of `tick` ns.
fn ticked(ns: u64, tick: u64) -> u64 {
    1_000 * MS + ns / tick * tick
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_limit_admits_no_more_than_burst_and_rate_and_no_less(
        rate in 1_u64..2_000_000,
        burst in 1_u64..10_000,
        tick in (1_u64..=4).prop_map(|ms| ms * MS),
        gaps in prop::collection::vec(0_u64..3 * MS, 1..3000),
    ) {
        let limit = Limit::per_second(rate, burst, tick);
        let (mut arrival, mut now, mut admitted) = (0, 0, 0_u64);
        for gap in &gaps {
            now += gap;
            admitted += u64::from(limit.admit(&mut arrival, 1, ticked(now, tick)));
        }
        // Exactly what the arithmetic allows: the burst, and what the ticked time pays for.
        let elapsed = ticked(now, tick) - ticked(gaps[0], tick);
        let most = (limit.burst_ns + elapsed) / limit.cost_ns;
        prop_assert!(admitted <= most, "{admitted} of {} in {elapsed} ns, bound {most}", gaps.len());
        // Never less than the smaller of what came and the burst.
        prop_assert!(admitted >= (limit.burst_ns / limit.cost_ns).min(gaps.len() as u64));
    }

    #[test]
    fn under_constant_pressure_the_rate_is_used_up(
        rate in 100_u64..100_000,
        tick in (1_u64..=4).prop_map(|ms| ms * MS),
    ) {
        let limit = Limit::per_second(rate, 1, tick);
        let mut arrival = 0;
        let step = limit.cost_ns / 4;
        let admitted = (0..20_000_u64)
            .filter(|n| limit.admit(&mut arrival, 1, ticked(n * step, tick)))
            .count() as u64;
        let paid = 20_000 * step / limit.cost_ns;
        prop_assert!(admitted >= paid.saturating_sub(tick / limit.cost_ns + 2), "{admitted} of {paid}");
    }

    #[test]
    fn units_are_booked_as_many_as_they_are(units in 1_u32..100, burst in 1_u64..1000) {
        let limit = Limit::per_second(1000, burst, 0);
        let mut arrival = 0;
        let mut admitted = 0;
        while limit.admit(&mut arrival, units, 1_000 * MS) {
            admitted += u64::from(units);
        }
        prop_assert!(admitted <= burst && admitted + u64::from(units) > burst);
    }
}

/// One unit against a shared limit, as the kernel books it.
fn book(limit: &Limit, arrival: &AtomicU64, now: u64) -> bool {
    match limit.shared(arrival.load(Ordering::Relaxed), now) {
        Booking::Refuse => return false,
        Booking::AdmitAfterIdle => arrival.store(now, Ordering::Relaxed),
        Booking::Admit => {}
    }
    arrival.fetch_add(limit.cost_ns, Ordering::Relaxed);
    true
}

#[test]
fn one_processor_alone_keeps_a_shared_limit_exactly() {
    let limit = Limit::per_second(1000, 50, 0);
    let arrival = AtomicU64::new(0);
    let admitted = (0..10_000_u64)
        .filter(|n| book(&limit, &arrival, ticked(n * MS / 4, 4 * MS)))
        .count();
    // 2500 ms but the last tick, and the burst.
    assert_eq!(admitted, 50 + 2496);
}

/// Every way that two processors can take turns at reading, deciding and booking.
#[test]
fn processors_that_collide_overshoot_by_one_each() {
    let limit = Limit::per_second(1000, 10, 0);
    let now = 1_000 * MS;
    for cpus in 1..=8_u64 {
        // All of them read before any of them books, for as long as the limit lets them.
        let (mut arrival, mut admitted) = (now, 0);
        while limit.shared(arrival, now) != Booking::Refuse {
            arrival += cpus * limit.cost_ns;
            admitted += cpus;
        }
        assert!(admitted < 10 + cpus, "{admitted} with {cpus}");
    }
}

#[test]
fn threads_overshoot_a_shared_limit_by_no_more_than_their_number() {
    const THREADS: usize = 4;
    let limit = Limit::per_second(1, 1000, 0);
    for _ in 0..50 {
        // Not idle: as under a flood.
        let now = 1_000 * MS;
        let arrival = AtomicU64::new(now);
        let admitted: usize = thread::scope(|scope| {
            let run = || (0..2000).filter(|_| book(&limit, &arrival, now)).count();
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!((1000..1000 + THREADS).contains(&admitted), "{admitted}");
    }
}
