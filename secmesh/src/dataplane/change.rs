//! From one set of pinned maps to another without a gap: other sizes, or an older schema.
//!
//! The new set is made and filled in a directory beside the old one, which stays what counts. The agent loads its
//! program on the new maps, brings them up to date, and switches the links, each in one step. Then the two
//! directories change places, in one step too (`RENAME_EXCHANGE`), and the old one is removed.
//!
//! A crash before that exchange leaves the old set in its place, and the next start begins anew; links that were
//! switched already run on the new maps, which they hold, with the same blocks in them. A crash after it leaves the
//! new set in its place, and the next start removes the other directory. Programs keep their maps alive, so no link
//! is ever without its blocks.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    programs::links::{FdLink, PinnedLink},
    util::nr_cpus,
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use secmesh_common::{block::BlockEntry, counters::Counters};
use tracing::{info, warn};

use super::{
    DataplaneError, LoadOptions, attach, bpf, preflight,
    standing::{self, Carry, OldMap, OldSet, Part, Standing},
};
use crate::clock::{Clock as _, SystemClock};

/// The directory in which a new set is made.
pub(super) fn next_dir(dir: &Path) -> PathBuf {
    // bpffs knows no dots in names.
    let mut name = dir.as_os_str().to_owned();
    name.push(OsString::from("-next"));
    PathBuf::from(name)
}

/// What is found where the pins should be.
pub(super) enum Found {
    /// Nothing, so maps are made.
    Nothing,
    /// Maps to go on with.
    Ours,
    /// Maps to leave.
    Other(Change),
}

/// A change from one set to another; dropped before it is finished, it leaves the old one as it was.
pub(super) struct Change {
    old: OldSet,
    dir: PathBuf,
    next: PathBuf,
    begun_ns: u64,
    counted: bool,
    finished: bool,
}

/// Makes the directory of the pins, removes what a crash left beside it, and looks what is there.
///
/// # Errors
///
/// What is there is not understood, or there can be no directory.
pub(super) fn begin(dir: &Path, options: &LoadOptions) -> Result<Found, DataplaneError> {
    preflight::require_bpffs(dir)?;
    std::fs::create_dir_all(dir).map_err(|source| DataplaneError::PinDir {
        dir: dir.to_path_buf(),
        source,
    })?;
    let next = next_dir(dir);
    if attach::remove_second_pins(&next)? > 0 {
        warn!(dir = %next.display(), "an earlier change of the maps was cut off; what it left was removed");
    }
    match standing::look(dir, options)? {
        Standing::Nothing => Ok(Found::Nothing),
        Standing::Ours => Ok(Found::Ours),
        Standing::Other(old) => {
            std::fs::create_dir(&next).map_err(|source| DataplaneError::PinDir {
                dir: next.clone(),
                source,
            })?;
            info!(why = %old.why, "the pinned maps are filled into new ones; the old ones enforce meanwhile");
            if !old.anew.is_empty() {
                warn!(
                    maps = old.anew.join(", "),
                    schema = old.schema,
                    "what an older version left in these maps means something else now; they begin empty"
                );
            }
            Ok(Found::Other(Change {
                old: *old,
                dir: dir.to_path_buf(),
                next,
                begun_ns: SystemClock.mono_ns(),
                counted: false,
                finished: false,
            }))
        }
    }
}

impl Change {
    /// Where the new maps are pinned for now.
    pub fn next(&self) -> &Path {
        &self.next
    }

    /// The mode of the old set.
    pub fn mode(&self) -> u32 {
        self.old.mode
    }

    /// Until when it enforces, `CLOCK_MONOTONIC` ns; 0 for good.
    pub fn enforce_until_ns(&self) -> u64 {
        self.old.enforce_until_ns
    }

    /// The seed of the old set's tables, if what is hashed with it is taken over.
    pub fn table_seed(&self) -> Option<u64> {
        self.old.table_seed
    }

    fn milliseconds(&self) -> u64 {
        SystemClock.mono_ns().saturating_sub(self.begun_ns) / 1_000_000
    }

    /// Copies what is taken over, but for the counters.
    ///
    /// # Errors
    ///
    /// Blocks that are in force do not fit, or the kernel refuses a call.
    pub fn fill(&self) -> Result<(), DataplaneError> {
        let now_ns = SystemClock.mono_ns();
        let mut entries = 0usize;
        for old in self.old.maps.iter().filter(|m| m.carry != Carry::Counters) {
            entries = entries.saturating_add(self.copy(old, now_ns)?);
        }
        info!(
            entries,
            ms = self.milliseconds(),
            schema = self.old.schema,
            "taken over from the old maps"
        );
        Ok(())
    }

