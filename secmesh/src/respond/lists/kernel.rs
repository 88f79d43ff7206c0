//! Where lists are enforced: the kernel's tables, or a stand-in where a test has no kernel.

pub use crate::dataplane::{AuditCursor, Audited, Replaced};
use crate::{
    dataplane::{Compiled, ListTables, TableError},
    respond::Now,
};

/// The tables of the lists.
pub trait ListKernel: Send {
    /// Whether `wanted` fits.
    ///
    /// # Errors
    /// [`TableError::NoRoom`] with the setting that makes room.
    fn check(&self, wanted: &Compiled) -> Result<(), TableError>;

    /// Makes the tables hold `wanted` and nothing else. `allow_generation` is that of the allowlist which
    /// was cut out of it; `now` relates the spans' ends to the kernel's clock. `progress` is called now
    /// and then with how many of `wanted`'s spans are in force.
    ///
    /// # Errors
    /// No room or the kernel's refusal; what was enforced before and is still wanted stays in force.
    fn replace(
        &mut self,
        wanted: &Compiled,
        allow_generation: u32,
        now: Now,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Replaced, TableError>;

    /// Looks at the next `slice` entries of the tables from `cursor` on and puts right what somebody else changed.
    /// The last [`ListKernel::replace`] must have worked.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn audit(
        &mut self,
        cursor: &mut AuditCursor,
        slice: u32,
        now: Now,
    ) -> Result<Audited, TableError>;
}

impl ListKernel for ListTables {
    fn check(&self, wanted: &Compiled) -> Result<(), TableError> {
        self.require_room(wanted)
    }

    fn replace(
        &mut self,
        wanted: &Compiled,
        allow_generation: u32,
        now: Now,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Replaced, TableError> {
        Self::replace(self, wanted, allow_generation, now, progress)
    }

    fn audit(
        &mut self,
        cursor: &mut AuditCursor,
        slice: u32,
        now: Now,
    ) -> Result<Audited, TableError> {
        Self::audit(self, cursor, slice, now)
    }
}
