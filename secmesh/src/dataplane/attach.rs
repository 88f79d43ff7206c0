//! Links: driver mode where the driver can, generic mode where it cannot, pinned so that they stay.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    loaded_programs,
    xdp::{XdpLink, XdpLinkId},
};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{DataplaneError, netlink};
use crate::config;

/// Where in the kernel the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// In the driver, before the kernel makes a socket buffer.
    Driver,
    /// In the network stack: works everywhere, saves less.
    Generic,
}

impl AttachMode {
    const ALL: [Self; 2] = [Self::Driver, Self::Generic];

    fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Generic => "generic",
        }
    }
}

impl std::fmt::Display for AttachMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An interface with our program on it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttachedInterface {
    /// The interface's name.
    pub name: String,
    /// Its index when we attached.
    pub index: u32,
    /// The mode that worked.
    pub attach_mode: AttachMode,
    /// Whether an earlier agent's link was taken over without a gap.
    pub resumed: bool,
}

pub(super) fn attach(
    program: &mut Xdp,
    interface: &str,
    policy: config::AttachMode,
    pin_dir: Option<&Path>,
) -> Result<AttachedInterface, DataplaneError> {
    let index = nix::net::if_::if_nametoindex(interface).map_err(|_unknown| {
        DataplaneError::NoInterface {
            name: interface.to_owned(),
        }
    })?;
    if let Some(dir) = pin_dir {
        for mode in AttachMode::ALL {
            let path = pin_path(dir, interface, mode);
            if !path.exists() {
                continue;
            }
            if !permitted(policy).contains(&mode) {
                // The configuration has changed; one interface has one link, so this one goes first.
                warn!(interface, %mode, "the running link is of a mode that is not wanted any more; attaching anew");
                let running = program_of(&path);
                unpin(&path)?;
                wait_until_gone(index, running);
                continue;
            }
            if !is_on(&path, interface, index)? {
                warn!(
                    interface,
                    "a pinned link is of another interface, which had this name before; making a new one"
                );
                unpin(&path)?;
                continue;
            }
            if take_over(program, interface, &path)? {
                return Ok(AttachedInterface {
                    name: interface.to_owned(),
                    index,
                    attach_mode: mode,
                    resumed: true,
                });
            }
        }
    }
    let (mode, link) = try_modes(program, interface, index, policy)?;
    if let Some(dir) = pin_dir {
        pin(program, link, interface, &pin_path(dir, interface, mode))?;
    }
    Ok(AttachedInterface {
        name: interface.to_owned(),
        index,
        attach_mode: mode,
        resumed: false,
    })
}

/// The program that a pinned link holds.
fn program_of(path: &Path) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
    Some(link.info().ok()?.program_id())
}

/// Waits until a program whose link was unpinned has left the interface: the kernel lets go of links in a worker
/// (`bpf_link_put` in kernel/bpf/syscall.c), and until then nobody else can attach. At most a second; then attaching
/// says who is in the way.
fn wait_until_gone(index: u32, program: Option<u32>) {
    let Some(program) = program else {
        return;
    };
    for _ in 0..1000 {
        match netlink::xdp_programs(index) {
            Ok(running) if running.contains(&program) => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            _ => return,
        }
    }
}

/// Whether the pinned link is the one of this interface: an interface that was renamed keeps its link, and a
/// new one under the old name has none. Links whose interface was deleted are [`take_over`]'s to find out.
fn is_on(path: &Path, interface: &str, index: u32) -> Result<bool, DataplaneError> {
    let failed = |reason: String| DataplaneError::Attach {
        name: interface.to_owned(),
        reason,
    };
    let link = PinnedLink::from_pin(path).map_err(|e| failed(e.to_string()))?;
    let info = FdLink::from(link)
        .info()
        .map_err(|e| failed(e.to_string()))?;
    let running =
        netlink::xdp_programs(index).map_err(|e| failed(format!("asking what runs there: {e}")))?;
    Ok(running.contains(&info.program_id()))
}

/// Who is on an interface, in words.
fn holder(index: u32) -> String {
    let ids = netlink::xdp_programs(index).unwrap_or_default();
    let named: Vec<String> = ids
        .iter()
        .map(|id| {
            let name = loaded_programs()
                .flatten()
                .find(|program| program.id() == *id)
                .and_then(|program| program.name_as_str().map(str::to_owned));
            match name {
                Some(name) if !name.is_empty() => format!("id {id}, `{name}`"),
                _ => format!("id {id}, without a name"),
            }
        })
        .collect();
    if named.is_empty() {
        "it cannot be told which".to_owned()
    } else {
        named.join("; ")
    }
}