    /// Copies the counters; as late as can be, since the old program counts on.
    pub fn carry_counters(&mut self) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        for old in self.old.maps.iter().filter(|m| m.carry == Carry::Counters) {
            if let Err(error) = self.copy(old, 0) {
                warn!(%error, "the counters begin at zero");
            }
        }
    }

    fn copy(&self, old: &OldMap, now_ns: u64) -> Result<usize, DataplaneError> {
        let path = self.next.join(old.name);
        let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
            // A full hash answers E2BIG, a full trie ENOSPC (kernel/bpf/hashtab.c, lpm_trie.c).
            Some(Errno::E2BIG | Errno::ENOSPC) => DataplaneError::TooSmall {
                map: old.name,
                setting: old.setting,
            },
            _ => DataplaneError::Change {
                what: old.name,
                source,
            },
        };
        let new = bpf::open_pin(&path, false).map_err(failed)?;
        let sizes = Sizes::of(old).map_err(failed)?;
        copy_entries(old, new.as_fd(), &sizes, now_ns).map_err(failed)
    }

    /// Makes the new set the one that counts. The links must run the new program by now.
    ///
    /// # Errors
    ///
    /// A pin cannot be made, or the directories not exchanged; then the old set counts.
    pub fn finish(&mut self) -> Result<(), DataplaneError> {
        self.pin_links()?;
        self.exchange()?;
        self.remove_old();
        info!(
            ms = self.milliseconds(),
            schema = self.old.schema,
            "the new maps are in place; there was no gap"
        );
        Ok(())
    }

    /// First step: the links get a second pin beside the new maps.
    pub fn pin_links(&self) -> Result<(), DataplaneError> {
        for path in attach::link_pins(&self.dir)? {
            let Some(name) = path.file_name() else {
                continue;
            };
            let link = PinnedLink::from_pin(&path).map_err(|e| DataplaneError::Change {
                what: "a link",
                source: io::Error::other(e),
            })?;
            FdLink::from(link)
                .pin(self.next.join(name))
                .map_err(|e| DataplaneError::Change {
                    what: "a link",
                    source: io::Error::other(e),
                })?;
        }
        Ok(())
    }

    /// Second step: the directories change places, at once.
    pub fn exchange(&mut self) -> Result<(), DataplaneError> {
        renameat2(
            AT_FDCWD,
            &self.next,
            AT_FDCWD,
            &self.dir,
            RenameFlags::RENAME_EXCHANGE,
        )
        .map_err(|errno| DataplaneError::Change {
            what: "the directory of the pins",
            source: errno.into(),
        })?;
        self.finished = true;
        Ok(())
    }

    /// Last step: what is in the other directory now is the old set.
    pub fn remove_old(&self) {
        if let Err(error) = attach::remove_second_pins(&self.next) {
            warn!(%error, "the old maps are still pinned; the next start removes them");
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = attach::remove_second_pins(&self.next)
        {
            warn!(%error, "the new maps are still pinned; the next start removes them");
        }
    }
}

/// Lengths of the values that calls read and write.
struct Sizes {
    old: usize,
    new: usize,
}

impl Sizes {
    fn of(old: &OldMap) -> io::Result<Self> {
        Ok(match old.carry {
            Carry::Counters => {
                let cpus = nr_cpus().map_err(|(_, e)| e)?;
                let all = |one: usize| one.next_multiple_of(8).saturating_mul(cpus);
                Self {
                    old: all(old.value_size),
                    new: all(size_of::<Counters>()),
                }
            }
            Carry::Bytes { .. } => Self {
                old: old.value_size,
                new: old.value_size,
            },
            Carry::Blocks => Self {
                old: old.value_size,
                new: size_of::<BlockEntry>(),
            },
            Carry::Allows => Self {
                old: old.value_size,
                new: size_of::<secmesh_common::block::AllowEntry>(),
            },
        })
    }
}

/// Copies entry by entry; gives how many. Nobody else writes keys: the programs change values only.
fn copy_entries(
    old: &OldMap,
    new: BorrowedFd<'_>,
    sizes: &Sizes,
    now_ns: u64,
) -> io::Result<usize> {
    let mut copied = 0;
    let mut key: Option<Vec<u8>> = None;
    let mut value = vec![0u8; sizes.old];
    for _ in 0..=old.max_entries {
        let Some(next) = bpf::next_key(old.fd(), key.as_deref(), old.key_size)? else {
            break;
        };
        if bpf::look_up(old.fd(), &next, &mut value)?
            && let Some(entry) = match old.carry {
                Carry::Counters => of_each_cpu(&old.parts, &value, old.value_size),
                carry => converted(carry, &old.parts, &value, sizes.new, now_ns),
            }
        {
            bpf::update(new, &next, &entry)?;
            copied += 1;
        }
        key = Some(next);
    }
    Ok(copied)
}

