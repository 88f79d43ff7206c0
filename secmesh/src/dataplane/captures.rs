//! The ring of captured heads of dropped packets.

use aya::maps::{Map, MapData, RingBuf};
use secmesh_common::capture::{Captured, MAX_SNAP};

use super::{DataplaneError, cell::ConfigCell};

/// Turns capturing on and off, and takes what was captured.
pub struct CaptureReader {
    ring: RingBuf<MapData>,
    config: ConfigCell,
}

impl CaptureReader {
    pub(super) fn new(map: Map, config: ConfigCell) -> Result<Self, DataplaneError> {
        Ok(Self {
            ring: map.try_into().map_err(DataplaneError::Map)?,
            config,
        })
    }

    /// Captures the first `snap` bytes (1 to [`MAX_SNAP`]) of packets that are dropped for one of `reasons`
    /// ([`secmesh_common::reason::Reason::bit`]s). What an earlier capture left is thrown away.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map write.
    pub fn start(&mut self, reasons: u64, snap: usize) -> Result<(), DataplaneError> {
        self.stop()?;
        while self.ring.next().is_some() {}
        let snap = snap.clamp(1, MAX_SNAP) as u64;
        self.config.update(|c| {
            c.capture_snap = snap;
            c.capture = reasons;
        })
    }

    /// Captures nothing more. What is in the ring can still be taken.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map write.
    pub fn stop(&mut self) -> Result<(), DataplaneError> {
        self.config.update(|c| c.capture = 0)
    }

    /// Takes at most `max` heads.
    pub fn take(&mut self, max: usize) -> Vec<Captured> {
        let mut heads = Vec::new();
        while heads.len() < max {
            let Some(record) = self.ring.next() else {
                break;
            };
            if record.len() == size_of::<Captured>() {
                // SAFETY: the length was compared; the record is repr(C) of integers, so every bit pattern is
                // valid; the read is unaligned.
                heads.push(unsafe { record.as_ptr().cast::<Captured>().read_unaligned() });
            }
        }
        heads
    }
}
