//! What came of an attack, and the bars it is held against.

use std::net::IpAddr;

use serde::Serialize;

/// The bars that an attack's outcome is held against.
pub mod bars {
    /// From the first packet to the first alert, at most.
    pub const ALERT_MS: f64 = 1_000.0;
    /// From the alert to the block in the kernel of every node, at most.
    pub const ALERT_TO_DROP_MS: f64 = 50.0;
    /// Share of attack packets that are dropped once every node has the block, at least.
    pub const DROP_SHARE: f64 = 0.99;
}

/// Middle and largest of a time over the nodes, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

/// The decision that came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecisionRef {
    /// Its id.
    pub id: String,
    /// Whom it is about.
    pub subject: String,
}

/// What came of an attack. Times are in milliseconds, from the attack's first packet unless it says
/// otherwise; none for what did not happen.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The attack's name.
    pub attack: String,
    /// Whether it came over IPv6.
    pub ipv6: bool,
    /// Whence it came.
    pub source: IpAddr,
    /// How many nodes the mesh has.
    pub nodes: usize,
    /// How many of them were hit from the start.
    pub targets: usize,
    /// First alert of any node.
    pub t_alert_ms: Option<f64>,
    /// First complete certificate.
    pub t_quorum_ms: Option<f64>,
    /// The block in the kernel map of each node, seen from outside. With one target: from the first
    /// packet to the second node; nodes that had it before count 0.
    pub t_drop_ms: Option<Spread>,
    /// From the alert to the last node's block. With one target: from the second node's alert.
    pub t_alert_to_drop_ms: Option<f64>,
    /// First dropped packet.
    pub first_drop_ms: Option<f64>,
    /// With one target: the hit node's own block.
    pub t_own_block_ms: Option<f64>,
    /// With one target: whether no other node had a block before the second node was touched.
    pub others_free_until_contact: Option<bool>,
    /// With one target: the first packet to the second node.
    pub t_contact_ms: Option<f64>,
    /// Attack packets after every node had the block.
    pub attack_packets: u64,
    /// How many of them met the block, by the kernel's own counts.
    pub dropped_packets: u64,
    /// How many of them were seen behind XDP on a node.
    pub passed_packets: u64,
    /// `dropped_packets / attack_packets`.
    pub drop_share: Option<f64>,
    /// Attack packets from first to last.
    pub all_attack_packets: u64,
    /// On how many nodes `bpftool` shows the block at the end.
    pub in_kernel_map: usize,
    /// The client's connections during the attack.
    pub legit_attempts: u64,
    /// How many of them were answered.
    pub legit_ok: u64,
    /// What the mesh decided.
    pub decision: Option<DecisionRef>,
    /// Whether every bar was met.
    pub ok: bool,
    /// Which were not, and what else was wrong.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Which bars were missed.
    pub(super) fn shortcomings(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut at_most = |what: &str, value: Option<f64>, bar: f64| match value {
            None => missed.push(format!("{what}: never")),
            Some(value) if value > bar => {
                missed.push(format!("{what}: {value:.1} ms, more than {bar:.0} ms"));
            }
            Some(_) => {}
        };
        at_most("first alert", self.t_alert_ms, bars::ALERT_MS);
        if self.targets == 1 {
            let own = self
                .t_own_block_ms
                .zip(self.t_alert_ms)
                .map(|(block, alert)| block - alert);
            at_most("own block after the alert", own, bars::ALERT_TO_DROP_MS);
        }
        at_most(
            "block on every node after the alert",
            self.t_alert_to_drop_ms,
            bars::ALERT_TO_DROP_MS,
        );
        if self.others_free_until_contact == Some(false) {
            missed.push("a node blocked before it was touched".to_owned());
        }
        if self.in_kernel_map < self.nodes {
            missed.push(format!(
                "bpftool shows the block on {} of {} nodes",
                self.in_kernel_map, self.nodes
            ));
        }
        if self.decision.is_none() {
            missed.push("no certified decision of the mesh".to_owned());
        }
        match self.drop_share {
            None => missed.push(
                "no attack packet after the block, so nothing shows that it drops".to_owned(),
            ),
            Some(share) if share < bars::DROP_SHARE => {
                missed.push(format!("{:.2} % dropped", share * 100.0));
            }
            Some(_) if self.passed_packets * 100 > self.attack_packets => {
                missed.push(format!(
                    "{} packets were seen behind XDP",
                    self.passed_packets
                ));
            }
            Some(_) => {}
        }
        if self.legit_attempts == 0 || self.legit_ok * 100 < self.legit_attempts * 99 {
            missed.push(format!(
                "the client was answered {} of {} times",
                self.legit_ok, self.legit_attempts
            ));
        }
        missed
    }
}

