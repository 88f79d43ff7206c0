//! Open incidents: the votes on each, bounded as a whole and per voter.

use std::collections::{BTreeMap, BTreeSet};

use crate::mesh::ids::{Hash, IncidentId, NodeId};
use crate::mesh::subject::Subject;
use crate::mesh::vote::{Action, BUCKET_US, SignedVote, bucket_of};

/// Most incidents that are open and undecided.
pub const MAX_OPEN: usize = 4_096;
/// Most of those that one voter may have opened.
pub const MAX_OPEN_PER_VOTER: usize = 512;
/// Most decided incidents that are kept to recognise contradicting late votes.
pub const MAX_DECIDED: usize = 16_384;

/// An incident and a round.
pub type IncidentKey = (IncidentId, u32);

/// What is being voted on.
#[derive(Debug, Clone)]
pub struct Incident {
    /// The action; the incident id fixes everything about it.
    pub action: Action,
    /// Epoch in which it is voted on.
    pub epoch_hash: Hash,
    /// Time bucket.
    pub bucket: u64,
    /// Round.
    pub round: u32,
    /// Who was first to vote on it.
    pub opened_by: NodeId,
    /// Accepted votes by voter.
    pub votes: BTreeMap<NodeId, SignedVote>,
    /// Whether it led to a decision.
    pub decided: bool,
}

impl Incident {
    /// Whether a vote signed now may still name this incident's bucket.
    pub const fn is_open(&self, now: u64) -> bool {
        bucket_of(now).abs_diff(self.bucket) <= 1
    }

    /// When nothing that was said about it counts any more.
    const fn ends_us(&self, valid_us: u64) -> u64 {
        self.bucket
            .saturating_add(2)
            .saturating_mul(BUCKET_US)
            .saturating_add(valid_us)
    }
}

/// The table of incidents.
#[derive(Debug, Clone, Default)]
pub struct Incidents {
    table: BTreeMap<IncidentKey, Incident>,
    by_subject: BTreeMap<Subject, BTreeSet<IncidentKey>>,
    open_by: BTreeMap<NodeId, usize>,
    open: usize,
}

impl Incidents {
    pub fn get(&self, key: &IncidentKey) -> Option<&Incident> {
        self.table.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&IncidentKey, &Incident)> {
        self.table.iter()
    }

    /// Keys of the incidents about `subject`.
    pub fn about(&self, subject: &Subject) -> Vec<IncidentKey> {
        self.by_subject
            .get(subject)
            .map(|keys| keys.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Whether a voter may open one more.
    ///
    /// Its quota shrinks with the number of nodes, so that liars below a third of them can never fill the
    /// table: a third of n, times 8192 / n, is less than 4096.
    pub fn has_room(&self, voter: &NodeId, nodes: usize) -> bool {
        let quota = (2 * MAX_OPEN / nodes.max(1)).clamp(8, MAX_OPEN_PER_VOTER);
        let mine = self.open_by.get(voter).copied().unwrap_or(0);
        mine < quota && self.open < MAX_OPEN
    }

    /// Opens an incident unless it is known; false when there is no room for it.
    pub fn open(&mut self, key: IncidentKey, incident: Incident, nodes: usize) -> bool {
        if self.table.contains_key(&key) {
            return true;
        }
        if !self.has_room(&incident.opened_by, nodes) {
            return false;
        }
        *self.open_by.entry(incident.opened_by).or_default() += 1;
        self.open += 1;
        self.by_subject
            .entry(incident.action.subject)
            .or_default()
            .insert(key);
        self.table.insert(key, incident);
        true
    }

    /// Adds a vote to an incident that was opened.
    pub fn add(&mut self, key: &IncidentKey, signed: &SignedVote) {
        if let Some(incident) = self.table.get_mut(key) {
            incident.votes.insert(signed.vote.voter, *signed);
        }
    }

    fn closed(&mut self, opened_by: NodeId) {
        self.open = self.open.saturating_sub(1);
        if let Some(count) = self.open_by.get_mut(&opened_by) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.open_by.remove(&opened_by);
            }
        }
    }

    /// Marks an incident as decided, which frees its place in the quota.
    pub fn decide(&mut self, key: &IncidentKey) {
        let Some(incident) = self.table.get_mut(key) else {
            return;
        };
        if incident.decided {
            return;
        }
        incident.decided = true;
        let opened_by = incident.opened_by;
        self.closed(opened_by);
        if self.table.len() - self.open > MAX_DECIDED {
            let oldest = self
                .table
                .iter()
                .filter(|(_, i)| i.decided)
                .min_by_key(|(_, i)| i.bucket)
                .map(|(key, _)| *key);
            if let Some(key) = oldest {
                self.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &IncidentKey) {
        let Some(incident) = self.table.remove(key) else {
            return;
        };
        if !incident.decided {
            self.closed(incident.opened_by);
        }
        let subject = incident.action.subject;
        if let Some(keys) = self.by_subject.get_mut(&subject) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_subject.remove(&subject);
            }
        }
    }

    /// Drops what is over or belongs to another epoch.
    pub fn prune(&mut self, now: u64, valid_us: u64, epoch_hash: Hash) {
        let over: Vec<IncidentKey> = self
            .table
            .iter()
            .filter(|(_, i)| i.ends_us(valid_us) < now || i.epoch_hash != epoch_hash)
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.remove(&key);
        }
    }

    /// Number of undecided incidents.
    pub const fn open_count(&self) -> usize {
        self.open
    }
}
