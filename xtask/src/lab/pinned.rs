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
    hits: Field,
    first_hit_ns: Field,
    /// Sources that are being dropped now, with counts that the block map has not got yet.
    hot: Option<HotMap>,
}

/// The pinned map of hot sources, an array of slots.
#[derive(Debug)]
struct HotMap {
    map: OwnedFd,
    slots: u32,
    slot_size: usize,
    addr: Field,
    family: Field,
    hits: Field,
}

/// Where an integer is in a map's value, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// From the value's beginning.
    pub at: usize,
    /// How many bytes it has.
    pub size: usize,
}

#[derive(Debug, Deserialize)]
struct MapInfo {
    #[serde(rename = "type")]
    kind: String,
    bytes_value: usize,
    max_entries: u32,
}

#[derive(Debug, Deserialize)]
struct Btf {
    types: Vec<BtfType>,
}

#[derive(Debug, Deserialize)]
struct BtfType {
    kind: String,
    /// Bytes.
    #[serde(default)]
    size: usize,
    #[serde(default)]
    members: Vec<BtfMember>,
}

#[derive(Debug, Deserialize)]
struct BtfMember {
    name: String,
    #[serde(default)]
    bits_offset: usize,
}

impl Btf {
    /// The field of this name in the structure that is the value of the map at `path`.
    ///
    /// Nothing is said of the types of fields; but values are shared without padding, so each field ends where the next
    /// one begins.
    fn field(&self, name: &str, path: &Path) -> anyhow::Result<Field> {
        self.types
            .iter()
            .filter(|of| of.kind == "STRUCT")
            .find_map(|of| {
                let begins = |member: &BtfMember| member.bits_offset / 8;
                let mut members = of.members.iter();
                let at = begins(members.find(|member| member.name == name)?);
                let end = members.next().map_or(of.size, begins);
                Some(Field {
                    at,
                    size: end.saturating_sub(at),
                })
            })
            .with_context(|| format!("the values of {} have no field `{name}`", path.display()))
    }
}

/// What the kernel knows of a map, which has to be of this type.
fn info(path: &Path, kind: &str) -> anyhow::Result<MapInfo> {
    let info: MapInfo = bpftool_json(&["map", "show", "pinned"], path, &[])?;
    if info.kind != kind {
        bail!(
            "{} is a map of type {}, not a {kind}",
            path.display(),
            info.kind
        );
    }
    Ok(info)
}

fn type_information(path: &Path) -> anyhow::Result<Btf> {
    bpftool_json(&["btf", "dump", "map", "pinned"], path, &["value"])
}

impl HotMap {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let MapInfo {
            bytes_value,
            max_entries,
            ..
        } = info(path, "array")?;
        let btf = type_information(path)?;
        Ok(Self {
            map: open_pinned(path)?,
            slots: max_entries,
            slot_size: bytes_value,
            addr: btf.field("addr", path)?,
            family: btf.field("family", path)?,
            hits: btf.field("hits", path)?,
        })
    }

    /// Packets of `address` that its block does not know of yet.
    fn pending(&self, address: IpAddr) -> anyhow::Result<u64> {
        let (mut wanted, family) = match address {
            IpAddr::V4(address) => (address.octets().to_vec(), 4),
            IpAddr::V6(address) => (address.octets().to_vec(), 6),
        };
        wanted.resize(self.addr.size, 0);
        for slot in 0..self.slots {
            let Some(value) = look_up(&self.map, &slot.to_ne_bytes(), self.slot_size)? else {
                continue;
            };
            if bytes_at(&value, self.addr)? == wanted && integer_at(&value, self.family)? == family
            {
                return integer_at(&value, self.hits);
            }
        }
        Ok(0)
    }
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
        let value_size = info(path, "hash")?.bytes_value;
        let btf = type_information(path)?;
        Self::with_layout(
            path,
            value_size,
            btf.field("hits", path)?,
            btf.field("first_hit_ns", path)?,
        )
    }

    /// Opens a pinned map of which the layout is known: the value's size, bytes, and where the fields are in it.
    ///
    /// # Errors
    /// When there is no such map, or we are not root.
    pub fn with_layout(
        path: &Path,
        value_size: usize,
        hits: Field,
        first_hit_ns: Field,
    ) -> anyhow::Result<Self> {
        let hot = path.with_file_name("HOT");
        Ok(Self {
            map: open_pinned(path)?,
            value_size,
            hits,
            first_hit_ns,
            hot: hot.exists().then(|| HotMap::open(&hot)).transpose()?,
        })
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
        let hits = integer_at(&value, self.hits)?;
        // A source becomes a hot one with the first packet that its block counts.
        let pending = match &self.hot {
            Some(hot) if hits > 0 => hot.pending(address)?,
            _ => 0,
        };
        Ok(Some(Block {
            hits: hits + pending,
            first_hit_ns: integer_at(&value, self.first_hit_ns)?,
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

fn bytes_at(value: &[u8], field: Field) -> anyhow::Result<&[u8]> {
    value
        .get(field.at..field.at + field.size)
        .context("a field lies outside the value")
}

/// An unsigned integer of four or eight bytes.
fn integer_at(value: &[u8], field: Field) -> anyhow::Result<u64> {
    let bytes = bytes_at(value, field)?;
    if let Ok(bytes) = bytes.try_into() {
        return Ok(u64::from_ne_bytes(bytes));
    }
    let bytes = bytes
        .try_into()
        .with_context(|| format!("an integer of {} bytes", field.size))?;
    Ok(u32::from_ne_bytes(bytes).into())
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
    fn integers_are_read_as_wide_as_they_are_and_nothing_outside_the_value() {
        let value = [1, 0, 0, 0, 2, 0, 0, 0, 9];
        let read = |at, size| integer_at(&value, Field { at, size });
        assert_eq!(read(0, 8).unwrap(), 1 | 2 << 32);
        assert_eq!(read(4, 4).unwrap(), 2);
        assert!(read(0, 2).is_err());
        assert!(read(6, 4).is_err());
    }

    #[test]
    fn fields_are_where_the_type_information_says() {
        let text = r#"{"types":[{"id":124,"kind":"STRUCT","name":"Hot","size":24,"members":[
            {"name":"addr","type_id":105,"bits_offset":0},
            {"name":"hits","type_id":7,"bits_offset":128},
            {"name":"family","type_id":7,"bits_offset":160}]}]}"#;
        let btf: Btf = serde_json::from_str(text).unwrap();
        let field = |name| btf.field(name, Path::new("HOT"));
        assert_eq!(field("addr").unwrap(), Field { at: 0, size: 16 });
        assert_eq!(field("hits").unwrap(), Field { at: 16, size: 4 });
        assert_eq!(field("family").unwrap(), Field { at: 20, size: 4 });
        assert!(field("bytes").is_err());
    }
}
