//! What this node, as a witness, remembers of its peers' ledgers on the disk, and whom it has told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tracing::error;

use crate::ledger::fork::LedgerForkProof;
use crate::mesh::ids::NodeId;
use crate::mesh::witness::{LedgerMessage, LogKeys, MAX_FILE, Offer, Step, Witness};
use crate::state::read_capped;

/// The witness and its directory, with one file per ledger.
pub(super) struct Witnessed {
    dir: PathBuf,
    witness: Witness,
    /// Ledgers of which the memory is damaged: nothing is cosigned, or a rollback would pass.
    blocked: BTreeSet<NodeId>,
}

impl Witnessed {
    pub const fn new(dir: PathBuf, witness: Witness) -> Self {
        Self {
            dir,
            witness,
            blocked: BTreeSet::new(),
        }
    }

    /// Where the memory of a ledger is.
    pub fn file(&self, node: &NodeId) -> PathBuf {
        self.dir.join(node.to_string())
    }

    /// Takes back what the disk holds of a ledger, unless it is known already. The roster of the start need
    /// not hold everybody whom this node has witnessed, so this is done whenever a ledger comes up. False
    /// if there is something that cannot be read: then nothing may be cosigned.
    pub fn recall(&mut self, log: &LogKeys) -> bool {
        if self.blocked.contains(&log.node) {
            return false;
        }
        if self.witness.size_of(&log.node).is_some() {
            return true;
        }
        let path = self.file(&log.node);
        let restored = match path.try_exists() {
            Ok(false) => return true,
            Ok(true) => read_capped(&path, MAX_FILE)
                .map_err(|error| error.to_string())
                .and_then(|bytes| {
                    let restored = self.witness.restore(log, &bytes);
                    restored.map_err(|error| error.to_string())
                }),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &restored {
            error!(%error, path = %path.display(), node = %log.node, "what was witnessed of a ledger is damaged: it is not cosigned any more; restore the file, or remove it to begin anew, and start the agent again");
            self.blocked.insert(log.node);
        }
        restored.is_ok()
    }

    /// A peer offers a checkpoint; nothing if it is not to be answered.
    pub fn offer(&mut self, log: &LogKeys, offer: &Offer, now_s: u64) -> Option<Step> {
        self.recall(log)
            .then(|| self.witness.offer(log, offer, now_s))
    }

    /// What [`Step::persist`] held is on the disk.
    pub fn written(&mut self, node: &NodeId) {
        self.witness.written(node);
    }

    /// Somebody has seen this checkpoint of a third node.
    pub fn seen(&mut self, log: &LogKeys, note: &[u8]) -> Option<LedgerForkProof> {
        self.recall(log).then(|| self.witness.seen(log, note))?
    }

    /// The messages about these ledgers.
    pub fn messages(&self, nodes: &[NodeId]) -> Vec<LedgerMessage> {
        let seen = nodes.iter().map(|node| self.witness.last_seen(node));
        seen.flatten().collect()
    }

    /// The ledgers that are known, and how much of each.
    pub fn sizes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.witness.sizes()
    }
}

/// Whose turn it is to be told of: there may be more ledgers than one message holds.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Size of each ledger when it was last told to others.
    told: BTreeMap<NodeId, u64>,
    last: Option<NodeId>,
}

impl Telling {
    /// The next of all ledgers, for a peer that has just come, at most `most`.
    pub fn next(&mut self, all: impl Iterator<Item = (NodeId, u64)>, most: usize) -> Vec<NodeId> {
        let known: BTreeSet<NodeId> = all.map(|(node, _)| node).collect();
        let after = self.last.take();
        let is_later = |node: &&NodeId| after.as_ref().is_none_or(|last| *node > last);
        let later = known.iter().filter(is_later);
        let chosen: Vec<NodeId> = later
            .chain(known.iter().filter(|node| !is_later(node)))
            .take(most)
            .copied()
            .collect();
        self.last = chosen.last().copied();
        chosen
    }

