//! `[limits]`, `[checks]` and `[tripwire]`: what is dropped besides blocks.

use std::{collections::BTreeMap, fmt, str::FromStr};

use secmesh_common::{
    config::features,
    limit::{BYTES_PER_UNIT, Limit, SourceLimit},
    port,
    reason::Reason,
    sanity::{SANITY, STRAYS},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::check::Checker;
use crate::dataplane::{PortRule, Protection};

/// Longest timer tick of a kernel (HZ=100), ns: a burst is at least what arrives in one.
const TICK_NS: u64 = 10_000_000;
/// Most port limits: the kernel's table holds a pair for each port, and the first pair is unused.
const MAX_PORT_LIMITS: usize = port::PORT_LIMITS / 2 - 1;
/// Most tripwire ports of one protocol.
const MAX_TRIPWIRES: usize = 1024;
/// Highest rate, in units a second: what a cost of 1 ns can express.
const MAX_RATE: u64 = 1_000_000_000;
/// Longest burst, in seconds of the rate.
const MAX_BURST_S: u64 = 3600;

const COUNT: &str = "\"off\", or units a second like \"2000/s\" or \"2000/s burst 4000\"";
const VOLUME: &str = "\"off\", or bits a second like \"100 Mbit/s\" or \"100 Mbit/s burst 5 MB\"";

/// A limit as it is written: units (packets, attempts, or bytes) a second, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate<const BYTES: bool> {
    /// Units a second; 0 is no limit.
    pub rate: u64,
    /// Units that may come at once; by default what may come in a second.
    pub burst: u64,
}

/// So many packets or attempts a second.
pub type CountRate = Rate<false>;
/// So many bytes a second.
pub type ByteRate = Rate<true>;

impl<const BYTES: bool> Rate<BYTES> {
    const OFF: Self = Self { rate: 0, burst: 0 };

    const fn new(rate: u64, burst: u64) -> Self {
        Self { rate, burst }
    }

    /// Whether there is a limit.
    pub const fn is_set(self) -> bool {
        self.rate != 0
    }

    /// The limit as the kernel applies it.
    pub const fn limit(self) -> Limit {
        let unit = if BYTES { BYTES_PER_UNIT as u64 } else { 1 };
        let per_second = self.rate.div_ceil(unit);
        Limit::per_second(per_second, self.burst.div_ceil(unit), TICK_NS)
    }
}

/// A number with a decimal prefix right behind it or after a space: `2k`, `100 M`.
fn scaled(text: &str, unit: &str) -> Option<u64> {
    let text = text.trim().strip_suffix(unit)?.trim_end();
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' => (text.strip_suffix('k')?, 1_000),
        b'M' => (text.strip_suffix('M')?, 1_000_000),
        b'G' => (text.strip_suffix('G')?, 1_000_000_000),
        _ => (text, 1),
    };
    let digits = digits.trim_end();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

impl<const BYTES: bool> FromStr for Rate<BYTES> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "off" {
            return Ok(Self::OFF);
        }
        let no = |why: &str| format!("`{text}` {why}");
        let (rate, burst) = match text.split_once(" burst ") {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let parsed = if BYTES {
            scaled(rate, "bit/s").map(|bits| bits / 8)
        } else {
            scaled(rate, "/s")
        };
        let rate = parsed.ok_or_else(|| no("is not a limit"))?;
        let burst = match burst {
            None => rate,
            Some(burst) => scaled(burst, if BYTES { "B" } else { "" })
                .ok_or_else(|| no("has a burst that is not a number"))?,
        };
        let most = if BYTES {
            MAX_RATE * u64::from(BYTES_PER_UNIT)
        } else {
            MAX_RATE
        };
        if rate == 0 {
            return Err(no("would let nothing through"));
        }
        if rate > most {
            return Err(no("is more than any machine can count"));
        }
        if burst == 0 || burst > rate.saturating_mul(MAX_BURST_S) {
            return Err(no("has a burst of nothing, or of more than an hour"));
        }
        Ok(Self { rate, burst })
    }
}

impl<const BYTES: bool> fmt::Display for Rate<BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, burst } = self;
        match (self.is_set(), BYTES) {
            (false, _) => f.write_str("off"),
            (true, false) => write!(f, "{rate}/s burst {burst}"),
            (true, true) => write!(f, "{} bit/s burst {burst} B", rate.saturating_mul(8)),
        }
    }
}

impl<const BYTES: bool> Serialize for Rate<BYTES> {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        into.collect_str(self)
    }
}

