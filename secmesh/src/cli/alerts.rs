//! Alerts for people.

use std::fmt::Write as _;

use super::output::{Paint, Style};
use super::table::{Table, plain, styled};
use super::time::{figure, relative, rfc3339, span};
use crate::detect::Alert;

/// A list of alerts.
pub fn list(alerts: &[Alert], now_us: u64, paint: Paint) -> String {
    if alerts.is_empty() {
        return "No alerts.\n".to_owned();
    }
    let mut table = Table::new(&[
        "RAISED",
        "AGO",
        "SUBJECT",
        "CLASS",
        "CONFIDENCE",
        "ATT&CK",
        "MEASURED",
    ])
    .right(&[4]);
    for alert in alerts {
        table.row(vec![
            plain(rfc3339(alert.raised_unix_us)),
            styled(relative(alert.raised_unix_us, now_us), Style::Dim),
            plain(alert.subject.to_string()),
            plain(alert.class.name()),
            plain(format!("{:.2}", alert.confidence)),
            plain(&alert.attack),
            plain(measured(alert)),
        ]);
    }
    table.render(paint)
}

/// The figure that stands furthest over its threshold, in words.
pub fn measured(alert: &Alert) -> String {
    let over = |value: f64, threshold: f64| {
        if threshold > 0.0 {
            value / threshold
        } else {
            0.0
        }
    };
    let compared = alert.features.iter().filter_map(|(name, value)| {
        alert
            .thresholds
            .get(name)
            .map(|threshold| (name, *value, *threshold))
    });
    let mut text = match compared.max_by(|a, b| over(a.1, a.2).total_cmp(&over(b.1, b.2))) {
        Some((name, value, threshold)) => {
            format!(
                "{} {} (threshold {})",
                words(name),
                figure(value),
                figure(threshold)
            )
        }
        None => String::new(),
    };
    if alert.watched {
        text.push_str(if text.is_empty() {
            "watched"
        } else {
            ", watched"
        });
    }
    text
}

/// An alert with every figure, indented.
pub fn story(out: &mut String, alert: &Alert, now_us: u64, paint: Paint) {
    let attack = if alert.attack.is_empty() {
        String::new()
    } else {
        format!(" (ATT&CK {})", alert.attack)
    };
    let head = format!("{}{attack}", alert.class.name());
    let _ = writeln!(
        out,
        "  {} at {}, {}; confidence {:.2}",
        paint.apply(Style::Bold, &super::output::clean(&head)),
        rfc3339(alert.raised_unix_us),
        relative(alert.raised_unix_us, now_us),
        alert.confidence
    );
    let lasted = alert.last_unix_us.saturating_sub(alert.first_unix_us);
    let _ = writeln!(
        out,
        "    first packet {}, last {}: {}",
        rfc3339(alert.first_unix_us),
        rfc3339(alert.last_unix_us),
        span(lasted)
    );
    let mut table = Table::bare(4).right(&[1]);
    for (name, value) in &alert.features {
        let (threshold, style) = match alert.thresholds.get(name) {
            Some(threshold) if value >= threshold => {
                (format!("threshold {}", figure(*threshold)), Style::Warning)
            }
            Some(threshold) => (format!("threshold {}", figure(*threshold)), Style::Dim),
            None => (String::new(), Style::Plain),
        };
        table.row(vec![
            plain(words(name)),
            plain(figure(*value)),
            styled(threshold, style),
        ]);
    }
    for (name, value) in alert
        .thresholds
        .iter()
        .filter(|(name, _)| !alert.features.contains_key(*name))
    {
        table.row(vec![
            styled(words(name), Style::Dim),
            styled(figure(*value), Style::Dim),
        ]);
    }
    out.push_str(&table.render(paint));
    if alert.watched {
        out.push_str(
            "    a peer's report had made this node watch it, which lowers the threshold\n",
        );
    }
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// 2023-11-14T22:13:20Z
    pub(in crate::cli) const T: u64 = 1_700_000_000_000_000;

    pub(in crate::cli) fn alert() -> Alert {
        serde_json::from_value(serde_json::json!({
            "id": "00aa", "subject": "203.0.113.9", "class": "syn_flood", "confidence": 0.75, "watched": false,
            "raised_unix_us": T, "first_unix_us": T - 500_000, "last_unix_us": T,
            "detector": "syn_flood", "detector_hash": "ff", "attack": "T1499.001",
            "features": {"packets_in_window": 400.0, "packets_in_run": 410.0, "seconds_since_first_packet": 0.5},
            "thresholds": {"packets_in_window": 200.0, "window_seconds": 1.0}
        }))
        .unwrap()
    }

    #[test]
    fn the_list_says_who_what_when_and_how_much() {
        assert_eq!(
            list(&[alert()], T + 2_000_000, Paint(false)),
            "\
RAISED                    AGO      SUBJECT      CLASS      CONFIDENCE  ATT&CK     MEASURED
2023-11-14T22:13:20.000Z  2 s ago  203.0.113.9  syn_flood        0.75  T1499.001  packets in window 400 (threshold 200)
"
        );
        assert_eq!(list(&[], T, Paint(false)), "No alerts.\n");
    }

    #[test]
    fn the_story_sets_features_against_thresholds() {
        let mut out = String::new();
        story(
            &mut out,
            &Alert {
                watched: true,
                ..alert()
            },
            T + 2_000_000,
            Paint(false),
        );
        assert_eq!(
            out,
            "  syn_flood (ATT&CK T1499.001) at 2023-11-14T22:13:20.000Z, 2 s ago; confidence 0.75
    first packet 2023-11-14T22:13:19.500Z, last 2023-11-14T22:13:20.000Z: 500 ms
    packets in run              410
    packets in window           400  threshold 200
    seconds since first packet  0.5
    window seconds                1
    a peer's report had made this node watch it, which lowers the threshold
"
        );
    }

    #[test]
    fn the_figure_furthest_over_its_threshold_is_the_one_shown() {
        let mut alert = alert();
        alert.features.insert("ports".to_owned(), 90.0);
        alert.thresholds.insert("ports".to_owned(), 10.0);
        assert_eq!(measured(&alert), "ports 90 (threshold 10)");
        alert.thresholds.clear();
        alert.watched = true;
        assert_eq!(measured(&alert), "watched");
    }
}
