//! A queue in which nobody's messages push out those of others, nor keep them waiting.
//!
//! Each peer has a line of its own, and the lines are served in turn. The loop's own tasks come first.

#[cfg(test)]
use std::collections::BTreeSet;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::mesh::ids::NodeId;

/// Most messages of one peer that wait: what it says when it connects, and in a round, twice.
pub(super) const PER_PEER: usize = 256;
/// Most messages of all peers that wait; some 6 KiB each at most.
pub(super) const IN_ALL: usize = 4_096;
/// Most own tasks that wait.
pub(super) const OWN: usize = 1_024;

#[derive(Debug)]
struct Lines<T> {
    own: VecDeque<T>,
    peers: BTreeMap<NodeId, VecDeque<T>>,
    /// Who was served last.
    last: Option<NodeId>,
    waiting: usize,
    closed: bool,
}

#[derive(Debug)]
struct Shared<T> {
    lines: Mutex<Lines<T>>,
    more: Notify,
}

impl<T> Shared<T> {
    fn lines(&self) -> MutexGuard<'_, Lines<T>> {
        // Each change of the lines is whole before the lock is let go.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that puts in. When it is dropped, the other end gets what waits, and then nothing more.
#[derive(Debug)]
pub(super) struct FairSender<T>(Arc<Shared<T>>);

/// The end that takes out.
#[derive(Debug)]
pub(super) struct FairReceiver<T>(Arc<Shared<T>>);

/// An empty queue.
pub(super) fn fair<T>() -> (FairSender<T>, FairReceiver<T>) {
    let shared = Arc::new(Shared {
        lines: Mutex::new(Lines {
            own: VecDeque::new(),
            peers: BTreeMap::new(),
            last: None,
            waiting: 0,
            closed: false,
        }),
        more: Notify::new(),
    });
    (FairSender(Arc::clone(&shared)), FairReceiver(shared))
}

impl<T> Lines<T> {
    /// Puts a message at the end of its peer's line. False if one is lost for it: this one, or, where all lines
    /// together are full, the last of the longest line if that is longer.
    fn put(&mut self, peer: NodeId, item: T) -> bool {
        let own = self.peers.get(&peer).map_or(0, VecDeque::len);
        if own >= PER_PEER {
            return false;
        }
        let full = self.waiting >= IN_ALL;
        if full {
            let longest = self.peers.iter_mut().max_by_key(|(_, line)| line.len());
            let Some((_, line)) = longest.filter(|(_, line)| line.len() > own) else {
                return false;
            };
            line.pop_back();
            self.waiting = self.waiting.saturating_sub(1);
        }
        self.peers.entry(peer).or_default().push_back(item);
        self.waiting = self.waiting.saturating_add(1);
        !full
    }

    fn take(&mut self) -> Option<T> {
        if let Some(item) = self.own.pop_front() {
            return Some(item);
        }
        let after = |last: NodeId| (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
        let later = self
            .last
            .and_then(|last| self.peers.range(after(last)).next());
        let (peer, _) = later.or_else(|| self.peers.first_key_value())?;
        let peer = *peer;
        let line = self.peers.get_mut(&peer)?;
        let item = line.pop_front();
        if line.is_empty() {
            self.peers.remove(&peer);
        }
        self.last = Some(peer);
        self.waiting = self.waiting.saturating_sub(1);
        item
    }
}

impl<T> FairSender<T> {
    /// Puts in what a peer has sent. False if a message is lost for that.
    pub(super) fn put(&self, peer: NodeId, item: T) -> bool {
        let kept = self.0.lines().put(peer, item);
        self.0.more.notify_one();
        kept
    }

    /// Puts in what this node wants itself. False if there is no room.
    pub(super) fn put_own(&self, item: T) -> bool {
        let mut lines = self.0.lines();
        let room = lines.own.len() < OWN;
        if room {
            lines.own.push_back(item);
        }
        drop(lines);
        self.0.more.notify_one();
        room
    }
}

impl<T> Drop for FairSender<T> {
    fn drop(&mut self) {
        self.0.lines().closed = true;
        self.0.more.notify_one();
    }
}

impl<T> FairReceiver<T> {
    /// The next, as soon as there is one; none when nothing can come any more. It may be given up while it waits.
    pub(super) async fn next(&mut self) -> Option<T> {
        loop {
            let (item, closed) = {
                let mut lines = self.0.lines();
                (lines.take(), lines.closed)
            };
            if item.is_some() || closed {
                return item;
            }
            self.0.more.notified().await;
        }
    }

    /// Peers whose messages wait.
    #[cfg(test)]
    fn peers(&self) -> BTreeSet<NodeId> {
        self.0.lines().peers.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(i: usize) -> NodeId {
        NodeId([u8::try_from(i).unwrap(); 16])
    }

    #[tokio::test]
    async fn one_peer_fills_its_own_line_and_delays_nobody() {
        let (sender, mut queue) = fair();
        let kept = (0..100_000)
            .filter(|n| sender.put(peer(1), (1, *n)))
            .count();
        assert_eq!(kept, PER_PEER);
        for n in 0..3 {
            assert!(sender.put(peer(2), (2, n)));
        }
        assert!(sender.put_own((0, 0)));
        let mut got = Vec::new();
        for _ in 0..7 {
            got.push(queue.next().await.unwrap());
        }
        let expected = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)];
        assert_eq!(got, expected);
        assert_eq!(queue.peers(), BTreeSet::from([peer(1)]));
        assert!(sender.put(peer(1), (1, 7)), "there is room again");
    }

    #[tokio::test]
    async fn many_together_are_bounded_and_the_longest_line_gives_way() {
        let (sender, mut queue) = fair();
        let liars = IN_ALL / PER_PEER;
        for liar in 1..=liars {
            for n in 0..PER_PEER {
                assert!(sender.put(peer(liar), (liar, n)));
            }
        }
        // Somebody loses a message for each of these, and it is not the one who has few.
        for n in 0..10 {
            assert!(!sender.put(peer(200), (200, n)));
        }
        assert_eq!(sender.0.lines().waiting, IN_ALL);
        drop(sender);
        let mut got = Vec::new();
        while let Some(item) = queue.next().await {
            got.push(item);
        }
        assert_eq!(got.len(), IN_ALL);
        assert_eq!(got.iter().filter(|(from, _)| *from == 200).count(), 10);
        assert!(got.iter().position(|(from, _)| *from == 200).unwrap() <= liars);
    }

    #[tokio::test]
    async fn who_waits_gets_what_comes_and_the_end() {
        let (sender, mut queue) = fair();
        let waiting = tokio::spawn(async move { (queue.next().await, queue.next().await) });
        tokio::task::yield_now().await;
        assert!(sender.put(peer(1), 7));
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waiting.await.unwrap(), (Some(7), None));
    }

    #[test]
    fn own_tasks_are_bounded() {
        let (sender, _queue) = fair();
        assert_eq!((0..5_000).filter(|n| sender.put_own(*n)).count(), OWN);
    }
}
