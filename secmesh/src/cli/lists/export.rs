//! `secmesh decisions export`

use serde_json::json;

use super::super::list_args::ExportArgs;
use super::super::output::Out;
use super::super::time::grouped;
use super::super::{CliError, Context};
use crate::api::types::{DecisionView, Request};
use crate::respond::lists::format::Format;
use crate::respond::lists::{
    FOLDER, ListName, Part, Range, Span, Spans, Store, StoreError, flatten, write,
};
use crate::state::{StateDir, write_atomic};

/// Mode of an exported file: no secret is in it.
const READABLE: u32 = 0o644;

/// `secmesh decisions export`
pub fn export(context: &Context, args: &ExportArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let format = match args.format {
        Some(format) => format.into(),
        None if out.json => Format::Json,
        None => Format::Lines,
    };
    let mut parts: Vec<(String, Spans)> = Vec::new();
    if args.list.is_none() {
        let decisions: Vec<DecisionView> = context.ask(&Request::Decisions {
            all: false,
            subject: None,
        })?;
        parts.push(("decisions".to_owned(), of_decisions(&decisions)));
    }
    for (name, spans) in lists(context, args.list.as_ref())? {
        parts.push((name.to_string(), spans));
    }
    let borrowed: Vec<Part<'_>> = parts
        .iter()
        .map(|(name, spans)| Part { name, spans })
        .collect();
    let mut bytes = Vec::new();
    write(&mut bytes, format, &borrowed, out.now_us / 1_000_000).map_err(CliError::Output)?;
    let Some(path) = &args.output else {
        return out.bytes(&bytes);
    };
    write_atomic(path, &bytes, READABLE)?;
    let spans: usize = parts.iter().map(|(_, s)| s.len()).sum();
    if out.json {
        return out.json(&json!({"output": path, "format": format.name(), "entries": spans}));
    }
    out.text(&format!(
        "{} entries written to {} as {format}\n",
        grouped(u64::try_from(spans).unwrap_or(u64::MAX)),
        path.display()
    ))
}

/// The lists on the disk, or the one of that name.
fn lists(context: &Context, only: Option<&ListName>) -> Result<Vec<(ListName, Spans)>, CliError> {
    let state = StateDir::open(&context.state_dir()?)?;
    let failed = |error: StoreError| match error {
        StoreError::State(error) => CliError::State(error),
        other => CliError::Failed(other.to_string()),
    };
    if !state.has(FOLDER) {
        return match only {
            None => Ok(Vec::new()),
            Some(name) => Err(failed(StoreError::Missing(name.clone()))),
        };
    }
    let store = Store::open(&state).map_err(failed)?;
    let names = match only {
        Some(name) => vec![name.clone()],
        None => store.names().map_err(failed)?,
    };
    names
        .into_iter()
        .map(|name| {
            let list = store.load(&name).map_err(failed)?;
            Ok((name, list.spans))
        })
        .collect()
}

fn of_decisions(decisions: &[DecisionView]) -> Spans {
    let mut spans = Spans::default();
    for decision in decisions {
        let expires_unix_s = decision.expires_unix_us.div_ceil(1_000_000);
        match Range::from(decision.subject) {
            Range::V4(start, end) => spans.v4.push(Span {
                start,
                end,
                expires_unix_s,
                list: 0,
            }),
            Range::V6(start, end) => spans.v6.push(Span {
                start,
                end,
                expires_unix_s,
                list: 0,
            }),
        }
    }
    // Several decisions may be about one address.
    Spans {
        v4: flatten(spans.v4),
        v6: flatten(spans.v6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::decisions::tests::decision;
    use super::*;

    #[test]
    fn decisions_are_exported_once_each_with_the_later_end() {
        let of = |subject: &str, expires_unix_us| DecisionView {
            subject: subject.parse().unwrap(),
            expires_unix_us,
            ..decision()
        };
        let spans = of_decisions(&[
            of("192.0.2.1", 5_000_001),
            of("192.0.2.1", 9_000_000),
            of("2001:db8::/64", 5_000_001),
        ]);
        assert_eq!((spans.v4.len(), spans.v6.len()), (1, 1));
        assert_eq!(
            (spans.v4[0].expires_unix_s, spans.v6[0].expires_unix_s),
            (9, 6)
        );
    }
}
