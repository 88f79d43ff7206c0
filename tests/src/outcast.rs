//! Nodes that attack their peers, and who has cut off whom.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;
use xtask::lab::Lab;
use xtask::lab::generators::{Attack, Generators, Kind, Target};
use xtask::lab::net::{self, Family};
use xtask::lab::state::LabState;

/// Packets a second of [`flood_from`], over all targets: more than any threshold.
const RATE: u32 = 3_000;
/// How long it lasts if nobody ends it, seconds.
const SECONDS: u32 = 20;

/// The names of the nodes that this one holds for quarantined, and of those that it is connected to.
///
/// # Errors
/// When it does not answer.
pub fn seen_by(lab: &Lab, number: usize) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let peers: Value = lab.agent(number)?.json(&["peers"])?;
    let is = |peer: &Value, key: &str, value: bool| peer.get(key) == Some(&Value::Bool(value));
    let named = |key: &str| {
        let peers = peers.as_array().into_iter().flatten();
        let chosen = peers.filter(|p| is(p, key, true) && is(p, "this_node", false));
        chosen
            .filter_map(|p| p.get("name")?.as_str().map(str::to_owned))
            .collect()
    };
    Ok((named("quarantined"), named("connected")))
}

/// A SYN flood from node `bad`'s own address to these others; ends when dropped.
///
/// # Errors
/// When it cannot be made.
pub fn flood_from(lab: &Lab, bad: usize, targets: &[usize]) -> Result<Generators> {
    let state = lab.state();
    let namespace = lab.node(bad)?.namespace.clone();
    let targets: Vec<Target> = targets
        .iter()
        .map(|number| {
            let node = lab.node(*number)?;
            Ok(Target {
                address: LabState::address(node, Family::V4),
                link_address: net::link_address(&node.namespace)?,
            })
        })
        .collect::<Result<_>>()?;
    Generators::start(&Attack {
        kind: Kind::SynFlood,
        namespace: &namespace,
        source: net::node_address(Family::V4, bad),
        source_link: &net::link_address(&namespace)?,
        targets: &targets,
        rate: RATE,
        seconds: SECONDS,
        work_dir: &state.work_dir,
        log: &state.work_dir.join("attack.log"),
    })
}
