//! A mesh of four nodes with known keys, and one of each thing that its nodes sign.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use secmesh::mesh::admission::{AdmittedRecord, EpochMark, Grant, NodeRecord, SignedGrant};
use secmesh::mesh::cert::{CertVote, Certificate};
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::decision::{OperatorRelease, SignedRelease};
use secmesh::mesh::epoch::{
    CertifiedEpoch, EpochParams, EpochRecord, EpochVote, Proposal, Removal, Step, VoteSet,
};
use secmesh::mesh::evidence::{Frontier, LogHead, ProofKind};
use secmesh::mesh::genesis::{Genesis, Params, SignedGenesis};
use secmesh::mesh::ids::{Hash, Name, TicketId, Zone};
use secmesh::mesh::roster::Roster;
use secmesh::mesh::vote::{Action, AttackClass, Ballot, Verdict, Vote, bucket_of};

/// The start of a time bucket, microseconds since 1970.
const T0: u64 = 1_700_000_040_000_000;
/// A second.
const S: u64 = 1_000_000;
/// Nodes.
const NODES: u8 = 4;

/// Everything there is to know about the mesh.
#[derive(Debug)]
pub struct Mesh {
    /// What it is.
    pub genesis: SignedGenesis,
    /// Who is in it.
    pub roster: Roster,
    /// All four members; the last one came by a ticket.
    pub members: Vec<AdmittedRecord>,
    /// The ticket that the last one used, and one that is open.
    pub grants: Vec<SignedGrant>,
    /// A vote of each node for the block, and one of the first for the release.
    pub ballots: Vec<Ballot>,
    /// Enough votes for the block.
    pub certificate: Certificate,
    /// The operator's release.
    pub release: SignedRelease,
    /// A proposal of the next epoch, and that epoch with three precommits.
    pub proposal: Proposal,
    /// See `proposal`.
    pub epoch: CertifiedEpoch,
}

/// The mesh; made once.
///
/// `None` only if the names below were none, which the tests rule out.
pub fn mesh() -> Option<&'static Mesh> {
    static MESH: OnceLock<Option<Mesh>> = OnceLock::new();
    MESH.get_or_init(make).as_ref()
}

/// In all keys; another one whenever other things are signed here: a corpus of before holds things that are no
/// forgeries by the same keys, and not among these. No number of a node or a ticket.
const EDITION: u8 = 0xe3;

/// The key of a node, or of a ticket.
pub fn signer(number: u8) -> Signer {
    let mut secret = [number; 32];
    if let Some(first) = secret.first_mut() {
        *first = EDITION;
    }
    Signer::from_secret(&secret)
}

/// The operator's key.
pub fn operator() -> Signer {
    signer(0xee)
}

fn make() -> Option<Mesh> {
    let genesis = Genesis {
        mesh_name: Name::new("fuzz").ok()?,
        operator_key: operator().public(),
        created_unix_us: T0 - 1_000 * S,
        params: Params::default(),
    };
    let grants = vec![grant(&genesis, 0x71)?, grant(&genesis, 0x72)?];
    let mut members = Vec::new();
    for number in 1..=NODES {
        let record = record(&genesis, number)?;
        members.push(match (number, grants.first()) {
            (NODES, Some(grant)) => {
                record.admit_by_ticket(&signer(number), grant.clone(), &signer(0x71))
            }
            _ => record.admit_by_operator(&signer(number), &operator()),
        });
    }
    let roster = Roster::with_weights(
        genesis.mesh_id(),
        members.iter().map(|member| (member.record.clone(), 100)),
    );
    let subject = "203.0.113.7".parse().ok()?;
    let block = Action::block(subject, AttackClass::SynFlood, &genesis.params);
    let mut ballots: Vec<Ballot> = (1..=NODES)
        .map(|number| ballot(&roster, number, block))
        .collect();
    let certificate = certificate(&roster, block, &ballots);
    ballots.push(ballot(&roster, 1, Action::release(subject)));
    let release = OperatorRelease::new(
        roster.mesh(),
        roster.epoch_hash(),
        Action::release(subject),
        T0,
        600,
    )
    .sign(&operator());
    let next = next_epoch(&roster, &genesis, &members);
    // The other form of a record.
    let mut proved = next.clone();
    proved.members.first_mut()?.proved = [ProofKind::LedgerFork].into_iter().collect();
    Some(Mesh {
        genesis: genesis.sign(&operator()),
        roster,
        members,
        grants,
        ballots,
        certificate,
        release,
        proposal: Proposal {
            signed: epoch_vote(&next, 1, Step::Propose).sign(&signer(1)),
            polka: Some(vote_set(&next, Step::Prevote)),
            record: next,
        },
        epoch: CertifiedEpoch {
            precommits: vote_set(&proved, Step::Precommit),
            record: proved,
        },
    })
}

/// The epoch after the roster's.
fn next_epoch(roster: &Roster, genesis: &Genesis, members: &[AdmittedRecord]) -> EpochRecord {
    let mut frontier = Frontier::default();
    for member in members {
        let head = LogHead {
            size: 7,
            root: Hash([7; 32]),
        };
        // Four logs are no more than a frontier has room for.
        drop(frontier.set(member.record.node, head));
    }
    EpochRecord {
        number: roster.epoch() + 1,
        previous: roster.epoch_hash(),
        frontier,
        ..EpochRecord::first(
            genesis.mesh_id(),
            EpochParams::of(&genesis.params),
            members.iter().map(|member| member.record.hash()),
        )
    }
}

