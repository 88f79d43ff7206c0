//! Leases in the kernel: whom somebody blocks in the middle of his transfer is out with the next packet, and of a flow the
//! same is recorded as on the long way.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions};
use nix::unistd::Pid;
use secmesh::{
    addr::Prefix,
    config::Config,
    dataplane::{Compiled, FlowOptions, LoadOptions, Protection},
};
use secmesh_common::{
    account::place_of,
    block::origin,
    config::features,
    counters::Counters,
    flow::{FINE_GAPS, FlowSlot, Way},
    limit::{Limit, SourceLimit},
    packet::{Family, PROTO_TCP, PROTO_UDP},
    reason::Reason,
};
use secmesh_tests::{
    chaos::mono_ns,
    frames::patched,
    kernel::{Kernel, LONG_NS, difference, options, shown, without_events},
    lists::{replace, span},
    livegen::Play,
    netns::pin,
    transfer::{Sent, besides, frame, slot},
};

const ACK: Sent = Sent::Tcp(0x10);
/// Packets at a time: enough for a source to be known, and for a flow to be out of its finely measured beginning.
const MANY: u32 = 300;
const _: () = assert!(MANY > 2 * FINE_GAPS as u32);

/// A kernel whose every packet comes to one processor: what is known of the latest ones is that one's.
fn kernel(options: &LoadOptions) -> Result<Kernel> {
    pin(Pid::from_raw(0), 0)?;
    Kernel::load(options)
}

/// Who says that the source is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Decision,
    Host,
    Range,
}

fn block(kernel: &mut Kernel, ipv6: bool, said: Said) -> Result<()> {
    let source: Prefix = if ipv6 {
        "2001:db8:1::1".parse()?
    } else {
        "198.51.100.1".parse()?
    };
    let (v4, v6) = (0xc633_6401, 0x2001_0db8_0001_u128 << 80 | 1);
    let mut lists = Compiled::default();
    match said {
        Said::Decision => {
            let end_ns = mono_ns()? + LONG_NS;
            return Ok(kernel.blocks.put(&source, end_ns, 1, origin::OPERATOR)?);
        }
        Said::Host if ipv6 => lists.hosts6.push(span(v6, v6, 1)),
        Said::Host => lists.hosts4.push(span(v4, v4, 1)),
        Said::Range if ipv6 => lists.ranges6.push(span(v6 - 1, v6 + 14, 1)),
        Said::Range => lists.ranges4.push(span(v4 - 1, v4 + 14, 1)),
    }
    replace(&mut kernel.lists, &lists)?;
    Ok(())
}

/// What ends a block.
#[derive(Debug, Clone, Copy)]
enum Ended {
    /// Whatever says that the source is blocked does so no more.
    Removed,
    /// The allowlist names it.
    Allowed,
}

fn unblock(kernel: &mut Kernel, ipv6: bool, ended: Ended) -> Result<()> {
    let source: Prefix = if ipv6 {
        "2001:db8:1::1"
    } else {
        "198.51.100.1"
    }
    .parse()?;
    match ended {
        Ended::Removed => {
            kernel.blocks.remove(&source)?;
            replace(&mut kernel.lists, &Compiled::default())?;
        }
        Ended::Allowed => kernel.allows.replace(&[source])?,
    }
    Ok(())
}

/// What a change came too late for: packets that passed though their source was blocked already, and packets that were
/// dropped though it was free.
#[derive(Debug, Default)]
struct Late {
    passed: Vec<u64>,
    dropped: Vec<u64>,
}

