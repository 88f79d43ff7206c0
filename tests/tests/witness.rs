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

fn copy(from: &Path, to: &Path) -> Result<()> {
    sh::output(std::process::Command::new("cp").arg("-a").arg(from).arg(to))?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn peers_cosign_checkpoints_and_an_entry_is_proved_offline() -> Result<()> {
    let mut lab = witnessed()?;
    note(&lab, 1, "192.0.2.7")?;
    let report = wait_for_witnesses(&lab, 1, 2)?;
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
    // Its end cut off at a signature: whole in itself, but the checkpoint knows more.
    let segment = moved.join("00000000000000000001.seg");
    let length = segment.metadata()?.len();
    let mut found = false;
    for cut in (1..length.min(4000)).step_by(25) {
        std::fs::File::options()
            .write(true)
            .open(&segment)?
            .set_len(length - cut)?;
        let output = lab.agent(2)?.output(&["ledger", "verify", path])?;
        if words_of(&output).contains("cut back") {
            ensure!(output.status.code() == Some(1), "{}", words_of(&output));
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
    lab.stop_agent(1, Signal::SIGTERM)?;
    let ledger = lab.node(1)?.state_dir.join("ledger");
    let old = lab.state().work_dir.join("old");
    copy(&ledger, &old)?;
    lab.start_agent(1)?;
    lab.wait_for_mesh()?;
    for n in 1..40 {
        note(&lab, 1, &format!("192.0.2.{n}"))?;
    }
    let known = wait_for_witnesses(&lab, 1, 40)?;

    lab.stop_agent(1, Signal::SIGTERM)?;
    std::fs::remove_dir_all(&ledger)?;
    copy(&old, &ledger)?;
    lab.start_agent(1)?;
    // Its next checkpoint is smaller than one it signed before, and later.
    for node in 2..=4 {
        let found = clock::wait_until(PATIENCE, POLL, || {
            let shown = lab.agent(node)?.must(&["ledger", "show", "--json"])?;
            Ok(shown.contains("\"ledger_fork\"").then_some(()))
        })?;
        ensure!(
            found.is_some(),
            "node {node} has no proof against node 1, whose witnesses knew {known}"
        );
    }
    Ok(())
}
