//! `secmesh.toml`: every setting with its default, its range, and an error that says where and how
//! to mend it.
//!
//! Every key may be left out; an unknown key, a wrong type or a value out of range is refused. The
//! types are plain values: the line numbers of errors come from the document itself (`document`),
//! the allowed values from one description of each field (`check`) that the errors, the tests and
//! the commented example in `docs/secmesh.example.toml` share.

mod check;
mod cookies;
mod detect;
mod document;
mod error;
mod flows;
mod ledger;
mod limits;
#[cfg(test)]
mod tests;
mod trust;
mod values;

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::addr::Prefix;
use crate::mesh::engine::Automatic;
use check::Checker;
pub use cookies::{CookiesConfig, MAX_COOKIE_PORTS};
pub use detect::{DetectConfig, FloodConfig, ScanConfig};
use document::Document;
pub use error::{ConfigError, Problem};
pub use flows::{FlowsConfig, HostConfig};
pub use ledger::LedgerConfig;
pub use limits::{
    ByteRate, ChecksConfig, CountRate, LimitsConfig, Port, SourceLimits, TripwireConfig,
};
pub use trust::TrustConfig;
pub use values::{AttachMode, CookieMode, KernelLog, Mode};

/// Largest configuration file accepted, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;
/// Most interfaces that can be named.
pub const MAX_INTERFACES: usize = 64;
/// What `max_blocks` may be.
pub const MAX_BLOCKS: RangeInclusive<u32> = 1024..=4_194_304;
/// What `max_prefixes` may be.
pub const MAX_PREFIXES: RangeInclusive<u32> = 16..=1_048_576;
/// What `max_list_addresses` may be.
pub const MAX_LIST_ADDRESSES: RangeInclusive<u32> = 16..=4_194_304;
/// What `max_list_prefixes` may be.
pub const MAX_LIST_PREFIXES: RangeInclusive<u32> = 16..=1_048_576;
/// What `event_budget` may be, events per second and CPU.
pub const EVENT_BUDGET: RangeInclusive<u32> = 100..=1_000_000;
/// Most configured allowlist entries.
pub const MAX_ALLOW: usize = 4096;
/// Longest block that a node may set on its own right.
pub const MAX_OWN_BLOCK: Duration = Duration::from_mins(15);

/// All settings of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where this node keeps its things.
    pub node: NodeConfig,
    /// The kernel program.
    pub dataplane: DataplaneConfig,
    /// SYN cookies for this host's listeners.
    pub cookies: CookiesConfig,
    /// The connection to the other nodes.
    pub mesh: MeshConfig,
    /// What is never blocked.
    pub allow: AllowConfig,
    /// What counts as an attack.
    pub detect: DetectConfig,
    /// What this node does about it.
    pub respond: RespondConfig,
    /// What it tells a Prometheus.
    pub metrics: MetricsConfig,
    /// The record.
    pub ledger: LedgerConfig,
    /// Flow records.
    pub flows: FlowsConfig,
    /// What is watched of this host beside its traffic.
    pub host: HostConfig,
    /// What is dropped for its number.
    pub limits: LimitsConfig,
    /// What is dropped for what it is.
    pub checks: ChecksConfig,
    /// Ports that name whoever sends to them.
    pub tripwire: TripwireConfig,
    /// Evidence on the nodes of the mesh.
    pub trust: TrustConfig,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Directory of keys, roster and ledger; absolute. Default `/var/lib/secmesh`.
    pub state_dir: PathBuf,
    /// The socket that the commands talk to; absolute, at most 107 bytes (a limit of the kernel).
    /// Default `/run/secmesh/secmesh.sock`.
    pub socket: PathBuf,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/secmesh".into(),
            socket: "/run/secmesh/secmesh.sock".into(),
        }
    }
}

