//! The accounting of one slot that several sources want, beside a model that only counts.

use std::collections::HashSet;

use secmesh_common::account::{
    COMPLETED_FACTOR, Observed, RUN_GAP_NS, SourceSlot, account, is_tcp_probe,
};
use secmesh_common::config::{Config, RateClass, RateLevels};
use secmesh_common::packet::{
    Family, Fragment, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet, tcp_flags,
};

use crate::feed::Feed;

/// Scores stop there; the documented bound.
const MAX_SCORE: u32 = 4096;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Levels 2 and 8 over 16 units in each class, contacts over 64, then steps of six bytes.
    let head = [16, 0, 2, 8, 16, 0, 2, 8, 16, 0, 2, 8, 64, 0];
    let steps: &[[u8; 6]] = &[
        [0, 0, 2, 0, 80, 1],
        [0, 0, 16, 0, 80, 1],
        [1, 0, 0, 0, 53, 1],
        [2, 0, 0, 0, 0, 1],
        [3, 1, 0, 0, 0, 200],
        [4, 0, 0, 0, 80, 1],
        [5, 2, 2, 1, 80, 0],
    ];
    let mut seeds: Vec<Vec<u8>> = steps
        .iter()
        .map(|step| [head.as_slice(), &step.repeat(12)].concat())
        .collect();
    seeds.push([head.as_slice(), &steps.concat().repeat(8)].concat());
    seeds
}

/// Nanoseconds of one unit of an input's times.
const UNIT: u64 = 1_000_000;

fn config(feed: &mut Feed<'_>) -> Config {
    let mut config = Config::default();
    for levels in &mut config.rates {
        *levels = RateLevels {
            window_ns: u64::from(feed.u16()) * UNIT,
            watch: feed.u8().into(),
            alert: feed.u8().into(),
        };
    }
    config.contact_window_ns = u64::from(feed.u16()) * UNIT;
    config
}

/// What a class of packets comes to in its window.
#[derive(Debug, Default, Clone, Copy)]
struct Window {
    start_ns: u64,
    count: u32,
}

impl Window {
    /// Counts one; `true` if a window began.
    fn see(&mut self, now_ns: u64, window_ns: u64) -> bool {
        let over = now_ns - self.start_ns >= window_ns;
        if over {
            *self = Self {
                start_ns: now_ns,
                count: 0,
            };
        }
        self.count += 1;
        over
    }
}

/// The holder of the slot, as plainly as it can be counted.
#[derive(Debug, Default)]
struct Model {
    tag: u64,
    packets: u32,
    last_ns: u64,
    syn: Window,
    udp: Window,
    icmp: Window,
    contact_start_ns: u64,
    contacts: HashSet<(u8, u8, u16)>,
}

struct Step {
    packet: Packet,
    host: u8,
    source: u64,
    after: u64,
}

fn step(feed: &mut Feed<'_>) -> Step {
    let kind = feed.u8();
    let source = 1 + u64::from(feed.u8() % 3) * 2;
    let flags = feed.u8();
    let host = feed.u8();
    let port = u16::from(feed.u8());
    let after = feed.u8();
    let proto = match kind % 6 {
        0 | 4 | 5 => PROTO_TCP,
        1 => PROTO_UDP,
        2 => PROTO_ICMP,
        _ => 47,
    };
    let ports = matches!(proto, PROTO_TCP | PROTO_UDP);
    Step {
        packet: Packet {
            src: [7, 0, 0, 0],
            dst: [u32::from(host), 0, 0, 0],
            sport: if ports { u16::from(kind) } else { 0 },
            dport: if ports { port } else { 0 },
            family: Family::V4,
            proto,
            tcp_flags: if proto == PROTO_TCP { flags } else { 0 },
            icmp_type: 0,
            fragment: if kind % 6 == 4 && flags == 0 {
                Fragment::Later
            } else {
                Fragment::Whole
            },
            ..Packet::empty(60)
        },
        host,
        source,
        // Small steps mostly; the large ones pass every window and the gap between runs.
        after: u64::from(after & 0x1f) << (4 * (after >> 5)),
    }
}

