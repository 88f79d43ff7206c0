//! From nothing to a running agent, in the order that keeps what an earlier one left in force.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

use super::liveness::Watchman;
use super::met::Met;
use super::notary::{Notary, Parts};
use super::outbox::Outbox;
use super::quarantine::CutOff;
use super::ratify::Ratification;
use super::{
    AgentError, Options,
    capture::Captures,
    cookies::Cookies,
    core::{Agent, Streams, Tally},
    epochs,
    escalation::Escalation,
    interfaces::Interfaces,
    protect,
    reconcile::Reconciler,
    recover,
    trust::TrustWork,
    watch::{WatchStreams, Watched},
};
use crate::{
    api::server::{Call, Server},
    clock::{Clock, SystemClock},
    config::{FlowsConfig, KernelLog},
    dataplane::{
        self, AllowTable, BlockLister, BlockTable, CounterReader, Dataplane, EventReader,
        FlowOptions, LinkWatch, ListTables, LoadOptions, Mode, PortTable, WatchTable,
    },
    detect::{Detectors, kernel_levels},
    entropy,
    ledger::{Ledger, LedgerHandle, Record, Retention, fork::LedgerForkProof},
    mesh::{
        crypto::Signer,
        engine::{Engine, EngineConfig, Input},
        identity::Identity,
        store::MeshStore,
        transport::{AllowedPeers, RateLimitedLog, Transport, TransportConfig, TransportEvents},
    },
    metrics,
    respond::{Allowlist, Blocks, Book, Source},
    state::StateDir,
};

/// Local requests that wait for the loop.
const CALLS: usize = 64;
/// File of the operator's allowlist entries in the state directory.
pub(super) const ALLOW_FILE: &str = "allow.json";
/// Its format.
pub(super) const ALLOW_FORMAT: u32 = 1;
/// Refusals are logged once per peer, reason and this time.
const REFUSAL_LOG: std::time::Duration = std::time::Duration::from_mins(1);
/// Peers and reasons whose last log line is remembered.
const REFUSAL_KEYS: usize = 4096;

/// The kernel's side, loaded and with its maps in our hands.
struct Kernel {
    dataplane: Dataplane,
    table: BlockTable,
    lister: BlockLister,
    allows: AllowTable,
    lists: ListTables,
    watches: WatchTable,
    ports: PortTable,
    counters: CounterReader,
    captures: Captures,
    events: EventReader,
    watch: (Watched, WatchStreams),
}

fn load_kernel(options: &Options) -> Result<Kernel, AgentError> {
    let loading = load_options(options)?;
    let mut dataplane = Dataplane::load(&loading)?;
    if let Some(mode) = options.mode {
        dataplane.set_mode(mode)?;
    } else if dataplane.mode() != options.config.dataplane.mode {
        warn!(
            in_force = %dataplane.mode(), configured = %options.config.dataplane.mode,
            "the mode that the earlier agent left stays in force; `secmesh mode` changes it"
        );
    }
    if options.config.dataplane.kernel_log != KernelLog::Off {
        let log = dataplane.take_log()?;
        tokio::spawn(async move {
            if let Err(error) = log.run().await {
                warn!(%error, "the kernel program's log ended");
            }
        });
    }
    let processes = options.config.host.processes;
    let mut ports = dataplane.take_ports()?;
    protect::write_ports(options, &mut ports)?;
    Ok(Kernel {
        ports,
        watch: Watched::open(&mut dataplane, processes, loading.seed)?,
        table: dataplane.take_blocks()?,
        lister: dataplane.take_lister(),
        allows: dataplane.take_allows()?,
        lists: dataplane.take_lists()?,
        watches: dataplane.take_watches()?,
        counters: dataplane.take_counters()?,
        captures: Captures::new(dataplane.take_captures()?),
        events: dataplane.take_events()?,
        dataplane,
    })
}

/// The record, and what it remembers.
fn open_ledger(
    state: &StateDir,
    identity: &Identity,
    retention: Retention,
    clock: &Arc<dyn Clock>,
) -> Result<(LedgerHandle, recover::Memory), AgentError> {
    let now = clock.unix_us();
    let (ledger, opened) = Ledger::open(&state.ledger(), identity.ledger_keys(), retention, now)?;
    if opened.truncated_bytes > 0 {
        warn!(
            bytes = opened.truncated_bytes,
            "the ledger ended in an unfinished write (a crash); it was cut off and that is recorded"
        );
    }
    let memory = recover::read(&state.ledger(), now)?;
    Ok((LedgerHandle::start(ledger, Arc::clone(clock))?, memory))
}

