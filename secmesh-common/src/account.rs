//! Per-source accounting: from these numbers floods and scans are seen.
//!
//! State is a fixed table of [`SourceSlot`]s, indexed by a seeded hash of the address: two candidate
//! slots per source, no allocation and no eviction lists, so a flood of spoofed sources costs a few
//! loads per packet and cannot grow anything. Who holds a slot is decided as in Misra and Gries,
//! *Finding repeated elements* (1982): each packet of the holder adds to its score, each packet of a
//! stranger takes from it, and at zero the stranger moves in. A source that sends more than the others
//! which share its slots is therefore always accounted.
//!
//! Counts are plain additions on memory that several CPUs share. Two CPUs that count the same source in
//! the same instant may lose one of the two additions, so a count is a lower bound.
#![expect(
    clippy::indexing_slicing,
    reason = "every index is a class number or is masked below the array's length; `get` would add branches to the hot path that can never be taken"
)]

use crate::{
    config::{Config, RateClass, features::SOURCE_LIMITS},
    limit::{BYTES_PER_UNIT, SourceLimit},
    packet::{
        Family, Fragment, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, Words, tcp_flags,
    },
    reason::Reason,
    sanity::STRAYS,
};

/// Slots in the table; a power of two.
pub const SLOTS: usize = 1 << 16;

/// A source that was silent for this long starts a new run, and its slot is free to take.
pub const RUN_GAP_NS: u64 = 10_000_000_000;

/// So many times the alert level of attempts in one window are a flood even if each was completed.
pub const COMPLETED_FACTOR: u32 = 8;

/// Scores stop here, so that a long-lived busy source can still be displaced.
pub(crate) const MAX_SCORE: u32 = 4096;

/// Bits of the contact filter and of the handshake filter.
const FILTER_BITS: u64 = 256;
/// Words of the filters.
pub const FILTER_WORDS: usize = 4;

/// What is known of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SourceSlot {
    /// Seeded hash of the address; 0 is a free slot.
    pub tag: u64,
    /// When this run of packets began, ns.
    pub first_ns: u64,
    /// When its last packet came, ns.
    pub last_ns: u64,
    /// Start of the window of each [`RateClass`], ns.
    pub window_start_ns: [u64; RateClass::COUNT],
    /// Start of the contact window, ns.
    pub contact_start_ns: u64,
    /// (host, port) pairs tried in the contact window, as a filter.
    pub contacts: [u64; FILTER_WORDS],
    /// Connection attempts that no acknowledgement followed yet, as a filter.
    pub half_open: [u64; FILTER_WORDS],
    /// Count of each [`RateClass`] in its window; for [`RateClass::Syn`], attempts minus completions.
    pub count: [u32; RateClass::COUNT],
    /// Packets in this run, saturating.
    pub packets: u32,
    /// How firmly the source holds the slot.
    pub score: u32,
    /// Connection attempts in the window of [`RateClass::Syn`], completed or not.
    pub attempts: u32,
    /// Theoretical arrival time of each limit, `CLOCK_MONOTONIC` ns: [`SourceLimit`]s by number, then
    /// [`ARRIVAL_MESH`] and [`ARRIVAL_STRAY`].
    pub arrival_ns: [u64; ARRIVALS],
    /// What the lease for its segments is good for ([`crate::lease::key`]); 0 is none.
    pub lease_tcp: u64,
    /// The same for datagrams, which go to one destination ...
    pub lease_udp: u64,
    /// ... that is this, as two words of the machine ...
    pub lease_dst: [u64; 2],
    /// ... between these ports: from in the upper half, to in the lower.
    pub lease_ports: u32,
    /// Where in the flow table the flow of its last routine segments may be.
    pub flow_tcp: u32,
    /// The same of its datagrams.
    pub flow_udp: u32,
    /// Zero.
    pub pad: u32,
}

/// Where [`SourceSlot::arrival_ns`] keeps the limit of new connections to the mesh port.
pub const ARRIVAL_MESH: usize = SourceLimit::COUNT;
/// Where [`SourceSlot::arrival_ns`] keeps the limit of segments that are no connection attempt.
pub const ARRIVAL_STRAY: usize = SourceLimit::COUNT + 1;
/// Times in [`SourceSlot::arrival_ns`].
pub const ARRIVALS: usize = SourceLimit::COUNT + 2;

const _: () = assert!(size_of::<SourceSlot>() == 256, "layout");

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for SourceSlot {}

/// Where a source's slots are, and how it is recognised there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First candidate.
    pub first: u32,
    /// Second candidate.
    pub second: u32,
    /// The source's tag, never 0.
    pub tag: u64,
}

