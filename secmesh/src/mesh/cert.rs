//! Certificates: enough votes, in a form that anybody can check offline.

use std::collections::BTreeSet;

use serde::Serialize;

use super::crypto::{CryptoError, SignatureBytes};
use super::genesis::Params;
use super::ids::{DecisionId, Hash, IncidentId, MeshId, NodeId, Zone};
use super::roster::{Roster, Weights};
use super::simulation::{Bug, planted, planted_total};
use super::vote::{Action, ActionError, ActionKind, SignedVote, Verdict, Vote};
use super::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/certificate/1";

/// Most votes in a certificate. With equal weights, a full roster of 1,024 needs 342, and 370
/// still fit a message of 64 KiB.
pub const MAX_CERT_VOTES: usize = 370;

/// Why a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// It is for another mesh.
    #[error("the certificate is for mesh {0}")]
    WrongMesh(MeshId),
    /// It is for another epoch than the roster it is checked against.
    #[error("the certificate is for epoch {epoch} ({hash}), not for this roster")]
    WrongEpoch {
        /// Number it names.
        epoch: u64,
        /// Hash it names.
        hash: Hash,
    },
    /// The action is not one that is decided this way.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A time, round or verdict is not allowed.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// Voters are not distinct and in order.
    #[error("the voters are not distinct and in ascending order")]
    VoterOrder,
    /// A voter is not in the roster under this incarnation.
    #[error("{0} is not a voter of this epoch")]
    UnknownVoter(NodeId),
    /// A signature does not verify.
    #[error("the vote of {voter}: {source}")]
    Signature {
        /// Whose vote.
        voter: NodeId,
        /// What is wrong.
        source: CryptoError,
    },
    /// The votes were not all valid at one time.
    #[error("the votes were not all valid at the same time")]
    NotConcurrent,
    /// Not enough weight.
    #[error("{weight} of {total} weight agree, {needed} are needed")]
    TooLight {
        /// Weight that counts.
        weight: u64,
        /// Weight that is needed.
        needed: u64,
        /// Weight of the whole roster.
        total: u64,
    },
    /// Those who saw it themselves might all be liars.
    #[error("nodes with {weight} weight saw it themselves; to cut a node off it takes {needed}")]
    WitnessesTooLight {
        /// Their weight.
        weight: u64,
        /// Weight that one honest node has to be among.
        needed: u64,
    },
    /// Not enough nodes saw it themselves.
    #[error(
        "{confirms} nodes in {zones} zones saw it themselves; it takes {confirms_needed} in \
         {zones_needed}"
    )]
    TooFewWitnesses {
        /// Nodes that confirm.
        confirms: usize,
        /// Nodes that have to.
        confirms_needed: usize,
        /// Zones they are in.
        zones: usize,
        /// Zones they have to be in.
        zones_needed: usize,
    },
}

/// One vote inside a certificate: the part that differs from voter to voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertVote {
    /// Who.
    pub voter: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
    /// `Confirm` or `Concur`.
    pub verdict: Verdict,
    /// As in [`Vote`].
    pub evidence_root: Hash,
    /// As in [`Vote`].
    pub detector_hash: Hash,
    /// As in [`Vote`].
    pub sequence: u64,
    /// As in [`Vote`].
    pub issued_at_us: u64,
    /// As in [`Vote`].
    pub valid_for_s: u32,
    /// By the voter over the whole [`Vote`].
    pub signature: SignatureBytes,
}

impl From<&SignedVote> for CertVote {
    fn from(signed: &SignedVote) -> Self {
        let vote = &signed.vote;
        Self {
            voter: vote.voter,
            incarnation: vote.incarnation,
            verdict: vote.verdict,
            evidence_root: vote.evidence_root,
            detector_hash: vote.detector_hash,
            sequence: vote.sequence,
            issued_at_us: vote.issued_at_us,
            valid_for_s: vote.valid_for_s,
            signature: signed.signature,
        }
    }
}

