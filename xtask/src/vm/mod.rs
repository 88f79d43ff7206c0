//! `cargo xtask vm`: the kernel programs on the kernels that people run.
//!
//! Boots Debian's kernels under qemu with a first file system of our own making, whose only program is
//! `vm-init` of the tests' package. In there every program of the object is loaded in the smallest, the
//! default and the largest configuration, and every fixture is sent through it; then real traffic and a real program.

mod apt;
mod cpio;
mod qemu;
mod report;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};

pub use report::{Line, ProgramLine, Report, SIZES, VERIFIER_LIMIT};

use crate::setup::{self, Profile};
use crate::{build, sh, stop};
use apt::{Apt, Image};
use cpio::Archive;
use qemu::{Accelerator, Boot};

/// The binary of the tests' package that is the guest's only program.
const INIT: &str = "vm-init";
/// Kernel modules that the guest gets, in the order in which they are loaded; the last two for filters of the clsact
/// queueing discipline, which a system loads by itself when they are asked for.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];
/// Where they are in the guest.
pub const MODULE_FOLDER: &str = "/modules";

/// A kernel that is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Series {
    /// Debian 12's.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// All of them, old ones first.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Major and minor number, as people write them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Major and minor number.
    pub const fn number(self) -> (u32, u32) {
        match self {
            Self::V6_1 => (6, 1),
            Self::V6_12 => (6, 12),
        }
    }

    /// Debian's suite that has it.
    pub const fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }
}

/// Boots each kernel, one after the other, and reports. Progress goes to standard error.
///
/// # Errors
/// When setting up or fetching a kernel fails. What fails with a kernel is in its report.
pub fn run(kernels: &[Series], limit: Duration) -> anyhow::Result<Vec<Report>> {
    setup::ensure(Profile::Vm, false, false)?;
    stop::catch_signals()?;
    let home = sh::target_folder().join("vm");
    let apt = Apt::prepare(&home.join("apt"))?;
    eprintln!("building {INIT}");
    let init = init_binary(&home)?;
    if let Some(note) = apt.refresh()? {
        eprintln!("{note}");
    }
    kernels
        .iter()
        .map(|series| one(*series, &apt, &init, &home, limit))
        .collect()
}

fn one(
    series: Series,
    apt: &Apt,
    init: &[Part],
    home: &Path,
    limit: Duration,
) -> anyhow::Result<Report> {
    let name = series.name();
    let image = apt.newest(series)?;
    eprintln!("{name}: {} {}", image.package, image.version);
    let package = apt.download(&image, series)?;
    let kernel = Kernel::unpack(&package, &image, &home.join(name))?;
    let initramfs = home.join(format!("{name}.initramfs"));
    std::fs::write(&initramfs, kernel.initramfs(init)?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let accelerator = Accelerator::here();
    let boot = Boot {
        kernel: kernel.image,
        initramfs,
        console: home.join(format!("{name}.log")),
        lines: home.join(format!("{name}.lines")),
        accelerator,
        limit,
    };
    eprintln!("{name}: booting under qemu ({})", accelerator.name());
    let mut lines = Vec::new();
    let ended = boot.run(|line| {
        if let Some(text) = progress(&line) {
            eprintln!("{name}: {text}");
        }
        lines.push(line);
    });
    let mut failures = report::failures(name, &lines);
    let seconds = match ended {
        Ok(took) => took.as_secs_f64(),
        Err(error) => {
            failures.insert(0, format!("{error:#}"));
            limit.as_secs_f64()
        }
    };
    if stop::requested() {
        bail!("interrupted");
    }
    Ok(Report {
        series: name.to_owned(),
        package: format!("{} {}", image.package, image.version),
        accelerator: accelerator.name().to_owned(),
        seconds,
        ok: failures.is_empty(),
        failures,
        console: boot.console.display().to_string(),
        lines,
    })
}

/// What people are told while it runs.
fn progress(line: &Line) -> Option<String> {
    match line {
        Line::Kernel { release, .. } => Some(format!("Linux {release} runs")),
        Line::Program(line) => Some(format!(
            "{} configuration, {}: {}",
            line.size,
            line.program,
            match (&line.refused, line.verified) {
                (Some(why), _) => format!("refused: {why}"),
                (None, Some(count)) => format!("{count} instructions verified"),
                (None, None) => "loaded".to_owned(),
            }
        )),
        Line::Fixtures {
            size,
            blocked,
            mode,
            sent,
            failed,
        } => Some(format!(
            "fixtures, {size} configuration, blocked {blocked}, {mode} mode: {sent} sent, {} not as expected",
            failed.len()
        )),
        Line::Live {
            egress,
            packets,
            process,
            ..
        } => Some(format!(
            "flows of {packets:?} packets, out by {egress}; a program: {}",
            process.join(", ")
        )),
        Line::Failure { what, error } => Some(format!("{what}: {error}")),
        Line::Configuration { .. } | Line::Canary { .. } | Line::End => None,
    }
}

/// A file for the guest: where it goes, and its content.
type Part = (String, Vec<u8>);

/// The guest's program, without its debug information, and the libraries that it needs.
fn init_binary(home: &Path) -> anyhow::Result<Vec<Part>> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--package", "secmesh-tests", "--bin", INIT]);
    let built = build::executables_of(&mut cargo)?
        .into_iter()
        .find(|executable| executable.name == INIT)
        .with_context(|| format!("cargo built no {INIT}"))?;
    let stripped = home.join(INIT);
    sh::output(
        sh::command("strip")
            .args(["--strip-all", "-o"])
            .arg(&stripped)
            .arg(&built.file),
    )?;
    let told = sh::output(sh::command("ldd").arg(&stripped))?;
    let mut parts = vec![("/init".to_owned(), read(&stripped)?)];
    for library in libraries(&String::from_utf8_lossy(&told.stdout)) {
        let content = read(&library)?;
        parts.push((library.to_string_lossy().into_owned(), content));
    }
    Ok(parts)
}

