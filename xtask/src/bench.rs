//! What `cargo xtask bench SUITE --json` prints.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{build, sh};

/// The result of one benchmark suite: one JSON object.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which suite was run, such as `dataplane`.
    pub suite: String,
    /// Where it was run.
    pub machine: Machine,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Whether every group was measured; if not, standard error has said why.
    pub ok: bool,
}

/// The machine a benchmark ran on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Processor model, empty where the kernel does not name one.
    pub cpu: String,
    /// Processors that the system has online.
    pub cpus: usize,
}

/// One measured value beside a peer's, both from the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which measurement it belongs to; what `--row` takes.
    pub group: String,
    /// What was measured.
    pub name: String,
    /// Our value; none where ours could not be measured, and then the note says why.
    pub value: Option<f64>,
    /// The unit of both values, such as `ns/packet`.
    pub unit: String,
    /// Whom we compare with; none where no peer does this.
    pub peer: Option<String>,
    /// The peer's value.
    pub peer_value: Option<f64>,
    /// `value / peer_value`, or what [`Row::by_turns`] says.
    pub ratio: Option<f64>,
    /// What is asked of the ratio, or of the value where there is no peer.
    pub bar: Option<Bar>,
    /// Whether the bar is met; none where there is no bar.
    pub met: Option<bool>,
    /// What the reader should know, such as what was not armed.
    pub note: Option<String>,
}

/// What is asked of a ratio or a value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// It is this or less.
    AtMost(f64),
    /// It is this or more.
    AtLeast(f64),
}

impl Bar {
    /// Whether `measured` is good enough; what is no number is not.
    pub fn is_met_by(self, measured: f64) -> bool {
        match self {
            Self::AtMost(limit) => measured <= limit,
            Self::AtLeast(limit) => measured >= limit,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

impl Row {
    /// A row with a value of ours alone.
    pub fn new(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self {
            group: group.to_owned(),
            name: name.into(),
            value: Some(value),
            unit: unit.to_owned(),
            peer: None,
            peer_value: None,
            ratio: None,
            bar: None,
            met: None,
            note: None,
        }
    }

    /// A row of something that was not measured.
    pub fn not_measured(group: &str, name: impl Into<String>, unit: &str, why: &str) -> Self {
        Self {
            value: None,
            ..Self::new(group, name, 0.0, unit).note(why)
        }
    }

    /// The same beside a peer's value; there is no ratio where that is zero.
    #[must_use]
    pub fn beside(mut self, peer: &str, theirs: f64) -> Self {
        self.peer = Some(peer.to_owned());
        self.peer_value = Some(theirs);
        self.ratio = self.value.filter(|_| theirs != 0.0).map(|own| own / theirs);
        self
    }

    /// The same with a ratio of its own: the median of the ratios of turns, ours and the peer's, that were measured one
    /// right after the other. Where the machine is slower for some turns than for others, that says more than the ratio of
    /// two medians. There is none where [`Row::beside`] has none. A bar comes after it.
    #[must_use]
    pub fn by_turns(mut self, turns: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let ratios = turns.into_iter().map(|(own, theirs)| own / theirs);
        self.ratio = self.ratio.map(|_| median(ratios.collect()));
        self
    }

    /// The same with a bar: for the ratio where there is a peer, else for the value.
    #[must_use]
    pub fn bar(mut self, bar: Bar) -> Self {
        let measured = if self.peer.is_some() {
            self.ratio
        } else {
            self.value
        };
        self.bar = Some(bar);
        self.met = Some(measured.is_some_and(|measured| bar.is_met_by(measured)));
        self
    }

    /// The same with a remark.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

impl Machine {
    /// Describes the machine this runs on.
    pub fn here() -> Self {
        let kernel = nix::sys::utsname::uname().map_or_else(
            |_| String::new(),
            |name| name.release().to_string_lossy().into_owned(),
        );
        let cpu = std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("model name"))?;
                line.split_once(':').map(|(_, name)| name.trim().to_owned())
            })
            .unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { kernel, cpu, cpus }
    }
}

/// The middle one, the upper of two; no number where there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures the groups that were asked for, or all if none was, and prints their rows as one JSON array, which
/// [`dataplane`] and [`mesh`] read. A group that fails costs no other one its rows: what it was goes to standard error at
/// once.
///
/// # Errors
/// At the end, when a group failed, with what each said, a line each: after minutes of progress, what was said at once is
/// far above. Or when nothing can be printed.
pub fn print_groups<G: ValueEnum + PartialEq>(
    asked: &[G],
    mut measure: impl FnMut(&G) -> anyhow::Result<Vec<Row>>,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for group in G::value_variants() {
        if !asked.is_empty() && !asked.contains(group) {
            continue;
        }
        // As `--row` takes it.
        let name = group.to_possible_value();
        let name = name.as_ref().map_or("", |name| name.get_name());
        eprintln!("measuring: {name}");
        match measure(group) {
            Ok(measured) => rows.extend(measured),
            Err(error) => {
                eprintln!("{name} failed: {error:?}");
                failed.push(format!("{name}: {error:#}"));
            }
        }
    }
    println!("{}", serde_json::to_string_pretty(&rows)?);
    ensure!(failed.is_empty(), "not measured:\n{}", failed.join("\n"));
    Ok(())
}

/// The binary of the tests' package that measures the kernel program.
const DATAPLANE: &str = "dataplane-bench";

/// What to measure of the kernel program.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Groups of rows; none is all.
    pub rows: Vec<String>,
    /// Every power of two of the blocklist's sizes, and more turns.
    pub full: bool,
}

