//! Attacking a lab, and measuring what the mesh makes of it.
//!
//! Three witnesses that do not depend on the agents' word: a packet socket at the attacker's port of the
//! switch (when the first packet came, how many there were), the pinned maps in the kernel (when the block
//! appeared, how many packets met it), and packet sockets on the nodes (what still got through, behind
//! XDP). The agents are asked only when they raised the alert and when the certificate was complete.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::agent::{Alert, Client, Decision};
use super::generators::{Attack, Generators, Kind, Target};
use super::net::{self, ATTACKER_PORT, Family, INTERFACE};
use super::outcome::{DecisionRef, Outcome, ms, spread};
use super::pinned::{self, BlockMap};
use super::state::{LabState, Node};
use super::tap::Tap;
use super::{echo, ns};
use crate::{clock, stop};

/// How often the kernel's maps are looked at: the resolution of the drop times.
const LOOK: Duration = Duration::from_millis(1);
/// After the last node's block, before packets are counted.
const SETTLE: Duration = Duration::from_millis(20);
/// How long that may take on a busy machine.
const ARRIVED: Duration = Duration::from_secs(2);
/// How often it is looked for a moment in which no packet comes.
const LOOKS: u32 = 20;
/// How long a tool may take to its first packet: nmap reads its tables first.
const TOOL_START: Duration = Duration::from_secs(10);

/// An attack on a lab.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which.
    pub kind: Kind,
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// How many nodes are hit: 1 or 2. With 1, a second one is touched half way.
    pub targets: usize,
    /// Packets per second over all targets; none for what fits the attack.
    pub rate: Option<u32>,
    /// How long, seconds from the first packet.
    pub seconds: u32,
}

impl Options {
    /// Two targets over IPv4, for three seconds.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            ipv6: false,
            targets: 2,
            rate: None,
            seconds: 3,
        }
    }

    /// The same over IPv6.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// The same on so many targets.
    #[must_use]
    pub fn targets(mut self, targets: usize) -> Self {
        self.targets = targets;
        self
    }

    fn rate(&self) -> u32 {
        self.rate.unwrap_or(match self.kind {
            // What a hurried scanner does.
            Kind::PortScan => 1_000,
            _ => 10_000,
        })
    }
}

/// A node under watch.
struct Watched<'a> {
    node: &'a Node,
    map: BlockMap,
    behind_xdp: Tap,
    blocked_unix_us: Option<u64>,
}

/// What was counted at one moment.
#[derive(Clone, Copy)]
struct Snapshot {
    attack: u64,
    hits: u64,
    passed: u64,
}

/// The attack while it runs.
struct Run<'a> {
    source: IpAddr,
    wire: Tap,
    contact: Option<Tap>,
    watched: Vec<Watched<'a>>,
    first_unix_us: u64,
    contact_unix_us: Option<u64>,
    others_free: Option<bool>,
    all_blocked_at: Option<Instant>,
    baseline: Option<Snapshot>,
}

/// What agents and kernel have to say afterwards.
#[derive(Default)]
struct Testimony {
    /// Alerts about the source, with the index of the node.
    alerts: Vec<(usize, Alert)>,
    decisions: Vec<Decision>,
    /// First packet that met a block.
    first_hit: Option<u64>,
    /// On how many nodes `bpftool` shows the block.
    in_kernel_map: usize,
}