/// Blocks the source of `frame` while that is played on another processor and ends the block, again and again.
fn block_while_it_sends(
    kernel: &mut Kernel,
    ipv6: bool,
    frame: &[u8],
    said: Said,
    ended: Ended,
) -> Result<Late> {
    let program = kernel.dataplane.program()?.fd()?.try_clone()?;
    let sending = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let played = scope.spawn(|| -> Result<()> {
            pin(Pid::from_raw(0), 0)?;
            let mut play = Play::load(&program, &[frame.to_vec()])?;
            while sending.load(Ordering::Relaxed) {
                play.run(5_000_000)?;
            }
            Ok(())
        });
        let mut blocked = || -> Result<Late> {
            pin(Pid::from_raw(0), 1)?;
            let mut late = Late::default();
            // With five, a configuration that becomes visible after its epoch was met in one run of three.
            let often = if said == Said::Decision { 40 } else { 5 };
            for _ in 0..often {
                let before = passed(&kernel.counters()?);
                wait(|| Ok(passed(&kernel.counters()?) > before + 10_000))?;
                block(kernel, ipv6, said)?;
                let then = kernel.counters()?;
                wait(|| Ok(dropped(&kernel.counters()?) > dropped(&then) + 10_000))?;
                late.passed
                    .push(passed(&kernel.counters()?) - passed(&then));
                unblock(kernel, ipv6, ended)?;
                let then = kernel.counters()?;
                wait(|| Ok(passed(&kernel.counters()?) > passed(&then) + 10_000))?;
                late.dropped
                    .push(dropped(&kernel.counters()?) - dropped(&then));
                unblock(kernel, ipv6, Ended::Removed)?;
                kernel.allows.replace(&[])?;
            }
            Ok(late)
        };
        let blocked = blocked();
        sending.store(false, Ordering::Relaxed);
        played
            .join()
            .map_err(|_| anyhow::anyhow!("the player panicked"))??;
        blocked
    })
}

fn dropped(counters: &Counters) -> u64 {
    counters.drop_exact + counters.drop_list
}

fn passed(counters: &Counters) -> u64 {
    counters.pass + counters.pass_allowlist
}

