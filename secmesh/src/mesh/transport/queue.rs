//! What waits to be sent to one peer.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Most messages that wait for one peer.
const MAX_MESSAGES: usize = 1024;
/// Most bytes that wait for one peer.
const MAX_BYTES: usize = 4 << 20;
/// How long a message waits for a peer that is away, in nanoseconds. What is older is worth nothing
/// to the peer, which asks for what it missed when it is back.
const MAX_AGE_NS: u64 = 30_000_000_000;

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Waiting {
    fn pop(&mut self) -> Option<(u64, Bytes)> {
        let (at, message) = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.len());
        Some((at, message))
    }
}

/// A bounded queue that drops its oldest message for a new one.
#[derive(Debug, Default)]
pub(super) struct OutQueue {
    waiting: Mutex<Waiting>,
    /// Woken on each push; keeps one wake-up if nobody waits yet.
    pub(super) pushed: Notify,
}

impl OutQueue {
    /// Adds a message and returns how many old ones were dropped for it.
    pub(super) fn push(&self, now_ns: u64, message: Bytes) -> u64 {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = 0;
        while waiting.messages.len() >= MAX_MESSAGES || waiting.bytes + message.len() > MAX_BYTES {
            if waiting.pop().is_none() {
                break;
            }
            dropped += 1;
        }
        waiting.bytes += message.len();
        waiting.messages.push_back((now_ns, message));
        drop(waiting);
        self.pushed.notify_one();
        dropped
    }

    /// Puts back what was taken out last, as old as it was, and could not be sent.
    pub(super) fn put_back(&self, at_ns: u64, message: Bytes) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += message.len();
        waiting.messages.push_front((at_ns, message));
    }

    pub(super) fn pop(&self) -> Option<Bytes> {
        self.pop_dated().map(|(_, message)| message)
    }

    /// The oldest message, and since when it waits.
    pub(super) fn pop_dated(&self) -> Option<(u64, Bytes)> {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    /// Drops what waited too long, and returns how much that was.
    pub(super) fn expire(&self, now_ns: u64) -> u64 {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut expired = 0;
        while waiting
            .messages
            .front()
            .is_some_and(|(at, _)| now_ns.saturating_sub(*at) > MAX_AGE_NS)
        {
            waiting.pop();
            expired += 1;
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let queue = OutQueue::default();
        let dropped: u64 = (0..1030u64)
            .map(|n| queue.push(n, Bytes::copy_from_slice(&n.to_be_bytes())))
            .sum();
        assert_eq!(dropped, 6);
        assert_eq!(queue.pop().unwrap(), 6u64.to_be_bytes().as_slice());
        let big = Bytes::from(vec![0; 64 * 1024]);
        assert!((0..64).map(|_| queue.push(0, big.clone())).sum::<u64>() >= 1023);
        assert_eq!(queue.waiting.lock().unwrap().bytes, MAX_BYTES);
        while queue.pop().is_some() {}
        assert_eq!(queue.waiting.lock().unwrap().bytes, 0);
    }

    #[test]
    fn what_waited_too_long_is_dropped() {
        let queue = OutQueue::default();
        queue.push(0, Bytes::from_static(b"old"));
        let (at, message) = queue.pop_dated().unwrap();
        queue.push(MAX_AGE_NS, Bytes::from_static(b"new"));
        queue.put_back(at, message);
        assert_eq!(queue.expire(MAX_AGE_NS + 1), 1);
        assert_eq!(queue.pop().unwrap(), "new");
    }
}
