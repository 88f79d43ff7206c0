//! The book of decisions: what was decided, by whom, and what became of it here.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    addr::Prefix,
    api::types::{CertificateView, DecisionScope, DecisionState, Origin, VoteView},
    mesh::vote::AttackClass,
};

use super::blocks::end_after_step;

/// Decisions that are over and still shown.
const MAX_ENDED: usize = 10_000;

/// One decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// Whom it concerns.
    pub subject: Prefix,
    /// Attack class.
    pub class: AttackClass,
    /// Whom it binds.
    pub scope: DecisionScope,
    /// Whose it was.
    pub origin: Origin,
    /// What became of it.
    pub state: DecisionState,
    /// The incident it answers.
    pub incident: Option<String>,
    /// Why, where somebody said.
    pub reason: Option<String>,
    /// When this node decided or first heard of it.
    pub created_unix_us: u64,
    /// When the certificate was complete here.
    pub certified_unix_us: Option<u64>,
    /// When it went into the kernel's map.
    pub enforced_unix_us: Option<u64>,
    /// When it ends.
    pub expires_unix_us: u64,
    /// The certificate's votes.
    pub votes: Vec<VoteView>,
    /// The certificate's check.
    pub certificate: Option<CertificateView>,
    /// The number in the map entry.
    pub rule: u32,
    /// What the map entry had counted when the decision ended: packets and bytes.
    pub final_hits: Option<(u64, u64)>,
}

/// All decisions, bounded.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    ended: VecDeque<String>,
    next_rule: u32,
}

impl Book {
    /// The number for the next map entry; never 0.
    pub fn next_rule(&mut self) -> u32 {
        self.next_rule = self.next_rule.wrapping_add(1).max(1);
        self.next_rule
    }

    /// Adds a decision, or replaces the one with its id.
    pub fn put(&mut self, entry: Entry) {
        self.next_rule = self.next_rule.max(entry.rule);
        if entry.state != DecisionState::Active {
            self.ended.push_back(entry.id.clone());
        }
        self.entries.insert(entry.id.clone(), entry);
        self.forget();
    }

    /// Ends a decision. Returns whether it was active.
    pub fn end(&mut self, id: &str, state: DecisionState, hits: Option<(u64, u64)>) -> bool {
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        if entry.state != DecisionState::Active {
            return false;
        }
        entry.state = state;
        entry.final_hits = hits;
        self.ended.push_back(id.to_owned());
        self.forget();
        true
    }

    /// The wall clock was set from `before` to `after` (unix µs): active decisions keep what they have left,
    /// see [`super::blocks::end_after_step`].
    pub fn clock_was_set(&mut self, before: u64, after: u64) {
        let active: Vec<Entry> = self.active().cloned().collect();
        for mut entry in active {
            entry.expires_unix_us = end_after_step(entry.expires_unix_us, before, after);
            self.put(entry);
        }
    }

    /// All decisions, newest first.
    pub fn newest_first(&self) -> Vec<&Entry> {
        let mut all: Vec<&Entry> = self.entries.values().collect();
        all.sort_by(|a, b| {
            b.created_unix_us
                .cmp(&a.created_unix_us)
                .then(a.id.cmp(&b.id))
        });
        all
    }

    /// Active decisions on exactly this subject.
    pub fn active_on<'a>(&'a self, subject: &'a Prefix) -> impl Iterator<Item = &'a Entry> {
        self.entries
            .values()
            .filter(move |e| e.subject == *subject && e.state == DecisionState::Active)
    }

    /// Active decisions.
    pub fn active(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .values()
            .filter(|e| e.state == DecisionState::Active)
    }

    fn forget(&mut self) {
        while self.ended.len() > MAX_ENDED {
            if let Some(id) = self.ended.pop_front()
                && self
                    .entries
                    .get(&id)
                    .is_some_and(|e| e.state != DecisionState::Active)
            {
                self.entries.remove(&id);
            }
        }
    }
}
