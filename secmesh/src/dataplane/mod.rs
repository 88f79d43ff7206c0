//! What the kernel sees and what it enforces: the BPF object, its maps, its links, its events.
//!
//! Loading pins maps and links in bpffs, so that enforcement goes on while no agent runs; a new agent
//! opens the pinned maps and swaps its program into the pinned links without a gap.

mod allow_scan;
mod attach;
mod batch;
mod bpf;
mod captures;
mod cell;
mod change;
mod clock;
mod cookies;
mod counters;
mod cuckoo;
#[cfg(any(test, feature = "fuzzing"))]
mod cuckoo_check;
mod driver;
mod error;
mod events;
mod filters;
mod flows;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guard;
mod hot;
mod kernel_types;
mod listing;
mod lists;
mod netlink;
mod ports;
mod preflight;
mod processes;
mod ring;
mod standing;
pub mod syncookies;
mod tables;
mod turns;
mod verify;
mod watches;

use std::path::{Path, PathBuf};

pub use aya::programs::{TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, maps::MapData, programs::Xdp};
use tracing::warn;

use secmesh_common::{
    SCHEMA,
    block::{Addr4, Addr6, AllowEntry, BlockEntry, Net4, Net6},
    config::{
        Config as KernelConfig, MODE_ENFORCE, MODE_MONITOR,
        features::{COOKIES, FLOWS},
    },
    cookie::{Listener, Verified},
    counters::Counters,
    hot::HotSource,
    limit::{Limit, SourceLimit},
    list::{ListBucket4, ListBucket6, ListRange4, ListRange6, Listed, Listed6, print_keys},
    nets::{ListNets4, ListNets6},
    port::{PortPolicy, SharedLimit},
};

pub use self::{
    attach::{AttachMode, AttachedInterface},
    batch::set as set_elements,
    captures::CaptureReader,
    counters::CounterReader,
    driver::{driver_of, takes_tags_out},
    error::DataplaneError,
    events::{EventReader, KernelLog},
    flows::{Egress, FlowInterface, FlowOptions, Swept},
    kernel_types::KernelTypesError,
    listing::{BlockLister, Page},
    lists::{AuditCursor, Audited, Compiled, Differences, ListTables, Replaced, Span},
    netlink::LinkWatch,
    ports::{PortRule, PortTable},
    preflight::{KERNEL_FLOOR, check_system, mount_hint},
    ring::RingReader,
    tables::{AllowTable, BlockTable, TableError},
    verify::{Accepted, ProgramReport, try_programs},
    watches::WatchTable,
};
use self::{
    cell::ConfigCell,
    change::{Change, Found},
    cookies::CookieMaps,
    guard::Guard,
    lists::{ListMaps, NetMaps, RangeMaps},
    processes::ProcessOffsets,
};
pub use crate::config::{CookieMode, Mode};
use crate::{addr::Prefix, config};

/// The kernel programs, built by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SECMESH_BPF_OBJECT"));

/// Name of the XDP program in the object, and as `bpftool prog` shows it.
pub const PROGRAM: &str = "secmesh";

