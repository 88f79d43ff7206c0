//! What came of taking a node over, what it is held against, and how it is told.

use std::net::IpAddr;

use serde::Serialize;

use crate::lab::outcome::Spread;
use crate::term::{Style, paint, table};

/// What came of it. Times are in milliseconds from the first packet that the node which was taken over sent to the
/// others; none for what did not happen.
#[derive(Debug, Clone, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a finding of its own, and a key in the JSON"
)]
pub struct Outcome {
    /// The attack's name.
    pub attack: &'static str,
    /// The node that was taken over.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
    /// How many nodes the mesh had.
    pub nodes: usize,
    /// How many of them had weight.
    pub voters: usize,
    /// How often members told the spare to wait before anybody was missing.
    pub told_to_wait: u64,
    /// Whether the spare was let in before anybody was missing.
    pub spare_came_early: bool,
    /// Whether the node blocked the attacker who took it over, before.
    pub was_attacked: bool,
    /// First alert of a healthy node.
    pub t_alert_ms: Option<f64>,
    /// Healthy nodes that raised an alert about it.
    pub alerts: usize,
    /// The certificate is complete on the first healthy node.
    pub t_certificate_ms: Option<f64>,
    /// And known on the last one.
    pub t_known_ms: Option<f64>,
    /// The block in the kernel of each healthy node, seen from outside.
    pub t_kernel_ms: Option<Spread>,
    /// Why it was cut off, in the agents' words.
    pub class: Option<String>,
    /// Weight of those who voted for it, that which was needed, and all weight; of the last healthy node's account.
    pub votes: Option<usize>,
    /// Healthy nodes that hold it for cut off and are not connected to it.
    pub cut_off_on: usize,
    /// Healthy nodes with the block in the kernel's map.
    pub in_kernel_on: usize,
    /// Healthy nodes whose kernel counted packets that were dropped for that reason.
    pub dropped_on: usize,
    /// Its attack's packets, from first to last.
    pub attack_packets: u64,
    /// Those seen behind XDP on a healthy node after each had the block.
    pub passed_packets: u64,
    /// Nodes that the cut-off node is still connected to, by its own account.
    pub still_connected: usize,
    /// The spare server is let in: its `join --standby` has ended well.
    pub t_joined_ms: Option<f64>,
    /// Its agent answers.
    pub t_running_ms: Option<f64>,
    /// Every healthy node is connected to it, and it to them.
    pub t_connected_ms: Option<f64>,
    /// Every healthy node and the spare print the same digest of roster, epoch, decisions and trust.
    pub t_agreed_ms: Option<f64>,
    /// That digest's roster, epoch and so on, as `secmesh mesh digest` prints it.
    pub digest: Option<String>,
    /// Nodes in the roster at the end: it has the cut-off one in it until the operator removes it.
    pub roster: usize,
    /// Whether the spare holds the node for cut off, too.
    pub spare_knows: bool,
    /// How often a healthy node was looked at, and how often it was not connected to another healthy one.
    pub looks: u64,
    /// See there.
    pub apart: u64,
    /// What is left of a lab that was started for this and removed; none if it was not.
    pub left_behind: Option<Vec<String>>,
    /// Whether all went well.
    pub ok: bool,
    /// What did not.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Of a node that nothing has happened to yet.
    pub(super) fn new(node: String, address: IpAddr, nodes: usize) -> Self {
        Self {
            attack: "node-takeover",
            node,
            address,
            nodes,
            voters: 0,
            told_to_wait: 0,
            spare_came_early: false,
            was_attacked: false,
            t_alert_ms: None,
            alerts: 0,
            t_certificate_ms: None,
            t_known_ms: None,
            t_kernel_ms: None,
            class: None,
            votes: None,
            cut_off_on: 0,
            in_kernel_on: 0,
            dropped_on: 0,
            attack_packets: 0,
            passed_packets: 0,
            still_connected: 0,
            t_joined_ms: None,
            t_running_ms: None,
            t_connected_ms: None,
            t_agreed_ms: None,
            digest: None,
            roster: 0,
            spare_knows: false,
            looks: 0,
            apart: 0,
            left_behind: None,
            ok: false,
            failures: Vec::new(),
        }
    }

    /// Healthy nodes: all but the one that was taken over.
    pub(super) fn healthy(&self) -> usize {
        self.nodes.saturating_sub(1)
    }

