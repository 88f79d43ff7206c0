//! What the controller may change while the program runs: one entry of an array map.

use crate::{
    lease,
    limit::{Limit, SourceLimit},
    reason::Reason,
    sanity::STRAYS,
};

/// Rate classes that are counted per source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RateClass {
    /// TCP connection attempts that were not completed.
    Syn = 0,
    /// UDP datagrams.
    Udp = 1,
    /// ICMP and ICMPv6 messages.
    Icmp = 2,
}

impl RateClass {
    /// Number of classes.
    pub const COUNT: usize = 3;

    /// The class with this number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Syn),
            1 => Some(Self::Udp),
            2 => Some(Self::Icmp),
            _ => None,
        }
    }
}

/// Packets that would be dropped are passed and counted as such.
pub const MODE_MONITOR: u32 = 0;
/// Packets are dropped.
pub const MODE_ENFORCE: u32 = 1;

/// When a class's count is reported, and over which window it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct RateLevels {
    /// Length of the tumbling window, ns.
    pub window_ns: u64,
    /// Reported when the count reaches this: what a watched source is judged by.
    pub watch: u32,
    /// Reported when the count reaches this, and at every power of two beyond.
    pub alert: u32,
}

/// The run-time configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Config {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// [`MODE_MONITOR`] or [`MODE_ENFORCE`].
    pub mode: u32,
    /// Levels of each [`RateClass`], by its number.
    pub rates: [RateLevels; RateClass::COUNT],
    /// Window over which first contacts are remembered, ns.
    pub contact_window_ns: u64,
    /// Events that one CPU may send per [`Config::event_tick_ns`].
    pub event_budget: u32,
    /// Prefixes in the IPv4 block trie; 0 skips its lookup.
    pub prefixes4: u32,
    /// Prefixes in the IPv6 block trie; 0 skips its lookup.
    pub prefixes6: u32,
    /// Sources in the watch map; 0 skips its lookup.
    pub watched: u32,
    /// Length of the budget's tick, ns.
    pub event_tick_ns: u64,
    /// Length of the kernel's timer tick, ns; 0 if nobody has measured it yet. See [`Config::clock_ns`].
    pub tick_ns: u64,
    /// What has to be added to ticks in ns to get `CLOCK_MONOTONIC`, wrapping.
    pub clock_offset_ns: u64,
    /// Seed of the guard's, the lists' and the hot sources' hashes; stays as long as those maps do.
    pub table_seed: u64,
    /// What prints of IPv6 addresses are made with: [`crate::list::print_keys`] of [`Config::table_seed`].
    pub print_keys: [u64; crate::list::PRINT_KEYS],
    /// Checks in force: [`crate::reason::Reason::bit`]s. A reason without its bit is neither counted nor
    /// dropped for; decisions, prefixes and lists need none.
    pub checks: u64,
    /// Reasons whose dropped packets are captured.
    pub capture: u64,
    /// Bits of [`features`].
    pub features: u32,
    /// Another value empties every [`crate::hot::HotSource`]. Changes when the allowlist does.
    pub hot_generation: u32,
    /// Changes when the allowlist does.
    pub allow_generation: u32,
    /// [`Config::allow_generation`] that the lists in the tables were compiled against: while the two are
    /// equal, no listed address is an allowed one.
    pub list_generation: u32,
    /// Addresses in the IPv4 list table; 0 skips its lookup.
    pub list_hosts4: u32,
    /// Addresses in the IPv6 list table; 0 skips its lookup.
    pub list_hosts6: u32,
    /// Buckets of the IPv4 list table.
    pub list_buckets4: u32,
    /// Buckets of the IPv6 list table.
    pub list_buckets6: u32,
    /// How often the ranges of lists were replaced. Its lowest bit says which half of the range maps and of their
    /// index is in use: one word, so that changing it changes all of them between two packets. Who finds it
    /// changed after a search may have read a half that was being written, and searches again.
    pub list_half: u32,
    /// How often an IPv4 host of a list was moved to its other bucket, counted between the two writes of a move.
    /// Who has not found a host and finds this changed may have read both its buckets at the wrong time.
    pub list_moves4: u32,
    /// The same of IPv6.
    pub list_moves6: u32,
    /// Ranges that fit one half of the IPv4 range map.
    pub list_room4: u32,
    /// Ranges that fit one half of the IPv6 range map.
    pub list_room6: u32,
    /// IPv4 ranges in each half; 0 skips their lookup.
    pub list_ranges4: [u32; 2],
    /// IPv6 ranges in each half.
    pub list_ranges6: [u32; 2],
    /// Buckets of IPv4 networks in each half ([`crate::nets`]); 0: ranges are searched for.
    pub list_nets4: [u32; 2],
    /// Buckets of IPv6 networks in each half.
    pub list_nets6: [u32; 2],
    /// Of which families all ranges are among the networks of each half: [`crate::nets::WHOLE4`],
    /// [`crate::nets::WHOLE6`].
    pub list_whole: [u32; 2],
    /// Whether a prefix shorter than the IPv6 guard can tell is blocked: then the guard is not asked.
    pub guard6_off: u32,
    /// How far a guard's hash is shifted to be a neighbourhood's number: see [`crate::list::guard_shift`].
    pub guard_shift: u32,
    /// Which wide neighbourhoods are guarded at all (`WIDE*` of [`crate::list`]): the others need not be asked.
    pub guard_wide: u32,
    /// Limits of each source, by [`crate::limit::SourceLimit`].
    pub source_limits: [Limit; SourceLimit::COUNT],
    /// New connections to the mesh port, per source.
    pub mesh_limit: Limit,
    /// Fragments of all sources together.
    pub fragment_limit: Limit,
    /// Packets of all sources together.
    pub total_limit: Limit,
    /// TCP segments that are no connection attempt, of one source, beyond which their sockets are looked up.
    pub stray_limit: Limit,
    /// Until when [`MODE_ENFORCE`] holds, `CLOCK_MONOTONIC` ns; from then on it is [`MODE_MONITOR`], whether
    /// or not a controller runs. 0: for good.
    pub enforce_until_ns: u64,
    /// Times of the flow table, units of [`crate::flow::UNIT_SHIFT`]: silence after which a flow is over.
    pub flow_idle: u32,
    /// Age at which a flow is recorded and begun anew, units.
    pub flow_active: u32,
    /// The same segments of all sources that are hardly known, together.
    pub strays_limit: Limit,
    /// Answers of amplifying services, of all sources together, beyond which their sockets are looked up.
    pub amplified_limit: Limit,
    /// Bytes of each dropped packet that are captured: 1 to [`crate::capture::MAX_SNAP`].
    pub capture_snap: u64,
    /// What a packet with a lease is booked in, by the numbers in [`crate::lease`]: those of the limits above that are
    /// asked, and for the others one that always has room. See [`Config::settled`].
    pub leased: [Limit; lease::LIMITS],
    /// Another value ends every [`crate::lease`]. Changes with this configuration, and after everything else that is
    /// written for packets to be judged by, by [`crate::lease::EPOCH`].
    pub epoch: u64,
}