/// Enough votes for one action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What was decided.
    pub action: Action,
    /// Mesh.
    pub mesh: MeshId,
    /// Number of the epoch.
    pub epoch: u64,
    /// Hash of the epoch's roster.
    pub epoch_hash: Hash,
    /// Round.
    pub round: u32,
    /// Time bucket.
    pub bucket: u64,
    /// The votes, in ascending order of their voters.
    pub votes: Vec<CertVote>,
}

/// One vote as it was counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CountedVote {
    /// Who.
    pub voter: NodeId,
    /// What was said.
    pub verdict: Verdict,
    /// Weight that counted: 0 for the subject's own vote and for a proved liar.
    pub weight: u64,
    /// When it was signed, microseconds since 1970.
    pub issued_at_us: u64,
}

/// What the votes of a certificate, or of an open incident, add up to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertVerdict {
    /// Weight that agrees.
    pub weight: u64,
    /// Weight that is needed.
    pub needed: u64,
    /// Weight of the whole roster: the denominator.
    pub total: u64,
    /// Nodes that saw it themselves.
    pub confirms: usize,
    /// Nodes that have to have.
    pub confirms_needed: usize,
    /// Weight of those nodes.
    pub confirm_weight: u64,
    /// Weight that they have to have: `T_lo` where a node is to be cut off, so that one of them is honest.
    pub confirm_weight_needed: u64,
    /// Zones of those nodes.
    pub zones: usize,
    /// Zones they have to be in.
    pub zones_needed: usize,
    /// The votes.
    pub votes: Vec<CountedVote>,
}

impl CertVerdict {
    /// Counts votes whose signatures have been checked. This is the rule; everything that needs
    /// to know whether there are enough votes asks here.
    ///
    /// The weight of the subject's own vote and of a proved liar (`zeroed`) is 0, and the total
    /// stays what it is: taking anybody out of the denominator breaks the intersection of quorums.
    ///
    /// Where there is a committee, only who has a seat adds weight; anybody with weight in the mesh is a witness.
    pub fn count(
        roster: &Roster,
        zeroed: &BTreeSet<NodeId>,
        action: &Action,
        votes: impl IntoIterator<Item = (NodeId, Verdict, u64)>,
    ) -> Self {
        Self::count_today(roster, roster, zeroed, action, votes)
    }

    /// The same of a certificate of an earlier epoch, `own`, with today's roster: who has no weight any more counts for
    /// nothing. The seats, and what is needed of them, are those of its epoch; where everybody decided then, it is by
    /// everybody's weight of today.
    fn count_today(
        roster: &Roster,
        own: &Roster,
        zeroed: &BTreeSet<NodeId>,
        action: &Action,
        votes: impl IntoIterator<Item = (NodeId, Verdict, u64)>,
    ) -> Self {
        let own = if planted(Bug::SeatsOfToday) {
            roster
        } else {
            own
        };
        let by_seats = own.seats().is_some();
        let deciding = if by_seats {
            own.deciding()
        } else {
            roster.weights()
        };
        let mut weight = 0_u64;
        let mut confirms = 0;
        let mut confirm_weight = 0_u64;
        let mut zones: BTreeSet<&Zone> = BTreeSet::new();
        let mut counted = Vec::new();
        for (voter, verdict, issued_at_us) in votes {
            let member = roster.get(&voter).filter(|m| {
                m.weight > 0
                    && (!zeroed.contains(&voter) || planted(Bug::LiarKeepsWeight))
                    && (!roster.is_subject(&voter, &action.subject) || planted(Bug::SubjectVotes))
            });
            let own_weight = member.map_or(0, |m| {
                if by_seats {
                    let least = u64::from(planted(Bug::UnseatedCounts));
                    own.vote_weight(&voter).max(least)
                } else {
                    u64::from(m.weight)
                }
            });
            counted.push(CountedVote {
                voter,
                verdict,
                weight: own_weight,
                issued_at_us,
            });
            let agrees =
                matches!(verdict, Verdict::Confirm | Verdict::Concur) || planted(Bug::RejectAgrees);
            let Some(member) = member.filter(|_| agrees) else {
                continue;
            };
            weight = weight.saturating_add(own_weight);
            let unheard = own_weight == 0 && planted(Bug::UnseatedUnheard);
            if verdict == Verdict::Confirm && !unheard {
                confirms += 1;
                confirm_weight = confirm_weight.saturating_add(own_weight);
                zones.insert(&member.record.zone);
            }
        }
        let (confirms_needed, zones_needed) = match action.kind {
            ActionKind::Block => (
                roster
                    .voters()
                    .clamp(1, if planted(Bug::OneWitness) { 1 } else { 2 }),
                roster
                    .zone_count()
                    .clamp(1, if planted(Bug::ZonesIgnored) { 1 } else { 2 }),
            ),
            // Never on one node's word, in however small a mesh.
            ActionKind::Quarantine => (2, roster.zone_count().clamp(1, 2)),
            ActionKind::Release | ActionKind::Readmit => (0, 0),
        };
        Self {
            weight,
            needed: Self::needed(roster, deciding, action),
            total: deciding.total(),
            confirms,
            confirms_needed,
            confirm_weight,
            confirm_weight_needed: match action.kind {
                ActionKind::Quarantine if !planted(Bug::AccusersLight) => deciding.t_lo(),
                _ => 0,
            },
            zones: zones.len(),
            zones_needed,
            votes: counted,
        }
    }

