//! Processes that begin, become another program, and end, as detectors and people read them.

use secmesh_common::process::{ProcessEvent, ProcessKind};
use serde::{Deserialize, Serialize};

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessChange {
    /// It was made by another one; threads are not told of.
    Fork,
    /// It became another program.
    Exec,
    /// Its last thread ended.
    Exit,
}

impl ProcessChange {
    /// As it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Exec => "exec",
            Self::Exit => "exit",
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// When, unix µs.
    pub unix_us: u64,
    /// What happened.
    pub change: ProcessChange,
    /// The process, as the whole machine numbers it (not its container).
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Its real user (at a fork its parent's), as the whole machine numbers it.
    pub uid: u32,
    /// Control group (at a fork its parent's): inode of its directory in cgroup2.
    pub cgroup: u64,
    /// Name, at most 15 bytes; at a fork its parent's. What is no UTF-8 is replaced.
    pub comm: String,
    /// At an exit: the code it gave, if no signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// At an exit: the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
}

impl ProcessRecord {
    /// From a kernel record; `None` for a kind that this version does not know.
    ///
    /// `unix_us` turns a reading of `CLOCK_MONOTONIC` in ns into unix time in µs.
    pub fn from_event(event: &ProcessEvent, unix_us: impl Fn(u64) -> u64) -> Option<Self> {
        let change = match ProcessKind::from_u8(event.kind)? {
            ProcessKind::Fork => ProcessChange::Fork,
            ProcessKind::Exec => ProcessChange::Exec,
            ProcessKind::Exit => ProcessChange::Exit,
        };
        let name = event.comm.split(|b| *b == 0).next().unwrap_or_default();
        let [status, code, ..] = event.exit_code.to_le_bytes();
        let signal = status & 0x7f;
        let exit = change == ProcessChange::Exit;
        Some(Self {
            unix_us: unix_us(event.ts_ns),
            change,
            pid: event.pid,
            ppid: event.ppid,
            uid: event.uid,
            cgroup: event.cgroup,
            comm: String::from_utf8_lossy(name).into_owned(),
            code: (exit && signal == 0).then_some(code),
            signal: (exit && signal != 0).then_some(signal),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u8, exit_code: u32) -> ProcessEvent {
        ProcessEvent {
            ts_ns: 5000,
            pid: 7,
            exit_code,
            comm: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0x",
            kind,
            ..ProcessEvent::default()
        }
    }

    #[test]
    fn codes_and_signals_are_told_apart() {
        let seen = |kind, status| ProcessRecord::from_event(&event(kind, status), |ns| ns / 1000);
        let exit = seen(3, 0x0300).unwrap();
        assert_eq!((exit.code, exit.signal), (Some(3), None));
        assert_eq!((exit.unix_us, exit.comm.as_str()), (5, "sh"));
        let killed = seen(3, 0x0089).unwrap();
        assert_eq!((killed.code, killed.signal), (None, Some(9)));
        let exec = seen(2, 0x0300).unwrap();
        assert_eq!((exec.code, exec.signal), (None, None));
        assert!(seen(0, 0).is_none() && seen(4, 0).is_none());
    }

    #[test]
    fn a_name_without_an_end_or_utf8_is_taken_as_it_is() {
        let mut event = event(1, 0);
        event.comm = [b'a'; 16];
        event.comm[15] = 0xff;
        let seen = ProcessRecord::from_event(&event, |ns| ns).unwrap();
        assert_eq!(seen.comm, format!("{}\u{fffd}", "a".repeat(15)));
    }
}
