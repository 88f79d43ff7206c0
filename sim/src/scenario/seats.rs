//! Seats of two epochs.

use std::collections::BTreeSet;

use secmesh::mesh::vote::AttackClass;

use super::quiet;
use crate::cast::{self, S};
use crate::oracle::{Violation, broken};
use crate::plan::{Cut, Happening, Plan};
use crate::run::agree_until;
use crate::world::World;

/// Nodes.
const NODES: usize = 40;
/// Seats: few enough for nobody in one epoch to sit in the next.
const SEATS: u32 = 8;
/// Attacks, from the tenth second on.
const ATTACKS: usize = 6;
/// When who was away comes back, seconds, in the second epoch, and how long it may take then.
const BACK_S: u64 = 35;
const AGREE_S: u64 = 25;

pub(super) fn plan() -> Plan {
    let mut plan = quiet(NODES, &[], 5);
    plan.params.committee = SEATS;
    plan
}

pub(super) fn taken_by_who_comes_back(world: &mut World) -> Result<(), Violation> {
    let engine = world.nodes[0].engine.as_ref();
    let seats = engine.and_then(|engine| engine.roster().seats());
    let seats = seats.unwrap_or_default();
    let has_seat = |i: &usize| seats.iter().any(|(of, _)| *of == world.nodes[*i].id);
    let Some(away) = (0..NODES).find(|i| !has_seat(i)) else {
        return broken("seats", "everybody has a seat");
    };
    world.plan_for(
        world.now,
        Happening::Cut(Cut::Split(BTreeSet::from([away]))),
    );
    for n in 0..ATTACKS {
        for i in (0..NODES).filter(|i| *i != away).take(2) {
            let attack = Happening::Sees(i, cast::attacker(n), AttackClass::SynFlood);
            world.plan_for(10 * S, attack);
        }
    }
    world.plan_for(BACK_S * S, Happening::Mend);
    world.run_until(BACK_S * S)?;
    agree_until(world, (BACK_S + AGREE_S) * S)?;
    let blocked = world.nodes[away].kernel.len();
    if blocked < ATTACKS {
        return broken(
            "convergence",
            format!("node {away} was away and has {blocked} of {ATTACKS} blocks"),
        );
    }
    Ok(())
}
