//! What nodes send each other and keep: decoding, one encoding each, no forgery.

use std::fmt::Debug;

use secmesh::mesh::admission::{AdmittedRecord, SignedGrant};
use secmesh::mesh::cert::{Certificate, MAX_CERT_VOTES};
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::decision::{SignedRelease, Warrant};
use secmesh::mesh::envelope::{Envelope, EnvelopeKind, MAX_ENVELOPE, NO_NONCE, SignedEnvelope};
use secmesh::mesh::epoch::{
    CertifiedEpoch, EpochProof, EpochSeal, LockState, Proposal, SignedEpochVote, SignedRemoval,
    StoredEpochs,
};
use secmesh::mesh::genesis::{MAX_BLOCK_TTL_S, SignedGenesis};
use secmesh::mesh::ids::{MeshId, NodeId};
use secmesh::mesh::join::{JoinReply, JoinRequest};
use secmesh::mesh::message::{EquivocationProof, Message, pack};
use secmesh::mesh::transport::MAX_MESSAGE;
use secmesh::mesh::transport::fuzzing::{Read, read_and_write};
use secmesh::mesh::vote::Ballot;
use secmesh::mesh::witness::{Answer, LedgerMessage, Offer, Outcome};

use crate::feed::Feed;
use crate::samples::{Mesh, mesh, removal};

/// Decodes; what decodes has these bytes as its only encoding.
pub(super) fn canonical<T: PartialEq + Debug, E>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Option<T> {
    let value = decode(bytes).ok()?;
    let again = encode(&value);
    assert_eq!(again, bytes, "two encodings of {value:?}");
    assert_eq!(decode(&again).ok().as_ref(), Some(&value));
    Some(value)
}

fn seeds(of: impl FnOnce(&Mesh) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    mesh().map(of).unwrap_or_default()
}

pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    seeds(|mesh| {
        let mut all: Vec<Message> = mesh
            .ballots
            .iter()
            .map(|ballot| Message::Vote(Box::new(*ballot)))
            .collect();
        all.push(Message::Certificate(Box::new(mesh.certificate.clone())));
        all.extend(
            mesh.members
                .iter()
                .cloned()
                .map(|m| Message::Admission(Box::new(m))),
        );
        all.extend(
            mesh.grants
                .iter()
                .cloned()
                .map(|g| Message::Grant(Box::new(g))),
        );
        all.push(Message::Release(Box::new(mesh.release)));
        let note = b"secmesh/00\n1\nAAAA\n".to_vec();
        for message in [
            LedgerMessage::Offer(Box::new(Offer {
                old_size: 1,
                proof: vec![[7; 32]; 3],
                note: note.clone(),
                pq: None,
            })),
            LedgerMessage::Answer(Box::new(Answer {
                size: 5,
                root: [1; 32],
                outcome: Outcome::Cosigned {
                    time_s: 9,
                    signature: [2; 64],
                },
            })),
            LedgerMessage::Answer(Box::new(Answer {
                size: 5,
                root: [1; 32],
                outcome: Outcome::Knows(Some(note.clone())),
            })),
            LedgerMessage::Seen {
                node: NodeId([3; 16]),
                note,
            },
        ] {
            all.push(Message::Ledger(message));
        }
        all.push(Message::EpochProposal(Box::new(mesh.proposal.clone())));
        all.push(Message::EpochVote(Box::new(mesh.proposal.signed)));
        all.push(Message::EpochWant(4));
        all.push(Message::Epoch(Box::new(mesh.epoch.clone())));
        all.push(Message::Removal(Box::new(removal(mesh))));
        if let Some(ballot) = mesh.ballots.first() {
            let mut other = ballot.signed;
            other.vote.sequence += 1;
            all.extend(
                EquivocationProof::new(ballot.signed, other)
                    .map(|proof| Message::Equivocation(Box::new(proof))),
            );
        }
        let mut bytes: Vec<Vec<u8>> = all.iter().map(Message::to_bytes).collect();
        bytes.extend(pack(bytes.clone()));
        bytes
    })
}

