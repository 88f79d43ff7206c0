//! Directed runs: schedules that a seed would hardly draw, each for a rule that only matters there.

use std::collections::{BTreeMap, BTreeSet};

use secmesh::mesh::engine::Automatic;
use secmesh::mesh::genesis::Params;
use secmesh::mesh::simulation;

use crate::cast::S;
use crate::oracle::{Violation, broken};
use crate::plan::{Happening, Network, Plan, Swallowed};
use crate::world::World;

/// A directed run.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    plan: fn() -> Plan,
    /// What has to hold at its end, beside the rules that hold at every step.
    end: fn(&World) -> Result<(), Violation>,
}

/// All of them.
pub const SCENARIOS: [Scenario; 2] = [
    Scenario {
        name: "clock-back",
        about: "A node whose clock jumps ahead by an hour says something about the next epoch, which is lost, and \
                the clock comes back: it has to say it again, since the others wait for it.",
        plan: clock_back,
        end: next_epoch,
    },
    Scenario {
        name: "locked",
        about: "One node alone sees enough prevotes and precommits, the others do not, and go on to the next \
                round and another record: it has to stay with its own until it sees that it may go.",
        plan: locked,
        end: next_epoch,
    },
];

impl Scenario {
    /// Runs it.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn run(&self, print: bool) -> Result<(), Violation> {
        simulation::remember_signature_checks();
        let plan = (self.plan)();
        let end = plan.heal_us;
        let mut world = World::new(plan, print)?;
        world.run_until(end)?;
        (self.end)(&world)
    }
}

/// Four nodes of four zones, of whom the last says nothing at all: the three others need each other. The epoch is
/// over after 20 s.
fn three_of_four(end_s: u64) -> Plan {
    let silent = 3;
    Plan {
        seed: 1,
        zones: (0..4).collect(),
        nodes: 4,
        liars: BTreeSet::from([silent]),
        params: Params {
            epoch_s: 20,
            ..Params::default()
        },
        network: Network {
            delay_min_us: 1_000,
            delay_max_us: 5_000,
            loss: 0,
            duplicate: 0,
            ordered: true,
        },
        skew_us: vec![0; 4],
        allow: vec![BTreeSet::new(); 4],
        script: Vec::new(),
        heal_us: end_s * S,
        to_the_end: false,
        witnesses: false,
        detector: false,
        quarantine: Automatic::Off,
        answers: BTreeMap::new(),
        accusers: BTreeSet::new(),
        tricks: BTreeMap::from([(silent, Vec::new())]),
    }
}

fn clock_back() -> Plan {
    let mut plan = three_of_four(60);
    let hour = i64::try_from(3_600 * S).unwrap_or(0);
    for to in [1, 2] {
        let lost = Happening::Swallow(0, to, Swallowed::All);
        plan.script.push((19 * S, lost));
        let again = Happening::Swallow(0, to, Swallowed::Nothing);
        plan.script.push((29 * S, again));
    }
    plan.script.push((19 * S, Happening::ClockStep(0, hour)));
    plan.script.push((23 * S, Happening::ClockStep(0, -hour)));
    plan.script.sort_by_key(|(at, _)| *at);
    plan
}

fn locked() -> Plan {
    let mut plan = three_of_four(150);
    for to in [1, 2] {
        let lost = Happening::Swallow(0, to, Swallowed::Prevotes);
        plan.script.push((10 * S, lost));
        let again = Happening::Swallow(0, to, Swallowed::Nothing);
        plan.script.push((60 * S, again));
    }
    // There is always something new to put into a record. Who is asked has to be connected for 30 s.
    for second in 1..150 {
        let node = usize::try_from(second % 3).unwrap_or(0);
        plan.script.push((second * S, Happening::Ask(node)));
    }
    plan.script.sort_by_key(|(at, _)| *at);
    plan
}

/// Everybody is in the second epoch or a later one.
fn next_epoch(world: &World) -> Result<(), Violation> {
    for i in world.members() {
        let engine = world.nodes[i].engine.as_ref();
        if engine.is_none_or(|engine| engine.roster().epoch() < 2) {
            return broken(
                "epoch-liveness",
                format!("node {i} is in the first epoch after {} s", world.now / S),
            );
        }
    }
    Ok(())
}
