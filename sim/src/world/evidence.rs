//! What nodes have to say about each other.

use secmesh::addr::Prefix;
use secmesh::mesh::engine::Input;
use secmesh::mesh::evidence::{OutcomeKind, Ruling};
use secmesh::mesh::ids::DecisionId;

use super::World;
use super::network::KIND_AT;
use crate::cast::{self, S};
use crate::oracle::{Violation, broken};

/// Packets that were dropped, in every outcome.
const PACKETS: u64 = 100;
/// A request for statements.
const REQUEST: u8 = 26;
/// Requests of one node to another within a second. Each answer holds hundreds of statements, and all statements of a
/// run are not so many.
const MAX_REQUESTS: u32 = 16;

impl World {
    /// A message from one node to another: nobody asks for statements again and again.
    pub(super) fn asks(&mut self, from: usize, to: usize, bytes: &[u8]) -> Result<(), Violation> {
        if bytes.get(KIND_AT) != Some(&REQUEST) {
            return Ok(());
        }
        let second = self.now / S;
        let asked = self.nodes[from].asked.entry(to).or_default();
        if asked.0 != second {
            *asked = (second, 0);
        }
        asked.1 += 1;
        if asked.1 > MAX_REQUESTS {
            return broken(
                "asked-again",
                format!(
                    "node {from} has asked node {to} {} times for statements in a second",
                    asked.1
                ),
            );
        }
        Ok(())
    }

    /// A block is looked at: its source kept coming if it was a real one.
    pub(super) fn outcome(&mut self, i: usize, decision: DecisionId) -> Result<(), Violation> {
        let known = self.nodes[i].engine.as_ref();
        if known.is_none_or(|engine| engine.decision(&decision).is_none()) {
            return Ok(());
        }
        self.input(
            i,
            Input::Outcome {
                decision,
                kind: OutcomeKind::Hit,
                packets: PACKETS,
            },
        )
    }

    /// The operator's verdict on the blocks of a subject.
    pub(super) fn verdict(
        &mut self,
        i: usize,
        subject: Prefix,
        ruling: Ruling,
    ) -> Result<(), Violation> {
        let wall = self.nodes[i].wall(self.now);
        let draft = self.nodes[i]
            .engine
            .as_ref()
            .and_then(|engine| engine.draft_verdict(subject, ruling, wall));
        match draft {
            Some(draft) => {
                let signed = Box::new(draft.sign(&cast::operator()));
                self.input(i, Input::Verdict(signed))
            }
            None => Ok(()),
        }
    }
}
