//! The attackers' own tools: hping3, trafgen and nmap, bounded in count and time.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::net::INTERFACE;
use super::{echo, ns};

/// An attack that the lab can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP connection requests that are never completed, to an open port.
    SynFlood,
    /// UDP datagrams to a closed port.
    UdpFlood,
    /// Echo requests.
    IcmpFlood,
    /// A half-open scan over all ports.
    PortScan,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::SynFlood,
        Self::UdpFlood,
        Self::IcmpFlood,
        Self::PortScan,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SynFlood => "syn-flood",
            Self::UdpFlood => "udp-flood",
            Self::IcmpFlood => "icmp-flood",
            Self::PortScan => "port-scan",
        }
    }

    /// What the agents call its class.
    pub fn class(self) -> &'static str {
        match self {
            Self::SynFlood => "syn_flood",
            Self::UdpFlood => "udp_flood",
            Self::IcmpFlood => "icmp_flood",
            Self::PortScan => "port_scan",
        }
    }
}

/// A victim, as the tools need to know it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address: trafgen builds whole frames.
    pub link_address: String,
}

/// A port on which nobody listens.
const CLOSED_PORT: u16 = 9;
/// What trafgen itself needs between two packets, microseconds, on top of the gap that it is told.
const TRAFGEN_OVERHEAD_US: u64 = 60;

/// Running attack tools; ended when dropped.
#[derive(Debug, Default)]
pub struct Generators {
    children: Vec<Child>,
}

impl Generators {
    /// Starts an attack from `source`, with `rate` packets per second over all targets.
    ///
    /// Each tool also ends by itself: after as many packets as fit into `seconds`, and some.
    ///
    /// # Errors
    /// When a tool is not there.
    pub fn start(attack: &Attack<'_>) -> anyhow::Result<Self> {
        let mut running = Self::default();
        for command in attack.commands()? {
            let mut command = command;
            let log = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(attack.log)
                .with_context(|| format!("cannot write {}", attack.log.display()))?;
            let child = command
                .stdin(Stdio::null())
                // hping3 writes a line for every answer.
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .with_context(|| {
                    format!(
                        "cannot start {}; `cargo xtask setup` installs it",
                        command.get_program().display()
                    )
                })?;
            running.children.push(child);
        }
        Ok(running)
    }

