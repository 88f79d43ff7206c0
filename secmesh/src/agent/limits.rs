//! The limits and checks in force, read from the configuration that the kernel has.

use secmesh_common::{
    config::Config as KernelConfig,
    limit::{BYTES_PER_UNIT, Limit},
    reason::Reason,
};

use crate::api::types::{LimitView, LimitsView};

/// Names of the sources' limits, by [`secmesh_common::limit::SourceLimit`].
const SOURCE: [&str; 6] = [
    "source.syn",
    "source.udp",
    "source.icmp",
    "source.connections",
    "source.packets",
    BYTES,
];
/// The one of them that counts bytes.
const BYTES: &str = "source.bytes";

/// What the kernel's configuration says, in the words of `[limits]` and `[checks]`.
pub(super) fn view(config: &KernelConfig) -> LimitsView {
    let shared = [
        ("mesh", config.mesh_limit),
        ("total", config.total_limit),
        ("fragments", config.fragment_limit),
        ("source.strays", config.stray_limit),
        ("strays", config.strays_limit),
        ("amplified", config.amplified_limit),
    ];
    LimitsView {
        limits: SOURCE
            .into_iter()
            .zip(config.source_limits)
            .chain(shared)
            .filter(|(_, limit)| limit.cost_ns != 0)
            .map(|(name, limit)| one(name, limit))
            .collect(),
        checks: Reason::ALL
            .iter()
            .filter(|reason| config.checks & reason.bit() != 0)
            .map(|reason| reason.name().to_owned())
            .collect(),
    }
}

fn one(name: &str, limit: Limit) -> LimitView {
    let unit = if name == BYTES {
        u64::from(BYTES_PER_UNIT)
    } else {
        1
    };
    // Rounded to what was asked for: the cost is a whole number of nanoseconds.
    let per_second = 1_000_000_000_u64.saturating_add(limit.cost_ns / 2) / limit.cost_ns.max(1);
    LimitView {
        name: name.to_owned(),
        per_second: per_second.saturating_mul(unit),
        burst: (limit.burst_ns / limit.cost_ns.max(1)).saturating_mul(unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_checks_are_told_as_they_were_asked_for() {
        let mut config = KernelConfig::default();
        assert_eq!(view(&config), LimitsView::default());
        config.source_limits[0] = Limit::per_second(300, 900, 0);
        config.source_limits[5] = Limit::per_second(1000, 2000, 0);
        config.total_limit = Limit::per_second(7_000, 14_000, 0);
        config.checks = Reason::Land.bit() | Reason::SynFlood.bit();
        let view = view(&config);
        let told: Vec<_> = view
            .limits
            .iter()
            .map(|l| (l.name.as_str(), l.per_second, l.burst))
            .collect();
        assert_eq!(
            told,
            [
                ("source.syn", 300, 900),
                ("source.bytes", 64_000, 128_000),
                ("total", 7_000, 14_000)
            ]
        );
        assert_eq!(view.checks, ["land", "syn_flood"]);
    }
}
