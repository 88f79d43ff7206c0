//! Blocklists of 2^3 to 2^20 addresses: what a packet costs, how long loading and replacing takes.
//!
//! Two methods, because no one does for everything:
//!
//! * **test run**: a program of the tests' gives each packet of one test run another source and calls ours
//!   (`livegen::Walk`); what the same takes in front of a bare drop is subtracted. Hits and misses.
//! * **live**: the generator floods a veth end; the time of the receiver's NAPI thread per packet, from the
//!   ring to the drop. Hits only for us, because a miss is a packet that the host goes on with; nftables
//!   and iptables get a second rule that drops what their set does not have.
//!
//! What a miss of the processor's cache costs belongs to the machine, so the growth with the size is compared with
//! that of one look-up in a hash map of the kernel that holds the same addresses.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use secmesh_tests::{
    frames::{IPV4, SOURCE4, ethernet, ipv4_from, protocol, udp_to},
    kernel::{XDP_DROP, XDP_PASS},
    livegen::{Bare, Walk},
    wire::Wire,
};
use xtask::bench::{Bar, Row, median};

use crate::{
    Effort,
    addresses::{Blocked, Random, address},
    flood::{self, Line},
    ours,
    peers::{Ipset, Nft, SetKind},
    plot,
};

const GROUP: &str = "blocklist";
/// Fewest and most sources of one walk or flood.
const KEYS: [usize; 2] = [1 << 17, 1 << 20];
/// Turns of one size at most, and the length of each flood: there are many sizes and six floods of each.
const TURNS: usize = 7;
const FLOOD: Duration = Duration::from_millis(150);

