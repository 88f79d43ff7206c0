//! What the second phase asks about nodes: who was taken for hostile without being it is taken back, who was proved
//! to lie is cut off everywhere, and all others are connected.

use std::collections::BTreeSet;

use secmesh::mesh::engine::Automatic;
use secmesh::mesh::ids::NodeId;
use secmesh::mesh::roster::Weights;
use secmesh::mesh::vote::{ActionKind, bucket_of};

use crate::cast::{S, START_US};
use crate::oracle::{Violation, broken};
use crate::plan::Happening;
use crate::world::{World, budget};

/// How long after everything else who was proved to lie may still not be cut off: a slot that was used in vain is
/// over after a minute, and a node whose clock was ahead says nothing for as long.
const CUT_OFF_US: u64 = 240 * S;
/// How long the healthy may take to dial each other.
const DIAL_US: u64 = 15 * S;

/// The operator takes back honest nodes that were cut off; gives the time when that was done, `since` if there
/// were none.
///
/// # Errors
/// The first [`Violation`].
pub fn take_back(world: &mut World, since: u64) -> Result<u64, Violation> {
    let mut done = since;
    // What an operator wished for by vote may still come about.
    let mut shut: BTreeSet<usize> = honest_cut_off(world);
    shut.extend((0..world.nodes.len()).filter(|i| {
        let id = world.nodes[*i].id;
        let wished = world.oracle.asked.contains(&id);
        wished && !world.lies(*i) && !world.oracle.removed.contains(&id)
    }));
    // An order does not cover what was decided in a later minute, by a clock that was ahead.
    for wait in [15, 70, 70] {
        if shut.is_empty() {
            return Ok(done);
        }
        for node in &shut {
            let members = world.members();
            let Some(at) = members.into_iter().find(|i| !shut.contains(i)) else {
                continue;
            };
            let node = *node;
            let back = Happening::Order {
                at,
                node,
                readmit: true,
            };
            world.plan_for(world.now, back);
        }
        done = world.now + wait * S;
        world.run_until(done)?;
        shut = honest_cut_off(world);
    }
    match shut.first() {
        Some(node) => broken(
            "readmit",
            format!("node {node} was taken back by the operator and is cut off"),
        ),
        None => Ok(done),
    }
}

fn honest_cut_off(world: &World) -> BTreeSet<usize> {
    let members = world.members();
    let engines = || {
        members
            .iter()
            .filter_map(|i| world.nodes[*i].engine.as_ref())
    };
    (0..world.nodes.len())
        .filter(|i| !world.lies(*i) && !world.oracle.removed.contains(&world.nodes[*i].id))
        .filter(|i| engines().any(|e| e.is_quarantined(&world.nodes[*i].id)))
        .collect()
}

/// Waits until whoever was proved to lie is cut off by all honest nodes, and the honest are connected.
///
/// # Errors
/// The [`Violation`].
pub fn settle(world: &mut World) -> Result<(), Violation> {
    if world.plan.quarantine != Automatic::Off {
        wait(world, CUT_OFF_US, "cut-off-liveness", at_large)?;
    }
    wait(world, DIAL_US, "healthy-connected", apart)
}

fn wait(
    world: &mut World,
    long: u64,
    check: &'static str,
    wrong: fn(&World) -> Option<String>,
) -> Result<(), Violation> {
    let until = world.now + long;
    while let Some(what) = wrong(world) {
        if world.now >= until {
            return broken(check, what);
        }
        world.run_until(world.now + S)?;
    }
    Ok(())
}

/// Whether the honest nodes that are in the roster and not cut off can decide by themselves: they have that weight, of
/// all and of the committee, and are of two zones where there are two. Less than a third of the nodes lie, but caps on zones, evidence and
/// operators who cut honest nodes off move the weights. Who was mute since `since`, because it may have voted before its
/// clock was set back, is none of them.
pub fn suffice(world: &World, since: u64, needed: impl Fn(&Weights) -> u64) -> bool {
    let members = world.members();
    let first = members
        .first()
        .and_then(|i| world.nodes[*i].engine.as_ref());
    let Some(first) = first else { return false };
    let roster = first.roster();
    let nodes = members.iter().map(|i| &world.nodes[*i]);
    let mute = |at: u64| at >= since;
    let ids = nodes
        .filter(|node| !node.mute_at.is_some_and(mute))
        .map(|node| &node.id);
    let honest = ids.filter(|id| !first.is_quarantined(id));
    let voting: Vec<_> = honest
        .filter_map(|id| roster.get(id))
        .filter(|m| m.weight > 0)
        .collect();
    let weight: u64 = voting.iter().map(|m| u64::from(m.weight)).sum();
    let zones: BTreeSet<_> = voting.iter().map(|m| &m.record.zone).collect();
    let seated = voting.iter().map(|m| roster.vote_weight(&m.record.node));
    weight >= needed(roster.weights())
        && seated.sum::<u64>() >= needed(roster.deciding())
        && zones.len() >= roster.zone_count().min(2)
}

/// A proved liar that an honest node has not cut off although it could.
fn at_large(world: &World) -> Option<String> {
    let members = world.members();
    let first = world.nodes[*members.first()?].engine.as_ref()?;
    let roster = first.roster();
    if !suffice(world, u64::MAX, Weights::t_hi) {
        return None;
    }
    let from = bucket_of(START_US + world.now).saturating_sub(60);
    let spent: BTreeSet<_> = members
        .iter()
        .flat_map(|i| &world.nodes[*i].spent)
        .filter(|(_, bucket)| **bucket > from)
        .map(|(node, _)| *node)
        .collect();
    if spent.len() >= budget(roster.voters()) {
        return None;
    }
    let pardoned = |node: &NodeId| {
        let engines = members
            .iter()
            .filter_map(|i| world.nodes[*i].engine.as_ref());
        engines
            .flat_map(|e| e.decisions_about(node))
            .any(|d| d.action.kind == ActionKind::Readmit)
    };
    let proved = world.oracle.liars.iter().filter(|node| {
        roster.get(node).is_some() && members.iter().any(|i| world.has_proof(*i, node))
    });
    proved.filter(|node| !pardoned(node)).find_map(|node| {
        let holds = |i: &usize| {
            let engine = world.nodes[*i].engine.as_ref();
            engine.is_some_and(|e| e.is_quarantined(node))
        };
        let not = members.iter().find(|i| !holds(i))?;
        Some(format!(
            "{node} was proved to lie, and node {not} has not cut it off"
        ))
    })
}

/// Two honest nodes that are not connected, or one that does not find another to be there.
fn apart(world: &World) -> Option<String> {
    let members = world.members();
    let pairs = members
        .iter()
        .flat_map(|a| members.iter().map(move |b| (*a, *b)));
    pairs.filter(|(a, b)| a != b).find_map(|(a, b)| {
        let (engine, id) = (world.nodes[a].engine.as_ref()?, world.nodes[b].id);
        let here = engine.connected().contains(&id) && engine.is_reachable(&id);
        (!here).then(|| format!("node {a} has no connection to node {b}, or finds it gone"))
    })
}
