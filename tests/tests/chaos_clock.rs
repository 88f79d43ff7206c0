//! The wall clock of a machine jumps by an hour, forward and back: blocks end by the kernel's clock.
//!
//! The agent is the real one, with a library before the C library that adds seconds to its wall clock
//! (`tests/src/wallclock.c`): the machine's own clock stays what it is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use secmesh_tests::chaos::{Flood, attacker, decisions_on};
use secmesh_tests::wallclock::WallClock;
use secmesh_tests::{PATIENCE, options, wait_for_blocks};
use xtask::clock;
use xtask::lab::generators::Kind;
use xtask::lab::net::Family;
use xtask::lab::pinned;
use xtask::lab::state::Node;
use xtask::lab::{Lab, Options};

const HOUR: i64 = 3_600;
/// How far an end may lie from where it was, ns: the two clocks are read one after the other, on a busy machine.
const NEAR_NS: u64 = 1_000_000_000;

/// When the kernel ends the block of `address`, `CLOCK_MONOTONIC` ns; past the agent.
fn kernel_end(node: &Node, address: IpAddr) -> Result<Option<u64>> {
    let entries = pinned::dump(&pinned::block_map(&node.pin_dir, address))?;
    Ok(entries
        .iter()
        .find(|entry| entry.is_of(address))
        .and_then(|entry| {
            let formatted = entry.formatted.as_ref()?;
            formatted.pointer("/value/expires_ns")?.as_u64()
        }))
}

/// Sets the clock and waits until the agent has noticed.
fn step(lab: &Lab, clock: &WallClock, seconds: i64) -> Result<()> {
    let steps = || -> Result<u64> {
        let counted: BTreeMap<String, u64> = lab.agent(1)?.status()?.controller;
        counted.get("clock_steps").copied().context("clock_steps")
    };
    let before = steps()?;
    clock.set(seconds)?;
    clock::wait_until(PATIENCE, Duration::from_millis(50), || {
        Ok((steps()? > before).then_some(()))
    })?
    .with_context(|| format!("nobody noticed a clock at {seconds} s"))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_clock_that_jumps_an_hour_neither_ends_a_block_nor_makes_it_longer() -> Result<()> {
    let built = options()?;
    let (clock, stand_in) = WallClock::make(&built.binary, None)?;
    let lab = Lab::start(
        Options {
            binary: stand_in,
            ..built
        }
        .nodes(1),
    )?;
    let node = lab.node(1)?.clone();
    let [of_node, of_mesh, short] = [
        attacker(Family::V4, 8)?,
        attacker(Family::V4, 9)?,
        attacker(Family::V4, 10)?,
    ];
    let block = |address: IpAddr, more: &[&str]| {
        let address = address.to_string();
        lab.agent(1)?.must(&[&["block", &address], more].concat())
    };
    block(of_node, &["--for", "10m"])?;
    block(of_mesh, &["--mesh"])?;
    for address in [of_node, of_mesh] {
        wait_for_blocks(std::slice::from_ref(&node), address, true)?;
    }
    let ends = |address| kernel_end(&node, address)?.context("the block is not in the kernel");
    let expected = [(of_node, ends(of_node)?), (of_mesh, ends(of_mesh)?)];
    let mut flood = Flood::start(lab.state(), &node, Kind::SynFlood, of_node, 40)?;
    // More than the mesh's block lasts, back, and as much in the other direction.
    for seconds in [HOUR + 120, 0, -HOUR, 5 * HOUR, 0] {
        step(&lab, &clock, seconds)?;
        flood.go_on(1_000)?;
        flood.ensure_held(&format!("the clock at {seconds} s"))?;
        for (address, end) in expected {
            let now = ends(address)?;
            ensure!(
                now.abs_diff(end) <= NEAR_NS,
                "the clock at {seconds} s: the block of {address} ends at {now}, not at {end}"
            );
            let active = decisions_on(&lab, 1, address)?;
            ensure!(
                active.iter().any(|d| d.enforced),
                "the clock at {seconds} s: {active:?}"
            );
        }
    }
    flood.stop();
    eprintln!("{} packets in five steps, 0 got through", flood.sent()?);

    // A short one, with a step in the middle: over when its seconds are over, by the machine's clock.
    let earliest = clock::unix_us() + 5_000_000;
    block(short, &["--for", "5s"])?;
    let latest = clock::unix_us() + 5_000_000;
    wait_for_blocks(std::slice::from_ref(&node), short, true)?;
    let mut flood = Flood::start(lab.state(), &node, Kind::SynFlood, short, 20)?;
    step(&lab, &clock, -HOUR)?;
    let first = flood.first_through(Duration::from_secs(15))?;
    flood.stop();
    eprintln!(
        "the short block ended {} µs after it began",
        first + 5_000_000 - latest
    );
    ensure!(
        first + 20_000 >= earliest,
        "ended {} µs early",
        earliest - first
    );
    ensure!(
        first <= latest + 1_500_000,
        "ended {} µs late",
        first - latest
    );
    let gone = clock::wait_until(PATIENCE, Duration::from_millis(50), || {
        let known = decisions_on(&lab, 1, short)?;
        Ok(known.iter().all(|d| !d.enforced).then_some(()))
    })?;
    gone.context("the decision still says that it is in force")
}
