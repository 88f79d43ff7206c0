//! One guest, from its start to its end.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::report::Line;
use crate::{sh, stop};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";
/// Memory of the guest, MiB. The largest block maps take a good quarter of it; the host gives pages as the
/// guest touches them.
pub const MEMORY_MIB: u32 = 4096;
/// Processors of the guest: more than one, because of the per-CPU maps.
const CPUS: &str = "2";
/// How often the guest's lines are looked for.
const PAUSE: Duration = Duration::from_millis(100);
/// The guest's kernel logs what is worse than this level ("notice").
const LOG_LEVEL: &str = "loglevel=5";

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By emulation in software.
    Tcg,
}

impl Accelerator {
    /// KVM if the processor has the extension for it and its device can be opened.
    ///
    /// Both are asked: there are virtual machines that have the device and cannot run a guest.
    pub fn here() -> Self {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let openable = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok()
        };
        if has_virtualisation(&flags) && openable() {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }

    /// As qemu calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// What is booted, and where its output goes.
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first file system.
    pub initramfs: PathBuf,
    /// Where the console's log goes.
    pub console: PathBuf,
    /// Where the guest's lines go.
    pub lines: PathBuf,
    /// How it runs.
    pub accelerator: Accelerator,
    /// After so long it is killed.
    pub limit: Duration,
}

/// A running qemu; killed, by its process id, when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself, which is what both would complain about.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Boot {
    fn command(&self) -> Command {
        let mut command = sh::command(QEMU);
        // Without five-level page tables, which only cost time under emulation.
        let processor = match self.accelerator {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max,la57=off",
        };
        let memory = MEMORY_MIB.to_string();
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-accel",
            self.accelerator.name(),
            "-cpu",
            processor,
            "-smp",
            CPUS,
            "-m",
            &memory,
        ]);
        // Options of qemu separate with commas, and a comma in a value is written twice.
        for port in [&self.console, &self.lines] {
            let path = port.to_string_lossy().replace(',', ",,");
            command.arg("-serial").arg(format!("file:{path}"));
        }
        // The guest ends itself a little earlier than we would, and then says why.
        let inside = self.limit.as_secs().saturating_sub(5).max(1);
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 {LOG_LEVEL} panic=-1 secmesh.limit={inside}"
            ));
        command
    }

    /// Boots, and hands each line on as it comes. Gives how long it took.
    ///
    /// # Errors
    /// When qemu cannot be started or fails, the time is over, or somebody pressed Ctrl-C; the guest is gone
    /// in every case.
    pub fn run(&self, mut on_line: impl FnMut(Line)) -> anyhow::Result<Duration> {
        for file in [&self.console, &self.lines] {
            File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let complaints = self.console.with_extension("qemu.log");
        let log = File::create(&complaints)
            .with_context(|| format!("cannot write {}", complaints.display()))?;
        let mut reader = LineReader::open(&self.lines)?;
        let started = Instant::now();
        let mut command = self.command();
        let mut guest = Guest(
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("cannot start `{}`", sh::shown(&command)))?,
        );
        loop {
            // Asked before the last lines are read, so that none is missed.
            let ended = guest.0.try_wait().context("cannot wait for qemu")?;
            reader.take(&mut on_line)?;
            if let Some(status) = ended {
                if !status.success() {
                    let said = std::fs::read_to_string(&complaints).unwrap_or_default();
                    bail!("{QEMU} failed ({status}): {}", sh::tail(&said, 12));
                }
                return Ok(started.elapsed());
            }
            if stop::requested() {
                bail!("interrupted");
            }
            if started.elapsed() > self.limit {
                bail!(
                    "the guest was killed after {} s; --limit gives it more",
                    self.limit.as_secs()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Follows a file that grows by lines of JSON.
struct LineReader {
    file: BufReader<File>,
    path: PathBuf,
    begun: String,
}

impl LineReader {
    fn open(path: &std::path::Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            file: BufReader::new(file),
            path: path.to_path_buf(),
            begun: String::new(),
        })
    }

    /// Hands on every line that is whole.
    fn take(&mut self, on_line: &mut impl FnMut(Line)) -> anyhow::Result<()> {
        let shown = || format!("cannot read {}", self.path.display());
        // Clears the end of file that the reader has seen.
        let at = self.file.stream_position().with_context(shown)?;
        self.file.seek(SeekFrom::Start(at)).with_context(shown)?;
        loop {
            let read = self
                .file
                .read_line(&mut self.begun)
                .with_context(|| format!("cannot read {}", self.path.display()))?;
            if read == 0 || !self.begun.ends_with('\n') {
                return Ok(());
            }
            let text = std::mem::take(&mut self.begun);
            let text = text.trim();
            if !text.is_empty() {
                on_line(
                    serde_json::from_str(text).unwrap_or_else(|error| Line::Failure {
                        what: format!("the guest wrote {text:?}"),
                        error: error.to_string(),
                    }),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn boot(name: &str) -> Boot {
        let folder = std::env::temp_dir().join(format!("xtask-vm-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Boot {
            kernel: folder.join("kernel"),
            initramfs: folder.join("initramfs"),
            console: folder.join("a,b.log"),
            lines: folder.join("lines"),
            accelerator: Accelerator::Tcg,
            limit: Duration::from_mins(1),
        }
    }

    #[test]
    fn lines_are_handed_on_when_they_are_whole() {
        let boot = boot("lines");
        let mut file = File::create(&boot.lines).unwrap();
        let mut reader = LineReader::open(&boot.lines).unwrap();
        let mut seen = Vec::new();
        reader.take(&mut |line| seen.push(line)).unwrap();
        file.write_all(b"{\"kind\":\"en").unwrap();
        reader.take(&mut |line| seen.push(line)).unwrap();
        assert_eq!(seen, []);
        file.write_all(b"d\"}\r\n{\"kind\":\"canary\",\"noticed\":true}\nno json\n")
            .unwrap();
        reader.take(&mut |line| seen.push(line)).unwrap();
        assert_eq!(
            seen.get(..2),
            Some([Line::End, Line::Canary { noticed: true }].as_slice())
        );
        assert!(
            matches!(seen.get(2), Some(Line::Failure { what, .. }) if what.contains("no json")),
            "{seen:?}"
        );
        std::fs::remove_dir_all(boot.lines.parent().unwrap()).unwrap();
    }

    #[test]
    fn the_command_line_has_the_limit_and_no_stray_commas() {
        let boot = boot("command");
        let shown = sh::shown(&boot.command());
        assert!(shown.contains("secmesh.limit=55"), "{shown}");
        assert!(shown.contains("a,,b.log"), "{shown}");
        assert!(shown.contains("-accel tcg"), "{shown}");
        std::fs::remove_dir_all(boot.lines.parent().unwrap()).unwrap();
    }

    #[test]
    fn virtualisation_is_a_flag_of_the_processor() {
        assert!(has_virtualisation("flags\t\t: fpu svm npt\n"));
        assert!(has_virtualisation("flags\t\t: vmx\n"));
        assert!(!has_virtualisation(
            "model name\t: svm\nflags\t\t: fpu vmmcall svm_lock\n"
        ));
    }
}