/// The counters of all CPUs as ours, from values of `size` bytes each.
fn of_each_cpu(parts: &[Part], values: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for value in values.chunks_exact(size.next_multiple_of(8)) {
        let mut entry = vec![0u8; size_of::<Counters>().next_multiple_of(8)];
        move_parts(parts, value, &mut entry)?;
        all.extend(entry);
    }
    all.iter().any(|byte| *byte != 0).then_some(all)
}

/// Copies the fields to their places; `None` if a value is shorter than it says.
fn move_parts(parts: &[Part], value: &[u8], entry: &mut [u8]) -> Option<()> {
    for part in parts {
        let from = value.get(part.from..part.from.checked_add(part.len)?)?;
        entry
            .get_mut(part.to..part.to.checked_add(part.len)?)?
            .copy_from_slice(from);
    }
    Some(())
}

/// The value as ours; `None` if it need not be written.
fn converted(
    carry: Carry,
    parts: &[Part],
    value: &[u8],
    new_size: usize,
    now_ns: u64,
) -> Option<Vec<u8>> {
    if matches!(carry, Carry::Bytes { .. }) {
        // New maps are zero.
        return value.iter().any(|b| *b != 0).then(|| value.to_vec());
    }
    let mut entry = vec![0u8; new_size];
    move_parts(parts, value, &mut entry)?;
    if carry == Carry::Blocks {
        let at = std::mem::offset_of!(BlockEntry, expires_ns);
        let expires = u64::from_ne_bytes(entry.get(at..at.checked_add(8)?)?.try_into().ok()?);
        if expires <= now_ns {
            return None;
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_move_to_their_new_places_and_what_has_ended_stays_behind() {
        // An older value: flags, rule, end.
        let part = |from, to, len| Part { from, to, len };
        let parts = [
            part(8, std::mem::offset_of!(BlockEntry, expires_ns), 8),
            part(4, std::mem::offset_of!(BlockEntry, rule), 4),
            part(0, std::mem::offset_of!(BlockEntry, flags), 4),
        ];
        let mut old = 3u32.to_ne_bytes().to_vec();
        old.extend(7u32.to_ne_bytes());
        old.extend(1000u64.to_ne_bytes());
        let size = size_of::<BlockEntry>();
        let new = converted(Carry::Blocks, &parts, &old, size, 999).unwrap();
        let mut wanted = 1000u64.to_ne_bytes().to_vec();
        wanted.resize(size - 8, 0);
        wanted.extend(7u32.to_ne_bytes());
        wanted.extend(3u32.to_ne_bytes());
        assert_eq!(new, wanted);
        assert_eq!(converted(Carry::Blocks, &parts, &old, size, 1000), None);
        // A value that is shorter than it says is not read.
        assert_eq!(
            converted(Carry::Blocks, &parts, old.get(..12).unwrap(), size, 0),
            None
        );
    }

    #[test]
    fn counters_of_every_cpu_move_by_name_and_new_ones_begin_at_zero() {
        let size = size_of::<Counters>();
        // Two CPUs of a version with two counters, in another order than ours.
        let parts = [
            Part {
                from: 8,
                to: 0,
                len: 8,
            },
            Part {
                from: 0,
                to: size - 8,
                len: 8,
            },
        ];
        let old: Vec<u8> = [1u64, 2, 3, 4]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        let new = of_each_cpu(&parts, &old, 16).unwrap();
        let words: Vec<u64> = new
            .chunks_exact(8)
            .map(|c| u64::from_ne_bytes(c.try_into().unwrap()))
            .collect();
        let each = size / 8;
        assert_eq!(words.len(), 2 * each);
        let mut wanted = vec![0; 2 * each];
        (wanted[0], wanted[each - 1]) = (2, 1);
        (wanted[each], wanted[2 * each - 1]) = (4, 3);
        assert_eq!(words, wanted);
    }

    #[test]
    fn the_new_directory_stands_beside_the_old_one_without_a_dot() {
        assert_eq!(
            next_dir(Path::new("/sys/fs/bpf/secmesh")),
            Path::new("/sys/fs/bpf/secmesh-next")
        );
    }
}
