//! `secmesh decisions import`

use std::env;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use super::super::list_args::ImportArgs;
use super::super::output::{Out, clean};
use super::super::progress::Bar;
use super::super::time::{at, grouped};
use super::super::{CliError, Context, note};
use super::wait;
use crate::addr::Prefix;
use crate::api::client::ClientError;
use crate::api::lists::{ListOutcome, ListTicket, ListsView};
use crate::api::types::{AllowView, Request};
use crate::respond::lists::format::{FormatError, Options, Parsed, parse};
use crate::respond::lists::import::{Risks, Ttl, prepare, risks};
use crate::respond::lists::{List, ListName, Meta, Spans, Store};
use crate::sense::netinfo::{self, LiveSystem};
use crate::state::StateDir;

/// Longest reason that is recorded, characters.
const MAX_REASON: usize = 512;
/// Longest path that is recorded, characters.
const MAX_SOURCE: usize = 512;
/// Problems shown when they are skipped.
const MAX_SHOWN: usize = 5;

/// What an import did, or would do.
#[derive(Debug, Serialize)]
struct Report<'a> {
    list: &'a ListName,
    source: &'a str,
    format: &'a str,
    dry_run: bool,
    /// Entries read.
    entries: usize,
    /// Entries left out because they are wrong.
    invalid: u64,
    /// Entries left out because they have ended or block no addresses.
    ignored: u64,
    /// Risky entries imported on purpose.
    risky: usize,
    /// What they were merged to.
    addresses: usize,
    ranges: usize,
    /// When the last one ends, unix µs.
    ends_unix_us: u64,
    /// What the kernel's tables got; none if it is a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<usize>,
}

/// `secmesh decisions import`
pub fn import(context: &Context, args: &ImportArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let (name, source) = naming(args)?;
    // Asked first: who has no agent need not wait for a million lines to be read.
    let protected = protected(context, args.dry_run)?;
    let parsed = read(args, &source, out.now_us / 1_000_000)?;
    for problem in parsed.problems.iter().take(MAX_SHOWN) {
        note(&format!("left out: {source}, {problem}"));
    }
    if parsed.invalid > MAX_SHOWN as u64 {
        note(&format!("left out: {} lines in all", parsed.invalid));
    }
    let risks = risks(&parsed.spans, &protected);
    if risks.entries > 0 && !args.override_risky {
        return Err(CliError::Failed(refused(&source, &risks)));
    }
    let (format, entries) = (parsed.format, parsed.spans.len());
    let (invalid, ignored) = (parsed.invalid, parsed.ignored);
    let spans = prepare(
        parsed.spans,
        Ttl {
            now_unix_s: out.now_us / 1_000_000,
            ttl_s: args.ttl.as_secs(),
            spread_percent: args.spread,
        },
    );
    let ends_unix_s = ends(&spans);
    let (addresses, ranges) = shape(&spans);
    let mut report = Report {
        list: &name,
        source: &source,
        format: format.name(),
        dry_run: args.dry_run,
        entries,
        invalid,
        ignored,
        risky: risks.entries,
        addresses,
        ranges,
        ends_unix_us: ends_unix_s.saturating_mul(1_000_000),
        added: None,
        removed: None,
        kept: None,
    };
    if !args.dry_run {
        let list = List {
            meta: Meta {
                name: name.clone(),
                number: 0,
                source: source.clone(),
                format: format.name().to_owned(),
                imported_unix_us: out.now_us,
                ends_unix_s,
                entries: u64::try_from(entries).unwrap_or(u64::MAX),
                invalid,
                operator: operator(),
                reason: args
                    .reason
                    .as_ref()
                    .map(|r| r.chars().take(MAX_REASON).collect()),
                overridden: args.override_risky && risks.entries > 0,
            },
            spans,
        };
        let (outcome, _view) = hand_over(context, &list)?;
        report.added = Some(outcome.added);
        report.removed = Some(outcome.removed);
        report.kept = Some(outcome.kept);
    }
    if out.json {
        return out.json(&report);
    }
    let text = told(&report, out.now_us);
    out.text(&text)
}

