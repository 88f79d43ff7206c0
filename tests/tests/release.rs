//! A block can be taken back, from any node.

use std::time::Duration;

use anyhow::{Result, ensure};
use secmesh_tests::{attack_two_nodes, ensure_defended, lab, wait_for_blocks};
use xtask::lab::attack;
use xtask::lab::generators::Kind;

/// Longer than a node waits for contradiction (`RELEASE_WAIT_US`).
const CONTRADICTION: Duration = Duration::from_secs(4);
/// Longer than a source has to be silent to count as quiet.
const QUIET: Duration = Duration::from_secs(11);

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn release_works_from_any_node() -> Result<()> {
    let lab = lab(4)?;
    let nodes = lab.state().nodes.clone();
    let outcome = attack_two_nodes(&lab, Kind::SynFlood, false)?;
    ensure_defended(&outcome)?;
    wait_for_blocks(&nodes, outcome.source, true)?;
    for node in &nodes {
        ensure!(
            !attack::attacker_gets_through(lab.state(), outcome.source, node)?,
            "{} lets the attacker in",
            node.name
        );
    }

    // n3 was not hit and holds no operator key of its own making: n1's is given to it.
    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy();
    lab.agent(3)?.must(&[
        "unblock",
        &outcome.source.to_string(),
        "--operator-key",
        &key,
    ])?;
    wait_for_blocks(&nodes, outcome.source, false)?;
    for node in &nodes {
        ensure!(
            attack::attacker_gets_through(lab.state(), outcome.source, node)?,
            "{} still keeps it out",
            node.name
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_mesh_votes_on_a_release_without_the_operators_key_once_the_attacker_is_quiet() -> Result<()>
{
    let lab = lab(4)?;
    let nodes = lab.state().nodes.clone();
    let outcome = attack_two_nodes(&lab, Kind::IcmpFlood, false)?;
    ensure_defended(&outcome)?;
    wait_for_blocks(&nodes, outcome.source, true)?;
    let attacker = outcome.source.to_string();

    // Right after the attack the nodes that were hit contradict, so the others keep their blocks.
    lab.agent(3)?.must(&["unblock", &attacker])?;
    std::thread::sleep(CONTRADICTION);
    wait_for_blocks(&nodes[..2], outcome.source, true)?;

    std::thread::sleep(QUIET);
    lab.agent(4)?.must(&["unblock", &attacker])?;
    wait_for_blocks(&nodes, outcome.source, false)?;
    Ok(())
}
