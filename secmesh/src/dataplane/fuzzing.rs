//! Doors to the codecs of maps and ring, for the fuzz targets (`fuzz/`).

use std::net::IpAddr;

use aya::{Pod, maps::lpm_trie::Key};
use secmesh_common::{
    block::{Net4, Net6},
    event::Event,
};

pub use super::cuckoo_check::Hosts;
use super::{
    cuckoo_check::Published,
    events,
    lists::{Four, Six},
    tables,
};
use crate::addr::Prefix;

/// The event in a ring record, as the reader of the ring decodes it.
pub fn decode_event(record: &[u8]) -> Option<Event> {
    events::decode(record)
}

/// The bytes of a record.
pub fn bytes_of_event(event: &Event) -> Vec<u8> {
    // SAFETY: Event is repr(C) of integers without padding (its size is asserted beside it).
    unsafe { raw(event) }
}

/// A map's value from its bytes; `None` if they are too few or too many.
pub fn pod_from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    (bytes.len() == size_of::<T>()).then(|| {
        // SAFETY: the length was compared; every bit pattern of a Pod is valid; the read is unaligned.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}

/// The bytes of a map's key or value.
pub fn bytes_of_pod<T: Pod>(value: &T) -> Vec<u8> {
    // SAFETY: a Pod may be read as bytes.
    unsafe { raw(value) }
}

/// # Safety
/// `T` has no padding.
unsafe fn raw<T>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: the bytes of a live value, initialised as the caller promises.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

/// The bytes of the key under which a prefix is in a trie.
pub fn trie_key(prefix: &Prefix) -> Vec<u8> {
    match prefix.addr() {
        IpAddr::V4(a) => bytes_of_pod(&tables::net4(a.octets(), prefix.len())),
        IpAddr::V6(a) => bytes_of_pod(&tables::net6(a.octets(), prefix.len())),
    }
}

/// The prefix that a key of a trie stands for, as it is read back from the kernel.
pub fn prefix_of_trie_key(key: &[u8]) -> Option<Prefix> {
    if key.len() == size_of::<Key<Net4>>() {
        tables::net4_prefix(&pod_from_bytes(key)?)
    } else {
        tables::net6_prefix(&pod_from_bytes::<Key<Net6>>(key)?)
    }
}

/// Host tables of both families without a kernel, 256 slots each. What must hold is asserted inside, after
/// every write.
pub struct HostTables {
    four: Published<Four>,
    six: Published<Six>,
}

impl HostTables {
    /// Empty ones.
    pub fn new(seed: u64) -> Self {
        Self {
            four: Published::new(seed, 64),
            // 504 slots; of IPv4 960.
            six: Published::new(seed, 42),
        }
    }

    /// Replaces the hosts: an address with its end and its list. The writes from the `fails_at`th on are
    /// refused. Says whether each table took them.
    ///
    /// # Panics
    /// When a host that is in the old and in the new set could not be found at any moment.
    pub fn replace(
        &mut self,
        four: &Hosts<u32>,
        six: &Hosts<u128>,
        fails_at: Option<usize>,
    ) -> [bool; 2] {
        [
            self.four.replace(four, fails_at).is_ok(),
            self.six.replace(six, fails_at).is_ok(),
        ]
    }

    /// The agent ends, and another one learns what is there.
    pub fn restart(&mut self) {
        self.four.restart();
        self.six.restart();
    }
}