/// `[dataplane]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataplaneConfig {
    /// Interfaces to protect, at most [`MAX_INTERFACES`]. Empty (the default) means those that a
    /// default route goes out of.
    pub interfaces: Vec<String>,
    /// Whether packets are dropped or only counted. Default: monitor.
    pub mode: Mode,
    /// How the program is attached. Default: auto.
    pub attach: AttachMode,
    /// Directory on a bpf file system for what outlives the agent; absolute. Default
    /// `/sys/fs/bpf/secmesh`.
    pub pin_dir: PathBuf,
    /// Room for blocked single addresses, per address family: 1024 to 4194304. Default 131072.
    #[serde(deserialize_with = "values::count")]
    pub max_blocks: u32,
    /// Room for blocked networks: 16 to 1048576. Default 16384.
    #[serde(deserialize_with = "values::count")]
    pub max_prefixes: u32,
    /// Room for addresses of imported lists, per address family: 16 to 4194304. Default 131072.
    #[serde(deserialize_with = "values::count")]
    pub max_list_addresses: u32,
    /// Room for prefixes of imported lists, per address family: 16 to 1048576. Default 65536.
    #[serde(deserialize_with = "values::count")]
    pub max_list_prefixes: u32,
    /// Events per second that each CPU may report: 100 to 1000000. Default 20000. More are counted
    /// but not reported one by one.
    #[serde(deserialize_with = "values::count")]
    pub event_budget: u32,
    /// Whether stopping the agent also stops enforcement. Default: no, blocks stay in force.
    pub detach_on_exit: bool,
    /// The kernel program's own log, for debugging. Default: off, and then free of cost.
    pub kernel_log: KernelLog,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            mode: Mode::Monitor,
            attach: AttachMode::Auto,
            pin_dir: "/sys/fs/bpf/secmesh".into(),
            max_blocks: 131_072,
            max_prefixes: 16_384,
            max_list_addresses: 131_072,
            max_list_prefixes: 65_536,
            event_budget: 20_000,
            detach_on_exit: false,
            kernel_log: KernelLog::Off,
        }
    }
}

/// `[mesh]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Where other nodes are listened for. Default `[::]:4747`, which is IPv4 too.
    pub listen: SocketAddr,
    /// The address that other nodes are told to use, where it is not the one they see. Default:
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// For what this node votes to cut another node off without being told. Default `sightings`.
    pub quarantine: Automatic,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 4747),
            advertise: None,
            quarantine: Automatic::Sightings,
        }
    }
}

/// `[allow]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowConfig {
    /// Addresses and networks that are never blocked, at most [`MAX_ALLOW`]. Default: none.
    pub addresses: Vec<Prefix>,
    /// Whether the built-in allowlist (loopback, own addresses, gateways, resolvers, mesh peers,
    /// SSH peers) is in force too. Default: yes.
    pub builtin: bool,
}

impl Default for AllowConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            builtin: true,
        }
    }
}

/// `[respond]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RespondConfig {
    /// How long a block lasts that this node sets on its own right, before others agree: 1 s to
    /// [`MAX_OWN_BLOCK`]. Default 15 min.
    #[serde(with = "values::duration")]
    pub own_block: Duration,
    /// How often the kernel's block maps are compared with what should be in them: 1 s to 1 h. Default
    /// 1 min.
    #[serde(with = "values::duration")]
    pub reconcile: Duration,
}

impl Default for RespondConfig {
    fn default() -> Self {
        Self {
            own_block: MAX_OWN_BLOCK,
            reconcile: Duration::from_mins(1),
        }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where `GET /metrics` is answered, without a password and without encryption; `""` is nowhere.
    /// Default `127.0.0.1:9477`.
    #[serde(with = "values::socket_or_off")]
    pub listen: Option<SocketAddr>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477)),
        }
    }
}

