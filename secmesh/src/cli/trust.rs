//! `secmesh trust`

use std::fmt::Write as _;

use super::output::{Out, Paint, Style};
use super::table::{Table, plain, styled};
use super::{CliError, Context, time};
use crate::api::trust::{TrustChange, TrustNode, TrustView};
use crate::api::types::Request;
use crate::mesh::evidence::Ruling;
use crate::mesh::trust::Cause;

/// Changes shown of each node when all are shown.
const FEW: usize = 3;

/// `secmesh trust`
pub fn trust(context: &Context, node: Option<String>, out: &mut Out<'_>) -> Result<(), CliError> {
    let all = node.is_none();
    let request = Request::Trust { node };
    if out.json {
        return out.json(&context.ask::<serde_json::Value>(&request)?);
    }
    let view: TrustView = context.ask(&request)?;
    let text = render(&view, all, out.now_us, out.paint);
    out.text(&text)
}

fn state(node: &TrustNode) -> (String, Style) {
    if !node.proofs.is_empty() {
        let proofs: Vec<&str> = node.proofs.iter().map(|proof| proof.name()).collect();
        return styled(format!("proved: {}", proofs.join(", ")), Style::Bad);
    }
    if node.strikes > 0 {
        return styled("remediation failed", Style::Warning);
    }
    if u64::from(node.target) < node.epoch_weight {
        return styled("losing weight", Style::Warning);
    }
    if u64::from(node.target) > node.epoch_weight && node.epoch_weight > 0 {
        return plain("gaining weight");
    }
    if node.this_node {
        return styled("this node", Style::Dim);
    }
    plain("")
}

fn render(view: &TrustView, all: bool, now_us: u64, paint: Paint) -> String {
    let mut table = Table::new(&[
        "NAME", "TARGET", "EPOCH", "VOTES", "ALPHA", "BETA", "SHARE", "STRIKES", "IDLE", "LOCAL",
        "STATE",
    ])
    .right(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for node in &view.nodes {
        table.row(vec![
            plain(&node.name),
            plain(node.target.to_string()),
            plain(node.epoch_weight.to_string()),
            plain(node.votes_with.to_string()),
            plain(format!("{:.2}", node.alpha)),
            plain(format!("{:.2}", node.beta)),
            plain(format!("{}.{}%", node.per_mille / 10, node.per_mille % 10)),
            plain(node.strikes.to_string()),
            plain(node.idle_epochs.to_string()),
            plain(format!("{}%", node.local_per_mille / 10)),
            state(node),
        ]);
    }
    let mut text = table.render(paint);
    let mut history = String::new();
    for node in &view.nodes {
        let skip = if all {
            node.changes.len().saturating_sub(FEW)
        } else {
            0
        };
        for change in node.changes.iter().skip(skip).rev() {
            story(&mut history, node, change, now_us);
        }
    }
    // Writing to a string cannot fail.
    if history.is_empty() {
        text.push_str("\nNothing has changed anybody's standing yet.\n");
    } else {
        let _ = write!(text, "\n{history}");
    }
    let _ = writeln!(
        text,
        "\nepoch {} of {} s, {} statements, frontier {}",
        view.epoch,
        view.epoch_s,
        view.statements,
        view.frontier.get(..12).unwrap_or_default()
    );
    if !view.complete {
        text.push_str(
            "Some evidence that the epochs rest on is not here yet; it comes from the peers.\n",
        );
    }
    text
}

const fn why(cause: Cause) -> &'static str {
    match cause {
        Cause::OutcomeHit => "confirmed a block whose source kept coming",
        Cause::OutcomeMiss => "confirmed a block that was harmless by the word of nodes' operators",
        Cause::Verdict {
            ruling: Ruling::FalsePositive,
        } => "confirmed a block that the operator called a false positive",
        Cause::Verdict {
            ruling: Ruling::TruePositive,
        } => "confirmed a block that the operator called right",
        Cause::QuestionRight => "answered test questions right",
        Cause::QuestionWrong => "answered test questions wrong",
        Cause::Proof { .. } => "was proved to have lied",
        Cause::RemediationFailed => "what was done to it failed",
        Cause::RemediationSucceeded => "what was done to it helped",
    }
}

