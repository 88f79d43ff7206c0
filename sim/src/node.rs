//! One node: the engine, and what stands around it in the real agent.

mod restore;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use secmesh::addr::Prefix;
use secmesh::mesh::admission::AdmittedRecord;
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::engine::{Automatic, Engine, EngineConfig, Policy};
use secmesh::mesh::epoch::{LockState, Step};
use secmesh::mesh::genesis::Genesis;
use secmesh::mesh::ids::{DecisionId, Hash, NodeId};
use secmesh::mesh::vote::ActionKind;

use crate::cast::{S, START_US};
use crate::rng::Rng;
use crate::world::{Notary, Watchman};

/// How long own evidence counts, as in the default configuration.
pub const EVIDENCE_TTL_S: u32 = 60;
/// A source that was seen within this time is not quiet.
const QUIET_US: u64 = 10 * S;

/// One entry of the ledger that is read back at a start.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A vote, before it was sent.
    Vote(Vec<u8>),
    /// A proof that somebody lied.
    Proof(Vec<u8>),
    /// A proof that somebody signed two ledgers.
    Fork(Vec<u8>),
    /// An epoch, a seal on one, or a removal: for people and for proofs, not read back.
    Told(Vec<u8>),
    /// A decision.
    Decision {
        /// Block, release, quarantine or readmission.
        kind: ActionKind,
        /// Its warrant.
        warrant: Vec<u8>,
        /// When it was learned of.
        certified_unix_us: u64,
        /// Why this node takes no part in it.
        vetoed: Option<String>,
    },
}

impl Entry {
    /// What its leaf in the ledger's tree is made of.
    pub fn leaf(&self) -> Vec<u8> {
        let (kind, bytes) = match self {
            Self::Vote(bytes) => (1, bytes),
            Self::Proof(bytes) => (2, bytes),
            Self::Fork(bytes) => (3, bytes),
            Self::Told(bytes) => (4, bytes),
            Self::Decision { warrant, .. } => (5, warrant),
        };
        [&[kind], bytes.as_slice()].concat()
    }
}

/// The ledger and the other files. A durable append makes all before it in its file durable, too.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    log: Vec<Entry>,
    durable: usize,
    /// `evidence.log`; none before the first start.
    evidence: Option<Vec<Vec<u8>>>,
    evidence_durable: usize,
    /// `epoch-lock.bin`, which is replaced as a whole.
    lock: Option<Vec<u8>>,
    /// `epochs.bin`, the same.
    epochs: Option<Vec<u8>>,
    /// Time of the last checkpoint, seconds.
    pub signed_s: u64,
    /// What was witnessed of other ledgers, a file for each.
    pub witnessed: BTreeMap<NodeId, Vec<u8>>,
    /// `members.bin`, which is replaced as a whole.
    pub records: Vec<AdmittedRecord>,
    /// Whether it refuses to write.
    pub fails: bool,
}

impl Disk {
    /// Appends; in the page cache until something durable follows.
    pub fn append(&mut self, entry: Entry) {
        if !self.fails {
            self.log.push(entry);
        }
    }

    /// Appends and waits for the disk. False if it refuses.
    pub fn append_durable(&mut self, entry: Entry) -> bool {
        if self.fails {
            return false;
        }
        self.log.push(entry);
        self.durable = self.log.len();
        true
    }

    /// Whether this vote is durable.
    pub fn holds_vote(&self, ballot: &[u8]) -> bool {
        self.log
            .iter()
            .take(self.durable)
            .rev()
            .any(|entry| matches!(entry, Entry::Vote(bytes) if bytes == ballot))
    }

    /// Appends a statement to the evidence log. False if it had to be durable and the disk refuses.
    pub fn append_evidence(&mut self, statement: Vec<u8>, own: bool) -> bool {
        if self.fails {
            return !own;
        }
        let log = self.evidence.get_or_insert_default();
        log.push(statement);
        if own {
            self.evidence_durable = log.len();
        }
        true
    }

    /// Whether this statement is durable.
    pub fn holds_statement(&self, statement: &[u8]) -> bool {
        let log = self.evidence.iter().flatten();
        log.take(self.evidence_durable).any(|s| s == statement)
    }

    /// Replaces what was signed about the next epoch. False if the disk refuses.
    pub fn put_lock(&mut self, bytes: Vec<u8>) -> bool {
        if !self.fails {
            self.lock = Some(bytes);
        }
        !self.fails
    }

