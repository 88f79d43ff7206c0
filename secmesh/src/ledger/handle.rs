//! The ledger for async callers: a thread of its own, and many appends per sync.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::LedgerError;
use super::checkpoint::SignedCheckpoint;
use super::record::Record;
use super::writer::{Ledger, encode};
use crate::clock::Clock;
use crate::merkle::Hash;

/// Most records waiting for the writer.
const QUEUE: usize = 4096;
/// Most bytes of records waiting for the writer, in KiB.
const QUEUE_KIB: usize = 16 * 1024;
/// Most records put on the disk with one sync.
const BATCH: usize = 512;
/// How long the disk has time for records that nobody waits for. A vote that has to be on the disk before it leaves
/// would otherwise wait for the syncs of what was recorded around it; so it takes that along instead. They are
/// written at once: only the end of the machine can lose them.
const LAZY_NS: u64 = 100_000_000;

/// Whether the ledger takes records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerState {
    /// It does.
    Ok,
    /// It does not, because of this; nothing that must be recorded first may be done.
    Failed(String),
}

/// How the ledger is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStatus {
    /// Whether it takes records.
    pub state: LedgerState,
    /// Entries that are on the disk.
    pub entries: u64,
    /// Root of the Merkle tree over them.
    pub head: [u8; 32],
    /// Records not taken since the start, because the queue was full or the ledger had failed.
    pub dropped: u64,
    /// Records waiting.
    pub queued: usize,
    /// Times that the disk was waited for, since the start.
    pub syncs: u64,
}

#[derive(Debug)]
struct Shared {
    durable: Mutex<(LedgerState, u64, [u8; 32])>,
    dropped: AtomicU64,
    syncs: AtomicU64,
}

impl Shared {
    fn set(&self, state: LedgerState, ledger: &Ledger) {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        self.syncs.store(ledger.syncs(), Ordering::Relaxed);
        if state == LedgerState::Ok {
            *durable = (state, ledger.entries(), ledger.head());
        } else {
            durable.0 = state;
        }
    }

    fn failed(&self) -> Option<LedgerError> {
        match &self
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
        {
            LedgerState::Ok => None,
            LedgerState::Failed(why) => Some(LedgerError::Failed(why.clone())),
        }
    }
}

type Reply = oneshot::Sender<Result<u64, LedgerError>>;

#[derive(Debug)]
enum Command {
    Append {
        time_unix_us: u64,
        kind: u8,
        json: Vec<u8>,
        reply: Option<Reply>,
        _space: OwnedSemaphorePermit,
    },
    Publish {
        unix_us: u64,
        reply: oneshot::Sender<Result<SignedCheckpoint, LedgerError>>,
    },
    Consistency {
        old: u64,
        new: u64,
        reply: oneshot::Sender<Result<Vec<Hash>, LedgerError>>,
    },
    Cosigned(Box<SignedCheckpoint>),
    Close(oneshot::Sender<()>),
}

/// Records things from async code. Cheap to clone; the writer ends when all clones are gone, having
/// written what was queued.
#[derive(Clone)]
pub struct LedgerHandle {
    queue: mpsc::Sender<Command>,
    space: Arc<Semaphore>,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
}

