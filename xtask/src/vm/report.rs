//! What the guest says, line by line, and what follows from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::term;

/// What the kernel lets the verifier walk at most (`BPF_COMPLEXITY_LIMIT_INSNS`,
/// include/linux/bpf.h).
pub const VERIFIER_LIMIT: u32 = 1_000_000;

/// A program that needs more than this share of [`VERIFIER_LIMIT`] fails: the next kernel's verifier may
/// walk more for the same program.
const ROOM: u32 = 4;

/// The configurations that must have been tried, as the guest names them.
pub const SIZES: [&str; 3] = ["smallest", "default", "largest"];

/// One line of the guest, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// The first line: where it runs.
    Kernel {
        /// As `uname -r` prints it.
        release: String,
        /// Processors.
        cpus: usize,
        /// Memory in all, MiB.
        memory_mib: u64,
    },
    /// A configuration whose maps could be made.
    Configuration {
        /// One of [`SIZES`].
        size: String,
        /// Its settings, by name.
        settings: Vec<(String, u32)>,
        /// Whether it was made smaller until the guest's memory held it.
        reduced: bool,
        /// Memory that its maps took from the guest, MiB.
        used_mib: u64,
    },
    /// A program of the object in a configuration.
    Program(ProgramLine),
    /// All fixtures, against one state of the block maps and one mode.
    Fixtures {
        /// Configuration of the maps, one of [`SIZES`].
        size: String,
        /// What is blocked.
        blocked: String,
        /// Enforce or monitor.
        mode: String,
        /// Frames sent.
        sent: usize,
        /// What was not as expected, one text per frame.
        failed: Vec<String>,
    },
    /// A wrong expectation on purpose: whether it was noticed.
    Canary {
        /// It must have been.
        noticed: bool,
    },
    /// Real traffic over the loopback interface and a real program, as the kernel's records tell of them.
    Live {
        /// How what leaves is counted.
        egress: String,
        /// Packets that the records of the flows have, of each agent, and while none ran between the two.
        packets: [u64; 3],
        /// Packets that each of them should have.
        wanted: u64,
        /// What was told of a program that ran, in order.
        process: Vec<String>,
    },
    /// Something went wrong that is not one of the above.
    Failure {
        /// What was being done.
        what: String,
        /// The error.
        error: String,
    },
    /// The last line; without it the guest did not get to its end.
    End,
}

/// See [`Line::Program`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramLine {
    /// Configuration, one of [`SIZES`].
    pub size: String,
    /// Name in the object.
    pub program: String,
    /// Its type.
    pub program_type: String,
    /// Instructions that the verifier walked.
    pub verified: Option<u32>,
    /// Instructions that it left.
    pub translated: Option<u32>,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Why it was refused: the last lines of the verifier's log.
    pub refused: Option<String>,
}

/// One kernel's run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which series was asked for, such as `6.1`.
    pub series: String,
    /// The package it came from, with its version.
    pub package: String,
    /// `kvm` or `tcg` (emulation in software).
    pub accelerator: String,
    /// From qemu's start to its end.
    pub seconds: f64,
    /// Whether nothing failed.
    pub ok: bool,
    /// What failed.
    pub failures: Vec<String>,
    /// The console's log.
    pub console: String,
    /// What the guest said.
    pub lines: Vec<Line>,
}

/// What is wrong with what a guest of series `series` said; nothing if all is well.
///
/// What was not said is wrong too: a check that did not run must not pass.
pub fn failures(series: &str, lines: &[Line]) -> Vec<String> {
    let mut found = Vec::new();
    let mut release = None;
    let (mut canaries, mut noticed_all, mut ended) = (0, true, false);
    let (mut fixtures, mut live) = (0, 0);
    for line in lines {
        match line {
            Line::Kernel { release: name, .. } => release = Some(name.as_str()),
            Line::Configuration { .. } => {}
            Line::Program(line) => found.extend(refused(line)),
            Line::Fixtures {
                size,
                blocked,
                mode,
                sent,
                failed,
            } => {
                fixtures += sent;
                found.extend(
                    failed
                        .iter()
                        .map(|what| format!("fixture, {size}, blocked {blocked}, {mode}: {what}")),
                );
            }
            Line::Canary { noticed } => {
                canaries += 1;
                noticed_all &= noticed;
            }
            Line::Live {
                egress,
                packets,
                wanted,
                process,
            } => {
                live += 1;
                if packets.iter().any(|packets| packets != wanted) {
                    found.push(format!(
                        "flows over the loopback interface ({egress}) have {packets:?} packets, not {wanted} each"
                    ));
                }
                if *process != ["fork", "exec", "exit"] {
                    found.push(format!("of a program that ran was told: {process:?}"));
                }
            }
            Line::Failure { what, error } => found.push(format!("{what}: {error}")),
            Line::End => ended = true,
        }
    }
    match release {
        None => found.push("the guest never said which kernel it runs".to_owned()),
        Some(release) if !release.starts_with(&format!("{series}.")) => {
            found.push(format!(
                "the guest runs Linux {release} instead of {series}"
            ));
        }
        Some(_) => {}
    }
    for size in SIZES {
        let tried = lines
            .iter()
            .any(|line| matches!(line, Line::Program(program) if program.size == size));
        if !tried {
            found.push(format!("no program was loaded in the {size} configuration"));
        }
    }
    if live == 0 {
        found.push("no real traffic and no real program was tried".to_owned());
    }
    if fixtures == 0 {
        found.push("no fixture was sent".to_owned());
    }
    if canaries == 0 || !noticed_all {
        found.push("a fixture that expects the wrong thing was not noticed".to_owned());
    }
    if !ended {
        found.push("the guest did not get to its end".to_owned());
    }
    found
}

