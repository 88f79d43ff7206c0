//! The steps: which commands each consists of.

use std::process::Command;

use anyhow::Context as _;

use super::Selection;
use crate::build::{self, BINARY_VARIABLE, Executable, Mode};
use crate::fuzz;
use crate::lab::CARRIER_VARIABLE;
use crate::sh;
use crate::sim;

/// One step of the run.
pub struct Step {
    /// What is shown while it runs.
    pub name: &'static str,
    /// Its log's name without `.log`.
    pub file: &'static str,
    /// One after the other, all of them whatever becomes of them.
    pub commands: Vec<Command>,
    /// Whether it runs tests, and so must close with at least one counted.
    pub tests: bool,
}

fn cargo_with(args: &[&str]) -> Command {
    let mut cargo = sh::cargo();
    cargo.args(args);
    cargo
}

/// Makes commands of this program: processes of their own, so that their output goes to a log.
fn own_commands() -> anyhow::Result<impl Fn(&[&str]) -> Command> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(move |args: &[&str]| {
        let mut command = sh::command(&this);
        command.args(args);
        command
    })
}

/// What can be said of the source without running it.
pub fn check_steps(selection: Selection) -> Vec<Step> {
    let check = |name, file, command| Step {
        name,
        file,
        commands: vec![command],
        tests: false,
    };
    let mut steps = vec![
        check(
            "formatting",
            "fmt",
            cargo_with(&["fmt", "--all", "--check"]),
        ),
        check(
            "clippy, user space",
            "clippy-user",
            cargo_with(&[
                "clippy",
                "--workspace",
                "--exclude",
                "secmesh-ebpf",
                "--exclude",
                "secmesh-tests-ebpf",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
    ];
    if !selection.quick {
        let mut kernel = cargo_with(&[
            "clippy",
            "--package",
            "secmesh-ebpf",
            "--package",
            "secmesh-tests-ebpf",
            "--target",
            "bpfel-unknown-none",
            "-Zbuild-std=core",
            "--release",
            "--",
            "-D",
            "warnings",
        ]);
        // The pinned stable toolchain builds core for the BPF target; only that needs the switch.
        kernel.env("RUSTC_BOOTSTRAP", "1");
        steps.push(check("clippy, kernel programs", "clippy-kernel", kernel));
        // Advisories are not among them: their database is on a host that a build machine may not reach.
        steps.push(check(
            "cargo-deny",
            "deny",
            cargo_with(&[
                "deny",
                "--all-features",
                "check",
                "bans",
                "licenses",
                "sources",
            ]),
        ));
    }
    steps
}

/// Tests that need neither root nor the kernel program.
pub fn user_tests() -> Step {
    Step {
        name: "unit and property tests",
        file: "unit",
        commands: vec![cargo_with(&[
            "test",
            "--workspace",
            "--exclude",
            "secmesh-ebpf",
            "--exclude",
            "secmesh-tests-ebpf",
            "--exclude",
            "secmesh-tests",
            "--no-fail-fast",
        ])],
        tests: true,
    }
}

/// Seeds of the simulation; with `--full` thousands, and the planted bugs that they have to find.
pub fn simulation(selection: Selection) -> anyhow::Result<Step> {
    let command = own_commands()?;
    let (seeds, committees) = if selection.full {
        (sim::FULL_SEEDS, sim::FULL_COMMITTEES)
    } else {
        (sim::STEP_SEEDS, sim::STEP_COMMITTEES)
    };
    let mut commands = vec![
        command(&["sim", "--seeds", seeds]),
        command(&["sim", "--committee", "--seeds", committees]),
    ];
    if selection.full {
        commands.push(command(&["sim", "--planted", "all"]));
    }
    Ok(Step {
        name: "simulated mesh",
        file: "simulation",
        commands,
        tests: false,
    })
}

/// The log of [`kernels`].
const KERNELS_LOG: &str = "vm.log";

/// The programs on the kernels that people run.
pub fn kernels() -> anyhow::Result<Step> {
    Ok(Step {
        name: "other kernels, under qemu",
        file: "vm",
        commands: vec![own_commands()?(&["vm"])],
        tests: false,
    })
}

/// What [`simulation`] and [`fuzzers`] run, built, and what is to be known of it. By itself: a build that is left waiting
/// for a processor between two writes holds up whoever else writes to that file system, so it must not be beside
/// agents of a lab.
pub fn computing_built() -> anyhow::Result<Step> {
    let command = own_commands()?;
    // The engine's own file is linted here: without its C++ part it does not compile.
    let mut lint = cargo_with(&["clippy", "--package", "secmesh-fuzz", "--all-targets"]);
    lint.args(["--features", "engine", "--", "-D", "warnings"]);
    Ok(Step {
        name: "simulation and fuzzing, built",
        file: "computing",
        commands: vec![
            command(&["sim-marker"]),
            lint,
            command(&["fuzz", "--no-run"]),
        ],
        tests: false,
    })
}

/// A bounded run of each fuzz target; what they find is in the log with the command that repeats it.
pub fn fuzzers() -> anyhow::Result<Step> {
    Ok(Step {
        name: "fuzz targets, 10 s each",
        file: "fuzz",
        commands: vec![own_commands()?(&["fuzz", "--time", fuzz::STEP_TIME])],
        tests: false,
    })
}

/// The verifier's counts are wanted from a run that went well, too.
pub fn print_tables(logs: &std::path::Path) {
    let text = std::fs::read(logs.join(KERNELS_LOG)).unwrap_or_default();
    print!("{}", tables(&String::from_utf8_lossy(&text)));
}

/// What `cargo xtask vm` printed after its progress: from the first kernel's line on.
fn tables(printed: &str) -> &str {
    let start = if printed.starts_with("Linux ") {
        Some(0)
    } else {
        printed.find("\nLinux ").map(|at| at + 1)
    };
    start.and_then(|at| printed.get(at..)).unwrap_or_default()
}

/// What a test that runs as root needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The kernel program and nothing around it: `tests/tests/kernel_*.rs`.
    Kernel,
    /// A lab of network namespaces: all others there.
    Lab,
    /// The same with the nodes' messages going through a NATS server: [`OVER_BOTH_CARRIERS`].
    LabOverNats,
}

/// Scenarios of the mesh that must not depend on what carries its messages.
const OVER_BOTH_CARRIERS: &[&str] = &[
    "crash", "liar", "operator", "release", "stranger", "takeover",
];

/// Test executables run as root, with the tests that are otherwise ignored because they need it; and with the
/// others of the package, which no other step runs.
///
/// cargo itself stays with the user, so that nothing in the target folder becomes root's.
pub fn root_tests(needs: Needs) -> anyhow::Result<Vec<Command>> {
    let agent = build::agent(Mode::Dev)?;
    let folder = sh::repo_root().join("tests");
    let built = build::executables_of(&mut cargo_with(&[
        "test",
        "--no-run",
        "--package",
        "secmesh-tests",
    ]))?;
    built
        .into_iter()
        .filter(|executable| {
            executable
                .file
                .parent()
                .is_some_and(|parent| parent.ends_with("deps"))
        })
        .filter(|executable| {
            let name = executable.file.file_name().unwrap_or_default();
            let name = name.to_string_lossy();
            match needs {
                Needs::Kernel => name.starts_with("kernel_"),
                Needs::Lab => !name.starts_with("kernel_"),
                // cargo adds a hash behind the last dash.
                Needs::LabOverNats => name
                    .rsplit_once('-')
                    .is_some_and(|(test, _)| OVER_BOTH_CARRIERS.contains(&test)),
            }
        })
        .map(|Executable { file, .. }| {
            let mut command = sh::as_root("env")?;
            let mut variable = std::ffi::OsString::from(BINARY_VARIABLE);
            variable.push("=");
            variable.push(&agent);
            if needs == Needs::LabOverNats {
                command.arg(format!("{CARRIER_VARIABLE}=nats"));
            }
            // Labs share the machine's two or more processors with what they measure: one at a time.
            command
                .arg(variable)
                .arg(file)
                .args(["--include-ignored", "--test-threads=1"])
                .current_dir(&folder);
            Ok(command)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_kernels_are_a_step_whose_tables_are_shown() {
        let step = kernels().unwrap();
        assert_eq!(format!("{}.log", step.file), KERNELS_LOG);
        assert!(!step.tests && step.commands[0].get_args().eq(["vm"]));
        let table = "Linux 6.1.0 (x)\n  secmesh  Xdp\n";
        assert_eq!(tables(&format!("6.1: booting\n{table}")), table);
        assert_eq!(tables(table), table);
        assert_eq!(tables("error: no network\n"), "");
    }
}
