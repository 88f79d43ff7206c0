//! What the kernel programs and the controller must agree on.
//!
//! Everything here is `no_std`, allocates nothing, and is compiled twice: for the BPF target and for
//! the host. The kernel, `secmesh replay`, the tests and the fuzzers therefore run the same parser and
//! the same per-source accounting on the same bytes.
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a BPF program is one function: what is not inlined becomes a call with a stack frame of its own, and the verifier forgets what it knew of the packet's bounds"
)]

pub mod account;
pub mod block;
pub mod capture;
pub mod config;
pub mod cookie;
pub mod counters;
pub mod event;
pub mod flow;
pub mod hot;
pub mod lease;
pub mod limit;
pub mod list;
pub mod nets;
pub mod packet;
pub mod port;
pub mod process;
pub mod reason;
pub mod sanity;

/// Version of every layout in this crate that is pinned in bpffs.
///
/// A controller that finds pinned maps of another version must not read them as its own.
pub const SCHEMA: u32 = 8;
