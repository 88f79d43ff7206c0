//! Somebody else writes the kernel's block maps; the agent puts them right and says so.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{PATIENCE, kernel_block, lab, wait_for_blocks};
use xtask::{clock, lab::Lab, sh};

const POLL: Duration = Duration::from_millis(100);

fn controller(lab: &Lab, name: &str) -> Result<u64> {
    let counters = lab.agent(1)?.status()?.controller;
    counters
        .get(name)
        .copied()
        .with_context(|| format!("no counter {name} among {counters:?}"))
}

fn bpftool(lab: &Lab, verb: &str, map: &str, rest: &[&str]) -> Result<()> {
    let pin = lab.node(1)?.pin_dir.join(map);
    let pin = pin.to_str().context("a path")?;
    let mut args = vec!["map", verb, "pinned", pin];
    args.extend(rest);
    sh::output(sh::command("bpftool").args(&args))?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn entries_that_were_taken_out_come_back_and_strays_go() -> Result<()> {
    let mut lab = lab(1)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let config = lab.node(1)?.config.clone();
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("{text}\n[respond]\nreconcile = \"1s\"\n"))?;
    lab.start_agent(1)?;

    let missing: IpAddr = "192.0.2.9".parse()?;
    lab.agent(1)?
        .must(&["block", "192.0.2.9", "--for", "10m"])?;
    lab.agent(1)?
        .must(&["block", "198.51.100.0/24", "--for", "10m"])?;
    wait_for_blocks(&lab.state().nodes, missing, true)?;
    let before = controller(&lab, "reconcile_runs")?;
    let key = ["key", "192", "0", "2", "9"];
    bpftool(&lab, "delete", "BLOCK4", &key)?;
    // The trie's key: length in host order, address, padding.
    let net = [
        "key", "24", "0", "0", "0", "198", "51", "100", "0", "0", "0", "0", "0",
    ];
    bpftool(&lab, "delete", "PREFIX4", &net)?;
    let stray = ["192", "0", "2", "10"];
    let mut value = vec!["255"; 8];
    // Hits, bytes, times and the rule are zero; the flags say "operator".
    value.extend(["0"; 36]);
    value.extend(["3", "0", "0", "0"]);
    let mut rest = vec!["key"];
    rest.extend(stray);
    rest.push("value");
    rest.extend(value);
    bpftool(&lab, "update", "BLOCK4", &rest)?;

    let stray: IpAddr = "192.0.2.10".parse()?;
    let right = clock::wait_until(PATIENCE, POLL, || {
        let node = lab.node(1)?;
        let back = kernel_block(node, missing)?.is_some();
        let gone = kernel_block(node, stray)?.is_none();
        Ok((back && gone && controller(&lab, "reconcile_runs")? > before + 1).then_some(()))
    })?;
    ensure!(
        right.is_some(),
        "not put right: {:?}, {:?}",
        kernel_block(lab.node(1)?, missing)?,
        kernel_block(lab.node(1)?, stray)?
    );
    let (added, removed) = (
        controller(&lab, "reconcile_added")?,
        controller(&lab, "reconcile_removed")?,
    );
    ensure!(
        (added, removed) == (2, 1),
        "found {added} missing and {removed} left over, not 2 and 1"
    );
    let told = lab.agent(1)?.must(&["status"])?;
    ensure!(
        told.contains("2 of 2 enforced; 2 found missing and 1 left over"),
        "{told}"
    );
    Ok(())
}
