//! Checks and limits through the loaded program: what goes, under which name, and what stays.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions};
use secmesh::{
    config::Config,
    dataplane::{LoadOptions, Mode, PortTable, Protection},
};
use secmesh_common::{
    capture::MAX_SNAP, config::features, counters::Counter, reason::Reason, sanity::STRAYS,
};
use secmesh_tests::{
    frames::{
        IPV4, IPV6, SOURCE4, ethernet, fragment_header, icmp, ipv4, ipv4_from, ipv6, patched,
        protocol, tcp, tcp_to, udp_to,
    },
    kernel::{Kernel, XDP_DROP, XDP_PASS, isolated, options, shown, tool},
};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// The protection that this configuration means.
fn protection(text: &str) -> Result<(Protection, Config)> {
    let config = Config::parse(text, "test")?;
    Ok((config.protection(false), config))
}

fn load(text: &str) -> Result<(Kernel, PortTable)> {
    let (protection, config) = protection(text)?;
    let mut kernel = Kernel::load(&LoadOptions {
        protection,
        ..options()
    })?;
    let mut ports = kernel.dataplane.take_ports()?;
    ports.replace(&config.port_rules(4747))?;
    Ok((kernel, ports))
}

fn v4(proto: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(&[], 0, proto, payload))
}

fn broadcast(frame: Vec<u8>) -> Vec<u8> {
    patched(frame, 0, &[0xff; 6])
}

fn from(source: [u8; 4], proto: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4_from(source, &[], 0, proto, payload))
}

/// The first eight bytes of a header.
fn half(header: &[u8]) -> Vec<u8> {
    header.iter().take(8).copied().collect()
}

/// What must go, and what is like it and must stay.
fn cases() -> Vec<(&'static str, Reason, Vec<u8>, Vec<u8>)> {
    let fragment =
        |field, payload: &[u8]| ethernet(&[], IPV4, &ipv4(&[], field, protocol::TCP, payload));
    let fragment6 = |offset, more, payload: &[u8]| {
        let mut header = fragment_header(protocol::TCP, offset, more);
        header.extend_from_slice(payload);
        ethernet(&[], IPV6, &ipv6(protocol::FRAGMENT, &header))
    };
    let to_self = |frame: Vec<u8>| patched(frame, 26, &[192, 0, 2, 1]);
    let syn = v4(protocol::TCP, &tcp(SYN));
    let smurf6 = |group: bool| {
        let frame = ethernet(&[], IPV6, &ipv6(protocol::ICMPV6, &icmp(128)));
        if group {
            patched(frame, 38, &[0xff, 2])
        } else {
            frame
        }
    };
    let flags = |flags| v4(protocol::TCP, &tcp(flags));
    vec![
        (
            "own address",
            Reason::Land,
            to_self(syn.clone()),
            syn.clone(),
        ),
        (
            "loopback",
            Reason::Land,
            from([127, 1, 2, 3], protocol::UDP, &udp_to(1, 2, b"x")),
            from([0; 4], protocol::UDP, &udp_to(68, 67, b"x")),
        ),
        ("null", Reason::TcpFlags, flags(0), flags(ACK)),
        ("xmas", Reason::TcpFlags, flags(0x29), flags(0x39)),
        ("bare fin", Reason::TcpFlags, flags(1), flags(0x11)),
        ("syn+fin", Reason::TcpFlags, flags(3), flags(0x12)),
        ("syn+rst", Reason::TcpFlags, flags(6), flags(4)),
        (
            "tiny first",
            Reason::TinyFragment,
            fragment(0x2000, &half(&tcp(SYN))),
            fragment(0x2000, &tcp(SYN)),
        ),
        (
            "overlap",
            Reason::TinyFragment,
            fragment(0x2001, &[0; 16]),
            fragment(0x2003, &[0; 16]),
        ),
        (
            "tiny first, IPv6",
            Reason::TinyFragment,
            fragment6(0, true, &half(&tcp(SYN))),
            fragment6(0, true, &tcp(SYN)),
        ),
        (
            "overlap, IPv6",
            Reason::TinyFragment,
            fragment6(1, false, &[0; 16]),
            fragment6(3, false, &[0; 16]),
        ),
        (
            "smurf",
            Reason::Smurf,
            broadcast(v4(protocol::ICMP, &icmp(8))),
            v4(protocol::ICMP, &icmp(8)),
        ),
        ("smurf, IPv6", Reason::Smurf, smurf6(true), smurf6(false)),
    ]
}

