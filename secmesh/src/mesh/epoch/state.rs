//! What a voter has to remember about the agreement on an epoch, whatever happens to it.

use super::record::EpochRecord;
use super::vote::VoteSet;
use crate::mesh::crypto::{self, SignatureBytes};
use crate::mesh::ids::{Hash, MeshId};
use crate::mesh::roster::Roster;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/epoch-lock/1";
const CHECKSUM: usize = 32;

/// A vote of this node, as far as it does not follow from its place: for what, and the signature.
pub(super) type OwnVote = (Option<Hash>, SignatureBytes);

/// The last things a voter signed, and its lock. On the disk before any of it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockState {
    /// Mesh.
    pub mesh: MeshId,
    /// Number of the epoch that is being agreed on.
    pub number: u64,
    /// Hash of the record before it.
    pub previous: Hash,
    /// Round. Nothing is signed in an earlier one any more.
    pub round: u32,
    /// Whether this node has proposed in this round.
    pub proposed: bool,
    pub(super) prevote: Option<OwnVote>,
    pub(super) precommit: Option<OwnVote>,
    /// The record that this node is locked on, and the prevotes (with their round) that locked it.
    pub(super) locked: Option<(EpochRecord, VoteSet)>,
    /// The last precommit and its round.
    pub(super) last: Option<(u32, OwnVote)>,
}

impl LockState {
    /// That of a node that has signed nothing about the epoch after `before`.
    pub fn unsigned(before: &Roster) -> Self {
        Self {
            mesh: before.mesh(),
            number: before.epoch().saturating_add(1),
            previous: before.epoch_hash(),
            round: 0,
            proposed: false,
            prevote: None,
            precommit: None,
            locked: None,
            last: None,
        }
    }

    /// Whether nothing was signed.
    pub(super) const fn is_unsigned(&self) -> bool {
        !self.proposed
            && self.prevote.is_none()
            && self.precommit.is_none()
            && self.last.is_none()
            && self.locked.is_none()
    }

    /// Canonical bytes, with a checksum: these go to the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(self.mesh.as_bytes())
            .u64(self.number)
            .fixed(self.previous.as_bytes())
            .u32(self.round)
            .u8(u8::from(self.proposed));
        let last = self.last.map(|(_, own)| own);
        for own in [self.prevote, self.precommit, last] {
            match own {
                None => e.u8(0),
                Some((None, signature)) => e.u8(1).fixed(&signature),
                Some((Some(value), signature)) => e.u8(2).fixed(value.as_bytes()).fixed(&signature),
            };
        }
        if let Some((round, _)) = self.last {
            e.u32(round);
        }
        match &self.locked {
            None => {
                e.u8(0);
            }
            Some((record, polka)) => {
                e.u8(1).fixed(&record.to_bytes());
                polka.write(&mut e);
            }
        }
        let mut bytes = e.finish();
        let sum = crypto::sha256(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Whether a vote of this node is in here, so that it may leave.
    #[cfg(any(test, feature = "simulation"))]
    pub fn holds(&self, signed: &super::vote::SignedEpochVote) -> bool {
        use super::vote::Step;
        let vote = &signed.vote;
        let own = Some((vote.value, signed.signature));
        let last = self.last.filter(|(round, _)| *round == vote.round);
        vote.number == self.number
            && match vote.step {
                Step::Propose => self.proposed && vote.round == self.round,
                Step::Prevote => self.prevote == own && vote.round == self.round,
                Step::Precommit => last.map(|(_, own)| own) == own,
            }
    }

    /// Reads [`LockState::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything else. A node that cannot read it must not vote in that mesh.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let invalid = |field, why| WireError::Invalid { field, why };
        let changed = || invalid("checksum", "the content was changed or cut off");
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(changed)?;
        if crypto::sha256(content) != *sum {
            return Err(changed());
        }
        let mut d = Decoder::tagged(content, TAG)?;
        let mesh = MeshId(d.fixed("mesh")?);
        let number = d.u64("number")?;
        let previous = Hash(d.fixed("previous")?);
        let round = d.u32("round")?;
        let flag = |d: &mut Decoder<'_>, field| match d.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(invalid(field, "neither 0 nor 1")),
        };
        let proposed = flag(&mut d, "proposed")?;
        let mut own = || -> Result<Option<OwnVote>, WireError> {
            Ok(match d.u8("own vote")? {
                0 => None,
                1 => Some((None, d.fixed("signature")?)),
                2 => Some((Some(Hash(d.fixed("value")?)), d.fixed("signature")?)),
                _ => return Err(invalid("own vote", "unknown kind")),
            })
        };
        let (prevote, precommit, last) = (own()?, own()?, own()?);
        let last = match last {
            Some(own) => Some((d.u32("round of the last precommit")?, own)),
            None => None,
        };
        let locked = if flag(&mut d, "locked")? {
            Some((EpochRecord::read(&mut d)?, VoteSet::read(&mut d)?))
        } else {
            None
        };
        d.finish()?;
        Ok(Self {
            mesh,
            number,
            previous,
            round,
            proposed,
            prevote,
            precommit,
            locked,
            last,
        })
    }
}
