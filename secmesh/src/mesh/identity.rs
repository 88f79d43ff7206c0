//! Who this node is: its keys, its id, its name.
//!
//! Four keys, each in a file of its own, so that none can stand in for another: one signs votes, two
//! the ledger (Ed25519 and ML-DSA-44), one proves the node's end of a TLS connection. The node id follows from the vote key,
//! which is drawn at random, and the incarnation, so that no two nodes, not even two made one after
//! the other on the same machine, share an id.

mod keys;
mod ticket;

pub use keys::{
    Purpose, create_operator_key, ed25519_spki, load_operator_key, spki_of, spki_sha256,
};
pub use keys::{TlsIdentity, ed25519_spki_sha256};
pub use ticket::{Ticket, TicketError};

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::admission::NodeRecord;
use super::ids::{Hash, Name, NodeId, Zone};
use super::pq::{PqError, PqSigner};
use crate::entropy::EntropyError;
use crate::ledger::LedgerKeys;
use crate::state::{StateDir, StateError};

const FILE: &str = "identity.json";
/// 1 had no ML-DSA-44 key, and its node records are not understood any more.
const FORMAT: u32 = 2;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state directory's files cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// No random bytes for keys.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// There is one already.
    #[error(
        "{0} holds a node's identity already; a node id is never reused, so use another --state directory or move this one away"
    )]
    Exists(String),
    /// There is none.
    #[error("{0} holds no identity; run `secmesh init`, or `secmesh join` with a ticket")]
    None(String),
    /// The files contradict each other.
    #[error(
        "the identity in {path} does not hold together: {detail}; restore all its files from the same backup, or join anew with an empty state directory"
    )]
    Inconsistent {
        /// The state directory.
        path: String,
        /// What does not fit.
        detail: &'static str,
    },
    /// A key file is not one.
    #[error("{path} is not a secmesh {purpose} key: {detail}")]
    BadKey {
        /// The file.
        path: String,
        /// Which key it should hold.
        purpose: &'static str,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// The ML-DSA-44 key could not be used.
    #[error(transparent)]
    Pq(#[from] PqError),
    /// The TLS certificate could not be made.
    #[error("cannot make a certificate for the node's TLS key: {0}")]
    Certificate(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    node: NodeId,
    incarnation: u64,
    name: Name,
    zone: Zone,
    advertise: Option<String>,
    /// The public keys, so that a key file from elsewhere is noticed.
    vote_key: Hash,
    ledger_key: Hash,
    pq_key_hash: Hash,
    tls_spki_sha256: Hash,
}

/// A node's identity, kept in its state directory.
pub struct Identity {
    incarnation: u64,
    name: Name,
    zone: Zone,
    advertise: Option<String>,
    vote: SigningKey,
    ledger: SigningKey,
    ledger_pq: Arc<PqSigner>,
    tls: TlsIdentity,
}

impl std::fmt::Debug for Identity {
    /// Keys stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node_id", &self.node_id())
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes a new node: draws keys, writes them. The description is written last, so that a crash
    /// leaves no identity rather than half of one.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if the directory has one, or I/O.
    pub fn create(
        dir: &StateDir,
        name: Name,
        zone: Zone,
        advertise: Option<String>,
    ) -> Result<Self, IdentityError> {
        if dir.has(FILE) {
            return Err(IdentityError::Exists(dir.path().display().to_string()));
        }
        let vote = keys::create(&dir.file(Purpose::Vote.file()), Purpose::Vote)?;
        let ledger = keys::create(&dir.file(Purpose::Ledger.file()), Purpose::Ledger)?;
        let seed = keys::create_seed(&dir.file(Purpose::LedgerPq.file()), Purpose::LedgerPq)?;
        let ledger_pq = Arc::new(PqSigner::from_seed(&seed)?);
        let tls = TlsIdentity::new(&keys::create(&dir.file(Purpose::Tls.file()), Purpose::Tls)?)?;
        let identity = Self {
            incarnation: 1,
            name,
            zone,
            advertise,
            vote,
            ledger,
            ledger_pq,
            tls,
        };
        identity.save(dir)?;
        Ok(identity)
    }

    /// Loads the node's identity, and checks that the keys are those its id was made from.
    ///
    /// # Errors
    /// [`IdentityError::None`] if there is none; [`IdentityError::Inconsistent`] if keys were swapped;
    /// [`StateError::SecretExposed`] if others can read a key.
    pub fn load(dir: &StateDir) -> Result<Self, IdentityError> {
        let path = || dir.path().display().to_string();
        let stored: Stored = dir
            .read_json(FILE, FORMAT)?
            .ok_or_else(|| IdentityError::None(path()))?;
        let inconsistent = |detail| IdentityError::Inconsistent {
            path: path(),
            detail,
        };
        let vote = keys::load(&dir.file(Purpose::Vote.file()), Purpose::Vote)?;
        let ledger = keys::load(&dir.file(Purpose::Ledger.file()), Purpose::Ledger)?;
        let seed = keys::load_seed(&dir.file(Purpose::LedgerPq.file()), Purpose::LedgerPq)?;
        let ledger_pq = Arc::new(PqSigner::from_seed(&seed)?);
        let tls = TlsIdentity::new(&keys::load(&dir.file(Purpose::Tls.file()), Purpose::Tls)?)?;
        for (public, stored, detail) in [
            (
                vote.verifying_key().to_bytes(),
                &stored.vote_key,
                "vote.key is another node's",
            ),
            (
                ledger.verifying_key().to_bytes(),
                &stored.ledger_key,
                "ledger.key is another node's",
            ),
            (
                ledger_pq.public().hash(),
                &stored.pq_key_hash,
                "ledger-pq.key is another node's",
            ),
            (
                tls.spki_sha256(),
                &stored.tls_spki_sha256,
                "tls.key is another node's",
            ),
        ] {
            if public != stored.0 {
                return Err(inconsistent(detail));
            }
        }
        let Stored {
            node,
            incarnation,
            name,
            zone,
            advertise,
            ..
        } = stored;
        let identity = Self {
            incarnation,
            name,
            zone,
            advertise,
            vote,
            ledger,
            ledger_pq,
            tls,
        };
        if identity.node_id() != node {
            return Err(inconsistent(
                "the node id does not follow from the vote key and the incarnation",
            ));
        }
        Ok(identity)
    }

    /// Says whether the directory holds an identity.
    pub fn exists(dir: &StateDir) -> bool {
        dir.has(FILE)
    }

    /// Counts the incarnation up and stores it before returning. That makes a new node id: the node
    /// has to be admitted anew, and its ledger begun anew.
    ///
    /// # Errors
    /// If it cannot be stored; the incarnation is then the old one.
    pub fn next_incarnation(&mut self, dir: &StateDir) -> Result<u64, IdentityError> {
        let old = self.incarnation;
        self.incarnation = old.saturating_add(1);
        self.save(dir).inspect_err(|_| self.incarnation = old)?;
        Ok(self.incarnation)
    }

    /// Changes and stores the address at which other nodes reach this one.
    ///
    /// # Errors
    /// If it cannot be stored; the old address is then kept.
    pub fn set_advertise(
        &mut self,
        dir: &StateDir,
        advertise: Option<String>,
    ) -> Result<(), IdentityError> {
        let old = std::mem::replace(&mut self.advertise, advertise);
        self.save(dir).inspect_err(|_| self.advertise = old)?;
        Ok(())
    }

    fn save(&self, dir: &StateDir) -> Result<(), StateError> {
        let stored = Stored {
            node: self.node_id(),
            incarnation: self.incarnation,
            name: self.name.clone(),
            zone: self.zone.clone(),
            advertise: self.advertise.clone(),
            vote_key: Hash(self.vote.verifying_key().to_bytes()),
            ledger_key: Hash(self.ledger.verifying_key().to_bytes()),
            pq_key_hash: Hash(self.ledger_pq.public().hash()),
            tls_spki_sha256: Hash(self.tls.spki_sha256()),
        };
        dir.write_json(FILE, FORMAT, &stored)
    }

    /// The node's id, never reused.
    pub fn node_id(&self) -> NodeId {
        NodeRecord::derive_id(&self.vote.verifying_key().to_bytes(), self.incarnation)
    }

    /// How often this node was made anew under the same keys, from 1.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The name people know it by.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The zone whose failure takes it down.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Where other nodes reach it, `ADDR:PORT`, if they can.
    pub fn advertise(&self) -> Option<&str> {
        self.advertise.as_deref()
    }

    /// The key that signs votes.
    pub fn vote_key(&self) -> &SigningKey {
        &self.vote
    }

    /// The key that signs the ledger.
    pub fn ledger_key(&self) -> &SigningKey {
        &self.ledger
    }

    /// The ML-DSA-44 key that signs the ledger too.
    pub fn ledger_pq_key(&self) -> &Arc<PqSigner> {
        &self.ledger_pq
    }

    /// All that the ledger is signed with.
    pub fn ledger_keys(&self) -> LedgerKeys {
        LedgerKeys {
            node: self.node_id().0,
            key: self.ledger.clone(),
            pq: Arc::clone(&self.ledger_pq),
        }
    }

    /// The key and certificate for TLS.
    pub fn tls(&self) -> &TlsIdentity {
        &self.tls
    }
}

#[cfg(test)]
mod tests;
