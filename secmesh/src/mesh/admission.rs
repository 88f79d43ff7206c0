//! Tickets, node records, and what admits a node to a mesh.

use std::net::{IpAddr, SocketAddr};

use super::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use super::genesis::Genesis;
use super::ids::{Hash, MeshId, Name, NodeId, TicketId, Zone};
use super::wire::{Decoder, Encoder, WireError};

/// Of a grant that names no epoch, and of one that does.
const GRANT_TAG: &str = "secmesh/grant/1";
const GRANT_OF_EPOCH_TAG: &str = "secmesh/grant/2";
const NODE_ID_TAG: &str = "secmesh/node-id/1";
const RECORD_TAG: &str = "secmesh/node-record/2";
const POSSESSION_TAG: &str = "secmesh/admit/possession/1";
const OPERATOR_TAG: &str = "secmesh/admit/operator/1";
const TICKET_TAG: &str = "secmesh/admit/ticket/1";
const ADMITTED_TAG: &str = "secmesh/admitted/1";

/// Why a node is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// It names another mesh.
    #[error("the record is for mesh {0}, not for this one; was the ticket made by another mesh?")]
    WrongMesh(MeshId),
    /// The node id does not follow from vote key and incarnation.
    #[error("the record's node id does not belong to its vote key and incarnation")]
    WrongNodeId,
    /// The node says it joined before the ticket was made or after it ended.
    #[error("the ticket was not valid when the node joined; ask for a new one (secmesh invite)")]
    TicketExpired,
    /// A signature or a key is bad.
    #[error("{what}: {source}")]
    Signature {
        /// Which signature.
        what: &'static str,
        /// What is wrong with it.
        source: CryptoError,
    },
}

/// A certified epoch, by number and hash: who goes by it takes no other history of the mesh for this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochMark {
    /// Its number, from 1.
    pub number: u64,
    /// The hash of its record.
    pub hash: Hash,
}

/// The public half of a ticket: the operator allows whoever holds the ticket's key to join once.
///
/// The ticket's Ed25519 key is also the key of the TLS client certificate on the joining
/// connection, so `ticket_key` is all that a member needs in order to recognise the joiner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Mesh it opens.
    pub mesh: MeshId,
    /// Which ticket.
    pub ticket: TicketId,
    /// Public half of the key inside the ticket.
    pub ticket_key: PublicKey,
    /// Name the operator had in mind; the joiner may take another.
    pub name_hint: Option<Name>,
    /// When it was made, microseconds since 1970.
    pub issued_unix_us: u64,
    /// When it ends.
    pub expires_unix_us: u64,
    /// The epoch that was in force where the ticket was made: whoever joins with it begins there. Tickets of
    /// version 1 named none; nodes that joined with one begin with the first epoch.
    pub epoch: Option<EpochMark>,
}

impl Grant {
    /// Canonical bytes; what the operator signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(match self.epoch {
            None => GRANT_TAG,
            Some(_) => GRANT_OF_EPOCH_TAG,
        });
        e.fixed(self.mesh.as_bytes())
            .fixed(self.ticket.as_bytes())
            .fixed(&self.ticket_key);
        match &self.name_hint {
            Some(name) => e.u8(1).text(name),
            None => e.u8(0),
        };
        e.u64(self.issued_unix_us).u64(self.expires_unix_us);
        if let Some(mark) = &self.epoch {
            e.u64(mark.number).fixed(mark.hash.as_bytes());
        }
        e.finish()
    }

    /// Signs with the operator's key.
    pub fn sign(self, operator: &Signer) -> SignedGrant {
        let signature = operator.sign(&self.to_bytes());
        SignedGrant {
            grant: self,
            signature,
        }
    }
}

