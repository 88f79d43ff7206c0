//! In a mesh of more nodes than seats, those with a seat decide for all.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::chaos::attacker;
use secmesh_tests::decide::{attack, confirm, nodes, wait_decided};
use secmesh_tests::outcast::{flood_from, seen_by};
use secmesh_tests::{PATIENCE, attack_two_nodes, ensure_defended, options, wait_for_blocks};
use serde_json::Value;
use xtask::clock;
use xtask::lab::Lab;
use xtask::lab::generators::Kind;
use xtask::lab::net::{self, Family};

const NODES: usize = 7;
/// Longer than a pause between two attempts to connect.
const SESSIONS: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// Longer than seven nodes take to be in one epoch.
const EPOCH: Duration = Duration::from_secs(30);

/// The ids of those with a seat, once all nodes name the same of seven.
fn seats(lab: &Lab) -> Result<Vec<String>> {
    let mut last = Vec::new();
    let same = clock::wait_until(EPOCH, Duration::from_millis(100), || {
        last = (1..=NODES)
            .map(|number| lab.agent(number)?.json::<Value>(&["epoch"]))
            .collect::<Result<Vec<Value>>>()?;
        let first = last.first().cloned().unwrap_or_default();
        let equal = last.iter().all(|view| {
            ["hash", "committee"]
                .iter()
                .all(|key| view.get(key) == first.get(key))
        });
        let members = first
            .get("members")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        let seats = first
            .pointer("/committee/seats")
            .and_then(Value::as_object)
            .cloned();
        Ok(seats.filter(|_| equal && members == NODES))
    })?;
    let seats = same.with_context(|| format!("no common epoch with a committee: {last:#?}"))?;
    Ok(seats.keys().cloned().collect())
}