/// Maps that outlive the agent, with the sizes of their keys and values. The others (accounting,
/// budgets) start fresh with each program.
const PINNED_MAPS: &[(&str, usize, usize)] = &[
    ("BLOCK4", size_of::<Addr4>(), size_of::<BlockEntry>()),
    ("BLOCK6", size_of::<Addr6>(), size_of::<BlockEntry>()),
    ("PREFIX4", 4 + size_of::<Net4>(), size_of::<BlockEntry>()),
    ("PREFIX6", 4 + size_of::<Net6>(), size_of::<BlockEntry>()),
    ("ALLOW4", 4 + size_of::<Net4>(), size_of::<AllowEntry>()),
    ("ALLOW6", 4 + size_of::<Net6>(), size_of::<AllowEntry>()),
    ("WATCH4", size_of::<Addr4>(), size_of::<u64>()),
    ("WATCH6", size_of::<Addr6>(), size_of::<u64>()),
    ("GUARD4", size_of::<u32>(), size_of::<u64>()),
    ("GUARD6", size_of::<u32>(), size_of::<u64>()),
    ("HOT", size_of::<u32>(), size_of::<HotSource>()),
    ("LIST4", size_of::<u32>(), size_of::<ListBucket4>()),
    ("LIST6", size_of::<u32>(), size_of::<ListBucket6>()),
    ("SOONEST6", size_of::<u32>(), size_of::<u32>()),
    ("LISTED4", size_of::<u32>(), size_of::<Listed>()),
    ("LISTED6", size_of::<u32>(), size_of::<Listed6>()),
    ("RANGE4", size_of::<u32>(), size_of::<ListRange4>()),
    ("RANGE6", size_of::<u32>(), size_of::<ListRange6>()),
    ("SEARCH6", size_of::<u32>(), size_of::<u64>()),
    ("INDEX", size_of::<u32>(), size_of::<u32>()),
    ("NET4", size_of::<u32>(), size_of::<ListNets4>()),
    ("NET6", size_of::<u32>(), size_of::<ListNets6>()),
    ("PORT", size_of::<u32>(), size_of::<PortPolicy>()),
    ("PORT_LIMIT", size_of::<u32>(), size_of::<SharedLimit>()),
    ("COOKIE_ADDRESS", size_of::<Addr6>(), size_of::<u32>()),
    ("COOKIE_LISTENER", size_of::<u32>(), size_of::<Listener>()),
    ("COOKIE_FLOOD", size_of::<u32>(), size_of::<Listener>()),
    ("COOKIE_VERIFIED", size_of::<u32>(), size_of::<Verified>()),
    ("CONFIG", size_of::<u32>(), size_of::<KernelConfig>()),
    ("COUNTERS", size_of::<u32>(), size_of::<Counters>()),
    ("EVENTS", 0, 0),
];

/// Length of the event budget's tick, ns. A tenth of a second keeps bursts short and the clock coarse.
const EVENT_TICK_NS: u64 = 100_000_000;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Directory in bpffs for pins; `None` pins nothing (tests, benchmarks).
    pub pin_dir: Option<PathBuf>,
    /// Capacity of each exact block map.
    pub max_blocks: u32,
    /// Capacity of each prefix block map.
    pub max_prefixes: u32,
    /// Events that one CPU may send per second.
    pub event_budget: u32,
    /// `aya-log` level of the kernel program: 0 is off, 1 error … 5 trace.
    pub log_level: u8,
    /// Seed of the source hash.
    pub seed: u64,
    /// Initial mode, if no pinned state says otherwise.
    pub mode: Mode,
    /// Levels and windows of the accounting.
    pub levels: Levels,
    /// Room for addresses of imported lists, of each family.
    pub max_list_addresses: u32,
    /// Room for prefixes of imported lists, of each family.
    pub max_list_prefixes: u32,
    /// What is dropped besides blocks.
    pub protection: Protection,
    /// The flow table.
    pub flows: FlowOptions,
}

/// What is dropped besides blocks: checks and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protection {
    /// Checks in force, [`secmesh_common::reason::Reason::bit`]s.
    pub checks: u64,
    /// Limits of each source, by [`SourceLimit`].
    pub source_limits: [Limit; SourceLimit::COUNT],
    /// New connections to the mesh port, per source.
    pub mesh_limit: Limit,
    /// Fragments of all sources together.
    pub fragment_limit: Limit,
    /// Packets of all sources together.
    pub total_limit: Limit,
    /// TCP segments of one source that are no connection attempt, beyond which their sockets are looked up.
    pub stray_limit: Limit,
    /// The same segments of all sources that are hardly known, together.
    pub strays_limit: Limit,
    /// Answers of amplifying services, of all sources together, beyond which their sockets are looked up.
    pub amplified_limit: Limit,
    /// Bits of [`secmesh_common::config::features`]; the one of flows follows from
    /// [`LoadOptions::flows`] and is not looked at here.
    pub features: u32,
}

