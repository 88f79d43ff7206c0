//! Two nodes without a seat see an attack, and those with one decide.

use std::collections::BTreeSet;

use secmesh::addr::Prefix;
use secmesh::mesh::genesis::Params;
use secmesh::mesh::ids::NodeId;
use secmesh::mesh::vote::{Action, AttackClass, bucket_of};

use super::quiet;
use crate::cast::{self, S};
use crate::oracle::{Violation, broken};
use crate::plan::{Happening, Plan, Swallowed};
use crate::world::World;

/// Nodes.
const NODES: usize = 40;
/// Seats: a third of them are more than witnesses turn to before they turn to all.
const SEATS: u32 = 30;
/// Seats that a witness turns to at a time: docs/protocol.md, "Committee".
const DESKS: usize = 3;
/// When the attack is, seconds.
const ATTACK_S: u64 = 5;
/// How long all may take to block it, milliseconds, where the desks hear of it.
const OPEN_MS: u64 = 900;
/// The same where they do not. Witnesses look at each tick whether to turn to others, so three times.
const CLOSED_MS: u64 = 6_000;

pub(super) fn plan() -> Plan {
    let mut plan = quiet(NODES, &[], ATTACK_S);
    plan.params = Params {
        committee: SEATS,
        epoch_s: 3_600,
        ..plan.params
    };
    plan
}

/// Whoever has a seat, in ascending order of ids.
fn seats(world: &World) -> Vec<NodeId> {
    let engine = world.nodes[0].engine.as_ref();
    let seats = engine.and_then(|engine| engine.roster().seats());
    seats
        .unwrap_or_default()
        .iter()
        .map(|(of, _)| *of)
        .collect()
}

/// An attack.
struct Attack {
    subject: Prefix,
    /// Nodes without a seat, who see it.
    witnesses: Vec<usize>,
    /// Those with one to whom they turn first.
    desks: BTreeSet<usize>,
}

const CLASS: AttackClass = AttackClass::SynFlood;

/// An attack that has not begun.
fn attack(world: &World) -> Result<Attack, Violation> {
    let subject = cast::attacker(1);
    let seats = seats(world);
    let place = |i: &usize| seats.iter().position(|seat| *seat == world.nodes[*i].id);
    let unseated = (0..NODES).filter(|i| place(i).is_none());
    let witnesses: Vec<usize> = unseated.take(2).collect();
    let Some(engine) = &world.nodes[0].engine else {
        return broken("liveness", "node 0 does not run");
    };
    if witnesses.len() < 2 {
        return broken("seats", "everybody has a seat");
    }
    let incident = Action::block(subject, CLASS, &world.genesis.params).incident(
        world.genesis.mesh_id(),
        engine.roster().epoch_hash(),
        bucket_of(world.nodes[0].wall(world.now)),
    );
    let first = incident.0.iter().take(4);
    let first = first.fold(0, |n, byte| n << 8 | usize::from(*byte)) % seats.len();
    let desks = (0..NODES)
        .filter(|i| place(i).is_some_and(|at| (at + seats.len() - first) % seats.len() < DESKS))
        .collect();
    Ok(Attack {
        subject,
        witnesses,
        desks,
    })
}

/// It begins, and all but these nodes block it by then.
fn blocked(
    world: &mut World,
    attack: &Attack,
    without: &BTreeSet<usize>,
    within_ms: u64,
) -> Result<(), Violation> {
    let subject = attack.subject;
    for i in &attack.witnesses {
        world.plan_for(world.now, Happening::Sees(*i, subject, CLASS));
    }
    world.run_until(world.now + within_ms * S / 1_000)?;
    let blocks = |i: &usize| {
        let mut held = world.nodes[*i].kernel.values();
        held.any(|block| block.subject == subject)
    };
    match (0..NODES).find(|i| !without.contains(i) && !blocks(i)) {
        Some(i) => broken(
            "liveness",
            format!(
                "two nodes without a seat are attacked by {subject}, and {within_ms} ms later node {i} does not block it"
            ),
        ),
        None => Ok(()),
    }
}

pub(super) fn open(world: &mut World) -> Result<(), Violation> {
    let attack = attack(world)?;
    blocked(world, &attack, &BTreeSet::new(), OPEN_MS)
}

/// The first desks hear and say nothing.
pub(super) fn closed(world: &mut World) -> Result<(), Violation> {
    let attack = attack(world)?;
    for desk in &attack.desks {
        for other in 0..NODES {
            for (from, to) in [(*desk, other), (other, *desk)] {
                let lost = Happening::Swallow(from, to, Swallowed::All);
                world.plan_for(world.now, lost);
            }
        }
    }
    blocked(world, &attack, &attack.desks, CLOSED_MS)
}
