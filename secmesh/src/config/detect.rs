//! `[detect]`: what counts as an attack. All numbers are per source address.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::check::Checker;
use super::values;

const FLOOD_WINDOW: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
const SCAN_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);
const COOLDOWN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
const EVIDENCE_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);
const FLOOD_THRESHOLD: RangeInclusive<u32> = 1..=10_000_000;
/// There are 65535 ports.
const SCAN_THRESHOLD: RangeInclusive<u32> = 2..=65_535;
const SCAN_HOSTS: RangeInclusive<u32> = 2..=65_536;

/// `[detect]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectConfig {
    /// How long what this node saw itself counts as its own evidence in a vote: 1 s to 10 min.
    /// Default 60 s.
    #[serde(with = "values::duration")]
    pub evidence_ttl: Duration,
    /// TCP connection attempts. Default: 200 in 1 s.
    #[serde(deserialize_with = "syn_flood")]
    pub syn_flood: FloodConfig,
    /// UDP packets. Default: 2000 in 1 s.
    #[serde(deserialize_with = "udp_flood")]
    pub udp_flood: FloodConfig,
    /// ICMP packets of both families. Default: 200 in 1 s.
    #[serde(deserialize_with = "icmp_flood")]
    pub icmp_flood: FloodConfig,
    /// Connection attempts to what is not there. Default: 20 ports, or 10 hosts, in 10 s.
    pub port_scan: ScanConfig,
}

impl Default for DetectConfig {
    fn default() -> Self {
        Self {
            evidence_ttl: Duration::from_mins(1),
            syn_flood: FloodConfig::new(200, 16),
            udp_flood: FloodConfig::new(2000, 100),
            icmp_flood: FloodConfig::new(200, 20),
            port_scan: ScanConfig::default(),
        }
    }
}

/// A flood detector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FloodConfig {
    /// Whether it is on.
    pub enabled: bool,
    /// The time that packets are counted over: 100 ms to 1 min. Default 1 s.
    #[serde(with = "values::duration")]
    pub window: Duration,
    /// Packets from one source in one window that are an attack: 1 to 10000000.
    pub threshold: u32,
    /// Packets that suffice while another node reports the source: 1 to `threshold`.
    pub watch_threshold: u32,
    /// After an alert, the time until the same source can raise the next one: 1 s to 1 h. Default
    /// 10 s.
    #[serde(with = "values::duration")]
    pub cooldown: Duration,
}

/// The port scan detector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScanConfig {
    /// Whether it is on.
    pub enabled: bool,
    /// The time that is looked back: 1 s to 10 min. Default 10 s.
    #[serde(with = "values::duration")]
    pub window: Duration,
    /// Distinct closed ports on one host that are a scan (vertical): 2 to 65535. Default 20.
    #[serde(deserialize_with = "values::count")]
    pub threshold: u32,
    /// Distinct hosts on one port that are a scan (horizontal): 2 to 65536. Default 10.
    #[serde(deserialize_with = "values::count")]
    pub hosts: u32,
    /// Ports or hosts that suffice while another node reports the source: 1 to the smaller of
    /// `threshold` and `hosts`. Default 3.
    #[serde(deserialize_with = "values::count")]
    pub watch_threshold: u32,
    /// After an alert, the time until the same source can raise the next one: 1 s to 1 h. Default
    /// 10 s.
    #[serde(with = "values::duration")]
    pub cooldown: Duration,
}

impl Default for ScanConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(10),
            threshold: 20,
            hosts: 10,
            watch_threshold: 3,
            cooldown: Duration::from_secs(10),
        }
    }
}

impl FloodConfig {
    const fn new(threshold: u32, watch_threshold: u32) -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(1),
            threshold,
            watch_threshold,
            cooldown: Duration::from_secs(10),
        }
    }

    fn check(&self, check: &mut Checker) {
        check.flag("enabled");
        check.duration("window", self.window, FLOOD_WINDOW);
        check.count("threshold", self.threshold, FLOOD_THRESHOLD);
        check.count("watch_threshold", self.watch_threshold, FLOOD_THRESHOLD);
        check.not_above(
            ("watch_threshold", self.watch_threshold),
            ("threshold", self.threshold),
        );
        check.duration("cooldown", self.cooldown, COOLDOWN);
    }
}

impl ScanConfig {
    fn check(&self, check: &mut Checker) {
        check.flag("enabled");
        check.duration("window", self.window, SCAN_WINDOW);
        check.count("threshold", self.threshold, SCAN_THRESHOLD);
        check.count("hosts", self.hosts, SCAN_HOSTS);
        check.count(
            "watch_threshold",
            self.watch_threshold,
            1..=*SCAN_THRESHOLD.end(),
        );
        check.not_above(
            ("watch_threshold", self.watch_threshold),
            ("threshold", self.threshold),
        );
        check.not_above(
            ("watch_threshold", self.watch_threshold),
            ("hosts", self.hosts),
        );
        check.duration("cooldown", self.cooldown, COOLDOWN);
    }
}

impl DetectConfig {
    pub(super) fn check(&self, check: &mut Checker) {
        check.duration("evidence_ttl", self.evidence_ttl, EVIDENCE_TTL);
        check.section("syn_flood", |check| self.syn_flood.check(check));
        check.section("udp_flood", |check| self.udp_flood.check(check));
        check.section("icmp_flood", |check| self.icmp_flood.check(check));
        check.section("port_scan", |check| self.port_scan.check(check));
    }
}

/// A flood section as it stands in the file. The three floods have different defaults, so what is
/// left out is filled in from the detector's own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FloodSection {
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "values::duration::deserialize_some")]
    window: Option<Duration>,
    #[serde(default, deserialize_with = "values::some_count")]
    threshold: Option<u32>,
    #[serde(default, deserialize_with = "values::some_count")]
    watch_threshold: Option<u32>,
    #[serde(default, deserialize_with = "values::duration::deserialize_some")]
    cooldown: Option<Duration>,
}

fn flood<'de, D: Deserializer<'de>>(
    from: D,
    default: &FloodConfig,
) -> Result<FloodConfig, D::Error> {
    let FloodSection {
        enabled,
        window,
        threshold,
        watch_threshold,
        cooldown,
    } = FloodSection::deserialize(from)?;
    Ok(FloodConfig {
        enabled: enabled.unwrap_or(default.enabled),
        window: window.unwrap_or(default.window),
        threshold: threshold.unwrap_or(default.threshold),
        watch_threshold: watch_threshold.unwrap_or(default.watch_threshold),
        cooldown: cooldown.unwrap_or(default.cooldown),
    })
}

fn syn_flood<'de, D: Deserializer<'de>>(from: D) -> Result<FloodConfig, D::Error> {
    flood(from, &DetectConfig::default().syn_flood)
}

fn udp_flood<'de, D: Deserializer<'de>>(from: D) -> Result<FloodConfig, D::Error> {
    flood(from, &DetectConfig::default().udp_flood)
}

fn icmp_flood<'de, D: Deserializer<'de>>(from: D) -> Result<FloodConfig, D::Error> {
    flood(from, &DetectConfig::default().icmp_flood)
}
