//! Proof that one entry is in a node's ledger, which holds without the ledger and without a network.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::checkpoint::{AuthorKeys, CheckpointError, SignedCheckpoint};
use super::format::{BodyHead, MAX_BODY, body_head, encode_body};
use super::open::Growing;
use super::reader::{Entry, walk};
use super::segment::{EntryRef, Visit};
use super::{Header, LedgerError, published};
use crate::merkle::{self, Hash, MAX_PROOF, MerkleError};
use crate::mesh::admission::{AdmissionError, AdmittedRecord};
use crate::mesh::crypto::CryptoError;
use crate::mesh::genesis::{Genesis, SignedGenesis};
use crate::mesh::ids::{MeshId, NodeId};
use crate::mesh::pq::PqPublic;
use crate::mesh::roster::MAX_NODES;
use crate::mesh::wire::WireError;

/// Largest proof file, in bytes.
pub const MAX_PROOF_FILE: u64 = 8 << 20;
const FORMAT: &str = "secmesh/ledger-proof/1";

/// Why a proof does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is no proof, or one of another version.
    #[error("it is not a proof of this version: {0}")]
    Format(String),
    /// The entry is not under the checkpoint.
    #[error("the entry is not in the ledger of the checkpoint: {0}")]
    Inclusion(#[from] MerkleError),
    /// The checkpoint or a witness's signature is wrong.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The mesh's genesis is not signed by its operator.
    #[error("the genesis: {0}")]
    Genesis(CryptoError),
    /// A member was not admitted.
    #[error("a member's admission: {0}")]
    Admission(#[from] AdmissionError),
    /// Something in it is not canonical.
    #[error("a member or the genesis: {0}")]
    Wire(#[from] WireError),
    /// The node is not among the members, or with other keys.
    #[error("the node is not a member of the mesh under these keys")]
    NotAMember,
}

/// The file, as JSON. Bytes are standard base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofFile {
    format: String,
    /// Number of the entry, from 1.
    pub entry: u64,
    /// The leaf: number, time, kind and JSON.
    leaf: String,
    inclusion: Vec<String>,
    /// The signed note.
    checkpoint: String,
    /// The node's keys.
    node: String,
    ledger_key: String,
    pq_key: String,
    /// The mesh and the admissions of the node and its witnesses, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    genesis: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<String>,
}

/// A mesh and who was admitted to it, as far as known.
#[derive(Debug, Clone, Copy)]
pub struct Members<'a> {
    /// The mesh.
    pub genesis: &'a SignedGenesis,
    /// The admissions.
    pub records: &'a [AdmittedRecord],
}

/// What a proof that holds says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// The entry.
    pub entry: Entry,
    /// The checkpoint it is under.
    pub checkpoint: SignedCheckpoint,
    /// The keys that signed it.
    pub author: AuthorKeys,
    /// The mesh whose operator admitted the node and its witnesses; `None` when the proof does not
    /// say: then the keys have to be known from elsewhere.
    pub mesh: Option<(MeshId, [u8; 32])>,
    /// Ids and names of the witnesses whose signatures were verified.
    pub witnesses: Vec<(NodeId, String)>,
}

/// Witnesses among `records` whose cosignatures are on a checkpoint.
///
/// # Errors
/// [`CheckpointError::Cosignature`] when one that is there is wrong.
pub fn witnesses(
    signed: &SignedCheckpoint,
    records: &[AdmittedRecord],
) -> Result<Vec<(NodeId, String)>, CheckpointError> {
    let mut found = Vec::new();
    for admitted in records {
        let record = &admitted.record;
        if signed
            .cosignature(&record.node.0, &record.ledger_key)?
            .is_some()
        {
            found.push((record.node, record.name.to_string()));
        }
    }
    Ok(found)
}

/// The tree of a ledger, and one of its entries.
struct Find {
    entry: u64,
    growing: Growing,
    found: Option<Vec<u8>>,
}

impl Visit for Find {
    fn segment(&mut self, header: &Header) {
        self.growing.segment(header);
    }

    fn entry(&mut self, entry: &EntryRef<'_>) {
        self.growing.entry(entry);
        if entry.head.seq == self.entry {
            self.found = Some(encode_body(entry.head, entry.payload));
        }
    }
}

