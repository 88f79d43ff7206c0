//! The loop, and what it owns.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use secmesh_common::event::Event;
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, error, info, warn};

use super::liveness::Watchman;
use super::met::Met;
use super::notary::Notary;
use super::outbox::Outbox;
use super::quarantine::CutOff;
use super::ratify::Ratification;
use super::{
    AgentError, Options,
    capture::Captures,
    cookies::{Cookies, restore_syncookies},
    escalation::Escalation,
    interfaces::Interfaces,
    reconcile::Reconciler,
    trust::TrustWork,
    watch::{WatchStreams, Watched},
};
use crate::{
    addr::Prefix,
    api::{server::Call, types::DecisionState},
    clock::Clock,
    dataplane::{
        AllowTable, BlockLister, BlockTable, CounterReader, Dataplane, EventReader, LinkWatch,
        PortTable, WatchTable,
    },
    detect::{Alert, Detectors, TimeBase},
    ledger::{LedgerHandle, Record, fork::LedgerForkProof},
    mesh::{
        engine::{Automatic, Engine, Input, Policy},
        identity::Identity,
        ids::{Hash, NodeId},
        store::MeshStore,
        transport::{
            AllowedPeers, RateLimitedLog, TransportEvent, TransportEvents, TransportHandle,
        },
        vote::AttackClass,
    },
    metrics::ServerCounters,
    respond::{
        Allowlist, Blocks, Book, Now, Reconciled,
        lists::{Allow, Lists},
        refusal, risky,
    },
    sense::observation::{Observation, What},
    state::{AgentLock, StateDir},
};

/// Alerts kept in memory for the operator.
pub(super) const MAX_ALERTS: usize = 2048;
/// Kernel events taken from the ring before anything else gets a turn.
const EVENT_BATCH: usize = 1024;
/// How often time-driven work is looked at.
const TICK: Duration = Duration::from_millis(200);
/// A source whose block was hit within this time is still attacking, µs.
pub(super) const QUIET_US: u64 = 10_000_000;
/// How often the system is asked again what must never be blocked.
const DISCOVERY_US: u64 = 60_000_000;
/// A wall clock that moved this much against the monotonic one was set, µs.
const CLOCK_STEP_US: u64 = 2_000_000;

/// Why a source is watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub until_unix_us: u64,
    /// None if it was watched before this agent started.
    pub reported_by: Option<NodeId>,
    /// Packets of it that the kernel showed us since.
    pub packets: u64,
}

/// What a detector's word rests on, kept while the attack lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence {
    pub class: AttackClass,
    pub root: [u8; 32],
    pub detector: [u8; 32],
    pub renewed_unix_us: u64,
    /// When it is looked at again; its place in [`Agent::evidence_due`].
    pub due_unix_us: u64,
}

impl Evidence {
    /// What the core is told of it.
    pub const fn about(&self, subject: Prefix) -> Input<'static> {
        Input::OwnEvidence {
            subject,
            class: self.class,
            evidence_root: Hash(self.root),
            detector_hash: Hash(self.detector),
        }
    }
}

/// Numbers that are nobody else's to count.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub events: u64,
    pub events_unknown: u64,
    pub alerts: u64,
    pub alerts_by_class: BTreeMap<AttackClass, u64>,
    pub alerts_allowlisted: u64,
    pub votes_not_sent: u64,
    pub watch_full: u64,
    pub clock_steps: u64,
    /// Spare servers that were told to wait, each time.
    pub spares_waiting: u64,
    pub spares_let_in: u64,
    /// Times that the system was asked what must never be blocked.
    pub discoveries: u64,
}

