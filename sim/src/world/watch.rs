//! The failure detector beside each engine, where a run has one: its beat, its messages, and what it finds.

use secmesh::mesh::engine::Input;
use secmesh::mesh::ids::{Hash, NodeId};
use secmesh::mesh::swim::{Life, Liveness, Output, Swim, SwimMessage};

use super::{Event, World};
use crate::cast::S;
use crate::oracle::{Violation, broken};

/// The agent lets its detector work this often, about.
pub(super) const BEAT_US: u64 = 200_000;
/// Who says nothing for so long is taken to be there by nobody any more: a probe, its indirect ones, the time that
/// it is suspected, and news of it that were still under way.
const GONE_US: u64 = 30 * S;

/// A detector, and what it was told of.
pub struct Watchman {
    swim: Swim,
    told: Option<Hash>,
}

impl std::fmt::Debug for Watchman {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchman")
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

impl World {
    /// Begins anew, as a process does.
    pub(super) fn start_watchman(&mut self, i: usize) {
        let me = Life {
            node: self.nodes[i].id,
            incarnation: 1,
        };
        let seed = self.rng.bytes32();
        self.nodes[i].watchman = Some(Watchman {
            swim: Swim::new(me, seed),
            told: None,
        });
    }

    /// Lets a detector do something, and does what it wants.
    fn watchman(
        &mut self,
        i: usize,
        act: impl FnOnce(&mut Swim, u64, &mut Vec<Output>),
    ) -> Result<(), Violation> {
        let mut out = Vec::new();
        let now = self.now;
        let node = &mut self.nodes[i];
        let (Some(watchman), true) = (&mut node.watchman, node.engine.is_some()) else {
            return Ok(());
        };
        act(&mut watchman.swim, now, &mut out);
        for output in out {
            match output {
                // Who can sign nothing any more falls silent here, too.
                Output::Send { to, bytes } if !self.nodes[i].silenced => {
                    if let Some(to) = self.index.get(&to).copied() {
                        self.send(i, to, &bytes.into());
                    }
                }
                Output::Send { .. } => {}
                Output::Liveness { node, now } => {
                    self.trace.line(self.now, || {
                        format!("{i} finds {:?} {}", self.index.get(&node), now.name())
                    });
                    self.counts.found += 1;
                    self.input(i, Input::Liveness { node, now })?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn watch_session(
        &mut self,
        i: usize,
        peer: NodeId,
        up: bool,
    ) -> Result<(), Violation> {
        self.watchman(i, |swim, now, out| {
            if up {
                swim.peer_up(now, peer, out);
            } else {
                swim.peer_down(now, peer, out);
            }
        })
    }

    /// Something came from a peer, and what of it was for the detector.
    pub(super) fn watch_message(&mut self, i: usize, from: NodeId) -> Result<(), Violation> {
        let heard = std::mem::take(&mut self.to_watch);
        self.watchman(i, |swim, now, out| {
            swim.heard(now, from, out);
            for message in &heard {
                swim.message(now, from, message, out);
            }
        })
    }

    /// Keeps a message for the detector until the engine's call is over.
    pub(super) fn keep_for_watchman(&mut self, message: SwimMessage) {
        self.to_watch.push(message);
    }

    pub(super) fn beat(&mut self, i: usize) -> Result<(), Violation> {
        let at = self.now + BEAT_US;
        self.schedule(at, Event::Beat(i));
        let node = &mut self.nodes[i];
        let (Some(watchman), Some(engine)) = (&mut node.watchman, &node.engine) else {
            return Ok(());
        };
        let roster = engine.roster();
        let epoch = roster.epoch_hash();
        if watchman.told != Some(epoch) {
            watchman.told = Some(epoch);
            let members: Vec<Life> = roster
                .members()
                .map(|(node, member)| Life {
                    node: *node,
                    incarnation: member.record.incarnation,
                })
                .collect();
            self.watchman(i, |swim, now, out| swim.set_members(now, members, out))?;
        }
        self.watchman(i, Swim::tick)?;
        self.finds_the_dead(i)
    }

    /// Nobody is taken to be there whose process has been gone for long.
    fn finds_the_dead(&self, i: usize) -> Result<(), Violation> {
        let Some(watchman) = &self.nodes[i].watchman else {
            return Ok(());
        };
        let gone = self.nodes.iter().find(|node| {
            let since = node.down_since;
            let long = since.is_some_and(|since| self.now.saturating_sub(since) > GONE_US);
            long && watchman.swim.liveness(&node.id) == Some(Liveness::Alive)
        });
        match gone {
            Some(node) => broken(
                "liveness-of-the-dead",
                format!("node {i} finds {} alive, which was stopped", node.id),
            ),
            None => Ok(()),
        }
    }
}
