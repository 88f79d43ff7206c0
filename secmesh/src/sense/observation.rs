//! One vocabulary for what was seen, whoever saw it: the kernel's ring or a capture file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use secmesh_common::{
    account::{Observed, SourceSlot},
    config::RateClass,
    event::{Event, EventKind, OPEN_NO, OPEN_YES},
    packet::{Family, Packet, Words},
};

/// Something that a source did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// When, ns on the observer's clock (`CLOCK_MONOTONIC` live, unix time in a capture).
    pub ts_ns: u64,
    /// When the source's current run of packets began, same clock.
    pub first_ns: u64,
    /// Who. IPv4-mapped addresses are IPv4 here.
    pub src: IpAddr,
    /// Packets of the source in its current run.
    pub packets: u32,
    /// What.
    pub what: What,
}

/// What a source did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Its count of one class reached a level in the class's window.
    Rate {
        /// The class.
        class: RateClass,
        /// The count.
        count: u32,
    },
    /// It tried a (host, port) not tried before in the contact window.
    Contact {
        /// The host.
        dst: IpAddr,
        /// The port.
        port: u16,
        /// Transport protocol number.
        proto: u8,
        /// Whether something listens there; `None` if nobody could tell.
        open: Option<bool>,
    },
    /// A packet of a watched source.
    Packet,
    /// A packet to a tripwire port.
    Tripwire {
        /// The port.
        port: u16,
        /// Transport protocol number.
        proto: u8,
    },
}

/// An address from network-order bytes, canonical.
fn address(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        4 => {
            let [a, b, c, d, ..] = *bytes;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        6 => Some(IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()),
        _ => None,
    }
}

/// An address from the parser's words, canonical.
pub fn address_of(family: Family, words: &Words) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    address(family as u8, &bytes)
}

impl Observation {
    /// From a kernel event; `None` for one that this version does not know.
    pub fn from_event(event: &Event) -> Option<Self> {
        let what = match EventKind::from_u8(event.kind)? {
            EventKind::Rate => What::Rate {
                class: RateClass::from_u8(event.class)?,
                count: event.count,
            },
            EventKind::Contact => What::Contact {
                dst: address(event.family, &event.dst)?,
                port: event.dport,
                proto: event.proto,
                open: match event.open {
                    OPEN_YES => Some(true),
                    OPEN_NO => Some(false),
                    _ => None,
                },
            },
            EventKind::Sample => What::Packet,
            EventKind::Tripwire => What::Tripwire {
                port: event.dport,
                proto: event.proto,
            },
        };
        Some(Self {
            ts_ns: event.ts_ns,
            first_ns: event.first_ns,
            src: address(event.family, &event.src)?,
            packets: event.packets,
            what,
        })
    }

    /// From what the accounting said of one packet of a capture; `None` if it said nothing.
    pub fn from_accounting(
        packet: &Packet,
        slot: &SourceSlot,
        seen: &Observed,
        open: Option<bool>,
    ) -> Option<Self> {
        let what = if seen.rate_count != 0 {
            What::Rate {
                class: RateClass::from_u8(seen.rate_class)?,
                count: seen.rate_count,
            }
        } else if seen.contact {
            What::Contact {
                dst: address_of(packet.family, &packet.dst)?,
                port: packet.dport,
                proto: packet.proto,
                open,
            }
        } else {
            return None;
        };
        Some(Self {
            ts_ns: slot.last_ns,
            first_ns: slot.first_ns,
            src: address_of(packet.family, &packet.src)?,
            packets: slot.packets,
            what,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_the_ipv4_address_they_carry() {
        let mut event = Event {
            kind: EventKind::Sample as u8,
            family: 6,
            ..Event::default()
        };
        event.src = "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets();
        let seen = Observation::from_event(&event).unwrap();
        assert_eq!(seen.src, "192.0.2.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn unknown_kinds_classes_and_families_are_skipped() {
        let good = Event {
            kind: EventKind::Rate as u8,
            family: 4,
            ..Event::default()
        };
        assert!(Observation::from_event(&good).is_some());
        assert!(Observation::from_event(&Event { kind: 9, ..good }).is_none());
        assert!(Observation::from_event(&Event { class: 9, ..good }).is_none());
        assert!(Observation::from_event(&Event { family: 5, ..good }).is_none());
    }
}
