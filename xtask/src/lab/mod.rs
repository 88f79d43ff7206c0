//! A mesh on one machine: nodes, an attacker and a client, each in a network namespace of its own.
//!
//! ```text
//!   n1   n2   n3   n4        a real agent and real XDP on each node's eth0
//!    └────┴─┬──┴────┘
//!        switch (bridge)
//!      ┌───┼───────┐
//! attacker client  spare     hping3, trafgen, nmap; real connections; a server that can become a node
//! ```
//!
//! [`Lab::start`] builds it and [`Lab`] removes it when dropped. What a crashed lab left is removed by
//! the next start. [`attack::run`] attacks a lab and measures; [`takeover::run`] takes a node of it over.

pub mod agent;
pub mod attack;
pub mod broker;
pub mod command;
pub mod echo;
pub mod generators;
pub mod net;
pub mod ns;
pub mod outcome;
pub mod pinned;
pub mod report;
pub mod state;
pub mod takeover;
pub mod tap;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use self::agent::Client;
use self::broker::{Access, Broker};
use self::net::{Family, MAX_NODES, Network};
use self::state::{LabState, Node, ProcessRef};
use crate::{clock, sh};

/// The mesh's port.
pub const MESH_PORT: u16 = 4747;
/// Last lines of an agent's log that are shown when it does not answer: the lab and the rest of it may be gone soon.
const LOG_LINES: usize = 12;
/// Calls that are shown of each of its threads.
const CALLS: usize = 6;
/// How long an agent may take to answer, and a mesh to find together.
const BRING_UP: Duration = Duration::from_secs(30);
/// Agents that may be starting while the next node joins: each has kernel programs to load, which the others need
/// not wait for, and a machine has only so many processors.
const STARTING: usize = 2;
/// How long an agent may take to end when it is told to.
const SHUT_DOWN: Duration = Duration::from_secs(5);

/// The environment's word on what carries the messages of labs: `grpc` or `nats`. With it the same scenarios
/// run over either.
pub const CARRIER_VARIABLE: &str = "SECMESH_LAB_CARRIER";

/// What carries the nodes' messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Direct connections.
    Grpc,
    /// A NATS server of the lab's own.
    Nats,
}

impl Carrier {
    /// As [`CARRIER_VARIABLE`] says; else direct.
    fn from_environment() -> Self {
        match std::env::var(CARRIER_VARIABLE) {
            Ok(word) if word == "nats" => Self::Nats,
            _ => Self::Grpc,
        }
    }
}

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes, 1 to [`MAX_NODES`].
    pub nodes: usize,
    /// Whether agents are run; without them it is a network only.
    pub agents: bool,
    /// The agent's binary.
    pub binary: PathBuf,
    /// `monitor` or `enforce`.
    pub mode: &'static str,
    /// `auto`, `driver` or `generic`.
    pub attach: &'static str,
    /// What carries the nodes' messages.
    pub carrier: Carrier,
    /// Whom the lab's NATS server lets in, where there is one.
    pub access: Access,
    /// More arguments of `secmesh init`.
    pub init: &'static [&'static str],
    /// More lines for each node's `secmesh.toml`, whole tables.
    pub extra_config: String,
    /// Whether other processes may find and attack it.
    pub open: bool,
    /// Whether the nodes' files are kept at the end.
    pub keep_files: bool,
}

impl Options {
    /// Four nodes that enforce, over the carrier that the environment names.
    pub fn new(binary: PathBuf) -> Self {
        Self {
            nodes: 4,
            agents: true,
            binary,
            mode: "enforce",
            attach: "auto",
            carrier: Carrier::from_environment(),
            access: Access::default(),
            init: &[],
            extra_config: String::new(),
            open: false,
            keep_files: false,
        }
    }

    /// The same with another number of nodes.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// The same with another carrier.
    #[must_use]
    pub fn carrier(mut self, carrier: Carrier) -> Self {
        self.carrier = carrier;
        self
    }

    /// The same with another mode.
    #[must_use]
    pub fn mode(mut self, mode: &'static str) -> Self {
        self.mode = mode;
        self
    }
}

/// A running lab; dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    state: LabState,
    options: Options,
    agents: Vec<Option<Child>>,
    services: Vec<echo::Service>,
    broker: Option<Broker>,
}

#[derive(Deserialize)]
struct Invitation {
    ticket: String,
}

