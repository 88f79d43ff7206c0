//! The same bytes through the loaded program and through the same code in user space.
//!
//! What is sent follows from a seed; a failure prints it, and `SECMESH_SEED=<seed>` sends the same again.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use secmesh::dataplane::{EventReader, Levels};
use secmesh_common::{
    account::{SLOTS, SourceSlot, account, place},
    config::{Config, RateLevels},
    counters::Counter,
    event::{Event, EventKind, OPEN_NO, OPEN_UNKNOWN, OPEN_YES},
    packet::{Captured, Family, Packet, parse_ethernet},
};
use secmesh_tests::{
    fixtures,
    frames::{
        self, Element, IPV4, IPV6, QINQ, QINQ_OLD, VLAN, authentication, ethernet, extension,
        fragment_header, hex, icmp, ipv4_from, ipv6_from, protocol, tcp_to, udp_to,
    },
    kernel::{Kernel, MIN_FRAME, XDP_DROP, XDP_PASS, isolated, options, shown},
    random::{Random, seed},
};

/// Packets for the comparison of verdicts.
const PACKETS: usize = 100_000;
/// How many of them each shape must make at least, or the comparison says little about it.
const OF_EACH_SHAPE: u32 = 2_000;
/// Packets for the comparison of accounting.
const ACCOUNTED: usize = 150_000;
/// Longest frame that is made up from nothing.
const LONGEST: u64 = 256;

/// Bytes that the parser branches on, so that a mutation does not only make noise.
const TELLING: [u8; 24] = [
    0, 1, 4, 5, 6, 8, 17, 19, 20, 40, 43, 44, 51, 58, 60, 0x45, 0x4f, 0x50, 0x60, 0x81, 0x86, 0x88,
    135, 255,
];

fn mutated(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for _ in 0..=random.below(4) {
        // Most decisions are in the first hundred bytes.
        let reach = if random.below(4) > 0 {
            frame.len().min(100)
        } else {
            frame.len()
        };
        let at = random.index(reach);
        match random.below(6) {
            0 => frame.truncate(at.max(MIN_FRAME)),
            1 => {
                frame.insert(at, random.byte());
            }
            2 => {
                let extra = random.below(64);
                frame.extend((0..extra).map(|_| random.byte()));
            }
            3 => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            4 => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = random.byte();
                }
            }
            _ => {
                let value = random.pick(&TELLING).unwrap_or(0);
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
        }
    }
    frame.resize(frame.len().max(MIN_FRAME), 0);
    frame
}

fn made_up(random: &mut Random) -> Vec<u8> {
    let length = MIN_FRAME as u64 + random.below(LONGEST);
    let body: Vec<u8> = (MIN_FRAME as u64..length).map(|_| random.byte()).collect();
    let types = [IPV4, IPV6, 0x8100, 0x88a8, 0x9100, 0x0806];
    let ethertype = random.pick(&types).unwrap_or(IPV4);
    let mut frame = ethernet(&[], ethertype, &body);
    // The right version half of the time, or nothing else would ever be looked at.
    let version = match ethertype {
        IPV4 => 0x45,
        _ => 0x60,
    };
    if random.below(2) == 0
        && let Some(first) = frame.get_mut(MIN_FRAME)
    {
        *first = version;
    }
    frame
}

/// Headers that may stand between IPv6 and what it carries.
const EXTENSIONS: [Element; 8] = [
    (protocol::HOP_BY_HOP, |next| extension(next, 0)),
    (protocol::ROUTING, |next| extension(next, 2)),
    (protocol::DESTINATION_OPTIONS, |next| extension(next, 1)),
    (protocol::AUTH, |next| authentication(next, 4)),
    (protocol::MOBILITY, |next| extension(next, 0)),
    (protocol::HIP, |next| extension(next, 4)),
    (protocol::SHIM6, |next| extension(next, 0)),
    (protocol::DESTINATION_OPTIONS, |next| extension(next, 31)),
];

