//! Evidence on the nodes: decoding, one encoding each, no forgery.

use secmesh::mesh::evidence::{
    Body, Dossier, EvidenceMessage, EvidenceSet, Frontier, Inserted, Misconduct, OperatorVerdict,
    Outcome, OutcomeKind, Question, Remediation, Reveal, Ruling, Say, SignedVerdict, Statement,
};
use secmesh::mesh::ids::Hash;
use secmesh::mesh::message::{EquivocationProof, Message};
use secmesh::mesh::trust::Params;

use super::mesh::canonical;
use crate::samples::{Mesh, mesh, operator, signer};

/// The second node writes the log of the seeds; nobody else writes anything.
const AUTHOR: u8 = 2;

fn bodies(mesh: &Mesh) -> Option<Vec<Body>> {
    let dossier = Dossier::new(mesh.certificate.clone()).ok()?;
    let certificate = dossier.votes();
    let verdict = OperatorVerdict {
        mesh: certificate.mesh,
        subject: certificate.action.subject.prefix()?,
        ruling: Ruling::FalsePositive,
        incidents: vec![certificate.incident()],
        issued_at_us: 1_700_000_000_000_000,
    };
    let ballot = mesh.ballots.first()?;
    let target = ballot.signed.vote.voter;
    let mut lie = ballot.signed;
    lie.vote.sequence += 1;
    Some(vec![
        Body::Outcome(Outcome {
            kind: OutcomeKind::Hit,
            packets: 12,
            dossier: dossier.clone(),
        }),
        Body::Verdict(verdict.sign(&operator()), dossier),
        Body::Question(Question {
            target,
            commitment: Hash([3; 32]),
        }),
        Body::Reveal(Reveal {
            question: 2,
            target,
            subject: mesh.certificate.action.subject.prefix()?,
            expected: Say::Hostile,
            nonce: [4; 32],
            answer: None,
        }),
        Body::Misconduct(Misconduct::Equivocation(Box::new(EquivocationProof::new(
            ballot.signed,
            lie,
        )?))),
        Body::Remediation(Remediation {
            node: target,
            decision: mesh.certificate.decision(),
            succeeded: true,
        }),
    ])
}

/// A log with one statement of each kind.
fn log(mesh: &Mesh) -> Option<EvidenceSet> {
    let author = signer(AUTHOR);
    let node = mesh.ballots.get(usize::from(AUTHOR) - 1)?.signed.vote.voter;
    let mut set = EvidenceSet::new(mesh.roster.mesh());
    for body in bodies(mesh)? {
        let head = set.head(&node);
        let at = (head.size, head.root);
        let statement = Statement::new(mesh.roster.mesh(), &author, node, at, 1, body);
        set.insert(statement, usize::MAX);
    }
    Some(set)
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let Some(set) = mesh().and_then(log) else {
        return Vec::new();
    };
    let statements: Vec<Statement> = set.iter().map(|s| Statement::clone(s)).collect();
    let mut all: Vec<Vec<u8>> = statements.iter().map(Statement::to_bytes).collect();
    all.extend(statements.iter().map(|s| s.body.to_bytes()));
    all.push(set.frontier().to_bytes());
    all.push(Params::default().to_bytes());
    for message in [
        EvidenceMessage::Summary(set.frontier_hash()),
        EvidenceMessage::Digest {
            answer: false,
            frontier: set.frontier(),
        },
        EvidenceMessage::Statements(statements),
    ] {
        all.push(Message::Evidence(Box::new(message)).to_bytes());
    }
    all
}

pub(super) fn run(input: &[u8]) {
    canonical(input, Message::from_bytes, Message::to_bytes);
    canonical(input, Body::from_bytes, Body::to_bytes);
    canonical(input, Frontier::from_bytes, Frontier::to_bytes);
    canonical(input, Params::from_bytes, Params::to_bytes);
    if let Some(verdict) = canonical(input, SignedVerdict::from_bytes, SignedVerdict::to_bytes)
        && let Some(mesh) = mesh()
    {
        let operator = mesh.genesis.genesis.operator_key;
        let known = mesh.genesis.genesis.mesh_id().eq(&verdict.verdict.mesh);
        assert!(known || verdict.verify(&operator).is_err(), "forged");
    }
    let Some(statement) = canonical(input, Statement::from_bytes, Statement::to_bytes) else {
        return;
    };
    let Some((mesh, mut set)) = mesh().and_then(|mesh| Some((mesh, log(mesh)?))) else {
        return;
    };
    let known = set.contains(&statement);
    let genuine = mesh
        .roster
        .get(&statement.head().author)
        .is_some_and(|member| statement.signed.verify(&member.record.vote_key).is_ok());
    assert!(!genuine || known, "forged: {statement:?}");
    // Whatever it is, a set takes it once or not at all.
    let taken = set.insert(statement.clone(), usize::MAX);
    let again = set.insert(statement, usize::MAX);
    assert!(
        taken != Inserted::New || again == Inserted::Known,
        "taken twice"
    );
}