fn wait(mut until: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !until()? {
        ensure!(begun.elapsed() < Duration::from_secs(20), "never");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn who_is_blocked_in_the_middle_of_a_transfer_is_out_with_the_next_packet_and_in_again_so()
-> Result<()> {
    let mut kernel = kernel(&options())?;
    for ipv6 in [false, true] {
        for sent in [ACK, Sent::Udp(443)] {
            let frame = frame(ipv6, false, sent);
            kernel.run_many(&frame, MANY)?;
            let known = slot(&mut kernel, &frame)?;
            ensure!(known.lease_tcp | known.lease_udp != 0, "{known:?}");
            for (said, ended) in [
                (Said::Decision, Ended::Removed),
                (Said::Decision, Ended::Allowed),
                (Said::Host, Ended::Removed),
                (Said::Range, Ended::Removed),
            ] {
                let late = block_while_it_sends(&mut kernel, ipv6, &frame, said, ended)?;
                // The one that was asked about when it was written.
                ensure!(
                    late.passed
                        .iter()
                        .chain(&late.dropped)
                        .all(|packets| *packets <= 2),
                    "{ipv6}, {sent:?}, {said:?}, {ended:?}: {late:?}"
                );
            }
        }
    }
    Ok(())
}

/// The frame with so many bytes more in it.
fn longer(frame: &[u8], ipv6: bool, l3: usize, extra: u16) -> Vec<u8> {
    let (length_at, l4) = if ipv6 {
        (l3 + 4, l3 + 40)
    } else {
        (l3 + 2, l3 + 20)
    };
    let mut frame = frame.to_vec();
    frame.resize(frame.len() + usize::from(extra), 0x61);
    let udp = frame.get(if ipv6 { l3 + 6 } else { l3 + 9 }) == Some(&PROTO_UDP);
    for at in [Some(length_at), udp.then_some(l4 + 4)]
        .into_iter()
        .flatten()
    {
        let word = [frame.get(at), frame.get(at + 1)].map(|byte| *byte.unwrap_or(&0));
        let word = u16::from_be_bytes(word) + extra;
        frame = patched(frame, at, &word.to_be_bytes());
    }
    frame
}

/// The same from the other side.
fn answer(frame: &[u8], ipv6: bool, l3: usize) -> Vec<u8> {
    let (from, size, l4) = if ipv6 {
        (l3 + 8, 16, l3 + 40)
    } else {
        (l3 + 12, 4, l3 + 20)
    };
    let mut back = frame.to_vec();
    for (at, size) in [(from, size), (l4, 2)] {
        let both = frame.get(at..at + 2 * size).unwrap_or_default();
        let (one, other) = both.split_at(size);
        back = patched(patched(back, at, other), at + size, one);
    }
    back
}

/// Sends a conversation; what its flow's slot has of both sides then.
fn converse(kernel: &mut Kernel, ipv6: bool, tagged: bool, tcp: bool) -> Result<[Way; 2]> {
    let l3 = if tagged { 18 } else { 14 };
    let of = |flags: u8| {
        frame(
            ipv6,
            tagged,
            if tcp {
                Sent::Tcp(flags)
            } else {
                Sent::Udp(443)
            },
        )
    };
    let back = |kernel: &mut Kernel, flags: u8, extra: u16| -> Result<()> {
        let there = longer(&of(flags), ipv6, l3, extra);
        let frame = answer(&there, ipv6, l3);
        kernel
            .dataplane
            .egress_program()?
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                ..TestRunOptions::new()
            })?;
        Ok(())
    };
    if tcp {
        kernel.run_many(&of(0x02), 1)?;
        back(kernel, 0x12, 0)?;
    }
    for extra in [0, 100, 1000] {
        kernel.run_many(&longer(&of(0x10), ipv6, l3, extra), MANY)?;
        back(kernel, 0x10, extra / 2)?;
    }
    for (flags, extra) in [(0x18, 100), (0x10, 1300), (0x10, 0), (0x18, 1300)] {
        kernel.run_many(&longer(&of(flags), ipv6, l3, extra), MANY)?;
        back(kernel, 0x10, 0)?;
        kernel.run_many(&longer(&of(flags), ipv6, l3, extra / 2), 3)?;
    }
    // Of the same source, in between.
    kernel.run_many(&frame(ipv6, tagged, Sent::Udp(9)), 3)?;
    kernel.run_many(&of(0x10), MANY)?;
    let known = slot(kernel, &of(0x10))?;
    let at = if tcp { known.flow_tcp } else { known.flow_udp };
    let proto = if tcp { PROTO_TCP } else { PROTO_UDP };
    let flows = kernel.map::<FlowSlot>("FLOW")?;
    let last = if ipv6 { 3 } else { 0 };
    let own = |flow: &FlowSlot| {
        let [.., end] = flow.src.get(last).copied().unwrap_or(0).to_ne_bytes();
        (flow.proto, flow.sport, flow.dport, end) == (proto, 50_000, 443, u8::from(tagged) + 1)
    };
    let flow = flows.iter().flatten().find(own).context("no flow")?;
    if !tagged {
        ensure!(
            own(&flows.get(&at, 0)?),
            "its place is not known: {known:?}"
        );
    }
    Ok(flow.ways)
}