/// A 64-bit mixing step (the finaliser of `SplitMix64`, Steele, Lea and Flood 2014).
#[inline(always)]
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Seeded hash of an address.
#[inline(always)]
pub fn hash_address(words: &Words, family: Family, seed: u64) -> u64 {
    let low = (u64::from(words[1]) << 32) | u64::from(words[0]);
    let first = mix(low ^ seed);
    match family {
        Family::V6 => {
            let high = (u64::from(words[3]) << 32) | u64::from(words[2]);
            mix(first ^ high.rotate_left(17))
        }
        Family::V4 | Family::Other => first,
    }
}

/// Where `packet`'s source is accounted.
#[inline(always)]
pub fn place(packet: &Packet, seed: u64) -> Place {
    place_of(&packet.src, packet.family, seed)
}

/// Where the source `src` is accounted.
#[inline(always)]
pub fn place_of(src: &Words, family: Family, seed: u64) -> Place {
    const MASK: u64 = SLOTS as u64 - 1;
    let hash = hash_address(src, family, seed);
    Place {
        // Both masks leave 16 bits.
        first: (hash & MASK) as u32,
        second: ((hash >> 32) & MASK) as u32,
        tag: hash | 1,
    }
}

impl SourceSlot {
    /// Whether the slot belongs to `tag`.
    #[inline(always)]
    pub fn holds(&self, tag: u64) -> bool {
        self.tag == tag
    }

    /// How hard the slot is to take at `now_ns`: 0 is free.
    #[inline(always)]
    pub fn resistance(&self, now_ns: u64) -> u32 {
        if self.tag == 0 || now_ns.saturating_sub(self.last_ns) > RUN_GAP_NS {
            0
        } else {
            self.score
        }
    }

    /// A stranger's attempt to move in; `true` if the slot is now `tag`'s.
    #[inline(always)]
    pub fn contend(&mut self, tag: u64, now_ns: u64) -> bool {
        let resistance = self.resistance(now_ns);
        if resistance > 0 {
            self.score = resistance - 1;
            return false;
        }
        *self = Self {
            tag,
            first_ns: now_ns,
            last_ns: now_ns,
            ..Self::default()
        };
        true
    }
}

/// What one packet added to the picture of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observed {
    /// A level of this [`RateClass`] was reached with this count; count 0 says none was.
    pub rate_class: u8,
    /// See [`Observed::rate_class`].
    pub rate_count: u32,
    /// The packet tried a (host, port) not tried before in this window.
    pub contact: bool,
    /// The packet is a connection attempt from ports that had none open, not a repeated one.
    pub connection: bool,
}

#[inline(always)]
fn filter_bit(hash: u64) -> (usize, u64) {
    let bit = hash % FILTER_BITS;
    (((bit >> 6) & 3) as usize, 1 << (bit & 63))
}

/// Whether a packet tries to find out if a TCP port is there: a connection attempt, or flags that no
/// conversation contains (FIN, NULL and Xmas probes).
#[inline(always)]
pub fn is_tcp_probe(flags: u8) -> bool {
    use tcp_flags::{ACK, RST, SYN};
    flags & (SYN | ACK) == SYN || flags & (SYN | ACK | RST) == 0
}

/// Whether reaching `count` is worth an event.
#[inline(always)]
pub(crate) fn due(count: u32, watch: u32, alert: u32) -> bool {
    count == watch || count == alert || (count > alert && count.is_power_of_two())
}

