//! The kernel's run-time configuration, which several tables change a part of.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, MapData};
use secmesh_common::{config::Config as KernelConfig, lease::EPOCH};

use super::DataplaneError;

struct Inner {
    map: Array<MapData, KernelConfig>,
    current: KernelConfig,
}

impl Inner {
    /// Writes the entry, and another epoch once all else is there: an entry is copied in no particular order, and who saw
    /// the new epoch beside an old field would judge by that for a whole tick.
    fn put(&mut self, mut wanted: KernelConfig) -> Result<(), DataplaneError> {
        wanted.epoch = self.current.epoch;
        if wanted != self.current {
            self.write(wanted)?;
        }
        wanted.epoch = wanted.epoch.wrapping_add(EPOCH);
        self.write(wanted)
    }

    fn write(&mut self, wanted: KernelConfig) -> Result<(), DataplaneError> {
        self.map.set(0, wanted, 0).map_err(DataplaneError::Map)?;
        self.current = wanted;
        Ok(())
    }
}

/// A handle to the one entry of the configuration map and what is in it.
#[derive(Clone)]
pub(super) struct ConfigCell(Arc<Mutex<Inner>>);

impl ConfigCell {
    /// Reads what the map holds.
    pub fn open(map: Array<MapData, KernelConfig>) -> Result<Self, DataplaneError> {
        let current = map.get(&0, 0).map_err(DataplaneError::Map)?;
        Ok(Self(Arc::new(Mutex::new(Inner { map, current }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves a whole entry behind: it is replaced in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    pub fn get(&self) -> KernelConfig {
        self.lock().current
    }

    /// Writes the entry again if somebody else changed it; whether that was so.
    pub fn put_right(&self) -> Result<bool, DataplaneError> {
        let mut inner = self.lock();
        let wanted = inner.current;
        if inner.map.get(&0, 0).map_err(DataplaneError::Map)? == wanted {
            return Ok(false);
        }
        inner.map.set(0, wanted, 0).map_err(DataplaneError::Map)?;
        Ok(true)
    }

    /// Changes it; nothing is written if nothing changed.
    pub fn update(&self, change: impl FnOnce(&mut KernelConfig)) -> Result<(), DataplaneError> {
        let mut inner = self.lock();
        let mut wanted = inner.current;
        change(&mut wanted);
        let wanted = wanted.settled();
        if wanted != inner.current {
            inner.put(wanted)?;
        }
        Ok(())
    }

    /// Ends what is known of sources that were let through: to be called once something else was written that packets
    /// are judged by. What nobody calls this for holds from the kernel's next timer tick on.
    pub fn renew(&self) -> Result<(), DataplaneError> {
        let mut inner = self.lock();
        let wanted = inner.current;
        inner.put(wanted)
    }
}