impl LedgerHandle {
    /// Starts the writer's thread.
    ///
    /// # Errors
    /// [`LedgerError::Failed`] if the system gives no thread.
    pub fn start(ledger: Ledger, clock: Arc<dyn Clock>) -> Result<Self, LedgerError> {
        let (handle, commands) = Self::unattended((ledger.entries(), ledger.head()), clock);
        let (theirs, time) = (Arc::clone(&handle.shared), Arc::clone(&handle.clock));
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || {
                // For the time: it waits for records, or for the moment when those it has are due.
                match Builder::new_current_thread().enable_time().build() {
                    Ok(runtime) => {
                        runtime.block_on(write_all(ledger, commands, &theirs, time.as_ref()));
                    }
                    Err(error) => {
                        let why = format!("cannot start its thread: {error}");
                        tracing::error!(error = %why, "the ledger failed; this node signs no votes until it is restarted");
                        theirs.set(LedgerState::Failed(why), &ledger);
                    }
                }
            })
            .map_err(|e| LedgerError::Failed(format!("cannot start its thread: {e}")))?;
        Ok(handle)
    }

    /// A handle, and the queue that nobody takes from yet.
    fn unattended(at: (u64, [u8; 32]), clock: Arc<dyn Clock>) -> (Self, mpsc::Receiver<Command>) {
        let (queue, commands) = mpsc::channel(QUEUE);
        let durable = Mutex::new((LedgerState::Ok, at.0, at.1));
        let shared = Arc::new(Shared {
            durable,
            dropped: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        });
        (
            Self {
                queue,
                space: Arc::new(Semaphore::new(QUEUE_KIB)),
                shared,
                clock,
            },
            commands,
        )
    }

    /// A handle whose writer stands still for as long as the second value lives.
    #[cfg(test)]
    pub(super) fn stalled(clock: Arc<dyn Clock>) -> (Self, impl Sized) {
        Self::unattended((0, [0; 32]), clock)
    }

    /// Records without waiting, not even for the disk. A record that is not taken is counted in
    /// [`LedgerStatus::dropped`].
    ///
    /// # Errors
    /// [`LedgerError::QueueFull`], [`LedgerError::Failed`], [`LedgerError::TooLarge`],
    /// [`LedgerError::Closed`].
    pub fn append(&self, record: &Record) -> Result<(), LedgerError> {
        self.counted(self.try_enqueue(record, None))
    }

    /// Records, waiting for a place in the queue but not for the disk.
    ///
    /// # Errors
    /// As [`LedgerHandle::append`], but never [`LedgerError::QueueFull`].
    pub async fn append_waiting(&self, record: &Record) -> Result<(), LedgerError> {
        let result = self.enqueue(record, None).await;
        self.counted(result)
    }

    /// Records, and returns the entry's number once it is on the disk. For what must be remembered
    /// before it is done: a node's own votes.
    ///
    /// # Errors
    /// As [`LedgerHandle::append_waiting`], and an I/O error. The record then counts as not made.
    pub async fn append_durable(&self, record: &Record) -> Result<u64, LedgerError> {
        let (reply, answer) = oneshot::channel();
        let result = match self.enqueue(record, Some(reply)).await {
            Ok(()) => answer.await.unwrap_or(Err(LedgerError::Closed)),
            Err(e) => Err(e),
        };
        self.counted(result)
    }

    /// As [`LedgerHandle::append_durable`], in two steps: the record is queued on return, and the
    /// answer comes when it is on the disk. For a caller that goes on with other things meanwhile and
    /// holds back only what must not happen before. An answer that never comes ([`oneshot`]'s error)
    /// is a no.
    ///
    /// # Errors
    /// As [`LedgerHandle::append`].
    pub fn append_pending(
        &self,
        record: &Record,
    ) -> Result<oneshot::Receiver<Result<u64, LedgerError>>, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.counted(self.try_enqueue(record, Some(reply)))?;
        Ok(answer)
    }

    /// Signs and stores a checkpoint of everything queued before; the last one again when nothing
    /// came since.
    ///
    /// # Errors
    /// As [`Ledger::publish`], and [`LedgerError::Closed`].
    pub async fn publish(&self) -> Result<SignedCheckpoint, LedgerError> {
        let unix_us = self.clock.unix_us();
        self.ask(|reply| Command::Publish { unix_us, reply }).await
    }

    /// See [`Ledger::consistency`].
    ///
    /// # Errors
    /// As there, and [`LedgerError::Closed`].
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, LedgerError> {
        self.ask(|reply| Command::Consistency { old, new, reply })
            .await
    }

    /// See [`Ledger::cosigned`]. Not waited for; a cosignature that is lost in a crash is asked for
    /// again with the next checkpoint.
    ///
    /// # Errors
    /// [`LedgerError::Closed`].
    pub async fn cosigned(&self, signed: SignedCheckpoint) -> Result<(), LedgerError> {
        self.queue
            .send(Command::Cosigned(Box::new(signed)))
            .await
            .map_err(|_| LedgerError::Closed)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Command,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.queue
            .send(command(reply))
            .await
            .map_err(|_| LedgerError::Closed)?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// How the ledger is doing.
    pub fn status(&self) -> LedgerStatus {
        let (state, entries, head) = self
            .shared
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        LedgerStatus {
            state,
            entries,
            head,
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            queued: QUEUE.saturating_sub(self.queue.capacity()),
            syncs: self.shared.syncs.load(Ordering::Relaxed),
        }
    }

    /// Writes what is queued and stops the writer, for all clones. Returns when all is on the disk
    /// (or the ledger has failed, see [`LedgerHandle::status`]).
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Command::Close(done)).await.is_ok() {
            // An error means that the writer is gone already, which is what was asked for.
            let _ = wait.await;
        }
    }

    fn try_enqueue(&self, record: &Record, reply: Option<Reply>) -> Result<(), LedgerError> {
        let json = encode(record)?;
        self.shared.failed().map_or(Ok(()), Err)?;
        let space = Arc::clone(&self.space)
            .try_acquire_many_owned(kib(&json))
            .map_err(|_| LedgerError::QueueFull)?;
        self.queue
            .try_send(self.command(record, json, reply, space))
            .map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => LedgerError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => LedgerError::Closed,
            })
    }

    async fn enqueue(&self, record: &Record, reply: Option<Reply>) -> Result<(), LedgerError> {
        let json = encode(record)?;
        self.shared.failed().map_or(Ok(()), Err)?;
        let space = Arc::clone(&self.space)
            .acquire_many_owned(kib(&json))
            .await
            .map_err(|_| LedgerError::Closed)?;
        self.queue
            .send(self.command(record, json, reply, space))
            .await
            .map_err(|_| LedgerError::Closed)
    }

    fn command(
        &self,
        record: &Record,
        json: Vec<u8>,
        reply: Option<Reply>,
        space: OwnedSemaphorePermit,
    ) -> Command {
        let time_unix_us = self.clock.unix_us();
        Command::Append {
            time_unix_us,
            kind: record.kind(),
            json,
            reply,
            _space: space,
        }
    }

    fn counted<T>(&self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if result.is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// Space a record takes in the queue; at most 257.
fn kib(json: &[u8]) -> u32 {
    u32::try_from(json.len() / 1024)
        .unwrap_or(u32::MAX)
        .saturating_add(1)
}

/// The next records; none when there will be no more, or when what is written is due on the disk, in `left`.
async fn next(
    commands: &mut mpsc::Receiver<Command>,
    batch: &mut Vec<Command>,
    left: Option<Duration>,
) -> usize {
    let more = commands.recv_many(batch, BATCH);
    match left {
        Some(left) => timeout(left, more).await.unwrap_or(0),
        None => more.await,
    }
}

/// Nothing in here waits but for records: the thread is the ledger's own.
async fn write_all(
    mut ledger: Ledger,
    mut commands: mpsc::Receiver<Command>,
    shared: &Shared,
    clock: &dyn Clock,
) {
    let mut batch = Vec::new();
    let mut closing: Vec<oneshot::Sender<()>> = Vec::new();
    // When what is written has to be on the disk, on the monotonic clock.
    let mut due: Option<u64> = None;
    let left = |due: u64| Duration::from_nanos(due.saturating_sub(clock.mono_ns()));
    while closing.is_empty()
        && (next(&mut commands, &mut batch, due.map(left)).await > 0 || due.is_some())
    {
        let mut waiting = Vec::new();
        for command in batch.drain(..) {
            match command {
                Command::Close(done) => closing.push(done),
                // Whoever asked may have given up; there is nobody to tell then.
                Command::Publish { unix_us, reply } => {
                    let _ = reply.send(ledger.publish(unix_us));
                }
                Command::Consistency { old, new, reply } => {
                    let _ = reply.send(ledger.consistency(old, new));
                }
                Command::Cosigned(signed) => {
                    if let Err(error) = ledger.cosigned(&signed) {
                        tracing::warn!(%error, "cosignatures are not stored");
                    }
                }
                Command::Append {
                    time_unix_us,
                    kind,
                    json,
                    reply,
                    _space,
                } => {
                    let result = ledger.append_encoded(time_unix_us, kind, &json);
                    match (reply, result) {
                        (Some(reply), Ok(seq)) => waiting.push((reply, seq)),
                        (Some(reply), Err(e)) => answer(reply, Err(e)),
                        (None, Ok(_)) => {}
                        (None, Err(_)) => {
                            shared.dropped.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
        let lazy = waiting.is_empty()
            && closing.is_empty()
            && !commands.is_closed()
            && due.is_none_or(|due| !left(due).is_zero());
        let done = if lazy { ledger.write() } else { ledger.sync() };
        // What failed once is not tried again.
        due = (lazy && done.is_ok())
            .then(|| due.unwrap_or_else(|| clock.mono_ns().saturating_add(LAZY_NS)));
        match done {
            Ok(()) if lazy => {}
            Ok(()) => {
                shared.set(LedgerState::Ok, &ledger);
                for (reply, seq) in waiting {
                    answer(reply, Ok(seq));
                }
            }
            Err(e) => {
                let why = e.to_string();
                let first = shared.failed().is_none();
                if first {
                    tracing::error!(error = %why, "the ledger failed; this node signs no votes until it is restarted");
                    shared.set(LedgerState::Failed(why.clone()), &ledger);
                }
                for (reply, _) in waiting {
                    answer(reply, Err(LedgerError::Failed(why.clone())));
                }
            }
        }
    }
    // Before anybody is told: what comes from now on must be refused, not lost.
    drop(commands);
    drop(ledger);
    for done in closing {
        // Nobody waits any more; there is nobody to tell.
        let _ = done.send(());
    }
}

fn answer(reply: Reply, result: Result<u64, LedgerError>) {
    // The caller may have given up waiting; the entry is recorded all the same.
    let _ = reply.send(result);
}
