//! What came from peers and waits for the agent: a short queue for each of them, and a turn for each.
//!
//! One queue for all would let a member that sends without end decide when the others are heard. Here it fills
//! its own, and its connection is read no further; what another one says waits for one message of it at most. And
//! since one message can cost much more than another, each peer has a share of the agent's time
//! ([`TransportEvents::charge`]): who has used it up is heard when it has earned some again, or when nobody else waits.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::TransportEvent;
use super::counters::{Counters, count};
use crate::clock::Clock;
use crate::mesh::ids::NodeId;

/// What may wait of one peer whose connection is read no further when it is full, in KiB: four of the largest
/// messages, or 32 small ones.
pub(super) const ROOM: u32 = 256;
/// The same where nobody can be told to wait, because all come through one: what waits to be sent to a peer may
/// be as much.
pub(super) const ROOM_SHARED: u32 = 4096;
/// What anything takes at least, in KiB.
const LEAST: u32 = 8;
/// Of the agent's time one peer has a quarter, over long, where another one wants it.
const SHARE: u64 = 4;
/// Time of the agent that a peer may use up at once, in nanoseconds: what it has to say after it was away.
const BURST_NS: u64 = 2_000_000_000;
/// What one event costs at most: beyond that it was not the peer, but a machine that stood still.
const LONGEST_NS: u64 = 100_000_000;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Peer(NodeId),
    /// All who ask to join.
    Joiners,
}

impl TransportEvent {
    /// The peer that it is about or came from; none for who asks to join.
    pub const fn peer(&self) -> Option<NodeId> {
        match self.source() {
            Source::Peer(node) => Some(node),
            Source::Joiners => None,
        }
    }

    const fn source(&self) -> Source {
        match self {
            Self::PeerUp { node, .. } | Self::PeerAt { node, .. } | Self::PeerDown { node } => {
                Source::Peer(*node)
            }
            Self::Message { from, .. } | Self::Garbage { from } => Source::Peer(*from),
            Self::JoinRequest { .. } => Source::Joiners,
        }
    }

    /// What it takes of the room, in KiB.
    fn kib(&self) -> u32 {
        let bytes = match self {
            Self::Message { bytes, .. } | Self::JoinRequest { bytes, .. } => bytes.len(),
            Self::PeerUp { .. }
            | Self::PeerAt { .. }
            | Self::PeerDown { .. }
            | Self::Garbage { .. } => 0,
        };
        u32::try_from(bytes.div_ceil(1024))
            .unwrap_or(u32::MAX)
            .clamp(LEAST, ROOM)
    }
}

struct Lane {
    waiting: VecDeque<(TransportEvent, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Source, Lane>,
    /// Those of them in which something waits, in the order in which they are heard.
    turns: VecDeque<Source>,
    /// Until when what a peer has used up is paid for; those that have not paid yet.
    owed: HashMap<NodeId, u64>,
    /// Peers that wait while others are heard.
    held_back: HashSet<NodeId>,
    /// One of the ends is gone.
    closed: bool,
}

impl State {
    /// Whether nothing waits and nothing comes.
    fn is_over(&self) -> bool {
        self.closed && self.turns.is_empty()
    }

    /// When a lane may be heard; now, for most.
    fn heard_ns(&self, source: Source) -> u64 {
        let Source::Peer(node) = source else { return 0 };
        self.owed
            .get(&node)
            .map_or(0, |until| until.saturating_sub(SHARE * BURST_NS))
    }

    /// The next event, and how many peers wait for it that did not before.
    fn pop(&mut self, now_ns: u64) -> Option<(TransportEvent, u64)> {
        let due = |source: &&Source| self.heard_ns(**source) <= now_ns;
        let first = self.turns.iter().find(due).copied();
        // Where all have used up their shares, nothing is gained by letting them wait.
        let by_debt = || {
            self.turns
                .iter()
                .min_by_key(|s| self.heard_ns(**s))
                .copied()
        };
        let source = first.or_else(by_debt)?;
        let mut held_back = 0;
        while let Some(next) = self.turns.pop_front() {
            if next == source {
                break;
            }
            if let Source::Peer(node) = next
                && first.is_some()
            {
                held_back += u64::from(self.held_back.insert(node));
            }
            self.turns.push_back(next);
        }
        if let Source::Peer(node) = source {
            self.held_back.remove(&node);
        }
        let lane = self.lanes.get_mut(&source)?;
        let event = lane.waiting.pop_front();
        if !lane.waiting.is_empty() {
            self.turns.push_back(source);
        } else if Arc::strong_count(&lane.room) == 1 + usize::from(event.is_some()) {
            // Nobody waits for room in it. What was taken just now still holds some.
            self.lanes.remove(&source);
        }
        event.map(|(event, _room)| (event, held_back))
    }
}

struct Shared {
    state: Mutex<State>,
    /// Woken when something came, or when an end is gone.
    came: Notify,
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
    room: u32,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for lane in state.lanes.values() {
            lane.room.close();
        }
        drop(state);
        self.came.notify_one();
    }