/// What a packet was made of, counted so that each kind is known to have been compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    MadeUp,
    MutatedFixture,
    Plain4,
    Plain6,
    Vlan,
    QinQ,
    TooManyTags,
    Options4,
    Extensions6,
    Fragment,
    Truncated,
    TruncatedInItsLengths,
}

/// What an IP packet carries, of either family's kinds.
fn carried(random: &mut Random) -> (u8, Vec<u8>) {
    let (from, to) = (u16::from(random.byte()), u16::from(random.byte()) * 200);
    let data: Vec<u8> = (0..random.below(40)).map(|_| random.byte()).collect();
    match random.below(6) {
        0 | 1 => (
            protocol::TCP,
            [tcp_to(from, to, random.byte()), data].concat(),
        ),
        2 => (protocol::UDP, udp_to(from, to, &data)),
        3 => (protocol::ICMP, [icmp(random.byte()), data].concat()),
        4 => (protocol::ICMPV6, [icmp(random.byte()), data].concat()),
        _ => (protocol::GRE, data),
    }
}

/// A packet put together at random from good parts, some in numbers that are refused, and perhaps cut off.
fn composed(random: &mut Random) -> (Vec<u8>, Vec<Shape>) {
    let mut shapes = Vec::new();
    let (proto, payload) = carried(random);
    let fragment = random.below(4) == 0;
    let offset = if random.below(2) == 0 {
        0
    } else {
        u16::from(random.byte())
    };
    let (ethertype, packet) = if random.below(2) == 0 {
        let options: Vec<u8> = (0..random.below(3) * random.below(21))
            .map(|_| random.byte())
            .collect();
        shapes.push(if options.is_empty() {
            Shape::Plain4
        } else {
            Shape::Options4
        });
        let field = match (fragment, random.below(2)) {
            (true, more) => offset | if more == 1 { 0x2000 } else { 0 },
            (false, _) => 0x4000,
        };
        let source = [10, 0, 0, random.byte()];
        (IPV4, ipv4_from(source, &options, field, proto, &payload))
    } else {
        let mut chain: Vec<Element> = (0..random.below(9))
            .filter_map(|_| random.pick(&EXTENSIONS))
            .collect();
        shapes.push(if chain.is_empty() {
            Shape::Plain6
        } else {
            Shape::Extensions6
        });
        if fragment {
            let first: Element = (protocol::FRAGMENT, |next| fragment_header(next, 0, true));
            let later: Element = (protocol::FRAGMENT, |next| fragment_header(next, 77, false));
            let at = random.index(chain.len() + 1);
            chain.insert(at, if offset == 0 { first } else { later });
        }
        let (next, bytes) = frames::chain(&chain, proto, &payload);
        let mut source = [0x20; 16];
        source[15] = random.byte();
        (IPV6, ipv6_from(source, next, &bytes))
    };
    if fragment {
        shapes.push(Shape::Fragment);
    }
    let tags: Vec<u16> = (0..random.below(4) * random.below(2))
        .filter_map(|_| random.pick(&[VLAN, QINQ, QINQ_OLD]))
        .collect();
    shapes.extend(match tags.len() {
        0 => None,
        1 => Some(Shape::Vlan),
        2 => Some(Shape::QinQ),
        _ => Some(Shape::TooManyTags),
    });
    let frame = ethernet(&tags, ethertype, &packet);
    let length = MIN_FRAME + random.index(frame.len() - MIN_FRAME);
    match random.below(4) {
        0 => {
            shapes.push(Shape::Truncated);
            (frame.into_iter().take(length).collect(), shapes)
        }
        1 => {
            shapes.push(Shape::TruncatedInItsLengths);
            (
                frames::cut(&frame, length, MIN_FRAME + 4 * tags.len()),
                shapes,
            )
        }
        _ => (frame, shapes),
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn verdict_and_reason_are_the_same_for_random_and_mutated_packets() -> Result<()> {
    let seed = seed()?;
    let mut random = Random(seed);
    let mut kernel = Kernel::load(&options())?;
    // Short ones only: a mutation in 6,000 bytes of data says nothing.
    let models: Vec<Vec<u8>> = fixtures::all()
        .into_iter()
        .map(|f| f.frame)
        .filter(|f| f.len() < 400)
        .collect();
    let mut reasons = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    for number in 0..PACKETS {
        let (frame, made_of) = match number % 8 {
            0 => (made_up(&mut random), vec![Shape::MadeUp]),
            1..4 => {
                let model = models.get(random.index(models.len())).context("a model")?;
                (mutated(&mut random, model), vec![Shape::MutatedFixture])
            }
            4..7 => composed(&mut random),
            _ => {
                let (frame, made_of) = composed(&mut random);
                (mutated(&mut random, &frame), made_of)
            }
        };
        for shape in made_of {
            *shapes.entry(shape).or_insert(0_u32) += 1;
        }
        let parsed = parse_ethernet(&Captured::whole(&frame));
        let outcome = kernel.run(&frame)?;
        let (action, counter) = match parsed {
            Ok(packet) if packet.family == Family::Other => (XDP_PASS, Counter::PassOther),
            Ok(_) => (XDP_PASS, Counter::Pass),
            Err(reason) => (XDP_DROP, Counter::from(reason)),
        };
        *reasons.entry(counter.name()).or_insert(0_u32) += 1;
        ensure!(
            outcome.action == action
                && outcome.moved.get(counter) == 1
                && outcome.moved.drop_malformed == u64::from(parsed.is_err())
                && outcome.moved.rx_bytes == frame.len() as u64
                && outcome.output == frame,
            "SECMESH_SEED={seed}, packet {number}: {}: user space says {parsed:?}, the kernel {}: {}",
            hex(&frame),
            outcome.action,
            shown(&outcome.moved)
        );
    }
    println!("{PACKETS} packets with seed {seed}: {reasons:?}; made as {shapes:?}");
    ensure!(
        shapes.len() == Shape::TruncatedInItsLengths as usize + 1
            && shapes.values().all(|count| *count >= OF_EACH_SHAPE),
        "a shape was hardly tried: {shapes:?}"
    );
    for counter in [
        Counter::MalformedVlan,
        Counter::MalformedIpv4Header,
        Counter::MalformedIpVersion,
        Counter::MalformedIpLength,
        Counter::MalformedIpv6Header,
        Counter::MalformedExtensionHeaders,
        Counter::MalformedTcp,
        Counter::MalformedUdp,
        Counter::MalformedIcmp,
        Counter::Pass,
        Counter::PassOther,
    ] {
        ensure!(
            reasons.contains_key(counter.name()),
            "{} never occurred",
            counter.name()
        );
    }
    Ok(())
}

/// Levels that come up often, over windows that nothing outlasts: time then plays no part.
fn levels() -> Levels {
    let day = 86_400_000_000_000;
    let rate = |watch, alert| RateLevels {
        window_ns: day,
        watch,
        alert,
    };
    Levels {
        rates: [rate(3, 10), rate(5, 20), rate(4, 12)],
        contact_window_ns: day,
    }
}

/// What user space expects to find in the ring.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    kind: EventKind,
    class: u8,
    count: u32,
    packets: u32,
    packet: Packet,
    open: u8,
}

fn bytes_of(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *four = word.to_ne_bytes();
    }
    bytes
}