/// A grant with the operator's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedGrant {
    /// The grant.
    pub grant: Grant,
    /// By the operator's key over [`Grant::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedGrant {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.write(&mut e);
        e.finish()
    }

    pub(super) fn write(&self, e: &mut Encoder) {
        e.fixed(&self.grant.to_bytes()).fixed(&self.signature);
    }

    /// Reads [`SignedGrant::to_bytes`]; the signature is checked by [`SignedGrant::verify`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let grant = Self::read(&mut d)?;
        d.finish()?;
        Ok(grant)
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        let of_epoch = d.next_is_tag(GRANT_OF_EPOCH_TAG);
        d.expect_tag(if of_epoch {
            GRANT_OF_EPOCH_TAG
        } else {
            GRANT_TAG
        })?;
        let mesh = MeshId(d.fixed("mesh")?);
        let ticket = TicketId(d.fixed("ticket")?);
        let ticket_key = d.fixed("ticket_key")?;
        let name_hint = match d.u8("has name_hint")? {
            0 => None,
            1 => Some(d.text("name_hint")?),
            _ => {
                return Err(WireError::Invalid {
                    field: "has name_hint",
                    why: "neither 0 nor 1",
                });
            }
        };
        let grant = Grant {
            mesh,
            ticket,
            ticket_key,
            name_hint,
            issued_unix_us: d.u64("issued_unix_us")?,
            expires_unix_us: d.u64("expires_unix_us")?,
            epoch: of_epoch.then(|| Self::read_mark(d)).transpose()?,
        };
        Ok(Self {
            grant,
            signature: d.fixed("signature")?,
        })
    }

    fn read_mark(d: &mut Decoder<'_>) -> Result<EpochMark, WireError> {
        let number = d.u64("epoch number")?;
        if number == 0 {
            return Err(WireError::Invalid {
                field: "epoch number",
                why: "epochs are counted from 1",
            });
        }
        let hash = Hash(d.fixed("epoch hash")?);
        Ok(EpochMark { number, hash })
    }

    /// Checks mesh, key and signature, not the time.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn verify(&self, genesis: &Genesis) -> Result<(), AdmissionError> {
        if self.grant.mesh != genesis.mesh_id() {
            return Err(AdmissionError::WrongMesh(self.grant.mesh));
        }
        let signed = |what| move |source| AdmissionError::Signature { what, source };
        crypto::check_key(&self.grant.ticket_key).map_err(signed("the ticket's key"))?;
        crypto::verify(
            &genesis.operator_key,
            &self.grant.to_bytes(),
            &self.signature,
        )
        .map_err(signed("the operator's signature on the ticket"))
    }
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Mesh it belongs to.
    pub mesh: MeshId,
    /// Follows from vote key and incarnation: [`NodeRecord::derive_id`].
    pub node: NodeId,
    /// Name for people.
    pub name: Name,
    /// Failure zone.
    pub zone: Zone,
    /// Counts up whenever the node starts over from nothing or from a snapshot.
    pub incarnation: u64,
    /// Ed25519 key that signs its votes.
    pub vote_key: PublicKey,
    /// Ed25519 key that signs its ledger.
    pub ledger_key: PublicKey,
    /// SHA-256 of the ML-DSA-44 key that signs its ledger too, see [`super::pq`].
    pub pq_key_hash: [u8; 32],
    /// SHA-256 of the public key (SPKI) of its TLS certificate.
    pub tls_spki_sha256: [u8; 32],
    /// Where its peers reach it; absent when it only connects out.
    pub address: Option<SocketAddr>,
    /// When it joined by its own clock, microseconds since 1970.
    pub joined_unix_us: u64,
}

impl NodeRecord {
    /// The node id for a vote key and an incarnation.
    pub fn derive_id(vote_key: &PublicKey, incarnation: u64) -> NodeId {
        let mut e = Encoder::tagged(NODE_ID_TAG);
        e.fixed(vote_key).u64(incarnation);
        let [id @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = crypto::sha256(&e.finish());
        NodeId(id)
    }

    /// Canonical bytes. An advertised IPv4-mapped address is written as IPv4; the scope and flow
    /// of an IPv6 socket address are not part of the record.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(RECORD_TAG);
        e.fixed(self.mesh.as_bytes())
            .fixed(self.node.as_bytes())
            .text(&self.name)
            .text(&self.zone)
            .u64(self.incarnation)
            .fixed(&self.vote_key)
            .fixed(&self.ledger_key)
            .fixed(&self.pq_key_hash)
            .fixed(&self.tls_spki_sha256);
        match self.address.map(|a| (a.ip().to_canonical(), a.port())) {
            None => e.u8(0),
            Some((IpAddr::V4(ip), port)) => e.u8(4).fixed(&ip.octets()).u16(port),
            Some((IpAddr::V6(ip), port)) => e.u8(6).fixed(&ip.octets()).u16(port),
        };
        e.u64(self.joined_unix_us);
        e.finish()
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(RECORD_TAG)?;
        Ok(Self {
            mesh: MeshId(d.fixed("mesh")?),
            node: NodeId(d.fixed("node")?),
            name: d.text("name")?,
            zone: d.text("zone")?,
            incarnation: d.u64("incarnation")?,
            vote_key: d.fixed("vote_key")?,
            ledger_key: d.fixed("ledger_key")?,
            pq_key_hash: d.fixed("pq_key_hash")?,
            tls_spki_sha256: d.fixed("tls_spki_sha256")?,
            address: Self::read_address(d)?,
            joined_unix_us: d.u64("joined_unix_us")?,
        })
    }

    fn read_address(d: &mut Decoder<'_>) -> Result<Option<SocketAddr>, WireError> {
        let invalid = |why| WireError::Invalid {
            field: "address",
            why,
        };
        let ip = match d.u8("address family")? {
            0 => return Ok(None),
            4 => IpAddr::from(d.fixed::<4>("address")?),
            6 => IpAddr::from(d.fixed::<16>("address")?),
            _ => return Err(invalid("unknown family")),
        };
        if ip.to_canonical() != ip {
            return Err(invalid("an IPv4-mapped address is written as IPv4"));
        }
        Ok(Some(SocketAddr::new(ip, d.u16("port")?)))
    }

    /// SHA-256 of the canonical bytes.
    pub fn hash(&self) -> Hash {
        Hash(crypto::sha256(&self.to_bytes()))
    }