/// The figures of one size.
#[derive(Debug, Clone, Default)]
pub struct Size {
    /// The size is two to this.
    pub power: u32,
    /// Label and value: ns per packet.
    pub packet_ns: Vec<(&'static str, f64)>,
    /// Label and value: milliseconds.
    pub load_ms: Vec<(&'static str, f64)>,
}

/// Measures, and draws the plot.
pub fn rows(effort: &Effort, plot: Option<&Path>) -> Result<Vec<Row>> {
    let effort = Effort {
        turns: effort.turns.min(TURNS),
        flood: effort.flood.min(FLOOD),
        ..effort.clone()
    };
    let start = Instant::now();
    let mut sizes = Vec::new();
    let mut late = Vec::new();
    for power in &effort.sizes {
        // A machine that is much slower than ours gets a report, too.
        if start.elapsed() > effort.budget {
            late.push(*power);
            continue;
        }
        sizes.push(size(&effort, *power).with_context(|| format!("2^{power} addresses"))?);
    }
    if let Some(file) = plot {
        std::fs::write(file, plot::svg(&sizes)).with_context(|| file.display().to_string())?;
    }
    let mut rows: Vec<Row> = sizes.iter().flat_map(table).collect();
    rows.extend(late.iter().map(|power| {
        let name = format!("2^{power}");
        let why = format!("no time left: the sizes before took {:?}", effort.budget);
        Row::not_measured(GROUP, name, "ns/packet", &why)
    }));
    rows.extend(growth(&sizes));
    Ok(rows)
}

/// Says what is being done, and how long the step before took.
struct Progress {
    power: u32,
    since: Instant,
}

impl Progress {
    fn step(&mut self, what: &str) {
        let took = self.since.elapsed().as_secs_f64();
        eprintln!(
            "measuring: 2^{} addresses: {what} ({took:.1} s)",
            self.power
        );
        self.since = Instant::now();
    }
}

/// How much dearer a packet is with the largest list than with the smallest.
fn growth(sizes: &[Size]) -> Vec<Row> {
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else {
        return Vec::new();
    };
    let grown = |label: &str| find(&last.packet_ns, label) - find(&first.packet_ns, label);
    let name = |what: &str| format!("growth from 2^{} to 2^{}, {what}", first.power, last.power);
    [(OURS_HIT, HASH_HIT, "hit"), (OURS_MISS, HASH_MISS, "miss")]
        .map(|(own, hash, what)| {
            Row::new(GROUP, name(what), grown(own), "ns/packet")
                .beside(HASH, grown(hash))
                .bar(Bar::AtMost(1.0))
        })
        .into()
}

/// The value of a label; no number where there is none.
fn find(all: &[(&str, f64)], label: &str) -> f64 {
    let found = all.iter().find(|(name, _)| *name == label);
    found.map_or(f64::NAN, |(_, value)| *value)
}

fn table(size: &Size) -> Vec<Row> {
    let power = size.power;
    let packet = |label| find(&size.packet_ns, label);
    let load = |label| find(&size.load_ms, label);
    let row = |name: &str, value, unit| Row::new(GROUP, format!("2^{power}, {name}"), value, unit);
    let live = || row("live hit", packet(OURS_LIVE), "ns/packet");
    vec![
        row("test run, hit", packet(OURS_HIT), "ns/packet").beside(HASH, packet(HASH_HIT)),
        row("test run, miss", packet(OURS_MISS), "ns/packet").beside(HASH, packet(HASH_MISS)),
        live().beside("bare XDP drop", packet(BARE_LIVE)),
        live().beside("nftables set", packet(NFT_HIT)),
        live().beside("ipset", packet(IPSET_HIT)).note(format!(
            "misses, live: nftables {:.0}, ipset {:.0} ns",
            packet(NFT_MISS),
            packet(IPSET_MISS)
        )),
        row("load", load(OURS_LOAD), "ms").beside("nftables set", load(NFT_LOAD)),
        row("load", load(OURS_LOAD), "ms").beside("ipset", load(IPSET_LOAD)),
        row("replace", load(OURS_REPLACE), "ms").beside("nftables set", load(NFT_REPLACE)),
        row("replace", load(OURS_REPLACE), "ms").beside("ipset", load(IPSET_REPLACE)),
    ]
}

const OURS_HIT: &str = "secmesh, hit (test run)";
const OURS_MISS: &str = "secmesh, miss (test run)";
const HASH: &str = "one look-up in a BPF hash map";
const HASH_HIT: &str = "BPF hash map, hit (test run)";
const HASH_MISS: &str = "BPF hash map, miss (test run)";
const OURS_LIVE: &str = "secmesh, hit (live)";
const BARE_LIVE: &str = "bare XDP drop (live)";
const NFT_HIT: &str = "nftables, hit (live)";
const NFT_MISS: &str = "nftables, miss (live)";
const IPSET_HIT: &str = "ipset, hit (live)";
const IPSET_MISS: &str = "ipset, miss (live)";
const OURS_LOAD: &str = "secmesh, load";
const OURS_REPLACE: &str = "secmesh, replace";
const NFT_LOAD: &str = "nftables, load";
const NFT_REPLACE: &str = "nftables, replace";
const IPSET_LOAD: &str = "ipset, load";
const IPSET_REPLACE: &str = "ipset, replace";

fn size(effort: &Effort, power: u32) -> Result<Size> {
    let mut progress = Progress {
        power,
        since: Instant::now(),
    };
    progress.step("making the lists");
    let list = Blocked::new(false, 1 << power, 0)?;
    // Half of it is new.
    let mut next = Blocked {
        hosts: list
            .hosts
            .iter()
            .copied()
            .take(list.hosts.len() / 2)
            .collect(),
        prefixes: Vec::new(),
    };
    let mut random = Random::new(0x5eed_cafe);
    let known: std::collections::BTreeSet<IpAddr> = list.hosts.iter().copied().collect();
    let fresh = |random: &mut Random| loop {
        let address = address(false, random);
        if !known.contains(&address) {
            return address;
        }
    };
    let wanted: std::collections::BTreeSet<IpAddr> = std::iter::repeat_with(|| fresh(&mut random))
        .take(list.hosts.len() - next.hosts.len())
        .collect();
    next.hosts.extend(wanted);
    let count = keys(effort, power);
    let hits = list.sources(count);
    let misses: Vec<IpAddr> = std::iter::repeat_with(|| fresh(&mut random))
        .take(count)
        .collect();

    progress.step("loading and replacing ours");
    let mut size = Size {
        power,
        ..Size::default()
    };
    let mut kernel = ours::load(&[&Blocked {
        hosts: list.hosts.clone(),
        prefixes: Vec::new(),
    }])?;
    let (first, second) = (ours::compiled(&[&list]), ours::compiled(&[&next]));
    ours::replace(&mut kernel, &ours::compiled(&[]))?;
    let load = timed(|| ours::replace(&mut kernel, &first))?;
    let replace = timed(|| ours::replace(&mut kernel, &second))?;
    size.load_ms
        .extend([(OURS_LOAD, load), (OURS_REPLACE, replace)]);
    ours::replace(&mut kernel, &first)?;

    let program = kernel.dataplane.program()?.fd()?.try_clone()?;
    progress.step("walks");
    let mut hash = Bare::hash(&list.hosts)?;
    let hash = hash.program()?.fd()?.try_clone()?;
    let [hit, miss, hash_hit, hash_miss] = walks(effort, [&program, &hash], &hits, &misses)?;
    size.packet_ns.extend([
        (OURS_HIT, hit),
        (OURS_MISS, miss),
        (HASH_HIT, hash_hit),
        (HASH_MISS, hash_miss),
    ]);
    live(
        effort,
        &mut size,
        &mut kernel,
        &list,
        &next,
        (&hits, &misses),
        &mut progress,
    )?;
    progress.step("done");
    Ok(size)
}

/// Sources of one walk or flood: enough that most of the list is asked, and no more, since writing them into
/// the programs' maps takes time, too.
fn keys(effort: &Effort, power: u32) -> usize {
    let [least, most] = KEYS;
    (2_usize << power)
        .clamp(least, most)
        .min(effort.packets as usize)
}

fn timed(body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    body()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Net ns per packet of two programs, each for sources that are listed and for others.
fn walks(
    effort: &Effort,
    [own, hash]: [&ProgramFd; 2],
    hits: &[IpAddr],
    misses: &[IpAddr],
) -> Result<[f64; 4]> {
    let payload = udp_to(50_000, 443, &[b's'; 40]);
    let frame = ethernet(
        &[],
        IPV4,
        &ipv4_from(SOURCE4, &[], 0, protocol::UDP, &payload),
    );
    let mut bare = Bare::dropping()?;
    let bare = bare.program()?.fd()?.try_clone()?;
    let mut sides = [
        (Walk::load(own, hits)?, XDP_DROP, Vec::new()),
        (Walk::load(own, misses)?, XDP_PASS, Vec::new()),
        (Walk::load(hash, hits)?, XDP_DROP, Vec::new()),
        (Walk::load(hash, misses)?, XDP_PASS, Vec::new()),
        (Walk::load(&bare, hits)?, XDP_DROP, Vec::new()),
    ];
    for turn in 0..=effort.turns {
        for (walk, expected, times) in &mut sides {
            let (action, time) = walk.run(&frame, effort.packets)?;
            ensure!(action == *expected, "answer {action} instead of {expected}");
            if turn > 0 {
                times.push(time);
            }
        }
    }
    let [times @ .., floor] = sides.map(|(_, _, times)| median(times));
    Ok(times.map(|time| time - floor))
}

/// The receiver's time per packet of all sides, and the peers' loading times.
fn live(
    effort: &Effort,
    size: &mut Size,
    kernel: &mut secmesh_tests::kernel::Kernel,
    list: &Blocked,
    next: &Blocked,
    (hits, misses): (&[IpAddr], &[IpAddr]),
    progress: &mut Progress,
) -> Result<()> {
    progress.step("floods: preparing ours");
    let mut own = flood::to_us(Wire::new(0)?, kernel, hits)?;
    let mut bare = Bare::dropping()?;
    let mut bare_line = flood::to_bare(Wire::new(1)?, &mut bare, hits)?;

    progress.step("nftables: loading and replacing");
    let nft_wire = Wire::new(2)?;
    let start = Instant::now();
    let mut nft = Nft::load(&nft_wire, list, SetKind::Hash, true)?;
    size.load_ms
        .push((NFT_LOAD, start.elapsed().as_secs_f64() * 1e3));
    size.load_ms
        .push((NFT_REPLACE, timed(|| nft.replace(next))?));
    nft.replace(list)?;

    progress.step("ipset: loading and replacing");
    let set_wire = Wire::new(3)?;
    let start = Instant::now();
    let mut set = Ipset::load(&set_wire, list)?;
    size.load_ms
        .push((IPSET_LOAD, start.elapsed().as_secs_f64() * 1e3));
    size.load_ms
        .push((IPSET_REPLACE, timed(|| set.replace(next))?));
    set.replace(list)?;

    let by_set = |hit: bool| {
        let set = &set;
        move |_wire: &Wire| {
            set.dropped()
                .map(|(set, rest)| if hit { set } else { rest })
        }
    };
    progress.step("floods that hit");
    let mut nft_hit = Line::new(nft_wire, hits, Wire::received)?;
    let mut set_hit = Line::new(set_wire, hits, by_set(true))?;
    for turn in 0..=effort.turns {
        let keep = turn > 0;
        own.turn(effort, keep)?;
        bare_line.turn(effort, keep)?;
        nft_hit.turn(effort, keep)?;
        set_hit.turn(effort, keep)?;
    }
    size.packet_ns.extend([
        (OURS_LIVE, own.figures().cpu_ns),
        (BARE_LIVE, bare_line.figures().cpu_ns),
        (NFT_HIT, nft_hit.figures().cpu_ns),
        (IPSET_HIT, set_hit.figures().cpu_ns),
    ]);
    progress.step("floods that miss");
    let hit = nft_hit.wire.received()?;
    let mut nft_miss = Line::new(nft_hit.wire, misses, Wire::received)?;
    let mut set_miss = Line::new(set_hit.wire, misses, by_set(false))?;
    for turn in 0..=effort.turns {
        nft_miss.turn(effort, turn > 0)?;
        set_miss.turn(effort, turn > 0)?;
    }
    progress.step("nftables: reading its counters");
    // nft fetches all elements of the set for it, so once.
    let missed = nft_miss.wire.received()? - hit;
    let (by_set, by_rest) = nft.dropped()?;
    ensure!(
        is_nearly(by_set, hit) && is_nearly(by_rest, missed),
        "nftables drops {by_set} of {hit} that are listed and {by_rest} of {missed} that are not"
    );
    size.packet_ns.extend([
        (NFT_MISS, nft_miss.figures().cpu_ns),
        (IPSET_MISS, set_miss.figures().cpu_ns),
    ]);
    Ok(())
}

/// Whether the counts differ by some packets only: by those that a namespace sends by itself, and those that came
/// between two readings.
fn is_nearly(counted: u64, all: u64) -> bool {
    counted.abs_diff(all) <= 64 + all / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(power: u32, own: f64, hash: f64) -> Size {
        Size {
            power,
            packet_ns: vec![
                (OURS_HIT, own),
                (OURS_MISS, 9.0),
                (HASH_HIT, hash),
                (HASH_MISS, 4.0 + f64::from(power)),
            ],
            load_ms: Vec::new(),
        }
    }

    #[test]
    fn a_peer_that_drops_a_hundredth_less_is_noticed() {
        assert!(is_nearly(0, 0) && is_nearly(99_900, 100_000) && is_nearly(100_006, 100_000));
        assert!(!is_nearly(99_000, 100_000) && !is_nearly(1000, 0));
    }

    #[test]
    fn growth_is_the_last_size_less_the_first_beside_the_hash() {
        let sizes = [
            size(3, 50.0, 20.0),
            size(9, 500.0, 20.0),
            size(20, 140.0, 120.0),
        ];
        let rows = growth(&sizes);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.name.as_str(), row.value, row.peer_value, row.met))
            .collect();
        assert_eq!(
            told,
            [
                (
                    "growth from 2^3 to 2^20, hit",
                    Some(90.0),
                    Some(100.0),
                    Some(true)
                ),
                (
                    "growth from 2^3 to 2^20, miss",
                    Some(0.0),
                    Some(17.0),
                    Some(true)
                ),
            ]
        );
        let worse = growth(&[size(3, 50.0, 20.0), size(4, 61.0, 30.0)]);
        assert_eq!(worse.first().and_then(|row| row.met), Some(false));
        assert!(growth(&[]).is_empty());
    }
}
