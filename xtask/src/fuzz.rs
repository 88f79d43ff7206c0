//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, for a bounded time.
//!
//! The engine is built with the pinned stable toolchain: its coverage counters come from LLVM's own pass
//! (`-C passes=sancov-module`), so no nightly and no `cargo fuzz` is needed. All targets are in one binary.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;

use crate::build;
use crate::setup::{self, Profile};
use crate::sh;
use crate::term::{Style, paint, table};

/// The targets and what they check, one a line.
const LIST: &str = include_str!("../../fuzz/targets.txt");

/// How long each runs as a step of `cargo xtask test`.
pub const STEP_TIME: &str = "10s";
/// An input that takes this long is a finding, seconds. An ordinary one takes microseconds.
const SLOW_S: u32 = 10;
/// Resident memory at which the engine gives up, MiB; each target has a far tighter bound of its own.
const MEMORY_MIB: u32 = 1024;
/// Longest input: `MAX_INPUT` of the targets.
const MAX_INPUT: usize = 16 << 10;
/// Lines that are shown when a target fails: of its own, else the engine's last.
const LAST_LINES: usize = 20;

/// What LLVM adds to the code: a counter for each edge, their places, and what is compared with what.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // One unit per crate takes minutes longer and finds nothing more.
    "-Ccodegen-units=16",
];

/// A target as the list describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// What it reads and what must hold.
    pub checks: &'static str,
}

/// All targets.
pub fn targets() -> Vec<Listed> {
    LIST.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, checks)| Listed { name, checks })
        .collect()
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names; empty is all of them.
    pub targets: Vec<String>,
    /// How long each runs.
    pub time: Duration,
    /// Send this one file through the (one) target instead.
    pub input: Option<PathBuf>,
}

/// What became of one target.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Its name.
    pub target: String,
    /// Inputs that were run.
    pub runs: u64,
    /// Edges of the code that were reached.
    pub edges: u64,
    /// Inputs kept because each reaches something that the others do not.
    pub corpus: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// The input that failed, if one did.
    pub failure: Option<Failure>,
}

/// An input that failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Where it is kept; absent if the engine itself could not run.
    pub input: Option<PathBuf>,
    /// The command that sends it through the target again.
    pub repeat: Option<String>,
    /// The engine's last lines.
    pub output: String,
}

/// Reads a duration: `500ms`, `10s`, `5m`, `1h`.
///
/// # Errors
/// What is allowed.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match digits.parse::<u64>().map(|n| n.checked_mul(millis)) {
        Ok(Some(total)) if total > 0 && total <= 24 * 3_600_000 => Ok(Duration::from_millis(total)),
        _ => Err(format!(
            "`{text}` is not a time like 10s, 5m or 1h, and at most a day"
        )),
    }
}

/// The folder of what is specific to fuzzing.
fn folder() -> PathBuf {
    sh::repo_root().join("fuzz")
}

/// Where builds and corpora are: a folder of its own below the target folder, since every crate is built with
/// other flags.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| sh::repo_root().join("target"), PathBuf::from)
        .join("fuzz")
}

/// The triple of this machine, which cargo is told so that the flags are not for build scripts too.
fn host() -> anyhow::Result<String> {
    let output = sh::output(sh::command("rustc").arg("-vV").current_dir(sh::repo_root()))?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("`rustc -vV` does not say which machine this is")
}

/// Builds the binary of all targets.
///
/// # Errors
/// When the build fails.
pub fn binary() -> anyhow::Result<PathBuf> {
    setup::ensure(Profile::Fuzz, false, false)?;
    let host = host()?;
    let variable = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        host.to_uppercase().replace('-', "_")
    );
    let mut cargo = sh::cargo();
    cargo
        .args(["build", "--profile", "fuzz", "--package", "secmesh-fuzz"])
        .args(["--features", "engine", "--bin", "secmesh-fuzz"])
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(target_dir())
        // Not RUSTFLAGS: the kernel programs are built inside this build, for a target of their own.
        .env(variable, COVERAGE.join(" "))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    build::executables_of(&mut cargo)?
        .into_iter()
        .find(|built| built.name == "secmesh-fuzz")
        .map(|built| built.file)
        .context("cargo built no binary named secmesh-fuzz")
}