impl Expected {
    fn is(&self, event: &Event) -> bool {
        let packet = &self.packet;
        let detail = if packet.tcp_flags != 0 {
            packet.tcp_flags
        } else {
            packet.icmp_type
        };
        event.kind == self.kind as u8
            && event.class == self.class
            && event.count == self.count
            && event.packets == self.packets
            && event.src == bytes_of(packet.src)
            && event.dst == bytes_of(packet.dst)
            && event.sport == packet.sport
            && event.dport == packet.dport
            && event.family == packet.family as u8
            && event.proto == packet.proto
            && event.detail == detail
            && event.wire_len == packet.wire_len
            && event.open == self.open
    }
}

/// The kernel program's accounting, done again here: the slots from the shared code, their use by hand.
struct Model {
    slots: Vec<SourceSlot>,
    config: Config,
    seed: u64,
    now_ns: u64,
    contended: u64,
}

impl Model {
    /// What the packet puts into the ring, if no port is open.
    fn see(&mut self, packet: &Packet) -> Option<Expected> {
        let place = place(packet, self.seed);
        let (first, second) = (place.first as usize, place.second as usize);
        let held = |at: usize| self.slots.get(at).is_some_and(|s| s.holds(place.tag));
        let resistance = |at: usize| self.slots.get(at).map(|s| s.resistance(self.now_ns));
        let chosen = if held(first) {
            first
        } else if held(second) {
            second
        } else {
            let weaker = if resistance(first) <= resistance(second) {
                first
            } else {
                second
            };
            let slot = self.slots.get_mut(weaker)?;
            if !slot.contend(place.tag, self.now_ns) {
                self.contended += 1;
                return None;
            }
            weaker
        };
        let slot = self.slots.get_mut(chosen)?;
        let seen = account(slot, packet, self.now_ns, &self.config);
        let expected = Expected {
            kind: EventKind::Rate,
            class: seen.rate_class,
            count: seen.rate_count,
            packets: slot.packets,
            packet: *packet,
            open: OPEN_UNKNOWN,
        };
        if seen.rate_count != 0 {
            Some(expected)
        } else if seen.contact {
            Some(Expected {
                kind: EventKind::Contact,
                open: OPEN_NO,
                ..expected
            })
        } else {
            None
        }
    }
}

