//! What can go wrong between us and the kernel, and what to do about it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// A failure of the data plane; each message ends with a remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A capability is missing.
    #[error(
        "missing {capability}: {needed_for}\n  remedy: run as root, or give the binary the capability: setcap cap_bpf,cap_net_admin,cap_perfmon+ep /path/to/secmesh"
    )]
    Capability {
        /// The capability's name.
        capability: &'static str,
        /// What it is needed for.
        needed_for: &'static str,
    },
    /// bpffs is not where the pins should go.
    #[error("{} is not on a BPF file system\n  remedy: {}", dir.display(), super::mount_hint(dir))]
    NoBpffs {
        /// The configured pin directory.
        dir: PathBuf,
    },
    /// A processor that the programs are not right on.
    #[error(
        "this processor is {found}, and packets are judged on x86-64 only: on others a search may miss an entry that is being moved\n  remedy: run the agent on an x86-64 machine; commands that need no kernel (replay, verify, decisions export of a file) work here"
    )]
    Architecture {
        /// As the compiler calls it.
        found: &'static str,
    },
    /// The kernel is too old.
    #[error(
        "kernel {found} is too old: secmesh needs {needed} or later\n  remedy: boot a newer kernel; Debian 12 and later have one"
    )]
    Kernel {
        /// The running release.
        found: String,
        /// The floor.
        needed: &'static str,
    },
    /// The pin directory cannot be used.
    #[error("pin directory {}: {source}", dir.display())]
    PinDir {
        /// The directory.
        dir: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Pinned state of a version that this one does not understand.
    #[error(
        "{} holds state of schema {found}, this version understands schemas up to {ours}\n  remedy: start the version that made it, or a newer one; its blocks stay in force meanwhile. To give them up: `secmesh detach` with that version, then start this one", dir.display()
    )]
    Schema {
        /// The version found.
        found: u32,
        /// Our version.
        ours: u32,
        /// Where.
        dir: PathBuf,
    },
    /// A map of an older version says of itself nothing that could be read.
    #[error(
        "{} is of schema {schema}, and its fields are not those that this version knows\n  remedy: start the version that made it; its blocks stay in force meanwhile. To give them up: `secmesh detach` with that version, then start this one", path.display()
    )]
    NotUnderstood {
        /// The pin.
        path: PathBuf,
        /// Its schema.
        schema: u32,
    },
    /// What is in force does not fit the configured size.
    #[error(
        "more entries are in force than the kernel's {map} map would hold, so it was not changed and they stay in force\n  remedy: raise [dataplane] {setting}, or end some of them first"
    )]
    TooSmall {
        /// The map.
        map: &'static str,
        /// The setting that sizes it.
        setting: &'static str,
    },
    /// Changing to another set of maps failed; the old one is in force.
    #[error("changing {what} over to new maps: {source}; the old ones stay in force")]
    Change {
        /// What could not be changed.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// A pinned map of another shape.
    #[error(
        "{} is not of this version: its keys and values have {found:?} bytes, ours {ours:?}\n  remedy: `secmesh detach` with the version that made it, then start this one", path.display()
    )]
    ForeignState {
        /// The pin.
        path: PathBuf,
        /// Sizes of its key and value.
        found: (u32, u32),
        /// Ours.
        ours: (u32, u32),
    },
    /// The object could not be loaded.
    #[error("loading the kernel object: {0}")]
    Load(#[source] EbpfError),
    /// The verifier or a program call refused.
    #[error("the kernel refused the program: {0}")]
    Verifier(#[source] ProgramError),
    /// A map call failed.
    #[error("BPF map: {0}")]
    Map(#[source] MapError),
    /// A table call failed.
    #[error("{0}")]
    Table(#[source] super::TableError),
    /// More limited ports than the kernel's table has room for.
    #[error(
        "too many ports have a limit\n  remedy: at most 127 can; take some out of [limits.ports]"
    )]
    TooManyPortLimits,
    /// Something that the object must contain is not there (or was taken before).
    #[error("the kernel object has no {0}, or it is in use already")]
    Missing(&'static str),
    /// No such interface.
    #[error(
        "no interface {name}\n  remedy: `ip link` lists them; set [dataplane] interfaces or --interface"
    )]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Somebody else's program is there.
    #[error(
        "interface {name} already runs another XDP program ({holder})\n  remedy: stop what put it there, or take it off (`ip link set dev {name} xdp off`; one that is held by a link ends with its process or pin: `bpftool link`), or leave this interface out"
    )]
    Busy {
        /// The interface.
        name: String,
        /// The program's id and name.
        holder: String,
    },
    /// Attaching failed.
    #[error("attaching to {name}: {reason}")]
    Attach {
        /// The interface.
        name: String,
        /// Why, mode by mode.
        reason: String,
    },
    /// Processes cannot be watched.
    #[error("watching processes: {0}")]
    Processes(String),
    /// The event ring cannot be watched.
    #[error("event ring: {0}")]
    Ring(#[source] io::Error),
}
