//! A flood of blocked sources over a veth pair: what each side drops per second, and at what cost.
//!
//! The generator has one processor and the receiver's NAPI thread another (`Wire::two_processors`). The
//! cost is that thread's time by the scheduler's own count, so what else the machine does is not in it;
//! it is the whole of the receiving side, from the driver's ring to the drop.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use secmesh::config::AttachMode;
use secmesh_tests::{
    kernel::Kernel,
    livegen::{Bare, Flood, Generator, Sources, Traffic},
    netns::Napi,
    wire::{SENDER_CPU, Wire},
};
use xtask::bench::{Bar, Row, median};

use crate::{
    Effort,
    addresses::Blocked,
    ours,
    peers::{Nft, SetKind, XDP_FILTER_ROOM, XdpFilter},
};

/// Packets of the wire's other end itself that may be among the dropped ones.
const OWN_WORDS: u64 = 16;

const GROUP: &str = "flood";
const FILTER: &str = "xdp-filter";
/// Sources in the generator's list.
const SOURCES: usize = 1 << 17;

/// Turns that each other side has for one of nftables', all sides in each of these parts. Short: a virtual machine may be
/// half as fast for a moment, and what is compared should be measured in the same one. Many: on such a machine the ratio
/// of two turns was anything from 0.6 to 3.1 with 1.4 in the middle, and the median of 21 of them between 1.26 and 1.49.
const PARTS: usize = 9;
/// What part of nftables' turn theirs are as long as.
const SHORTER: u32 = 4;

/// Cache lines of 100,000 addresses of four bytes, as many as fit at seven eighths: 490 KiB.
const LINES: u32 = 7_620;

/// One turn's figures, or the medians of several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Packets dropped per second while the generator sends, millions.
    pub dropped_mpps: f64,
    /// The receiver's processor time for each of them, ns.
    pub cpu_ns: f64,
    /// Frames that the generator made per second while it sent, millions.
    pub offered_mpps: f64,
}

/// A receiver with something that drops, and a generator that sends to it.
pub struct Line<F> {
    /// The veth pair.
    pub wire: Wire,
    napi: Napi,
    generator: Generator,
    dropped: F,
    turns: Vec<Figures>,
}

impl<F: FnMut(&Wire) -> Result<u64>> Line<F> {
    /// `wire` must have its dropper already; `dropped` counts what that has dropped so far.
    pub fn new(wire: Wire, sources: &[IpAddr], dropped: F) -> Result<Self> {
        let ipv6 = sources.first().is_some_and(IpAddr::is_ipv6);
        let generator = Generator::load(&Flood {
            traffic: Traffic::Udp,
            sources: Sources::Listed(sources),
            destination: if ipv6 {
                wire.near6().into()
            } else {
                wire.near4().into()
            },
            port: 443,
            ports: 1,
            destination_mac: wire.near_mac,
            seed: 1,
        })?;
        Ok(Self {
            napi: wire.two_processors()?,
            wire,
            generator,
            dropped,
            turns: Vec::new(),
        })
    }

    /// One turn; the first one only warms up.
    pub fn turn(&mut self, effort: &Effort, keep: bool) -> Result<()> {
        self.turn_of(effort.flood, keep)
    }

    fn turn_of(&mut self, length: Duration, keep: bool) -> Result<()> {
        let before = ((self.dropped)(&self.wire)?, self.napi.cpu_ns()?);
        let sent = self.generator.send_from(
            &self.wire.sender,
            &self.wire.far,
            SENDER_CPU,
            u64::MAX,
            length,
        )?;
        // What is still in the ring is dropped within microseconds.
        std::thread::sleep(Duration::from_millis(5));
        let dropped = (self.dropped)(&self.wire)? - before.0;
        let cpu = self.napi.cpu_ns()? - before.1;
        // A host says a word of its own on a new wire now and then (router solicitation, multicast listener).
        ensure!(
            dropped > 0 && dropped <= sent.frames + OWN_WORDS,
            "{dropped} dropped of {} sent",
            sent.frames
        );
        if keep {
            // What the ring holds beyond it is dropped in no time.
            let seconds = sent.sending.as_secs_f64();
            self.turns.push(Figures {
                dropped_mpps: dropped as f64 / seconds / 1e6,
                cpu_ns: cpu as f64 / dropped as f64,
                offered_mpps: sent.sending_rate() / 1e6,
            });
        }
        Ok(())
    }

