//! Many elements of an array map by one system call; aya writes one with each.

use std::{
    borrow::Borrow,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, MapData, MapError},
    sys::SyscallError,
};
use nix::libc;

use super::bpf;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`, Linux 5.6.
const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h), Linux 5.6.
const MAP_UPDATE_BATCH: libc::c_long = 26;
/// Elements of one call: bounds what the kernel does before it looks for something else to run.
const MOST: usize = 1 << 14;

/// The batch member of `union bpf_attr`. Reading fills what the pointers lead to, so they come from exclusive
/// borrows there.
#[repr(C)]
struct Many {
    in_batch: *const u32,
    out_batch: *mut u32,
    keys: *const u32,
    values: *const libc::c_void,
    count: u32,
    map_fd: libc::c_int,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(
    size_of::<*const u32>() != 8 || size_of::<Many>() == 56,
    "the kernel's layout"
);

/// Writes `values` into the elements `first`, `first + 1`, … in that order.
///
/// # Errors
///
/// The kernel's refusal, such as elements beyond the map's end; those before are written then.
pub fn set<T: Borrow<MapData>, V: Pod>(
    array: &Array<T, V>,
    first: u32,
    values: &[V],
) -> Result<(), MapError> {
    let mut at = first;
    for part in values.chunks(MOST) {
        let keys: Vec<u32> = (at..).take(part.len()).collect();
        set_each(array, &keys, part)?;
        at = at.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
    }
    Ok(())
}

/// Writes each of `values` into the element of `keys` at the same place, in that order.
///
/// # Errors
///
/// As [`set`].
pub fn set_each<T: Borrow<MapData>, V: Pod>(
    array: &Array<T, V>,
    keys: &[u32],
    values: &[V],
) -> Result<(), MapError> {
    for (keys, values) in keys.chunks(MOST).zip(values.chunks(MOST)) {
        call(array, keys, values).map_err(|io_error| {
            MapError::SyscallError(SyscallError {
                call: "bpf_map_update_batch",
                io_error,
            })
        })?;
    }
    Ok(())
}

fn call<T: Borrow<MapData>, V: Pod>(
    array: &Array<T, V>,
    keys: &[u32],
    values: &[V],
) -> io::Result<()> {
    // aya checked when it made the array that the map's elements are as long as a value.
    let mut attr = Many {
        in_batch: std::ptr::null(),
        out_batch: std::ptr::null_mut(),
        keys: keys.as_ptr(),
        values: values.as_ptr().cast(),
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(0),
        map_fd: array.map().fd().as_fd().as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    bpf::call(MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Reads the elements `first`, `first + 1`, …, at most `count` and no more than there are.
///
/// # Errors
///
/// The kernel's refusal.
pub fn get<T: Borrow<MapData>, V: Pod + Default>(
    array: &Array<T, V>,
    first: u32,
    count: u32,
) -> Result<Vec<V>, MapError> {
    let left = array.len().saturating_sub(first);
    let wanted = usize::try_from(count.min(left)).unwrap_or(0);
    let mut values = vec![V::default(); wanted];
    if wanted == 0 {
        return Ok(values);
    }
    let mut keys = vec![0u32; wanted];
    // The kernel goes on after the key that it is given; without one it begins with the first.
    let before = first.checked_sub(1);
    let mut last = 0u32;
    let mut attr = Many {
        in_batch: before.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        out_batch: &raw mut last,
        keys: keys.as_mut_ptr(),
        values: values.as_mut_ptr().cast_const().cast(),
        count: u32::try_from(wanted).unwrap_or(0),
        map_fd: array.map().fd().as_fd().as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    match bpf::call(MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => {}
        // So it says when the last element was among them.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(io_error) => {
            return Err(MapError::SyscallError(SyscallError {
                call: "bpf_map_lookup_batch",
                io_error,
            }));
        }
    }
    values.truncate(usize::try_from(attr.count).unwrap_or(0));
    Ok(values)
}