/// Everything an agent is.
pub(super) struct Agent {
    pub options: Options,
    pub clock: Arc<dyn Clock>,
    pub state: StateDir,
    pub identity: Identity,
    pub dataplane: Dataplane,
    pub table: BlockTable,
    pub allows: AllowTable,
    pub watches: WatchTable,
    pub ports: PortTable,
    pub counters: CounterReader,
    /// What scrapers asked for, where there is a listener for them.
    pub scrapes: Option<Arc<ServerCounters>>,
    pub captures: Captures,
    pub allowlist: Allowlist,
    /// What of it the standing blocks were held against.
    pub allow_written: BTreeSet<Prefix>,
    /// Imported lists; none until the allowlist is known at start.
    pub lists: Option<Lists>,
    /// What their thread was told last of the allowlist.
    pub lists_allow: Allow,
    pub detectors: Detectors,
    pub alerts: VecDeque<Alert>,
    pub watched: BTreeMap<IpAddr, Watch>,
    pub evidence: BTreeMap<Prefix, Evidence>,
    /// When each piece of evidence is looked at again, unix µs.
    pub evidence_due: BTreeSet<(u64, Prefix)>,
    pub engine: Engine,
    pub blocks: Blocks,
    pub lister: BlockLister,
    pub reconciler: Reconciler,
    pub escalation: Escalation,
    pub interfaces: Interfaces,
    pub book: Book,
    pub ledger: LedgerHandle,
    pub notary: Notary,
    pub watchman: Watchman,
    /// When the ledger was last shown to witnesses, on the monotonic clock.
    pub checkpointed_ns: u64,
    pub transport: TransportHandle,
    pub allowed: Arc<AllowedPeers>,
    pub store: MeshStore,
    pub trust: TrustWork,
    pub cut_off: CutOff,
    pub ratification: Ratification,
    /// Peers that the operator of this node protects by their addresses, and why.
    pub chosen_peers: BTreeMap<NodeId, String>,
    pub tally: Tally,
    pub watch: Watched,
    pub started_ns: u64,
    /// Unix time at the monotonic clock's zero, µs; moves when the wall clock is set.
    pub clock_origin_us: u64,
    pub last_discovery_us: u64,
    /// What leaves, behind the votes that have to be on the disk first.
    pub outbox: Outbox,
    /// Why the loop ended, if not by a signal.
    pub ring_failed: Option<std::io::Error>,
    /// What must stay reachable without being on the allowlist, because `[allow] builtin` is off or it is
    /// full: blocks by the mesh leave it out, operators have to insist.
    pub protected: Vec<(Prefix, String)>,
    /// What else the system said last must never be blocked.
    pub discovered: Vec<(Prefix, String)>,
    /// Peers of sshd that were connected when the agent started.
    pub ssh_at_start: Vec<(Prefix, String)>,
    /// Where each peer is really met; only that is allowlisted, not what a peer says of itself.
    pub met: Met,
    pub refusal_log: RateLimitedLog<(NodeId, &'static str)>,
    pub cookies: Cookies,
    pub streams: Option<Streams>,
    pub _lock: AgentLock,
}

/// What feeds the loop.
pub(super) struct Streams {
    pub events: EventReader,
    pub watch: WatchStreams,
    /// None where the system does not tell.
    pub links: Option<LinkWatch>,
    pub peers: TransportEvents,
    pub calls: mpsc::Receiver<Call>,
    /// Proofs that this node has found as a witness.
    pub forks: mpsc::Receiver<LedgerForkProof>,
    pub interrupt: Signal,
    pub terminate: Signal,
}

async fn links_changed(links: &mut Option<LinkWatch>) -> std::io::Result<()> {
    match links {
        Some(links) => links.changed().await,
        None => std::future::pending().await,
    }
}

/// This node's own view, for the engine.
pub(super) struct View<'a> {
    pub allowlist: &'a Allowlist,
    pub protected: &'a [(Prefix, String)],
    pub table: &'a BlockTable,
    pub now_ns: u64,
    /// Peers that the operator of this node protects, and why.
    pub chosen: &'a BTreeMap<NodeId, String>,
    pub automatic: Automatic,
}

