//! The thread that does the work.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    Allow, Change, MAX_CHANGES, MAX_OUTCOMES, Outcome, Shared, Ticket, What, Wish,
    audit::{Auditing, REST},
    locked,
};
use crate::{
    clock::Clock,
    respond::{
        Now,
        lists::{
            format::MAX_ENTRIES,
            import::{MAX_RISKS, contained},
            kernel::{ListKernel, Replaced},
            merge::{Compiled, compile, ends},
            name::ListName,
            store::{List, MAX_LISTS, Store},
        },
    },
};

/// What has ended is taken out of the kernel at most this often, seconds. It blocks nothing any more; it
/// only takes room.
const SWEEP_EVERY_S: u64 = 30;
/// What has ended is taken out after this time at the latest, seconds.
const SWEEP_WITHIN_S: u64 = 600;
/// One in so many has to have ended for a sweep before that time.
const SWEEP_SHARE: usize = 100;
/// How long after a failed pass the next one tries again, seconds.
const RETRY_S: u64 = 60;
/// Longest sleep; the wall clock may be set meanwhile.
const LONGEST_SLEEP_S: u64 = 60;

/// What the thread owns.
pub struct Worker {
    pub(super) shared: Arc<Shared>,
    store: Store,
    pub(super) kernel: Box<dyn ListKernel>,
    pub(super) clock: Arc<dyn Clock>,
    allow: Allow,
    lists: BTreeMap<ListName, Arc<List>>,
    /// When there is something to do even if nobody wishes for it, unix seconds.
    due_unix_s: Option<u64>,
    pub(super) auditing: Option<Auditing>,
}

