//! The packet that is as the one before it: counted without looking for its flow.

use super::{FINE_GAPS, FlowSlot, MAX_SCORE, UNIT_SHIFT, square, state};
use crate::packet::{Family, PROTO_TCP, Words, tcp_flags::PSH};

/// What a whole packet without options or extension headers says of itself: of a segment, that it acknowledges and at
/// most pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Source address.
    pub src: Words,
    /// Destination address.
    pub dst: Words,
    /// Ports: from in the upper half, to in the lower.
    pub ports: u32,
    /// Interface that it came in by.
    pub ifindex: u32,
    /// When, `CLOCK_MONOTONIC` ns to a timer tick.
    pub now_ns: u64,
    /// Length of its frame, bytes.
    pub wire_len: u32,
    /// Bytes behind its transport header.
    pub payload: u32,
    /// Transport protocol number: TCP or UDP.
    pub proto: u8,
    /// IPv4 or IPv6.
    pub family: Family,
    /// TCP flags; 0 if it is no segment.
    pub flags: u8,
}

impl FlowSlot {
    /// Counts a packet as [`FlowSlot::count`] does, if that would change nothing but sums: the slot has its flow, which is
    /// open and out of its finely measured beginning, its side sent at this very time before, and there were packets
    /// no longer and packets no shorter. Otherwise `false`, and nothing changes.
    #[inline(always)]
    pub fn count_again(&mut self, packet: &Again) -> bool {
        let Some(way) = self.way_of(packet) else {
            return false;
        };
        let age = self.units_since_first(packet.now_ns);
        let (length, payload) = (packet.wire_len, packet.payload);
        // Of a connection only one side may be seen, where the answers go another way: its segments do not open it.
        let one_sided = self.state == state::OPENING && self.ways[1].packets == 0;
        if self.state != state::OPEN && !one_sided {
            return false;
        }
        let side = &mut self.ways[way & 1];
        if self.last != age
            || side.last != age
            || side.packets == 0
            || length < u32::from(side.len_min)
            || length > u32::from(side.len_max)
            || payload < u32::from(side.payload_min)
            || payload > u32::from(side.payload_max)
        {
            return false;
        }
        if self.score < MAX_SCORE {
            self.score += 1;
        }
        side.bytes = side.bytes.wrapping_add(u64::from(length));
        side.packets = side.packets.wrapping_add(1);
        if payload != 0 {
            side.payload = side.payload.wrapping_add(u64::from(payload));
            side.payload_sq = side.payload_sq.wrapping_add(square(payload));
            side.data_packets = side.data_packets.wrapping_add(1);
        }
        if packet.proto == PROTO_TCP {
            side.acks = side.acks.wrapping_add(1);
            if packet.flags & PSH != 0 {
                side.pushes = side.pushes.wrapping_add(1);
            }
        }
        true
    }

    /// Which side of this flow the packet is from, if it is of this flow and the flow is one whose packets are much
    /// alike: an index of [`FlowSlot::ways`].
    #[inline(always)]
    fn way_of(&self, packet: &Again) -> Option<usize> {
        // The tag of a slot that is nobody's is even.
        if self.tag & 1 == 0
            || self.proto != packet.proto
            || self.family != packet.family as u8
            || self.gaps < FINE_GAPS
            || self.ifindex != packet.ifindex
        {
            return None;
        }
        let begun = (u32::from(self.sport) << 16) | u32::from(self.dport);
        let same = |one: &Words, other: &Words| match packet.family {
            Family::V6 => one == other,
            Family::V4 | Family::Other => one[0] == other[0],
        };
        if same(&self.src, &packet.src) {
            return (same(&self.dst, &packet.dst) && begun == packet.ports).then_some(0);
        }
        (same(&self.dst, &packet.src)
            && same(&self.src, &packet.dst)
            && begun == packet.ports.rotate_left(16))
        .then_some(1)
    }

    /// [`FlowSlot::age`] of a time that is not before the beginning; another number of one that is, or of more than 73
    /// minutes.
    #[inline(always)]
    const fn units_since_first(&self, now_ns: u64) -> u32 {
        (now_ns.wrapping_sub(self.first_ns) >> UNIT_SHIFT) as u32
    }
}
