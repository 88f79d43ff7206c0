//! `ledger verify` and `ledger show`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use serde_json::{Value, json};

use super::output::{Out, Paint, Style, clean};
use super::table::{Table, plain};
use super::time::{at, grouped, rfc3339_us};
use super::{CliError, Context};
use crate::ledger::{self, Entry, Fault, VerifyError, VerifyReport};
use crate::mesh::identity::Identity;
use crate::mesh::ids::to_hex;
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
    match ledger::verify_with_key(&path, key.as_ref()) {
        Ok(report) if out.json => out.json(&json(&path, &report)),
        Ok(report) => out.text(&text(&path, &report, key.is_some(), out.now_us, out.paint)),
        Err(error) => {
            if out.json && !matches!(error.what, Fault::Io(_)) {
                out.json(&json!({
                    "path": path,
                    "ok": false,
                    "entry": error.entry,
                    "offset": error.offset,
                    "error": error.what.to_string(),
                }))?;
            }
            Err(fault(&path, error))
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

fn json(path: &Path, report: &VerifyReport) -> Value {
    let VerifyReport {
        entries,
        first_unix_us,
        last_unix_us,
        head,
        node_id,
        key,
        torn_tail_bytes,
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
        "torn_tail_bytes": torn_tail_bytes,
    })
}

fn text(path: &Path, report: &VerifyReport, ours: bool, now_us: u64, paint: Paint) -> String {
    let mut table = Table::bare(2);
    let mut line = |name: &str, text: String| table.row(vec![plain(name), plain(text)]);
    line("entries", grouped(report.entries));
    for (name, time) in [
        ("first", report.first_unix_us),
        ("last", report.last_unix_us),
    ] {
        if let Some(time) = time {
            line(name, at(time, now_us));
        }
    }
    line("head", to_hex(&report.head));
    line("node", to_hex(&report.node_id));
    let whose = if ours {
        "this node's"
    } else {
        "the one the ledger names: compare it with the node's"
    };
    line("key", format!("{} ({whose})", to_hex(&report.key)));
    let head = paint.apply(Style::Good, "every entry and every signature is good");
    let mut text = format!(
        "{}: {head}\n{}",
        clean(&path.display().to_string()),
        table.render(paint)
    );
    if report.torn_tail_bytes > 0 {
        let _ = writeln!(
            text,
            "  {} bytes of an unfinished entry follow: a crash, or an agent that writes right now",
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
mod tests {
    use std::cell::OnceCell;
    use std::sync::Arc;

    use super::super::Global;
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::ledger::{Ledger, Record};

    const T: u64 = 1_700_000_000_000_000;

    fn ledger(entries: u64) -> (tempfile::TempDir, Context) {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&temp.path().join("state")).unwrap();
        let identity =
            Identity::create(&dir, "n".parse().unwrap(), "z".parse().unwrap(), None).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(T));
        write(&dir, &identity, &*clock, entries);
        let global = Global {
            state: Some(dir.path().to_owned()),
            ..Global::default()
        };
        (
            temp,
            Context {
                global,
                config: OnceCell::new(),
            },
        )
    }

    fn write(dir: &StateDir, identity: &Identity, clock: &dyn Clock, entries: u64) {
        let (mut ledger, _) = Ledger::open(
            &dir.ledger(),
            *identity.node_id().as_bytes(),
            identity.ledger_key().clone(),
            clock.unix_us(),
        )
        .unwrap();
        for n in 0..entries {
            ledger
                .append(
                    clock.unix_us(),
                    &Record::Stopped {
                        reason: format!("r{n}"),
                    },
                )
                .unwrap();
        }
        ledger.sync().unwrap();
    }

    fn run(
        json: bool,
        command: impl FnOnce(&mut Out<'_>) -> Result<(), CliError>,
    ) -> (String, Result<(), CliError>) {
        let mut bytes = Vec::new();
        let result = command(&mut Out::new(&mut bytes, json, Paint(false), T));
        (String::from_utf8(bytes).unwrap(), result)
    }

    #[test]
    fn a_good_ledger_is_described() {
        let (_temp, context) = ledger(3);
        let (text, result) = run(false, |out| verify(&context, None, out));
        result.unwrap();
        assert!(
            text.contains(
                "state/ledger.log: every entry and every signature is good\n  entries  3\n"
            ),
            "{text}"
        );
        assert!(text.contains("(this node's)"), "{text}");
        let (text, result) = run(true, |out| verify(&context, None, out));
        result.unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["ok"], &value["entries"]), (&json!(true), &json!(3)));
    }

    #[test]
    fn damage_is_exit_code_1_and_names_the_entry() {
        let (_temp, context) = ledger(3);
        let path = StateDir::open(&context.state_dir().unwrap())
            .unwrap()
            .ledger();
        let mut bytes = crate::state::read_capped(&path, 1 << 20).unwrap();
        let at = bytes.windows(2).position(|w| w == b"r1").unwrap();
        bytes[at] = b'X';
        crate::state::write_atomic(&path, &bytes, 0o600).unwrap();
        let (text, result) = run(true, |out| verify(&context, None, out));
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("entry 2 "), "{error}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["ok"], &value["entry"]), (&json!(false), &json!(2)));
        let (text, result) = run(false, |out| show(&context, None, None, out));
        assert!(
            text.contains("reason=r0") && !text.contains("reason=r2"),
            "{text}"
        );
        assert_eq!(result.unwrap_err().exit_code(), 1);
    }

    #[test]
    fn another_nodes_ledger_in_our_place_is_noticed() {
        let (_temp, context) = ledger(1);
        let (other, _) = ledger(1);
        let ours = StateDir::open(&context.state_dir().unwrap())
            .unwrap()
            .ledger();
        std::fs::copy(other.path().join("state/ledger.log"), ours).unwrap();
        let (_, result) = run(false, |out| verify(&context, None, out));
        assert!(result.unwrap_err().to_string().contains("another key"));
        let copy = other.path().join("state/ledger.log");
        run(false, |out| verify(&context, Some(copy), out))
            .1
            .unwrap();
    }

    #[test]
    fn show_prints_all_or_the_last() {
        let (_temp, context) = ledger(3);
        let (text, result) = run(false, |out| show(&context, None, None, out));
        result.unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.starts_with("     1  2023-11-14T22:13:20.000000Z  stopped       reason=r0\n"),
            "{text}"
        );
        let (text, _) = run(true, |out| show(&context, Some(1), None, out));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["entry"], &value["record"]["reason"]),
            (&json!(3), &json!("r2"))
        );
    }

    #[test]
    fn a_missing_ledger_is_not_called_damaged() {
        let (_temp, context) = ledger(0);
        let (_, result) = run(false, |out| {
            verify(&context, Some("/nonexistent/l".into()), out)
        });
        let error = result.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the ledger /nonexistent/l"),
            "{error}"
        );
    }

    #[test]
    fn long_values_are_cut_and_nothing_moves_the_terminal() {
        let entry = Entry {
            seq: 1,
            time_unix_us: T,
            kind: 9,
            payload: Vec::new(),
        };
        let record = json!({"record": "vote_seen", "vote": "A".repeat(500), "voter": "x\u{1b}"});
        let text = line(&entry, &record, Paint(false));
        assert!(
            text.contains(&format!(
                "vote={}…  voter=x\u{fffd}\n",
                "A".repeat(MAX_VALUE)
            )),
            "{text}"
        );
        assert!(line(&entry, &Value::Null, Paint(false)).ends_with("kind 9\n"));
    }
}