impl ProofFile {
    /// Proves entry number `entry` of the ledger in `dir`, which is verified on the way, under its
    /// last checkpoint.
    ///
    /// # Errors
    /// [`LedgerError::NotProvable`] when the entry is gone, not there yet, or not under a checkpoint
    /// yet; [`LedgerError::Corrupt`].
    pub fn make(
        dir: &std::path::Path,
        entry: u64,
        members: Option<Members<'_>>,
    ) -> Result<Self, LedgerError> {
        let mut find = Find {
            entry,
            growing: Growing::new(dir),
            found: None,
        };
        let whole = walk(dir, &mut find)?;
        let author = AuthorKeys {
            node: whole.header.node_id,
            key: whole.header.key.to_bytes(),
            pq: whole.header.pq.clone(),
        };
        let not = |why: String| LedgerError::NotProvable(entry, why);
        let signed = published(dir, &author, &whole)?.ok_or_else(|| {
            not("there is no checkpoint beside the segments; a running agent makes one every so often (`[ledger] checkpoint`), and a copy needs the whole directory".to_owned())
        })?;
        let (Some(leaf), Some(tree)) = (find.found, find.growing.tree) else {
            return Err(not(format!(
                "the ledger has entries {} to {}",
                whole.header.start.size().saturating_add(1),
                whole.sealed.size()
            )));
        };
        let size = signed.checkpoint.size;
        if entry > size {
            return Err(not(format!(
                "the last checkpoint covers {size} entries; a running agent makes the next after `[ledger] checkpoint`"
            )));
        }
        let inclusion = merkle::inclusion(&tree, entry.saturating_sub(1), size)?;
        let relevant = |admitted: &&AdmittedRecord| {
            let record = &admitted.record;
            record.node.0 == author.node
                || signed
                    .cosignature(&record.node.0, &record.ledger_key)
                    .is_ok_and(|c| c.is_some())
        };
        Ok(Self {
            format: FORMAT.to_owned(),
            entry,
            leaf: STANDARD.encode(leaf),
            inclusion: inclusion.iter().map(|h| STANDARD.encode(h)).collect(),
            checkpoint: signed.note.to_string(),
            node: STANDARD.encode(author.node),
            ledger_key: STANDARD.encode(author.key),
            pq_key: STANDARD.encode(author.pq.as_bytes()),
            genesis: members.map(|m| STANDARD.encode(m.genesis.to_bytes())),
            members: members.map_or_else(Vec::new, |m| {
                m.records
                    .iter()
                    .filter(relevant)
                    .map(|r| STANDARD.encode(r.to_bytes()))
                    .collect()
            }),
        })
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// [`ProofError::Format`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ProofError> {
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PROOF_FILE {
            return Err(ProofError::Format("it is too large".to_owned()));
        }
        let file: Self =
            serde_json::from_slice(bytes).map_err(|e| ProofError::Format(e.to_string()))?;
        if file.format != FORMAT {
            return Err(ProofError::Format(format!("format {:?}", file.format)));
        }
        if file.inclusion.len() > MAX_PROOF || file.members.len() > MAX_NODES {
            return Err(ProofError::Format(
                "more hashes or members than there can be".to_owned(),
            ));
        }
        Ok(file)
    }

    /// Checks everything in it: the entry under the checkpoint, the node's two signatures, and where
    /// the members are in it, their admissions and the witnesses' signatures.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(&self) -> Result<Proved, ProofError> {
        let author = AuthorKeys {
            node: fixed(&self.node, "node")?,
            key: fixed(&self.ledger_key, "ledger_key")?,
            pq: PqPublic::from_bytes(&decode(&self.pq_key, "pq_key")?)
                .map_err(|_| ProofError::Format("pq_key".to_owned()))?,
        };
        let checkpoint = SignedCheckpoint::verify(self.checkpoint.as_bytes(), &author)?;
        let leaf = decode(&self.leaf, "leaf")?;
        let (head, payload) = body_head(&leaf)
            .filter(|(head, _)| head.seq == self.entry && leaf.len() <= MAX_BODY)
            .ok_or_else(|| ProofError::Format("leaf".to_owned()))?;
        let inclusion: Vec<Hash> = self
            .inclusion
            .iter()
            .map(|hash| fixed(hash, "inclusion"))
            .collect::<Result<_, _>>()?;
        let index = self
            .entry
            .checked_sub(1)
            .ok_or_else(|| ProofError::Format("entry".to_owned()))?;
        merkle::verify_inclusion(
            &merkle::leaf_hash(&leaf),
            index,
            checkpoint.checkpoint.size,
            &inclusion,
            &checkpoint.checkpoint.root,
        )?;
        let BodyHead {
            seq,
            time_unix_us,
            kind,
        } = head;
        let entry = Entry {
            seq,
            time_unix_us,
            kind,
            payload: payload.to_vec(),
        };
        let (mesh, records) = match &self.genesis {
            None => (None, Vec::new()),
            Some(genesis) => self.members(genesis, &author)?,
        };
        Ok(Proved {
            entry,
            witnesses: witnesses(&checkpoint, &records)?,
            checkpoint,
            author,
            mesh,
        })
    }

    #[expect(
        clippy::type_complexity,
        reason = "two things that belong together, used once"
    )]
    fn members(
        &self,
        genesis: &str,
        author: &AuthorKeys,
    ) -> Result<(Option<(MeshId, [u8; 32])>, Vec<AdmittedRecord>), ProofError> {
        let signed = SignedGenesis::from_bytes(&decode(genesis, "genesis")?)?;
        signed.verify().map_err(ProofError::Genesis)?;
        let genesis: &Genesis = &signed.genesis;
        let mut records = Vec::new();
        for member in &self.members {
            let admitted = AdmittedRecord::from_bytes(&decode(member, "members")?)?;
            admitted.verify(genesis)?;
            records.push(admitted);
        }
        let ours = records.iter().any(|a| {
            a.record.node.0 == author.node
                && a.record.ledger_key == author.key
                && a.record.pq_key_hash == author.pq.hash()
        });
        if !ours {
            return Err(ProofError::NotAMember);
        }
        // The node is no witness of itself.
        records.retain(|a| a.record.node.0 != author.node);
        Ok((Some((genesis.mesh_id(), genesis.operator_key)), records))
    }
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>, ProofError> {
    STANDARD
        .decode(text)
        .map_err(|e| ProofError::Format(format!("{what}: {e}")))
}

fn fixed<const N: usize>(text: &str, what: &str) -> Result<[u8; N], ProofError> {
    decode(text, what)?
        .try_into()
        .map_err(|_| ProofError::Format(format!("{what} is not {N} bytes")))
}
