//! What nodes have to say about each other.

use secmesh::addr::Prefix;
use secmesh::mesh::engine::Input;
use secmesh::mesh::evidence::{OutcomeKind, Ruling};
use secmesh::mesh::ids::DecisionId;

use super::World;
use crate::cast;
use crate::oracle::Violation;

/// Packets that were dropped, in every outcome.
const PACKETS: u64 = 100;

impl World {
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
