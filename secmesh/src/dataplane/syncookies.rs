//! `net.ipv4.tcp_syncookies`: what cookies need it to be, and putting it back.
//!
//! The switch belongs to a network namespace, IPv6 included. What it was is written into the state directory
//! before it is changed, so that whoever comes after a killed agent, the next one or `secmesh detach`, can
//! put it back.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::state::{StateDir, StateError, read_capped_text};

const SWITCH: &str = "/proc/sys/net/ipv4/tcp_syncookies";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NETWORK: &str = "/proc/thread-self/ns/net";
/// File in the state directory.
const FILE: &str = "syncookies.json";
/// Its format.
const FORMAT: u32 = 1;
/// Longer than any of those files.
const MAX_TEXT: u64 = 256;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum SyncookiesError {
    /// The switch or what identifies the system cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The switch is not a number.
    #[error("{SWITCH} says `{0}`, which is not 0, 1 or 2")]
    Unknown(String),
    /// The switch cannot be set.
    #[error(
        "cannot write {value} to {SWITCH}: {source}\n  remedy: let the agent write it (systemd: ReadWritePaths), or set net.ipv4.tcp_syncookies = {value} yourself"
    )]
    Write {
        /// What was to be written.
        value: u8,
        /// The system's word.
        source: io::Error,
    },
    /// The network namespace cannot be told.
    #[error("cannot read {NETWORK}: {0}")]
    Network(#[source] io::Error),
}

/// What is remembered of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    /// What it was.
    old: u8,
    /// What we made it.
    set: u8,
    /// In which boot: the next one starts from the system's own settings.
    boot: String,
    /// In which network namespace.
    network: String,
}

/// What became of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// We had not changed it.
    Untouched,
    /// It has this value again.
    Back(u8),
    /// Somebody else changed it after us; it stays at this value.
    Foreign(u8),
    /// We changed it in another network namespace, which can only be entered, not guessed.
    Elsewhere,
}

/// The switch as it is: 0 (no cookies), 1 (when a listener overflows) or 2 (always).
///
/// # Errors
///
/// If it cannot be read or is none of these.
pub fn current() -> Result<u8, SyncookiesError> {
    let text = read_capped_text(Path::new(SWITCH), MAX_TEXT)?;
    match text.trim().parse() {
        Ok(value @ 0..=2) => Ok(value),
        _ => Err(SyncookiesError::Unknown(text.trim().to_owned())),
    }
}

fn write(value: u8) -> Result<(), SyncookiesError> {
    OpenOptions::new()
        .write(true)
        .open(SWITCH)
        .and_then(|mut file| file.write_all(value.to_string().as_bytes()))
        .map_err(|source| SyncookiesError::Write { value, source })
}

fn here() -> Result<(String, String), SyncookiesError> {
    let boot = read_capped_text(Path::new(BOOT_ID), MAX_TEXT)?;
    let network = std::fs::read_link(NETWORK).map_err(SyncookiesError::Network)?;
    Ok((
        boot.trim().to_owned(),
        network.to_string_lossy().into_owned(),
    ))
}

/// Our change that is in force, if there is one: of this boot and this network namespace.
fn change(state: &StateDir) -> Result<Option<Change>, SyncookiesError> {
    let Some(change) = state.read_json::<Change>(FILE, FORMAT)? else {
        return Ok(None);
    };
    let (boot, network) = here()?;
    Ok((change.boot == boot && change.network == network).then_some(change))
}

fn forget(state: &StateDir) -> Result<(), SyncookiesError> {
    let path = state.file(FILE);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Io {
            action: "remove",
            path,
            source,
        }
        .into()),
        _ => Ok(()),
    }
}

/// What the switch has to be, given what it was before us.
const fn wanted(always: bool, old: u8) -> u8 {
    if always {
        2
    } else if old == 0 {
        1
    } else {
        old
    }
}

/// Sets the switch to what cookies need and gives what it is then: 2 if some port is to `always` have
/// cookies, else what it was, but at least 1.
///
/// If somebody else changed it since we did, it stays as he wants it.
///
/// # Errors
///
/// If it, or the state directory, cannot be read or written. Nothing is changed that is not on the disk.
pub fn hold(state: &StateDir, always: bool) -> Result<u8, SyncookiesError> {
    let now = current()?;
    let before = change(state)?;
    if let Some(before) = &before
        && before.set != now
    {
        return Ok(now);
    }
    let old = before.as_ref().map_or(now, |change| change.old);
    let value = wanted(always, old);
    if value == now {
        return Ok(now);
    }
    let (boot, network) = here()?;
    let set = Change {
        old,
        set: value,
        boot,
        network,
    };
    state.write_json(FILE, FORMAT, &set)?;
    write(value)?;
    Ok(value)
}

/// Puts the switch back as it was before [`hold`], unless somebody else changed it since.
///
/// # Errors
///
/// If it, or the state directory, cannot be read or written.
pub fn restore(state: &StateDir) -> Result<Restored, SyncookiesError> {
    let Some(recorded) = state.read_json::<Change>(FILE, FORMAT)? else {
        return Ok(Restored::Untouched);
    };
    let (boot, network) = here()?;
    if recorded.boot != boot {
        forget(state)?;
        return Ok(Restored::Untouched);
    }
    if recorded.network != network {
        return Ok(Restored::Elsewhere);
    }
    let now = current()?;
    let outcome = if now == recorded.set {
        write(recorded.old)?;
        Restored::Back(recorded.old)
    } else {
        Restored::Foreign(now)
    };
    forget(state)?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_is_raised_and_never_lowered() {
        for (always, old, value) in [
            (true, 0, 2),
            (true, 1, 2),
            (true, 2, 2),
            (false, 0, 1),
            (false, 1, 1),
            (false, 2, 2),
        ] {
            assert_eq!(wanted(always, old), value, "{always} {old}");
        }
    }

    #[test]
    fn what_an_earlier_boot_changed_is_forgotten_and_what_another_network_did_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(&dir.path().join("state")).unwrap();
        assert_eq!(restore(&state).unwrap(), Restored::Untouched);
        let (boot, network) = here().unwrap();
        let mut change = Change {
            old: 1,
            set: 2,
            boot: "another".to_owned(),
            network,
        };
        state.write_json(FILE, FORMAT, &change).unwrap();
        assert_eq!(restore(&state).unwrap(), Restored::Untouched);
        assert!(!state.has(FILE));
        change.boot = boot;
        change.network = "net:[1]".to_owned();
        state.write_json(FILE, FORMAT, &change).unwrap();
        assert_eq!(restore(&state).unwrap(), Restored::Elsewhere);
        assert!(state.has(FILE));
    }
}
