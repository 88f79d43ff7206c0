//! Threads and programs inside a network namespace.
//!
//! Not through `ip netns exec`: that also gives a new mount namespace with a fresh `/sys`, in which the
//! BPF file system, and with it every pinned map, is hidden.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::sh;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// The file that stands for the namespace `name`.
pub fn file_of(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

fn open(name: &str) -> anyhow::Result<File> {
    let file = file_of(name);
    File::open(&file)
        .with_context(|| format!("cannot open the network namespace {}", file.display()))
}

/// Starts a thread inside the namespace `name`.
///
/// # Errors
/// When the namespace does not exist or the thread cannot be started.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
    let namespace = open(name)?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network namespace; this needs root")?;
            work()
        })
        .context("cannot start a thread")
}

/// Does `work` inside the namespace `name` and waits for it.
///
/// # Errors
/// As [`spawn`], and the error of `work`.
pub fn within<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    spawn(name, work)?
        .join()
        .map_err(|_| anyhow!("a thread in the namespace {name} panicked"))?
}

/// A command that will run inside the namespace `name`, in a process group of its own.
///
/// Of its own, so that Ctrl-C in the terminal reaches only us, and we end things in order.
///
/// # Errors
/// When the namespace does not exist.
pub fn command(name: &str, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
    let namespace = open(name)?;
    let mut command = sh::command(program);
    command.process_group(0);
    // SAFETY: between fork and exec only the system call setns is made, which is async-signal-safe and
    // allocates nothing; the descriptor lives as long as the closure.
    unsafe {
        command.pre_exec(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        });
    }
    Ok(command)
}
