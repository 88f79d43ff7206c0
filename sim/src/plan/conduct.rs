//! What nodes do to each other: who is cut off and taken back, who answers test questions wrongly, who restarts.

use secmesh::mesh::engine::Automatic;
use secmesh::mesh::evidence::Say;

use super::{Answers, Happening, Plan};
use crate::cast::{self, S};
use crate::rng::Rng;

impl Plan {
    /// Draws them. From a stream of its own, so that the rest of a seed stays what it was.
    pub(super) fn write_conduct(&mut self, rng: &mut Rng) {
        for liar in self.liars.clone() {
            let mut drawn = rng.fork(liar as u64);
            let answers = match drawn.below(5) {
                0 | 1 => Some(Answers::Wrong),
                2 => Some(Answers::Always(Say::Hostile)),
                3 => Some(Answers::Always(Say::Harmless)),
                _ => None,
            };
            self.answers.extend(answers.map(|answers| (liar, answers)));
        }
        self.script_late_restarts(&mut rng.fork(1_000));
        self.script_forgetting(&mut rng.fork(1_001));
        self.script_quarantines(&mut rng.fork(1_002));
        let last = self.heal_us;
        self.script.retain(|(at, what)| {
            let goes_on = matches!(
                what,
                Happening::Lie(_) | Happening::Ask(_) | Happening::Checkpoint(_)
            );
            *at < last || goes_on
        });
        self.script.sort_by_key(|(at, _)| *at);
    }

    /// One honest node after the other is started anew at the end, as in an upgrade: by then liars are exposed.
    fn script_late_restarts(&mut self, rng: &mut Rng) {
        if !rng.percent(25) {
            return;
        }
        let mut at = self.heal_us - rng.between(15, 30) * S;
        for node in self.honest_members() {
            self.script.push((at, Happening::Crash(node, None)));
            at += rng.between(S / 2, 2 * S);
            self.script.push((at, Happening::Restart(node)));
        }
    }

    /// A node sees an attack, its clock jumps ahead and comes back, and it sees the same attack within the same
    /// minute.
    fn script_forgetting(&mut self, rng: &mut Rng) {
        let honest = self.honest_members();
        let Some(node) = rng.pick(&honest).copied().filter(|_| rng.percent(20)) else {
            return;
        };
        let subject = cast::attacker(150);
        let class = secmesh::mesh::vote::AttackClass::PortScan;
        let by = i64::try_from(rng.between(600, 7_200) * S).unwrap_or(0);
        let mut at = rng.between(10 * S, self.heal_us - 40 * S);
        let mut then = |after: u64, what| {
            at += after;
            self.script.push((at, what));
        };
        then(0, Happening::Sees(node, subject, class));
        then(rng.between(1, 5) * S, Happening::ClockStep(node, by));
        then(rng.between(2, 8) * S, Happening::ClockStep(node, -by));
        for _ in 0..3 {
            then(rng.between(1, 4) * S, Happening::Sees(node, subject, class));
        }
    }

    fn script_quarantines(&mut self, rng: &mut Rng) {
        if self.nodes < 4 {
            return;
        }
        self.quarantine = *rng
            .pick(&[
                Automatic::Off,
                Automatic::Off,
                Automatic::Proofs,
                Automatic::Sightings,
                Automatic::Sightings,
            ])
            .unwrap_or(&Automatic::Off);
        if self.quarantine == Automatic::Off {
            return;
        }
        let honest = self.honest_members();
        let last = self.heal_us;
        for liar in self.liars.clone() {
            if rng.percent(50) {
                self.accusers.insert(liar);
            }
            if rng.percent(40) {
                let begin = rng.between(5 * S, last - 10 * S);
                for node in rng.some(&honest, 1 + rng.clone().index(honest.len())) {
                    for _ in 0..rng.between(1, 3) {
                        let at = begin + rng.below(15 * S);
                        self.script.push((at, Happening::NodeAttacks(node, liar)));
                    }
                }
            }
            // Operators are people: they have a liar taken back, too.
            if rng.percent(15) {
                self.script_order(rng, liar, true);
            }
            if rng.percent(15) {
                self.script_order(rng, liar, false);
            }
        }
        if rng.percent(30)
            && let Some(node) = rng.pick(&honest).copied()
        {
            let at = self.script_order(rng, node, false);
            if rng.percent(70) {
                let others: Vec<usize> = honest.iter().copied().filter(|i| *i != node).collect();
                if let Some(through) = rng.pick(&others).copied() {
                    let later = at + rng.between(5, 90) * S;
                    self.script.push((
                        later,
                        Happening::Order {
                            at: through,
                            node,
                            readmit: true,
                        },
                    ));
                }
            }
        }
    }

    /// Somebody's operator wants a node cut off or taken back, with the operator key or by vote.
    fn script_order(&mut self, rng: &mut Rng, node: usize, readmit: bool) -> u64 {
        let honest = self.honest_members();
        let others: Vec<usize> = honest.into_iter().filter(|i| *i != node).collect();
        let time = rng.between(10 * S, self.heal_us);
        if rng.percent(60) {
            if let Some(at) = rng.pick(&others).copied() {
                self.script
                    .push((time, Happening::Order { at, node, readmit }));
            }
        } else {
            for at in rng.some(&others, 2) {
                self.script.push((
                    time + rng.below(2 * S),
                    Happening::AskAbout { at, node, readmit },
                ));
            }
        }
        time
    }
}
