//! Imported lists in the kernel: whoever is listed is dropped and nobody else, at every moment.
//!
//! What is tried follows from a seed; a failure prints it, and `SECMESH_SEED=<seed>` tries the same again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::unistd::Pid;
use secmesh::dataplane::{Compiled, LoadOptions, Span, TableError};
use secmesh_common::{
    config::Config,
    list::{BUCKET6, ListBucket6, ListRange4, ListRange6, Listed6, lane6},
    nets::{ListNets4, ListNets6},
};
use secmesh_tests::{
    chaos::mono_ns,
    kernel::{BPFFS, Kernel, isolated, options},
    lists::{
        Pair, UNIX_US, compare, crowded, dropped, frame, is_dropped, made_up, now, oracle, pair,
        probes, replace, span, v4, v6,
    },
    netns::pin,
    random::{Random, seed},
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Packets of one source in one go: the kernel sends them faster than anybody can ask.
const BURST: u32 = 1_000;
/// Replacements while packets run.
const REPLACEMENTS: usize = 40;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_kernel_drops_what_lists_name_and_nothing_beside_it() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&options())?;
    let mut old = Compiled::default();
    // An even number, so that each half is written over and over.
    for round in 0..6 {
        let wanted = made_up(&mut random, round % 3 == 1);
        let mut addrs = probes(&mut random, &wanted);
        // What was there before must be gone.
        addrs.extend(probes(&mut random, &old));
        replace(&mut kernel.lists, &wanted)?;
        let answers = compare(&mut kernel, &wanted, &addrs)
            .with_context(|| format!("SECMESH_SEED={seed}, round {round}"))?;
        println!(
            "round {round}: {} hosts and {} ranges: {} addresses pass, {} are dropped",
            wanted.hosts4.len() + wanted.hosts6.len(),
            wanted.ranges4.len() + wanted.ranges6.len(),
            answers.0,
            answers.1
        );
        let off = kernel.dataplane.kernel_config().guard6_off;
        ensure!(
            (off != 0) == (round % 3 == 1),
            "SECMESH_SEED={seed}, round {round}: guard off: {off}"
        );
        old = wanted;
    }
    replace(&mut kernel.lists, &Compiled::default())?;
    let none = compare(
        &mut kernel,
        &Compiled::default(),
        &probes(&mut random, &old),
    )?;
    ensure!(none.1 == 0, "{none:?}");
    let left = kernel.guards()?;
    ensure!(
        left.is_empty(),
        "SECMESH_SEED={seed}: still guarded: {left:?}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn no_packet_slips_through_while_lists_are_replaced() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let pair = pair(&mut random);
    during_replacements(&pair, &mut random, BURST).with_context(|| format!("SECMESH_SEED={seed}"))
}

/// Sends packets while one list replaces the other: those in both are dropped, those in neither pass, always.
fn during_replacements(pair: &Pair, random: &mut Random, burst: u32) -> Result<()> {
    let mut kernel = Kernel::load(&crowded())?;
    replace(&mut kernel.lists, &pair.lists[0])?;
    let (mut runner, lists) = kernel.apart();
    let done = AtomicBool::new(false);
    let (mut packets, mut sources) = (0, BTreeSet::new());
    thread::scope(|scope| -> Result<()> {
        let replacing = scope.spawn(|| -> Result<()> {
            let [first, second] = &pair.lists;
            let next = |n| if n % 2 == 0 { first } else { second };
            let result = (1..=REPLACEMENTS).try_for_each(|n| replace(lists, next(n)).map(drop));
            done.store(true, Ordering::Release);
            result
        });
        let mut check = |addr: IpAddr, wanted: bool| -> Result<()> {
            let moved = runner.run(&frame(addr), burst)?;
            packets += u64::from(burst);
            sources.insert(addr);
            let is = dropped(&moved, burst).with_context(|| addr.to_string())?;
            ensure!(is == wanted, "{addr}: dropped: {is}");
            Ok(())
        };
        let mut result = Ok(());
        while result.is_ok() && !done.load(Ordering::Acquire) {
            let member = random.pick(&pair.both).context("some are in both")?;
            let stranger = random.pick(&pair.neither).context("some are in neither")?;
            result = check(member, true).and_then(|()| check(stranger, false));
        }
        let replaced = replacing.join();
        result.and(replaced.map_err(|_panic| anyhow!("the thread panicked"))?)
    })?;
    ensure!(packets > 0, "nothing was compared");
    println!(
        "{packets} packets of {} sources during {REPLACEMENTS} replacements of {} entries",
        sources.len(),
        pair.lists[0].len()
    );
    Ok(())
}