impl Config {
    /// Reads a configuration file. Where there is none, the defaults apply, unless `must_exist`
    /// (somebody named the file).
    ///
    /// # Errors
    /// When the file cannot be read, is larger than [`MAX_FILE`], or as [`Config::parse`].
    pub fn load(path: &Path, must_exist: bool) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let opened = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {
                return Ok(Self::default());
            }
            opened => opened,
        };
        let mut bytes = Vec::new();
        // One byte more than allowed, to tell a full file from one that is too large.
        if let Err(source) = opened.and_then(|opened| {
            opened
                .take(MAX_FILE.saturating_add(1))
                .read_to_end(&mut bytes)
        }) {
            return Err(ConfigError::Read { file, source });
        }
        if too_large(&bytes) {
            return Err(ConfigError::TooLarge { file });
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &file),
            Err(error) => {
                let text = String::from_utf8_lossy(&bytes);
                // Up to here the lossy text is the same, so the offset points at the same place.
                let at = error.valid_up_to();
                Err(ConfigError::Invalid(vec![Problem::new(
                    &text,
                    &file,
                    at..at,
                    None,
                    "the file is not UTF-8 text here".to_owned(),
                    "save the file as UTF-8".to_owned(),
                )]))
            }
        }
    }

    /// Reads a configuration from its text; `file` is what errors call it.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with one problem for broken syntax or a wrong type, with all of them
    /// for unknown keys, and with all of them for values out of range.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        if too_large(text.as_bytes()) {
            return Err(ConfigError::TooLarge {
                file: file.to_owned(),
            });
        }
        let document =
            Document::parse(text, file).map_err(|problem| ConfigError::Invalid(vec![*problem]))?;
        let unknown = document.unknown_keys(&Self::known_keys());
        if !unknown.is_empty() {
            return Err(ConfigError::Invalid(unknown));
        }
        let config: Self = toml::from_str(text).map_err(|error| {
            ConfigError::Invalid(vec![
                document.type_problem(&error, &Self::default().described()),
            ])
        })?;
        let findings = config.described().findings;
        if findings.is_empty() {
            Ok(config)
        } else {
            let mut problems: Vec<Problem> = findings
                .iter()
                .map(|finding| document.problem(finding))
                .collect();
            problems.sort_by_key(|problem| (problem.line, problem.column));
            Err(ConfigError::Invalid(problems))
        }
    }

    /// Every key there is, as a document that sets them all.
    fn known_keys() -> toml::Table {
        let mut all = Self::default();
        all.mesh.advertise = Some(all.mesh.listen);
        // Serialising plain values cannot fail; if it did, `deny_unknown_fields` still refuses.
        toml::Table::try_from(all).unwrap_or_default()
    }

    /// Describes every field and notes which values are not allowed.
    fn described(&self) -> Checker {
        let mut check = Checker::default();
        check.section("node", |check| self.node.check(check));
        check.section("dataplane", |check| self.dataplane.check(check));
        check.section("cookies", |check| self.cookies.check(check));
        check.section("mesh", |check| self.mesh.check(check));
        check.section("allow", |check| self.allow.check(check));
        check.section("detect", |check| self.detect.check(check));
        check.section("respond", |check| self.respond.check(check));
        check.section("metrics", |check| self.metrics.check(check));
        check.section("ledger", |check| self.ledger.check(check));
        check.section("flows", |check| self.flows.check(check));
        check.section("host", |check| self.host.check(check));
        check.section("limits", |check| self.limits.check(check));
        check.section("checks", ChecksConfig::check);
        check.section("tripwire", |check| self.tripwire.check(check));
        check.section("trust", |check| self.trust.check(check));
        check
    }
}

impl NodeConfig {
    fn check(&self, check: &mut Checker) {
        check.path("state_dir", &self.state_dir, None);
        // sun_path holds 108 bytes with its terminator, include/uapi/linux/un.h.
        check.path("socket", &self.socket, Some(107));
    }
}

impl DataplaneConfig {
    fn check(&self, check: &mut Checker) {
        check.interfaces("interfaces", &self.interfaces, MAX_INTERFACES);
        check.choice("mode", Mode::NAMES);
        check.choice("attach", AttachMode::NAMES);
        check.path("pin_dir", &self.pin_dir, None);
        check.count("max_blocks", self.max_blocks, MAX_BLOCKS);
        check.count("max_prefixes", self.max_prefixes, MAX_PREFIXES);
        check.count(
            "max_list_addresses",
            self.max_list_addresses,
            MAX_LIST_ADDRESSES,
        );
        check.count(
            "max_list_prefixes",
            self.max_list_prefixes,
            MAX_LIST_PREFIXES,
        );
        check.count("event_budget", self.event_budget, EVENT_BUDGET);
        check.flag("detach_on_exit");
        check.choice("kernel_log", KernelLog::NAMES);
    }
}

impl MeshConfig {
    fn check(&self, check: &mut Checker) {
        check.socket("listen", Some(self.listen), false);
        check.socket("advertise", self.advertise, true);
        check.choice("quarantine", Automatic::NAMES);
    }
}

impl AllowConfig {
    fn check(&self, check: &mut Checker) {
        check.prefixes("addresses", &self.addresses, MAX_ALLOW);
        check.flag("builtin");
    }
}

impl RespondConfig {
    fn check(&self, check: &mut Checker) {
        check.duration(
            "own_block",
            self.own_block,
            Duration::from_secs(1)..=MAX_OWN_BLOCK,
        );
        check.duration(
            "reconcile",
            self.reconcile,
            Duration::from_secs(1)..=Duration::from_hours(1),
        );
    }
}

impl MetricsConfig {
    fn check(&self, check: &mut Checker) {
        check.socket_or_off("listen", self.listen);
    }
}

fn too_large(bytes: &[u8]) -> bool {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE
}