/// Levels and windows that the kernel's accounting reports at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// By number of [`secmesh_common::config::RateClass`].
    pub rates: [secmesh_common::config::RateLevels; 3],
    /// Window of first contacts, ns.
    pub contact_window_ns: u64,
}

/// The loaded program and its maps.
pub struct Dataplane {
    ebpf: Ebpf,
    config: ConfigCell,
    guard: Guard,
    cookies: CookieMaps,
    attached: Vec<AttachedInterface>,
    flows: FlowOptions,
    flow_interfaces: Vec<FlowInterface>,
    /// Slot that the next sweep begins at.
    sweep_from: u32,
    /// Why nothing can be said of processes.
    no_offsets: Option<String>,
    pin_dir: Option<PathBuf>,
    /// New maps that are not in their place yet.
    change: Option<Change>,
    lister: BlockLister,
    /// Whether pinned maps of an earlier agent were taken over.
    pub resumed: bool,
}

/// Constants of the programs that are found out or computed before they are loaded.
struct Globals {
    offsets: Result<ProcessOffsets, KernelTypesError>,
    flow_mask: u32,
}

impl Globals {
    fn of(options: &LoadOptions) -> Self {
        Self {
            offsets: ProcessOffsets::of_running_kernel(),
            flow_mask: options.flows.entries() - 1,
        }
    }
}

impl Dataplane {
    /// What the object is loaded with, but for the pins.
    fn loader<'a>(options: &'a LoadOptions, globals: &'a Globals) -> EbpfLoader<'a> {
        let mut loader = EbpfLoader::new();
        if let Ok(offsets) = &globals.offsets {
            offsets.set(&mut loader);
        }
        loader
            .override_global("HASH_SEED", &options.seed, true)
            .override_global(aya_log::LEVEL, &options.log_level, true)
            .override_global("FLOW_MASK", &globals.flow_mask, true)
            .map_max_entries("FLOW", options.flows.entries())
            .verifier_log_level(VerifierLogLevel::STATS);
        for (name, entries) in standing::sizes(options) {
            loader.map_max_entries(name, entries);
        }
        loader
    }

