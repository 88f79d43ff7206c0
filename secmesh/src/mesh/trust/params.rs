//! The numbers of the fold. All nodes have to use the same ones, so they belong into an epoch's record.

use serde::Serialize;

use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/trust-params/1";

/// The numbers of the fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Params {
    /// K: twice the weight of a node that nothing is known about.
    pub k: u32,
    /// Least weight of a node without strikes and proofs.
    pub floor: u32,
    /// Most weight of a node. No more than K/2 by default: then no evidence lifts a node above a newcomer,
    /// and pumping each other up gains liars nothing; hits make up for misses.
    pub ceiling: u32,
    /// Most hits per node and epoch that count. With the decay of 1/16, α is at most 16 times that.
    pub hits_per_epoch: u32,
    /// Most misses per node and epoch that count.
    pub misses_per_epoch: u32,
    /// Most reports of one kind by one author on one node and epoch that count.
    pub reports_per_epoch: u32,
    /// Misses that a false positive by the operator's verdict is.
    pub verdict_misses: u32,
    /// Misses that a wrong answer, or a false positive by the word of nodes, is.
    pub report_misses: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            k: 200,
            floor: 10,
            ceiling: 100,
            hits_per_epoch: 2,
            misses_per_epoch: 16,
            reports_per_epoch: 8,
            verdict_misses: 4,
            report_misses: 2,
        }
    }
}

impl Params {
    fn fields(&self) -> [u32; 8] {
        [
            self.k,
            self.floor,
            self.ceiling,
            self.hits_per_epoch,
            self.misses_per_epoch,
            self.reports_per_epoch,
            self.verdict_misses,
            self.report_misses,
        ]
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        for field in self.fields() {
            e.u32(field);
        }
        e.finish()
    }

    /// Reads [`Params::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical, or out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, TAG)?;
        let params = Self {
            k: d.u32("k")?,
            floor: d.u32("floor")?,
            ceiling: d.u32("ceiling")?,
            hits_per_epoch: d.u32("hits_per_epoch")?,
            misses_per_epoch: d.u32("misses_per_epoch")?,
            reports_per_epoch: d.u32("reports_per_epoch")?,
            verdict_misses: d.u32("verdict_misses")?,
            report_misses: d.u32("report_misses")?,
        };
        d.finish()?;
        let sound = params.floor >= 1
            && params.floor <= params.ceiling
            && params.ceiling <= params.k
            && params.fields().iter().all(|field| *field <= 1 << 20);
        if sound {
            Ok(params)
        } else {
            Err(WireError::Invalid {
                field: "trust parameters",
                why: "not 1 ≤ floor ≤ ceiling ≤ k, or above 2^20",
            })
        }
    }
}
