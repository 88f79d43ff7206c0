use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::mpsc,
};

use super::*;
use crate::{
    clock::ManualClock,
    dataplane::{AuditCursor, Audited, Differences, TableError},
    respond::{
        Now,
        lists::{Compiled, Spans},
    },
    state::StateDir,
};

const NOW_S: u64 = 1_700_000_000;
const PID: u32 = 77;

/// Tables of hosts: what is in them, and how many fit.
#[derive(Default)]
struct Tables {
    hosts: BTreeMap<u32, (u64, u16)>,
    ranges: usize,
    room: usize,
    /// Entries looked at.
    audited: u64,
}

struct Fake {
    tables: Arc<Mutex<Tables>>,
    /// If there, each pass waits for a word.
    gate: Option<mpsc::Receiver<()>>,
}

impl ListKernel for Fake {
    fn check(&self, wanted: &Compiled) -> Result<(), TableError> {
        let (wanted, room) = (wanted.hosts4.len(), locked(&self.tables).room);
        if wanted > room {
            return Err(TableError::NoRoom {
                map: "LIST4",
                wanted,
                room,
                setting: "max_list_addresses",
            });
        }
        Ok(())
    }

    fn replace(
        &mut self,
        wanted: &Compiled,
        _allow_generation: u32,
        _now: Now,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Replaced, TableError> {
        if let Some(gate) = &self.gate {
            progress(1);
            // A test that is over lets it go.
            let _ = gate.recv();
        }
        let mut tables = locked(&self.tables);
        let before = std::mem::take(&mut tables.hosts);
        for (at, host) in wanted.hosts4.iter().enumerate() {
            if at >= tables.room {
                return Err(TableError::Full {
                    map: "LIST4",
                    setting: "max_list",
                });
            }
            tables
                .hosts
                .insert(host.start, (host.expires_unix_s, host.list));
            progress(at + 1);
        }
        tables.ranges = wanted.ranges4.len() + wanted.ranges6.len();
        let kept = tables
            .hosts
            .iter()
            .filter(|(a, v)| before.get(a) == Some(v))
            .count();
        Ok(Replaced {
            added: tables.hosts.len() - kept,
            removed: before.len() - kept,
            kept,
        })
    }

    fn audit(
        &mut self,
        _cursor: &mut AuditCursor,
        slice: u32,
        _now: Now,
    ) -> Result<Audited, TableError> {
        let mut tables = locked(&self.tables);
        tables.audited += u64::from(slice);
        let done = tables.audited >= 4 * u64::from(slice);
        Ok(Audited {
            lists: Differences {
                added: 1,
                removed: 0,
            },
            done,
            ..Audited::default()
        })
    }
}

struct Bench {
    lists: Lists,
    tables: Arc<Mutex<Tables>>,
    clock: Arc<ManualClock>,
    store: Store,
    temp: tempfile::TempDir,
}

fn name(text: &str) -> ListName {
    ListName::new(text).unwrap()
}

fn list(of: &str, hosts: impl IntoIterator<Item = u32>, seconds: u64) -> List {
    List {
        meta: Meta {
            name: name(of),
            number: 0,
            source: "test".to_owned(),
            format: "lines".to_owned(),
            imported_unix_us: NOW_S * 1_000_000,
            ends_unix_s: NOW_S + 2 * seconds,
            entries: 1,
            invalid: 0,
            operator: "root".to_owned(),
            reason: None,
            overridden: false,
        },
        spans: Spans {
            v4: hosts
                .into_iter()
                .map(|a| Span {
                    start: a,
                    end: a,
                    expires_unix_s: NOW_S + seconds,
                    list: 0,
                })
                .collect(),
            v6: Vec::new(),
        },
    }
}

fn start(
    temp: tempfile::TempDir,
    room: usize,
    allow: Allow,
    gate: Option<mpsc::Receiver<()>>,
) -> Bench {
    let state = StateDir::create(&temp.path().join("state")).unwrap();
    let store = Store::open(&state).unwrap();
    let tables = Arc::new(Mutex::new(Tables {
        room,
        ..Tables::default()
    }));
    let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
    let kernel = Fake {
        tables: Arc::clone(&tables),
        gate,
    };
    let dyn_clock: Arc<dyn Clock> = clock.clone();
    let (lists, ready) = Lists::start(store.clone(), Box::new(kernel), dyn_clock, allow).unwrap();
    ready.blocking_recv().unwrap();
    Bench {
        lists,
        tables,
        clock,
        store,
        temp,
    }
}

fn bench() -> Bench {
    start(tempfile::tempdir().unwrap(), 1000, Allow::default(), None)
}

impl Bench {
    fn wait(&self, ticket: Ticket) -> Result<Replaced, String> {
        for _ in 0..2000 {
            if let Some(outcome) = self
                .lists
                .outcomes()
                .into_iter()
                .find(|o| o.ticket == ticket)
            {
                return outcome.result;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("no answer");
    }

    fn import(&self, list: &List) -> Result<Replaced, String> {
        self.store.stage(list, PID).unwrap();
        self.wait(self.lists.load(list.meta.name.clone(), PID).unwrap())
    }

    fn hosts(&self) -> Vec<u32> {
        locked(&self.tables).hosts.keys().copied().collect()
    }

    /// Waits until the kernel holds this; wishes without a ticket are fulfilled some time.
    fn becomes(&self, hosts: &[u32]) {
        for _ in 0..2000 {
            if self.hosts() == hosts {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{:?} is not {hosts:?}", self.hosts());
    }
}

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn a_list_is_in_the_kernel_until_it_is_removed_and_over_a_restart() {
    let bench = bench();
    assert_eq!(
        bench.import(&list("a", [1, 2, 5], 100)).unwrap(),
        Replaced {
            added: 1,
            removed: 0,
            kept: 0
        },
        "1 and 2 are alike neighbours, a range"
    );
    assert_eq!(bench.hosts(), [5]);
    bench.import(&list("b", [9], 100)).unwrap();
    assert_eq!(
        bench.import(&list("a", [7, 9], 100)).unwrap(),
        Replaced {
            added: 2,
            removed: 2,
            kept: 0
        },
        "9 is list a's now, which has the lower number"
    );
    let numbers: Vec<u16> = bench
        .lists
        .standing()
        .iter()
        .map(|s| s.list.as_ref().unwrap().meta.number)
        .collect();
    assert_eq!(numbers, [1, 2]);

    let Bench {
        mut lists, temp, ..
    } = bench;
    lists.stop();
    let bench = start(temp, 1000, Allow::default(), None);
    assert_eq!(bench.hosts(), [7, 9], "before anything else was done");
    bench.wait(bench.lists.remove(&name("a")).unwrap()).unwrap();
    assert_eq!(bench.hosts(), [9]);
    assert!(bench.lists.remove(&name("a")).is_err());
    let totals = bench.lists.totals();
    assert_eq!((totals.desired, totals.enforced), (1, 1));
}

#[test]
fn the_allowlist_is_cut_out_whenever_it_changes() {
    let bench = bench();
    bench.import(&list("a", [1, 5, 9], 100)).unwrap();
    bench.lists.allow(Allow {
        allowed: vec![p("0.0.0.4/30")],
        ..Allow::default()
    });
    bench.becomes(&[1, 9]);
    bench.lists.allow(Allow::default());
    bench.becomes(&[1, 5, 9]);
}

#[test]
fn a_list_with_a_protected_address_is_refused_unless_overridden() {
    let allow = Allow {
        allowed: vec![p("0.0.0.5")],
        protected: vec![p("0.0.0.5")],
        generation: 1,
    };
    let bench = start(tempfile::tempdir().unwrap(), 1000, allow, None);
    let mut risky = list("a", [1, 5], 100);
    let error = bench.import(&risky).unwrap_err();
    assert!(
        error.contains("0.0.0.5: it is in 0.0.0.5 (which this node needs)"),
        "{error}"
    );
    assert!(bench.hosts().is_empty() && bench.store.names().unwrap().is_empty());
    risky.meta.overridden = true;
    bench.import(&risky).unwrap();
    assert_eq!(bench.hosts(), [1], "allowed all the same");
    let changes: Vec<What> = bench.lists.take_changes().iter().map(|c| c.what).collect();
    assert_eq!(changes, [What::Refused, What::Imported]);
}

#[test]
fn a_damaged_file_keeps_no_other_list_from_being_enforced_and_is_shown() {
    let bench = bench();
    bench.import(&list("a", [1], 100)).unwrap();
    bench.import(&list("b", [3], 100)).unwrap();
    let Bench {
        mut lists, temp, ..
    } = bench;
    lists.stop();
    let path = temp.path().join("state/lists/a.list");
    let bytes = crate::state::read_capped(&path, 1 << 20).unwrap();
    crate::state::write_atomic(&path, &bytes[..bytes.len() - 1], 0o600).unwrap();
    let bench = start(temp, 1000, Allow::default(), None);
    assert_eq!(bench.hosts(), [3]);
    let standing = bench.lists.standing();
    assert!(standing[0].list.is_none() && standing[0].error.is_some());
    bench.wait(bench.lists.remove(&name("a")).unwrap()).unwrap();
    assert_eq!(bench.lists.standing().len(), 1);
}

#[test]
fn a_list_that_does_not_fit_is_refused_and_changes_nothing() {
    let bench = start(tempfile::tempdir().unwrap(), 2, Allow::default(), None);
    bench.import(&list("a", [7], 100)).unwrap();
    let error = bench.import(&list("a", [1, 3, 5], 100)).unwrap_err();
    assert!(error.contains("max_list_addresses"), "{error}");
    assert_eq!(bench.hosts(), [7]);
    let totals = bench.lists.totals();
    assert_eq!((totals.desired, totals.enforced, totals.failed), (1, 1, 0));
    let kept = bench.store.load(&name("a")).unwrap();
    assert_eq!(kept.spans.v4[0].start, 7);
}

#[test]
fn what_the_kernel_does_not_take_is_said_stays_desired_and_is_tried_again() {
    let bench = bench();
    bench.import(&list("a", [1, 3, 5], 1000)).unwrap();
    locked(&bench.tables).room = 2;
    bench.lists.again();
    for _ in 0..2000 {
        if bench.lists.totals().failed > 0 {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
    let totals = bench.lists.totals();
    assert!(totals.error.unwrap().contains("LIST4 map is full"));
    assert_eq!((totals.desired, totals.failed), (3, 1));
    locked(&bench.tables).room = 9;
    bench.clock.advance_us(61_000_000);
    // Any wish wakes it; by itself it looks once in a minute.
    bench.lists.allow(Allow::default());
    bench.becomes(&[1, 3, 5]);
}

#[test]
fn what_has_ended_is_taken_out_later_and_what_has_not_stays() {
    let bench = bench();
    let mut both = list("a", [1, 3], 100);
    both.spans.v4[1].expires_unix_s = NOW_S + 5000;
    both.meta.ends_unix_s = NOW_S + 5000;
    bench.import(&both).unwrap();
    assert_eq!(bench.hosts(), [1, 3]);
    bench.clock.advance_us(101_000_000);
    // Any wish wakes it; by itself it looks once in a minute.
    bench.lists.allow(Allow::default());
    bench.becomes(&[3]);
    assert_eq!(bench.lists.standing().len(), 1);
    // 5,000 s, and a while for the next sweep.
    bench.clock.advance_us(6_000_000_000);
    bench.lists.allow(Allow::default());
    bench.becomes(&[]);
    assert!(bench.lists.standing().is_empty() && bench.store.names().unwrap().is_empty());
    let changes: Vec<What> = bench.lists.take_changes().iter().map(|c| c.what).collect();
    assert_eq!(changes, [What::Imported, What::Ended]);
}

#[test]
fn of_two_wishes_for_one_list_the_later_counts_and_one_pass_does_them() {
    let (open, gate) = mpsc::channel();
    open.send(()).unwrap();
    let bench = start(
        tempfile::tempdir().unwrap(),
        1000,
        Allow::default(),
        Some(gate),
    );
    // The first pass hangs in the kernel …
    bench.store.stage(&list("x", [1], 100), PID).unwrap();
    let first = bench.lists.load(name("x"), PID).unwrap();
    while !bench.lists.totals().busy {
        thread::sleep(std::time::Duration::from_millis(1));
    }
    // … and meanwhile the agent goes on wishing without waiting.
    bench.store.stage(&list("a", [3], 100), PID).unwrap();
    let old = bench.lists.load(name("a"), PID).unwrap();
    bench.store.stage(&list("a", [5], 100), PID + 1).unwrap();
    let new = bench.lists.load(name("a"), PID + 1).unwrap();
    bench.lists.again();
    for _ in 0..2 {
        open.send(()).unwrap();
    }
    bench.wait(first).unwrap();
    assert!(bench.wait(old).unwrap_err().contains("took its place"));
    bench.wait(new).unwrap();
    assert_eq!(bench.hosts(), [1, 5]);
    assert_eq!(bench.lists.totals().passes, 3);
    drop(open);
}

#[test]
fn a_covering_list_is_named() {
    let bench = bench();
    let mut net = list("net", [], 100);
    net.spans.v4 = vec![
        Span {
            start: 0x0a00_0000,
            end: 0x0a00_00ff,
            expires_unix_s: NOW_S + 100,
            list: 0,
        },
        Span {
            start: 0x0a00_0200,
            end: 0x0a00_02ff,
            expires_unix_s: NOW_S + 50,
            list: 0,
        },
    ];
    bench.import(&net).unwrap();
    bench.import(&list("host", [0x0a00_0007], 100)).unwrap();
    let names = |text: &str, now| -> Vec<(String, bool)> {
        bench
            .lists
            .covering(&p(text), now)
            .iter()
            .map(|c| (c.meta.name.to_string(), c.whole))
            .collect()
    };
    let pair = |n: &str, w| (n.to_owned(), w);
    assert_eq!(
        names("10.0.0.7", NOW_S),
        [pair("host", true), pair("net", true)]
    );
    assert_eq!(names("10.0.0.8", NOW_S), [pair("net", true)]);
    assert_eq!(
        names("10.0.0.0/8", NOW_S),
        [pair("host", false), pair("net", false)]
    );
    assert!(names("10.0.1.0", NOW_S).is_empty() && names("::1", NOW_S).is_empty());
    assert!(names("10.0.2.9", NOW_S + 60).is_empty(), "it has ended");
    let cover = &bench.lists.covering(&p("10.0.0.8"), NOW_S)[0];
    assert_eq!(cover.first, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)));
}

#[test]
fn an_audit_goes_on_slice_by_slice_and_imports_do_not_wait_for_it() {
    let bench = bench();
    bench.lists.audit();
    bench.import(&list("a", [1, 3], 100)).unwrap();
    for _ in 0..2000 {
        let audits = bench.lists.totals().audits;
        if audits.lists.runs == 1 {
            assert_eq!((audits.lists.added, audits.lists.failed), (4, 0));
            assert_eq!((audits.guards.runs, audits.guards.added), (1, 0));
            return;
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("no end: {:?}", bench.lists.totals());
}