/// Attacks a lab and measures.
///
/// The lab's nodes must run agents. Each attack comes from another one of the attacker's addresses, so
/// that several can be made in one lab.
///
/// # Errors
/// When the attack could not be made or measured; a mesh that did badly is no error, but an [`Outcome`]
/// that is not ok.
pub fn run(lab: &LabState, options: &Options) -> anyhow::Result<Outcome> {
    ensure!(
        (1..=2).contains(&options.targets) && lab.nodes.len() >= 2,
        "an attack hits 1 or 2 nodes of a lab that has at least 2"
    );
    ensure!(
        (1..=60).contains(&options.seconds),
        "an attack lasts 1 to 60 seconds, not {}",
        options.seconds
    );
    let family = if options.ipv6 { Family::V6 } else { Family::V4 };
    let source = unused_source(lab, family)?;
    let namespace = lab.namespace(ATTACKER_PORT);
    let source_link = net::link_address(&namespace)?;
    let victims = lab
        .nodes
        .iter()
        .take(2)
        .map(|node| target(node, family))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let log = lab.work_dir.join("attack.log");
    let plan = |targets, seconds| Attack {
        kind: options.kind,
        namespace: &namespace,
        source,
        source_link: &source_link,
        targets,
        rate: options.rate(),
        seconds,
        work_dir: &lab.work_dir,
        log: &log,
    };
    let (first_targets, later_targets) = victims.split_at(options.targets);

    let mut run = Run::prepare(lab, source, later_targets.first())?;
    let services: Vec<SocketAddr> = lab
        .nodes
        .iter()
        .map(|node| SocketAddr::new(LabState::address(node, family), echo::PORT))
        .collect();
    let client = echo::Client::start(&lab.namespace("client"), &services)?;

    let mut generators = Generators::start(&plan(first_targets, options.seconds))?;
    run.wait_for_first_packet(&mut generators, &log)?;
    let started = Instant::now();
    let length = Duration::from_secs(options.seconds.into());
    let mut second: Option<Generators> = None;
    while started.elapsed() < length && !stop::requested() {
        run.look()?;
        if !later_targets.is_empty() && second.is_none() && started.elapsed() >= length / 2 {
            run.others_free = Some(
                run.watched
                    .iter()
                    .skip(1)
                    .all(|node| node.blocked_unix_us.is_none()),
            );
            second = Some(Generators::start(&plan(later_targets, options.seconds))?);
        }
        std::thread::sleep(LOOK);
    }
    drop(second);
    generators.stop();
    let tally = client.stop()?;
    let last = run.settled()?;
    run.outcome(lab, options, last, &tally)
}

pub(super) fn target(node: &Node, family: Family) -> anyhow::Result<Target> {
    Ok(Target {
        address: LabState::address(node, family),
        link_address: net::link_address(&node.namespace)?,
    })
}

/// An address of the attacker's that no node has heard of.
pub(super) fn unused_source(lab: &LabState, family: Family) -> anyhow::Result<IpAddr> {
    let mut known: Vec<String> = Vec::new();
    for node in &lab.nodes {
        let client = Client::new(lab, node);
        known.extend(
            client
                .decisions()?
                .into_iter()
                .map(|decision| decision.subject),
        );
        known.extend(client.alerts()?.into_iter().map(|alert| alert.subject));
    }
    net::attacker_addresses(family)
        .find(|address| !known.contains(&address.to_string()))
        .context("every address of the attacker's is known to the mesh by now: start a new lab")
}

