//! Taking a node of a lab over: it is attacked, then it attacks the others; they cut it off by vote, and a spare
//! server that waited takes its place.
//!
//! As with [`super::attack`], what counts is seen from outside: packets on the switch and behind XDP, the pinned maps
//! in the kernel. Agents are asked for what only they know: alerts, certificates, connections, digests.

pub mod outcome;
pub mod spare;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

pub use self::outcome::Outcome;
use self::spare::Spare;
use super::agent::{Client, Peer, Status};
use super::generators::{Attack, Generators, Kind, Target};
use super::net::{self, ATTACKER_PORT, Family, INTERFACE, SPARE};
use super::outcome::{ms, spread};
use super::pinned::{self, BlockMap};
use super::state::{LabState, Node};
use super::tap::Tap;
use super::{attack, echo};
use crate::{clock, stop};

/// The fewest nodes: with less, the others cannot outvote one of theirs and lose another.
pub const MIN_NODES: usize = 7;
/// Which node is taken over: one that has weight from the beginning, and is not the one that invites.
const TAKEN: usize = 4;
/// How long the attack on that node lasts, and how fast it is.
const BEFORE_S: u32 = 2;
const BEFORE_RATE: u32 = 2_000;
/// How often the kernel's maps are looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How often agents are asked.
const ASK: Duration = Duration::from_millis(200);
/// How long anything may take that should take seconds, with thirty agents on two cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a node is taken over.
#[derive(Debug, Clone)]
pub struct Options {
    /// Packets per second from it to each of the others; 200 are an attack.
    pub rate: u32,
    /// How long it attacks at most, in seconds.
    pub seconds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: 500,
            seconds: 30,
        }
    }
}

/// A healthy node under watch.
struct Watched<'a> {
    node: &'a Node,
    map: BlockMap,
    behind_xdp: Tap,
    blocked_unix_us: Option<u64>,
    /// Of its counter of packets from nodes that are cut off, before.
    dropped_before: u64,
}

/// The lab while it goes on.
struct Run<'a> {
    lab: &'a LabState,
    bad: &'a Node,
    address: IpAddr,
    watched: Vec<Watched<'a>>,
    wire: Tap,
    first_unix_us: u64,
    outcome: Outcome,
}

/// Takes a node of the lab over and measures what comes of it; tells `say` how far it is.
///
/// The lab's nodes must run agents. On success the spare server is a node of the lab from then on.
///
/// # Errors
/// When it could not be done or measured, or somebody stopped it; a mesh that did badly is no error, but an
/// [`Outcome`] that is not ok.
pub fn run(lab: &LabState, options: &Options, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
    ensure!(
        lab.nodes.len() >= MIN_NODES,
        "taking a node over needs a lab of at least {MIN_NODES} nodes: cargo xtask lab --nodes {MIN_NODES}"
    );
    ensure!(
        (1..=5_000).contains(&options.rate) && (5..=60).contains(&options.seconds),
        "it attacks each of the others with 1 to 5000 packets per second for 5 to 60 seconds"
    );
    let mut run = Run::prepare(lab)?;
    let (name, nodes) = (run.bad.name.clone(), lab.nodes.len());
    say(&format!(
        "A spare server waits with its ticket; {nodes} nodes, nobody is missing …"
    ));
    let mut spare = Spare::start(lab)?;
    run.let_it_wait(&mut spare)?;
    say(&format!("{name} is attacked …"));
    run.attack_it()?;
    say(&format!("{name} attacks the {} others …", nodes - 1));
    let generators = run.turn_it(options)?;
    run.watch_the_kernels(&generators)?;
    run.ask_around()?;
    drop(generators);
    say("The spare takes its place …");
    run.replace(&mut spare)?;
    run.outcome.judge();
    if run.outcome.t_running_ms.is_some() {
        spare.keep();
    }
    Ok(run.outcome)
}

