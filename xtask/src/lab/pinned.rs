//! Reading a block map that an agent pinned, without the agent.

use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::sh;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_GET: libc::c_long = 7;

/// The exact block map for an address's family, in a node's pin folder.
pub fn block_map(pin_dir: &Path, address: IpAddr) -> PathBuf {
    pin_dir.join(if address.is_ipv4() {
        "BLOCK4"
    } else {
        "BLOCK6"
    })
}

/// One block as it stands in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Packets that met it.
    pub hits: u64,
    /// When the first of them came, `CLOCK_MONOTONIC` ns; 0 if none did.
    pub first_hit_ns: u64,
}

/// A pinned block map, opened for looking up.
///
/// A look-up is one system call, some microseconds, so a lab can watch for the moment in which a block
/// appears; `bpftool`, which is asked for the layout and as a second witness, takes some milliseconds.
#[derive(Debug)]
pub struct BlockMap {
    map: OwnedFd,
    value_size: usize,
    hits_at: usize,
    first_hit_at: usize,
    /// The map of sources that are being dropped now, with counts that the block map has not got yet.
    hot: Option<OwnedFd>,
}

/// Slots of the map of hot sources, their size, and where in them the address, its family and the packets
/// are (`HotSource` in secmesh-common/src/hot.rs).
const HOT_SLOTS: u32 = 1 << 12;
const HOT_SIZE: usize = 64;
const HOT_HITS_AT: usize = 24;
const HOT_FAMILY_AT: usize = 60;

#[derive(Debug, Deserialize)]
struct MapInfo {
    #[serde(rename = "type")]
    kind: String,
    bytes_value: usize,
}

#[derive(Debug, Deserialize)]
struct Btf {
    types: Vec<BtfType>,
}

#[derive(Debug, Deserialize)]
struct BtfType {
    kind: String,
    #[serde(default)]
    members: Vec<BtfMember>,
}

#[derive(Debug, Deserialize)]
struct BtfMember {
    name: String,
    #[serde(default)]
    bits_offset: usize,
}

/// The layout of `BPF_OBJ_GET`'s argument.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The layout of `BPF_MAP_LOOKUP_ELEM`'s argument.
#[repr(C)]
struct LookupElem {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl BlockMap {
    /// Opens the map pinned at `path`; where its fields are is read from the map's own type information.
    ///
    /// # Errors
    /// When there is no such map, it is no hash, or it carries no BTF with the fields of a block.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let info: MapInfo = bpftool_json(&["map", "show", "pinned"], path, &[])?;
        if info.kind != "hash" {
            bail!(
                "{} is a map of type {}, not a hash",
                path.display(),
                info.kind
            );
        }
        let btf: Btf = bpftool_json(&["btf", "dump", "map", "pinned"], path, &["value"])?;
        let offset = |field: &str| -> Option<usize> {
            let holder = btf
                .types
                .iter()
                .find(|t| t.kind == "STRUCT" && t.members.iter().any(|m| m.name == field))?;
            holder
                .members
                .iter()
                .find(|m| m.name == field)
                .map(|m| m.bits_offset / 8)
        };
        let hits_at = offset("hits")
            .with_context(|| format!("the values of {} have no field `hits`", path.display()))?;
        let first_hit_at = offset("first_hit_ns").with_context(|| {
            format!(
                "the values of {} have no field `first_hit_ns`",
                path.display()
            )
        })?;

        Self::with_layout(path, info.bytes_value, hits_at, first_hit_at)
    }

    /// Opens a pinned map of which the layout is known: the value's size and the offsets of `hits` and
    /// `first_hit_ns` in it, in bytes.
    ///
    /// # Errors
    /// When there is no such map, or we are not root.
    pub fn with_layout(
        path: &Path,
        value_size: usize,
        hits_at: usize,
        first_hit_at: usize,
    ) -> anyhow::Result<Self> {
        let hot = path.with_file_name("HOT");
        Ok(Self {
            map: open_pinned(path)?,
            value_size,
            hits_at,
            first_hit_at,
            hot: hot.exists().then(|| open_pinned(&hot)).transpose()?,
        })
    }

    /// Packets of `address` that were dropped and are not in its block yet: up to the last tenth of a second
    /// of a flood.
    fn pending(&self, address: IpAddr) -> anyhow::Result<u64> {
        let Some(hot) = &self.hot else {
            return Ok(0);
        };
        let (mut wanted, family) = match address {
            IpAddr::V4(address) => (address.octets().to_vec(), 4),
            IpAddr::V6(address) => (address.octets().to_vec(), 6),
        };
        wanted.resize(16, 0);
        for slot in 0..HOT_SLOTS {
            let Some(value) = look_up(hot, &slot.to_ne_bytes(), HOT_SIZE)? else {
                continue;
            };
            if value.starts_with(&wanted) && value.get(HOT_FAMILY_AT) == Some(&family) {
                return u64_at(&value, HOT_HITS_AT);
            }
        }
        Ok(0)
    }

