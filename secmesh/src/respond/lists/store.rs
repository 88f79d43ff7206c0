//! Lists on the disk: one file each, whole and checked or not read at all.
//!
//! ```text
//! magic 8 │ version u32 │ length of meta u32 │ IPv4 spans u64 │ IPv6 spans u64 │ meta (JSON)
//! │ IPv4: start u32, end u32, expires u64 … │ IPv6: start u128, end u128, expires u64 … │ SHA-256
//! ```
//!
//! Little-endian; the hash covers everything before it. `secmesh decisions import` writes
//! `NAME.staged-PID`; only the agent turns that into `NAME.list`, after it has checked it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    format::MAX_ENTRIES,
    name::ListName,
    span::{Address, Span, Spans},
};
use crate::state::{StateDir, StateError, read_capped};

/// Folder of the lists in the state directory.
pub const FOLDER: &str = "lists";
/// Lists at once.
pub const MAX_LISTS: usize = 256;

const MAGIC: &[u8; 8] = b"SECMLIST";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 4 + 8 + 8;
const MAX_META: usize = 16 << 10;
const V4_BYTES: usize = 16;
const V6_BYTES: usize = 40;
const HASH: usize = 32;
/// Merging may make two spans of one entry.
const MAX_SPANS: usize = 2 * MAX_ENTRIES;
const MAX_FILE: u64 = (HEADER + MAX_META + HASH) as u64 + (MAX_SPANS * V6_BYTES) as u64;

const FINAL: &str = "list";
const STAGED: &str = "staged-";

/// What is known of a list besides its spans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Its name.
    pub name: ListName,
    /// Its number in the kernel's entries; 0 until the agent has given it one.
    pub number: u16,
    /// Where it came from: a path, or `standard input`.
    pub source: String,
    /// How that was read.
    pub format: String,
    /// When it was imported, unix µs.
    pub imported_unix_us: u64,
    /// When the last of it ends, unix seconds.
    pub ends_unix_s: u64,
    /// Entries that the source had, without those left out.
    pub entries: u64,
    /// Entries left out because they were wrong.
    pub invalid: u64,
    /// Who imported it.
    pub operator: String,
    /// Why, if somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether risky prefixes in it were imported on purpose; then there is a reason.
    #[serde(default)]
    pub overridden: bool,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What is known of it.
    pub meta: Meta,
    /// What it blocks: sorted and disjoint in each family.
    pub spans: Spans,
}

/// Why a list could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The files.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file is not what it should be.
    #[error("{} is not read: {detail}\n  remedy: import the list again, or `secmesh decisions remove-list {name}`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The list that it should be.
        name: ListName,
        /// What is wrong.
        detail: String,
    },
    /// No such list.
    #[error("there is no list {0}; `secmesh decisions lists` shows them")]
    Missing(ListName),
}

/// The folder of the lists.
#[derive(Debug, Clone)]
pub struct Store {
    dir: StateDir,
}

impl Store {
    /// Opens the folder in `state`; makes it if it is missing.
    ///
    /// # Errors
    /// As [`StateDir::create`].
    pub fn open(state: &StateDir) -> Result<Self, StoreError> {
        Ok(Self {
            dir: StateDir::create(&state.file(FOLDER))?,
        })
    }

