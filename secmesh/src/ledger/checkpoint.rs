//! Checkpoints of a ledger in the format of C2SP (`c2sp.org/tlog-checkpoint`), signed by their node
//! with Ed25519 and ML-DSA-44, and cosigned by its peers (`c2sp.org/tlog-cosignature`).
//!
//! The ML-DSA-44 signature carries the time and says that no larger tree was signed by then; a node
//! lets these times only grow. So two checkpoints can prove a rollback: see [`super::fork`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};

use super::note::{Note, NoteError, NoteSignature, SignatureType, key_id};
use crate::merkle::Hash;
use crate::mesh::crypto::{self, PublicKey, SignatureBytes};
use crate::mesh::ids::to_hex;
use crate::mesh::pq::{PqError, PqPublic, PqSigner};

const LABEL: &[u8; 12] = b"subtree/v1\n\0";

/// Why a note is not the checkpoint it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It is no note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is not that of a checkpoint: three lines, each in its one spelling.
    #[error("the text is not that of a checkpoint")]
    Text,
    /// It is of another log.
    #[error("the checkpoint is of another log")]
    WrongLog,
    /// The ML-DSA-44 key is not the one that the node's record names.
    #[error("the ML-DSA-44 key is not the one in the node's record")]
    WrongKey,
    /// The node's Ed25519 signature is missing or wrong.
    #[error("the node's Ed25519 signature is missing or wrong")]
    Ed25519,
    /// The node's ML-DSA-44 signature is missing or wrong.
    #[error("the node's ML-DSA-44 signature is missing or wrong")]
    MlDsa44,
    /// A witness's signature is wrong.
    #[error("a witness's signature is wrong")]
    Cosignature,
}

/// Name of a node's log, and of its keys.
pub fn origin(node: &[u8; 16]) -> String {
    format!("secmesh/{}", to_hex(node))
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log: [`origin`].
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of their Merkle tree.
    pub root: Hash,
}

impl Checkpoint {
    /// That of a node's log.
    pub fn of(node: &[u8; 16], size: u64, root: Hash) -> Self {
        Self {
            origin: origin(node),
            size,
            root,
        }
    }

    /// The text that is signed.
    pub fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root)
        )
    }

    /// Reads [`Checkpoint::text`]. Extension lines are refused: ML-DSA-44 signatures leave them out.
    ///
    /// # Errors
    /// [`CheckpointError::Text`].
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.split('\n');
        let mut line = || lines.next().ok_or(CheckpointError::Text);
        let (origin, size, root) = (line()?, line()?, line()?);
        let parsed = Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| CheckpointError::Text)?,
            root: STANDARD
                .decode(root)
                .ok()
                .and_then(|root| root.try_into().ok())
                .ok_or(CheckpointError::Text)?,
        };
        // One spelling: no signs or zeros before the number, nothing behind the third line.
        if parsed.origin.is_empty() || parsed.text() != text {
            return Err(CheckpointError::Text);
        }
        Ok(parsed)
    }

    /// What an ML-DSA-44 signature of `name` at `time_s` is over.
    pub fn cosigned(&self, name: &str, time_s: u64) -> Vec<u8> {
        let mut out = LABEL.to_vec();
        let text = |out: &mut Vec<u8>, text: &str| {
            out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(text.as_bytes());
        };
        text(&mut out, name);
        out.extend_from_slice(&time_s.to_be_bytes());
        text(&mut out, &self.origin);
        out.extend_from_slice(&0u64.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.root);
        out
    }

    /// Signs with the node's own keys. `time_s` (seconds since 1970) never falls from one checkpoint
    /// to the next.
    ///
    /// # Errors
    /// [`PqError::CannotSign`].
    pub fn sign(&self, key: &SigningKey, pq: &PqSigner, time_s: u64) -> Result<Note, PqError> {
        let mut note = Note::new(self.text());
        let name = &self.origin;
        note.add(NoteSignature {
            name: name.clone(),
            id: key_id(name, SignatureType::Ed25519, key.verifying_key().as_bytes()),
            signature: key.sign(note.text().as_bytes()).to_bytes().to_vec(),
        });
        let signature = pq.sign(&self.cosigned(name, time_s))?;
        note.add(NoteSignature {
            name: name.clone(),
            id: key_id(name, SignatureType::MlDsa44, pq.public().as_bytes()),
            signature: [time_s.to_be_bytes().as_slice(), signature.as_slice()].concat(),
        });
        Ok(note)
    }
}

/// The keys that a node's checkpoints are signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorKeys {
    /// The node.
    pub node: [u8; 16],
    /// Its Ed25519 ledger key.
    pub key: PublicKey,
    /// Its ML-DSA-44 key.
    pub pq: PqPublic,
}

