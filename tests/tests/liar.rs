//! One lying node blocks nobody elsewhere.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use secmesh_tests::{kernel_block, lab};
use xtask::lab::echo;
use xtask::lab::net::{self, Family};

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn one_lying_node_blocks_nobody_elsewhere() -> Result<()> {
    let lab = lab(4)?;
    let innocent = net::client_address(Family::V4);
    let honest = lab.state().nodes.get(..3).context("a lab of four nodes")?;
    let services: Vec<SocketAddr> = honest
        .iter()
        .map(|node| SocketAddr::new(net::node_address(Family::V4, node.number), echo::PORT))
        .collect();
    let client = echo::Client::start(&lab.state().namespace("client"), &services)?;

    // A real, signed Confirm of a member: n4 says that it saw the client attack. Whether n4 itself then
    // blocks is n4's own affair, and so is the exit code of its command.
    let said = lab.agent(4)?.output(&[
        "block",
        &innocent.to_string(),
        "--mesh",
        "--reason",
        "a lie",
    ])?;
    ensure!(
        said.status.code() != Some(2),
        "the lie was not even uttered: {}",
        secmesh_tests::words_of(&said)
    );

    // Longer than a decision takes by three orders of magnitude.
    std::thread::sleep(Duration::from_secs(3));
    let tally = client.stop()?;
    ensure!(tally.is_good(), "the client suffered: {tally:?}");
    for node in honest {
        ensure!(
            kernel_block(node, innocent)?.is_none(),
            "{} has the client in its kernel map",
            node.name
        );
        let decisions = lab.ask(node).decisions()?;
        let believed = decisions.iter().find(|decision| {
            decision.subject == innocent.to_string() && decision.is_active_mesh_block()
        });
        ensure!(
            believed.is_none(),
            "{} believes the liar: {believed:?}",
            node.name
        );
    }
    Ok(())
}