    /// The medians of the turns that were kept.
    pub fn figures(&self) -> Figures {
        Figures::medians(&self.turns)
    }
}

impl Figures {
    fn medians(turns: &[Self]) -> Self {
        let of = |get: fn(&Self) -> f64| median(turns.iter().map(get).collect());
        Self {
            dropped_mpps: of(|turn| turn.dropped_mpps),
            cpu_ns: of(|turn| turn.cpu_ns),
            offered_mpps: of(|turn| turn.offered_mpps),
        }
    }
}

/// A row of two sides that had their turns one after the other; of one that had fewer, the medians are compared.
fn beside(
    row: (String, &str),
    ours: &[Figures],
    (peer, theirs): (&str, &[Figures]),
    get: fn(&Figures) -> f64,
) -> Row {
    let (name, unit) = row;
    let row = Row::new(GROUP, name, get(&Figures::medians(ours)), unit)
        .beside(peer, get(&Figures::medians(theirs)));
    if ours.len() != theirs.len() {
        return row;
    }
    let pairs = ours.iter().zip(theirs);
    row.by_turns(pairs.map(|(own, other)| (get(own), get(other))))
}

/// A flood to our program; its own count must be the driver's.
pub fn to_us(
    wire: Wire,
    kernel: &mut Kernel,
    sources: &[IpAddr],
) -> Result<Line<impl FnMut(&Wire) -> Result<u64>>> {
    kernel.dataplane.attach(&wire.near, AttachMode::Driver)?;
    let kernel: &Kernel = kernel;
    // Test runs before have counted, too.
    let before = ours::dropped(&kernel.counters()?);
    Line::new(wire, sources, move |wire: &Wire| {
        let own = ours::dropped(&kernel.counters()?) - before;
        let driver = wire.xdp_drops()?;
        ensure!(own == driver, "we count {own} drops, the driver {driver}");
        Ok(own)
    })
}

/// A flood to a program that drops everything by itself.
pub fn to_bare(
    wire: Wire,
    bare: &mut Bare,
    sources: &[IpAddr],
) -> Result<Line<impl FnMut(&Wire) -> Result<u64>>> {
    bare.attach(&wire.near)?;
    Line::new(wire, sources, |wire: &Wire| {
        let (dropped, received) = (wire.xdp_drops()?, wire.received()?);
        // What it passes goes on into the host, which takes longer than anything that is compared here.
        ensure!(
            received <= dropped + OWN_WORDS,
            "drops {dropped} of {received}"
        );
        Ok(dropped)
    })
}

/// A flood to nftables' set.
pub fn to_nft<'a>(
    wire: Wire,
    nft: &'a Nft,
    sources: &[IpAddr],
) -> Result<Line<impl FnMut(&Wire) -> Result<u64> + 'a>> {
    Line::new(wire, sources, |_wire: &Wire| {
        let (by_set, by_rest) = nft.dropped()?;
        Ok(by_set + by_rest)
    })
}

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for ipv6 in [false, true] {
        rows.extend(family(effort, ipv6)?);
    }
    Ok(rows)
}

