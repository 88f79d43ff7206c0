//! Blocklists: import, export, list, remove.

mod export;
mod import;

pub use self::{export::export, import::import};

use std::{fmt::Write as _, thread, time::Duration};

use super::output::{Out, Paint, Style, clean};
use super::progress::Bar;
use super::table::{Table, plain, styled};
use super::time::{end, grouped, relative};
use super::{CliError, Context};
use crate::api::lists::{ListOutcome, ListTicket, ListView, ListsView};
use crate::api::types::Request;
use crate::respond::lists::ListName;

/// How often the agent is asked how far it is.
const POLL: Duration = Duration::from_millis(100);
/// Polls without any progress after which we give up waiting: two minutes.
const MAX_STILL: u32 = 1200;

/// Waits until the agent has done what `ticket` stands for, with a bar.
fn wait(context: &Context, ticket: ListTicket) -> Result<(ListOutcome, ListsView), CliError> {
    let mut bar = Bar::new();
    let mut still = 0;
    let mut last = (0, 0);
    loop {
        let view: ListsView = context.ask(&Request::Lists {})?;
        if let Some(outcome) = view.outcomes.iter().find(|o| o.ticket == ticket.ticket) {
            bar.clear();
            return match &outcome.error {
                None => Ok((outcome.clone(), view)),
                Some(error) => Err(CliError::Failed(error.clone())),
            };
        }
        let totals = &view.totals;
        let at = (totals.enforced, totals.desired);
        still = if at == last { still + 1 } else { 0 };
        last = at;
        if still >= MAX_STILL {
            return Err(CliError::Failed(format!(
                "the agent has not gone on for two minutes ({} of {} entries are in force); `secmesh decisions lists` and its log say more",
                totals.enforced, totals.desired
            )));
        }
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        bar.draw(
            "loading",
            number(totals.enforced),
            Some(number(totals.desired)),
            "entries",
        );
        thread::sleep(POLL);
    }
}

/// `secmesh decisions lists`
pub fn lists(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    if out.json {
        return out.json(&context.ask::<serde_json::Value>(&Request::Lists {})?);
    }
    let view: ListsView = context.ask(&Request::Lists {})?;
    let text = table(&view, out.now_us, out.paint);
    out.text(&text)
}

fn table(view: &ListsView, now_us: u64, paint: Paint) -> String {
    if view.lists.is_empty() {
        return "No lists; `secmesh decisions import FILE` makes one.\n".to_owned();
    }
    let mut table = Table::new(&[
        "LIST", "ENTRIES", "MERGED", "STATE", "IMPORTED", "ENDS", "SOURCE",
    ])
    .right(&[1, 2]);
    for list in &view.lists {
        table.row(vec![
            plain(list.name.as_str()),
            plain(grouped(list.entries)),
            plain(grouped(u64::try_from(list.total).unwrap_or(u64::MAX))),
            state(list, view.totals.busy),
            plain(relative(list.imported_unix_us, now_us)),
            plain(if list.total == 0 {
                "-".to_owned()
            } else {
                end(list.ends_unix_us, now_us)
            }),
            plain(&list.source),
        ]);
    }
    let mut text = table.render(paint);
    for list in &view.lists {
        if let Some(error) = &list.error {
            let _ = writeln!(
                text,
                "{} {}: {}",
                paint.apply(Style::Bad, "warning:"),
                list.name,
                clean(error)
            );
        }
    }
    text
}

fn state(list: &ListView, busy: bool) -> super::table::Cell {
    if list.total == 0 {
        styled("not read", Style::Bad)
    } else if list.loaded >= list.total {
        styled("enforced", Style::Good)
    } else {
        let style = if busy { Style::Warning } else { Style::Bad };
        styled(
            format!("{} %", list.loaded.saturating_mul(100) / list.total),
            style,
        )
    }
}

/// `secmesh decisions remove-list`
pub fn remove(context: &Context, name: &ListName, out: &mut Out<'_>) -> Result<(), CliError> {
    let ticket = context.ask(&Request::ListRemove { name: name.clone() })?;
    let (outcome, _) = wait(context, ticket)?;
    if out.json {
        return out.json(&outcome);
    }
    out.text(&format!(
        "the list {name} is gone; {} entries were taken out of the kernel\n",
        grouped(u64::try_from(outcome.removed).unwrap_or(u64::MAX))
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_a_table_with_what_is_wrong_below() {
        let list = |name: &str, total: usize, loaded: usize| {
            json!({"name": name, "number": 1, "source": "/tmp/x", "format": "lines", "imported_unix_us": 0,
                "ends_unix_us": 3_600_000_000_u64, "entries": 1_200_000, "total": total, "loaded": loaded,
                "operator": "root", "reason": null, "overridden": false,
                "error": if total == 0 { Some("x.list is not read") } else { None }})
        };
        let view: ListsView = serde_json::from_value(json!({
            "lists": [list("drop", 1_100_000, 1_100_000), list("half", 10, 5), list("lost", 0, 0)],
            "totals": {"lists": 3, "damaged": 1, "desired": 2, "enforced": 1, "busy": false, "error": null},
            "outcomes": []
        }))
        .unwrap();
        assert_eq!(
            table(&view, 60_000_000, Paint(false)),
            "\
LIST    ENTRIES     MERGED  STATE     IMPORTED   ENDS            SOURCE
drop  1,200,000  1,100,000  enforced  1 min ago  ends in 59 min  /tmp/x
half  1,200,000         10  50 %      1 min ago  ends in 59 min  /tmp/x
lost  1,200,000          0  not read  1 min ago  -               /tmp/x
warning: lost: x.list is not read
"
        );
    }
}
