//! Tests of the commands about ledgers.

use std::cell::OnceCell;
use std::sync::Arc;

use super::super::Global;
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::ledger::bundle::Members;
use crate::ledger::{Ledger, Record, Retention};

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
        identity.ledger_keys(),
        Retention::default(),
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
        text.contains("state/ledger: every entry is good and signed for\n  entries     3\n"),
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
        .ledger()
        .join("00000000000000000001.seg");
    let mut bytes = crate::state::read_capped(&path, 1 << 20).unwrap();
    let at = bytes.windows(2).position(|w| w == b"r1").unwrap();
    bytes[at] = b'X';
    crate::state::write_atomic(&path, &bytes, 0o600).unwrap();
    let (text, result) = run(true, |out| verify(&context, None, out));
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("entry 2 at"), "{error}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&value["ok"], &value["entry"]), (&json!(false), &json!(2)));
    let (text, result) = run(false, |out| show(&context, None, None, out));
    assert!(!text.contains("reason=r2"), "{text}");
    assert_eq!(result.unwrap_err().exit_code(), 1);
}

#[test]
fn another_nodes_ledger_in_our_place_is_noticed() {
    let (_temp, context) = ledger(1);
    let (other, _) = ledger(1);
    let ours = StateDir::open(&context.state_dir().unwrap())
        .unwrap()
        .ledger();
    let segment = "00000000000000000001.seg";
    let theirs = other.path().join("state/ledger");
    std::fs::copy(theirs.join(segment), ours.join(segment)).unwrap();
    let (_, result) = run(false, |out| verify(&context, None, out));
    assert!(result.unwrap_err().to_string().contains("another key"));
    let copy = other.path().join("state/ledger");
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
fn an_entry_is_proved_and_the_proof_verified_elsewhere() {
    let (temp, context) = ledger(3);
    let (_, result) = run(true, |out| prove(&context, 2, None, out));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("no checkpoint"), "{error}");
    let dir = StateDir::open(&context.state_dir().unwrap()).unwrap();
    let keys = Identity::load(&dir).unwrap().ledger_keys();
    let (mut own, _) = Ledger::open(&dir.ledger(), keys, Retention::default(), T).unwrap();
    own.publish(T).unwrap();
    drop(own);
    let (proof, result) = run(false, |out| prove(&context, 2, None, out));
    result.unwrap();
    let path = temp.path().join("proof.json");
    crate::state::write_atomic(&path, proof.as_bytes(), 0o600).unwrap();
    std::fs::remove_dir_all(dir.ledger()).unwrap();
    let (text, result) = run(false, |out| verify(&context, Some(path.clone()), out));
    result.unwrap();
    assert!(text.contains("the entry is in the node's ledger"), "{text}");
    assert!(text.contains("\"reason\":\"r1\""), "{text}");
    let (text, result) = run(true, |out| verify(&context, Some(path.clone()), out));
    result.unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&value["ok"], &value["entry"]), (&json!(true), &json!(2)));
    // Another entry's number, the same proof.
    let other = proof.replace("\"entry\":2", "\"entry\":3");
    assert_ne!(other, proof);
    crate::state::write_atomic(&path, other.as_bytes(), 0o600).unwrap();
    let (text, result) = run(true, |out| verify(&context, Some(path), out));
    assert_eq!(result.unwrap_err().exit_code(), 1);
    assert!(text.contains("\"ok\":false"), "{text}");
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

#[test]
fn a_proof_that_would_not_hold_is_not_given() {
    use crate::mesh::testing::{admitted, genesis, operator, signer};
    let (_temp, context) = ledger(3);
    let dir = StateDir::open(&context.state_dir().unwrap()).unwrap();
    let keys = Identity::load(&dir).unwrap().ledger_keys();
    let (mut own, _) = Ledger::open(&dir.ledger(), keys, Retention::default(), T).unwrap();
    own.publish(T).unwrap();
    drop(own);
    let records = [admitted(1, "a")];
    let members = |genesis| Members {
        genesis,
        records: &records,
    };
    // A mesh that does not know the node says nothing of it; so the proof is one without the mesh.
    let other = genesis().sign(&operator());
    let file = proof::made(&dir.ledger(), 2, Some(members(&other))).unwrap();
    assert_eq!(file.verify().unwrap().mesh, None);
    // Anything else is wrong, and said.
    let forged = genesis().sign(&signer(9));
    let error = proof::made(&dir.ledger(), 2, Some(members(&forged))).unwrap_err();
    assert!(error.to_string().contains("would not hold"), "{error}");
}