    /// Loads the object and prepares its maps; attaches nothing yet.
    ///
    /// # Errors
    ///
    /// Missing privileges, a pinned state of another schema, and whatever the kernel refuses, each with
    /// what to do about it.
    pub fn load(options: &LoadOptions) -> Result<Self, DataplaneError> {
        let pins = options.pin_dir.clone();
        let found = match &pins {
            Some(dir) => change::begin(dir, options)?,
            None => Found::Nothing,
        };
        let resumed = !matches!(found, Found::Nothing);
        let change = match found {
            Found::Other(change) => Some(change),
            Found::Nothing | Found::Ours => None,
        };
        // New maps that are to take the place of others are made beside them.
        let map_dir = match &change {
            Some(change) => Some(change.next().to_path_buf()),
            None => pins.clone(),
        };
        let globals = Globals::of(options);
        let mut loader = Self::loader(options, &globals);
        let pin_paths: Vec<(&str, PathBuf)> = map_dir
            .iter()
            .flat_map(|dir| PINNED_MAPS.iter().map(|(name, ..)| (*name, dir.join(name))))
            .collect();
        for (name, path) in &pin_paths {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader.load(OBJECT).map_err(DataplaneError::Load)?;
        program(&mut ebpf)?
            .load()
            .map_err(DataplaneError::Verifier)?;
        if options.flows.enabled() {
            flows::load(&mut ebpf)?;
        }
        let config = take(&mut ebpf, "CONFIG")?
            .try_into()
            .map_err(DataplaneError::Map)?;
        let config = ConfigCell::open(config)?;
        let found = config.get();
        let ours = resumed && found.schema == SCHEMA;
        let ticks = clock::measure(&mut ebpf)?;
        if ticks.is_none() {
            warn!(
                "the kernel's timer rate is not one that is known; packets cost a clock reading each"
            );
        }
        let protection = &options.protection;
        config.update(|c| {
            c.schema = SCHEMA;
            c.tick_ns = ticks.map_or(0, |t| t.tick_ns);
            c.clock_offset_ns = ticks.map_or(0, |t| t.offset_ns);
            if !ours {
                c.mode = mode_number(options.mode);
                c.table_seed = options.seed.rotate_left(32);
            }
            if let Some(change) = &change {
                c.table_seed = change.table_seed().unwrap_or(c.table_seed);
                c.mode = change.mode();
                c.enforce_until_ns = change.enforce_until_ns();
            }
            c.print_keys = print_keys(c.table_seed);
            c.rates = options.levels.rates;
            c.contact_window_ns = options.levels.contact_window_ns;
            c.event_budget = (options.event_budget / 10).max(1);
            c.event_tick_ns = EVENT_TICK_NS;
            // A capture ends with the agent that was asked for it.
            c.capture = 0;
            c.checks = protection.checks;
            // Whether cookies are on is not the protection's to say.
            c.features = with_flows(protection.features, &options.flows) | (c.features & COOKIES);
            c.flow_idle = flows::units(options.flows.idle);
            c.flow_active = flows::units(options.flows.active);
            c.source_limits = protection.source_limits;
            c.mesh_limit = protection.mesh_limit;
            c.fragment_limit = protection.fragment_limit;
            c.total_limit = protection.total_limit;
            c.stray_limit = protection.stray_limit;
            c.strays_limit = protection.strays_limit;
            c.amplified_limit = protection.amplified_limit;
        })?;
        if let Some(change) = &change {
            change.fill()?;
        }
        let guard = Guard::open(
            array(&mut ebpf, "GUARD4")?,
            array(&mut ebpf, "GUARD6")?,
            config.clone(),
            !ours,
        )?;
        let cookies = CookieMaps::open(&mut ebpf, resumed)?;
        Ok(Self {
            ebpf,
            config,
            guard,
            cookies,
            attached: Vec::new(),
            flows: options.flows,
            flow_interfaces: Vec::new(),
            sweep_from: 0,
            no_offsets: globals.offsets.err().map(|e| e.to_string()),
            pin_dir: pins,
            change,
            lister: BlockLister::default(),
            resumed,
        })
    }

    /// The configuration in force.
    pub fn kernel_config(&self) -> KernelConfig {
        self.config.get()
    }

    /// Changes what is dropped besides blocks, at once, for all interfaces.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map write.
    pub fn set_protection(&mut self, protection: &Protection) -> Result<(), DataplaneError> {
        let features = with_flows(protection.features, &self.flows);
        self.config.update(|c| {
            c.checks = protection.checks;
            // Whether cookies are on is not the protection's to say.
            c.features = features | (c.features & COOKIES);
            c.source_limits = protection.source_limits;
            c.mesh_limit = protection.mesh_limit;
            c.fragment_limit = protection.fragment_limit;
            c.total_limit = protection.total_limit;
            c.stray_limit = protection.stray_limit;
            c.strays_limit = protection.strays_limit;
            c.amplified_limit = protection.amplified_limit;
        })
    }

    /// Switches between dropping and counting, at once, for all interfaces, and for good.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map write; then nothing changed.
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), DataplaneError> {
        self.set_mode_until(mode, 0)
    }

