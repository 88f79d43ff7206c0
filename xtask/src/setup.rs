//! `cargo xtask setup`: finds out what is missing, says so, installs it; once.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::sh;
use crate::term::{Style, paint};

/// Where the kernel's BPF file system belongs; pinned maps and links live there.
pub const BPFFS: &str = "/sys/fs/bpf";

/// What somebody is about to do, and with it what must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Compile.
    Build,
    /// Run an agent on this machine.
    Run,
    /// Run every check and test.
    Test,
    /// Run a mesh in network namespaces.
    Lab,
    /// Measure beside peers.
    Bench,
    /// Boot other kernels.
    Vm,
    /// Run the fuzzers.
    Fuzz,
    /// All of it.
    All,
}

impl Profile {
    fn checks(self) -> bool {
        matches!(self, Self::Test | Self::All)
    }

    fn network_tools(self) -> bool {
        matches!(self, Self::Test | Self::Lab | Self::Bench | Self::All)
    }

    fn boots_kernels(self) -> bool {
        matches!(self, Self::Vm | Self::All)
    }

    fn runs_bpf(self) -> bool {
        !matches!(self, Self::Build | Self::Vm | Self::Fuzz)
    }

    fn fuzzes(self) -> bool {
        matches!(self, Self::Fuzz | Self::Test | Self::All)
    }
}

/// A Debian package, by a program in it.
struct Package {
    program: &'static str,
    name: &'static str,
    why: &'static str,
}

const fn package(program: &'static str, name: &'static str, why: &'static str) -> Package {
    Package { program, name, why }
}

const COMPILER: Package = package("cc", "gcc", "links Rust programs");

const CXX_COMPILER: Package = package(
    "c++",
    "g++",
    "compiles libFuzzer, the engine of the fuzzers",
);

const NETWORK_TOOLS: &[Package] = &[
    package(
        "ip",
        "iproute2",
        "network namespaces and veth pairs of the lab",
    ),
    package("hping3", "hping3", "the lab's IPv4 floods"),
    package("trafgen", "netsniff-ng", "the lab's IPv6 floods"),
    package("nmap", "nmap", "the lab's port scans"),
    package(
        "scapy",
        "python3-scapy",
        "the tests' attacks over IPv6, which hping3 does not speak",
    ),
    package(
        "bpftool",
        "bpftool",
        "looks into the kernel's maps, independently of the agent",
    ),
    package(
        "xdp-loader",
        "xdp-tools",
        "xdp-filter, which the benchmarks compare with",
    ),
    package("tcpdump", "tcpdump", "captures in the lab"),
    package(
        "nats-server",
        "nats-server",
        "the broker of labs whose nodes talk through NATS",
    ),
    package(
        "nft",
        "nftables",
        "the firewall that the benchmarks compare with",
    ),
    package(
        "ipset",
        "ipset",
        "the sets that the benchmarks compare with",
    ),
    package(
        "iptables",
        "iptables",
        "asks ipset's sets in the benchmarks",
    ),
    package(
        "ethtool",
        "ethtool",
        "offload settings of the lab's interfaces",
    ),
];

const GUEST_TOOLS: &[Package] = &[
    package(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "boots other kernels, to try the programs on them",
    ),
    package("strip", "binutils", "makes what is booted smaller"),
];

/// How a missing thing is put right.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Remedy {
    RustComponent(&'static str),
    CargoInstall {
        name: &'static str,
        version: Option<&'static str>,
    },
    Debian(&'static str),
    MountBpffs,
}

/// A missing thing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Missing {
    remedy: Remedy,
    why: &'static str,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.remedy {
            Remedy::RustComponent(name) => write!(f, "Rust component {name}")?,
            Remedy::CargoInstall { name, version } => {
                write!(
                    f,
                    "{name} {}, compiled from crates.io (some minutes)",
                    version.unwrap_or("(newest)")
                )?;
            }
            Remedy::Debian(name) => write!(f, "Debian package {name}")?,
            Remedy::MountBpffs => write!(f, "the BPF file system, mounted at {BPFFS}")?,
        }
        write!(f, ": {}", self.why)
    }
}

/// Makes sure that all that `profile` needs is there.
///
/// Says what it will install and why before it does; quiet when nothing is missing, unless `talkative`.
///
/// # Errors
/// When something is missing and `check_only` is set, when the machine is not a Debian and packages
/// are missing, or when an installation fails.
pub fn ensure(profile: Profile, talkative: bool, check_only: bool) -> anyhow::Result<()> {
    let missing = find_missing(profile);
    if missing.is_empty() {
        if talkative {
            println!("Everything is here already; nothing to do.");
        }
        return Ok(());
    }
    println!(
        "{}",
        paint(
            Style::Strong,
            if check_only {
                "Missing:"
            } else {
                "Missing, will be installed now:"
            }
        )
    );
    for thing in &missing {
        println!("  {thing}");
    }
    if check_only {
        bail!(
            "{} thing(s) missing; `cargo xtask setup` installs them",
            missing.len()
        );
    }
    install(&missing)?;
    let still = find_missing(profile);
    if let Some(thing) = still.first() {
        bail!("still missing after the installation: {thing}");
    }
    println!("{}", paint(Style::Good, "Set up."));
    Ok(())
}

