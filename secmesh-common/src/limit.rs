//! Rate limits: the generic cell rate algorithm (ITU-T I.371, annex A), which keeps one time per limited
//! thing and needs no division.

/// One limit. A cost of 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Limit {
    /// What one unit (a packet, or [`BYTES_PER_UNIT`] bytes) adds to the theoretical arrival time, ns.
    pub cost_ns: u64,
    /// How far that time may run ahead of the clock, ns: the burst.
    pub burst_ns: u64,
}

/// Bytes that are one unit of a byte limit: 64, so that 100 Gbit/s is still a cost of 5 ns.
pub const BYTES_PER_UNIT: u32 = 64;

impl Limit {
    /// No limit.
    pub const NONE: Self = Self {
        cost_ns: 0,
        burst_ns: 0,
    };

    /// `rate` units a second with bursts of up to `burst` units; a rate of 0 is no limit.
    ///
    /// A burst shorter than `tick_ns` and one unit is stretched to that: the kernel's clock advances in ticks,
    /// within one the limit cannot see time pass, and what of a tick is no whole unit must carry over.
    pub const fn per_second(rate: u64, burst: u64, tick_ns: u64) -> Self {
        if rate == 0 {
            return Self::NONE;
        }
        let cost = 1_000_000_000 / rate;
        let cost_ns = if cost == 0 { 1 } else { cost };
        let burst = burst.saturating_mul(cost_ns);
        Self {
            cost_ns,
            burst_ns: if burst < tick_ns + cost_ns {
                tick_ns + cost_ns
            } else {
                burst
            },
        }
    }

    /// Whether `units` more are within the limit at `now_ns`; then they are booked in `arrival_ns`.
    ///
    /// `arrival_ns` may be shared by CPUs, which then read and write it without a lock: of additions in the
    /// same instant one can be lost. Over-admission: within any time `t` at most
    /// `n × (burst + t / cost)` units pass, `n` being the number of CPUs that the packets come in on, and
    /// the factor is reached only if all of them always collide; with one CPU it is exact.
    #[inline(always)]
    pub fn admit(&self, arrival_ns: &mut u64, units: u32, now_ns: u64) -> bool {
        let end = self.end(*arrival_ns, units, now_ns);
        if end - now_ns > self.burst_ns {
            return false;
        }
        *arrival_ns = end;
        true
    }

    /// Whether [`Limit::admit`] would say so, without booking anything.
    #[inline(always)]
    pub const fn admits(&self, arrival_ns: u64, units: u32, now_ns: u64) -> bool {
        self.end(arrival_ns, units, now_ns) - now_ns <= self.burst_ns
    }

    #[inline(always)]
    const fn end(&self, arrival_ns: u64, units: u32, now_ns: u64) -> u64 {
        let start = if arrival_ns > now_ns {
            arrival_ns
        } else {
            now_ns
        };
        start + self.cost_ns * units as u64
    }

    /// What to do with one unit against a limit that all CPUs share, whose theoretical arrival time was read as
    /// `arrival_ns`. The caller books it with one atomic addition.
    ///
    /// Between the reading and the addition other CPUs may do the same, so that up to one unit for each of
    /// them passes in excess: within any time `t` at most `burst + t / cost + (n − 1)` units pass `n` CPUs, and
    /// `n − 1` more for each time that the limit had been idle before. (A CPU that is stopped by its
    /// hypervisor between the two makes that more for this once.)
    #[inline(always)]
    pub fn shared(&self, arrival_ns: u64, now_ns: u64) -> Booking {
        let idle = arrival_ns < now_ns;
        let start = if idle { now_ns } else { arrival_ns };
        if start + self.cost_ns - now_ns > self.burst_ns {
            Booking::Refuse
        } else if idle {
            Booking::AdmitAfterIdle
        } else {
            Booking::Admit
        }
    }
}

/// What [`Limit::shared`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Booking {
    /// The unit is beyond the limit.
    Refuse,
    /// Add the cost to the arrival time.
    Admit,
    /// Set the arrival time to the clock, then add the cost.
    AdmitAfterIdle,
}

/// Where the map of the host's limits keeps the arrival time of all packets.
pub const SHARED_TOTAL: u32 = 0;
/// The same of fragments.
pub const SHARED_FRAGMENTS: u32 = 1;
/// The same of segments of sources that are hardly known.
pub const SHARED_STRAYS: u32 = 2;
/// The same of answers of amplifying services.
pub const SHARED_AMPLIFIED: u32 = 3;

/// What a source is limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SourceLimit {
    /// TCP connection attempts.
    Syn = 0,
    /// UDP datagrams.
    Udp = 1,
    /// ICMP and ICMPv6 messages.
    Icmp = 2,
    /// New connections: attempts to (host, port) pairs, counted when the attempt is the first of its ports.
    Connections = 3,
    /// Packets of any kind.
    Packets = 4,
    /// Bytes, in units of [`BYTES_PER_UNIT`].
    Bytes = 5,
}

impl SourceLimit {
    /// Number of them.
    pub const COUNT: usize = 6;
}

const _: () = assert!(size_of::<Limit>() == 16, "layout");