/// The decision core with what is on the disk of its mesh.
fn engine(options: &Options, identity: &Identity, store: &MeshStore) -> Engine {
    Engine::new(
        EngineConfig {
            genesis: store.genesis.genesis.clone(),
            node: identity.node_id(),
            incarnation: identity.incarnation(),
            signer: Signer::from_secret(identity.vote_key().as_bytes()),
            evidence_ttl_s: u32::try_from(options.config.detect.evidence_ttl.as_secs())
                .unwrap_or(u32::MAX),
        },
        store.members.iter().cloned(),
    )
}

/// Starts everything; the loop is the caller's to run.
pub(super) async fn start(options: Options) -> Result<Agent, AgentError> {
    dataplane::check_system()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let state = StateDir::open(&options.state_dir)?;
    let lock = state.lock()?;
    let identity = Identity::load(&state)?;
    let store = MeshStore::load(&state)?;
    let (ledger, mut memory) =
        open_ledger(&state, &identity, options.config.ledger.retention(), &clock)?;
    let mut engine = engine(&options, &identity, &store);
    epochs::restore(&state, &mut engine)?;
    memory.restore_votes(&state.ledger(), &mut engine)?;
    let trust = TrustWork::open(&state, &mut engine, clock.unix_us())?;
    let kernel = load_kernel(&options)?;
    let (watch, watch_streams) = kernel.watch;
    let allowed = Arc::new(AllowedPeers::new());
    let (transport, peers) = Transport::start(TransportConfig {
        listen: options.listen.unwrap_or(options.config.mesh.listen),
        node: identity.node_id(),
        tls: identity.tls().clone(),
        mesh: store.genesis.genesis.mesh_id(),
        carrier: options.config.mesh.carrier(),
        allowed: Arc::clone(&allowed),
        peers: Vec::new(),
        clock: Arc::clone(&clock),
    })?;
    let (notary, forks) = Notary::start(Parts {
        state: &state,
        keys: identity.ledger_keys(),
        roster: engine.roster(),
        ledger: ledger.clone(),
        transport: transport.clone(),
        clock: Arc::clone(&clock),
    });
    let (started_unix_us, started_ns) = (clock.unix_us(), clock.mono_ns());
    let mut agent = Agent {
        watchman: Watchman::start(&identity)?,
        detectors: Detectors::new(&options.config.detect),
        alerts: VecDeque::new(),
        watched: BTreeMap::new(),
        evidence: BTreeMap::new(),
        evidence_due: BTreeSet::new(),
        allow_written: BTreeSet::new(),
        allowlist: Allowlist::default(),
        lists: None,
        lists_allow: crate::respond::lists::Allow::default(),
        blocks: Blocks::default(),
        lister: kernel.lister,
        reconciler: Reconciler::default(),
        escalation: Escalation::default(),
        interfaces: Interfaces::default(),
        book: Book::default(),
        tally: Tally::default(),
        protected: Vec::new(),
        watch,
        discovered: Vec::new(),
        ssh_at_start: Vec::new(),
        met: Met::default(),
        refusal_log: RateLimitedLog::new(Arc::clone(&clock), REFUSAL_LOG, REFUSAL_KEYS),
        clock_origin_us: started_unix_us.saturating_sub(started_ns / 1000),
        last_discovery_us: started_unix_us,
        outbox: Outbox::new(transport.clone()),
        ring_failed: None,
        cookies: Cookies::default(),
        streams: None,
        options,
        clock,
        state,
        identity,
        dataplane: kernel.dataplane,
        table: kernel.table,
        allows: kernel.allows,
        watches: kernel.watches,
        ports: kernel.ports,
        counters: kernel.counters,
        scrapes: None,
        captures: kernel.captures,
        engine,
        ledger,
        notary,
        checkpointed_ns: started_ns,
        transport,
        allowed,
        store,
        trust,
        cut_off: CutOff::default(),
        ratification: Ratification::default(),
        chosen_peers: BTreeMap::new(),
        started_ns,
        _lock: lock,
    };
    agent.resume(memory, kernel.lists).await?;
    agent
        .listen(kernel.events, watch_streams, peers, forks)
        .await?;
    agent.announce();
    Ok(agent)
}

impl Agent {
    /// Takes up again what was before the restart, and attaches to the interfaces.
    async fn resume(
        &mut self,
        memory: recover::Memory,
        lists: ListTables,
    ) -> Result<(), AgentError> {
        self.resume_trial();
        self.load_allowlist()?;
        self.recover(memory);
        for grant in self.store.grants.clone() {
            self.drive(Input::OpenGrant(Box::new(grant))).await;
        }
        self.apply_membership();
        self.start_lists(lists).await?;
        self.attach()?;
        self.refresh_cookies(true);
        Ok(())
    }

