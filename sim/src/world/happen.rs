//! What a plan says happens.

use secmesh::mesh::engine::Input;
use secmesh::mesh::ids::Hash;
use secmesh::mesh::vote::Action;

use super::shown::Shown;
use super::{Event, OWN_BLOCK_US, World};
use crate::cast::{self, S};
use crate::liar::{Scene, Trick};
use crate::oracle::Violation;
use crate::plan::{Cut, Happening};

impl World {
    pub(super) fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        if !matches!(
            happening,
            Happening::Lie(_) | Happening::Sees(..) | Happening::Ask(_) | Happening::Checkpoint(_)
        ) {
            self.trace.line(self.now, || format!("{happening:?}"));
        }
        match happening {
            Happening::Cut(cut) => {
                let all = self.nodes.len();
                for a in 0..all {
                    for b in 0..all {
                        let cuts = match &cut {
                            Cut::Split(side) => side.contains(&a) != side.contains(&b),
                            Cut::OneWay(side) => side.contains(&a) && !side.contains(&b),
                        };
                        self.links[a][b].cut |= cuts;
                    }
                }
            }
            Happening::Mend => {
                for row in &mut self.links {
                    for link in row {
                        link.cut = false;
                    }
                }
            }
            Happening::Crash(i, Some(after)) => self.nodes[i].crash_after = Some(after),
            Happening::Crash(i, None) => self.crash(i),
            Happening::Restart(i) => {
                if self.nodes[i].joined && !self.lies(i) && self.nodes[i].engine.is_none() {
                    self.start(i)?;
                }
            }
            Happening::DiskFails(i) => self.nodes[i].disk.fails = true,
            Happening::ClockStep(i, by) => self.nodes[i].clock_us += by,
            Happening::Sees(i, subject, class) => {
                if self.nodes[i].engine.is_some() {
                    self.trace
                        .line(self.now, || format!("{i} sees {class} by {subject}"));
                    let node = &mut self.nodes[i];
                    node.view.seen_us.insert(subject, self.now);
                    if !node.view.allow.iter().any(|a| a.overlaps(&subject)) {
                        let until = self.now + OWN_BLOCK_US;
                        node.own_blocks.insert(subject, until);
                        let id = node.id;
                        self.oracle.witnesses.entry(subject).or_default().insert(id);
                    }
                    let root = Hash(self.rng.bytes32());
                    self.input(
                        i,
                        Input::OwnEvidence {
                            subject,
                            class,
                            evidence_root: root,
                            detector_hash: Hash([0xdd; 32]),
                        },
                    )?;
                }
            }
            Happening::OperatorBlock(i, subject) => {
                if self.nodes[i].engine.is_some() {
                    let id = self.nodes[i].id;
                    self.oracle.witnesses.entry(subject).or_default().insert(id);
                    self.input(i, Input::OperatorBlock { subject })?;
                }
            }
            Happening::OperatorRelease(i, subject, signed) => {
                let wall = self.nodes[i].wall(self.now);
                if let Some(engine) = &self.nodes[i].engine {
                    let signed = signed.then(|| {
                        let release = engine.draft_order(Action::release(subject), wall, 600);
                        Box::new(release.sign(&cast::operator()))
                    });
                    self.input(i, Input::OperatorRelease { subject, signed })?;
                }
            }
            Happening::Join { node, through } => return self.join(node, through),
            Happening::Remove { node, through } => return self.remove(node, through),
            Happening::Ask(i) => {
                let seed = self.rng.bytes32();
                self.input(i, Input::Question { seed })?;
            }
            Happening::Outcome(i, decision) => self.outcome(i, decision)?,
            Happening::Verdict(i, subject, ruling) => self.verdict(i, subject, ruling)?,
            Happening::Checkpoint(i) => self.checkpoint(i)?,
            Happening::NodeAttacks(i, node) => self.node_attacks(i, node)?,
            Happening::AskAbout { at, node, readmit } => self.ask_about(at, node, readmit)?,
            Happening::Order { at, node, readmit } => return self.order(at, node, readmit),
            Happening::Swallow(from, to, what) => self.links[from][to].swallowed = what,
            Happening::Lie(i) => self.lie(i, None),
            Happening::Trick(i, trick) => self.lie(i, Some(trick)),
        }
        Ok(())
    }

    pub(super) fn crash(&mut self, i: usize) {
        if self.nodes[i].engine.is_some() {
            self.trace.line(self.now, || format!("{i} crashes"));
            self.counts.crashes += 1;
            self.nodes[i].crash(&mut self.rng);
            self.nodes[i].down_since = Some(self.now);
        }
    }

    pub(super) fn start(&mut self, i: usize) -> Result<(), Violation> {
        self.nodes[i].start(&self.genesis, self.now)?;
        self.nodes[i].down_since = None;
        if self.plan.witnesses {
            self.start_notary(i)?;
        }
        if self.plan.detector {
            self.start_watchman(i);
        }
        // Whoever was connected to it finds a new process there.
        for peer in 0..self.nodes.len() {
            if self.links[i][peer].up {
                self.session(i, peer, false)?;
            }
        }
        self.after(i)
    }

    /// Brings back what is down, for the liveness phase.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn revive(&mut self) -> Result<(), Violation> {
        for i in 0..self.nodes.len() {
            let node = &mut self.nodes[i];
            if self.plan.liars.contains(&i) || !node.joined {
                continue;
            }
            node.crash_after = None;
            node.disk.fails = false;
            if node.silenced {
                self.crash(i);
            }
            if self.nodes[i].engine.is_none() {
                self.start(i)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, i: usize, through: usize) -> Result<(), Violation> {
        if self.nodes[i].joined || self.nodes[through].engine.is_none() {
            // Another member would do; here the joiner tries again later.
            if !self.nodes[i].joined {
                let at = self.now + 3 * S;
                self.schedule(at, Event::Happen(Happening::Join { node: i, through }));
            }
            return Ok(());
        }
        let grant = Box::new(cast::grant(&self.genesis, i));
        self.input(through, Input::OpenGrant(grant))?;
        let record = cast::by_ticket(&self.genesis, i, self.plan.zones[i], 0);
        self.input(through, Input::Admit(Box::new(record)))?;
        let Some(engine) = &self.nodes[through].engine else {
            return Ok(());
        };
        // A member whose clock is wrong refuses the ticket; it is tried again.
        if !engine
            .admissions()
            .any(|a| a.record.node == self.nodes[i].id)
        {
            let at = self.now + 3 * S;
            self.schedule(at, Event::Happen(Happening::Join { node: i, through }));
            return Ok(());
        }
        self.nodes[i].disk.records = engine.admissions().cloned().collect();
        self.nodes[i].joined = true;
        self.start(i)
    }

    fn lie(&mut self, i: usize, trick: Option<Trick>) {
        if self.truce || !self.nodes[i].joined {
            return;
        }
        let Some(example) = self.running().first().copied() else {
            return;
        };
        let Some(roster) = self.nodes[example]
            .engine
            .as_ref()
            .map(secmesh::mesh::engine::Engine::roster)
        else {
            return;
        };
        let engine = self.nodes[example].engine.as_ref();
        let scene = Scene {
            genesis: &self.genesis,
            epoch: (roster.epoch(), roster.epoch_hash()),
            record: engine.and_then(|e| e.epoch()).map(|e| e.record.clone()),
            round: engine
                .and_then(secmesh::mesh::engine::Engine::agreement)
                .map_or(0, |(_, round)| round),
            witnesses: self.plan.witnesses,
            honest: self.running().iter().map(|i| self.nodes[*i].id).collect(),
            wall_us: self.nodes[i].wall(self.now),
            peers: (0..self.nodes.len())
                .filter(|to| self.links[i][*to].up)
                .collect(),
            attackers: self.oracle.witnesses.keys().copied().collect(),
            cut_off: engine
                .into_iter()
                .flat_map(|e| e.quarantined().copied())
                .collect(),
        };
        let Some(liar) = self.liars.get_mut(&i) else {
            return;
        };
        self.counts.lies += 1;
        let group = liar.group();
        let (said, shared) = liar.act(&scene, trick, &mut self.rng);
        for (_, other) in self
            .liars
            .iter_mut()
            .filter(|(other, liar)| **other != i && liar.group() == group)
        {
            for ballot in &shared {
                other.share(ballot);
            }
        }
        for (to, bytes) in said {
            self.trace
                .line(self.now, || format!("{i} lies to {to}: {}", Shown(&bytes)));
            self.send(i, to, &bytes);
        }
    }
}
