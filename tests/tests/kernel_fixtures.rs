//! Every fixture through the loaded program: verdict, counters, and the frame left as it was.

use anyhow::{Context as _, Result, bail, ensure};
use secmesh::api::types::Origin;
use secmesh::clock::{Clock as _, SystemClock};
use secmesh::dataplane::{Mode, TableError};
use secmesh::respond::{Blocks, Claim, Now};
use secmesh_common::{
    block::origin,
    packet::{Captured, Malformed, Packet, parse_ethernet},
};
use secmesh_tests::{
    fixtures,
    frames::{IPV4, SOURCE4, cut, ethernet, ipv4, ipv4_from, protocol, tcp, udp},
    kernel::{Kernel, LONG_NS, MIN_FRAME, XDP_DROP, XDP_PASS, options, shown},
    verdicts::{Blocked, block, block_until, compare, every_fixture, kernel_with, now_ns, prefix},
};

#[test]
fn the_parser_makes_of_every_fixture_what_is_written_beside_it() -> Result<()> {
    for fixture in fixtures::all() {
        let parsed = parse_ethernet(&Captured::whole(&fixture.frame)).map(Packet::unplaced);
        ensure!(
            parsed == fixture.expected,
            "{}: {parsed:?} instead of {:?}",
            fixture.name,
            fixture.expected
        );
    }
    Ok(())
}

