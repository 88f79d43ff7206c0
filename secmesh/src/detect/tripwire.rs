//! Tripwires: a packet to a port where nothing is.
//!
//! To the mesh it is a port scan, which it is the smallest piece of; a class of its own would be refused by
//! nodes of earlier versions. One packet is enough, and the sender's address in it can be forged: whoever
//! knows a tripwire port can have another address named. What that can do is bounded by the allowlist, by the
//! length of a block on this node's own right, and by the quorum, each member of which must have been
//! touched itself.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{Detector, Finding};
use crate::{
    mesh::vote::AttackClass,
    sense::observation::{Observation, What},
};

/// Confidence in one packet: that of a threshold just reached.
const CONFIDENCE: f64 = 0.5;
/// Shortest time between two alerts on one source.
const COOLDOWN: Duration = Duration::from_secs(10);

/// Names whoever sends to a tripwire port. It keeps nothing.
#[derive(Debug, Default)]
pub struct TripwireDetector;

impl Detector for TripwireDetector {
    fn name(&self) -> &'static str {
        "tripwire"
    }

    fn parameters(&self) -> String {
        "any packet".to_owned()
    }

    fn cooldown(&self) -> Duration {
        COOLDOWN
    }

    fn observe(&mut self, observation: &Observation, _watched: bool) -> Option<Finding> {
        let What::Tripwire { port, proto } = observation.what else {
            return None;
        };
        Some(Finding {
            class: AttackClass::PortScan,
            source: observation.src,
            confidence: CONFIDENCE,
            first_ns: observation.first_ns,
            last_ns: observation.ts_ns,
            features: BTreeMap::from([
                ("tripwire_port", f64::from(port)),
                ("tripwire_protocol", f64::from(proto)),
            ]),
            thresholds: BTreeMap::from([("packets_to_a_tripwire", 1.0)]),
        })
    }

    fn recheck(&mut self, _source: IpAddr, _now_ns: u64) -> Option<Finding> {
        None
    }

    fn forgotten(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::DetectConfig,
        detect::{Detectors, TimeBase},
    };

    fn seen(what: What, ts_ns: u64) -> Observation {
        Observation {
            ts_ns,
            first_ns: ts_ns,
            src: "192.0.2.1".parse().unwrap(),
            packets: 1,
            what,
        }
    }

    #[test]
    fn one_packet_names_its_source_once_per_cooldown() {
        let mut detectors = Detectors::new(&DetectConfig::default());
        let mut alerts = Vec::new();
        let what = What::Tripwire { port: 23, proto: 6 };
        for ts in [1_000_000_000, 1_500_000_000, 12_000_000_000] {
            detectors.observe(&seen(what, ts), false, TimeBase::UNIX, &mut alerts);
        }
        assert_eq!(alerts.len(), 2, "{alerts:?}");
        assert_eq!(alerts[0].detector, "tripwire");
        assert_eq!(alerts[0].subject.to_string(), "192.0.2.1");
        assert!((alerts[0].features["tripwire_port"] - 23.0).abs() < 1e-9);
        alerts.clear();
        detectors.observe(
            &seen(What::Packet, 99_000_000_000),
            true,
            TimeBase::UNIX,
            &mut alerts,
        );
        assert!(alerts.is_empty());
    }
}