    /// Switches the mode; with `until_ns` (`CLOCK_MONOTONIC`, 0: for good) dropping ends by itself at that
    /// time, also while no agent runs.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map write; then nothing changed.
    pub fn set_mode_until(&mut self, mode: Mode, until_ns: u64) -> Result<(), DataplaneError> {
        self.config.update(|c| {
            c.mode = mode_number(mode);
            c.enforce_until_ns = until_ns;
        })
    }

    /// When dropping ends unless it is confirmed, `CLOCK_MONOTONIC` ns.
    pub fn enforce_until_ns(&self) -> Option<u64> {
        let config = self.config.get();
        (config.mode == MODE_ENFORCE && config.enforce_until_ns != 0)
            .then_some(config.enforce_until_ns)
    }

    /// The mode that is set. Once [`Dataplane::enforce_until_ns`] is past, the program counts only, whatever
    /// this says; whoever owns the data plane sets it back then.
    pub fn mode(&self) -> Mode {
        if self.config.get().mode == MODE_ENFORCE {
            Mode::Enforce
        } else {
            Mode::Monitor
        }
    }

    /// Tells the program how many prefixes and watched sources there are, so that it can skip empty
    /// tables.
    ///
    /// Call it *before* the first entry goes in and *after* the last one came out.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of the map write.
    pub fn set_sizes(
        &mut self,
        prefixes4: u32,
        prefixes6: u32,
        watched: u32,
    ) -> Result<(), DataplaneError> {
        self.config.update(|c| {
            c.prefixes4 = prefixes4;
            c.prefixes6 = prefixes6;
            c.watched = watched;
        })
    }

    /// Takes the block maps.
    ///
    /// # Errors
    ///
    /// If they were taken before.
    pub fn take_blocks(&mut self) -> Result<BlockTable, DataplaneError> {
        let exact4 = take(&mut self.ebpf, "BLOCK4")?;
        let exact6 = take(&mut self.ebpf, "BLOCK6")?;
        let prefix4 = take(&mut self.ebpf, "PREFIX4")?;
        let prefix6 = take(&mut self.ebpf, "PREFIX6")?;
        self.lister = BlockLister::new([&exact4, &exact6, &prefix4, &prefix6]);
        Ok(BlockTable {
            exact4: exact4.try_into().map_err(DataplaneError::Map)?,
            exact6: exact6.try_into().map_err(DataplaneError::Map)?,
            prefix4: prefix4.try_into().map_err(DataplaneError::Map)?,
            prefix6: prefix6.try_into().map_err(DataplaneError::Map)?,
            known: std::collections::BTreeSet::new(),
            guard: self.guard.clone(),
            hot: array(&mut self.ebpf, "HOT")?,
            config: self.config.clone(),
        }
        .learn())
    }

    /// What lists the block maps that [`Dataplane::take_blocks`] gave out; lists nothing before that.
    pub fn take_lister(&mut self) -> BlockLister {
        std::mem::take(&mut self.lister)
    }

    /// Takes the list tables.
    ///
    /// # Errors
    ///
    /// If they were taken before, or the kernel refuses to read what an earlier agent left in them.
    pub fn take_lists(&mut self) -> Result<ListTables, DataplaneError> {
        let maps = ListMaps {
            hosts4: array(&mut self.ebpf, "LIST4")?,
            hosts6: array(&mut self.ebpf, "LIST6")?,
            soonest6: array(&mut self.ebpf, "SOONEST6")?,
            listed4: array(&mut self.ebpf, "LISTED4")?,
            listed6: array(&mut self.ebpf, "LISTED6")?,
            ranges: RangeMaps {
                ranges4: array(&mut self.ebpf, "RANGE4")?,
                ranges6: array(&mut self.ebpf, "RANGE6")?,
                search6: array(&mut self.ebpf, "SEARCH6")?,
                index: array(&mut self.ebpf, "INDEX")?,
                indexed: [None, None],
                nets: NetMaps::new(
                    array(&mut self.ebpf, "NET4")?,
                    array(&mut self.ebpf, "NET6")?,
                    self.config.get().table_seed,
                ),
            },
        };
        ListTables::new(maps, self.guard.clone(), self.config.clone())
            .map_err(DataplaneError::Table)
    }

