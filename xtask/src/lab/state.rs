//! What a lab leaves on disk about itself, so that others find it and the next one can clean up after it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::net;
use crate::{clock, setup::BPFFS};

/// Where running labs write down what they made.
const REGISTRY: &str = "/run/secmesh-lab";

/// How long a killed agent may take to end.
const KILLED: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(10);

/// A process, told apart from a later one with the same number by when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started_ticks: u64,
}

impl ProcessRef {
    /// Names the running process `pid`; none if there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in brackets and may itself hold blanks and brackets.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        let started_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, started_ticks })
    }

    /// Whether that very process still runs.
    pub fn is_alive(self) -> bool {
        u32::try_from(self.pid).ok().and_then(Self::of) == Some(self)
    }

    /// Ends it with SIGKILL if it is still that very process.
    pub fn kill(self) {
        if self.is_alive() {
            // It may end by itself in between.
            let _gone = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// One node of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its name, `n1` and so on.
    pub name: String,
    /// Its number, from 1.
    pub number: usize,
    /// Its network namespace.
    pub namespace: String,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its agent's state folder.
    pub state_dir: PathBuf,
    /// Its agent's control socket.
    pub socket: PathBuf,
    /// Where its agent logs to.
    pub log: PathBuf,
    /// Where its maps and links are pinned.
    pub pin_dir: PathBuf,
    /// The agent's process, while it runs.
    pub agent: Option<ProcessRef>,
}

/// A lab, as written down in the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabState {
    /// Four hexadecimal digits; in every name the lab gives.
    pub id: String,
    /// The process whose end is the lab's end.
    pub owner: ProcessRef,
    /// Whether others may use it: an interactive lab that is up.
    pub open: bool,
    /// The agent's binary.
    pub binary: PathBuf,
    /// Folder with the nodes' files.
    pub work_dir: PathBuf,
    /// Every network namespace.
    pub namespaces: Vec<String>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// A server that is no node yet, with everything it needs to become one; its number is the next one.
    #[serde(default)]
    pub spare: Option<Node>,
}

impl Node {
    fn planned(id: &str, work_dir: &Path, name: String, number: usize) -> Self {
        let home = work_dir.join(&name);
        Self {
            namespace: net::namespace(id, &name),
            config: home.join("secmesh.toml"),
            state_dir: home.join("state"),
            socket: home.join("secmesh.sock"),
            log: home.join("agent.log"),
            pin_dir: Path::new(BPFFS).join(format!("secmesh-lab-{id}-{name}")),
            agent: None,
            number,
            name,
        }
    }
}

impl LabState {
    /// Claims an identity and writes the plan down, before anything is made.
    ///
    /// # Errors
    /// When the registry cannot be written.
    pub fn claim(nodes: usize, binary: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(REGISTRY)
            .with_context(|| format!("cannot make the folder {REGISTRY}; this needs root"))?;
        let owner = ProcessRef::of(std::process::id())
            .context("cannot read this process's entry in /proc")?;
        for _ in 0..64 {
            let id = random_id()?;
            let state = Self::planned(&id, owner, nodes, binary.to_path_buf());
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(state.file())
            {
                Ok(_) => {
                    state.save()?;
                    return Ok(state);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot write {}", state.file().display()));
                }
            }
        }
        bail!("no free lab id; look into {REGISTRY}")
    }

    fn planned(id: &str, owner: ProcessRef, nodes: usize, binary: PathBuf) -> Self {
        let network = net::Network::plan(id, nodes);
        let work_dir = std::env::temp_dir().join(format!("secmesh-lab-{id}"));
        let spare = Node::planned(id, &work_dir, net::SPARE.to_owned(), nodes + 1);
        let nodes = (1..=nodes)
            .map(|number| Node::planned(id, &work_dir, format!("n{number}"), number))
            .collect();
        Self {
            id: id.to_owned(),
            owner,
            open: false,
            binary,
            work_dir,
            namespaces: network.namespaces(),
            nodes,
            spare: Some(spare),
        }
    }

    fn file(&self) -> PathBuf {
        Path::new(REGISTRY).join(format!("{}.json", self.id))
    }

    /// Writes the state down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        let file = self.file();
        let new = file.with_extension("new");
        let text = serde_json::to_vec_pretty(self).context("cannot encode the lab's state")?;
        std::fs::File::create(&new)
            .and_then(|mut out| out.write_all(&text))
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The namespace called `role`: `switch`, `attacker` or `client`.
    pub fn namespace(&self, role: &str) -> String {
        net::namespace(&self.id, role)
    }

    /// The address of a node.
    pub fn address(node: &Node, family: net::Family) -> IpAddr {
        net::node_address(family, node.number)
    }

