//! The agent's state as metrics. Names are an interface: docs/operations.md lists them.

use std::collections::BTreeMap;

use secmesh_common::{
    counters::{Counter, Counters},
    reason::Reason,
};
use tracing::error;

use super::core::Agent;
use crate::{
    api::types::Origin,
    config::Mode,
    mesh::{engine::QuorumLevel, vote::AttackClass},
    metrics::{Kind, Text},
};

/// Every state of a quorum, so that each is a series of its own and none is ever missing.
const LEVELS: [QuorumLevel; 5] = [
    QuorumLevel::Full,
    QuorumLevel::Degraded,
    QuorumLevel::Isolated,
    QuorumLevel::Single,
    QuorumLevel::NotBft,
];

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn kernel(text: &mut Text, counters: &Counters) {
    text.family(
        "secmesh_packets_total",
        Kind::Counter,
        "Packets by what the kernel program made of them, since its maps were made. Reasons overlap: malformed packets are also counted by what is wrong with them.",
    );
    let (mut events, mut others) = (Vec::new(), Vec::new());
    for counter in Counter::ALL {
        let (name, value) = (counter.name(), counters.get(*counter));
        if let Some(outcome) = name.strip_prefix("events_") {
            events.push((outcome, value));
        } else if name.starts_with("flow_") || name.starts_with("capture") {
            others.push((name, value));
        } else if *counter != Counter::RxBytes {
            text.sample(&[("reason", name)], value);
        }
    }
    let sum = |of: fn(Reason) -> Counter| {
        Reason::ALL
            .iter()
            .map(|r| counters.get(of(*r)))
            .fold(0, u64::wrapping_add)
    };
    text.family(
        "secmesh_dropped_packets_total",
        Kind::Counter,
        "Packets dropped, for whatever reason.",
    )
    .sample(&[], sum(Reason::dropped))
    .family(
        "secmesh_would_drop_packets_total",
        Kind::Counter,
        "Packets that monitor mode passed and enforce mode would have dropped.",
    )
    .sample(&[], sum(Reason::would_drop))
    .family(
        "secmesh_received_bytes_total",
        Kind::Counter,
        "Bytes that the kernel program saw.",
    )
    .sample(&[], counters.get(Counter::RxBytes))
    .family(
        "secmesh_kernel_events_total",
        Kind::Counter,
        "Events of the kernel program to the agent, by what became of them.",
    );
    for (outcome, value) in events {
        text.sample(&[("outcome", outcome)], value);
    }
    text.family(
        "secmesh_kernel_records_total",
        Kind::Counter,
        "Flow records and captured packets of the kernel program.",
    );
    for (name, value) in others {
        text.sample(&[("what", name)], value);
    }
}

impl Agent {
    /// All metrics, as Prometheus reads them.
    pub(super) fn metrics(&self) -> String {
        let mut text = Text::default();
        let name = self.identity.name().to_string();
        text.family(
            "secmesh_build_info",
            Kind::Gauge,
            "Always 1; which agent this is.",
        )
        .sample(
            &[("version", env!("CARGO_PKG_VERSION")), ("node", &name)],
            1,
        )
        .family(
            "secmesh_uptime_seconds",
            Kind::Gauge,
            "Seconds since the agent started.",
        )
        .sample(
            &[],
            self.clock.mono_ns().saturating_sub(self.started_ns) / 1_000_000_000,
        )
        .family(
            "secmesh_enforcing",
            Kind::Gauge,
            "1 in enforce mode, 0 in monitor mode.",
        )
        .sample(&[], u64::from(self.dataplane.mode() == Mode::Enforce))
        .family(
            "secmesh_trial_seconds",
            Kind::Gauge,
            "Seconds until enforce mode ends unless it is confirmed; 0 without a trial.",
        )
        .sample(&[], self.pending_confirm().map_or(0, |p| p.seconds_left));
        text.family(
            "secmesh_interfaces",
            Kind::Gauge,
            "Interfaces that should be protected: those that are (attached), and those that are not (waiting).",
        )
        .sample(&[("state", "attached")], count(self.dataplane.attached().len()))
        .sample(&[("state", "waiting")], count(self.interfaces.waiting().len()));
        match self.counters.read() {
            Ok(counters) => kernel(&mut text, &counters),
            Err(error) => error!(%error, "reading the kernel's counters"),
        }
        self.block_metrics(&mut text);
        self.mesh_metrics(&mut text);
        self.own_metrics(&mut text);
        text.finish()
    }

