//! Flow records: what two endpoints sent each other, in numbers that detectors learn from.
//!
//! State is a fixed table of [`FlowSlot`]s with two candidate places per flow, chosen by a seeded hash that
//! is the same for both directions; who holds a slot is decided as in [`crate::account`], so a spoofed flood
//! costs a few loads per packet and grows nothing. A TCP connection that both sides have completed cannot be
//! pushed out by strangers: for that somebody has to answer from the address he claims.
//!
//! Counts are plain additions on memory that several CPUs share, so they are lower bounds; who a slot belongs
//! to changes only by compare-and-exchange of its tag, so a record never mixes two flows.
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "directions are masked to 0 and 1, halves of hashes are meant, and other values are compared first; `get` and `try_from` would add branches to the hot path that can never be taken"
)]

mod again;
mod layout;

pub use again::Again;
pub use layout::{FlowEnd, FlowExport, FlowSlot, SWEEP_SLICE, SweepOrder, Way, state};

use crate::{
    account::mix,
    packet::{
        Family, Fragment, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, Words, tcp_flags,
    },
};

/// Times within a flow are in units of 2^10 ns: a shift instead of a division, and 73 minutes in a word.
pub const UNIT_SHIFT: u32 = 10;
/// A silence longer than this ends an active period, in units: 5 s, as `CICFlowMeter` has it.
pub const ACTIVITY_GAP: u32 = (5_000_000_000_u64 >> UNIT_SHIFT) as u32;
/// A closed connection whose last acknowledgement does not come is recorded after this, in units: 1 s.
pub const CLOSING_GAP: u32 = (1_000_000_000_u64 >> UNIT_SHIFT) as u32;
/// A flow that busier ones push out is recorded if it had more packets than this.
pub const EVICTED_PACKETS: u32 = 3;
/// So many times between packets of a flow are measured to the microsecond; after them, times are those of the
/// cheap clock, a timer tick (1 to 10 ms) fine, and count for longest gaps, silences and ends only. Reading the
/// fine clock costs a fourth of a whole packet, and what tells flows apart is in their beginning.
pub const FINE_GAPS: u16 = 63;
/// Scores stop here, so that a long-lived busy flow can still be displaced.
const MAX_SCORE: u32 = 4096;
/// No stranger takes a slot of this resistance.
pub const FIRM: u32 = u32::MAX;

/// Tag of a slot that some CPU is writing. Tags of flows are odd, so it is nobody's.
pub const LOCKED: u64 = 2;

/// Bit of a flow's tag that is always set: 0 is a free slot.
const TAG_BIT: u64 = 1;

/// What the flow table needs of a packet beside what the parser found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrival {
    /// When, `CLOCK_MONOTONIC` ns.
    pub now_ns: u64,
    /// Interface.
    pub ifindex: u32,
    /// 1 if it leaves by that interface, 0 if it came in.
    pub outgoing: u8,
    /// TCP: header length in bytes, else 0.
    pub tcp_len: u32,
    /// TCP: the window as the header has it.
    pub window: u16,
    /// Packets that the card makes of it; 0 and 1 are itself.
    pub segments: u32,
    /// Payload of each of them but the last, bytes.
    pub segment_size: u32,
}

impl Arrival {
    /// Takes header length and window from bytes 12 to 15 of a TCP header.
    #[inline(always)]
    #[must_use]
    pub const fn with_tcp(mut self, word: [u8; 4]) -> Self {
        self.tcp_len = (word[0] >> 4) as u32 * 4;
        self.window = u16::from_be_bytes([word[2], word[3]]);
        self
    }
}

/// Times of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// Silence after which a flow is over, units.
    pub idle: u32,
    /// Age at which a flow is recorded and begun anew, units.
    pub active: u32,
}

/// Where a flow's slots are, and how it is recognised there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowPlace {
    /// First candidate.
    pub first: u32,
    /// Second candidate.
    pub second: u32,
    /// The flow's tag: odd.
    pub tag: u64,
    /// The sender's hash.
    pub source: u64,
    /// The receiver's hash.
    pub destination: u64,
}

/// Seeded hash of one endpoint of a flow.
#[inline(always)]
pub fn hash_endpoint(
    words: &Words,
    port: u16,
    proto: u8,
    family: Family,
    ifindex: u32,
    seed: u64,
) -> u64 {
    // Flows of two interfaces are two flows: what a router forwards passes both.
    let seed = seed ^ (u64::from(ifindex) << 24);
    let kind = (u64::from(port) << 32) | (u64::from(proto) << 48) | (u64::from(family as u8) << 56);
    match family {
        Family::V6 => {
            let low = (u64::from(words[1]) << 32) | u64::from(words[0]);
            let high = (u64::from(words[3]) << 32) | u64::from(words[2]);
            mix(mix(low ^ seed) ^ high.rotate_left(17) ^ kind)
        }
        // Never 0 for both, so that the halves of a table's index differ.
        Family::V4 | Family::Other => mix(u64::from(words[0]) ^ kind ^ seed),
    }
}