    /// Whether all of the tools have ended by themselves.
    pub fn have_ended(&mut self) -> bool {
        self.children
            .iter_mut()
            .all(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Ends them.
    pub fn stop(&mut self) {
        for child in &mut self.children {
            // trafgen forks; its children are in its process group, which is its own.
            if let Ok(group) = i32::try_from(child.id()) {
                let _gone = nix::sys::signal::killpg(
                    nix::unistd::Pid::from_raw(group),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            let _ended = child.wait();
        }
        self.children.clear();
    }
}

impl Drop for Generators {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An attack, planned.
#[derive(Debug)]
pub struct Attack<'a> {
    /// Which.
    pub kind: Kind,
    /// The attacker's namespace.
    pub namespace: &'a str,
    /// Which of its addresses it uses.
    pub source: IpAddr,
    /// The attacker's link-layer address.
    pub source_link: &'a str,
    /// Whom it hits.
    pub targets: &'a [Target],
    /// Packets per second, over all targets.
    pub rate: u32,
    /// How long, at most.
    pub seconds: u32,
    /// Folder for a tool's input.
    pub work_dir: &'a Path,
    /// Where the tools' output goes.
    pub log: &'a Path,
}

impl Attack<'_> {
    fn commands(&self) -> anyhow::Result<Vec<Command>> {
        if self.targets.is_empty() || self.rate == 0 {
            bail!("an attack needs a target and a rate above 0");
        }
        match (self.kind, self.source) {
            (Kind::PortScan, _) => Ok(vec![self.nmap()?]),
            (_, IpAddr::V4(_)) => self
                .targets
                .iter()
                .map(|target| self.hping3(target))
                .collect(),
            (_, IpAddr::V6(_)) => Ok(vec![self.trafgen()?]),
        }
    }

    /// A tool whose time is up is killed, should we not live to do it.
    fn bounded(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = ns::command(self.namespace, "timeout")?;
        command.args(["--signal=KILL", &(self.seconds + 10).to_string(), program]);
        Ok(command)
    }

    fn packets(&self) -> u64 {
        u64::from(self.rate) * u64::from(self.seconds + 2)
    }

    fn hping3(&self, target: &Target) -> anyhow::Result<Command> {
        let share = u64::try_from(self.targets.len()).unwrap_or(1);
        let gap_us = (1_000_000 * share / u64::from(self.rate)).max(1);
        let mut command = self.bounded("hping3")?;
        command.args(["-q", "-n", "-I", INTERFACE, "-a", &self.source.to_string()]);
        match self.kind {
            Kind::SynFlood => command.args(["-S", "-p", &echo::PORT.to_string()]),
            Kind::UdpFlood => command.args(["--udp", "-d", "64", "-p", &CLOSED_PORT.to_string()]),
            _ => command.args(["--icmp", "-d", "56"]),
        };
        command.args([
            "-i",
            &format!("u{gap_us}"),
            "-c",
            &(self.packets() / share).max(1).to_string(),
        ]);
        command.arg(target.address.to_string());
        Ok(command)
    }

    fn trafgen(&self) -> anyhow::Result<Command> {
        let file: PathBuf = self
            .work_dir
            .join(format!("trafgen-{}.cfg", self.kind.name()));
        std::fs::write(&file, self.trafgen_packets())
            .with_context(|| format!("cannot write {}", file.display()))?;
        let gap_us = (1_000_000 / u64::from(self.rate))
            .saturating_sub(TRAFGEN_OVERHEAD_US)
            .max(1);
        let mut command = self.bounded("trafgen")?;
        // -q: through the queueing layer, or each packet would be a burst of its own.
        command
            .args([
                "--dev",
                INTERFACE,
                "--cpus",
                "1",
                "--no-cpu-stats",
                "-q",
                "--conf",
            ])
            .arg(file);
        command.args([
            "--gap",
            &format!("{gap_us}us"),
            "--num",
            &self.packets().to_string(),
        ]);
        Ok(command)
    }

    /// One packet per target, in trafgen's language; it sends them in turn.
    fn trafgen_packets(&self) -> String {
        let mut text = String::new();
        for target in self.targets {
            let payload = match self.kind {
                Kind::SynFlood => format!(
                    "tcp(sp=dinc(1024,65000), dp={}, syn, seq=1, win=1024)",
                    echo::PORT
                ),
                Kind::UdpFlood => {
                    format!("udp(sp=dinc(1024,65000), dp={CLOSED_PORT}), fill('s', 64)")
                }
                // The identifier and sequence number follow the header.
                _ => "icmp6(echorequest), 0, 7, 0, 1, fill('p', 48)".to_owned(),
            };
            // Writing to a String cannot fail.
            let _written = write!(
                text,
                "{{\n eth(da={}, sa={}),\n ipv6(sa={}, da={}, hl=64),\n {payload}\n}}\n",
                target.link_address, self.source_link, self.source, target.address
            );
        }
        text
    }

    fn nmap(&self) -> anyhow::Result<Command> {
        let mut command = self.bounded("nmap")?;
        command.args([
            "-sS",
            "-n",
            "-Pn",
            "-p",
            "1-65535",
            "--max-retries",
            "1",
            "-e",
            INTERFACE,
        ]);
        command.args(["-S", &self.source.to_string()]);
        // As fast as told, also when the answers stop coming.
        let rate = self.rate.to_string();
        command.args(["--min-rate", &rate, "--max-rate", &rate]);
        if self.source.is_ipv6() {
            command.arg("-6");
        }
        command.args(self.targets.iter().map(|target| target.address.to_string()));
        Ok(command)
    }
}
