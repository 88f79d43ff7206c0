//! The kernel's counters, summed over CPUs.

use aya::maps::{Map, MapData, PerCpuArray};
use secmesh_common::counters::Counters;

use super::DataplaneError;

/// Reads the per-CPU counters.
pub struct CounterReader {
    map: PerCpuArray<MapData, Counters>,
}

impl CounterReader {
    pub(super) fn new(map: Map) -> Result<Self, DataplaneError> {
        Ok(Self {
            map: map.try_into().map_err(DataplaneError::Map)?,
        })
    }

    /// The sums now.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map read.
    pub fn read(&self) -> Result<Counters, DataplaneError> {
        let per_cpu = self.map.get(&0, 0).map_err(DataplaneError::Map)?;
        let mut sum = Counters::default();
        for one in per_cpu.iter() {
            sum.add(one);
        }
        Ok(sum)
    }
}
