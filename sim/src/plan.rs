//! What a seed asks for: nodes, liars, faults, attacks, and when.

mod conduct;
mod faults;

use std::collections::{BTreeMap, BTreeSet};

use secmesh::addr::Prefix;
use secmesh::mesh::engine::Automatic;
use secmesh::mesh::evidence::{Ruling, Say};
use secmesh::mesh::genesis::Params;
use secmesh::mesh::ids::DecisionId;
use secmesh::mesh::vote::AttackClass;

use crate::cast::S;
use crate::liar::Trick;
use crate::rng::Rng;

/// Which links a partition cuts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// All between these and the others, both ways.
    Split(BTreeSet<usize>),
    /// What these send to the others.
    OneWay(BTreeSet<usize>),
}

/// Something that is to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A partition begins.
    Cut(Cut),
    /// All partitions end.
    Mend,
    /// A node loses its memory, at once or after so many outputs of a later call.
    Crash(usize, Option<usize>),
    /// It comes back.
    Restart(usize),
    /// Its disk refuses to write until the restart.
    DiskFails(usize),
    /// Its clock is set by so many microseconds.
    ClockStep(usize, i64),
    /// A sensor of a node sees an attack.
    Sees(usize, Prefix, AttackClass),
    /// The operator of a node wants a block.
    OperatorBlock(usize, Prefix),
    /// The operator of a node wants a block to end: with the operator key, or by vote.
    OperatorRelease(usize, Prefix, bool),
    /// A member lets a new node in.
    Join {
        /// Who joins.
        node: usize,
        /// Through whom.
        through: usize,
    },
    /// A liar does something.
    Lie(usize),
    /// A liar does this.
    Trick(usize, Trick),
    /// The operator takes a node out of the mesh.
    Remove {
        /// Whom.
        node: usize,
        /// Where it is handed in.
        through: usize,
    },
    /// A node asks a test question.
    Ask(usize),
    /// A node looks at what became of a block.
    Outcome(usize, DecisionId),
    /// The operator's verdict on the blocks of a subject, handed in at a node.
    Verdict(usize, Prefix, Ruling),
    /// A node signs its ledger.
    Checkpoint(usize),
    /// A node sees another one attack.
    NodeAttacks(usize, usize),
    /// The operator of a node wants another one cut off, or taken back, by vote.
    AskAbout {
        /// Whose operator.
        at: usize,
        /// Whom.
        node: usize,
        /// Taken back.
        readmit: bool,
    },
    /// The operator orders, with the operator key, that a node is cut off, or taken back.
    Order {
        /// Where it is handed in.
        at: usize,
        /// Whom.
        node: usize,
        /// Taken back.
        readmit: bool,
    },
    /// What of the messages from one node to another vanishes from now on; no session ends by it.
    Swallow(usize, usize, Swallowed),
}

/// Messages that vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Swallowed {
    /// None.
    #[default]
    Nothing,
    /// Prevotes on epochs.
    Prevotes,
    /// All.
    All,
}

/// What a liar answers to test questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The contrary of what the honest nodes hold.
    Wrong,
    /// Always the same: it agrees with everything, or with nothing.
    Always(Say),
}

/// How the network treats messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Shortest delay, microseconds.
    pub delay_min_us: u64,
    /// Longest delay.
    pub delay_max_us: u64,
    /// Lost, of a thousand.
    pub loss: u64,
    /// Delivered twice, of a thousand.
    pub duplicate: u64,
    /// Whether a link keeps the order, as TCP does.
    pub ordered: bool,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its seed.
    pub seed: u64,
    /// Zone of each node, those that join later included.
    pub zones: Vec<usize>,
    /// Nodes at the start.
    pub nodes: usize,
    /// Who lies: below a third of the weight.
    pub liars: BTreeSet<usize>,
    /// The mesh's numbers.
    pub params: Params,
    /// The network before healing.
    pub network: Network,
    /// Difference of each node's clock from true time, microseconds.
    pub skew_us: Vec<i64>,
    /// What each node's allowlist protects.
    pub allow: Vec<BTreeSet<Prefix>>,
    /// What happens, by time in microseconds since the start.
    pub script: Vec<(u64, Happening)>,
    /// End of the safety phase, microseconds since the start.
    pub heal_us: u64,
    /// Whether the run goes on until all blocks have to be over.
    pub to_the_end: bool,
    /// Whether nodes sign their ledgers and have them witnessed.
    pub witnesses: bool,
    /// Whether a failure detector says who is there; else only connections do.
    pub detector: bool,
    /// For what nodes cut each other off without being told.
    pub quarantine: Automatic,
    /// What liars answer to test questions; the others answer nothing.
    pub answers: BTreeMap<usize, Answers>,
    /// Liars that call honest nodes hostile.
    pub accusers: BTreeSet<usize>,
    /// What liars do, where that is not drawn.
    pub tricks: BTreeMap<usize, Vec<Trick>>,
}