pub(super) fn message(input: &[u8]) {
    let Some(message) = canonical(input, Message::from_bytes, Message::to_bytes) else {
        return;
    };
    assert!(input.len() <= MAX_MESSAGE);
    match message {
        Message::Batch(parts) => {
            // Packed again, everything is still there, in order.
            let again: Vec<Vec<u8>> = pack(parts.clone())
                .iter()
                .filter_map(|bytes| match Message::from_bytes(bytes) {
                    Ok(Message::Batch(parts)) => Some(parts),
                    _ => None,
                })
                .flatten()
                .collect();
            assert_eq!(again, parts, "packing lost a part");
        }
        Message::Equivocation(proof) => {
            let (first, second) = proof.votes();
            assert_ne!(first.vote, second.vote, "no contradiction");
            assert_eq!(first.vote.voter, second.vote.voter);
            assert_eq!(first.vote.incident, second.vote.incident);
            if let Some(mesh) = mesh() {
                assert!(proof.verify(&mesh.roster).is_err(), "nobody here lied");
            }
        }
        _ => {}
    }
}

pub(super) fn vote_seeds() -> Vec<Vec<u8>> {
    seeds(|mesh| {
        let mut all: Vec<Vec<u8>> = mesh.ballots.iter().map(Ballot::to_bytes).collect();
        all.push(mesh.release.to_bytes());
        all
    })
}

pub(super) fn vote(input: &[u8]) {
    let Some(mesh) = mesh() else { return };
    if let Some(ballot) = canonical(input, Ballot::from_bytes, Ballot::to_bytes) {
        let vote = &ballot.signed.vote;
        assert_eq!(vote.action_hash, ballot.action.hash());
        let verifies = mesh
            .roster
            .get(&vote.voter)
            .is_some_and(|member| ballot.signed.verify(&member.record.vote_key).is_ok());
        // Kept inputs may have been signed with the same keys by an earlier version, in an epoch of its own.
        let of_this_epoch = vote.epoch_hash == mesh.roster.epoch_hash();
        assert!(
            !(verifies && of_this_epoch) || mesh.ballots.contains(&ballot),
            "forged: {ballot:?}"
        );
    }
    if let Some(release) = canonical(input, SignedRelease::from_bytes, SignedRelease::to_bytes) {
        let verifies = release.verify(&mesh.genesis.genesis).is_ok();
        assert!(!verifies || release == mesh.release, "forged: {release:?}");
    }
}

pub(super) fn certificate_seeds() -> Vec<Vec<u8>> {
    seeds(|mesh| {
        let certificate = mesh.certificate.clone();
        let mut fewer = certificate.clone();
        fewer.votes.truncate(1);
        let mut unsorted = certificate.clone();
        unsorted.votes.reverse();
        let mut twice = certificate.clone();
        twice
            .votes
            .extend(certificate.votes.iter().take(1).copied());
        vec![
            certificate.to_bytes(),
            fewer.to_bytes(),
            unsorted.to_bytes(),
            twice.to_bytes(),
            Warrant::Votes(certificate).to_bytes(),
            Warrant::Operator(mesh.release).to_bytes(),
        ]
    })
}

pub(super) fn certificate(input: &[u8]) {
    let Some(mesh) = mesh() else { return };
    if let Some(certificate) = canonical(input, Certificate::from_bytes, Certificate::to_bytes) {
        judge(mesh, &certificate);
    }
    if let Some(warrant) = canonical(input, Warrant::from_bytes, Warrant::to_bytes) {
        match &warrant {
            Warrant::Votes(certificate) => {
                judge(mesh, certificate);
                assert_eq!(warrant.decision(), certificate.decision());
            }
            Warrant::Operator(release) => {
                let verifies = release.verify(&mesh.genesis.genesis).is_ok();
                assert!(!verifies || *release == mesh.release, "forged: {release:?}");
            }
        }
    }
}

fn judge(mesh: &Mesh, certificate: &Certificate) {
    assert!(certificate.votes.len() <= MAX_CERT_VOTES);
    if !mesh.accepts(certificate) {
        return;
    }
    // Of what was signed, any selection with enough votes proves the same decision, and nothing else.
    assert_eq!(certificate.decision(), mesh.certificate.decision());
    assert!(
        certificate
            .votes
            .iter()
            .all(|vote| mesh.certificate.votes.contains(vote)),
        "a vote that nobody signed: {certificate:?}"
    );
    let mut voters: Vec<_> = certificate.votes.iter().map(|vote| vote.voter).collect();
    voters.dedup();
    assert_eq!(
        voters.len(),
        certificate.votes.len(),
        "a vote counted twice"
    );
    assert!(voters.len() >= 2, "one node decided for four");
}

