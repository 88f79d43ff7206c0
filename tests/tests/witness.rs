//! Peers as witnesses of each other's ledgers, with the real agents.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{PATIENCE, options, words_of};
use serde_json::Value;
use xtask::clock;
use xtask::lab::Lab;
use xtask::sh;

const POLL: Duration = Duration::from_millis(250);
/// Longer than an agent takes to come back and to be asked for its checkpoint, also on a busy machine.
const PROVED: Duration = Duration::from_mins(1);

fn witnessed() -> Result<Lab> {
    let mut options = options()?.nodes(4);
    "[ledger]\ncheckpoint = \"1s\"\n".clone_into(&mut options.extra_config);
    Lab::start(options)
}

/// Makes an entry in a node's ledger.
fn note(lab: &Lab, node: usize, address: &str) -> Result<()> {
    lab.agent(node)?.must(&[
        "block",
        address,
        "--for",
        "5m",
        "--reason",
        "for the ledger",
    ])?;
    Ok(())
}

/// Waits for a checkpoint of a node that covers at least `entries` and that all peers have cosigned.
fn wait_for_witnesses(lab: &Lab, node: usize, entries: u64) -> Result<Value> {
    let mut last = Value::Null;
    let found = clock::wait_until(PATIENCE, POLL, || {
        last = lab.agent(node)?.json(&["ledger", "verify"])?;
        let of = |key| last.get("checkpoint").and_then(|c| c.get(key));
        let names = of("witnesses")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        let size = of("size").and_then(Value::as_u64).unwrap_or(0);
        Ok((names == 3 && size >= entries).then(|| last.clone()))
    })?;
    found.with_context(|| format!("not cosigned by three: {last}"))
}

fn entries(lab: &Lab, node: usize) -> Result<u64> {
    let report: Value = lab.agent(node)?.json(&["ledger", "verify"])?;
    let entries = report.get("entries").and_then(Value::as_u64);
    entries.context("its entries")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    sh::output(std::process::Command::new("cp").arg("-a").arg(from).arg(to))?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn peers_cosign_checkpoints_and_an_entry_is_proved_offline() -> Result<()> {
    let mut lab = witnessed()?;
    note(&lab, 1, "192.0.2.7")?;
    let before = entries(&lab, 1)?;
    note(&lab, 1, "192.0.2.8")?;
    let report = wait_for_witnesses(&lab, 1, before.saturating_add(1))?;
    let entry = report["checkpoint"]["size"].to_string();
    let proof = lab.agent(1)?.must(&["ledger", "prove", &entry])?;
    let work = lab.state().work_dir.clone();
    let file = work.join("proof.json");
    std::fs::write(&file, proof)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let folder = lab.node(1)?.state_dir.join("ledger");
    let moved = work.join("moved");
    copy(&folder, &moved)?;
    // Node 2 has never seen the ledger, only the two files.
    let path = file.to_str().context("a path that is text")?;
    let proved: Value = lab.agent(2)?.json(&["ledger", "verify", path])?;
    let names = proved["checkpoint"]["witnesses"].as_array();
    ensure!(
        proved["ok"] == true && names.is_some_and(|names| names.len() >= 3),
        "{proved}"
    );
    let path = moved.to_str().context("a path that is text")?;
    let copied: Value = lab.agent(2)?.json(&["ledger", "verify", path])?;
    ensure!(copied["ok"] == true, "{copied}");
    // Its end cut off, from a signature before the last checkpoint on: whole in itself, but the checkpoint knows more.
    let segment = moved.join("00000000000000000001.seg");
    let whole = std::fs::read(&segment)?;
    let mut found = false;
    // A signature and the next one are further apart than that.
    for length in (0..whole.len()).step_by(100) {
        std::fs::write(&segment, whole.get(..length).unwrap_or_default())?;
        let output = lab.agent(2)?.output(&["ledger", "verify", path])?;
        ensure!(
            output.status.code() == Some(1),
            "of {} bytes {length} are enough: {}",
            whole.len(),
            words_of(&output)
        );
        if words_of(&output).contains("cut back") {
            found = true;
            break;
        }
    }
    ensure!(found, "a ledger without its end passes");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_brought_back_from_an_old_copy_is_proved_to_have_rolled_back() -> Result<()> {
    let mut lab = witnessed()?;
    note(&lab, 1, "192.0.2.7")?;
    wait_for_witnesses(&lab, 1, 2)?;
    // Nothing of the old copy is in force, or it would be voted for again.
    lab.agent(1)?.must(&["unblock", "192.0.2.7"])?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let ledger = lab.node(1)?.state_dir.join("ledger");
    let old = lab.state().work_dir.join("old");
    copy(&ledger, &old)?;
    lab.start_agent(1)?;
    lab.wait_for_mesh()?;
    // What is in force is written down again after a restart; what has ended is not. So the ledger does not grow to its
    // old size, in however long a time, before its first checkpoint: a larger one proves nothing.
    for n in 1..25 {
        let address = format!("192.0.2.{n}");
        note(&lab, 1, &address)?;
        lab.agent(1)?.must(&["unblock", &address])?;
    }
    let known = wait_for_witnesses(&lab, 1, entries(&lab, 1)?)?;

    lab.stop_agent(1, Signal::SIGTERM)?;
    std::fs::remove_dir_all(&ledger)?;
    copy(&old, &ledger)?;
    lab.start_agent(1)?;
    // Its next checkpoint is smaller than one it signed before, and later.
    for node in 2..=4 {
        let found = clock::wait_until(PROVED, POLL, || {
            let shown = lab.agent(node)?.must(&["ledger", "show", "--json"])?;
            // A node that has forgotten what it said may be caught at that before its first checkpoint, and is cut off
            // then: seen on busy machines only.
            let peers = lab.agent(node)?.peers()?;
            let otherwise = peers.iter().any(|peer| {
                peer.name == "n1" && peer.equivocated && peer.quarantined && !peer.connected
            });
            Ok((shown.contains("\"ledger_fork\"") || otherwise).then_some(()))
        })?;
        ensure!(
            found.is_some(),
            "node {node} has no proof against node 1, whose witnesses knew {known}\nand which has {}",
            lab.agent(1)?.must(&["ledger", "verify", "--json"])?
        );
    }
    Ok(())
}