/// What the list is called, and what its source is called.
fn naming(args: &ImportArgs) -> Result<(ListName, String), CliError> {
    let (source, from_file) = if args.file == Path::new("-") {
        ("standard input".to_owned(), ListName::new("stdin").ok())
    } else {
        let path = std::fs::canonicalize(&args.file).unwrap_or_else(|_| args.file.clone());
        let text = clean(&path.to_string_lossy());
        (
            text.chars().take(MAX_SOURCE).collect(),
            ListName::of_file(&args.file),
        )
    };
    let name = args.list.clone().or(from_file).ok_or_else(|| {
        CliError::Usage(format!(
            "{source} makes no name for a list; give one with --list"
        ))
    })?;
    Ok((name, source))
}

/// What this node cannot do without. The agent knows best; for a dry run the system does without it.
fn protected(context: &Context, dry_run: bool) -> Result<Vec<Prefix>, CliError> {
    match context.ask::<Vec<AllowView>>(&Request::AllowList {}) {
        Ok(entries) => Ok(entries
            .into_iter()
            .filter(|entry| entry.source == "builtin")
            .map(|entry| entry.prefix)
            .collect()),
        Err(CliError::Client(
            ClientError::NotRunning { .. } | ClientError::NotPermitted { .. },
        )) if dry_run => Ok(netinfo::discover(&LiveSystem)
            .allow
            .iter()
            .map(|entry| entry.prefix)
            .collect()),
        Err(error) => Err(error),
    }
}

fn read(args: &ImportArgs, source: &str, now_unix_s: u64) -> Result<Parsed, CliError> {
    let mut size = None;
    let input: Box<dyn Read> = if args.file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let mut open = || -> io::Result<File> {
            let file = File::open(&args.file)?;
            let meta = file.metadata()?;
            if meta.is_dir() {
                return Err(io::Error::other("it is a directory"));
            }
            size = Some(meta.len()).filter(|_| meta.is_file());
            Ok(file)
        };
        let name = source.to_owned();
        Box::new(open().map_err(|source| failed(&FormatError::Read { name, source }))?)
    };
    let options = Options {
        name: source,
        format: args.format.format(),
        skip_invalid: args.skip_invalid,
        now_unix_s,
    };
    let mut bar = Bar::new();
    parse(input, &options, &mut |bytes| {
        bar.draw("reading", bytes, size, "bytes");
    })
    .map_err(|error| failed(&error))
}

fn failed(error: &FormatError) -> CliError {
    CliError::Failed(error.to_string())
}

fn refused(source: &str, risks: &Risks) -> String {
    let mut text = format!(
        "{source} is not imported: {} of its entries could cut off this node or far too many others",
        grouped(u64::try_from(risks.entries).unwrap_or(u64::MAX))
    );
    for (prefix, risk) in &risks.named {
        let _ = write!(text, "\n  {prefix}: {risk}");
    }
    if risks.entries > risks.named.len() {
        text.push_str("\n  and more");
    }
    text.push_str(
        "\n  remedy: take them out, or import them on purpose with --override-risky --reason TEXT; what is on the allowlist is never blocked by a list",
    );
    text
}

fn ends(spans: &Spans) -> u64 {
    let v4 = spans.v4.iter().map(|s| s.expires_unix_s);
    let v6 = spans.v6.iter().map(|s| s.expires_unix_s);
    v4.chain(v6).max().unwrap_or(0)
}

/// Addresses and ranges.
fn shape(spans: &Spans) -> (usize, usize) {
    let v4 = spans.v4.iter().filter(|s| s.start == s.end).count();
    let v6 = spans.v6.iter().filter(|s| s.start == s.end).count();
    (v4 + v6, spans.len() - v4 - v6)
}

