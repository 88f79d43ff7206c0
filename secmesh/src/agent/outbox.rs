//! What leaves this node, in order, behind the votes that have to be on the disk first.
//!
//! The loop does not wait for the disk with a vote: it goes on with events, kernel writes and requests, and only
//! what the engine put behind the vote waits here for it. Of what is rare it waits: locks on epochs and own
//! statements are written with fsync where they are made, and so is the list of members.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::debug;

use crate::ledger::LedgerError;
use crate::mesh::ids::NodeId;
use crate::mesh::transport::TransportHandle;

/// Most things that wait; beyond, the loop waits for the disk after all.
const MOST: usize = 4096;
/// Bytes for single peers that wait, in all and for one; what is beyond is dropped. As much may wait for a peer in the
/// transport, so nothing is lost here that would not be lost there. Votes go to everybody and are not among it.
const MOST_BYTES: usize = 32 << 20;
const MOST_BYTES_EACH: usize = 4 << 20;

type Answer = oneshot::Receiver<Result<u64, LedgerError>>;

enum Item {
    Gate(Answer),
    Broadcast(Bytes),
    Send(NodeId, Bytes),
}

/// What carries messages to peers.
pub(super) trait Carrier {
    /// To every peer.
    fn broadcast(&self, bytes: &Bytes);
    /// To one peer.
    fn send(&self, to: NodeId, bytes: Bytes);
}

impl Carrier for TransportHandle {
    fn broadcast(&self, bytes: &Bytes) {
        self.broadcast(bytes);
    }

    fn send(&self, to: NodeId, bytes: Bytes) {
        let outcome = self.send(to, bytes);
        debug!(?outcome, peer = %to, "sent");
    }
}

/// The queue.
pub(super) struct Outbox<C = TransportHandle> {
    carrier: C,
    waiting: VecDeque<Item>,
    /// Bytes that wait for single peers.
    bytes: BTreeMap<NodeId, usize>,
    dropped: u64,
    /// A vote did not get to the disk: nothing leaves any more.
    silenced: bool,
}

impl<C: Carrier> Outbox<C> {
    /// An empty one.
    pub const fn new(carrier: C) -> Self {
        Self {
            carrier,
            waiting: VecDeque::new(),
            bytes: BTreeMap::new(),
            dropped: 0,
            silenced: false,
        }
    }

    /// Everything from now on waits for this answer of the ledger.
    ///
    /// # Errors
    /// As [`Outbox::next`], where so much waits that this has to.
    pub async fn gate(&mut self, answer: Answer) -> Result<(), LedgerError> {
        self.put(Item::Gate(answer)).await
    }

    /// To every peer.
    ///
    /// # Errors
    /// As [`Outbox::gate`].
    pub async fn broadcast(&mut self, bytes: Bytes) -> Result<(), LedgerError> {
        self.put(Item::Broadcast(bytes)).await
    }

    /// To one peer. Dropped and counted where too much waits for it or for all of them.
    ///
    /// # Errors
    /// As [`Outbox::gate`].
    pub async fn send(&mut self, to: NodeId, bytes: Bytes) -> Result<(), LedgerError> {
        let of_all: usize = self.bytes.values().sum();
        let of_one = self.bytes.get(&to).copied().unwrap_or(0);
        if of_all + bytes.len() > MOST_BYTES || of_one + bytes.len() > MOST_BYTES_EACH {
            self.dropped = self.dropped.saturating_add(1);
            return Ok(());
        }
        if !self.silenced {
            self.bytes.insert(to, of_one + bytes.len());
        }
        self.put(Item::Send(to, bytes)).await
    }

    /// Messages to single peers that were dropped because too much waited.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Nothing leaves any more.
    pub fn silence(&mut self) {
        self.silenced = true;
        self.waiting.clear();
        self.bytes.clear();
    }

    async fn put(&mut self, item: Item) -> Result<(), LedgerError> {
        if self.silenced {
            return Ok(());
        }
        self.waiting.push_back(item);
        self.flush();
        if self.waiting.len() >= MOST {
            return self.drain().await;
        }
        Ok(())
    }

    /// Sends what waits for nothing.
    fn flush(&mut self) {
        while let Some(item) = self.waiting.pop_front() {
            match item {
                Item::Gate(answer) => {
                    self.waiting.push_front(Item::Gate(answer));
                    return;
                }
                Item::Broadcast(bytes) => self.carrier.broadcast(&bytes),
                Item::Send(to, bytes) => {
                    if let Some(waiting) = self.bytes.get_mut(&to) {
                        *waiting = waiting.saturating_sub(bytes.len());
                        if *waiting == 0 {
                            self.bytes.remove(&to);
                        }
                    }
                    self.carrier.send(to, bytes);
                }
            }
        }
    }

