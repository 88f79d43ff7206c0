//! What evidence says about each node: a pure fold to fixed-point reputations, strikes and weights.
//!
//! The same statements up to the same frontiers give the same bits on every node, in whatever order they
//! came. [`fold`] is the whole of it; [`Fold`] takes one epoch at a time, so that a proposer can try one.
//! [`EpochFold`] folds the certified epochs: the next epoch's weights come from it.
//!
//! Who may believe what: a report counts only as far as reporters of more than a third of the weight make
//! the same claim about a node ([`vouched`]), the node itself left out. `docs/trust.md` has the reasons.

pub mod certified;
mod count;
pub mod fold;
pub mod history;
pub mod local;
pub mod params;
mod report;

pub use certified::{EpochFold, Known, PastEpoch, Target, WINDOW};
pub use fold::{Boundary, Fold, Member, Members, Missing, Rules, fold};
pub use history::{Cause, Change, Reference};
pub use local::LocalTrust;
pub use params::Params;
pub use report::{NodeTrust, TrustReport};

use serde::Serialize;

use super::evidence::ProofKind;

/// One hit, or miss, in the fixed point of [`Standing::alpha`] and [`Standing::beta`].
pub const ONE: u64 = 256;

/// Where a node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Hits, faded by 1/16 per epoch, in units of 1/256.
    pub alpha: u64,
    /// Misses, the same.
    pub beta: u64,
    /// Remediations that failed since the last one that helped.
    pub strikes: u32,
    /// What was proved; it stays.
    pub proofs: Vec<ProofKind>,
    /// Epochs since the last change by evidence.
    pub idle_epochs: u64,
}

impl Standing {
    /// `⌊1000 (α+1) / (α+β+2)⌋`: 500 is neutral.
    pub fn per_mille(&self) -> u32 {
        self.share(1_000)
    }

    fn share(&self, of: u32) -> u32 {
        let good = self.alpha.saturating_add(ONE);
        let all = self.alpha.saturating_add(self.beta).saturating_add(2 * ONE);
        let share = u128::from(of) * u128::from(good) / u128::from(all.max(1));
        u32::try_from(share).unwrap_or(of)
    }

    /// `clamp(⌊K (α+1) / (α+β+2)⌋)`, halved by each strike, at least 1; 0 once something was proved.
    pub fn weight(&self, params: &Params) -> u32 {
        if !self.proofs.is_empty() {
            return 0;
        }
        let weight = self
            .share(params.k)
            .clamp(params.floor, params.ceiling.max(params.floor));
        weight.checked_shr(self.strikes).unwrap_or(0).max(1)
    }
}

/// The largest number that reporters of at least `needed` weight each reach, of (weight, number) pairs.
///
/// Liars hold less than a third of the weight, so with `needed` above a third one of those reporters is
/// honest: nobody is credited with, or blamed for, more than an honest node has seen.
pub(crate) fn vouched(mut reports: Vec<(u64, u32)>, needed: u64) -> u32 {
    reports.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let mut weight = 0_u64;
    for (own, number) in reports {
        weight = weight.saturating_add(own);
        if weight >= needed {
            return number;
        }
    }
    0
}

#[cfg(test)]
mod tests;