/// The ranges of one half as the kernel has them, and what is searched for them.
#[derive(Debug, PartialEq)]
struct Half {
    ranges4: Vec<ListRange4>,
    ranges6: Vec<ListRange6>,
    search6: Vec<u64>,
    index: Vec<u32>,
    nets4: Vec<ListNets4>,
    nets6: Vec<ListNets6>,
}

/// Which half of the ranges packets are compared with.
fn half_in_use(kernel: &mut Kernel) -> Result<u32> {
    let config: Config = kernel.map("CONFIG")?.get(&0, 0)?;
    Ok(config.list_half & 1)
}

fn read_half(kernel: &mut Kernel, half: u32) -> Result<Half> {
    fn part<V: aya::Pod>(kernel: &mut Kernel, name: &str, half: u32) -> Result<Vec<V>> {
        let map = kernel.map::<V>(name)?;
        let length = map.len() / 2;
        let all = (half * length)..((half + 1) * length);
        Ok(all.map(|n| map.get(&n, 0)).collect::<Result<_, _>>()?)
    }
    Ok(Half {
        ranges4: part(kernel, "RANGE4", half)?,
        ranges6: part(kernel, "RANGE6", half)?,
        search6: part(kernel, "SEARCH6", half)?,
        index: part(kernel, "INDEX", half)?,
        nets4: every_other(kernel, "NET4", half)?,
        nets6: every_other(kernel, "NET6", half)?,
    })
}

/// A half of a map whose halves are interleaved.
fn every_other<V: aya::Pod>(kernel: &mut Kernel, name: &str, half: u32) -> Result<Vec<V>> {
    let map = kernel.map::<V>(name)?;
    let all = (half..map.len()).step_by(2);
    Ok(all.map(|n| map.get(&n, 0)).collect::<Result<_, _>>()?)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_replacement_leaves_the_ranges_in_use_as_they_are_and_switches() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&crowded())?;
    let pair = pair(&mut random);
    replace(&mut kernel.lists, &pair.lists[0])?;
    for n in 1..5 {
        let half = half_in_use(&mut kernel)?;
        let before = read_half(&mut kernel, half)?;
        ensure!(
            before.ranges4.iter().any(|range| range.end > 0),
            "SECMESH_SEED={seed}, replacement {n}: the half in use is empty"
        );
        replace(&mut kernel.lists, &pair.lists[n % 2])?;
        ensure!(
            half_in_use(&mut kernel)? != half,
            "SECMESH_SEED={seed}, replacement {n}: the same half"
        );
        ensure!(
            read_half(&mut kernel, half)? == before,
            "SECMESH_SEED={seed}, replacement {n}: written while packets were compared with it"
        );
    }
    Ok(())
}