/// Bits of [`Config::features`].
pub mod features {
    /// Flow records are kept.
    pub const FLOWS: u32 = 1 << 0;
    /// Some port answers connection attempts with cookies.
    pub const COOKIES: u32 = 1 << 1;
    /// Some port is special (see [`crate::port`]).
    pub const PORTS: u32 = 1 << 2;
    /// Some source limit is set.
    pub const SOURCE_LIMITS: u32 = 1 << 3;
    /// This host forwards packets or translates addresses: a packet without a socket here may belong to
    /// another machine, so what has no socket is not judged by that.
    pub const FORWARDS: u32 = 1 << 4;
    /// Drops are in force for good and not captured: a packet of a blocked source is dropped, with nothing else to be
    /// asked or done. See [`super::Config::settled`].
    pub const QUICK_DROPS: u32 = 1 << 5;
    /// Besides, the lists in the tables are those of the allowlist in force: whom they name is dropped unasked.
    pub const QUICK_LISTS: u32 = 1 << 6;
    /// Some check or limit of the stage behind the accounting is on: sanity, fragments, amplification, all
    /// packets, ports.
    pub const ATTACKS: u32 = 1 << 16;
    /// That stage has to see every packet (ports, the limit of all packets), also the plain ones
    /// ([`crate::sanity::is_plain`]).
    pub const ATTACKS_ALL: u32 = 1 << 17;
}

