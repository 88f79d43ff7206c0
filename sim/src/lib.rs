//! The mesh's decision core under a simulated network, clock, disk and liars.
//!
//! Everything in a run follows from its seed: how many nodes there are and who lies, what attacks, what the
//! network loses, which node crashes after which of its outputs. After each step the rules of the design
//! are checked by code that knows them from the design and not from the engine ([`oracle`]).

#![expect(
    clippy::indexing_slicing,
    reason = "a simulation indexes its own nodes; to stop with a message is its way to fail"
)]

pub mod answers;
pub mod cast;
pub mod epochs;
pub mod growth;
pub mod liar;
pub mod node;
pub mod oracle;
pub mod plan;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod standing;
pub mod suite;
pub mod trace;
pub mod world;
