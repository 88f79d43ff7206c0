//! Commands that ask the agent and change nothing.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::output::{Out, Paint, Style};
use super::table::{Table, plain, styled};
use super::{
    CliError, Context, alerts as alert_text, decisions as decision_text, explain as explain_text,
    status as status_text,
};
use crate::addr::Prefix;
use crate::api::types::{AllowView, DecisionView, MetricsText, PendingConfirm, Request, Status};
use crate::dataplane::Mode;
use crate::mesh::engine::Digest;

/// Asks, and prints the answer as it came or as `text` makes it.
fn answer<T: DeserializeOwned>(
    context: &Context,
    request: &Request,
    out: &mut Out<'_>,
    text: impl FnOnce(&T, u64, Paint) -> String,
) -> Result<(), CliError> {
    if out.json {
        return out.json(&context.ask::<Value>(request)?);
    }
    let answer = context.ask(request)?;
    out.text(&text(&answer, out.now_us, out.paint))
}

/// `secmesh status`
pub fn status(context: &Context, all: bool, out: &mut Out<'_>) -> Result<(), CliError> {
    answer(
        context,
        &Request::Status {},
        out,
        |status: &Status, _, paint| status_text::status(status, all, paint),
    )
}

/// `secmesh peers`
pub fn peers(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    answer(
        context,
        &Request::Peers {},
        out,
        |peers: &Vec<_>, _, paint| status_text::peers(peers, paint),
    )
}

/// `secmesh mesh digest`
pub fn digest(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    answer(
        context,
        &Request::MeshDigest {},
        out,
        |digest: &Digest, _, _| {
            let Digest {
                epoch,
                epoch_hash,
                members,
                roster,
                liars,
                decisions,
                decisions_hash,
                statements,
                evidence,
                trust,
                all,
            } = digest;
            format!(
                "epoch      {epoch_hash} {epoch}\nroster     {roster} {members} members\n\
                 liars      {liars}\ndecisions  {decisions_hash} {decisions}\n\
                 evidence   {evidence} {statements} statements\ntrust      {trust}\nall        {all}\n"
            )
        },
    )
}

/// `secmesh alerts`
pub fn alerts(context: &Context, limit: usize, out: &mut Out<'_>) -> Result<(), CliError> {
    answer(
        context,
        &Request::Alerts { limit },
        out,
        |alerts: &Vec<_>, now_us, paint| alert_text::list(alerts, now_us, paint),
    )
}

/// `secmesh explain`
pub fn explain(context: &Context, subject: Prefix, out: &mut Out<'_>) -> Result<(), CliError> {
    answer(
        context,
        &Request::Explain { subject },
        out,
        explain_text::story,
    )
}

/// `secmesh decisions list`
pub fn decisions(
    context: &Context,
    all: bool,
    subject: Option<Prefix>,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    answer(
        context,
        &Request::Decisions { all, subject },
        out,
        |decisions: &Vec<_>, now_us, paint| decision_text::list(decisions, now_us, paint),
    )
}

/// `secmesh decisions show`
pub fn decision(context: &Context, id: &str, out: &mut Out<'_>) -> Result<(), CliError> {
    let decisions: Vec<DecisionView> = context.ask(&Request::Decisions {
        all: true,
        subject: None,
    })?;
    let found = choose(decisions, id)?;
    if out.json {
        return out.json(&found);
    }
    let mut text = String::new();
    decision_text::story(&mut text, &found, out.now_us, out.paint);
    out.text(&text)
}

fn choose(decisions: Vec<DecisionView>, id: &str) -> Result<DecisionView, CliError> {
    let mut found = decisions
        .into_iter()
        .filter(|decision| !id.is_empty() && decision.id.starts_with(id));
    match (found.next(), found.next()) {
        (Some(decision), None) => Ok(decision),
        (Some(_), Some(_)) => Err(CliError::Failed(format!(
            "the ids of several decisions begin with `{id}`; give more of it"
        ))),
        (None, _) => Err(CliError::Failed(format!(
            "no decision has an id that begins with `{id}`; `secmesh decisions list --all` shows them"
        ))),
    }
}

/// `secmesh allow list`
pub fn allowlist(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    answer(
        context,
        &Request::AllowList {},
        out,
        |entries: &Vec<AllowView>, _, paint| allow_table(entries, paint),
    )
}

fn allow_table(entries: &[AllowView], paint: Paint) -> String {
    if entries.is_empty() {
        return "The allowlist is empty: anything can be blocked.\n".to_owned();
    }
    let mut table = Table::new(&["ADDRESS", "SOURCE", "REASON"]);
    for entry in entries {
        let source = styled(
            &entry.source,
            if entry.source == "builtin" {
                Style::Dim
            } else {
                Style::Plain
            },
        );
        table.row(vec![
            plain(entry.prefix.to_string()),
            source,
            plain(&entry.reason),
        ]);
    }
    table.render(paint)
}

#[derive(Serialize)]
struct ModeAnswer {
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_confirm: Option<PendingConfirm>,
}

/// `secmesh metrics`
pub fn metrics(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    let metrics: MetricsText = context.ask(&Request::Metrics {})?;
    if out.json {
        return out.json(&metrics);
    }
    out.text(&metrics.text)
}

/// `secmesh mode`
pub fn mode(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    let status: Status = context.ask(&Request::Status {})?;
    let Status {
        mode,
        pending_confirm,
        ..
    } = status;
    if out.json {
        return out.json(&json!(ModeAnswer {
            mode,
            pending_confirm
        }));
    }
    let trial = pending_confirm.map_or_else(String::new, |p| {
        format!(
            ", back to monitor in {} s unless `secmesh mode confirm` comes before",
            p.seconds_left
        )
    });
    out.text(&format!("{mode}{trial}\n"))
}

#[cfg(test)]
mod tests {
    use super::super::decisions::tests::decision;
    use super::*;

    #[test]
    fn a_decision_is_found_by_the_beginning_of_its_id_if_only_one_has_it() {
        let named = |id: &str| DecisionView {
            id: id.to_owned(),
            ..decision()
        };
        let all = || vec![named("ab12"), named("ab34"), named("cd")];
        assert_eq!(choose(all(), "ab3").unwrap().id, "ab34");
        assert!(
            choose(all(), "ab")
                .unwrap_err()
                .to_string()
                .contains("several")
        );
        assert!(
            choose(all(), "x")
                .unwrap_err()
                .to_string()
                .contains("no decision")
        );
        assert!(choose(all(), "").is_err());
    }

    #[test]
    fn the_allowlist_is_a_table() {
        let entries: Vec<AllowView> = serde_json::from_value(json!([
            {"prefix": "127.0.0.0/8", "reason": "loopback", "source": "builtin"},
            {"prefix": "198.51.100.7", "reason": "office", "source": "operator"}
        ]))
        .unwrap();
        assert_eq!(
            allow_table(&entries, Paint(false)),
            "\
ADDRESS       SOURCE    REASON
127.0.0.0/8   builtin   loopback
198.51.100.7  operator  office
"
        );
        assert!(allow_table(&[], Paint(false)).contains("empty"));
    }
}