/// What of it does not depend on the clock, without the tag.
fn counted(way: &Way, tag: u16) -> [u64; 13] {
    [
        way.bytes - u64::from(tag) * u64::from(way.packets),
        way.payload,
        way.payload_sq,
        way.packets.into(),
        way.data_packets.into(),
        way.acks.into(),
        way.pushes.into(),
        (way.len_min - tag).into(),
        (way.len_max - tag).into(),
        way.payload_min.into(),
        way.payload_max.into(),
        way.payload_first.into(),
        way.syns.into(),
    ]
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_flow_is_recorded_as_on_the_long_way() -> Result<()> {
    let options = LoadOptions {
        flows: FlowOptions {
            slots: 1024,
            idle: Duration::from_mins(1),
            active: Duration::from_mins(10),
            by_filter: false,
        },
        ..options()
    };
    for ipv6 in [false, true] {
        for tcp in [false, true] {
            let mut kernel = kernel(&options)?;
            let short = converse(&mut kernel, ipv6, false, tcp)?;
            let long = converse(&mut kernel, ipv6, true, tcp)?;
            ensure!(
                short[0].packets > 8 * MANY && short[1].packets > 5,
                "{short:?}"
            );
            for (short, long) in short.iter().zip(&long) {
                ensure!(
                    counted(short, 0) == counted(long, 4),
                    "{ipv6} {tcp}: {short:?} and with a tag {long:?}"
                );
            }
        }
    }
    Ok(())
}

/// What the counters move by while a known source sends what it sends besides between the packets of its transfers.
fn between(ipv6: bool, tagged: bool) -> Result<Vec<(&'static str, Counters)>> {
    let mut kernel = kernel(&options())?;
    let defaults = Config::default().protection(false);
    // There are no connections here that segments could belong to, and what is over a limit depends on the clock.
    let easy = Limit::per_second(1_000_000_000, 1_000_000_000, 1);
    kernel.dataplane.set_protection(&Protection {
        checks: Reason::ALL
            .iter()
            .fold(0, |mask, reason| mask | reason.bit()),
        source_limits: [easy; SourceLimit::COUNT],
        fragment_limit: easy,
        amplified_limit: easy,
        stray_limit: easy,
        strays_limit: easy,
        features: defaults.features | features::ATTACKS | features::SOURCE_LIMITS,
        ..defaults
    })?;
    let program = kernel.dataplane.program()?.fd()?.try_clone()?;
    let mut all = Vec::new();
    for (name, other) in besides(ipv6, tagged) {
        let before = kernel.counters()?;
        for known in [ACK, Sent::Udp(443)] {
            let mut frames = vec![frame(ipv6, tagged, known); 15];
            frames.push(other.clone());
            Play::load(&program, &frames)?.run(16 * MANY)?;
        }
        let moved = difference(&kernel.counters()?, &before);
        all.push((name, without_events(moved)));
    }
    Ok(all)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_else_comes_between_packets_with_leases_is_judged_as_on_the_long_way() -> Result<()> {
    for ipv6 in [false, true] {
        let [short, long] = [false, true].map(|tagged| between(ipv6, tagged));
        for ((name, short), (_, long)) in short?.iter().zip(&long?) {
            ensure!(
                short == long && short.pass >= u64::from(2 * 15 * MANY),
                "{name}: {} and with a tag {}",
                shown(short),
                shown(long)
            );
        }
    }
    Ok(())
}

/// Two sources that are accounted in the same slot first: a free address, and one that is to be blocked.
fn sharing() -> Result<[Ipv4Addr; 2]> {
    let seed = options().seed;
    let first = |addr: Ipv4Addr| {
        let words = [u32::from_ne_bytes(addr.octets()), 0, 0, 0];
        place_of(&words, Family::V4, seed).first
    };
    let free = Ipv4Addr::new(198, 51, 100, 1);
    let place = first(free);
    (0x0a00_0001..0x0b00_0000)
        .map(Ipv4Addr::from_bits)
        .find(|addr| first(*addr) == place)
        .map(|blocked| [free, blocked])
        .context("none of sixteen million addresses shares its slot")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_lease_of_a_source_is_not_that_of_another_with_the_same_slot() -> Result<()> {
    let [free, blocked] = sharing()?;
    let mut kernel = kernel(&options())?;
    let end_ns = mono_ns()? + LONG_NS;
    kernel
        .blocks
        .put(&Prefix::host(blocked.into()), end_ns, 1, origin::OPERATOR)?;
    let program = kernel.dataplane.program()?.fd()?.try_clone()?;
    for sent in [ACK, Sent::Udp(443)] {
        let from = |source: Ipv4Addr| patched(frame(false, false, sent), 14 + 12, &source.octets());
        kernel.run_many(&from(free), MANY)?;
        let mut frames = vec![from(free); 9];
        frames.push(from(blocked));
        let before = kernel.counters()?;
        Play::load(&program, &frames)?.run(1000)?;
        let moved = difference(&kernel.counters()?, &before);
        ensure!(
            (moved.pass, moved.drop_exact) == (900, 100),
            "{sent:?}: {free} free, {blocked} blocked: {}",
            shown(&moved)
        );
    }
    Ok(())
}
