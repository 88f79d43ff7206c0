//! Making a node: what `init` and `join` share.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use super::args::NodeArgs;
use super::{CliError, Context, note};
use crate::mesh::admission::NodeRecord;
use crate::mesh::crypto::Signer;
use crate::mesh::identity::{Identity, IdentityError, load_operator_key};
use crate::mesh::ids::{MeshId, Name, Zone};
use crate::mesh::store::MeshStore;
use crate::state::{AgentLock, StateDir, StateError, read_capped_text};

/// Characters of a zone's name.
const ZONE_CHARS: usize = 32;

/// What [`Identity::create`] writes, the file that completes it first.
const IDENTITY_FILES: [&str; 5] = [
    "identity.json",
    "vote.key",
    "ledger.key",
    "ledger-pq.key",
    "tls.key",
];
const LOCK_FILE: &str = "agent.lock";

/// A state directory that is being filled. Dropped before [`NewState::finish`], it takes back what
/// was made.
pub struct NewState {
    /// The directory.
    pub dir: StateDir,
    lock: Option<AgentLock>,
    /// Files to take back.
    made: Vec<String>,
    made_dir: bool,
    finished: bool,
}

impl NewState {
    /// Begins to fill the directory at `path`, which may be missing.
    ///
    /// # Errors
    /// [`CliError::Failed`] if there is a node already; [`StateError::Locked`] if an agent runs on it.
    pub fn begin(path: &Path) -> Result<Self, CliError> {
        let made_dir = path.symlink_metadata().is_err();
        let dir = StateDir::create(path)?;
        let had_lock = dir.has(LOCK_FILE);
        let lock = dir.lock()?;
        let mut new = Self {
            dir,
            lock: Some(lock),
            made: Vec::new(),
            made_dir,
            finished: false,
        };
        if !had_lock {
            new.made.push(LOCK_FILE.to_owned());
        }
        let shown = path.display();
        if MeshStore::exists(&new.dir) {
            return Err(CliError::Failed(format!(
                "{shown} belongs to a node of a mesh already, and nothing was changed; use another --state directory, or move this one away"
            )));
        }
        if new.dir.ledger().exists() {
            return Err(CliError::Failed(format!(
                "{shown} holds a ledger but no membership, and nothing was changed: restore members.bin and genesis.bin from a backup, or move the directory away"
            )));
        }
        if Identity::exists(&new.dir) || new.dir.has("genesis.bin") {
            note(&format!(
                "{shown} was left by a command that did not finish; starting over"
            ));
        }
        new.made.extend(IDENTITY_FILES.map(str::to_owned));
        new.take_back(&IDENTITY_FILES);
        MeshStore::remove(&new.dir)
            .map_err(|e| CliError::Failed(format!("cannot clear {shown}: {e}")))?;
        Ok(new)
    }

    /// Notes that `file` is of this command's making.
    pub fn made(&mut self, file: &str) {
        self.made.push(file.to_owned());
    }

    /// Keeps what was made.
    pub fn finish(mut self) {
        self.finished = true;
    }

    fn take_back<S: AsRef<str>>(&self, names: &[S]) {
        for name in names {
            let path = self.dir.file(name.as_ref());
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot take back a file");
                }
                _ => {}
            }
        }
    }
}

impl Drop for NewState {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Nothing of ours was written over an existing membership, so only our own goes.
        if self.made.iter().any(|name| name == IDENTITY_FILES[0])
            && let Err(error) = MeshStore::remove(&self.dir)
        {
            tracing::warn!(%error, "cannot take back the membership");
        }
        self.take_back(&self.made);
        drop(self.lock.take());
        if self.made_dir {
            // Fails if somebody else has put something there, which is then theirs.
            drop(std::fs::remove_dir(self.dir.path()));
        }
    }
}

/// Makes the node's keys.
///
/// # Errors
/// I/O, or a host name that cannot be a node's name.
pub fn identity(
    new: &NewState,
    context: &Context,
    args: &NodeArgs,
) -> Result<(Identity, Option<SocketAddr>), CliError> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let advertise = match args.advertise {
        Some(address) => Some(address),
        None => context.config()?.mesh.advertise,
    };
    let text = advertise.map(|address| address.to_string());
    let zone = match &args.zone {
        Some(zone) => zone.clone(),
        None => own_zone(&name)?,
    };
    Ok((Identity::create(&new.dir, name, zone, text)?, advertise))
}

/// A zone for a node that names none: itself. One zone for all of them would be one zone that can
/// outvote the mesh.
fn own_zone(name: &Name) -> Result<Zone, CliError> {
    let text: String = name.as_str().chars().take(ZONE_CHARS).collect();
    Zone::new(&text).map_err(|e| {
        CliError::Usage(format!(
            "no zone can be made of the name ({e}); give one with --zone"
        ))
    })
}

