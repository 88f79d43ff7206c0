//! Liars that are known to lie, accuse others, or attack.

use secmesh::mesh::engine::Automatic;
use secmesh::mesh::vote::AttackClass;

use super::{quiet, three_of_four};
use crate::cast::{self, S};
use crate::liar::Trick;
use crate::plan::{Happening, Plan, Swallowed};

/// Who lies in a mesh of four.
const LIAR: usize = 3;
/// Who knows it.
const KNOWS: usize = 1;
/// The other honest ones; the first of them is attacked.
const OTHERS: [usize; 2] = [0, 2];
/// Subjects on which the liar votes, and how often it tries one.
const SUBJECTS: usize = 3;
const TRIES: u64 = 24;

/// The liar contradicts itself to one node, whose word of it is lost. Then an honest node is attacked, and the liar
/// confirms that: the two are enough for who does not know it.
pub(super) fn known_liar() -> Plan {
    let mut plan = three_of_four(90);
    plan.params.epoch_s = 3_600;
    let script = &mut plan.script;
    for other in OTHERS {
        for from in [LIAR, KNOWS] {
            let lost = Happening::Swallow(from, other, Swallowed::All);
            script.push((5 * S, lost));
        }
        let again = Happening::Swallow(LIAR, other, Swallowed::Nothing);
        script.push((60 * S, again));
    }
    for n in 0..TRIES {
        let lie = Happening::Trick(LIAR, Trick::Equivocate);
        script.push((6 * S + n * S / 4, lie));
        let frame = Happening::Trick(LIAR, Trick::Frame);
        // In the next minute it votes on other incidents.
        script.push((64 * S + n * S / 4, frame));
    }
    for n in 0..SUBJECTS {
        let attack = Happening::Sees(OTHERS[0], cast::victim(LIAR, n), AttackClass::SynFlood);
        script.push((72 * S, attack));
    }
    plan.script.sort_by_key(|(at, _)| *at);
    plan
}

/// Each accuses whom it is the minute's turn to accuse, of that minute's class.
pub(super) fn accusers() -> Plan {
    let liars = [2, 5];
    let mut plan = quiet(7, &liars, 300);
    plan.params.epoch_s = 3_600;
    plan.quarantine = Automatic::Sightings;
    for second in (5..300).step_by(5) {
        for liar in liars {
            let lie = Happening::Trick(liar, Trick::Accuse);
            plan.script.push((second * S, lie));
        }
    }
    plan
}

/// All honest nodes are attacked by three, more than may be cut off within an hour; by which of them first is another
/// order at each, so that at some it is not the one in which they would choose.
pub(super) fn three() -> Plan {
    let liars = [1, 4, 7];
    let orders = [
        [1, 4, 7],
        [1, 7, 4],
        [4, 1, 7],
        [4, 7, 1],
        [7, 1, 4],
        [7, 4, 1],
    ];
    let mut plan = quiet(10, &liars, 60);
    plan.params.epoch_s = 3_600;
    plan.quarantine = Automatic::Sightings;
    let honest = (0..10).filter(|i| !liars.contains(i));
    for (i, order) in honest.zip(orders.iter().cycle()) {
        for liar in *order {
            plan.script.push((10 * S, Happening::NodeAttacks(i, liar)));
        }
    }
    plan
}
