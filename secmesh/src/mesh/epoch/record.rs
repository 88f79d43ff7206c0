//! The epoch record and its canonical bytes.

use serde::Serialize;

use crate::mesh::crypto;
use crate::mesh::evidence::{Frontier, ProofSet};
use crate::mesh::genesis::Params;
use crate::mesh::ids::{Hash, MeshId};
use crate::mesh::roster::NODE_WEIGHT;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/epoch-record/1";
/// Of a record in which somebody is proved to have lied.
const TAG_PROVED: &str = "secmesh/epoch-record/2";

/// Most nodes in one epoch: as many as fit a message with evidence of each on record and a signature by each.
pub const MAX_MEMBERS: usize = 350;
/// Largest record, in bytes.
pub const MAX_RECORD_BYTES: usize = 60_000;
/// Bytes of a record and of a signature by every member, which prove it valid: together they have to fit a
/// message.
const MAX_PROVED_BYTES: usize = 65_000;
/// Bytes of one of those signatures, with whose it is.
const SIGNATURE_BYTES: usize = 80;

/// Bytes of a record without members and logs, of a member with what was proved of it, and of a log.
const BARE_BYTES: usize = 107;
const MEMBER_BYTES: usize = 45;
const LOG_BYTES: usize = 56;

/// Numbers of the genesis that the building of epochs needs; the same in every record of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EpochParams {
    /// An epoch lasts this long, in seconds, unless the membership changes before.
    pub length_s: u32,
    /// For how many epochs a node that joins has weight 0.
    pub probation: u32,
}

impl EpochParams {
    /// Those of a genesis.
    pub const fn of(params: &Params) -> Self {
        Self {
            length_s: params.epoch_s,
            probation: params.probation_epochs,
        }
    }
}

/// One node of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EpochMember {
    /// Hash of its node record, which an operator-signed admission vouches for.
    pub record: Hash,
    /// What its vote weighs.
    pub weight: u32,
    /// Number of the first epoch that it was in.
    pub since: u64,
    /// What was proved of it up to the record's evidence, by whom ever: it holds after the statement that proves it
    /// was let go of.
    pub proved: ProofSet,
}

/// One epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EpochRecord {
    /// Mesh.
    pub mesh: MeshId,
    /// Counts the epochs, from 1.
    pub number: u64,
    /// Hash of the record before; zero for the first.
    pub previous: Hash,
    /// Everybody who is in, in ascending order of their records' hashes; at most [`MAX_MEMBERS`].
    pub members: Vec<EpochMember>,
    /// How epochs are built.
    pub params: EpochParams,
    /// The evidence behind the weights.
    pub frontier: Frontier,
}

impl EpochRecord {
    /// The first epoch: the nodes that the operator admitted in person, with full weight each. Nobody
    /// certifies it; it follows from the genesis and those admissions.
    pub fn first(
        mesh: MeshId,
        params: EpochParams,
        records: impl IntoIterator<Item = Hash>,
    ) -> Self {
        let mut members: Vec<EpochMember> = records
            .into_iter()
            .map(|record| EpochMember {
                record,
                weight: NODE_WEIGHT,
                since: 1,
                proved: ProofSet::default(),
            })
            .collect();
        members.sort_by_key(|m| m.record);
        members.dedup_by_key(|m| m.record);
        Self {
            mesh,
            number: 1,
            previous: Hash([0; 32]),
            members,
            params,
            frontier: Frontier::default(),
        }
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let proved = self.members.iter().any(|m| !m.proved.is_empty());
        let mut e = Encoder::tagged(if proved { TAG_PROVED } else { TAG });
        e.fixed(self.mesh.as_bytes())
            .u64(self.number)
            .fixed(self.previous.as_bytes())
            .u32(self.params.length_s)
            .u32(self.params.probation)
            .u16(u16::try_from(self.members.len()).unwrap_or(u16::MAX));
        for member in &self.members {
            e.fixed(member.record.as_bytes())
                .u32(member.weight)
                .u64(member.since);
            if proved {
                e.u8(member.proved.bits());
            }
        }
        self.frontier.write_logs(&mut e);
        e.finish()
    }

    /// Reads [`EpochRecord::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical or larger than allowed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let record = Self::read(&mut d)?;
        d.finish()?;
        Ok(record)
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        let start = d.rest().len();
        let proved = d.next_is_tag(TAG_PROVED);
        d.expect_tag(if proved { TAG_PROVED } else { TAG })?;
        let mesh = MeshId(d.fixed("mesh")?);
        let number = d.u64("number")?;
        let previous = Hash(d.fixed("previous")?);
        let params = EpochParams {
            length_s: d.u32("length_s")?,
            probation: d.u32("probation")?,
        };
        let mut members = Vec::new();
        for _ in 0..count(d, "members", MAX_MEMBERS)? {
            members.push(EpochMember {
                record: Hash(d.fixed("record")?),
                weight: d.u32("weight")?,
                since: d.u64("since")?,
                proved: if proved {
                    ProofSet::from_bits(d.u8("proofs")?)?
                } else {
                    ProofSet::default()
                },
            });
        }
        let frontier = Frontier::read_logs(d)?;
        let len = start.saturating_sub(d.rest().len());
        let max = largest(members.len());
        if len > max {
            return Err(WireError::TooLong {
                field: "epoch record",
                len,
                max,
            });
        }
        if proved && members.iter().all(|m| m.proved.is_empty()) {
            return Err(WireError::Invalid {
                field: "epoch record",
                why: "of the form for proofs, without any",
            });
        }
        let ordered = members.is_sorted_by(|a, b| a.record < b.record);
        if number == 0 || !ordered {
            return Err(WireError::Invalid {
                field: "epoch record",
                why: "number 0, or members that are not distinct and in order",
            });
        }
        Ok(Self {
            mesh,
            number,
            previous,
            members,
            params,
            frontier,
        })
    }

    /// Whether it can be sent with all that may prove it valid.
    pub fn fits(&self) -> bool {
        self.members.len() <= MAX_MEMBERS && self.to_bytes().len() <= largest(self.members.len())
    }

    /// Whether a record with so many members and logs can be sent like that.
    pub fn has_room(members: usize, logs: usize) -> bool {
        let bytes = members
            .saturating_mul(MEMBER_BYTES)
            .saturating_add(logs.saturating_mul(LOG_BYTES))
            .saturating_add(BARE_BYTES);
        members <= MAX_MEMBERS && bytes <= largest(members)
    }

    /// SHA-256 of the canonical bytes: what votes are bound to.
    pub fn hash(&self) -> Hash {
        Hash(crypto::sha256(&self.to_bytes()))
    }

    /// The member with this record.
    pub fn member(&self, record: &Hash) -> Option<&EpochMember> {
        self.members
            .binary_search_by_key(record, |m| m.record)
            .ok()
            .and_then(|at| self.members.get(at))
    }
}

/// Most bytes of a record of so many members.
fn largest(members: usize) -> usize {
    MAX_PROVED_BYTES
        .saturating_sub(members.saturating_mul(SIGNATURE_BYTES))
        .min(MAX_RECORD_BYTES)
}

fn count(d: &mut Decoder<'_>, field: &'static str, max: usize) -> Result<usize, WireError> {
    let len = usize::from(d.u16(field)?);
    if len > max {
        return Err(WireError::TooLong { field, len, max });
    }
    Ok(len)
}
