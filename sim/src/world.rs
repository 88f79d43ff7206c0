//! The world: virtual time, links, nodes, liars. One event at a time, and after each the invariants.

mod belief;
mod conduct;
mod epochs;
mod evidence;
mod happen;
mod ledgers;
mod network;
mod outputs;
mod says;
mod shown;
mod takes;
mod watch;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

use secmesh::mesh::engine::{Automatic, Input, Output};
use secmesh::mesh::epoch::EpochSeal;
use secmesh::mesh::genesis::Genesis;
use secmesh::mesh::ids::NodeId;
use secmesh::mesh::swim::SwimMessage;
use secmesh::mesh::vote::BUCKET_US;

pub use self::conduct::budget;
pub use self::ledgers::Notary;
pub use self::ledgers::author;
pub use self::watch::Watchman;
use crate::cast::{self, S};
use crate::liar::Liar;
use crate::node::Node;
use crate::oracle::{Oracle, Violation};
use crate::plan::{Happening, Network, Plan, Swallowed};
use crate::rng::Rng;
use crate::trace::Trace;

/// Time between two ticks of a node.
const TICK_US: u64 = S;
/// Class-0 blocks last at most this long.
const OWN_BLOCK_US: u64 = 900 * S;

/// What is to come.
#[derive(Debug, Clone)]
enum Event {
    Tick(usize),
    /// A failure detector works.
    Beat(usize),
    Deliver {
        from: usize,
        to: usize,
        session: u32,
        bytes: Rc<[u8]>,
    },
    /// Broken links are noticed, whole ones dialled.
    Maintain,
    Session {
        a: usize,
        b: usize,
        up: bool,
    },
    Happen(Happening),
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// A session stands (both directions alike).
    up: bool,
    /// Counts the sessions; what was under way on an old one is lost where order is kept.
    session: u32,
    /// What is sent this way vanishes.
    cut: bool,
    /// What of it vanishes without the link being cut.
    swallowed: Swallowed,
    /// When the last message arrives, for links that keep the order.
    last_us: u64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Counts {
    /// Events.
    pub steps: u64,
    /// Messages handed to the network by honest nodes.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Messages that arrived at an engine.
    pub received: u64,
    /// Decisions that took effect at a node.
    pub decided: u64,
    /// Decisions that a node's allowlist kept out.
    pub vetoed: u64,
    /// Releases that took effect.
    pub released: u64,
    /// Crashes.
    pub crashes: u64,
    /// Things that liars did.
    pub lies: u64,
    /// Proofs that an engine took.
    pub proofs: u64,
    /// Votes that an engine took from peers.
    pub votes_taken: u64,
    /// Epochs that came into force at a node.
    pub epochs: u64,
    /// Statements that honest nodes made.
    pub statements: u64,
    /// Times that a node caught another by a proof about statements or votes.
    pub caught: u64,
    /// Times that a node got a proof that another signed two ledgers.
    pub forks: u64,
    /// Cosignatures that honest nodes got on their ledgers.
    pub cosigned: u64,
    /// Seals that engines took.
    pub seals: u64,
    /// Times that a node cut another off.
    pub cut_off: u64,
    /// Times that a node took one back.
    pub taken_back: u64,
    /// Times that a failure detector found something.
    pub found: u64,
    /// Test questions that liars answered.
    pub answers: u64,
    /// Epochs, by node, in which a liar's wrong answers have cost it weight.
    pub fallen: u64,
}

/// A run under way.
#[derive(Debug)]
pub struct World {
    /// What was asked for.
    pub plan: Plan,
    /// The mesh.
    pub genesis: Genesis,
    /// Virtual time, microseconds since the start.
    pub now: u64,
    /// All nodes; liars have no engine.
    pub nodes: Vec<Node>,
    /// What is true.
    pub oracle: Oracle,
    /// What was counted.
    pub counts: Counts,
    /// What happened.
    pub trace: Trace,
    /// How the network is now.
    pub network: Network,
    /// Liars do nothing for now.
    pub truce: bool,
    /// Per node: messages and bytes that arrived.
    pub arrived: Vec<(u64, u64)>,
    /// When decisions took effect, one entry per node and decision.
    pub decided_us: Vec<u64>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    links: Vec<Vec<Link>>,
    liars: BTreeMap<usize, Liar>,
    /// Seals that were asked for in the call under way.
    to_seal: Vec<EpochSeal>,
    /// What the call under way had for the failure detector.
    to_watch: Vec<SwimMessage>,
    index: BTreeMap<NodeId, usize>,
    rng: Rng,
}

impl World {
    /// The world of a plan, with all members started and nothing said yet.
    ///
    /// # Errors
    /// A [`Violation`] if a node does not start.
    pub fn new(plan: Plan, print: bool) -> Result<Self, Violation> {
        let mut world = Self::asleep(plan, print);
        for i in world.plan.honest_members() {
            world.start(i)?;
        }
        world.begin();
        Ok(world)
    }