/// The names that were asked for, in the order of the list.
fn chosen(wanted: &[String]) -> anyhow::Result<Vec<&'static str>> {
    let all: Vec<&str> = targets().iter().map(|target| target.name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(&name.as_str())) {
        bail!(
            "there is no target `{unknown}`; there are: {} (`cargo xtask fuzz --list` says what each checks)",
            all.join(", ")
        );
    }
    Ok(all
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.iter().any(|w| w == name))
        .collect())
}

/// Runs the chosen targets, as many at once as there are processors, and reports each to `each` as it ends.
///
/// # Errors
/// When nothing can be built or started. A target that fails is no error here: see [`Report::failure`].
pub fn run(options: &Options, each: impl Fn(&Report) + Sync) -> anyhow::Result<Vec<Report>> {
    let names = chosen(&options.targets)?;
    if let (Some(input), [_, _, ..]) = (&options.input, names.as_slice()) {
        bail!("--input {} needs the name of one target", input.display());
    }
    let binary = binary()?;
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    let work = || -> anyhow::Result<()> {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let report = run_one(&binary, name, options)?;
            let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
            each(&report);
            reports.push(report);
        }
        Ok(())
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    Ok(reports.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn run_one(binary: &Path, name: &str, options: &Options) -> anyhow::Result<Report> {
    let artifacts = folder().join("artifacts").join(name);
    let corpus = target_dir().join("corpus").join(name);
    let seeds = target_dir().join("seeds").join(name);
    for needed in [&artifacts, &corpus, &seeds] {
        std::fs::create_dir_all(needed)
            .with_context(|| format!("cannot make the folder {}", needed.display()))?;
    }
    let mut command = Command::new(binary);
    command
        .env("SECMESH_FUZZ_TARGET", name)
        .env("RUST_BACKTRACE", "0")
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-timeout={SLOW_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(input) = &options.input {
        let there = File::open(input).is_ok();
        anyhow::ensure!(there, "cannot read the input {}", input.display());
        command.arg(input);
    } else {
        let seconds = options.time.as_secs_f64().ceil();
        command
            .env("SECMESH_FUZZ_SEEDS", &seeds)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT}"))
            .args(["-print_final_stats=1", "-use_value_profile=1"])
            // What is found goes to the first; the others are only read.
            .args([&corpus, &seeds]);
        let regressions = folder().join("regressions").join(name);
        if regressions.is_dir() {
            command.arg(regressions);
        }
    }
    let started = Instant::now();
    let mut report = Report {
        target: name.to_owned(),
        ..Report::default()
    };
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let mut last = VecDeque::new();
    let (mut said, mut saying) = (Vec::new(), false);
    let mut kept = None;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.context("cannot read what the engine prints")?;
            let line = String::from_utf8_lossy(&line).into_owned();
            note(&line, &mut report);
            if let Some((_, file)) = line.split_once("Test unit written to ") {
                kept = Some(PathBuf::from(file.trim()));
            }
            // What the target says, without the engine's own stack and its print of the input.
            saying = (saying || line.contains("panicked at")) && !line.starts_with("==");
            if saying && said.len() < LAST_LINES {
                said.push(line.clone());
            }
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
    let status = child.wait().context("cannot wait for the engine")?;
    report.seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        let input = kept.or_else(|| options.input.clone());
        let repeat = input.as_ref().map(|file| {
            let root = sh::repo_root();
            let file = file.strip_prefix(&root).unwrap_or(file);
            format!("cargo xtask fuzz {name} --input {}", file.display())
        });
        report.failure = Some(Failure {
            input,
            repeat,
            output: if said.is_empty() {
                last.make_contiguous().join("\n")
            } else {
                said.join("\n")
            },
        });
    }
    Ok(report)
}

/// Takes the figures out of one of the engine's lines:
/// `#1024 NEW cov: 311 ft: 420 corp: 61/2345b …` and `stat::number_of_executed_units: 1234`.
fn note(line: &str, report: &mut Report) {
    if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
        report.runs = runs.trim().parse().unwrap_or(report.runs);
        return;
    }
    if !line.starts_with('#') {
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    for pair in words.windows(2) {
        if let [label, value] = pair {
            let number = value.split('/').next().unwrap_or_default().parse();
            match (*label, number) {
                ("cov:", Ok(edges)) => report.edges = edges,
                ("corp:", Ok(inputs)) => report.corpus = inputs,
                _ => {}
            }
        }
    }
}

impl Report {
    /// One line for people, and for a failure how to repeat it.
    pub fn line(&self) -> String {
        let figures = format!(
            "{} inputs in {:.0} s, {} edges, {} kept",
            self.runs, self.seconds, self.edges, self.corpus
        );
        match &self.failure {
            None => format!("{:<18}{} {figures}", self.target, paint(Style::Good, "ok")),
            Some(failure) => {
                let again = match (&failure.input, &failure.repeat) {
                    (Some(input), Some(repeat)) => {
                        format!("The input is kept as {}. Again: {repeat}", input.display())
                    }
                    _ => String::new(),
                };
                format!(
                    "{:<18}{} {figures}\n{}\n{again}",
                    self.target,
                    paint(Style::Bad, "FAILED"),
                    failure.output
                )
            }
        }
    }
}

/// The command.
///
/// # Errors
/// When nothing can be built or started, or a target failed.
pub fn command(options: &Options, list: bool, json: bool) -> anyhow::Result<()> {
    if list {
        if json {
            println!("{}", serde_json::to_string_pretty(&targets())?);
        } else {
            let rows: Vec<Vec<String>> = targets()
                .iter()
                .map(|target| vec![target.name.to_owned(), target.checks.to_owned()])
                .collect();
            print!("{}", table(&rows));
        }
        return Ok(());
    }
    let reports = run(options, |report| {
        if !json {
            println!("{}", report.line());
        }
    })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    let failed: Vec<&str> = reports
        .iter()
        .filter(|report| report.failure.is_some())
        .map(|report| report.target.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_nonsense_is_not() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        for text in [
            "",
            "10",
            "s",
            "0s",
            "-1s",
            "25h",
            "1d",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_engines_figures_are_read() {
        let mut report = Report::default();
        note(
            "#1024\tNEW    cov: 311 ft: 420 corp: 61/2345b lim: 4 exec/s: 0",
            &mut report,
        );
        note("stat::number_of_executed_units: 98765", &mut report);
        note("INFO: cov: 9", &mut report);
        assert_eq!(
            (report.runs, report.edges, report.corpus),
            (98_765, 311, 61)
        );
    }

    #[test]
    fn targets_have_names_and_an_unknown_one_is_told() {
        assert!(targets().len() >= 10);
        assert!(targets().iter().all(|target| !target.checks.is_empty()));
        let error = chosen(&["packt".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("packet"), "{error}");
        assert_eq!(chosen(&["packet".to_owned()]).unwrap(), ["packet"]);
    }

    #[test]
    fn a_failure_says_how_to_repeat_it() {
        let report = Report {
            target: "packet".to_owned(),
            failure: Some(Failure {
                input: Some("fuzz/artifacts/packet/crash-1".into()),
                repeat: Some(
                    "cargo xtask fuzz packet --input fuzz/artifacts/packet/crash-1".to_owned(),
                ),
                output: "boom".to_owned(),
            }),
            ..Report::default()
        };
        let line = report.line();
        assert!(line.contains("boom") && line.contains("Again: cargo xtask fuzz packet --input"));
    }
}
