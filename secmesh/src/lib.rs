//! secmesh: Linux servers that defend each other.
//!
//! An XDP program drops blocked sources before the kernel's stack sees a packet; this crate is the
//! controller behind it. Data takes one direction:
//!
//! ```text
//! kernel ─▶ dataplane ─▶ sense ─▶ detect ─▶ mesh ─▶ respond ─▶ dataplane ─▶ kernel
//!                                             │        │
//!                                           peers    ledger ─▶ api, cli
//! ```

pub mod addr;
pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod detect;
pub mod entropy;
pub mod ledger;
pub mod merkle;
pub mod mesh;
pub mod metrics;
pub mod replay;
pub mod respond;
pub mod sense;
pub mod state;