fn story(text: &mut String, node: &TrustNode, change: &TrustChange, now_us: u64) {
    let mut effect = Vec::new();
    if change.hits > 0 {
        effect.push(format!("+{} to alpha", change.hits));
    }
    if change.misses > 0 {
        effect.push(format!("+{} to beta", change.misses));
    }
    match change.cause {
        Cause::Proof { proof } => effect.push(format!("{proof}, weight 0 for good")),
        Cause::RemediationFailed | Cause::RemediationSucceeded => {
            effect.push(format!("{} strikes", change.strikes));
        }
        _ => {}
    }
    let _ = writeln!(
        text,
        "epoch {}: {} {}: {}",
        change.epoch,
        plain(&node.name).0,
        why(change.cause),
        effect.join(", ")
    );
    for reason in &change.because {
        let mut about = String::new();
        if let Some(subject) = &reason.subject {
            let _ = write!(about, ", about {subject}");
        }
        if let Some(decision) = &reason.decision {
            let _ = write!(
                about,
                ", decision {}",
                decision.get(..12).unwrap_or_default()
            );
        }
        let _ = writeln!(
            text,
            "    dated {} by {}, statement {}{}",
            time::at(reason.made_unix_us, now_us),
            plain(&reason.author_name).0,
            reason.sequence,
            plain(about).0
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn standings_are_a_table_with_what_changed_them() {
        let view: TrustView = serde_json::from_value(json!({
            "epoch": 900, "complete": true, "epoch_s": 3600, "statements": 3, "frontier": "00112233445566778899",
            "nodes": [
                {"id": "aa", "name": "n1", "target": 100, "epoch_weight": 100, "votes_with": 100, "alpha": 0.0, "beta": 0.0,
                 "per_mille": 500, "strikes": 0, "proofs": [], "idle_epochs": 0, "statements": 1,
                 "local_per_mille": 500, "this_node": true, "changes": []},
                {"id": "bb", "name": "n2", "target": 33, "epoch_weight": 60, "votes_with": 60, "alpha": 0.0, "beta": 4.0,
                 "per_mille": 166, "strikes": 0, "proofs": [], "idle_epochs": 2, "statements": 2,
                 "local_per_mille": 980, "this_node": false, "changes": [
                    {"epoch": 898, "cause": "verdict", "ruling": "false_positive", "hits": 0, "misses": 4,
                     "strikes": 0, "because": [{"author": "aa", "author_name": "n1", "sequence": 0,
                       "made_unix_us": 1_700_000_000_000_000_u64, "subject": "203.0.113.7",
                       "decision": "0123456789abcdef"}]}]},
                {"id": "cc", "name": "n3", "target": 0, "epoch_weight": 60, "votes_with": 0, "alpha": 1.5, "beta": 0.0,
                 "per_mille": 714, "strikes": 0, "proofs": ["evidence_fork"], "idle_epochs": 1,
                 "statements": 0, "local_per_mille": 333, "this_node": false, "changes": []}
            ]
        }))
        .unwrap();
        assert_eq!(
            render(&view, true, 1_700_000_060_000_000, Paint(false)),
            "\
NAME  TARGET  EPOCH  VOTES  ALPHA  BETA  SHARE  STRIKES  IDLE  LOCAL  STATE
n1       100    100    100   0.00  0.00  50.0%        0     0    50%  this node
n2        33     60     60   0.00  4.00  16.6%        0     2    98%  losing weight
n3         0     60      0   1.50  0.00  71.4%        0     1    33%  proved: evidence_fork

epoch 898: n2 confirmed a block that the operator called a false positive: +4 to beta
    dated 2023-11-14T22:13:20.000Z (1 min ago) by n1, statement 0, about 203.0.113.7, decision 0123456789ab

epoch 900 of 3600 s, 3 statements, frontier 001122334455
"
        );
        let nothing = TrustView {
            nodes: Vec::new(),
            ..view
        };
        assert!(render(&nothing, true, 0, Paint(false)).contains("Nothing has changed"));
    }
}
