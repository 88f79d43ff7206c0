//! The maps, one declaration each. BTF definitions, so that `bpftool map dump` prints field names.
//!
//! Sizes here are defaults; the controller sets its configured ones before the maps are made.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf},
    macros::btf_map,
};
use secmesh_common::{
    account::{SLOTS, SourceSlot},
    block::{Addr4, Addr6, AllowEntry, BlockEntry, Net4, Net6},
    capture::Captured,
    config::Config,
    cookie::{LISTENERS, Listener, MAX_ADDRESSES, Scratch, VERIFIED, Verified},
    counters::{Counters, EventBudget},
    event::Event,
    flow::{FlowExport, FlowSlot},
    hot::{self, HotSource},
    list::{
        GUARD_MAX_WORDS, INDEX4, ListBucket4, ListBucket6, ListRange4, ListRange6, Listed, Listed6,
    },
    nets::{ListNets4, ListNets6},
    port::{PORT_LIMITS, PORTS, PortPolicy, SharedLimit},
    process::ProcessEvent,
};

/// Seed of the source hash; the controller puts a random one here before loading, so that nobody can
/// choose addresses that meet in one slot.
#[unsafe(no_mangle)]
pub static HASH_SEED: Global<u64> = Global::new(0);

/// Exact IPv4 blocks. A plain hash: an LRU would let an attacker push blocks out.
#[btf_map]
pub static BLOCK4: HashMap<Addr4, BlockEntry, 131_072> = HashMap::new();

/// Exact IPv6 blocks.
#[btf_map]
pub static BLOCK6: HashMap<Addr6, BlockEntry, 131_072> = HashMap::new();

/// IPv4 prefix blocks.
#[btf_map]
pub static PREFIX4: LpmTrie<Net4, BlockEntry, 16_384> = LpmTrie::new();

/// IPv6 prefix blocks.
#[btf_map]
pub static PREFIX6: LpmTrie<Net6, BlockEntry, 16_384> = LpmTrie::new();

/// IPv4 allowlist.
#[btf_map]
pub static ALLOW4: LpmTrie<Net4, AllowEntry, 4096> = LpmTrie::new();

/// IPv6 allowlist.
#[btf_map]
pub static ALLOW6: LpmTrie<Net6, AllowEntry, 4096> = LpmTrie::new();

/// IPv4 sources whose packets are all reported, with the time (`CLOCK_MONOTONIC` ns) that ends it.
#[btf_map]
pub static WATCH4: HashMap<Addr4, u64, 1024> = HashMap::new();

/// IPv6 sources whose packets are all reported.
#[btf_map]
pub static WATCH6: HashMap<Addr6, u64, 1024> = HashMap::new();

/// Which IPv4 neighbourhoods hold a block; see `secmesh_common::list`.
#[btf_map]
pub static GUARD4: Array<u64, { GUARD_MAX_WORDS as usize }> = Array::new();

/// Which IPv6 neighbourhoods hold a block.
#[btf_map]
pub static GUARD6: Array<u64, { GUARD_MAX_WORDS as usize }> = Array::new();

/// Sources that a decision blocks and that are sending now.
#[btf_map]
pub static HOT: Array<HotSource, { hot::SLOTS }> = Array::new();

/// Addresses of imported lists, IPv4.
#[btf_map]
pub static LIST4: Array<ListBucket4, 32_768> = Array::new();

/// Addresses of imported lists, IPv6.
#[btf_map]
pub static LIST6: Array<ListBucket6, 32_768> = Array::new();

/// No host of a group of buckets of `LIST6` ends before this, units of `EXPIRY_SHIFT`.
#[btf_map]
pub static SOONEST6: Array<u32, 2048> = Array::new();

/// What is beside each slot of `LIST4`.
#[btf_map]
pub static LISTED4: Array<Listed, 131_072> = Array::new();

