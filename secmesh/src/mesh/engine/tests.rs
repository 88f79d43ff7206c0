//! Several engines in one process, joined by a network that a test (or a random schedule) runs.

mod answers;
mod bounds;
mod catchup;
mod departed;
mod epoch_schedules;
mod epochs;
mod evidence;
mod filling;
mod inventory;
mod join;
mod late;
mod limits;
mod liveness;
mod networks;
mod pardon;
mod quarantine;
mod refusals;
mod room;
mod rules;
mod schedules;
mod seats;
mod seats_attacks;
mod standby;
mod standings;
mod vouched;
mod work;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::*;
use crate::mesh::cert::CertVerdict;
use crate::mesh::epoch::StoredEpochs;
use crate::mesh::evidence::EvidenceMessage;
use crate::mesh::testing::*;
use crate::mesh::vote::{Action, Verdict};

/// What an operator of a test node can set.
#[derive(Debug, Clone, Default)]
struct TestPolicy {
    allowed: Rc<RefCell<BTreeSet<Prefix>>>,
    noisy: Rc<RefCell<bool>>,
    automatic: Rc<RefCell<Automatic>>,
    /// Nodes that its operator protects.
    protected: Rc<RefCell<BTreeSet<NodeId>>>,
}

impl Policy for TestPolicy {
    fn vetoes(&self, subject: &Prefix) -> Option<String> {
        let allowed = self.allowed.borrow();
        allowed
            .iter()
            .find(|a| a.overlaps(subject))
            .map(|a| format!("{a} is on the allowlist"))
    }

    fn is_quiet(&self, _: &Prefix) -> bool {
        !*self.noisy.borrow()
    }

    fn vetoes_node(&self, node: &NodeId) -> Option<String> {
        let protected = self.protected.borrow();
        protected.contains(node).then(|| "protected".to_owned())
    }

    fn quarantines(&self) -> Automatic {
        *self.automatic.borrow()
    }
}

/// A message under way.
#[derive(Debug, Clone)]
struct Packet {
    from: u8,
    to: u8,
    bytes: Vec<u8>,
}

/// Place of a second engine with the keys of node 4, which knows nothing of the first: together they are a
/// liar that says one thing here and another there, and both by the rules.
const TWIN: u8 = 14;

/// The node at a place of the net.
fn id_at(place: u8) -> NodeId {
    node_id(if place == TWIN { 4 } else { place })
}

/// A mesh of nodes 1, 2, ….
struct Net {
    now: u64,
    engines: BTreeMap<u8, Engine>,
    policies: BTreeMap<u8, TestPolicy>,
    /// Votes on the disk of each node.
    disks: BTreeMap<u8, Vec<Vec<u8>>>,
    /// Statements on the disk of each node.
    evidence: BTreeMap<u8, Vec<Vec<u8>>>,
    /// What each node signed last about an epoch, and the epochs it knows.
    locks: BTreeMap<u8, Vec<u8>>,
    epochs: BTreeMap<u8, Vec<u8>>,
    outputs: BTreeMap<u8, Vec<Output>>,
    links: BTreeSet<(u8, u8)>,
    /// Whether who is admitted counts as started, though no engine of it is here.
    all_run: bool,
    queue: Vec<Packet>,
}

fn engine(i: u8, records: Vec<AdmittedRecord>) -> Engine {
    let config = EngineConfig {
        genesis: genesis(),
        node: node_id(i),
        incarnation: 1,
        signer: signer(i),
        evidence_ttl_s: 60,
    };
    Engine::new(config, records)
}

impl Net {
    /// One node per zone given, all connected.
    fn new(zones: &[&str]) -> Self {
        let mut net = Self {
            now: T0,
            engines: BTreeMap::new(),
            policies: BTreeMap::new(),
            disks: BTreeMap::new(),
            evidence: BTreeMap::new(),
            locks: BTreeMap::new(),
            epochs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            links: BTreeSet::new(),
            all_run: true,
            queue: Vec::new(),
        };
        for (i, _) in (1..).zip(zones) {
            net.add(i, records(zones));
        }
        net.connect_all();
        net.run();
        net.outputs.clear();
        net
    }

    /// Four nodes in four zones.
    fn four() -> Self {
        Self::new(&["a", "b", "c", "d"])
    }

    fn add(&mut self, i: u8, records: Vec<AdmittedRecord>) {
        let node = if i == TWIN { 4 } else { i };
        let mut engine = engine(node, records);
        // The tests' nodes run as soon as they are admitted, whether they are in the net or not.
        let admitted: Vec<NodeId> = engine.admissions().map(|a| a.record.node).collect();
        engine.seen.extend(admitted);
        self.engines.insert(i, engine);
        self.policies.entry(i).or_default();
    }