/// Puts our program into a pinned link in one step. `false`: the link's interface is gone, so the pin
/// was removed.
fn take_over(program: &mut Xdp, interface: &str, path: &Path) -> Result<bool, DataplaneError> {
    let failed = |reason: String| DataplaneError::Attach {
        name: interface.to_owned(),
        reason,
    };
    let pinned = PinnedLink::from_pin(path).map_err(|e| failed(e.to_string()))?;
    let link = FdLink::from(pinned);
    let link = XdpLink::try_from(link).map_err(|e| failed(e.to_string()))?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin holds the link; ours is only let go so that dropping the program does not detach.
            let link = program.take_link(id).map_err(DataplaneError::Verifier)?;
            drop(link);
            info!(interface, "took over the pinned link of an earlier agent");
            Ok(true)
        }
        Err(error) if os_error(&error) == Some(Errno::ENOLINK) => {
            // The kernel answers ENOLINK when the link's device was removed (net/core/dev.c,
            // bpf_xdp_link_update).
            warn!(interface, %error, "a pinned link is dead (its interface was removed); making a new one");
            unpin(path)?;
            Ok(false)
        }
        Err(error) => Err(failed(format!(
            "taking over the running link: {}",
            chain(&error)
        ))),
    }
}

/// The modes that may be tried, best first.
fn permitted(policy: config::AttachMode) -> &'static [AttachMode] {
    match policy {
        config::AttachMode::Auto => &AttachMode::ALL,
        config::AttachMode::Driver => &[AttachMode::Driver],
        config::AttachMode::Generic => &[AttachMode::Generic],
    }
}

pub(super) fn unpin(path: &Path) -> Result<(), DataplaneError> {
    std::fs::remove_file(path).map_err(|source| DataplaneError::PinDir {
        dir: path.to_path_buf(),
        source,
    })
}

fn try_modes(
    program: &mut Xdp,
    interface: &str,
    index: u32,
    policy: config::AttachMode,
) -> Result<(AttachMode, XdpLinkId), DataplaneError> {
    let modes = permitted(policy);
    let mut reasons = Vec::new();
    for mode in modes {
        let flag = match mode {
            AttachMode::Driver => XdpMode::Driver,
            AttachMode::Generic => XdpMode::Skb,
        };
        match program.attach_to_if_index(index, flag) {
            Ok(link) => return Ok((*mode, link)),
            Err(error) if is_busy(&error) => {
                return Err(DataplaneError::Busy {
                    name: interface.to_owned(),
                    holder: holder(index),
                });
            }
            Err(error) => {
                let text = chain(&error);
                if modes.len() > 1 && matches!(mode, AttachMode::Driver) {
                    warn!(interface, error = %text, "driver mode refused, trying generic mode");
                }
                reasons.push(format!("{mode} mode: {text}"));
            }
        }
    }
    Err(DataplaneError::Attach {
        name: interface.to_owned(),
        reason: reasons.join("; "),
    })
}

fn pin(
    program: &mut Xdp,
    link: XdpLinkId,
    interface: &str,
    path: &Path,
) -> Result<(), DataplaneError> {
    let failed = |reason: String| DataplaneError::Attach {
        name: interface.to_owned(),
        reason,
    };
    let link = program.take_link(link).map_err(DataplaneError::Verifier)?;
    let link = FdLink::try_from(link).map_err(|e| {
        failed(format!(
            "this kernel gave a link that cannot be pinned ({e}), so blocks would end with the agent"
        ))
    })?;
    link.pin(path)
        .map_err(|e| failed(format!("pinning: {e}")))?;
    Ok(())
}

fn is_busy(error: &ProgramError) -> bool {
    matches!(os_error(error), Some(Errno::EBUSY | Errno::EEXIST))
}

fn os_error(error: &ProgramError) -> Option<Errno> {
    io_error(error)?.raw_os_error().map(Errno::from_raw)
}

fn io_error(error: &ProgramError) -> Option<&io::Error> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return Some(io);
        }
        source = e.source();
    }
    match error {
        ProgramError::SyscallError(e) => Some(&e.io_error),
        _ => None,
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = e.source();
    }
    text
}