    /// Whether so many agreeing votes could be enough if each had the largest weight there is. Cheap; says yes too
    /// often, never no where [`Self::check`] says yes.
    pub fn could_suffice(roster: &Roster, action: &Action, agreeing: usize) -> bool {
        let most = u64::try_from(agreeing)
            .unwrap_or(u64::MAX)
            .saturating_mul(u64::from(roster.deciding().max_weight()));
        most >= Self::needed(roster, roster.deciding(), action)
    }

    /// Weight that an action needs.
    fn needed(roster: &Roster, deciding: &Weights, action: &Action) -> u64 {
        match action.kind {
            ActionKind::Block if action.is_class_2() && !planted(Bug::TLoForClass2) => {
                planted_total(roster, action, 2).unwrap_or_else(|| deciding.needed_class_2())
            }
            ActionKind::Quarantine if planted(Bug::QuarantineTLo) => deciding.needed(),
            ActionKind::Block | ActionKind::Release => {
                planted_total(roster, action, 1).unwrap_or_else(|| deciding.needed())
            }
            ActionKind::Quarantine | ActionKind::Readmit => {
                planted_total(roster, action, 2).unwrap_or_else(|| deciding.needed_class_2())
            }
        }
    }

    /// Whether enough nodes saw it themselves.
    pub const fn witnessed(&self) -> bool {
        self.confirms >= self.confirms_needed
            && self.zones >= self.zones_needed
            && self.confirm_weight >= self.confirm_weight_needed
    }

    /// Whether the action may be taken.
    ///
    /// # Errors
    /// [`CertError::TooLight`] or [`CertError::TooFewWitnesses`] says what is missing.
    pub const fn check(&self) -> Result<(), CertError> {
        if self.weight < self.needed {
            return Err(CertError::TooLight {
                weight: self.weight,
                needed: self.needed,
                total: self.total,
            });
        }
        if self.confirms < self.confirms_needed || self.zones < self.zones_needed {
            return Err(CertError::TooFewWitnesses {
                confirms: self.confirms,
                confirms_needed: self.confirms_needed,
                zones: self.zones,
                zones_needed: self.zones_needed,
            });
        }
        if self.confirm_weight < self.confirm_weight_needed {
            return Err(CertError::WitnessesTooLight {
                weight: self.confirm_weight,
                needed: self.confirm_weight_needed,
            });
        }
        Ok(())
    }
}

impl Certificate {
    /// The incident decided on.
    pub fn incident(&self) -> IncidentId {
        self.action
            .incident(self.mesh, self.epoch_hash, self.bucket)
    }