    fn put(&self, event: TransportEvent, room: OwnedSemaphorePermit) {
        let source = event.source();
        let mut state = self.state();
        // A receiver that is gone wants no events.
        let Some(lane) = state.lanes.get_mut(&source) else {
            return;
        };
        let first = lane.waiting.is_empty();
        lane.waiting.push_back((event, room));
        if first {
            state.turns.push_back(source);
        }
        drop(state);
        self.came.notify_one();
    }

    /// The room of a lane, which is there for as long as somebody holds this.
    fn room(&self, source: Source) -> Option<Arc<Semaphore>> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let lane = state.lanes.entry(source).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            room: Arc::new(Semaphore::new(usize::try_from(self.room).unwrap_or(0))),
        });
        Some(Arc::clone(&lane.room))
    }

    /// Forgets a lane that nobody uses; `room` is of one that may have been got for nothing.
    fn done(&self, source: Source, room: Arc<Semaphore>) {
        let mut state = self.state();
        drop(room);
        let unused = |lane: &Lane| lane.waiting.is_empty() && Arc::strong_count(&lane.room) == 1;
        if state.lanes.get(&source).is_some_and(unused) {
            state.lanes.remove(&source);
        }
    }
}

/// Where events go in. Dropping it ends them.
pub(super) struct Feed {
    shared: Arc<Shared>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Gives a lane back that nothing came of, also when the wait for room is given up.
struct Hold<'a> {
    shared: &'a Shared,
    source: Source,
    room: Option<Arc<Semaphore>>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Some(room) = self.room.take() {
            self.shared.done(self.source, room);
        }
    }
}

impl Feed {
    fn hold(&self, event: &TransportEvent) -> Hold<'_> {
        let source = event.source();
        Hold {
            shared: &self.shared,
            source,
            room: self.shared.room(source),
        }
    }

    /// Waits for room in the queue of whom it comes from. Nothing when the receiver is gone.
    pub(super) async fn send(&self, event: TransportEvent) {
        let hold = self.hold(&event);
        let Some(room) = &hold.room else { return };
        let wait = Arc::clone(room).acquire_many_owned(event.kib());
        if let Ok(permit) = wait.await {
            self.shared.put(event, permit);
        }
    }

    /// As [`Feed::send`], but drops it where there is no room.
    pub(super) fn offer(&self, event: TransportEvent) {
        let hold = self.hold(&event);
        let Some(room) = &hold.room else { return };
        match Arc::clone(room).try_acquire_many_owned(event.kib()) {
            Ok(permit) => self.shared.put(event, permit),
            Err(_) => count(&self.shared.counters.incoming_dropped),
        }
    }
}

/// The events of a transport, one peer's after another's. Those of one peer keep their order.
pub struct TransportEvents {
    shared: Arc<Shared>,
}

impl Drop for TransportEvents {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl TransportEvents {
    /// The next event; none when the transport has ended and all are taken. May be given up and called again.
    pub async fn recv(&mut self) -> Option<TransportEvent> {
        loop {
            let came = self.shared.came.notified();
            match self.next() {
                Some(event) => return Some(event),
                None if self.shared.state().is_over() => return None,
                None => came.await,
            }
        }
    }

    /// The next event, if there is one now.
    pub fn try_recv(&mut self) -> Option<TransportEvent> {
        self.next()
    }

    fn next(&self) -> Option<TransportEvent> {
        let now_ns = self.shared.clock.mono_ns();
        let (event, held_back) = self.shared.state().pop(now_ns)?;
        for _ in 0..held_back {
            count(&self.shared.counters.incoming_held_back);
        }
        Some(event)
    }

