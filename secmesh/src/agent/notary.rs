//! The node as a witness of its peers' ledgers, and as one that has witnesses: what of that needs the
//! disk, beside the loop.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::fair::{FairReceiver, FairSender, fair};
use super::witnessed::{Telling, Witnessed};
use crate::clock::Clock;
use crate::ledger::fork::LedgerForkProof;
use crate::ledger::{LedgerHandle, LedgerKeys};
use crate::mesh::ids::NodeId;
use crate::mesh::message::{Message, pack};
use crate::mesh::roster::Roster;
use crate::mesh::transport::TransportHandle;
use crate::mesh::witness::{
    Answer, LedgerMessage, LogKeys, Offer, Publisher, Step, Told, Witness, WitnessRefusal,
};
use crate::state::{PRIVATE, StateDir, write_atomic};

/// Most proofs that wait for the loop.
const FOUND: usize = 16;
/// Most checkpoints of others told to a peer at once; the rest have their turn with the next peer or round.
const TELL: usize = 64;
const DIR: &str = "witness";

/// What is counted, for the metrics and for people.
#[derive(Debug, Default)]
pub(super) struct NotaryCounters {
    /// Cosignatures given.
    pub cosigned: AtomicU64,
    /// Cosignatures got.
    pub got: AtomicU64,
    /// Offers of peers that were refused.
    pub refused: AtomicU64,
    /// Messages that found their sender's line, or all lines together, full.
    pub dropped: AtomicU64,
    /// Size that a witness has seen of this node's ledger and that it does not reach; 0 if none.
    pub cut_back: AtomicU64,
}

enum Task {
    Message {
        from: LogKeys,
        about: Option<LogKeys>,
        message: LedgerMessage,
    },
    Round(BTreeSet<NodeId>),
    Up(NodeId),
    Down(NodeId),
}

/// The loop's end of it.
pub(super) struct Notary {
    queue: FairSender<Task>,
    pub counters: Arc<NotaryCounters>,
}

/// What it is started with.
pub(super) struct Parts<'a> {
    pub state: &'a StateDir,
    pub keys: LedgerKeys,
    pub roster: &'a Roster,
    pub ledger: LedgerHandle,
    pub transport: TransportHandle,
    pub clock: Arc<dyn Clock>,
}

impl Notary {
    /// Reads what was witnessed before and starts. The second value gives the proofs that it finds.
    pub fn start(parts: Parts<'_>) -> (Self, mpsc::Receiver<LedgerForkProof>) {
        let (queue, tasks) = fair();
        let (found, forks) = mpsc::channel(FOUND);
        let counters = Arc::new(NotaryCounters::default());
        let node = NodeId(parts.keys.node);
        let dir = parts.state.file(DIR);
        if !dir.exists()
            && let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(&dir)
        {
            error!(%error, dir = %dir.display(), "this node cannot be a witness: nothing can be remembered");
        }
        let mut desk = Desk {
            witnessed: Witnessed::new(dir, Witness::new(node, parts.keys.key.clone())),
            publisher: Publisher::new(parts.keys.public()),
            telling: Telling::default(),
            news: Telling::default(),
            turn: 0,
            ledger: parts.ledger,
            transport: parts.transport,
            clock: parts.clock,
            found,
            counters: Arc::clone(&counters),
        };
        for (_, member) in parts.roster.members() {
            desk.witnessed.recall(&LogKeys::of(&member.record));
        }
        tokio::spawn(desk.run(tasks));
        (Self { queue, counters }, forks)
    }