    /// Node `i` loses its memory and keeps its disk.
    fn crash(&mut self, i: u8) {
        let records = self.engines[&i].admissions().cloned().collect();
        self.add(i, records);
        let engine = self.engines.get_mut(&i).unwrap();
        if let Some(bytes) = self.epochs.get(&i) {
            engine
                .restore_epochs(StoredEpochs::from_bytes(bytes).unwrap())
                .unwrap();
        }
        if let Some(bytes) = self.locks.get(&i) {
            engine.restore_lock(bytes).unwrap();
        }
        for bytes in self.disks.get(&i).cloned().unwrap_or_default() {
            engine.restore_vote(&bytes).unwrap();
        }
        for bytes in self.evidence.get(&i).into_iter().flatten() {
            engine.restore_statement(bytes).unwrap();
        }
        engine.evidence_restored(true);
    }

    fn ids(&self) -> Vec<u8> {
        self.engines.keys().copied().collect()
    }

    fn connect(&mut self, a: u8, b: u8) {
        for (x, y) in [(a, b), (b, a)] {
            if self.links.insert((x, y)) {
                self.input(x, Input::PeerUp(id_at(y)));
            }
        }
    }

    fn connect_all(&mut self) {
        for a in self.ids() {
            for b in self.ids() {
                if a < b {
                    self.connect(a, b);
                }
            }
        }
    }

    fn disconnect(&mut self, a: u8, b: u8) {
        self.queue
            .retain(|p| (p.from, p.to) != (a, b) && (p.from, p.to) != (b, a));
        for (x, y) in [(a, b), (b, a)] {
            if self.links.remove(&(x, y)) {
                self.input(x, Input::PeerDown(id_at(y)));
            }
        }
    }

    /// Cuts every link between the two sides.
    fn split(&mut self, left: &[u8], right: &[u8]) {
        for a in left {
            for b in right {
                self.disconnect(*a, *b);
            }
        }
    }

    fn input(&mut self, i: u8, input: Input<'_>) {
        let mut out = Vec::new();
        let policy = self.policies[&i].clone();
        let now = self.now;
        let admitted = match &input {
            Input::Admit(admitted) => Some(admitted.record.node),
            Input::Message { bytes, .. } => match Message::from_bytes(bytes) {
                Ok(Message::Admission(admitted)) => Some(admitted.record.node),
                _ => None,
            },
            _ => None,
        };
        for engine in self.engines.values_mut().filter(|_| self.all_run) {
            engine.seen.extend(admitted);
        }
        let engine = self.engines.get_mut(&i).unwrap();
        engine.handle(now, input, &policy, &mut out);
        if out
            .iter()
            .any(|o| matches!(o, Output::Epoch(_) | Output::Removal(_)))
        {
            self.epochs.insert(i, engine.stored_epochs().to_bytes());
        }
        let sent_by_me = |bytes: &[u8]| match Message::from_bytes(bytes) {
            Ok(Message::Vote(ballot)) if ballot.signed.vote.voter == id_at(i) => {
                Some(ballot.to_bytes())
            }
            _ => None,
        };
        for output in &out {
            let (bytes, to) = match output {
                Output::Persist(bytes) => {
                    self.disks.entry(i).or_default().push(bytes.clone());
                    continue;
                }
                Output::KeepEvidence { bytes, .. } => {
                    self.evidence.entry(i).or_default().push(bytes.clone());
                    continue;
                }
                Output::PersistEpoch(bytes) => {
                    self.locks.insert(i, bytes.clone());
                    continue;
                }
                Output::Broadcast(bytes) => (bytes, None),
                Output::Send { to, bytes } => (bytes, Some(*to)),
                _ => continue,
            };
            assert!(bytes.len() <= MAX_MESSAGE);
            let epoch_vote = match Message::from_bytes(bytes) {
                Ok(Message::EpochVote(signed)) => Some(*signed),
                Ok(Message::EpochProposal(proposal)) => Some(proposal.signed),
                _ => None,
            };
            if let Some(signed) = epoch_vote {
                let lock = self
                    .locks
                    .get(&i)
                    .map(|b| LockState::from_bytes(b).unwrap());
                assert!(
                    lock.is_some_and(|lock| lock.holds(&signed)),
                    "a vote on an epoch left before it was on the disk"
                );
            }
            if let Some(ballot) = sent_by_me(bytes) {
                let disk = self.disks.get(&i);
                assert!(
                    disk.is_some_and(|disk| disk.contains(&ballot)),
                    "a vote left before it was on the disk"
                );
            }
            if let Ok(Message::Evidence(message)) = Message::from_bytes(bytes)
                && let EvidenceMessage::Statements(statements) = *message
            {
                let own = statements
                    .iter()
                    .filter(|s| s.head().author == node_id(i))
                    .all(|s| {
                        let disk = self.evidence.get(&i);
                        disk.is_some_and(|disk| disk.contains(&s.to_bytes()))
                    });
                assert!(own, "a statement left before it was on the disk");
            }
            for (_, peer) in self.links.iter().filter(|(from, _)| *from == i) {
                if to.is_none_or(|to| to == id_at(*peer)) {
                    self.queue.push(Packet {
                        from: i,
                        to: *peer,
                        bytes: bytes.clone(),
                    });
                }
            }
        }
        self.outputs.entry(i).or_default().extend(out);
    }

