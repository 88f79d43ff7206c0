//! Nodes join, are killed and are removed; what is in force is the same on all of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::lab;
use serde_json::Value;
use xtask::clock;
use xtask::lab::Lab;

/// Longer than a round that somebody does not answer.
const EPOCH: Duration = Duration::from_secs(30);

/// What each of these nodes says of the epoch, once they all say the same and `wanted` holds.
fn agreed(lab: &Lab, nodes: &[usize], wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Vec::new();
    let same = clock::wait_until(EPOCH, Duration::from_millis(100), || {
        last = nodes
            .iter()
            .map(|number| lab.agent(*number)?.json::<Value>(&["epoch"]))
            .collect::<Result<_>>()?;
        let first = last.first().cloned().unwrap_or_default();
        let equal = last.iter().all(|view| {
            ["hash", "members"]
                .iter()
                .all(|key| view.get(key) == first.get(key))
        });
        Ok((equal && wanted(&first)).then_some(first))
    })?;
    same.with_context(|| format!("the nodes do not agree: {last:#?}"))
}

fn members(view: &Value) -> usize {
    view["members"].as_array().map_or(0, Vec::len)
}

fn weight(view: &Value, name: &str) -> Option<u64> {
    let members = view["members"].as_array()?;
    members.iter().find(|m| m["name"] == name)?["weight"].as_u64()
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn nodes_join_die_and_leave_and_the_rest_agree_on_who_counts() -> Result<()> {
    let mut lab = lab(5)?;
    let all = agreed(&lab, &[1, 2, 3, 4, 5], |view| members(view) == 5)?;
    ensure!(all["total_weight"] == 400, "{all:#}");
    ensure!(
        weight(&all, "n4") == Some(100),
        "the fourth counts at once: {all:#}"
    );
    ensure!(
        weight(&all, "n5") == Some(0),
        "the fifth is on probation: {all:#}"
    );
    ensure!(all["not_byzantine_tolerant"].is_null(), "{all:#}");

    // One is killed while the operator removes another: three of four form the next epoch.
    lab.stop_agent(2, Signal::SIGKILL)?;
    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy().into_owned();
    lab.agent(3)?
        .must(&["peers", "remove", "n5", "--operator-key", &key])?;
    let four = agreed(&lab, &[1, 3, 4], |view| members(view) == 4)?;
    ensure!(four["number"].as_u64() > all["number"].as_u64());

    // It comes back with the epoch of before, and catches up.
    lab.start_agent(2)?;
    let again = agreed(&lab, &[1, 2, 3, 4], |view| members(view) == 4)?;
    ensure!(again["hash"] == four["hash"]);

    // All of them at once: the disks have it.
    for number in 1..=4 {
        lab.stop_agent(number, Signal::SIGKILL)?;
    }
    for number in 1..=4 {
        lab.start_agent(number)?;
    }
    let kept = agreed(&lab, &[1, 2, 3, 4], |view| members(view) == 4)?;
    ensure!(kept["hash"] == four["hash"], "the epoch was forgotten");

    // The one that was removed is let in nowhere any more.
    let peers = lab.agent(5)?.peers()?;
    ensure!(
        peers.iter().all(|peer| peer.this_node || !peer.connected),
        "n5 is still connected: {peers:?}"
    );
    Ok(())
}
