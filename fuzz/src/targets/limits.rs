//! The rate limits: the generic cell rate algorithm beside a bucket that is counted exactly.

use secmesh_common::limit::Limit;

use crate::feed::Feed;

/// Most a clock can be ahead: 146 years in ns, half of what 64 bits hold.
const FAR_NS: u64 = u64::MAX / 2;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (rate, burst) in [
        (1_u64, 1_u64),
        (10, 20),
        (1000, 0),
        (50_000, 100),
        (0, 5),
        (u64::MAX, u64::MAX),
    ] {
        let mut seed = [
            rate.to_le_bytes(),
            burst.to_le_bytes(),
            4_000_000_u64.to_le_bytes(),
        ]
        .concat();
        seed.extend([9; 8]);
        // A burst at one moment, then one by one, then a long pause.
        seed.extend([0, 0, 0, 0, 1].repeat(12));
        seed.extend([0x10, 0x27, 0, 0, 1].repeat(12));
        seed.extend([0xff, 0xff, 0xff, 0x7f, 40].repeat(3));
        seeds.push(seed);
    }
    seeds
}

pub(super) fn run(input: &[u8]) {
    let mut feed = Feed::new(input);
    let (rate, burst, tick) = (feed.u64(), feed.u64(), feed.u64() % 10_000_001);
    let limit = Limit::per_second(rate, burst, tick);
    assert_eq!(limit == Limit::NONE, rate == 0);
    if limit == Limit::NONE {
        return;
    }
    assert!(limit.burst_ns >= tick && limit.cost_ns >= 1, "{limit:?}");
    let mut now_ns = feed.u64() % FAR_NS;
    let mut arrival_ns = 0;
    // What was admitted and is not worked off yet, in ns, exactly.
    let mut level: u128 = 0;
    while !feed.is_empty() {
        let step = u64::from(feed.u32());
        let units = u32::from(feed.u8());
        let later_ns = now_ns.saturating_add(step).min(FAR_NS);
        level = level.saturating_sub(u128::from(later_ns - now_ns));
        now_ns = later_ns;
        let wanted = level + u128::from(limit.cost_ns) * u128::from(units);
        let fits = wanted <= u128::from(limit.burst_ns);
        let before = arrival_ns;
        let admitted = limit.admit(&mut arrival_ns, units, now_ns);
        assert_eq!(
            admitted, fits,
            "{limit:?} {units} at {now_ns}, {level} booked"
        );
        if admitted {
            level = wanted;
        } else {
            assert_eq!(arrival_ns, before, "refused, and booked all the same");
        }
    }
}