/// The files that `ldd` names.
///
/// ```text
///         linux-vdso.so.1 (0x00007ffd)
///         libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)
///         /lib64/ld-linux-x86-64.so.2 (0x00007f01)
/// ```
fn libraries(told: &str) -> Vec<PathBuf> {
    told.lines()
        .filter_map(|line| {
            let found = line.split_once(" => ").map_or(line, |(_, found)| found);
            let (path, _) = found.trim().rsplit_once(" (")?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// What is taken out of a kernel package.
struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

impl Kernel {
    /// Takes the kernel and [`MODULES`] out of a package, into an empty folder.
    fn unpack(package: &Path, image: &Image, folder: &Path) -> anyhow::Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut reader = sh::command("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpkg-deb")?;
        let archive = reader.stdout.take().context("piped above")?;
        let mut tar = sh::command("tar");
        tar.arg("--extract")
            .arg("--directory")
            .arg(folder)
            .args(["--wildcards", "./boot/vmlinuz-*"])
            .args(MODULES.map(|module| format!("*/kernel/*/{module}.ko*")))
            .stdin(archive);
        sh::output(&mut tar)?;
        let status = reader.wait().context("cannot wait for dpkg-deb")?;
        if !status.success() {
            bail!("dpkg-deb could not read {} ({status})", package.display());
        }
        let mut files = Vec::new();
        walk(folder, &mut files)?;
        let find = |start: &str| {
            files
                .iter()
                .find(|file| {
                    file.file_name()
                        .is_some_and(|name| name.to_string_lossy().starts_with(start))
                })
                .cloned()
                .with_context(|| format!("{} has no {start}*", image.package))
        };
        Ok(Self {
            image: find("vmlinuz-")?,
            modules: MODULES
                .iter()
                .map(|module| find(&format!("{module}.ko")))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    fn initramfs(&self, init: &[Part]) -> anyhow::Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in ["/proc", "/sys", "/dev", "/tmp"] {
            archive.folder(folder)?;
        }
        // The first program's standard streams, before anything is mounted.
        archive.device("/dev/console", 5, 1)?;
        for (path, content) in init {
            archive.program(path, content)?;
        }
        for (order, module) in self.modules.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.program(&format!("{MODULE_FOLDER}/{order}-{name}"), &read(module)?)?;
        }
        Ok(archive.finish()?)
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot read {}", folder.display()))?
            .path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_that_ldd_names_are_found() {
        let told = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        assert_eq!(
            libraries(told),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert_eq!(libraries("\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_series_reads_as_its_number() {
        for series in Series::ALL {
            let (major, minor) = series.number();
            assert_eq!(series.name(), format!("{major}.{minor}"));
        }
    }
}
