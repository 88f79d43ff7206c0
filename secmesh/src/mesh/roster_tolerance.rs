//! What the weights of a roster, and the seats of its committee, can withstand.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Roster;
use crate::mesh::ids::Zone;

/// What a roster can withstand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tolerance {
    /// One node: it decides alone.
    Single,
    /// Liars below a third of the weight could still do harm, or nodes are too few.
    NotByzantineTolerant {
        /// Why, for people.
        why: String,
        /// Whether a decision needs every node (rosters of two or three).
        needs_all: bool,
    },
    /// Less than a third of the weight may lie.
    Tolerant,
}

impl Roster {
    /// What the weights can withstand, and the seats where there is a committee: how many nodes exactly, says
    /// [`Roster::liars_withstood`].
    pub fn tolerance(&self) -> Tolerance {
        match self.tolerance_of_weights() {
            Tolerance::Tolerant => self.tolerance_of_seats(),
            less => less,
        }
    }

    /// The same rules for the seats, which are the weights of all decisions. The draw keeps to the nodes' weights, but
    /// for one seat more or less of each, and knows nothing of zones.
    fn tolerance_of_seats(&self) -> Tolerance {
        let (Some(seats), deciding) = (self.seats(), self.deciding()) else {
            return Tolerance::Tolerant;
        };
        let total = deciding.total();
        let not = |why: String| Tolerance::NotByzantineTolerant {
            why,
            needs_all: deciding.needs_all(),
        };
        let mut zones: BTreeMap<&Zone, u64> = BTreeMap::new();
        for (seats, member) in seats.iter().filter_map(|(n, s)| Some((*s, self.get(n)?))) {
            *zones.entry(&member.record.zone).or_default() += u64::from(seats);
        }
        // Whatever is drawn: it need not have them in this epoch.
        let heaviest = self.members.values().max_by_key(|m| m.weight);
        if let Some(m) = heaviest.filter(|_| self.liars_withstood() == 0) {
            return not(format!(
                "node {} weighs so much that it may have a third of the {total} seats",
                m.record.name
            ));
        }
        let third = zones.iter().find(|(_, seats)| **seats * 3 >= total);
        match third {
            Some((zone, seats)) => not(format!(
                "zone {zone} has {seats} of {total} seats of this epoch, a third or more"
            )),
            None => Tolerance::Tolerant,
        }
    }

    pub(super) fn tolerance_of_weights(&self) -> Tolerance {
        let total = self.total();
        let not = |why: String| Tolerance::NotByzantineTolerant {
            why,
            needs_all: self.weights.needs_all(),
        };
        match self.voters() {
            0 => return not("nobody in the roster has weight".to_owned()),
            1 if self.members.len() == 1 => return Tolerance::Single,
            1 => return not("one node has all the weight; the others are on probation".to_owned()),
            n @ 2..=3 => {
                return not(format!(
                    "{n} nodes: every one has to agree, so one that is down or lies stops a \
                     decision; four nodes or more are needed"
                ));
            }
            _ => {}
        }
        let third = |weight: u64| weight.saturating_mul(3) >= total;
        if let Some(m) = self.members.values().find(|m| third(u64::from(m.weight))) {
            return not(format!(
                "node {} holds {} of {total} weight, a third or more",
                m.record.name, m.weight
            ));
        }
        let mut zones: BTreeMap<&Zone, u64> = BTreeMap::new();
        for m in self.members.values() {
            *zones.entry(&m.record.zone).or_default() += u64::from(m.weight);
        }
        match zones.iter().find(|(_, weight)| third(**weight)) {
            Some((zone, weight)) => not(format!(
                "zone {zone} holds {weight} of {total} weight, a third or more: spread the nodes over \
                 more zones"
            )),
            None => Tolerance::Tolerant,
        }
    }
}