    fn block_metrics(&self, text: &mut Text) {
        let (desired, enforced, _) = self.blocks.totals(0);
        let found = self.reconciler.totals();
        text.family(
            "secmesh_blocks",
            Kind::Gauge,
            "Prefixes that should be blocked (desired), and those of them that the kernel has (enforced).",
        )
        .sample(&[("state", "desired")], count(desired))
        .sample(&[("state", "enforced")], count(enforced))
        .family(
            "secmesh_reconcile_total",
            Kind::Counter,
            "Differences found between what should be in the kernel's tables and what is: added and removed ones were put right.",
        );
        let mut tables = self.reconciled_tables();
        tables.insert("blocks".to_owned(), found);
        for (table, found) in &tables {
            for (outcome, n) in [
                ("added", found.added),
                ("removed", found.removed),
                ("failed", found.failed),
            ] {
                text.sample(&[("table", table), ("outcome", outcome)], n);
            }
        }
        text.family(
            "secmesh_reconcile_runs_total",
            Kind::Counter,
            "Comparisons of the kernel's tables with what should be in them that came to their end.",
        );
        for (table, found) in &tables {
            text.sample(&[("table", table)], found.runs);
        }
        text.family(
            "secmesh_decisions",
            Kind::Gauge,
            "Decisions in force, by whose they are.",
        );
        let active = self.book.active_by_origin();
        for (origin, name) in [
            (Origin::Quorum, "quorum"),
            (Origin::Unilateral, "unilateral"),
            (Origin::Operator, "operator"),
            (Origin::Quarantine, "quarantine"),
        ] {
            let n = active.get(&origin).copied().unwrap_or(0);
            text.sample(&[("origin", name)], count(n));
        }
    }

    fn mesh_metrics(&self, text: &mut Text) {
        let quorum = self.engine.quorum();
        text.family(
            "secmesh_quorum_state",
            Kind::Gauge,
            "1 for the state that the quorum is in, 0 for the others.",
        );
        for level in LEVELS {
            text.sample(
                &[("state", &level.to_string())],
                u64::from(level == quorum.state),
            );
        }
        text.family(
            "secmesh_quorum_weight",
            Kind::Gauge,
            "Weight in reach, of all nodes, and needed for a decision (t_lo: class 1, t_hi: class 2).",
        )
        .sample(&[("kind", "reachable")], quorum.reachable_weight)
        .sample(&[("kind", "total")], quorum.total_weight)
        .sample(&[("kind", "t_lo")], quorum.t_lo)
        .sample(&[("kind", "t_hi")], quorum.t_hi)
        .sample(&[("kind", "needed")], quorum.needed)
        .sample(&[("kind", "quarantined")], quorum.quarantined_weight)
        .family(
            "secmesh_quarantined_nodes",
            Kind::Gauge,
            "Nodes that are cut off.",
        )
        .sample(&[], count(self.engine.quarantined().count()))
        .family(
            "secmesh_peers",
            Kind::Gauge,
            "Other nodes of the mesh: members, connected ones, and members by whether they are there (alive, suspect, down).",
        )
        .sample(
            &[("state", "member")],
            count(self.engine.roster().len().saturating_sub(1)),
        )
        .sample(&[("state", "connected")], count(self.engine.connected().len()));
        for (state, n) in self.liveness_counts() {
            text.sample(&[("state", state)], n);
        }
        text.family(
            "secmesh_epoch",
            Kind::Gauge,
            "Number of the roster's epoch.",
        )
        .sample(&[], quorum.epoch);
    }

    fn own_metrics(&self, text: &mut Text) {
        text.family(
            "secmesh_alerts_total",
            Kind::Counter,
            "Alerts of this node's detectors, by class.",
        );
        for class in AttackClass::ALL {
            let n = self.tally.alerts_by_class.get(class).copied().unwrap_or(0);
            text.sample(&[("class", class.name())], n);
        }
        text.family(
            "secmesh_watched_sources",
            Kind::Gauge,
            "Sources that peers reported and this node watches.",
        )
        .sample(&[], count(self.watched.len()));
        let ledger = self.ledger.status();
        text.family(
            "secmesh_ledger_entries",
            Kind::Gauge,
            "Entries in the ledger.",
        )
        .sample(&[], ledger.entries)
        .family(
            "secmesh_ledger_dropped_total",
            Kind::Counter,
            "Entries that did not get into the ledger.",
        )
        .sample(&[], ledger.dropped)
        .family(
            "secmesh_ledger_syncs_total",
            Kind::Counter,
            "Times that the ledger waited for the disk.",
        )
        .sample(&[], ledger.syncs)
        .family(
            "secmesh_controller_total",
            Kind::Counter,
            "The agent's other counters by name, as `secmesh status --all` shows them.",
        );
        let counters: BTreeMap<String, u64> = self.controller_counters();
        for (name, value) in &counters {
            text.sample(&[("counter", name)], *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::parse;

    #[test]
    fn every_kernel_counter_has_a_series_and_drops_are_summed() {
        let mut counters = Counters::default();
        *counters.get_mut(Counter::DropExact) = 3;
        *counters.get_mut(Counter::DropMalformed) = 4;
        *counters.get_mut(Counter::WouldDropPrefix) = 5;
        let mut text = Text::default();
        kernel(&mut text, &counters);
        let samples = parse(&text.finish()).unwrap();
        let value = |family: &str| samples[&(family.to_owned(), BTreeMap::new())];
        assert_eq!(value("secmesh_dropped_packets_total"), 7);
        assert_eq!(value("secmesh_would_drop_packets_total"), 5);
        // All of them, and the two sums.
        assert_eq!(samples.len(), Counter::ALL.len() + 2);
    }
}
