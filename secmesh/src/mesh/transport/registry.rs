//! One connection per peer, which of two stays, and how often there may be a new one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::TransportEvent;
use super::counters::count;
use super::limit::Reconnects;
use super::listen::HANDSHAKE;
use super::queue::OutQueue;
use crate::mesh::ids::NodeId;

/// The connection that is up.
#[derive(Debug, Clone)]
struct Live {
    /// Dialled by the node with the lower id.
    by_lower: bool,
    stop: CancellationToken,
}

/// One peer, connected or not.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) queue: OutQueue,
    /// Says whether a connection is up, to whoever waits to dial.
    pub(super) connected: watch::Sender<bool>,
    live: Mutex<Option<Live>>,
    /// The one that waits for its turn; a newer one takes its place.
    waiting: Mutex<Option<Live>>,
    entered: Mutex<Reconnects>,
    /// Held while a change is made and told, so that events come in the order of the changes.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Only members get in here, and those that are members no more are removed.
    slots: Mutex<HashMap<NodeId, Arc<Slot>>>,
}

impl Registry {
    pub(super) fn slot(&self, node: NodeId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(node).or_insert_with(|| {
            Arc::new(Slot {
                queue: OutQueue::default(),
                connected: watch::Sender::new(false),
                live: Mutex::default(),
                waiting: Mutex::default(),
                entered: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
            })
        });
        Arc::clone(slot)
    }

    pub(super) fn connected(&self) -> Vec<NodeId> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .iter()
            .filter(|(_, slot)| *slot.connected.borrow())
            .map(|(node, _)| *node)
            .collect()
    }

    /// Forgets peers that are not members, with what waits for them, unless a connection uses them.
    pub(super) fn retain(&self, members: &[NodeId]) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|node, slot| members.contains(node) || Arc::strong_count(slot) > 1);
    }
}

/// The right to be the one connection to a peer.
pub(super) struct Place {
    pub(super) slot: Arc<Slot>,
    pub(super) stop: CancellationToken,
    node: NodeId,
}

/// A connection that waits until it may be the one. There is one at a time for each node: a member that opens many
/// would fill this process with them.
struct Waiting<'a> {
    slot: &'a Slot,
    replaced: CancellationToken,
}

impl<'a> Waiting<'a> {
    /// None if one that waits already is better.
    fn begin(slot: &'a Slot, by_lower: bool) -> Option<Self> {
        let replaced = CancellationToken::new();
        let mut waiting = slot.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.as_ref().is_some_and(|w| w.by_lower && !by_lower) {
            return None;
        }
        let stop = replaced.clone();
        if let Some(older) = waiting.replace(Live { by_lower, stop }) {
            older.stop.cancel();
        }
        drop(waiting);
        Some(Self { slot, replaced })
    }

    /// The turn, within the time of a handshake.
    async fn turn(slot: &'a Slot, by_lower: bool) -> Option<tokio::sync::MutexGuard<'a, ()>> {
        let waiting = Self::begin(slot, by_lower)?;
        tokio::select! {
            () = waiting.replaced.cancelled() => None,
            turn = timeout(HANDSHAKE, slot.turn.lock()) => turn.ok(),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waiting = &self.slot.waiting;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.replaced.is_cancelled() {
            waiting.take();
        }
    }
}

/// Makes a connection the one to `node`, or says that another is better, or that there were too many lately. Two
/// connections dialled from the same side mean that the other end has forgotten the older one.
pub(super) async fn enter(
    inner: &Inner,
    node: NodeId,
    address: SocketAddr,
    dialled_here: bool,
) -> Option<Place> {
    let by_lower = dialled_here == (inner.node < node);
    let slot = inner.registry.slot(node);
    let Some(turn) = Waiting::turn(&slot, by_lower).await else {
        count(&inner.counters.duplicate_connections);
        return None;
    };
    let stop = inner.stop.child_token();
    let old = {
        let mut live = slot.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.as_ref().is_some_and(|old| old.by_lower && !by_lower) {
            drop(live);
            count(&inner.counters.duplicate_connections);
            return None;
        }
        let now_ns = inner.clock.mono_ns();
        let mut entered = slot.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if !entered.admit(now_ns) {
            drop((live, entered));
            let counter = &inner.counters.refused_reconnecting;
            inner.refuse(address, counter, "a member that connects again too often");
            return None;
        }
        drop(entered);
        live.replace(Live {
            by_lower,
            stop: stop.clone(),
        })
    };
    if let Some(old) = old {
        old.stop.cancel();
        count(&inner.counters.duplicate_connections);
        count(&inner.counters.connections_down);
        tell(inner, TransportEvent::PeerDown { node }).await;
    }
    count(&inner.counters.connections_up);
    let expired = slot.queue.expire(inner.clock.mono_ns());
    inner
        .counters
        .outgoing_expired
        .fetch_add(expired, std::sync::atomic::Ordering::Relaxed);
    slot.connected.send_replace(true);
    let ip = Some(address.ip().to_canonical());
    tell(inner, TransportEvent::PeerUp { node, ip }).await;
    drop(turn);
    Some(Place { slot, stop, node })
}

/// Gives the place back, if another connection has not taken it already.
pub(super) async fn leave(inner: &Inner, place: Place) {
    let Place { slot, stop, node } = place;
    let turn = slot.turn.lock().await;
    // A token that was cancelled by its successor belongs to a connection that is not the live one.
    if stop.is_cancelled() && !inner.stop.is_cancelled() {
        return;
    }
    slot.live
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    slot.connected.send_replace(false);
    count(&inner.counters.connections_down);
    tell(inner, TransportEvent::PeerDown { node }).await;
    drop(turn);
}

/// Hands an event on, waiting for the receiver, but not when all is stopping.
pub(super) async fn tell(inner: &Inner, event: TransportEvent) {
    tokio::select! {
        () = inner.events.send(event) => {}
        () = inner.stop.cancelled() => {}
    }
}
