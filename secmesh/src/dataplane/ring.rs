//! Rings of records of one kind, read when the kernel says there is something, and not before.

use std::{io, marker::PhantomData};

use aya::{
    Pod,
    maps::{Map, MapData, RingBuf},
};
use tokio::io::unix::AsyncFd;

use super::DataplaneError;

/// Reads records as they come.
pub struct RingReader<T> {
    ring: AsyncFd<RingBuf<MapData>>,
    records: PhantomData<T>,
}

impl<T: Pod> RingReader<T> {
    pub(super) fn new(map: Map) -> Result<Self, DataplaneError> {
        let ring: RingBuf<MapData> = map.try_into().map_err(DataplaneError::Map)?;
        Ok(Self {
            // SAFETY: the map owns its descriptor and closes it only when dropped, which AsyncFd, its new
            // owner, does after it has deregistered it.
            ring: unsafe { AsyncFd::register(ring) }.map_err(|e| DataplaneError::Ring(e.into()))?,
            records: PhantomData,
        })
    }

    /// Waits for records and moves at most `max` of them to `out`.
    ///
    /// Cancel safe: a record leaves the ring only when it is in `out`.
    ///
    /// # Errors
    ///
    /// If the ring can no longer be watched.
    pub async fn read(&mut self, out: &mut Vec<T>, max: usize) -> io::Result<()> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let before = out.len();
            if drain(guard.get_inner_mut(), out, max) {
                guard.clear_ready();
            }
            if out.len() > before {
                return Ok(());
            }
        }
    }

    /// Moves at most `max` records that are there to `out`, without waiting.
    pub fn take_ready(&mut self, out: &mut Vec<T>, max: usize) {
        drain(self.ring.get_mut(), out, max);
    }
}

/// Whether the ring was emptied.
fn drain<T: Pod>(ring: &mut RingBuf<MapData>, out: &mut Vec<T>, max: usize) -> bool {
    for _ in 0..max {
        let Some(item) = ring.next() else {
            return true;
        };
        out.extend(decode::<T>(&item));
    }
    false
}

/// The record in these bytes; `None` for one of another size, which another schema's program left.
fn decode<T: Pod>(record: &[u8]) -> Option<T> {
    if record.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length was compared; every bit pattern of a Pod is valid; the read is unaligned.
    Some(unsafe { record.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_another_size_are_none_of_ours() {
        assert_eq!(decode::<u32>(&7u32.to_ne_bytes()), Some(7));
        assert_eq!(decode::<u32>(&[0; 3]), None);
        assert_eq!(decode::<u32>(&[0; 5]), None);
        assert_eq!(decode::<u32>(&[]), None);
    }
}
