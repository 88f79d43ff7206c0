//! Where lists are enforced: the kernel's tables, or a stand-in where a test has no kernel.

use super::merge::Compiled;
use crate::{dataplane::TableError, respond::Now};

/// What a replacement did to the tables' entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replaced {
    /// Entries written that were not there, or not like this.
    pub added: usize,
    /// Entries taken out.
    pub removed: usize,
    /// Entries that were there already.
    pub kept: usize,
}

/// The tables of the lists.
pub trait ListKernel: Send {
    /// Makes the tables hold `wanted` and nothing else. `now` relates the spans' ends to the kernel's
    /// clock. `progress` is called now and then with how many of `wanted`'s spans are in force.
    ///
    /// # Errors
    /// A full table or the kernel's refusal; what was enforced before and is still wanted stays in force.
    fn replace(
        &mut self,
        wanted: &Compiled,
        now: Now,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Replaced, TableError>;
}
