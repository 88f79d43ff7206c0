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
    if node.weight < node.votes_with.try_into().unwrap_or(u32::MAX) {
        return styled("distrusted", Style::Warning);
    }
    if node.this_node {
        return styled("this node", Style::Dim);
    }
    plain("")
}

fn render(view: &TrustView, all: bool, now_us: u64, paint: Paint) -> String {
    let mut table = Table::new(&[
        "NAME", "WEIGHT", "VOTES", "ALPHA", "BETA", "SHARE", "STRIKES", "IDLE", "LOCAL", "STATE",
    ])
    .right(&[1, 2, 3, 4, 5, 6, 7, 8]);
    for node in &view.nodes {
        table.row(vec![
            plain(&node.name),
            plain(node.weight.to_string()),
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
        "{} {}: {}",
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
            "    {} by {}, statement {}{}",
            time::at(reason.made_unix_us, now_us),
            plain(&reason.author_name).0,
            reason.sequence,
            plain(about).0
        );
    }
}
