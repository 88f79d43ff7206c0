//! Tests of the writer's thread.

use std::sync::Arc;

use super::*;
use crate::clock::SystemClock;

fn start(path: &Path) -> LedgerHandle {
    LedgerHandle::start(open(path).unwrap().0, Arc::new(SystemClock)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_appends_are_in_the_file_when_acknowledged() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("l");
    let handle = start(&path);
    let mut tasks = Vec::new();
    for n in 0..100 {
        let handle = handle.clone();
        tasks.push(tokio::spawn(async move {
            (n, handle.append_durable(&note(n)).await.unwrap())
        }));
    }
    let mut acknowledged = Vec::new();
    for task in tasks {
        acknowledged.push(task.await.unwrap());
    }
    let entries = all(&path);
    for (n, seq) in acknowledged {
        let entry = &entries[usize::try_from(seq - 1).unwrap()];
        assert_eq!(entry.record().unwrap(), note(n));
    }
    let status = handle.status();
    assert_eq!(
        (status.state, status.entries, status.dropped),
        (LedgerState::Ok, 100, 0)
    );
    assert_eq!(status.head, verify(&path).unwrap().head);
}

#[tokio::test]
async fn closing_writes_what_was_queued() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("l");
    let handle = start(&path);
    for n in 0..50 {
        handle.append(&note(n)).unwrap();
    }
    handle.append_waiting(&note(50)).await.unwrap();
    handle.close().await;
    assert_eq!(verify(&path).unwrap().entries, 51);
    assert!(matches!(handle.append(&note(0)), Err(LedgerError::Closed)));
    assert!(matches!(
        handle.append_durable(&note(0)).await,
        Err(LedgerError::Closed)
    ));
    assert_eq!(handle.status().dropped, 2);
    open(&path).expect("the lock is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_is_written_at_once_and_costs_no_sync_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("l");
    let handle = start(&path);
    // In batches: the writer takes each before the next one comes.
    for n in 0..20 {
        handle.append(&note(n)).unwrap();
        while handle.status().queued > 0 {
            tokio::task::yield_now().await;
        }
    }
    let seq = handle.append_durable(&note(20)).await.unwrap();
    let status = handle.status();
    assert_eq!((seq, status.entries), (21, 21), "it took the others along");
    assert!((1..10).contains(&status.syncs), "{}", status.syncs);
    assert_eq!(verify(&path).unwrap().entries, 21);
    // And with nobody waiting ever.
    handle.append(&note(21)).unwrap();
    for _ in 0..1_000 {
        if handle.status().entries == 22 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(handle.status().entries, 22, "on the disk in the end");
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_and_in_records() {
    let (handle, _queue) = LedgerHandle::stalled(Arc::new(SystemClock));
    let big = Record::Stopped {
        reason: "x".repeat(MAX_PAYLOAD - 100),
    };
    let taken = (0..100).filter(|_| handle.append(&big).is_ok()).count();
    assert_eq!(taken, 64, "16 MiB of 256 KiB each");
    assert!(matches!(handle.append(&big), Err(LedgerError::QueueFull)));
    assert_eq!((handle.status().dropped, handle.status().queued), (37, 64));
    let (handle, _queue) = LedgerHandle::stalled(Arc::new(SystemClock));
    let taken = (0..5000)
        .filter(|n| handle.append(&note(*n)).is_ok())
        .count();
    assert_eq!(taken, 4096);
    assert_eq!(handle.status().dropped, 904);
}

#[tokio::test]
async fn a_full_disk_fails_the_ledger_for_good() {
    let handle = LedgerHandle::start(Ledger::on_full_disk(keys()), Arc::new(SystemClock)).unwrap();
    let error = handle.append_durable(&note(1)).await.unwrap_err();
    assert!(
        matches!(&error, LedgerError::Failed(why) if why.contains("No space")),
        "{error}"
    );
    assert!(matches!(handle.status().state, LedgerState::Failed(_)));
    assert!(matches!(
        handle.append(&note(2)),
        Err(LedgerError::Failed(_))
    ));
    assert!(matches!(
        handle.append_durable(&note(2)).await,
        Err(LedgerError::Failed(_))
    ));
    assert_eq!(handle.status().dropped, 3);
    assert_eq!(handle.status().entries, 0);
}
