//! One seed from beginning to end: a safety phase with faults, then healing and a liveness phase.

use std::collections::BTreeSet;

use secmesh::mesh::roster::Weights;
use secmesh::mesh::simulation;
use secmesh::mesh::vote::AttackClass;

use crate::cast::{self, S};
use crate::oracle::{Violation, broken};
use crate::plan::{Happening, Network, Plan, Wish};
use crate::standing;
use crate::world::{Counts, World};

/// How long after healing all honest nodes have to agree, microseconds.
const CONVERGE_US: u64 = 10 * S;
/// The same when nothing was broken.
const AGREE_US: u64 = 5 * S;
/// How much longer than its length an epoch may last.
const ROUNDS_US: u64 = 60 * S;
/// How long after the second witness an attack has to be blocked everywhere.
const BLOCK_US: u64 = 10 * S;
/// The address of the attack after healing.
const LAST_ATTACK: usize = 200;

/// What came of a seed.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Nodes at the start, and how many of them lied.
    pub nodes: usize,
    /// Liars.
    pub liars: usize,
    /// Virtual time that passed, seconds.
    pub virtual_s: f64,
    /// What was counted.
    pub counts: Counts,
    /// Hash of all that happened.
    pub trace: String,
    /// The rule that did not hold, and when.
    pub violation: Option<(f64, Violation)>,
}

/// Runs a seed.
pub fn run(seed: u64, wish: Wish, print: bool) -> Outcome {
    simulation::remember_signature_checks();
    let plan = Plan::new(seed, wish);
    let (nodes, liars) = (plan.nodes, plan.liars.len());
    let mut outcome = Outcome {
        seed,
        nodes,
        liars,
        virtual_s: 0.0,
        counts: Counts::default(),
        trace: String::new(),
        violation: None,
    };
    let mut world = match World::new(plan, print) {
        Ok(world) => world,
        Err(violation) => {
            outcome.violation = Some((0.0, violation));
            return outcome;
        }
    };
    let result = phases(&mut world);
    outcome.virtual_s = world.now as f64 / S as f64;
    outcome.counts = world.counts;
    outcome.trace = format!("{:016x}", world.trace.hash());
    outcome.violation = result.err().map(|violation| (outcome.virtual_s, violation));
    outcome
}

fn phases(world: &mut World) -> Result<(), Violation> {
    let mut heal = world.plan.heal_us;
    world.run_until(heal)?;
    world.trace.line(heal, || "--- all faults end".to_owned());
    world.network = Network {
        delay_min_us: 100,
        delay_max_us: 100_000,
        loss: 0,
        duplicate: world.network.duplicate,
        ordered: true,
    };
    for i in 0..world.nodes.len() {
        // What was stepped away comes back; honest clocks differ by some seconds.
        world.nodes[i].clock_us = world.plan.skew_us[i] / 2;
    }
    world.revive()?;
    world.reconnect_all()?;
    heal = standing::take_back(world, heal)?;
    world.run_until(heal + CONVERGE_US / 2)?;
    // Liars pause, so that nothing is under way when beliefs are compared.
    world.truce = true;
    agree_until(world, heal + CONVERGE_US)?;
    world.truce = false;
    let stepped = |(_, what): &(u64, Happening)| matches!(what, Happening::ClockStep(..));
    if world.plan.script.iter().any(stepped) {
        // A node whose clock was ahead says nothing about the minutes of which it forgot its votes.
        world.run_until(world.now + 2 * crate::world::BUCKET)?;
    }
    let begin = world.now;
    let until = last_attack(world)?;
    world.run_until(until - 2 * S)?;
    world.truce = true;
    world.run_until(until)?;
    if standing::suffice(world, begin, Weights::needed) {
        blocked(world)?;
    }
    agree_until(world, until + AGREE_US)?;
    world.truce = false;
    epochs_go_on(world)?;
    agree_until(world, world.now + AGREE_US)?;
    standing::settle(world)?;
    agree_until(world, world.now + AGREE_US)?;
    let until = world.now;
    if world.plan.to_the_end {
        let ttl = u64::from(world.plan.params.block_ttl_s) * S;
        let skew = u64::from(world.plan.params.max_skew_s) * S;
        world.run_until(until + ttl + 3 * crate::world::BUCKET + skew)?;
        over(world)?;
    }
    Ok(())
}

/// Goes on until all honest nodes believe the same.
pub(crate) fn agree_until(world: &mut World, until: u64) -> Result<(), Violation> {
    loop {
        let agreed = agree(world);
        if agreed.is_ok() || world.now >= until {
            return agreed;
        }
        world.run_until(until.min(world.now + S / 4))?;
    }
}

