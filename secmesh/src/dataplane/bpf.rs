//! The few `bpf(2)` calls on maps of unknown layout, which aya's typed maps refuse: bytes in, bytes out.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::libc;

// Commands and flags: enum bpf_cmd and the flags of BPF_OBJ_GET in include/uapi/linux/bpf.h.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BTF_GET_FD_BY_ID: libc::c_long = 19;
const READ_ONLY: u32 = 1 << 3;

/// More type information than any object of ours has, bytes.
const MAX_BTF: u32 = 16 * 1024 * 1024;

#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct Elem {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct FdById {
    id: u32,
    pad: u32,
    open_flags: u32,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

/// `struct bpf_map_info` up to `btf_value_type_id`, in words.
const MAP_INFO_WORDS: usize = 19;
/// Which of them is `btf_id`.
const MAP_INFO_BTF: usize = 16;

/// One call, its attributes as the start of `union bpf_attr` that the command reads.
pub(super) fn call<T>(command: libc::c_long, argument: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: callers fill the part of `union bpf_attr` that the command reads, with addresses of buffers that
    // live through the call and are as long as the command says; the kernel takes the rest as zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            core::ptr::from_mut(argument),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn address<T>(of: *const T) -> u64 {
    of.addr() as u64
}

/// Opens a pin; for reading only if `read_only`.
pub(super) fn open_pin(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    owned(call(
        OBJ_GET,
        &mut ObjGet {
            pathname: address(name.as_ptr()),
            bpf_fd: 0,
            file_flags: if read_only { READ_ONLY } else { 0 },
        },
    )?)
}

/// The key after `key`; the first one for `None`. `None` after the last one.
pub(super) fn next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    key_size: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0u8; key_size];
    let outcome = call(
        MAP_GET_NEXT_KEY,
        &mut Elem {
            map_fd: number(map),
            pad: 0,
            key: key.map_or(0, |k| address(k.as_ptr())),
            value_or_next: address(next.as_mut_ptr()),
            flags: 0,
        },
    );
    match outcome {
        Ok(_) => Ok(Some(next)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads the value of `key` into `value`, which must be as long as the map's values; of a per-CPU map, as the
/// values of all possible CPUs, each rounded up to eight bytes. `false` if the key is not there.
pub(super) fn look_up(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let outcome = call(
        MAP_LOOKUP_ELEM,
        &mut Elem {
            map_fd: number(map),
            pad: 0,
            key: address(key.as_ptr()),
            value_or_next: address(value.as_mut_ptr()),
            flags: 0,
        },
    );
    match outcome {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Writes a value as long as [`look_up`]'s.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    call(
        MAP_UPDATE_ELEM,
        &mut Elem {
            map_fd: number(map),
            pad: 0,
            key: address(key.as_ptr()),
            value_or_next: address(value.as_ptr()),
            flags: 0,
        },
    )
    .map(drop)
}

/// The type information that a map was made with, as it stands in its object; `None` if it has none.
pub(super) fn type_information(map: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut words = [0u32; MAP_INFO_WORDS];
    call(
        OBJ_GET_INFO_BY_FD,
        &mut InfoByFd {
            bpf_fd: number(map),
            info_len: 4 * u32::try_from(MAP_INFO_WORDS).unwrap_or(0),
            info: address(words.as_mut_ptr()),
        },
    )?;
    let id = words.get(MAP_INFO_BTF).copied().unwrap_or(0);
    if id == 0 {
        return Ok(None);
    }
    let btf = owned(call(
        BTF_GET_FD_BY_ID,
        &mut FdById {
            id,
            pad: 0,
            open_flags: 0,
        },
    )?)?;
    // The first call says how much there is, the second one fetches it.
    let mut bytes = Vec::new();
    for _ in 0..2 {
        let mut info = BtfInfo {
            btf: address(bytes.as_mut_ptr()),
            btf_size: u32::try_from(bytes.len()).unwrap_or(0),
            ..BtfInfo::default()
        };
        call(
            OBJ_GET_INFO_BY_FD,
            &mut InfoByFd {
                bpf_fd: btf.as_raw_fd().unsigned_abs(),
                info_len: u32::try_from(size_of::<BtfInfo>()).unwrap_or(0),
                info: address(core::ptr::from_mut(&mut info)),
            },
        )?;
        if info.btf_size > MAX_BTF {
            return Ok(None);
        }
        bytes.resize(usize::try_from(info.btf_size).unwrap_or(0), 0u8);
    }
    Ok(Some(bytes))
}