/// Calls `ask` until it is true; gives whether it ever was.
fn until(
    limit: Duration,
    pause: Duration,
    mut ask: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let done = clock::wait_until(limit, pause, || {
        if stop::requested() {
            bail!("stopped");
        }
        Ok(ask()?.then_some(()))
    })?;
    Ok(done.is_some())
}

fn told_to_wait(status: &Status) -> u64 {
    let count = status.controller.get("spares_waiting");
    count.copied().unwrap_or(0)
}

fn dropped(status: &Status) -> u64 {
    let count = status.counters.get("drop_quarantine");
    count.copied().unwrap_or(0)
}

impl<'a> Run<'a> {
    fn prepare(lab: &'a LabState) -> anyhow::Result<Self> {
        let bad = lab.nodes.get(TAKEN - 1).context("the node to take over")?;
        let address = LabState::address(bad, Family::V4);
        let mut outcome = Outcome::new(bad.name.clone(), address, lab.nodes.len());
        let mut watched = Vec::new();
        for node in lab.nodes.iter().filter(|node| node.number != bad.number) {
            let status = Client::new(lab, node).status()?;
            ensure!(
                status.quarantined.is_empty(),
                "somebody is cut off in this lab already: start a new one"
            );
            outcome.voters = status.quorum.voters;
            watched.push(Watched {
                map: BlockMap::open(&pinned::block_map(&node.pin_dir, address)).with_context(
                    || format!("cannot look into the kernel's map of {}", node.name),
                )?,
                behind_xdp: Tap::open_tcp(&node.namespace, INTERFACE, address, echo::PORT)?,
                blocked_unix_us: None,
                dropped_before: dropped(&status),
                node,
            });
        }
        let switch = lab.namespace("switch");
        // On the switch's side of its cable.
        let port: &'static str = ["n1", "n2", "n3", "n4"]
            .get(TAKEN - 1)
            .context("the port of the node to take over")?;
        Ok(Self {
            wire: Tap::open_tcp(&switch, port, address, echo::PORT)?,
            lab,
            bad,
            address,
            watched,
            first_unix_us: 0,
            outcome,
        })
    }

    fn since_first(&self) -> f64 {
        ms(self.first_unix_us, clock::unix_us())
    }

