//! How much memory an input makes a target take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes of this thread that are allocated, since [`peak`] began.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most that [`LIVE`] has been.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with a count per thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grew(by: usize) {
    let live = LIVE.get().wrapping_add_unsigned(by);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

fn shrank(by: usize) {
    LIVE.set(LIVE.get().wrapping_sub_unsigned(by));
}

// SAFETY: every call is handed on to the system's allocator unchanged; the counters are cells without a
// destructor, so touching them neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrank(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Old and new exist side by side while the contents are copied.
        grew(new_size);
        shrank(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Runs `work` and says how many bytes this thread had allocated at once, beyond what it had before.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LIVE.set(0);
    PEAK.set(0);
    let result = work();
    (result, PEAK.get().unsigned_abs())
}

/// A bound on memory that grows with the input.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Bytes for any input.
    pub fixed: usize,
    /// Bytes more for each byte of the input.
    pub per_byte: usize,
}

impl Bound {
    /// The most for an input of `length` bytes.
    pub const fn most(self, length: usize) -> usize {
        self.fixed
            .saturating_add(self.per_byte.saturating_mul(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allocated_at_once_is_counted_and_what_was_before_is_not() {
        let before = vec![0_u8; 4096];
        let ((), used) = peak(|| {
            drop(before);
            let big = vec![1_u8; 100_000];
            assert_eq!(big.len(), 100_000);
            drop(big);
            drop(vec![0_u8; 50_000]);
        });
        assert!((95_000..=100_000).contains(&used), "{used}");
        assert_eq!(peak(|| ()).1, 0);
    }
}