fn family(effort: &Effort, ipv6: bool) -> Result<Vec<Row>> {
    let list = Blocked::new(ipv6, effort.hosts, effort.prefixes)?;
    let sources = list.sources(SOURCES);
    let mut kernel = ours::load(&[&list])?;
    let mut own = to_us(Wire::new(0)?, &mut kernel, &sources)?;
    let wire = Wire::new(1)?;
    let nft = Nft::load(&wire, &list, SetKind::Interval, false)?;
    let mut nft_line = to_nft(wire, &nft, &sources)?;
    // xdp-filter has no prefixes and few addresses: it gets its fill, and a flood from those alone.
    let few = Blocked {
        hosts: list.hosts.iter().copied().take(XDP_FILTER_ROOM).collect(),
        prefixes: Vec::new(),
    };
    let wire = Wire::new(2)?;
    let filter = XdpFilter::load(&wire, &few.hosts, "native")?;
    let few_sources = few.sources(SOURCES);
    let mut filter_line = Line::new(wire, &few_sources, Wire::xdp_drops)?;
    let mut small = ours::load(&[&few])?;
    let mut small_line = to_us(Wire::new(5)?, &mut small, &few_sources)?;
    let mut bare = Bare::dropping()?;
    let mut bare_line = to_bare(Wire::new(3)?, &mut bare, &sources)?;
    let mut reading = Bare::reading()?;
    let mut reading_line = to_bare(Wire::new(4)?, &mut reading, &sources)?;
    let mut looking = Bare::looking(LINES)?;
    let mut looking_line = to_bare(Wire::new(6)?, &mut looking, &sources)?;
    // Odd, so that the median is one of them.
    let parts = effort.turns * PARTS;
    for part in 0..=parts {
        let (keep, length) = (part > 0, effort.flood / SHORTER);
        own.turn_of(length, keep)?;
        filter_line.turn_of(length, keep)?;
        small_line.turn_of(length, keep)?;
        bare_line.turn_of(length, keep)?;
        reading_line.turn_of(length, keep)?;
        looking_line.turn_of(length, keep)?;
        // Its counters come with all elements of its set, which takes longer than such a turn: last, so that the others have
        // theirs one right after the other.
        if part.is_multiple_of(PARTS) {
            nft_line.turn(effort, keep)?;
        }
    }
    drop(filter);
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let lines = format!("{LINES} cache lines, whatever the family");
    let fewer = format!(
        "xdp-filter holds {} addresses and no prefix; its flood comes from those alone",
        few.hosts.len()
    );
    let peers = [
        Peer {
            bar: Some(6.0),
            ..Peer::new(nft.shown(), &nft_line.turns)
        },
        Peer {
            bar: Some(1.3),
            note: Some(fewer),
            ..Peer::new(FILTER, &filter_line.turns)
        },
        Peer {
            bar: Some(0.8),
            ..Peer::new("bare XDP drop", &bare_line.turns)
        },
        Peer::new("XDP drop that reads the source", &reading_line.turns),
        Peer {
            note: Some(lines),
            ..Peer::new("XDP drop that reads a line of a table", &looking_line.turns)
        },
    ];
    let mut rows = same_work(
        few.hosts.len(),
        &small_line.turns,
        &filter_line.turns,
        family,
    );
    rows.extend(against(&own.turns, &peers, family));
    Ok(rows)
}

/// One whom the large list is compared with.
struct Peer<'a> {
    name: String,
    turns: &'a [Figures],
    /// What is asked of the rate.
    bar: Option<f64>,
    note: Option<String>,
}

impl<'a> Peer<'a> {
    fn new(name: impl Into<String>, turns: &'a [Figures]) -> Self {
        Self {
            name: name.into(),
            turns,
            bar: None,
            note: None,
        }
    }
}

fn against(ours: &[Figures], peers: &[Peer<'_>], family: &str) -> Vec<Row> {
    let rates = peers.iter().map(|peer| {
        let name = format!("dropped, {family}");
        let mut row = beside((name, "Mpps"), ours, (&peer.name, peer.turns), |turn| {
            turn.dropped_mpps
        });
        if let Some(least) = peer.bar {
            row = row.bar(Bar::AtLeast(least));
        }
        let offered = format!(
            "offered {:.1} and {:.1} Mpps",
            Figures::medians(ours).offered_mpps,
            Figures::medians(peer.turns).offered_mpps
        );
        match &peer.note {
            Some(note) => row.note(format!("{offered}; {note}")),
            None => row.note(offered),
        }
    });
    let costs = peers.iter().map(|peer| {
        let name = format!("receiver's CPU, {family}");
        beside(
            (name, "ns/packet"),
            ours,
            (&peer.name, peer.turns),
            |turn| turn.cpu_ns,
        )
    });
    rates.chain(costs).collect()
}

/// Ours with no more than xdp-filter has, and xdp-filter.
fn same_work(addresses: usize, ours: &[Figures], filter: &[Figures], family: &str) -> Vec<Row> {
    let name = |what: &str| format!("{what}, {addresses} addresses only, {family}");
    let theirs = (FILTER, filter);
    vec![
        beside((name("dropped"), "Mpps"), ours, theirs, |turn| {
            turn.dropped_mpps
        })
        .bar(Bar::AtLeast(1.3)),
        beside(
            (name("receiver's CPU"), "ns/packet"),
            ours,
            theirs,
            |turn| turn.cpu_ns,
        ),
    ]
}
