//! `explain`: everything that is known of an address, in the order in which one asks.

use std::fmt::Write as _;

use super::alerts;
use super::decisions;
use super::output::{Paint, Style, clean};
use super::status::short;
use super::table::{Table, plain};
use super::time::{at, count, end};
use crate::api::lists::ListCover;
use crate::api::types::{Explanation, IncidentView, KernelEntry};
use crate::dataplane::Mode;

/// Alerts told in full; of the others only how many there are.
const MAX_ALERTS: usize = 3;

/// The story of an address.
pub fn story(explanation: &Explanation, now_us: u64, paint: Paint) -> String {
    let mut out = String::new();
    let style = match explanation.verdict.as_str() {
        "blocked" | "allowlisted" | "clear" => Style::Good,
        "watched" => Style::Warning,
        _ => Style::Bad,
    };
    let verdict = clean(&explanation.verdict.replace('_', " ")).to_uppercase();
    let _ = writeln!(
        out,
        "{}: {}\n{}",
        paint.apply(Style::Bold, &explanation.subject.to_string()),
        paint.apply(style, &verdict),
        clean(&explanation.summary)
    );
    if explanation.mode == Mode::Monitor {
        let _ = writeln!(
            out,
            "{} this node is in monitor mode: it counts what it would drop, and drops nothing",
            paint.apply(Style::Warning, "note:")
        );
    }
    if let Some(allowed) = &explanation.allowlisted {
        heading(&mut out, "Allowlist", paint);
        let _ = writeln!(
            out,
            "  {} is never blocked: {} ({})",
            allowed.prefix,
            clean(&allowed.reason),
            clean(&allowed.source)
        );
    }
    if let Some(until) = explanation.watched_until_unix_us {
        heading(&mut out, "Watch", paint);
        let _ = writeln!(
            out,
            "  {} reported it; this node looks closer {}; {} of it since",
            clean(explanation.watched_by.as_deref().unwrap_or("a peer")),
            if until > now_us {
                format!("until {}", at(until, now_us))
            } else {
                "no longer".to_owned()
            },
            count(
                usize::try_from(explanation.watched_packets.unwrap_or(0)).unwrap_or(usize::MAX),
                "packet"
            )
        );
    }
    heading(&mut out, "Seen by this node", paint);
    if explanation.alerts.is_empty() {
        out.push_str("  nothing that a detector would raise\n");
    }
    for alert in explanation.alerts.iter().take(MAX_ALERTS) {
        alerts::story(&mut out, alert, now_us, paint);
    }
    let rest = explanation.alerts.len().saturating_sub(MAX_ALERTS);
    if rest > 0 {
        let _ = writeln!(out, "  and {} before, see --json", count(rest, "alert"));
    }
    if !explanation.incidents.is_empty() {
        heading(&mut out, "Being voted on", paint);
        for incident in &explanation.incidents {
            open_incident(&mut out, incident, paint);
        }
    }
    heading(&mut out, "Decided", paint);
    if explanation.decisions.is_empty() {
        out.push_str("  nothing\n");
    }
    for decision in &explanation.decisions {
        decisions::story(&mut out, decision, now_us, paint);
    }
    if !explanation.lists.is_empty() {
        heading(&mut out, "On imported lists", paint);
        for cover in &explanation.lists {
            listed(&mut out, cover, now_us);
        }
    }
    heading(&mut out, "In the kernel", paint);
    match &explanation.kernel {
        Some(entry) => kernel(&mut out, entry, now_us, paint),
        None if explanation.lists.iter().any(|l| l.whole) && explanation.verdict == "blocked" => {
            out.push_str("  in the tables of the lists\n");
        }
        None => out.push_str("  no entry: its packets are not dropped by secmesh\n"),
    }
    out
}

fn listed(out: &mut String, cover: &ListCover, now_us: u64) {
    let entry = if cover.first == cover.last {
        cover.first.to_string()
    } else {
        format!("{}-{}", cover.first, cover.last)
    };
    let _ = writeln!(
        out,
        "  {} {} {}, from {}{}; {}",
        cover.list,
        if cover.whole {
            "covers it with"
        } else {
            "covers a part of it with"
        },
        entry,
        clean(&cover.source),
        cover
            .reason
            .as_deref()
            .map(|reason| format!(" ({})", clean(reason)))
            .unwrap_or_default(),
        end(cover.expires_unix_us, now_us)
    );
}

fn heading(out: &mut String, text: &str, paint: Paint) {
    let _ = writeln!(out, "\n{}", paint.apply(Style::Bold, text));
}

fn open_incident(out: &mut String, incident: &IncidentView, paint: Paint) {
    let IncidentView {
        id,
        subject,
        class,
        action,
        votes,
        weight,
        needed,
    } = incident;
    let _ = writeln!(
        out,
        "  {} {subject} for {}: weight {weight} of {needed} needed (incident {})",
        clean(action),
        class.name(),
        clean(short(id))
    );
    decisions::votes(out, votes, paint);
}

