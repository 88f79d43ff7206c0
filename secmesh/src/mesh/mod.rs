//! The mesh: who is in it, what they say, and whether enough of them agree.
//!
//! The decision core ([`engine`]) does no input or output; [`transport`] carries its messages.

pub mod admission;
pub mod cert;
pub mod committee;
pub mod crypto;
pub mod decision;
pub mod engine;
pub mod envelope;
pub mod epoch;
pub mod evidence;
pub mod genesis;
pub mod identity;
pub mod ids;
pub mod inventory;
pub mod join;
pub mod message;
pub mod pq;
pub mod roster;
pub mod simulation;
pub mod store;
pub mod subject;
pub mod swim;
#[cfg(test)]
pub(crate) mod testing;
pub mod threshold;
pub mod transport;
pub mod trust;
#[cfg(test)]
mod vectors_tests;
pub mod vote;
pub mod wire;
pub mod witness;