impl Lab {
    /// Builds the network, starts the agents, and waits until the mesh stands.
    ///
    /// # Errors
    /// When we are not root, a tool is missing, or an agent does not come up; the end of the agents' logs
    /// is in the message. What was built until then is removed.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        ensure!(
            (1..=MAX_NODES).contains(&options.nodes),
            "a lab has 1 to {MAX_NODES} nodes, not {}",
            options.nodes
        );
        ensure!(
            sh::is_root(),
            "network namespaces and XDP need root: run this through sudo"
        );
        state::remove_stale()?;
        let state = LabState::claim(options.nodes, &options.binary)?;
        let agents = state.nodes.iter().map(|_| None).collect();
        // From here on dropping removes whatever there is.
        let mut lab = Self {
            state,
            options,
            agents,
            services: Vec::new(),
            broker: None,
        };
        lab.build()
            .with_context(|| format!("the lab did not come up{}", lab.log_tails()))?;
        Ok(lab)
    }

    fn build(&mut self) -> anyhow::Result<()> {
        // 0700: with the nodes' keys in it.
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700);
        private
            .create(&self.state.work_dir)
            .with_context(|| format!("cannot make {}", self.state.work_dir.display()))?;
        Network::plan(&self.state.id, self.options.nodes).build()?;
        for node in self.state.nodes.iter().chain(&self.state.spare) {
            if let Some(home) = node.config.parent() {
                private
                    .create(home)
                    .with_context(|| format!("cannot make {}", home.display()))?;
            }
            std::fs::write(&node.config, self.config_of(node))
                .with_context(|| format!("cannot write {}", node.config.display()))?;
        }
        for node in &self.state.nodes {
            self.services.push(echo::Service::start(&node.namespace)?);
        }
        if self.options.agents {
            if self.options.carrier == Carrier::Nats {
                let (namespace, folder) =
                    (self.state.namespace("client"), self.state.work_dir.clone());
                let access = self.options.access.clone();
                self.broker = Some(Broker::start(namespace, folder, access)?);
            }
            self.start_mesh()?;
        }
        self.state.open = self.options.open;
        self.state.save()
    }

    fn config_of(&self, node: &Node) -> String {
        format!(
            "[node]\nstate_dir = {}\nsocket = {}\n\n\
             [dataplane]\ninterfaces = [\"{}\"]\nmode = \"{}\"\nattach = \"{}\"\npin_dir = {}\n\n\
             [mesh]\nlisten = \"[::]:{MESH_PORT}\"\nadvertise = \"{}\"\n{}\n{}",
            toml_string(&node.state_dir),
            toml_string(&node.socket),
            net::INTERFACE,
            self.options.mode,
            self.options.attach,
            toml_string(&node.pin_dir),
            mesh_address(node),
            match self.options.carrier {
                Carrier::Grpc => String::new(),
                Carrier::Nats => format!(
                    "carrier = \"nats\"\n\n[mesh.nats]\nservers = [\"{}://{}\"]\n{}\n",
                    if self.options.access.tls {
                        "tls"
                    } else {
                        "nats"
                    },
                    Broker::address(),
                    self.options.access.nodes.replace("{node}", &node.name)
                ),
            },
            self.options.extra_config
        )
    }

    fn start_mesh(&mut self) -> anyhow::Result<()> {
        let Some((first, others)) = self.state.nodes.split_first() else {
            return Ok(());
        };
        let (first, others) = (first.clone(), others.to_vec());
        let advertise = mesh_address(&first).to_string();
        let mut init = vec!["init", "--name", &first.name, "--mesh", "lab"];
        init.extend(["--advertise", &advertise, "--json"]);
        init.extend(self.options.init);
        self.ask(&first).must(&init)?;
        self.start_agent(1)?;
        let mut starting = VecDeque::new();
        for node in others {
            let invitation: Invitation =
                self.ask(&first).json(&["invite", "--name", &node.name])?;
            let advertise = mesh_address(&node).to_string();
            self.ask(&node).must(&[
                "join",
                &invitation.ticket,
                "--name",
                &node.name,
                "--advertise",
                &advertise,
            ])?;
            self.spawn_agent(node.number)?;
            starting.push_back(node.number);
            if starting.len() > STARTING
                && let Some(number) = starting.pop_front()
            {
                self.wait_for_agent(number)?;
            }
        }
        for number in starting {
            self.wait_for_agent(number)?;
        }
        self.wait_for_mesh()
    }

    /// Starts the agent of node `number` and waits until it answers.
    ///
    /// # Errors
    /// When it does not answer within half a minute, or ends.
    pub fn start_agent(&mut self, number: usize) -> anyhow::Result<()> {
        self.spawn_agent(number)?;
        self.wait_for_agent(number)
    }

    fn spawn_agent(&mut self, number: usize) -> anyhow::Result<()> {
        let node = self.node(number)?.clone();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&node.log)
            .with_context(|| format!("cannot write {}", node.log.display()))?;
        let mut command = self.ask(&node).command(&["run"])?;
        let child = command
            .stdout(log.try_clone().context("cannot share a log file")?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.state.binary.display()))?;
        let process = ProcessRef::of(child.id());
        if let Some(record) = self.state.nodes.get_mut(number - 1) {
            record.agent = process;
        }
        if let Some(slot) = self.agents.get_mut(number - 1) {
            *slot = Some(child);
        }
        self.state.save()
    }

    fn wait_for_agent(&mut self, number: usize) -> anyhow::Result<()> {
        let node = self.node(number)?.clone();
        let Some(mut child) = self.agents.get_mut(number - 1).and_then(Option::take) else {
            bail!("no agent runs on {}", node.name);
        };
        let answered = clock::wait_until(BRING_UP, Duration::from_millis(50), || {
            if let Some(status) = child.try_wait().context("cannot look after the agent")? {
                bail!("the agent of {} ended ({status})", node.name);
            }
            Ok(self.ask(&node).status().ok())
        });
        let pid = child.id();
        if let Some(slot) = self.agents.get_mut(number - 1) {
            *slot = Some(child);
        }
        answered?.with_context(|| {
            let log = std::fs::read(&node.log).unwrap_or_default();
            format!(
                "the agent of {} does not answer; its log ends so:\n{}\nand its threads wait here:\n{}",
                node.name,
                sh::tail(&String::from_utf8_lossy(&log), LOG_LINES),
                where_it_waits(pid)
            )
        })?;
        Ok(())
    }

    /// Ends the agent of node `number` with a signal and waits for it.
    ///
    /// # Errors
    /// When it does not end within some seconds.
    pub fn stop_agent(
        &mut self,
        number: usize,
        signal: nix::sys::signal::Signal,
    ) -> anyhow::Result<()> {
        let node = self.node(number)?.clone();
        let Some(child) = self.agents.get_mut(number - 1).and_then(Option::as_mut) else {
            bail!("no agent runs on {}", node.name);
        };
        let pid = i32::try_from(child.id()).context("process number out of range")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
            .with_context(|| format!("cannot signal the agent of {}", node.name))?;
        let ended = clock::wait_until(SHUT_DOWN, Duration::from_millis(10), || {
            Ok(child.try_wait()?)
        })?;
        ensure!(
            ended.is_some(),
            "the agent of {} does not end on {signal}",
            node.name
        );
        if let Some(slot) = self.agents.get_mut(number - 1) {
            *slot = None;
        }
        if let Some(record) = self.state.nodes.get_mut(number - 1) {
            record.agent = None;
        }
        self.state.save()
    }

    /// Waits until every node is connected to all others and has a quorum.
    ///
    /// # Errors
    /// When that takes more than half a minute.
    pub fn wait_for_mesh(&self) -> anyhow::Result<()> {
        let mut last = String::new();
        let stands = clock::wait_until(BRING_UP, Duration::from_millis(100), || {
            for node in &self.state.nodes {
                match self.unready(node) {
                    Ok(None) => {}
                    Ok(Some(why)) => {
                        last = why;
                        return Ok(None);
                    }
                    Err(error) => {
                        last = format!("{error:#}");
                        return Ok(None);
                    }
                }
            }
            Ok(Some(()))
        })?;
        stands.with_context(|| {
            format!(
                "the mesh does not stand after {} s: {last}",
                BRING_UP.as_secs()
            )
        })
    }

    /// Why a node is not ready yet; none if it is.
    fn unready(&self, node: &Node) -> anyhow::Result<Option<String>> {
        let (client, nodes) = (self.ask(node), self.options.nodes);
        let peers = client.peers()?;
        let connected = peers
            .iter()
            .filter(|peer| peer.connected || peer.this_node)
            .count();
        // Some answers have the node itself in the list, some may not.
        let expected = if peers.iter().any(|peer| peer.this_node) {
            nodes
        } else {
            nodes - 1
        };
        if connected < expected {
            return Ok(Some(format!(
                "{} is connected to {connected} of {expected}",
                node.name
            )));
        }
        let quorum = client.status()?.quorum;
        let ready = quorum.nodes == nodes
            && (quorum.state == "FULL"
                || (nodes < 4 && quorum.state != "ISOLATED" && quorum.state != "DEGRADED"));
        Ok((!ready).then(|| {
            format!(
                "{} sees {} of {nodes} nodes in its roster, quorum {}",
                node.name, quorum.nodes, quorum.state
            )
        }))
    }

    /// The NATS server, where there is one.
    ///
    /// # Errors
    /// When the lab's nodes talk directly.
    pub fn broker(&mut self) -> anyhow::Result<&mut Broker> {
        self.broker
            .as_mut()
            .context("this lab has no NATS server: its nodes talk directly")
    }

    /// The lab as others see it.
    pub fn state(&self) -> &LabState {
        &self.state
    }

    /// Node `number`, from 1.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&self, number: usize) -> anyhow::Result<&Node> {
        number
            .checked_sub(1)
            .and_then(|index| self.state.nodes.get(index))
            .with_context(|| format!("the lab has no node {number}"))
    }

    /// Asks a node's agent.
    pub fn ask<'a>(&'a self, node: &'a Node) -> Client<'a> {
        Client::new(&self.state, node)
    }

    /// Asks the agent of node `number`.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn agent(&self, number: usize) -> anyhow::Result<Client<'_>> {
        Ok(self.ask(self.node(number)?))
    }

    fn log_tails(&self) -> String {
        let mut text = String::new();
        for node in &self.state.nodes {
            // A node that was not reached yet has no log.
            if let Ok(bytes) = std::fs::read(&node.log) {
                let tail = sh::tail(&String::from_utf8_lossy(&bytes), 15);
                let _infallible = write!(
                    text,
                    "\n--- the end of the log of {} ---\n{tail}",
                    node.name
                );
            }
        }
        if !text.is_empty() {
            text.push_str("\n---");
        }
        text
    }

    fn tear_down(&mut self) {
        // The services' threads live in the namespaces: first out.
        self.services.clear();
        for child in self.agents.iter_mut().flatten() {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _gone = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGTERM,
                );
            }
        }
        for child in self.agents.iter_mut().flatten() {
            let ended = clock::wait_until(SHUT_DOWN, Duration::from_millis(10), || {
                Ok(child.try_wait()?)
            });
            if !matches!(ended, Ok(Some(_))) {
                let _gone = child.kill();
                let _ended = child.wait();
            }
        }
        self.agents.clear();
        self.broker = None;
    }
}

