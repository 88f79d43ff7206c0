//! Peers as witnesses of each other's ledgers (`c2sp.org/tlog-witness`, over the mesh's own messages).
//!
//! A node shows its checkpoint to some peers ([`Publisher`]). A peer that finds it to follow from the
//! one it cosigned last ([`Witness`]) remembers it on the disk and only then cosigns. Whoever gets
//! cosignatures of honest witnesses has therefore shown one ledger to all of them. Two checkpoints that
//! contradict each other are a [`LedgerForkProof`]; witnesses tell each other what they saw, so that
//! one who shows each its own ledger is found, if the sizes are the same or the times contradict the sizes.
//!
//! Nothing here does input or output; what is to be written before an answer leaves is returned with
//! it.

mod messages;
mod publisher;
#[cfg(test)]
mod tests;

pub use messages::{Answer, LedgerMessage, MAX_BARE_NOTE, Offer, Outcome};
pub use publisher::{Publisher, Told, WITNESSES};

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;

use crate::ledger::checkpoint::{AuthorKeys, SignedCheckpoint};
use crate::ledger::fork::LedgerForkProof;
use crate::merkle::verify_consistency;
use crate::mesh::admission::NodeRecord;
use crate::mesh::crypto::{self, PublicKey};
use crate::mesh::ids::NodeId;
use crate::mesh::pq::{PUBLIC_KEY, PqPublic};
use crate::mesh::roster::MAX_NODES;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/witnessed/1";
const CHECKSUM: usize = 32;
/// Largest file of [`Witness`], in bytes.
pub const MAX_FILE: u64 = 8 * 1024;

/// What a node record says of a ledger's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogKeys {
    /// The node.
    pub node: NodeId,
    /// Its Ed25519 ledger key.
    pub key: PublicKey,
    /// Hash of its ML-DSA-44 key.
    pub pq_key_hash: [u8; 32],
}

impl LogKeys {
    /// Those in a record.
    pub const fn of(record: &NodeRecord) -> Self {
        Self {
            node: record.node,
            key: record.ledger_key,
            pq_key_hash: record.pq_key_hash,
        }
    }

    fn author(&self, pq: PqPublic) -> Option<AuthorKeys> {
        (pq.hash() == self.pq_key_hash).then_some(AuthorKeys {
            node: self.node.0,
            key: self.key,
            pq,
        })
    }
}

/// What a witness remembers of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    pq: PqPublic,
    last: SignedCheckpoint,
    /// Whether it is on the disk.
    written: bool,
}

/// Why an offer was refused; counted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WitnessRefusal {
    /// A signature is wrong, or it is no checkpoint of the sender.
    BadCheckpoint,
    /// It does not follow from what was cosigned before.
    Inconsistent,
    /// As many ledgers are remembered as nodes may be.
    Full,
}

impl WitnessRefusal {
    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadCheckpoint => "bad_checkpoint",
            Self::Inconsistent => "inconsistent_checkpoint",
            Self::Full => "full",
        }
    }
}

/// What is to be done about an offer, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Put this on the disk under the node's name and say [`Witness::written`]. If that fails, nothing else
    /// of this happens.
    pub persist: Option<Vec<u8>>,
    /// Send this back.
    pub answer: Option<Answer>,
    /// Tell everybody.
    pub fork: Option<LedgerForkProof>,
    /// Count this.
    pub refused: Option<WitnessRefusal>,
}

