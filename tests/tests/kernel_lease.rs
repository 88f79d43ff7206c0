//! Leases in the kernel: whom somebody blocks in the middle of his transfer is out with the next packet, and of a flow the
//! same is recorded as on the long way.

use std::{
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
    block::origin,
    config::features,
    counters::Counters,
    flow::{FINE_GAPS, FlowSlot, Way},
    limit::{Limit, SourceLimit},
    packet::{PROTO_TCP, PROTO_UDP},
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
#[derive(Debug, Clone, Copy)]
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

fn unblock(kernel: &mut Kernel, ipv6: bool) -> Result<()> {
    let source = if ipv6 {
        "2001:db8:1::1"
    } else {
        "198.51.100.1"
    };
    kernel.blocks.remove(&source.parse()?)?;
    replace(&mut kernel.lists, &Compiled::default())?;
    Ok(())
}

/// Blocks the source of `frame` while that is played on another processor, again and again; what still passed once it was
/// blocked.
fn block_while_it_sends(
    kernel: &mut Kernel,
    ipv6: bool,
    frame: &[u8],
    said: Said,
) -> Result<Vec<u64>> {
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
        let mut blocked = || -> Result<Vec<u64>> {
            pin(Pid::from_raw(0), 1)?;
            let mut late = Vec::new();
            for _ in 0..5 {
                let passed = |kernel: &Kernel| anyhow::Ok(kernel.counters()?.pass);
                let before = passed(kernel)?;
                wait(|| Ok(passed(kernel)? > before + 10_000))?;
                block(kernel, ipv6, said)?;
                let then = kernel.counters()?;
                wait(|| Ok(dropped(&kernel.counters()?) > dropped(&then) + 10_000))?;
                late.push(passed(kernel)? - then.pass);
                unblock(kernel, ipv6)?;
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

fn wait(mut until: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !until()? {
        ensure!(begun.elapsed() < Duration::from_secs(20), "never");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn who_is_blocked_in_the_middle_of_a_transfer_is_out_with_the_next_packet() -> Result<()> {
    let mut kernel = kernel(&options())?;
    for ipv6 in [false, true] {
        for sent in [ACK, Sent::Udp(443)] {
            let frame = frame(ipv6, false, sent);
            kernel.run_many(&frame, MANY)?;
            let known = slot(&mut kernel, &frame)?;
            ensure!(known.lease_tcp | known.lease_udp != 0, "{known:?}");
            for said in [Said::Decision, Said::Host, Said::Range] {
                let late = block_while_it_sends(&mut kernel, ipv6, &frame, said)?;
                // The one that was asked about when it was written.
                ensure!(
                    late.iter().all(|packets| *packets <= 2),
                    "{ipv6}, {sent:?}, {said:?}: {late:?} packets passed"
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
