//! What the next epoch would be by what this node knows, and whether a proposed one is that.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::mesh::crypto::PublicKey;
use crate::mesh::epoch::{
    Candidate, EpochError, EpochMember, EpochParams, EpochRecord, next_weights,
};
use crate::mesh::evidence::Frontier;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::roster::{NODE_WEIGHT, NodeRecord};
use crate::mesh::simulation::{Bug, planted};

impl Engine {
    pub(super) fn is_membership_changed(&self) -> bool {
        let next: BTreeSet<NodeId> = self.next_members().iter().map(|(r, _)| r.node).collect();
        !self.roster.members().map(|(node, _)| node).eq(&next)
    }

    /// The members of the next epoch by what this node knows, and since when they are in. Newcomers that a record has
    /// no room for are left out, or no epoch could form any more, not even one that removes somebody.
    pub(super) fn next_members(&self) -> Vec<(&NodeRecord, u64)> {
        let mut new = self.newcomers();
        let certified = self.chain.tip().map(|tip| &tip.record.frontier);
        let certified = certified.map_or_else(Frontier::default, |f| self.without_departed(f));
        loop {
            let members = self.members_with(&new);
            if has_room_for(&members, &certified) || new.pop().is_none() {
                return members;
            }
        }
    }

    /// How many nodes wait that the next epoch has no room for.
    pub fn left_out(&self) -> usize {
        let number = self.roster.epoch().saturating_add(1);
        let members = self.next_members();
        let taken = members.iter().filter(|(_, since)| *since == number).count();
        self.newcomers().len().saturating_sub(taken)
    }

    fn newcomers(&self) -> Vec<&NodeRecord> {
        let mut new = self.eligible();
        new.retain(|record| record.node == self.config.node || self.seen.contains(&record.node));
        new
    }

    fn members_with<'a>(&'a self, new: &[&'a NodeRecord]) -> Vec<(&'a NodeRecord, u64)> {
        let number = self.roster.epoch().saturating_add(1);
        let replaced: BTreeSet<&PublicKey> = new.iter().map(|r| &r.vote_key).collect();
        let mut members: Vec<(&NodeRecord, u64)> = self
            .roster
            .members()
            .filter(|(node, member)| {
                !self.removals.contains_key(*node) && !replaced.contains(&member.record.vote_key)
            })
            .filter(|(node, _)| {
                !planted(Bug::RosterByReach)
                    || self.connected.contains(*node)
                    || **node == self.config.node
            })
            .map(|(_, member)| (&member.record, self.since(&member.record)))
            .collect();
        members.extend(new.iter().map(|record| (*record, number)));
        members
    }

    /// Admitted nodes that are not in the roster and may be in the next one. An id that was removed never
    /// comes back, and of one vote key only the latest incarnation does.
    fn eligible(&self) -> Vec<&NodeRecord> {
        let known = self.registry.admissible();
        let mut latest: BTreeMap<&PublicKey, u64> = BTreeMap::new();
        let members = self.roster.members().map(|(_, member)| &member.record);
        for record in known.iter().copied().chain(members) {
            let incarnation = latest.entry(&record.vote_key).or_default();
            *incarnation = record.incarnation.max(*incarnation);
        }
        known
            .into_iter()
            .filter(|record| {
                self.roster.get(&record.node).is_none()
                    && !self.removals.contains_key(&record.node)
                    && latest.get(&record.vote_key) == Some(&record.incarnation)
            })
            .collect()
    }

    pub(super) fn since(&self, record: &NodeRecord) -> u64 {
        let tip = self.chain.tip();
        tip.and_then(|tip| tip.record.member(&record.hash()))
            .map_or(1, |member| member.since)
    }

    pub(super) fn epoch_members(&self, record: &EpochRecord) -> Option<BTreeSet<NodeId>> {
        record
            .members
            .iter()
            .map(|m| Some(self.registry.by_hash(&m.record)?.record.node))
            .collect()
    }

    pub(super) fn epoch_ends_us(&self) -> u64 {
        let length = u64::from(self.config.genesis.params.epoch_s).saturating_mul(1_000_000);
        self.epoch_since_us.saturating_add(length)
    }

    /// What this node would propose, if an epoch is due.
    pub(super) fn fresh_epoch(&self, now: u64) -> Option<EpochRecord> {
        if !self.membership_due && now < self.epoch_ends_us() && !self.is_redraw_due(now) {
            return None;
        }
        let frontier = self.proposed_frontier(&self.chain.tip()?.record.frontier);
        self.next_epoch(self.next_members(), frontier)
    }