pub(super) fn join_seeds() -> Vec<Vec<u8>> {
    seeds(|mesh| {
        let mut all: Vec<Vec<u8>> = mesh.members.iter().map(AdmittedRecord::to_bytes).collect();
        all.extend(mesh.grants.iter().map(SignedGrant::to_bytes));
        for members in [Vec::new(), mesh.members.clone()] {
            all.push(JoinReply::Accepted { members }.to_bytes());
        }
        let reason = "the ticket was used already — ask for another".to_owned();
        all.push(JoinReply::Refused { reason }.to_bytes());
        let reason = "nobody is missing: 4 nodes, 0 of them cut off".to_owned();
        all.push(JoinReply::Waiting { reason }.to_bytes());
        all.extend(mesh.members.iter().map(|record| {
            let request = JoinRequest {
                record: record.clone(),
                standby: true,
            };
            request.to_bytes()
        }));
        all
    })
}

pub(super) fn join(input: &[u8]) {
    let Some(mesh) = mesh() else { return };
    if let Some(JoinReply::Accepted { members }) =
        canonical(input, JoinReply::from_bytes, JoinReply::to_bytes)
    {
        for member in &members {
            admitted(mesh, member);
        }
    }
    // With and without the tag of a spare.
    if let Some(request) = canonical(input, JoinRequest::from_bytes, JoinRequest::to_bytes) {
        admitted(mesh, &request.record);
    }
    if let Some(grant) = canonical(input, SignedGrant::from_bytes, SignedGrant::to_bytes) {
        let verifies = grant.verify(&mesh.genesis.genesis).is_ok();
        assert!(
            !verifies || mesh.grants.contains(&grant),
            "forged: {grant:?}"
        );
    }
}

fn admitted(mesh: &Mesh, record: &AdmittedRecord) {
    let verifies = record.verify(&mesh.genesis.genesis).is_ok();
    assert!(
        !verifies || mesh.members.contains(record),
        "forged: {record:?}"
    );
}

pub(super) fn genesis_seeds() -> Vec<Vec<u8>> {
    seeds(|mesh| vec![mesh.genesis.to_bytes()])
}

pub(super) fn genesis(input: &[u8]) {
    let read = canonical(input, SignedGenesis::from_bytes, SignedGenesis::to_bytes);
    let (Some(mesh), Some(read)) = (mesh(), read) else {
        return;
    };
    let params = &read.genesis.params;
    assert!(
        (1..=MAX_BLOCK_TTL_S).contains(&params.block_ttl_s),
        "{params:?}"
    );
    let ours = read.genesis.operator_key == mesh.genesis.genesis.operator_key;
    let verifies = read.verify().is_ok();
    assert!(
        !verifies || !ours || read == mesh.genesis,
        "forged: {read:?}"
    );
    assert_eq!(
        read.genesis.mesh_id() == mesh.genesis.genesis.mesh_id(),
        read.genesis == mesh.genesis.genesis,
        "two meshes with one id"
    );
}

/// A frame by hand: the key of field 1, a length of seven bits per byte, kind, body.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x0a];
    let mut length = body.len() + 1;
    while length > 127 {
        bytes.push(u8::try_from(length % 128).unwrap_or(0) + 128);
        length /= 128;
    }
    bytes.push(u8::try_from(length).unwrap_or(0));
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..8).map(|kind| framed(kind, b"body")).collect();
    all.push(framed(5, b""));
    all.push(framed(2, &[7; 300]));
    all.push([framed(2, b"next"), vec![0]].concat());
    all.push(vec![0x0a, 0x81, 0, 5]);
    all
}

/// What a reader makes of a message is what writing it would give, and nothing else is taken.
pub(super) fn frame(input: &[u8]) {
    let (read, written) = read_and_write(input);
    match read {
        Read::Frame(kind, body) => {
            assert!((1..=6).contains(&kind) && body.len() <= MAX_MESSAGE);
            assert_eq!(written, input, "two encodings of one frame");
            assert_eq!(written, framed(kind, &body));
        }
        Read::Oversized => assert!(input.len() > MAX_MESSAGE),
        Read::Bad => {
            // The two bytes in front of the kind are enough for short frames: of those, none is missed.
            let mut feed = Feed::new(input);
            let (key, length, kind) = (feed.u8(), usize::from(feed.u8()), feed.u8());
            let good = key == 0x0a
                && (1..128).contains(&length)
                && input.len() == 2 + length
                && (1..=6).contains(&kind);
            assert!(!good, "refused without reason");
        }
    }
}

