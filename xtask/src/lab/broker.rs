//! A NATS server with `JetStream` for a lab whose nodes talk through it.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::net::{self, Family};
use super::ns;
use crate::clock;

/// Its port, in the namespace of the client.
pub const PORT: u16 = 4222;
/// How long it may take to answer.
const BRING_UP: Duration = Duration::from_secs(10);

/// How a lab's server lets nodes in, where it does not let everybody in.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Lines for the server's configuration.
    pub server: String,
    /// Lines for each node's `[mesh.nats]`; `{node}` stands for the node's name.
    pub nodes: String,
    /// Whether nodes reach it through TLS.
    pub tls: bool,
}

/// A real nats-server, on the client's address; ended when dropped. What it keeps is in the lab's folder.
#[derive(Debug)]
pub struct Broker {
    namespace: String,
    folder: PathBuf,
    access: Access,
    process: Option<Child>,
}

impl Broker {
    /// Starts it in `namespace` and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed or does not answer within ten seconds.
    pub fn start(namespace: String, folder: PathBuf, access: Access) -> anyhow::Result<Self> {
        let mut broker = Self {
            namespace,
            folder,
            access,
            process: None,
        };
        broker.restart()?;
        Ok(broker)
    }

    /// Where nodes reach it.
    pub fn address() -> SocketAddr {
        SocketAddr::new(net::client_address(Family::V4), PORT)
    }

    /// Ends it with SIGKILL: no word to anybody, nothing put in order.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _gone = process.kill();
            let _ended = process.wait();
        }
    }

    /// Ends it with SIGTERM, as whoever restarts the service does, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or has not ended within ten seconds.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        let process = self.process.as_mut().context("nats-server does not run")?;
        let pid = i32::try_from(process.id()).context("a process number")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot end nats-server")?;
        let ended = clock::wait_until(BRING_UP, Duration::from_millis(20), || {
            Ok(process.try_wait()?)
        })?;
        ended.context("nats-server does not end on SIGTERM")?;
        self.process = None;
        Ok(())
    }

    /// Starts it again with other lines in its configuration.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn reconfigure(&mut self, server: String) -> anyhow::Result<()> {
        self.access.server = server;
        self.restart()
    }

    /// Starts it again, with what it had kept.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let address = Self::address();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("nats.log"))
            .context("cannot write the log of nats-server")?;
        let config = self.folder.join("nats.conf");
        std::fs::write(&config, &self.access.server)
            .with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = ns::command(&self.namespace, "nats-server")?;
        let process = command
            .arg("--config")
            .arg(&config)
            .args(["--addr", &address.ip().to_string()])
            .args(["--port", &address.port().to_string()])
            .arg("--jetstream")
            .arg("--store_dir")
            .arg(self.folder.join("nats"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log file")?)
            .stderr(log)
            .spawn()
            .context("cannot start nats-server; `cargo xtask setup` installs it")?;
        self.process = Some(process);
        let answers = clock::wait_until(BRING_UP, Duration::from_millis(50), || {
            if let Some(status) = self.process.as_mut().and_then(|p| p.try_wait().transpose()) {
                bail!("nats-server ended ({})", status?);
            }
            Ok(ns::within(&self.namespace, move || {
                // It says INFO as soon as somebody connects.
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                let mut first = [0; 4];
                stream.read_exact(&mut first)?;
                Ok(first)
            })
            .ok()
            .filter(|first| first == b"INFO"))
        })?;
        answers
            .map(|_| ())
            .context("nats-server does not answer; its log is nats.log in the lab's folder")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