    /// The next of those that have grown since they were told of, at most `most`; they are told of now.
    pub fn news(&mut self, all: impl Iterator<Item = (NodeId, u64)>, most: usize) -> Vec<NodeId> {
        let grown: BTreeMap<NodeId, u64> = all
            .filter(|(node, size)| self.told.get(node) != Some(size))
            .collect();
        let chosen = self.next(grown.iter().map(|(node, size)| (*node, *size)), most);
        for node in &chosen {
            if let Some(size) = grown.get(node) {
                self.told.insert(*node, *size);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::checkpoint::Checkpoint;
    use crate::merkle::Tree;
    use crate::mesh::pq::PqSigner;
    use crate::state::{PRIVATE, write_atomic};
    use ed25519_dalek::SigningKey;

    const NODE: NodeId = NodeId([1; 16]);

    fn log() -> LogKeys {
        LogKeys {
            node: NODE,
            key: SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes(),
            pq_key_hash: PqSigner::from_seed(&[1; 32]).unwrap().public().hash(),
        }
    }

    /// A ledger of `size` entries, all `with`, offered as if the witness knew nothing of it.
    fn offer(size: u64, with: u8) -> Offer {
        let (key, pq) = (
            SigningKey::from_bytes(&[1; 32]),
            PqSigner::from_seed(&[1; 32]).unwrap(),
        );
        let mut tree = Tree::default();
        for _ in 0..size {
            tree.push(&[with]);
        }
        let root = tree.root_at(size).unwrap();
        let note = Checkpoint::of(&NODE.0, size, root)
            .sign(&key, &pq, 100)
            .unwrap();
        Offer {
            old_size: 0,
            proof: Vec::new(),
            note: note.to_string().into_bytes(),
            pq: Some(pq.public().clone()),
        }
    }

    fn witnessed(dir: &std::path::Path) -> Witnessed {
        let key = SigningKey::from_bytes(&[9; 32]);
        Witnessed::new(dir.to_owned(), Witness::new(NodeId([9; 16]), key))
    }

    #[test]
    fn who_was_not_in_the_roster_at_the_start_is_remembered_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut before = witnessed(dir.path());
        let step = before.offer(&log(), &offer(6, 1), 1).unwrap();
        let bytes = step.persist.unwrap();
        write_atomic(&before.file(&NODE), &bytes, PRIVATE).unwrap();
        // Started again with a roster that does not hold the node; it offers another ledger as if new.
        let mut after = witnessed(dir.path());
        let step = after.offer(&log(), &offer(4, 2), 2).unwrap();
        assert_eq!(step.persist, None);
        assert_eq!(after.sizes().collect::<Vec<_>>(), [(NODE, 6)]);
        // What is damaged is no ledger that was never seen.
        write_atomic(&before.file(&NODE), &bytes[1..], PRIVATE).unwrap();
        let mut damaged = witnessed(dir.path());
        assert_eq!(damaged.offer(&log(), &offer(4, 2), 3), None);
        assert_eq!(damaged.offer(&log(), &offer(4, 2), 4), None);
    }

    fn sizes(n: u8) -> impl Iterator<Item = (NodeId, u64)> {
        (0..n).map(|i| (NodeId([i; 16]), 1))
    }

    #[test]
    fn all_have_their_turn_also_when_nothing_grows() {
        let mut telling = Telling::default();
        let mut told = BTreeSet::new();
        for _ in 0..3 {
            let next = telling.next(sizes(10), 4);
            assert_eq!(next.len(), 4);
            told.extend(next);
        }
        assert_eq!(told.len(), 10);
        assert_eq!(telling.next(sizes(2), 4).len(), 2);
        assert!(telling.next(sizes(0), 4).is_empty());
    }

    #[test]
    fn what_has_grown_is_told_once() {
        let mut telling = Telling::default();
        assert_eq!(telling.news(sizes(6), 4).len(), 4);
        assert_eq!(telling.news(sizes(6), 4).len(), 2);
        assert!(telling.news(sizes(6), 4).is_empty());
        let grown = sizes(6).map(|(node, size)| (node, size + u64::from(node.0[0] == 5)));
        assert_eq!(telling.news(grown, 4), [NodeId([5; 16])]);
    }
}