/// Accounts `packet` in its source's slot.
///
/// The clock may be any that never goes back; the kernel uses `CLOCK_MONOTONIC`, a capture its own
/// time stamps.
#[inline(always)]
pub fn account(slot: &mut SourceSlot, packet: &Packet, now_ns: u64, config: &Config) -> Observed {
    if now_ns.saturating_sub(slot.last_ns) > RUN_GAP_NS {
        slot.first_ns = now_ns;
        slot.packets = 0;
    }
    slot.last_ns = now_ns;
    slot.packets = slot.packets.saturating_add(1);
    if slot.score < MAX_SCORE {
        slot.score += 1;
    }

    let mut seen = Observed::default();
    if matches!(packet.fragment, Fragment::Later) {
        return seen;
    }
    match packet.proto {
        PROTO_TCP => {
            let ports = (u64::from(packet.sport) << 16) | u64::from(packet.dport);
            let flow = mix(ports ^ slot.tag);
            if packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN {
                slot.lease_tcp = 0;
                let (index, bit) = filter_bit(flow);
                if roll(slot, RateClass::Syn, now_ns, config) {
                    slot.half_open = [0; FILTER_WORDS];
                    slot.attempts = 0;
                }
                seen.connection = slot.half_open[index] & bit == 0;
                slot.half_open[index] |= bit;
                count(slot, RateClass::Syn, config, &mut seen);
                // Acknowledgements can be forged, one per attempt; that many attempts are a flood all
                // the same.
                slot.attempts = slot.attempts.saturating_add(1);
                let flood = config.rates[RateClass::Syn as usize]
                    .alert
                    .saturating_mul(COMPLETED_FACTOR);
                if due(slot.attempts, flood, flood) {
                    seen.rate_class = RateClass::Syn as u8;
                    seen.rate_count = slot.attempts;
                }
            } else if packet.tcp_flags & (tcp_flags::ACK | tcp_flags::SYN | tcp_flags::RST)
                == tcp_flags::ACK
            {
                // An acknowledgement completes one attempt of the same ports and no more, so a bulk
                // transfer cannot pay for a flood. Each bit of the filter is one of the count, so where that is
                // zero the ports need not be hashed.
                let open = slot.count[RateClass::Syn as usize] != 0;
                let (index, bit) = filter_bit(flow);
                if open && slot.half_open[index] & bit != 0 {
                    slot.half_open[index] &= !bit;
                    slot.count[RateClass::Syn as usize] =
                        slot.count[RateClass::Syn as usize].saturating_sub(1);
                }
            }
            if is_tcp_probe(packet.tcp_flags) {
                seen.contact = first_contact(slot, packet, now_ns, config);
            }
        }
        PROTO_UDP => {
            roll(slot, RateClass::Udp, now_ns, config);
            count(slot, RateClass::Udp, config, &mut seen);
            seen.contact = first_contact(slot, packet, now_ns, config);
        }
        PROTO_ICMP | PROTO_ICMPV6 => {
            roll(slot, RateClass::Icmp, now_ns, config);
            count(slot, RateClass::Icmp, config, &mut seen);
        }
        _ => {}
    }
    seen
}

/// Which of its source's limits `packet` breaks, if one; books it in the others.
///
/// A limit whose reason is not among [`Config::checks`] is not asked. A source that holds no slot (see the
/// module's documentation) has no limit of its own: over-admission under spoofing is what strangers take
/// from its two slots, at most twice the flood's rate over [`SLOTS`].
#[inline(always)]
pub fn over_limit(
    slot: &mut SourceSlot,
    packet: &Packet,
    seen: &Observed,
    now_ns: u64,
    config: &Config,
) -> Option<Reason> {
    let limits = &config.source_limits;
    let mut broken = |kind: SourceLimit, units: u32, reason: Reason| {
        let n = kind as usize;
        (config.checks & reason.bit() != 0
            && limits[n].cost_ns != 0
            && !limits[n].admit(&mut slot.arrival_ns[n], units, now_ns))
        .then_some(reason)
    };
    if let Some(reason) = broken(SourceLimit::Packets, 1, Reason::PacketLimit) {
        return Some(reason);
    }
    let units = packet.wire_len.div_ceil(BYTES_PER_UNIT);
    if let Some(reason) = broken(SourceLimit::Bytes, units, Reason::ByteLimit) {
        return Some(reason);
    }
    match packet.proto {
        PROTO_TCP if packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN => {
            if let Some(reason) = broken(SourceLimit::Syn, 1, Reason::SynFlood) {
                return Some(reason);
            }
            if seen.connection {
                return broken(SourceLimit::Connections, 1, Reason::ConnectionLimit);
            }
            None
        }
        PROTO_UDP => broken(SourceLimit::Udp, 1, Reason::UdpFlood),
        PROTO_ICMP | PROTO_ICMPV6 => broken(SourceLimit::Icmp, 1, Reason::IcmpFlood),
        _ => None,
    }
}