impl Policy for View<'_> {
    fn vetoes(&self, subject: &Prefix) -> Option<String> {
        self.allowlist
            .protects(subject)
            .map(|entry| refusal(subject, &entry))
            .or_else(|| {
                risky(subject, self.protected)
                    .map(|risk| format!("{subject} is risky to block: {risk}"))
            })
    }

    fn is_quiet(&self, subject: &Prefix) -> bool {
        self.table.get(subject).is_none_or(|entry| {
            entry.last_hit_ns == 0
                || self.now_ns.saturating_sub(entry.last_hit_ns) / 1000 > QUIET_US
        })
    }

    fn vetoes_node(&self, node: &NodeId) -> Option<String> {
        self.chosen.get(node).cloned()
    }

    fn quarantines(&self) -> Automatic {
        self.automatic
    }
}

impl Agent {
    /// Runs until a signal comes.
    pub async fn run(&mut self) {
        let Some(mut streams) = self.streams.take() else {
            return;
        };
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch: Vec<Event> = Vec::with_capacity(EVENT_BATCH);
        loop {
            tokio::select! {
                // A flood of events must not keep an operator or a vote waiting, nor the other way
                // round, so the choice is left to chance (no `biased`).
                read = streams.events.read(&mut batch, EVENT_BATCH) => {
                    if let Err(error) = read {
                        error!(%error, "the event ring failed; enforcement goes on in the kernel");
                        self.ring_failed = Some(error);
                        break;
                    }
                    self.take_events(&batch).await;
                    batch.clear();
                }
                () = streams.watch.ready() => self.take_watched(&mut streams.watch),
                told = links_changed(&mut streams.links) => {
                    if let Err(error) = told {
                        warn!(%error, "no more notices of interfaces; they are looked at each second");
                        streams.links = None;
                    }
                    self.notice_interfaces(self.now());
                }
                Some(event) = streams.peers.recv() => {
                    let (peer, began) = (event.peer(), self.clock.mono_ns());
                    self.take_peer(event).await;
                    if let Some(peer) = peer {
                        // What it costs is what it takes, whatever it was.
                        let spent = self.clock.mono_ns().saturating_sub(began);
                        streams.peers.charge(peer, spent);
                    }
                }
                written = self.outbox.next() => {
                    if let Err(error) = written {
                        self.not_persisted(&error);
                    }
                }
                Some(proof) = streams.forks.recv() => {
                    self.drive(Input::LedgerFork(Box::new(proof))).await;
                }
                Some(call) = streams.calls.recv() => {
                    let answer = self.answer(call.request).await;
                    // The asker may have gone.
                    drop(call.reply.send(answer));
                }
                _ = tick.tick() => self.take_time().await,
                _ = streams.interrupt.recv() => break,
                _ = streams.terminate.recv() => break,
            }
        }
    }

    /// Stops in order: peers, record, and if asked the program.
    pub async fn stop(mut self) -> Result<(), AgentError> {
        info!("stopping");
        // Its thread writes the kernel's tables; those must not be taken away under it.
        if let Some(lists) = &mut self.lists {
            lists.stop();
        }
        self.record_lists();
        let record = Record::Stopped {
            reason: match &self.ring_failed {
                None => "signal".to_owned(),
                Some(error) => format!("the event ring failed: {error}"),
            },
        };
        if let Err(error) = self.outbox.drain().await {
            self.not_persisted(&error);
        }
        if let Err(error) = self.ledger.append_durable(&record).await {
            warn!(%error, "the ledger did not take the last entry");
        }
        self.transport.shutdown().await;
        self.ledger.close().await;
        if self.options.detach_on_exit {
            let dir = self.options.config.dataplane.pin_dir.clone();
            drop(self.dataplane);
            let pins = crate::dataplane::detach_all(&dir)?;
            // After the program is gone: no cookie is out that nobody takes back.
            restore_syncookies(&self.state);
            info!(pins, "detached: nothing is filtered any more");
        } else {
            info!(
                "the program stays attached and blocks stay in force; `secmesh detach` removes them"
            );
        }
        match self.ring_failed {
            None => Ok(()),
            Some(source) => Err(AgentError::System {
                what: "reading kernel events",
                source,
            }),
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            unix_us: self.clock.unix_us(),
            mono_ns: self.clock.mono_ns(),
        }
    }

