//! The guard in front of all block tables: nothing that is blocked goes unguarded, and nothing is guarded for
//! ever.

use std::{
    collections::BTreeSet,
    error::Error,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use aya::maps::{HashMap, Map, MapData};
use secmesh::{
    addr::Prefix,
    dataplane::{Compiled, LoadOptions, TestRun as _, TestRunOptions},
};
use secmesh_common::block::{Addr4, BlockEntry, origin};
use secmesh_tests::{
    chaos::mono_ns,
    kernel::{BPFFS, Kernel, LONG_NS, XDP_DROP, XDP_PASS, isolated, options, shown},
    lists::{frame, oracle, replace, span, v4},
    random::{Random, seed},
};

/// Hosts, prefixes inside a /24 or a /48, those themselves, and wider ones: all around two places.
const BLOCKS: &str = "10.1.2.3 10.1.2.4 10.1.2.128/25 10.1.2.0/25 10.1.2.0/24 10.1.0.0/16 10.0.0.0/7 10.1.3.9 \
    fd00:1:2::3 fd00:1:2::4 fd00:1:2:8000::/49 fd00:1:2::/48 fd00:1::/32 fd00::/30 fd00::/18 fd00:1:3::9";

/// In them, beside them, and where only lists are.
const SOURCES: &str = "10.1.2.3 10.1.2.4 10.1.2.5 10.1.2.200 10.1.3.9 10.1.3.10 10.2.0.1 12.0.0.1 fd00:1:2::3 \
    fd00:1:2::4 fd00:1:2::5 fd00:1:2:8000::1 fd00:1:3::9 fd00:1:3::a fd00:2::1 fd00:4::1 fd10::1 fe00::1";

fn read<T: FromStr<Err: Error + Send + Sync + 'static>>(text: &str) -> Result<Vec<T>> {
    text.split_whitespace().map(|t| Ok(t.parse()?)).collect()
}