/// What is beside each slot of `LIST6`.
#[btf_map]
pub static LISTED6: Array<Listed6, 131_072> = Array::new();

/// Prefixes of imported lists as ranges, IPv4; two halves, one of them in use.
#[btf_map]
pub static RANGE4: Array<ListRange4, 32_768> = Array::new();

/// Prefixes of imported lists as ranges, IPv6.
#[btf_map]
pub static RANGE6: Array<ListRange6, 32_768> = Array::new();

/// The first halves of where the IPv6 ranges start, in the same places: what a search has to read.
#[btf_map]
pub static SEARCH6: Array<u64, 32_768> = Array::new();

/// Networks that IPv4 ranges were split into; two halves, interleaved.
#[btf_map]
pub static NET4: Array<ListNets4, 8192> = Array::new();

/// Networks that IPv6 ranges were split into.
#[btf_map]
pub static NET6: Array<ListNets6, 16_384> = Array::new();

/// Where in the IPv4 ranges each /16 begins; two halves.
#[btf_map]
pub static INDEX: Array<u32, { 2 * INDEX4 as usize }> = Array::new();

/// What is special about a port.
#[btf_map]
pub static PORT: Array<PortPolicy, PORTS> = Array::new();

/// Limits of ports.
#[btf_map]
pub static PORT_LIMIT: Array<SharedLimit, PORT_LIMITS> = Array::new();

/// Destinations of connection attempts, and which of them are flooded.
#[btf_map]
pub static COOKIE_LISTENER: Array<Listener, LISTENERS> = Array::new();

/// When any listener last gave a cookie: its `marked_ns`. One entry, so that segments of established
/// connections need not look further.
#[btf_map]
pub static COOKIE_FLOOD: Array<Listener, 1> = Array::new();

/// Sources that returned a good cookie.
#[btf_map]
pub static COOKIE_VERIFIED: Array<Verified, VERIFIED> = Array::new();

/// Addresses of this host, IPv4 ones mapped (RFC 4291 section 2.5.5.2). A listener on every address is found
/// for every address, so the socket lookup alone would answer for other machines too.
#[btf_map]
pub static COOKIE_ADDRESS: HashMap<Addr6, u32, MAX_ADDRESSES> = HashMap::new();

/// What the cookie helpers read; one entry per CPU.
#[btf_map]
pub static COOKIE_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Theoretical arrival times of the host's limits; see `secmesh_common::limit::SHARED_TOTAL` and those after it.
#[btf_map]
pub static SHARED: Array<u64, 8> = Array::new();

/// The run-time configuration; one entry.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// Counters; one entry per CPU.
#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// Event budgets; one entry per CPU.
#[btf_map]
pub static BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

/// Per-source accounting.
#[btf_map]
pub static SOURCES: Array<SourceSlot, SLOTS> = Array::new();

/// Events to the controller; size in bytes.
#[btf_map]
pub static EVENTS: RingBuf<Event, 1_048_576> = RingBuf::new();

/// Slots of the flow table less one; the controller sets it together with the table's size.
#[unsafe(no_mangle)]
pub static FLOW_MASK: Global<u32> = Global::new(0);

/// The flow table.
#[btf_map]
pub static FLOW: Array<FlowSlot, 2> = Array::new();

/// Flow records to the controller; size in bytes.
#[btf_map]
pub static FLOWS: RingBuf<FlowExport, 2_097_152> = RingBuf::new();

/// Beginnings and ends of processes to the controller; size in bytes.
#[btf_map]
pub static PROCESSES: RingBuf<ProcessEvent, 524_288> = RingBuf::new();

/// Budgets of process events; one entry per CPU.
#[btf_map]
pub static PROCESS_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
/// Heads of dropped packets to a capture; size in bytes.
#[btf_map]
pub static CAPTURES: RingBuf<Captured, 1_048_576> = RingBuf::new();

/// Capture budgets; one entry per CPU.
#[btf_map]
pub static CAPTURE_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
