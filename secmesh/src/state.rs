//! The state directory, and how files get into it: whole or not at all.
//!
//! Every file is written to a temporary name, synced, renamed over the old one, and the directory
//! synced, so that a crash or power cut at any point leaves the old file or the new one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Mode of files nobody but the agent's user may read.
pub const PRIVATE: u32 = 0o600;
/// Largest file [`StateDir::read_json`] reads, in bytes.
pub const MAX_JSON: u64 = 16 << 20;
/// Largest key or other secret file, in bytes.
pub const MAX_SECRET: u64 = 4096;

const LOCK_FILE: &str = "agent.lock";
const TEMP_MARK: &str = ".tmp-";

/// What can go wrong with the state directory and its files.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is larger than it may be.
    #[error("{} is larger than {max} bytes, the most this file may have; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        max: u64,
    },
    /// The state directory does not exist.
    #[error("there is no state directory {}; `secmesh init` or `secmesh join` makes one", .0.display())]
    Missing(PathBuf),
    /// The path exists and is not a directory.
    #[error("{} is not a directory; move it away or set [node] state_dir", .0.display())]
    NotADirectory(PathBuf),
    /// Others may write to the directory.
    #[error("{} has mode {mode:04o}: others may write to it and could replace keys; run `chmod go-w {}`", path.display(), path.display())]
    WritableByOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret is readable by others.
    #[error("{} has mode {mode:04o}: others may read this secret; treat it as leaked if they could, then run `chmod 600 {}`", path.display(), path.display())]
    SecretExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns the file or directory.
    #[error("{} belongs to user {owner}, and this runs as user {user}; run as that user or `chown` it", path.display())]
    WrongOwner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user.
        user: u32,
    },
    /// Another agent uses the directory.
    #[error("another agent{} uses {}; stop it or give this one its own --state directory", process(*pid), path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// The process that holds the lock, if it said so.
        pid: Option<u32>,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {detail}; restore it from a backup, or remove the state directory and join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A file was written by another version of secmesh.
    #[error("{} has format {found}, and this secmesh knows {known}; use the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The format it says.
        found: u32,
        /// The format that was asked for.
        known: u32,
    },
    /// A file would be overwritten that must not be.
    #[error("{} exists already; move it away first if you mean to replace it", .0.display())]
    Exists(PathBuf),
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Writes `bytes` to `path` so that a crash leaves the old content or the new, never a part. On
/// return the content is on the disk. `mode` holds the permission bits of the new file (the umask
/// does not apply).
///
/// # Errors
/// [`StateError::Io`]; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let dir = parent(path);
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temp = dir.join(format!(".{name}{TEMP_MARK}{}-{count}", std::process::id()));
    let result = write_temp(&temp, bytes, mode)
        .and_then(|()| std::fs::rename(&temp, path).map_err(io_error("rename into place", path)))
        .and_then(|()| sync_dir(dir));
    if result.is_err() {
        // The rename may have happened; removing is then a no-op that fails, and either way the
        // first error is the one to report.
        let _ = std::fs::remove_file(&temp);
    }
    result
}

fn write_temp(temp: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(OFlag::O_NOFOLLOW.bits());
    let mut file = options.open(temp).map_err(io_error("create", temp))?;
    nix::sys::stat::fchmod(file.as_fd(), Mode::from_bits_truncate(mode))
        .map_err(|e| io_error("set the mode of", temp)(e.into()))?;
    file.write_all(bytes).map_err(io_error("write", temp))?;
    file.sync_all().map_err(io_error("sync", temp))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn sync_dir(dir: &Path) -> Result<(), StateError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_error("sync the directory", dir))
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// [`StateError::TooLarge`] beyond `max`, [`StateError::Io`] otherwise.
pub fn read_capped(path: &Path, max: u64) -> Result<Vec<u8>, StateError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    read_file(&file, path, max)
}

/// Reads a whole UTF-8 file of at most `max` bytes.
///
/// # Errors
/// As [`read_capped`], and [`StateError::Io`] with `InvalidData` if it is not UTF-8.
pub fn read_capped_text(path: &Path, max: u64) -> Result<String, StateError> {
    String::from_utf8(read_capped(path, max)?)
        .map_err(|e| io_error("read as UTF-8", path)(io::Error::new(io::ErrorKind::InvalidData, e)))
}

fn read_file(file: &File, path: &Path, max: u64) -> Result<Vec<u8>, StateError> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(StateError::TooLarge {
            path: path.to_owned(),
            max,
        });
    }
    Ok(bytes)
}

/// Reads a secret of at most [`MAX_SECRET`] bytes, if nobody else can: the file must belong to the
/// effective user (or root), must be no symbolic link, and must give nothing to group and others.
///
/// # Errors
/// [`StateError::SecretExposed`], [`StateError::WrongOwner`], or as [`read_capped`].
pub fn read_secret(path: &Path) -> Result<Vec<u8>, StateError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(path).map_err(io_error("open", path))?;
    // Asked of the open file, not of the name, so that it cannot be swapped in between.
    let meta = file.metadata().map_err(io_error("look at", path))?;
    check_owner(path, meta.uid())?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StateError::SecretExposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_file(&file, path, MAX_SECRET)
}