fn refused(line: &ProgramLine) -> Option<String> {
    let name = format!("{}, {} configuration", line.program, line.size);
    if let Some(why) = &line.refused {
        return Some(format!("{name}: refused: {why}"));
    }
    match line.verified {
        None => Some(format!(
            "{name}: the kernel does not tell how many instructions it verified"
        )),
        Some(count) if count >= VERIFIER_LIMIT / ROOM => Some(format!(
            "{name}: {count} instructions verified, a quarter of the limit of {VERIFIER_LIMIT} or more"
        )),
        Some(_) => None,
    }
}

/// 1234567 as `1,234,567`.
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Report {
    /// The report as a table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            if let Line::Kernel {
                release,
                cpus,
                memory_mib,
            } = line
            {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "Linux {release} ({}), {cpus} processors, {memory_mib} MiB, {}",
                    self.package, self.accelerator
                );
            }
        }
        text.push_str(&self.programs());
        for line in &self.lines {
            if let Line::Configuration {
                size,
                settings,
                reduced,
                used_mib,
            } = line
            {
                let settings: Vec<String> = settings
                    .iter()
                    .map(|(name, value)| format!("{name} {}", grouped(*value)))
                    .collect();
                let note = if *reduced {
                    " (made smaller because the guest's memory did not hold it)"
                } else {
                    ""
                };
                let _ = writeln!(
                    text,
                    "  {size}: {used_mib} MiB{note}; {}",
                    settings.join(", ")
                );
            }
        }
        let (mut sent, mut wrong, mut states) = (0, 0, 0);
        for line in &self.lines {
            if let Line::Fixtures {
                sent: frames,
                failed,
                ..
            } = line
            {
                sent += frames;
                wrong += failed.len();
                states += 1;
            }
        }
        let _ = writeln!(
            text,
            "  fixtures: {sent} frames in {states} runs, {wrong} not as expected"
        );
        for line in &self.lines {
            if let Line::Live {
                egress,
                packets,
                process,
                ..
            } = line
            {
                let _ = writeln!(
                    text,
                    "  live: flows of {packets:?} packets (out by {egress}; the second without an agent); a program: {}",
                    process.join(", ")
                );
            }
        }
        let _ = writeln!(
            text,
            "  {} in {:.0} s",
            if self.ok { "ok" } else { "FAILED" },
            self.seconds
        );
        for failure in &self.failures {
            let _ = writeln!(text, "  failed: {}", failure.replace('\n', "\n    "));
        }
        if !self.ok {
            let _ = writeln!(text, "  the guest's console is in {}", self.console);
        }
        text
    }

    /// One row per program: instructions verified in each configuration.
    fn programs(&self) -> String {
        let mut programs: BTreeMap<(&str, &str), BTreeMap<&str, String>> = BTreeMap::new();
        for line in &self.lines {
            if let Line::Program(line) = line {
                let cell = match (&line.refused, line.verified) {
                    (Some(_), _) => "refused".to_owned(),
                    (None, Some(count)) => grouped(count),
                    (None, None) => "?".to_owned(),
                };
                programs
                    .entry((&line.program, &line.program_type))
                    .or_default()
                    .insert(&line.size, cell);
            }
        }
        let mut rows = vec![
            ["  instructions verified", "type"]
                .into_iter()
                .chain(SIZES)
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        ];
        for ((program, kind), cells) in programs {
            let mut row = vec![format!("  {program}"), kind.to_owned()];
            row.extend(
                SIZES
                    .iter()
                    .map(|size| cells.get(size).cloned().unwrap_or_else(|| "-".to_owned())),
            );
            rows.push(row);
        }
        term::table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(size: &str) -> Line {
        Line::Program(ProgramLine {
            size: size.to_owned(),
            program: "secmesh".to_owned(),
            program_type: "Xdp".to_owned(),
            verified: Some(12_345),
            translated: Some(2_000),
            jited_bytes: 9_000,
            refused: None,
        })
    }

    fn fixtures(failed: Vec<String>) -> Line {
        Line::Fixtures {
            size: "largest".to_owned(),
            blocked: "Exact".to_owned(),
            mode: "enforce".to_owned(),
            sent: 90,
            failed,
        }
    }

    fn live(packets: [u64; 3], process: &[&str]) -> Line {
        Line::Live {
            egress: "clsact".to_owned(),
            packets,
            wanted: 40,
            process: process.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    /// A run in which nothing failed.
    fn good() -> Vec<Line> {
        let mut lines = vec![Line::Kernel {
            release: "6.1.0-18-amd64".to_owned(),
            cpus: 2,
            memory_mib: 4000,
        }];
        lines.extend(SIZES.map(program));
        lines.extend([
            fixtures(Vec::new()),
            Line::Canary { noticed: true },
            live([40, 40, 40], &["fork", "exec", "exit"]),
            Line::End,
        ]);
        lines
    }

    fn told(lines: &[Line]) -> String {
        failures("6.1", lines).join("\n")
    }

    #[test]
    fn a_run_without_a_failure_is_good() {
        assert_eq!(told(&good()), "");
    }

    #[test]
    fn whatever_was_not_said_is_a_failure() {
        // Each line but those of which there may be none.
        for (at, line) in good().iter().enumerate() {
            let mut lines = good();
            lines.remove(at);
            assert_ne!(told(&lines), "", "without {line:?}");
        }
        assert_ne!(told(&[]), "");
    }

    #[test]
    fn every_kind_of_failure_is_told() {
        let with = |line: Line| {
            let mut lines = good();
            lines.push(line);
            told(&lines)
        };
        let text = with(fixtures(vec!["a SYN: action 2 instead of 1".to_owned()]));
        assert!(text.contains("a SYN: action 2 instead of 1"), "{text}");
        let text = with(Line::Failure {
            what: "loading veth".to_owned(),
            error: "no such file".to_owned(),
        });
        assert_eq!(text, "loading veth: no such file");
        let text = with(live([40, 20, 40], &["fork", "exec", "exit"]));
        assert!(text.contains("[40, 20, 40]"), "{text}");
        let text = with(live([40; 3], &["exec", "exit"]));
        assert!(text.contains("exec"), "{text}");
        let change = |change: fn(&mut ProgramLine)| {
            let Line::Program(mut line) = program("largest") else {
                panic!("made above");
            };
            change(&mut line);
            with(Line::Program(line))
        };
        let text = change(|line| line.refused = Some("R1 is not right".to_owned()));
        assert!(text.contains("R1 is not right"), "{text}");
        assert!(change(|line| line.verified = None).contains("does not tell"));
        assert!(change(|line| line.verified = Some(VERIFIER_LIMIT / ROOM)).contains("limit"));
        assert_eq!(
            change(|line| line.verified = Some(VERIFIER_LIMIT / ROOM - 1)),
            ""
        );
    }

    #[test]
    fn another_kernel_than_the_one_asked_for_is_a_failure() {
        // 6.12 begins with "6.1" and is not of that series.
        let mut lines = good();
        lines[0] = Line::Kernel {
            release: "6.12.1-amd64".to_owned(),
            cpus: 2,
            memory_mib: 4000,
        };
        assert!(told(&lines).contains("6.12.1"), "{}", told(&lines));
    }

    #[test]
    fn a_canary_that_was_not_noticed_is_a_failure() {
        let mut lines = good();
        lines.push(Line::Canary { noticed: false });
        assert!(told(&lines).contains("not noticed"));
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        for line in good() {
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }

    #[test]
    fn the_table_has_the_counts_and_the_failures() {
        let mut report = Report {
            series: "6.1".to_owned(),
            package: "linux-image 6.1.1-1".to_owned(),
            accelerator: "tcg".to_owned(),
            seconds: 12.0,
            ok: true,
            failures: Vec::new(),
            console: "target/vm/6.1.log".to_owned(),
            lines: good(),
        };
        let table = report.table();
        assert!(
            table.contains("12,345") && table.contains("6.1.0-18-amd64"),
            "{table}"
        );
        assert!(!table.contains("target/vm"), "{table}");
        report.ok = false;
        report.failures = vec!["a SYN".to_owned()];
        let table = report.table();
        assert!(
            table.contains("failed: a SYN") && table.contains("target/vm/6.1.log"),
            "{table}"
        );
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(7, "7"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
