//! Imported lists: what is asked of their thread, and what it says.

use std::sync::Arc;

use serde_json::Value;
use tracing::{error, info};

use super::{AgentError, core::Agent};
use crate::{
    addr::Prefix,
    api::lists::{ListCover, ListOutcome, ListTicket, ListTotals, ListView, ListsView},
    dataplane::ListTables,
    ledger::Record,
    respond::lists::{Allow, Audits, Change, ListName, Lists, NEVER, Standing, Store, What},
};

/// Not possible while the loop runs.
const NOT_YET: &str = "the lists are not loaded yet; try again in a moment";

/// Unix seconds as µs; never stays never.
fn us(seconds: u64) -> u64 {
    if seconds == NEVER {
        NEVER
    } else {
        seconds.saturating_mul(1_000_000)
    }
}

impl Agent {
    /// Brings the lists on the disk to the kernel. The allowlist must be known by now, since it is cut
    /// out of them, and the program not be attached yet.
    pub(super) async fn start_lists(&mut self, tables: ListTables) -> Result<(), AgentError> {
        let store = Store::open(&self.state)?;
        let allow = self.allow_for_lists();
        self.lists_allow = allow.clone();
        let (lists, ready) = Lists::start(store, Box::new(tables), Arc::clone(&self.clock), allow)
            .map_err(|source| AgentError::System {
                what: "starting the thread of the lists",
                source,
            })?;
        self.lists = Some(lists);
        // If the thread is gone, the totals say so.
        drop(ready.await);
        let totals = self.list_totals();
        if let Some(error) = &totals.error {
            error!(%error, desired = totals.desired, enforced = totals.enforced, "lists are not enforced as they should be");
        }
        info!(
            lists = totals.lists,
            entries = totals.enforced,
            "lists loaded"
        );
        Ok(())
    }

    fn allow_for_lists(&self) -> Allow {
        Allow {
            allowed: self.allowlist.prefixes(),
            protected: self.allowlist.builtin(),
            generation: self.allows.generation(),
        }
    }

    /// The allowlist may have changed.
    pub(super) fn tell_lists(&mut self) {
        let allow = self.allow_for_lists();
        if allow != self.lists_allow
            && let Some(lists) = &self.lists
        {
            lists.allow(allow.clone());
            self.lists_allow = allow;
        }
    }

    pub(super) fn list_load(&self, name: ListName, staged_by: u32) -> Result<Value, String> {
        let ticket = self.lists.as_ref().ok_or(NOT_YET)?.load(name, staged_by)?;
        serde_json::to_value(ListTicket { ticket }).map_err(|e| e.to_string())
    }

    pub(super) fn list_remove(&self, name: &ListName) -> Result<Value, String> {
        let ticket = self.lists.as_ref().ok_or(NOT_YET)?.remove(name)?;
        serde_json::to_value(ListTicket { ticket }).map_err(|e| e.to_string())
    }

    pub(super) fn lists_view(&self) -> Result<Value, String> {
        let lists = self.lists.as_ref().ok_or(NOT_YET)?;
        // Who reads that something was done may look for it in the ledger.
        self.record_lists();
        let totals = self.list_totals();
        let view = ListsView {
            lists: lists
                .standing()
                .into_iter()
                .map(|standing| view(standing, &totals))
                .collect(),
            totals,
            outcomes: lists
                .outcomes()
                .into_iter()
                .map(|outcome| {
                    let replaced = outcome.result.as_ref().copied().unwrap_or_default();
                    ListOutcome {
                        ticket: outcome.ticket,
                        added: replaced.added,
                        removed: replaced.removed,
                        kept: replaced.kept,
                        error: outcome.result.err(),
                    }
                })
                .collect(),
        };
        serde_json::to_value(view).map_err(|e| e.to_string())
    }

    pub(super) fn list_totals(&self) -> ListTotals {
        let Some(lists) = &self.lists else {
            return ListTotals::default();
        };
        let standing = lists.standing();
        let totals = lists.totals();
        ListTotals {
            lists: standing.len(),
            damaged: standing.iter().filter(|s| s.list.is_none()).count(),
            desired: totals.desired,
            enforced: totals.enforced,
            busy: totals.busy,
            error: totals.error,
        }
    }

    /// What looking through the kernel's tables has found.
    pub(super) fn list_audits(&self) -> Audits {
        let totals = self.lists.as_ref().map(Lists::totals);
        totals.unwrap_or_default().audits
    }

    /// Counters of the lists, for `status`.
    pub(super) fn list_counters(&self) -> [(&'static str, u64); 4] {
        let totals = self.lists.as_ref().map(Lists::totals).unwrap_or_default();
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        [
            ("list_entries_desired", number(totals.desired)),
            ("list_entries_enforced", number(totals.enforced)),
            ("list_passes", totals.passes),
            ("list_passes_failed", totals.failed),
        ]
    }

    /// The lists that cover `subject` or a part of it.
    pub(super) fn covering_lists(&self, subject: &Prefix) -> Vec<ListCover> {
        let Some(lists) = &self.lists else {
            return Vec::new();
        };
        lists
            .covering(subject, self.clock.unix_us() / 1_000_000)
            .into_iter()
            .map(|cover| ListCover {
                list: cover.meta.name,
                source: cover.meta.source,
                reason: cover.meta.reason,
                first: cover.first,
                last: cover.last,
                expires_unix_us: us(cover.expires_unix_s),
                whole: cover.whole,
            })
            .collect()
    }

    /// Puts what happened to lists into the record.
    pub(super) fn record_lists(&self) {
        let Some(lists) = &self.lists else {
            return;
        };
        for change in lists.take_changes() {
            self.record(&record_of(change));
        }
    }
}

fn record_of(change: Change) -> Record {
    let meta = change.meta;
    Record::List {
        list: change.name.to_string(),
        what: match change.what {
            What::Imported => "imported",
            What::Removed => "removed",
            What::Ended => "ended",
            What::NotEnforced => "not_enforced",
            What::Refused => "refused",
        }
        .to_owned(),
        spans: change.spans,
        source: meta.as_ref().map(|m| m.source.clone()),
        by: meta
            .as_ref()
            .map_or_else(|| "operator".to_owned(), |m| m.operator.clone()),
        overridden: meta.as_ref().is_some_and(|m| m.overridden),
        reason: meta.and_then(|m| m.reason),
        error: change.error,
    }
}

fn view(standing: Standing, totals: &ListTotals) -> ListView {
    let Some(list) = standing.list else {
        return ListView {
            name: standing.name,
            number: 0,
            source: String::new(),
            format: String::new(),
            imported_unix_us: 0,
            ends_unix_us: 0,
            entries: 0,
            total: 0,
            loaded: 0,
            operator: String::new(),
            reason: None,
            overridden: false,
            error: standing.error,
        };
    };
    let total = list.spans.len();
    let meta = &list.meta;
    ListView {
        name: standing.name,
        number: meta.number,
        source: meta.source.clone(),
        format: meta.format.clone(),
        imported_unix_us: meta.imported_unix_us,
        ends_unix_us: us(meta.ends_unix_s),
        entries: meta.entries,
        total,
        loaded: if totals.enforced >= totals.desired {
            total
        } else {
            total * totals.enforced / totals.desired.max(1)
        },
        operator: meta.operator.clone(),
        reason: meta.reason.clone(),
        overridden: meta.overridden,
        error: standing.error.or_else(|| totals.error.clone()),
    }
}
