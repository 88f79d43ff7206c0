//! Many elements of an array map by one system call; aya writes one with each.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, MapData, MapError},
    sys::SyscallError,
};
use nix::libc;

/// `BPF_MAP_UPDATE_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h), Linux 5.6.
const MAP_UPDATE_BATCH: libc::c_int = 26;
/// Elements of one call: bounds what the kernel does before it looks for something else to run.
const MOST: usize = 1 << 14;

/// The batch member of `union bpf_attr`.
#[repr(C)]
struct Batch {
    /// Where to begin and where it ended: for look-ups only.
    positions: [u64; 2],
    keys: *const u32,
    values: *const libc::c_void,
    count: u32,
    map_fd: libc::c_int,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(
    size_of::<*const u32>() != 8 || size_of::<Batch>() == 56,
    "the kernel's layout"
);

/// Writes `values` into the elements `first`, `first + 1`, … in that order.
///
/// # Errors
///
/// The kernel's refusal, such as elements beyond the map's end; those before are written then.
pub(super) fn set<V: Pod>(
    array: &Array<MapData, V>,
    first: u32,
    values: &[V],
) -> Result<(), MapError> {
    let mut at = first;
    for part in values.chunks(MOST) {
        let keys: Vec<u32> = (at..).take(part.len()).collect();
        call(array, &keys, part).map_err(|io_error| {
            MapError::SyscallError(SyscallError {
                call: "bpf_map_update_batch",
                io_error,
            })
        })?;
        at = at.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
    }
    Ok(())
}

fn call<V: Pod>(array: &Array<MapData, V>, keys: &[u32], values: &[V]) -> io::Result<()> {
    // aya checked when it made the array that the map's elements are as long as a value.
    let mut attr = Batch {
        positions: [0; 2],
        keys: keys.as_ptr(),
        values: values.as_ptr().cast(),
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(0),
        map_fd: array.map().fd().as_fd().as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes have the kernel's layout, and `count` keys and values are where they point to until
    // after the call; the kernel only reads those. It writes the number done into `count`, a copy of nobody's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_UPDATE_BATCH,
            &raw mut attr,
            size_of::<Batch>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
