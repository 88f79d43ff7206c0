//! Processes: what the kernel tells of programs that run.

use std::{ops::RangeInclusive, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use secmesh::sense::process::{ProcessChange, ProcessRecord};
use secmesh_common::process::ProcessEvent;
use secmesh_tests::kernel::{Kernel, options, shown};

/// What was told of while processes were watched.
struct Watched {
    records: Vec<ProcessRecord>,
    /// What the kernel had counted as sent when we began to read, and when we had read: other programs of this machine
    /// begin and end, too.
    sent: RangeInclusive<u64>,
    kernel: Kernel,
}

/// Runs `body` while processes are watched.
fn watched(budget: u32, body: impl FnOnce() -> Result<()>) -> Result<Watched> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    let mut kernel = Kernel::load(&secmesh::dataplane::LoadOptions {
        event_budget: budget,
        ..options()
    })?;
    let mut ring = kernel.dataplane.watch_processes()?;
    body()?;
    std::thread::sleep(Duration::from_millis(100));
    let mut events: Vec<ProcessEvent> = Vec::new();
    let before = kernel.counters()?.process_sent;
    ring.take_ready(&mut events, usize::MAX);
    let sent = before..=kernel.counters()?.process_sent;
    let records = events
        .iter()
        .map(|e| ProcessRecord::from_event(e, |ns| ns / 1000).context("unknown"))
        .collect::<Result<_>>()?;
    Ok(Watched {
        records,
        sent,
        kernel,
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_hundred_programs_are_a_hundred_beginnings_and_ends() -> Result<()> {
    // A name that no other program of the machine has.
    let folder = std::env::temp_dir().join(format!("secmesh-proc-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let program = folder.join("smtrue");
    std::fs::copy("/bin/true", &program)?;
    let mut pids = Vec::new();
    let Watched {
        records, kernel, ..
    } = watched(1_000_000, || {
        for _ in 0..100 {
            let mut child = Command::new(&program).spawn()?;
            pids.push(child.id());
            child.wait()?;
        }
        let killed = Command::new("/bin/sh")
            .args(["-c", "kill -9 $$"])
            .status()?;
        ensure!(!killed.success());
        let failed = Command::new("/bin/sh").args(["-c", "exit 7"]).status()?;
        ensure!(failed.code() == Some(7));
        Ok(())
    })?;
    std::fs::remove_dir_all(&folder)?;
    println!("{} records; {}", records.len(), shown(&kernel.counters()?));
    let of = |change| {
        records
            .iter()
            .filter(move |r| r.change == change && r.comm == "smtrue")
    };
    let (execs, exits): (Vec<_>, Vec<_>) = (
        of(ProcessChange::Exec).collect(),
        of(ProcessChange::Exit).collect(),
    );
    ensure!(
        (execs.len(), exits.len()) == (100, 100),
        "{} {}",
        execs.len(),
        exits.len()
    );
    for (exec, exit) in execs.iter().zip(&exits) {
        ensure!(
            exec.pid == exit.pid && exec.ppid == exit.ppid && exec.uid == 0,
            "{exec:?} {exit:?}"
        );
        ensure!(
            exit.code == Some(0) && exec.unix_us <= exit.unix_us,
            "{exit:?}"
        );
        let forked = records
            .iter()
            .any(|r| r.change == ProcessChange::Fork && r.pid == exec.pid && r.ppid == exec.ppid);
        ensure!(forked, "no fork of {exec:?}");
    }
    // Where this test runs in the machine's first PID name space, numbers are those that we know.
    if std::fs::read_link("/proc/self/ns/pid")?.to_string_lossy() == "pid:[4026531836]" {
        ensure!(execs.iter().map(|e| e.pid).eq(pids.iter().copied()));
        ensure!(execs.iter().all(|e| e.ppid == std::process::id()));
    }
    let ended = |code, signal| {
        records
            .iter()
            .any(|r| r.change == ProcessChange::Exit && r.code == code && r.signal == signal)
    };
    ensure!(ended(Some(7), None), "no exit with code 7");
    ensure!(ended(None, Some(9)), "no end by signal 9");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_storm_of_processes_is_counted_beyond_its_budget_and_threads_are_none() -> Result<()> {
    // Ten in a tenth of a second and CPU.
    let Watched {
        records,
        sent,
        kernel,
    } = watched(100, || {
        for _ in 0..300 {
            Command::new("/bin/true").status()?;
        }
        Ok(())
    })?;
    let counters = kernel.counters()?;
    let told = || format!("{} records; {sent:?}; {}", records.len(), shown(&counters));
    println!("{}", told());
    ensure!(counters.process_over_budget > 0, told());
    ensure!(sent.contains(&(records.len() as u64)), told());
    ensure!(
        counters.process_sent + counters.process_over_budget >= 900,
        told()
    );
    drop(kernel);
    let Watched { records, .. } = watched(1_000_000, || {
        for _ in 0..50 {
            let _joined = std::thread::spawn(|| {}).join();
        }
        Ok(())
    })?;
    let name: String = std::fs::read_to_string("/proc/self/comm")?
        .trim()
        .to_owned();
    let mine = records
        .iter()
        .filter(|r| r.comm == name && r.change == ProcessChange::Fork)
        .count();
    ensure!(mine == 0, "{mine} threads were taken for processes");
    Ok(())
}
