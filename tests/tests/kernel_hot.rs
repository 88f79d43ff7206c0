//! The cache of sources that are being dropped: whatever is changed holds from the next packet on, and no
//! packet is lost to the count.
//!
//! What is tried follows from a seed; a failure prints it, and `SECMESH_SEED=<seed>` tries the same again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use secmesh::addr::Prefix;
use secmesh_common::{
    block::origin,
    hot::{FLUSH_NS, HotSource, place},
    packet::Family,
};
use secmesh_tests::{
    chaos::mono_ns,
    frames::of_odd_length,
    kernel::{Kernel, LONG_NS, difference, options, shown},
    lists::frame,
    livegen::{PLAYED, Play},
    netns::pin,
    random::{Random, seed},
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// The longest timer tick of a kernel, ns.
const TICK_NS: u64 = 10_000_000;

/// Where a source's hot slot is.
fn slot(kernel: &Kernel, source: IpAddr) -> u32 {
    let seed = kernel.dataplane.kernel_config().table_seed;
    let word = |b: [u8; 4]| u32::from_ne_bytes(b);
    match source {
        IpAddr::V4(a) => place(&[word(a.octets()), 0, 0, 0], Family::V4, seed),
        IpAddr::V6(a) => {
            let bits = u128::from(a);
            let words = [96, 64, 32, 0]
                .map(|shift| u32::try_from((bits >> shift) & 0xffff_ffff).unwrap_or(0));
            place(&words.map(u32::to_be), Family::V6, seed)
        }
    }
}

fn block(kernel: &mut Kernel, source: IpAddr, end_ns: u64) -> Result<()> {
    Ok(kernel
        .blocks
        .put(&Prefix::host(source), end_ns, 1, origin::OPERATOR)?)
}

/// Sends packets, all of which must be dropped for the decision, or none.
fn send(kernel: &mut Kernel, source: IpAddr, times: u32, blocked: bool) -> Result<()> {
    let moved = kernel.run_many(&frame(source), times)?;
    let passed = moved.pass + moved.pass_allowlist;
    let wanted = if blocked { (times, 0) } else { (0, times) };
    ensure!(
        (moved.drop_exact, passed) == (wanted.0.into(), wanted.1.into()),
        "{source}, blocked: {blocked}: {times} packets: {}",
        shown(&moved)
    );
    Ok(())
}

/// The entry's counts, the packets that wait in the hot slot included.
fn counted(kernel: &Kernel, source: IpAddr) -> Result<(u64, u64)> {
    let entry = kernel
        .blocks
        .get(&Prefix::host(source))
        .context("blocked")?;
    ensure!(
        entry.hits == 0 || entry.first_hit_ns <= entry.last_hit_ns,
        "{entry:?}"
    );
    Ok((entry.hits, entry.bytes))
}

fn is_hot(kernel: &mut Kernel, source: IpAddr) -> Result<bool> {
    let place = slot(kernel, source);
    let hot: HotSource = kernel.map("HOT")?.get(&place, 0)?;
    Ok(hot.hits > 0)
}

/// One of each family.
fn sources() -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7);
    [Ipv4Addr::new(203, 0, 113, 7).into(), v6.into()]
}