/// What can be asked of a run beside its seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// So many nodes, in place of what the seed says.
    pub nodes: Option<usize>,
    /// Nobody is cut off, and liars answer nothing.
    pub plain: bool,
    /// Some of the nodes decide for all. Then there are 9 to 16 unless `nodes` says otherwise.
    pub committee: bool,
}

impl Plan {
    /// What `seed` asks for.
    pub fn new(seed: u64, wish: Wish) -> Self {
        let mut rng = Rng::new(seed);
        let large = wish.committee.then(|| 9 + (seed % 8) as usize);
        let nodes = wish.nodes.or(large).unwrap_or_else(|| match rng.below(10) {
            0..=4 => 4,
            5 => 5,
            6 => 6,
            7 => 7,
            8 => usize::try_from(rng.between(8, 13)).unwrap_or(8),
            _ => usize::try_from(rng.between(2, 3)).unwrap_or(3),
        });
        let joiners = if rng.percent(25) { rng.index(2) + 1 } else { 0 };
        let all = nodes + joiners;
        let zone_count = match rng.below(6) {
            0 => 1,
            1 => 2,
            2 => 3,
            _ => nodes,
        }
        .min(nodes);
        let zones: Vec<usize> = (0..all).map(|i| i % zone_count).collect();
        // Of four or more nodes, less than a third may lie; two or three have to trust each other.
        let most = if nodes >= 4 { (nodes - 1) / 3 } else { 0 };
        let count = if rng.percent(80) {
            most
        } else {
            rng.index(most + 1)
        };
        let members: Vec<usize> = (0..nodes).collect();
        let liars: BTreeSet<usize> = rng.some(&members, count).into_iter().collect();
        let block_ttl_s = *rng.pick(&[30, 60, 120, 600, 3_600]).unwrap_or(&60);
        let network = match rng.below(4) {
            0 | 1 => Network {
                delay_min_us: 100,
                delay_max_us: rng.between(1_000, 200_000),
                loss: 0,
                duplicate: 0,
                ordered: true,
            },
            2 => Network {
                delay_min_us: 100,
                delay_max_us: rng.between(1_000, 2_000_000),
                loss: 0,
                duplicate: 50,
                ordered: false,
            },
            _ => Network {
                delay_min_us: 1_000,
                delay_max_us: rng.between(10_000, 3_000_000),
                loss: rng.between(1, 250),
                duplicate: rng.between(0, 200),
                ordered: false,
            },
        };
        let skew_us = (0..all)
            .map(|_| {
                let most = 10 * S;
                i64::try_from(rng.below(2 * most)).unwrap_or(0) - i64::try_from(most).unwrap_or(0)
            })
            .collect();
        let safety_s = rng.between(60, 240);
        let mut plan = Self {
            seed,
            zones,
            nodes,
            liars,
            params: Params {
                block_ttl_s,
                ..Params::default()
            },
            network,
            skew_us,
            allow: vec![BTreeSet::new(); all],
            script: Vec::new(),
            heal_us: safety_s * S,
            to_the_end: block_ttl_s <= 120 && rng.percent(50),
            witnesses: rng.fork(3).percent(30),
            detector: !wish.plain && rng.fork(6).percent(30),
            quarantine: Automatic::Off,
            answers: BTreeMap::new(),
            accusers: BTreeSet::new(),
            tricks: BTreeMap::new(),
        };
        let more = &mut rng.fork(4);
        plan.params.epoch_s = *more.pick(&[15, 25, 40, 60, 3_600]).unwrap_or(&60);
        plan.params.probation_epochs = *more.pick(&[0, 1, 3]).unwrap_or(&1);
        plan.write_script(&mut rng.fork(1));
        plan.write_more(more);
        if !wish.plain {
            plan.write_conduct(&mut rng.fork(5));
        }
        if wish.committee {
            // So many that the liars never have a third of the seats, whoever is drawn.
            let least = (3 * plan.liars.len() + 1).max(4);
            if least < plan.nodes {
                let seats = rng.fork(8).between(least as u64, plan.nodes as u64 - 1);
                plan.params.committee = u32::try_from(seats).unwrap_or(4);
            }
        }
        plan
    }