fn find_missing(profile: Profile) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut need = |present: bool, remedy: Remedy, why: &'static str| {
        if !present {
            missing.push(Missing { remedy, why });
        }
    };
    need(
        has_rust_src(),
        Remedy::RustComponent("rust-src"),
        "the kernel programs build Rust's core library for their own target",
    );
    if profile.checks() {
        need(
            answers("cargo-fmt", &["--version"]),
            Remedy::RustComponent("rustfmt"),
            "the formatting check",
        );
        need(
            answers("cargo-clippy", &["--version"]),
            Remedy::RustComponent("clippy"),
            "the lint check",
        );
    }
    need(
        sh::which(COMPILER.program).is_some(),
        Remedy::Debian(COMPILER.name),
        COMPILER.why,
    );
    if profile.fuzzes() {
        need(
            sh::which(CXX_COMPILER.program).is_some(),
            Remedy::Debian(CXX_COMPILER.name),
            CXX_COMPILER.why,
        );
    }
    need(
        version_of("bpf-linker").is_some_and(|version| version.starts_with("0.10.")),
        Remedy::CargoInstall {
            name: "bpf-linker",
            version: Some("^0.10"),
        },
        "links the kernel programs; 0.10 is the one that uses the pinned toolchain's own LLVM",
    );
    if profile.checks() {
        need(
            version_of("cargo-deny").is_some(),
            Remedy::CargoInstall {
                name: "cargo-deny",
                version: None,
            },
            "checks licences, bans and sources of dependencies",
        );
    }
    if profile.network_tools() {
        for tool in NETWORK_TOOLS {
            need(
                sh::which(tool.program).is_some(),
                Remedy::Debian(tool.name),
                tool.why,
            );
        }
    }
    if profile.boots_kernels() {
        for tool in GUEST_TOOLS {
            need(
                sh::which(tool.program).is_some(),
                Remedy::Debian(tool.name),
                tool.why,
            );
        }
    }
    if profile.runs_bpf() {
        need(
            bpffs_is_mounted(),
            Remedy::MountBpffs,
            "maps and links are pinned there, so that blocks outlive the agent",
        );
    }
    missing
}

fn has_rust_src() -> bool {
    let Ok(output) = sh::output(
        sh::command("rustc")
            .args(["--print", "sysroot"])
            .current_dir(sh::repo_root()),
    ) else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

fn answers(program: &str, args: &[&str]) -> bool {
    sh::output(sh::command(program).args(args).current_dir(sh::repo_root())).is_ok()
}

/// The version that `program --version` prints as its second word.
fn version_of(program: &str) -> Option<String> {
    let output = sh::output(sh::command(sh::which(program)?).arg("--version")).ok()?;
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .nth(1)
        .map(str::to_owned)
}

/// Whether a BPF file system is mounted where the agent pins its maps.
pub fn bpffs_is_mounted() -> bool {
    nix::sys::statfs::statfs(BPFFS)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

fn install(missing: &[Missing]) -> anyhow::Result<()> {
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|thing| match &thing.remedy {
            Remedy::Debian(name) => Some(*name),
            _ => None,
        })
        .collect();
    install_packages(&packages)?;
    for thing in missing {
        match &thing.remedy {
            Remedy::Debian(_) => {}
            Remedy::RustComponent(name) => {
                let mut rustup = sh::command("rustup");
                rustup.args(["component", "add", name]).current_dir(sh::repo_root());
                sh::run(&mut rustup).with_context(|| format!("cannot add the Rust component {name}; is this toolchain rustup's?"))?;
            }
            Remedy::CargoInstall { name, version } => {
                let mut cargo = sh::cargo();
                // --force replaces a version that does not fit.
                cargo.args(["install", "--locked", "--force", name]);
                if let Some(version) = version {
                    cargo.args(["--version", version]);
                }
                sh::run(&mut cargo)?;
            }
            Remedy::MountBpffs => sh::run(sh::as_root("mount")?.args(["-t", "bpf", "bpf", BPFFS])).with_context(|| {
                format!("cannot mount the BPF file system at {BPFFS}; does this kernel have CONFIG_BPF_SYSCALL?")
            })?,
        }
    }
    Ok(())
}

fn install_packages(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if sh::which("apt-get").is_none() {
        bail!(
            "this is no Debian (no apt-get here); install by hand what these Debian packages hold, then run this again: {}",
            packages.join(" ")
        );
    }
    // `env` because sudo does not pass the variable on.
    let apt = |args: &[&str]| -> anyhow::Result<()> {
        let mut command = sh::as_root("env")?;
        command
            .args([
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "-qq",
                "-o",
                "Dpkg::Use-Pty=0",
            ])
            .args(args);
        sh::run(&mut command)
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend_from_slice(packages);
    apt(&install)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_reads_as_a_sentence() {
        let thing = Missing {
            remedy: Remedy::Debian("hping3"),
            why: "floods",
        };
        assert_eq!(thing.to_string(), "Debian package hping3: floods");
        let thing = Missing {
            remedy: Remedy::CargoInstall {
                name: "bpf-linker",
                version: Some("^0.10"),
            },
            why: "links",
        };
        assert!(thing.to_string().starts_with("bpf-linker ^0.10, compiled"));
    }

    #[test]
    fn to_run_an_agent_needs_no_attack_tools() {
        assert!(!Profile::Run.network_tools());
        assert!(Profile::Run.runs_bpf());
        assert!(!Profile::Build.runs_bpf());
        assert!(Profile::Vm.boots_kernels() && !Profile::Vm.runs_bpf());
        assert!(!Profile::Test.boots_kernels() && Profile::All.boots_kernels());
        assert!(Profile::Test.network_tools() && Profile::Test.checks());
    }
}
