//! A flood of one source, watched on both sides of a node's XDP program, while things go wrong.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use secmesh::api::types::DecisionView;
use xtask::clock;
use xtask::lab::generators::{Attack, Generators, Kind, Target};
use xtask::lab::net::{self, ATTACKER_PORT, Family, INTERFACE};
use xtask::lab::state::{LabState, Node};
use xtask::lab::tap::Tap;
use xtask::lab::{Lab, Options};

use crate::PATIENCE;

/// Packets a second of a flood here: enough that a gap of a millisecond would show.
pub const RATE: u32 = 5_000;

/// An attack that runs, with the packets of its source counted where they are sent and behind XDP.
#[derive(Debug)]
pub struct Flood {
    running: Generators,
    wire: Tap,
    behind_xdp: Tap,
    source: IpAddr,
}

impl Flood {
    /// Starts one against `node` for at most `seconds`.
    ///
    /// # Errors
    /// When a tool or an interface is missing.
    pub fn start(
        lab: &LabState,
        node: &Node,
        kind: Kind,
        source: IpAddr,
        seconds: u32,
    ) -> Result<Self> {
        let namespace = lab.namespace(ATTACKER_PORT);
        let wire = Tap::open(&lab.namespace("switch"), ATTACKER_PORT, source, None)?;
        let behind_xdp = Tap::open(&node.namespace, INTERFACE, source, None)?;
        let targets = [Target {
            address: LabState::address(node, family_of(source)),
            link_address: net::link_address(&node.namespace)?,
        }];
        let attack = Attack {
            kind,
            namespace: &namespace,
            source,
            source_link: &net::link_address(&namespace)?,
            targets: &targets,
            rate: RATE,
            seconds,
            work_dir: &lab.work_dir,
            log: &lab.work_dir.join("attack.log"),
        };
        Ok(Self {
            running: Generators::start(&attack)?,
            wire,
            behind_xdp,
            source,
        })
    }

    /// Lets it go on until `packets` more were sent.
    ///
    /// # Errors
    /// When it stopped sending: then nothing that is seen behind XDP says anything.
    pub fn go_on(&mut self, packets: u64) -> Result<()> {
        let until = self.sent()? + packets;
        let reached = clock::wait_until(PATIENCE, Duration::from_millis(5), || {
            Ok((self.sent()? >= until).then_some(()))
        })?;
        reached.with_context(|| format!("the flood of {} dried up", self.source))
    }

    /// Packets sent so far.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn sent(&self) -> Result<u64> {
        self.wire.packets()
    }

    /// Packets that got past XDP so far.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn got_through(&self) -> Result<u64> {
        self.behind_xdp.packets()
    }

    /// Asserts that nothing got past XDP, and that something was there to be held up.
    ///
    /// # Errors
    /// How many did, `when`.
    pub fn ensure_held(&self, when: &str) -> Result<()> {
        let (sent, passed) = (self.sent()?, self.got_through()?);
        ensure!(
            sent > 0 && passed == 0,
            "{when}: {passed} of {sent} packets of {} got through",
            self.source
        );
        Ok(())
    }

    /// Waits for the first packet that gets past XDP and says when it came, unix microseconds.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn first_through(&self, limit: Duration) -> Result<u64> {
        clock::wait_until(limit, Duration::from_millis(5), || {
            self.behind_xdp.first_unix_us()
        })?
        .with_context(|| format!("no packet of {} got through", self.source))
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.running.stop();
    }
}

/// The family of an address.
pub const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// One of the attacker's addresses.
///
/// # Errors
/// When there is none of that number.
pub fn attacker(family: Family, number: usize) -> Result<IpAddr> {
    net::attacker_addresses(family)
        .nth(number)
        .context("the attacker has no such address")
}

/// `CLOCK_MONOTONIC` now, ns: what the kernel's entries end by.
///
/// # Errors
/// When the kernel does not say.
pub fn mono_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

/// The decisions that node `number` knows on `subject`, also ended ones.
///
/// # Errors
/// When the agent does not answer.
pub fn decisions_on(lab: &Lab, number: usize, subject: IpAddr) -> Result<Vec<DecisionView>> {
    let all: Vec<DecisionView> = lab.agent(number)?.json(&["decisions", "list", "--all"])?;
    Ok(all
        .into_iter()
        .filter(|decision| decision.subject == subject.into())
        .collect())
}

/// A lab of one node, with a line more in the `[dataplane]` table of its configuration.
///
/// # Errors
/// When it does not come up.
pub fn lab_with(options: Options, dataplane: &str) -> Result<Lab> {
    let mut lab = Lab::start(options.nodes(1))?;
    let node = lab.node(1)?.clone();
    lab.stop_agent(1, nix::sys::signal::Signal::SIGTERM)?;
    // What an earlier configuration pinned has the earlier sizes.
    lab.agent(1)?.must(&["detach"])?;
    rewrite(&node.config, |text| {
        text.replace("[dataplane]\n", &format!("[dataplane]\n{dataplane}\n"))
    })?;
    lab.start_agent(1)?;
    Ok(lab)
}

fn rewrite(file: &Path, change: impl FnOnce(String) -> String) -> Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    std::fs::write(file, change(text)).with_context(|| format!("cannot write {}", file.display()))
}

/// An agent that the lab starts from a place of its own, where another can be put while it runs.
#[derive(Debug)]
pub struct Installed {
    folder: tempfile::TempDir,
    built: std::path::PathBuf,
    options: Options,
}

impl Installed {
    /// Installs the agent of `options`; `name` is part of the folder's.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn new(name: &str, mut options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("secmesh-{name}-"))
            .tempdir()?;
        let place = folder.path().join("secmesh");
        let built = std::mem::replace(&mut options.binary, place);
        let this = Self {
            folder,
            built,
            options,
        };
        this.renew()?;
        Ok(this)
    }

    /// Options of a lab whose agents are started from there.
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Puts a copy there anew, as a package manager does: whole, then by a rename.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn renew(&self) -> Result<()> {
        let new = self.folder.path().join("secmesh.new");
        std::fs::copy(&self.built, &new).context("cannot copy the agent")?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&new, &self.options.binary).context("cannot put the agent in place")
    }
}
