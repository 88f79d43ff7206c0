//! What a node keeps on disk about its mesh: the genesis, the members, the open tickets.
//!
//! ```text
//! genesis.bin  the signed genesis
//! members.bin  tag | members u16 | each: length u16, admitted record
//!                  | tickets u16 | each: length u16, signed grant | SHA-256 of all before
//! ```
//! `members.bin` is written last and makes a state directory that of a node: without it, whatever
//! else is there was left by a command that did not finish.

use super::admission::{AdmittedRecord, SignedGrant};
use super::crypto::{self, CryptoError};
use super::genesis::SignedGenesis;
use super::roster::MAX_RECORDS;
use super::wire::{Decoder, Encoder, WireError};
use crate::state::{StateDir, StateError, read_capped};

const GENESIS_FILE: &str = "genesis.bin";
const MEMBERS_FILE: &str = "members.bin";
const TAG: &str = "secmesh/members/2";
/// The version in the tag; 1 had node records without an ML-DSA-44 key.
const VERSION: u32 = 2;
/// Up to the version.
const TAG_START: &[u8] = b"secmesh/members/";
const CHECKSUM: usize = 32;

/// Most open tickets that are kept.
pub const MAX_GRANTS: usize = 1_024;
/// Largest admitted record, in bytes; the largest there can be has some 750.
pub const MAX_RECORD: usize = 1_024;
/// Largest `genesis.bin`, in bytes.
const MAX_GENESIS: u64 = 1_024;
/// Largest `members.bin`, in bytes.
const MAX_MEMBERS: u64 = ((MAX_RECORDS + MAX_GRANTS) * (2 + MAX_RECORD) + 1_024) as u64;

/// Why a node's membership cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The files cannot be read or written, or are damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// The node is in no mesh.
    #[error(
        "{0} holds no membership of a mesh; run `secmesh init`, or `secmesh join` with a ticket"
    )]
    None(String),
    /// There are more members or tickets than can be kept.
    #[error("{count} {what} cannot be stored, the limit is {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A record is larger than any should be.
    #[error("a member's record cannot be stored: {0}")]
    TooLarge(WireError),
}

/// A node's membership of a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshStore {
    /// What the mesh is.
    pub genesis: SignedGenesis,
    /// Every admission, this node's own among them; at most [`MAX_RECORDS`].
    pub members: Vec<AdmittedRecord>,
    /// Tickets that nobody has used yet; at most [`MAX_GRANTS`].
    pub grants: Vec<SignedGrant>,
}

impl MeshStore {
    /// Whether the directory belongs to a node of a mesh.
    pub fn exists(dir: &StateDir) -> bool {
        dir.has(MEMBERS_FILE)
    }

    /// Writes everything; a crash leaves the old content or the new.
    ///
    /// # Errors
    /// [`StoreError::TooMany`], [`StoreError::TooLarge`], or I/O.
    pub fn save(&self, dir: &StateDir) -> Result<(), StoreError> {
        let members = self.encode_members()?;
        let genesis = self.genesis.to_bytes();
        // The genesis never changes, so it is written only once.
        if !dir.has(GENESIS_FILE) || read_capped(&dir.file(GENESIS_FILE), MAX_GENESIS)? != genesis {
            dir.write(GENESIS_FILE, &genesis)?;
        }
        Ok(dir.write(MEMBERS_FILE, &members)?)
    }

    /// Reads what [`MeshStore::save`] wrote, and checks the genesis's signature. The members'
    /// signatures are checked where they are used, by the engine.
    ///
    /// # Errors
    /// [`StoreError::None`] if there is nothing, [`StateError::Damaged`] and [`StateError::Version`]
    /// for what cannot be read.
    pub fn load(dir: &StateDir) -> Result<Self, StoreError> {
        if !Self::exists(dir) {
            return Err(StoreError::None(dir.path().display().to_string()));
        }
        let damaged = |file: &str, detail: String| StateError::Damaged {
            path: dir.file(file),
            detail,
        };
        let bytes = read_capped(&dir.file(GENESIS_FILE), MAX_GENESIS)?;
        let genesis =
            SignedGenesis::from_bytes(&bytes).map_err(|e| damaged(GENESIS_FILE, e.to_string()))?;
        genesis
            .verify()
            .map_err(|e: CryptoError| damaged(GENESIS_FILE, e.to_string()))?;
        let bytes = read_capped(&dir.file(MEMBERS_FILE), MAX_MEMBERS)?;
        if let Some(found) = other_version(&bytes) {
            return Err(StateError::Version {
                path: dir.file(MEMBERS_FILE),
                found,
                known: VERSION,
            }
            .into());
        }
        let (members, grants) =
            decode_members(&bytes).map_err(|e| damaged(MEMBERS_FILE, e.to_string()))?;
        let mesh = genesis.genesis.mesh_id();
        if members.iter().any(|member| member.record.mesh != mesh) {
            return Err(damaged(
                MEMBERS_FILE,
                "it is another mesh's than genesis.bin".to_owned(),
            )
            .into());
        }
        Ok(Self {
            genesis,
            members,
            grants,
        })
    }

