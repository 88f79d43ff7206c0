//! `cargo xtask test`: every check and every test, one line each.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::build::{self, BINARY_VARIABLE, Executable, Mode};
use crate::fuzz;
use crate::lab::CARRIER_VARIABLE;
use crate::setup::{self, Profile};
use crate::sh;
use crate::sim;
use crate::term::{Style, paint};

/// What to leave out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// Only formatting, lints of user space, and the tests that need no root.
    pub quick: bool,
    /// Everything but the scenarios in the lab.
    pub no_lab: bool,
    /// More than by default: what takes minutes, too.
    pub full: bool,
}

/// Tests counted from the closing lines of cargo's test runner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Not run.
    pub ignored: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …` lines.
pub fn count_tests(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output.lines() {
        let Some((_, rest)) = line.split_once("test result: ") else {
            continue;
        };
        let number_before = |word: &str| -> u64 {
            rest.split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        counts.add(Counts {
            passed: number_before("passed"),
            failed: number_before("failed"),
            ignored: number_before("ignored"),
        });
    }
    counts
}

/// Most lines shown of what a failed test said.
const SAID: usize = 24;

/// The failed tests in what cargo's test runner printed, each with the beginning of what it said.
///
/// The runner has them between `---- NAME stdout ----` and the next of these or the list of names. Backtraces are left
/// out: the log has them.
fn failed_tests(output: &str) -> Vec<String> {
    let mut failed = Vec::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("---- ");
        let Some(name) = name.and_then(|rest| rest.strip_suffix(" stdout ----")) else {
            continue;
        };
        let mut said = vec![format!("failed: {name}")];
        while let Some(line) = lines.next_if(|line| !line.starts_with("---- ")) {
            if line.starts_with("failures:") || line == "Stack backtrace:" {
                break;
            }
            if said.len() <= SAID && !line.is_empty() {
                said.push(format!("    {line}"));
            }
        }
        failed.push(said.join("\n"));
    }
    failed
}

/// One step of the run.
struct Step {
    name: &'static str,
    file: &'static str,
    commands: Vec<Command>,
    /// Whether it runs tests, and so must close with at least one counted.
    tests: bool,
}

#[derive(Default)]
struct Totals {
    counts: Counts,
    checks: u32,
    failed_steps: Vec<&'static str>,
    /// Said once more at the end: a step's last lines may be those of tests that passed.
    failed_tests: Vec<String>,
}

/// Runs the steps, all of them even when some fail, and reports.
///
/// # Errors
/// When setting up fails, or any step does.
pub fn run(selection: Selection) -> anyhow::Result<()> {
    let started = Instant::now();
    setup::ensure(
        if selection.quick {
            Profile::Build
        } else {
            Profile::Test
        },
        false,
        false,
    )?;
    if selection.full {
        setup::ensure(Profile::Vm, false, false)?;
    }
    let logs = log_folder()?;
    let mut totals = Totals::default();

    for step in check_steps(selection) {
        totals.take(step, &logs)?;
    }
    totals.take(user_tests(), &logs)?;
    let mut busy = vec![simulation(selection)?];
    if !selection.quick {
        busy.push(fuzzers()?);
        totals.take_root_tests("packets through the kernel", "kernel", Needs::Kernel, &logs)?;
    }
    if selection.quick || selection.no_lab {
        for step in busy {
            totals.take(step, &logs)?;
        }
    } else {
        totals.take_lab(busy, &logs)?;
    }
    if selection.full {
        totals.take(kernels()?, &logs)?;
        print_tables(&logs);
    }
    totals.report(started.elapsed(), &logs)
}

fn log_folder() -> anyhow::Result<PathBuf> {
    let folder = sh::target_folder().join("xtask-test");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

fn cargo_with(args: &[&str]) -> Command {
    let mut cargo = sh::cargo();
    cargo.args(args);
    cargo
}

fn check_steps(selection: Selection) -> Vec<Step> {
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

fn user_tests() -> Step {
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
fn simulation(selection: Selection) -> anyhow::Result<Step> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    let command = |args: &[&str]| {
        let mut command = sh::command(&this);
        command.args(args);
        command
    };
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
    if !selection.quick {
        commands.push(command(&["sim-marker"]));
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

/// The programs on the kernels that people run; a process of its own, so that its output goes to its log.
fn kernels() -> anyhow::Result<Step> {
    let mut command = sh::command(std::env::current_exe().context("which program is this?")?);
    command.arg("vm");
    Ok(Step {
        name: "other kernels, under qemu",
        file: "vm",
        commands: vec![command],
        tests: false,
    })
}

/// A bounded run of each fuzz target; what they find is in the log with the command that repeats it.
fn fuzzers() -> anyhow::Result<Step> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    let mut fuzz = sh::command(this);
    fuzz.args(["fuzz", "--time", fuzz::STEP_TIME]);
    // The engine's own file is linted here: without its C++ part it does not compile.
    let mut lint = cargo_with(&["clippy", "--package", "secmesh-fuzz", "--all-targets"]);
    lint.args(["--features", "engine", "--", "-D", "warnings"]);
    Ok(Step {
        name: "fuzz targets, 10 s each",
        file: "fuzz",
        commands: vec![lint, fuzz],
        tests: false,
    })
}

/// The verifier's counts are wanted from a run that went well, too.
fn print_tables(logs: &std::path::Path) {
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
enum Needs {
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
fn root_tests(needs: Needs) -> anyhow::Result<Vec<Command>> {
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

/// What became of a step.
struct Outcome {
    name: &'static str,
    passed: bool,
    /// Of tests, if it runs some.
    counts: Option<Counts>,
    took: Duration,
    output: String,
}

impl Step {
    /// The same, with what the others leave of the processors.
    fn when_idle(mut self) -> Self {
        self.commands = self.commands.iter().map(sh::when_idle).collect();
        self
    }

    fn perform(self, logs: &std::path::Path) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        let file = logs.join(format!("{}.log", self.file));
        let mut passed = true;
        let log =
            File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        for mut command in self.commands {
            let status = command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log.try_clone()?)
                .status()
                .with_context(|| format!("cannot start `{}`", sh::shown(&command)))?;
            passed &= status.success();
        }
        // A test may print bytes that are no UTF-8.
        let output = String::from_utf8_lossy(
            &std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
        )
        .into_owned();
        Ok(Outcome {
            name: self.name,
            passed,
            counts: self.tests.then(|| count_tests(&output)),
            took: started.elapsed(),
            output,
        })
    }
}

impl Totals {
    fn take(&mut self, step: Step, logs: &std::path::Path) -> anyhow::Result<()> {
        announce(step.name)?;
        self.settle(step.perform(logs)?);
        Ok(())
    }

    /// The scenarios in the lab, which mostly wait, and beside them steps that do nothing but compute.
    fn take_lab(&mut self, busy: Vec<Step>, logs: &std::path::Path) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| -> anyhow::Result<Vec<Outcome>> {
                busy.into_iter()
                    .map(|step| step.when_idle().perform(logs))
                    .collect()
            });
            self.take_root_tests("end to end, in the lab", "lab", Needs::Lab, logs)?;
            let nats = "end to end, the mesh over NATS";
            self.take_root_tests(nats, "lab-nats", Needs::LabOverNats, logs)?;
            let outcomes = beside
                .join()
                .map_err(|_| anyhow::anyhow!("a step beside the lab panicked"))??;
            for outcome in outcomes {
                announce(outcome.name)?;
                self.settle(outcome);
            }
            Ok(())
        })
    }

    fn take_root_tests(
        &mut self,
        name: &'static str,
        file: &'static str,
        needs: Needs,
        logs: &std::path::Path,
    ) -> anyhow::Result<()> {
        match root_tests(needs) {
            Ok(commands) => self.take(
                Step {
                    name,
                    file,
                    commands,
                    tests: true,
                },
                logs,
            ),
            Err(error) => {
                announce(name)?;
                self.settle(Outcome {
                    name,
                    passed: false,
                    counts: Some(Counts::default()),
                    took: Duration::ZERO,
                    output: format!("{error:#}"),
                });
                Ok(())
            }
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        let Outcome {
            name,
            passed,
            counts,
            took,
            output,
        } = outcome;
        let what = match counts {
            Some(counts) => format!("{} passed, {} failed, ", counts.passed, counts.failed),
            None => String::new(),
        };
        let verdict = if passed {
            paint(Style::Good, "ok")
        } else {
            paint(Style::Bad, "FAILED")
        };
        println!("{verdict} ({what}{:.1} s)", took.as_secs_f64());
        if counts.is_none() {
            self.checks += 1;
        }
        self.counts.add(counts.unwrap_or_default());
        if !passed {
            self.failed_steps.push(name);
            // A step may fail without a failed test: it did not compile, or a check found something.
            if counts.is_none_or(|counts| counts.failed == 0) {
                self.counts.failed += 1;
            }
            self.failed_tests.extend(failed_tests(&output));
            println!("{}", sh::tail(&output, 200));
        }
    }

    fn report(&self, took: Duration, logs: &std::path::Path) -> anyhow::Result<()> {
        println!();
        for test in &self.failed_tests {
            println!("{test}\n");
        }
        println!(
            "{} tests and {} checks in {:.0} s; what each step printed is in {}",
            self.counts.passed + self.counts.failed,
            self.checks,
            took.as_secs_f64(),
            logs.display()
        );
        if self.counts.passed == 0 {
            println!("0 passed, {} failed", self.counts.failed.max(1));
            bail!("no test was run");
        }
        println!(
            "{} passed, {} failed",
            self.counts.passed, self.counts.failed
        );
        if !self.failed_steps.is_empty() {
            bail!("failed: {}", self.failed_steps.join("; "));
        }
        Ok(())
    }
}

fn announce(name: &str) -> anyhow::Result<()> {
    print!(
        "{name} {} ",
        ".".repeat(32_usize.saturating_sub(name.len()))
    );
    std::io::stdout()
        .flush()
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_closing_lines_are_added_up() {
        let text = "running 3 tests\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    noise\ntest result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s\n";
        assert_eq!(
            count_tests(text),
            Counts {
                passed: 14,
                failed: 3,
                ignored: 1
            }
        );
        assert_eq!(count_tests("nothing here"), Counts::default());
    }

    #[test]
    fn failed_tests_are_named_with_what_they_said() {
        let text = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nit waited\nError: too late\n\n\
                    Stack backtrace:\n   0: main\n---- c::d stdout ----\n\nfailures:\n    b\n    c::d\n\ntest result: FAILED.";
        assert_eq!(
            failed_tests(text),
            [
                "failed: b\n    it waited\n    Error: too late",
                "failed: c::d"
            ]
        );
        let long = format!("---- b stdout ----\n{}", "words\n".repeat(1_000));
        assert_eq!(failed_tests(&long)[0].lines().count(), 1 + SAID);
        assert!(failed_tests("test a ... ok\n").is_empty());
    }

    #[test]
    fn a_run_with_a_failed_step_fails() {
        let mut totals = Totals::default();
        let logs = std::env::temp_dir();
        let outcome = |name, passed, counts| Outcome {
            name,
            passed,
            counts,
            took: Duration::ZERO,
            output: String::new(),
        };
        let counts = Counts {
            passed: 2,
            failed: 0,
            ignored: 0,
        };
        totals.settle(outcome("tests", true, Some(counts)));
        assert!(totals.report(Duration::ZERO, &logs).is_ok());
        totals.settle(outcome("formatting", false, None));
        assert_eq!(totals.counts.failed, 1);
        assert!(totals.report(Duration::ZERO, &logs).is_err());
    }

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

    #[test]
    fn a_run_without_a_test_fails() {
        assert!(
            Totals::default()
                .report(Duration::ZERO, &std::env::temp_dir())
                .is_err()
        );
    }
}