fn kernel(out: &mut String, entry: &KernelEntry, now_us: u64, paint: Paint) {
    let KernelEntry {
        map,
        prefix,
        expires_unix_us,
        rule,
        hits,
        bytes,
        first_hit_unix_us,
        last_hit_unix_us,
    } = entry;
    let mut table = Table::bare(2);
    table.row(vec![
        plain("entry"),
        plain(format!("{prefix} in map {map}, rule {rule}")),
    ]);
    let met = decisions::hits(*hits, *bytes, *first_hit_unix_us, *last_hit_unix_us, now_us);
    table.row(vec![plain("met"), plain(met)]);
    table.row(vec![
        plain("until"),
        plain(format!(
            "{}; {}",
            super::time::rfc3339(*expires_unix_us),
            end(*expires_unix_us, now_us)
        )),
    ]);
    out.push_str(&table.render(paint));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::alerts::tests::{T, alert};
    use super::super::decisions::tests::decision;
    use super::*;

    fn fixture() -> Explanation {
        serde_json::from_value(json!({
            "subject": "203.0.113.9", "verdict": "blocked", "summary": "Its packets are dropped.",
            "mode": "enforce", "allowlisted": null, "watched_until_unix_us": null,
            "alerts": [alert()], "decisions": [decision()], "incidents": [],
            "kernel": {"map": "BLOCK4", "prefix": "203.0.113.9", "expires_unix_us": T + 3_600_000_000_u64, "rule": 7,
                "hits": 12345, "bytes": 740_700, "first_hit_unix_us": T + 13_000, "last_hit_unix_us": T + 1_000_000}
        }))
        .unwrap()
    }

    #[test]
    fn a_block_is_told_from_what_was_seen_to_the_kernels_entry() {
        let text = story(&fixture(), T + 2_000_000, Paint(false));
        assert!(text.starts_with(
            "203.0.113.9: BLOCKED\nIts packets are dropped.\n\nSeen by this node\n  syn_flood (ATT&CK T1499.001) at "
        ), "{text}");
        assert!(
            text.contains("\nDecided\n  block d00112233445 of 203.0.113.9"),
            "{text}"
        );
        assert!(text.contains("      n1     confirm  weight 100"), "{text}");
        assert!(text.ends_with(
            "\nIn the kernel
  entry  203.0.113.9 in map BLOCK4, rule 7
  met    12,345 packets, 740.7 kB; first 2023-11-14T22:13:20.013Z, last 2023-11-14T22:13:21.000Z (1 s ago)
  until  2023-11-14T23:13:20.000Z; ends in 59 min
"
        ), "{text}");
    }

    #[test]
    fn the_list_that_covers_it_is_named() {
        let mut explanation = fixture();
        explanation.kernel = None;
        explanation.lists = vec![
            serde_json::from_value(json!({"list": "drop", "source": "/tmp/drop.txt", "reason": "spam", "first": "203.0.113.0",
                "last": "203.0.113.255", "expires_unix_us": T + 60_000_000, "whole": true}))
            .unwrap(),
        ];
        let text = story(&explanation, T, Paint(false));
        assert!(
            text.contains("\nOn imported lists\n  drop covers it with 203.0.113.0-203.0.113.255, from /tmp/drop.txt (spam); ends in 1 min\n"),
            "{text}"
        );
        assert!(text.contains("  in the tables of the lists\n"), "{text}");
    }

    #[test]
    fn allowlist_watch_monitor_mode_and_votes_are_part_of_it() {
        let mut explanation = fixture();
        explanation.verdict = "not_enforced".to_owned();
        explanation.mode = Mode::Monitor;
        explanation.kernel = None;
        explanation.decisions.clear();
        explanation.alerts = vec![alert(); 5];
        explanation.watched_until_unix_us = Some(T + 60_000_000);
        explanation.allowlisted = Some(
            serde_json::from_value(json!({"prefix": "203.0.113.0/24", "reason": "office\u{1b}[2J", "source": "operator"})).unwrap(),
        );
        explanation.incidents = vec![
            serde_json::from_value(json!({"id": "ab12", "subject": "203.0.113.9", "class": "udp_flood", "action": "block",
                "votes": [{"node": "aa", "name": "n1", "verdict": "reject", "weight": 100, "issued_unix_us": T}],
                "weight": 100, "needed": 134}))
            .unwrap(),
        ];
        let text = story(&explanation, T, Paint(false));
        for part in [
            "203.0.113.9: NOT ENFORCED\n",
            "note: this node is in monitor mode",
            "203.0.113.0/24 is never blocked: office\u{fffd}[2J (operator)\n",
            "looks closer until 2023-11-14T22:14:20.000Z (in 1 min); 0 packets of it since\n",
            "  and 2 alerts before, see --json\n",
            "block 203.0.113.9 for udp_flood: weight 100 of 134 needed (incident ab12)\n",
            "      n1  reject  weight 100",
            "Decided\n  nothing\n",
            "no entry: its packets are not dropped by secmesh\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert_eq!(text.matches("(ATT&CK").count(), MAX_ALERTS);
    }
}