/// Epochs follow each other, whatever the liars do, and whoever was let in or taken out is.
fn epochs_go_on(world: &mut World) -> Result<(), Violation> {
    let length = u64::from(world.plan.params.epoch_s) * S;
    let lowest = |world: &World| {
        let members = world.members().into_iter();
        let engines = members.filter_map(|i| world.nodes[i].engine.as_ref());
        engines.map(|e| e.roster().epoch()).min().unwrap_or(0)
    };
    let before = lowest(world);
    if !standing::suffice(world, u64::MAX, Weights::t_hi) {
        return Ok(());
    }
    if length <= 60 * S {
        // Clocks differ, a liar may be the proposer some rounds long, and a round is longer than the one before.
        let until = world.now + length + ROUNDS_US;
        while lowest(world) <= before {
            if world.now >= until {
                return broken(
                    "epoch-liveness",
                    format!("no epoch after {before} in {} s", (length + ROUNDS_US) / S),
                );
            }
            world.run_until(world.now + S)?;
        }
    }
    for i in world.members() {
        let Some(engine) = &world.nodes[i].engine else {
            continue;
        };
        for (j, other) in world.nodes.iter().enumerate() {
            let removed = world.oracle.removed.contains(&other.id);
            let wanted = other.joined && !removed;
            // A liar may have used its ticket twice.
            if engine.roster().get(&other.id).is_some() != wanted && (removed || !world.lies(j)) {
                return broken(
                    "epoch-liveness",
                    format!(
                        "node {j} should be {} by now, says {i}",
                        if wanted { "in" } else { "out" }
                    ),
                );
            }
        }
    }
    Ok(())
}

/// All honest nodes believe the same, byte for byte.
pub(crate) fn agree(world: &World) -> Result<(), Violation> {
    // Who waits for the epoch that takes it in is told nothing by the others yet.
    let mut running = world.members();
    running.retain(|i| {
        let node = &world.nodes[*i];
        node.engine
            .as_ref()
            .is_some_and(|e| e.roster().get(&node.id).is_some())
    });
    for i in &running {
        let engine = world.nodes[*i].engine.as_ref();
        if engine.is_some_and(|engine| !engine.trust().whole) {
            return broken(
                "convergence",
                format!("node {i} lacks statements that its epoch rests on"),
            );
        }
    }
    let decisions = world.provable();
    let mut beliefs = running
        .iter()
        .filter_map(|i| Some((*i, world.belief(*i, &decisions)?)));
    let Some((first, expected)) = beliefs.next() else {
        return Ok(());
    };
    for (i, belief) in beliefs {
        if belief != expected {
            return broken("convergence", world.difference(first, i, &decisions));
        }
    }
    Ok(())
}

/// An attack on two honest nodes, of two zones where there are two; gives when it has to be blocked.
fn last_attack(world: &mut World) -> Result<u64, Violation> {
    // Who is on probation is no witness.
    let mut honest = world.members();
    let weighs = |i: &usize| {
        let engine = world.nodes[*i].engine.as_ref();
        engine.is_some_and(|e| {
            e.roster()
                .get(&world.nodes[*i].id)
                .is_some_and(|m| m.weight > 0)
        })
    };
    honest.retain(weighs);
    let members: BTreeSet<usize> = honest.iter().map(|i| world.plan.zones[*i]).collect();
    let Some(first) = honest.first().copied() else {
        return broken("liveness", "no honest node runs");
    };
    let zone = world.plan.zones[first];
    let second = honest
        .iter()
        .copied()
        .find(|i| *i != first && (members.len() < 2 || world.plan.zones[*i] != zone))
        .unwrap_or(first);
    let subject = cast::attacker(LAST_ATTACK);
    let begin = world.now;
    for i in [first, second] {
        for n in 0..BLOCK_US / S {
            world.plan_for(
                begin + n * S + i as u64,
                Happening::Sees(i, subject, AttackClass::PortScan),
            );
        }
    }
    Ok(begin + BLOCK_US + 2 * S)
}

/// The attack after healing is blocked on every honest node.
fn blocked(world: &World) -> Result<(), Violation> {
    let subject = cast::attacker(LAST_ATTACK);
    for i in world.members() {
        if !world.nodes[i].kernel.values().any(|b| b.subject == subject) {
            return broken(
                "liveness",
                format!("{subject} attacks two nodes and node {i} does not block it"),
            );
        }
    }
    Ok(())
}

/// Every block has ended.
fn over(world: &World) -> Result<(), Violation> {
    for i in world.running() {
        let node = &world.nodes[i];
        if let Some(block) = node.kernel.values().next() {
            return broken(
                "block-ends",
                format!("node {i} still blocks {}", block.subject),
            );
        }
    }
    Ok(())
}
