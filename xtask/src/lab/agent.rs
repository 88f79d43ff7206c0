//! Asking an agent through its command line, as a person or a script would.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ns;
use super::state::{LabState, Node};
use crate::sh;

/// What `secmesh status --json` says, as far as the lab needs it.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `monitor` or `enforce`.
    pub mode: String,
    /// Where the program is attached, and how.
    pub interfaces: Vec<Interface>,
    /// Whether enough weight is in reach.
    pub quorum: Quorum,
    /// Counters by name.
    #[serde(default)]
    pub counters: std::collections::BTreeMap<String, u64>,
    /// The controller's counters by name.
    pub controller: std::collections::BTreeMap<String, u64>,
    /// Who is cut off.
    #[serde(default)]
    pub quarantined: Vec<CutOff>,
}

/// A node that is cut off, as `secmesh status` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct CutOff {
    /// Its name.
    pub name: String,
    /// Why.
    pub class: String,
    /// Whether the operator's signature did it, and not votes.
    pub by_operator: bool,
    /// When the node that was asked learned of it.
    pub since_unix_us: u64,
    /// The votes.
    #[serde(default)]
    pub votes: Vec<serde_json::Value>,
}

/// An interface with the program on it.
#[derive(Debug, Clone, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `driver` or `generic`.
    pub attach_mode: String,
}

/// The state of the mesh as a node sees it.
#[derive(Debug, Clone, Deserialize)]
pub struct Quorum {
    /// `FULL`, `DEGRADED`, `ISOLATED`, `SINGLE` or `NOT-BFT`.
    pub state: String,
    /// How many nodes the mesh has.
    pub nodes: usize,
    /// How many of them have weight.
    #[serde(default)]
    pub voters: usize,
    /// Weight of the nodes that are there.
    #[serde(default)]
    pub reachable_weight: u64,
}

/// A line of `secmesh peers --json`.
#[derive(Debug, Clone, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the answer's, each for itself"
)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Whether there is a connection to it.
    #[serde(default)]
    pub connected: bool,
    /// `alive`, `suspect` or `down`; none for the node itself.
    #[serde(default)]
    pub liveness: Option<String>,
    /// Whether it was proved to lie.
    #[serde(default)]
    pub equivocated: bool,
    /// Whether it is cut off.
    #[serde(default)]
    pub quarantined: bool,
    /// Whether it is the node that was asked.
    #[serde(default)]
    pub this_node: bool,
}

/// A line of `secmesh alerts --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Alert {
    /// Whom it is about.
    pub subject: String,
    /// Which kind of attack.
    pub class: String,
    /// When it was raised.
    pub raised_unix_us: u64,
}

/// A line of `secmesh decisions list --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Decision {
    /// Its id.
    pub id: String,
    /// Whom it is about.
    pub subject: String,
    /// `mesh` or `node`.
    pub scope: String,
    /// `quorum`, `unilateral` or `operator`.
    pub origin: String,
    /// `active`, `ended`, `released` or `vetoed`.
    pub state: String,
    /// When its certificate was complete on this node.
    #[serde(default)]
    pub certified_unix_us: Option<u64>,
    /// When this node wrote it into its map.
    #[serde(default)]
    pub enforced_unix_us: Option<u64>,
    /// Whether it stands in this node's map.
    #[serde(default)]
    pub enforced: bool,
    /// When the first packet met it.
    #[serde(default)]
    pub first_hit_unix_us: Option<u64>,
}

impl Decision {
    /// Whether it is of the whole mesh, and in force.
    pub fn is_active_mesh_block(&self) -> bool {
        self.scope == "mesh" && self.state == "active"
    }
}

/// A node, with the binary to ask it.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    binary: &'a PathBuf,
    node: &'a Node,
}

impl<'a> Client<'a> {
    /// For node `node` of a lab.
    pub fn new(lab: &'a LabState, node: &'a Node) -> Self {
        Self {
            binary: &lab.binary,
            node,
        }
    }

    /// A `secmesh` command with this node's configuration, inside its namespace.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = ns::command(&self.node.namespace, self.binary)?;
        command
            .arg("--config")
            .arg(&self.node.config)
            .arg("--state")
            .arg(&self.node.state_dir);
        command
            .arg("--socket")
            .arg(&self.node.socket)
            .args(args)
            .stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// Runs a command to its end, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.command(args)?.output().with_context(|| {
            format!(
                "cannot start `{} {}` for {}",
                self.binary.display(),
                args.join(" "),
                self.node.name
            )
        })
    }

    /// Runs a command that must succeed; gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started, or exits with anything but 0.
    pub fn must(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            bail!(
                "`secmesh {}` on {} failed ({}): {}",
                args.join(" "),
                self.node.name,
                output.status,
                sh::last_words(&output)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command with `--json` that must succeed.
    ///
    /// # Errors
    /// As [`Self::must`], and when what it prints is not what was expected.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> anyhow::Result<T> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let text = self.must(&args)?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "`secmesh {}` on {} printed something unexpected: {}",
                args.join(" "),
                self.node.name,
                sh::tail(&text, 5)
            )
        })
    }

    /// `secmesh status`.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn status(&self) -> anyhow::Result<Status> {
        self.json(&["status"])
    }

    /// `secmesh peers`.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn peers(&self) -> anyhow::Result<Vec<Peer>> {
        self.json(&["peers"])
    }

    /// `secmesh alerts`.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn alerts(&self) -> anyhow::Result<Vec<Alert>> {
        self.json(&["alerts"])
    }

    /// `secmesh decisions list`.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn decisions(&self) -> anyhow::Result<Vec<Decision>> {
        self.json(&["decisions", "list"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_read_with_and_without_the_optional_times() {
        let text = r#"[{"id":"d1","subject":"10.77.0.200","class":"syn_flood","scope":"mesh","origin":"quorum","state":"active",
            "incident":"i","created_unix_us":1,"certified_unix_us":5,"enforced_unix_us":null,"expires_unix_us":9,"enforced":false,
            "not_enforced_reason":"map full","hits":0,"bytes":0,"first_hit_unix_us":null,"last_hit_unix_us":null,"votes":[]}]"#;
        let decisions: Vec<Decision> = serde_json::from_str(text).unwrap();
        assert_eq!(decisions[0].certified_unix_us, Some(5));
        assert_eq!(decisions[0].enforced_unix_us, None);
        assert!(decisions[0].is_active_mesh_block());
    }
}