/// A host and a range of each family, in the same neighbourhoods.
fn listed() -> Compiled {
    let (first, second) = (0xfd00_0001_0002 << 80, 0xfd00_0001_0003 << 80);
    Compiled {
        hosts4: vec![span(0x0a01_0205, 0x0a01_0205, 1)],
        hosts6: vec![span(first + 5, first + 5, 1)],
        ranges4: vec![span(0x0a01_030a, 0x0a01_0310, 2)],
        ranges6: vec![span(second + 10, second + 16, 2)],
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn decisions_and_lists_share_a_neighbourhood_without_lifting_each_others_guard() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&options())?;
    let (blocks, sources): (Vec<Prefix>, Vec<IpAddr>) = (read(BLOCKS)?, read(SOURCES)?);
    kernel.dataplane.set_sizes(16, 16, 0)?;
    let mut blocked = BTreeSet::new();
    let mut lists = Compiled::default();
    for step in 0..400 {
        match random.pick(&blocks).filter(|_| random.below(16) > 0) {
            None => {
                let empty = lists.is_empty();
                lists = if empty { listed() } else { Compiled::default() };
                replace(&mut kernel.lists, &lists)?;
            }
            Some(prefix) if blocked.remove(&prefix) => kernel.blocks.remove(&prefix)?,
            Some(prefix) => {
                let end_ns = mono_ns()? + LONG_NS;
                kernel.blocks.put(&prefix, end_ns, 1, origin::OPERATOR)?;
                blocked.insert(prefix);
            }
        }
        for source in &sources {
            let moved = kernel.run_many(&frame(*source), 1)?;
            let decided = blocked.iter().any(|p| p.contains_addr(*source));
            let named = !decided && oracle(&lists, *source).is_some();
            let clear = !decided && !named;
            let blocks = moved.drop_exact + moved.drop_prefix;
            ensure!(
                (blocks, moved.drop_list, moved.pass)
                    == (decided.into(), named.into(), clear.into()),
                "SECMESH_SEED={seed}, step {step}, {source}: {} with {blocked:?} and {} listed",
                shown(&moved),
                lists.len()
            );
        }
    }
    for prefix in &blocked {
        kernel.blocks.remove(prefix)?;
    }
    replace(&mut kernel.lists, &Compiled::default())?;
    let left = kernel.guards()?;
    ensure!(left.is_empty(), "SECMESH_SEED={seed}: guarded: {left:?}");
    let off = kernel.dataplane.kernel_config().guard6_off;
    ensure!(
        off == 0,
        "SECMESH_SEED={seed}: the guard is still off: {off}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn entries_of_somebody_else_take_no_guard_along_and_leave_none() -> Result<()> {
    isolated(|| {
        let pins = PathBuf::from(BPFFS).join("secmesh-guard");
        let mut kernel = Kernel::load(&LoadOptions {
            pin_dir: Some(pins.clone()),
            ..options()
        })?;
        kernel.dataplane.set_sizes(16, 16, 0)?;
        let map = MapData::from_pin(pins.join("BLOCK4"))?;
        let mut entries: HashMap<MapData, Addr4, BlockEntry> =
            HashMap::try_from(Map::HashMap(map))?;
        let key = Addr4 {
            addr: [10, 1, 2, 3],
        };
        let (strange, ours): (Prefix, Prefix) = ("10.1.2.3".parse()?, "10.1.2.4".parse()?);
        let end_ns = mono_ns()? + LONG_NS;
        kernel.blocks.put(&ours, end_ns, 1, origin::OPERATOR)?;

        let entry = BlockEntry {
            expires_ns: end_ns,
            ..BlockEntry::default()
        };
        entries.insert(key, entry, 0)?;
        kernel.blocks.put(&strange, end_ns, 1, origin::OPERATOR)?;
        kernel.blocks.remove(&strange)?;
        let moved = kernel.run_many(&frame(ours.addr()), 1)?;
        ensure!(moved.drop_exact == 1, "unguarded: {}", shown(&moved));

        kernel.blocks.put(&strange, end_ns, 1, origin::OPERATOR)?;
        entries.remove(&key)?;
        kernel.blocks.remove(&strange)?;
        kernel.blocks.remove(&ours)?;
        let left = kernel.guards()?;
        ensure!(left.is_empty(), "guarded: {left:?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_decision_holds_at_once_while_lists_write_the_guards() -> Result<()> {
    let options = LoadOptions {
        // The largest guards.
        max_list_addresses: 1 << 20,
        ..options()
    };
    let mut kernel = Kernel::load(&options)?;
    // The second half of the one is the first half of the other.
    let lists = [made_of(1 << 15, 0), made_of(1 << 15, 1 << 14)];
    let in_both = |n: u32| v4(0x0a00_0001 + (((1 << 14) + n % (1 << 14)) << 8));
    replace(&mut kernel.lists, &lists[0])?;
    let over = AtomicBool::new(false);
    let (mut rounds, mut longest) = (0u32, Duration::ZERO);
    let Kernel {
        dataplane,
        blocks,
        lists: tables,
        ..
    } = &mut kernel;
    let took = thread::scope(|scope| -> Result<Duration> {
        let writer = scope.spawn(|| {
            let begun = Instant::now();
            let result = (1..=6).try_for_each(|n| {
                let next = if n % 2 == 0 { &lists[0] } else { &lists[1] };
                replace(tables, next).map(drop)
            });
            over.store(true, Ordering::Release);
            result.map(|()| begun.elapsed())
        });
        let mut decide = || -> Result<()> {
            // Neighbourhoods that both, one or none of the lists guard.
            for source in ["10.0.0.2", "10.127.255.2", "10.2.4.2", "172.16.0.1"] {
                let source: IpAddr = source.parse()?;
                let prefix = Prefix::host(source);
                let begun = Instant::now();
                blocks.put(&prefix, mono_ns()? + LONG_NS, 1, origin::OPERATOR)?;
                longest = longest.max(begun.elapsed());
                for blocked in [true, false] {
                    let answer = dataplane.program()?.test_run(TestRunOptions {
                        data_in: Some(&frame(source)),
                        ..TestRunOptions::new()
                    })?;
                    let wanted = if blocked { XDP_DROP } else { XDP_PASS };
                    ensure!(
                        answer.return_value == wanted,
                        "{source}, blocked: {blocked}: answer {}",
                        answer.return_value
                    );
                    blocks.remove(&prefix)?;
                }
            }
            // A listed one is listed throughout.
            let source = in_both(rounds.wrapping_mul(7919));
            let answer = dataplane.program()?.test_run(TestRunOptions {
                data_in: Some(&frame(source)),
                ..TestRunOptions::new()
            })?;
            ensure!(
                answer.return_value == XDP_DROP,
                "{source}, which both lists name: answer {}",
                answer.return_value
            );
            rounds += 1;
            Ok(())
        };
        let mut result = Ok(());
        while result.is_ok() && !over.load(Ordering::Acquire) {
            result = decide();
        }
        let took = writer
            .join()
            .map_err(|_panic| anyhow!("the writer panicked"))??;
        result.map(|()| took)
    })?;
    eprintln!("{rounds} rounds in {took:?}, the longest wait {longest:?}");
    ensure!(rounds > 10, "{rounds} rounds in {took:?}");
    let left = kernel.guards()?;
    replace(&mut kernel.lists, &lists[0])?;
    ensure!(
        left == kernel.guards()?,
        "guards that nobody needs, or not all"
    );
    Ok(())
}

/// So many addresses from 10.0.0.1 on, two neighbourhoods apart, `after` of them later.
fn made_of(count: u32, after: u32) -> Compiled {
    let host = |n: u32| {
        let addr = 0x0a00_0001 + ((n + after) << 8);
        span(addr, addr, 1)
    };
    Compiled {
        hosts4: (0..count).map(host).collect(),
        ..Compiled::default()
    }
}