/// A kernel in which the source is blocked and hot.
fn hot(source: IpAddr) -> Result<Kernel> {
    let mut kernel = Kernel::load(&options())?;
    block(&mut kernel, source, mono_ns()? + LONG_NS)?;
    send(&mut kernel, source, 5, true)?;
    ensure!(
        is_hot(&mut kernel, source)?,
        "{source} is not hot: this test would say nothing"
    );
    Ok(kernel)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_allowlist_holds_from_the_next_packet_on_and_so_does_its_end() -> Result<()> {
    for source in sources() {
        let wider = Prefix::truncating(source, 24)?;
        for allow in [Prefix::host(source), wider] {
            let mut kernel = hot(source)?;
            for _ in 0..3 {
                kernel.allows.replace(&[allow])?;
                send(&mut kernel, source, 3, false)?;
                kernel.allows.replace(&[])?;
                send(&mut kernel, source, 3, true)?;
                ensure!(
                    is_hot(&mut kernel, source)?,
                    "{source} did not get hot again"
                );
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_removed_block_and_a_new_one_hold_from_the_next_packet_on() -> Result<()> {
    for source in sources() {
        let mut kernel = hot(source)?;
        for _ in 0..3 {
            kernel.blocks.remove(&Prefix::host(source))?;
            send(&mut kernel, source, 3, false)?;
            block(&mut kernel, source, mono_ns()? + LONG_NS)?;
            send(&mut kernel, source, 3, true)?;
            ensure!(counted(&kernel, source)?.0 == 3, "counts of the old block");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_shortened_block_ends_with_the_next_packet_and_a_prolonged_one_goes_on() -> Result<()> {
    for source in sources() {
        let mut kernel = hot(source)?;
        block(&mut kernel, source, 1)?;
        send(&mut kernel, source, 3, false)?;
        block(&mut kernel, source, mono_ns()? + LONG_NS)?;
        send(&mut kernel, source, 3, true)?;
        // What was counted before stays.
        ensure!(
            counted(&kernel, source)?.0 == 8,
            "{:?}",
            counted(&kernel, source)?
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_hot_source_is_free_when_its_block_ends_and_not_early() -> Result<()> {
    for source in sources() {
        let mut kernel = Kernel::load(&options())?;
        let end_ns = mono_ns()? + FLUSH_NS * 3;
        block(&mut kernel, source, end_ns)?;
        let frame = frame(source);
        let mut dropped = 0;
        let started = Instant::now();
        loop {
            let before_ns = mono_ns()?;
            let moved = kernel.run_many(&frame, 1)?;
            let after_ns = mono_ns()?;
            if moved.pass == 1 {
                ensure!(after_ns >= end_ns, "{} ns early", end_ns - after_ns);
                break;
            }
            dropped += moved.drop_exact;
            let entry = kernel.blocks.get(&Prefix::host(source));
            let last_ns = entry.context("blocked")?.last_hit_ns;
            // Their clock is one of timer ticks.
            ensure!(
                last_ns + 2 * TICK_NS > before_ns && last_ns < after_ns + 2 * TICK_NS,
                "last hit at {last_ns}, sent at {before_ns}"
            );
            ensure!(started.elapsed() < PATIENCE, "still dropped");
        }
        let hits = counted(&kernel, source)?.0;
        ensure!(
            dropped > 0 && hits == dropped,
            "{dropped} dropped, {hits} counted"
        );
        send(&mut kernel, source, 3, false)?;
    }
    Ok(())
}

/// Sources of which several share one slot: of both families.
fn colliding(kernel: &Kernel, random: &mut Random) -> Result<Vec<IpAddr>> {
    let mut slots: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for _ in 0..1_000_000 {
        let bits = random.bits();
        let source = if bits & 1 == 0 {
            Ipv4Addr::from(0x0a00_0000 | u32::try_from(bits >> 40)?).into()
        } else {
            Ipv6Addr::from((0xfd00 << 112) | u128::from(bits)).into()
        };
        let place = slot(kernel, source);
        let sharing = slots.entry(place).or_default();
        if !sharing.contains(&source) {
            sharing.push(source);
        }
        if sharing.iter().filter(|a| a.is_ipv4()).count() >= 2
            && sharing.iter().filter(|a| a.is_ipv6()).count() >= 2
        {
            return Ok(sharing.clone());
        }
    }
    anyhow::bail!("no four of them share a slot")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn sources_that_share_a_slot_are_all_counted_to_the_packet() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&options())?;
    let sources = colliding(&kernel, &mut random)?;
    let mut wanted = BTreeMap::new();
    for source in &sources {
        block(&mut kernel, *source, mono_ns()? + LONG_NS)?;
        wanted.insert(*source, (0, 0));
    }
    for step in 0..400 {
        let source = random.pick(&sources).context("some share a slot")?;
        let times = 1 + u32::try_from(random.below(40))?;
        let context = || format!("SECMESH_SEED={seed}, step {step}");
        send(&mut kernel, source, times, true).with_context(context)?;
        let length = frame(source).len() as u64;
        let sum = wanted.entry(source).or_default();
        sum.0 += u64::from(times);
        sum.1 += u64::from(times) * length;
        match random.below(40) {
            // Longer than counts may wait, so that the entry gets them by a flush, too.
            0 => thread::sleep(Duration::from_nanos(FLUSH_NS * 3 / 2)),
            // The same block once more keeps its counts.
            1 => block(&mut kernel, source, mono_ns()? + LONG_NS)?,
            // Allowed for a moment: its packets are counted, not dropped, and nobody else's are.
            2 => {
                kernel.allows.replace(&[Prefix::host(source)])?;
                send(&mut kernel, source, 2, false).with_context(context)?;
                kernel.allows.replace(&[])?;
                let sum = wanted.entry(source).or_default();
                sum.0 += 2;
                sum.1 += 2 * length;
            }
            _ => {}
        }
        for (source, sum) in &wanted {
            let is = counted(&kernel, *source)?;
            ensure!(is == *sum, "{source}: {is:?}, not {sum:?}; {}", context());
        }
    }
    println!(
        "{} sources in one slot, seed {seed}: {wanted:?}",
        sources.len()
    );
    Ok(())
}

/// An IPv6 address and the IPv4 one that begins like it and has the same slot.
fn alike(kernel: &Kernel, random: &mut Random) -> Result<[IpAddr; 2]> {
    let short: IpAddr = Ipv4Addr::new(0xfd, 1, 2, 3).into();
    let place = slot(kernel, short);
    for _ in 0..1_000_000 {
        let long: IpAddr = Ipv6Addr::from((0xfd01_0203 << 96) | u128::from(random.bits())).into();
        if slot(kernel, long) == place {
            return Ok([long, short]);
        }
    }
    anyhow::bail!("no address that begins with {short} has its slot")
}

/// What comes in one timer tick: a test run takes far less than one, and two never meet in one.
#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_lease_of_a_slot_is_nobody_elses() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    // What is known of the latest packets is one processor's.
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&options())?;
    let program = kernel.dataplane.program()?.fd()?.try_clone()?;
    let sharing = colliding(&kernel, &mut random)?;
    let of = |ipv4: bool, nth: usize| {
        let mut all = sharing.iter().filter(|a| a.is_ipv4() == ipv4);
        all.nth(nth).copied().context("two of each family")
    };
    let [long, short] = alike(&kernel, &mut random)?;
    let pairs = [
        [of(true, 0)?, of(true, 1)?],
        [of(false, 0)?, of(false, 1)?],
        [of(true, 0)?, of(false, 1)?],
        [of(false, 0)?, of(true, 1)?],
        [long, short],
    ];
    for [blocked, other] in pairs {
        block(&mut kernel, blocked, mono_ns()? + LONG_NS)?;
        kernel.run_many(&frame(blocked), 5)?;
        let mut frames = vec![frame(blocked); 9];
        frames.push(frame(other));
        let before = (kernel.counters()?, counted(&kernel, blocked)?);
        Play::load(&program, &frames)?.run(1000)?;
        let moved = difference(&kernel.counters()?, &before.0);
        let hits = counted(&kernel, blocked)?;
        let wanted = (before.1.0 + 900, before.1.1 + 900 * PLAYED as u64);
        ensure!(
            (moved.drop_exact, moved.pass) == (900, 100) && hits == wanted,
            "SECMESH_SEED={seed}: {blocked} blocked, {other} not: {}, {hits:?} not {wanted:?}",
            shown(&moved)
        );
        kernel.blocks.remove(&Prefix::host(blocked))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_cannot_be_parsed_is_malformed_also_between_packets_that_are_dropped_unasked() -> Result<()>
{
    pin(Pid::from_raw(0), 0)?;
    for source in sources() {
        let mut kernel = hot(source)?;
        let good = frame(source);
        for (name, other, blocked) in of_odd_length(&good, source.is_ipv4(), PLAYED) {
            let moved = kernel.play_among(&good, &other, 10)?;
            let wanted = if blocked { (1000, 0) } else { (900, 100) };
            ensure!(
                (moved.drop_exact, moved.drop_malformed) == wanted,
                "{source}, {name}: {}",
                shown(&moved)
            );
        }
    }
    Ok(())
}
