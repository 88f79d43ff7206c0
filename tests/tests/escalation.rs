//! Five sources of one network attack in turn; the sixth meets a block of the network.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use secmesh_tests::{PATIENCE, lab, wait_for_blocks};
use xtask::{
    clock,
    lab::{
        Lab,
        agent::Decision,
        generators::{Attack, Generators, Kind, Target},
        net::{self, ATTACKER_PORT, Family},
        state::LabState,
    },
};

const POLL: Duration = Duration::from_millis(100);
const NETWORK: &str = "198.18.5.0/24";

fn source(host: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 5, host).into()
}

/// A SYN flood of two nodes (or the one there is) from a source that is not there: only its packets are.
fn flood(lab: &Lab, source: IpAddr) -> Result<Generators> {
    let state = lab.state();
    let namespace = state.namespace(ATTACKER_PORT);
    let source_link = net::link_address(&namespace)?;
    let targets: Vec<Target> = state
        .nodes
        .iter()
        .take(2)
        .map(|node| {
            Ok(Target {
                address: LabState::address(node, Family::V4),
                link_address: net::link_address(&node.namespace)?,
            })
        })
        .collect::<Result<_>>()?;
    Generators::start(&Attack {
        kind: Kind::SynFlood,
        namespace: &namespace,
        source,
        source_link: &source_link,
        targets: &targets,
        rate: 2000,
        seconds: 10,
        work_dir: &state.work_dir,
        log: &state.work_dir.join("attack.log"),
    })
}

fn network_decision(lab: &Lab, node: usize) -> Result<Option<Decision>> {
    let decisions = lab.agent(node)?.decisions()?;
    Ok(decisions
        .into_iter()
        .find(|d| d.subject == NETWORK && d.state == "active"))
}

fn dropped_by_prefix(lab: &Lab) -> Result<u64> {
    let counters = lab.agent(1)?.status()?.counters;
    counters.get("drop_prefix").copied().context("drop_prefix")
}

/// Floods from five sources in turn, and from a sixth once the network is blocked on every node.
fn five_and_a_sixth(lab: &Lab, scope: &str, origin: &str) -> Result<()> {
    for host in 1..=5 {
        ensure!(
            network_decision(lab, 1)?.is_none(),
            "the network is blocked after {} sources",
            host - 1
        );
        let generators = flood(lab, source(host))?;
        wait_for_blocks(&lab.state().nodes, source(host), true)?;
        drop(generators);
    }
    let mut ids = std::collections::BTreeSet::new();
    for node in 1..=lab.state().nodes.len() {
        let decision = clock::wait_until(PATIENCE, POLL, || network_decision(lab, node))?
            .with_context(|| format!("node {node} does not block the network"))?;
        ensure!(
            decision.scope == scope && decision.origin == origin && decision.enforced,
            "node {node}: {decision:?}"
        );
        ids.insert(decision.id);
    }
    ensure!(ids.len() == 1, "decided differently: {ids:?}");

    let before = dropped_by_prefix(lab)?;
    let generators = flood(lab, source(6))?;
    let met = clock::wait_until(PATIENCE, POLL, || {
        Ok((dropped_by_prefix(lab)? > before + 500).then_some(()))
    })?;
    drop(generators);
    ensure!(
        met.is_some(),
        "the sixth source is not dropped by the network"
    );
    let agent = lab.agent(1)?;
    let sixth = source(6).to_string();
    ensure!(
        !agent.alerts()?.iter().any(|a| a.subject == sixth),
        "the sixth source got as far as a detector"
    );
    let told = agent.must(&["decisions", "show", ids.first().context("an id")?])?;
    for host in 1..=5 {
        ensure!(
            told.contains(&source(host).to_string()),
            "which five is not told: {told}"
        );
    }
    let explained = agent.must(&["explain", &sixth])?;
    ensure!(
        explained.contains("5 addresses of it are blocked"),
        "{explained}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_fifth_block_in_a_network_makes_the_mesh_block_the_network() -> Result<()> {
    let lab = lab(4)?;
    five_and_a_sixth(&lab, "mesh", "quorum")?;
    // Let go, and not blocked again for the same five.
    lab.agent(1)?.must(&["unblock", NETWORK])?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(
        network_decision(&lab, 1)?.is_none(),
        "blocked again for what was let go"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_alone_blocks_the_network_on_its_own_right() -> Result<()> {
    let lab = lab(1)?;
    five_and_a_sixth(&lab, "node", "unilateral")
}
