//! kill -9 of a process that appends: whatever it acknowledged must be there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::SystemClock;

const CHILD: &str = "SECMESH_TEST_LEDGER";

/// Not a test of its own: what the killed process runs, when the variable names a ledger.
#[test]
fn child() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (ledger, _) = open(Path::new(&path)).unwrap();
        let base = ledger.entries() * 1000;
        let handle = LedgerHandle::start(ledger, Arc::new(SystemClock)).unwrap();
        let writer = |lane: u64| {
            let handle = handle.clone();
            async move {
                for n in 0..1_000_000 {
                    let token = base + n * 4 + lane;
                    // Lanes without an answer make groups of different sizes.
                    let _ = handle.append(&note(u64::MAX));
                    let seq = handle.append_durable(&note(token)).await.unwrap();
                    // After the line break, so that an acknowledgement is a whole line.
                    writeln!(std::io::stdout(), "\nack {seq} {token} ").unwrap();
                }
            }
        };
        tokio::join!(writer(0), writer(1), writer(2), writer(3));
    });
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("l");
    let name = format!("{}::child", module_path!().split_once("::").unwrap().1);
    let mut acknowledged = Vec::new();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut before = acknowledged.len();
        let read = |line: String, acknowledged: &mut Vec<(u64, u64)>| {
            // The last line may be cut off: the space at its end says that it is whole.
            let Some(rest) = line
                .strip_prefix("ack ")
                .and_then(|rest| rest.strip_suffix(' '))
            else {
                return;
            };
            let (seq, token) = rest.split_once(' ').unwrap();
            acknowledged.push((seq.parse().unwrap(), token.parse().unwrap()));
        };
        while acknowledged.len() == before {
            read(
                lines.next().expect("the child lives").unwrap(),
                &mut acknowledged,
            );
        }
        before = acknowledged.len();
        std::thread::sleep(Duration::from_millis(crate::entropy::below(60).unwrap()));
        child.kill().unwrap();
        lines.for_each(|line| read(line.unwrap(), &mut acknowledged));
        child.wait().unwrap();
        let report = verify(&path).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let entries = all(&path);
        assert_eq!(report.entries, entries.len() as u64);
        for (seq, token) in &acknowledged {
            let entry = entries.get(usize::try_from(seq - 1).unwrap());
            let entry =
                entry.unwrap_or_else(|| panic!("round {round}: acknowledged entry {seq} is gone"));
            assert_eq!(entry.record().unwrap(), note(*token), "round {round}");
        }
        assert!(acknowledged.len() >= before);
    }
    assert!(
        acknowledged.len() > 24,
        "the children did work: {}",
        acknowledged.len()
    );
}
