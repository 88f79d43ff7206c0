//! `ledger verify`, `ledger show` and `ledger prove`.

mod proof;

pub use proof::prove;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use serde_json::{Value, json};

use super::output::{Out, Paint, Style, clean};
use super::table::{Table, plain};
use super::time::{at, grouped, rfc3339_us};
use super::{CliError, Context};
use crate::ledger::bundle::witnesses;
use crate::ledger::{self, Entry, Fault, VerifyError, VerifyReport};
use crate::mesh::identity::Identity;
use crate::mesh::ids::{NodeId, to_hex};
use crate::state::{StateDir, StateError};

/// Longest text value shown of an entry; signatures and certificates are longer than a line.
const MAX_VALUE: usize = 48;

/// A ledger, and the key it should be signed with, if that is known.
struct Subject {
    path: PathBuf,
    key: Option<VerifyingKey>,
}

impl Subject {
    /// The given one, or this node's.
    fn find(context: &Context, path: Option<PathBuf>) -> Result<Self, CliError> {
        if let Some(path) = path {
            return Ok(Self { path, key: None });
        }
        let dir = StateDir::open(&context.state_dir()?)?;
        let identity = Identity::load(&dir)?;
        Ok(Self {
            path: dir.ledger(),
            key: Some(identity.ledger_key().verifying_key()),
        })
    }
}

/// `secmesh ledger verify`
pub fn verify(context: &Context, path: Option<PathBuf>, out: &mut Out<'_>) -> Result<(), CliError> {
    let Subject { path, key } = Subject::find(context, path)?;
    if proof::is_proof(&path) {
        return proof::verify(context, &path, out);
    }
    let members = proof::members(context);
    let mut progress = Progress::default();
    let result = ledger::verify_with_key(&path, key.as_ref(), |entries| progress.at(entries));
    progress.end();
    let checked = result.and_then(|report| {
        let witnesses = match (&report.checkpoint, &members) {
            (Some(signed), Some(store)) => {
                witnesses(signed, &store.members).map_err(|e| VerifyError {
                    file: path.join("checkpoint"),
                    entry: signed.checkpoint.size,
                    offset: 0,
                    what: Fault::Checkpoint(e.to_string()),
                })?
            }
            _ => Vec::new(),
        };
        Ok((report, witnesses))
    });
    match checked {
        Ok((report, witnesses)) if out.json => out.json(&json(&path, &report, &witnesses)),
        Ok((report, witnesses)) => {
            let text = text(
                &path,
                &report,
                &witnesses,
                key.is_some(),
                out.now_us,
                out.paint,
            );
            out.text(&text)
        }
        Err(error) => {
            if out.json && !matches!(error.what, Fault::Io(_)) {
                out.json(&json!({
                    "path": path,
                    "ok": false,
                    "file": error.file,
                    "entry": error.entry,
                    "offset": error.offset,
                    "error": error.what.to_string(),
                }))?;
            }
            Err(fault(&path, error))
        }
    }
}

/// Says on a terminal how far long work has come.
#[derive(Default)]
struct Progress {
    told: u64,
}

impl Progress {
    const EVERY: u64 = 200_000;

    fn at(&mut self, entries: u64) {
        if entries.saturating_sub(self.told) >= Self::EVERY && std::io::stderr().is_terminal() {
            self.told = entries;
            // Whoever cannot be told can still wait.
            let _ = write!(std::io::stderr(), "\r{} entries checked", grouped(entries));
        }
    }