/// A node as a witness of its peers' ledgers.
pub struct Witness {
    node: NodeId,
    key: SigningKey,
    known: BTreeMap<NodeId, Known>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness")
            .field("node", &self.node)
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl Witness {
    /// A witness that has seen nothing yet. `key` is its ledger key.
    pub const fn new(node: NodeId, key: SigningKey) -> Self {
        Self {
            node,
            key,
            known: BTreeMap::new(),
        }
    }

    /// Takes back what [`Step::persist`] held. The signatures are verified again.
    ///
    /// # Errors
    /// [`WireError`] when the file is damaged or not of a checkpoint by those keys. The ledger must
    /// then not be cosigned; what was known of it is lost.
    pub fn restore(&mut self, log: &LogKeys, bytes: &[u8]) -> Result<(), WireError> {
        let invalid = |why| WireError::Invalid {
            field: "witnessed checkpoint",
            why,
        };
        let (content, sum) = bytes
            .split_last_chunk::<CHECKSUM>()
            .ok_or_else(|| invalid("it is cut off"))?;
        if crypto::sha256(content) != *sum {
            return Err(invalid("its checksum is wrong"));
        }
        let mut d = Decoder::tagged(content, TAG)?;
        let node = NodeId(d.fixed("node")?);
        let pq = PqPublic::from_bytes(&d.fixed::<PUBLIC_KEY>("pq_key")?)
            .map_err(|_| invalid("its key is none"))?;
        let note = d.bytes("note", MAX_BARE_NOTE)?;
        d.finish()?;
        let author = log
            .author(pq.clone())
            .filter(|_| node == log.node)
            .ok_or_else(|| invalid("it is of another node or key"))?;
        let last = SignedCheckpoint::verify(note, &author)
            .map_err(|_| invalid("its signatures are wrong"))?;
        let written = true;
        self.known.insert(node, Known { pq, last, written });
        Ok(())
    }

    /// What [`Step::persist`] held last of this node is on the disk. Until then the same checkpoint is to be
    /// written again before it is cosigned.
    pub fn written(&mut self, node: &NodeId) {
        if let Some(known) = self.known.get_mut(node) {
            known.written = true;
        }
    }

    /// A peer offers its own checkpoint; `log` is what its record says. `now_s` is in seconds since
    /// 1970.
    pub fn offer(&mut self, log: &LogKeys, offer: &Offer, now_s: u64) -> Step {
        let refuse = |refused| Step {
            refused: Some(refused),
            ..Step::default()
        };
        let known = self
            .known
            .get(&log.node)
            .filter(|_| !planted(Bug::WitnessForgets));
        if known.is_none() && self.known.len() >= MAX_NODES {
            return refuse(WitnessRefusal::Full);
        }
        let Some(pq) = offer.pq.as_ref().or(known.map(|known| &known.pq)) else {
            return Step {
                answer: Some(Answer {
                    size: 0,
                    root: [0; 32],
                    outcome: Outcome::NeedsKey,
                }),
                ..Step::default()
            };
        };
        let verified = log.author(pq.clone()).and_then(|author| {
            let signed = SignedCheckpoint::verify(&offer.note, &author).ok()?;
            Some((author, signed))
        });
        let Some((author, mut signed)) = verified else {
            return refuse(WitnessRefusal::BadCheckpoint);
        };
        signed.note = signed.bare();
        let (size, root) = (signed.checkpoint.size, signed.checkpoint.root);
        let answer = |outcome| {
            Some(Answer {
                size,
                root,
                outcome,
            })
        };
        let mut step = Step::default();
        if let Some(known) = known {
            let last = &known.last;
            let knows = || Outcome::Knows(Some(last.bare().to_string().into_bytes()));
            if let Some(proof) = LedgerForkProof::new(&author, last, &signed) {
                step.answer = answer(knows());
                step.fork = Some(proof);
                return step;
            }
            if size == last.checkpoint.size {
                // The same again: the answer may have been lost, or writing has failed.
                step.persist = (!known.written).then(|| encode(log.node, known));
                step.answer = answer(self.cosign(last, now_s));
                return step;
            }
            if size < last.checkpoint.size || offer.old_size != last.checkpoint.size {
                step.answer = answer(knows());
                return step;
            }
            if verify_consistency(
                last.checkpoint.size,
                size,
                &offer.proof,
                &last.checkpoint.root,
                &root,
            )
            .is_err()
            {
                step.answer = answer(Outcome::Inconsistent);
                step.refused = Some(WitnessRefusal::Inconsistent);
                return step;
            }
        } else if offer.old_size != 0 {
            step.answer = answer(Outcome::Knows(None));
            return step;
        }
        step.answer = answer(self.cosign(&signed, now_s));
        let known = Known {
            pq: author.pq,
            last: signed,
            written: false,
        };
        step.persist = Some(encode(log.node, &known));
        self.known.insert(log.node, known);
        step
    }

    /// Somebody has seen this checkpoint of a third node. What is not known already is not taken over:
    /// without a proof it says nothing, but it may contradict what is known.
    pub fn seen(&self, log: &LogKeys, note: &[u8]) -> Option<LedgerForkProof> {
        let known = self.known.get(&log.node)?;
        let author = log.author(known.pq.clone())?;
        let signed = SignedCheckpoint::verify(note, &author).ok()?;
        LedgerForkProof::new(&author, &known.last, &signed)
    }

    /// What was seen last of a ledger, for telling others.
    pub fn last_seen(&self, node: &NodeId) -> Option<LedgerMessage> {
        let known = self.known.get(node)?;
        Some(LedgerMessage::Seen {
            node: *node,
            note: known.last.bare().to_string().into_bytes(),
        })
    }

    /// The ledgers that are known, and the size of each that was seen last.
    pub fn sizes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        let known = self.known.iter();
        known.map(|(node, known)| (*node, known.last.checkpoint.size))
    }

    /// Size of a ledger that was cosigned last.
    pub fn size_of(&self, node: &NodeId) -> Option<u64> {
        Some(self.known.get(node)?.last.checkpoint.size)
    }

    fn cosign(&self, signed: &SignedCheckpoint, now_s: u64) -> Outcome {
        let cosignature = signed.cosign(&self.node.0, &self.key, now_s);
        Outcome::Cosigned {
            time_s: now_s,
            signature: cosignature.signature,
        }
    }
}

fn encode(node: NodeId, known: &Known) -> Vec<u8> {
    let mut e = Encoder::tagged(TAG);
    e.fixed(node.as_bytes()).fixed(known.pq.as_bytes());
    let note = known.last.bare().to_string().into_bytes();
    // Cannot fail: it came in a message with the same limit.
    let _written = e.bytes("note", &note, MAX_BARE_NOTE).is_ok();
    let mut bytes = e.finish();
    bytes.extend(crypto::sha256(&bytes));
    bytes
}
