//! A thread of its own that reads, merges and writes lists, so that a million entries never hold up the
//! agent's loop. Wishes are kept by name and the latest counts; however many come while it works, one
//! pass answers them.

mod audit;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use tokio::sync::oneshot;

use self::worker::Worker;
use super::{
    kernel::{ListKernel, Replaced},
    name::ListName,
    span::{Address, Range, Span},
    store::{List, Meta, Store},
};
use crate::{addr::Prefix, api::types::ReconcileTotals, clock::Clock};

/// Names one request; later ones are larger.
pub type Ticket = u64;

/// Answers that are remembered.
const MAX_OUTCOMES: usize = 128;
/// Changes that wait to be recorded; the oldest fall out.
const MAX_CHANGES: usize = 256;
/// Lists that may wait to be looked at; more are refused.
const MAX_WISHES: usize = 256;

/// What the allowlist says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// Everything on it: never in the kernel as part of a list.
    pub allowed: Vec<Prefix>,
    /// What of that this node cannot do without: a list that contains it is risky.
    pub protected: Vec<Prefix>,
    /// The kernel's number of this state of the allowlist: while its tables were compiled against the same
    /// one, a listed packet needs no look at the allowlist.
    pub generation: u32,
}

/// What is wished for.
#[derive(Debug, Default)]
struct Wish {
    /// Lists to take over, with the process that staged them.
    load: BTreeMap<ListName, (Ticket, u32)>,
    remove: BTreeMap<ListName, Ticket>,
    /// Requests that a later one on the same list has made pointless.
    overtaken: Vec<Ticket>,
    allow: Option<Allow>,
    /// Write everything again: the wall clock was set.
    again: bool,
    /// Compare the kernel's tables with what should be in them.
    audit: bool,
    stop: bool,
}

impl Wish {
    fn is_empty(&self) -> bool {
        self.load.is_empty()
            && self.remove.is_empty()
            && self.overtaken.is_empty()
            && self.allow.is_none()
            && !self.again
            && !self.audit
            && !self.stop
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Which request.
    pub ticket: Ticket,
    /// What it did to the kernel's tables, or why it did nothing.
    pub result: Result<Replaced, String>,
}

/// What happened to a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It is in force.
    Imported,
    /// It is gone, because somebody wished so.
    Removed,
    /// The last of it has ended, and it is gone.
    Ended,
    /// It is kept, but the kernel did not take all of it.
    NotEnforced,
    /// It was not taken.
    Refused,
}

/// Something for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which list.
    pub name: ListName,
    /// What happened.
    pub what: What,
    /// What is known of the list.
    pub meta: Option<Meta>,
    /// Spans in it.
    pub spans: usize,
    /// Why not, if not.
    pub error: Option<String>,
}

/// One list, as it stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its name.
    pub name: ListName,
    /// The list; `None` if its file cannot be read.
    pub list: Option<Arc<List>>,
    /// What is wrong with its file.
    pub error: Option<String>,
}

/// All lists together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Spans that should be in the kernel: all lists merged, without what is allowed or has ended.
    pub desired: usize,
    /// Of those, in the kernel.
    pub enforced: usize,
    /// Whether the kernel is being written now.
    pub busy: bool,
    /// Why not all are, if they are not and nobody works on it.
    pub error: Option<String>,
    /// Passes since the start: how often everything was merged and compared with the kernel.
    pub passes: u64,
    /// Of those, failed ones.
    pub failed: u64,
    /// What the last one did.
    pub last: Option<Replaced>,
    /// What looking through the kernel's tables has found.
    pub audits: Audits,
}

/// What looking through the kernel's tables has found since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audits {
    /// In the lists' tables.
    pub lists: ReconcileTotals,
    /// In the guards.
    pub guards: ReconcileTotals,
    /// In the kernel's configuration.
    pub config: ReconcileTotals,
}

/// A list that covers something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    /// What is known of the list.
    pub meta: Meta,
    /// First address of the span.
    pub first: std::net::IpAddr,
    /// Its last address.
    pub last: std::net::IpAddr,
    /// When it ends, unix seconds.
    pub expires_unix_s: u64,
    /// Whether it covers all of what was asked for.
    pub whole: bool,
}

#[derive(Debug, Default)]
struct Board {
    lists: BTreeMap<ListName, Arc<List>>,
    /// Files that could not be read.
    damaged: BTreeMap<ListName, String>,
    outcomes: VecDeque<Outcome>,
    changes: VecDeque<Change>,
    totals: Totals,
    last_ticket: Ticket,
}

#[derive(Default)]
struct Shared {
    wish: Mutex<Wish>,
    wake: Condvar,
    board: Mutex<Board>,
    /// Spans in force while the kernel is being written; read at any time, so not on the board.
    written: AtomicUsize,
}