    /// The one record that follows from the current epoch, these members and this frontier.
    fn next_epoch(
        &self,
        members: Vec<(&NodeRecord, u64)>,
        frontier: Frontier,
    ) -> Option<EpochRecord> {
        let tip = &self.chain.tip()?.record;
        let targets = self.targets(&frontier)?;
        let mut members = members;
        members.sort_by_cached_key(|(record, _)| record.hash());
        let candidates: Vec<Candidate> = members
            .iter()
            .map(|(record, since)| Candidate {
                node: record.node,
                zone: record.zone.clone(),
                joined_unix_us: record.joined_unix_us,
                since: *since,
                before: self.roster.get(&record.node).map_or(0, |m| m.weight),
                target: targets.get(&record.node).map_or(NODE_WEIGHT, |t| t.weight),
            })
            .collect();
        let number = tip.number.checked_add(1)?;
        let params = EpochParams::of(&self.config.genesis.params);
        let weights = next_weights(
            &candidates,
            number,
            params.probation,
            self.roster.total(),
            self.roster.voters(),
        );
        let record = EpochRecord {
            mesh: self.mesh,
            number,
            previous: self.roster.epoch_hash(),
            members: members
                .iter()
                .zip(weights)
                .map(|((record, since), weight)| EpochMember {
                    record: record.hash(),
                    weight,
                    since: *since,
                    proved: targets
                        .get(&record.node)
                        .copied()
                        .unwrap_or_default()
                        .proved,
                })
                .collect(),
            params,
            frontier,
        };
        record.fits().then_some(record)
    }

    /// Whether a record may follow the current one: every change of the roster is the operator's, it is
    /// time for it, and it is what this node computes from the same members and evidence, to the bit.
    pub(super) fn is_next_epoch(&self, now: u64, record: &EpochRecord) -> bool {
        let Some(after) = self.is_sound_epoch(record) else {
            return false;
        };
        let changed = !self.roster.members().map(|(node, _)| node).eq(&after);
        // Clocks differ; an epoch is not begun earlier than half of one.
        let slack = self
            .skew_us()
            .min(u64::from(self.config.genesis.params.epoch_s).saturating_mul(500_000));
        let with_slack = now.saturating_add(slack);
        let in_time = changed || with_slack >= self.epoch_ends_us() || self.may_redraw(with_slack);
        in_time && self.check_new_members(record.number, &after).is_ok()
    }

    /// The part of that which, once true, stays true until the next epoch: of a value that others may be
    /// locked on no more is asked, or a removal could stop the epochs for ever. Gives the members.
    pub(super) fn is_sound_epoch(&self, record: &EpochRecord) -> Option<BTreeSet<NodeId>> {
        let tip = self.chain.tip()?;
        let members = self.members_of(record)?;
        let after: BTreeSet<NodeId> = members.iter().map(|(r, _)| r.node).collect();
        let sound = self.may_rest_on(&tip.record.frontier, &record.frontier)
            && self.check_roster(record, &after).is_ok()
            && self.next_epoch(members, record.frontier.clone())? == *record;
        sound.then_some(after)
    }

    /// The members of a record with the epochs they should be in since.
    fn members_of(&self, record: &EpochRecord) -> Option<Vec<(&NodeRecord, u64)>> {
        record
            .members
            .iter()
            .map(|m| {
                let member = &self.registry.by_hash(&m.record)?.record;
                let known = self.roster.get(&member.node);
                let since = match known {
                    Some(known) if known.record == *member => self.since(member),
                    _ => record.number,
                };
                Some((member, since))
            })
            .collect()
    }

    /// Whether the operator has signed every difference between the current roster and a record.
    pub(super) fn check_roster(
        &self,
        record: &EpochRecord,
        after: &BTreeSet<NodeId>,
    ) -> Result<(), EpochError> {
        let number = record.number;
        let hashes: BTreeSet<Hash> = record.members.iter().map(|m| m.record).collect();
        let keys: BTreeSet<PublicKey> = record
            .members
            .iter()
            .filter_map(|m| self.registry.by_hash(&m.record))
            .map(|admitted| admitted.record.vote_key)
            .collect();
        if keys.len() != record.members.len() || after.len() != record.members.len() {
            return Err(EpochError::UnknownMember(number));
        }
        for (node, member) in self.roster.members() {
            let kept = hashes.contains(&member.record.hash());
            let replaced = !after.contains(node) && keys.contains(&member.record.vote_key);
            let removed = self.removals.contains_key(node) || planted(Bug::RosterByReach);
            if !kept && !replaced && !removed {
                return Err(EpochError::NotRemoved {
                    number,
                    node: *node,
                });
            }
        }
        Ok(())
    }

    /// Whether every new member of a record may come in, by what is known here now. Only for what is not
    /// certified yet: who was let in once may have been removed, replaced or seen with a burned ticket since.
    fn check_new_members(&self, number: u64, after: &BTreeSet<NodeId>) -> Result<(), EpochError> {
        let eligible: BTreeSet<NodeId> = self.eligible().iter().map(|r| r.node).collect();
        match after
            .iter()
            .find(|node| self.roster.get(node).is_none() && !eligible.contains(*node))
        {
            Some(node) => Err(EpochError::NotAdmissible {
                number,
                node: *node,
            }),
            None => Ok(()),
        }
    }
}

/// Whether a record has room for these members, a log of each, and the logs that it has to rest on.
fn has_room_for(members: &[(&NodeRecord, u64)], certified: &Frontier) -> bool {
    let mut logs: BTreeSet<&NodeId> = certified.logs().keys().collect();
    logs.extend(members.iter().map(|(record, _)| &record.node));
    EpochRecord::has_room(members.len(), logs.len())
}