    /// The decision this proves; the same whichever votes are in it.
    pub fn decision(&self) -> DecisionId {
        self.action
            .decision(self.mesh, self.epoch_hash, self.incident(), self.round)
    }

    /// When the effect ends, microseconds since 1970.
    pub const fn expires_unix_us(&self) -> u64 {
        self.action.expires_unix_us(self.bucket)
    }

    /// The votes in full, as they were signed.
    pub fn signed_votes(&self) -> impl Iterator<Item = SignedVote> {
        let incident = self.incident();
        let action_hash = self.action.hash();
        self.votes.iter().map(move |v| SignedVote {
            vote: Vote {
                mesh: self.mesh,
                epoch: self.epoch,
                epoch_hash: self.epoch_hash,
                incident,
                round: self.round,
                bucket: self.bucket,
                action_hash,
                verdict: v.verdict,
                evidence_root: v.evidence_root,
                detector_hash: v.detector_hash,
                voter: v.voter,
                incarnation: v.incarnation,
                sequence: v.sequence,
                issued_at_us: v.issued_at_us,
                valid_for_s: v.valid_for_s,
            },
            signature: v.signature,
        })
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        self.action.write(&mut e);
        e.fixed(self.mesh.as_bytes())
            .u64(self.epoch)
            .fixed(self.epoch_hash.as_bytes())
            .u32(self.round)
            .u64(self.bucket)
            .u16(u16::try_from(self.votes.len()).unwrap_or(u16::MAX));
        for v in &self.votes {
            e.fixed(v.voter.as_bytes())
                .u64(v.incarnation)
                .u8(v.verdict.code())
                .fixed(v.evidence_root.as_bytes())
                .fixed(v.detector_hash.as_bytes())
                .u64(v.sequence)
                .u64(v.issued_at_us)
                .u32(v.valid_for_s)
                .fixed(&v.signature);
        }
        e.finish()
    }

