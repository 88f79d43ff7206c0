//! A lock that is taken for long works and for short ones, where the short ones do not wait for the long.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use crate::clock::{Clock as _, SystemClock};

/// How long a long work lets short ones that wait go first, ns; each takes microseconds.
const GIVE_WAY_NS: u64 = 20_000_000;

/// What is locked, and who waits for it. A long work takes the lock for a piece at a time; a plain mutex that is given
/// back and taken again at once stays with the same thread, however long another one has waited.
pub(super) struct Turns<T> {
    inner: Mutex<T>,
    waiting: AtomicUsize,
}

impl<T> Turns<T> {
    pub fn new(inner: T) -> Self {
        Self {
            inner: Mutex::new(inner),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Takes the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for a short work, which comes before the next piece of a long one.
    pub fn lock_soon(&self) -> MutexGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = self.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    /// The same for the next piece of a long work: after the short ones that wait, but for so long at most.
    pub fn lock_after_others(&self) -> MutexGuard<'_, T> {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let begun_ns = SystemClock.mono_ns();
            while self.waiting.load(Ordering::Relaxed) > 0
                && SystemClock.mono_ns().saturating_sub(begun_ns) < GIVE_WAY_NS
            {
                std::thread::yield_now();
            }
        }
        self.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread, time::Duration};

    use super::*;

    const PIECES: usize = 200;

    #[test]
    fn short_works_get_their_turns_between_the_pieces_of_a_long_one() {
        let turns = Turns::new(0usize);
        let over = AtomicBool::new(false);
        let shorts = thread::scope(|scope| {
            let short = scope.spawn(|| {
                let mut shorts = 0;
                while !over.load(Ordering::Relaxed) {
                    *turns.lock_soon() += 1;
                    shorts += 1;
                    thread::sleep(Duration::from_micros(100));
                }
                shorts
            });
            for _ in 0..PIECES {
                let piece = turns.lock_after_others();
                thread::sleep(Duration::from_millis(1));
                drop(piece);
            }
            over.store(true, Ordering::Relaxed);
            short.join().unwrap()
        });
        // About one in each gap; with a plain lock it gets one now and then.
        assert!(shorts >= PIECES / 2, "{shorts} turns in {PIECES} gaps");
    }
}
