//! What a developer of secmesh types, as a library.
//!
//! The commands of `cargo xtask` are thin; what they do is here, and the tests of the whole system
//! (`tests/`) build their mesh with [`lab`], the same code that `cargo xtask lab` runs.

pub mod bench;
pub mod build;
pub mod check;
pub mod clock;
pub mod fuzz;
pub mod lab;
pub mod run;
pub mod setup;
pub mod sh;
pub mod sim;
pub mod stop;
pub mod term;
pub mod vm;