    /// What was signed last about an epoch.
    pub fn lock(&self) -> Option<LockState> {
        LockState::from_bytes(self.lock.as_ref()?).ok()
    }

    /// Replaces the epochs. False if the disk refuses.
    pub fn put_epochs(&mut self, bytes: Vec<u8>) -> bool {
        if !self.fails {
            self.epochs = Some(bytes);
        }
        !self.fails
    }

    /// The durable part of the ledger.
    pub fn ledger(&self) -> &[Entry] {
        self.log.get(..self.durable).unwrap_or_default()
    }

    /// Makes the ledger durable, as before a checkpoint. False if the disk refuses.
    pub const fn flush(&mut self) -> bool {
        if !self.fails {
            self.durable = self.log.len();
        }
        !self.fails
    }

    /// A crash: of what was not durable, some of the end is gone.
    pub fn crash(&mut self, rng: &mut Rng) {
        let kept = self.durable + rng.index(self.log.len() - self.durable + 1);
        self.log.truncate(kept);
        self.durable = kept;
        if let Some(log) = &mut self.evidence {
            let kept = self.evidence_durable + rng.index(log.len() - self.evidence_durable + 1);
            log.truncate(kept);
            self.evidence_durable = kept;
        }
        self.fails = false;
    }
}

/// What stands in the kernel's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelBlock {
    /// Whom it blocks.
    pub subject: Prefix,
    /// Its end in true time; the kernel counts on the monotonic clock.
    pub ends_us: u64,
}

/// The node's own view: allowlist, and what it saw lately.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What is never blocked here.
    pub allow: BTreeSet<Prefix>,
    /// When each subject was seen last, in true time.
    pub seen_us: BTreeMap<Prefix, u64>,
    /// True time.
    pub now_us: u64,
    /// For what it has others cut off without being told.
    pub automatic: Automatic,
}

impl Policy for View {
    fn quarantines(&self) -> Automatic {
        self.automatic
    }

    fn vetoes(&self, subject: &Prefix) -> Option<String> {
        self.allow
            .iter()
            .find(|entry| entry.overlaps(subject))
            .map(|entry| format!("{entry} is on the allowlist"))
    }

    fn is_quiet(&self, subject: &Prefix) -> bool {
        self.seen_us
            .get(subject)
            .is_none_or(|seen| self.now_us.saturating_sub(*seen) > QUIET_US)
    }
}

/// A node of a run.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its vote key.
    pub signer: Signer,
    /// The decision core, while it runs.
    pub engine: Option<Engine>,
    /// What outlives a crash.
    pub disk: Disk,
    /// Its allowlist and sensors.
    pub view: View,
    /// Its clock minus true time, microseconds.
    pub clock_us: i64,
    /// Blocks by decision; class-0 blocks are in `own_blocks`.
    pub kernel: BTreeMap<DecisionId, KernelBlock>,
    /// Class-0 blocks: whom, until when.
    pub own_blocks: BTreeMap<Prefix, u64>,
    /// The disk refused a vote: nothing leaves any more.
    pub silenced: bool,
    /// It is to crash after so many outputs of its next call that persists something.
    pub crash_after: Option<usize>,
    /// Whether it belongs to the mesh yet.
    pub joined: bool,
    /// Votes of others that this engine took since it started: voter, sequence.
    pub taken: HashSet<(NodeId, u64)>,
    /// The epoch in which it is, at this output of its call.
    pub in_force: Hash,
    /// Epoch in which it was seen last.
    pub epoch: Option<Hash>,
    /// Everything this node ever sent a vote on, and the bytes: it never says two things.
    pub said: BTreeMap<(Hash, Hash, u32), Vec<u8>>,
    /// Which slot used each of its sequence numbers.
    pub numbered: BTreeMap<u64, (Hash, Hash, u32)>,
    /// Subjects that a release ended: the last bucket it covers, known to this engine.
    pub released: BTreeMap<Prefix, u64>,
    /// Everything this node ever signed about epochs: it never says two things there either.
    pub said_of_epochs: BTreeMap<(u64, Hash, u32, Step), Option<Hash>>,
    /// Every statement this node ever sent, by its number.
    pub stated: BTreeMap<u64, Vec<u8>>,
    /// The last epoch that was in force here, ever.
    pub reached: u64,
    /// Whom it has caught since it started.
    pub caught: BTreeSet<NodeId>,
    /// It and its ledger as a witness and with witnesses, while it runs.
    pub notary: Option<Notary>,
    /// Its failure detector, where the run has one, while it runs.
    pub watchman: Option<Watchman>,
    /// Since when it does not run, if it did before.
    pub down_since: Option<u64>,
    /// When it said last that it may have voted on something before its clock was set back, and is silent.
    pub mute_at: Option<u64>,
    /// Frontier, by its hash, at which trust was last looked at.
    pub judged: Option<Hash>,
    /// Who was cut off here before the call under way: since which bucket.
    pub cut_off: BTreeMap<NodeId, u64>,
    /// Whom this node had in reach before the call under way: itself and the peers, without liars
    /// and those who are cut off.
    pub in_reach: BTreeSet<NodeId>,
    /// Nodes that were taken back: the last bucket that covers, known to this engine.
    pub taken_back: BTreeMap<NodeId, u64>,
    /// Quarantines by vote that it knows of: nodes, with the latest bucket of each.
    pub spent: BTreeMap<NodeId, u64>,
    /// What its operator asked for about other nodes.
    pub asked_about: BTreeSet<NodeId>,
    /// Whom it saw attack.
    pub attacked_by: BTreeSet<NodeId>,
    /// Nodes that it has voted to cut off, and until when such a vote may be in a certificate, by its clock: any vote, and
    /// one that no operator asked for.
    pub wants_off: BTreeMap<NodeId, (u64, u64)>,
    /// Second in which it asked another one for statements last, and how often in it.
    pub asked: BTreeMap<usize, (u64, u32)>,
}