pub(super) fn run(input: &[u8]) {
    let mut feed = Feed::new(input);
    let config = config(&mut feed);
    let mut slot = SourceSlot::default();
    let mut model = Model::default();
    let mut now_ns = u64::from(feed.u8()) * UNIT;
    while !feed.is_empty() {
        let step = step(&mut feed);
        now_ns += step.after * UNIT;
        if !slot.holds(step.source) {
            let resisted = slot.resistance(now_ns);
            if !slot.contend(step.source, now_ns) {
                assert!(resisted > 0 && slot.score == resisted - 1, "{slot:?}");
                assert_eq!(slot.tag, model.tag, "{slot:?}");
                continue;
            }
            assert_eq!(resisted, 0, "a slot was taken that its holder held");
            model = Model {
                tag: step.source,
                last_ns: now_ns,
                ..Model::default()
            };
        }
        let seen = account(&mut slot, &step.packet, now_ns, &config);
        model.see(&step, now_ns, &config, seen, &slot);
    }
}

/// Whether `count` is worth an event, by the documented levels.
fn due(count: u32, levels: RateLevels) -> bool {
    count == levels.watch
        || count == levels.alert
        || (count > levels.alert && count.is_power_of_two())
}

impl Model {
    fn see(
        &mut self,
        step: &Step,
        now_ns: u64,
        config: &Config,
        seen: Observed,
        slot: &SourceSlot,
    ) {
        let packet = &step.packet;
        self.packets = if now_ns - self.last_ns > RUN_GAP_NS {
            1
        } else {
            self.packets + 1
        };
        self.last_ns = now_ns;
        assert_eq!(slot.packets, self.packets, "{slot:?}");
        assert_eq!((slot.tag, slot.last_ns), (self.tag, now_ns), "{slot:?}");
        assert!(
            slot.first_ns <= now_ns && slot.score <= MAX_SCORE,
            "{slot:?}"
        );

        let [syn, udp, icmp] = config.rates;
        let report = (seen.rate_count != 0).then_some((seen.rate_class, seen.rate_count));
        let exact = |class: RateClass, count: u32, levels: RateLevels| {
            assert_eq!(slot.count.get(class as usize), Some(&count), "{class:?}");
            let expected = due(count, levels).then_some((class as u8, count));
            assert_eq!(report, expected, "{class:?} {levels:?}");
        };
        if packet.fragment == Fragment::Later {
            assert_eq!(seen, Observed::default(), "a fragment has no ports");
            return;
        }
        match packet.proto {
            PROTO_UDP => {
                self.udp.see(now_ns, udp.window_ns);
                exact(RateClass::Udp, self.udp.count, udp);
                self.contact(step, now_ns, config, seen);
            }
            PROTO_ICMP => {
                self.icmp.see(now_ns, icmp.window_ns);
                exact(RateClass::Icmp, self.icmp.count, icmp);
                assert!(!seen.contact);
            }
            PROTO_TCP => {
                let flags = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK);
                if flags == tcp_flags::SYN {
                    self.syn.see(now_ns, syn.window_ns);
                    assert_eq!(slot.attempts, self.syn.count, "{slot:?}");
                    let flood = syn.alert.saturating_mul(COMPLETED_FACTOR);
                    let open = slot.count.first().copied().unwrap_or_default();
                    assert!((1..=self.syn.count).contains(&open), "{slot:?}");
                    let by_attempts = RateLevels {
                        window_ns: 0,
                        watch: flood,
                        alert: flood,
                    };
                    let expected = if due(self.syn.count, by_attempts) {
                        Some((RateClass::Syn as u8, self.syn.count))
                    } else {
                        due(open, syn).then_some((RateClass::Syn as u8, open))
                    };
                    assert_eq!(report, expected, "{slot:?}");
                } else {
                    assert_eq!(report, None, "no attempt, no count");
                }
                if is_tcp_probe(packet.tcp_flags) {
                    self.contact(step, now_ns, config, seen);
                } else {
                    assert!(!seen.contact);
                }
            }
            _ => assert_eq!(seen, Observed::default()),
        }
    }

    /// A contact is told once in a window, and the first of a window always.
    fn contact(&mut self, step: &Step, now_ns: u64, config: &Config, seen: Observed) {
        if now_ns - self.contact_start_ns >= config.contact_window_ns {
            self.contact_start_ns = now_ns;
            self.contacts.clear();
        }
        let first = self.contacts.is_empty();
        let new = self
            .contacts
            .insert((step.packet.proto, step.host, step.packet.dport));
        assert!(new || !seen.contact, "the same contact was told twice");
        assert!(!first || seen.contact, "the first contact was not told");
    }
}