    /// Holds it against what has to be so.
    pub fn judge(&mut self) {
        self.failures = self.shortcomings();
        self.ok = self.failures.is_empty();
    }

    fn shortcomings(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut wanted = |holds: bool, what: String| {
            if !holds {
                missed.push(what);
            }
        };
        let (node, healthy) = (&self.node, self.healthy());
        let everywhere = |count: usize, what: &str| {
            (
                count == healthy,
                format!("{what} on {count} of {healthy} healthy nodes"),
            )
        };
        wanted(
            self.told_to_wait > 0,
            "no member told the spare to wait".to_owned(),
        );
        wanted(
            !self.spare_came_early,
            "the spare was let in before anybody was missing".to_owned(),
        );
        wanted(
            self.was_attacked,
            format!("{node} did not block who attacked it"),
        );
        wanted(
            self.t_alert_ms.is_some() && self.alerts >= 2,
            format!("{} nodes raised an alert, fewer than two", self.alerts),
        );
        wanted(
            self.t_certificate_ms.is_some() && self.votes.is_some_and(|votes| votes >= 2),
            format!("{node} was not cut off by votes"),
        );
        for (holds, what) in [
            everywhere(self.cut_off_on, "cut off in the mesh"),
            everywhere(self.in_kernel_on, "cut off in the kernel"),
            everywhere(self.dropped_on, "packets dropped for that"),
        ] {
            wanted(holds, what);
        }
        wanted(
            self.passed_packets == 0,
            format!(
                "{} packets of it got past XDP after that",
                self.passed_packets
            ),
        );
        wanted(
            self.still_connected == 0,
            format!("{node} is still connected to {}", self.still_connected),
        );
        for (time, what) in [
            (self.t_joined_ms, "the spare was not let in"),
            (self.t_running_ms, "the spare does not run"),
            (self.t_connected_ms, "the spare is not connected to all"),
            (self.t_agreed_ms, "the nodes do not agree at the end"),
        ] {
            wanted(time.is_some(), what.to_owned());
        }
        wanted(
            self.roster == self.nodes + 1,
            format!(
                "{} nodes in the roster, not {}",
                self.roster,
                self.nodes + 1
            ),
        );
        wanted(
            self.spare_knows,
            format!("the spare does not know that {node} is cut off"),
        );
        wanted(
            self.looks > 0 && self.apart == 0,
            format!(
                "healthy nodes were apart in {} of {} looks",
                self.apart, self.looks
            ),
        );
        wanted(
            self.left_behind.as_ref().is_none_or(Vec::is_empty),
            format!(
                "left behind: {}",
                self.left_behind
                    .iter()
                    .flatten()
                    .fold(String::new(), |text, item| text + " " + item,)
            ),
        );
        missed
    }

    /// The outcome as a time line and a verdict.
    pub fn text(&self) -> String {
        let title = format!(
            "{} ({}) of {} nodes taken over, {} of them with weight",
            self.node, self.address, self.nodes, self.voters
        );
        let verdict = if self.ok {
            paint(
                Style::Good,
                "ok: isolated by vote, replaced by itself, nobody else harmed",
            )
        } else {
            let missed: Vec<String> = self.failures.iter().map(|f| format!("\n  {f}")).collect();
            format!("{}{}", paint(Style::Bad, "not ok:"), missed.concat())
        };
        format!(
            "{}\n{}\n{}\n{verdict}\n",
            paint(Style::Strong, &title),
            table(&self.time_line()),
            table(&self.facts())
        )
    }

    fn time_line(&self) -> Vec<Vec<String>> {
        let node = &self.node;
        let time = |value: Option<f64>| match value {
            Some(ms) if ms >= 10_000.0 => format!("  {:.2} s", ms / 1_000.0),
            Some(ms) => format!("  {ms:.1} ms"),
            None => "  never".to_owned(),
        };
        let rows = [
            (Some(0.0), format!("first packet of {node} to the others")),
            (self.t_alert_ms, "a node raises the alert".to_owned()),
            (
                self.t_certificate_ms,
                format!("certificate complete: {node} is cut off"),
            ),
            (
                self.t_known_ms,
                "certificate known on the last healthy node".to_owned(),
            ),
            (
                self.t_kernel_ms.map(|kernel| kernel.median),
                format!("dropped in the kernel, middle of {} nodes", self.healthy()),
            ),
            (
                self.t_kernel_ms.map(|kernel| kernel.max),
                "dropped in the kernel of the last healthy node".to_owned(),
            ),
            (self.t_joined_ms, "the spare is let in".to_owned()),
            (self.t_running_ms, "its agent answers".to_owned()),
            (
                self.t_connected_ms,
                "connected to every healthy node".to_owned(),
            ),
            (
                self.t_agreed_ms,
                "the same roster, epoch, decisions and trust on all of them".to_owned(),
            ),
        ];
        rows.into_iter()
            .map(|(when, what)| vec![time(when), what])
            .collect()
    }