impl<'a> Run<'a> {
    fn prepare(
        lab: &'a LabState,
        source: IpAddr,
        contact: Option<&Target>,
    ) -> anyhow::Result<Self> {
        let switch = lab.namespace("switch");
        let watched = lab
            .nodes
            .iter()
            .map(|node| {
                Ok(Watched {
                    map: BlockMap::open(&pinned::block_map(&node.pin_dir, source)).with_context(
                        || format!("cannot look into the kernel's map of {}", node.name),
                    )?,
                    behind_xdp: Tap::open(&node.namespace, INTERFACE, source, None)?,
                    blocked_unix_us: None,
                    node,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            source,
            wire: Tap::open(&switch, ATTACKER_PORT, source, None)?,
            contact: contact
                .map(|target| Tap::open(&switch, ATTACKER_PORT, source, Some(target.address)))
                .transpose()?,
            watched,
            first_unix_us: 0,
            contact_unix_us: None,
            others_free: None,
            all_blocked_at: None,
            baseline: None,
        })
    }

    fn wait_for_first_packet(
        &mut self,
        generators: &mut Generators,
        log: &Path,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + TOOL_START;
        loop {
            if let Some(time) = self.wire.first_unix_us()? {
                self.first_unix_us = time;
                return Ok(());
            }
            if Instant::now() >= deadline || generators.have_ended() {
                bail!(
                    "the attack tool sent nothing; what it said is in {}",
                    log.display()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Looks at every map, once.
    fn look(&mut self) -> anyhow::Result<()> {
        for node in self
            .watched
            .iter_mut()
            .filter(|node| node.blocked_unix_us.is_none())
        {
            if node.map.get(self.source)?.is_some() {
                node.blocked_unix_us = Some(clock::unix_us());
            }
        }
        if let (Some(tap), None) = (&self.contact, self.contact_unix_us) {
            self.contact_unix_us = tap.first_unix_us()?;
        }
        if self.all_blocked_at.is_none()
            && self
                .watched
                .iter()
                .all(|node| node.blocked_unix_us.is_some())
        {
            self.all_blocked_at = Some(Instant::now());
        }
        if self.baseline.is_none() && self.all_blocked_at.is_some_and(|at| at.elapsed() >= SETTLE) {
            self.baseline = Some(self.snapshot()?);
        }
        Ok(())
    }

    /// What all have counted at one moment: of some looks the one during which the fewest packets came.
    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let mut before = self.wire.packets()?;
        let mut best: Option<(u64, Snapshot)> = None;
        for _ in 0..LOOKS {
            let (mut hits, mut passed) = (0, 0);
            for node in &self.watched {
                hits += node.map.get(self.source)?.map_or(0, |block| block.hits);
                passed += node.behind_xdp.packets()?;
            }
            let attack = self.wire.packets()?;
            let came = attack.saturating_sub(std::mem::replace(&mut before, attack));
            if best.as_ref().is_none_or(|(fewest, _)| came < *fewest) {
                let look = Snapshot {
                    attack,
                    hits,
                    passed,
                };
                best = Some((came, look));
            }
            if came == 0 {
                break;
            }
        }
        best.map(|(_, look)| look).context("nothing was looked at")
    }

    /// What was counted once all that was under way on the switch has arrived.
    fn settled(&self) -> anyhow::Result<Snapshot> {
        std::thread::sleep(SETTLE);
        let mut last = self.snapshot()?;
        let base = self.baseline.unwrap_or(last);
        clock::wait_until(ARRIVED, SETTLE, || {
            last = self.snapshot()?;
            let came = (last.hits + last.passed).saturating_sub(base.hits + base.passed);
            Ok((came >= last.attack.saturating_sub(base.attack)).then_some(()))
        })?;
        Ok(last)
    }

    /// Asks everybody, agents and kernel, what became of this source.
    fn testimony(&self, lab: &LabState) -> anyhow::Result<Testimony> {
        let subject = self.source.to_string();
        let mut all = Testimony::default();
        for (index, watched) in self.watched.iter().enumerate() {
            let client = Client::new(lab, watched.node);
            all.alerts.extend(
                client
                    .alerts()?
                    .into_iter()
                    .filter(|alert| alert.subject == subject)
                    .map(|alert| (index, alert)),
            );
            all.decisions.extend(
                client
                    .decisions()?
                    .into_iter()
                    .filter(|decision| decision.subject == subject),
            );
            let block = watched
                .map
                .get(self.source)?
                .filter(|block| block.first_hit_ns > 0);
            let seen = block.and_then(|block| clock::unix_us_of_mono_ns(block.first_hit_ns));
            all.first_hit = all.first_hit.into_iter().chain(seen).min();
            let dumped = pinned::dump(&pinned::block_map(&watched.node.pin_dir, self.source))?;
            all.in_kernel_map += usize::from(dumped.iter().any(|entry| entry.is_of(self.source)));
        }
        // An entry that was written anew starts counting anew; the agents remember.
        let remembered = all
            .decisions
            .iter()
            .filter_map(|decision| decision.first_hit_unix_us);
        all.first_hit = all.first_hit.into_iter().chain(remembered).min();
        Ok(all)
    }

    fn outcome(
        self,
        lab: &LabState,
        options: &Options,
        last: Snapshot,
        tally: &echo::Tally,
    ) -> anyhow::Result<Outcome> {
        let Testimony {
            alerts,
            decisions,
            first_hit,
            in_kernel_map,
        } = self.testimony(lab)?;
        let since_first = |time: u64| ms(self.first_unix_us, time);
        let one_target = options.targets == 1;
        let drops_from = if one_target {
            self.contact_unix_us
        } else {
            Some(self.first_unix_us)
        };
        let blocked: Option<Vec<u64>> = self
            .watched
            .iter()
            .map(|node| node.blocked_unix_us)
            .collect();
        let t_drop_ms = drops_from
            .zip(blocked.as_deref())
            .and_then(|(from, times)| spread(from, times));
        let first_alert = alerts.iter().map(|(_, alert)| alert.raised_unix_us).min();
        // With one target, the alert that calls the mesh in is the second node's.
        let calling_alert = if one_target {
            alerts
                .iter()
                .filter(|(node, _)| *node > 0)
                .map(|(_, alert)| alert.raised_unix_us)
                .min()
        } else {
            first_alert
        };
        let last_block = blocked
            .as_ref()
            .and_then(|times| times.iter().copied().max());
        let base = self.baseline.unwrap_or(last);
        let attack_packets = last.attack.saturating_sub(base.attack);
        let dropped_packets = last.hits.saturating_sub(base.hits);
        let quorum = decisions
            .iter()
            .filter(|decision| decision.scope == "mesh")
            .find(|decision| decision.certified_unix_us.is_some());

        let mut outcome = Outcome {
            attack: options.kind.name().to_owned(),
            ipv6: options.ipv6,
            source: self.source,
            nodes: lab.nodes.len(),
            targets: options.targets,
            t_alert_ms: first_alert.map(since_first),
            t_quorum_ms: decisions
                .iter()
                .filter(|decision| decision.scope == "mesh")
                .filter_map(|decision| decision.certified_unix_us)
                .min()
                .map(since_first),
            t_drop_ms,
            t_alert_to_drop_ms: calling_alert.zip(last_block).map(|(from, to)| ms(from, to)),
            first_drop_ms: first_hit.map(since_first),
            t_own_block_ms: one_target
                .then(|| self.watched.first().and_then(|node| node.blocked_unix_us))
                .flatten()
                .map(since_first),
            others_free_until_contact: self.others_free,
            t_contact_ms: self.contact_unix_us.map(since_first),
            attack_packets,
            dropped_packets,
            passed_packets: last.passed.saturating_sub(base.passed),
            drop_share: (attack_packets > 0)
                .then(|| dropped_packets as f64 / attack_packets as f64),
            all_attack_packets: last.attack,
            in_kernel_map,
            legit_attempts: tally.attempts,
            legit_ok: tally.ok,
            decision: quorum.map(|decision| DecisionRef {
                id: decision.id.clone(),
                subject: decision.subject.clone(),
            }),
            ok: false,
            failures: Vec::new(),
        };
        outcome.failures = outcome.shortcomings();
        let class = options.kind.class();
        if !alerts.is_empty() && !alerts.iter().any(|(_, alert)| alert.class == class) {
            outcome
                .failures
                .push(format!("no alert is of the class {class}"));
        }
        if !tally.is_good() {
            outcome.failures.extend(
                tally
                    .failures
                    .iter()
                    .map(|why| format!("the client: {why}")),
            );
        }
        outcome.ok = outcome.failures.is_empty();
        Ok(outcome)
    }
}

/// One connection from the attacker's address `source` to a node's service: does it get through?
///
/// # Errors
/// When the namespace is not there.
pub fn attacker_gets_through(lab: &LabState, source: IpAddr, node: &Node) -> anyhow::Result<bool> {
    let family = if source.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let service = SocketAddr::new(LabState::address(node, family), echo::PORT);
    ns::within(&lab.namespace(ATTACKER_PORT), move || {
        Ok(echo::ask_from(source, service).is_ok())
    })
}
