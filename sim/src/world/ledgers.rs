//! Ledgers: what stands around the engine as a witness, and as one that has witnesses; as the agent's notary.

use secmesh::ledger::checkpoint::{AuthorKeys, Checkpoint, SignedCheckpoint};
use secmesh::merkle::Tree;
use secmesh::mesh::engine::Input;
use secmesh::mesh::ids::NodeId;
use secmesh::mesh::message::Message;
use secmesh::mesh::witness::{LedgerMessage, LogKeys, Outcome, Publisher, Step, Told, Witness};

use super::World;
use crate::cast::{self, S};
use crate::oracle::{Violation, broken};

/// A node's own witness and publisher, in memory.
#[derive(Debug)]
pub struct Notary {
    witness: Witness,
    publisher: Publisher,
    turn: usize,
}

/// The keys that node `i` signs its checkpoints with.
pub fn author(i: usize) -> AuthorKeys {
    AuthorKeys {
        node: cast::node_id(i).0,
        key: cast::ledger_key(i).verifying_key().to_bytes(),
        pq: cast::pq(i).public().clone(),
    }
}

impl World {
    fn log_keys(&self, i: usize, node: &NodeId) -> Option<LogKeys> {
        let engine = self.nodes[i].engine.as_ref()?;
        let member = engine.roster().get(node)?;
        Some(LogKeys::of(&member.record))
    }

    /// Takes back what was witnessed before.
    pub(super) fn start_notary(&mut self, i: usize) -> Result<(), Violation> {
        let id = self.nodes[i].id;
        let mut witness = Witness::new(id, cast::ledger_key(i));
        for (node, bytes) in &self.nodes[i].disk.witnessed {
            // Of somebody who has left since, nothing is needed.
            if let Some(log) = self.log_keys(i, node)
                && let Err(error) = witness.restore(&log, bytes)
            {
                return broken(
                    "restore",
                    format!("what was witnessed is not taken back: {error}"),
                );
            }
        }
        self.nodes[i].notary = Some(Notary {
            witness,
            publisher: Publisher::new(author(i)),
            turn: 0,
        });
        Ok(())
    }

    fn tree(&self, i: usize) -> Tree {
        let mut tree = Tree::default();
        for entry in self.nodes[i].disk.ledger() {
            tree.push(&entry.leaf());
        }
        tree
    }

    /// A node signs its ledger as it is on the disk, has it cosigned, and tells a peer what it saw of others.
    pub(super) fn checkpoint(&mut self, i: usize) -> Result<(), Violation> {
        let wall_s = self.nodes[i].wall(self.now) / S;
        let node = &mut self.nodes[i];
        let (Some(engine), false) = (&node.engine, node.silenced) else {
            return Ok(());
        };
        let connected = engine.connected().clone();
        if !node.disk.flush() || node.disk.ledger().is_empty() {
            return Ok(());
        }
        // Never earlier than the one before, whatever the clock says.
        node.disk.signed_s = wall_s.max(node.disk.signed_s);
        let time_s = node.disk.signed_s;
        let tree = self.tree(i);
        let checkpoint = Checkpoint::of(&cast::node_id(i).0, tree.size(), tree.root());
        let Ok(note) = checkpoint.sign(&cast::ledger_key(i), &cast::pq(i), time_s) else {
            return broken("ledger", "a checkpoint cannot be signed");
        };
        let signed = SignedCheckpoint {
            checkpoint,
            time_s,
            note,
        };
        let Some(notary) = &mut self.nodes[i].notary else {
            return Ok(());
        };
        notary.turn += 1;
        let turn = notary.turn;
        let asked = notary.publisher.publish(signed, &connected);
        let nodes = notary.witness.sizes();
        let seen: Vec<LedgerMessage> = nodes
            .filter_map(|(node, _)| notary.witness.last_seen(&node))
            .collect();
        for peer in asked {
            self.offer(i, peer)?;
        }
        if let Some(peer) = connected.iter().nth(turn % connected.len().max(1)) {
            for message in seen {
                if !matches!(&message, LedgerMessage::Seen { node, .. } if node == peer) {
                    self.tell(i, peer, message);
                }
            }
        }
        Ok(())
    }