    fn put(&self, task: Task) {
        let kept = match &task {
            Task::Message { from, .. } => self.queue.put(from.node, task),
            Task::Round(_) | Task::Up(_) | Task::Down(_) => self.queue.put_own(task),
        };
        if !kept {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A peer has sent a message about ledgers.
    pub fn message(&self, roster: &Roster, from: NodeId, message: LedgerMessage) {
        let keys = |node: &NodeId| roster.get(node).map(|m| LogKeys::of(&m.record));
        let about = match &message {
            LedgerMessage::Seen { node, .. } => keys(node),
            _ => None,
        };
        if let Some(from) = keys(&from) {
            self.put(Task::Message {
                from,
                about,
                message,
            });
        }
    }

    /// It is time for a checkpoint.
    pub fn round(&self, connected: &BTreeSet<NodeId>) {
        self.put(Task::Round(connected.clone()));
    }

    /// A peer is connected.
    pub fn up(&self, peer: NodeId) {
        self.put(Task::Up(peer));
    }

    /// A peer is gone.
    pub fn down(&self, peer: NodeId) {
        self.put(Task::Down(peer));
    }
}

/// The task's end of it.
struct Desk {
    witnessed: Witnessed,
    publisher: Publisher,
    /// For peers that come, and for those that are there.
    telling: Telling,
    news: Telling,
    turn: usize,
    ledger: LedgerHandle,
    transport: TransportHandle,
    clock: Arc<dyn Clock>,
    found: mpsc::Sender<LedgerForkProof>,
    counters: Arc<NotaryCounters>,
}

impl Desk {
    async fn run(mut self, mut tasks: FairReceiver<Task>) {
        while let Some(task) = tasks.next().await {
            match task {
                Task::Message {
                    from,
                    about,
                    message,
                } => self.message(&from, about, message).await,
                Task::Round(connected) => self.round(&connected).await,
                Task::Up(peer) => {
                    let next = self.telling.next(self.witnessed.sizes(), TELL);
                    self.tell(peer, self.witnessed.messages(&next));
                }
                Task::Down(peer) => self.publisher.gone(&peer),
            }
        }
    }

    async fn message(&mut self, from: &LogKeys, about: Option<LogKeys>, message: LedgerMessage) {
        match message {
            LedgerMessage::Offer(offer) => self.offered(from, &offer).await,
            LedgerMessage::Answer(answer) => self.answered(from, &answer).await,
            LedgerMessage::Seen { note, .. } => {
                let fork = about.and_then(|log| self.witnessed.seen(&log, &note));
                if let Some(proof) = fork {
                    self.fork(proof).await;
                }
            }
            // For the engine; it does not come here.
            LedgerMessage::Fork(_) => {}
        }
    }

    fn now_s(&self) -> u64 {
        self.clock.unix_us() / 1_000_000
    }

    async fn offered(&mut self, log: &LogKeys, offer: &Offer) {
        let now_s = self.now_s();
        let Some(step) = self.witnessed.offer(log, offer, now_s) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Step {
            persist,
            answer,
            fork,
            refused,
        } = step;
        if let Some(bytes) = persist {
            let path = self.witnessed.file(&log.node);
            let written =
                tokio::task::spawn_blocking(move || write_atomic(&path, &bytes, PRIVATE)).await;
            if !matches!(written, Ok(Ok(()))) {
                // The witness knows more than the disk does, so an offer that goes back is still
                // found while it runs; it must not say that it remembers. The same offer again is
                // written again.
                warn!(node = %log.node, ?written, "a checkpoint is not remembered, so it is not cosigned");
                return;
            }
            self.witnessed.written(&log.node);
        }
        if let Some(answer) = answer {
            if matches!(
                answer.outcome,
                crate::mesh::witness::Outcome::Cosigned { .. }
            ) {
                self.counters.cosigned.fetch_add(1, Ordering::Relaxed);
            }
            self.send(log.node, LedgerMessage::Answer(Box::new(answer)));
        }
        if let Some(refused) = refused {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            warn!(node = %log.node, reason = refused.name(), "a peer's checkpoint is not cosigned");
            if refused == WitnessRefusal::Inconsistent {
                warn!(node = %log.node, "its ledger does not follow from what it showed before; compare copies with `secmesh ledger verify`");
            }
        }
        if let Some(proof) = fork {
            self.fork(proof).await;
        }
    }

    async fn answered(&mut self, witness: &LogKeys, answer: &Answer) {
        match self.publisher.answered(witness, answer) {
            Told::Cosigned(signed) => {
                self.counters.got.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = self.ledger.cosigned(*signed).await {
                    debug!(%error, "a cosignature is not stored");
                }
            }
            Told::Again => self.ask(witness.node).await,
            Told::KnowsMore { size } => {
                self.counters.cut_back.fetch_max(size, Ordering::Relaxed);
                error!(witness = %witness.node, size, "a witness has seen more of this node's ledger than is there: it was cut back or restored from a backup, or its keys are used elsewhere; let the node join anew");
            }
            Told::Inconsistent => {
                warn!(witness = %witness.node, "a witness does not find this node's ledger to follow from what it saw before");
            }
            Told::Nothing => {}
        }
    }

    /// Signs a checkpoint if there is something new, asks for cosignatures, and tells a peer what was
    /// seen of others.
    async fn round(&mut self, connected: &BTreeSet<NodeId>) {
        match self.ledger.publish().await {
            Ok(signed) => {
                for peer in self.publisher.publish(signed, connected) {
                    self.ask(peer).await;
                }
            }
            Err(error) => debug!(%error, "no checkpoint"),
        }
        if connected.is_empty() {
            return;
        }
        let news = self.news.news(self.witnessed.sizes(), TELL);
        if news.is_empty() {
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        if let Some(peer) = connected.iter().nth(self.turn % connected.len()) {
            self.tell(*peer, self.witnessed.messages(&news));
        }
    }

    async fn ask(&mut self, peer: NodeId) {
        let Some((old, new)) = self.publisher.wanted(peer) else {
            return;
        };
        match self.ledger.consistency(old, new).await {
            Ok(proof) => {
                if let Some(offer) = self.publisher.offer(peer, old, proof) {
                    self.send(peer, LedgerMessage::Offer(Box::new(offer)));
                }
            }
            Err(error) => {
                info!(%error, witness = %peer, old, "a witness cannot be shown that the ledger only grew: it was away for longer than entries are kept");
            }
        }
    }

    fn tell(&self, peer: NodeId, messages: Vec<LedgerMessage>) {
        let parts = messages
            .into_iter()
            // A node knows its own ledger.
            .filter(|m| !matches!(m, LedgerMessage::Seen { node, .. } if *node == peer))
            .map(|m| Message::Ledger(m).to_bytes());
        for bytes in pack(parts) {
            let outcome = self.transport.send(peer, Bytes::from(bytes));
            debug!(?outcome, %peer, "told of ledgers");
        }
    }

    fn send(&self, peer: NodeId, message: LedgerMessage) {
        let bytes = Bytes::from(Message::Ledger(message).to_bytes());
        let outcome = self.transport.send(peer, bytes);
        debug!(?outcome, %peer, "sent");
    }

    async fn fork(&self, proof: LedgerForkProof) {
        // The loop is gone when the agent stops; the proof is found again.
        drop(self.found.send(proof).await);
    }
}
