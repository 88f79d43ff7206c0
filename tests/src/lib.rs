//! What the scenarios share.
//!
//! A scenario is a test in `tests/`, with a lab of its own that is removed when the test ends, also when
//! it fails. They need root and are therefore ignored by a plain `cargo test`; `cargo xtask test` runs
//! them, one at a time. By hand, as root:
//!
//! ```sh
//! cargo test --package secmesh-tests -- --ignored --test-threads=1
//! ```

pub mod attacker;
pub mod chaos;
pub mod decide;
pub mod fixtures;
pub mod frames;
pub mod kernel;
pub mod lists;
pub mod livegen;
pub mod nats;
pub mod netns;
pub mod outcast;
pub mod partition;
pub mod random;
pub mod records;
pub mod sizes;
pub mod transfer;
pub mod verdicts;
pub mod wallclock;
pub mod wire;

use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::build::{self, Mode};
use xtask::clock;
use xtask::lab::attack;
use xtask::lab::generators::Kind;
use xtask::lab::outcome::{Outcome, bars};
use xtask::lab::pinned::{self, Block, BlockMap};
use xtask::lab::state::Node;
use xtask::lab::{Lab, Options};

/// How long things may take that take milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A lab as the scenarios want it by default: four nodes that enforce.
///
/// # Errors
/// When the agent cannot be built.
pub fn options() -> Result<Options> {
    Ok(Options::new(build::agent(Mode::Dev)?))
}

/// Starts a lab of so many nodes that enforce.
///
/// # Errors
/// When it does not come up.
pub fn lab(nodes: usize) -> Result<Lab> {
    Lab::start(options()?.nodes(nodes))
}

/// Attacks two nodes for two seconds.
///
/// # Errors
/// When the attack cannot be made or measured.
pub fn attack_two_nodes(lab: &Lab, kind: Kind, ipv6: bool) -> Result<Outcome> {
    let options = attack::Options {
        ipv6,
        seconds: 2,
        ..attack::Options::new(kind)
    };
    attack::run(lab.state(), &options)
}

/// Asserts that an attack was blocked on all nodes while the client kept working.
///
/// # Errors
/// What was not so, with the whole outcome.
pub fn ensure_defended(outcome: &Outcome) -> Result<()> {
    let told = || serde_json::to_string_pretty(outcome).unwrap_or_else(|error| error.to_string());
    // How long each took is measured by `cargo xtask lab attack` and held to the bars there, on a machine that
    // does nothing else. Here it has to have come about, in this order.
    ensure!(outcome.t_alert_ms.is_some(), "no alert: {}", told());
    ensure!(
        outcome.t_alert_to_drop_ms.is_some(),
        "not blocked everywhere after the alert: {}",
        told()
    );
    ensure!(
        outcome.in_kernel_map == outcome.nodes,
        "the block is not in every kernel: {}",
        told()
    );
    ensure!(
        outcome.decision.is_some(),
        "no certified decision: {}",
        told()
    );
    ensure!(
        outcome.attack_packets > 0,
        "the attack ended before anything could be dropped: {}",
        told()
    );
    ensure!(
        outcome
            .drop_share
            .is_some_and(|share| share >= bars::DROP_SHARE),
        "too few dropped: {}",
        told()
    );
    ensure!(
        outcome.passed_packets * 100 <= outcome.attack_packets,
        "packets got past XDP: {}",
        told()
    );
    ensure!(
        outcome.legit_attempts > 0,
        "the client did nothing: {}",
        told()
    );
    ensure!(
        outcome.legit_ok * 100 >= outcome.legit_attempts * 99,
        "the client suffered: {}",
        told()
    );
    Ok(())
}

/// The block of an address in a node's kernel, looked up past the agent.
///
/// # Errors
/// When the map cannot be read.
pub fn kernel_block(node: &Node, address: IpAddr) -> Result<Option<Block>> {
    BlockMap::open(&pinned::block_map(&node.pin_dir, address))?.get(address)
}

/// Waits until a block of `address` is, or is not, in the kernel of every given node.
///
/// # Errors
/// When that does not come true within [`PATIENCE`].
pub fn wait_for_blocks(nodes: &[Node], address: IpAddr, expected: bool) -> Result<()> {
    let mut last = String::new();
    let done = clock::wait_until(PATIENCE, Duration::from_millis(20), || {
        for node in nodes {
            if kernel_block(node, address)?.is_some() != expected {
                last.clone_from(&node.name);
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    done.with_context(|| format!("{last}: block of {address} expected in the kernel: {expected}"))
}

/// Both outputs of a program, for looking for words in.
pub fn words_of(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
