//! What slots, records and the sweep's orders look like in memory.

use crate::packet::Words;

/// In which state a flow is.
pub mod state {
    /// A completed TCP connection, or any flow of another protocol.
    pub const OPEN: u8 = 0;
    /// A TCP connection that is not completed yet.
    pub const OPENING: u8 = 1;
    /// Both sides have sent FIN; the last acknowledgement is missing.
    pub const CLOSING: u8 = 2;
    /// Recorded; the slot only remembers not to begin a new flow for what comes late.
    pub const ENDED: u8 = 3;
}

/// Why a flow was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowEnd {
    /// Both sides closed it.
    Fin = 1,
    /// One side reset it.
    Reset = 2,
    /// Nothing came for the idle time.
    Idle = 3,
    /// It has lasted for the active time; what follows is another record of the same flow.
    Active = 4,
    /// Busier flows needed its place.
    Evicted = 5,
}

impl FlowEnd {
    /// All of them, by number.
    pub const ALL: [Self; 5] = [
        Self::Fin,
        Self::Reset,
        Self::Idle,
        Self::Active,
        Self::Evicted,
    ];

    /// The reason with this number.
    pub const fn from_u32(n: u32) -> Option<Self> {
        match n {
            1 => Some(Self::Fin),
            2 => Some(Self::Reset),
            3 => Some(Self::Idle),
            4 => Some(Self::Active),
            5 => Some(Self::Evicted),
            _ => None,
        }
    }
}

/// What one side of a flow sent. Times are in units of 2^[`super::UNIT_SHIFT`] ns; 16-bit and 8-bit counts stop at
/// their largest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Way {
    /// Bytes of its frames, Ethernet header included.
    pub bytes: u64,
    /// Bytes that followed the transport header.
    pub payload: u64,
    /// Sum of the squares of each packet's payload.
    pub payload_sq: u64,
    /// Sum of the squares of the times between its packets that were measured finely.
    pub gap_sq: u64,
    /// When its first packet came, since the flow's beginning.
    pub first: u32,
    /// When its last packet came, since the flow's beginning.
    pub last: u32,
    /// Packets; segments of one that the card is to cut count each.
    pub packets: u32,
    /// Packets with payload.
    pub data_packets: u32,
    /// TCP segments with ACK.
    pub acks: u32,
    /// TCP segments with PSH.
    pub pushes: u32,
    /// Times between its packets that were measured finely.
    pub gaps: u32,
    /// Their sum.
    pub gap_sum: u32,
    /// Shortest of them.
    pub gap_min: u32,
    /// Longest time between two packets, finely measured or not.
    pub gap_max: u32,
    /// Shortest frame, bytes.
    pub len_min: u16,
    /// Longest frame, bytes.
    pub len_max: u16,
    /// Smallest payload of a packet, bytes.
    pub payload_min: u16,
    /// Largest payload of a packet, bytes.
    pub payload_max: u16,
    /// Payload of its first packet that had any, bytes.
    pub payload_first: u16,
    /// TCP window of its first packet as the header has it, not scaled.
    pub window: u16,
    /// TCP segments with SYN.
    pub syns: u8,
    /// TCP segments with FIN.
    pub fins: u8,
    /// TCP segments with RST.
    pub resets: u8,
    /// TCP segments with URG.
    pub urgents: u8,
}

/// What is known of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowSlot {
    /// Seeded hash of both endpoints; 0 is a free slot, [`super::LOCKED`] one that is being written.
    pub tag: u64,
    /// Seeded hash of the endpoint that began it.
    pub initiator: u64,
    /// When its first packet came, `CLOCK_MONOTONIC` ns.
    pub first_ns: u64,
    /// Sum of the squares of the times between packets of either side that were measured finely.
    pub gap_sq: u64,
    /// Sum of the squares of the silences longer than [`super::ACTIVITY_GAP`].
    pub idle_sq: u64,
    /// Sum of the squares of the active periods between them.
    pub active_sq: u64,
    /// Address of the side that began it.
    pub src: Words,
    /// Address of the other side.
    pub dst: Words,
    /// What the side that began it sent, and what the other did.
    pub ways: [Way; 2],
    /// When its last packet came, since the first.
    pub last: u32,
    /// Sum of the times between packets of either side that were measured finely.
    pub gap_sum: u32,
    /// Shortest of them.
    pub gap_min: u32,
    /// Longest time between two packets of either side, finely measured or not.
    pub gap_max: u32,
    /// When the current active period began, since the first packet.
    pub active_start: u32,
    /// Shortest active period that is over.
    pub active_min: u32,
    /// Longest active period that is over.
    pub active_max: u32,
    /// Sum of the active periods that are over.
    pub active_sum: u32,
    /// Shortest silence.
    pub idle_min: u32,
    /// Longest silence.
    pub idle_max: u32,
    /// Sum of the silences.
    pub idle_sum: u32,
    /// How firmly it holds the slot.
    pub score: u32,
    /// Interface it passes.
    pub ifindex: u32,
    /// Port of the side that began it, host byte order; 0 where there is none.
    pub sport: u16,
    /// Port of the other side.
    pub dport: u16,
    /// Silences.
    pub idles: u16,
    /// Times between packets of either side that were measured finely, at most [`super::FINE_GAPS`].
    pub gaps: u16,
    /// Transport protocol number.
    pub proto: u8,
    /// 4 or 6.
    pub family: u8,
    /// One of [`state`].
    pub state: u8,
    /// 1 if this host (or one that it forwards for) began it, 0 if it came in.
    pub outgoing: u8,
    /// VLAN tags that its first packet carried.
    pub vlan_tags: u8,
    /// Zero.
    pub pad: [u8; 7],
}

const _: () = assert!(size_of::<Way>() == 88, "layout");
const _: () = assert!(
    size_of::<FlowSlot>() == 6 * 8 + 2 * 16 + 2 * 88 + 13 * 4 + 4 * 2 + 5 + 7,
    "no padding"
);

/// A record of the flow ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowExport {
    /// The flow as it was.
    pub slot: FlowSlot,
    /// When it was recorded, `CLOCK_MONOTONIC` ns.
    pub ended_ns: u64,
    /// [`FlowEnd`].
    pub end: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<FlowExport>() == 344, "layout");

#[cfg(feature = "user")]
// SAFETY: repr(C), only integers, no padding (size asserted above), every bit pattern is valid.
unsafe impl aya::Pod for FlowSlot {}
#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for FlowExport {}

/// How many slots one run of the sweep looks at.
pub const SWEEP_SLICE: u32 = 512;

/// What the sweep is told and what it answers: the first bytes of its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SweepOrder {
    /// Slot to begin at.
    pub from: u32,
    /// Answer: the slot it stopped before, [`SWEEP_SLICE`] further unless the ring was full.
    pub next: u32,
    /// Answer: flows recorded.
    pub recorded: u32,
    /// Answer: slots in use.
    pub used: u32,
}

#[cfg(feature = "user")]
// SAFETY: repr(C), only u32 fields, every bit pattern is valid.
unsafe impl aya::Pod for SweepOrder {}
