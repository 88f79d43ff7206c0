//! A liar shows one node another log of statements than the others, who meet later.

use secmesh::mesh::genesis::Params;

use super::{next_epoch, quiet};
use crate::cast::{self, S};
use crate::liar::Trick;
use crate::oracle::Violation;
use crate::plan::{Happening, Plan, Swallowed};
use crate::run::agree_until;
use crate::world::World;

/// Nodes: without the liar and the one that it deceives, five have more than two thirds of the weight.
const NODES: usize = 7;
/// When the one and the other honest nodes no longer hear each other, seconds.
const APART_S: u64 = 5;
/// From then on, the liar says something each second.
const LIES_S: u64 = 6;
/// How long all may take to agree once they meet, seconds: who compares is answered at once, and who gets no answer waits
/// for five.
const ANSWERED_S: u64 = 4;
/// The same where a log has to be found out to be another one first.
const GIVEN_UP_S: u64 = 10;

/// The liar has the lowest id, so that its log is asked for before those of others.
fn cast_of() -> (usize, Vec<usize>) {
    let liar = (0..NODES).min_by_key(|i| cast::node_id(*i)).unwrap_or(0);
    let honest = (0..NODES).filter(|i| *i != liar).collect();
    (liar, honest)
}

/// The first honest node and the others do not hear each other until `meet_s`, and the liar lies so often.
fn apart(trick: Trick, lies: u64, meet_s: u64) -> Plan {
    let (liar, honest) = cast_of();
    let mut plan = quiet(NODES, &[liar], meet_s);
    let one = honest[0];
    for other in &honest[1..] {
        for (from, to) in [(one, *other), (*other, one)] {
            let lost = Happening::Swallow(from, to, Swallowed::All);
            plan.script.push((APART_S * S, lost));
            let again = Happening::Swallow(from, to, Swallowed::Nothing);
            plan.script.push((meet_s * S, again));
        }
    }
    for n in 0..lies {
        let lie = Happening::Trick(liar, trick);
        plan.script.push(((LIES_S + n) * S, lie));
    }
    plan.script.sort_by_key(|(at, _)| *at);
    plan
}

/// A log of more than an answer holds; each of the others has made statements by the time they meet.
pub(super) fn long() -> Plan {
    let mut plan = apart(Trick::LongLogForkForOne, 8, 60);
    plan.params = Params {
        epoch_s: 3_600,
        ..plan.params
    };
    let (_, honest) = cast_of();
    // Who is asked has to be connected for 30 s.
    for (n, node) in honest.iter().skip(1).enumerate() {
        let at = (36 + 3 * n as u64) * S;
        plan.script.push((at, Happening::Ask(*node)));
    }
    plan.script.sort_by_key(|(at, _)| *at);
    plan
}

/// Three statements for the others, one for the one; an epoch rests on the three before they meet.
pub(super) fn short() -> Plan {
    apart(Trick::LogForkForOne, 3, 30)
}

pub(super) fn all_agree(world: &mut World) -> Result<(), Violation> {
    agree_until(world, world.now + ANSWERED_S * S)
}

pub(super) fn agree_in_the_next_epoch(world: &mut World) -> Result<(), Violation> {
    agree_until(world, world.now + GIVEN_UP_S * S)?;
    // On its disk are both logs now, the other one first.
    let (_, honest) = cast_of();
    let one = honest[0];
    world.plan_for(world.now, Happening::Crash(one, None));
    world.plan_for(world.now + S, Happening::Restart(one));
    world.run_until(world.now + 2 * S)?;
    agree_until(world, world.now + 2 * GIVEN_UP_S * S)?;
    next_epoch(world)
}
