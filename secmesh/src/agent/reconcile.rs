//! Desired against enforced, all the time: every so often what should be in the kernel's block maps is
//! compared with what is, a little per tick, and put right.

use std::sync::mpsc::{Receiver, TryRecvError};

use secmesh_common::block::origin;
use tracing::{info, warn};

use super::{core::Agent, small_tables::SmallTables};
use crate::{
    addr::Prefix,
    api::types::ReconcileTotals,
    dataplane::Page,
    respond::{Blocks, Kernel, Now, Reconciled},
};

/// Time of a tick (200 ms) that is spent on comparing, ns. An entry costs about a microsecond.
const PER_TICK_NS: u64 = 5_000_000;
/// Entries compared between two looks at the clock.
const SLICE: usize = 512;

/// How far a comparison is.
#[derive(Default)]
enum Phase {
    #[default]
    Idle,
    /// Every desired entry is looked up; the last one that was.
    Desired(Option<Prefix>),
    /// Every entry of the kernel is looked for among the desired ones.
    Kernel(Receiver<Page>),
}

/// The comparison that runs, and what all of them have found.
#[derive(Default)]
pub(super) struct Reconciler {
    phase: Phase,
    begun_ns: u64,
    this_run: Reconciled,
    totals: ReconcileTotals,
    allowlist: ReconcileTotals,
    /// Whether this run has still to look at the allowlist.
    allowlist_due: bool,
    pub small: SmallTables,
}

impl Reconciler {
    pub(super) fn totals(&self) -> ReconcileTotals {
        self.totals
    }

    /// What was found in the kernel's allowlist.
    pub(super) fn allowlist(&self) -> ReconcileTotals {
        self.allowlist
    }

    /// Adds what was found and put right.
    pub(super) fn add(&mut self, done: Reconciled) {
        let sum = |total: &mut u64, n: usize| {
            *total = total.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        };
        sum(&mut self.totals.added, done.added);
        sum(&mut self.totals.removed, done.removed);
        sum(&mut self.totals.failed, done.failed);
        self.this_run.added += done.added;
        self.this_run.removed += done.removed;
        self.this_run.failed += done.failed;
    }
}

/// Removes those of `page` that nobody wants. Entries of an origin that is not this agent's book are left
/// alone: whoever wrote them keeps count of them.
fn remove_strays(blocks: &Blocks, kernel: &mut dyn Kernel, page: &Page) -> Reconciled {
    let mut done = Reconciled::default();
    for (prefix, flags) in page {
        let ours = matches!(
            flags & 0xff,
            origin::MESH | origin::NODE | origin::OPERATOR | origin::QUARANTINE
        );
        if !ours || blocks.is_desired(prefix) {
            continue;
        }
        match kernel.remove_stray(prefix) {
            Ok(true) => done.removed += 1,
            // It went by itself since it was listed.
            Ok(false) => {}
            Err(_) => done.failed += 1,
        }
    }
    done
}

impl Agent {
    /// Goes on with the comparison that runs, or begins one if it is time.
    pub(super) fn reconcile_a_little(&mut self, now: Now) {
        loop {
            let more = self.reconcile_a_slice(now);
            let spent = self.clock.mono_ns().saturating_sub(now.mono_ns);
            if !more || spent >= PER_TICK_NS {
                return;
            }
        }
    }

    /// Whether there is more to do at once.
    fn reconcile_a_slice(&mut self, now: Now) -> bool {
        let every = self.options.config.respond.reconcile;
        let every_ns = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
        let phase = std::mem::take(&mut self.reconciler.phase);
        self.reconciler.phase = match phase {
            Phase::Idle if now.mono_ns.saturating_sub(self.reconciler.begun_ns) < every_ns => {
                Phase::Idle
            }
            Phase::Idle => {
                self.reconciler.begun_ns = now.mono_ns;
                self.reconciler.this_run = Reconciled::default();
                self.reconciler.allowlist_due = true;
                self.reconciler.small.begin();
                // Lists, guards and configuration are looked through by the lists' thread.
                if let Some(lists) = &self.lists {
                    lists.audit();
                }
                Phase::Desired(None)
            }
            phase if self.reconciler.allowlist_due => {
                self.reconcile_allowlist();
                phase
            }
            phase if self.reconciler.small.is_due() => {
                self.reconcile_small_tables();
                phase
            }
            Phase::Desired(after) => {
                let (done, last) = self.blocks.repair(&mut self.table, now, after, SLICE);
                self.reconciler.add(done);
                if done.added > 0 {
                    self.update_sizes();
                }
                match last {
                    Some(last) => Phase::Desired(Some(last)),
                    None => Phase::Kernel(self.lister.start()),
                }
            }
            Phase::Kernel(pages) => match pages.try_recv() {
                Ok(page) => {
                    let done = remove_strays(&self.blocks, &mut self.table, &page);
                    self.reconciler.add(done);
                    if done.removed > 0 {
                        self.update_sizes();
                    }
                    Phase::Kernel(pages)
                }
                Err(TryRecvError::Empty) => {
                    self.reconciler.phase = Phase::Kernel(pages);
                    return false;
                }
                Err(TryRecvError::Disconnected) => {
                    self.finish_reconciling(now);
                    Phase::Idle
                }
            },
        };
        !matches!(self.reconciler.phase, Phase::Idle)
    }