/// A packet of one of a few busy sources, or of one that is never seen again.
fn traffic(random: &mut Random) -> Vec<u8> {
    let source = if random.below(3) > 0 {
        random.below(48)
    } else {
        random.bits()
    };
    let low: [u8; 4] = source
        .to_le_bytes()
        .first_chunk()
        .copied()
        .unwrap_or([0; 4]);
    let port = |random: &mut Random| u16::try_from(1024 + random.below(300)).unwrap_or(0);
    let (from, to) = (port(random), port(random));
    let flags = random
        .pick(&[2, 2, 2, 16, 16, 24, 18, 4, 1, 0, 41])
        .unwrap_or(2);
    let shape = random.below(10);
    let v6 = random.below(3) == 0;
    let (proto, payload) = match shape {
        0..=4 => (protocol::TCP, tcp_to(from, to, flags)),
        5..=7 => (protocol::UDP, udp_to(from, to, b"x")),
        8 if v6 => (protocol::ICMPV6, icmp(128)),
        8 => (protocol::ICMP, icmp(8)),
        _ => (protocol::GRE, vec![0; 8]),
    };
    if v6 {
        let mut address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, byte) in address.iter_mut().skip(8).zip(source.to_be_bytes()) {
            *place = byte;
        }
        ethernet(&[], IPV6, &ipv6_from(address, proto, &payload))
    } else {
        // One packet in twenty is a later fragment, which has addresses and nothing else.
        let fragment = if random.below(20) == 0 { 5 } else { 0 };
        ethernet(&[], IPV4, &ipv4_from(low, &[], fragment, proto, &payload))
    }
}

