//! What this node does about a decision: its own allowlist first, then the kernel's maps, and the truth
//! about whether it worked.

mod allowlist;
mod blocks;
mod decisions;
pub mod lists;
mod risk;

pub use self::{
    allowlist::{Allowlist, AllowlistError, Source, refusal},
    blocks::{
        Blocks, Claim, ClaimError, ClaimId, ENDS_PER_TICK, Kernel, MAX_DESIRED, Now, Over,
        Reconciled,
    },
    decisions::{Book, Entry},
    risk::{Reason, Risk, risky},
};
