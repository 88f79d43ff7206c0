//! A node that lies, or attacks its peers, is cut off by the others; they go on; the operator takes it back.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::outcast::{flood_from, seen_by};
use secmesh_tests::{PATIENCE, kernel_block, lab, wait_for_blocks, words_of};
use serde_json::Value;
use xtask::clock;
use xtask::lab::Lab;
use xtask::lab::net::{self, Family};
use xtask::sh;

const POLL: Duration = Duration::from_millis(100);
/// Longer than a pause between two attempts to connect.
const SESSIONS: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// What is decided about a node in the minute of its readmission is void; and some patience.
const MINUTE: Duration = Duration::from_secs(70);
const HONEST: [usize; 3] = [1, 2, 3];

fn bad_address() -> IpAddr {
    net::node_address(Family::V4, 4)
}

/// Waits until the honest ones have cut n4 off, at every level, and hold on to each other.
fn wait_until_cut_off(lab: &Lab) -> Result<()> {
    let mut last = Vec::new();
    let done = clock::wait_until(SESSIONS, POLL, || {
        last.clear();
        for node in HONEST {
            let (quarantined, connected) = seen_by(lab, node)?;
            let good = quarantined.iter().eq(["n4"]) && connected.len() == 2;
            let good = good && !connected.contains("n4");
            last.push((node, quarantined, connected, good));
        }
        Ok(last.iter().all(|(.., good)| *good).then_some(()))
    })?;
    done.with_context(|| format!("n4 is not cut off everywhere: {last:?}"))?;
    let honest = lab.state().nodes.get(..3).context("three nodes")?;
    wait_for_blocks(honest, bad_address(), true)
}

/// What all honest nodes say of it, in all places.
#[expect(
    clippy::indexing_slicing,
    reason = "JSON that lacks a key reads as null, and the check fails"
)]
fn ensure_shown(lab: &Lab, class: &str) -> Result<()> {
    let mut decisions = std::collections::BTreeSet::new();
    for node in HONEST {
        let agent = lab.agent(node)?;
        let status: Value = agent.json(&["status"])?;
        let entry = &status["quarantined"][0];
        ensure!(
            entry["name"] == "n4" && entry["class"] == class && entry["by_operator"] == false,
            "status of node {node}: {}",
            status["quarantined"]
        );
        decisions.insert(entry["decision"].to_string());
        let quorum = &status["quorum"];
        ensure!(
            quorum["total_weight"] == 400
                && quorum["reachable_weight"] == 300
                && quorum["quarantined_weight"] == 100
                && quorum["state"] == "FULL",
            "its weight stays in W: {quorum}"
        );
        let told = agent.must(&["status"])?;
        ensure!(told.contains("cut off") && told.contains("n4"), "{told}");
        let told = agent.must(&["peers"])?;
        ensure!(told.contains("quarantined"), "{told}");
        let told = agent.must(&["explain", &bad_address().to_string()])?;
        ensure!(
            told.contains("node n4 is quarantined"),
            "explain does not say why: {told}"
        );
        let told = agent.must(&["ledger", "show", "--json"])?;
        ensure!(told.contains("quarantined"), "not in the ledger");
    }
    ensure!(decisions.len() == 1, "decided differently: {decisions:?}");
    // The kernel has a reason of its own for it.
    let before = dropped(lab)?;
    ensure!(!reaches(lab, 4, 1)?, "n4 still gets through to node 1");
    ensure!(dropped(lab)? > before, "not dropped as what it is");
    ensure!(
        reaches(lab, 1, 2)?,
        "the honest ones do not reach each other"
    );
    Ok(())
}

fn dropped(lab: &Lab) -> Result<u64> {
    let counters = lab.agent(1)?.status()?.counters;
    counters
        .get("drop_quarantine")
        .copied()
        .context("drop_quarantine")
}

/// The rest still decides: two of three witnesses block an address on all three.
fn ensure_they_decide(lab: &Lab, address: &str) -> Result<()> {
    for node in [1, 2] {
        lab.agent(node)?.must(&["block", address, "--mesh"])?;
    }
    let honest = lab.state().nodes.get(..3).context("three nodes")?;
    wait_for_blocks(honest, address.parse()?, true)?;
    let decisions = lab.agent(3)?.decisions()?;
    ensure!(
        decisions
            .iter()
            .any(|d| d.subject == address && d.is_active_mesh_block()),
        "node 3 blocks {address} on no decision of the mesh"
    );
    Ok(())
}

/// Whether a connection from one node's machine to the mesh port of another's comes about.
fn reaches(lab: &Lab, from: usize, to: usize) -> Result<bool> {
    let namespace = &lab.node(from)?.namespace;
    let target = net::node_address(Family::V4, to);
    let connect = format!("exec 3<>/dev/tcp/{target}/4747");
    let mut command = sh::as_root("ip")?;
    command.args(["netns", "exec", namespace, "timeout", "2", "bash", "-c"]);
    Ok(command.arg(connect).output()?.status.success())
}