    /// Opens the local socket and gathers what feeds the loop.
    async fn listen(
        &mut self,
        events: EventReader,
        watch: WatchStreams,
        peers: TransportEvents,
        forks: mpsc::Receiver<LedgerForkProof>,
    ) -> Result<(), AgentError> {
        let server =
            Server::bind(&self.options.socket)
                .await
                .map_err(|source| AgentError::Socket {
                    socket: self.options.socket.clone(),
                    source,
                })?;
        let (sender, calls) = mpsc::channel(CALLS);
        self.serve_metrics(sender.clone()).await;
        tokio::spawn(server.run(sender));
        let signal_error = |source| AgentError::System {
            what: "waiting for signals",
            source,
        };
        let links = LinkWatch::open()
            .inspect_err(|error| {
                warn!(%error, "no notices of interfaces; they are looked at each second");
            })
            .ok();
        self.streams = Some(Streams {
            events,
            watch,
            links,
            peers,
            calls,
            forks,
            interrupt: signal(SignalKind::interrupt()).map_err(signal_error)?,
            terminate: signal(SignalKind::terminate()).map_err(signal_error)?,
        });
        Ok(())
    }

    /// Opens the metrics' port. An agent that cannot be scraped still protects: it goes on without.
    async fn serve_metrics(&mut self, calls: mpsc::Sender<Call>) {
        let Some(listen) = self.options.config.metrics.listen else {
            return;
        };
        match metrics::Server::bind(listen).await {
            Ok(server) => {
                self.scrapes = Some(server.counters());
                tokio::spawn(server.run(calls));
                info!(%listen, "metrics at /metrics");
            }
            Err(error) => {
                warn!(%listen, %error, "no metrics: cannot listen; set [metrics] listen to another address, or to \"\"");
            }
        }
    }

    fn announce(&self) {
        self.record(&Record::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.engine.node().to_string(),
            incarnation: self.identity.incarnation(),
            epoch: self.engine.roster().epoch(),
            mode: self.dataplane.mode().to_string(),
        });
        info!(
            node = %self.identity.name(), id = %self.engine.node(), mode = %self.dataplane.mode(),
            listen = %self.transport.local_addr(), socket = %self.options.socket.display(), "running"
        );
        if self.dataplane.mode() == Mode::Monitor {
            info!(
                "monitor mode: nothing is dropped, `would_drop` counters tell what would be; `secmesh mode enforce` arms it"
            );
        }
    }
}

fn load_options(options: &Options) -> Result<LoadOptions, AgentError> {
    let config = &options.config.dataplane;
    let mut seed = [0; 8];
    entropy::fill(&mut seed)?;
    Ok(LoadOptions {
        pin_dir: Some(config.pin_dir.clone()),
        max_blocks: config.max_blocks,
        max_prefixes: config.max_prefixes,
        max_list_addresses: config.max_list_addresses,
        max_list_prefixes: config.max_list_prefixes,
        flows: flow_options(&options.config.flows),
        protection: protect::protection(options),
        event_budget: config.event_budget,
        log_level: match config.kernel_log {
            KernelLog::Off => 0,
            KernelLog::Error => 1,
            KernelLog::Warn => 2,
            KernelLog::Info => 3,
            KernelLog::Debug => 4,
            KernelLog::Trace => 5,
        },
        seed: u64::from_ne_bytes(seed),
        mode: options.mode.unwrap_or(config.mode),
        levels: kernel_levels(&options.config.detect),
    })
}

fn flow_options(config: &FlowsConfig) -> FlowOptions {
    FlowOptions {
        slots: if config.enabled { config.table_size } else { 0 },
        idle: config.idle_timeout,
        active: config.active_timeout,
        by_filter: false,
    }
}

impl Agent {
    fn load_allowlist(&mut self) -> Result<(), AgentError> {
        let configured: Vec<_> = self
            .options
            .config
            .allow
            .addresses
            .iter()
            .map(|p| (*p, "[allow] addresses".to_owned()))
            .collect();
        self.allowlist.replace(Source::Configuration, configured);
        let kept: Option<Vec<(crate::addr::Prefix, String)>> =
            self.state.read_json(ALLOW_FILE, ALLOW_FORMAT)?;
        self.allowlist
            .replace(Source::Operator, kept.unwrap_or_default());
        self.discover_allowlist(true);
        Ok(())
    }
}
