//! kill -9 of an agent leaves the ledger whole and the blocks in place.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{
    attack_two_nodes, ensure_defended, kernel_block, lab, wait_for_blocks, words_of,
};
use xtask::lab::attack;
use xtask::lab::generators::Kind;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_killed_agent_leaves_its_blocks_in_force_and_its_ledger_whole_and_a_restart_knows_both()
-> Result<()> {
    let mut lab = lab(4)?;
    let outcome = attack_two_nodes(&lab, Kind::SynFlood, false)?;
    ensure_defended(&outcome)?;
    let node = lab.node(1)?.clone();
    let subject = outcome.source.to_string();
    let decided = outcome.decision.context("a decision")?.id;

    lab.stop_agent(1, Signal::SIGKILL)?;
    let before =
        kernel_block(&node, outcome.source)?.context("the block left the kernel with the agent")?;
    ensure!(
        !attack::attacker_gets_through(lab.state(), outcome.source, &node)?,
        "the attacker got through"
    );
    let after = kernel_block(&node, outcome.source)?.context("the block left the kernel")?;
    ensure!(
        after.hits > before.hits,
        "nothing met the block: {before:?}, then {after:?}"
    );

    // Offline, on the files alone.
    let verified = lab.agent(1)?.output(&["ledger", "verify"])?;
    ensure!(
        verified.status.success(),
        "the ledger is not whole: {}",
        words_of(&verified)
    );

    lab.start_agent(1)?;
    lab.wait_for_mesh()?;
    wait_for_blocks(std::slice::from_ref(&node), outcome.source, true)?;
    let known = lab.agent(1)?.decisions()?;
    let restored = known.iter().find(|decision| decision.id == decided);
    let restored =
        restored.with_context(|| format!("the decision {decided} is forgotten: {known:?}"))?;
    ensure!(
        restored.subject == subject && restored.enforced,
        "not in force any more: {restored:?}"
    );
    ensure!(
        !attack::attacker_gets_through(lab.state(), outcome.source, &node)?,
        "the restart let the attacker in"
    );
    let verified = lab.agent(1)?.output(&["ledger", "verify"])?;
    ensure!(
        verified.status.success(),
        "the ledger is not whole after the restart: {}",
        words_of(&verified)
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_changed_byte_in_a_ledger_is_found() -> Result<()> {
    let mut lab = lab(1)?;
    lab.agent(1)?.must(&[
        "block",
        "192.0.2.7",
        "--for",
        "5m",
        "--reason",
        "for the ledger",
    ])?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let whole = lab.agent(1)?.output(&["ledger", "verify"])?;
    ensure!(
        whole.status.success(),
        "not whole to begin with: {}",
        words_of(&whole)
    );

    let folder = lab.node(1)?.state_dir.clone();
    let file = largest_ledger_file(&folder)
        .with_context(|| format!("no ledger in {}", folder.display()))?;
    let mut bytes = std::fs::read(&file).context("cannot read the ledger")?;
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    std::fs::write(&file, bytes).context("cannot write the ledger")?;
    let changed = lab.agent(1)?.output(&["ledger", "verify"])?;
    ensure!(
        changed.status.code() == Some(1),
        "a changed ledger passes ({}): {}",
        changed.status,
        words_of(&changed)
    );
    Ok(())
}

/// The file that holds the entries: the largest with "ledger" in its path.
fn largest_ledger_file(folder: &std::path::Path) -> Option<std::path::PathBuf> {
    let mut folders = vec![folder.to_path_buf()];
    let mut files = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains("ledger") {
                files.push((entry.metadata().ok()?.len(), path));
            }
        }
    }
    files.into_iter().max().map(|(_, path)| path)
}
