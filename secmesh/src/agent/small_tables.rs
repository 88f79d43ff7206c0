//! The small tables that the agent wrote, compared with what is in the kernel: watched sources, ports, hot sources,
//! this host's addresses.

use std::collections::BTreeMap;

use tracing::warn;

use super::core::Agent;
use crate::{api::types::ReconcileTotals, dataplane::Differences};

/// Ports read by one call; a millisecond or two.
const PORTS_SLICE: u32 = 8192;
/// Hot slots looked at by one call: each used one is looked for in the block map and in the allowlist.
const HOT_SLICE: u32 = 256;

/// What is to be looked at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Watches,
    Ports(u32),
    Hot(u32),
}

/// How far the comparison is, and what all of them have found.
#[derive(Debug, Default)]
pub(super) struct SmallTables {
    next: Option<Step>,
    totals: BTreeMap<&'static str, ReconcileTotals>,
}

/// The tables' names, in `status` and in the metrics.
const WATCHES: &str = "watches";
const PORTS: &str = "ports";
const HOT: &str = "hot";
const ADDRESSES: &str = "addresses";

impl SmallTables {
    /// Begins at the first table.
    pub fn begin(&mut self) {
        self.next = Some(Step::Watches);
    }

    /// Whether there is something left to look at.
    pub fn is_due(&self) -> bool {
        self.next.is_some()
    }

    /// What was found in each table, by name.
    pub fn totals(&self) -> BTreeMap<String, ReconcileTotals> {
        [WATCHES, PORTS, HOT, ADDRESSES]
            .into_iter()
            .map(|name| {
                let totals = self.totals.get(name).copied().unwrap_or_default();
                (name.to_owned(), totals)
            })
            .collect()
    }

    /// Counts what was found in a part of a table; `done` if it was the last one.
    fn note<E: std::fmt::Display>(
        &mut self,
        table: &'static str,
        found: Result<Differences, E>,
        done: bool,
    ) {
        let totals = self.totals.entry(table).or_default();
        totals.runs = totals.runs.saturating_add(u64::from(done));
        match found {
            Ok(found) => {
                let sum = |total: &mut u64, n: usize| {
                    *total = total.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
                };
                sum(&mut totals.added, found.added);
                sum(&mut totals.removed, found.removed);
                if found.any() {
                    warn!(
                        what = table,
                        missing = found.added,
                        left_over = found.removed,
                        "a table of the kernel's differed from what is desired; put right"
                    );
                }
            }
            Err(error) => {
                totals.failed = totals.failed.saturating_add(1);
                warn!(what = table, %error, "a table of the kernel's cannot be compared with what is desired");
            }
        }
    }
}

impl Agent {
    /// Looks at the next part of the small tables.
    pub(super) fn reconcile_small_tables(&mut self) {
        let small = &mut self.reconciler.small;
        small.next = match small.next {
            None => None,
            Some(Step::Watches) => {
                small.note(WATCHES, self.watches.audit(), true);
                // Addresses are compared whenever they are read from the system, every few seconds.
                let addresses = self.dataplane.take_cookie_differences();
                small.note::<std::convert::Infallible>(ADDRESSES, Ok(addresses), true);
                Some(Step::Ports(0))
            }
            Some(Step::Ports(at)) => {
                let cookies = self.dataplane.known_cookie_ports();
                let found = self.ports.audit(at, PORTS_SLICE, cookies);
                let next = at.saturating_add(PORTS_SLICE);
                let done = next > u32::from(u16::MAX);
                small.note(PORTS, found, done);
                Some(if done {
                    Step::Hot(0)
                } else {
                    Step::Ports(next)
                })
            }
            Some(Step::Hot(at)) => {
                let allowlist = &self.allowlist;
                let found = self
                    .table
                    .audit_hot(at, HOT_SLICE, |source| allowlist.covers(source).is_some());
                let next = at.saturating_add(HOT_SLICE);
                let done = next >= self.table.hot_slots();
                small.note(HOT, found, done);
                (!done).then_some(Step::Hot(next))
            }
        };
    }
}