    pub(super) fn time_base(&self) -> TimeBase {
        let now = self.now();
        TimeBase::from_reading(now.unix_us, now.mono_ns)
    }

    /// A reading of the kernel's clock as unix time; 0 is never.
    pub(super) fn kernel_time(&self, ns: u64) -> Option<u64> {
        (ns != 0).then(|| self.time_base().unix_us(ns))
    }

    async fn take_events(&mut self, events: &[Event]) {
        let base = self.time_base();
        let mut alerts = Vec::new();
        for event in events {
            self.tally.events += 1;
            let Some(seen) = Observation::from_event(event) else {
                self.tally.events_unknown += 1;
                continue;
            };
            // What was in the ring when the block came must not raise the alert again.
            if self.blocks.is_desired(&Prefix::host(seen.src)) {
                continue;
            }
            let watch = self.watched.get_mut(&seen.src);
            let watched = watch.is_some();
            if let (Some(watch), What::Packet) = (watch, seen.what) {
                watch.packets += 1;
            }
            self.detectors.observe(&seen, watched, base, &mut alerts);
        }
        for alert in alerts {
            self.raise(alert).await;
        }
    }

    /// An alert: recorded, acted on here at once, then put to the mesh.
    pub(super) async fn raise(&mut self, mut alert: Alert) {
        alert.raised_unix_us = self.clock.unix_us();
        self.tally.alerts += 1;
        *self.tally.alerts_by_class.entry(alert.class).or_default() += 1;
        let root = alert.evidence_root();
        let evidence = Evidence {
            class: alert.class,
            root,
            detector: alert.detector_hash_bytes(),
            renewed_unix_us: alert.raised_unix_us,
            due_unix_us: 0,
        };
        let subject = alert.subject;
        let protected = self.allowlist.protects(&subject);
        if protected.is_none() {
            self.block_unilaterally(&alert);
        }
        info!(
            %subject, class = %alert.class, confidence = alert.confidence, watched = alert.watched,
            allowlisted = protected.is_some(), "alert"
        );
        if let Ok(value) = serde_json::to_value(&alert) {
            self.record(&Record::Alert { alert: value });
        }
        self.suspect(&alert).await;
        if self.alerts.len() >= MAX_ALERTS {
            self.alerts.pop_front();
        }
        self.alerts.push_back(alert);
        if protected.is_some() {
            self.tally.alerts_allowlisted += 1;
            return;
        }
        self.keep_evidence(subject, evidence);
        self.drive(evidence.about(subject)).await;
    }

    async fn take_peer(&mut self, event: TransportEvent) {
        match event {
            TransportEvent::PeerUp { node, ip } => {
                if let Some(ip) = ip
                    && self.met.up(node, ip, self.clock.mono_ns())
                {
                    self.protect_known();
                }
                info!(peer = %self.name_of(&node), "connected");
                self.notary.up(node);
                self.drive(Input::PeerUp(node)).await;
                self.swim_up(node).await;
            }
            TransportEvent::PeerAt { node, ip } => {
                // One that is gone was met too late: its address may be anybody's by now.
                if self.engine.connected().contains(&node)
                    && self.met.up(node, ip, self.clock.mono_ns())
                {
                    self.protect_known();
                }
            }
            TransportEvent::PeerDown { node } => {
                warn!(peer = %self.name_of(&node), "disconnected");
                self.met.down(node, self.clock.mono_ns());
                self.notary.down(node);
                self.drive(Input::PeerDown(node)).await;
                self.swim_down(node).await;
            }
            TransportEvent::Garbage { from } => self.drive(Input::Garbage(from)).await,
            TransportEvent::Message { from, bytes } => {
                self.swim_heard(from).await;
                self.drive(Input::Message {
                    from,
                    bytes: &bytes,
                })
                .await;
            }
            TransportEvent::JoinRequest {
                ticket,
                bytes,
                reply,
            } => {
                let answer = self.admit(ticket, &bytes).await;
                // The joiner may have gone; it will ask again.
                drop(reply.send(answer));
            }
        }
    }

