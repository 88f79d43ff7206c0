//! The agent dies, is replaced, is stopped, while a blocked source floods: nothing of it may get through.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::chaos::{Flood, Installed, attacker, decisions_on};
use secmesh_tests::{kernel_block, lab, options, wait_for_blocks, words_of};
use xtask::lab::generators::Kind;
use xtask::lab::net::{ATTACKER_PORT, Family, INTERFACE};
use xtask::lab::state::LabState;
use xtask::lab::{Lab, attack, ns};

/// Packets of a flood that are waited for between two steps.
const SOME: u64 = 2_000;

/// Node 1's program and link on its interface, as the kernel numbers them.
fn attached(lab: &Lab) -> Result<(u64, u64)> {
    let pins = lab.node(1)?.pin_dir.clone();
    for entry in std::fs::read_dir(&pins)
        .with_context(|| format!("cannot list {}", pins.display()))?
        .flatten()
    {
        let mut bpftool = xtask::sh::command("bpftool");
        bpftool
            .args(["-j", "link", "show", "pinned"])
            .arg(entry.path());
        // Maps are pinned there too; of those it says that they are no links.
        let Ok(output) = xtask::sh::output(&mut bpftool) else {
            continue;
        };
        let link: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| link.get(name).and_then(serde_json::Value::as_u64);
        if let (Some(program), Some(link)) = (number("prog_id"), number("id")) {
            return Ok((program, link));
        }
    }
    anyhow::bail!("no link is pinned in {}", pins.display())
}

