//! In which order nodes agree to what others have seen.
//!
//! Some of the weight suffices for a certificate, and every vote costs every node a write to the disk, a
//! message and a check. So the nodes stand in an order that follows from the incident's id, another for each:
//! the first of them, as far as their weight is needed, agree at once, the next as many [`WAVE_US`] later if
//! no certificate has come by then, and so on. Who keeps its vote back costs that delay and no more, and
//! nothing else changes: a node agrees to what it would have agreed to, or says nothing because it is decided.

use super::{Call, Engine, IncidentKey, MAX_OPEN};
use crate::mesh::crypto::sha256;
use crate::mesh::ids::NodeId;
use crate::mesh::vote::{ActionKind, Verdict};

/// How long each next part of the nodes waits, microseconds.
pub(super) const WAVE_US: u64 = 250_000;
/// After so many waits everybody agrees who would.
const MAX_WAVES: u64 = 4;

impl Engine {
    /// In which wave this node agrees: 0 at once. `None`: the incident is not known.
    fn wave(&self, key: &IncidentKey) -> Option<u64> {
        let me = self.config.node;
        let incident = self.incidents.get(key)?;
        let tally = self.tally(incident);
        let missing = tally.needed.saturating_sub(tally.weight).max(1);
        let place =
            |node: &NodeId| sha256(&[key.0.as_bytes().as_slice(), node.as_bytes()].concat());
        let mine = place(&me);
        let silent = self.silent();
        let mut before = 0_u64;
        for (node, _) in self.roster.members() {
            let weight = self.roster.vote_weight(node);
            // Only those who can be expected to add something. Who is not in reach of this node may be so
            // elsewhere; then a vote too many is given, that is all.
            let adds = *node != me
                && weight > 0
                && self.is_reachable(node)
                && !silent.contains(node)
                && !incident.votes.contains_key(node)
                && !self.roster.is_subject(node, &incident.action.subject);
            if adds && place(node) < mine {
                before = before.saturating_add(weight);
            }
        }
        Some((before / missing).min(MAX_WAVES))
    }

    /// Agrees to a block that enough have seen: now, or when it is this node's turn.
    pub(super) fn concur_in_turn(&mut self, call: &mut Call<'_>, key: &IncidentKey) {
        if self.in_turn.contains_key(key)
            || !self.may_say(&self.config.node, ActionKind::Block, Verdict::Concur)
        {
            return;
        }
        match self.wave(key) {
            Some(wave @ 1..) if self.in_turn.len() < MAX_OPEN => {
                let due = call.now.saturating_add(wave.saturating_mul(WAVE_US));
                self.in_turn.insert(*key, due);
            }
            Some(_) => {
                self.cast(call, key, Verdict::Concur, None);
                self.try_certify(call, key);
            }
            None => {}
        }
    }

    /// Agrees to what has waited for its turn and is still open, by what is known and allowed now.
    pub(super) fn concur_late(&mut self, call: &mut Call<'_>) {
        let longest = MAX_WAVES.saturating_mul(WAVE_US);
        // A clock that was set back must not make anybody wait longer.
        let latest = call.now.saturating_add(longest);
        let due: Vec<IncidentKey> = self
            .in_turn
            .iter()
            .filter(|(_, at)| **at <= call.now || **at > latest)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.in_turn.remove(&key);
            let Some(incident) = self.incidents.get(&key) else {
                continue;
            };
            let action = incident.action;
            let open = !incident.decided && self.tally(incident).witnessed();
            // Only blocks wait: votes on nodes are not kept back.
            let Some(subject) = action.subject.prefix() else {
                continue;
            };
            let full =
                self.is_over_budget(call.now, &action) && self.active_block(&subject).is_none();
            if !open || full || self.is_undone(&action, incident.bucket) {
                continue;
            }
            let verdict = if call.policy.vetoes(&subject).is_some() {
                Verdict::Reject
            } else {
                Verdict::Concur
            };
            self.cast(call, &key, verdict, None);
            self.try_certify(call, &key);
        }
    }
}