    fn tagged(&self, tag: &'static str, grant: Option<&SignedGrant>) -> Vec<u8> {
        let mut e = Encoder::tagged(tag);
        if let Some(grant) = grant {
            e.fixed(&crypto::sha256(&grant.grant.to_bytes()));
        }
        e.fixed(&self.to_bytes());
        e.finish()
    }

    /// Admits this record with the operator's key: the first node of a mesh.
    /// `voter` holds the record's vote key.
    pub fn admit_by_operator(self, voter: &Signer, operator: &Signer) -> AdmittedRecord {
        let possession = voter.sign(&self.tagged(POSSESSION_TAG, None));
        let signature = operator.sign(&self.tagged(OPERATOR_TAG, None));
        AdmittedRecord {
            record: self,
            possession,
            admission: Admission::Operator { signature },
        }
    }

    /// Admits this record with a ticket. `voter` holds the record's vote key, `ticket` the grant's.
    pub fn admit_by_ticket(
        self,
        voter: &Signer,
        grant: SignedGrant,
        ticket: &Signer,
    ) -> AdmittedRecord {
        let possession = voter.sign(&self.tagged(POSSESSION_TAG, None));
        let signature = ticket.sign(&self.tagged(TICKET_TAG, Some(&grant)));
        AdmittedRecord {
            record: self,
            possession,
            admission: Admission::Ticket {
                grant: Box::new(grant),
                signature,
            },
        }
    }
}

/// Who let a node in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The operator signed the record itself.
    Operator {
        /// By the operator's key.
        signature: SignatureBytes,
    },
    /// The holder of a ticket did.
    Ticket {
        /// The ticket's public half.
        grant: Box<SignedGrant>,
        /// By the ticket's key, over grant and record.
        signature: SignatureBytes,
    },
}

/// A node record with everything needed to check, offline, that it may be in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmittedRecord {
    /// The record.
    pub record: NodeRecord,
    /// By the record's vote key: nobody enters a key that is not theirs.
    pub possession: SignatureBytes,
    /// Who let it in.
    pub admission: Admission,
}

impl AdmittedRecord {
    /// The ticket that was used, if one was.
    pub fn ticket(&self) -> Option<TicketId> {
        self.grant().map(|signed| signed.grant.ticket)
    }

    /// The grant of that ticket.
    pub fn grant(&self) -> Option<&SignedGrant> {
        match &self.admission {
            Admission::Operator { .. } => None,
            Admission::Ticket { grant, .. } => Some(grant),
        }
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(ADMITTED_TAG);
        e.fixed(&self.record.to_bytes()).fixed(&self.possession);
        match &self.admission {
            Admission::Operator { signature } => e.u8(1).fixed(signature),
            Admission::Ticket { grant, signature } => {
                e.u8(2);
                grant.write(&mut e);
                e.fixed(signature)
            }
        };
        e.finish()
    }

    /// Reads [`AdmittedRecord::to_bytes`]; [`AdmittedRecord::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, ADMITTED_TAG)?;
        let record = NodeRecord::read(&mut d)?;
        let possession = d.fixed("possession")?;
        let admission = match d.u8("admission")? {
            1 => Admission::Operator {
                signature: d.fixed("signature")?,
            },
            2 => Admission::Ticket {
                grant: Box::new(SignedGrant::read(&mut d)?),
                signature: d.fixed("signature")?,
            },
            _ => {
                return Err(WireError::Invalid {
                    field: "admission",
                    why: "unknown kind",
                });
            }
        };
        d.finish()?;
        Ok(Self {
            record,
            possession,
            admission,
        })
    }

    /// Checks everything that does not depend on other records or on the time now.
    ///
    /// # Errors
    /// [`AdmissionError`] says which part fails.
    pub fn verify(&self, genesis: &Genesis) -> Result<(), AdmissionError> {
        let record = &self.record;
        if record.mesh != genesis.mesh_id() {
            return Err(AdmissionError::WrongMesh(record.mesh));
        }
        if record.node != NodeRecord::derive_id(&record.vote_key, record.incarnation) {
            return Err(AdmissionError::WrongNodeId);
        }
        let signed = |what| move |source| AdmissionError::Signature { what, source };
        crypto::check_key(&record.ledger_key).map_err(signed("the ledger key"))?;
        crypto::verify(
            &record.vote_key,
            &record.tagged(POSSESSION_TAG, None),
            &self.possession,
        )
        .map_err(signed("the node's proof that it holds its vote key"))?;
        match &self.admission {
            Admission::Operator { signature } => crypto::verify(
                &genesis.operator_key,
                &record.tagged(OPERATOR_TAG, None),
                signature,
            )
            .map_err(signed("the operator's signature on the record")),
            Admission::Ticket { grant, signature } => {
                grant.verify(genesis)?;
                let valid = grant.grant.issued_unix_us..=grant.grant.expires_unix_us;
                if !valid.contains(&record.joined_unix_us) {
                    return Err(AdmissionError::TicketExpired);
                }
                crypto::verify(
                    &grant.grant.ticket_key,
                    &record.tagged(TICKET_TAG, Some(grant)),
                    signature,
                )
                .map_err(signed("the ticket's signature on the record"))
            }
        }
    }
}
