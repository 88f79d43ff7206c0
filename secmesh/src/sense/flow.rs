//! Flow records as detectors and people read them: addresses, microseconds, bytes.

use std::{collections::VecDeque, net::IpAddr};

use secmesh_common::{
    flow::{FINE_GAPS, FlowEnd, FlowExport, FlowSlot, UNIT_SHIFT, Way, hash_endpoint},
    packet::{Family, Words},
};
use serde::{Deserialize, Serialize};

use super::observation::address_of;

/// Flow records that are remembered for operators.
pub const MAX_RECENT: usize = 4096;

const _: () = assert!(
    FINE_GAPS == 63,
    "the number in the documentation of `FlowSide`"
);

/// Why a flow was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Both sides closed it.
    Fin,
    /// One side reset it.
    Reset,
    /// Nothing came for the idle time.
    Idle,
    /// It had lasted for the active time; what followed is another record.
    Active,
    /// Busier flows needed its place.
    Evicted,
}

impl EndReason {
    /// As it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Evicted => "evicted",
        }
    }
}

impl From<FlowEnd> for EndReason {
    fn from(end: FlowEnd) -> Self {
        match end {
            FlowEnd::Fin => Self::Fin,
            FlowEnd::Reset => Self::Reset,
            FlowEnd::Idle => Self::Idle,
            FlowEnd::Active => Self::Active,
            FlowEnd::Evicted => Self::Evicted,
        }
    }
}

/// Some durations: shortest, longest, sum, and sum of squares, from which mean and deviation follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durations {
    /// How many.
    pub count: u32,
    /// Shortest, µs.
    pub min_us: u64,
    /// Longest, µs.
    pub max_us: u64,
    /// Sum, µs.
    pub sum_us: u64,
    /// Sum of squares, µs².
    pub squares_us2: u64,
}

/// What one side of a flow sent.
///
/// Times are 1.024 µs fine for the flow's first 64 packets of both sides together, then a timer
/// tick (1 to 10 ms). [`Durations`] of gaps are those of the fine part, but for the longest, which is that of
/// the whole flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowSide {
    /// Packets; segments of one that the card cuts count each.
    pub packets: u32,
    /// Bytes of the frames, Ethernet header included, checksum not.
    pub bytes: u64,
    /// Bytes behind the transport header.
    pub payload_bytes: u64,
    /// Bytes of all headers: `bytes` less `payload_bytes` (with the padding of short frames).
    pub header_bytes: u64,
    /// Packets with payload.
    pub data_packets: u32,
    /// Shortest frame, bytes; 65535 stands for that and more, as in all 16-bit lengths here.
    pub len_min: u16,
    /// Longest frame, bytes.
    pub len_max: u16,
    /// Smallest payload, bytes.
    pub payload_min: u16,
    /// Largest payload, bytes.
    pub payload_max: u16,
    /// Sum of the squares of the payloads, bytes².
    pub payload_squares: u64,
    /// First payload that was not empty, bytes.
    pub payload_first: u16,
    /// First packet, µs after the flow's beginning.
    pub first_us: u64,
    /// Last packet, µs after the flow's beginning.
    pub last_us: u64,
    /// Times between packets.
    pub gaps: Durations,
    /// TCP window of the first packet as the header has it, not scaled.
    pub window: u16,
    /// Segments with SYN, at most 255, as for FIN, RST and URG.
    pub syn: u8,
    /// Segments with FIN.
    pub fin: u8,
    /// Segments with RST.
    pub rst: u8,
    /// Segments with PSH.
    pub psh: u32,
    /// Segments with ACK.
    pub ack: u32,
    /// Segments with URG.
    pub urg: u8,
}

/// A flow: what two endpoints sent each other through one interface. What a blocked source sends is in none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When its first packet came, unix µs.
    pub first_unix_us: u64,
    /// When its last packet came, unix µs.
    pub last_unix_us: u64,
    /// From first to last packet, µs.
    pub duration_us: u64,
    /// Who began it: sent the first packet seen, unless that was an answer (SYN and ACK).
    pub src: IpAddr,
    /// Its port; 0 where there is none, or in fragments.
    pub src_port: u16,
    /// The other side.
    pub dst: IpAddr,
    /// Its port.
    pub dst_port: u16,
    /// Transport protocol number.
    pub proto: u8,
    /// Interface it passed.
    pub ifindex: u32,
    /// VLAN tags that its first packet carried.
    pub vlan_tags: u8,
    /// Whether it began with a packet that left by the interface.
    pub outgoing: bool,
    /// Why it was recorded.
    pub end: EndReason,
    /// What the side that began it sent.
    pub forward: FlowSide,
    /// What the other side sent.
    pub backward: FlowSide,
    /// Times between packets of either side.
    pub gaps: Durations,
    /// Active periods: between silences of more than 5 s. The last one counts.
    pub active: Durations,
    /// Silences of more than 5 s.
    pub idle: Durations,
}

/// Who wants flow records: the store for operators, and detectors.
pub trait FlowSink {
    /// Takes one. Records come in the order in which they ended, from one task.
    fn take(&mut self, flow: &FlowRecord);
}

/// The newest flow records, numbered, for operators.
#[derive(Debug)]
pub struct Recent<T> {
    records: VecDeque<T>,
    /// Number of the next record.
    next: u64,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            records: VecDeque::new(),
            next: 0,
        }
    }
}