impl<'de, const BYTES: bool> Deserialize<'de> for Rate<BYTES> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A port of one protocol, written `udp/53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// TCP, else UDP.
    pub tcp: bool,
    /// The number, not 0.
    pub number: u16,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no = || format!("`{text}` is not a port like \"tcp/22\" or \"udp/53\"");
        let (protocol, number) = text.split_once('/').ok_or_else(no)?;
        let tcp = match protocol {
            "tcp" => true,
            "udp" => false,
            _ => return Err(no()),
        };
        match number.parse() {
            Ok(number) if number != 0 => Ok(Self { tcp, number }),
            _ => Err(no()),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            if self.tcp { "tcp" } else { "udp" },
            self.number
        )
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        into.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// `[limits]`: of all sources together, and of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Packets of all sources together. Default: off.
    pub total: CountRate,
    /// Fragments of all sources together. Default: off.
    pub fragments: CountRate,
    /// New connections of one source to the mesh port. Default: 10/s burst 50.
    pub mesh: CountRate,
    /// TCP segments of hardly known sources together, beyond which their sockets are looked up. Default:
    /// 20000/s burst 20000.
    pub strays: CountRate,
    /// Datagrams from amplifiers' ports, beyond which their sockets are looked up. Default: 2000/s burst 4000.
    pub amplified: CountRate,
    /// Limits of each source.
    pub source: SourceLimits,
    /// Limits of ports, shared by everybody who sends there: packets (UDP) or new connections (TCP). Default:
    /// none.
    pub ports: BTreeMap<Port, CountRate>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            total: CountRate::OFF,
            fragments: CountRate::OFF,
            mesh: CountRate::new(10, 50),
            strays: CountRate::new(20_000, 20_000),
            amplified: CountRate::new(2000, 4000),
            source: SourceLimits::default(),
            ports: BTreeMap::new(),
        }
    }
}

/// `[limits.source]`: of each source. All off by default but the last, which drops nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceLimits {
    /// TCP connection attempts.
    pub syn: CountRate,
    /// UDP datagrams.
    pub udp: CountRate,
    /// ICMP and ICMPv6 messages.
    pub icmp: CountRate,
    /// New connections: attempts less the repeated ones.
    pub connections: CountRate,
    /// Packets of any kind.
    pub packets: CountRate,
    /// Bytes.
    pub bytes: ByteRate,
    /// TCP segments that are no attempt, beyond which their connection is looked up. Default: 1000/s burst
    /// 2000.
    pub strays: CountRate,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Self {
            syn: CountRate::OFF,
            udp: CountRate::OFF,
            icmp: CountRate::OFF,
            connections: CountRate::OFF,
            packets: CountRate::OFF,
            bytes: ByteRate::OFF,
            strays: CountRate::new(1000, 2000),
        }
    }
}

/// `[checks]`: what is dropped for what it is. All on by default: none of it is part of any conversation, and
/// in monitor mode it is only counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct ChecksConfig {
    /// Packets from their own destination, or from loopback, multicast or broadcast addresses.
    pub land: bool,
    /// TCP flags that no conversation contains.
    pub tcp_flags: bool,
    /// Fragments that are too small for the transport header, or overlap it.
    pub tiny_fragment: bool,
    /// ICMP echoes to many, and answers to many.
    pub smurf: bool,
    /// Answers of amplifying services that nothing here asked for, beyond `limits.amplified`.
    pub amplification: bool,
    /// Acknowledgements without a connection, beyond `limits.strays` or `limits.source.strays`.
    pub ack_flood: bool,
    /// Resets, likewise.
    pub rst_flood: bool,
    /// FINs, likewise.
    pub fin_flood: bool,
    /// SYN-ACKs, likewise.
    pub syn_ack_flood: bool,
}

impl Default for ChecksConfig {
    fn default() -> Self {
        Self {
            land: true,
            tcp_flags: true,
            tiny_fragment: true,
            smurf: true,
            amplification: true,
            ack_flood: true,
            rst_flood: true,
            fin_flood: true,
            syn_ack_flood: true,
        }
    }
}

/// `[tripwire]`: ports where nothing is, so that whoever sends there is looking for something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TripwireConfig {
    /// TCP ports. Default: none.
    pub tcp: Vec<u16>,
    /// UDP ports. Default: none.
    pub udp: Vec<u16>,
}

impl LimitsConfig {
    pub(super) fn check(&self, check: &mut Checker) {
        for key in ["total", "fragments", "mesh", "strays", "amplified"] {
            check.text(key, COUNT);
        }
        check.section("source", |check| {
            for key in ["syn", "udp", "icmp", "connections", "packets"] {
                check.text(key, COUNT);
            }
            check.text("bytes", VOLUME);
            check.text("strays", COUNT);
        });
        check.table("ports", self.ports.len(), MAX_PORT_LIMITS, COUNT);
    }
}

impl ChecksConfig {
    pub(super) fn check(check: &mut Checker) {
        for key in [
            "land",
            "tcp_flags",
            "tiny_fragment",
            "smurf",
            "amplification",
            "ack_flood",
            "rst_flood",
            "fin_flood",
            "syn_ack_flood",
        ] {
            check.flag(key);
        }
    }

    /// [`Reason::bit`]s of what is on.
    fn bits(&self) -> u64 {
        [
            (self.land, Reason::Land),
            (self.tcp_flags, Reason::TcpFlags),
            (self.tiny_fragment, Reason::TinyFragment),
            (self.smurf, Reason::Smurf),
            (self.amplification, Reason::Amplification),
            (self.ack_flood, Reason::AckFlood),
            (self.rst_flood, Reason::RstFlood),
            (self.fin_flood, Reason::FinFlood),
            (self.syn_ack_flood, Reason::SynAckFlood),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |bits, (_, reason)| bits | reason.bit())
    }
}

impl TripwireConfig {
    pub(super) fn check(&self, check: &mut Checker) {
        check.port_numbers("tcp", &self.tcp, MAX_TRIPWIRES);
        check.port_numbers("udp", &self.udp, MAX_TRIPWIRES);
    }
}

impl super::Config {
    /// What the kernel drops besides blocks by this configuration.
    ///
    /// `forwards` says that packets without a socket here may be another machine's.
    pub fn protection(&self, forwards: bool) -> Protection {
        let LimitsConfig {
            total,
            fragments,
            mesh,
            strays,
            amplified,
            source,
            ports,
        } = &self.limits;
        let mut source_limits = [Limit::NONE; SourceLimit::COUNT];
        let mut checks = self.checks.bits();
        let of_source = [
            (SourceLimit::Syn, source.syn.limit(), Reason::SynFlood),
            (SourceLimit::Udp, source.udp.limit(), Reason::UdpFlood),
            (SourceLimit::Icmp, source.icmp.limit(), Reason::IcmpFlood),
            (
                SourceLimit::Connections,
                source.connections.limit(),
                Reason::ConnectionLimit,
            ),
            (
                SourceLimit::Packets,
                source.packets.limit(),
                Reason::PacketLimit,
            ),
            (SourceLimit::Bytes, source.bytes.limit(), Reason::ByteLimit),
        ];
        let mut features = 0;
        for (kind, limit, reason) in of_source {
            if limit.cost_ns != 0 {
                features |= features::SOURCE_LIMITS;
                checks |= reason.bit();
                if let Some(slot) = source_limits.get_mut(kind as usize) {
                    *slot = limit;
                }
            }
        }
        for (set, reason) in [
            (total.is_set(), Reason::TotalLimit),
            (fragments.is_set(), Reason::FragmentFlood),
            (mesh.is_set(), Reason::MeshLimit),
            (!ports.is_empty(), Reason::PortLimit),
        ] {
            if set {
                checks |= reason.bit();
            }
        }
        if !ports.is_empty() || !self.tripwire.tcp.is_empty() || !self.tripwire.udp.is_empty() {
            features |= features::PORTS;
        }
        let behind_accounting = SANITY
            | Reason::FragmentFlood.bit()
            | Reason::Amplification.bit()
            | Reason::TotalLimit.bit();
        if checks & behind_accounting != 0 || features & features::PORTS != 0 {
            features |= features::ATTACKS;
        }
        if features & features::PORTS != 0 || total.is_set() {
            features |= features::ATTACKS_ALL;
        }
        if forwards {
            features |= features::FORWARDS;
            checks &= !(STRAYS | Reason::Amplification.bit());
        }
        Protection {
            checks,
            source_limits,
            mesh_limit: mesh.limit(),
            fragment_limit: fragments.limit(),
            total_limit: total.limit(),
            stray_limit: source.strays.limit(),
            strays_limit: strays.limit(),
            amplified_limit: amplified.limit(),
            features,
        }
    }

    /// What is special about ports by this configuration; `mesh` is the port that the mesh listens on.
    pub fn port_rules(&self, mesh: u16) -> BTreeMap<u16, PortRule> {
        let mut rules: BTreeMap<u16, PortRule> = BTreeMap::new();
        let mut flag = |number: u16, flag: u16| rules.entry(number).or_default().flags |= flag;
        flag(mesh, port::MESH);
        for number in &self.tripwire.tcp {
            flag(*number, port::TRIPWIRE_TCP);
        }
        for number in &self.tripwire.udp {
            flag(*number, port::TRIPWIRE_UDP);
        }
        for (Port { tcp, number }, rate) in &self.limits.ports {
            if !rate.is_set() {
                continue;
            }
            let rule = rules.entry(*number).or_default();
            if *tcp {
                rule.flags |= port::LIMIT_TCP;
                rule.tcp = Some(rate.limit());
            } else {
                rule.flags |= port::LIMIT_UDP;
                rule.udp = Some(rate.limit());
            }
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn limits_are_read_and_written() {
        for (text, rate, burst) in [
            ("2000/s", 2000, 2000),
            ("2k/s burst 4000", 2000, 4000),
            ("1 M/s burst 10", 1_000_000, 10),
            ("off", 0, 0),
        ] {
            let read: CountRate = text.parse().unwrap();
            assert_eq!(read, CountRate { rate, burst }, "{text}");
            assert_eq!(read.to_string().parse::<CountRate>().unwrap(), read);
        }
        let bytes: ByteRate = "100 Mbit/s burst 5 MB".parse().unwrap();
        assert_eq!((bytes.rate, bytes.burst), (12_500_000, 5_000_000));
        assert_eq!(bytes.to_string().parse::<ByteRate>().unwrap(), bytes);
        for text in [
            "",
            "/s",
            "2000",
            "0/s",
            "-1/s",
            "2000/s burst 0",
            "2000/s burst",
            "1e3/s",
            "2 T/s",
            "18446744073709551615G/s",
            "10G/s",
            "1/s burst 3601",
            "100 Mbit/s",
        ] {
            assert!(text.parse::<CountRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_costs_what_its_rate_says() {
        let limit = "1000/s burst 50".parse::<CountRate>().unwrap().limit();
        assert_eq!((limit.cost_ns, limit.burst_ns), (1_000_000, 50_000_000));
        // 100 Mbit/s are 12.5 MB/s, 195313 units of 64 bytes.
        let limit = "100 Mbit/s".parse::<ByteRate>().unwrap().limit();
        assert_eq!(limit.cost_ns, 5119);
        assert_eq!(CountRate::OFF.limit(), Limit::NONE);
    }

    #[test]
    fn what_is_written_is_what_the_kernel_is_told() {
        let text = "[limits]\ntotal = \"1M/s\"\n[limits.source]\nsyn = \"2000/s\"\n[limits.ports]\n\"udp/53\" = \"5000/s\"\n\
                    \"tcp/53\" = \"100/s\"\n[checks]\nland = false\n[tripwire]\ntcp = [23, 2323]\n";
        let config = Config::parse(text, "x").unwrap();
        let told = config.protection(false);
        assert_ne!(told.checks & Reason::SynFlood.bit(), 0);
        assert_eq!(told.checks & Reason::UdpFlood.bit(), 0, "no such limit");
        assert_eq!(told.checks & Reason::Land.bit(), 0, "switched off");
        assert_ne!(told.checks & Reason::TotalLimit.bit(), 0);
        assert_ne!(told.features & features::SOURCE_LIMITS, 0);
        let rules = config.port_rules(4747);
        assert_eq!(rules[&4747].flags, port::MESH);
        assert_eq!(rules[&23].flags, port::TRIPWIRE_TCP);
        assert_eq!(rules[&53].flags, port::LIMIT_TCP | port::LIMIT_UDP);
        assert_ne!(rules[&53].tcp, rules[&53].udp);
        // Where packets are forwarded, a missing socket says nothing.
        let told = config.protection(true);
        assert_eq!(told.checks & (STRAYS | Reason::Amplification.bit()), 0);
    }

    #[test]
    fn nothing_that_an_honest_source_reaches_is_limited_by_default() {
        let told = Config::default().protection(false);
        assert_eq!(told.source_limits, [Limit::NONE; SourceLimit::COUNT]);
        assert_eq!(told.total_limit, Limit::NONE);
        assert_eq!(told.features, features::ATTACKS);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_its_remedy() {
        let error = |text: &str| Config::parse(text, "f").unwrap_err().to_string();
        assert_eq!(
            error("[limits.source]\nsyn = \"fast\"\n"),
            "f:2:7: limits.source.syn: `fast` is not a limit\n  2 | syn = \"fast\"\n    |       ^^^^^^\n  \
             remedy: use \"off\", or units a second like \"2000/s\" or \"2000/s burst 4000\""
        );
        assert!(error("[limits.ports]\n\"sctp/9\" = \"1/s\"\n").contains("is not a port like"));
        let wrong = error("[limits.ports]\n\"udp/9\" = \"quick\"\n");
        assert!(
            wrong.starts_with("f:2:11: ") && wrong.contains("remedy: use \"off\""),
            "{wrong}"
        );
        let twice = error("[tripwire]\ntcp = [23, 23]\n");
        assert!(twice.contains("is there twice"), "{twice}");
        assert!(error("[tripwire]\ntcp = [0]\n").contains("is no port"));
    }
}
