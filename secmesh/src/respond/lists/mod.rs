//! Blocklists at scale: sets of addresses and networks that are imported whole, beside the single
//! decisions.
//!
//! ```text
//! file ─ format ─▶ entries ─ merge ─▶ spans ─ store ─▶ disk ─ loader ─▶ compile ─▶ kernel
//! ```

mod export;
pub mod format;
pub mod import;
mod kernel;
mod loader;
mod merge;
mod name;
mod span;
mod store;

#[cfg(test)]
mod scale_tests;

pub use self::{
    export::{Part, write},
    kernel::{AuditCursor, Audited, ListKernel, Replaced},
    loader::{Allow, Audits, Change, Cover, Lists, Outcome, Standing, Ticket, Totals, What},
    merge::{Compiled, compile, ends, flatten},
    name::ListName,
    span::{Address, NEVER, Range, Span, Spans, prefixes},
    store::{FOLDER, List, MAX_LISTS, Meta, Store, StoreError},
};
