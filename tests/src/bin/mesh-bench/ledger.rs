//! A ledger on the machine's own disk: durable appends in batches, and the verification of everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use secmesh::clock::SystemClock;
use secmesh::ledger::{Ledger, LedgerHandle, LedgerKeys, Record, Retention, verify};
use secmesh::mesh::identity::Identity;
use secmesh::mesh::ids::{Name, Zone};
use secmesh::state::StateDir;
use xtask::bench::{Bar, Row, median};

use crate::Effort;

/// Appends that are under way at once: the queue before the writer makes batches of up to 512.
const TASKS: u64 = 512;

fn record(n: u64) -> Record {
    Record::Effect {
        decision: format!("{n:032x}"),
        subject: "203.0.113.7/32".to_owned(),
        what: secmesh::ledger::EffectKind::Enforced,
        reason: Some("alert 0123456789abcdef: syn_flood from 203.0.113.7".to_owned()),
    }
}

pub(crate) fn rows(effort: Effort) -> Result<Vec<Row>> {
    // Not in /tmp, which may be in memory: durable has to mean a disk.
    let folder = xtask::sh::repo_root().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let temp = tempfile::Builder::new()
        .prefix("ledger-")
        .tempdir_in(&folder)?;
    let state = StateDir::create(&temp.path().join("state"))?;
    let identity = Identity::create(&state, Name::new("bench")?, Zone::new("bench")?, None)?;
    let keys = identity.ledger_keys();
    let retention = Retention {
        total_bytes: u64::MAX,
        ..Retention::default()
    };
    let open = |path: &Path| -> Result<Ledger> {
        Ok(Ledger::open(path, LedgerKeys::clone(&keys), retention, 0)?.0)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (mut appends, mut batch, mut verified, mut five_hundred) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..effort.turns {
        let path = temp.path().join(format!("appends-{turn}"));
        let ledger = open(&path)?;
        appends.push(runtime.block_on(durable(ledger, effort.entries.min(60_000)))?);
        let mut ledger = open(&temp.path().join(format!("batch-{turn}")))?;
        ledger.append(0, &record(0))?;
        ledger.sync()?;
        let start = Instant::now();
        for n in 0..500 {
            ledger.append(n, &record(n))?;
        }
        ledger.sync()?;
        batch.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let large = temp.path().join("large");
    write(open(&large)?, effort.entries)?;
    let small = temp.path().join("small");
    write(open(&small)?, 500)?;
    for _ in 0..effort.turns {
        verified.push(timed(&large, effort.entries)?);
        five_hundred.push(1000.0 * 500.0 / timed(&small, 500)?);
    }
    let bytes = std::fs::read_dir(&large)?
        .filter_map(|e| e.ok()?.metadata().ok())
        .map(|m| m.len())
        .sum::<u64>();
    let entry = bytes / effort.entries.max(1);
    Ok(vec![
        Row::new(
            "ledger",
            "durable appends, in batches",
            median(appends),
            "entries/s",
        )
        .bar(Bar::AtLeast(20_000.0))
        .note(format!(
            "{TASKS} callers, each waits for the disk; {entry} bytes an entry; Ed25519 per batch"
        )),
        Row::new(
            "ledger",
            "500 entries appended and synced",
            median(batch),
            "ms",
        ),
        Row::new("ledger", "full verification", median(verified), "entries/s")
            .bar(Bar::AtLeast(300_000.0))
            .note(format!(
                "{} entries, a seal every 500; one thread",
                effort.entries
            )),
        Row::new("ledger", "500 entries verified", median(five_hundred), "ms")
            .bar(Bar::AtMost(5.0))
            .note("a ledger of 500, with its header and checkpoint"),
    ])
}

/// Entries per second that many callers get acknowledged.
async fn durable(ledger: Ledger, entries: u64) -> Result<f64> {
    let handle = LedgerHandle::start(ledger, Arc::new(SystemClock))?;
    let start = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let handle = handle.clone();
            tokio::spawn(async move {
                for n in 0..entries / TASKS {
                    handle.append_durable(&record(task * entries + n)).await?;
                }
                Ok::<_, secmesh::ledger::LedgerError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.context("a caller")??;
    }
    let elapsed = start.elapsed().as_secs_f64();
    let done = handle.status().entries;
    handle.close().await;
    Ok(done as f64 / elapsed)
}

fn write(mut ledger: Ledger, entries: u64) -> Result<()> {
    for n in 1..=entries {
        ledger.append(n, &record(n))?;
        if n % 500 == 0 {
            ledger.sync()?;
        }
    }
    ledger.publish(1_700_000_000_000_000)?;
    Ok(())
}

/// Entries verified per second.
fn timed(path: &Path, entries: u64) -> Result<f64> {
    let start = Instant::now();
    let report = verify(path)?;
    let elapsed = start.elapsed().as_secs_f64();
    ensure!(report.entries == entries && report.checkpoint.is_some());
    Ok(entries as f64 / elapsed)
}