/// Whether a plain packet ([`crate::sanity::is_plain`]) is one of many of a known source that is within its limits: then
/// [`account`] has nothing to report, and neither [`over_limit`] nor [`over_stray_limit`] anything against it. Changes
/// nothing.
#[inline(always)]
pub fn is_routine(slot: &SourceSlot, packet: &Packet, now_ns: u64, config: &Config) -> bool {
    if now_ns.saturating_sub(slot.last_ns) > RUN_GAP_NS || slot.packets < HARDLY_KNOWN {
        return false;
    }
    let limited = config.features & SOURCE_LIMITS != 0;
    let within = |kind: SourceLimit, units: u32, reason: Reason| {
        let n = kind as usize;
        let limit = &config.source_limits[n];
        !limited
            || config.checks & reason.bit() == 0
            || limit.cost_ns == 0
            || limit.admits(slot.arrival_ns[n], units, now_ns)
    };
    let units = packet.wire_len.div_ceil(BYTES_PER_UNIT);
    if !within(SourceLimit::Packets, 1, Reason::PacketLimit)
        || !within(SourceLimit::Bytes, units, Reason::ByteLimit)
    {
        return false;
    }
    match packet.proto {
        PROTO_TCP => {
            config.checks & STRAYS == 0
                || config.stray_limit.cost_ns == 0
                || config
                    .stray_limit
                    .admits(slot.arrival_ns[ARRIVAL_STRAY], 1, now_ns)
        }
        PROTO_UDP => {
            let (class, levels) = (
                RateClass::Udp as usize,
                &config.rates[RateClass::Udp as usize],
            );
            let since = |start_ns: u64| now_ns.saturating_sub(start_ns);
            let count = slot.count[class].saturating_add(1);
            let (index, bit) = contact_bit(slot, packet);
            within(SourceLimit::Udp, 1, Reason::UdpFlood)
                && since(slot.window_start_ns[class]) < levels.window_ns
                && !due(count, levels.watch, levels.alert)
                && since(slot.contact_start_ns) < config.contact_window_ns
                && slot.contacts[index] & bit != 0
        }
        _ => false,
    }
}

/// Whether a connection attempt to the mesh port breaks its source's limit there; books it if not.
#[inline(always)]
pub fn over_mesh_limit(
    slot: &mut SourceSlot,
    seen: &Observed,
    now_ns: u64,
    config: &Config,
) -> bool {
    config.checks & Reason::MeshLimit.bit() != 0
        && seen.connection
        && config.mesh_limit.cost_ns != 0
        && !config
            .mesh_limit
            .admit(&mut slot.arrival_ns[ARRIVAL_MESH], 1, now_ns)
}

/// A source of fewer packets than this is hardly known: its segments are booked for the host too.
pub const HARDLY_KNOWN: u32 = 16;

/// Segments that a source may send unasked after one that was found to belong to a connection.
const CREDIT: u64 = 64;

/// Whether a segment has to be asked for its connection: its source is beyond [`Config::stray_limit`].
#[inline(always)]
pub fn over_stray_limit(slot: &mut SourceSlot, now_ns: u64, config: &Config) -> bool {
    config.stray_limit.cost_ns != 0
        && !config
            .stray_limit
            .admit(&mut slot.arrival_ns[ARRIVAL_STRAY], 1, now_ns)
}

/// A segment beyond the limit had its connection: the next [`CREDIT`] are believed. A transfer at any rate so
/// costs one look-up in that many packets, and somebody with one real connection gets that many false
/// segments through for each true one.
#[inline(always)]
pub fn credit(slot: &mut SourceSlot, config: &Config) {
    let arrival = &mut slot.arrival_ns[ARRIVAL_STRAY];
    *arrival = arrival.saturating_sub(CREDIT * config.stray_limit.cost_ns);
}

/// Starts a new window if the old one is over.
#[inline(always)]
fn roll(slot: &mut SourceSlot, class: RateClass, now_ns: u64, config: &Config) -> bool {
    let c = class as usize;
    if now_ns.saturating_sub(slot.window_start_ns[c]) >= config.rates[c].window_ns {
        slot.window_start_ns[c] = now_ns;
        slot.count[c] = 0;
        return true;
    }
    false
}

#[inline(always)]
fn count(slot: &mut SourceSlot, class: RateClass, config: &Config, seen: &mut Observed) {
    let c = class as usize;
    let n = slot.count[c].saturating_add(1);
    slot.count[c] = n;
    if due(n, config.rates[c].watch, config.rates[c].alert) {
        seen.rate_class = class as u8;
        seen.rate_count = n;
    }
}

/// Where the contact filter has a packet's destination and port.
#[inline(always)]
fn contact_bit(slot: &SourceSlot, packet: &Packet) -> (usize, u64) {
    let key = (u64::from(packet.proto) << 16) | u64::from(packet.dport);
    // The tag is a seeded hash, so nobody can choose ports that meet in one bit.
    filter_bit(hash_address(
        &packet.dst,
        packet.family,
        mix(key ^ slot.tag),
    ))
}

#[inline(always)]
fn first_contact(slot: &mut SourceSlot, packet: &Packet, now_ns: u64, config: &Config) -> bool {
    if now_ns.saturating_sub(slot.contact_start_ns) >= config.contact_window_ns {
        slot.contact_start_ns = now_ns;
        slot.contacts = [0; FILTER_WORDS];
    }
    let (index, bit) = contact_bit(slot, packet);
    if slot.contacts[index] & bit != 0 {
        return false;
    }
    slot.contacts[index] |= bit;
    true
}