    /// Takes the map of ports.
    ///
    /// # Errors
    ///
    /// If it was taken before.
    pub fn take_ports(&mut self) -> Result<PortTable, DataplaneError> {
        Ok(PortTable::new(
            array(&mut self.ebpf, "PORT")?,
            array(&mut self.ebpf, "PORT_LIMIT")?,
        ))
    }

    /// Takes the ring of captured heads.
    ///
    /// # Errors
    ///
    /// If it was taken before.
    pub fn take_captures(&mut self) -> Result<CaptureReader, DataplaneError> {
        CaptureReader::new(take(&mut self.ebpf, "CAPTURES")?, self.config.clone())
    }

    /// Takes the allow maps.
    ///
    /// # Errors
    ///
    /// If they were taken before.
    pub fn take_allows(&mut self) -> Result<AllowTable, DataplaneError> {
        Ok(AllowTable {
            v4: take(&mut self.ebpf, "ALLOW4")?
                .try_into()
                .map_err(DataplaneError::Map)?,
            v6: take(&mut self.ebpf, "ALLOW6")?
                .try_into()
                .map_err(DataplaneError::Map)?,
            config: self.config.clone(),
            scan: allow_scan::AllowScan::default(),
        })
    }

    /// Takes the watch maps.
    ///
    /// # Errors
    ///
    /// If they were taken before.
    pub fn take_watches(&mut self) -> Result<WatchTable, DataplaneError> {
        let v4 = take(&mut self.ebpf, "WATCH4")?;
        let v6 = take(&mut self.ebpf, "WATCH6")?;
        Ok(WatchTable::new(
            v4.try_into().map_err(DataplaneError::Map)?,
            v6.try_into().map_err(DataplaneError::Map)?,
        ))
    }

    /// Takes the event ring.
    ///
    /// # Errors
    ///
    /// If it was taken before.
    pub fn take_events(&mut self) -> Result<EventReader, DataplaneError> {
        EventReader::new(take(&mut self.ebpf, "EVENTS")?)
    }

    /// Takes the counters.
    ///
    /// # Errors
    ///
    /// If they were taken before.
    pub fn take_counters(&mut self) -> Result<CounterReader, DataplaneError> {
        CounterReader::new(take(&mut self.ebpf, "COUNTERS")?)
    }

    /// Takes the kernel program's debug log, if it was loaded with one.
    ///
    /// # Errors
    ///
    /// If its ring cannot be opened.
    pub fn take_log(&mut self) -> Result<KernelLog, DataplaneError> {
        KernelLog::new(&mut self.ebpf)
    }

    /// Attaches to `interface`, or takes over the link that an earlier agent pinned there.
    ///
    /// # Errors
    ///
    /// If the interface does not exist, another XDP program holds it, or no permitted mode works.
    pub fn attach(
        &mut self,
        interface: &str,
        policy: config::AttachMode,
    ) -> Result<AttachedInterface, DataplaneError> {
        let pin_dir = self.pin_dir.clone();
        if let Some(change) = &mut self.change {
            change.carry_counters();
        }
        let attached = attach::attach(
            program(&mut self.ebpf)?,
            interface,
            policy,
            pin_dir.as_deref(),
        )?;
        self.attached.push(attached.clone());
        self.attach_egress(interface);
        Ok(attached)
    }