/// A lab of seven nodes with four seats, and the numbers of those who have one and of those who have none.
fn found() -> Result<(Lab, Vec<usize>, Vec<usize>)> {
    let mut founded = options()?.nodes(NODES);
    founded.init = &["--committee", "4", "--probation", "0"];
    let lab = Lab::start(founded)?;
    let seats = seats(&lab)?;
    let (mut seated, mut without) = (Vec::new(), Vec::new());
    for number in 1..=NODES {
        let status: Value = lab.agent(number)?.json(&["status"])?;
        let quorum = status.get("quorum").unwrap_or(&Value::Null);
        let own = status.pointer("/node/id").and_then(Value::as_str);
        let has = quorum.pointer("/committee/own_seat") == Some(&Value::Bool(true));
        ensure!(
            has == own.is_some_and(|own| seats.iter().any(|seat| seat == own)),
            "n{number}: {quorum:#} {seats:?}"
        );
        if has {
            seated.push(number);
        } else {
            without.push(number);
        }
    }
    ensure!(
        seated.len() == 4 && without.len() == 3,
        "{seated:?} have a seat, {without:?} have none"
    );
    Ok((lab, seated, without))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn four_of_seven_decide_for_all() -> Result<()> {
    let (lab, _, without) = found()?;
    let nodes = lab.state().nodes.clone();
    let outcome = attack_two_nodes(&lab, Kind::SynFlood, false)?;
    ensure_defended(&outcome)?;
    wait_for_blocks(&nodes, outcome.source, true)?;

    // By a node without a seat; it counts for its operator's word as any other.
    let key = operator_key(&lab)?;
    let number = *without.first().context("nobody is without a seat")?;
    lab.agent(number)?.must(&[
        "unblock",
        &outcome.source.to_string(),
        "--operator-key",
        &key,
    ])?;
    wait_for_blocks(&nodes, outcome.source, false)
}

fn operator_key(lab: &Lab) -> Result<String> {
    let key = lab.node(1)?.state_dir.join("operator.key");
    Ok(key.to_string_lossy().into_owned())
}

fn names(numbers: &[usize]) -> BTreeSet<String> {
    numbers.iter().map(|number| format!("n{number}")).collect()
}

fn all_but(out: &[usize]) -> Vec<usize> {
    (1..=NODES).filter(|number| !out.contains(number)).collect()
}

/// Waits until all but these have cut these off, at every level, and are connected to each other.
fn wait_until_out(lab: &Lab, out: &[usize]) -> Result<()> {
    let healthy = all_but(out);
    let mut last = Vec::new();
    let done = clock::wait_until(SESSIONS, POLL, || {
        last.clear();
        for number in &healthy {
            let (quarantined, connected) = seen_by(lab, *number)?;
            let mut others = names(&healthy);
            others.remove(&format!("n{number}"));
            let good = quarantined == names(out) && connected == others;
            last.push((*number, quarantined, connected, good));
        }
        Ok(last.iter().all(|(.., good)| *good).then_some(()))
    })?;
    done.with_context(|| format!("not just {out:?} are cut off: {last:?}"))?;
    let kernels = nodes(lab, &healthy)?;
    for number in 1..=NODES {
        let address = net::node_address(Family::V4, number);
        if out.contains(&number) || number == *healthy.first().context("nobody is left")? {
            wait_for_blocks(&kernels, address, out.contains(&number))?;
        }
    }
    Ok(())
}

/// A node with a seat and one without attack all others. Both are cut off, the others hold on to each other and go on
/// deciding, also while one of the three seats that are left is killed and comes back; then both are taken back.
#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn nodes_with_and_without_a_seat_are_cut_off_and_taken_back() -> Result<()> {
    let (mut lab, seated, without) = found()?;
    // n1 is left alone: the operator is there.
    let last = |of: &[usize]| of.last().copied().context("nobody");
    let (bad, worse) = (last(&seated)?, last(&without)?);
    let crashing = *seated.get(2).context("four have a seat")?;

    let generators = flood_from(&lab, bad, &all_but(&[bad]))?;
    wait_until_out(&lab, &[bad])?;
    drop(generators);
    confirm(&lab, &all_but(&[bad])[..2], "198.51.100.1".parse()?)?;
    wait_decided(&lab, &all_but(&[bad]), "198.51.100.1".parse()?, PATIENCE)?;

    // All three seats that are left have to agree to this.
    let out = [bad, worse];
    let generators = flood_from(&lab, worse, &all_but(&out))?;
    wait_until_out(&lab, &out)?;
    drop(generators);
    let healthy = all_but(&out);

    // A seat dies while two others are attacked, and comes back while they still are.
    let source = attacker(Family::V4, 1)?;
    let others: Vec<usize> = all_but(&[bad, worse, crashing]);
    let mut attacked = attack(&lab, &others[..2], source)?;
    lab.stop_agent(crashing, Signal::SIGKILL)?;
    wait_decided(&lab, &others, source, PATIENCE)?;
    wait_for_blocks(&nodes(&lab, &others)?, source, true)?;
    lab.start_agent(crashing)?;
    wait_until_out(&lab, &out)?;
    wait_decided(&lab, &healthy, source, PATIENCE)?;
    wait_for_blocks(&nodes(&lab, &healthy)?, source, true)?;
    attacked
        .iter_mut()
        .for_each(secmesh_tests::chaos::Flood::stop);
    // The seat that came back has a say: with it and one more there are enough.
    let witnesses = [crashing, *others.first().context("nobody is left")?];
    confirm(&lab, &witnesses, "198.51.100.2".parse()?)?;
    wait_decided(&lab, &healthy, "198.51.100.2".parse()?, PATIENCE)?;

    let key = operator_key(&lab)?;
    for number in out {
        let name = format!("n{number}");
        let agent = lab.agent(*healthy.first().context("nobody is left")?)?;
        agent.must(&["readmit", &name, "--operator-key", &key])?;
    }
    wait_until_out(&lab, &[])?;

    // By the operator's order, and taken back by the seats: nobody holds anything against it. The one that asks for it
    // has no seat.
    let asks = *without.first().context("nobody")?;
    let framed = *without.get(1).context("nobody")?;
    let name = format!("n{framed}");
    let say = [
        "quarantine",
        &name,
        "--reason",
        "a test",
        "--operator-key",
        &key,
    ];
    lab.agent(asks)?.must(&say)?;
    wait_until_out(&lab, &[framed])?;
    lab.agent(asks)?.must(&["readmit", &name])?;
    wait_until_out(&lab, &[])?;
    confirm(&lab, &[bad, worse], "198.51.100.3".parse()?)?;
    wait_decided(&lab, &all_but(&[]), "198.51.100.3".parse()?, PATIENCE)
}