fn block(lab: &Lab, source: IpAddr, time: &str) -> Result<()> {
    let source_text = source.to_string();
    lab.agent(1)?
        .must(&["block", &source_text, "--for", time, "--reason", "chaos"])?;
    wait_for_blocks(std::slice::from_ref(lab.node(1)?), source, true)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn not_one_packet_passes_while_the_agent_is_dead_nor_while_the_next_one_starts() -> Result<()> {
    for (family, kind) in [(Family::V4, Kind::SynFlood), (Family::V6, Kind::UdpFlood)] {
        let mut lab = lab(1)?;
        let node = lab.node(1)?.clone();
        let source = attacker(family, 0)?;
        block(&lab, source, "10m")?;
        let mut flood = Flood::start(lab.state(), &node, kind, source, 40)?;
        flood.go_on(SOME)?;
        for round in 1..=3 {
            lab.stop_agent(1, Signal::SIGKILL)?;
            flood.go_on(SOME)?;
            flood.ensure_held(&format!("{family:?}, killed for the {round}. time"))?;
            lab.start_agent(1)?;
            flood.go_on(SOME)?;
            flood.ensure_held(&format!("{family:?}, started for the {round}. time"))?;
        }
        flood.stop();
        let sent = flood.sent()?;
        let entry = kernel_block(&node, source)?.context("the block left the kernel")?;
        eprintln!(
            "{family:?}: {sent} packets sent, 0 got through, {} met the block",
            entry.hits
        );
        // Hits are brought to the entry now and then; most must be there, over all three deaths.
        ensure!(entry.hits * 2 > sent, "{sent} packets, {entry:?}");
        let counters = lab.agent(1)?.status()?.counters;
        let dropped = counters.get("drop_exact").copied().unwrap_or_default();
        ensure!(dropped * 10 >= sent * 9, "{sent} packets: {counters:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_block_ends_on_time_when_no_agent_runs() -> Result<()> {
    let mut lab = lab(1)?;
    let node = lab.node(1)?.clone();
    let source = attacker(Family::V4, 1)?;
    block(&lab, source, "5s")?;
    let ends = decisions_on(&lab, 1, source)?
        .first()
        .context("a decision")?
        .expires_unix_us;
    lab.stop_agent(1, Signal::SIGKILL)?;
    let mut flood = Flood::start(lab.state(), &node, Kind::SynFlood, source, 15)?;
    flood.go_on(100)?;
    flood.ensure_held("before its end, with no agent")?;
    let first = flood.first_through(Duration::from_secs(15))?;
    flood.stop();
    let late = i128::from(first) - i128::from(ends);
    eprintln!("the first packet came {late} µs after the block's end");
    // The kernel's clock has the resolution of a tick, 10 ms at most.
    ensure!(late >= -20_000, "it ended {} µs too early", -late);
    ensure!(late <= 1_000_000, "it ended {late} µs too late");
    // The next agent finds an entry that has ended, and nothing to hold on to.
    lab.start_agent(1)?;
    wait_for_blocks(std::slice::from_ref(&node), source, false)?;
    ensure!(
        attack::attacker_gets_through(lab.state(), source, &node)?,
        "blocked again by the next agent"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_upgrade_during_a_flood_swaps_the_program_and_not_one_packet_passes() -> Result<()> {
    let installed = Installed::new("upgrade", options()?)?;
    upgrade_under_fire(
        Lab::start(installed.options().clone().nodes(1))?,
        &installed,
    )
}

fn upgrade_under_fire(mut lab: Lab, installed: &Installed) -> Result<()> {
    let node = lab.node(1)?.clone();
    let sources = [attacker(Family::V4, 2)?, attacker(Family::V6, 2)?];
    let mut floods = Vec::new();
    for source in sources {
        block(&lab, source, "10m")?;
        floods.push(Flood::start(
            lab.state(),
            &node,
            Kind::IcmpFlood,
            source,
            40,
        )?);
    }
    let (mut program, link) = attached(&lab)?;
    for round in 1..=3 {
        // Two at once on the same pins: the second one must refuse, and disturb nothing.
        let second = lab.agent(1)?.output(&["run"])?;
        ensure!(!second.status.success(), "two agents ran on the same pins");
        ensure!(
            words_of(&second).contains("already") || words_of(&second).contains("another"),
            "the second agent does not say why it does not run: {}",
            words_of(&second)
        );
        installed.renew()?;
        lab.stop_agent(1, Signal::SIGTERM)?;
        lab.start_agent(1)?;
        let (new_program, new_link) = attached(&lab)?;
        ensure!(
            new_link == link,
            "another link ({link}, now {new_link}): there was a gap"
        );
        ensure!(new_program != program, "the old program still runs");
        program = new_program;
        for flood in &mut floods {
            flood.go_on(SOME)?;
            flood.ensure_held(&format!("the {round}. upgrade"))?;
        }
    }
    for (flood, source) in floods.iter_mut().zip(sources) {
        flood.stop();
        eprintln!(
            "{source}: {} packets sent, 0 got through three upgrades",
            flood.sent()?
        );
    }
    Ok(())
}

/// A packet each from thousands of addresses that nobody has: each is a first contact and so an event, and
/// together they are more than the ring holds (1 MiB, 88 bytes a record).
fn strangers(lab: &Lab, node: IpAddr) -> Result<()> {
    let mut hping3 = ns::command(&lab.state().namespace(ATTACKER_PORT), "timeout")?;
    hping3
        .args(["--signal=KILL", "30", "hping3", "-q", "-n", "-I", INTERFACE])
        .args([
            "-S",
            "--rand-source",
            "-p",
            "80",
            "-i",
            "u100",
            "-c",
            "25000",
        ])
        .arg(node.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // It ends with 1, because nobody answers.
    let _status = hping3.status().context("cannot start hping3")?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_stopped_agent_loses_events_and_counts_them_and_recovers_when_it_goes_on() -> Result<()> {
    let lab = lab(1)?;
    let node = lab.node(1)?.clone();
    let blocked = attacker(Family::V4, 3)?;
    block(&lab, blocked, "10m")?;
    let before = lab.agent(1)?.status()?.counters;
    let count = |counters: &std::collections::BTreeMap<String, u64>, name: &str| {
        counters.get(name).copied().unwrap_or_default()
    };

    let agent = node.agent.context("an agent runs")?;
    let pid = nix::unistd::Pid::from_raw(agent.pid);
    nix::sys::signal::kill(pid, Signal::SIGSTOP)?;
    let stopped = (|| {
        let mut flood = Flood::start(lab.state(), &node, Kind::SynFlood, blocked, 20)?;
        strangers(&lab, LabState::address(&node, Family::V4))?;
        flood.go_on(SOME)?;
        flood.ensure_held("the agent stopped")
    })();
    nix::sys::signal::kill(pid, Signal::SIGCONT)?;
    stopped?;

    let after = lab.agent(1)?.status()?.counters;
    let lost = ["events_ring_full", "events_over_budget"]
        .map(|name| count(&after, name) - count(&before, name));
    eprintln!("lost while the agent stood still: {lost:?} (ring full, over budget)");
    ensure!(
        lost.iter().sum::<u64>() > 0,
        "nothing was lost, or not counted: {after:?}"
    );

    // It goes on: what was in the ring is read, a scan is seen, and whom it blocks is blocked.
    let scanner = attacker(Family::V4, 4)?;
    let mut scan = Flood::start(lab.state(), &node, Kind::PortScan, scanner, 10)?;
    wait_for_blocks(std::slice::from_ref(&node), scanner, true)?;
    ensure!(
        !attack::attacker_gets_through(lab.state(), scanner, &node)?,
        "the scanner was blocked in words only"
    );
    scan.stop();
    let sent = count(&lab.agent(1)?.status()?.counters, "events_sent");
    let other = attacker(Family::V4, 5)?;
    // Strangers of the flood may still hold both slots of this address, each for a packet; so it tries again.
    let mut next = sent;
    for _ in 0..5 {
        ensure!(
            attack::attacker_gets_through(lab.state(), other, &node)?,
            "an address that did nothing"
        );
        next = count(&lab.agent(1)?.status()?.counters, "events_sent");
        if next > sent {
            return Ok(());
        }
    }
    bail!("no event after the pause: {sent}, then {next}")
}
