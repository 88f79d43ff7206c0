//! Looking through a million entries: what it finds, and how long it takes, in slices and in all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use secmesh::{
    dataplane::{AuditCursor, Compiled, LoadOptions, Span},
    respond::Now,
};
use secmesh_common::list::{EXPIRY_NEVER, ListRange4};
use secmesh_tests::{
    chaos::mono_ns,
    kernel::{BPFFS, Kernel, isolated, options},
};

const MILLION: u32 = 1_000_000;
/// Entries of a slice, as in the agent.
const SLICE: u32 = 8192;

/// Looks through everything; gives what was found in lists and in guards.
fn audit(kernel: &mut Kernel, now: Now) -> Result<(usize, usize)> {
    let (mut cursor, mut found) = (AuditCursor::default(), (0, 0));
    let (mut slices, mut longest) = (0, Duration::ZERO);
    let begun = Instant::now();
    loop {
        let begun = Instant::now();
        let part = kernel.lists.audit(&mut cursor, SLICE, now)?;
        longest = longest.max(begun.elapsed());
        slices += 1;
        found.0 += part.lists.added + part.lists.removed;
        found.1 += part.guards.added + part.guards.removed;
        if part.done {
            break;
        }
    }
    eprintln!(
        "{MILLION} addresses and both guards: {slices} slices, {:?} of work, the longest {longest:?}",
        begun.elapsed()
    );
    Ok(found)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn one_wrong_word_among_a_million_entries_is_found_and_put_right() -> Result<()> {
    isolated(|| {
        let pins = std::path::PathBuf::from(BPFFS).join("secmesh-audit");
        let mut kernel = Kernel::load(&LoadOptions {
            pin_dir: Some(pins.clone()),
            max_list_addresses: 1 << 20,
            ..options()
        })?;
        let now = Now {
            unix_us: 1_700_000_000_000_000,
            mono_ns: mono_ns()?,
        };
        let hosts4 = (0..MILLION)
            .map(|n| Span {
                // Every other address, so that none has a neighbour.
                start: 0x0a00_0000 + 2 * n,
                end: 0x0a00_0000 + 2 * n,
                expires_unix_s: u64::MAX,
                list: 1,
            })
            .collect();
        let wanted = Compiled {
            hosts4,
            ..Compiled::default()
        };
        kernel.lists.replace(&wanted, 0, now, &mut |_| {})?;
        ensure!(
            audit(&mut kernel, now)? == (0, 0),
            "differences from nothing"
        );

        let map = MapData::from_pin(pins.join("GUARD4"))?;
        let mut guard: Array<MapData, u64> = Array::try_from(Map::Array(map))?;
        // Any word that guards something.
        let mut word = 0;
        let mut right = guard.get(&word, 0)?;
        while right == 0 && word + 1 < guard.len() {
            word += 1;
            right = guard.get(&word, 0)?;
        }
        ensure!(right != 0, "nothing is guarded");
        guard.set(word, 0, 0)?;
        ensure!(audit(&mut kernel, now)? == (0, 1), "not found, or not once");
        ensure!(guard.get(&word, 0)? == right, "not put right");
        ensure!(audit(&mut kernel, now)? == (0, 0), "found again");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn ranges_that_have_ended_are_no_difference_and_are_not_brought_back() -> Result<()> {
    isolated(|| {
        let pins = std::path::PathBuf::from(BPFFS).join("secmesh-ended");
        let mut kernel = Kernel::load(&LoadOptions {
            pin_dir: Some(pins.clone()),
            ..options()
        })?;
        let now = Now {
            unix_us: 1_700_000_000_000_000,
            mono_ns: mono_ns()?,
        };
        let end = 1_700_000_060;
        let wanted = Compiled {
            ranges4: vec![Span {
                start: 0xcb00_7100,
                end: 0xcb00_71ff,
                expires_unix_s: end,
                list: 1,
            }],
            ranges6: vec![Span {
                start: 0x2001_0db8 << 96,
                end: (0x2001_0db9 << 96) - 1,
                expires_unix_s: end,
                list: 1,
            }],
            ..Compiled::default()
        };
        kernel.lists.replace(&wanted, 0, now, &mut |_| {})?;
        ensure!(audit(&mut kernel, now)? == (0, 0), "differences at once");
        let later = Now {
            unix_us: now.unix_us + 120_000_000,
            mono_ns: now.mono_ns + 120_000_000_000,
        };
        ensure!(
            audit(&mut kernel, later)? == (0, 0),
            "what has ended is taken for a difference"
        );

        // Somebody who lets an ended range go on is found.
        let map = MapData::from_pin(pins.join("RANGE4"))?;
        let mut ranges: Array<MapData, ListRange4> = Array::try_from(Map::Array(map))?;
        let at = (0..ranges.len())
            .find(|n| ranges.get(n, 0).is_ok_and(|r| r.start == 0xcb00_7100))
            .context("the range is not in the table")?;
        let right = ranges.get(&at, 0)?;
        let lasting = ListRange4 {
            expires: EXPIRY_NEVER,
            ..right
        };
        ranges.set(at, lasting, 0)?;
        ensure!(audit(&mut kernel, later)? == (1, 0), "not found");
        ensure!(ranges.get(&at, 0)?.expires != EXPIRY_NEVER, "not put right");
        Ok(())
    })
}
