//! Port scans: one source tries many ports of one host (vertical) or one port of many hosts
//! (horizontal), and nothing listens there.
//!
//! The kernel reports each (host, port) that a source had not tried before. A port with a socket behind
//! it does not count: whoever uses services is no scanner, and a lying peer cannot make one of them. Nor
//! does one that nobody can judge, on a host that this one only forwards to: a router would take every
//! busy client for a scanner.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{BoundedMap, Detector, Finding, alert::confidence};
use crate::{
    mesh::vote::AttackClass,
    sense::observation::{Observation, What},
};

/// Sources remembered.
const MAX_SOURCES: usize = 16_384;
/// Contacts remembered per source; more than any sensible threshold.
const MAX_CONTACTS: usize = 512;

/// Settings of the scan detector.
#[derive(Debug, Clone, Copy)]
pub struct ScanSettings {
    /// How long a contact counts.
    pub window: Duration,
    /// Distinct closed ports of one host that are a scan.
    pub ports: u32,
    /// Distinct hosts tried on one closed port that are a scan.
    pub hosts: u32,
    /// Distinct closed (host, port) pairs that are a scan by a source that a peer reported.
    pub watch_threshold: u32,
    /// Shortest time between two alerts on one source.
    pub cooldown: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Target {
    host: IpAddr,
    port: u16,
    proto: u8,
}

#[derive(Debug, Default)]
struct Source {
    contacts: VecDeque<(u64, Target)>,
    known: HashSet<Target>,
}

impl Source {
    fn forget_before(&mut self, ns: u64) {
        while let Some((ts, target)) = self.contacts.front().copied() {
            if ts >= ns && self.contacts.len() <= MAX_CONTACTS {
                break;
            }
            self.contacts.pop_front();
            self.known.remove(&target);
        }
    }

    /// (most ports on one host, most hosts on one port)
    fn spread(&self) -> (u32, u32) {
        let mut ports: HashMap<IpAddr, u32> = HashMap::new();
        let mut hosts: HashMap<(u16, u8), u32> = HashMap::new();
        for (_, target) in &self.contacts {
            *ports.entry(target.host).or_default() += 1;
            *hosts.entry((target.port, target.proto)).or_default() += 1;
        }
        let most = |n: Option<&u32>| n.copied().unwrap_or(0);
        (most(ports.values().max()), most(hosts.values().max()))
    }
}

/// Finds vertical and horizontal scans.
pub struct ScanDetector {
    settings: ScanSettings,
    sources: BoundedMap<IpAddr, Source>,
}

impl ScanDetector {
    /// A detector with these settings.
    pub fn new(settings: ScanSettings) -> Self {
        Self {
            settings,
            sources: BoundedMap::new(MAX_SOURCES),
        }
    }

    fn judge(&self, source: IpAddr, watched: bool) -> Option<Finding> {
        let state = self.sources.get(&source)?;
        let total = u32::try_from(state.contacts.len()).unwrap_or(u32::MAX);
        // Counting is linear in the contacts, so first ask whether any threshold can be reached.
        let s = &self.settings;
        let least = if watched {
            s.watch_threshold
        } else {
            s.ports.min(s.hosts)
        };
        if total < least {
            return None;
        }
        let (ports, hosts) = state.spread();
        let (measured, threshold) = if ports >= s.ports {
            (ports, s.ports)
        } else if hosts >= s.hosts {
            (hosts, s.hosts)
        } else if watched {
            (total, s.watch_threshold)
        } else {
            return None;
        };
        let (first, _) = *state.contacts.front()?;
        let (last, _) = *state.contacts.back()?;
        Some(Finding {
            class: AttackClass::PortScan,
            source,
            confidence: confidence(f64::from(measured), f64::from(threshold)),
            first_ns: first,
            last_ns: last,
            features: BTreeMap::from([
                ("closed_ports_on_one_host", f64::from(ports)),
                ("hosts_on_one_closed_port", f64::from(hosts)),
                ("closed_contacts", f64::from(total)),
            ]),
            thresholds: BTreeMap::from([
                ("closed_ports_on_one_host", f64::from(s.ports)),
                ("hosts_on_one_closed_port", f64::from(s.hosts)),
                ("closed_contacts_when_watched", f64::from(s.watch_threshold)),
                ("window_seconds", s.window.as_secs_f64()),
            ]),
        })
    }
}

impl Detector for ScanDetector {
    fn name(&self) -> &'static str {
        AttackClass::PortScan.name()
    }