    fn healthy(&self) -> Vec<Client<'a>> {
        let all = self.watched.iter();
        all.map(|watched| Client::new(self.lab, watched.node))
            .collect()
    }

    /// The spare asks around, and is told to wait; also by a second member.
    fn let_it_wait(&mut self, spare: &mut Spare<'_>) -> anyhow::Result<()> {
        let before = self.waits()?;
        let mut after = before;
        until(PATIENCE, ASK, || {
            after = self.waits()?;
            Ok(after >= before + 2 || spare.is_in()?)
        })?;
        self.outcome.told_to_wait = after.saturating_sub(before);
        self.outcome.spare_came_early = spare.is_in()?;
        Ok(())
    }

    fn waits(&self) -> anyhow::Result<u64> {
        let all = self.lab.nodes.iter();
        all.map(|node| Ok(told_to_wait(&Client::new(self.lab, node).status()?)))
            .sum()
    }

    fn target(node: &Node) -> anyhow::Result<Target> {
        attack::target(node, Family::V4)
    }

    /// The attack by which it is taken over. It blocks the attacker for itself; one node's word is no more.
    fn attack_it(&mut self) -> anyhow::Result<()> {
        let source = attack::unused_source(self.lab, Family::V4)?;
        let namespace = self.lab.namespace(ATTACKER_PORT);
        let source_link = net::link_address(&namespace)?;
        let map = BlockMap::open(&pinned::block_map(&self.bad.pin_dir, source))?;
        let generators = Generators::start(&Attack {
            kind: Kind::SynFlood,
            namespace: &namespace,
            source,
            source_link: &source_link,
            targets: &[Self::target(self.bad)?],
            rate: BEFORE_RATE,
            seconds: BEFORE_S,
            work_dir: &self.lab.work_dir,
            log: &self.lab.work_dir.join("attack.log"),
        })?;
        let limit = Duration::from_secs(u64::from(BEFORE_S) + 10);
        self.outcome.was_attacked = until(limit, LOOK, || Ok(map.get(source)?.is_some()))?;
        drop(generators);
        Ok(())
    }

    /// From now on the node attacks all others, from its own address.
    fn turn_it(&mut self, options: &Options) -> anyhow::Result<Generators> {
        let targets = self
            .watched
            .iter()
            .map(|watched| Self::target(watched.node))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let source_link = net::link_address(&self.bad.namespace)?;
        let count = u32::try_from(targets.len()).context("too many nodes")?;
        let log = self.lab.work_dir.join("takeover.log");
        let generators = Generators::start(&Attack {
            kind: Kind::SynFlood,
            namespace: &self.bad.namespace,
            source: self.address,
            source_link: &source_link,
            targets: &targets,
            rate: options.rate.saturating_mul(count),
            seconds: options.seconds,
            work_dir: &self.lab.work_dir,
            log: &log,
        })?;
        let sent = until(Duration::from_secs(10), LOOK, || {
            self.first_unix_us = self.wire.first_unix_us()?.unwrap_or(0);
            Ok(self.first_unix_us > 0)
        })?;
        ensure!(
            sent,
            "the attack tool sent nothing; what it said is in {}",
            log.display()
        );
        Ok(generators)
    }

    /// When each healthy node's kernel drops what comes from it, and that it does.
    fn watch_the_kernels(&mut self, generators: &Generators) -> anyhow::Result<()> {
        let address = self.address;
        let watched = &mut self.watched;
        until(PATIENCE, LOOK, || {
            for node in watched.iter_mut().filter(|n| n.blocked_unix_us.is_none()) {
                if node.map.get(address)?.is_some() {
                    node.blocked_unix_us = Some(clock::unix_us());
                }
            }
            Ok(watched.iter().all(|node| node.blocked_unix_us.is_some()))
        })?;
        let times: Vec<u64> = watched.iter().filter_map(|n| n.blocked_unix_us).collect();
        self.outcome.in_kernel_on = times.len();
        if times.len() == self.watched.len() {
            self.outcome.t_kernel_ms = spread(self.first_unix_us, &times);
        }
        let passed = |run: &Self| -> anyhow::Result<u64> {
            run.watched.iter().map(|n| n.behind_xdp.packets()).sum()
        };
        // What was on its way up when the last block came has arrived by then.
        std::thread::sleep(Duration::from_millis(100));
        let before = passed(self)?;
        // While it goes on attacking.
        let started = Instant::now();
        until(PATIENCE, ASK, || {
            let mut on = 0;
            for watched in &self.watched {
                let status = Client::new(self.lab, watched.node).status()?;
                on += usize::from(dropped(&status) > watched.dropped_before);
            }
            self.outcome.dropped_on = on;
            Ok(on == self.watched.len() && started.elapsed() >= Duration::from_secs(1))
        })?;
        self.outcome.passed_packets = passed(self)?.saturating_sub(before);
        self.outcome.attack_packets = self.wire.packets()?;
        // Borrowed to say that it was not ended before this was measured.
        let _: &Generators = generators;
        Ok(())
    }

    /// What the agents say of it.
    fn ask_around(&mut self) -> anyhow::Result<()> {
        let subject = self.address.to_string();
        let first = self.first_unix_us;
        let mut alerts: Vec<u64> = Vec::new();
        let mut since: Vec<u64> = Vec::new();
        for client in self.healthy() {
            let of_it = client.alerts()?.into_iter();
            alerts.extend(
                of_it
                    .filter(|alert| alert.subject == subject && alert.raised_unix_us >= first)
                    .map(|alert| alert.raised_unix_us)
                    .min(),
            );
            let cut_off = client.status()?.quarantined;
            let cut_off = cut_off.into_iter().find(|q| q.name == self.bad.name);
            if let Some(cut_off) = cut_off.filter(|q| !q.by_operator) {
                since.push(cut_off.since_unix_us);
                self.outcome.votes = Some(cut_off.votes.len());
                self.outcome.class = Some(cut_off.class);
            }
        }
        let outcome = &mut self.outcome;
        outcome.alerts = alerts.len();
        outcome.t_alert_ms = alerts.into_iter().min().map(|time| ms(first, time));
        outcome.t_certificate_ms = since.iter().min().map(|time| ms(first, *time));
        if since.len() == outcome.healthy() {
            outcome.t_known_ms = since.iter().max().map(|time| ms(first, *time));
        }
        Ok(())
    }

    /// Looks at the connections of every healthy node: on how many the bad one is cut off, on how many the spare is
    /// connected.
    fn look_at_connections(&mut self) -> anyhow::Result<(usize, usize)> {
        let healthy: BTreeSet<&str> = self
            .watched
            .iter()
            .map(|watched| watched.node.name.as_str())
            .collect();
        let (mut cut_off, mut with_spare) = (0, 0);
        for watched in &self.watched {
            let peers = Client::new(self.lab, watched.node).peers()?;
            let is = |name: &str, holds: fn(&Peer) -> bool| {
                peers.iter().any(|peer| peer.name == name && holds(peer))
            };
            cut_off += usize::from(is(&self.bad.name, |p| p.quarantined && !p.connected));
            with_spare += usize::from(is(SPARE, |peer| peer.connected));
            let together = healthy
                .iter()
                .all(|name| is(name, |peer| peer.connected || peer.this_node));
            self.outcome.looks += 1;
            self.outcome.apart += u64::from(!together);
        }
        self.outcome.cut_off_on = cut_off;
        Ok((cut_off, with_spare))
    }

    /// The spare comes by itself: it is let in, runs, is connected, and all agree.
    fn replace(&mut self, spare: &mut Spare<'_>) -> anyhow::Result<()> {
        let healthy = self.watched.len();
        let cut_off = until(PATIENCE, ASK, || {
            Ok(self.look_at_connections()?.0 == healthy)
        })?;
        let bad = Client::new(self.lab, self.bad);
        until(PATIENCE, ASK, || {
            let peers = bad.peers()?;
            let connected = peers.iter().filter(|p| p.connected && !p.this_node);
            self.outcome.still_connected = connected.count();
            Ok(self.outcome.still_connected == 0)
        })?;
        if !cut_off || !until(PATIENCE, ASK, || spare.is_in())? {
            return Ok(());
        }
        self.outcome.t_joined_ms = Some(self.since_first());
        spare.run()?;
        let client = spare.client();
        let answers = until(PATIENCE, Duration::from_millis(20), || {
            if let Some(status) = spare.ended()? {
                bail!(
                    "the spare's agent ended ({status}): {}",
                    spare::said(&spare.node().log)
                );
            }
            Ok(client.status().is_ok())
        })?;
        if !answers {
            return Ok(());
        }
        self.outcome.t_running_ms = Some(self.since_first());
        let connected = until(PATIENCE, ASK, || {
            let own = client.peers()?;
            let own = own.iter().filter(|peer| peer.connected && !peer.this_node);
            Ok(self.look_at_connections()?.1 == healthy && own.count() == healthy)
        })?;
        if !connected {
            return Ok(());
        }
        self.outcome.t_connected_ms = Some(self.since_first());
        let agreed = until(PATIENCE, ASK, || {
            let status = client.status()?;
            self.outcome.roster = status.quorum.nodes;
            self.outcome.spare_knows = status.quarantined.iter().any(|q| q.name == self.bad.name);
            let digest = client.must(&["mesh", "digest"])?;
            self.outcome.digest = Some(digest.clone());
            if self.outcome.roster != self.lab.nodes.len() + 1 || !self.outcome.spare_knows {
                return Ok(false);
            }
            for healthy in self.healthy() {
                if healthy.must(&["mesh", "digest"])? != digest {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if agreed {
            self.outcome.t_agreed_ms = Some(self.since_first());
        }
        // And nobody lost anybody over it.
        self.look_at_connections()?;
        Ok(())
    }
}
