//! Nodes that leave a mesh over NATS, for a while or for good: the others are told, and the server keeps nothing of theirs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::chaos::attacker;
use secmesh_tests::decide::{confirm, wait_decided};
use secmesh_tests::nats::Intruder;
use secmesh_tests::partition::{counter, ensure_no_liars, quorum, same, sees};
use secmesh_tests::{PATIENCE, options, wait_for_blocks};
use serde_json::{Value, json};
use xtask::clock;
use xtask::lab::broker::Broker;
use xtask::lab::net::Family;
use xtask::lab::{Carrier, Lab, ns};

/// Longer than a peer is silent before it counts as gone, and a suspicion lasts.
const NOTICED: Duration = Duration::from_secs(20);
/// Longer than a round that somebody does not answer.
const EPOCH: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const INBOX: &str = "scenario.answers";
/// How long the server keeps the consumer of a node that does not ask for it, nanoseconds.
const HOUR_NS: u64 = 3_600_000_000_000;

/// Asks the server, from the client's machine.
fn ask(lab: &Lab, api: &str, question: Value) -> Result<Value> {
    let api = api.to_owned();
    ns::within(&lab.state().namespace("client"), move || {
        Intruder::connect(Broker::address(), INBOX)?.ask(INBOX, &api, &question)
    })
}

/// The mesh's stream: the one there is.
#[expect(
    clippy::indexing_slicing,
    reason = "JSON that lacks a key reads as null, and the check fails"
)]
fn stream(lab: &Lab) -> Result<String> {
    let names = ask(lab, "STREAM.NAMES", json!({}))?;
    match names["streams"].as_array().map(Vec::as_slice) {
        Some([name]) => Ok(name.as_str().context("a name")?.to_owned()),
        _ => anyhow::bail!("not one stream: {names}"),
    }
}

/// Waits until the server has the consumers of these nodes and no other.
#[expect(
    clippy::indexing_slicing,
    reason = "JSON that lacks a key reads as null, and the check fails"
)]
fn ensure_consumers(lab: &Lab, stream: &str, nodes: &[usize]) -> Result<()> {
    let mut wanted: Vec<String> = nodes
        .iter()
        .map(|node| consumer(lab, *node))
        .collect::<Result<_>>()?;
    wanted.sort();
    let mut last = Value::Null;
    let so = clock::wait_until(PATIENCE, POLL, || {
        last = ask(lab, &format!("CONSUMER.NAMES.{stream}"), json!({}))?;
        let names = last["consumers"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        names.sort_unstable();
        Ok((names == wanted).then_some(()))
    })?;
    so.with_context(|| format!("the server has {last}, not {wanted:?}"))
}

/// The name of a node's consumer; its agent may be gone, its files are there.
#[expect(
    clippy::indexing_slicing,
    reason = "JSON that lacks a key reads as null, and the check fails"
)]
fn consumer(lab: &Lab, node: usize) -> Result<String> {
    let identity = lab.node(node)?.state_dir.join("identity.json");
    let identity: Value = serde_json::from_str(&std::fs::read_to_string(identity)?)?;
    let id = identity["data"]["node"].as_str();
    let id = id.context("no id in identity.json")?;
    Ok(format!("node-{id}"))
}