fn check_owner(path: &Path, owner: u32) -> Result<(), StateError> {
    let user = nix::unistd::geteuid().as_raw();
    if owner != user && owner != 0 {
        return Err(StateError::WrongOwner {
            path: path.to_owned(),
            owner,
            user,
        });
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    data: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// A directory that holds one node's keys, records and settings. Nobody else can write to it.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// The right to run an agent on a state directory; given up on drop, and by the kernel if the
/// process dies.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

impl StateDir {
    /// Opens the directory, making it (mode 0700, parents as the umask says) if it is missing.
    ///
    /// # Errors
    /// [`StateError`], with the remedy, if it cannot be made or others can write to it.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above).map_err(io_error("create", above))?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => sync_dir(parent(path))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io_error("create", path)(e)),
        }
        Self::open(path)
    }

    /// Opens the directory, which must exist.
    ///
    /// # Errors
    /// [`StateError::Missing`], or as [`StateDir::create`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Missing(path.to_owned()));
            }
            Err(e) => return Err(io_error("look at", path)(e)),
        };
        if !meta.is_dir() {
            return Err(StateError::NotADirectory(path.to_owned()));
        }
        check_owner(path, meta.uid())?;
        let mode = meta.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(StateError::WritableByOthers {
                path: path.to_owned(),
                mode,
            });
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory of the ledger.
    pub fn ledger(&self) -> PathBuf {
        self.file("ledger")
    }

    /// Says whether a file of that name is there.
    pub fn has(&self, name: &str) -> bool {
        self.file(name).symlink_metadata().is_ok()
    }

    /// Takes the directory for one agent, and clears what writes cut off by a crash left behind.
    /// Never waits.
    ///
    /// # Errors
    /// [`StateError::Locked`] if another agent runs on it.
    pub fn lock(&self) -> Result<AgentLock, StateError> {
        let path = self.file(LOCK_FILE);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE);
        options.custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&path).map_err(io_error("open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                let text = read_file(&file, &path, 32).unwrap_or_default();
                let pid = String::from_utf8_lossy(&text).trim().parse().ok();
                return Err(StateError::Locked {
                    path: self.path.clone(),
                    pid,
                });
            }
            Err((_, e)) => return Err(io_error("lock", &path)(e.into())),
        };
        // Only for the message above; the lock itself is the kernel's, so this need not be atomic.
        lock.set_len(0)
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(io_error("write", &path))?;
        self.sweep()?;
        Ok(AgentLock { _file: lock })
    }

    /// Removes what writes of processes that are gone left behind in this directory.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn sweep(&self) -> Result<(), StateError> {
        let entries = std::fs::read_dir(&self.path).map_err(io_error("list", &self.path))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Some((_, owner)) = name.split_once(TEMP_MARK).filter(|_| name.starts_with('.'))
            else {
                continue;
            };
            // A command (init, allow) may be writing right now; leave what a live process made.
            let pid = owner
                .split('-')
                .next()
                .and_then(|pid| pid.parse::<i32>().ok())
                .unwrap_or(0);
            let dead =
                pid <= 0 || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_err();
            let ours = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
            if dead && !ours {
                std::fs::remove_file(entry.path())
                    .map_err(io_error("remove the leftover", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Writes a file of this directory atomically, readable by its owner only.
    ///
    /// # Errors
    /// As [`write_atomic`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        write_atomic(&self.file(name), bytes, PRIVATE)
    }

    /// Removes a file of this directory; one that is not there is no error.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("remove", &path)(e)),
        }
    }

    /// Writes `data` as JSON with a format version around it.
    ///
    /// # Errors
    /// As [`write_atomic`]; [`StateError::TooLarge`] beyond [`MAX_JSON`].
    pub fn write_json<T: Serialize>(
        &self,
        name: &str,
        version: u32,
        data: &T,
    ) -> Result<(), StateError> {
        let path = self.file(name);
        let mut bytes = serde_json::to_vec_pretty(&Versioned { version, data })
            .map_err(|e| io_error("encode", &path)(io::Error::other(e)))?;
        bytes.push(b'\n');
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_JSON {
            return Err(StateError::TooLarge {
                path,
                max: MAX_JSON,
            });
        }
        write_atomic(&path, &bytes, PRIVATE)
    }

    /// Reads what [`StateDir::write_json`] wrote; `None` if there is no such file.
    ///
    /// # Errors
    /// [`StateError::Version`] if the file's version is another one, [`StateError::Damaged`] if it
    /// does not decode.
    pub fn read_json<T: DeserializeOwned>(
        &self,
        name: &str,
        version: u32,
    ) -> Result<Option<T>, StateError> {
        if !self.has(name) {
            return Ok(None);
        }
        let path = self.file(name);
        let bytes = read_capped(&path, MAX_JSON)?;
        let damaged = |e: serde_json::Error| StateError::Damaged {
            path: path.clone(),
            detail: e.to_string(),
        };
        let found = serde_json::from_slice::<VersionOnly>(&bytes)
            .map_err(damaged)?
            .version;
        if found != version {
            return Err(StateError::Version {
                path,
                found,
                known: version,
            });
        }
        Ok(Some(
            serde_json::from_slice::<Versioned<T>>(&bytes)
                .map_err(damaged)?
                .data,
        ))
    }
}

#[cfg(test)]
mod tests;
