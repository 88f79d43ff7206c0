//! Records of the process ring: programs that begin and end.

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ProcessKind {
    /// It was made by another one (threads are not told of).
    Fork = 1,
    /// It became another program.
    Exec = 2,
    /// Its last thread ended.
    Exit = 3,
}

impl ProcessKind {
    /// The kind with this number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Fork),
            2 => Some(Self::Exec),
            3 => Some(Self::Exit),
            _ => None,
        }
    }
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ProcessEvent {
    /// When, `CLOCK_MONOTONIC` ns.
    pub ts_ns: u64,
    /// Control group of the process (of the parent at a fork), as its inode in cgroup2.
    pub cgroup: u64,
    /// Process, in the first PID name space.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Real user of the process (of the parent at a fork), in the first user name space.
    pub uid: u32,
    /// At an exit: status as `wait` has it (signal in the low seven bits, code in the second byte).
    pub exit_code: u32,
    /// Name, up to 15 bytes and zeros; of the parent at a fork.
    pub comm: [u8; 16],
    /// [`ProcessKind`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 7],
}

const _: () = assert!(size_of::<ProcessEvent>() == 56, "layout");

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for ProcessEvent {}