/// Where the flow of `packet` is in a table of `mask` + 1 slots; the same for both directions.
#[inline(always)]
pub fn flow_place(packet: &Packet, ifindex: u32, seed: u64, mask: u32) -> FlowPlace {
    let (proto, family) = (packet.proto, packet.family);
    let source = hash_endpoint(&packet.src, packet.sport, proto, family, ifindex, seed);
    let destination = hash_endpoint(&packet.dst, packet.dport, proto, family, ifindex, seed);
    // Hashes of both sides are independent, so their sum is as good as they are, whatever an attacker chooses.
    let both = source.wrapping_add(destination);
    FlowPlace {
        first: (both >> 1) as u32 & mask,
        second: (both >> 33) as u32 & mask,
        tag: both | TAG_BIT,
        source,
        destination,
    }
}

/// What has to happen to a flow before its next packet is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Count,
    /// Record it and begin anew.
    Record(FlowEnd),
    /// Begin anew: it was recorded before.
    Begin,
    /// The packet comes late, after the end: it is not counted.
    Late,
}

#[inline(always)]
fn clip16(n: u32) -> u16 {
    if n > 0xffff { u16::MAX } else { n as u16 }
}

#[inline(always)]
fn square(n: u32) -> u64 {
    u64::from(n) * u64::from(n)
}

/// Bytes behind the transport header, from what the IP header says.
#[inline(always)]
pub fn payload_of(packet: &Packet, tcp_len: u32) -> u32 {
    let header = match packet.proto {
        PROTO_TCP => tcp_len,
        PROTO_UDP | PROTO_ICMP | PROTO_ICMPV6 => 8,
        _ => 0,
    };
    // Extension headers are not payload; a jumbogram tells no length, its frame does.
    let rest = match packet.family {
        Family::V6 if packet.l3_rest == 0 => packet.wire_len.saturating_sub(u32::from(packet.l4)),
        Family::V6 if packet.l4 != 0 => {
            (u32::from(packet.l3) + 40 + packet.l3_rest).saturating_sub(u32::from(packet.l4))
        }
        _ => packet.l3_rest,
    };
    if matches!(packet.fragment, Fragment::Later) {
        rest
    } else {
        rest.saturating_sub(header)
    }
}

impl FlowSlot {
    /// A flow that begins with `packet`, which is still to be counted.
    ///
    /// Who sends the first packet began it, unless that answers: then the beginning was not seen.
    #[inline(always)]
    pub fn begin(tag: u64, place: &FlowPlace, packet: &Packet, arrival: &Arrival) -> Self {
        use tcp_flags::{ACK, SYN};
        let tcp = packet.proto == PROTO_TCP;
        let answers = tcp && packet.tcp_flags & (SYN | ACK) == SYN | ACK;
        let mut slot = Self {
            tag,
            initiator: place.source,
            first_ns: arrival.now_ns,
            src: packet.src,
            dst: packet.dst,
            sport: packet.sport,
            dport: packet.dport,
            outgoing: arrival.outgoing,
            ifindex: arrival.ifindex,
            proto: packet.proto,
            family: packet.family as u8,
            vlan_tags: packet.vlan_tags,
            state: if tcp { state::OPENING } else { state::OPEN },
            ..Self::default()
        };
        if answers {
            slot.initiator = place.destination;
            slot.src = packet.dst;
            slot.dst = packet.src;
            slot.sport = packet.dport;
            slot.dport = packet.sport;
            slot.outgoing = arrival.outgoing ^ 1;
        }
        slot
    }

    /// Time since the flow's beginning, in units.
    #[inline(always)]
    pub fn age(&self, now_ns: u64) -> u32 {
        // Another CPU may have begun it a moment after this one read the clock.
        let age = now_ns.saturating_sub(self.first_ns) >> UNIT_SHIFT;
        if age > 0xffff_ffff {
            u32::MAX
        } else {
            age as u32
        }
    }

    /// How hard the slot is to take at `now_ns`: 0 is free to take, [`FIRM`] cannot be taken.
    #[inline(always)]
    pub fn resistance(&self, now_ns: u64, limits: &FlowLimits) -> u32 {
        if self.tag == LOCKED {
            return FIRM;
        }
        if self.tag == 0
            || self.state == state::ENDED
            || self.age(now_ns).saturating_sub(self.last) > limits.idle
        {
            return 0;
        }
        if self.proto == PROTO_TCP && self.state == state::OPEN {
            return FIRM;
        }
        self.score
    }

