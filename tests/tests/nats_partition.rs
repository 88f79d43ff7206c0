//! Nodes that lose the NATS server and find it again: nobody acts where it must not, and afterwards all have the same;
//! and a server that is restarted while the mesh decides.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::chaos::attacker;
use secmesh_tests::decide::{attack, confirm, decided, ensure_undecided, nodes, wait_decided};
use secmesh_tests::partition::{Partition, ensure_no_liars, number, quorum, same, sees};
use secmesh_tests::{PATIENCE, kernel_block, options, wait_for_blocks};
use xtask::lab::net::Family;
use xtask::lab::{Carrier, Lab};

const ALL: [usize; 4] = [1, 2, 3, 4];
/// Longer than a peer is silent before it counts as gone, and a suspicion lasts.
const NOTICED: Duration = Duration::from_secs(20);
/// How soon a mesh that was split is one again: what the product promises.
const HEALED: Duration = Duration::from_secs(10);

fn lab() -> Result<Lab> {
    Lab::start(options()?.nodes(4).carrier(Carrier::Nats))
}

/// All are one mesh again: in reach, of one mind byte for byte, and nobody is taken for a liar.
fn ensure_healed(lab: &Lab, cut: Partition, decisions: u64) -> Result<()> {
    let since = cut.heal()?;
    let healed = same(lab, &ALL, HEALED, |digest| {
        number(digest, "decisions").is_ok_and(|n| n >= decisions)
    })?;
    eprintln!("healed after {} ms:\n{healed}", since.elapsed().as_millis());
    for node in ALL {
        quorum(lab, node, "FULL", 400, PATIENCE)?;
    }
    ensure_no_liars(lab, &ALL)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn one_node_without_the_server_decides_nothing_and_learns_what_the_others_did() -> Result<()> {
    let lab = lab()?;
    same(&lab, &ALL, NOTICED, |_| true)?;
    let cut = Partition::from_broker(&lab, &[4])?;
    for node in [1, 2, 3] {
        quorum(&lab, node, "FULL", 300, NOTICED)?;
    }
    quorum(&lab, 4, "ISOLATED", 100, NOTICED)?;
    for node in [1, 2, 3] {
        sees(&lab, node, 4, "down", NOTICED)?;
        sees(&lab, 4, node, "down", NOTICED)?;
    }
    let told = lab.agent(4)?.must(&["status"])?;
    ensure!(told.contains("ISOLATED"), "not shown: {told}");
    let shown = lab.agent(4)?.must(&["metrics"])?;
    ensure!(shown.contains("secmesh_quorum_state{state=\"ISOLATED\"} 1"));
    ensure!(shown.contains("secmesh_peers{state=\"down\"} 3"), "{shown}");

    let [ours, its] = [attacker(Family::V4, 2)?, attacker(Family::V4, 3)?];
    let floods = [attack(&lab, &[1, 2], ours)?, attack(&lab, &[4], its)?];
    wait_decided(&lab, &[1, 2, 3], ours, PATIENCE)?;
    wait_for_blocks(&nodes(&lab, &[1, 2, 3])?, ours, true)?;
    wait_for_blocks(&nodes(&lab, &[4])?, its, true)?;
    let asked: IpAddr = Ipv4Addr::new(198, 18, 10, 1).into();
    confirm(&lab, &[4], asked)?;
    std::thread::sleep(Duration::from_secs(3));
    ensure_undecided(&lab, &[4], ours)?;
    ensure_undecided(&lab, &ALL, its)?;
    ensure_undecided(&lab, &ALL, asked)?;
    ensure!(kernel_block(lab.node(4)?, ours)?.is_none());
    drop(floods);

    ensure_healed(&lab, cut, 1)?;
    wait_decided(&lab, &[4], ours, PATIENCE)?;
    wait_for_blocks(&nodes(&lab, &[4])?, ours, true)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn two_nodes_without_the_server_are_each_alone_and_the_two_others_act_as_a_half() -> Result<()> {
    let lab = lab()?;
    let whole = same(&lab, &ALL, NOTICED, |_| true)?;
    let epoch = number(&whole, "epoch")?;
    let cut = Partition::from_broker(&lab, &[3, 4])?;
    for node in [1, 2] {
        // 200 of 400: T_lo is 134, T_hi is 267.
        quorum(&lab, node, "DEGRADED", 200, NOTICED)?;
    }
    for node in [3, 4] {
        // They hear each other no more than the server.
        quorum(&lab, node, "ISOLATED", 100, NOTICED)?;
    }
    // Five of a network: each by T_lo and two witnesses; the network, which needs T_hi, by nobody. Those who are
    // alone confirm others, and no third of the weight hears of it.
    let network: Vec<IpAddr> = (1..=5)
        .map(|host| Ipv4Addr::new(198, 18, 9, host).into())
        .collect();
    let alone: IpAddr = Ipv4Addr::new(198, 18, 11, 1).into();
    for subject in &network {
        confirm(&lab, &[1, 2], *subject)?;
    }
    confirm(&lab, &[3], alone)?;
    for subject in &network {
        wait_decided(&lab, &[1, 2], *subject, PATIENCE)?;
    }
    std::thread::sleep(Duration::from_secs(3));
    ensure_undecided(&lab, &ALL, alone)?;
    for node in ALL {
        ensure!(
            !decided(&lab, node, "198.18.9.0/24")?,
            "half of the mesh has blocked a network"
        );
        let digest = lab.agent(node)?.must(&["mesh", "digest"])?;
        ensure!(
            number(&digest, "epoch")? == epoch,
            "half of the mesh made an epoch: {digest}"
        );
    }
    for subject in &network {
        ensure_undecided(&lab, &[3, 4], *subject)?;
        ensure!(kernel_block(lab.node(3)?, *subject)?.is_none());
    }
    ensure_healed(&lab, cut, 5)?;
    for subject in &network {
        wait_for_blocks(&lab.state().nodes, *subject, true)?;
    }
    Ok(())
}

/// Blocks that are confirmed before, while and after the server is away.
const EACH: u8 = 20;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_restart_of_the_server_loses_nothing_that_was_acknowledged() -> Result<()> {
    let mut lab = lab()?;
    same(&lab, &ALL, NOTICED, |_| true)?;
    let subject = |part: u8, n: u8| IpAddr::from(Ipv4Addr::new(198, 19, part * 50 + n, 1));
    let ask = |lab: &Lab, part: u8| -> Result<()> {
        (0..EACH).try_for_each(|n| confirm(lab, &[1, 2], subject(part, n)))
    };
    // Votes, certificates and statements are under way when it goes. So short that nobody counts as gone: what was
    // lost on the way is missed by its number, and nothing else brings it back in time.
    ask(&lab, 0)?;
    lab.broker()?.terminate()?;
    ask(&lab, 1)?;
    lab.broker()?.restart()?;
    ask(&lab, 2)?;
    for part in 0..3 {
        for n in 0..EACH {
            wait_decided(&lab, &ALL, subject(part, n), NOTICED)?;
        }
    }
    let digest = same(&lab, &ALL, HEALED, |digest| {
        number(digest, "decisions").is_ok_and(|n| n >= 3 * u64::from(EACH))
    })?;
    eprintln!("{digest}");
    for part in 0..3 {
        for n in 0..EACH {
            wait_for_blocks(&lab.state().nodes, subject(part, n), true)?;
        }
    }
    for node in ALL {
        quorum(&lab, node, "FULL", 400, PATIENCE)?;
    }
    ensure_no_liars(&lab, &ALL)?;

    // And with an agent that ends while there is no server: what it has said is on its disk.
    lab.broker()?.terminate()?;
    ask(&lab, 3)?;
    lab.stop_agent(2, Signal::SIGTERM)?;
    lab.broker()?.restart()?;
    lab.start_agent(2)?;
    for n in 0..EACH {
        wait_decided(&lab, &ALL, subject(3, n), NOTICED)?;
    }
    same(&lab, &ALL, HEALED, |_| true)?;
    ensure_no_liars(&lab, &ALL)
}
