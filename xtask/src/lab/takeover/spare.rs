//! The spare server of a lab: waiting with its ticket, then running as a node.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::lab::agent::Client;
use crate::lab::mesh_address;
use crate::lab::state::{LabState, Node};
use crate::{clock, sh};

/// How long its process may take to end when it is told to.
const SHUT_DOWN: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Invitation {
    ticket: String,
}

/// The spare server. Dropped before [`Spare::keep`], what runs on it is ended and its files are removed.
#[derive(Debug)]
pub struct Spare<'a> {
    lab: &'a LabState,
    node: &'a Node,
    running: Option<Child>,
    keep: bool,
}

impl<'a> Spare<'a> {
    /// Starts `join --standby` with a ticket that the lab's first node makes.
    ///
    /// # Errors
    /// When the lab has no spare server that is free, or the ticket cannot be made.
    pub fn start(lab: &'a LabState) -> anyhow::Result<Self> {
        let node = lab
            .spare
            .as_ref()
            .context("this lab was started by an older version: start a new one")?;
        ensure!(
            !node.state_dir.exists(),
            "the lab's spare server was used already: start a new lab"
        );
        let first = lab.nodes.first().context("the lab has no nodes")?;
        let invitation: Invitation =
            Client::new(lab, first).json(&["invite", "--name", &node.name, "--expires", "1h"])?;
        let mut spare = Self {
            lab,
            node,
            running: None,
            keep: false,
        };
        let advertise = mesh_address(node).to_string();
        // The ticket on standard input, and so not in the process list.
        let mut child = spare.spawn(
            &[
                "join",
                "-",
                "--standby",
                "--name",
                &node.name,
                "--advertise",
                &advertise,
            ],
            Stdio::piped(),
        )?;
        let written = child
            .stdin
            .take()
            .context("no standard input")
            .and_then(|mut input| Ok(input.write_all(invitation.ticket.as_bytes())?));
        spare.running = Some(child);
        written.context("cannot hand the ticket over")?;
        Ok(spare)
    }

    fn spawn(&self, args: &[&str], input: Stdio) -> anyhow::Result<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.node.log)
            .with_context(|| format!("cannot write {}", self.node.log.display()))?;
        Client::new(self.lab, self.node)
            .command(args)?
            .stdout(log.try_clone().context("cannot share a log file")?)
            .stderr(log)
            .stdin(input)
            .spawn()
            .with_context(|| format!("cannot start {}", self.lab.binary.display()))
    }

    /// The server as a node of the lab.
    pub const fn node(&self) -> &'a Node {
        self.node
    }

    /// To ask its agent.
    pub fn client(&self) -> Client<'a> {
        Client::new(self.lab, self.node)
    }

    /// How what runs on it ended, if it did.
    ///
    /// # Errors
    /// When nothing runs.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let child = self.running.as_mut().context("nothing runs there")?;
        child.try_wait().context("cannot look after the spare")
    }

    /// Whether it was let in.
    ///
    /// # Errors
    /// When its command ended in any other way; what it said is in the message.
    pub fn is_in(&mut self) -> anyhow::Result<bool> {
        match self.ended()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!(
                "`secmesh join --standby` ended ({status}): {}",
                sh::tail(&said(&self.node.log), 5)
            ),
        }
    }

    /// Starts its agent, once it was let in.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self) -> anyhow::Result<()> {
        self.running = Some(self.spawn(&["run"], Stdio::null())?);
        Ok(())
    }

    /// It is a node now, and stays one as long as the lab.
    pub const fn keep(&mut self) {
        self.keep = true;
    }
}

/// What is in a log file.
pub fn said(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

impl Drop for Spare<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Some(child) = &mut self.running {
            if let Ok(pid) = i32::try_from(child.id()) {
                // It may have ended by itself.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let ended = clock::wait_until(SHUT_DOWN, Duration::from_millis(10), || {
                Ok(child.try_wait()?)
            });
            if !matches!(ended, Ok(Some(_))) {
                let _gone = child.kill();
                let _ended = child.wait();
            }
        }
        // The log stays with the lab, for whoever wants to know why.
        let _none = std::fs::remove_dir_all(&self.node.state_dir);
        let _none = std::fs::remove_dir_all(&self.node.pin_dir);
    }
}