/// Milliseconds from one moment to another, below 0 if the other is earlier.
pub(super) fn ms(from_unix_us: u64, to_unix_us: u64) -> f64 {
    let distance = from_unix_us.abs_diff(to_unix_us) as f64 / 1_000.0;
    if to_unix_us < from_unix_us {
        -distance
    } else {
        distance
    }
}

/// Middle and largest of the times since `from`.
pub(super) fn spread(from: u64, times: &[u64]) -> Option<Spread> {
    // Whoever was faster than the moment we count from had nothing to wait for.
    let mut all: Vec<f64> = times.iter().map(|time| ms(from, *time).max(0.0)).collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    let median = if all.len().is_multiple_of(2) {
        f64::midpoint(*all.get(middle.checked_sub(1)?)?, *all.get(middle)?)
    } else {
        *all.get(middle)?
    };
    Some(Spread {
        median,
        max: *all.last()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Outcome {
        Outcome {
            attack: "syn-flood".to_owned(),
            ipv6: false,
            source: IpAddr::from([10, 77, 0, 200]),
            nodes: 4,
            targets: 2,
            t_alert_ms: Some(30.0),
            t_quorum_ms: Some(40.0),
            t_drop_ms: Some(Spread {
                median: 41.0,
                max: 45.0,
            }),
            t_alert_to_drop_ms: Some(15.0),
            first_drop_ms: Some(32.0),
            t_own_block_ms: None,
            others_free_until_contact: None,
            t_contact_ms: None,
            attack_packets: 10_000,
            dropped_packets: 9_990,
            passed_packets: 0,
            drop_share: Some(0.999),
            all_attack_packets: 12_000,
            in_kernel_map: 4,
            legit_attempts: 150,
            legit_ok: 150,
            decision: Some(DecisionRef {
                id: "d".to_owned(),
                subject: "10.77.0.200".to_owned(),
            }),
            ok: true,
            failures: vec![],
        }
    }

    #[test]
    fn each_bar_can_be_missed() {
        assert_eq!(good().shortcomings(), Vec::<String>::new());
        let spoilt: [fn(&mut Outcome); 9] = [
            |o| o.t_alert_ms = Some(1_000.5),
            |o| o.t_alert_ms = None,
            |o| o.t_alert_to_drop_ms = Some(50.1),
            |o| o.drop_share = Some(0.98),
            |o| o.drop_share = None,
            |o| o.passed_packets = 101,
            |o| o.legit_ok = 148,
            |o| o.in_kernel_map = 3,
            |o| o.decision = None,
        ];
        for (number, spoil) in spoilt.iter().enumerate() {
            let mut outcome = good();
            spoil(&mut outcome);
            assert_eq!(outcome.shortcomings().len(), 1, "bar {number}");
        }
    }

    #[test]
    fn with_one_target_the_others_must_wait() {
        let mut outcome = Outcome {
            targets: 1,
            t_own_block_ms: Some(31.0),
            others_free_until_contact: Some(true),
            ..good()
        };
        assert_eq!(outcome.shortcomings(), Vec::<String>::new());
        outcome.others_free_until_contact = Some(false);
        assert_eq!(outcome.shortcomings().len(), 1);
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between() {
        assert_eq!(
            spread(1_000, &[2_000, 5_000, 3_000, 4_000]),
            Some(Spread {
                median: 2.5,
                max: 4.0
            })
        );
        assert_eq!(
            spread(1_000, &[0, 2_000, 3_000]),
            Some(Spread {
                median: 1.0,
                max: 2.0
            })
        );
        assert_eq!(spread(1, &[]), None);
    }

    #[test]
    fn a_time_before_is_negative() {
        assert!((ms(2_000, 1_000) + 1.0).abs() < 1e-9);
    }
}
