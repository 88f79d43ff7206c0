//! What nodes say of each other reaches all of them, adds up to the same everywhere, and survives.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{attack_two_nodes, ensure_defended, lab, wait_for_blocks};
use serde_json::Value;
use xtask::lab::Lab;
use xtask::lab::generators::Kind;

/// Longer than two nodes take to compare themselves a few times.
const CONVERGES: Duration = Duration::from_secs(30);

/// What a node says of all nodes, without what is its own opinion.
fn trust(lab: &Lab, number: usize) -> Result<Value> {
    let mut view: Value = lab.agent(number)?.json(&["trust"])?;
    let nodes = view
        .get_mut("nodes")
        .and_then(Value::as_array_mut)
        .context("no nodes")?;
    for node in nodes {
        let node = node.as_object_mut().context("no node")?;
        node.remove("local_per_mille");
        node.remove("this_node");
    }
    Ok(view)
}

fn weights(view: &Value) -> Vec<(String, u64)> {
    let nodes = view.get("nodes").and_then(Value::as_array);
    let mut weights: Vec<(String, u64)> = nodes
        .into_iter()
        .flatten()
        .filter_map(|node| {
            let name = node.get("name")?.as_str()?.to_owned();
            Some((name, node.get("target")?.as_u64()?))
        })
        .collect();
    weights.sort();
    weights
}

/// The hour of the wall clock that the view is of.
fn hour(view: &Value) -> u64 {
    view.get("epoch").and_then(Value::as_u64).unwrap_or(0)
}

/// What is left of a newcomer's weight after one false positive: four misses. When the hour turns they fade
/// by a sixteenth, and the test may run across a turn.
fn is_lowered(weight: u64, turned: bool) -> bool {
    weight == 33 || (turned && weight == 34)
}

/// Waits until all nodes say the same, and `holds` of it.
fn agree(lab: &Lab, nodes: usize, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + CONVERGES;
    loop {
        let views: Vec<Value> = (1..=nodes)
            .map(|number| trust(lab, number))
            .collect::<Result<_>>()?;
        let first = views.first().context("no nodes")?.clone();
        if views.iter().all(|view| *view == first) && holds(&first) {
            return Ok(first);
        }
        ensure!(
            Instant::now() < until,
            "the nodes do not agree, or not on what they should: {views:#?}"
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_operators_verdict_costs_those_who_confirmed_the_same_on_every_node_and_survives_a_kill()
-> Result<()> {
    let mut lab = lab(4)?;
    let nodes = lab.state().nodes.clone();
    let before = agree(&lab, 4, |_| true)?;
    ensure!(
        weights(&before).iter().all(|(_, weight)| *weight == 100),
        "not neutral to begin with: {before:#}"
    );
    let outcome = attack_two_nodes(&lab, Kind::SynFlood, false)?;
    ensure_defended(&outcome)?;
    wait_for_blocks(&nodes, outcome.source, true)?;

    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy().into_owned();
    let subject = outcome.source.to_string();
    lab.agent(3)?.must(&[
        "unblock",
        &subject,
        "--false-positive",
        "--operator-key",
        &key,
    ])?;
    let judged = agree(&lab, 4, |view| {
        weights(view)
            .iter()
            .filter(|(_, weight)| is_lowered(*weight, hour(view) > hour(&before)))
            .count()
            == 2
    })?;
    let text = lab.agent(2)?.must(&["trust"])?;
    ensure!(
        text.contains("that the operator called a false positive") && text.contains(&subject),
        "the history does not say why: {text}"
    );

    // Nothing of it is only in memory.
    lab.stop_agent(2, Signal::SIGKILL)?;
    lab.start_agent(2)?;
    lab.wait_for_mesh()?;
    let after = agree(&lab, 4, |_| true)?;
    let turned = hour(&after) > hour(&judged);
    let same = weights(&after).iter().eq(weights(&judged).iter());
    let faded = weights(&after)
        .iter()
        .zip(&weights(&judged))
        .all(|(now, then)| now == then || (now.0 == then.0 && is_lowered(now.1, turned)));
    ensure!(
        same || (turned && faded),
        "before the kill {judged:#}, after it {after:#}"
    );
    let statements = |view: &Value| view.get("frontier").cloned();
    ensure!(
        statements(&after) == statements(&judged),
        "another frontier: {judged:#} {after:#}"
    );
    // A second kill, and the log is not there any more: the node learns it back from its peers.
    lab.stop_agent(2, Signal::SIGKILL)?;
    std::fs::remove_file(lab.node(2)?.state_dir.join("evidence.log"))
        .context("the evidence log")?;
    lab.start_agent(2)?;
    lab.wait_for_mesh()?;
    let learned = agree(&lab, 4, |_| true)?;
    ensure!(
        statements(&learned) == statements(&judged),
        "not learned back: {learned:#}"
    );
    Ok(())
}
