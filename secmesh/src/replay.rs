//! `secmesh replay`: a capture through the same parser, accounting and detectors as live traffic.
//!
//! What the kernel asks its sockets is read off the capture instead: a port is open if the host was seen
//! to answer from it (SYN-ACK, or a datagram in the other direction). The answer comes after the
//! question, so a contact is judged [`ANSWER_NS`] later than it was made; a datagram that answers one of
//! the other side is no contact at all.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    path::Path,
};

use secmesh_common::{
    account::{SLOTS, SourceSlot, account, place},
    config::Config as KernelConfig,
    counters::Counter,
    packet::{
        Captured, Family, PROTO_TCP, PROTO_UDP, Packet, parse_ethernet, parse_from_network,
        tcp_flags,
    },
};

use crate::{
    config::DetectConfig,
    detect::{Alert, BoundedMap, Detectors, TimeBase, kernel_levels},
    sense::{
        capture::{CaptureError, CaptureReader, FrameStart, Summary},
        observation::{Observation, What, address_of},
    },
};

/// Open ports and conversations remembered while reading.
const MAX_KNOWN: usize = 1 << 18;
/// Nobody attacks the hash table of somebody who reads a file; a fixed seed makes runs repeatable.
const SEED: u64 = 0x5ec3_e5ec_3e5e_c3e5;

/// What a capture holds.
#[derive(Debug)]
pub struct Report {
    /// What the detectors say, in the order of the packets.
    pub alerts: Vec<Alert>,
    /// Packets read.
    pub packets: u64,
    /// Malformed packets by reason.
    pub malformed: BTreeMap<&'static str, u64>,
    /// Time of the first packet, unix µs.
    pub first_unix_us: Option<u64>,
    /// Time of the last packet, unix µs.
    pub last_unix_us: Option<u64>,
    /// Frames too short for their link header, or of no protocol that is known.
    pub opaque: u64,
    /// Packets that were not accounted because their source's slots were taken.
    pub contended: u64,
    /// What the reader says of the file.
    pub summary: Summary,
}

/// How long the other side has to answer before a port counts as closed, ns.
const ANSWER_NS: u64 = 1_000_000_000;
/// Contacts that wait for an answer; beyond that the oldest are judged early.
const MAX_WAITING: usize = 1 << 16;

type Endpoint = (IpAddr, u16, u8);

struct Pipeline {
    slots: Vec<SourceSlot>,
    config: KernelConfig,
    detectors: Detectors,
    /// Endpoints that were seen to answer.
    open: BoundedMap<Endpoint, ()>,
    /// Datagram conversations, by (asker, asked).
    asked: BoundedMap<(Endpoint, Endpoint), ()>,
    /// Contacts that may still be answered, in the order they were made.
    waiting: VecDeque<(Observation, Endpoint)>,
    contended: u64,
    alerts: Vec<Alert>,
}

/// Reads `path` to its end.
///
/// # Errors
///
/// If the file cannot be opened, is no capture, or breaks in the middle of its structure.
pub fn replay(path: &Path, detect: &DetectConfig) -> Result<Report, CaptureError> {
    let mut reader = CaptureReader::open(path)?;
    let mut pipeline = Pipeline::new(detect);
    let mut malformed: BTreeMap<&'static str, u64> = BTreeMap::new();
    let (mut packets, mut opaque, mut first, mut last) = (0u64, 0u64, None, None);
    while let Some(frame) = reader.next_frame()? {
        packets += 1;
        let unix_us = frame.unix_us();
        first = Some(first.map_or(unix_us, |f: u64| f.min(unix_us)));
        last = Some(last.map_or(unix_us, |l: u64| l.max(unix_us)));
        let captured = Captured {
            data: frame.data,
            wire_len: frame.orig_len,
        };
        let parsed = match frame.start() {
            FrameStart::Ethernet => parse_ethernet(&captured),
            FrameStart::Network { ethertype, offset } => {
                parse_from_network(&captured, ethertype, offset)
            }
            FrameStart::Opaque => {
                opaque += 1;
                continue;
            }
        };
        match parsed {
            Ok(packet) => pipeline.take(&packet, frame.unix_ns),
            Err(reason) => *malformed.entry(Counter::from(reason).name()).or_default() += 1,
        }
    }
    pipeline.judge_waiting(u64::MAX);
    pipeline.alerts.sort_by_key(|a| a.raised_unix_us);
    Ok(Report {
        alerts: pipeline.alerts,
        packets,
        malformed,
        first_unix_us: first,
        last_unix_us: last,
        contended: pipeline.contended,
        opaque,
        summary: *reader.summary(),
    })
}