fn operator() -> String {
    env::var("SUDO_USER")
        .ok()
        .filter(|user| !user.is_empty())
        .map_or_else(
            || format!("user {}", nix::unistd::getuid()),
            |user| clean(&user).chars().take(64).collect(),
        )
}

/// Puts the list where the agent finds it, and waits until it is in the kernel.
fn hand_over(context: &Context, list: &List) -> Result<(ListOutcome, ListsView), CliError> {
    let store_error = |e: crate::respond::lists::StoreError| match e {
        crate::respond::lists::StoreError::State(error) => CliError::State(error),
        other => CliError::Failed(other.to_string()),
    };
    let store = Store::open(&StateDir::open(&context.state_dir()?)?).map_err(store_error)?;
    let pid = std::process::id();
    store.stage(list, pid).map_err(store_error)?;
    let request = Request::ListLoad {
        name: list.meta.name.clone(),
        staged_by: pid,
    };
    let ticket: ListTicket = context.ask(&request).inspect_err(|_| {
        // The agent does not know of it, so it will not take it away.
        drop(store.unstage(&list.meta.name, pid));
    })?;
    wait(context, ticket)
}

fn told(report: &Report<'_>, now_us: u64) -> String {
    let number = |n: usize| grouped(u64::try_from(n).unwrap_or(u64::MAX));
    let mut text = format!(
        "{}: {} entries (read as {}), merged to {} addresses and {} ranges\n",
        report.list,
        number(report.entries),
        report.format,
        number(report.addresses),
        number(report.ranges)
    );
    for (count, what) in [
        (report.invalid, "left out, wrong"),
        (
            report.ignored,
            "left out, ended already or no block of addresses",
        ),
        (
            u64::try_from(report.risky).unwrap_or(u64::MAX),
            "risky, imported on purpose",
        ),
    ] {
        if count > 0 {
            let _ = writeln!(text, "  {} {what}", grouped(count));
        }
    }
    let _ = writeln!(text, "  the last ends {}", at(report.ends_unix_us, now_us));
    match (report.added, report.removed, report.kept) {
        (Some(added), Some(removed), Some(kept)) => {
            let _ = writeln!(
                text,
                "all of it is in the kernel: {} entries written, {} taken out, {} there before",
                number(added),
                number(removed),
                number(kept)
            );
        }
        _ => text.push_str("dry run: nothing was changed\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_left_out_and_what_came_of_it() {
        let name = ListName::new("drop").unwrap();
        let mut report = Report {
            list: &name,
            source: "x",
            format: "lines",
            dry_run: false,
            entries: 1_000_000,
            invalid: 2,
            ignored: 0,
            risky: 0,
            addresses: 900_000,
            ranges: 1,
            ends_unix_us: 3_600_000_000,
            added: Some(900_001),
            removed: Some(0),
            kept: Some(5),
        };
        assert_eq!(
            told(&report, 0),
            "drop: 1,000,000 entries (read as lines), merged to 900,000 addresses and 1 ranges
  2 left out, wrong
  the last ends 1970-01-01T01:00:00.000Z (in 1 h)
all of it is in the kernel: 900,001 entries written, 0 taken out, 5 there before
"
        );
        report.added = None;
        assert!(told(&report, 0).ends_with("dry run: nothing was changed\n"));
    }

    #[test]
    fn a_refusal_names_the_risky_entries_and_the_way_around() {
        let p = |text: &str| text.parse::<Prefix>().unwrap();
        let risks = Risks {
            named: vec![(
                p("10.0.0.0/8"),
                crate::respond::Risk {
                    reasons: vec![crate::respond::Reason::Contains {
                        protected: p("10.0.0.1"),
                        why: "gateway".to_owned(),
                    }],
                },
            )],
            entries: 3,
        };
        let text = refused("level1.netset", &risks);
        for part in [
            "level1.netset is not imported: 3 of its entries",
            "\n  10.0.0.0/8: it contains 10.0.0.1 (gateway)",
            "\n  and more",
            "--override-risky --reason",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