fn epoch_vote(record: &EpochRecord, number: u8, step: Step) -> EpochVote {
    EpochVote {
        mesh: record.mesh,
        number: record.number,
        previous: record.previous,
        // A proposal that shows prevotes is of a later round.
        round: u32::from(step == Step::Propose),
        step,
        value: Some(record.hash()),
        voter: NodeRecord::derive_id(&signer(number).public(), 1),
        incarnation: 1,
    }
}

fn vote_set(record: &EpochRecord, step: Step) -> VoteSet {
    let mut signatures: Vec<_> = (1..NODES)
        .map(|number| {
            let signed = epoch_vote(record, number, step).sign(&signer(number));
            (signed.vote.voter, signed.signature)
        })
        .collect();
    signatures.sort_unstable();
    VoteSet {
        round: 0,
        signatures,
    }
}

/// The operator takes the last node out.
pub fn removal(mesh: &Mesh) -> secmesh::mesh::epoch::SignedRemoval {
    Removal {
        mesh: mesh.genesis.genesis.mesh_id(),
        node: NodeRecord::derive_id(&signer(NODES).public(), 1),
        issued_unix_us: T0,
    }
    .sign(&operator())
}

fn grant(genesis: &Genesis, ticket: u8) -> Option<SignedGrant> {
    Some(
        Grant {
            mesh: genesis.mesh_id(),
            ticket: TicketId([ticket; 16]),
            ticket_key: signer(ticket).public(),
            name_hint: ticket
                .is_multiple_of(2)
                .then(|| Name::new("hint"))
                .transpose()
                .ok()?,
            issued_unix_us: T0 - 600 * S,
            expires_unix_us: T0 + 600 * S,
            epoch: (ticket % 4 < 2).then_some(EpochMark {
                number: u64::from(ticket) + 1,
                hash: Hash([ticket; 32]),
            }),
        }
        .sign(&operator()),
    )
}

fn record(genesis: &Genesis, number: u8) -> Option<NodeRecord> {
    let address = match number {
        1 => None,
        2 => Some("[2001:db8::2]:4747".parse().ok()?),
        _ => Some(format!("10.0.0.{number}:4747").parse().ok()?),
    };
    Some(NodeRecord {
        mesh: genesis.mesh_id(),
        node: NodeRecord::derive_id(&signer(number).public(), 1),
        name: Name::new(&format!("n{number}")).ok()?,
        zone: Zone::new(if number.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        })
        .ok()?,
        incarnation: 1,
        vote_key: signer(number).public(),
        ledger_key: signer(number).public(),
        pq_key_hash: [number; 32],
        tls_spki_sha256: [number; 32],
        address,
        joined_unix_us: T0 - 500 * S + u64::from(number),
    })
}

fn ballot(roster: &Roster, number: u8, action: Action) -> Ballot {
    let bucket = bucket_of(T0);
    let vote = Vote {
        mesh: roster.mesh(),
        epoch: roster.epoch(),
        epoch_hash: roster.epoch_hash(),
        incident: action.incident(roster.mesh(), roster.epoch_hash(), bucket),
        round: 0,
        bucket,
        action_hash: action.hash(),
        verdict: Verdict::Confirm,
        evidence_root: Hash([number; 32]),
        detector_hash: Hash([0xdd; 32]),
        voter: NodeRecord::derive_id(&signer(number).public(), 1),
        incarnation: 1,
        sequence: 1,
        issued_at_us: T0,
        valid_for_s: 120,
    };
    Ballot {
        action,
        signed: vote.sign(&signer(number)),
    }
}

fn certificate(roster: &Roster, action: Action, ballots: &[Ballot]) -> Certificate {
    let mut votes: Vec<CertVote> = ballots
        .iter()
        .map(|ballot| CertVote::from(&ballot.signed))
        .collect();
    votes.sort_by_key(|vote| vote.voter);
    Certificate {
        action,
        mesh: roster.mesh(),
        epoch: roster.epoch(),
        epoch_hash: roster.epoch_hash(),
        round: 0,
        bucket: bucket_of(T0),
        votes,
    }
}

impl Mesh {
    /// Whether the certificate holds under this mesh's roster, with no liar known.
    pub fn accepts(&self, certificate: &Certificate) -> bool {
        certificate
            .verify(&self.roster, &self.genesis.genesis.params, &BTreeSet::new())
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_the_mesh_is_good() {
        let mesh = mesh().unwrap();
        let genesis = &mesh.genesis.genesis;
        assert!(mesh.genesis.verify().is_ok());
        assert_eq!(mesh.roster.len(), usize::from(NODES));
        assert!(mesh.members.iter().all(|m| m.verify(genesis).is_ok()));
        assert!(mesh.grants.iter().all(|g| g.verify(genesis).is_ok()));
        assert!(mesh.accepts(&mesh.certificate));
        assert!(mesh.release.verify(genesis).is_ok());
        for ballot in &mesh.ballots {
            let member = mesh.roster.get(&ballot.signed.vote.voter).unwrap();
            assert!(ballot.signed.verify(&member.record.vote_key).is_ok());
        }
    }
}
