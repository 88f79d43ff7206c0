//! Running other programs.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail};

/// The top folder of the repository.
pub fn repo_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// Where cargo puts what it builds, and we what we keep between runs.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo_root().join("target"), PathBuf::from)
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `PATH` with cargo's own program folder first and the system folders last.
///
/// `bpf-linker` lands in cargo's folder, which is not on everybody's `PATH`; the network tools are in
/// `/usr/sbin`, which is not on an ordinary user's.
pub fn path_with_cargo() -> OsString {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let given = std::env::var_os("PATH").unwrap_or_default();
    let folders = cargo_home
        .map(|home| home.join("bin"))
        .into_iter()
        .chain(std::env::split_paths(&given))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    // A folder with a colon in its name cannot be joined; then what was given has to do.
    std::env::join_paths(folders).unwrap_or(given)
}

/// Where `program` is, looked for in [`path_with_cargo`].
pub fn which(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    std::env::split_paths(&path_with_cargo())
        .map(|folder| folder.join(program))
        .find(|file| {
            std::fs::metadata(file)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// A command for `program` with the wider `PATH`.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path_with_cargo());
    command
}

/// The cargo that runs us, else the one on the path, started in the repository.
pub fn cargo() -> Command {
    let mut command = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repo_root());
    command
}

/// A command that runs `program` as root: as it is when we are root, else through `sudo`.
///
/// # Errors
/// When we are not root and there is no `sudo`.
pub fn as_root(program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
    if is_root() {
        return Ok(command(program));
    }
    if which("sudo").is_none() {
        bail!(
            "{} needs root, and there is no sudo here: run this as root",
            program.as_ref().display()
        );
    }
    let mut sudo = command("sudo");
    sudo.arg("--preserve-env=RUST_LOG,RUST_BACKTRACE,NO_COLOR,CI,SECMESH_BIN,SECMESH_LAB_CARRIER")
        .arg("--")
        .arg(program);
    Ok(sudo)
}

/// The same command, run only while nobody else wants a processor (`SCHED_IDLE`, sched(7)).
pub fn when_idle(of: &Command) -> Command {
    let mut idle = Command::new("chrt");
    idle.args(["--idle", "0"])
        .arg(of.get_program())
        .args(of.get_args());
    for (name, value) in of.get_envs() {
        match value {
            Some(value) => idle.env(name, value),
            None => idle.env_remove(name),
        };
    }
    if let Some(folder) = of.get_current_dir() {
        idle.current_dir(folder);
    }
    idle
}

/// How a command reads in a message.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
/// When it cannot be started or exits with anything but 0; the message has its last lines.
pub fn output(command: &mut Command) -> anyhow::Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            shown(command),
            output.status,
            last_words(&output)
        );
    }
    Ok(output)
}

/// Runs a command to its end with our own output.
///
/// # Errors
/// When it cannot be started or exits with anything but 0.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// The last lines that a program wrote, from standard error if there are any.
pub fn last_words(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let text = if stderr.trim().is_empty() {
        stdout
    } else {
        stderr
    };
    tail(&text, 12)
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_says_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
        assert!(
            output(&mut Command::new("no-such-program-here"))
                .unwrap_err()
                .to_string()
                .contains("cannot start")
        );
    }

    #[test]
    fn an_idle_command_is_the_same_one_and_waits_for_the_others() {
        let mut command = command("sh");
        command
            .args(["-c", "chrt --pid $$; echo $SECMESH_IDLE; pwd"])
            .env("SECMESH_IDLE", "it goes along")
            .current_dir("/");
        let output = output(&mut when_idle(&command)).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("SCHED_IDLE"), "{said}");
        assert!(said.ends_with("it goes along\n/\n"), "{said}");
    }

    #[test]
    fn a_tail_has_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
        assert_eq!(tail("", 5), "");
    }

    #[test]
    fn programs_are_found_and_absent_ones_are_not() {
        assert!(which("sh").is_some());
        assert!(which("no-such-program-here").is_none());
    }
}
