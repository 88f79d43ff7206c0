//! `[mesh]`: the connection to the other nodes, and what carries it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Checker;
use super::values::{self, CarrierName};
use crate::mesh::engine::Automatic;
use crate::mesh::transport::{Carrier, NatsConfig};

/// Most NATS servers that can be named.
pub const MAX_SERVERS: usize = 16;

/// `[mesh]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Where other nodes are listened for. Default `[::]:4747`, which is IPv4 too. Where NATS carries
    /// messages, for those who join.
    pub listen: SocketAddr,
    /// The address that other nodes are told to use, where it is not the one they see. Default:
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// For what this node votes to cut another node off without being told. Default `sightings`.
    pub quarantine: Automatic,
    /// What takes messages from node to node; the same on all nodes. Default: grpc, direct connections.
    pub carrier: CarrierName,
    /// The servers, where that is nats.
    pub nats: NatsSettings,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 4747),
            advertise: None,
            quarantine: Automatic::Sightings,
            carrier: CarrierName::Grpc,
            nats: NatsSettings::default(),
        }
    }
}

/// `[mesh.nats]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// Addresses of the servers of one cluster, at most [`MAX_SERVERS`]. Default: none.
    pub servers: Vec<String>,
    /// User, with `password_file`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with the user's password, one line; mode 0600 or less. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// File with a token, one line; mode 0600 or less. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) that the servers' ones have to follow from; with it TLS is required. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Certificate (PEM) that is shown to the servers, with `key_file`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM); mode 0600 or less. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Copies of the mesh's stream in the cluster: 1 to 5. Default 1. This and what follows is for who makes
    /// the stream, the first node that finds none.
    #[serde(deserialize_with = "values::count")]
    pub replicas: u32,
    /// How long the stream keeps a message: 30 s to 1 h. Default 1 min.
    #[serde(with = "values::duration")]
    pub max_age: Duration,
    /// How much the stream keeps, in MiB: 1 to 65,536. Default 64.
    #[serde(deserialize_with = "values::count")]
    pub max_mib: u32,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            user: None,
            password_file: None,
            token_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            replicas: 1,
            max_age: Duration::from_mins(1),
            max_mib: 64,
        }
    }
}

impl MeshConfig {
    /// All keys set, for the list of keys that are known.
    pub(super) fn all_keys() -> Self {
        let mut all = Self::default();
        all.advertise = Some(all.listen);
        let nats = &mut all.nats;
        nats.user = Some(String::new());
        for file in [
            &mut nats.password_file,
            &mut nats.token_file,
            &mut nats.ca_file,
            &mut nats.cert_file,
            &mut nats.key_file,
        ] {
            *file = Some(PathBuf::new());
        }
        all
    }

    pub(super) fn check(&self, check: &mut Checker) {
        check.socket("listen", Some(self.listen), false);
        check.socket("advertise", self.advertise, true);
        check.choice("quarantine", Automatic::NAMES);
        check.choice("carrier", CarrierName::NAMES);
        if self.carrier == CarrierName::Nats && self.nats.servers.is_empty() {
            check.needs(
                "carrier",
                "needs servers",
                "name them: servers = [\"nats://192.0.2.1:4222\"] under [mesh.nats]",
            );
        }
        check.section("nats", |check| self.nats.check(check));
    }

    /// The same for the transport.
    pub fn carrier(&self) -> Carrier {
        let nats = &self.nats;
        match self.carrier {
            CarrierName::Grpc => Carrier::Grpc,
            CarrierName::Nats => Carrier::Nats(NatsConfig {
                servers: nats.servers.clone(),
                user: nats.user.clone(),
                password_file: nats.password_file.clone(),
                token_file: nats.token_file.clone(),
                ca_file: nats.ca_file.clone(),
                cert_file: nats.cert_file.clone(),
                key_file: nats.key_file.clone(),
                replicas: usize::try_from(nats.replicas).unwrap_or(1),
                max_age: nats.max_age,
                max_bytes: u64::from(nats.max_mib) << 20,
            }),
        }
    }
}

impl NatsSettings {
    fn check(&self, check: &mut Checker) {
        check.servers("servers", &self.servers, MAX_SERVERS);
        let tls = self
            .servers
            .iter()
            .any(|server| server.starts_with("tls://"));
        if tls && self.ca_file.is_none() {
            check.needs(
                "servers",
                "asks for TLS without saying which certificates to trust",
                "set ca_file = \"/etc/secmesh/nats-ca.pem\"",
            );
        }
        check.text("user", "a user's name, with password_file");
        let files = [
            ("password_file", &self.password_file),
            ("token_file", &self.token_file),
            ("ca_file", &self.ca_file),
            ("cert_file", &self.cert_file),
            ("key_file", &self.key_file),
        ];
        for (key, file) in files {
            match file {
                Some(file) => check.path(key, file, None),
                None => check.text(key, "an absolute path"),
            }
        }
        check.together(
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
        );
        check.together(
            ("cert_file", self.cert_file.is_some()),
            ("key_file", self.key_file.is_some()),
        );
        if self.cert_file.is_some() && self.ca_file.is_none() {
            check.needs(
                "cert_file",
                "is for TLS, which needs ca_file",
                "set ca_file = \"/etc/secmesh/nats-ca.pem\"",
            );
        }
        if self.token_file.is_some() && self.user.is_some() {
            check.needs("token_file", "stands beside user", "remove one of them");
        }
        check.count("replicas", self.replicas, 1..=5);
        check.duration(
            "max_age",
            self.max_age,
            Duration::from_secs(30)..=Duration::from_hours(1),
        );
        check.count("max_mib", self.max_mib, 1..=65_536);
    }
}
