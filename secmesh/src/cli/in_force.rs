//! What is in force in the kernel besides blocks, for people: limits, and differences that were put right.

use std::{collections::BTreeMap, fmt::Write as _};

use super::output::clean;
use super::time::grouped;
use crate::api::types::{LimitsView, ReconcileTotals};

/// Differences found in the tables other than the blocks'; `None` if there were none.
pub fn tables(reconciled: &BTreeMap<String, ReconcileTotals>) -> Option<String> {
    let parts: Vec<String> = reconciled
        .iter()
        .filter(|(_, totals)| totals.added.saturating_add(totals.removed) > 0)
        .map(|(table, totals)| {
            format!(
                "{}: {} found missing or wrong and {} left over",
                clean(table),
                grouped(totals.added),
                grouped(totals.removed)
            )
        })
        .collect();
    (!parts.is_empty()).then(|| format!("{}; put right", parts.join("; ")))
}

/// Limits and checks, on one line.
pub fn limits(view: &LimitsView) -> String {
    let mut text = if view.limits.is_empty() {
        "none".to_owned()
    } else {
        let each: Vec<String> = view
            .limits
            .iter()
            .map(|limit| {
                format!(
                    "{} {}/s (burst {})",
                    clean(&limit.name),
                    grouped(limit.per_second),
                    grouped(limit.burst)
                )
            })
            .collect();
        each.join(", ")
    };
    if !view.checks.is_empty() {
        let _ = write!(text, "; checks: {}", clean(&view.checks.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::LimitView;

    #[test]
    fn only_what_differed_is_told() {
        let mut all = BTreeMap::from([("lists".to_owned(), ReconcileTotals::default())]);
        assert_eq!(tables(&all), None);
        let found = ReconcileTotals {
            added: 2,
            removed: 1,
            ..ReconcileTotals::default()
        };
        all.insert("guards".to_owned(), found);
        assert_eq!(
            tables(&all).unwrap(),
            "guards: 2 found missing or wrong and 1 left over; put right"
        );
    }

    #[test]
    fn limits_and_checks_are_on_one_line() {
        assert_eq!(limits(&LimitsView::default()), "none");
        let view = LimitsView {
            limits: vec![LimitView {
                name: "source.syn".to_owned(),
                per_second: 1000,
                burst: 2000,
            }],
            checks: vec!["land".to_owned(), "tcp_flags".to_owned()],
        };
        assert_eq!(
            limits(&view),
            "source.syn 1,000/s (burst 2,000); checks: land, tcp_flags"
        );
    }
}