impl Node {
    /// A node that does not run yet.
    pub fn new(id: NodeId, signer: Signer, clock_us: i64, allow: BTreeSet<Prefix>) -> Self {
        Self {
            id,
            signer,
            engine: None,
            disk: Disk::default(),
            view: View {
                allow,
                ..View::default()
            },
            clock_us,
            kernel: BTreeMap::new(),
            own_blocks: BTreeMap::new(),
            silenced: false,
            crash_after: None,
            joined: false,
            taken: HashSet::new(),
            in_force: Hash([0; 32]),
            epoch: None,
            said: BTreeMap::new(),
            numbered: BTreeMap::new(),
            released: BTreeMap::new(),
            said_of_epochs: BTreeMap::new(),
            stated: BTreeMap::new(),
            reached: 0,
            caught: BTreeSet::new(),
            notary: None,
            watchman: None,
            down_since: None,
            mute_at: None,
            judged: None,
            cut_off: BTreeMap::new(),
            in_reach: BTreeSet::new(),
            taken_back: BTreeMap::new(),
            spent: BTreeMap::new(),
            asked_about: BTreeSet::new(),
            attacked_by: BTreeSet::new(),
            wants_off: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Remembers, before a call, who is cut off here and who is in reach.
    pub fn note_reach(&mut self) {
        let Some(engine) = &self.engine else { return };
        self.cut_off = engine
            .quarantined()
            .filter_map(|node| Some((*node, engine.quarantine_of(node)?.bucket)))
            .collect();
        self.in_reach = engine.connected().iter().copied().collect();
        self.in_reach.insert(self.id);
        self.in_reach
            .retain(|node| !engine.liars().contains(node) && !self.cut_off.contains_key(node));
    }

    /// Wall clock of this node, microseconds since 1970.
    pub const fn wall(&self, now_us: u64) -> u64 {
        (START_US + now_us).saturating_add_signed(self.clock_us)
    }

    fn config(&self, genesis: &Genesis) -> EngineConfig {
        EngineConfig {
            genesis: genesis.clone(),
            node: self.id,
            incarnation: 1,
            signer: self.signer.clone(),
            evidence_ttl_s: EVIDENCE_TTL_S,
        }
    }

    /// A copy of another node's engine, for runs where starting each from its records takes too long.
    pub fn start_as_copy(&mut self, genesis: &Genesis, of: &Engine) {
        let mut engine = of.copy_for(self.config(genesis));
        engine.assume_all_connected();
        self.engine = Some(engine);
    }

    /// The memory is gone.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.engine = None;
        self.notary = None;
        self.watchman = None;
        self.disk.crash(rng);
    }
}