    async fn take_time(&mut self) {
        let now = self.now();
        self.check_trial();
        self.look_at_interfaces(now);
        let steps = self.tally.clock_steps;
        self.notice_clock_step(now);
        if self.tally.clock_steps != steps {
            self.drive(Input::ClockSet).await;
        }
        self.captures.tick(now.mono_ns);
        self.renew_unilateral(now).await;
        for over in self.blocks.tick(&mut self.table, now) {
            self.close(
                &over.prefix,
                &over.id,
                DecisionState::Ended,
                over.hits,
                None,
            );
        }
        let over: Vec<IpAddr> = self
            .watched
            .iter()
            .filter(|(_, w)| w.until_unix_us <= now.unix_us)
            .map(|(a, _)| *a)
            .collect();
        for addr in over {
            self.unwatch(addr);
        }
        self.escalate().await;
        self.renew_quarantines();
        self.ratify().await;
        self.gather_evidence(now).await;
        self.reconcile_a_little(now);
        self.update_sizes();
        self.record_lists();
        self.sweep_flows();
        self.discover_if_due();
        self.refresh_cookies(false);
        self.checkpoint(now);
        self.swim_tick().await;
        self.drive(Input::Tick).await;
    }

    /// Asks the system again what must never be blocked, when it is time.
    fn discover_if_due(&mut self) {
        let since = self.clock.unix_us().abs_diff(self.last_discovery_us);
        if since >= DISCOVERY_US {
            self.discover_allowlist(false);
        }
    }

    /// Has the ledger cosigned, now and then.
    fn checkpoint(&mut self, now: Now) {
        let every = self.options.config.ledger.checkpoint.as_nanos();
        if u128::from(now.mono_ns.saturating_sub(self.checkpointed_ns)) >= every {
            self.checkpointed_ns = now.mono_ns;
            self.notary.round(self.engine.connected());
        }
    }

    /// Kernel entries end on the monotonic clock, decisions on the wall clock: when that is set, the
    /// decisions' ends move with it, and the entries are looked through.
    fn notice_clock_step(&mut self, now: Now) {
        let origin = now.unix_us.saturating_sub(now.mono_ns / 1000);
        if origin.abs_diff(self.clock_origin_us) < CLOCK_STEP_US {
            return;
        }
        self.tally.clock_steps += 1;
        warn!(
            by_seconds = origin.abs_diff(self.clock_origin_us) / 1_000_000,
            forward = origin > self.clock_origin_us,
            "the wall clock was set; every block keeps the time that it has left"
        );
        let before = self.clock_origin_us.saturating_add(now.mono_ns / 1000);
        self.clock_origin_us = origin;
        self.blocks.clock_was_set(before, now.unix_us);
        self.book.clock_was_set(before, now.unix_us);
        let done = self.reconcile(now);
        self.reconciler.add(done);
        if let Some(lists) = &self.lists {
            lists.again();
        }
    }

    pub(super) fn reconcile(&mut self, now: Now) -> Reconciled {
        let present = self.table.entries().into_iter().map(|(p, _)| p).collect();
        let done = self.blocks.reconcile(&mut self.table, now, &present);
        self.update_sizes();
        if done.failed > 0 {
            error!(
                failed = done.failed,
                "blocks are not enforced; `secmesh status` names them"
            );
        }
        debug!(?done, "kernel maps reconciled");
        done
    }

    pub(super) fn name_of(&self, node: &NodeId) -> String {
        let waiting = || {
            let records = self.engine.reachable_records();
            let found = records.into_iter().find(|record| record.node == *node);
            found.map(|record| record.name.to_string())
        };
        match self.engine.roster().get(node) {
            Some(member) => member.record.name.to_string(),
            None => waiting().unwrap_or_else(|| node.to_string()),
        }
    }
}
