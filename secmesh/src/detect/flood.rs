//! SYN, UDP and ICMP floods: too many of one class from one source in one window.
//!
//! The kernel counts (`secmesh_common::account`) and reports when a level is reached; SYN counts are
//! attempts that no acknowledgement followed, so a busy client is no flood.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use secmesh_common::config::RateClass;

use super::{BoundedMap, Detector, Finding, alert::confidence};
use crate::{
    mesh::vote::AttackClass,
    sense::observation::{Observation, What},
};

/// Sources remembered per detector.
const MAX_SOURCES: usize = 16_384;

/// Settings of one flood detector.
#[derive(Debug, Clone, Copy)]
pub struct FloodSettings {
    /// What the kernel counts.
    pub class: RateClass,
    /// What it is called when there is too much of it.
    pub attack: AttackClass,
    /// Length of the kernel's window.
    pub window: Duration,
    /// Packets in one window that are an attack.
    pub threshold: u32,
    /// The same for a source that a peer reported.
    pub watch_threshold: u32,
    /// Shortest time between two alerts on one source.
    pub cooldown: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    first_ns: u64,
    ts_ns: u64,
    count: u32,
    packets: u32,
}

/// Finds floods of one class.
pub struct FloodDetector {
    settings: FloodSettings,
    /// The last report of each source, so that a source can be judged again when it becomes watched.
    recent: BoundedMap<IpAddr, Last>,
}

impl FloodDetector {
    /// A detector with these settings.
    pub fn new(settings: FloodSettings) -> Self {
        Self {
            settings,
            recent: BoundedMap::new(MAX_SOURCES),
        }
    }

    fn judge(&self, source: IpAddr, last: Last, threshold: u32) -> Option<Finding> {
        if last.count < threshold {
            return None;
        }
        Some(Finding {
            class: self.settings.attack,
            source,
            confidence: confidence(f64::from(last.count), f64::from(threshold)),
            first_ns: last.first_ns,
            last_ns: last.ts_ns,
            features: BTreeMap::from([
                ("packets_in_window", f64::from(last.count)),
                ("packets_in_run", f64::from(last.packets)),
                (
                    "seconds_since_first_packet",
                    last.ts_ns.saturating_sub(last.first_ns) as f64 / 1e9,
                ),
            ]),
            thresholds: BTreeMap::from([
                ("packets_in_window", f64::from(threshold)),
                ("window_seconds", self.settings.window.as_secs_f64()),
            ]),
        })
    }
}

impl Detector for FloodDetector {
    fn name(&self) -> &'static str {
        self.settings.attack.name()
    }

    fn parameters(&self) -> String {
        let s = &self.settings;
        format!(
            "window={}ns threshold={} watch_threshold={}",
            s.window.as_nanos(),
            s.threshold,
            s.watch_threshold
        )
    }

    fn cooldown(&self) -> Duration {
        self.settings.cooldown
    }

    fn observe(&mut self, observation: &Observation, watched: bool) -> Option<Finding> {
        let What::Rate { class, count } = observation.what else {
            return None;
        };
        if class != self.settings.class {
            return None;
        }
        let last = Last {
            first_ns: observation.first_ns,
            ts_ns: observation.ts_ns,
            count,
            packets: observation.packets,
        };
        self.recent.insert(observation.src, last);
        let threshold = if watched {
            self.settings.watch_threshold
        } else {
            self.settings.threshold
        };
        self.judge(observation.src, last, threshold)
    }

    fn recheck(&mut self, source: IpAddr, now_ns: u64) -> Option<Finding> {
        let last = *self.recent.get(&source)?;
        let window = u64::try_from(self.settings.window.as_nanos()).unwrap_or(u64::MAX);
        if now_ns.saturating_sub(last.ts_ns) > window {
            return None;
        }
        self.judge(source, last, self.settings.watch_threshold)
    }

    fn forgotten(&self) -> u64 {
        self.recent.evicted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector() -> FloodDetector {
        FloodDetector::new(FloodSettings {
            class: RateClass::Syn,
            attack: AttackClass::SynFlood,
            window: Duration::from_secs(1),
            threshold: 200,
            watch_threshold: 16,
            cooldown: Duration::from_secs(10),
        })
    }

    fn rate(class: RateClass, count: u32) -> Observation {
        Observation {
            ts_ns: 2_000_000_000,
            first_ns: 1_900_000_000,
            src: "192.0.2.1".parse().unwrap(),
            packets: count,
            what: What::Rate { class, count },
        }
    }

    #[test]
    fn a_count_below_the_threshold_is_no_flood() {
        let mut d = detector();
        assert!(d.observe(&rate(RateClass::Syn, 199), false).is_none());
        let found = d.observe(&rate(RateClass::Syn, 200), false).unwrap();
        assert_eq!(
            (found.first_ns, found.last_ns),
            (1_900_000_000, 2_000_000_000)
        );
    }

    #[test]
    fn another_class_is_not_its_business() {
        assert!(
            detector()
                .observe(&rate(RateClass::Udp, 10_000), false)
                .is_none()
        );
    }

    #[test]
    fn a_watched_source_has_the_lower_threshold() {
        let mut d = detector();
        assert!(d.observe(&rate(RateClass::Syn, 15), true).is_none());
        assert!(d.observe(&rate(RateClass::Syn, 16), true).is_some());
    }

    #[test]
    fn what_was_seen_before_the_report_counts_if_it_is_fresh() {
        let mut d = detector();
        let source = "192.0.2.1".parse().unwrap();
        assert!(d.observe(&rate(RateClass::Syn, 16), false).is_none());
        assert!(d.recheck(source, 2_500_000_000).is_some());
        assert!(d.recheck(source, 9_000_000_000).is_none());
        assert!(
            d.recheck("192.0.2.9".parse().unwrap(), 2_500_000_000)
                .is_none()
        );
    }
}