/// Builds the benchmark of the kernel program, runs it as root, and gives its report.
///
/// The measuring is not done in here, because every `cargo xtask` would then compile what it needs.
/// The plot of the blocklist's rows goes to `target/bench/blocklist.svg`.
///
/// # Errors
/// When it cannot be built or run, or prints no rows. Where only some groups failed, the report has the others and says
/// that it is not [`ok`](Report::ok).
pub fn dataplane(selection: &Selection) -> anyhow::Result<Report> {
    let binary = binary(DATAPLANE)?;
    let folder = sh::repo_root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command = sh::as_root(&binary)?;
    command.arg("--plot").arg(folder.join("blocklist.svg"));
    if selection.full {
        command.arg("--full");
    }
    for row in &selection.rows {
        command.args(["--row", row]);
    }
    report("dataplane", &mut command)
}

/// The binary of the tests' package that measures the mesh.
const MESH: &str = "mesh-bench";

/// The group of rows that the simulation gives.
const SIMULATION: &str = "simulation";

/// Builds the benchmarks of the mesh, runs them, and gives their report.
///
/// # Errors
/// As [`dataplane`].
pub fn mesh(selection: &Selection) -> anyhow::Result<Report> {
    let all = selection.rows.is_empty();
    let others: Vec<&String> = selection.rows.iter().filter(|r| *r != SIMULATION).collect();
    let simulated = all || others.len() < selection.rows.len();
    let (mut rows, mut ok) = (Vec::new(), true);
    if all || !others.is_empty() {
        // Network namespaces are root's.
        let mut command = sh::as_root(&binary(MESH)?)?;
        if selection.full {
            command.arg("--full");
        }
        for row in others {
            command.args(["--row", row]);
        }
        let report = report("mesh", &mut command)?;
        rows.extend(report.rows);
        ok = report.ok;
    }
    if simulated {
        match crate::sim::growth() {
            Ok(measured) => rows.extend(measured),
            Err(error) => {
                eprintln!("{SIMULATION} failed: {error:?}");
                ok = false;
            }
        }
    }
    Ok(Report {
        suite: "mesh".to_owned(),
        machine: Machine::here(),
        rows,
        ok,
    })
}

fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "secmesh-tests",
        "--bin",
        name,
    ]);
    build::executables_of(&mut cargo)?
        .into_iter()
        .find(|executable| executable.name == name)
        .map(|executable| executable.file)
        .with_context(|| format!("cargo built no {name}"))
}

fn report(suite: &str, command: &mut Command) -> anyhow::Result<Report> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", sh::shown(command)))?;
    let ok = output.status.success();
    ensure!(
        ok || !output.stdout.is_empty(),
        "`{}` failed ({})",
        sh::shown(command),
        output.status
    );
    Ok(Report {
        suite: suite.to_owned(),
        machine: Machine::here(),
        rows: serde_json::from_slice(&output.stdout).context("the benchmark's rows")?,
        ok,
    })
}