pub(super) fn envelope_seeds() -> Vec<Vec<u8>> {
    let signer = Signer::from_secret(&[1; 32]);
    let envelope = |kind, echo, sequence, body: &'static [u8]| {
        let envelope = Envelope {
            mesh: MeshId([1; 32]),
            sender: signer.public(),
            recipient: NodeId([2; 16]),
            nonce: [3; 16],
            echo,
            sequence,
            kind,
            body: body.into(),
        };
        envelope.sign(&signer).to_bytes()
    };
    vec![
        envelope(EnvelopeKind::Hello, NO_NONCE, 0, b""),
        envelope(EnvelopeKind::Answer, [4; 16], 0, b""),
        envelope(EnvelopeKind::Heartbeat, [4; 16], 1, b""),
        envelope(EnvelopeKind::Message, [4; 16], 2, b"body"),
        envelope(EnvelopeKind::Farewell, [4; 16], 3, b""),
    ]
}

/// Whatever is read has these bytes as its only encoding; of the key of the seeds only the seeds verify.
pub(super) fn envelope(input: &[u8]) {
    let decode = |bytes: &[u8]| SignedEnvelope::from_bytes(&bytes.to_vec().into());
    let Some(read) = canonical(input, decode, SignedEnvelope::to_bytes) else {
        return;
    };
    assert!(input.len() <= MAX_ENVELOPE);
    assert_eq!(
        read.envelope.kind == EnvelopeKind::Hello,
        read.envelope.echo == NO_NONCE
    );
    let ours = Signer::from_secret(&[1; 32]).public();
    if read.envelope.sender == ours && read.verify().is_ok() {
        assert!(
            envelope_seeds().iter().any(|seed| seed == input),
            "forged: {read:?}"
        );
    }
}

pub(super) fn epoch_seeds() -> Vec<Vec<u8>> {
    seeds(|mesh| {
        let stored = StoredEpochs {
            epochs: vec![mesh.epoch.clone()],
            since_unix_us: 1,
            removals: vec![removal(mesh)],
        };
        let mut other = mesh.proposal.signed;
        other.vote.value = Some(mesh.certificate.epoch_hash);
        let proof = EpochProof::new(mesh.proposal.signed, other);
        let mut all = vec![
            mesh.proposal.to_bytes(),
            mesh.proposal.signed.to_bytes(),
            mesh.epoch.to_bytes(),
            removal(mesh).to_bytes(),
            stored.to_bytes(),
        ];
        all.extend(proof.map(|proof| proof.to_bytes()));
        all
    })
}

pub(super) fn epoch(input: &[u8]) {
    let Some(mesh) = mesh() else { return };
    let genesis = &mesh.genesis.genesis;
    if let Some(epoch) = canonical(input, CertifiedEpoch::from_bytes, CertifiedEpoch::to_bytes) {
        let after = mesh.roster.members().map(|(node, _)| *node).collect();
        let good = epoch.verify(&mesh.roster, &after).is_ok();
        assert!(
            !good || epoch.record == mesh.epoch.record,
            "forged: {epoch:?}"
        );
    }
    canonical(input, Proposal::from_bytes, Proposal::to_bytes);
    canonical(
        input,
        SignedEpochVote::from_bytes,
        SignedEpochVote::to_bytes,
    );
    canonical(input, EpochProof::from_bytes, EpochProof::to_bytes);
    canonical(input, EpochSeal::from_bytes, EpochSeal::to_bytes);
    canonical(input, LockState::from_bytes, LockState::to_bytes);
    canonical(input, StoredEpochs::from_bytes, StoredEpochs::to_bytes);
    if let Some(signed) = canonical(input, SignedRemoval::from_bytes, SignedRemoval::to_bytes) {
        let good = signed.verify(genesis).is_ok();
        assert!(!good || signed == removal(mesh), "forged: {signed:?}");
    }
}