    /// Removes what commands that were cut off left behind. For the agent, at start.
    ///
    /// # Errors
    /// The file system's.
    pub fn sweep(&self) -> Result<(), StoreError> {
        self.dir.sweep()?;
        for file in self.files()? {
            let left_by = file
                .rsplit_once('.')
                .and_then(|(name, end)| Some((name, end.strip_prefix(STAGED)?)))
                .and_then(|(name, pid)| {
                    Some((ListName::new(name).ok()?, pid.parse::<u32>().ok()?))
                });
            if let Some((name, pid)) = left_by
                && !is_alive(pid)
            {
                self.unstage(&name, pid)?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<String>, StoreError> {
        let entries = std::fs::read_dir(self.dir.path()).map_err(|source| StateError::Io {
            action: "list",
            path: self.dir.path().to_owned(),
            source,
        })?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    fn path(&self, name: &ListName, extension: &str) -> PathBuf {
        self.dir.file(&format!("{name}.{extension}"))
    }

    /// Writes a list for the agent to look at. `pid` is the writing process: of two imports of a list at
    /// one time neither takes the other's file away.
    ///
    /// # Errors
    /// The file system's; then nothing has changed.
    pub fn stage(&self, list: &List, pid: u32) -> Result<(), StoreError> {
        self.put(list, &format!("{STAGED}{pid}"))
    }

    /// Reads what process `pid` staged.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn staged(&self, name: &ListName, pid: u32) -> Result<List, StoreError> {
        self.get(name, &format!("{STAGED}{pid}"))
    }

    /// Takes what was staged away; it is no error if there is nothing.
    ///
    /// # Errors
    /// The file system's.
    pub fn unstage(&self, name: &ListName, pid: u32) -> Result<(), StoreError> {
        self.delete(name, &format!("{STAGED}{pid}"))
            .map(|_was_there| ())
    }

    /// Keeps a list, in place of one of the same name.
    ///
    /// # Errors
    /// The file system's; then the old one is untouched.
    pub fn keep(&self, list: &List) -> Result<(), StoreError> {
        self.put(list, FINAL)
    }

    /// Reads a list.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Damaged`], or the file system's.
    pub fn load(&self, name: &ListName) -> Result<List, StoreError> {
        self.get(name, FINAL)
    }

    /// Removes a list, also a damaged one. Returns whether there was one.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &ListName) -> Result<bool, StoreError> {
        self.delete(name, FINAL)
    }

    /// The names of the lists, sorted.
    ///
    /// # Errors
    /// The file system's.
    pub fn names(&self) -> Result<Vec<ListName>, StoreError> {
        let mut names: Vec<ListName> = self
            .files()?
            .iter()
            .filter_map(|file| ListName::new(file.strip_suffix(".list")?).ok())
            .collect();
        names.sort();
        Ok(names)
    }

    fn put(&self, list: &List, extension: &str) -> Result<(), StoreError> {
        let path = self.path(&list.meta.name, extension);
        let damaged = |detail: String| StoreError::Damaged {
            path: path.clone(),
            name: list.meta.name.clone(),
            detail,
        };
        let bytes = encode(list).map_err(damaged)?;
        Ok(self
            .dir
            .write(&format!("{}.{extension}", list.meta.name), &bytes)?)
    }

    fn get(&self, name: &ListName, extension: &str) -> Result<List, StoreError> {
        let path = self.path(name, extension);
        let bytes = match read_capped(&path, MAX_FILE) {
            Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(name.clone()));
            }
            other => other?,
        };
        let damaged = |detail: String| StoreError::Damaged {
            path: path.clone(),
            name: name.clone(),
            detail,
        };
        let list = decode(&bytes).map_err(damaged)?;
        if list.meta.name != *name {
            return Err(damaged(format!(
                "it is the list {}, renamed",
                list.meta.name
            )));
        }
        Ok(list)
    }

    fn delete(&self, name: &ListName, extension: &str) -> Result<bool, StoreError> {
        let path = self.path(name, extension);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StateError::Io {
                action: "remove",
                path,
                source,
            }
            .into()),
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).unwrap_or(0);
    pid > 0 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

fn encode(list: &List) -> Result<Vec<u8>, String> {
    let meta = serde_json::to_vec(&list.meta).map_err(|e| e.to_string())?;
    if meta.len() > MAX_META {
        return Err(format!("its description has more than {MAX_META} bytes"));
    }
    let Spans { v4, v6 } = &list.spans;
    let size = HEADER + meta.len() + v4.len() * V4_BYTES + v6.len() * V6_BYTES + HASH;
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&u32::try_from(meta.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&(v4.len() as u64).to_le_bytes());
    out.extend_from_slice(&(v6.len() as u64).to_le_bytes());
    out.extend_from_slice(&meta);
    for span in v4 {
        out.extend_from_slice(&span.start.to_le_bytes());
        out.extend_from_slice(&span.end.to_le_bytes());
        out.extend_from_slice(&span.expires_unix_s.to_le_bytes());
    }
    for span in v6 {
        out.extend_from_slice(&span.start.to_le_bytes());
        out.extend_from_slice(&span.end.to_le_bytes());
        out.extend_from_slice(&span.expires_unix_s.to_le_bytes());
    }
    let hash = Sha256::digest(&out);
    out.extend_from_slice(&hash);
    Ok(out)
}

/// Takes `N` bytes from the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, rest) = bytes
        .split_first_chunk::<N>()
        .ok_or_else(|| "it is cut off".to_owned())?;
    *bytes = rest;
    Ok(*head)
}

fn decode(all: &[u8]) -> Result<List, String> {
    let (body, hash) = all
        .split_last_chunk::<HASH>()
        .ok_or_else(|| "it is cut off".to_owned())?;
    let mut rest = body;
    if take::<8>(&mut rest)? != *MAGIC {
        return Err("it is no list of secmesh".to_owned());
    }
    let version = u32::from_le_bytes(take(&mut rest)?);
    if version != VERSION {
        return Err(format!(
            "it has version {version}, and this secmesh knows {VERSION}"
        ));
    }
    let meta_len = u32::from_le_bytes(take(&mut rest)?) as usize;
    let count = |bytes: [u8; 8]| {
        usize::try_from(u64::from_le_bytes(bytes))
            .ok()
            .filter(|n| *n <= MAX_SPANS)
            .ok_or_else(|| "it claims to be larger than a list can be".to_owned())
    };
    let v4 = count(take(&mut rest)?)?;
    let v6 = count(take(&mut rest)?)?;
    if meta_len > MAX_META || rest.len() != meta_len + v4 * V4_BYTES + v6 * V6_BYTES {
        return Err("its length is not what it says; it is cut off or damaged".to_owned());
    }
    if Sha256::digest(body)[..] != hash[..] {
        return Err("its checksum is wrong; it is damaged".to_owned());
    }
    let (meta, rest) = rest
        .split_at_checked(meta_len)
        .ok_or_else(|| "it is cut off".to_owned())?;
    let meta: Meta = serde_json::from_slice(meta).map_err(|e| format!("its description: {e}"))?;
    let (v4_bytes, v6_bytes) = rest
        .split_at_checked(v4 * V4_BYTES)
        .ok_or_else(|| "it is cut off".to_owned())?;
    let list = meta.number;
    let spans = Spans {
        v4: spans(v4_bytes, V4_BYTES, |bytes| {
            Ok(Span {
                start: u32::from_le_bytes(take(bytes)?),
                end: u32::from_le_bytes(take(bytes)?),
                expires_unix_s: u64::from_le_bytes(take(bytes)?),
                list,
            })
        })?,
        v6: spans(v6_bytes, V6_BYTES, |bytes| {
            Ok(Span {
                start: u128::from_le_bytes(take(bytes)?),
                end: u128::from_le_bytes(take(bytes)?),
                expires_unix_s: u64::from_le_bytes(take(bytes)?),
                list,
            })
        })?,
    };
    Ok(List { meta, spans })
}

