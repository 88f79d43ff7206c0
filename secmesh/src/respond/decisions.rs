//! The book of decisions: what was decided, by whom, and what became of it here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// What made it risky, where an operator insisted (`--override-risky`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
    /// What the map entry had counted when the decision ended: packets and bytes.
    pub final_hits: Option<(u64, u64)>,
}

/// All decisions, bounded.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    /// Active decisions by subject: networks directly before what they contain.
    by_subject: BTreeSet<(Prefix, String)>,
    /// Active decisions of this node alone by their end.
    own_by_end: BTreeSet<(u64, String)>,
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
        if let Some(before) = self.entries.remove(&entry.id) {
            self.unindex(&before);
        }
        if entry.state == DecisionState::Active {
            self.by_subject.insert((entry.subject, entry.id.clone()));
            if entry.origin == Origin::Unilateral {
                self.own_by_end
                    .insert((entry.expires_unix_us, entry.id.clone()));
            }
        } else {
            self.ended.push_back(entry.id.clone());
        }
        self.entries.insert(entry.id.clone(), entry);
        self.forget();
    }

    fn unindex(&mut self, entry: &Entry) {
        self.by_subject.remove(&(entry.subject, entry.id.clone()));
        self.own_by_end
            .remove(&(entry.expires_unix_us, entry.id.clone()));
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
        let key = (entry.subject, id.to_owned());
        self.by_subject.remove(&key);
        self.own_by_end.remove(&(entry.expires_unix_us, key.1));
        self.ended.push_back(id.to_owned());
        self.forget();
        true
    }

    /// The wall clock was set from `before` to `after` (unix µs): active decisions keep what they have left,
    /// see [`super::blocks::end_after_step`].
    pub fn clock_was_set(&mut self, before: u64, after: u64) {
        let active: Vec<Entry> = self
            .entries
            .values()
            .filter(|e| e.state == DecisionState::Active)
            .cloned()
            .collect();
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
        self.active_in(subject)
            .take_while(move |e| e.subject == *subject)
    }

    /// Active decisions on this subject and on what it contains, in the order of their subjects.
    pub fn active_in<'a>(&'a self, subject: &'a Prefix) -> impl Iterator<Item = &'a Entry> {
        self.by_subject
            .range((*subject, String::new())..)
            .take_while(|(prefix, _)| subject.contains(prefix))
            .filter_map(|(_, id)| self.entries.get(id))
    }

    /// Active decisions on anything that shares an address with this subject.
    pub fn active_around<'a>(&'a self, subject: &'a Prefix) -> impl Iterator<Item = &'a Entry> {
        let around = (0..subject.len())
            .filter_map(|len| Prefix::truncating(subject.addr(), len).ok())
            .flat_map(|outer| {
                self.by_subject
                    .range((outer, String::new())..)
                    .take_while(move |(prefix, _)| *prefix == outer)
            })
            .filter_map(|(_, id)| self.entries.get(id));
        around.chain(self.active_in(subject))
    }

    /// Active decisions that this node took on its own right and whose time is over at `now`.
    pub fn own_due(&self, now_unix_us: u64) -> impl Iterator<Item = &Entry> {
        self.own_by_end
            .iter()
            .take_while(move |(end, _)| *end <= now_unix_us)
            .filter_map(|(_, id)| self.entries.get(id))
    }

    /// Number of active decisions by origin, in the order quorum, unilateral, operator.
    pub fn active_by_origin(&self) -> BTreeMap<Origin, usize> {
        let mut counts = BTreeMap::new();
        for (_, id) in &self.by_subject {
            if let Some(entry) = self.entries.get(id) {
                *counts.entry(entry.origin).or_default() += 1;
            }
        }
        counts
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

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn entry(id: &str, subject: &str, origin: Origin, end: u64) -> Entry {
        Entry {
            id: id.to_owned(),
            subject: p(subject),
            class: AttackClass::Manual,
            scope: DecisionScope::Node,
            origin,
            state: DecisionState::Active,
            incident: None,
            reason: None,
            created_unix_us: 1,
            certified_unix_us: None,
            enforced_unix_us: None,
            expires_unix_us: end,
            votes: Vec::new(),
            certificate: None,
            rule: 1,
            overridden: Vec::new(),
            final_hits: None,
        }
    }

    fn ids<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<&'a str> {
        entries.map(|e| e.id.as_str()).collect()
    }

    #[test]
    fn active_decisions_are_found_by_subject_and_those_of_this_node_by_their_end() {
        let mut book = Book::default();
        for (id, subject, origin, end) in [
            ("a", "192.0.2.0/24", Origin::Operator, 50),
            ("b", "192.0.2.1", Origin::Unilateral, 20),
            ("c", "192.0.2.1", Origin::Quorum, 30),
            ("d", "192.0.3.1", Origin::Unilateral, 10),
            ("e", "2001:db8::1", Origin::Unilateral, 40),
        ] {
            book.put(entry(id, subject, origin, end));
        }
        assert_eq!(ids(book.active_on(&p("192.0.2.1"))), ["b", "c"]);
        assert_eq!(ids(book.active_on(&p("192.0.2.0/25"))), [""; 0]);
        assert_eq!(
            ids(book.active_in(&p("192.0.2.0/23"))),
            ["a", "b", "c", "d"]
        );
        assert_eq!(ids(book.active_around(&p("192.0.2.1"))), ["a", "b", "c"]);
        assert_eq!(ids(book.own_due(20)), ["d", "b"]);

        assert!(book.end("b", DecisionState::Ended, None));
        assert!(!book.end("b", DecisionState::Ended, None));
        assert_eq!(ids(book.active_on(&p("192.0.2.1"))), ["c"]);
        assert_eq!(ids(book.own_due(20)), ["d"]);
        // The same id again, with another end and of no origin that is indexed by it.
        book.put(entry("d", "192.0.3.1", Origin::Quorum, 90));
        assert_eq!(ids(book.own_due(1000)), ["e"]);
        assert_eq!(book.active_by_origin()[&Origin::Quorum], 2);
        let refused = Entry {
            state: DecisionState::Refused,
            ..entry("f", "192.0.2.7", Origin::Quorum, 90)
        };
        book.put(refused);
        assert_eq!(ids(book.active_on(&p("192.0.2.7"))), [""; 0]);
    }
}