    fn end(&self) {
        if self.told > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn fault(path: &Path, error: VerifyError) -> CliError {
    match error.what {
        Fault::Io(source) => StateError::Io {
            action: "read the ledger",
            path: path.to_owned(),
            source,
        }
        .into(),
        _ => CliError::Failed(format!(
            "the ledger {} is damaged: {error}; what comes before that entry is good, keep the file as evidence",
            path.display()
        )),
    }
}

fn json(path: &Path, report: &VerifyReport, witnesses: &[(NodeId, String)]) -> Value {
    let VerifyReport {
        entries,
        first_unix_us,
        last_unix_us,
        head,
        node_id,
        key,
        torn_tail_bytes,
        first_entry,
        segments,
        pq,
        checkpoint,
    } = report;
    json!({
        "path": path,
        "ok": true,
        "entries": entries,
        "first_unix_us": first_unix_us,
        "last_unix_us": last_unix_us,
        "head": to_hex(head),
        "node": to_hex(node_id),
        "key": to_hex(key),
        "first_entry": first_entry,
        "segments": segments,
        "pq_key_sha256": to_hex(&pq.hash()),
        "checkpoint": checkpoint.as_ref().map(|signed| json!({
            "size": signed.checkpoint.size,
            "root": to_hex(&signed.checkpoint.root),
            "time_unix_s": signed.time_s,
            "signatures": signed.note.signatures().len(),
            "witnesses": witnesses
                .iter()
                .map(|(id, name)| json!({"node": id.to_string(), "name": name}))
                .collect::<Vec<_>>(),
        })),
        "torn_tail_bytes": torn_tail_bytes,
    })
}

fn text(
    path: &Path,
    report: &VerifyReport,
    witnesses: &[(NodeId, String)],
    ours: bool,
    now_us: u64,
    paint: Paint,
) -> String {
    let mut table = Table::bare(2);
    let mut line = |name: &str, text: String| table.row(vec![plain(name), plain(text)]);
    line("entries", grouped(report.entries));
    if report.first_entry > 1 {
        line("from", grouped(report.first_entry));
    }
    for (name, time) in [
        ("first", report.first_unix_us),
        ("last", report.last_unix_us),
    ] {
        if let Some(time) = time {
            line(name, at(time, now_us));
        }
    }
    line("root", to_hex(&report.head));
    line(
        "checkpoint",
        proof::covered(report.checkpoint.as_ref(), witnesses),
    );
    line("node", to_hex(&report.node_id));
    let whose = if ours {
        "this node's"
    } else {
        "the one the ledger names: compare it with the node's"
    };
    line("key", format!("{} ({whose})", to_hex(&report.key)));
    let head = paint.apply(Style::Good, "every entry is good and signed for");
    let mut text = format!(
        "{}: {head}\n{}",
        clean(&path.display().to_string()),
        table.render(paint)
    );
    if report.torn_tail_bytes > 0 {
        let _ = writeln!(
            text,
            "  {} bytes of an unfinished write follow: a crash, or an agent that writes right now",
            report.torn_tail_bytes
        );
    }
    text
}

/// `secmesh ledger show`
pub fn show(
    context: &Context,
    last: Option<usize>,
    path: Option<PathBuf>,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    // The key does not matter for looking, so a copy of the file is all that is needed.
    let path = match path {
        Some(path) => path,
        None => StateDir::open(&context.state_dir()?)?.ledger(),
    };
    let mut kept = VecDeque::new();
    let mut damage = None;
    for entry in ledger::iter(&path).map_err(|e| fault(&path, e))? {
        match (entry, last) {
            (Err(error), _) => damage = Some(error),
            (Ok(entry), None) => print(&entry, out)?,
            (Ok(entry), Some(last)) => {
                if kept.len() >= last {
                    kept.pop_front();
                }
                kept.push_back(entry);
            }
        }
    }
    for entry in &kept {
        print(entry, out)?;
    }
    match damage {
        Some(error) => Err(fault(&path, error)),
        None => Ok(()),
    }
}

fn print(entry: &Entry, out: &mut Out<'_>) -> Result<(), CliError> {
    let record: Value = serde_json::from_slice(&entry.payload).unwrap_or(Value::Null);
    if out.json {
        return out.json(&json!({
            "entry": entry.seq,
            "time_unix_us": entry.time_unix_us,
            "time": rfc3339_us(entry.time_unix_us),
            "kind": entry.kind,
            "record": record,
        }));
    }
    out.text(&line(entry, &record, out.paint))
}

fn line(entry: &Entry, record: &Value, paint: Paint) -> String {
    let name = record
        .get("record")
        .and_then(Value::as_str)
        .map_or_else(|| format!("kind {}", entry.kind), clean);
    let mut text = format!(
        "{:>6}  {}  {}",
        entry.seq,
        rfc3339_us(entry.time_unix_us),
        paint.apply(Style::Bold, &format!("{name:<12}"))
    );
    for (key, value) in record
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "record")
    {
        let value = match value {
            Value::String(value) => clean(value),
            Value::Null => continue,
            other => other.to_string(),
        };
        let long = value.chars().count() > MAX_VALUE;
        let value: String = value.chars().take(MAX_VALUE).collect();
        let _ = write!(text, "  {key}={value}{}", if long { "…" } else { "" });
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