impl Report {
    /// The report as a table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} on {} ({} processors, Linux {})\n",
            self.suite, self.machine.cpu, self.machine.cpus, self.machine.kernel
        );
        let width = self.rows.iter().map(|row| row.name.chars().count()).max();
        let width = width.unwrap_or_default();
        let mut group = "";
        for row in &self.rows {
            if row.group != group {
                group = &row.group;
                // Writing to a String cannot fail.
                let _ = writeln!(text, "\n{group}");
            }
            let _ = write!(
                text,
                "  {:<width$} {:>9} {}",
                row.name,
                row.value.map_or_else(|| "-".to_owned(), figure),
                row.unit
            );
            if let (Some(peer), Some(theirs)) = (&row.peer, row.peer_value) {
                let _ = write!(text, "   {peer} {} {}", figure(theirs), row.unit);
            }
            if let Some(ratio) = row.ratio {
                let _ = write!(text, "   ratio {ratio:.2}");
            }
            if let (Some(bar), Some(met)) = (row.bar, row.met) {
                let _ = write!(text, "   bar {bar}: {}", if met { "met" } else { "MISSED" });
            }
            if let Some(note) = &row.note {
                let _ = write!(text, "   ({note})");
            }
            text.push('\n');
        }
        text
    }
}

/// A value with about three digits that mean something.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_ours_over_the_peers_and_the_bar_is_for_it() {
        let row = |theirs| Row::new("drop", "IPv4", 30.0, "ns/packet").beside("xdp-filter", theirs);
        assert_eq!(row(60.0).ratio, Some(0.5));
        assert_eq!(row(60.0).bar(Bar::AtMost(0.5)).met, Some(true));
        assert_eq!(row(59.0).bar(Bar::AtMost(0.5)).met, Some(false));
        assert_eq!(row(6.0).bar(Bar::AtLeast(5.0)).met, Some(true));
        assert_eq!(row(0.0).ratio, None);
        // A peer that did nothing proves nothing.
        assert_eq!(row(0.0).bar(Bar::AtLeast(5.0)).met, Some(false));
        // What the turns say wins over what their medians say.
        let turns = [(3.0, 4.0), (30.0, 60.0), (9.0, 10.0)];
        let by_turns = row(60.0).by_turns(turns).bar(Bar::AtMost(0.5));
        assert_eq!((by_turns.ratio, by_turns.met), (Some(0.75), Some(false)));
        assert_eq!(row(0.0).by_turns([(30.0, 0.0)]).ratio, None);
        // No turns are no better than no peer.
        assert_eq!(
            row(60.0).by_turns([]).bar(Bar::AtMost(0.5)).met,
            Some(false)
        );
    }

    #[test]
    fn without_a_peer_the_bar_is_for_the_value() {
        let row = |share| Row::new("syn", "share", share, "share").bar(Bar::AtLeast(0.999));
        assert_eq!(row(1.0).met, Some(true));
        assert_eq!(row(0.998).met, Some(false));
        assert_eq!(row(f64::NAN).met, Some(false));
    }

    #[test]
    fn rows_outlive_a_group_that_fails_and_no_rows_are_an_error() {
        let row = Row::new("drop", "IPv4", 30.0, "ns/packet");
        let rows = serde_json::to_string(&vec![row.clone()]).unwrap();
        let of = |script: String| report("dataplane", Command::new("sh").args(["-c", &script]));
        for code in [0, 1] {
            let report = of(format!("echo '{rows}'; exit {code}")).unwrap();
            assert_eq!(
                (report.rows.as_slice(), report.ok),
                ([row.clone()].as_slice(), code == 0)
            );
        }
        let error = of("exit 1".to_owned()).unwrap_err().to_string();
        assert!(error.contains("exit status: 1"), "{error}");
    }

    #[test]
    fn rows_come_back_as_they_were_printed_and_the_table_names_the_peer() {
        let rows = vec![
            Row::new("drop", "IPv4", 30.0, "ns/packet")
                .beside("xdp-filter", 60.0)
                .bar(Bar::AtMost(0.4)),
            Row::new("drop", "alone", 7.0, "ns/packet").note("why"),
        ];
        let text = serde_json::to_string(&rows).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Row>>(&text).unwrap(), rows);
        let report = Report {
            suite: "dataplane".to_owned(),
            machine: Machine::here(),
            rows,
            ok: true,
        };
        let table = report.table();
        assert!(
            table.contains("xdp-filter 60.0 ns/packet   ratio 0.50   bar ≤ 0.4: MISSED"),
            "{table}"
        );
        assert!(table.contains("7.00 ns/packet   (why)"), "{table}");
    }
}