    /// What an event of a peer has cost, in nanoseconds; more than a tenth of a second counts as that. A peer may use
    /// up two seconds at once, and a quarter of the time from then on; what it used while nobody else waited makes
    /// nobody wait for longer than one event does.
    pub fn charge(&mut self, node: NodeId, spent_ns: u64) {
        let now_ns = self.shared.clock.mono_ns();
        let mut state = self.shared.state();
        // Bounded by those who had a lane within the last few seconds.
        state.owed.retain(|_, until| *until > now_ns);
        let until = state.owed.entry(node).or_insert(now_ns);
        let most = now_ns.saturating_add(SHARE * (BURST_NS + LONGEST_NS));
        *until = until
            .saturating_add(spent_ns.min(LONGEST_NS).saturating_mul(SHARE))
            .min(most);
    }
}

/// Both ends. `room`: what may wait of one peer, in KiB.
pub(super) fn inbox(
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
    room: u32,
) -> (Feed, TransportEvents) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        came: Notify::new(),
        counters,
        clock,
        room: room.max(ROOM),
    });
    let feed = Feed {
        shared: Arc::clone(&shared),
    };
    (feed, TransportEvents { shared })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::timeout;

    use super::*;

    #[derive(Default)]
    struct Hand(AtomicU64);
    impl Clock for Hand {
        fn unix_us(&self) -> u64 {
            0
        }
        fn mono_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    const MOMENT: Duration = Duration::from_millis(20);

    fn said(n: u8, bytes: usize) -> TransportEvent {
        TransportEvent::Message {
            from: NodeId([n; 16]),
            bytes: Bytes::from(vec![n; bytes]),
        }
    }

    fn from(event: &TransportEvent) -> u8 {
        match event.source() {
            Source::Peer(NodeId([n, ..])) => n,
            Source::Joiners => 0,
        }
    }

    struct Ends {
        feed: Arc<Feed>,
        events: TransportEvents,
        counters: Arc<Counters>,
        clock: Arc<Hand>,
    }

    fn ends(room: u32) -> Ends {
        let (counters, clock) = (Arc::new(Counters::default()), Arc::new(Hand::default()));
        let (feed, events) = inbox(
            Arc::clone(&counters),
            Arc::clone(&clock) as Arc<dyn Clock>,
            room,
        );
        Ends {
            feed: Arc::new(feed),
            events,
            counters,
            clock,
        }
    }

    #[tokio::test]
    async fn one_that_sends_without_end_makes_another_wait_for_one_message() {
        let mut ends = ends(ROOM);
        let feed = Arc::clone(&ends.feed);
        let flood = tokio::spawn(async move {
            for _ in 0..200 {
                feed.send(said(1, 64 << 10)).await;
            }
        });
        tokio::time::sleep(MOMENT).await;
        timeout(MOMENT, ends.feed.send(said(2, 10)))
            .await
            .expect("another's flood takes none of its room");
        let order: Vec<u8> = (0..2)
            .map(|_| from(&ends.events.try_recv().expect("an event")))
            .collect();
        assert!(order.contains(&2), "{order:?}");
        assert!(!flood.is_finished());
        let mut rest = 0;
        while timeout(MOMENT, ends.events.recv()).await.is_ok() {
            rest += 1;
        }
        assert_eq!(rest, 199, "nothing is lost");
        flood.await.unwrap();
        assert!(ends.events.shared.state().lanes.is_empty());
    }

    #[tokio::test]
    async fn the_room_is_bounded_in_bytes_and_in_number() {
        for (bytes, most) in [(64 << 10, 4), (1, 32)] {
            let mut ends = ends(ROOM);
            let mut taken = 0;
            while timeout(MOMENT, ends.feed.send(said(1, bytes)))
                .await
                .is_ok()
            {
                taken += 1;
            }
            assert_eq!(taken, most, "of {bytes} bytes");
            for _ in 0..taken {
                assert_eq!(from(&ends.events.recv().await.unwrap()), 1);
            }
            // Whoever gave up waiting holds no place.
            assert!(ends.events.try_recv().is_none());
            assert!(ends.events.shared.state().lanes.is_empty());
        }
    }

    #[tokio::test]
    async fn where_nobody_can_wait_the_rest_is_dropped_and_counted() {
        let mut ends = ends(ROOM_SHARED);
        for _ in 0..70 {
            ends.feed.offer(said(1, 64 << 10));
        }
        ends.feed.offer(said(2, 1));
        assert_eq!(ends.counters.incoming_dropped.load(Ordering::Relaxed), 6);
        let mut got = Vec::new();
        while let Some(event) = ends.events.try_recv() {
            got.push(from(&event));
        }
        assert_eq!(got.len(), 65);
        assert_eq!(got.get(..2), Some([1, 2].as_slice()));
    }

    #[tokio::test]
    async fn who_has_used_up_its_share_is_heard_later_and_the_others_are_not() {
        let mut ends = ends(ROOM);
        let liar = NodeId([1; 16]);
        for _ in 0..3 {
            ends.feed.send(said(1, 1)).await;
        }
        ends.feed.send(said(2, 1)).await;
        assert_eq!(from(&ends.events.try_recv().unwrap()), 1);
        for _ in 0..BURST_NS / LONGEST_NS {
            // The machine may have stood still meanwhile.
            ends.events.charge(liar, u64::MAX);
        }
        ends.events.charge(liar, 1_000_000);
        for _ in 0..3 {
            ends.feed.send(said(2, 1)).await;
        }
        for _ in 0..4 {
            assert_eq!(from(&ends.events.try_recv().unwrap()), 2, "it has to wait");
        }
        assert_eq!(held_back(&ends), 1, "once");
        ends.feed.send(said(2, 1)).await;
        ends.clock.0.store(SHARE * 1_000_000, Ordering::Relaxed);
        let next = [1, 2].map(|_| from(&ends.events.try_recv().unwrap()));
        assert!(next.contains(&1), "earned again: {next:?}");
        // What was paid for is forgotten.
        ends.clock.0.store(u64::MAX / 2, Ordering::Relaxed);
        ends.events.charge(NodeId([2; 16]), 1);
        assert_eq!(ends.events.shared.state().owed.len(), 1);
    }

    fn held_back(ends: &Ends) -> u64 {
        ends.counters.incoming_held_back.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn nobody_is_held_back_while_nobody_else_waits() {
        let mut ends = ends(ROOM);
        let busy = NodeId([1; 16]);
        for _ in 0..200 {
            ends.feed.send(said(1, 1)).await;
            assert_eq!(from(&ends.events.try_recv().expect("at once")), 1);
            ends.events.charge(busy, LONGEST_NS);
        }
        assert_eq!(held_back(&ends), 0);
        // Two that both have used up theirs take turns.
        for _ in 0..200 {
            ends.events.charge(NodeId([2; 16]), LONGEST_NS);
        }
        let mut heard = [0, 0];
        for _ in 0..20 {
            for n in [1, 2] {
                ends.feed.send(said(n, 1)).await;
            }
            let next = from(&timeout(MOMENT, ends.events.recv()).await.unwrap().unwrap());
            ends.events.charge(NodeId([next; 16]), 1_000);
            heard[usize::from(next - 1)] += 1;
        }
        assert_eq!(heard.iter().sum::<u32>(), 20);
        assert!(heard.iter().all(|n| *n >= 5), "{heard:?}");
        // And what it used while it was alone keeps it back for no longer than one event costs.
        while ends.events.try_recv().is_some() {}
        ends.clock.0.store(SHARE * LONGEST_NS, Ordering::Relaxed);
        ends.feed.send(said(1, 1)).await;
        ends.feed.send(said(3, 1)).await;
        let first = from(&ends.events.try_recv().unwrap());
        assert_eq!((first, held_back(&ends)), (1, 0));
    }

    #[tokio::test]
    async fn either_end_may_go() {
        let mut one = ends(ROOM);
        one.feed.send(said(1, 1)).await;
        drop(one.feed);
        assert!(one.events.recv().await.is_some());
        assert!(one.events.recv().await.is_none());
        let other = ends(ROOM);
        for _ in 0..32 {
            other.feed.send(said(1, 1)).await;
        }
        let feed = Arc::clone(&other.feed);
        let waiting = tokio::spawn(async move { feed.send(said(1, 1)).await });
        tokio::time::sleep(MOMENT).await;
        drop(other.events);
        timeout(Duration::from_secs(5), waiting)
            .await
            .expect("nobody waits for a receiver that is gone")
            .unwrap();
    }
}
