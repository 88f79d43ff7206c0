//! `cargo xtask build`, and where the agent's binary is.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::sh;

/// Names a ready agent binary, so that nothing is built: for tests that run as another user.
pub const BINARY_VARIABLE: &str = "SECMESH_BIN";

/// How cargo compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Quick to build; what the tests run.
    Dev,
    /// What is shipped, and what is measured.
    Release,
}

/// The `cargo build` messages that matter here.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// An executable that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// The target's name, such as `secmesh` or the name of an integration test.
    pub name: String,
    /// The file.
    pub file: PathBuf,
}

/// Runs a cargo command with `--message-format=json-render-diagnostics` and gives the executables it made.
///
/// # Errors
/// When cargo cannot be started or fails; what it printed went to standard error.
pub fn executables_of(cargo: &mut Command) -> anyhow::Result<Vec<Executable>> {
    let shown = sh::shown(cargo);
    let mut child = cargo
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let mut found = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.with_context(|| format!("cannot read what `{shown}` prints"))?;
            found.extend(executable_in(&line));
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(found)
}

fn executable_in(line: &str) -> Option<Executable> {
    let message: Message = serde_json::from_str(line).ok()?;
    (message.reason == "compiler-artifact").then_some(())?;
    Some(Executable {
        name: message.target?.name,
        file: message.executable?,
    })
}

/// Builds the agent and says where its binary is.
///
/// The kernel programs are built and put into it by its build script. With [`BINARY_VARIABLE`] set, that
/// file is taken and nothing is built.
///
/// # Errors
/// When the build fails, or the named file is not there.
pub fn agent(mode: Mode) -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os(BINARY_VARIABLE) {
        let file = PathBuf::from(given);
        if !file.is_file() {
            bail!(
                "{BINARY_VARIABLE} names {}, and there is no such file: unset it to have the agent built",
                file.display()
            );
        }
        return Ok(file);
    }
    let mut cargo = sh::cargo();
    cargo.args(["build", "--package", "secmesh", "--bin", "secmesh"]);
    if mode == Mode::Release {
        cargo.arg("--release");
    }
    executables_of(&mut cargo)?
        .into_iter()
        .find(|built| built.name == "secmesh")
        .map(|built| built.file)
        .context("cargo built no binary named secmesh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_read_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"secmesh","kind":["bin"]},"executable":"/t/secmesh","fresh":true}"#;
        assert_eq!(
            executable_in(line),
            Some(Executable {
                name: "secmesh".to_owned(),
                file: PathBuf::from("/t/secmesh")
            })
        );
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}"#;
        assert_eq!(executable_in(library), None);
        assert_eq!(
            executable_in(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(executable_in("no json"), None);
    }
}
