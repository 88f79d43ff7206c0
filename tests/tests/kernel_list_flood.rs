//! A flood of listed sources, in which lists are asked before the guard.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use nix::unistd::Pid;
use secmesh::{addr::Prefix, dataplane::Compiled};
use secmesh_common::{block::origin, list::FLOOD_SAMPLE};
use secmesh_tests::{
    chaos::mono_ns,
    frames::of_odd_length,
    kernel::{Kernel, LONG_NS, options, shown},
    lists::{dropped, frame, is_dropped, replace, span},
    livegen::{PLAYED, Play},
    netns::pin,
};

/// Packets of one source: enough for a flood, and for one that is counted.
const FLOOD: u32 = 1_000;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn in_a_flood_of_listed_sources_everybody_else_is_still_told_apart() -> Result<()> {
    tell_apart(false)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn and_where_some_range_is_no_network() -> Result<()> {
    tell_apart(true)
}

/// With a listed range of each family that has to be searched for, if `odd`.
fn tell_apart(odd: bool) -> Result<()> {
    // What is known of the latest packets is one processor's.
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&options())?;
    let base = 0x2001_0db8_u128 << 96;
    let mut wanted = Compiled {
        hosts4: vec![
            span(0xc633_6407, 0xc633_6407, 1),
            span(0xc633_6508, 0xc633_6508, 1),
        ],
        ranges4: vec![span(0xcb00_7100, 0xcb00_71ff, 2)],
        hosts6: vec![
            span(base | 7, base | 7, 1),
            span(base | (2 << 80) | 8, base | (2 << 80) | 8, 1),
        ],
        ranges6: vec![span(base | (1 << 80), base | ((2 << 80) - 1), 2)],
    };
    if odd {
        let first = base | (3 << 80) | 1;
        wanted.ranges4.push(span(0xcb00_7201, 0xcb00_7205, 2));
        wanted.ranges6.push(span(first, first | 4, 2));
    }
    replace(&mut kernel.lists, &wanted)?;
    for (host, both, ranged, searched, blocked, benign) in [
        (
            "198.51.100.7",
            "198.51.101.8",
            "203.0.113.9",
            "203.0.114.3",
            "192.0.2.1",
            "192.0.2.2",
        ),
        (
            "2001:db8::7",
            "2001:db8:2::8",
            "2001:db8:1::9",
            "2001:db8:3::4",
            "2001:db8:7::1",
            "2001:db8:7::2",
        ),
    ] {
        let of = |text: &str| -> Result<IpAddr> { Ok(text.parse()?) };
        for addr in [both, blocked] {
            let end_ns = mono_ns()? + LONG_NS;
            let source = Prefix::host(of(addr)?);
            kernel.blocks.put(&source, end_ns, 1, origin::OPERATOR)?;
        }
        for _ in 0..3 {
            let moved = kernel.run_many(&frame(of(host)?), FLOOD)?;
            ensure!(dropped(&moved, FLOOD)?, "{host}");
            // Until the one in 512 that goes the long way, which no list counts; so the next one goes it, too.
            let moved = kernel.run_many(&frame(of(both)?), FLOOD)?;
            ensure!(
                (1..u64::from(FLOOD_SAMPLE)).contains(&moved.drop_list)
                    && moved.drop_exact + moved.drop_list == u64::from(FLOOD),
                "{both}: {}",
                shown(&moved)
            );
            ensure!(is_dropped(&mut kernel, of(ranged)?)?, "{ranged}");
            ensure!(is_dropped(&mut kernel, of(searched)?)? == odd, "{searched}");
            ensure!(!is_dropped(&mut kernel, of(benign)?)?, "{benign}");
            let moved = kernel.run_many(&frame(of(blocked)?), 2)?;
            ensure!(moved.drop_exact == 2, "{blocked}: {}", shown(&moved));
            let moved = kernel.run_many(&frame(of(ranged)?), FLOOD)?;
            ensure!(dropped(&moved, FLOOD)?, "{ranged}");
            let moved = kernel.run_many(&frame(of(searched)?), FLOOD)?;
            ensure!(dropped(&moved, FLOOD)? == odd, "{searched}");
            let moved = kernel.run_many(&frame(of(benign)?), 20)?;
            ensure!(!dropped(&moved, 20)?, "{benign}");
            // It is over: a decision is what counts.
            let moved = kernel.run_many(&frame(of(both)?), FLOOD)?;
            ensure!(
                moved.drop_exact == u64::from(FLOOD),
                "{both}: {}",
                shown(&moved)
            );
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn hits_in_a_flood_are_as_many_as_packets() -> Result<()> {
    const TIMES: u32 = 10;
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&options())?;
    let base = 0x2001_0db8_u128 << 96;
    let wanted = Compiled {
        hosts4: vec![span(0xc633_6407, 0xc633_6407, 1)],
        ranges4: vec![
            span(0xcb00_7100, 0xcb00_71ff, 2),
            span(0xcb00_7201, 0xcb00_7205, 3),
        ],
        hosts6: vec![span(base | 7, base | 7, 1)],
        ranges6: vec![span(base | (1 << 80), base | ((2 << 80) - 1), 2)],
    };
    replace(&mut kernel.lists, &wanted)?;
    for source in [
        "198.51.100.7",
        "203.0.113.9",
        "203.0.114.3",
        "2001:db8::7",
        "2001:db8:1::9",
    ] {
        let source: IpAddr = source.parse()?;
        for _ in 0..TIMES {
            let moved = kernel.run_many(&frame(source), FLOOD)?;
            ensure!(dropped(&moved, FLOOD)?, "{source}");
        }
        let (sent, (_, hits)) = (
            u64::from(FLOOD * TIMES),
            kernel.lists.hits(source).unwrap_or_default(),
        );
        ensure!(
            hits.abs_diff(sent) <= u64::from(FLOOD_SAMPLE),
            "{source}: {hits} hits of {sent} packets"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_cannot_be_parsed_is_malformed_also_in_a_flood() -> Result<()> {
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&options())?;
    let base = 0x2001_0db8_u128 << 96;
    let wanted = Compiled {
        hosts4: vec![span(0xc633_6407, 0xc633_6407, 1)],
        hosts6: vec![span(base | 7, base | 7, 1)],
        ..Compiled::default()
    };
    replace(&mut kernel.lists, &wanted)?;
    let program = kernel.dataplane.program()?.fd()?.try_clone()?;
    for source in ["198.51.100.7", "2001:db8::7"] {
        let source: IpAddr = source.parse()?;
        let good = frame(source);
        for (name, other, listed) in of_odd_length(&good, source.is_ipv4(), PLAYED) {
            Play::load(&program, std::slice::from_ref(&good))?.run(FLOOD)?;
            let moved = kernel.play_among(&good, &other, 20)?;
            let wanted = if listed { (1000, 0) } else { (950, 50) };
            ensure!(
                (moved.drop_list, moved.drop_malformed) == wanted,
                "{source}, {name}: {}",
                shown(&moved)
            );
        }
    }
    Ok(())
}