    /// The world of a plan without liars, all nodes connected from the start: one is started from its
    /// records, the others are copies, because a thousand that check a thousand records take too long.
    ///
    /// # Errors
    /// A [`Violation`] if the first does not start.
    pub fn new_connected(plan: Plan) -> Result<Self, Violation> {
        let mut world = Self::asleep(plan, false);
        world.start(0)?;
        for node in &mut world.nodes {
            node.disk.records = Vec::new();
        }
        if let Some(first) = world.nodes[0].engine.take() {
            for node in &mut world.nodes {
                node.start_as_copy(&world.genesis, &first);
            }
        }
        for row in &mut world.links {
            for link in row {
                link.up = true;
            }
        }
        world.begin();
        Ok(world)
    }

    /// Everybody is there and nobody runs.
    fn asleep(plan: Plan, print: bool) -> Self {
        let genesis = cast::genesis(plan.params);
        let all = plan.zones.len();
        let ids: Vec<NodeId> = (0..all).map(cast::node_id).collect();
        let mut rng = Rng::new(plan.seed).fork(2);
        let records: Vec<_> = (0..plan.nodes)
            .map(|i| cast::admitted(&genesis, i, plan.zones[i]))
            .collect();
        let mut nodes = Vec::new();
        for (i, id) in ids.iter().enumerate() {
            let mut node = Node::new(*id, cast::signer(i), plan.skew_us[i], plan.allow[i].clone());
            node.view.automatic = plan.quarantine;
            if i < plan.nodes {
                node.joined = true;
                // Those of a run of copies need none.
                if all <= 256 || i == 0 {
                    node.disk.records.clone_from(&records);
                }
            }
            nodes.push(node);
        }
        let liars = plan
            .liars
            .iter()
            .map(|i| {
                let liar = Liar::new(&plan, *i, &mut rng.fork(*i as u64));
                (*i, liar)
            })
            .collect();
        let oracle = Oracle::new(
            genesis.clone(),
            ids.iter().copied().collect(),
            plan.liars.iter().map(|i| ids[*i]).collect(),
        );
        let world = Self {
            genesis,
            now: 0,
            nodes,
            oracle,
            counts: Counts::default(),
            trace: Trace::new(print),
            network: plan.network,
            truce: false,
            arrived: vec![(0, 0); all],
            decided_us: Vec::new(),
            queue: BinaryHeap::new(),
            order: 0,
            links: vec![vec![Link::default(); all]; all],
            liars,
            to_seal: Vec::new(),
            to_watch: Vec::new(),
            index: ids.iter().enumerate().map(|(i, id)| (*id, i)).collect(),
            rng: {
                rng.bits();
                rng
            },
            plan,
        };
        for (i, liar) in &world.liars {
            world.trace.line(0, || {
                format!("{i} lies, zone {}: {}", world.plan.zones[*i], liar.tricks())
            });
        }
        world
    }

