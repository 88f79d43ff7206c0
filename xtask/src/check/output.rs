//! What cargo's test runner prints, read.

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
    pub fn add(&mut self, other: Self) {
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
pub fn failed_tests(output: &str) -> Vec<String> {
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
}