fn told(lab: &Lab, nodes: &[usize]) -> Result<Vec<u64>> {
    let farewells = |node: &usize| counter(lab, *node, "transport_nats_farewells");
    nodes.iter().map(farewells).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_that_stops_says_so_and_leaves_nothing_with_the_server_and_may_come_back() -> Result<()> {
    let mut lab = Lab::start(options()?.nodes(4).carrier(Carrier::Nats))?;
    let state = lab.state().clone();
    let stream = stream(&lab)?;
    ensure_consumers(&lab, &stream, &[1, 2, 3, 4])?;
    ensure!(told(&lab, &[1, 2, 3])? == [0; 3]);

    lab.stop_agent(4, Signal::SIGTERM)?;
    // By its word, and not by its silence; each hears it once.
    for node in [1, 2, 3] {
        sees(&lab, node, 4, "down", NOTICED)?;
        quorum(&lab, node, "FULL", 300, NOTICED)?;
    }
    ensure!(
        told(&lab, &[1, 2, 3])? == [1; 3],
        "{:?}",
        told(&lab, &[1, 2, 3])?
    );
    ensure_consumers(&lab, &stream, &[1, 2, 3])?;
    let [first, second] = [attacker(Family::V4, 2)?, attacker(Family::V4, 3)?];
    confirm(&lab, &[1, 2], first)?;
    wait_decided(&lab, &[1, 2, 3], first, PATIENCE)?;

    // It comes back, and finds a consumer of a version of before, which had to be acknowledged to: it makes its own.
    let name = consumer(&lab, 4)?;
    let id = name.trim_start_matches("node-").to_owned();
    let info = ask(&lab, &format!("STREAM.INFO.{stream}"), json!({}))?;
    let all = info["config"]["subjects"][0].as_str().context("subjects")?;
    let own = format!("{}{id}.*", all.trim_end_matches('>'));
    let old = json!({"stream_name": stream, "config": {
        "durable_name": name, "ack_policy": "explicit", "deliver_policy": "new", "filter_subject": own,
    }});
    let create = format!("CONSUMER.DURABLE.CREATE.{stream}.{name}");
    let made = ask(&lab, &create, old)?;
    ensure!(made["config"]["ack_policy"] == "explicit", "{made}");
    lab.start_agent(4)?;
    lab.wait_for_mesh()?;
    let made = ask(&lab, &format!("CONSUMER.INFO.{stream}.{name}"), json!({}))?;
    ensure!(made["config"]["ack_policy"] == "none", "{made}");
    // What it missed it has, and it takes part.
    wait_decided(&lab, &[4], first, NOTICED)?;
    confirm(&lab, &[3, 4], second)?;
    wait_decided(&lab, &[1, 2, 3, 4], second, PATIENCE)?;
    for subject in [first, second] {
        wait_for_blocks(&lab.state().nodes, subject, true)?;
    }

    // One that is just gone cannot say so. What it leaves is bounded.
    lab.stop_agent(3, Signal::SIGKILL)?;
    for node in [1, 2, 4] {
        sees(&lab, node, 3, "down", NOTICED)?;
    }
    ensure!(told(&lab, &[1, 2])? == [1; 2] && told(&lab, &[4])? == [0]);
    let left = format!("CONSUMER.INFO.{stream}.{}", consumer(&lab, 3)?);
    let left = ask(&lab, &left, json!({}))?;
    ensure!(
        left["config"]["inactive_threshold"] == HOUR_NS && left["config"]["max_deliver"] == 1,
        "{left}"
    );
    let info = ask(&lab, &format!("STREAM.INFO.{stream}"), json!({}))?;
    for bound in ["max_age", "max_bytes", "max_msg_size"] {
        ensure!(
            info["config"][bound].as_i64().is_some_and(|n| n > 0),
            "{info}"
        );
    }
    lab.start_agent(3)?;
    lab.wait_for_mesh()?;

    // All of them: nobody is left to tell, and the server has nobody's.
    for node in [1, 2, 3, 4] {
        lab.stop_agent(node, Signal::SIGTERM)?;
    }
    ensure_consumers(&lab, &stream, &[])?;
    drop(lab);
    let left = state.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_that_is_removed_is_heard_no_more_and_what_it_leaves_goes_with_its_agent() -> Result<()> {
    let mut lab = Lab::start(options()?.nodes(5).carrier(Carrier::Nats))?;
    let stream = stream(&lab)?;
    ensure_consumers(&lab, &stream, &[1, 2, 3, 4, 5])?;
    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy().into_owned();
    lab.agent(3)?
        .must(&["peers", "remove", "n5", "--operator-key", &key])?;
    let rest = [1, 2, 3, 4];
    for node in rest {
        let gone = clock::wait_until(EPOCH, POLL, || {
            let peers = lab.agent(node)?.peers()?;
            Ok(peers.iter().all(|peer| peer.name != "n5").then_some(()))
        })?;
        gone.with_context(|| format!("n{node} still has n5 for a member"))?;
    }
    // Its agent still runs, and nobody has a session with it.
    let alone = clock::wait_until(NOTICED, POLL, || {
        let peers = lab.agent(5)?.peers()?;
        let alone = peers.iter().all(|peer| peer.this_node || !peer.connected);
        Ok(alone.then_some(()))
    })?;
    alone.context("somebody still talks with n5")?;
    same(&lab, &rest, NOTICED, |_| true)?;

    lab.stop_agent(5, Signal::SIGTERM)?;
    ensure_consumers(&lab, &stream, &rest)?;
    let subject = attacker(Family::V4, 2)?;
    confirm(&lab, &[1, 4], subject)?;
    wait_decided(&lab, &rest, subject, PATIENCE)?;
    for node in rest {
        quorum(&lab, node, "FULL", 400, PATIENCE)?;
    }
    ensure_no_liars(&lab, &rest)
}