impl Pipeline {
    fn new(detect: &DetectConfig) -> Self {
        let levels = kernel_levels(detect);
        Self {
            slots: vec![SourceSlot::default(); SLOTS],
            config: KernelConfig {
                rates: levels.rates,
                contact_window_ns: levels.contact_window_ns,
                ..KernelConfig::default()
            },
            detectors: Detectors::new(detect),
            open: BoundedMap::new(MAX_KNOWN),
            asked: BoundedMap::new(MAX_KNOWN),
            waiting: VecDeque::new(),
            contended: 0,
            alerts: Vec::new(),
        }
    }

    fn take(&mut self, packet: &Packet, now_ns: u64) {
        if packet.family == Family::Other {
            return;
        }
        self.judge_waiting(now_ns.saturating_sub(ANSWER_NS));
        let is_answer = self.learn(packet);
        let Some(slot) = claim(&mut self.slots, packet, now_ns) else {
            self.contended += 1;
            return;
        };
        let mut seen = account(slot, packet, now_ns, &self.config);
        seen.contact &= !is_answer;
        let Some(observation) = Observation::from_accounting(packet, slot, &seen, None) else {
            return;
        };
        if let What::Contact {
            dst, port, proto, ..
        } = observation.what
        {
            self.waiting.push_back((observation, (dst, port, proto)));
            if self.waiting.len() > MAX_WAITING {
                self.judge_oldest();
            }
        } else {
            self.judge(&observation);
        }
    }

    fn judge(&mut self, observation: &Observation) {
        self.detectors
            .observe(observation, false, TimeBase::UNIX, &mut self.alerts);
    }

    fn judge_oldest(&mut self) {
        if let Some((mut observation, endpoint)) = self.waiting.pop_front() {
            if let What::Contact { open, .. } = &mut observation.what {
                *open = Some(self.open.get(&endpoint).is_some());
            }
            self.judge(&observation);
        }
    }

    /// Judges the contacts made before `ns`.
    fn judge_waiting(&mut self, ns: u64) {
        while self.waiting.front().is_some_and(|(o, _)| o.ts_ns <= ns) {
            self.judge_oldest();
        }
    }

    /// Learns from the packet who answers where; returns whether it is an answer itself.
    fn learn(&mut self, packet: &Packet) -> bool {
        let (Some(src), Some(dst)) = (
            address_of(packet.family, &packet.src),
            address_of(packet.family, &packet.dst),
        ) else {
            return false;
        };
        let src = (src, packet.sport, packet.proto);
        let dst = (dst, packet.dport, packet.proto);
        match packet.proto {
            PROTO_TCP => {
                let handshake = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK);
                if handshake == tcp_flags::SYN | tcp_flags::ACK {
                    self.open.insert(src, ());
                }
                false
            }
            PROTO_UDP if self.asked.get(&(dst, src)).is_some() => {
                self.open.insert(src, ());
                true
            }
            PROTO_UDP => {
                self.asked.insert((src, dst), ());
                false
            }
            _ => false,
        }
    }
}

