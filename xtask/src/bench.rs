//! What `cargo xtask bench SUITE --json` prints.

use std::fmt::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
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
    /// What was measured.
    pub name: String,
    /// Our value.
    pub value: f64,
    /// The unit of both values, such as `ns/packet`.
    pub unit: String,
    /// Whom we compare with; none where no peer does this.
    pub peer: Option<String>,
    /// The peer's value.
    pub peer_value: Option<f64>,
    /// `value / peer_value`.
    pub ratio: Option<f64>,
}

impl Row {
    /// A row with the ratio worked out; there is none where the peer's value is zero.
    pub fn new(name: &str, value: f64, unit: &str, peer: Option<(&str, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            peer: peer.map(|(name, _)| name.to_owned()),
            peer_value: peer.map(|(_, value)| value),
            ratio: peer.and_then(|(_, theirs)| (theirs != 0.0).then(|| value / theirs)),
        }
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

/// The binary of the tests' package that measures the kernel program.
const DATAPLANE: &str = "dataplane-bench";

/// Builds the benchmark of the kernel program, runs it as root, and gives its report.
///
/// The measuring is not done in here, because every `cargo xtask` would then compile what it needs.
///
/// # Errors
/// When it cannot be built or run, or prints something else than rows.
pub fn dataplane() -> anyhow::Result<Report> {
    let mut cargo = sh::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "secmesh-tests",
        "--bin",
        DATAPLANE,
    ]);
    let built = build::executables_of(&mut cargo)?;
    let binary = built
        .into_iter()
        .find(|executable| executable.name == DATAPLANE)
        .with_context(|| format!("cargo built no {DATAPLANE}"))?;
    let mut command = sh::as_root(&binary.file)?;
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
    Ok(Report {
        suite: "dataplane".to_owned(),
        machine: Machine::here(),
        rows: serde_json::from_slice(&output.stdout).context("the benchmark's rows")?,
    })
}

impl Report {
    /// The report as a table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} on {} ({} processors, Linux {})\n",
            self.suite, self.machine.cpu, self.machine.cpus, self.machine.kernel
        );
        for row in &self.rows {
            let peer = match (&row.peer, row.peer_value, row.ratio) {
                (Some(peer), Some(value), Some(ratio)) => {
                    format!("   {peer} {value:.0} {}   ratio {ratio:.2}", row.unit)
                }
                _ => String::new(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "  {:<14} {:>7.0} {}{peer}",
                row.name, row.value, row.unit
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_ours_over_the_peers() {
        assert_eq!(
            Row::new("drop", 30.0, "ns/packet", Some(("xdp-filter", 60.0))).ratio,
            Some(0.5)
        );
        assert_eq!(
            Row::new("drop", 30.0, "ns/packet", Some(("none", 0.0))).ratio,
            None
        );
        assert_eq!(Row::new("drop", 30.0, "ns/packet", None).peer, None);
    }

    #[test]
    fn rows_come_back_as_they_were_printed_and_the_table_names_the_peer() {
        let rows = vec![
            Row::new("drop, IPv4", 30.0, "ns/packet", Some(("xdp-filter", 60.0))),
            Row::new("alone", 7.0, "ns/packet", None),
        ];
        let text = serde_json::to_string(&rows).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Row>>(&text).unwrap(), rows);
        let report = Report {
            suite: "dataplane".to_owned(),
            machine: Machine::here(),
            rows,
        };
        let table = report.table();
        assert!(
            table.contains("xdp-filter 60 ns/packet   ratio 0.50"),
            "{table}"
        );
        assert_eq!(table.lines().count(), 3, "{table}");
    }
}