    /// The block of `address`, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses the look-up.
    pub fn get(&self, address: IpAddr) -> anyhow::Result<Option<Block>> {
        let key: Vec<u8> = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let Some(value) = look_up(&self.map, &key, self.value_size)? else {
            return Ok(None);
        };
        let hits = u64_at(&value, self.hits_at)?;
        let pending = if hits > 0 { self.pending(address)? } else { 0 };
        Ok(Some(Block {
            hits: hits + pending,
            first_hit_ns: u64_at(&value, self.first_hit_at)?,
        }))
    }
}

fn open_pinned(path: &Path) -> anyhow::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte")?;
    let argument = ObjGet {
        pathname: name.as_ptr().addr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the argument and the path it points to live through the call, and its size is given.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET,
            &raw const argument,
            size_of::<ObjGet>(),
        )
    };
    let fd = nix::errno::Errno::result(fd)
        .with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    let fd = i32::try_from(fd).context("descriptor out of range")?;
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The value of a key, if the map has it.
fn look_up(map: &OwnedFd, key: &[u8], value_size: usize) -> anyhow::Result<Option<Vec<u8>>> {
    // Some bytes more than the value, for a kernel that rounds up.
    let mut value = vec![0_u8; value_size + 8];
    let argument = LookupElem {
        map_fd: u32::try_from(map.as_raw_fd()).context("descriptor out of range")?,
        padding: 0,
        key: key.as_ptr().addr() as u64,
        value: value.as_mut_ptr().addr() as u64,
        flags: 0,
    };
    // SAFETY: key and value live through the call and are at least as long as the map's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_ELEM,
            &raw const argument,
            size_of::<LookupElem>(),
        )
    };
    match nix::errno::Errno::result(result) {
        Ok(_) => Ok(Some(value)),
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(error) => Err(error).context("cannot look a block up in the kernel's map"),
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> anyhow::Result<u64> {
    let field = bytes
        .get(offset..offset + 8)
        .context("a field lies outside the value")?;
    Ok(u64::from_ne_bytes(
        field.try_into().context("a field of eight bytes")?,
    ))
}

/// An entry as `bpftool -j map dump` prints it.
#[derive(Debug, Clone, Deserialize)]
pub struct DumpedEntry {
    /// The key's bytes, as `0x0a`.
    pub key: Vec<String>,
    /// Key and value with their fields' names; only there if the map has BTF.
    #[serde(default)]
    pub formatted: Option<serde_json::Value>,
}

impl DumpedEntry {
    /// Whether this is the entry of `address`.
    pub fn is_of(&self, address: IpAddr) -> bool {
        let bytes: Vec<u8> = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let key: Option<Vec<u8>> = self
            .key
            .iter()
            .map(|byte| u8::from_str_radix(byte.trim_start_matches("0x"), 16).ok())
            .collect();
        key.is_some_and(|key| key == bytes)
    }
}

/// All entries of a pinned map, by `bpftool`.
///
/// # Errors
/// When `bpftool` fails or prints something else.
pub fn dump(path: &Path) -> anyhow::Result<Vec<DumpedEntry>> {
    bpftool_json(&["map", "dump", "pinned"], path, &[])
}

fn bpftool_json<T: serde::de::DeserializeOwned>(
    before: &[&str],
    path: &Path,
    after: &[&str],
) -> anyhow::Result<T> {
    let output = sh::output(
        sh::command("bpftool")
            .arg("-j")
            .args(before)
            .arg(path)
            .args(after),
    )?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("cannot read what bpftool printed about {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_recognised_by_its_bytes() {
        let text = r#"[{"key":["0x0a","0x4d","0x00","0xc8"],"value":["0x00"],"formatted":{"key":{"addr":[10,77,0,200]},"value":{"hits":3}}}]"#;
        let entries: Vec<DumpedEntry> = serde_json::from_str(text).unwrap();
        assert!(entries[0].is_of("10.77.0.200".parse().unwrap()));
        assert!(!entries[0].is_of("10.77.0.201".parse().unwrap()));
        assert!(!entries[0].is_of("fd77::c8".parse().unwrap()));
    }

    #[test]
    fn a_field_outside_the_value_is_an_error() {
        assert_eq!(u64_at(&[1, 0, 0, 0, 0, 0, 0, 0, 9], 0).unwrap(), 1);
        assert!(u64_at(&[0; 8], 1).is_err());
    }
}