/// The source's slot, as the kernel finds it (secmesh-ebpf, observe.rs).
fn claim<'a>(
    slots: &'a mut [SourceSlot],
    packet: &Packet,
    now_ns: u64,
) -> Option<&'a mut SourceSlot> {
    let place = place(packet, SEED);
    let (first, second) = (place.first as usize, place.second as usize);
    let chosen = if slots.get(first)?.holds(place.tag) {
        return slots.get_mut(first);
    } else if slots.get(second)?.holds(place.tag) {
        return slots.get_mut(second);
    } else if slots.get(first)?.resistance(now_ns) <= slots.get(second)?.resistance(now_ns) {
        first
    } else {
        second
    };
    let slot = slots.get_mut(chosen)?;
    slot.contend(place.tag, now_ns).then_some(slot)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, path::PathBuf};

    use etherparse::PacketBuilder;

    use super::*;

    const ATTACKER: [u8; 4] = [192, 0, 2, 66];
    const SERVER: [u8; 4] = [198, 51, 100, 1];

    /// A capture in the making: classic pcap, µs, Ethernet.
    struct Capture(Vec<u8>);

    impl Capture {
        fn new() -> Self {
            let mut bytes = Vec::new();
            for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
                bytes.extend(word.to_le_bytes());
            }
            Self(bytes)
        }

        fn add(&mut self, ms: u32, frame: &[u8]) {
            let len = u32::try_from(frame.len()).unwrap();
            for word in [1_700_000_000 + ms / 1000, ms % 1000 * 1000, len, len] {
                self.0.extend(word.to_le_bytes());
            }
            self.0.extend(frame);
        }

        fn tcp(&mut self, ms: u32, from: ([u8; 4], u16), to: ([u8; 4], u16), flags: &str) {
            let mut tcp = PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4(from.0, to.0, 64)
                .tcp(from.1, to.1, 1, 1000);
            for flag in flags.chars() {
                tcp = match flag {
                    'S' => tcp.syn(),
                    'A' => tcp.ack(1),
                    'R' => tcp.rst(),
                    _ => tcp.fin(),
                };
            }
            let mut frame = Vec::new();
            tcp.write(&mut frame, &[]).unwrap();
            self.add(ms, &frame);
        }

        fn replay(&self) -> Report {
            let dir = tempfile::tempdir().unwrap();
            let path: PathBuf = dir.path().join("capture");
            crate::state::write_atomic(&path, &self.0, 0o600).unwrap();
            let plain = replay(&path, &DetectConfig::default()).unwrap();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&self.0).unwrap();
            crate::state::write_atomic(&path, &gzip.finish().unwrap(), 0o600).unwrap();
            let zipped = replay(&path, &DetectConfig::default()).unwrap();
            assert_eq!(plain.alerts, zipped.alerts);
            plain
        }
    }

    fn classes(report: &Report) -> Vec<&str> {
        report.alerts.iter().map(|a| a.class.name()).collect()
    }

    #[test]
    fn a_syn_flood_is_one_alert_with_the_times_of_its_packets() {
        let mut capture = Capture::new();
        for n in 0..400u16 {
            capture.tcp(u32::from(n), (ATTACKER, 1024 + n), (SERVER, 80), "S");
        }
        let report = capture.replay();
        assert_eq!(classes(&report), ["syn_flood"]);
        let alert = &report.alerts[0];
        assert_eq!(alert.subject.to_string(), "192.0.2.66");
        assert_eq!(alert.first_unix_us, 1_700_000_000_000_000);
        assert_eq!(alert.last_unix_us, 1_700_000_000_199_000);
        assert_eq!(report.packets, 400);
    }

    #[test]
    fn a_busy_client_that_completes_its_connections_is_no_flood() {
        let mut capture = Capture::new();
        for n in 0..900u16 {
            let (ms, port) = (u32::from(n), 1024 + n);
            capture.tcp(ms, (ATTACKER, port), (SERVER, 80), "S");
            capture.tcp(ms, (SERVER, 80), (ATTACKER, port), "SA");
            capture.tcp(ms, (ATTACKER, port), (SERVER, 80), "A");
        }
        assert_eq!(classes(&capture.replay()), [] as [&str; 0]);
    }

    #[test]
    fn forged_acknowledgements_do_not_hide_a_flood() {
        let mut capture = Capture::new();
        for n in 0..1_700u32 {
            let port = 1024 + u16::try_from(n).unwrap();
            capture.tcp(n / 2, (ATTACKER, port), (SERVER, 80), "S");
            capture.tcp(n / 2, (ATTACKER, port), (SERVER, 80), "A");
        }
        assert_eq!(classes(&capture.replay()), ["syn_flood"]);
    }

    #[test]
    fn ports_that_answer_are_no_scan_and_ports_that_do_not_are() {
        let mut capture = Capture::new();
        for n in 1..60u16 {
            let ms = u32::from(n) * 20;
            capture.tcp(ms, (ATTACKER, 40_000), (SERVER, n), "S");
            capture.tcp(ms + 1, (SERVER, n), (ATTACKER, 40_000), "SA");
        }
        assert_eq!(classes(&capture.replay()), [] as [&str; 0]);
        let mut capture = Capture::new();
        for n in 1..60u16 {
            let ms = u32::from(n) * 20;
            capture.tcp(ms, (ATTACKER, 40_000), (SERVER, n), "S");
            capture.tcp(ms + 1, (SERVER, n), (ATTACKER, 40_000), "RA");
        }
        assert_eq!(classes(&capture.replay()), ["port_scan"]);
    }

    #[test]
    fn malformed_packets_are_counted_by_reason() {
        let mut capture = Capture::new();
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x65, 0, 0, 20]);
        frame.resize(34, 0);
        capture.add(0, &frame);
        capture.add(1, &[0; 8]);
        let report = capture.replay();
        let reasons: Vec<_> = report.malformed.into_iter().collect();
        assert_eq!(
            reasons,
            [("malformed_ethernet", 1), ("malformed_ip_version", 1)]
        );
    }
}
