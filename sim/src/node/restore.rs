//! A start from what is on the disk, in the order of the agent's.

use std::collections::{BTreeMap, BTreeSet};

use secmesh::ledger::fork::LedgerForkProof;
use secmesh::mesh::decision::Warrant;
use secmesh::mesh::engine::Engine;
use secmesh::mesh::epoch::StoredEpochs;
use secmesh::mesh::genesis::Genesis;
use secmesh::mesh::ids::NodeId;
use secmesh::mesh::message::EquivocationProof;
use secmesh::mesh::vote::ActionKind;

use super::{Entry, Node};
use crate::oracle::{Violation, broken};

impl Node {
    /// Starts the engine from what is on the disk, as the agent does.
    ///
    /// # Errors
    /// A [`Violation`] if what was written is not taken back.
    pub fn start(&mut self, genesis: &Genesis, now_us: u64) -> Result<(), Violation> {
        let wall = self.wall(now_us);
        let mut engine = Engine::new(self.config(genesis), self.disk.records.iter().cloned());
        self.restore_epochs(&mut engine)?;
        for statement in self.disk.evidence.iter().flatten() {
            if let Err(error) = engine.restore_statement(statement) {
                return broken("restore", format!("a statement is not taken back: {error}"));
            }
        }
        engine.evidence_restored(self.disk.evidence.is_some());
        self.disk.evidence.get_or_insert_default();
        self.check_growth(&engine)?;
        for entry in &self.disk.log {
            if let Entry::Vote(bytes) = entry
                && let Err(error) = engine.restore_vote(bytes)
            {
                return broken("restore", format!("an own vote is not taken back: {error}"));
            }
        }
        self.restore_proofs(&mut engine)?;
        self.released.clear();
        self.restore_decisions(&mut engine, wall, &[ActionKind::Release])?;
        // Whose votes count in the others depends on these, which follow each other as they came.
        let about_nodes = [ActionKind::Quarantine, ActionKind::Readmit];
        self.restore_decisions(&mut engine, wall, &about_nodes)?;
        self.restore_decisions(&mut engine, wall, &[ActionKind::Block])?;
        self.check_quarantines(&engine)?;
        for decision in engine.decisions() {
            if decision.action.kind == ActionKind::Release
                && let Some(subject) = decision.action.subject.prefix()
            {
                let covered = self.released.entry(subject).or_default();
                *covered = decision.bucket.max(*covered);
            }
        }
        self.taken_back.clear();
        self.spent.clear();
        for decision in engine.decisions() {
            let Some(node) = decision.action.subject.node() else {
                continue;
            };
            if decision.action.kind == ActionKind::Readmit {
                let covered = self.taken_back.entry(node).or_default();
                *covered = decision.bucket.max(*covered);
            }
        }
        // Also those that ended.
        for entry in &self.disk.log {
            if let Entry::Decision { kind, warrant, .. } = entry
                && *kind == ActionKind::Quarantine
                && let Ok(warrant @ Warrant::Votes(_)) = Warrant::from_bytes(warrant)
                && let Some(node) = warrant.action().subject.node()
            {
                let latest = self.spent.entry(node).or_default();
                *latest = warrant.bucket().max(*latest);
            }
        }
        self.engine = Some(engine);
        self.taken.clear();
        self.caught.clear();
        self.silenced = false;
        self.crash_after = None;
        self.epoch = None;
        self.judged = None;
        Ok(())
    }

    fn restore_proofs(&self, engine: &mut Engine) -> Result<(), Violation> {
        for entry in &self.disk.log {
            let restored = match entry {
                Entry::Proof(bytes) => {
                    // Whoever is no member any more needs no proof.
                    let left = EquivocationProof::from_bytes(bytes)
                        .is_ok_and(|proof| engine.roster().get(&proof.voter()).is_none());
                    engine.restore_proof(bytes).is_ok() || left
                }
                Entry::Fork(bytes) => {
                    let left = LedgerForkProof::from_bytes(bytes)
                        .is_ok_and(|proof| engine.roster().get(&proof.node()).is_none());
                    engine.restore_fork(bytes).is_ok() || left
                }
                _ => true,
            };
            if !restored {
                return broken("restore", "a proof is not taken back");
            }
        }
        Ok(())
    }

    fn restore_decisions(
        &self,
        engine: &mut Engine,
        wall: u64,
        wanted: &[ActionKind],
    ) -> Result<(), Violation> {
        for entry in &self.disk.log {
            let Entry::Decision {
                kind,
                warrant,
                certified_unix_us,
                vetoed,
            } = entry
            else {
                continue;
            };
            if wanted.contains(kind)
                && let Err(error) =
                    engine.restore_decision(wall, warrant, *certified_unix_us, vetoed.clone())
            {
                return broken("restore", format!("a decision is not taken back: {error}"));
            }
        }
        Ok(())
    }

    /// Who was cut off by what is on the disk, and not taken back since, is again.
    fn check_quarantines(&self, engine: &Engine) -> Result<(), Violation> {
        let mut cut_off: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut back: BTreeMap<NodeId, u64> = BTreeMap::new();
        for entry in &self.disk.log {
            let Entry::Decision { kind, warrant, .. } = entry else {
                continue;
            };
            let latest = match kind {
                ActionKind::Quarantine => &mut cut_off,
                ActionKind::Readmit => &mut back,
                ActionKind::Block | ActionKind::Release => continue,
            };
            if let Ok(warrant) = Warrant::from_bytes(warrant)
                && let Some(node) = warrant.action().subject.node()
            {
                let bucket = latest.entry(node).or_default();
                *bucket = warrant.bucket().max(*bucket);
            }
        }
        cut_off.retain(|node, bucket| back.get(node).is_none_or(|readmitted| readmitted < bucket));
        let expected: BTreeSet<NodeId> = cut_off.into_keys().collect();
        let found: BTreeSet<NodeId> = engine.quarantined().copied().collect();
        if expected != found {
            return broken(
                "restore",
                format!("after a restart {found:?} are cut off, and {expected:?} were before"),
            );
        }
        Ok(())
    }

    fn restore_epochs(&self, engine: &mut Engine) -> Result<(), Violation> {
        if let Some(bytes) = &self.disk.epochs {
            let restored = StoredEpochs::from_bytes(bytes)
                .map_err(|e| e.to_string())
                .and_then(|stored| engine.restore_epochs(stored).map_err(|e| e.to_string()));
            if let Err(error) = restored {
                return broken("restore", format!("the epochs are not taken back: {error}"));
            }
        }
        if let Some(bytes) = &self.disk.lock
            && let Err(error) = engine.restore_lock(bytes)
        {
            return broken("restore", format!("the lock is not taken back: {error}"));
        }
        Ok(())
    }

    /// What is signed and grows did not shrink by a restart.
    fn check_growth(&self, engine: &Engine) -> Result<(), Violation> {
        if engine.roster().epoch() < self.reached {
            return broken(
                "only-grows",
                format!("after a restart epoch {} is over, once more", self.reached),
            );
        }
        let log = engine.evidence();
        for (number, sent) in &self.stated {
            let held = log.get(&self.id, *number).map(|s| s.to_bytes());
            if held.as_ref() != Some(sent) {
                return broken(
                    "only-grows",
                    format!("after a restart, statement {number} of the node itself is gone"),
                );
            }
        }
        Ok(())
    }
}
