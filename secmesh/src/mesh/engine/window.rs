//! Replay protection: which sequence numbers of a voter were seen.

/// How far behind the highest sequence number a vote may arrive.
pub const WIDTH: u64 = 1_024;

/// A sliding bitmap over the last [`WIDTH`] sequence numbers (the scheme of RFC 6479).
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    top: u64,
    seen: [u64; 16],
}

impl ReplayWindow {
    fn cell(&mut self, sequence: u64) -> Option<(&mut u64, u64)> {
        let slot = sequence % WIDTH;
        let word = usize::try_from(slot / 64).ok()?;
        self.seen.get_mut(word).map(|cell| (cell, 1 << (slot % 64)))
    }

    /// Whether [`ReplayWindow::accept`] would refuse this number.
    pub fn refuses(&self, sequence: u64) -> bool {
        if sequence == 0 || sequence.saturating_add(WIDTH) <= self.top {
            return true;
        }
        let slot = sequence % WIDTH;
        let word = usize::try_from(slot / 64).ok();
        let cell = word.and_then(|word| self.seen.get(word));
        sequence <= self.top && cell.is_none_or(|cell| cell & (1 << (slot % 64)) != 0)
    }

    /// Marks a sequence number (from 1); false when it was seen before or is too old to know.
    pub fn accept(&mut self, sequence: u64) -> bool {
        if sequence == 0 || sequence.saturating_add(WIDTH) <= self.top {
            return false;
        }
        if sequence > self.top {
            if sequence - self.top >= WIDTH {
                self.seen = [0; 16];
            } else {
                for passed in self.top + 1..=sequence {
                    if let Some((cell, bit)) = self.cell(passed) {
                        *cell &= !bit;
                    }
                }
            }
            self.top = sequence;
        }
        match self.cell(sequence) {
            Some((cell, bit)) if *cell & bit == 0 => {
                *cell |= bit;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn accepts_each_number_once_and_only_inside_the_window(
            numbers in proptest::collection::vec(1_u64..5_000, 1..400),
        ) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            let mut top = 0;
            for n in numbers {
                let fresh = n + WIDTH > top && !seen.contains(&n);
                prop_assert_eq!(window.refuses(n), !fresh, "{} at top {}", n, top);
                prop_assert_eq!(window.accept(n), fresh, "{} at top {}", n, top);
                if fresh {
                    seen.insert(n);
                    top = top.max(n);
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_do_no_harm() {
        let mut window = ReplayWindow::default();
        assert!(!window.accept(0));
        assert!(window.accept(u64::MAX));
        assert!(!window.accept(u64::MAX));
        assert!(!window.accept(1));
    }
}
