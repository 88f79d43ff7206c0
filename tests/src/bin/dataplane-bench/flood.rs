//! A flood of blocked sources over a veth pair: what each side drops per second, and at what cost.
//!
//! The generator has one processor and the receiver's NAPI thread another (`Wire::two_processors`). The
//! cost is that thread's time by the scheduler's own count, so what else the machine does is not in it;
//! it is the whole of the receiving side, from the driver's ring to the drop.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use secmesh::config::AttachMode;
use secmesh_tests::{
    kernel::Kernel,
    livegen::{Bare, Flood, Generator, Sources, Traffic},
    netns::Napi,
    wire::{SENDER_CPU, Wire},
};
use xtask::bench::{Bar, Row};

use crate::{
    Effort,
    addresses::Blocked,
    median, ours,
    peers::{Nft, SetKind, XDP_FILTER_ROOM, XdpFilter},
};

/// Packets of the wire's other end itself that may be among the dropped ones.
const OWN_WORDS: u64 = 16;

const GROUP: &str = "flood";
/// Sources in the generator's list.
const SOURCES: usize = 1 << 17;

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
        let before = ((self.dropped)(&self.wire)?, self.napi.cpu_ns()?);
        let sent = self.generator.send_from(
            &self.wire.sender,
            &self.wire.far,
            SENDER_CPU,
            u64::MAX,
            effort.flood,
        )?;
        // What is still in the ring is dropped within microseconds.
        std::thread::sleep(std::time::Duration::from_millis(5));
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
        let of = |get: fn(&Figures) -> f64| median(self.turns.iter().map(get).collect());
        Figures {
            dropped_mpps: of(|turn| turn.dropped_mpps),
            cpu_ns: of(|turn| turn.cpu_ns),
            offered_mpps: of(|turn| turn.offered_mpps),
        }
    }
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
    for turn in 0..=effort.turns {
        let keep = turn > 0;
        own.turn(effort, keep)?;
        nft_line.turn(effort, keep)?;
        filter_line.turn(effort, keep)?;
        small_line.turn(effort, keep)?;
        bare_line.turn(effort, keep)?;
        reading_line.turn(effort, keep)?;
        looking_line.turn(effort, keep)?;
    }
    drop(filter);
    let mine = own.figures();
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let peers = [
        (nft.shown(), nft_line.figures(), Some(6.0), None),
        (
            "xdp-filter".to_owned(),
            filter_line.figures(),
            Some(1.3),
            Some(format!(
                "xdp-filter holds {} addresses and no prefix; its flood comes from those alone",
                few.hosts.len()
            )),
        ),
        (
            "bare XDP drop".to_owned(),
            bare_line.figures(),
            Some(0.8),
            None,
        ),
        (
            "XDP drop that reads the source".to_owned(),
            reading_line.figures(),
            None,
            None,
        ),
        (
            "XDP drop that reads a line of a table".to_owned(),
            looking_line.figures(),
            None,
            Some(format!("{LINES} cache lines, whatever the family")),
        ),
    ];
    let (small, filter) = (small_line.figures(), filter_line.figures());
    let mut rows = same_work(few.hosts.len(), small, filter, family);
    for (peer, theirs, bar, note) in &peers {
        let name = format!("dropped, {family}");
        let mut row =
            Row::new(GROUP, name, mine.dropped_mpps, "Mpps").beside(peer, theirs.dropped_mpps);
        row = bar.map_or(row.clone(), |least| row.clone().bar(Bar::AtLeast(least)));
        let offered = format!(
            "offered {:.1} and {:.1} Mpps",
            mine.offered_mpps, theirs.offered_mpps
        );
        rows.push(
            row.note(
                note.as_ref()
                    .map_or(offered.clone(), |note| format!("{offered}; {note}")),
            ),
        );
    }
    for (peer, theirs, ..) in &peers {
        let name = format!("receiver's CPU, {family}");
        rows.push(Row::new(GROUP, name, mine.cpu_ns, "ns/packet").beside(peer, theirs.cpu_ns));
    }
    Ok(rows)
}

/// Ours with no more than xdp-filter has, and xdp-filter.
fn same_work(addresses: usize, ours: Figures, filter: Figures, family: &str) -> Vec<Row> {
    let row = |what: &str, own, theirs, unit| {
        let name = format!("{what}, {addresses} addresses only, {family}");
        Row::new(GROUP, name, own, unit).beside("xdp-filter", theirs)
    };
    vec![
        row("dropped", ours.dropped_mpps, filter.dropped_mpps, "Mpps").bar(Bar::AtLeast(1.3)),
        row("receiver's CPU", ours.cpu_ns, filter.cpu_ns, "ns/packet"),
    ]
}
