//! What leaves an honest node is on its disk, and never says two things.

use secmesh::mesh::epoch::{Proposal, SignedEpochVote};
use secmesh::mesh::evidence::{EvidenceMessage, Statement};
use secmesh::mesh::ids::Hash;
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::Ballot;

use super::World;
use crate::oracle::{Violation, broken};

impl World {
    /// Looks at a message that leaves a node.
    pub(super) fn says(&mut self, i: usize, bytes: &[u8]) -> Result<(), Violation> {
        match Message::from_bytes(bytes) {
            Ok(Message::Batch(parts)) => {
                for part in parts {
                    if let Ok(message) = Message::from_bytes(&part) {
                        self.says_one(i, message)?;
                    }
                }
                Ok(())
            }
            Ok(message) => self.says_one(i, message),
            Err(error) => broken(
                "encoding",
                format!("node {i} sends what nobody reads: {error}"),
            ),
        }
    }

    fn says_one(&mut self, i: usize, message: Message) -> Result<(), Violation> {
        match message {
            Message::Vote(ballot) => self.says_vote(i, &ballot),
            Message::EpochVote(signed) => self.says_epoch_vote(i, &signed),
            Message::EpochProposal(proposal) => self.proposes(i, &proposal),
            Message::Evidence(message) => match *message {
                EvidenceMessage::Statements(statements) => {
                    statements.iter().try_for_each(|s| self.states(i, s))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn proposes(&mut self, i: usize, proposal: &Proposal) -> Result<(), Violation> {
        if proposal.signed.vote.voter != self.nodes[i].id {
            return Ok(());
        }
        self.says_epoch_vote(i, &proposal.signed)?;
        self.oracle.proposed(&proposal.record)
    }

    fn says_epoch_vote(&mut self, i: usize, signed: &SignedEpochVote) -> Result<(), Violation> {
        let vote = &signed.vote;
        let node = &mut self.nodes[i];
        if vote.voter != node.id {
            return Ok(());
        }
        if !node.disk.lock().is_some_and(|state| state.holds(signed)) {
            return broken(
                "persist-before-send",
                format!(
                    "a {:?} of node {i} on epoch {} leaves that is not on its disk",
                    vote.step, vote.number
                ),
            );
        }
        let slot = (vote.number, vote.previous, vote.round, vote.step);
        if *node.said_of_epochs.entry(slot).or_insert(vote.value) != vote.value {
            return broken(
                "own-word",
                format!(
                    "honest node {i} contradicts itself about epoch {}",
                    vote.number
                ),
            );
        }
        self.oracle.voted(signed)
    }

    fn states(&mut self, i: usize, statement: &Statement) -> Result<(), Violation> {
        let head = statement.head();
        let node = &mut self.nodes[i];
        if head.author != node.id {
            return Ok(());
        }
        let bytes = statement.to_bytes();
        if !node.disk.holds_statement(&bytes) {
            return broken(
                "persist-before-send",
                format!("a statement of node {i} leaves that is not on its disk"),
            );
        }
        if *node
            .stated
            .entry(head.sequence)
            .or_insert_with(|| bytes.clone())
            != bytes
        {
            return broken(
                "own-word",
                format!(
                    "honest node {i} states two things as number {}",
                    head.sequence
                ),
            );
        }
        Ok(())
    }

    fn says_vote(&mut self, i: usize, ballot: &Ballot) -> Result<(), Violation> {
        let vote = &ballot.signed.vote;
        let node = &mut self.nodes[i];
        if vote.voter != node.id {
            return Ok(());
        }
        let bytes = ballot.to_bytes();
        if !node.disk.holds_vote(&bytes) {
            return broken(
                "persist-before-send",
                format!("a vote of node {i} leaves that is not on its disk"),
            );
        }
        let slot = (vote.epoch_hash, Hash(vote.incident.0), vote.round);
        if *node.numbered.entry(vote.sequence).or_insert(slot) != slot {
            return broken(
                "own-numbers",
                format!("node {i} uses its number {} twice", vote.sequence),
            );
        }
        if *node.said.entry(slot).or_insert_with(|| bytes.clone()) != bytes {
            return broken(
                "own-word",
                format!(
                    "honest node {i} contradicts itself about {}",
                    ballot.action.subject
                ),
            );
        }
        Ok(())
    }
}