/// An answer that is still to be given: to whom, about what.
type Answer = (Ticket, ListName, What, Result<(), String>);

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        store: Store,
        kernel: Box<dyn ListKernel>,
        clock: Arc<dyn Clock>,
        allow: Allow,
    ) -> Self {
        Self {
            shared,
            store,
            kernel,
            clock,
            allow,
            lists: BTreeMap::new(),
            due_unix_s: None,
            auditing: None,
        }
    }

    pub fn run(mut self, ready: oneshot::Sender<()>) {
        self.read_all();
        drop(self.enforce());
        // Nobody may wait for it.
        let _ = ready.send(());
        loop {
            let wish = self.wait();
            if wish.stop {
                return;
            }
            if wish.audit && self.auditing.is_none() {
                self.auditing = Some(Auditing::begin(self.clock.mono_ns()));
            }
            let idle = Wish {
                audit: false,
                ..wish
            };
            if !idle.is_empty() || self.is_due() {
                self.fulfil(idle);
            }
            self.audit_a_little();
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Wish {
        let mut wish = locked(&self.shared.wish);
        let mut rested = false;
        loop {
            let now = self.clock.unix_us() / 1_000_000;
            let left = self.due_unix_s.map(|due| due.saturating_sub(now));
            if !wish.is_empty() || left == Some(0) || rested {
                return std::mem::take(&mut *wish);
            }
            let mut sleep = Duration::from_secs(left.unwrap_or(u64::MAX).min(LONGEST_SLEEP_S));
            if self.auditing.is_some() {
                sleep = REST;
                rested = true;
            }
            (wish, _) = self
                .shared
                .wake
                .wait_timeout(wish, sleep)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read_all(&mut self) {
        if let Err(error) = self.store.sweep() {
            warn!(%error, "leftovers among the lists stay");
        }
        let names = match self.store.names() {
            Ok(names) => names,
            Err(error) => {
                error!(%error, "the lists cannot be read; none is enforced");
                locked(&self.shared.board).totals.error = Some(error.to_string());
                return;
            }
        };
        for (at, name) in names.into_iter().enumerate() {
            let result = if at < MAX_LISTS {
                self.store.load(&name).map_err(|e| e.to_string())
            } else {
                Err(format!("there are more than {MAX_LISTS} lists"))
            };
            match result.and_then(|list| self.fits(&list).map(|()| list)) {
                Ok(list) => {
                    info!(list = %name, spans = list.spans.len(), "list read");
                    self.lists.insert(name, Arc::new(list));
                }
                Err(error) => {
                    error!(list = %name, %error, "list NOT enforced");
                    locked(&self.shared.board).damaged.insert(name, error);
                }
            }
        }
        self.publish_lists();
    }

    fn publish_lists(&self) {
        locked(&self.shared.board).lists.clone_from(&self.lists);
    }

    fn fulfil(&mut self, wish: Wish) {
        let mut answers: Vec<Answer> = Vec::new();
        let mut changed = wish.again || self.is_due();
        if let Some(allow) = wish.allow {
            changed |=
                (&allow.allowed, allow.generation) != (&self.allow.allowed, self.allow.generation);
            self.allow = allow;
        }
        for (name, ticket) in wish.remove {
            let result = self.remove(&name);
            changed |= result.is_ok();
            answers.push((ticket, name, What::Removed, result));
        }
        for (name, (ticket, staged_by)) in wish.load {
            let result = self.take_over(&name, staged_by);
            if let Err(error) = self.store.unstage(&name, staged_by) {
                warn!(%error, "a staged list stays on the disk until the next start");
            }
            changed |= result.is_ok();
            answers.push((ticket, name, What::Imported, result));
        }
        self.publish_lists();
        let done = if changed {
            self.enforce()
        } else {
            Ok(Replaced::default())
        };
        self.answer(wish.overtaken, answers, &done);
    }

    fn answer(
        &self,
        overtaken: Vec<Ticket>,
        answers: Vec<Answer>,
        done: &Result<Replaced, String>,
    ) {
        let mut outcomes: Vec<Outcome> = overtaken
            .into_iter()
            .map(|ticket| Outcome {
                ticket,
                result: Err("a later request on the same list took its place".to_owned()),
            })
            .collect();
        for (ticket, name, what, result) in answers {
            let error = match (&result, done) {
                (Err(error), _) => Some((What::Refused, error.clone())),
                (Ok(()), Err(error)) => Some((What::NotEnforced, error.clone())),
                (Ok(()), Ok(_)) => None,
            };
            let list = self.lists.get(&name);
            self.note(Change {
                what: error.as_ref().map_or(what, |(what, _)| *what),
                meta: list.map(|l| l.meta.clone()),
                spans: list.map_or(0, |l| l.spans.len()),
                error: error.as_ref().map(|(_, error)| error.clone()),
                name,
            });
            outcomes.push(Outcome {
                ticket,
                result: match error {
                    Some((_, error)) => Err(error),
                    None => done.clone(),
                },
            });
        }
        let mut board = locked(&self.shared.board);
        board.outcomes.extend(outcomes);
        while board.outcomes.len() > MAX_OUTCOMES {
            board.outcomes.pop_front();
        }
    }

    fn remove(&mut self, name: &ListName) -> Result<(), String> {
        // The file first: what is gone from it must not come back with the next start.
        self.store.remove(name).map_err(|e| e.to_string())?;
        self.lists.remove(name);
        locked(&self.shared.board).damaged.remove(name);
        Ok(())
    }

    fn take_over(&mut self, name: &ListName, staged_by: u32) -> Result<(), String> {
        let mut list = self
            .store
            .staged(name, staged_by)
            .map_err(|e| e.to_string())?;
        if !list.meta.overridden {
            let risks = contained(&list.spans, &self.allow.protected);
            if risks.entries > 0 {
                let named: Vec<String> = risks
                    .named
                    .iter()
                    .take(MAX_RISKS)
                    .map(|(prefix, risk)| format!("{prefix}: {risk}"))
                    .collect();
                return Err(format!(
                    "the list {name} is risky: {}\n  remedy: take that out, or use --override-risky --reason TEXT",
                    named.join("; ")
                ));
            }
        }
        self.fits(&list)?;
        let number = self
            .number(name)
            .ok_or_else(|| format!("there are {MAX_LISTS} lists already; remove one first"))?;
        list.meta.number = number;
        list.spans.v4.iter_mut().for_each(|s| s.list = number);
        list.spans.v6.iter_mut().for_each(|s| s.list = number);
        // Asked before the old list is given up: one that does not fit changes nothing.
        let mut lists = self.lists.clone();
        let list = Arc::new(list);
        lists.insert(name.clone(), Arc::clone(&list));
        self.kernel
            .check(&self.compiled(&lists, self.now_s()))
            .map_err(|e| e.to_string())?;
        self.store.keep(&list).map_err(|e| e.to_string())?;
        locked(&self.shared.board).damaged.remove(name);
        self.lists = lists;
        Ok(())
    }

    /// Whether a list fits beside the others.
    fn fits(&self, list: &List) -> Result<(), String> {
        let others: usize = self
            .lists
            .iter()
            .filter(|(name, _)| **name != list.meta.name)
            .map(|(_, l)| l.spans.len())
            .sum();
        let all = others + list.spans.len();
        if all > MAX_ENTRIES {
            return Err(format!(
                "with the list {} there would be {all} entries in all lists, and at most {MAX_ENTRIES} fit; remove a list first",
                list.meta.name
            ));
        }
        Ok(())
    }

    /// The number of a list: the one that it had, or the lowest that is free.
    fn number(&self, name: &ListName) -> Option<u16> {
        if let Some(list) = self.lists.get(name) {
            return Some(list.meta.number);
        }
        let last = u16::try_from(MAX_LISTS).unwrap_or(u16::MAX);
        (1..=last).find(|n| self.lists.values().all(|l| l.meta.number != *n))
    }

    fn is_due(&self) -> bool {
        self.due_unix_s.is_some_and(|due| due <= self.now_s())
    }

    fn now_s(&self) -> u64 {
        self.clock.unix_us() / 1_000_000
    }

    fn compiled(&self, lists: &BTreeMap<ListName, Arc<List>>, now_s: u64) -> Compiled {
        compile(lists.values().map(|l| &l.spans), &self.allow.allowed, now_s)
    }

    /// Gives up lists of which nothing is left.
    fn forget_ended(&mut self, now_s: u64) {
        let ended: Vec<ListName> = self
            .lists
            .iter()
            .filter(|(_, list)| list.meta.ends_unix_s <= now_s)
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            info!(list = %name, "list ended");
            let list = self.lists.remove(&name);
            let error = self.store.remove(&name).err().map(|e| e.to_string());
            self.note(Change {
                what: What::Ended,
                meta: list.map(|l| l.meta.clone()),
                spans: 0,
                error,
                name,
            });
        }
        self.publish_lists();
    }

    /// Keeps a change for the record.
    fn note(&self, change: Change) {
        let mut board = locked(&self.shared.board);
        if board.changes.len() >= MAX_CHANGES {
            board.changes.pop_front();
        }
        board.changes.push_back(change);
    }

    /// Makes the kernel hold what the lists say.
    fn enforce(&mut self) -> Result<Replaced, String> {
        let now = Now {
            unix_us: self.clock.unix_us(),
            mono_ns: self.clock.mono_ns(),
        };
        let now_s = now.unix_us / 1_000_000;
        self.forget_ended(now_s);
        let compiled = self.compiled(&self.lists, now_s);
        self.shared.written.store(0, Ordering::Relaxed);
        {
            let mut board = locked(&self.shared.board);
            board.totals.busy = true;
            board.totals.desired = compiled.len();
        }
        let written = &self.shared.written;
        let result = self
            .kernel
            .replace(&compiled, self.allow.generation, now, &mut |done| {
                written.store(done, Ordering::Relaxed);
            });
        self.due_unix_s = match &result {
            Ok(_) => due(ends(&compiled), now_s),
            Err(_) => Some(now_s.saturating_add(RETRY_S)),
        };
        let mut board = locked(&self.shared.board);
        let totals = &mut board.totals;
        totals.busy = false;
        totals.passes += 1;
        match result {
            Ok(replaced) => {
                info!(
                    spans = compiled.len(),
                    added = replaced.added,
                    removed = replaced.removed,
                    kept = replaced.kept,
                    "lists are in the kernel"
                );
                totals.enforced = compiled.len();
                totals.error = None;
                totals.last = Some(replaced);
                Ok(replaced)
            }
            Err(error) => {
                error!(%error, "the lists are NOT in the kernel as they should be; tried again in {RETRY_S} s");
                totals.enforced = self
                    .shared
                    .written
                    .load(Ordering::Relaxed)
                    .min(compiled.len());
                totals.failed += 1;
                totals.error = Some(error.to_string());
                Err(error.to_string())
            }
        }
    }
}

/// When to take out what will have ended: when it is worth it, or late.
fn due(mut ends: Vec<u64>, now_s: u64) -> Option<u64> {
    let first = *ends.iter().min()?;
    // Less than their number, which is not 0.
    let share = ends.len() / SWEEP_SHARE;
    let (_, worth, _) = ends.select_nth_unstable(share);
    let when = (*worth).min(first.saturating_add(SWEEP_WITHIN_S));
    Some(when.max(now_s.saturating_add(SWEEP_EVERY_S)))
}

#[cfg(test)]
mod tests {
    use super::due;

    #[test]
    fn ended_entries_are_taken_out_in_batches() {
        assert_eq!(due(Vec::new(), 100), None);
        assert_eq!(due(vec![500], 100), Some(500));
        assert_eq!(
            due(vec![101], 100),
            Some(130),
            "not more often than every 30 s"
        );
        // A thousand that end second by second: ten at a time.
        assert_eq!(due((1000..2000).collect(), 100), Some(1010));
        // Thousands with hours between: not later than ten minutes.
        assert_eq!(due((1..1000).map(|n| n * 3600).collect(), 100), Some(4200));
    }
}