    /// Nodes that do not lie, those that join later included.
    pub fn honest(&self) -> Vec<usize> {
        (0..self.zones.len())
            .filter(|i| !self.liars.contains(i))
            .collect()
    }

    /// Nodes there are at the start and that do not lie.
    pub fn honest_members(&self) -> Vec<usize> {
        (0..self.nodes)
            .filter(|i| !self.liars.contains(i))
            .collect()
    }

    /// Whom a liar frames together with others: those of its zone, since witnesses of one zone must
    /// not be enough. In a mesh of one zone each liar is a group of its own. Two liars of two zones that
    /// act together *are* two witnesses; that threshold is the design's, and excluded here.
    pub fn group(&self, liar: usize) -> usize {
        let zones: BTreeSet<usize> = self.zones.iter().copied().collect();
        if zones.len() > 1 {
            self.zones.get(liar).copied().unwrap_or(0)
        } else {
            liar
        }
    }

    fn write_script(&mut self, rng: &mut Rng) {
        let last = self.heal_us;
        let honest = self.honest_members();
        self.script_attacks(rng, &honest, last);
        self.script_faults(rng, &honest, last);
        for joiner in self.nodes..self.zones.len() {
            if let Some(through) = rng.pick(&honest) {
                let through = *through;
                let at = rng.between(5 * S, last.saturating_sub(20 * S));
                self.script.push((
                    at,
                    Happening::Join {
                        node: joiner,
                        through,
                    },
                ));
            }
        }
        for liar in self.liars.clone() {
            let pause = rng.between(S / 4, 6 * S);
            let mut at = rng.between(0, 5 * S);
            while at < last + 40 * S {
                self.script.push((at, Happening::Lie(liar)));
                at += rng.between(1, 2 * pause);
            }
        }
        // Faults end with the safety phase; liars go on.
        self.script
            .retain(|(at, what)| *at < last || matches!(what, Happening::Lie(_)));
        self.script.sort_by_key(|(at, _)| *at);
    }

    /// Questions, verdicts, checkpoints, and somebody whom the operator takes out.
    fn write_more(&mut self, rng: &mut Rng) {
        let last = self.heal_us;
        // These go on after the faults have ended.
        let end = last + 60 * S;
        let honest = self.honest_members();
        let every = rng.between(10, 60) * S;
        for node in &honest {
            let mut at = rng.below(every);
            while at < end {
                self.script.push((at, Happening::Ask(*node)));
                at += rng.between(every / 2, 3 * every / 2);
            }
        }
        if self.witnesses {
            for node in &honest {
                let mut at = rng.below(15 * S);
                while at < end {
                    self.script.push((at, Happening::Checkpoint(*node)));
                    at += rng.between(10 * S, 20 * S);
                }
            }
        }
        let subjects: Vec<Prefix> = self
            .script
            .iter()
            .filter_map(|(_, what)| match what {
                Happening::Sees(_, subject, _) => Some(*subject),
                _ => None,
            })
            .collect();
        for _ in 0..rng.below(3) {
            if let (Some(node), Some(subject)) = (rng.pick(&honest), rng.pick(&subjects)) {
                let ruling = *rng
                    .pick(&[Ruling::TruePositive, Ruling::FalsePositive])
                    .unwrap_or(&Ruling::TruePositive);
                let at = rng.between(10 * S, last);
                self.script
                    .push((at, Happening::Verdict(*node, *subject, ruling)));
            }
        }
        if self.nodes >= 4 && rng.percent(20) {
            self.script_removal(rng, &honest, last);
        }
        self.script.sort_by_key(|(at, _)| *at);
    }

    fn script_removal(&mut self, rng: &mut Rng, honest: &[usize], last: u64) {
        let liars: Vec<usize> = self.liars.iter().copied().collect();
        // The others have to be able to live with the liars that stay.
        let may = liars.is_empty() || liars.len() * 3 < self.nodes - 1 && self.nodes > 4;
        let whom = if may && rng.percent(50) {
            rng.pick(honest)
        } else {
            rng.pick(&liars)
        };
        let Some(node) = whom.copied() else { return };
        let others: Vec<usize> = honest.iter().copied().filter(|i| *i != node).collect();
        if let Some(through) = rng.pick(&others).copied() {
            let at = rng.between(5 * S, last);
            self.script.push((at, Happening::Remove { node, through }));
        }
    }
}
