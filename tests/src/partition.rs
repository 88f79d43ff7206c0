//! Links of a lab that break, and what the nodes have when they are whole again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::Lab;
use xtask::lab::broker::Broker;
use xtask::lab::net::Family;
use xtask::lab::state::LabState;
use xtask::{clock, sh};

const TABLE: &str = "secmesh_cut";

/// Nodes that do not hear each other: what comes from the other side is dropped behind XDP, silently, as by a
/// switch that fails. Dropping it heals.
#[derive(Debug)]
pub struct Partition {
    namespaces: Vec<String>,
}

impl Partition {
    /// Cuts these sides off from each other; who is on none hears everybody.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn cut(lab: &Lab, sides: &[&[usize]]) -> Result<Self> {
        let mut cut = Self {
            namespaces: Vec::new(),
        };
        for side in sides {
            for number in *side {
                let others: Vec<usize> = sides
                    .iter()
                    .filter(|other| other != &side)
                    .flat_map(|other| other.iter().copied())
                    .collect();
                let addresses = |family| -> Result<String> {
                    let all: Vec<String> = others
                        .iter()
                        .map(|other| Ok(LabState::address(lab.node(*other)?, family).to_string()))
                        .collect::<Result<_>>()?;
                    Ok(all.join(", "))
                };
                let rules = format!(
                    "table inet {TABLE} {{\nchain input {{\ntype filter hook input priority -300;\n\
                     ip saddr {{ {} }} drop\nip6 saddr {{ {} }} drop\n}}\n}}",
                    addresses(Family::V4)?,
                    addresses(Family::V6)?
                );
                let namespace = lab.node(*number)?.namespace.clone();
                cut.namespaces.push(namespace.clone());
                nft(&namespace, &[&rules])?;
            }
        }
        Ok(cut)
    }

    /// Cuts each of these nodes off from the lab's NATS server, in both directions; everything else goes on.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn from_broker(lab: &Lab, nodes: &[usize]) -> Result<Self> {
        let mut cut = Self {
            namespaces: Vec::new(),
        };
        let broker = Broker::address();
        let rules = format!(
            "table inet {TABLE} {{\n\
             chain input {{\ntype filter hook input priority -300;\n\
             ip saddr {ip} tcp sport {port} drop\n}}\n\
             chain output {{\ntype filter hook output priority -300;\n\
             ip daddr {ip} tcp dport {port} drop\n}}\n}}",
            ip = broker.ip(),
            port = broker.port()
        );
        for number in nodes {
            let namespace = lab.node(*number)?.namespace.clone();
            cut.namespaces.push(namespace.clone());
            nft(&namespace, &[&rules])?;
        }
        Ok(cut)
    }

    /// Heals, and says when.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn heal(mut self) -> Result<Instant> {
        let now = Instant::now();
        for namespace in std::mem::take(&mut self.namespaces) {
            nft(&namespace, &["delete", "table", "inet", TABLE])?;
        }
        Ok(now)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // With the namespace it goes anyway.
            let _gone = nft(namespace, &["delete", "table", "inet", TABLE]);
        }
    }
}

fn nft(namespace: &str, args: &[&str]) -> Result<()> {
    let mut command = xtask::lab::ns::command(namespace, "nft")?;
    sh::output(command.args(args))?;
    Ok(())
}

/// What each of these nodes prints as `secmesh mesh digest`.
///
/// # Errors
/// When an agent does not answer.
pub fn digests(lab: &Lab, nodes: &[usize]) -> Result<Vec<String>> {
    nodes
        .iter()
        .map(|number| lab.agent(*number)?.must(&["mesh", "digest"]))
        .collect()
}

/// Waits until these nodes print the same digest, byte for byte, and `holds` of it.
///
/// # Errors
/// What they print, when that does not come true within `limit`.
pub fn same(
    lab: &Lab,
    nodes: &[usize],
    limit: Duration,
    holds: impl Fn(&str) -> bool,
) -> Result<String> {
    let mut last = Vec::new();
    let same = clock::wait_until(limit, Duration::from_millis(100), || {
        last = digests(lab, nodes)?;
        let first = last.first().context("no nodes")?;
        Ok((last.iter().all(|digest| digest == first) && holds(first)).then(|| first.clone()))
    })?;
    same.with_context(|| {
        format!(
            "not the same on all after {} s:\n{}",
            limit.as_secs(),
            last.join("\n")
        )
    })
}

/// The number that a line of a digest ends with.
///
/// # Errors
/// When there is no such line.
pub fn number(digest: &str, line: &str) -> Result<u64> {
    digest
        .lines()
        .filter_map(|text| text.strip_prefix(line))
        .flat_map(str::split_whitespace)
        .find_map(|word| word.parse().ok())
        .with_context(|| format!("no number in the line `{line}` of\n{digest}"))
}

/// A counter of a node's controller.
///
/// # Errors
/// When the agent does not answer, or has no such counter.
pub fn counter(lab: &Lab, node: usize, name: &str) -> Result<u64> {
    let counters = lab.agent(node)?.status()?.controller;
    counters.get(name).copied().with_context(|| name.to_owned())
}

/// Waits until node `by` shows node `about` as `liveness`.
///
/// # Errors
/// What it shows, when that does not come true within `limit`.
pub fn sees(lab: &Lab, by: usize, about: usize, liveness: &str, limit: Duration) -> Result<()> {
    let name = &lab.node(about)?.name;
    let mut last = None;
    let shown = clock::wait_until(limit, Duration::from_millis(50), || {
        let peers = lab.agent(by)?.peers()?;
        last = peers.into_iter().find(|peer| peer.name == *name);
        let shown = last.as_ref().and_then(|peer| peer.liveness.as_deref());
        Ok((shown == Some(liveness)).then_some(()))
    })?;
    shown.with_context(|| format!("n{by} does not show {name} as {liveness}: {last:?}"))
}

/// Waits until node `by` shows the quorum in this state and with this weight in reach.
///
/// # Errors
/// What it shows, when that does not come true within `limit`.
pub fn quorum(lab: &Lab, by: usize, state: &str, reachable: u64, limit: Duration) -> Result<()> {
    let mut last = None;
    let shown = clock::wait_until(limit, Duration::from_millis(50), || {
        let quorum = lab.agent(by)?.status()?.quorum;
        let there = quorum.state == state && quorum.reachable_weight == reachable;
        last = Some(quorum);
        Ok(there.then_some(()))
    })?;
    shown.with_context(|| format!("n{by} should see {state} with {reachable} in reach: {last:?}"))
}

/// Asserts that nobody counts this node's word as refused for the engine's rules.
///
/// # Errors
/// The counters that moved.
pub fn ensure_no_liars(lab: &Lab, nodes: &[usize]) -> Result<()> {
    for number in nodes {
        let peers = lab.agent(*number)?.peers()?;
        ensure!(
            peers.iter().all(|peer| !peer.equivocated),
            "n{number} takes somebody for a liar: {peers:?}"
        );
    }
    Ok(())
}
