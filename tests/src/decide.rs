//! What the mesh of a lab decides: operators who confirm a block, and who knows of it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use secmesh::addr::Prefix;
use secmesh::api::client;
use secmesh::api::types::{Done, Request};
use xtask::clock;
use xtask::lab::Lab;
use xtask::lab::generators::Kind;
use xtask::lab::state::Node;

use crate::chaos::Flood;

/// These nodes of the lab.
///
/// # Errors
/// When there is none of such a number.
pub fn nodes(lab: &Lab, numbers: &[usize]) -> Result<Vec<Node>> {
    numbers.iter().map(|n| Ok(lab.node(*n)?.clone())).collect()
}

/// An attack on each of these nodes from one source for half a minute; ends when dropped.
///
/// # Errors
/// When it cannot be made.
pub fn attack(lab: &Lab, numbers: &[usize], source: IpAddr) -> Result<Vec<Flood>> {
    numbers
        .iter()
        .map(|n| Flood::start(lab.state(), lab.node(*n)?, Kind::SynFlood, source, 30))
        .collect()
}

/// Has operators of these nodes confirm a block by the mesh; the agent's answer is that it will.
///
/// # Errors
/// When an agent refuses.
pub fn confirm(lab: &Lab, numbers: &[usize], subject: IpAddr) -> Result<()> {
    for number in numbers {
        let request = Request::Block {
            subject: Prefix::host(subject),
            ttl_s: 3_600,
            mesh: true,
            reason: None,
            override_risky: false,
        };
        let _done: Done = client::ask(&lab.node(*number)?.socket, &request)
            .with_context(|| format!("n{number} does not confirm {subject}"))?;
    }
    Ok(())
}

/// Whether a node has an active decision of the mesh on `subject`.
///
/// # Errors
/// When it does not answer.
pub fn decided(lab: &Lab, number: usize, subject: &str) -> Result<bool> {
    let decisions = lab.agent(number)?.decisions()?;
    Ok(decisions
        .iter()
        .any(|d| d.subject == subject && d.is_active_mesh_block()))
}

/// Asserts that none of these nodes has one.
///
/// # Errors
/// Who has.
pub fn ensure_undecided(lab: &Lab, numbers: &[usize], subject: IpAddr) -> Result<()> {
    for number in numbers {
        ensure!(
            !decided(lab, *number, &subject.to_string())?,
            "n{number} holds that the mesh has decided on {subject}"
        );
    }
    Ok(())
}

/// Waits until all of these nodes have one, `limit` for each.
///
/// # Errors
/// Who has none.
pub fn wait_decided(lab: &Lab, numbers: &[usize], subject: IpAddr, limit: Duration) -> Result<()> {
    for number in numbers {
        clock::wait_until(limit, Duration::from_millis(50), || {
            Ok(decided(lab, *number, &subject.to_string())?.then_some(()))
        })?
        .with_context(|| format!("n{number} does not know that {subject} is blocked"))?;
    }
    Ok(())
}