fn spans<A: Address>(
    mut bytes: &[u8],
    size: usize,
    read: impl Fn(&mut &[u8]) -> Result<Span<A>, String>,
) -> Result<Vec<Span<A>>, String> {
    let mut out: Vec<Span<A>> = Vec::with_capacity(bytes.len() / size);
    while !bytes.is_empty() {
        let span = read(&mut bytes)?;
        if span.start > span.end || out.last().is_some_and(|last| last.end >= span.start) {
            return Err("its entries are not in order".to_owned());
        }
        out.push(span);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ListName {
        ListName::new(text).unwrap()
    }

    fn list(number: u16) -> List {
        List {
            meta: Meta {
                name: name("drop"),
                number,
                source: "/tmp/drop.txt".to_owned(),
                format: "lines".to_owned(),
                imported_unix_us: 1,
                ends_unix_s: 9,
                entries: 3,
                invalid: 0,
                operator: "root".to_owned(),
                reason: None,
                overridden: false,
            },
            spans: Spans {
                v4: vec![
                    Span {
                        start: 1,
                        end: 2,
                        expires_unix_s: 9,
                        list: number,
                    },
                    Span {
                        start: 3,
                        end: 3,
                        expires_unix_s: u64::MAX,
                        list: number,
                    },
                ],
                v6: vec![Span {
                    start: 1,
                    end: u128::MAX,
                    expires_unix_s: 7,
                    list: number,
                }],
            },
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temp.path().join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        (temp, store)
    }

    #[test]
    fn a_list_is_read_back_as_it_was_kept() {
        let (_temp, store) = store();
        store.stage(&list(0), 7).unwrap();
        assert_eq!(store.staged(&name("drop"), 7).unwrap(), list(0));
        assert!(store.names().unwrap().is_empty(), "staged is not kept");
        store.keep(&list(7)).unwrap();
        assert_eq!(store.load(&name("drop")).unwrap(), list(7));
        assert_eq!(store.names().unwrap(), [name("drop")]);
        assert!(store.remove(&name("drop")).unwrap());
        assert!(!store.remove(&name("drop")).unwrap());
        assert!(matches!(
            store.load(&name("drop")),
            Err(StoreError::Missing(_))
        ));
    }

    #[test]
    fn what_a_dead_command_staged_is_swept_and_a_living_ones_is_not() {
        let (_temp, store) = store();
        let (dead, living) = (u32::MAX, std::process::id());
        store.stage(&list(0), dead).unwrap();
        store.stage(&list(0), living).unwrap();
        store.sweep().unwrap();
        assert!(store.staged(&name("drop"), living).is_ok());
        assert!(matches!(
            store.staged(&name("drop"), dead),
            Err(StoreError::Missing(_))
        ));
        store.unstage(&name("drop"), living).unwrap();
        assert!(store.staged(&name("drop"), living).is_err());
    }

    #[test]
    fn no_part_and_no_changed_byte_of_a_list_is_read() {
        let bytes = encode(&list(7)).unwrap();
        assert_eq!(decode(&bytes).unwrap(), list(7));
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            assert!(decode(&bytes).is_err(), "changed at {at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn a_list_that_was_tampered_with_well_is_still_not_out_of_order() {
        let mut wrong = list(7);
        wrong.spans.v4.reverse();
        assert!(
            decode(&encode(&wrong).unwrap())
                .unwrap_err()
                .contains("order")
        );
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_name_and_a_remedy() {
        let (temp, store) = store();
        store.keep(&list(7)).unwrap();
        let path = temp.path().join("state/lists/drop.list");
        let mut bytes = read_capped(&path, 1 << 20).unwrap();
        bytes[60] ^= 1;
        crate::state::write_atomic(&path, &bytes, 0o600).unwrap();
        let error = store.load(&name("drop")).unwrap_err().to_string();
        assert!(
            error.contains("drop.list") && error.contains("remove-list drop"),
            "{error}"
        );
        std::fs::copy(&path, temp.path().join("state/lists/other.list")).unwrap();
        assert!(store.load(&name("other")).is_err());
    }
}
