//! The block map is full: said clearly, counted, and put right when there is room.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use secmesh::addr::Prefix;
use secmesh::api::client;
use secmesh::api::types::{Done, Request, Status};
use secmesh_tests::chaos::{attacker, lab_with};
use secmesh_tests::{kernel_block, options, wait_for_blocks, words_of};
use xtask::lab::attack;
use xtask::lab::net::Family;

/// The least that a configuration may ask for.
const ROOM: u32 = 1024;

fn filler(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + number).into()
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_block_that_does_not_fit_is_told_shown_and_enforced_as_soon_as_there_is_room() -> Result<()> {
    let lab = lab_with(options()?, &format!("max_blocks = {ROOM}"))?;
    let node = lab.node(1)?.clone();
    let agent = lab.agent(1)?;
    // Through the socket: a thousand commands would take a minute.
    for number in 0..ROOM {
        let request = Request::Block {
            subject: Prefix::host(filler(number)),
            ttl_s: 600,
            mesh: false,
            reason: None,
            override_risky: false,
        };
        let _done: Done = client::ask(&node.socket, &request)
            .with_context(|| format!("block {number} of {ROOM}"))?;
    }
    let source = attacker(Family::V4, 6)?;
    let source_text = source.to_string();
    let over = agent.output(&["block", &source_text, "--for", "10m"])?;
    let words = words_of(&over);
    eprintln!("{}: {words}", over.status);
    ensure!(
        words.contains("full") && words.contains("max_blocks"),
        "what is wrong, and the remedy: {words}"
    );
    ensure!(
        kernel_block(&node, source)?.is_none(),
        "it is there all the same"
    );
    ensure!(
        attack::attacker_gets_through(lab.state(), source, &node)?,
        "blocked, although it is not in the map"
    );

    let status: Status = agent.json(&["status"])?;
    ensure!(
        status.blocks.desired == ROOM as usize + 1 && status.blocks.enforced == ROOM as usize,
        "desired against enforced: {:?}",
        status.blocks
    );
    ensure!(
        status
            .blocks
            .not_enforced
            .get(&source_text)
            .is_some_and(|why| why.contains("max_blocks")),
        "{:?}",
        status.blocks
    );
    let shown = agent.must(&["status"])?;
    ensure!(
        shown.contains(&source_text),
        "not for people to see: {shown}"
    );

    agent.must(&["unblock", &filler(7).to_string()])?;
    wait_for_blocks(std::slice::from_ref(&node), source, true)?;
    ensure!(
        !attack::attacker_gets_through(lab.state(), source, &node)?,
        "written, and not enforced"
    );
    let status: Status = agent.json(&["status"])?;
    ensure!(
        status.blocks.not_enforced.is_empty() && status.blocks.enforced == ROOM as usize,
        "{:?}",
        status.blocks
    );
    Ok(())
}