/// A checkpoint whose two signatures by its node were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// When it was signed by the node's clock, in seconds since 1970.
    pub time_s: u64,
    /// With all its signatures.
    pub note: Note,
}

impl SignedCheckpoint {
    /// Reads a note and verifies both signatures of its node; those of witnesses are not looked at.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(bytes: &[u8], author: &AuthorKeys) -> Result<Self, CheckpointError> {
        let note = Note::parse(bytes)?;
        let checkpoint = Checkpoint::parse(note.text())?;
        let name = origin(&author.node);
        if checkpoint.origin != name {
            return Err(CheckpointError::WrongLog);
        }
        let id = key_id(&name, SignatureType::Ed25519, &author.key);
        note.signature(&name, id)
            .and_then(|signature| SignatureBytes::try_from(signature).ok())
            .filter(|s| crypto::verify(&author.key, note.text().as_bytes(), s).is_ok())
            .ok_or(CheckpointError::Ed25519)?;
        let id = key_id(&name, SignatureType::MlDsa44, author.pq.as_bytes());
        let (time, signature) = note
            .signature(&name, id)
            .and_then(|signature| signature.split_first_chunk())
            .ok_or(CheckpointError::MlDsa44)?;
        let time_s = u64::from_be_bytes(*time);
        author
            .pq
            .verify(&checkpoint.cosigned(&name, time_s), signature)
            .map_err(|_| CheckpointError::MlDsa44)?;
        Ok(Self {
            checkpoint,
            time_s,
            note,
        })
    }

    /// When a note says that its node signed it, seconds since 1970; the signature is not looked at.
    pub(super) fn claimed_time_s(bytes: &[u8], node: &[u8; 16], pq: &PqPublic) -> Option<u64> {
        let note = Note::parse(bytes).ok()?;
        let name = origin(node);
        let id = key_id(&name, SignatureType::MlDsa44, pq.as_bytes());
        let (time, _) = note.signature(&name, id)?.split_first_chunk()?;
        Some(u64::from_be_bytes(*time))
    }

    /// The note with only its node's signatures.
    pub fn bare(&self) -> Note {
        self.note.with_only(|s| s.name == self.checkpoint.origin)
    }

    /// Cosigns as the witness `node`: says that this is the largest tree of the log that it has seen
    /// and that it follows from all it has seen before.
    pub fn cosign(&self, node: &[u8; 16], key: &SigningKey, time_s: u64) -> Cosignature {
        let signature = key.sign(&witnessed(self.note.text(), time_s));
        Cosignature {
            witness: *node,
            time_s,
            signature: signature.to_bytes(),
        }
    }

    /// Checks a cosignature by the witness's Ed25519 ledger key.
    ///
    /// # Errors
    /// [`CheckpointError::Cosignature`].
    pub fn verify_cosignature(
        &self,
        cosignature: &Cosignature,
        key: &PublicKey,
    ) -> Result<(), CheckpointError> {
        let message = witnessed(self.note.text(), cosignature.time_s);
        crypto::verify(key, &message, &cosignature.signature)
            .map_err(|_| CheckpointError::Cosignature)
    }

    /// Puts a cosignature, which was verified, on the note.
    pub fn add(&mut self, cosignature: &Cosignature, key: &PublicKey) {
        let name = origin(&cosignature.witness);
        self.note.add(NoteSignature {
            id: key_id(&name, SignatureType::Cosignature, key),
            name,
            signature: [
                cosignature.time_s.to_be_bytes().as_slice(),
                &cosignature.signature,
            ]
            .concat(),
        });
    }

    /// The cosignature of the witness `node` on the note, if it is there and good.
    ///
    /// # Errors
    /// [`CheckpointError::Cosignature`] when it is there and not good.
    pub fn cosignature(
        &self,
        node: &[u8; 16],
        key: &PublicKey,
    ) -> Result<Option<Cosignature>, CheckpointError> {
        let name = origin(node);
        let id = key_id(&name, SignatureType::Cosignature, key);
        let Some(bytes) = self.note.signature(&name, id) else {
            return Ok(None);
        };
        let bad = CheckpointError::Cosignature;
        let (time, signature) = bytes.split_first_chunk().ok_or(bad)?;
        let cosignature = Cosignature {
            witness: *node,
            time_s: u64::from_be_bytes(*time),
            signature: signature.try_into().map_err(|_| bad)?,
        };
        self.verify_cosignature(&cosignature, key)?;
        Ok(Some(cosignature))
    }
}

fn witnessed(text: &str, time_s: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {time_s}\n{text}").into_bytes()
}

/// A witness's signature on another node's checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cosignature {
    /// The witness.
    pub witness: [u8; 16],
    /// When, in seconds since 1970, by the witness's clock.
    pub time_s: u64,
    /// Ed25519, by its ledger key.
    pub signature: SignatureBytes,
}