    fn deliver(&mut self, packet: &Packet) {
        if self.engines.contains_key(&packet.to) {
            self.input(
                packet.to,
                Input::Message {
                    from: id_at(packet.from),
                    bytes: &packet.bytes,
                },
            );
        }
    }

    /// Delivers everything, in order, until nobody says anything more.
    fn run(&mut self) {
        for _ in 0..100_000 {
            if self.queue.is_empty() {
                return;
            }
            let packet = self.queue.remove(0);
            self.deliver(&packet);
        }
        panic!("the nodes never stop talking");
    }

    fn tick(&mut self, us: u64) {
        self.now += us;
        for i in self.ids() {
            self.input(i, Input::Tick);
        }
    }

    fn sees(&mut self, i: u8, subject: Prefix) {
        self.sees_class(i, subject, AttackClass::SynFlood);
    }

    fn sees_class(&mut self, i: u8, subject: Prefix, class: AttackClass) {
        self.input(
            i,
            Input::OwnEvidence {
                subject,
                class,
                evidence_root: Hash([i; 32]),
                detector_hash: Hash([0xdd; 32]),
            },
        );
    }

    /// Sends what an attacker with node `from`'s connection made up.
    fn inject(&mut self, from: u8, to: u8, message: &Message) {
        let bytes = message.to_bytes();
        self.deliver(&Packet { from, to, bytes });
    }

    fn roster(&self) -> &Roster {
        self.engines.values().next().unwrap().roster()
    }

    /// A block that this node was told to write into its kernel.
    fn decided(&self, i: u8, subject: Prefix) -> BTreeSet<DecisionId> {
        self.outputs
            .get(&i)
            .into_iter()
            .flatten()
            .filter_map(|o| match o {
                Output::Decide(d) if d.action.subject == subject => Some(d.id),
                _ => None,
            })
            .collect()
    }

    fn blocks(&self, i: u8, subject: Prefix) -> bool {
        self.engines[&i]
            .active_block(&subject)
            .is_some_and(|d| d.vetoed.is_none())
    }

    fn refused(&self, i: u8, reason: RefusalReason) -> u64 {
        self.engines[&i].refusals()[&reason]
    }

    fn refused_or_none(&self, i: u8, reason: RefusalReason) -> u64 {
        let refusals = self.engines[&i].refusals();
        refusals.get(&reason).copied().unwrap_or(0)
    }

    fn own_verdicts(&self, i: u8) -> Vec<Verdict> {
        self.disks
            .get(&i)
            .into_iter()
            .flatten()
            .map(|bytes| Ballot::from_bytes(bytes).unwrap().signed.vote.verdict)
            .collect()
    }

    /// No node ever signed two different votes for one slot.
    fn nobody_contradicts_itself(&self) {
        for (i, disk) in &self.disks {
            let mut slots = BTreeMap::new();
            for bytes in disk {
                let vote = Ballot::from_bytes(bytes).unwrap().signed.vote;
                let slot = (vote.epoch_hash, vote.incident, vote.round);
                let other = slots.insert(slot, bytes);
                assert!(other.is_none_or(|other| other == bytes), "node {i} lied");
            }
        }
    }
}

/// A block of `subject` as every node of a test mesh would vote on it.
fn block(subject: Prefix) -> Action {
    let params = genesis().params;
    Action::block(subject, AttackClass::SynFlood, &params)
}

fn vote_of(net: &Net, i: u8, action: Action, verdict: Verdict, sequence: u64) -> Message {
    let roster = net.roster();
    Message::Vote(Box::new(ballot(
        roster, i, action, verdict, sequence, net.now,
    )))
}