/// Compares what the ring holds with what was expected, in order.
async fn drain(
    reader: &mut EventReader,
    expected: &mut VecDeque<Expected>,
    seed: u64,
) -> Result<usize> {
    let mut events = Vec::new();
    while events.len() < expected.len() {
        let missing = expected.len() - events.len();
        tokio::time::timeout(Duration::from_secs(5), reader.read(&mut events, missing))
            .await
            .with_context(|| format!("SECMESH_SEED={seed}: {missing} events did not come"))??;
    }
    for event in &events {
        let next = expected.pop_front().context("an event too many")?;
        ensure!(
            next.is(event),
            "SECMESH_SEED={seed}: user space expects {next:?}, the kernel sent {event:?}"
        );
        ensure!(
            event.first_ns != 0 && event.first_ns <= event.ts_ns,
            "SECMESH_SEED={seed}: {event:?}"
        );
    }
    Ok(events.len())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn coarse_now_ns() -> Result<u64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// Kernel and model over the same traffic.
async fn same_events(seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let mut loading = options();
    loading.seed = random.bits();
    // Nothing may be held back: no budget that could be used up.
    loading.event_budget = u32::MAX;
    loading.levels = levels();
    let mut kernel = Kernel::load(&loading)?;
    let mut reader = kernel.events()?;
    let mut model = Model {
        slots: vec![SourceSlot::default(); SLOTS],
        config: Config {
            rates: loading.levels.rates,
            contact_window_ns: loading.levels.contact_window_ns,
            ..Config::default()
        },
        seed: loading.seed,
        now_ns: coarse_now_ns()?,
        contended: 0,
    };
    let mut expected = VecDeque::new();
    let (mut compared, mut rates) = (0, 0);
    let started = coarse_now_ns()?;
    for _ in 0..ACCOUNTED {
        let frame = traffic(&mut random);
        kernel.run(&frame)?;
        let packet = parse_ethernet(&Captured::whole(&frame))
            .ok()
            .with_context(|| format!("made a malformed packet: {}", hex(&frame)))?;
        if let Some(event) = model.see(&packet) {
            rates += usize::from(event.kind == EventKind::Rate);
            expected.push_back(event);
        }
        if expected.len() >= 4096 {
            compared += drain(&mut reader, &mut expected, seed).await?;
        }
    }
    compared += drain(&mut reader, &mut expected, seed).await?;
    let counters = kernel.counters()?;
    ensure!(
        counters.sources_contended == model.contended,
        "SECMESH_SEED={seed}: contended {} in the kernel, {} in the model",
        counters.sources_contended,
        model.contended
    );
    ensure!(
        counters.events_sent == compared as u64,
        "SECMESH_SEED={seed}: {}",
        shown(&counters)
    );
    println!(
        "{ACCOUNTED} packets with seed {seed}: {compared} events alike, {rates} of them of rates; {} packets contended; {} ms",
        model.contended,
        (coarse_now_ns()? - started) / 1_000_000
    );
    ensure!(
        rates > 100 && compared > 10_000 && model.contended > 100,
        "too little happened to compare"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_accounting_sends_the_events_that_user_space_computes() -> Result<()> {
    let seed = seed()?;
    // In a network of its own no port is open, and which are is part of the events.
    isolated(move || runtime()?.block_on(same_events(seed)))
}

async fn one_contact(
    kernel: &mut Kernel,
    reader: &mut EventReader,
    frame: &[u8],
) -> Result<Option<Event>> {
    kernel.run(frame)?;
    let mut events = Vec::new();
    match tokio::time::timeout(Duration::from_millis(200), reader.read(&mut events, 10)).await {
        Ok(done) => done?,
        Err(_nothing_came) => return Ok(None),
    }
    ensure!(events.len() <= 1, "{events:?}");
    Ok(events.pop())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_contact_tells_whether_the_port_is_open() -> Result<()> {
    isolated(|| runtime()?.block_on(contacts()))
}

async fn contacts() -> Result<()> {
    let any: [IpAddr; 2] = [[0; 4].into(), [0; 16].into()];
    for (any, v6) in any.into_iter().zip([false, true]) {
        let listener = TcpListener::bind((any, 0))?;
        let service = UdpSocket::bind((any, 0))?;
        let frame = |proto, payload: &[u8]| {
            if v6 {
                ethernet(&[], IPV6, &ipv6_from([0x20; 16], proto, payload))
            } else {
                ethernet(
                    &[],
                    IPV4,
                    &ipv4_from([203, 0, 113, 9], &[], 0, proto, payload),
                )
            }
        };
        let mut kernel = Kernel::load(&options())?;
        let mut reader = kernel.events()?;
        let (tcp, udp) = (listener.local_addr()?.port(), service.local_addr()?.port());
        // An ephemeral port is never that low.
        let closed = 9;
        for (port, open) in [(tcp, OPEN_YES), (closed, OPEN_NO)] {
            let syn = frame(protocol::TCP, &tcp_to(5000, port, 2));
            let event = one_contact(&mut kernel, &mut reader, &syn).await?;
            let event = event.with_context(|| format!("no event for {}", hex(&syn)))?;
            ensure!(event.kind == EventKind::Contact as u8, "{event:?}");
            ensure!(event.open == open && event.dport == port, "{event:?}");
            let again = one_contact(&mut kernel, &mut reader, &syn).await?;
            ensure!(
                again.is_none(),
                "the same contact was told twice: {again:?}"
            );
        }
        let datagram = |port| frame(protocol::UDP, &udp_to(5000, port, b"?"));
        let event = one_contact(&mut kernel, &mut reader, &datagram(closed)).await?;
        ensure!(event.is_some_and(|e| e.open == OPEN_NO), "{event:?}");
        let event = one_contact(&mut kernel, &mut reader, &datagram(udp)).await?;
        ensure!(
            event.is_none(),
            "a datagram to a service is no news: {event:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn every_packet_of_a_watched_source_is_reported_and_only_as_long_as_it_is_watched() -> Result<()> {
    isolated(|| runtime()?.block_on(watching()))
}

async fn watching() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    let mut reader = kernel.events()?;
    let source = [203, 0, 113, 9];
    let ack = ethernet(
        &[],
        IPV4,
        &ipv4_from(source, &[], 0, protocol::TCP, &tcp_to(5000, 80, 16)),
    );
    ensure!(
        one_contact(&mut kernel, &mut reader, &ack).await?.is_none(),
        "an ACK is no news"
    );
    kernel.dataplane.set_sizes(0, 0, 1)?;
    kernel.watches.put(source.into(), u64::MAX)?;
    for _ in 0..3 {
        let event = one_contact(&mut kernel, &mut reader, &ack).await?;
        ensure!(
            event.is_some_and(|e| e.kind == EventKind::Sample as u8),
            "{event:?}"
        );
    }
    kernel.watches.put(source.into(), 1)?;
    ensure!(
        one_contact(&mut kernel, &mut reader, &ack).await?.is_none(),
        "the watch is over"
    );
    kernel.watches.put(source.into(), u64::MAX)?;
    kernel.watches.remove(source.into())?;
    ensure!(
        one_contact(&mut kernel, &mut reader, &ack).await?.is_none(),
        "nobody is watched"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn events_stop_at_the_budget_and_the_rest_is_counted() -> Result<()> {
    isolated(|| {
        let mut loading = options();
        // Ten per tick of a tenth of a second.
        loading.event_budget = 100;
        let mut kernel = Kernel::load(&loading)?;
        for port in 0..2000 {
            let syn = tcp_to(5000, port, 2);
            let source = [10, 0, port.to_be_bytes()[0], port.to_be_bytes()[1]];
            kernel.run(&ethernet(
                &[],
                IPV4,
                &ipv4_from(source, &[], 0, protocol::TCP, &syn),
            ))?;
        }
        let counters = kernel.counters()?;
        ensure!(counters.pass == 2000, "{}", shown(&counters));
        ensure!(
            counters.events_sent >= 10 && counters.events_over_budget > 1000,
            "{}",
            shown(&counters)
        );
        ensure!(
            counters.events_sent + counters.events_over_budget + counters.sources_contended == 2000,
            "{}",
            shown(&counters)
        );
        Ok(())
    })
}