    /// Looks at a slice of the kernel's allowlist.
    fn reconcile_allowlist(&mut self) {
        let wanted = self.allowlist.prefixes();
        let totals = &mut self.reconciler.allowlist;
        match self.allows.audit(&wanted, SLICE) {
            Ok(None) => return,
            Ok(Some(found)) => {
                let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
                totals.runs = totals.runs.saturating_add(1);
                totals.added = totals.added.saturating_add(number(found.added));
                totals.removed = totals.removed.saturating_add(number(found.removed));
                if found.any() {
                    warn!(
                        missing = found.added,
                        left_over = found.removed,
                        "the kernel's allowlist differed from what is desired; put right"
                    );
                    // Its number has changed, and lists are compiled against it.
                    self.tell_lists();
                }
            }
            Err(error) => {
                totals.failed = totals.failed.saturating_add(1);
                warn!(%error, "the kernel's allowlist cannot be compared with what is desired");
            }
        }
        self.reconciler.allowlist_due = false;
    }

    fn finish_reconciling(&mut self, now: Now) {
        let took_ns = now.mono_ns.saturating_sub(self.reconciler.begun_ns);
        self.reconciler.totals.last_ms = took_ns / 1_000_000;
        self.reconciler.totals.runs = self.reconciler.totals.runs.saturating_add(1);
        let Reconciled {
            added,
            removed,
            failed,
        } = self.reconciler.this_run;
        if failed > 0 {
            warn!(
                added,
                removed,
                failed,
                "the kernel's block maps differed from what is desired, and not all could be put right"
            );
        } else if added + removed > 0 {
            info!(
                added,
                removed, "the kernel's block maps differed from what is desired; put right"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use secmesh_common::block::BlockEntry;

    use super::*;
    use crate::{api::types::Origin, dataplane::TableError, respond::Claim};

    #[derive(Default)]
    struct Fake(BTreeMap<Prefix, BlockEntry>);

    impl Kernel for Fake {
        fn put(
            &mut self,
            prefix: &Prefix,
            expires_ns: u64,
            rule: u32,
            flags: u32,
        ) -> Result<(), TableError> {
            let entry = BlockEntry {
                expires_ns,
                rule,
                flags,
                ..BlockEntry::default()
            };
            self.0.insert(*prefix, entry);
            Ok(())
        }
        fn remove(&mut self, prefix: &Prefix) -> Result<(), TableError> {
            self.0.remove(prefix);
            Ok(())
        }
        fn get(&self, prefix: &Prefix) -> Option<BlockEntry> {
            self.0.get(prefix).copied()
        }
    }

    #[test]
    fn strays_of_ours_go_and_those_of_others_stay() {
        let now = Now {
            unix_us: 1,
            mono_ns: 1,
        };
        let (mut blocks, mut kernel) = (Blocks::default(), Fake::default());
        let p = |text: &str| -> Prefix { text.parse().unwrap() };
        let claim = Claim {
            origin: Origin::Operator,
            expires_unix_us: 10,
            rule: 1,
        };
        blocks
            .claim(&mut kernel, now, p("192.0.2.1"), "a".into(), claim)
            .unwrap();
        for (stray, flags) in [("192.0.2.2", origin::MESH), ("192.0.2.3", 77)] {
            kernel.put(&p(stray), 9, 1, flags).unwrap();
        }
        let page: Page = kernel.0.iter().map(|(p, e)| (*p, e.flags)).collect();
        // Listed, and gone since.
        let mut late = page.clone();
        late.push((p("192.0.2.9"), origin::NODE));
        let done = remove_strays(&blocks, &mut kernel, &late);
        assert_eq!(done.removed, 1);
        assert_eq!(
            kernel.0.keys().copied().collect::<Vec<_>>(),
            [p("192.0.2.1"), p("192.0.2.3")]
        );
    }
}
