//! `cargo xtask sim`: the decision core in a simulated world. The simulation is a program of its own (`sim/`),
//! because every `cargo xtask` would otherwise compile what it needs.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::bench::Row;
use crate::{build, sh};

/// The program.
const SIMULATION: &str = "secmesh-sim";
/// In every binary in which bugs can be planted, and in no other; as in `secmesh::mesh::simulation`.
const MARKER: &[u8] = b"secmesh: bugs can be planted in this binary, do not ship it";

/// Seeds that `cargo xtask test` runs.
pub const STEP_SEEDS: &str = "200";
/// Seeds that `cargo xtask test --full` runs.
pub const FULL_SEEDS: &str = "5000";
/// Seeds with a committee in the test command.
pub const STEP_COMMITTEES: &str = "20";
/// The same with `--full`.
pub const FULL_COMMITTEES: &str = "500";

fn program() -> anyhow::Result<Command> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--package", SIMULATION, "--bin", SIMULATION]);
    let built = build::executables_of(&mut cargo)?;
    let binary = built
        .into_iter()
        .find(|executable| executable.name == SIMULATION)
        .with_context(|| format!("cargo built no {SIMULATION}"))?;
    let mut command = sh::command(&binary.file);
    command.current_dir(sh::repo_root());
    Ok(command)
}

/// Runs seeds of the simulation, or plants bugs; `args` go to the program.
///
/// # Errors
/// When it cannot be built, or a rule did not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let mut command = program()?;
    command.arg("seeds").args(args);
    sh::run(&mut command)
}

/// Measures what a decision costs as the mesh grows. The plot goes to `target/bench/simulation.svg`.
///
/// # Errors
/// When it cannot be built or run, or prints something else than rows.
pub fn growth() -> anyhow::Result<Vec<Row>> {
    let folder = sh::repo_root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command = program()?;
    command
        .arg("growth")
        .arg("--rows")
        .arg("--plot")
        .arg(folder.join("simulation.svg"));
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", sh::shown(&command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        sh::shown(&command),
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the simulation's rows")
}

/// Whether bugs can be planted in a binary.
pub fn is_marked(binary: &[u8]) -> bool {
    binary.windows(MARKER.len()).any(|window| window == MARKER)
}

/// The agent that people get must have no bugs that can be planted; the simulation must, or the look for them
/// is worth nothing.
///
/// # Errors
/// When either is not so.
pub fn check_agent() -> anyhow::Result<()> {
    let agent = build::agent(build::Mode::Dev)?;
    let read = |file: &std::path::Path| {
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
    };
    ensure!(
        !is_marked(&read(&agent)?),
        "bugs can be planted in the agent: something enables the feature `simulation` for {}",
        agent.display()
    );
    let simulation = program()?;
    ensure!(
        is_marked(&read(std::path::Path::new(simulation.get_program()))?),
        "the simulation has not the marker that is looked for in the agent"
    );
    println!("the agent has no bugs to plant, the simulation has");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_found_where_it_is() {
        let mut bytes = vec![7; 100];
        assert!(!is_marked(&bytes));
        bytes.extend(MARKER);
        bytes.push(7);
        assert!(is_marked(&bytes));
    }
}