    /// As what the flow of `holder` (the tag before the slot was locked) has to be recorded when a stranger
    /// takes its place; `None` if it need not be.
    #[inline(always)]
    pub fn displaced(&self, holder: u64, now_ns: u64, limits: &FlowLimits) -> Option<FlowEnd> {
        if holder == 0 || self.state == state::ENDED {
            return None;
        }
        if self.age(now_ns).saturating_sub(self.last) > limits.idle {
            return Some(FlowEnd::Idle);
        }
        (self.packets() > EVICTED_PACKETS).then_some(FlowEnd::Evicted)
    }

    /// Packets of both sides.
    #[inline(always)]
    pub fn packets(&self) -> u32 {
        self.ways[0].packets.wrapping_add(self.ways[1].packets)
    }

    /// What has to happen before the flow's next packet is counted.
    #[inline(always)]
    pub fn next_step(&self, packet: &Packet, now_ns: u64, limits: &FlowLimits) -> Step {
        use tcp_flags::{ACK, SYN};
        let age = self.age(now_ns);
        let idle = age.saturating_sub(self.last) > limits.idle;
        if self.state == state::ENDED {
            return if idle || packet.tcp_flags & (SYN | ACK) == SYN {
                Step::Begin
            } else {
                Step::Late
            };
        }
        if idle {
            return Step::Record(FlowEnd::Idle);
        }
        if age >= limits.active {
            return Step::Record(FlowEnd::Active);
        }
        Step::Count
    }

    /// Whether the sweep has to record the flow, and as what.
    #[inline(always)]
    pub fn due(&self, now_ns: u64, limits: &FlowLimits) -> Option<FlowEnd> {
        let silent = self.age(now_ns).saturating_sub(self.last);
        if self.state == state::CLOSING && silent > CLOSING_GAP {
            return Some(FlowEnd::Fin);
        }
        (silent > limits.idle).then_some(FlowEnd::Idle)
    }

    /// Whether the time of the flow's next packet is to be read from the fine clock.
    #[inline(always)]
    pub fn is_fine(&self) -> bool {
        self.gaps < FINE_GAPS
    }

    /// Which side sent a packet: an index of [`FlowSlot::ways`].
    #[inline(always)]
    pub fn way(&self, place: &FlowPlace) -> usize {
        usize::from(self.initiator != place.source)
    }

    /// Counts a packet; tells whether it ended the flow, and how.
    #[inline(always)]
    pub fn count(&mut self, way: usize, packet: &Packet, arrival: &Arrival) -> Option<FlowEnd> {
        use tcp_flags::{ACK, FIN, PSH, RST, SYN, URG};
        let fine = self.is_fine();
        // The cheap clock is behind the fine one by up to a tick.
        let now = self.age(arrival.now_ns).max(self.last);
        self.count_time(now, fine);
        if self.score < MAX_SCORE {
            self.score += 1;
        }
        let side = &mut self.ways[way & 1];
        if side.packets == 0 {
            side.first = now;
            side.window = arrival.window;
        } else {
            let gap = now.saturating_sub(side.last);
            if gap > side.gap_max {
                side.gap_max = gap;
            }
            if fine {
                if gap < side.gap_min || side.gaps == 0 {
                    side.gap_min = gap;
                }
                side.gaps += 1;
                side.gap_sum = side.gap_sum.wrapping_add(gap);
                side.gap_sq = side.gap_sq.wrapping_add(square(gap));
            }
        }
        side.last = now;
        let segments = side.count_bytes(packet, arrival);
        let flags = packet.tcp_flags;
        if flags & ACK != 0 {
            side.acks = side.acks.wrapping_add(segments);
        }
        if flags & PSH != 0 {
            side.pushes = side.pushes.wrapping_add(1);
        }
        if flags & (SYN | FIN | RST | URG) == 0 && self.state == state::OPEN {
            return None;
        }
        side.count_rare_flags(flags);
        if packet.proto != PROTO_TCP {
            return None;
        }
        self.advance(way, flags)
    }