    fn parameters(&self) -> String {
        let s = &self.settings;
        format!(
            "window={}ns ports={} hosts={} watch_threshold={}",
            s.window.as_nanos(),
            s.ports,
            s.hosts,
            s.watch_threshold
        )
    }

    fn cooldown(&self) -> Duration {
        self.settings.cooldown
    }

    fn observe(&mut self, observation: &Observation, watched: bool) -> Option<Finding> {
        let What::Contact {
            dst,
            port,
            proto,
            open,
        } = observation.what
        else {
            return None;
        };
        if open != Some(false) {
            return None;
        }
        let window = u64::try_from(self.settings.window.as_nanos()).unwrap_or(u64::MAX);
        let target = Target {
            host: dst,
            port,
            proto,
        };
        let state = self
            .sources
            .get_or_insert_with(observation.src, Source::default);
        state.forget_before(observation.ts_ns.saturating_sub(window));
        if !state.known.insert(target) {
            return None;
        }
        state.contacts.push_back((observation.ts_ns, target));
        self.judge(observation.src, watched)
    }

    fn recheck(&mut self, source: IpAddr, now_ns: u64) -> Option<Finding> {
        let window = u64::try_from(self.settings.window.as_nanos()).unwrap_or(u64::MAX);
        self.sources
            .get_mut(&source)?
            .forget_before(now_ns.saturating_sub(window));
        self.judge(source, true)
    }

    fn forgotten(&self) -> u64 {
        self.sources.evicted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector() -> ScanDetector {
        ScanDetector::new(ScanSettings {
            window: Duration::from_secs(10),
            ports: 20,
            hosts: 10,
            watch_threshold: 3,
            cooldown: Duration::from_secs(10),
        })
    }

    fn contact(ts_s: u64, host: u8, port: u16, open: Option<bool>) -> Observation {
        Observation {
            ts_ns: ts_s * 1_000_000_000,
            first_ns: 0,
            src: "192.0.2.1".parse().unwrap(),
            packets: 1,
            what: What::Contact {
                dst: IpAddr::from([10, 0, 0, host]),
                port,
                proto: 6,
                open,
            },
        }
    }

    #[test]
    fn many_closed_ports_of_one_host_are_a_vertical_scan() {
        let mut d = detector();
        for port in 1..20 {
            assert!(
                d.observe(&contact(1, 1, port, Some(false)), false)
                    .is_none()
            );
        }
        let found = d.observe(&contact(1, 1, 20, Some(false)), false).unwrap();
        assert!((found.features["closed_ports_on_one_host"] - 20.0).abs() < 0.1);
    }

    #[test]
    fn one_closed_port_on_many_hosts_is_a_horizontal_scan() {
        let mut d = detector();
        for host in 1..10 {
            assert!(
                d.observe(&contact(1, host, 445, Some(false)), false)
                    .is_none()
            );
        }
        assert!(
            d.observe(&contact(1, 10, 445, Some(false)), false)
                .is_some()
        );
    }

    #[test]
    fn open_ports_and_repeats_do_not_count() {
        let mut d = detector();
        for port in 1..200 {
            assert!(d.observe(&contact(1, 1, port, Some(true)), true).is_none());
            assert!(d.observe(&contact(1, 2, port, None), true).is_none());
        }
        for _ in 0..200 {
            assert!(d.observe(&contact(1, 1, 7, Some(false)), false).is_none());
        }
    }

    #[test]
    fn contacts_age_out_of_the_window() {
        let mut d = detector();
        for port in 1..100 {
            let ts = u64::from(port);
            assert!(
                d.observe(&contact(ts, 1, port, Some(false)), false)
                    .is_none()
            );
        }
    }

    #[test]
    fn a_watched_source_is_judged_by_what_it_did_before() {
        let mut d = detector();
        let source = "192.0.2.1".parse().unwrap();
        for port in 1..3 {
            d.observe(&contact(1, 1, port, Some(false)), false);
        }
        assert!(d.recheck(source, 2_000_000_000).is_none());
        assert!(d.observe(&contact(2, 1, 3, Some(false)), true).is_some());
        assert!(d.recheck(source, 3_000_000_000).is_some());
        assert!(d.recheck(source, 60_000_000_000).is_none());
    }
}