    /// Removes the files, as far as they are there: for a command that did not finish.
    ///
    /// # Errors
    /// I/O.
    pub fn remove(dir: &StateDir) -> std::io::Result<()> {
        // The mark of a whole state goes first.
        for name in [MEMBERS_FILE, GENESIS_FILE] {
            if dir.has(name) {
                std::fs::remove_file(dir.file(name))?;
            }
        }
        Ok(())
    }

    fn encode_members(&self) -> Result<Vec<u8>, StoreError> {
        let mut e = Encoder::tagged(TAG);
        let members = self.members.iter().map(AdmittedRecord::to_bytes).collect();
        let grants = self.grants.iter().map(SignedGrant::to_bytes).collect();
        for (what, list, max) in [
            ("members", members, MAX_RECORDS),
            ("tickets", grants, MAX_GRANTS),
        ] {
            write_list(&mut e, what, list, max)?;
        }
        let mut bytes = e.finish();
        let sum = crypto::sha256(&bytes);
        bytes.extend_from_slice(&sum);
        Ok(bytes)
    }
}

fn write_list(
    e: &mut Encoder,
    what: &'static str,
    list: Vec<Vec<u8>>,
    max: usize,
) -> Result<(), StoreError> {
    let too_many = StoreError::TooMany {
        what,
        count: list.len(),
        max,
    };
    if list.len() > max {
        return Err(too_many);
    }
    e.u16(u16::try_from(list.len()).map_err(|_| too_many)?);
    for bytes in list {
        e.bytes(what, &bytes, MAX_RECORD)
            .map_err(StoreError::TooLarge)?;
    }
    Ok(())
}

/// The version of a file that is of this kind, but not of this version.
fn other_version(bytes: &[u8]) -> Option<u32> {
    let (len, rest) = bytes.split_first()?;
    let tag = rest.get(..usize::from(*len))?;
    let version = std::str::from_utf8(tag.strip_prefix(TAG_START)?)
        .ok()?
        .parse()
        .ok()?;
    (version != VERSION).then_some(version)
}

fn decode_members(bytes: &[u8]) -> Result<(Vec<AdmittedRecord>, Vec<SignedGrant>), WireError> {
    let changed = WireError::Invalid {
        field: "checksum",
        why: "the content was changed or cut off",
    };
    let (content, sum) = bytes
        .split_last_chunk::<CHECKSUM>()
        .ok_or_else(|| changed.clone())?;
    if crypto::sha256(content) != *sum {
        return Err(changed);
    }
    let mut d = Decoder::tagged(content, TAG)?;
    let members = read_list(&mut d, "members", MAX_RECORDS, AdmittedRecord::from_bytes)?;
    let grants = read_list(&mut d, "tickets", MAX_GRANTS, SignedGrant::from_bytes)?;
    d.finish()?;
    Ok((members, grants))
}

/// Reads a `u16` count of at most `max`, and as many values of at most [`MAX_RECORD`] bytes.
pub(super) fn read_list<T>(
    d: &mut Decoder<'_>,
    what: &'static str,
    max: usize,
    read: impl Fn(&[u8]) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let len = usize::from(d.u16(what)?);
    if len > max {
        return Err(WireError::TooLong {
            field: what,
            len,
            max,
        });
    }
    // Not `with_capacity(len)`: memory follows what is there, not what is claimed.
    let mut list = Vec::new();
    for _ in 0..len {
        list.push(read(d.bytes(what, MAX_RECORD)?)?);
    }
    Ok(list)
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(super) mod tests;
