//! Our kernel program beside its peers, in one run.
//!
//! Prints one JSON array of rows; `cargo xtask bench dataplane` builds, runs and frames it, and
//! `docs/benchmarks.md` says how to read it. All sides of a row are measured in turns, so that whatever
//! else the machine does meets all of them; each value is the median over the turns.

mod addresses;
mod blocklist;
mod drop;
mod flood;
mod million;
mod ours;
mod pass;
mod peers;
mod plot;
mod syn;
mod testrun;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use secmesh_tests::kernel::isolate;
use xtask::{bench, sh};

/// Measures the kernel program beside its peers; prints rows as JSON.
#[derive(Parser)]
struct Arguments {
    /// Only these rows.
    #[arg(long, value_enum)]
    row: Vec<Group>,
    /// Every size and more turns.
    #[arg(long, conflicts_with = "smoke")]
    full: bool,
    /// Hardly anything: whether each row works, not what it costs.
    #[arg(long)]
    smoke: bool,
    /// Where the plot of the blocklist's rows goes.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// A group of rows, one file each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// A blocked source's packet.
    Drop,
    /// A benign packet with everything armed.
    Pass,
    /// A flood from blocked sources over a veth pair.
    Flood,
    /// Connections during a SYN flood.
    Syn,
    /// Blocklists of many sizes.
    Blocklist,
    /// A list of a million addresses, from text to kernel.
    Load,
}

/// How much is measured.
#[derive(Debug, Clone)]
struct Effort {
    /// Turns of each side; odd, so that the median is one of them.
    turns: usize,
    /// Packets in one turn of a walk; `testrun` has more turns, of half as many.
    packets: u32,
    /// Length of one turn of a flood; in the flood rows of nftables', the others have more and shorter ones.
    flood: Duration,
    /// Length of one turn of a SYN flood with connections.
    connections: Duration,
    /// Addresses in the blocklist, of each family.
    hosts: u32,
    /// Prefixes in it.
    prefixes: u32,
    /// Sizes of the blocklist's rows, as powers of two.
    sizes: Vec<u32>,
    /// How long those may take together before the rest is left out.
    budget: Duration,
    /// Addresses of the list that is loaded from text, of each family; a tenth as many prefixes.
    loaded: u32,
}

impl Effort {
    fn of(arguments: &Arguments) -> Self {
        if arguments.smoke {
            return Self {
                turns: 1,
                packets: 1000,
                flood: Duration::from_millis(50),
                connections: Duration::from_millis(300),
                hosts: 1000,
                prefixes: 100,
                sizes: vec![3, 9],
                budget: Duration::from_mins(4),
                loaded: 10_000,
            };
        }
        let quick = Self {
            turns: 7,
            packets: 1_000_000,
            flood: Duration::from_millis(500),
            connections: Duration::from_secs(3),
            hosts: 100_000,
            prefixes: 10_000,
            sizes: vec![3, 6, 9, 12, 15, 18, 20],
            budget: Duration::from_mins(4),
            loaded: 1_000_000,
        };
        if !arguments.full {
            return quick;
        }
        Self {
            turns: 15,
            sizes: (3..=20).collect(),
            budget: Duration::from_mins(30),
            ..quick
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    for program in [
        "bpftool",
        "ethtool",
        "ip",
        "ipset",
        "iptables",
        "nft",
        "xdp-filter",
    ] {
        ensure!(
            sh::which(program).is_some(),
            "{program} is not installed; `cargo xtask setup` installs it"
        );
    }
    let effort = Effort::of(&arguments);
    isolate()?;
    bench::print_groups(&arguments.row, |group| match group {
        Group::Drop => drop::rows(&effort),
        Group::Pass => pass::rows(&effort),
        Group::Flood => flood::rows(&effort),
        Group::Syn => syn::rows(&effort),
        Group::Blocklist => blocklist::rows(&effort, arguments.plot.as_deref()),
        Group::Load => million::rows(&effort),
    })
}
