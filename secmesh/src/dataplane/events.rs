//! The event ring, read when the kernel says there is something, and not before.

use std::io;

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use aya_log::EbpfLogger;
use secmesh_common::event::Event;
use tokio::io::unix::AsyncFd;

use super::DataplaneError;

/// Reads events as they come.
pub struct EventReader {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventReader {
    pub(super) fn new(map: Map) -> Result<Self, DataplaneError> {
        let ring: RingBuf<MapData> = map.try_into().map_err(DataplaneError::Map)?;
        Ok(Self {
            // SAFETY: the map owns its descriptor and closes it only when dropped, which AsyncFd, its new
            // owner, does after it has deregistered it.
            ring: unsafe { AsyncFd::register(ring) }.map_err(|e| DataplaneError::Ring(e.into()))?,
        })
    }

    /// Waits for events and moves at most `max` of them to `out`.
    ///
    /// Cancel safe: an event leaves the ring only when it is in `out`.
    ///
    /// # Errors
    ///
    /// If the ring can no longer be watched.
    pub async fn read(&mut self, out: &mut Vec<Event>, max: usize) -> io::Result<()> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let before = out.len();
            while out.len() - before < max {
                let Some(item) = ring.next() else {
                    guard.clear_ready();
                    break;
                };
                if let Some(event) = decode(&item) {
                    out.push(event);
                }
            }
            if out.len() > before {
                return Ok(());
            }
        }
    }
}

/// The event in a ring record; `None` for one of another size, which another schema's program left.
pub(super) fn decode(record: &[u8]) -> Option<Event> {
    if record.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length was compared; Event is repr(C) of integers, so every bit pattern is valid; the
    // read is unaligned.
    Some(unsafe { record.as_ptr().cast::<Event>().read_unaligned() })
}

/// The kernel program's debug log.
pub struct KernelLog {
    logger: AsyncFd<EbpfLogger<&'static dyn log::Log>>,
}

impl KernelLog {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let logger = EbpfLogger::init(ebpf)
            .map_err(|e| DataplaneError::Ring(io::Error::other(e.to_string())))?;
        Ok(Self {
            // SAFETY: the map owns its descriptor and closes it only when dropped, which AsyncFd, its new
            // owner, does after it has deregistered it.
            logger: unsafe { AsyncFd::register(logger) }
                .map_err(|e| DataplaneError::Ring(e.into()))?,
        })
    }

    /// Forwards records to the `log` facade until the ring fails.
    ///
    /// # Errors
    ///
    /// If the ring can no longer be watched.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let mut guard = self.logger.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}
