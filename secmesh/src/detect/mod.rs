//! Is it an attack, and why do we think so? Observations in, alerts out.
//!
//! Each detector is a small type behind [`Detector`]. Detectors know no clock and no network: what they
//! know of time is in the observations, so a capture and a live interface give the same alerts.

mod alert;
mod bounded;
mod flood;
mod scan;
mod tripwire;

use std::{net::IpAddr, time::Duration};

pub use self::{
    alert::{Alert, Finding, TimeBase},
    bounded::BoundedMap,
    flood::{FloodDetector, FloodSettings},
    scan::{ScanDetector, ScanSettings},
    tripwire::TripwireDetector,
};
use crate::{
    addr::Prefix,
    config::DetectConfig,
    dataplane::Levels,
    mesh::{crypto::sha256, vote::AttackClass},
    sense::observation::Observation,
};
use secmesh_common::config::{RateClass, RateLevels};

/// Sources whose cooldown is remembered.
const MAX_COOLDOWNS: usize = 65_536;

/// Judges observations of one kind of attack.
pub trait Detector: Send {
    /// Its name, as alerts and metrics print it.
    fn name(&self) -> &'static str;

    /// Everything that its judgement depends on, as text; hashed into alerts and votes.
    fn parameters(&self) -> String;

    /// Shortest time between two alerts on one subject.
    fn cooldown(&self) -> Duration;

    /// Takes one observation; `watched` lowers the threshold to the one for reported subjects.
    fn observe(&mut self, observation: &Observation, watched: bool) -> Option<Finding>;

    /// Judges by the lower threshold what is already known of `source`, which is watched from now on.
    fn recheck(&mut self, source: IpAddr, now_ns: u64) -> Option<Finding>;

    /// Sources that were forgotten because the detector's memory is bounded.
    fn forgotten(&self) -> u64;
}

/// All configured detectors.
pub struct Detectors {
    list: Vec<(Box<dyn Detector>, [u8; 32])>,
    cooldowns: BoundedMap<(IpAddr, AttackClass), u64>,
    /// Alerts not raised because their subject had one a moment ago.
    pub cooled_down: u64,
}

impl Detectors {
    /// The detectors that `config` enables.
    pub fn new(config: &DetectConfig) -> Self {
        let mut detectors: Vec<Box<dyn Detector>> = Vec::new();
        for (class, attack, flood) in [
            (RateClass::Syn, AttackClass::SynFlood, &config.syn_flood),
            (RateClass::Udp, AttackClass::UdpFlood, &config.udp_flood),
            (RateClass::Icmp, AttackClass::IcmpFlood, &config.icmp_flood),
        ] {
            if flood.enabled {
                detectors.push(Box::new(FloodDetector::new(FloodSettings {
                    class,
                    attack,
                    window: flood.window,
                    threshold: flood.threshold,
                    watch_threshold: flood.watch_threshold,
                    cooldown: flood.cooldown,
                })));
            }
        }
        // Only [tripwire] makes the kernel report such packets.
        detectors.push(Box::new(TripwireDetector));
        let scan = &config.port_scan;
        if scan.enabled {
            detectors.push(Box::new(ScanDetector::new(ScanSettings {
                window: scan.window,
                ports: scan.threshold,
                hosts: scan.hosts,
                watch_threshold: scan.watch_threshold,
                cooldown: scan.cooldown,
            })));
        }
        Self {
            list: detectors
                .into_iter()
                .map(|d| {
                    let hash = detector_hash(d.as_ref());
                    (d, hash)
                })
                .collect(),
            cooldowns: BoundedMap::new(MAX_COOLDOWNS),
            cooled_down: 0,
        }
    }

    /// Judges one observation by every detector.
    pub fn observe(
        &mut self,
        observation: &Observation,
        watched: bool,
        time: TimeBase,
        alerts: &mut Vec<Alert>,
    ) {
        for (detector, hash) in &mut self.list {
            if let Some(finding) = detector.observe(observation, watched) {
                let cooldown = detector.cooldown();
                if cools_down(&mut self.cooldowns, &finding, cooldown) {
                    self.cooled_down += 1;
                    continue;
                }
                alerts.push(Alert::new(finding, detector.name(), hash, watched, time));
            }
        }
    }

    /// Judges by the lower threshold what is already known of `source`.
    pub fn recheck(
        &mut self,
        source: IpAddr,
        now_ns: u64,
        time: TimeBase,
        alerts: &mut Vec<Alert>,
    ) {
        for (detector, hash) in &mut self.list {
            if let Some(finding) = detector.recheck(source, now_ns)
                && !cools_down(&mut self.cooldowns, &finding, detector.cooldown())
            {
                alerts.push(Alert::new(finding, detector.name(), hash, true, time));
            }
        }
    }

    /// Sources that all detectors together forgot for want of room.
    pub fn forgotten(&self) -> u64 {
        self.list.iter().map(|(d, _)| d.forgotten()).sum()
    }
}

/// Whether `finding` comes too soon after the last one; if not, its own cooldown starts.
fn cools_down(
    cooldowns: &mut BoundedMap<(IpAddr, AttackClass), u64>,
    finding: &Finding,
    cooldown: Duration,
) -> bool {
    let key = (finding.source, finding.class);
    let cooldown = u64::try_from(cooldown.as_nanos()).unwrap_or(u64::MAX);
    if let Some(last) = cooldowns.get(&key)
        && finding.last_ns.saturating_sub(*last) < cooldown
    {
        return true;
    }
    cooldowns.insert(key, finding.last_ns);
    false
}

/// Hash of a detector's code version and parameters.
fn detector_hash(detector: &dyn Detector) -> [u8; 32] {
    let text = format!(
        "secmesh {} {} {}",
        env!("CARGO_PKG_VERSION"),
        detector.name(),
        detector.parameters()
    );
    sha256(text.as_bytes())
}

/// The levels at which the kernel must report for these settings.
pub fn kernel_levels(config: &DetectConfig) -> Levels {
    let level = |flood: &crate::config::FloodConfig| RateLevels {
        window_ns: u64::try_from(flood.window.as_nanos()).unwrap_or(u64::MAX),
        // A disabled detector's level is never reached.
        watch: if flood.enabled {
            flood.watch_threshold
        } else {
            u32::MAX
        },
        alert: if flood.enabled {
            flood.threshold
        } else {
            u32::MAX
        },
    };
    Levels {
        rates: [
            level(&config.syn_flood),
            level(&config.udp_flood),
            level(&config.icmp_flood),
        ],
        contact_window_ns: u64::try_from(config.port_scan.window.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// The subject of an alert on `source`.
pub fn subject_of(source: IpAddr) -> Prefix {
    Prefix::host(source)
}