fn pin_path(dir: &Path, interface: &str, mode: AttachMode) -> PathBuf {
    link_path(dir, mode.name(), interface)
}

/// bpffs allows no dots in names, interfaces do.
pub(super) fn link_path(dir: &Path, kind: &str, interface: &str) -> PathBuf {
    let name = interface.replace('%', "%25").replace('.', "%2e");
    dir.join(format!("link-{kind}-{name}"))
}

/// The interface that a link's pin belongs to.
pub(super) fn interface_of(pin: &Path) -> Option<String> {
    let name = pin.file_name()?.to_str()?.strip_prefix("link-")?;
    let (_, interface) = name.split_once('-')?;
    Some(interface.replace("%2e", ".").replace("%25", "%"))
}

/// The interfaces that links are pinned for, each once.
pub(super) fn pinned_interfaces(dir: &Path) -> Result<Vec<String>, DataplaneError> {
    let failed = |source| DataplaneError::PinDir {
        dir: dir.to_path_buf(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.extend(interface_of(&entry.path()));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The pins of links.
pub(super) fn link_pins(dir: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    Ok(pins(dir)?
        .into_iter()
        .filter(|path| interface_of(path).is_some())
        .collect())
}

/// Puts our program into the links of an interface that nobody attached to, so that it too looks at our maps.
pub(super) fn switch_pinned(
    program: &mut Xdp,
    interface: &str,
    dir: &Path,
) -> Result<(), DataplaneError> {
    for mode in AttachMode::ALL {
        let path = pin_path(dir, interface, mode);
        if path.exists() {
            take_over(program, interface, &path)?;
        }
    }
    Ok(())
}

/// What is pinned in a directory; nothing if there is none.
fn pins(dir: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let failed = |source| DataplaneError::PinDir {
        dir: dir.to_path_buf(),
        source,
    };
    match std::fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|e| e.path()).map_err(failed))
            .collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e)),
    }
}

/// Removes a directory of pins that another one has too, or that nothing runs on; gives how many there were.
pub(super) fn remove_second_pins(dir: &Path) -> Result<usize, DataplaneError> {
    let failed = |source| DataplaneError::PinDir {
        dir: dir.to_path_buf(),
        source,
    };
    let paths = pins(dir)?;
    for path in &paths {
        std::fs::remove_file(path).map_err(failed)?;
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(paths.len()),
    }
}

/// Removes the pins of an interface's links; its program leaves it.
pub(super) fn unpin_interface(dir: &Path, interface: &str) -> Result<(), DataplaneError> {
    let programs = AttachMode::ALL.map(|mode| pin_path(dir, interface, mode));
    for path in programs
        .into_iter()
        .chain([link_path(dir, "egress", interface)])
    {
        if path.exists() {
            unpin(&path)?;
        }
    }
    super::flows::remove_filter(interface);
    Ok(())
}

/// Removes every pin in `dir` and the directory; links first, so that no packet meets half a policy.
pub(super) fn remove_pins(dir: &Path) -> Result<usize, DataplaneError> {
    let failed = |source| DataplaneError::PinDir {
        dir: dir.to_path_buf(),
        source,
    };
    let mut paths = pins(dir)?;
    if paths.is_empty() && !dir.exists() {
        return Ok(0);
    }
    paths.sort_by_key(|p| {
        !p.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("link-"))
    });
    super::flows::remove_filters(&paths);
    let running: Vec<(u32, Option<u32>)> = paths
        .iter()
        .filter_map(|path| {
            let name = interface_of(path)?;
            let index = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
            Some((index, program_of(path)))
        })
        .collect();
    for path in &paths {
        std::fs::remove_file(path).map_err(failed)?;
    }
    std::fs::remove_dir(dir).map_err(failed)?;
    // Who is told that nothing is filtered any more may rely on it.
    for (index, program) in running {
        wait_until_gone(index, program);
    }
    Ok(paths.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_with_dots_get_pin_names_without() {
        let path = pin_path(Path::new("/x"), "eth0.100", AttachMode::Generic);
        assert_eq!(path, Path::new("/x/link-generic-eth0%2e100"));
        assert_eq!(interface_of(&path).as_deref(), Some("eth0.100"));
        assert_eq!(interface_of(Path::new("/x/CONFIG")), None);
        assert_ne!(
            pin_path(Path::new("/x"), "a%2eb", AttachMode::Driver),
            pin_path(Path::new("/x"), "a.b", AttachMode::Driver)
        );
    }
}
