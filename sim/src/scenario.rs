//! Directed runs: schedules that a seed would hardly draw, each for a rule that only matters there.

mod desks;
mod forks;
mod hostile;
mod newcomers;
mod seats;

use std::collections::{BTreeMap, BTreeSet};

use secmesh::mesh::engine::Automatic;
use secmesh::mesh::genesis::Params;
use secmesh::mesh::simulation::{self, Bug};

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
    /// Planted bugs that it shows. They are not looked for elsewhere while it does.
    pub shows: &'static [Bug],
    plan: fn() -> Plan,
    /// What has to hold at the end of the plan, beside the rules that hold at every step; it may go on.
    end: fn(&mut World) -> Result<(), Violation>,
}

/// All of them.
pub const SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: "clock-back",
        about: "A node whose clock jumps ahead by an hour says something about the next epoch, which is lost, and \
                the clock comes back: it has to say it again, since the others wait for it.",
        shows: &[
            Bug::ResendStuck,
            Bug::EpochSendBeforePersist,
            Bug::EpochTLo,
            Bug::RosterByReach,
        ],
        plan: clock_back,
        end: next_epoch,
    },
    Scenario {
        name: "locked",
        about: "One node alone sees enough prevotes and precommits, the others do not, and go on to the next \
                round and another record: it has to stay with its own until it sees that it may go.",
        shows: &[
            Bug::LockIgnored,
            Bug::StaleFold,
            Bug::OwnOpinion,
            Bug::StatementBeforePersist,
        ],
        plan: locked,
        end: next_epoch,
    },
    Scenario {
        name: "long-fork",
        about: "A liar shows one node another log than the rest, and theirs is so long that no answer holds more. \
                The honest have made statements that the one lacks: it gets them all the same, and nobody asks for \
                the liar's log again and again.",
        shows: &[Bug::ForkStalls, Bug::ForkAskedAgain],
        plan: forks::long,
        end: forks::all_agree,
    },
    Scenario {
        name: "short-fork",
        about: "A liar shows one node another log than the rest, which is shorter than the one that they certify: \
                it gives its own up, and takes part in epochs again.",
        shows: &[Bug::ForkKept],
        plan: forks::short,
        end: forks::agree_in_the_next_epoch,
    },
    Scenario {
        name: "desks",
        about: "In a mesh with a committee, two nodes without a seat see an attack: the first seats that they turn to \
                tell the others, and all nodes block it within a second.",
        shows: &[
            Bug::DesksKeep,
            Bug::UnseatedUnheard,
            Bug::SeatsForeseen,
            Bug::UnseatedCounts,
        ],
        plan: desks::plan,
        end: desks::open,
    },
    Scenario {
        name: "desks-closed",
        about: "The same, and the first seats that they turn to do not hear them: they turn to others.",
        shows: &[Bug::DesksOnce],
        plan: desks::plan,
        end: desks::closed,
    },
    Scenario {
        name: "late-seats",
        about: "A node is away while a committee decides and while the next epoch draws other seats: it takes the \
                decisions all the same, by the seats of their epoch.",
        shows: &[Bug::SeatsOfToday],
        plan: seats::plan,
        end: seats::taken_by_who_comes_back,
    },
    Scenario {
        name: "known-liar",
        about: "One node alone knows that another lies, and is shown a certificate that needs the liar's vote: it \
                does not act on it.",
        shows: &[Bug::LiarKeepsWeight],
        plan: hostile::known_liar,
        end: nothing_more,
    },
    Scenario {
        name: "accusers",
        about: "Two liars of two zones accuse the same honest nodes, in each minute another one of them: nobody \
                agrees, since they weigh less than a third.",
        shows: &[Bug::AccusersLight],
        plan: hostile::accusers,
        end: nothing_more,
    },
    Scenario {
        name: "three-hostile",
        about: "Three of ten nodes attack all others at once: two of them are cut off within the hour.",
        shows: &[Bug::BudgetOff, Bug::UnderWayFree],
        plan: hostile::three,
        end: nothing_more,
    },
    Scenario {
        name: "newcomers",
        about: "Nodes join shortly before the epoch that takes them in, and are refused statements until then: they \
                have all of them at once when it has begun.",
        shows: &[Bug::NewcomerWaits],
        plan: newcomers::plan,
        end: newcomers::have_all,
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
        (self.end)(&mut world)
    }
}

/// Nodes of a zone each, in a good network and without anything else. Liars do nothing by themselves.
fn quiet(nodes: usize, liars: &[usize], end_s: u64) -> Plan {
    Plan {
        seed: 1,
        zones: (0..nodes).collect(),
        nodes,
        liars: liars.iter().copied().collect(),
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
        skew_us: vec![0; nodes],
        allow: vec![BTreeSet::new(); nodes],
        script: Vec::new(),
        heal_us: end_s * S,
        to_the_end: false,
        witnesses: false,
        detector: false,
        quarantine: Automatic::Off,
        answers: BTreeMap::new(),
        accusers: BTreeSet::new(),
        tricks: liars.iter().map(|liar| (*liar, Vec::new())).collect(),
    }
}

/// Four nodes of four zones, of whom the last says nothing at all: the three others need each other. The epoch is
/// over after 20 s.
fn three_of_four(end_s: u64) -> Plan {
    quiet(4, &[3], end_s)
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

/// The rules that hold at every step are enough.
#[expect(clippy::unnecessary_wraps, reason = "as the ends of other runs")]
const fn nothing_more(_: &mut World) -> Result<(), Violation> {
    Ok(())
}

/// Everybody is in the second epoch or a later one.
fn next_epoch(world: &mut World) -> Result<(), Violation> {
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
