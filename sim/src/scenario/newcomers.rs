//! Nodes that join shortly before an epoch takes them in.

use std::collections::BTreeSet;

use super::quiet;
use crate::cast::S;
use crate::oracle::{Violation, broken};
use crate::plan::{Happening, Plan};
use crate::run::agree_until;
use crate::world::World;

/// Nodes from the start, and those that join.
const NODES: usize = 4;
const NEWCOMERS: usize = 4;
/// Length of an epoch, seconds.
const EPOCH_S: u64 = 60;
/// When the first of them joins, seconds; the others follow in turn.
const JOIN_S: u64 = 53;
/// How long after they are in they may lack something, milliseconds. Who was refused something asks again after 5 s.
const LATE_MS: u64 = 1_000;

pub(super) fn plan() -> Plan {
    let mut plan = quiet(NODES, &[], EPOCH_S - 1);
    let all = NODES + NEWCOMERS;
    plan.zones = (0..all).collect();
    plan.skew_us = vec![0; all];
    plan.allow = vec![BTreeSet::new(); all];
    plan.params.epoch_s = u32::try_from(EPOCH_S).unwrap_or(60);
    // Who is asked has to be connected for 30 s.
    for i in 0..NODES {
        let at = (36 + 3 * i as u64) * S;
        plan.script.push((at, Happening::Ask(i)));
    }
    for n in 0..NEWCOMERS {
        let join = Happening::Join {
            node: NODES + n,
            through: n % NODES,
        };
        plan.script.push((JOIN_S * S + n as u64 * 1_300_000, join));
    }
    plan.script.sort_by_key(|(at, _)| *at);
    plan
}

pub(super) fn have_all(world: &mut World) -> Result<(), Violation> {
    let is_in = |world: &World, i: usize| {
        let node = &world.nodes[i];
        let engine = node.engine.as_ref();
        engine.is_some_and(|engine| engine.roster().get(&node.id).is_some())
    };
    let until = world.now + 20 * S;
    while let Some(out) = (0..NODES + NEWCOMERS).find(|i| !is_in(world, *i)) {
        if world.now >= until {
            return broken("epoch-liveness", format!("node {out} is not let in"));
        }
        world.run_until(world.now + S / 10)?;
    }
    let until = world.now + LATE_MS * S / 1_000;
    agree_until(world, until)
}