    /// Waits for the next vote to be on the disk and sends what stood behind it; never returns when
    /// there is none. May be given up and called again.
    ///
    /// # Errors
    /// When the vote is not on the disk; nothing leaves from then on.
    pub async fn next(&mut self) -> Result<(), LedgerError> {
        let Some(Item::Gate(answer)) = self.waiting.front_mut() else {
            return std::future::pending().await;
        };
        let answer = answer.await.unwrap_or(Err(LedgerError::Closed));
        self.waiting.pop_front();
        match answer {
            Ok(_) => {
                self.flush();
                Ok(())
            }
            Err(error) => {
                self.silence();
                Err(error)
            }
        }
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// As [`Outbox::next`].
    pub async fn drain(&mut self) -> Result<(), LedgerError> {
        while !self.waiting.is_empty() {
            self.next().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Sent(Rc<RefCell<Vec<Bytes>>>);

    impl Carrier for Sent {
        fn broadcast(&self, bytes: &Bytes) {
            self.0.borrow_mut().push(bytes.clone());
        }

        fn send(&self, _: NodeId, bytes: Bytes) {
            self.0.borrow_mut().push(bytes);
        }
    }

    impl Sent {
        fn text(&self) -> String {
            let sent = self.0.borrow();
            sent.iter().map(|b| String::from_utf8_lossy(b)).collect()
        }
    }

    async fn put(outbox: &mut Outbox<Sent>, text: &'static str) {
        let bytes = Bytes::from_static(text.as_bytes());
        outbox.broadcast(bytes).await.unwrap();
    }

    #[tokio::test]
    async fn what_follows_a_vote_waits_for_it_and_keeps_its_order() {
        let sent = Sent::default();
        let mut outbox = Outbox::new(sent.clone());
        put(&mut outbox, "a").await;
        assert_eq!(sent.text(), "a", "behind no vote, at once");
        let (first, answer) = oneshot::channel();
        outbox.gate(answer).await.unwrap();
        put(&mut outbox, "b").await;
        let (second, answer) = oneshot::channel();
        outbox.gate(answer).await.unwrap();
        let c = Bytes::from_static(b"c");
        outbox.send(NodeId([1; 16]), c).await.unwrap();
        // The second vote is on the disk first; the first one still holds everything back.
        second.send(Ok(2)).unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(20), outbox.next()).await;
        assert!(given_up.is_err());
        assert_eq!(sent.text(), "a");
        first.send(Ok(1)).unwrap();
        outbox.drain().await.unwrap();
        assert_eq!(sent.text(), "abc");
        put(&mut outbox, "d").await;
        assert_eq!(sent.text(), "abcd");
    }

    #[tokio::test]
    async fn a_vote_that_is_not_on_the_disk_lets_nothing_leave_any_more() {
        for lost in [true, false] {
            let sent = Sent::default();
            let mut outbox = Outbox::new(sent.clone());
            let (vote, answer) = oneshot::channel();
            outbox.gate(answer).await.unwrap();
            put(&mut outbox, "a").await;
            if lost {
                drop(vote);
            } else {
                vote.send(Err(LedgerError::QueueFull)).unwrap();
            }
            outbox.drain().await.unwrap_err();
            put(&mut outbox, "b").await;
            assert_eq!(sent.text(), "");
        }
    }

    #[tokio::test]
    async fn behind_a_slow_disk_a_peer_has_room_for_a_few_megabytes() {
        let sent = Sent::default();
        let mut outbox = Outbox::new(sent.clone());
        let (vote, answer) = oneshot::channel();
        outbox.gate(answer).await.unwrap();
        let large = Bytes::from(vec![b'x'; 64 << 10]);
        for peer in 0..=20 {
            for _ in 0..100 {
                outbox
                    .send(NodeId([peer; 16]), large.clone())
                    .await
                    .unwrap();
            }
        }
        assert_eq!(outbox.waiting.len() - 1, MOST_BYTES / large.len());
        let kept = u64::try_from(MOST_BYTES / large.len()).unwrap();
        assert_eq!(outbox.dropped(), 21 * 100 - kept);
        assert!(outbox.bytes.values().all(|bytes| *bytes == MOST_BYTES_EACH));
        // A vote of this node is not dropped.
        put(&mut outbox, "vote").await;
        vote.send(Ok(1)).unwrap();
        outbox.drain().await.unwrap();
        assert!(sent.text().ends_with("vote"));
        assert!(outbox.bytes.is_empty());
        outbox.send(NodeId([0; 16]), large).await.unwrap();
        assert!(outbox.bytes.is_empty(), "nothing waits");
    }

    #[tokio::test]
    async fn when_too_much_waits_whatever_it_is_the_loop_waits_too() {
        for of_one in [false, true] {
            let sent = Sent::default();
            let mut outbox = Outbox::new(sent.clone());
            let (vote, answer) = oneshot::channel();
            outbox.gate(answer).await.unwrap();
            let x = Bytes::from_static(b"x");
            for _ in 0..MOST - 2 {
                outbox.broadcast(x.clone()).await.unwrap();
            }
            assert_eq!(outbox.waiting.len(), MOST - 1);
            let last = async {
                if of_one {
                    outbox.send(NodeId([1; 16]), x.clone()).await
                } else {
                    outbox.broadcast(x.clone()).await
                }
            };
            let mut last = Box::pin(last);
            let given_up = tokio::time::timeout(Duration::from_millis(20), &mut last).await;
            assert!(
                given_up.is_err(),
                "the loop goes on though {MOST} things wait"
            );
            vote.send(Ok(1)).unwrap();
            last.await.unwrap();
            assert_eq!(sent.text().len(), MOST - 1);
            assert!(outbox.waiting.is_empty());
        }
    }
}
