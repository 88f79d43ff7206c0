//! Attacks, and what breaks.

use std::collections::BTreeSet;

use secmesh::addr::Prefix;
use secmesh::mesh::vote::AttackClass;

use super::{Cut, Happening, Plan};
use crate::cast::{self, S};
use crate::rng::Rng;

impl Plan {
    pub(super) fn script_attacks(&mut self, rng: &mut Rng, honest: &[usize], last: u64) {
        let classes = [
            AttackClass::SynFlood,
            AttackClass::UdpFlood,
            AttackClass::PortScan,
        ];
        for n in 0..usize::try_from(rng.between(2, 8)).unwrap_or(2) {
            let liar = rng
                .pick(&self.liars.iter().copied().collect::<Vec<_>>())
                .copied();
            let (subject, class) = match (rng.below(10), liar) {
                (0 | 1, Some(liar)) => (
                    Prefix::host(cast::address(liar)),
                    *rng.pick(&classes).unwrap_or(&AttackClass::SynFlood),
                ),
                (2, Some(liar)) => (cast::network(cast::address(liar)), AttackClass::Network),
                (3 | 4, _) => (cast::attacking_network(n), AttackClass::Network),
                _ => (
                    cast::attacker(n),
                    *rng.pick(&classes).unwrap_or(&AttackClass::SynFlood),
                ),
            };
            for allow in &mut self.allow {
                if rng.percent(12) {
                    allow.insert(subject);
                }
            }
            let targets = rng.some(honest, 1 + rng.clone().index(honest.len()));
            let begin = rng.between(2 * S, last.saturating_sub(10 * S));
            let end = (begin + rng.between(1, 60) * S).min(last);
            let pause = rng.between(S / 2, 8 * S);
            for target in targets {
                let mut at = begin + rng.below(10 * S);
                while at < end {
                    self.script
                        .push((at, Happening::Sees(target, subject, class)));
                    at += rng.between(pause / 2, 2 * pause);
                }
            }
            if rng.percent(30)
                && let Some(node) = rng.pick(honest)
            {
                let at = rng.between(begin, last);
                self.script.push((
                    at,
                    Happening::OperatorRelease(*node, subject, rng.percent(40)),
                ));
            }
        }
        if rng.percent(30) {
            let at = rng.between(5 * S, last);
            for node in rng.some(honest, 2) {
                self.script.push((
                    at + rng.below(S),
                    Happening::OperatorBlock(node, cast::attacker(100)),
                ));
            }
        }
    }

    pub(super) fn script_faults(&mut self, rng: &mut Rng, honest: &[usize], last: u64) {
        let all: Vec<usize> = (0..self.zones.len()).collect();
        for _ in 0..rng.below(4) {
            let count = match rng.below(3) {
                0 => self.nodes / 2,
                1 => 1,
                _ => rng.index(self.nodes) + 1,
            };
            let side: BTreeSet<usize> = rng.some(&all, count).into_iter().collect();
            let cut = if rng.percent(30) {
                Cut::OneWay(side)
            } else {
                Cut::Split(side)
            };
            let at = rng.between(S, last);
            self.script.push((at, Happening::Cut(cut)));
            self.script
                .push((at + rng.between(2, 80) * S, Happening::Mend));
        }
        for _ in 0..rng.below(5) {
            let Some(node) = rng.pick(honest).copied() else {
                continue;
            };
            let at = rng.between(S, last);
            let after = rng.percent(60).then(|| rng.index(5));
            self.script.push((at, Happening::Crash(node, after)));
            self.script
                .push((at + rng.between(1, 40) * S / 2, Happening::Restart(node)));
        }
        if rng.percent(15)
            && let Some(node) = rng.pick(honest).copied()
        {
            self.script
                .push((rng.between(S, last), Happening::DiskFails(node)));
        }
        if rng.percent(35)
            && let Some(node) = rng.pick(honest).copied()
        {
            let by = *rng
                .pick(&[3_600, -3_600, 40, -40, 90, -90, 300, -300])
                .unwrap_or(&40)
                * i64::try_from(S).unwrap_or(1);
            let at = rng.between(S, last);
            self.script.push((at, Happening::ClockStep(node, by)));
            self.script
                .push((at + rng.between(1, 60) * S, Happening::ClockStep(node, -by)));
        }
    }
}
