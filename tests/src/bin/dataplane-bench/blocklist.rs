//! Blocklists of 2^3 to 2^20 addresses: what a packet costs, how long loading and replacing takes.
//!
//! Two methods, because no one does for everything:
//!
//! * **test run**: a program of the tests' gives each packet of one test run another source and calls ours
//!   (`livegen::Walk`); what the same takes in front of a bare drop is subtracted. Hits and misses.
//! * **live**: the generator floods a veth end; the time of the receiver's NAPI thread per packet, from the
//!   ring to the drop. Hits only for us, because a miss is a packet that the host goes on with; nftables
//!   and iptables get a second rule that drops what their set does not have.

use std::{net::IpAddr, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use secmesh_tests::{
    frames::{IPV4, SOURCE4, ethernet, ipv4_from, protocol, udp_to},
    kernel::{XDP_DROP, XDP_PASS},
    livegen::{Bare, Walk},
    wire::Wire,
};
use xtask::bench::Row;

use crate::{
    Effort,
    addresses::{Blocked, Random, address},
    flood::{self, Line},
    median, ours,
    peers::{Ipset, Nft, SetKind},
    plot,
};

const GROUP: &str = "blocklist";
/// Most sources of one walk or flood.
const KEYS: usize = 1 << 20;

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
    let mut sizes = Vec::new();
    for power in &effort.sizes {
        eprintln!("measuring: 2^{power} addresses");
        sizes.push(size(effort, *power).with_context(|| format!("2^{power} addresses"))?);
    }
    if let Some(file) = plot {
        std::fs::write(file, plot::svg(&sizes)).with_context(|| file.display().to_string())?;
    }
    Ok(sizes.iter().flat_map(table).collect())
}

fn table(size: &Size) -> Vec<Row> {
    let find = |all: &[(&str, f64)], label: &str| {
        let found = all.iter().find(|(name, _)| *name == label);
        found.map_or(f64::NAN, |(_, value)| *value)
    };
    let power = size.power;
    let packet = |label| find(&size.packet_ns, label);
    let load = |label| find(&size.load_ms, label);
    let row = |name: &str, value, unit| Row::new(GROUP, format!("2^{power}, {name}"), value, unit);
    let live = || row("live hit", packet(OURS_LIVE), "ns/packet");
    vec![
        row("test run, hit", packet(OURS_HIT), "ns/packet"),
        row("test run, miss", packet(OURS_MISS), "ns/packet"),
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
    let count = effort_keys(effort);
    let hits = list.sources(count);
    let misses: Vec<IpAddr> = std::iter::repeat_with(|| fresh(&mut random))
        .take(count)
        .collect();

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
    let (hit, miss) = walks(effort, &program, &hits, &misses)?;
    size.packet_ns.extend([(OURS_HIT, hit), (OURS_MISS, miss)]);
    live(
        effort,
        &mut size,
        &mut kernel,
        &list,
        &next,
        (&hits, &misses),
    )?;
    Ok(size)
}

/// Sources of one walk or flood: enough that the whole of the largest list is asked.
fn effort_keys(effort: &Effort) -> usize {
    KEYS.min(effort.packets as usize)
}

fn timed(body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    body()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Net ns per packet of our program, for sources that are listed and for others.
fn walks(
    effort: &Effort,
    program: &ProgramFd,
    hits: &[IpAddr],
    misses: &[IpAddr],
) -> Result<(f64, f64)> {
    let payload = udp_to(50_000, 443, &[b's'; 40]);
    let frame = ethernet(
        &[],
        IPV4,
        &ipv4_from(SOURCE4, &[], 0, protocol::UDP, &payload),
    );
    let mut bare = Bare::dropping()?;
    let bare = bare.program()?.fd()?.try_clone()?;
    let mut sides = [
        (Walk::load(program, hits)?, XDP_DROP, Vec::new()),
        (Walk::load(program, misses)?, XDP_PASS, Vec::new()),
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
    let [hit, miss, floor] = sides.map(|(_, _, times)| median(times));
    Ok((hit - floor, miss - floor))
}

/// The receiver's time per packet of all sides, and the peers' loading times.
fn live(
    effort: &Effort,
    size: &mut Size,
    kernel: &mut secmesh_tests::kernel::Kernel,
    list: &Blocked,
    next: &Blocked,
    (hits, misses): (&[IpAddr], &[IpAddr]),
) -> Result<()> {
    let mut own = flood::to_us(Wire::new(0)?, kernel, hits)?;
    let mut bare = Bare::dropping()?;
    let mut bare_line = flood::to_bare(Wire::new(1)?, &mut bare, hits)?;

    let nft_wire = Wire::new(2)?;
    let start = Instant::now();
    let mut nft = Nft::load(&nft_wire, list, SetKind::Hash, true)?;
    size.load_ms
        .push((NFT_LOAD, start.elapsed().as_secs_f64() * 1e3));
    size.load_ms
        .push((NFT_REPLACE, timed(|| nft.replace(next))?));
    nft.replace(list)?;

    let set_wire = Wire::new(3)?;
    let start = Instant::now();
    let mut set = Ipset::load(&set_wire, list)?;
    size.load_ms
        .push((IPSET_LOAD, start.elapsed().as_secs_f64() * 1e3));
    size.load_ms
        .push((IPSET_REPLACE, timed(|| set.replace(next))?));
    set.replace(list)?;

    let by_nft = |hit: bool| {
        let nft = &nft;
        move |_wire: &Wire| {
            nft.dropped()
                .map(|(set, rest)| if hit { set } else { rest })
        }
    };
    let by_set = |hit: bool| {
        let set = &set;
        move |_wire: &Wire| {
            set.dropped()
                .map(|(set, rest)| if hit { set } else { rest })
        }
    };
    let mut nft_hit = Line::new(nft_wire, hits, by_nft(true))?;
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
    let mut nft_miss = Line::new(nft_hit.wire, misses, by_nft(false))?;
    let mut set_miss = Line::new(set_hit.wire, misses, by_set(false))?;
    for turn in 0..=effort.turns {
        nft_miss.turn(effort, turn > 0)?;
        set_miss.turn(effort, turn > 0)?;
    }
    size.packet_ns.extend([
        (NFT_MISS, nft_miss.figures().cpu_ns),
        (IPSET_MISS, set_miss.figures().cpu_ns),
    ]);
    Ok(())
}
