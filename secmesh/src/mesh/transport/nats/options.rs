//! How to reach the NATS servers: settings, secrets and certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::ConnectOptions;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::mesh::transport::{NatsConfig, tls};
use crate::state::{StateError, read_capped, read_secret};

/// Messages that may wait in the client, in either direction; ours wait in the peers' queues.
const WAITING: usize = 256;
const CONNECT: Duration = Duration::from_secs(3);
const REQUEST: Duration = Duration::from_secs(3);
/// A connection that is up but dead is noticed after two of these.
const PING: Duration = Duration::from_secs(5);
const PAUSE_MS: (u64, u64) = (100, 5_000);
/// Largest file with certificates, in bytes.
const MAX_PEM: u64 = 1024 * 1024;

/// Why the bus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// A file with a secret or a certificate cannot be read.
    #[error("[mesh.nats] {key}: {source}")]
    File {
        /// The setting that names it.
        key: &'static str,
        /// What is wrong with it.
        source: StateError,
    },
    /// A file does not hold what it should.
    #[error("[mesh.nats] {key} = {path:?}: {what}")]
    Content {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A server's address is none.
    #[error(
        "[mesh.nats] servers: {0}; write them like \"nats://192.0.2.1:4222\" or \"tls://nats.example:4222\""
    )]
    Server(#[from] io::Error),
    /// The TLS library refuses its configuration.
    #[error("cannot set up TLS for NATS: {0}")]
    Tls(#[from] rustls::Error),
}

fn secret(key: &'static str, path: &Path) -> Result<String, NatsError> {
    let bytes = read_secret(path).map_err(|source| NatsError::File { key, source })?;
    let text = String::from_utf8(bytes).map_err(|_| content(key, path, "it is not text"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains(['\r', '\n']) {
        return Err(content(key, path, "one line with the secret is expected"));
    }
    Ok(text.to_owned())
}

fn content(key: &'static str, path: &Path, what: &str) -> NatsError {
    NatsError::Content {
        key,
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, NatsError> {
    let pem = read_capped(path, MAX_PEM).map_err(|source| NatsError::File { key, source })?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| content(key, path, &error.to_string()))?;
    if all.is_empty() {
        return Err(content(key, path, "it holds no certificate (PEM)"));
    }
    Ok(all)
}

/// TLS to the server: its certificate has to follow from `ca_file`; nothing else is trusted.
fn client_tls(config: &NatsConfig, ca_file: &Path) -> Result<ClientConfig, NatsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca_file", ca_file)? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots);
    let (Some(cert_file), Some(key_file)) = (&config.cert_file, &config.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("cert_file", cert_file)?;
    let pem = read_secret(key_file).map_err(|source| NatsError::File {
        key: "key_file",
        source,
    })?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| content("key_file", key_file, &error.to_string()))?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

/// Whether a secret would go to a server in the clear, or could be made to, and not only within this host.
fn is_exposed(config: &NatsConfig) -> bool {
    let secret = config.password_file.is_some() || config.token_file.is_some();
    let here = |server: &String| {
        let address = server.parse::<async_nats::ServerAddr>();
        address.is_ok_and(|address| {
            let host = address.host();
            let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
        })
    };
    secret && config.ca_file.is_none() && !config.servers.iter().all(here)
}

/// The options of the client, without its callbacks. Reads the files.
pub(super) fn connect_options(config: &NatsConfig) -> Result<ConnectOptions, NatsError> {
    let mut options = ConnectOptions::new()
        .name("secmesh")
        .retry_on_initial_connect()
        .connection_timeout(CONNECT)
        .request_timeout(Some(REQUEST))
        .ping_interval(PING)
        .client_capacity(WAITING)
        .subscription_capacity(WAITING)
        .ignore_discovered_servers()
        .reconnect_delay_callback(|attempts| {
            let factor = 1u64 << attempts.min(10);
            let longest = PAUSE_MS.0.saturating_mul(factor).min(PAUSE_MS.1);
            // Between a half and the whole, so that nodes do not come back all at once.
            let jitter = crate::entropy::below(longest / 2 + 1).unwrap_or(0);
            Duration::from_millis(longest / 2 + jitter)
        });
    if is_exposed(config) {
        tracing::warn!(
            "[mesh.nats] without ca_file the password or token goes to the server unencrypted, for everybody on the way to read; set ca_file and use TLS"
        );
    }
    if let (Some(user), Some(file)) = (&config.user, &config.password_file) {
        options = options.user_and_password(user.clone(), secret("password_file", file)?);
    }
    if let Some(file) = &config.token_file {
        options = options.token(secret("token_file", file)?);
    }
    if let Some(ca_file) = &config.ca_file {
        let tls = client_tls(config, ca_file)?;
        options = options.require_tls(true).tls_client_config(tls);
    } else {
        // Where a server demands TLS, nothing is trusted and the connection fails, with that in the log.
        let tls = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        options = options.tls_client_config(tls);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_without_tls_is_exposed_unless_it_stays_here() {
        let config = |servers: &[&str], token: bool, ca: bool| NatsConfig {
            servers: servers.iter().map(|&s| s.to_owned()).collect(),
            user: None,
            password_file: None,
            token_file: token.then(|| PathBuf::from("t")),
            ca_file: ca.then(|| PathBuf::from("c")),
            cert_file: None,
            key_file: None,
            replicas: 1,
            max_age: Duration::from_mins(1),
            max_bytes: 1,
        };
        let far = ["nats://192.0.2.1:4222"];
        let here = [
            "nats://127.0.0.1:4222",
            "nats://[::1]:4222",
            "nats://localhost:4222",
        ];
        assert!(is_exposed(&config(&far, true, false)));
        assert!(is_exposed(&config(&[here[0], far[0]], true, false)));
        assert!(!is_exposed(&config(&here, true, false)));
        assert!(!is_exposed(&config(&far, true, true)));
        assert!(!is_exposed(&config(&far, false, false)));
    }
}
