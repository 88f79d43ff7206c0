//! `quarantine` and `readmit`: who is cut off from the mesh.

use std::path::Path;

use super::asked::{self, Asked};
use super::output::{Out, Paint, Style, clean};
use super::{CliError, Context, control, node};
use crate::api::types::{Peer, QuarantineView, ReleaseTerms, Request};
use crate::mesh::decision::OperatorRelease;
use crate::mesh::ids::NodeId;
use crate::mesh::vote::Action;

/// `secmesh quarantine`
pub fn quarantine(
    context: &Context,
    node: &str,
    reason: Option<String>,
    key: Option<&Path>,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    let signed = match key {
        Some(key) => Some(order(context, node, false, key, out.now_us)?),
        None => None,
    };
    let request = Request::Quarantine {
        node: node.to_owned(),
        reason,
        signed,
    };
    control::done(context, &request, out)
}

/// `secmesh readmit`
pub fn readmit(
    context: &Context,
    node: &str,
    key: Option<&Path>,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    let signed = match key {
        Some(key) => Some(order(context, node, true, key, out.now_us)?),
        None => None,
    };
    let request = Request::Readmit {
        node: node.to_owned(),
        signed,
    };
    control::done(context, &request, out)
}

/// An order about the node, signed.
fn order(
    context: &Context,
    given: &str,
    readmit: bool,
    key: &Path,
    now_us: u64,
) -> Result<String, CliError> {
    // The key first: who cannot read it need not ask.
    let operator = node::operator_key(key)?;
    let peers: Vec<Peer> = context.ask(&Request::Peers {})?;
    let found = peers.iter().find(|p| p.name == given || p.id == given);
    let id: NodeId = found
        .ok_or_else(|| {
            CliError::Usage(format!(
                "no node is called {}; `secmesh peers` lists them",
                clean(given)
            ))
        })?
        .id
        .parse()
        .map_err(|e| CliError::Failed(format!("the agent's answer: {e}")))?;
    let action = if readmit {
        Action::readmit(id)
    } else {
        OperatorRelease::quarantine(id)
    };
    let terms: ReleaseTerms = context.ask(&Request::OrderTerms {
        node: given.to_owned(),
        readmit,
    })?;
    Asked {
        mesh: asked::mesh(context)?,
        subject: id.into(),
        operator: &operator,
        now_us,
    }
    .order(&terms, action)
}

/// What `status` says of a node that is cut off.
pub fn line(node: &QuarantineView, paint: Paint) -> String {
    let by = if node.by_operator {
        "by the operator".to_owned()
    } else {
        let votes = node.votes.iter().filter(|v| v.weight > 0);
        let votes: Vec<String> = votes
            .map(|v| format!("{} {}", clean(&v.name), clean(&v.verdict)))
            .collect();
        format!("by {}", votes.join(", "))
    };
    let addresses: Vec<String> = node
        .addresses
        .iter()
        .map(|(address, dropped)| {
            let how = if *dropped { "dropped" } else { "NOT dropped" };
            format!("{address} {how}")
        })
        .collect();
    format!(
        "{} ({}; {by}; {})",
        paint.apply(Style::Bad, &clean(&node.name)),
        node.class,
        if addresses.is_empty() {
            "never met, so no address".to_owned()
        } else {
            addresses.join(", ")
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_is_cut_off_is_told_with_why_and_by_whom() {
        let vote = |name: &str, verdict: &str, weight: u64| json!({"node": "00", "name": name, "verdict": verdict, "weight": weight, "issued_unix_us": 1});
        let view: QuarantineView = serde_json::from_value(json!({
            "id": "ff", "name": "n4\u{1b}", "class": "misconduct", "decision": "aa", "by_operator": false,
            "since_unix_us": 1, "addresses": [["10.0.0.4", true]],
            "votes": [vote("n1", "confirm", 100), vote("n2", "concur", 100), vote("n4", "confirm", 0)],
        }))
        .unwrap();
        assert_eq!(
            line(&view, Paint(false)),
            "n4\u{fffd} (misconduct; by n1 confirm, n2 concur; 10.0.0.4 dropped)"
        );
    }
}