#[test]
fn the_fixtures_have_names_of_their_own_and_every_reason_occurs() -> Result<()> {
    let all = fixtures::all();
    let mut names: Vec<&str> = all.iter().map(|f| f.name).collect();
    names.sort_unstable();
    names.dedup();
    ensure!(names.len() == all.len(), "two fixtures of one name");
    for reason in [
        Malformed::Vlan,
        Malformed::Ipv4Header,
        Malformed::IpVersion,
        Malformed::IpLength,
        Malformed::Ipv6Header,
        Malformed::ExtensionHeaders,
        Malformed::Tcp,
        Malformed::Udp,
        Malformed::Icmp,
    ] {
        ensure!(
            all.iter().any(|f| f.expected == Err(reason)),
            "no fixture is malformed for {reason:?}"
        );
    }
    // The one that no test run can send.
    let parsed = parse_ethernet(&Captured::whole(&[0; MIN_FRAME - 1]));
    ensure!(parsed == Err(Malformed::Ethernet), "{parsed:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn nothing_blocked_means_that_only_malformed_packets_are_dropped() -> Result<()> {
    every_fixture(Blocked::No, Mode::Enforce)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_exact_block_drops_every_shape_of_packet_from_its_source() -> Result<()> {
    every_fixture(Blocked::Exact, Mode::Enforce)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_prefix_block_drops_every_shape_of_packet_from_its_sources() -> Result<()> {
    every_fixture(Blocked::Prefix, Mode::Enforce)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_list_drops_every_shape_of_packet_from_its_sources_and_networks() -> Result<()> {
    every_fixture(Blocked::Listed, Mode::Enforce)?;
    every_fixture(Blocked::ListedNetwork, Mode::Enforce)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_allowlist_wins_over_a_block_and_not_over_malformation() -> Result<()> {
    every_fixture(Blocked::Allowlisted, Mode::Enforce)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn monitor_mode_passes_everything_and_counts_what_it_would_have_dropped() -> Result<()> {
    for blocked in [
        Blocked::No,
        Blocked::Exact,
        Blocked::Prefix,
        Blocked::Allowlisted,
        Blocked::Listed,
        Blocked::ListedNetwork,
    ] {
        every_fixture(blocked, Mode::Monitor)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_mode_changes_between_two_packets() -> Result<()> {
    let mut kernel = kernel_with(Blocked::Exact, Mode::Monitor)?;
    let frame = syn();
    for mode in [Mode::Monitor, Mode::Enforce, Mode::Monitor, Mode::Enforce] {
        kernel.dataplane.set_mode(mode)?;
        let parsed = parse_ethernet(&Captured::whole(&frame));
        compare(&mut kernel, "a SYN", &frame, parsed, Blocked::Exact, mode)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn enforcing_for_a_while_ends_by_itself() -> Result<()> {
    let mut kernel = kernel_with(Blocked::Exact, Mode::Monitor)?;
    let frame = syn();
    let expect = |kernel: &mut Kernel, until_ns, mode| {
        kernel.dataplane.set_mode_until(Mode::Enforce, until_ns)?;
        let parsed = parse_ethernet(&Captured::whole(&frame));
        compare(kernel, "a SYN", &frame, parsed, Blocked::Exact, mode)
    };
    expect(&mut kernel, now_ns()? + LONG_NS, Mode::Enforce)?;
    expect(&mut kernel, now_ns()? - 1_000_000_000, Mode::Monitor)?;
    expect(&mut kernel, 0, Mode::Enforce)
}

/// Cuts every fixture at every length, as it comes and with its IP length made to agree.
fn every_truncation(blocked: Blocked) -> Result<usize> {
    let mut kernel = kernel_with(blocked, Mode::Enforce)?;
    let mut sent = 0;
    for fixture in fixtures::all() {
        // Beyond the longest chain of headers every length is like the next.
        let longest = fixture.frame.len().min(1280);
        for length in MIN_FRAME..longest {
            let plain: Vec<u8> = fixture.frame.iter().take(length).copied().collect();
            let fitted = cut(&fixture.frame, length, fixture.network_at);
            for frame in [plain, fitted] {
                let parsed = parse_ethernet(&Captured::whole(&frame));
                let name = format!("{} cut to {length} bytes", fixture.name);
                compare(&mut kernel, &name, &frame, parsed, blocked, Mode::Enforce)?;
                sent += 1;
            }
        }
    }
    Ok(sent)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn kernel_and_user_space_agree_on_every_fixture_cut_at_every_length() -> Result<()> {
    let sent = every_truncation(Blocked::No)?
        + every_truncation(Blocked::Exact)?
        + every_truncation(Blocked::Listed)?;
    println!("{sent} truncated frames");
    ensure!(sent > 10_000, "only {sent} frames");
    Ok(())
}

#[test]
fn cutting_shows_user_space_every_reason_for_malformation_but_the_first() -> Result<()> {
    // Guards the test above: fitted truncations must get past the IP length check.
    let mut seen = std::collections::HashSet::new();
    for fixture in fixtures::all().iter().filter(|f| f.expected.is_ok()) {
        for length in MIN_FRAME..fixture.frame.len().min(1280) {
            let frame = cut(&fixture.frame, length, fixture.network_at);
            if let Err(reason) = parse_ethernet(&Captured::whole(&frame)) {
                seen.insert(reason);
            }
        }
    }
    for reason in [
        Malformed::Vlan,
        Malformed::Ipv4Header,
        Malformed::IpLength,
        Malformed::Ipv6Header,
        Malformed::ExtensionHeaders,
        Malformed::Tcp,
        Malformed::Udp,
        Malformed::Icmp,
    ] {
        ensure!(seen.contains(&reason), "{reason:?} never came up");
    }
    Ok(())
}

fn syn() -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(&[], 0, protocol::TCP, &tcp(2)))
}

fn datagram_from(source: [u8; 4]) -> Vec<u8> {
    let packet = ipv4_from(source, &[], 0, protocol::UDP, &udp(b"x"));
    ethernet(&[], IPV4, &packet)
}

fn is_dropped(kernel: &mut Kernel, source: [u8; 4]) -> Result<bool> {
    match kernel.run(&datagram_from(source))?.action {
        XDP_DROP => Ok(true),
        XDP_PASS => Ok(false),
        other => bail!("action {other}"),
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_block_past_its_end_blocks_nothing_and_is_counted() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    for what in ["198.51.100.7", "198.51.100.0/24"] {
        block_until(&mut kernel, what, now_ns()?.saturating_sub(1_000_000_000))?;
        let outcome = kernel.run(&syn())?;
        ensure!(outcome.action == XDP_PASS, "{what} still blocks");
        let entry = kernel.blocks.get(&prefix(what)?).context("the entry")?;
        ensure!(entry.hits == 0, "{what}: {entry:?}");
        kernel.blocks.remove(&prefix(what)?)?;
        ensure!(
            outcome.moved.expired_block == 1,
            "{}",
            shown(&outcome.moved)
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_block_ends_by_itself_while_packets_come() -> Result<()> {
    // How far ahead the program's clock may be: a timer interrupt that was late as its ticks were measured.
    const LATE_TICK_NS: u64 = 20_000_000;
    let mut kernel = Kernel::load(&options())?;
    // On a busy machine the end may have come before the first packet.
    for _ in 0..20 {
        let end_ns = now_ns()? + 60_000_000;
        block_until(&mut kernel, "198.51.100.7", end_ns)?;
        let mut dropped = 0_u64;
        loop {
            let before_ns = now_ns()?;
            if !is_dropped(&mut kernel, SOURCE4)? {
                break;
            }
            ensure!(before_ns < end_ns + 40_000_000, "blocked after its end");
            dropped += 1;
        }
        ensure!(
            now_ns()? + LATE_TICK_NS >= end_ns,
            "not blocked until its end"
        );
        if dropped > 0 {
            return Ok(());
        }
    }
    bail!("not blocked at first")
}

/// Three packets meet a block; whether the times on its entry are right by the clock of whoever looks.
fn is_on_time(what: &str) -> Result<Result<(), String>> {
    let mut kernel = Kernel::load(&options())?;
    // The program counts time in timer ticks: it may be some of them behind, and no more than a late
    // timer interrupt ahead.
    let before = now_ns()? - 20_000_000;
    block(&mut kernel, what)?;
    let frame = syn();
    kernel.run(&frame)?;
    std::thread::sleep(std::time::Duration::from_millis(30));
    kernel.run(&frame)?;
    kernel.run(&frame)?;
    let entry = kernel.blocks.get(&prefix(what)?).context("the entry")?;
    let after = now_ns()? + 1_000_000;
    ensure!(entry.hits == 3, "{what}: {entry:?}");
    ensure!(entry.bytes == 3 * frame.len() as u64, "{what}: {entry:?}");
    ensure!(
        entry.rule == 7 && entry.flags == origin::OPERATOR,
        "{what}: {entry:?}"
    );
    // A longer block of the same source keeps what was counted.
    block(&mut kernel, what)?;
    let kept = kernel.blocks.get(&prefix(what)?).context("the entry")?;
    ensure!(kept.hits == 3, "{what}: {kept:?}");
    let on_time = before <= entry.first_hit_ns
        && entry.first_hit_ns + 10_000_000 < entry.last_hit_ns
        && entry.last_hit_ns <= after;
    let why = || format!("{what}: {entry:?}, between {before} and {after}");
    Ok(on_time.then_some(()).ok_or_else(why))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn hits_bytes_first_and_last_time_are_counted_on_the_entry() -> Result<()> {
    for what in ["198.51.100.7", "198.51.100.0/24"] {
        // The ticks are measured as the program is loaded. On a busy machine their interrupts may be late by more
        // than a tick just then; not each time.
        let mut wrong = Vec::new();
        while let Err(why) = is_on_time(what)? {
            wrong.push(why);
            ensure!(wrong.len() < 5, "{}", wrong.join("\n"));
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_prefix_of_length_zero_blocks_its_family_and_not_the_other() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    block(&mut kernel, "0.0.0.0/0")?;
    for source in [[0, 0, 0, 1], [127, 0, 0, 1], [198, 51, 100, 7], [255; 4]] {
        ensure!(is_dropped(&mut kernel, source)?, "{source:?} passed");
    }
    let v6 = fixtures::all()
        .into_iter()
        .find(|f| f.name == "a SYN over IPv6")
        .context("the fixture")?;
    ensure!(
        kernel.run(&v6.frame)?.action == XDP_PASS,
        "IPv6 was dropped"
    );
    kernel.blocks.remove(&prefix("0.0.0.0/0")?)?;
    block(&mut kernel, "::/0")?;
    ensure!(kernel.run(&v6.frame)?.action == XDP_DROP, "IPv6 passed");
    ensure!(!is_dropped(&mut kernel, SOURCE4)?, "IPv4 was dropped");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_prefix_blocks_its_first_and_last_address_and_no_neighbour() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    block(&mut kernel, "198.51.100.64/26")?;
    for (last, dropped) in [
        (63, false),
        (64, true),
        (100, true),
        (127, true),
        (128, false),
    ] {
        let source = [198, 51, 100, last];
        ensure!(is_dropped(&mut kernel, source)? == dropped, "{source:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_expired_exact_entry_does_not_hide_the_live_prefix_around_it() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    block_until(&mut kernel, "198.51.100.7", 1)?;
    block(&mut kernel, "198.51.100.0/24")?;
    let outcome = kernel.run(&syn())?;
    ensure!(outcome.action == XDP_DROP, "{}", shown(&outcome.moved));
    ensure!(outcome.moved.drop_prefix == 1, "{}", shown(&outcome.moved));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_live_exact_entry_drops_where_the_prefix_around_it_has_ended() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    block(&mut kernel, "198.51.100.7")?;
    block_until(&mut kernel, "198.51.100.0/24", 1)?;
    ensure!(
        is_dropped(&mut kernel, SOURCE4)?,
        "the exact block did not drop"
    );
    ensure!(
        !is_dropped(&mut kernel, [198, 51, 100, 8])?,
        "the ended prefix dropped"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_ended_network_opens_no_hole_in_the_one_around_it_even_if_the_agent_is_gone() -> Result<()> {
    // A trie answers with its longest match only, so the controller keeps the inner entry as long as the
    // outer one.
    let mut kernel = Kernel::load(&options())?;
    let mut blocks = Blocks::default();
    let clock = SystemClock;
    let now = Now {
        unix_us: clock.unix_us(),
        mono_ns: clock.mono_ns(),
    };
    let claim = |seconds: u64| Claim {
        origin: Origin::Operator,
        expires_unix_us: now.unix_us + seconds * 1_000_000,
        rule: 1,
    };
    let (outer, inner) = (prefix("198.51.0.0/16")?, prefix("198.51.100.0/24")?);
    kernel.dataplane.set_sizes(2, 0, 0)?;
    blocks.claim(
        &mut kernel.blocks,
        now,
        outer,
        "outer".to_owned(),
        claim(3600),
    )?;
    blocks.claim(&mut kernel.blocks, now, inner, "inner".to_owned(), claim(1))?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    ensure!(
        is_dropped(&mut kernel, SOURCE4)?,
        "198.51.0.0/16 is in force, and an ended block of 198.51.100.0/24 let its sources through"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_full_map_refuses_the_next_block_and_keeps_the_others() -> Result<()> {
    let mut small = options();
    small.max_blocks = 8;
    small.max_prefixes = 4;
    for (exact, capacity, map) in [
        (true, 8, "BLOCK4"),
        (true, 8, "BLOCK6"),
        (false, 4, "PREFIX4"),
        (false, 4, "PREFIX6"),
    ] {
        let mut kernel = Kernel::load(&small)?;
        let name = |n: u32| match (map.ends_with('4'), exact) {
            (true, true) => format!("10.0.0.{n}"),
            (true, false) => format!("10.0.{n}.0/24"),
            (false, true) => format!("2001:db8::{n}"),
            (false, false) => format!("2001:db8:{n}::/48"),
        };
        for n in 0..capacity {
            block(&mut kernel, &name(n))?;
        }
        let refused = kernel
            .blocks
            .put(&prefix(&name(capacity))?, u64::MAX, 1, origin::MESH);
        let Err(TableError::Full { map: named, .. }) = refused else {
            bail!("{map}: {refused:?}");
        };
        ensure!(named == map, "{named} instead of {map}");
        // What is there can still be prolonged, and a place that comes free is usable again.
        block(&mut kernel, &name(0))?;
        kernel.blocks.remove(&prefix(&name(1))?)?;
        block(&mut kernel, &name(capacity))?;
        ensure!(
            kernel.blocks.entries().len() == usize::try_from(capacity)?,
            "{map}: {:?}",
            kernel.blocks.entries()
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_removed_block_lets_the_next_packet_pass() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    for what in ["198.51.100.7", "198.51.100.0/24"] {
        block(&mut kernel, what)?;
        ensure!(is_dropped(&mut kernel, SOURCE4)?, "{what} does not drop");
        kernel.blocks.remove(&prefix(what)?)?;
        ensure!(
            !is_dropped(&mut kernel, SOURCE4)?,
            "{what} drops when removed"
        );
        // Removing what is not there is no error.
        kernel.blocks.remove(&prefix(what)?)?;
    }
    Ok(())
}