impl Config {
    /// Whether packets are dropped at `now_ns` (`CLOCK_MONOTONIC`), which is only asked for where an end is
    /// set: without one nobody pays for a clock.
    #[inline(always)]
    pub fn enforces(&self, now_ns: impl FnOnce() -> u64) -> bool {
        self.mode == MODE_ENFORCE
            && (self.enforce_until_ns == 0 || now_ns() < self.enforce_until_ns)
    }

    /// Says in [`Config::features`] what follows from other fields, so that a packet is compared with one of them.
    /// Whoever writes the configuration calls it last.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.features &= !(features::QUICK_DROPS | features::QUICK_LISTS);
        if self.mode == MODE_ENFORCE && self.enforce_until_ns == 0 && self.capture == 0 {
            self.features |= features::QUICK_DROPS;
            if self.list_generation == self.allow_generation {
                self.features |= features::QUICK_LISTS;
            }
        }
        self.leased = self.limits_of_leases();
        self
    }

    /// [`Config::leased`] as the limits and checks want it.
    fn limits_of_leases(&self) -> [Limit; lease::LIMITS] {
        const ALWAYS: Limit = Limit {
            cost_ns: 0,
            burst_ns: u64::MAX,
        };
        const fn asked(is_on: bool, limit: Limit) -> Limit {
            if is_on && limit.cost_ns != 0 {
                limit
            } else {
                ALWAYS
            }
        }
        let [_, datagrams, _, _, packets, bytes] = self.source_limits;
        let limited = self.features & features::SOURCE_LIMITS != 0;
        let on = |reason: Reason| limited && self.checks & reason.bit() != 0;
        let mut leased = [ALWAYS; lease::LIMITS];
        leased[lease::PACKETS] = asked(on(Reason::PacketLimit), packets);
        leased[lease::BYTES] = asked(on(Reason::ByteLimit), bytes);
        leased[lease::DATAGRAMS] = asked(on(Reason::UdpFlood), datagrams);
        leased[lease::STRAY] = asked(self.checks & STRAYS != 0, self.stray_limit);
        leased
    }

    /// `CLOCK_MONOTONIC` in ns by the count of timer ticks, to one tick's resolution; `None` until the
    /// controller has measured how the two relate.
    ///
    /// Reading the tick count is one load, reading the clock a call: a fifth of a whole packet's cost (see
    /// "What a packet costs" in docs/architecture.md). The kernel advances its tick count by `CLOCK_MONOTONIC` itself
    /// (`tick_do_update_jiffies64` in kernel/time/tick-sched.c), so the two do not drift apart.
    #[inline(always)]
    pub fn clock_ns(&self, ticks: u64) -> Option<u64> {
        if self.tick_ns == 0 {
            return None;
        }
        Some(
            ticks
                .wrapping_mul(self.tick_ns)
                .wrapping_add(self.clock_offset_ns),
        )
    }
}

const _: () = assert!(
    size_of::<Config>()
        == 8 + 3 * 16 + 8 + 16 + 8 + 16 + 3 * 8 + 10 * 8 + 26 * 4 + 16 * 16 + 3 * 8 + 2 * 4,
    "layout"
);

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for Config {}