impl<T: Clone> Recent<T> {
    /// Keeps `record`, and forgets the oldest if there are [`MAX_RECENT`].
    pub fn keep(&mut self, record: T) {
        if self.records.len() >= MAX_RECENT {
            self.records.pop_front();
        }
        self.records.push_back(record);
        self.next = self.next.saturating_add(1);
    }

    /// Number of the record that comes next; numbers begin with 0 and have no gaps.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Number of the first record that is held, of those from `from` on.
    pub fn first_from(&self, from: u64) -> u64 {
        let held = u64::try_from(self.records.len()).unwrap_or(u64::MAX);
        from.clamp(self.next.saturating_sub(held), self.next)
    }

    /// At most `limit` records, oldest first: the newest ones, or those from number `from` on.
    pub fn list(&self, from: Option<u64>, limit: usize) -> Vec<T> {
        let held = self.records.len();
        let skip = match from {
            None => held.saturating_sub(limit),
            Some(from) => {
                let behind = usize::try_from(self.next.saturating_sub(from)).unwrap_or(usize::MAX);
                held.saturating_sub(behind)
            }
        };
        self.records
            .iter()
            .skip(skip)
            .take(limit)
            .cloned()
            .collect()
    }
}

impl FlowSink for Recent<FlowRecord> {
    fn take(&mut self, flow: &FlowRecord) {
        self.keep(flow.clone());
    }
}

/// A time in the kernel's units, µs.
fn micros(units: u32) -> u64 {
    (u64::from(units) << UNIT_SHIFT) / 1000
}

/// A square of such a time, µs².
fn micros2(squares: u64) -> u64 {
    let square = (1u128 << (2 * UNIT_SHIFT)) * u128::from(squares) / 1_000_000;
    u64::try_from(square).unwrap_or(u64::MAX)
}

fn side(way: &Way) -> FlowSide {
    FlowSide {
        packets: way.packets,
        bytes: way.bytes,
        payload_bytes: way.payload,
        header_bytes: way.bytes.saturating_sub(way.payload),
        data_packets: way.data_packets,
        len_min: way.len_min,
        len_max: way.len_max,
        payload_min: way.payload_min,
        payload_max: way.payload_max,
        payload_squares: way.payload_sq,
        payload_first: way.payload_first,
        first_us: micros(way.first),
        last_us: micros(way.last),
        gaps: Durations {
            count: way.gaps,
            min_us: micros(way.gap_min),
            max_us: micros(way.gap_max),
            sum_us: micros(way.gap_sum),
            squares_us2: micros2(way.gap_sq),
        },
        window: way.window,
        syn: way.syns,
        fin: way.fins,
        rst: way.resets,
        psh: way.pushes,
        ack: way.acks,
        urg: way.urgents,
    }
}

fn active(slot: &FlowSlot) -> Durations {
    let last = slot.last.saturating_sub(slot.active_start);
    let only = slot.idles == 0;
    let min = if only {
        last
    } else {
        slot.active_min.min(last)
    };
    let square = u64::from(last).saturating_mul(u64::from(last));
    Durations {
        count: u32::from(slot.idles).saturating_add(1),
        min_us: micros(min),
        max_us: micros(slot.active_max.max(last)),
        sum_us: micros(slot.active_sum.saturating_add(last)),
        squares_us2: micros2(slot.active_sq.saturating_add(square)),
    }
}

impl FlowRecord {
    /// From a kernel record; `None` for one that no kernel program of this version writes.
    ///
    /// `unix_us` turns a reading of `CLOCK_MONOTONIC` in ns into unix time in µs.
    pub fn from_export(export: &FlowExport, unix_us: impl Fn(u64) -> u64) -> Option<Self> {
        let slot = &export.slot;
        let family = match slot.family {
            4 => Family::V4,
            6 => Family::V6,
            _ => return None,
        };
        let first_unix_us = unix_us(slot.first_ns);
        let duration_us = micros(slot.last);
        let [forward, backward] = &slot.ways;
        Some(Self {
            first_unix_us,
            last_unix_us: first_unix_us.saturating_add(duration_us),
            duration_us,
            src: address_of(family, &slot.src)?,
            src_port: slot.sport,
            dst: address_of(family, &slot.dst)?,
            dst_port: slot.dport,
            proto: slot.proto,
            ifindex: slot.ifindex,
            vlan_tags: slot.vlan_tags,
            outgoing: slot.outgoing != 0,
            end: FlowEnd::from_u32(export.end)?.into(),
            forward: side(forward),
            backward: side(backward),
            gaps: Durations {
                count: u32::from(slot.gaps),
                min_us: micros(slot.gap_min),
                max_us: micros(slot.gap_max),
                sum_us: micros(slot.gap_sum),
                squares_us2: micros2(slot.gap_sq),
            },
            active: active(slot),
            idle: Durations {
                count: u32::from(slot.idles),
                min_us: micros(slot.idle_min),
                max_us: micros(slot.idle_max),
                sum_us: micros(slot.idle_sum),
                squares_us2: micros2(slot.idle_sq),
            },
        })
    }
}

/// Whether a record's addresses and ports are those that its tag was made of, by the table's seed.
pub fn is_whole(export: &FlowExport, seed: u64) -> bool {
    let slot = &export.slot;
    let family = match slot.family {
        4 => Family::V4,
        6 => Family::V6,
        _ => return false,
    };
    let hash =
        |words: &Words, port| hash_endpoint(words, port, slot.proto, family, slot.ifindex, seed);
    let both = hash(&slot.src, slot.sport).wrapping_add(hash(&slot.dst, slot.dport));
    slot.tag == both | 1
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
