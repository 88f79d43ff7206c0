//! What an agent says of imported lists.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::respond::lists::ListName;

/// A request on a list was taken; [`ListsView::outcomes`] says what became of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ListTicket {
    /// Its number.
    pub ticket: u64,
}

/// All lists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListsView {
    /// Them, by name.
    pub lists: Vec<ListView>,
    /// All of them together.
    pub totals: ListTotals,
    /// What became of the latest requests.
    pub outcomes: Vec<ListOutcome>,
}

/// One list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListView {
    /// Its name.
    pub name: ListName,
    /// Its number in the kernel's entries.
    pub number: u16,
    /// Where it came from.
    pub source: String,
    /// How that was read.
    pub format: String,
    /// When it was imported, unix µs.
    pub imported_unix_us: u64,
    /// When the last of it ends, unix µs.
    pub ends_unix_us: u64,
    /// Entries that the source had.
    pub entries: u64,
    /// Spans that they were merged to: addresses, and ranges of them.
    pub total: usize,
    /// About how many of those have been brought to the kernel: all, unless it is being written or did
    /// not take all.
    pub loaded: usize,
    /// Who imported it.
    pub operator: String,
    /// Why, if somebody said.
    pub reason: Option<String>,
    /// Whether risky entries were imported on purpose.
    pub overridden: bool,
    /// What is wrong with it; it is not in force then, or not all of it.
    pub error: Option<String>,
}

/// All lists together, desired against enforced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTotals {
    /// Lists.
    pub lists: usize,
    /// Of those, with a file that could not be read: nothing of them is in force.
    pub damaged: usize,
    /// Spans that should be in the kernel: all lists merged, without what is allowed or has ended.
    pub desired: usize,
    /// Of those, in the kernel.
    pub enforced: usize,
    /// Whether the kernel is being written.
    pub busy: bool,
    /// Why not all are enforced.
    pub error: Option<String>,
}

/// What became of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListOutcome {
    /// Its number.
    pub ticket: u64,
    /// Kernel entries written.
    pub added: usize,
    /// Kernel entries taken out.
    pub removed: usize,
    /// Kernel entries that stayed.
    pub kept: usize,
    /// Why it was not done, if so.
    pub error: Option<String>,
}

/// A list that covers an address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListCover {
    /// The list.
    pub list: ListName,
    /// Where it came from.
    pub source: String,
    /// Why it was imported, if somebody said.
    pub reason: Option<String>,
    /// First address of the entry.
    pub first: IpAddr,
    /// Last address of the entry.
    pub last: IpAddr,
    /// When that ends, unix µs.
    pub expires_unix_us: u64,
    /// Whether it covers all of what was asked for.
    pub whole: bool,
}
