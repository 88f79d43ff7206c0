//! Everything of secmesh that reads bytes from elsewhere, each as a fuzz target.
//!
//! A target is a function from bytes to nothing that panics when a property does not hold. `cargo xtask
//! fuzz` runs them under libFuzzer, which keeps what reaches new code; a plain `cargo test` sends every
//! seed and every input that once failed through them. How to add one: README.md beside this crate.

pub mod bound;
pub mod feed;
pub mod samples;
pub mod targets;

pub use targets::{TARGETS, Target};

/// The list that `cargo xtask fuzz --list` prints.
pub const LIST: &str = include_str!("../targets.txt");

/// Longest input that a target is given, in bytes: `-max_len` of the engine.
pub const MAX_INPUT: usize = 16 << 10;

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Sends one input through the target.
    ///
    /// # Panics
    /// When a property does not hold, or more memory was taken than [`Target::memory`] allows: that is
    /// how the engine and the tests are told.
    pub fn check(&self, input: &[u8]) {
        // Made once and kept: not this input's.
        let _mesh = samples::mesh();
        let ((), peak) = bound::peak(|| (self.run)(input));
        let most = self.memory.most(input.len());
        assert!(
            peak <= most,
            "{}: {peak} bytes of memory for an input of {}, the bound is {most}",
            self.name,
            input.len()
        );
    }
}
