//! Alerts: who, what, how sure, and the figures that say so.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    addr::Prefix,
    mesh::{crypto::sha256, ids::to_hex, vote::AttackClass},
};

/// How an observer's clock relates to unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeBase {
    /// Unix time in µs when the observer's clock was at zero.
    pub origin_unix_us: u64,
}

impl TimeBase {
    /// The clock counts unix time already (captures).
    pub const UNIX: Self = Self { origin_unix_us: 0 };

    /// From one reading of both clocks.
    pub const fn from_reading(unix_us: u64, clock_ns: u64) -> Self {
        Self {
            origin_unix_us: unix_us.saturating_sub(clock_ns / 1000),
        }
    }

    /// A clock reading as unix time, µs.
    pub const fn unix_us(self, clock_ns: u64) -> u64 {
        self.origin_unix_us.saturating_add(clock_ns / 1000)
    }
}

/// What a detector found; times on the observer's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The attack.
    pub class: AttackClass,
    /// Who.
    pub source: IpAddr,
    /// 0 to 1.
    pub confidence: f64,
    /// First packet of the run that led here, ns.
    pub first_ns: u64,
    /// Last packet of it, ns.
    pub last_ns: u64,
    /// What was measured.
    pub features: BTreeMap<&'static str, f64>,
    /// What it was measured against.
    pub thresholds: BTreeMap<&'static str, f64>,
}

/// A finding as it is shown, recorded and voted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Its id: hex, from subject, class and time.
    pub id: String,
    /// Who.
    pub subject: Prefix,
    /// The attack.
    pub class: AttackClass,
    /// 0 to 1; 0.5 is the threshold itself.
    pub confidence: f64,
    /// Whether a peer's report had lowered the threshold.
    pub watched: bool,
    /// When the alert was raised, unix µs.
    pub raised_unix_us: u64,
    /// First packet, unix µs.
    pub first_unix_us: u64,
    /// Last packet, unix µs.
    pub last_unix_us: u64,
    /// Name of the detector.
    pub detector: String,
    /// Hash of its code version and parameters, hex.
    pub detector_hash: String,
    /// MITRE ATT&CK technique.
    pub attack: String,
    /// What was measured.
    pub features: BTreeMap<String, f64>,
    /// What it was measured against.
    pub thresholds: BTreeMap<String, f64>,
}

/// How sure to be of a count against its threshold: 0.5 at the threshold, towards 1 far beyond.
pub(super) fn confidence(measured: f64, threshold: f64) -> f64 {
    if measured <= 0.0 {
        return 0.0;
    }
    (1.0 - 0.5 * threshold / measured).clamp(0.0, 0.99)
}

/// The ATT&CK technique of a class.
///
/// T1499.001 endpoint denial of service by OS exhaustion, T1498.001 direct network flood, T1595.001
/// active scanning; <https://attack.mitre.org>, version 17.
pub fn attack_id(class: AttackClass) -> &'static str {
    match class {
        AttackClass::SynFlood => "T1499.001",
        AttackClass::UdpFlood | AttackClass::IcmpFlood => "T1498.001",
        AttackClass::PortScan => "T1595.001",
        AttackClass::Network
        | AttackClass::Misconduct
        | AttackClass::HostileNode
        | AttackClass::MeshAbuse
        | AttackClass::Manual => "",
    }
}

impl Alert {
    pub(super) fn new(
        finding: Finding,
        detector: &str,
        detector_hash: &[u8; 32],
        watched: bool,
        time: TimeBase,
    ) -> Self {
        let Finding {
            class,
            source,
            confidence,
            first_ns,
            last_ns,
            features,
            thresholds,
        } = finding;
        let owned = |m: BTreeMap<&'static str, f64>| {
            m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
        };
        let subject = super::subject_of(source);
        let raised_unix_us = time.unix_us(last_ns);
        let hash = sha256(format!("{subject} {class} {raised_unix_us}").as_bytes());
        let mut id = to_hex(&hash);
        id.truncate(16);
        Self {
            id,
            subject,
            class,
            confidence: (confidence * 1000.0).round() / 1000.0,
            watched,
            raised_unix_us,
            first_unix_us: time.unix_us(first_ns),
            last_unix_us: raised_unix_us,
            detector: detector.to_owned(),
            detector_hash: to_hex(detector_hash),
            attack: attack_id(class).to_owned(),
            features: owned(features),
            thresholds: owned(thresholds),
        }
    }

    /// Hash over everything the alert says; what a vote binds itself to.
    pub fn evidence_root(&self) -> [u8; 32] {
        // Field order is fixed by the struct and BTreeMap sorts keys, so equal alerts hash equal.
        serde_json::to_vec(self).map_or([0; 32], |bytes| sha256(&bytes))
    }

    /// [`Alert::detector_hash`] as bytes.
    pub fn detector_hash_bytes(&self) -> [u8; 32] {
        crate::mesh::ids::from_hex(&self.detector_hash).unwrap_or([0; 32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_is_one_half_at_the_threshold_and_grows() {
        assert!((confidence(200.0, 200.0) - 0.5).abs() < 1e-9);
        assert!(confidence(400.0, 200.0) > confidence(300.0, 200.0));
        assert!(confidence(1e9, 200.0) <= 0.99);
        assert!(confidence(0.0, 200.0).abs() < 1e-9);
    }

    #[test]
    fn clock_readings_become_unix_time() {
        let base = TimeBase::from_reading(1_000_000_000, 5_000_000);
        assert_eq!(base.unix_us(5_000_000), 1_000_000_000);
        assert_eq!(base.unix_us(7_000_000), 1_000_002_000);
        assert_eq!(TimeBase::UNIX.unix_us(3_000), 3);
    }
}
