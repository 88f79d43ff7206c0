//! An attack's outcome, for people.

use super::outcome::Outcome;
use crate::term::{Style, paint, table};

/// The outcome as a time line and a verdict.
pub fn text(outcome: &Outcome) -> String {
    let family = if outcome.ipv6 { "IPv6" } else { "IPv4" };
    let title = format!(
        "{} over {family} from {}, {} of {} nodes hit",
        outcome.attack, outcome.source, outcome.targets, outcome.nodes
    );
    let verdict = if outcome.ok {
        paint(Style::Good, "ok: every bar met")
    } else {
        let missed: Vec<String> = outcome
            .failures
            .iter()
            .map(|failure| format!("\n  {failure}"))
            .collect();
        format!("{}{}", paint(Style::Bad, "not ok:"), missed.concat())
    };
    format!(
        "{}\n{}\n{}\n{verdict}\n",
        paint(Style::Strong, &title),
        table(&time_line(outcome)),
        table(&facts(outcome))
    )
}

fn time(value: Option<f64>) -> String {
    value.map_or_else(|| "never".to_owned(), |ms| format!("{ms:.1} ms"))
}

fn time_line(outcome: &Outcome) -> Vec<Vec<String>> {
    let row = |when: String, what: String| vec![format!("  {when}"), what];
    let mut rows = vec![row(
        "0.0 ms".to_owned(),
        "first packet of the attack".to_owned(),
    )];
    rows.push(row(
        time(outcome.t_alert_ms),
        "a node raises the alert".to_owned(),
    ));
    if outcome.targets == 1 {
        rows.push(row(
            time(outcome.t_own_block_ms),
            "the node that is hit blocks on its own right".to_owned(),
        ));
        rows.push(row(
            time(outcome.t_contact_ms),
            "first packet to a second node".to_owned(),
        ));
    }
    rows.push(row(
        time(outcome.first_drop_ms),
        "first packet dropped in the kernel".to_owned(),
    ));
    rows.push(row(
        time(outcome.t_quorum_ms),
        "certificate complete".to_owned(),
    ));
    let from = if outcome.targets == 1 {
        " (from the contact)"
    } else {
        ""
    };
    rows.push(row(
        time(outcome.t_drop_ms.map(|drop| drop.median)),
        format!(
            "block in the kernel map, middle of {} nodes{from}",
            outcome.nodes
        ),
    ));
    rows.push(row(
        time(outcome.t_drop_ms.map(|drop| drop.max)),
        format!("block in the kernel map of the last node{from}"),
    ));

    rows
}

fn facts(outcome: &Outcome) -> Vec<Vec<String>> {
    let share = outcome.drop_share.map_or_else(
        || "nothing to drop".to_owned(),
        |share| format!("{:.3} %", share * 100.0),
    );
    let facts = [
        ("alert to last block", time(outcome.t_alert_to_drop_ms)),
        (
            "dropped after that",
            format!(
                "{share} ({} of {} packets; {} got past XDP)",
                outcome.dropped_packets, outcome.attack_packets, outcome.passed_packets
            ),
        ),
        (
            "attack in all",
            format!("{} packets", outcome.all_attack_packets),
        ),
        (
            "client answered",
            format!(
                "{} of {} connections",
                outcome.legit_ok, outcome.legit_attempts
            ),
        ),
        (
            "block in the kernel",
            format!(
                "{} of {} nodes, by bpftool",
                outcome.in_kernel_map, outcome.nodes
            ),
        ),
        (
            "decision",
            outcome.decision.as_ref().map_or_else(
                || "none".to_owned(),
                |decision| format!("{} about {}", decision.id, decision.subject),
            ),
        ),
    ];
    facts
        .into_iter()
        .map(|(name, value)| vec![format!("  {name}"), value])
        .collect()
}
