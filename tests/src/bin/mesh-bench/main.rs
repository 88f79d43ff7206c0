//! What the mesh costs.
//!
//! Prints one JSON array of rows; `cargo xtask bench mesh` builds, runs and frames it, and
//! `docs/benchmarks.md` says how to read it. Each value is the median over the turns.

mod ledger;
mod nodes;
mod votes;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use xtask::bench;
use xtask::lab::Carrier;

/// Measures the mesh; prints rows as JSON.
#[derive(Parser)]
struct Arguments {
    /// Only these rows.
    #[arg(long, value_enum)]
    row: Vec<Group>,
    /// More turns.
    #[arg(long, conflicts_with = "smoke")]
    full: bool,
    /// Hardly anything: whether each row works, not what it costs.
    #[arg(long)]
    smoke: bool,
}

/// A group of rows, one file each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Appending to a ledger and verifying it.
    Ledger,
    /// From an alert to every kernel, four nodes.
    Latency,
    /// The same with thirty nodes.
    #[value(name = "latency-30")]
    Latency30,
    /// Verifying votes.
    Votes,
    /// Traffic and processor of thirty nodes that do nothing.
    Idle,
    /// The same, their messages going through a NATS server.
    #[value(name = "idle-nats")]
    IdleNats,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Turns; odd, so that the median is one of them.
    turns: usize,
    /// Entries of the ledger that is verified.
    entries: u64,
    /// Alerts that are waited for; half as many with many nodes.
    alerts: usize,
    /// Nodes where there are to be many.
    nodes: usize,
    /// Rounds of thirty votes.
    votes: u64,
    /// How long nodes are left alone until nobody has anything to tell of their coming any more: two checkpoints of
    /// their ledgers, one that is cosigned and one with which it is told on.
    calm: Duration,
    /// How long they are measured while nothing happens.
    quiet: Duration,
}

impl Effort {
    const fn of(arguments: &Arguments) -> Self {
        match (arguments.smoke, arguments.full) {
            (true, _) => Self {
                turns: 1,
                entries: 2_000,
                alerts: 4,
                nodes: 5,
                votes: 2,
                calm: Duration::from_secs(1),
                quiet: Duration::from_secs(1),
            },
            (_, true) => Self {
                turns: 15,
                entries: 1_000_000,
                alerts: 400,
                nodes: 30,
                votes: 2_000,
                calm: Duration::from_secs(75),
                quiet: Duration::from_mins(1),
            },
            _ => Self {
                turns: 5,
                entries: 300_000,
                alerts: 100,
                nodes: 30,
                votes: 400,
                calm: Duration::from_secs(75),
                quiet: Duration::from_secs(30),
            },
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let effort = Effort::of(&arguments);
    bench::print_groups(&arguments.row, |group| match group {
        Group::Ledger => ledger::rows(effort),
        Group::Latency => nodes::latency(effort),
        Group::Latency30 => nodes::latency_30(effort),
        Group::Votes => votes::rows(effort),
        Group::Idle => nodes::idle(effort, Carrier::Grpc),
        Group::IdleNats => nodes::idle(effort, Carrier::Nats),
    })
}