fn host_name() -> Result<Name, CliError> {
    let ask = || {
        CliError::Usage("the host's name cannot be a node's name; give one with --name".to_owned())
    };
    let text = read_capped_text(Path::new("/proc/sys/kernel/hostname"), 256).map_err(|_| ask())?;
    Name::new(text.trim().split('.').next().unwrap_or_default()).map_err(|_| ask())
}

/// What the node says of itself.
pub fn record(
    identity: &Identity,
    mesh: MeshId,
    address: Option<SocketAddr>,
    joined_unix_us: u64,
) -> NodeRecord {
    NodeRecord {
        mesh,
        node: identity.node_id(),
        name: identity.name().clone(),
        zone: identity.zone().clone(),
        incarnation: identity.incarnation(),
        vote_key: identity.vote_key().verifying_key().to_bytes(),
        ledger_key: identity.ledger_key().verifying_key().to_bytes(),
        pq_key_hash: identity.ledger_pq_key().public().hash(),
        tls_spki_sha256: identity.tls().spki_sha256(),
        address,
        joined_unix_us,
    }
}

/// The node's signer of votes.
pub fn voter(identity: &Identity) -> Signer {
    Signer::from_secret(&identity.vote_key().to_bytes())
}

/// The operator's key in `path`.
///
/// # Errors
/// Says where to look for it if it is not there.
pub fn operator_key(path: &Path) -> Result<Signer, CliError> {
    match load_operator_key(path) {
        Ok(key) => Ok(Signer::from_secret(&key.to_bytes())),
        Err(IdentityError::State(StateError::Io { source, .. }))
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Err(CliError::Failed(format!(
                "there is no operator key at {}; `secmesh init` put it into the state directory of the mesh's first node: run this there, or name a copy with --operator-key",
                path.display()
            )))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::OnceCell;
    use std::path::PathBuf;

    use super::super::args::{Cli, Command, InitArgs};
    use super::super::output::{Out, Paint};
    use super::super::{Global, init, join};
    use super::*;
    use crate::mesh::admission::AdmittedRecord;
    use crate::mesh::genesis::Genesis;
    use clap::Parser as _;

    pub(in crate::cli) fn with_temp(test: impl FnOnce(&Path)) {
        let temp = tempfile::tempdir().unwrap();
        test(temp.path());
    }

    /// A node that the operator let in.
    pub(in crate::cli) fn new_node(
        path: &Path,
        genesis: &Genesis,
        operator: &Signer,
    ) -> AdmittedRecord {
        let dir = StateDir::create(path).unwrap();
        let identity =
            Identity::create(&dir, "n".parse().unwrap(), "z".parse().unwrap(), None).unwrap();
        record(&identity, genesis.mesh_id(), None, 5).admit_by_operator(&voter(&identity), operator)
    }

    fn context(state: PathBuf) -> Context {
        let config = OnceCell::from(crate::config::Config::default());
        Context {
            global: Global {
                state: Some(state),
                ..Global::default()
            },
            config,
        }
    }

    fn init_args(line: &str) -> InitArgs {
        let words = ["secmesh", "init"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Init(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn run_init(state: &Path, line: &str) -> Result<serde_json::Value, CliError> {
        let mut written = Vec::new();
        let mut out = Out::new(&mut written, true, Paint(false), 1_700_000_000_000_000);
        init::init(&context(state.to_owned()), init_args(line), &mut out)?;
        Ok(serde_json::from_slice(&written).unwrap())
    }

    fn run_join(state: &Path, ticket: &str) -> Result<(), CliError> {
        let mut written = Vec::new();
        let mut out = Out::new(&mut written, true, Paint(false), 1_700_000_000_000_000);
        let Command::Join(args) = Cli::try_parse_from(["secmesh", "join", ticket, "--name", "n2"])
            .unwrap()
            .command
        else {
            panic!("not join")
        };
        join::join(&context(state.to_owned()), args, &mut out)
    }

    #[test]
    fn init_makes_a_node_that_can_be_loaded_and_verified() {
        with_temp(|temp| {
            let state = temp.join("deep/state");
            let line = "--name n1 --mesh lab --zone z1 --advertise 192.0.2.1:4747 --block-ttl 2h";
            let said = run_init(&state, line).unwrap();
            let dir = StateDir::open(&state).unwrap();
            let store = MeshStore::load(&dir).unwrap();
            let identity = Identity::load(&dir).unwrap();
            let genesis = store.genesis.genesis;
            assert_eq!(genesis.params.block_ttl_s, 7_200);
            assert_eq!(said["mesh_id"], genesis.mesh_id().to_string());
            assert_eq!(said["node"], identity.node_id().to_string());
            assert_eq!(said["mesh"], "lab");
            let [first] = store.members.as_slice() else {
                panic!("not one member")
            };
            first.verify(&genesis).unwrap();
            assert_eq!(first.record.node, identity.node_id());
            assert_eq!(
                first.record.address,
                Some("192.0.2.1:4747".parse().unwrap())
            );
            assert_eq!(
                operator_key(&dir.file("operator.key")).unwrap().public(),
                genesis.operator_key
            );
        });
    }

    #[test]
    fn init_over_a_node_is_refused_and_changes_nothing() {
        with_temp(|temp| {
            let state = temp.join("state");
            run_init(&state, "--name n1").unwrap();
            let dir = StateDir::open(&state).unwrap();
            let before = (
                MeshStore::load(&dir).unwrap(),
                Identity::load(&dir).unwrap().node_id(),
            );
            let error = run_init(&state, "--name n1").unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains("belongs to a node"), "{error}");
            assert_eq!(
                (
                    MeshStore::load(&dir).unwrap(),
                    Identity::load(&dir).unwrap().node_id()
                ),
                before
            );
            assert!(dir.has("operator.key"));
        });
    }

    #[test]
    fn what_an_interrupted_command_left_is_cleared_but_a_ledger_is_not() {
        with_temp(|temp| {
            let state = temp.join("state");
            run_init(&state, "--name n1").unwrap();
            let dir = StateDir::open(&state).unwrap();
            let before = Identity::load(&dir).unwrap().node_id();
            let operator = operator_key(&dir.file("operator.key")).unwrap().public();
            std::fs::remove_file(dir.file("members.bin")).unwrap();
            run_init(&state, "--name n1").unwrap();
            assert_ne!(Identity::load(&dir).unwrap().node_id(), before);
            assert_eq!(
                MeshStore::load(&dir).unwrap().genesis.genesis.operator_key,
                operator,
                "the operator's key stays"
            );
            std::fs::remove_file(dir.file("members.bin")).unwrap();
            crate::state::write_atomic(&dir.ledger(), b"x", 0o600).unwrap();
            let error = run_init(&state, "--name n1").unwrap_err().to_string();
            assert!(error.contains("holds a ledger"), "{error}");
            assert!(Identity::load(&dir).is_ok() && dir.has("genesis.bin"));
        });
    }

    #[test]
    fn a_failed_init_or_join_leaves_nothing_behind() {
        with_temp(|temp| {
            let state = temp.join("state");
            // Nobody listens at port 1.
            let ticket = join_ticket("127.0.0.1:1");
            let error = run_join(&state, &ticket).unwrap_err();
            assert_eq!(error.exit_code(), 1, "{error}");
            assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
            assert!(!state.exists());
            // A directory that was there stays, with what was in it.
            StateDir::create(&state).unwrap();
            crate::state::write_atomic(&state.join("mine"), b"x", 0o600).unwrap();
            run_join(&state, &ticket).unwrap_err();
            let left: Vec<_> = std::fs::read_dir(&state)
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            assert_eq!(left, ["mine"]);
            // A file in the way of the membership makes saving fail at the last step.
            std::fs::create_dir(state.join("genesis.bin")).unwrap();
            run_init(&state, "--name n1").unwrap_err();
            let mut left: Vec<_> = std::fs::read_dir(&state)
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            left.sort();
            assert_eq!(left, ["genesis.bin", "mine"]);
        });
    }

    fn join_ticket(address: &str) -> String {
        use crate::mesh::admission::Grant;
        use crate::mesh::genesis::Params;
        use crate::mesh::identity::Ticket;
        let operator = Signer::from_secret(&[1; 32]);
        let genesis = Genesis {
            mesh_name: "lab".parse().unwrap(),
            operator_key: operator.public(),
            created_unix_us: 1,
            params: Params::default(),
        };
        let grant = Grant {
            mesh: genesis.mesh_id(),
            ticket: crate::mesh::ids::TicketId([3; 16]),
            ticket_key: Signer::from_secret(&[5; 32]).public(),
            name_hint: None,
            issued_unix_us: 1_699_999_999_000_000,
            expires_unix_us: 1_700_000_100_000_000,
            epoch: Some(crate::mesh::admission::EpochMark {
                number: 1,
                hash: crate::mesh::ids::Hash([1; 32]),
            }),
        };
        Ticket {
            genesis: genesis.sign(&operator).to_bytes(),
            grant: grant.sign(&operator).to_bytes(),
            seed: [5; 32],
            addresses: vec![address.to_owned()],
            pins: vec![[0; 32]],
        }
        .encode()
        .unwrap()
    }

    #[test]
    fn a_missing_operator_key_says_where_it_is() {
        let error = operator_key(Path::new("/nonexistent/operator.key")).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("--operator-key"), "{error}");
    }
}