    fn offer(&mut self, i: usize, peer: NodeId) -> Result<(), Violation> {
        let tree = self.tree(i);
        let Some(notary) = &mut self.nodes[i].notary else {
            return Ok(());
        };
        let Some((old, new)) = notary.publisher.wanted(peer) else {
            return Ok(());
        };
        let Ok(proof) = tree.consistency(old, new) else {
            return broken(
                "only-grows",
                format!("the ledger of node {i} has not the {new} entries it has signed"),
            );
        };
        if let Some(offer) = notary.publisher.offer(peer, old, proof) {
            self.tell(i, &peer, LedgerMessage::Offer(Box::new(offer)));
        }
        Ok(())
    }

    fn tell(&mut self, i: usize, peer: &NodeId, message: LedgerMessage) {
        if let Some(to) = self.index.get(peer).copied() {
            let bytes = Message::Ledger(message).to_bytes();
            self.send(i, to, &bytes.into());
        }
    }

    /// A peer has sent something about ledgers.
    pub(super) fn about_ledgers(
        &mut self,
        i: usize,
        from: NodeId,
        message: LedgerMessage,
    ) -> Result<(), Violation> {
        let now_s = self.nodes[i].wall(self.now) / S;
        let Some(log) = self.log_keys(i, &from) else {
            return Ok(());
        };
        let about = match &message {
            LedgerMessage::Seen { node, .. } => self.log_keys(i, node),
            _ => None,
        };
        let node = &mut self.nodes[i];
        let Some(notary) = &mut node.notary else {
            return Ok(());
        };
        match message {
            LedgerMessage::Offer(offer) => {
                let Step {
                    persist,
                    answer,
                    fork,
                    ..
                } = notary.witness.offer(&log, &offer, now_s);
                if let Some(bytes) = persist {
                    if node.disk.fails {
                        return Ok(());
                    }
                    node.disk.witnessed.insert(from, bytes);
                }
                if let Some(answer) = &answer
                    && matches!(answer.outcome, Outcome::Cosigned { .. })
                {
                    let (size, root) = (answer.size, answer.root);
                    let last = self.oracle.cosigned.insert((node.id, from), (size, root));
                    // Another one than the last has to be shown to follow from it.
                    let other =
                        |(s, r)| (size, root) != (s, r) && (size <= s || offer.old_size != s);
                    if last.is_some_and(other) {
                        return broken(
                            "one-ledger",
                            format!("witness {i} cosigns two ledgers of {from}"),
                        );
                    }
                }
                if let Some(answer) = answer.filter(|_| !self.nodes[i].silenced) {
                    self.tell(i, &from, LedgerMessage::Answer(Box::new(answer)));
                }
                if let Some(fork) = fork {
                    return self.input(i, Input::LedgerFork(Box::new(fork)));
                }
            }
            LedgerMessage::Answer(answer) => {
                let honest = !self.oracle.liars.contains(&from);
                match notary.publisher.answered(&log, &answer) {
                    Told::Cosigned(_) => self.counts.cosigned += 1,
                    Told::Again => return self.offer(i, from),
                    Told::KnowsMore { size } => {
                        return broken(
                            "only-grows",
                            format!(
                                "a witness has seen {size} entries of node {i}'s ledger, and it has less"
                            ),
                        );
                    }
                    Told::Inconsistent if honest => {
                        return broken(
                            "only-grows",
                            format!(
                                "an honest witness finds that node {i}'s ledger does not follow"
                            ),
                        );
                    }
                    Told::Inconsistent | Told::Nothing => {}
                }
            }
            LedgerMessage::Seen { note, .. } => {
                if let Some(fork) = about.and_then(|log| notary.witness.seen(&log, &note)) {
                    return self.input(i, Input::LedgerFork(Box::new(fork)));
                }
            }
            LedgerMessage::Fork(_) => {}
        }
        Ok(())
    }
}