    /// Where the agents keep their maps.
    fn pins(&self) -> Vec<PathBuf> {
        let all = self.nodes.iter().chain(&self.spare);
        all.flat_map(|node| {
            // Where an agent that was killed was filling new maps.
            let mut next = node.pin_dir.clone().into_os_string();
            next.push("-next");
            [node.pin_dir.clone(), PathBuf::from(next)]
        })
        .collect()
    }

    /// What is still there of a lab that was removed: namespaces, files, pins, processes.
    ///
    /// # Errors
    /// When `ip` or `/proc` does not say.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut left: Vec<String> = net::existing_namespaces()?
            .into_iter()
            .filter(|name| self.namespaces.contains(name))
            .collect();
        let files = self.pins().into_iter();
        let files = files.chain([self.work_dir.clone(), self.file()]);
        left.extend(
            files
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        let ours = self.work_dir.to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc").context("cannot read /proc")? {
            let folder = entry.context("cannot read /proc")?.path();
            // Whatever ends while we look is not left.
            let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&ours) {
                left.push(format!("process {}", folder.display()));
            }
        }
        Ok(left)
    }

    /// Removes everything that this lab made: processes, namespaces, pins, its files unless `keep_files`.
    ///
    /// # Errors
    /// What could not be removed; it goes on with the rest first.
    pub fn remove(&self, keep_files: bool) -> anyhow::Result<()> {
        let mut trouble: Vec<String> = Vec::new();
        let nodes = self.nodes.iter().chain(&self.spare);
        let agents: Vec<ProcessRef> = nodes.filter_map(|node| node.agent).collect();
        for agent in &agents {
            agent.kill();
        }
        // One that is in the kernel meanwhile ends only once it comes back from there.
        let ended = clock::wait_until(KILLED, POLL, || {
            Ok((!agents.iter().any(|agent| agent.is_alive())).then_some(()))
        });
        if !matches!(ended, Ok(Some(()))) {
            trouble.push("an agent that was killed still runs".to_owned());
        }
        for namespace in &self.namespaces {
            if let Err(error) = net::remove_namespace(namespace) {
                trouble.push(format!("{error:#}"));
            }
        }
        let files = (!keep_files).then(|| self.work_dir.clone());
        for folder in self.pins().into_iter().chain(files) {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    trouble.push(format!("cannot remove {}: {error}", folder.display()));
                }
                _ => {}
            }
        }
        if !trouble.is_empty() {
            // The file stays, so that the next start tries again.
            bail!("{}", trouble.join("; "));
        }
        std::fs::remove_file(self.file())
            .with_context(|| format!("cannot remove {}", self.file().display()))
    }
}

/// All labs in the registry.
///
/// # Errors
/// When the registry cannot be read.
pub fn all() -> anyhow::Result<Vec<LabState>> {
    let entries = match std::fs::read_dir(REGISTRY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {REGISTRY}")),
    };
    let mut labs = Vec::new();
    for entry in entries {
        let file = entry
            .with_context(|| format!("cannot read {REGISTRY}"))?
            .path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // A file that another lab is just writing, or just removed, is that lab's matter.
        if let Ok(state) = std::fs::read(&file)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        {
            labs.push(state);
        }
    }
    Ok(labs)
}

/// A running lab that others may use.
///
/// # Errors
/// When the registry cannot be read.
pub fn open_lab() -> anyhow::Result<Option<LabState>> {
    Ok(all()?
        .into_iter()
        .find(|lab| lab.open && lab.owner.is_alive()))
}

/// Removes what labs left whose owner is dead; gives their ids.
///
/// # Errors
/// When something of them could not be removed.
pub fn remove_stale() -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for lab in all()?.into_iter().filter(|lab| !lab.owner.is_alive()) {
        lab.remove(false)
            .with_context(|| format!("cannot clean up after the lab {}, which crashed", lab.id))?;
        removed.push(lab.id);
    }
    Ok(removed)
}

fn random_id() -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0_u8; 2];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(format!("{:04x}", u16::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let own = ProcessRef::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(
            !ProcessRef {
                started_ticks: own.started_ticks + 1,
                ..own
            }
            .is_alive()
        );
        assert!(ProcessRef::of(u32::MAX).is_none());
    }

    #[test]
    fn a_dead_process_is_not_alive() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = ProcessRef::of(child.id()).unwrap();
        assert!(process.is_alive());
        process.kill();
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn all_that_a_lab_makes_carries_its_id() {
        let owner = ProcessRef {
            pid: 1,
            started_ticks: 1,
        };
        let lab = LabState::planned("beef", owner, 4, PathBuf::new());
        assert_eq!(lab.nodes.len(), 4);
        assert_eq!(lab.namespaces.len(), 8);
        assert!(
            lab.namespaces
                .iter()
                .all(|name| name.starts_with("smbeef-"))
        );
        assert!(
            lab.nodes
                .iter()
                .all(|node| node.pin_dir.to_string_lossy().contains("secmesh-lab-beef-"))
        );
        assert!(lab.work_dir.to_string_lossy().contains("beef"));
    }
}