/// What a thread left half done by a panic is still better than an agent that does not answer.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lists, in the agent's hands.
pub struct Lists {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Lists {
    /// Starts the thread. What comes back besides is told when the lists on the disk are in the kernel,
    /// or known not to be.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(
        store: Store,
        kernel: Box<dyn ListKernel>,
        clock: Arc<dyn Clock>,
        allow: Allow,
    ) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let shared = Arc::new(Shared::default());
        let (ready, is_ready) = oneshot::channel();
        let worker = Worker::new(Arc::clone(&shared), store, kernel, clock, allow);
        let thread = thread::Builder::new()
            .name("lists".to_owned())
            .spawn(move || worker.run(ready))?;
        Ok((
            Self {
                shared,
                thread: Some(thread),
            },
            is_ready,
        ))
    }

    fn wish(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut locked(&self.shared.wish));
        self.shared.wake.notify_one();
    }

    fn ticket(&self) -> Ticket {
        let mut board = locked(&self.shared.board);
        board.last_ticket += 1;
        board.last_ticket
    }

    /// Takes over the list that process `staged_by` staged under `name`.
    ///
    /// # Errors
    /// If too many wait already.
    pub fn load(&self, name: ListName, staged_by: u32) -> Result<Ticket, String> {
        let ticket = self.ticket();
        let mut full = false;
        self.wish(|wish| {
            if wish.load.len() >= MAX_WISHES && !wish.load.contains_key(&name) {
                full = true;
                return;
            }
            wish.overtaken.extend(wish.remove.remove(&name));
            let before = wish.load.insert(name, (ticket, staged_by));
            wish.overtaken.extend(before.map(|(ticket, _)| ticket));
        });
        if full {
            return Err(format!(
                "{MAX_WISHES} lists wait to be loaded already; try again in a moment"
            ));
        }
        Ok(ticket)
    }

    /// Ends a list.
    ///
    /// # Errors
    /// If there is no such list.
    pub fn remove(&self, name: &ListName) -> Result<Ticket, String> {
        let known = {
            let board = locked(&self.shared.board);
            board.lists.contains_key(name) || board.damaged.contains_key(name)
        };
        let ticket = self.ticket();
        let mut taken = false;
        self.wish(|wish| {
            let waiting = wish.load.remove(name);
            if !known && waiting.is_none() {
                return;
            }
            wish.overtaken.extend(waiting.map(|(ticket, _)| ticket));
            taken = true;
            wish.overtaken
                .extend(wish.remove.insert(name.clone(), ticket));
        });
        if taken {
            Ok(ticket)
        } else {
            Err(format!(
                "there is no list {name}; `secmesh decisions lists` shows them"
            ))
        }
    }

    /// Tells what is allowed from now on.
    pub fn allow(&self, allow: Allow) {
        self.wish(|wish| wish.allow = Some(allow));
    }

    /// Writes all ends again: the wall clock was set.
    pub fn again(&self) {
        self.wish(|wish| wish.again = true);
    }

    /// Compares the kernel's tables, guards and configuration with what should be in them, in the background; one
    /// comparison at a time.
    pub fn audit(&self) {
        self.wish(|wish| wish.audit = true);
    }

    /// The lists by name.
    pub fn standing(&self) -> Vec<Standing> {
        let board = locked(&self.shared.board);
        let mut all: BTreeMap<&ListName, Standing> = BTreeMap::new();
        for (name, list) in &board.lists {
            all.insert(
                name,
                Standing {
                    name: name.clone(),
                    list: Some(Arc::clone(list)),
                    error: board.damaged.get(name).cloned(),
                },
            );
        }
        for (name, error) in &board.damaged {
            all.entry(name).or_insert_with(|| Standing {
                name: name.clone(),
                list: None,
                error: Some(error.clone()),
            });
        }
        all.into_values().collect()
    }

    /// All lists together.
    pub fn totals(&self) -> Totals {
        let mut totals = locked(&self.shared.board).totals.clone();
        if totals.busy {
            totals.enforced = self
                .shared
                .written
                .load(Ordering::Relaxed)
                .min(totals.desired);
        }
        totals
    }

    /// What became of the last requests.
    pub fn outcomes(&self) -> Vec<Outcome> {
        locked(&self.shared.board)
            .outcomes
            .iter()
            .cloned()
            .collect()
    }

    /// What happened since this was last asked.
    pub fn take_changes(&self) -> Vec<Change> {
        locked(&self.shared.board).changes.drain(..).collect()
    }

    /// The lists that cover `subject` or a part of it, at `now_unix_s`.
    pub fn covering(&self, subject: &Prefix, now_unix_s: u64) -> Vec<Cover> {
        let lists: Vec<Arc<List>> = locked(&self.shared.board).lists.values().cloned().collect();
        let range = Range::from(*subject);
        lists
            .iter()
            .filter_map(|list| match range {
                Range::V4(start, end) => cover(&list.spans.v4, start, end, &list.meta, now_unix_s),
                Range::V6(start, end) => cover(&list.spans.v6, start, end, &list.meta, now_unix_s),
            })
            .collect()
    }

    /// Ends the thread, after the pass that it is in.
    pub fn stop(&mut self) {
        self.wish(|wish| wish.stop = true);
        if let Some(thread) = self.thread.take() {
            // Its panic, if it had one, was printed.
            drop(thread.join());
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        self.stop();
    }
}

fn cover<A: Address>(
    spans: &[Span<A>],
    start: A,
    end: A,
    meta: &Meta,
    now_unix_s: u64,
) -> Option<Cover> {
    let behind = spans.partition_point(|s| s.start <= end);
    let before = spans.partition_point(|s| s.end < start);
    // Of a network's many the first that is still in force; bounded by the entries in that network.
    let span = spans
        .get(before..behind)?
        .iter()
        .find(|s| s.expires_unix_s > now_unix_s)?;
    Some(Cover {
        meta: meta.clone(),
        first: span.start.ip(),
        last: span.end.ip(),
        expires_unix_s: span.expires_unix_s,
        whole: span.start <= start && span.end >= end,
    })
}
