//! The other side: a node that has its checkpoints cosigned.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, LogKeys, Offer, Outcome};
use crate::ledger::checkpoint::{AuthorKeys, Cosignature, SignedCheckpoint};
use crate::merkle::Hash;
use crate::mesh::crypto::sha256;
use crate::mesh::ids::NodeId;

/// Most peers that are asked per checkpoint. With 30 nodes of which 9 lie, seven chosen by hash are
/// all liars for one node in fifty thousand.
pub const WITNESSES: usize = 7;
/// Times that one checkpoint is offered to one witness.
const TRIES: u8 = 3;

#[derive(Debug, Default)]
struct Peer {
    /// Size that it cosigned last, as far as known.
    size: u64,
    has_key: bool,
    tries: u8,
}

/// What an answer came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// A cosignature that holds: the checkpoint with it, to be kept.
    Cosigned(Box<SignedCheckpoint>),
    /// Offer again, with what is known now.
    Again,
    /// The witness has a checkpoint with this node's signatures that this node's ledger does not
    /// reach: it was cut back, or its keys are used elsewhere.
    KnowsMore {
        /// Entries in it.
        size: u64,
    },
    /// The witness does not find this node's ledger to follow from what it saw before.
    Inconsistent,
    /// Nothing that matters, or nothing true.
    Nothing,
}

/// Keeps what each witness has.
#[derive(Debug)]
pub struct Publisher {
    author: AuthorKeys,
    current: Option<SignedCheckpoint>,
    peers: BTreeMap<NodeId, Peer>,
}

impl Publisher {
    /// For the node with these keys.
    pub const fn new(author: AuthorKeys) -> Self {
        Self {
            author,
            current: None,
            peers: BTreeMap::new(),
        }
    }

    /// A checkpoint is to be cosigned, a new one or the last one still: gives those of the `connected` peers who are to
    /// be asked now. Also who came only after it was signed, for it may be the last for long.
    pub fn publish(
        &mut self,
        signed: SignedCheckpoint,
        connected: &BTreeSet<NodeId>,
    ) -> Vec<NodeId> {
        let same = self
            .current
            .as_ref()
            .is_some_and(|c| c.checkpoint == signed.checkpoint);
        if !same {
            self.peers.values_mut().for_each(|peer| peer.tries = 0);
        }
        let size = signed.checkpoint.size;
        self.current = Some(signed);
        let mut asked = self.choose(connected);
        asked.retain(|node| {
            let peer = self.peers.get(node);
            peer.is_none_or(|peer| peer.size < size && peer.tries < TRIES)
        });
        asked
    }

    /// The peers to ask, out of those connected: always the same ones while they are there, others
    /// for other nodes.
    pub fn choose(&self, connected: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let mut peers: Vec<([u8; 32], NodeId)> = connected
            .iter()
            .filter(|node| node.0 != self.author.node)
            .map(|node| {
                let place = sha256(&[self.author.node.as_slice(), node.as_bytes()].concat());
                (place, *node)
            })
            .collect();
        peers.sort_unstable();
        peers.truncate(WITNESSES);
        peers.into_iter().map(|(_, node)| node).collect()
    }

    /// From which to which size `peer` needs a proof; `None` when it has the checkpoint, or was asked
    /// often enough.
    pub fn wanted(&mut self, peer: NodeId) -> Option<(u64, u64)> {
        let size = self.current.as_ref()?.checkpoint.size;
        let peer = self.peers.entry(peer).or_default();
        if peer.size >= size || peer.tries >= TRIES {
            return None;
        }
        peer.tries = peer.tries.saturating_add(1);
        Some((peer.size, size))
    }

    /// The offer, with the proof that [`Publisher::wanted`] asked for.
    pub fn offer(&self, peer: NodeId, old_size: u64, proof: Vec<Hash>) -> Option<Offer> {
        let current = self.current.as_ref()?;
        let has_key = self.peers.get(&peer).is_some_and(|peer| peer.has_key);
        Some(Offer {
            old_size,
            proof,
            note: current.bare().to_string().into_bytes(),
            pq: (!has_key).then(|| self.author.pq.clone()),
        })
    }

    /// A peer is gone; when it is back, it may be another process that knows less.
    pub fn gone(&mut self, peer: &NodeId) {
        self.peers.remove(peer);
    }

    /// A witness has answered; `witness` is what its record says.
    pub fn answered(&mut self, witness: &LogKeys, answer: &Answer) -> Told {
        let Some(current) = &mut self.current else {
            return Told::Nothing;
        };
        let Some(peer) = self.peers.get_mut(&witness.node) else {
            return Told::Nothing;
        };
        let ours = &current.checkpoint;
        let current_answer = (answer.size, answer.root) == (ours.size, ours.root);
        match &answer.outcome {
            Outcome::NeedsKey => {
                peer.has_key = false;
                Told::Again
            }
            // An answer to an offer before.
            _ if !current_answer => Told::Nothing,
            Outcome::Cosigned { time_s, signature } => {
                let cosignature = Cosignature {
                    witness: witness.node.0,
                    time_s: *time_s,
                    signature: *signature,
                };
                if current
                    .verify_cosignature(&cosignature, &witness.key)
                    .is_err()
                {
                    return Told::Nothing;
                }
                peer.size = ours.size;
                peer.has_key = true;
                current.add(&cosignature, &witness.key);
                Told::Cosigned(Box::new(current.clone()))
            }
            Outcome::Knows(None) => {
                peer.size = 0;
                Told::Again
            }
            Outcome::Knows(Some(note)) => {
                // It says so with this node's own signature, or it says nothing.
                let Ok(known) = SignedCheckpoint::verify(note, &self.author) else {
                    return Told::Nothing;
                };
                peer.has_key = true;
                let size = known.checkpoint.size;
                if size > ours.size {
                    return Told::KnowsMore { size };
                }
                peer.size = size;
                if size == ours.size {
                    Told::Inconsistent
                } else {
                    Told::Again
                }
            }
            Outcome::Inconsistent => Told::Inconsistent,
        }
    }
}
