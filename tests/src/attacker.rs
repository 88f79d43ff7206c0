//! The kernel program on one end of a wire, an attacker with his own tools in a network of his own on the other.

use std::{
    fs,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use secmesh::{
    config::{AttachMode, Config},
    dataplane::LoadOptions,
};

use crate::kernel::{Kernel, options, tool};

/// A network of its own, at the other end of a wire; ends when dropped.
#[derive(Debug)]
pub struct Attacker(Child);

impl Attacker {
    /// Makes it, with nothing in it.
    ///
    /// # Errors
    /// When it does not come up within two seconds.
    pub fn start() -> Result<Self> {
        let attacker = Self(
            Command::new("unshare")
                .args(["-n", "sleep", "180"])
                .spawn()?,
        );
        let ours = fs::read_link("/proc/thread-self/ns/net")?;
        let theirs = format!("/proc/{}/ns/net", attacker.0.id());
        for _ in 0..200 {
            if fs::read_link(&theirs)? != ours {
                return Ok(attacker);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("unshare did not make a network")
    }

    /// Runs a tool there, words separated by single spaces; whether it got answers is not its business here.
    ///
    /// # Errors
    /// When there is no such tool.
    pub fn run(&self, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split(' ').collect();
        self.run_words(&words)
    }

    /// Like [`Attacker::run`].
    ///
    /// # Errors
    /// When there is no such tool.
    pub fn run_words(&self, words: &[&str]) -> Result<String> {
        let id = self.0.id().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &id, "-n"])
            .args(words)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() != Some(127), "{words:?}: {errors}");
        Ok(text + &errors)
    }

    /// Its network, for [`setns`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn network(&self) -> Result<fs::File> {
        Ok(fs::File::open(format!("/proc/{}/ns/net", self.0.id()))?)
    }

    /// Does something in its network.
    ///
    /// # Errors
    /// What `act` fails with, or that it panicked.
    pub fn there<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let network = self.network()?;
        std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            act()
        })
        .join()
        .map_err(|_panic| anyhow::anyhow!("the thread panicked"))?
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The link address of this end of the wire.
pub const MAC: &str = "02:00:00:00:77:01";
/// This end of the wire.
pub const HERE: &str = "192.0.2.1";
/// The attacker's end.
pub const THERE: &str = "192.0.2.2";
/// This end of the wire, IPv6.
pub const HERE6: &str = "fd00:77::1";
/// The attacker's end, IPv6.
pub const THERE6: &str = "fd00:77::2";

/// The program, with the protection that a configuration asks for, on `v0`, and an attacker at the other
/// end, `v1`.
///
/// # Errors
/// When the configuration is wrong or the kernel refuses.
pub fn wired(configuration: &str) -> Result<(Kernel, Attacker)> {
    let attacker = Attacker::start()?;
    let id = attacker.0.id().to_string();
    for command in [
        "ip link set lo up",
        &format!("ip link add v0 address {MAC} type veth peer name v1"),
        &format!("ip link set v1 netns {id}"),
        "ip addr add 192.0.2.1/24 dev v0",
        "ip -6 addr add fd00:77::1/64 dev v0 nodad",
        "ip link set v0 up",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let [program, arguments @ ..] = words.as_slice() else {
            continue;
        };
        tool(program, arguments)?;
    }
    for command in [
        "ip link set lo up",
        "ip addr add 192.0.2.2/24 brd 192.0.2.255 dev v1",
        "ip -6 addr add fd00:77::2/64 dev v1 nodad",
        "ip link set v1 up",
    ] {
        attacker.run(command)?;
    }
    let config = Config::parse(configuration, "test")?;
    let mut kernel = Kernel::load(&LoadOptions {
        protection: config.protection(false),
        ..options()
    })?;
    kernel
        .dataplane
        .take_ports()?
        .replace(&config.port_rules(4747))?;
    kernel.dataplane.attach("v0", AttachMode::Generic)?;
    Ok((kernel, attacker))
}