    /// Whether the maps are new ones that have to take the place of an earlier agent's: see
    /// [`Dataplane::finish_change`].
    pub fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Puts new maps, made because an earlier agent's have another size or schema, in their place. Call it when
    /// everything that should be attached is; nothing happens if there are none. Links of interfaces that were not
    /// attached to get the program too, so that none looks at maps that nobody writes any more.
    ///
    /// # Errors
    ///
    /// If the pins cannot be changed; then the old ones are there, for another try by the next start.
    pub fn finish_change(&mut self) -> Result<(), DataplaneError> {
        let (Some(mut change), Some(dir)) = (self.change.take(), self.pin_dir.clone()) else {
            return Ok(());
        };
        for name in attach::pinned_interfaces(&dir)? {
            if self.attached.iter().any(|a| a.name == name) {
                continue;
            }
            if let Err(error) = attach::switch_pinned(program(&mut self.ebpf)?, &name, &dir) {
                warn!(interface = %name, %error, "its program still looks at the old maps, as they are now");
            }
            flows::switch_pinned(&mut self.ebpf, &name, &dir);
        }
        change.finish()
    }

    /// Gives up an interface that has gone: it is no longer attached, and what is pinned for its name is
    /// removed.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub fn let_go(&mut self, interface: &str) -> Result<(), DataplaneError> {
        self.attached.retain(|a| a.name != interface);
        match &self.pin_dir {
            Some(dir) => attach::unpin_interface(dir, interface),
            None => Ok(()),
        }
    }

    /// Takes the program off every interface that an earlier agent left it on and that is not in `names`.
    /// Gives their names.
    ///
    /// # Errors
    ///
    /// If the pins cannot be listed or one cannot be removed.
    pub fn take_off_all_but(&mut self, names: &[String]) -> Result<Vec<String>, DataplaneError> {
        let Some(dir) = &self.pin_dir else {
            return Ok(Vec::new());
        };
        let mut off = attach::pinned_interfaces(dir)?;
        off.retain(|name| !names.contains(name));
        for name in &off {
            attach::unpin_interface(dir, name)?;
        }
        Ok(off)
    }

    /// Interfaces that this agent attached to.
    pub fn attached(&self) -> &[AttachedInterface] {
        &self.attached
    }

    /// The loaded program, for `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    ///
    /// If the object has no such program, which the build rules out.
    pub fn program(&mut self) -> Result<&mut Xdp, DataplaneError> {
        program(&mut self.ebpf)
    }

    /// Instructions that the verifier walked to accept the program, where the kernel tells (5.16).
    pub fn verified_instructions(&mut self) -> Option<u32> {
        program(&mut self.ebpf)
            .ok()?
            .info()
            .ok()?
            .verified_instruction_count()
    }

    /// Names of the pinned maps with their paths, for messages.
    pub fn pin_dir(&self) -> Option<&Path> {
        self.pin_dir.as_deref()
    }
}

/// Removes every pin of `pin_dir`: programs leave their interfaces, maps and blocks are gone.
///
/// # Errors
///
/// If a pin cannot be removed.
pub fn detach_all(pin_dir: &Path) -> Result<usize, DataplaneError> {
    let removed = attach::remove_pins(pin_dir)?;
    // What a change of maps left that was cut off.
    Ok(removed + attach::remove_second_pins(&change::next_dir(pin_dir))?)
}

fn with_flows(features: u32, flows: &FlowOptions) -> u32 {
    if flows.enabled() {
        features | FLOWS
    } else {
        features & !FLOWS
    }
}

/// Whether a prefix belongs in the exact maps.
fn is_exact(prefix: &Prefix) -> bool {
    prefix.is_single()
}

fn mode_number(mode: Mode) -> u32 {
    match mode {
        Mode::Monitor => MODE_MONITOR,
        Mode::Enforce => MODE_ENFORCE,
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    ebpf.program_mut(PROGRAM)
        .ok_or(DataplaneError::Missing(PROGRAM))?
        .try_into()
        .map_err(DataplaneError::Verifier)
}

fn array<V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<aya::maps::Array<MapData, V>, DataplaneError> {
    take(ebpf, name)?.try_into().map_err(DataplaneError::Map)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, DataplaneError> {
    ebpf.take_map(name).ok_or(DataplaneError::Missing(name))
}