    /// The times of both sides together.
    #[inline(always)]
    fn count_time(&mut self, now: u32, fine: bool) {
        let gap = now.saturating_sub(self.last);
        if gap > self.gap_max {
            self.gap_max = gap;
        }
        if fine && self.packets() != 0 {
            if gap < self.gap_min || self.gaps == 0 {
                self.gap_min = gap;
            }
            self.gaps += 1;
            self.gap_sum = self.gap_sum.wrapping_add(gap);
            self.gap_sq = self.gap_sq.wrapping_add(square(gap));
        }
        if gap > ACTIVITY_GAP {
            let active = self.last.saturating_sub(self.active_start);
            if active < self.active_min || self.idles == 0 {
                self.active_min = active;
            }
            if active > self.active_max {
                self.active_max = active;
            }
            if gap < self.idle_min || self.idles == 0 {
                self.idle_min = gap;
            }
            if gap > self.idle_max {
                self.idle_max = gap;
            }
            self.active_sum = self.active_sum.wrapping_add(active);
            self.active_sq = self.active_sq.wrapping_add(square(active));
            self.idle_sum = self.idle_sum.wrapping_add(gap);
            self.idle_sq = self.idle_sq.wrapping_add(square(gap));
            self.idles = self.idles.saturating_add(1);
            self.active_start = now;
        }
        self.last = now;
    }

    /// Moves a TCP connection on.
    #[inline(always)]
    fn advance(&mut self, way: usize, flags: u8) -> Option<FlowEnd> {
        use tcp_flags::{ACK, FIN, RST, SYN};
        if flags & RST != 0 {
            return Some(FlowEnd::Reset);
        }
        if self.state == state::CLOSING {
            return (flags & FIN == 0).then_some(FlowEnd::Fin);
        }
        if self.ways[0].fins != 0 && self.ways[1].fins != 0 {
            self.state = state::CLOSING;
        } else if self.state == state::OPENING
            && way & 1 == 0
            && flags & (SYN | ACK) == ACK
            && self.ways[1].packets != 0
        {
            self.state = state::OPEN;
        }
        None
    }
}

impl Way {
    /// Adds a packet's lengths; gives the number of packets it is on the wire.
    #[inline(always)]
    fn count_bytes(&mut self, packet: &Packet, arrival: &Arrival) -> u32 {
        let payload = payload_of(packet, arrival.tcp_len);
        let length = packet.wire_len;
        if arrival.segments <= 1 || arrival.segment_size == 0 {
            self.bytes = self.bytes.wrapping_add(u64::from(length));
            self.count_payload(payload, length);
            self.payload_sq = self.payload_sq.wrapping_add(square(payload));
            self.packets = self.packets.wrapping_add(1);
            if payload != 0 {
                self.data_packets = self.data_packets.wrapping_add(1);
            }
            return 1;
        }
        let whole = arrival.segments - 1;
        let size = arrival.segment_size;
        let header = length.saturating_sub(payload);
        let last = payload.saturating_sub(whole.wrapping_mul(size));
        self.bytes = self
            .bytes
            .wrapping_add(u64::from(length) + u64::from(whole) * u64::from(header));
        self.count_payload(size, header.wrapping_add(size));
        self.payload = self
            .payload
            .wrapping_add(u64::from(payload.saturating_sub(size)));
        self.shortest(last, header.wrapping_add(last));
        self.payload_sq = self
            .payload_sq
            .wrapping_add(u64::from(whole) * square(size) + square(last));
        self.packets = self.packets.wrapping_add(arrival.segments);
        self.data_packets = self.data_packets.wrapping_add(arrival.segments);
        arrival.segments
    }

    #[inline(always)]
    fn count_payload(&mut self, payload: u32, length: u32) {
        self.payload = self.payload.wrapping_add(u64::from(payload));
        let short = clip16(payload);
        if short > self.payload_max {
            self.payload_max = short;
        }
        if short != 0 && self.payload_first == 0 {
            self.payload_first = short;
        }
        let long = clip16(length);
        if long > self.len_max {
            self.len_max = long;
        }
        self.shortest(payload, length);
    }

    #[inline(always)]
    fn shortest(&mut self, payload: u32, length: u32) {
        let (payload, length) = (clip16(payload), clip16(length));
        // A frame has a length, so 0 says that there was none before.
        if self.len_min == 0 || payload < self.payload_min {
            self.payload_min = payload;
        }
        if self.len_min == 0 || length < self.len_min {
            self.len_min = length;
        }
    }

    #[inline(always)]
    fn count_rare_flags(&mut self, flags: u8) {
        use tcp_flags::{FIN, RST, SYN, URG};
        if flags & SYN != 0 {
            self.syns = self.syns.saturating_add(1);
        }
        if flags & FIN != 0 {
            self.fins = self.fins.saturating_add(1);
        }
        if flags & RST != 0 {
            self.resets = self.resets.saturating_add(1);
        }
        if flags & URG != 0 {
            self.urgents = self.urgents.saturating_add(1);
        }
    }
}