/// Each thread of a process by its name, and the innermost of the kernel's functions that it waits in, if it does.
fn where_it_waits(pid: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let of = |thread: &Path, file: &str| {
        // Threads may end meanwhile.
        std::fs::read_to_string(thread.join(file)).unwrap_or_default()
    };
    let shown = |thread: std::io::Result<std::fs::DirEntry>| {
        let thread = thread.ok()?.path();
        let stack = of(&thread, "stack");
        let calls = stack.lines().take(CALLS);
        let calls: Vec<&str> = calls
            .filter_map(|call| call.split_whitespace().last())
            .collect();
        let name = of(&thread, "comm");
        Some(format!("{}: {}", name.trim_end(), calls.join(" < ")))
    };
    let mut lines: Vec<String> = threads.into_iter().flatten().filter_map(shown).collect();
    // Most are workers that wait for the same.
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n")
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tear_down();
        if let Err(error) = self.state.remove(self.options.keep_files) {
            eprintln!(
                "the lab {} left something behind; the next lab tries again: {error:#}",
                self.state.id
            );
        }
    }
}

/// A path as a string of a TOML file.
pub(crate) fn toml_string(path: &Path) -> String {
    let plain = path
        .to_string_lossy()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!("\"{plain}\"")
}

/// Where a node is reached by the others.
pub(crate) fn mesh_address(node: &Node) -> SocketAddr {
    SocketAddr::new(LabState::address(node, Family::V4), MESH_PORT)
}
