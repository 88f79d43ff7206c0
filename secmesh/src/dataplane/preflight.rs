//! What the system must offer, asked before anything is loaded, so that the answer names what is
//! missing and not a number.

use std::path::Path;

use nix::sys::statfs::statfs;

use super::DataplaneError;
use crate::state::read_capped;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The oldest kernel that the programs are tried on (`cargo xtask vm`), major and minor number.
///
/// The helpers in use are older: the newest, `bpf_xdp_get_buff_len` with fragments in XDP, came with 5.18.
/// But whether a verifier accepts the programs is known only of the kernels that were asked.
pub const KERNEL_FLOOR: (u32, u32) = (6, 1);
const KERNEL_FLOOR_TEXT: &str = "6.1";

/// `CAP_NET_ADMIN` (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
/// `CAP_SYS_ADMIN`; holds the two newer ones too.
const CAP_SYS_ADMIN: u32 = 21;
/// `CAP_PERFMON` (Linux 5.8).
const CAP_PERFMON: u32 = 38;
/// `CAP_BPF` (Linux 5.8).
const CAP_BPF: u32 = 39;

/// Checks processor, kernel version and capabilities.
///
/// # Errors
///
/// The first thing that is missing.
pub fn check_system() -> Result<(), DataplaneError> {
    check_architecture(std::env::consts::ARCH)?;
    if let Ok(name) = nix::sys::utsname::uname() {
        check_release(&name.release().to_string_lossy())?;
    }
    let effective = read_capped(Path::new("/proc/self/status"), 1 << 16)
        .ok()
        .and_then(|bytes| effective_capabilities(&String::from_utf8_lossy(&bytes)));
    // Without /proc nothing can be said in advance; the kernel will say it.
    effective.map_or(Ok(()), check_capabilities)
}

/// The processors that packets may be judged on, as the compiler calls them.
///
/// A packet that searches a list while the controller moves entries notices that by a counter which it reads before
/// and after (`list_moves4` of [`secmesh_common::config::Config`]). Nothing but the processor keeps these reads in
/// their order: on x86-64 loads are not reordered with loads, nor stores with stores (Intel SDM volume 3, 9.2.2). On
/// others, such as arm64, they may be, and a listed source could get through; the instruction that would order them
/// (`BPF_LOAD_ACQ`) came with Linux 6.15, long after [`KERNEL_FLOOR`].
const ARCHITECTURES: &[&str] = &["x86_64"];

fn check_architecture(found: &'static str) -> Result<(), DataplaneError> {
    if ARCHITECTURES.contains(&found) {
        Ok(())
    } else {
        Err(DataplaneError::Architecture { found })
    }
}

/// A release that cannot be read is not refused: the kernel itself will say what it lacks.
fn check_release(release: &str) -> Result<(), DataplaneError> {
    match parse_release(release) {
        Some(version) if version < KERNEL_FLOOR => Err(DataplaneError::Kernel {
            found: release.to_owned(),
            needed: KERNEL_FLOOR_TEXT,
        }),
        _ => Ok(()),
    }
}

fn check_capabilities(effective: u64) -> Result<(), DataplaneError> {
    let has = |cap: u32| effective & (1 << cap) != 0;
    let admin = has(CAP_SYS_ADMIN);
    for (cap, capability, needed_for) in [
        (
            CAP_BPF,
            "CAP_BPF",
            "loading programs and maps into the kernel",
        ),
        (
            CAP_PERFMON,
            "CAP_PERFMON",
            "the verifier's pointer rules for packet programs",
        ),
    ] {
        if !has(cap) && !admin {
            return Err(DataplaneError::Capability {
                capability,
                needed_for,
            });
        }
    }
    if !has(CAP_NET_ADMIN) {
        return Err(DataplaneError::Capability {
            capability: "CAP_NET_ADMIN",
            needed_for: "attaching XDP to an interface",
        });
    }
    Ok(())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Checks that `dir`, or the nearest parent that exists, is on bpffs.
pub(super) fn require_bpffs(dir: &Path) -> Result<(), DataplaneError> {
    let existing = dir.ancestors().find(|p| p.exists());
    let magic = existing
        .and_then(|p| statfs(p).ok())
        .map(|s| s.filesystem_type().0);
    if magic == Some(BPF_FS_MAGIC) {
        Ok(())
    } else {
        Err(DataplaneError::NoBpffs {
            dir: dir.to_path_buf(),
        })
    }
}

/// How to get bpffs where `dir` wants it.
pub fn mount_hint(dir: &Path) -> String {
    if dir.starts_with("/sys/fs/bpf") {
        "mount -t bpf bpf /sys/fs/bpf".to_owned()
    } else {
        format!(
            "set [dataplane] pin_dir below /sys/fs/bpf, or `mount -t bpf bpf {}`",
            dir.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_capability_is_named() {
        let all = (1 << CAP_BPF) | (1 << CAP_PERFMON) | (1 << CAP_NET_ADMIN);
        assert!(check_capabilities(all).is_ok());
        let text = check_capabilities(0).unwrap_err().to_string();
        assert!(
            text.contains("CAP_BPF") && text.contains("remedy"),
            "{text}"
        );
        let text = check_capabilities(all & !(1 << CAP_NET_ADMIN))
            .unwrap_err()
            .to_string();
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert!(check_capabilities((1 << CAP_SYS_ADMIN) | (1 << CAP_NET_ADMIN)).is_ok());
    }

    #[test]
    fn a_processor_that_may_reorder_reads_is_refused_by_name() {
        assert!(check_architecture("x86_64").is_ok());
        assert!(check_architecture(std::env::consts::ARCH).is_ok());
        for other in ["aarch64", "riscv64", "powerpc64", "x86"] {
            let text = check_architecture(other).unwrap_err().to_string();
            assert!(
                text.contains(other) && text.contains("x86-64") && text.contains("remedy"),
                "{text}"
            );
        }
    }

    #[test]
    fn capabilities_are_read_from_proc_status() {
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("CapEff:\tzz"), None);
    }

    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(parse_release("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.18-rc1"), Some((5, 18)));
        assert_eq!(parse_release("weird"), None);
    }

    #[test]
    fn a_kernel_below_the_floor_is_refused_with_both_versions_and_a_remedy() {
        let (major, minor) = KERNEL_FLOOR;
        assert_eq!(KERNEL_FLOOR_TEXT, format!("{major}.{minor}"));
        for old in ["5.10.0-30-amd64", "5.18.0", "6.0.19", "4.19"] {
            let text = check_release(old).unwrap_err().to_string();
            assert!(
                text.contains(old) && text.contains(KERNEL_FLOOR_TEXT) && text.contains("remedy"),
                "{text}"
            );
        }
        for fine in ["6.1.0-18-amd64", "6.12.1", "7.0", "weird"] {
            assert!(check_release(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_directory_outside_bpffs_is_refused_with_the_mount_command() {
        let text = require_bpffs(Path::new("/proc/secmesh"))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("not on a BPF file system") && text.contains("mount"),
            "{text}"
        );
    }
}