    /// Reads [`Certificate::to_bytes`]; [`Certificate::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, TAG)?;
        let mut certificate = Self {
            action: Action::read(&mut d)?,
            mesh: MeshId(d.fixed("mesh")?),
            epoch: d.u64("epoch")?,
            epoch_hash: Hash(d.fixed("epoch_hash")?),
            round: d.u32("round")?,
            bucket: d.u64("bucket")?,
            votes: Vec::new(),
        };
        let count = usize::from(d.u16("number of votes")?);
        if count > MAX_CERT_VOTES {
            return Err(WireError::TooLong {
                field: "votes",
                len: count,
                max: MAX_CERT_VOTES,
            });
        }
        for _ in 0..count {
            certificate.votes.push(CertVote {
                voter: NodeId(d.fixed("voter")?),
                incarnation: d.u64("incarnation")?,
                verdict: Verdict::from_code(d.u8("verdict")?)?,
                evidence_root: Hash(d.fixed("evidence_root")?),
                detector_hash: Hash(d.fixed("detector_hash")?),
                sequence: d.u64("sequence")?,
                issued_at_us: d.u64("issued_at_us")?,
                valid_for_s: d.u32("valid_for_s")?,
                signature: d.fixed("signature")?,
            });
        }
        d.finish()?;
        Ok(certificate)
    }

    /// Counts the votes by the rules of `roster`, the one of its epoch, without looking at signatures.
    pub fn count(&self, roster: &Roster, zeroed: &BTreeSet<NodeId>) -> CertVerdict {
        self.count_today(roster, roster, zeroed)
    }

    /// Counts the votes with today's roster. A certificate of an earlier epoch, whose roster is `own`, has to pass this
    /// too, or the first node of a mesh could go on deciding alone by the rules of the time when it was alone. Where a
    /// committee decided, its seats count, not those of today.
    pub fn count_today(
        &self,
        today: &Roster,
        own: &Roster,
        zeroed: &BTreeSet<NodeId>,
    ) -> CertVerdict {
        let votes = self.votes.iter();
        CertVerdict::count_today(
            today,
            own,
            zeroed,
            &self.action,
            votes.map(|v| (v.voter, v.verdict, v.issued_at_us)),
        )
    }

    /// Whether today's roster would have decided so, too: what it takes besides [`Certificate::verify`] by the roster of
    /// its own epoch.
    ///
    /// Keys live longer than epochs. Who has a seat in one may have few tomorrow, and who had many once can still sign
    /// for that epoch. So where a committee decided that is not today's, more nodes with a seat have to have agreed than
    /// may lie today; in an epoch with weights like today's it always takes more.
    pub fn stands_today(&self, today: &Roster, own: &Roster, zeroed: &BTreeSet<NodeId>) -> bool {
        let counted = self.count_today(today, own, zeroed);
        let seated = counted.votes.iter().filter(|vote| vote.weight > 0);
        counted.check().is_ok()
            && (own.seats().is_none()
                || own.epoch_hash() == today.epoch_hash()
                || seated.count() > today.liars_withstood())
    }

    /// Checks everything, offline: `roster` is the one of the certificate's epoch, `zeroed` the
    /// nodes proved to have lied.
    ///
    /// # Errors
    /// [`CertError`] says what is wrong or missing.
    pub fn verify(
        &self,
        roster: &Roster,
        params: &Params,
        zeroed: &BTreeSet<NodeId>,
    ) -> Result<CertVerdict, CertError> {
        let verdict = self.verify_counted(roster, params, zeroed)?;
        for signed in self.signed_votes() {
            let voter = signed.vote.voter;
            let member = roster.get(&voter).ok_or(CertError::UnknownVoter(voter))?;
            signed
                .verify(&member.record.vote_key)
                .map_err(|source| CertError::Signature { voter, source })?;
        }
        Ok(verdict)
    }

    /// [`Certificate::verify`] without the signatures: for votes that were each verified before.
    ///
    /// # Errors
    /// [`CertError`], all but [`CertError::Signature`].
    pub(in crate::mesh) fn verify_counted(
        &self,
        roster: &Roster,
        params: &Params,
        zeroed: &BTreeSet<NodeId>,
    ) -> Result<CertVerdict, CertError> {
        if self.mesh != roster.mesh() {
            return Err(CertError::WrongMesh(self.mesh));
        }
        if (self.epoch, self.epoch_hash) != (roster.epoch(), roster.epoch_hash()) {
            return Err(CertError::WrongEpoch {
                epoch: self.epoch,
                hash: self.epoch_hash,
            });
        }
        self.action.check(params)?;
        if !self.votes.is_sorted_by(|a, b| a.voter < b.voter) {
            return Err(CertError::VoterOrder);
        }
        if self.votes.len() > MAX_CERT_VOTES {
            return Err(CertError::Malformed(WireError::TooLong {
                field: "votes",
                len: self.votes.len(),
                max: MAX_CERT_VOTES,
            }));
        }
        let verdict = self.count(roster, zeroed);
        verdict.check()?;
        let mut latest_issue = 0;
        let mut earliest_end = u64::MAX;
        for signed in self.signed_votes() {
            let vote = &signed.vote;
            if !matches!(vote.verdict, Verdict::Confirm | Verdict::Concur)
                && !planted(Bug::RejectAgrees)
            {
                return Err(CertError::Malformed(WireError::Invalid {
                    field: "verdict",
                    why: "only confirm and concur belong into a certificate",
                }));
            }
            if vote.round != 0 && !self.action.kind.lifts() {
                return Err(CertError::Malformed(WireError::Invalid {
                    field: "round",
                    why: "a block or quarantine has round 0",
                }));
            }
            vote.check_times(params)?;
            latest_issue = vote.issued_at_us.max(latest_issue);
            earliest_end = vote.valid_until_us().min(earliest_end);
            roster
                .get(&vote.voter)
                .filter(|m| m.record.incarnation == vote.incarnation)
                .ok_or(CertError::UnknownVoter(vote.voter))?;
        }
        if latest_issue > earliest_end {
            return Err(CertError::NotConcurrent);
        }
        Ok(verdict)
    }
}

#[cfg(test)]
#[path = "cert_tests.rs"]
mod tests;
