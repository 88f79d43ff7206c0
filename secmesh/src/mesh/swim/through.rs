//! Asking others about a node that is suspected and not connected: at once and again, because foca comes
//! round to it only when its turn is, and cannot ask it directly.

use rand::RngExt as _;

use super::message::{Life, SwimMessage, What};
use super::{Liveness, Output, PROBE_US, Swim};
use crate::mesh::ids::NodeId;

/// How many are asked at a time.
const HELPERS: usize = 3;

/// For how many nodes others are asked in a second.
const ASKED_PER_S: usize = 8;

/// Who was asked about a node last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    helpers: [Option<NodeId>; HELPERS],
    number: u8,
    at_us: Option<u64>,
}

impl Swim {
    /// Asks for all who are to be asked for, a few per second: in a split they do not answer anyway.
    pub(super) fn ask_others(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let second = now_us / 1_000_000;
        if self.asked_for.0 != second {
            self.asked_for = (second, 0);
        }
        let missing: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, peer)| peer.given_up_us.is_some())
            .filter(|(_, peer)| {
                let asked = peer.asked.at_us;
                asked.is_none_or(|at| now_us.saturating_sub(at) >= PROBE_US)
            })
            .map(|(node, _)| *node)
            .take(ASKED_PER_S - self.asked_for.1.min(ASKED_PER_S))
            .collect();
        for node in missing {
            self.asked_for.1 += 1;
            self.ask_about(now_us, node, out);
        }
    }

    fn ask_about(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        let Some(target) = self.life(&node) else {
            return;
        };
        let mut able: Vec<Life> = self
            .members
            .iter()
            .filter(|(other, peer)| {
                peer.shown == Liveness::Alive && self.connected.contains(*other)
            })
            .filter_map(|(other, _)| self.life(other))
            .collect();
        let mut helpers = [None; HELPERS];
        let mut chosen = Vec::new();
        for place in &mut helpers {
            if able.is_empty() {
                break;
            }
            let life = able.swap_remove(self.chance.random_range(0..able.len()));
            *place = Some(life.node);
            chosen.push(life);
        }
        let Some(peer) = self.members.get_mut(&node) else {
            return;
        };
        let number = peer.asked.number.wrapping_add(1);
        peer.asked = Asked {
            helpers,
            number,
            at_us: Some(now_us),
        };
        for helper in chosen {
            self.say(
                helper,
                SwimMessage {
                    incarnation: self.me.incarnation,
                    refutations: self.refutations,
                    to: helper.incarnation,
                    what: What::Request { target, number },
                    updates: Vec::new(),
                },
                out,
            );
        }
    }

    /// Whether this is an answer that was asked for here, and not by foca: then the node is there.
    pub(super) fn answered_through(
        &mut self,
        now_us: u64,
        from: NodeId,
        what: &What,
        out: &mut Vec<Output>,
    ) -> bool {
        let What::Forwarded { origin, number } = what else {
            return false;
        };
        let Some(peer) = self.members.get_mut(&origin.node) else {
            return false;
        };
        if peer.asked.number != *number || !peer.asked.helpers.contains(&Some(from)) {
            return false;
        }
        peer.asked.helpers = [None; HELPERS];
        self.there(now_us, origin.node, out);
        true
    }
}
