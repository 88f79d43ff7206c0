//! Epochs: what engines want done about them, and the operator's removals.

use secmesh::mesh::engine::{Input, Output};
use secmesh::mesh::epoch::{CertifiedEpoch, Removal};
use secmesh::mesh::ids::Hash;

use super::{Event, World};
use crate::answers::Heard;
use crate::cast::{self, S, START_US};
use crate::node::Entry;
use crate::oracle::{Violation, broken};
use crate::plan::Happening;

impl World {
    pub(super) fn epoch_output(&mut self, i: usize, output: Output) -> Result<(), Violation> {
        match output {
            Output::Epoch(epoch) => return self.epoch_begins(i, &epoch),
            Output::Removal(removal) => {
                self.keep_epochs(i);
                let told = Entry::Told(removal.to_bytes());
                self.nodes[i].disk.append(told);
            }
            Output::EpochLie(proof) => {
                self.counts.proofs += 1;
                self.trace.line(self.now, || {
                    format!("{i} has a proof about epochs against {}", proof.voter())
                });
                let key = self
                    .index
                    .get(&proof.voter())
                    .map(|voter| self.nodes[*voter].signer.public());
                if key.is_none_or(|key| proof.verify(&key).is_err()) {
                    return broken(
                        "attribution",
                        format!("node {i} takes a proof that is none"),
                    );
                }
                self.nodes[i].disk.append(Entry::Proof(proof.to_bytes()));
            }
            Output::Seal(sealed) => {
                let key = cast::pq(i);
                let Ok(seal) = sealed.sign(&key) else {
                    return broken("seals", format!("node {i} cannot seal"));
                };
                self.to_seal.push(seal);
            }
            Output::SealSeen { seal, .. } => {
                self.counts.seals += 1;
                self.oracle.sealed(&seal.sealed)?;
                // The bytes are drawn at random, and so are not in the trace.
                self.nodes[i]
                    .disk
                    .append(Entry::Told(seal.sealed.to_bytes()));
            }
            _ => {}
        }
        Ok(())
    }

    fn epoch_begins(&mut self, i: usize, epoch: &CertifiedEpoch) -> Result<(), Violation> {
        self.counts.epochs += 1;
        self.keep_epochs(i);
        self.nodes[i].disk.append(Entry::Told(epoch.to_bytes()));
        self.nodes[i].in_force = epoch.record.hash();
        let node = &self.nodes[i];
        let Some(engine) = &node.engine else {
            return Ok(());
        };
        let find = |hash: &Hash| {
            engine
                .admissions()
                .find(|a| a.record.hash() == *hash)
                .cloned()
        };
        self.oracle.certified(epoch, node.reached, &find)?;
        self.judges(i, epoch)
    }

    /// Who answered test questions wrongly, by the word of more than a third of the weight, has lost weight by the
    /// epoch that rests on that.
    fn judges(&mut self, i: usize, epoch: &CertifiedEpoch) -> Result<(), Violation> {
        let Some(engine) = &self.nodes[i].engine else {
            return Ok(());
        };
        let frontier = &epoch.record.frontier;
        if self.plan.answers.is_empty() || !engine.evidence().covers(frontier) {
            return Ok(());
        }
        let mut said = Heard::default();
        for statement in engine.evidence().iter() {
            let head = statement.head();
            if head.sequence < frontier.size(&head.author) {
                said.take(head.author, &statement.body);
            }
        }
        let fallen = self.oracle.judges(epoch, &said)?;
        self.counts.fallen += fallen;
        Ok(())
    }

    fn keep_epochs(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if let Some(engine) = &node.engine {
            let bytes = engine.stored_epochs().to_bytes();
            let written = node.disk.put_epochs(bytes);
            node.silenced |= !written;
        }
    }

    /// The operator takes a node out of the mesh; tried again where its member does not run.
    pub(super) fn remove(&mut self, node: usize, through: usize) -> Result<(), Violation> {
        let id = self.nodes[node].id;
        if !self.nodes[node].joined {
            return Ok(());
        }
        let again = Event::Happen(Happening::Remove { node, through });
        let later = self.now + 3 * S;
        let member = &self.nodes[through];
        if member.engine.is_none() || member.silenced || member.disk.fails {
            self.schedule(later, again);
            return Ok(());
        }
        let removal = Removal {
            mesh: self.genesis.mesh_id(),
            node: id,
            // Signed elsewhere, where the clock is right.
            issued_unix_us: START_US + self.now,
        };
        self.oracle.removed.insert(id);
        self.input(
            through,
            Input::Remove(Box::new(removal.sign(&cast::operator()))),
        )?;
        let member = &self.nodes[through];
        let engine = member.engine.as_ref();
        let knows = engine.map(|engine| engine.removals().any(|r| r.removal.node == id));
        if knows != Some(true) || member.silenced {
            // Its clock is behind, or it has crashed over it: it may have told others, or nobody.
            if knows == Some(false) {
                self.oracle.removed.remove(&id);
            }
            self.schedule(later, again);
        }
        Ok(())
    }
}