/// Lists of ranges alone, some of which stay. Those that come and go lie before them, so that a replacement moves
/// each one that stays, and the index is written last where they are.
fn moving_ranges() -> Pair {
    let (mut stay4, mut stay6, mut both, mut neither) = (vec![], vec![], vec![], vec![]);
    for n in 0..64_u32 {
        let (a, b) = (
            0xdb00_0000 + n * 0x1_0000,
            (0xfd01 << 112) + (u128::from(n) << 80),
        );
        stay4.push(span(a, a + 0xff, 1));
        stay6.push(span(b, b + 0xff, 2));
        both.extend([v4(a), v4(a + 0xff), v6(b), v6(b + 0xff)]);
        neither.extend([v4(a - 1), v4(a + 0x100), v6(b - 1), v6(b + 0x100)]);
    }
    let (mut more4, mut more6) = (vec![], vec![]);
    for n in 0..900_u32 {
        let (a, b) = (
            0x0a00_0000 + n * 0x200,
            (0xfd00 << 112) + (u128::from(n) << 80),
        );
        more4.push(span(a, a + 0xff, 3));
        more6.push(span(b, b + 0xff, 4));
    }
    let lists = |ranges4: Vec<_>, ranges6: Vec<_>| Compiled {
        ranges4,
        ranges6,
        ..Compiled::default()
    };
    more4.extend_from_slice(&stay4);
    more6.extend_from_slice(&stay6);
    Pair {
        lists: [lists(more4, more6), lists(stay4, stay6)],
        both,
        neither,
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn no_packet_slips_through_between_ranges_that_move() -> Result<()> {
    let seed = seed()?;
    // Few packets in one go, so that one of them meets each moment of a replacement.
    during_replacements(&moving_ranges(), &mut Random(seed), BURST / 20)
        .with_context(|| format!("SECMESH_SEED={seed}"))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_list_that_does_not_fit_changes_nothing() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&crowded())?;
    let wanted = pair(&mut random).lists;
    replace(&mut kernel.lists, &wanted[0])?;
    let addrs = probes(&mut random, &wanted[0]);
    let guards = kernel.guards()?;
    let room = kernel.lists.capacity();
    let base4 = |n: usize| -> Vec<Span<u32>> {
        (0..=u32::try_from(n).unwrap_or(0))
            .map(|a| span(a * 2, a * 2, 9))
            .collect()
    };
    let base6 =
        |n: usize| -> Vec<Span<u128>> { (0..=n as u128).map(|a| span(a * 2, a * 2, 9)).collect() };
    let none = Compiled::default;
    for (map, wider) in [
        (
            "LIST4",
            Compiled {
                hosts4: base4(room.0),
                ..none()
            },
        ),
        (
            "LIST6",
            Compiled {
                hosts6: base6(room.1),
                ..none()
            },
        ),
        (
            "RANGE4",
            Compiled {
                ranges4: base4(room.2),
                ..none()
            },
        ),
        (
            "RANGE6",
            Compiled {
                ranges6: base6(room.3),
                ..none()
            },
        ),
    ] {
        match kernel.lists.replace(&wider, 0, now()?, &mut |_| {}) {
            Err(TableError::NoRoom { map: refused, .. }) => ensure!(refused == map, "{refused}"),
            other => bail!("{map}: {other:?}"),
        }
        compare(&mut kernel, &wanted[0], &addrs).with_context(|| format!("SECMESH_SEED={seed}"))?;
    }
    ensure!(
        kernel.guards()? == guards,
        "SECMESH_SEED={seed}: guards moved"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_list_entry_ends_by_itself_and_not_early() -> Result<()> {
    // What is known of the latest packets is one processor's.
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&options())?;
    let begin = now()?;
    let soon = UNIX_US / 1_000_000 + 2;
    let until = |start, end, expires_unix_s| Span {
        start,
        end,
        expires_unix_s,
        list: 3,
    };
    let until6 = |start, end, expires_unix_s| Span {
        start,
        end,
        expires_unix_s,
        list: 3,
    };
    let wanted = Compiled {
        hosts4: vec![
            until(0x0a00_0001, 0x0a00_0001, soon),
            until(0x0a00_0002, 0x0a00_0002, u64::MAX),
        ],
        hosts6: vec![
            until6(1 << 120, 1 << 120, soon),
            until6(2 << 120, 2 << 120, u64::MAX),
        ],
        ranges4: vec![
            until(0x0b00_0000, 0x0b00_00ff, soon),
            until(0x0b00_0100, 0x0b00_01ff, u64::MAX),
        ],
        ranges6: vec![
            until6(0xfd << 120, (0xfd << 120) + 9, soon),
            until6(0xfe << 120, (0xfe << 120) + 9, u64::MAX),
        ],
    };
    kernel.lists.replace(&wanted, 0, begin, &mut |_| {})?;
    let ends_ns = begin.mono_ns + 2_000_000_000;
    let ending = [
        v4(0x0a00_0001),
        v4(0x0b00_00ff),
        v6(1 << 120),
        v6((0xfd << 120) + 9),
    ];
    let staying = [
        v4(0x0a00_0002),
        v4(0x0b00_0100),
        v6(2 << 120),
        v6(0xfe << 120),
    ];
    let mut seen = BTreeMap::new();
    let started = Instant::now();
    while seen.len() < ending.len() {
        ensure!(
            started.elapsed() < PATIENCE,
            "still dropped: all but {seen:?}"
        );
        for addr in ending {
            let is = is_dropped(&mut kernel, addr)?;
            let after_ns = mono_ns()?;
            if is {
                ensure!(!seen.contains_key(&addr), "{addr} came back");
            } else {
                ensure!(
                    after_ns >= ends_ns,
                    "{addr} passed {} ns early",
                    ends_ns - after_ns
                );
                seen.insert(addr, after_ns);
            }
        }
        for addr in staying {
            ensure!(is_dropped(&mut kernel, addr)?, "{addr} has no end");
        }
    }
    // Also by the shortest way, which one packet in 64 that are dropped does not take, and in a flood of listed sources.
    for flood in [1, 1_000] {
        let moved = kernel.run_many(&frame(staying[0]), flood)?;
        ensure!(dropped(&moved, flood)?, "{}", staying[0]);
        for addr in ending {
            ensure!(!is_dropped(&mut kernel, addr)?, "{addr} came back");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_host_is_found_behind_another_one_of_the_same_lane() -> Result<()> {
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&LoadOptions {
        max_list_addresses: 100,
        ..options()
    })?;
    // So many that some bucket has two of them.
    let hosts = (1..=30).map(|n| span(n << 64, n << 64, 1)).collect();
    let wanted = Compiled {
        hosts6: hosts,
        ..Compiled::default()
    };
    replace(&mut kernel.lists, &wanted)?;
    let mut list = kernel.map::<ListBucket6>("LIST6")?;
    let listed = kernel.map::<Listed6>("LISTED6")?;
    let mut behind = None;
    for n in 0..list.len() {
        let mut bucket = list.get(&n, 0)?;
        let slot = n * u32::try_from(BUCKET6)? + 1;
        let (Some(lane), second) = (bucket.lane(1), listed.get(&slot, 0)?) else {
            continue;
        };
        if second.beside.expires == 0 {
            continue;
        }
        // Two of 2^40 lanes are the same too seldom to wait for: the first host gets the second one's.
        bucket.put(0, lane6(lane[0] | lane[1] << 32));
        list.set(n, bucket, 0)?;
        behind = Some(second.addr);
    }
    drop((list, listed));
    let behind = v6(u128::from_be_bytes(
        behind.context("no bucket has two hosts")?,
    ));
    // Those of which the lane is enough, and those that are counted on the host itself.
    let moved = kernel.run_many(&frame(behind), 2_000)?;
    ensure!(dropped(&moved, 2_000)?, "{behind} passes");
    Ok(())
}

fn pinned(max_list_addresses: u32, max_list_prefixes: u32) -> LoadOptions {
    LoadOptions {
        pin_dir: Some(PathBuf::from(BPFFS).join("secmesh-lists")),
        max_list_addresses,
        max_list_prefixes,
        ..options()
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_next_agent_finds_the_lists_and_replaces_them_whatever_its_settings() -> Result<()> {
    let seed = seed()?;
    isolated(move || {
        let mut random = Random(seed);
        let Pair {
            lists: wanted,
            both,
            ..
        } = pair(&mut random);
        let mut addrs = probes(&mut random, &wanted[0]);
        addrs.extend(probes(&mut random, &wanted[1]));
        let mut kernel = Kernel::load(&pinned(768, 1024))?;
        replace(&mut kernel.lists, &wanted[0])?;
        // With other sizes the tables are new ones, and empty: the agent writes its lists into them before it
        // switches the program.
        let nothing = Compiled::default();
        let mut sizes = (768, 1024);
        let changes = [sizes, (100_000, 20_000), (100_000, 20_000), sizes, sizes];
        for (n, (addresses, prefixes)) in changes.into_iter().enumerate() {
            let is_changing = sizes != (addresses, prefixes);
            let (old, new) = if is_changing {
                (&nothing, &wanted[(n + 1) % 2])
            } else {
                (&wanted[n % 2], &wanted[(n + 1) % 2])
            };
            sizes = (addresses, prefixes);
            drop(kernel);
            kernel = Kernel::load(&pinned(addresses, prefixes))?;
            ensure!(kernel.dataplane.is_changing() == is_changing);
            kernel.dataplane.finish_change()?;
            let context = || format!("SECMESH_SEED={seed}, settings {addresses} and {prefixes}");
            for addr in &addrs {
                let is = is_dropped(&mut kernel, *addr).with_context(context)?;
                ensure!(
                    is == oracle(old, *addr).is_some(),
                    "{addr} before anything was written: dropped: {is}; {}",
                    context()
                );
            }
            let replaced = replace(&mut kernel.lists, new).with_context(context)?;
            compare(&mut kernel, new, &addrs).with_context(context)?;
            let of = |list: &Compiled| -> BTreeSet<(IpAddr, IpAddr)> {
                let four = list.hosts4.iter().chain(&list.ranges4);
                let six = list.hosts6.iter().chain(&list.ranges6);
                four.map(|s| (v4(s.start), v4(s.end)))
                    .chain(six.map(|s| (v6(s.start), v6(s.end))))
                    .collect()
            };
            let added = of(new).difference(&of(old)).count();
            let removed = of(old).difference(&of(new)).count();
            ensure!(
                (replaced.added, replaced.removed) == (added, removed),
                "{replaced:?} for {added} and {removed}; {}",
                context()
            );
        }
        ensure!(!both.is_empty(), "nothing stayed");
        replace(&mut kernel.lists, &Compiled::default())?;
        let left = kernel.guards()?;
        ensure!(
            left.is_empty(),
            "SECMESH_SEED={seed}: still guarded: {left:?}"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn ranges_that_an_import_brings_are_new_and_those_that_stay_are_not_written_again() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    let mut wanted = Compiled {
        hosts4: vec![span(0x0a00_0001, 0x0a00_0001, 1)],
        ranges4: vec![span(0x0b00_0000, 0x0b00_00ff, 1)],
        ..Compiled::default()
    };
    let counts = |done: secmesh::dataplane::Replaced| (done.added, done.removed, done.kept);
    let done = counts(replace(&mut kernel.lists, &wanted)?);
    ensure!(done == (2, 0, 0), "{done:?}");
    let inside = v4(0x0b00_0007);
    let hits = |kernel: &Kernel| kernel.lists.hits(inside).map_or(0, |(_, hits)| hits);
    for _ in 0..1000 {
        ensure!(is_dropped(&mut kernel, inside)?, "not in force");
    }
    let met = hits(&kernel);
    ensure!(met > 0, "no hit is counted");

    // A host more: the ranges, and what has met them, stay as they are.
    let half = kernel.dataplane.kernel_config().list_half;
    wanted.hosts4.push(span(0x0a00_0003, 0x0a00_0003, 1));
    let done = counts(replace(&mut kernel.lists, &wanted)?);
    ensure!(done == (1, 0, 2), "{done:?}");
    ensure!(
        kernel.dataplane.kernel_config().list_half == half && hits(&kernel) == met,
        "the ranges were written again"
    );

    // Two ranges more, one of each family, and a host less.
    wanted.ranges4.push(span(0x0c00_0000, 0x0c00_ffff, 2));
    wanted
        .ranges6
        .push(span(0xfd00 << 112, (0xfd01 << 112) - 1, 2));
    wanted.hosts4.pop();
    let done = counts(replace(&mut kernel.lists, &wanted)?);
    ensure!(done == (2, 1, 2), "{done:?}");
    for addr in [inside, v4(0x0c00_8000), v6((0xfd00 << 112) + 9)] {
        ensure!(is_dropped(&mut kernel, addr)?, "{addr} is not in force");
    }
    ensure!(!is_dropped(&mut kernel, v4(0x0a00_0003))?, "still there");

    // An end that changes is written, though it is the same entry.
    if let Some(range) = wanted.ranges4.first_mut() {
        range.expires_unix_s = UNIX_US / 1_000_000 - 1;
    }
    let done = counts(replace(&mut kernel.lists, &wanted)?);
    ensure!(done == (0, 0, 4), "{done:?}");
    // Ends are rounded up to a second.
    let begun = Instant::now();
    while is_dropped(&mut kernel, inside)? {
        ensure!(begun.elapsed() < PATIENCE, "it has ended");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_index_of_ranges_is_right_whatever_was_there_before() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&options())?;
    for round in 0..8 {
        // None now and then: then the index is left as it is.
        let wanted = if round % 4 == 2 {
            Compiled::default()
        } else {
            made_up(&mut random, false)
        };
        replace(&mut kernel.lists, &wanted)?;
        let addrs = probes(&mut random, &wanted);
        compare(&mut kernel, &wanted, &addrs)
            .with_context(|| format!("SECMESH_SEED={seed}, round {round}"))?;
        // Nothing is left to be found by an audit of it.
        let mut cursor = secmesh::dataplane::AuditCursor::default();
        loop {
            let part = kernel.lists.audit(&mut cursor, 1 << 16, now()?)?;
            ensure!(
                !part.lists.any() && !part.guards.any(),
                "SECMESH_SEED={seed}, round {round}: {part:?}"
            );
            if part.done {
                break;
            }
        }
    }
    Ok(())
}

/// Audits until there is nothing more to look at; what was put right in the lists' tables.
fn put_right(kernel: &mut Kernel) -> Result<usize> {
    let mut cursor = secmesh::dataplane::AuditCursor::default();
    let mut found = 0;
    loop {
        let part = kernel.lists.audit(&mut cursor, 1 << 16, now()?)?;
        found += part.lists.added + part.lists.removed;
        if part.done {
            return Ok(found);
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_range_is_found_by_its_networks_or_else_by_the_search_and_both_are_put_right() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    let wanted = Compiled {
        ranges4: vec![span(0xc633_6400, 0xc633_64ff, 1)],
        ranges6: vec![span(
            0x2001_0db8 << 96,
            (0x2001_0db8 << 96) | ((1 << 72) - 1),
            1,
        )],
        ..Compiled::default()
    };
    replace(&mut kernel.lists, &wanted)?;
    let sources: [IpAddr; 2] = ["198.51.100.7".parse()?, "2001:db8::77:1".parse()?];
    let all_dropped = |kernel: &mut Kernel, wanted: bool, what: &str| -> Result<()> {
        for source in sources {
            ensure!(is_dropped(kernel, source)? == wanted, "{source}: {what}");
        }
        Ok(())
    };
    all_dropped(&mut kernel, true, "as it is")?;
    let half = half_in_use(&mut kernel)?;
    // The search finds nothing any more: the networks do.
    let (base4, base6) = {
        let config: Config = kernel.map("CONFIG")?.get(&0, 0)?;
        (half * config.list_room4, half * config.list_room6)
    };
    kernel
        .map::<ListRange4>("RANGE4")?
        .set(base4, ListRange4::default(), 0)?;
    kernel
        .map::<ListRange6>("RANGE6")?
        .set(base6, ListRange6::default(), 0)?;
    all_dropped(&mut kernel, true, "by its networks")?;
    // Nor do they, and they are said to be whole.
    let (nets4, nets6) = (
        every_other::<ListNets4>(&mut kernel, "NET4", half)?.len(),
        every_other::<ListNets6>(&mut kernel, "NET6", half)?.len(),
    );
    for n in 0..u32::try_from(nets4)? {
        kernel
            .map("NET4")?
            .set(n * 2 + half, ListNets4::default(), 0)?;
    }
    for n in 0..u32::try_from(nets6)? {
        kernel
            .map("NET6")?
            .set(n * 2 + half, ListNets6::default(), 0)?;
    }
    all_dropped(&mut kernel, false, "nothing names it")?;
    let found = put_right(&mut kernel)?;
    ensure!(found > 4, "{found} were put right");
    all_dropped(&mut kernel, true, "put right")?;
    ensure!(put_right(&mut kernel)? == 0);
    // What is no network is searched for.
    let odd = Compiled {
        ranges4: vec![span(0xc633_6407, 0xc633_6408, 1)],
        ranges6: vec![span(
            (0x2001_0db8 << 96) | 5,
            (0x2001_0db8 << 96) | 0x0077_0001,
            1,
        )],
        ..Compiled::default()
    };
    replace(&mut kernel.lists, &odd)?;
    all_dropped(&mut kernel, true, "by the search")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_address_beside_a_print_that_somebody_changed_is_put_right() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    let wanted = Compiled {
        hosts6: vec![span((0x2001_0db8 << 96) | 7, (0x2001_0db8 << 96) | 7, 1)],
        ..Compiled::default()
    };
    replace(&mut kernel.lists, &wanted)?;
    let mut listed = kernel.map::<Listed6>("LISTED6")?;
    let mut changed = 0;
    for n in 0..listed.len() {
        let mut there = listed.get(&n, 0)?;
        if there.beside.expires != 0 {
            there.addr = [9; 16];
            listed.set(n, there, 0)?;
            changed += 1;
        }
    }
    drop(listed);
    ensure!(changed == 1, "{changed} hosts");
    ensure!(put_right(&mut kernel)? == 1);
    ensure!(put_right(&mut kernel)? == 0);
    Ok(())
}