#[test]
#[ignore = "needs root"]
fn what_no_host_sends_goes_by_its_name_and_its_like_stays() -> Result<()> {
    let (mut kernel, _ports) = load("")?;
    println!(
        "verified instructions: {:?}",
        kernel.dataplane.verified_instructions()
    );
    for (name, reason, bad, good) in cases() {
        for mode in [Mode::Enforce, Mode::Monitor] {
            kernel.dataplane.set_mode(mode)?;
            let outcome = kernel.run(&bad)?;
            let (action, counter) = match mode {
                Mode::Enforce => (XDP_DROP, reason.dropped()),
                Mode::Monitor => (XDP_PASS, reason.would_drop()),
            };
            ensure!(
                outcome.action == action && outcome.moved.get(counter) == 1,
                "{name}: {} {}",
                outcome.action,
                shown(&outcome.moved)
            );
            let outcome = kernel.run(&good)?;
            ensure!(
                outcome.action == XDP_PASS && outcome.moved.pass == 1,
                "{name}: its like: {}",
                shown(&outcome.moved)
            );
        }
        // Switched off, it passes; but what cannot be parsed never does.
        kernel.dataplane.set_mode(Mode::Enforce)?;
        let mut off = protection("")?.0;
        off.checks &= !reason.bit();
        kernel.dataplane.set_protection(&off)?;
        let outcome = kernel.run(&bad)?;
        ensure!(
            outcome.moved.get(reason.dropped()) == 0,
            "{name} is off: {}",
            shown(&outcome.moved)
        );
        kernel.dataplane.set_protection(&protection("")?.0)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_allowlist_wins_but_not_for_a_forged_source() -> Result<()> {
    let (mut kernel, _ports) = load("")?;
    kernel
        .allows
        .replace(&["198.51.100.0/24".parse()?, "192.0.2.1".parse()?])?;
    let outcome = kernel.run(&v4(protocol::TCP, &tcp(0)))?;
    ensure!(
        outcome.moved.pass_allowlist_other == 1,
        "{}",
        shown(&outcome.moved)
    );
    let land = patched(v4(protocol::TCP, &tcp(SYN)), 26, &[192, 0, 2, 1]);
    let outcome = kernel.run(&land)?;
    ensure!(outcome.action == XDP_DROP, "{}", shown(&outcome.moved));
    Ok(())
}

/// What was offered to a limit of 1000 a second with a burst of 100, and what became of it.
struct Offered {
    passed: u32,
    sent: u32,
    took: Duration,
    /// What a bucket of that size lets through at these times. While nothing is sent for more than a tenth of a second
    /// (the machine was somewhere else) it runs over, and what comes then at once is too much.
    due: u32,
}

/// Sends `frame`s at `per_ms` a millisecond for `time`.
fn offer(
    kernel: &mut Kernel,
    per_ms: u32,
    time: Duration,
    mut frame: impl FnMut(u32) -> Vec<u8>,
) -> Result<Offered> {
    let started = Instant::now();
    let (mut sent, mut passed, mut due) = (0, 0, 0);
    let (mut tokens, mut last) = (100.0_f64, started);
    while started.elapsed() < time {
        if sent > u32::try_from(started.elapsed().as_millis())? * per_ms {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let outcome = kernel.run(&frame(sent))?;
        passed += u32::from(outcome.action == XDP_PASS);
        sent += 1;
        let now = Instant::now();
        tokens = (tokens + 1000.0 * (now - last).as_secs_f64()).min(100.0);
        last = now;
        if tokens >= 1.0 {
            tokens -= 1.0;
            due += 1;
        }
    }
    Ok(Offered {
        passed,
        sent,
        took: started.elapsed(),
        due,
    })
}

/// Makes the frame of a number.
type Maker = Box<dyn FnMut(u32) -> Vec<u8>>;

/// Every limit with 1000 a second and a burst of 100, and packets of it.
fn limited() -> Vec<(&'static str, Reason, Maker)> {
    let port = |n: u32| u16::try_from(1024 + n % 60_000).unwrap_or(1);
    let source = |n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        [10, b, c, d]
    };
    let syn = move |n| v4(protocol::TCP, &tcp_to(port(n), 80, SYN));
    let datagram = |_| v4(protocol::UDP, &udp_to(9, 53, b"x"));
    vec![
        (
            "[limits.source]\nsyn = \"1000/s burst 100\"",
            Reason::SynFlood,
            Box::new(syn),
        ),
        (
            "[limits.source]\nudp = \"1000/s burst 100\"",
            Reason::UdpFlood,
            Box::new(datagram),
        ),
        (
            "[limits.source]\nicmp = \"1000/s burst 100\"",
            Reason::IcmpFlood,
            Box::new(|_| v4(protocol::ICMP, &icmp(8))),
        ),
        (
            "[limits.source]\nconnections = \"1000/s burst 100\"",
            Reason::ConnectionLimit,
            Box::new(syn),
        ),
        (
            "[limits.source]\npackets = \"1000/s burst 100\"",
            Reason::PacketLimit,
            Box::new(datagram),
        ),
        // Frames of 43 bytes are one unit of 64: 512 kbit/s are 1000 units a second.
        (
            "[limits.source]\nbytes = \"512 kbit/s burst 6400 B\"",
            Reason::ByteLimit,
            Box::new(datagram),
        ),
        (
            "[limits]\ntotal = \"1000/s burst 100\"",
            Reason::TotalLimit,
            Box::new(move |n| from(source(n), protocol::UDP, &udp_to(9, 53, b"x"))),
        ),
        (
            "[limits]\nfragments = \"1000/s burst 100\"",
            Reason::FragmentFlood,
            Box::new(move |n| {
                ethernet(
                    &[],
                    IPV4,
                    &ipv4_from(source(n), &[], 0x2005, protocol::UDP, &[0; 16]),
                )
            }),
        ),
        (
            "[limits.ports]\n\"udp/53\" = \"1000/s burst 100\"",
            Reason::PortLimit,
            Box::new(move |n| from(source(n), protocol::UDP, &udp_to(9, 53, b"x"))),
        ),
        (
            "[limits.ports]\n\"tcp/80\" = \"1000/s burst 100\"",
            Reason::PortLimit,
            Box::new(move |n| from(source(n), protocol::TCP, &tcp_to(9, 80, SYN))),
        ),
        (
            "[limits]\nmesh = \"1000/s burst 100\"",
            Reason::MeshLimit,
            Box::new(move |n| v4(protocol::TCP, &tcp_to(port(n), 4747, SYN))),
        ),
    ]
}

#[test]
#[ignore = "needs root"]
fn every_limit_lets_through_what_it_says_and_no_more() -> Result<()> {
    for (text, reason, mut frame) in limited() {
        let (mut kernel, _ports) = load(text)?;
        let before = kernel.counters()?.get(reason.dropped());
        let Offered {
            passed,
            sent,
            took,
            due,
        } = offer(&mut kernel, 4, Duration::from_millis(1500), &mut frame)?;
        let dropped = kernel.counters()?.get(reason.dropped()) - before;
        println!("{text:?}: {passed} of {sent} in {took:?}, {due} due");
        // One tick of the clock more than the time that passed, one unit for the edge.
        let most = 100.0 + 1000.0 * (took.as_secs_f64() + 0.010) + 1.0;
        // New connections are told by a filter of 256 bits, emptied each second: of later ports some look like
        // repeated ones, and those are not counted.
        let filtered = matches!(reason, Reason::ConnectionLimit | Reason::MeshLimit);
        ensure!(
            u64::from(sent - passed) == dropped,
            "{text}: dropped for another reason"
        );
        ensure!(
            dropped > 0 || filtered,
            "{text}: nothing was dropped of {sent}"
        );
        if !filtered {
            ensure!(
                f64::from(passed) <= most,
                "{text}: {passed} of {sent} passed in {took:?}"
            );
            ensure!(
                passed * 10 >= due * 9,
                "{text}: only {passed} of {sent} in {took:?}, {due} due"
            );
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn connections_beyond_their_burst_are_dropped_until_time_passes() -> Result<()> {
    for (text, port, reason) in [
        (
            "[limits.source]\nconnections = \"1/s burst 50\"",
            80,
            Reason::ConnectionLimit,
        ),
        ("[limits]\nmesh = \"1/s burst 50\"", 4747, Reason::MeshLimit),
    ] {
        let (mut kernel, _ports) = load(text)?;
        let mut passed = 0;
        for n in 0..200 {
            let outcome = kernel.run(&v4(protocol::TCP, &tcp_to(2000 + n, port, SYN)))?;
            passed += u32::from(outcome.action == XDP_PASS);
        }
        let dropped = kernel.counters()?.get(reason.dropped());
        // 50, one a second, and those that the filter takes for repeated ones.
        ensure!(
            (50..150).contains(&passed) && dropped > 50,
            "{passed} passed, {dropped} dropped"
        );
        let other = kernel.run(&from(
            [203, 0, 113, 9],
            protocol::TCP,
            &tcp_to(9, port, SYN),
        ))?;
        ensure!(
            other.action == XDP_PASS,
            "a limit of one source is not that of another"
        );
        let acknowledged = kernel.run(&v4(protocol::TCP, &tcp_to(2000, port, ACK)))?;
        ensure!(acknowledged.action == XDP_PASS, "what is open goes on");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_heavy_source_in_a_flood_of_forged_ones_is_still_limited() -> Result<()> {
    let (mut kernel, _ports) = load("[limits.source]\nudp = \"1000/s burst 100\"")?;
    let started = Instant::now();
    let heavy = v4(protocol::UDP, &udp_to(9, 53, b"x"));
    let (mut sent, mut passed) = (0_u32, 0_u32);
    for n in 0..1_000_000_u32 {
        let [a, b, c, d] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
        let forged = from([a | 1, b, c, d], protocol::UDP, &udp_to(9, 53, b"x"));
        once(&mut kernel, &forged)?;
        if n % 40 == 0 {
            sent += 1;
            passed += u32::from(once(&mut kernel, &heavy)? == XDP_PASS);
        }
    }
    let most = 100.0 + 1000.0 * (started.elapsed().as_secs_f64() + 0.010);
    println!(
        "{passed} of {sent} in {:?}, bound {most}",
        started.elapsed()
    );
    // Twice the flood's packets over the slots, 40 of them for each of ours, is far below one: the source
    // holds its slots, and some packets are lost to strangers.
    ensure!(
        f64::from(passed) <= most * 1.1,
        "{passed} of {sent} in {:?}",
        started.elapsed()
    );
    ensure!(passed < sent, "nothing was limited");
    Ok(())
}

/// Sends a frame without looking at counters.
fn once(kernel: &mut Kernel, frame: &[u8]) -> Result<u32> {
    let result = kernel.dataplane.program()?.test_run(TestRunOptions {
        data_in: Some(frame),
        repeat: 1,
        ..TestRunOptions::new()
    })?;
    Ok(result.return_value)
}

/// Without LAND, because sockets here talk over loopback; small limits, so that few packets are beyond them.
const STRAY: &str = "[checks]\nland = false\n[limits]\nstrays = \"10/s burst 10\"\namplified = \"10/s burst 10\"\n\
                     [limits.source]\nstrays = \"10/s burst 10\"";

/// How many packets without a connection [`STRAY`] lets through at most in a
/// time: its burst of 10, 10 a second, and two for the edges.
fn strays_in(time: Duration) -> u64 {
    (12 + time.as_secs() * 10 + u64::from(time.subsec_millis()) / 100).min(199)
}

fn loopback(proto: u8, payload: &[u8]) -> Vec<u8> {
    let frame = from([127, 0, 0, 1], proto, payload);
    patched(frame, 30, &[127, 0, 0, 1])
}

#[test]
#[ignore = "needs root"]
fn segments_without_a_connection_go_and_connections_are_never_touched() -> Result<()> {
    isolated(|| {
        tool("ip", &["link", "set", "lo", "up"])?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = listener.local_addr()?.port();
        let client = TcpStream::connect(("127.0.0.1", server))?;
        let local = client.local_addr()?.port();
        let _accepted = listener.accept()?;
        let (mut kernel, _ports) = load(STRAY)?;
        for (flags, reason) in [
            (ACK, Reason::AckFlood),
            (4, Reason::RstFlood),
            (0x11, Reason::FinFlood),
            (0x12, Reason::SynAckFlood),
        ] {
            let before = kernel.counters()?.get(reason.dropped());
            for n in 0..200 {
                let real = kernel.run(&loopback(protocol::TCP, &tcp_to(local, server, ACK)))?;
                ensure!(
                    real.action == XDP_PASS,
                    "a connection was touched: {}",
                    shown(&real.moved)
                );
                // To a port with a listener and to one without.
                let port = if n % 2 == 0 { server } else { 1 };
                kernel.run(&loopback(protocol::TCP, &tcp_to(40_000 + n, port, flags)))?;
            }
            let spared = 200 - (kernel.counters()?.get(reason.dropped()) - before);
            ensure!(spared < 190, "{}: {spared} of 200 passed", reason.name());
        }
        // Without a true segment between them only the burst passes, and what
        // the bucket is filled up with while the frames are sent.
        let (mut kernel, _ports) = load(STRAY)?;
        let frames: Vec<_> = (0..200)
            .map(|n| loopback(protocol::TCP, &tcp_to(40_000 + n, server, ACK)))
            .collect();
        let began = Instant::now();
        for frame in &frames {
            kernel.run(frame)?;
        }
        let dropped = kernel.counters()?.get(Counter::DropAckFlood);
        ensure!(
            dropped >= 200 - strays_in(began.elapsed()),
            "only {dropped} of 200 were dropped in {:?}",
            began.elapsed()
        );
        // From many forged sources it is the host's limit that counts.
        let (mut kernel, _ports) = load(STRAY)?;
        let began = Instant::now();
        for n in 0..200 {
            let frame = loopback(protocol::TCP, &tcp_to(40_000, server, ACK));
            kernel.run(&patched(frame, 26, &[10, 0, 1, n]))?;
        }
        let dropped = kernel.counters()?.get(Counter::DropAckFlood);
        ensure!(
            dropped >= 200 - strays_in(began.elapsed()),
            "only {dropped} of 200 sources' were dropped in {:?}",
            began.elapsed()
        );
        // A host that forwards cannot tell.
        let mut forwards = Config::parse(STRAY, "x")?.protection(true);
        ensure!(forwards.checks & STRAYS == 0);
        forwards.checks |= STRAYS;
        ensure!(forwards.features & features::FORWARDS != 0);
        kernel.dataplane.set_protection(&forwards)?;
        for frame in &frames {
            ensure!(kernel.run(frame)?.action == XDP_PASS);
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn unasked_answers_of_amplifiers_go_and_asked_ones_stay() -> Result<()> {
    isolated(|| {
        tool("ip", &["link", "set", "lo", "up"])?;
        let asking = UdpSocket::bind("127.0.0.1:0")?;
        let port = asking.local_addr()?.port();
        let (mut kernel, _ports) = load(STRAY)?;
        let began = Instant::now();
        for n in 0..100_u16 {
            let frame = loopback(protocol::UDP, &udp_to(53, port, b"answer"));
            ensure!(
                kernel.run(&frame)?.action == XDP_PASS,
                "an answer that was asked for"
            );
            kernel.run(&loopback(protocol::UDP, &udp_to(11211, 10_000 + n, b"big")))?;
            let other = kernel.run(&loopback(protocol::UDP, &udp_to(9999, 10_000 + n, b"x")))?;
            ensure!(other.action == XDP_PASS, "not an amplifier's port");
        }
        let dropped = kernel.counters()?.get(Counter::DropAmplification);
        let least = 100_u64.saturating_sub(strays_in(began.elapsed()));
        ensure!(
            (least.max(1)..=100).contains(&dropped),
            "{dropped} of 100 in {:?}",
            began.elapsed()
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn heads_of_dropped_packets_are_captured_by_reason_until_told_to_stop() -> Result<()> {
    let (mut kernel, _ports) = load("")?;
    let mut captures = kernel.dataplane.take_captures()?;
    let null = v4(protocol::TCP, &tcp(0));
    let smurf = broadcast(v4(protocol::ICMP, &icmp(8)));
    kernel.run(&null)?;
    ensure!(captures.take(10).is_empty(), "nobody asked");
    captures.start(Reason::TcpFlags.bit(), 40)?;
    kernel.run(&null)?;
    kernel.run(&smurf)?;
    kernel.run(&v4(protocol::TCP, &tcp(ACK)))?;
    kernel.dataplane.set_mode(Mode::Monitor)?;
    kernel.run(&null)?;
    let heads = captures.take(10);
    ensure!(heads.len() == 2, "{}", heads.len());
    for (head, dropped) in heads.iter().zip([1, 0]) {
        ensure!(head.reason == Reason::TcpFlags as u8 && head.dropped == dropped);
        ensure!(head.wire_len as usize == null.len() && head.head_len == 40);
        ensure!(head.head[..40] == null[..40], "{:?}", head.head);
    }
    captures.start(u64::MAX, MAX_SNAP)?;
    let long = v4(protocol::TCP, &[tcp(0), vec![7; 400]].concat());
    kernel.run(&long)?;
    let heads = captures.take(10);
    let head = heads.first().context("one head")?;
    ensure!(head.head[..] == long[..MAX_SNAP] && head.wire_len as usize == long.len());
    captures.stop()?;
    kernel.run(&null)?;
    ensure!(captures.take(10).is_empty());
    // More than the ring holds or the budget allows are counted.
    captures.start(u64::MAX, 64)?;
    for _ in 0..5000 {
        kernel.run(&null)?;
    }
    let counters = kernel.counters()?;
    ensure!(counters.capture_lost > 0, "{}", shown(&counters));
    ensure!(SOURCE4 == [198, 51, 100, 7]);
    Ok(())
}
