//! Numbers for tests that try something else each time and can try the same again.

use anyhow::{Context as _, Result};

/// `SplitMix64` (Steele, Lea and Flood 2014): repeatable from its seed, and no dependency.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// 0 to `bound` less one; 0 if there is none.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound.max(1)
    }

    /// An index into something of this length.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.bits().to_be_bytes()[0]
    }

    /// One of these; `None` if there is none.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.index(of.len())).copied()
    }
}

/// From `SECMESH_SEED`, else from the clock, so that every run tries something else.
///
/// # Errors
/// When the variable is no number.
pub fn seed() -> Result<u64> {
    match std::env::var("SECMESH_SEED") {
        Ok(text) => text.parse().context("SECMESH_SEED is a number"),
        Err(_unset) => {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            Ok(u64::from(time.subsec_nanos()) ^ time.as_secs())
        }
    }
}