    fn facts(&self) -> Vec<Vec<String>> {
        let healthy = self.healthy();
        let of = |count: usize| format!("{count} of {healthy} healthy nodes");
        let mut facts = vec![
            (
                "spare told to wait before",
                format!("{} times", self.told_to_wait),
            ),
            ("alerts", of(self.alerts)),
            (
                "certificate",
                match (&self.class, self.votes) {
                    (Some(class), Some(votes)) => format!("{class}, {votes} votes in it"),
                    _ => "none".to_owned(),
                },
            ),
            ("cut off in the mesh", of(self.cut_off_on)),
            (
                "cut off in the kernel",
                format!(
                    "{}; drop_quarantine rose on {}",
                    of(self.in_kernel_on),
                    self.dropped_on
                ),
            ),
            (
                "attack",
                format!(
                    "{} packets; {} got past XDP after the last block",
                    self.attack_packets, self.passed_packets
                ),
            ),
            (
                "healthy nodes apart",
                format!("{} times in {} looks", self.apart, self.looks),
            ),
            (
                "roster at the end",
                format!("{} nodes, the one cut off among them", self.roster),
            ),
        ];
        if let Some(left) = &self.left_behind {
            let told = if left.is_empty() {
                "nothing".to_owned()
            } else {
                left.join(", ")
            };
            facts.push(("left behind", told));
        }
        facts
            .into_iter()
            .map(|(name, value)| vec![format!("  {name}"), value])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Outcome {
        Outcome {
            voters: 30,
            told_to_wait: 3,
            was_attacked: true,
            t_alert_ms: Some(300.0),
            alerts: 29,
            t_certificate_ms: Some(400.0),
            t_known_ms: Some(450.0),
            t_kernel_ms: Some(Spread {
                median: 420.0,
                max: 460.0,
            }),
            class: Some("hostile_node".to_owned()),
            votes: Some(21),
            cut_off_on: 29,
            in_kernel_on: 29,
            dropped_on: 29,
            attack_packets: 9_000,
            t_joined_ms: Some(4_000.0),
            t_running_ms: Some(4_500.0),
            t_connected_ms: Some(9_000.0),
            t_agreed_ms: Some(12_000.0),
            digest: Some("d".to_owned()),
            roster: 31,
            spare_knows: true,
            looks: 100,
            left_behind: Some(Vec::new()),
            ..Outcome::new("n4".to_owned(), IpAddr::from([10, 77, 0, 4]), 30)
        }
    }

    #[test]
    fn everything_can_be_missed() {
        let mut outcome = good();
        outcome.judge();
        assert_eq!(outcome.failures, Vec::<String>::new());
        assert!(outcome.ok && outcome.text().contains("ok: isolated by vote"));
        let spoilt: [fn(&mut Outcome); 19] = [
            |o| o.told_to_wait = 0,
            |o| o.spare_came_early = true,
            |o| o.was_attacked = false,
            |o| o.alerts = 1,
            |o| o.t_certificate_ms = None,
            |o| o.votes = None,
            |o| o.cut_off_on = 28,
            |o| o.in_kernel_on = 28,
            |o| o.dropped_on = 28,
            |o| o.passed_packets = 1,
            |o| o.still_connected = 1,
            |o| o.t_joined_ms = None,
            |o| o.t_running_ms = None,
            |o| o.t_connected_ms = None,
            |o| o.t_agreed_ms = None,
            |o| o.roster = 30,
            |o| o.spare_knows = false,
            |o| o.apart = 1,
            |o| o.left_behind = Some(vec!["smabcd-n1".to_owned()]),
        ];
        for (number, spoil) in spoilt.iter().enumerate() {
            let mut outcome = good();
            spoil(&mut outcome);
            outcome.judge();
            assert_eq!(
                outcome.failures.len(),
                1,
                "{number}: {:?}",
                outcome.failures
            );
            assert!(!outcome.ok && outcome.text().contains(&outcome.failures[0]));
        }
    }
}
