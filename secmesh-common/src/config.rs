//! What the controller may change while the program runs: one entry of an array map.

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
    /// Until when [`MODE_ENFORCE`] holds, `CLOCK_MONOTONIC` ns; from then on it is [`MODE_MONITOR`], whether
    /// or not a controller runs. 0: for good.
    pub enforce_until_ns: u64,
}

impl Config {
    /// Whether packets are dropped at `now_ns` (`CLOCK_MONOTONIC`), which is only asked for where an end is
    /// set: without one nobody pays for a clock.
    #[inline(always)]
    pub fn enforces(&self, now_ns: impl FnOnce() -> u64) -> bool {
        self.mode == MODE_ENFORCE
            && (self.enforce_until_ns == 0 || now_ns() < self.enforce_until_ns)
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
    size_of::<Config>() == 8 + 3 * 16 + 8 + 16 + 8 + 16 + 8,
    "layout"
);

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for Config {}