    /// Puts what the plan says on the schedule.
    fn begin(&mut self) {
        for (at, happening) in self.plan.script.clone() {
            self.schedule(at, Event::Happen(happening));
        }
        for i in 0..self.nodes.len() {
            let at = self.rng.below(TICK_US);
            self.schedule(at, Event::Tick(i));
            if self.plan.detector && !self.lies(i) {
                self.schedule(at % watch::BEAT_US, Event::Beat(i));
            }
        }
        self.schedule(0, Event::Maintain);
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled {
            at,
            order: self.order,
            event,
        }));
    }

    /// Something is to happen later.
    pub fn plan_for(&mut self, at: u64, happening: Happening) {
        self.schedule(at, Event::Happen(happening));
    }

    /// Whether node `i` is a liar.
    pub fn lies(&self, i: usize) -> bool {
        self.plan.liars.contains(&i)
    }

    /// Honest members whose engine runs.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|i| self.nodes[*i].engine.is_some())
            .collect()
    }

    /// Honest nodes whose engine runs and whom the operator has not removed.
    pub fn members(&self) -> Vec<usize> {
        let mut running = self.running();
        running.retain(|i| !self.oracle.removed.contains(&self.nodes[*i].id));
        running
    }

    /// Runs until this time.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn run_until(&mut self, until: u64) -> Result<(), Violation> {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > until {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(next.at);
            self.counts.steps += 1;
            self.trace.number(self.now);
            self.event(next.event)?;
        }
        self.now = until;
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick(i) => {
                let at = self.now + TICK_US;
                self.schedule(at, Event::Tick(i));
                if self.nodes[i].engine.is_some() {
                    self.input(i, Input::Tick)?;
                    self.after_tick(i)?;
                }
                Ok(())
            }
            Event::Beat(i) => self.beat(i),
            Event::Deliver {
                from,
                to,
                session,
                bytes,
            } => self.deliver(from, to, session, &bytes),
            Event::Maintain => {
                self.maintain();
                let at = self.now + S;
                self.schedule(at, Event::Maintain);
                Ok(())
            }
            Event::Session { a, b, up } => self.session(a, b, up),
            Event::Happen(happening) => self.happen(happening),
        }
    }

    fn input(&mut self, i: usize, input: Input<'_>) -> Result<(), Violation> {
        let mut out = Vec::new();
        let now = self.now;
        let node = &mut self.nodes[i];
        // Where nobody is cut off this would only cost time.
        if self.plan.quarantine != Automatic::Off {
            node.note_reach();
        }
        let from = match &input {
            Input::Message { from, .. } => Some(*from),
            _ => None,
        };
        let Some(mut engine) = node.engine.take() else {
            return Ok(());
        };
        node.view.now_us = now;
        let wall = node.wall(now);
        engine.handle(wall, input, &node.view, &mut out);
        node.engine = Some(engine);
        // What was over by a clock that was ahead is over.
        node.wants_off.retain(|_, (until, _)| *until > wall);
        self.hears_cut_off(i, from, &out)?;
        let node = &mut self.nodes[i];
        let persists = out.iter().any(|o| {
            matches!(
                o,
                Output::Persist(_)
                    | Output::PersistEpoch(_)
                    | Output::KeepEvidence { own: true, .. }
            )
        });
        let crash_after = if persists {
            node.crash_after.take()
        } else {
            None
        };
        for (done, output) in out.into_iter().enumerate() {
            if crash_after == Some(done) {
                self.to_seal.clear();
                self.crash(i);
                return Ok(());
            }
            self.output(i, output)?;
        }
        let seals = std::mem::take(&mut self.to_seal);
        if crash_after.is_some() {
            self.crash(i);
            return Ok(());
        }
        self.after(i)?;
        seals
            .into_iter()
            .try_for_each(|seal| self.input(i, Input::Sealed(Box::new(seal))))
    }
}

/// Buckets are this long; what is asked for at their edge is in the next one on a fast clock.
pub const BUCKET: u64 = BUCKET_US;
