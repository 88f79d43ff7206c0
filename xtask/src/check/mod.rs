//! `cargo xtask test`: every check and every test, one line each.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use self::{
    output::{Counts, count_tests, failed_tests},
    steps::{
        Needs, Step, check_steps, computing_built, fuzzers, kernels, print_tables, root_tests,
        simulation, user_tests,
    },
};
use crate::setup::{self, Profile};
use crate::sh;
use crate::term::{Style, paint};

mod output;
mod steps;

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
    if !selection.quick {
        // Its tests wait for the kernel most of the time.
        totals.beside(vec![computing_built()?], &logs, |totals| {
            let name = "packets through the kernel";
            totals.take_root_tests(name, "kernel", Needs::Kernel, &logs)
        })?;
    }
    let mut computing = vec![simulation(selection)?];
    if !selection.quick {
        computing.push(fuzzers()?);
    }
    if selection.quick || selection.no_lab {
        for step in computing {
            totals.take(step, &logs)?;
        }
    } else {
        // So do these, and nothing is built meanwhile: who waits for a processor holds no lock of a file system that
        // an agent of the lab could need.
        totals.beside(computing, &logs, |totals| {
            totals.take_root_tests("end to end, in the lab", "lab", Needs::Lab, &logs)?;
            let nats = "end to end, the mesh over NATS";
            totals.take_root_tests(nats, "lab-nats", Needs::LabOverNats, &logs)
        })?;
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

    /// Takes `others`, and beside them steps that get the processors only when nobody else wants one; all have ended then.
    fn beside(
        &mut self,
        idle: Vec<Step>,
        logs: &std::path::Path,
        others: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let idle = scope.spawn(|| -> anyhow::Result<Vec<Outcome>> {
                idle.into_iter()
                    .map(|step| step.when_idle().perform(logs))
                    .collect()
            });
            others(self)?;
            let outcomes = idle
                .join()
                .map_err(|_| anyhow::anyhow!("a step beside others panicked"))??;
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
    fn a_run_without_a_test_fails() {
        assert!(
            Totals::default()
                .report(Duration::ZERO, &std::env::temp_dir())
                .is_err()
        );
    }
}