/// The operator takes n4 back: every session comes again, and nothing is left in the kernel.
fn readmit(lab: &Lab) -> Result<()> {
    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy().into_owned();
    lab.agent(2)?
        .must(&["readmit", "n4", "--operator-key", &key])?;
    let honest = lab.state().nodes.get(..3).context("three nodes")?;
    wait_for_blocks(honest, bad_address(), false)?;
    let mut last = Vec::new();
    let done = clock::wait_until(SESSIONS, POLL, || {
        last = (1..=4)
            .map(|node| seen_by(lab, node))
            .collect::<Result<_>>()?;
        let whole = last
            .iter()
            .all(|(cut_off, up)| cut_off.is_empty() && up.len() == 3);
        Ok(whole.then_some(()))
    })?;
    done.with_context(|| format!("not whole again: {last:?}"))?;
    ensure!(reaches(lab, 4, 1)?, "n4 still does not get through");
    Ok(())
}

/// Copies a folder over another.
fn copy(from: &PathBuf, to: &PathBuf) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    sh::output(Command::new("cp").arg("-a").arg(from).arg(to))?;
    Ok(())
}

/// Waits for the beginning of a minute, so that what follows falls into one incident.
fn early_in_a_minute() -> Result<()> {
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        if now.as_secs() % 60 < 35 {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// n4's disk is set back to before its vote, and it votes again: two different votes on one thing.
fn equivocate(lab: &mut Lab) -> Result<()> {
    let state = lab.node(4)?.state_dir.clone();
    let snapshot = lab.state().work_dir.join("snapshot");
    lab.stop_agent(4, Signal::SIGTERM)?;
    copy(&state, &snapshot)?;
    lab.start_agent(4)?;
    lab.wait_for_mesh()?;
    early_in_a_minute()?;
    let say = ["block", "198.51.100.77", "--mesh", "--reason", "a vote"];
    lab.agent(4)?.output(&say)?;
    std::thread::sleep(Duration::from_millis(500));
    lab.stop_agent(4, Signal::SIGKILL)?;
    copy(&snapshot, &state)?;
    lab.start_agent(4)?;
    // It may be cut off for its ledger before it comes to the second vote.
    let up = clock::wait_until(PATIENCE, POLL, || {
        let (cut_off, _) = seen_by(lab, 1)?;
        let (_, connected) = seen_by(lab, 4)?;
        Ok((connected.len() == 3 || !cut_off.is_empty()).then_some(()))
    })?;
    up.context("n4 did not come back")?;
    lab.agent(4)?.output(&say)?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_that_contradicts_itself_is_cut_off_and_taken_back_by_the_operator() -> Result<()> {
    let mut lab = lab(4)?;
    ensure!(reaches(&lab, 4, 1)?, "the lab's network does not work");
    equivocate(&mut lab)?;
    wait_until_cut_off(&lab)?;
    ensure_shown(&lab, "misconduct")?;
    ensure_they_decide(&lab, "198.51.100.1")?;

    // A restart, and that of all, changes nothing.
    for node in HONEST {
        lab.stop_agent(node, Signal::SIGKILL)?;
    }
    for node in HONEST {
        lab.start_agent(node)?;
    }
    wait_until_cut_off(&lab)?;
    ensure_shown(&lab, "misconduct")?;
    ensure_they_decide(&lab, "198.51.100.2")?;

    // Not by one node's word, and not by an unsigned one against proof.
    let said = lab.agent(1)?.output(&["readmit", "n4"])?;
    ensure!(said.status.success(), "{}", words_of(&said));
    std::thread::sleep(Duration::from_secs(4));
    ensure!(
        kernel_block(lab.node(2)?, bad_address())?.is_some(),
        "one node alone has taken n4 back"
    );
    readmit(&lab)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_that_attacks_its_peers_is_cut_off_and_taken_back() -> Result<()> {
    let lab = lab(4)?;
    let generators = flood_from(&lab, 4, &HONEST)?;
    wait_until_cut_off(&lab)?;
    drop(generators);
    ensure_shown(&lab, "hostile_node")?;
    ensure_they_decide(&lab, "198.51.100.3")?;
    readmit(&lab)?;
    // And cut off again by the operator's word alone.
    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy().into_owned();
    let order = [
        "quarantine",
        "n4",
        "--reason",
        "ticket 4711",
        "--operator-key",
        &key,
    ];
    // Of one minute the readmission counts.
    let said = clock::wait_until(MINUTE, SECOND, || {
        let said = lab.agent(3)?.output(&order)?;
        Ok(said.status.success().then_some(()))
    })?;
    said.context("the operator's order is not taken in the next minute either")?;
    wait_until_cut_off(&lab)?;
    readmit(&lab)
}
