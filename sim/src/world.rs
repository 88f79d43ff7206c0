//! The world: virtual time, links, nodes, liars. One event at a time, and after each the invariants.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;

use secmesh::mesh::crypto::sha256;
use secmesh::mesh::decision::Warrant;
use secmesh::mesh::engine::{Input, MAX_OPEN, Output, VoteSummary};
use secmesh::mesh::genesis::Genesis;
use secmesh::mesh::ids::{DecisionId, Hash, NodeId};
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::{Action, ActionKind, BUCKET_US, Ballot, Verdict, bucket_of};

use crate::cast::{self, S};
use crate::liar::{Liar, Scene};
use crate::node::{Entry, KernelBlock, Node};
use crate::oracle::{Oracle, Violation, broken, signed_by};
use crate::plan::{Cut, Happening, Network, Plan};
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
    index: BTreeMap<NodeId, usize>,
    rng: Rng,
}

fn sha(bytes: &[u8]) -> Hash {
    Hash(sha256(bytes))
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
            .map(|i| {
                if plan.liars.contains(&i) || i % 3 == 2 {
                    cast::by_ticket(&genesis, i, plan.zones[i], 0)
                } else {
                    cast::admitted(&genesis, i, plan.zones[i])
                }
            })
            .collect();
        let mut nodes = Vec::new();
        for (i, id) in ids.iter().enumerate() {
            let mut node = Node::new(*id, cast::signer(i), plan.skew_us[i], plan.allow[i].clone());
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
                let liar = Liar::new(*i, plan.zones[*i], plan.group(*i), &mut rng.fork(*i as u64));
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

    // --- the network ---

    fn alive(&self, i: usize) -> bool {
        self.nodes[i].joined && (self.lies(i) || self.nodes[i].engine.is_some())
    }

    fn whole(&self, a: usize, b: usize) -> bool {
        !self.links[a][b].cut && !self.links[b][a].cut
    }

    fn maintain(&mut self) {
        let all = self.nodes.len();
        for a in 0..all {
            for b in a + 1..all {
                let possible = self.alive(a) && self.alive(b) && self.whole(a, b);
                let up = self.links[a][b].up;
                // A break is noticed after some seconds.
                if up != possible && self.rng.percent(if up { 20 } else { 50 }) {
                    let at = self.now + self.rng.below(S);
                    self.schedule(at, Event::Session { a, b, up: !up });
                }
            }
        }
    }

    fn session(&mut self, a: usize, b: usize, up: bool) -> Result<(), Violation> {
        if self.links[a][b].up == up
            || (up && !(self.alive(a) && self.alive(b) && self.whole(a, b)))
        {
            return Ok(());
        }
        self.trace.line(self.now, || {
            format!(
                "{a} - {b} {}",
                if up { "connected" } else { "disconnected" }
            )
        });
        for (x, y) in [(a, b), (b, a)] {
            let link = &mut self.links[x][y];
            link.up = up;
            link.session += 1;
            link.last_us = 0;
        }
        for (x, y) in [(a, b), (b, a)] {
            let peer = self.nodes[y].id;
            if self.nodes[x].engine.is_some() {
                let input = if up {
                    Input::PeerUp(peer)
                } else {
                    Input::PeerDown(peer)
                };
                self.input(x, input)?;
            }
        }
        Ok(())
    }

    /// Ends every session, and lets all be dialled anew within a second.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn reconnect_all(&mut self) -> Result<(), Violation> {
        let all = self.nodes.len();
        for a in 0..all {
            for b in a + 1..all {
                self.links[a][b].cut = false;
                self.links[b][a].cut = false;
                self.session(a, b, false)?;
                let at = self.now + 1 + self.rng.below(S);
                self.schedule(at, Event::Session { a, b, up: true });
            }
        }
        Ok(())
    }

    /// Whether each node has a session with each other.
    pub fn all_connected(&self) -> bool {
        let all = self.nodes.len();
        (0..all).all(|a| (0..all).all(|b| a == b || self.links[a][b].up))
    }

    fn send(&mut self, from: usize, to: usize, bytes: &Rc<[u8]>) {
        let link = self.links[from][to];
        if from == to || !link.up {
            return;
        }
        if !self.lies(from) {
            self.counts.sent += 1;
            self.counts.sent_bytes += bytes.len() as u64;
        }
        if link.cut || self.rng.below(1_000) < self.network.loss {
            return;
        }
        let copies = if self.rng.below(1_000) < self.network.duplicate {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = self
                .rng
                .between(self.network.delay_min_us, self.network.delay_max_us);
            let mut at = self.now + delay;
            if self.network.ordered {
                at = at.max(self.links[from][to].last_us + 1);
                self.links[from][to].last_us = at;
            }
            self.schedule(
                at,
                Event::Deliver {
                    from,
                    to,
                    session: link.session,
                    bytes: Rc::clone(bytes),
                },
            );
        }
    }

    fn deliver(
        &mut self,
        from: usize,
        to: usize,
        session: u32,
        bytes: &Rc<[u8]>,
    ) -> Result<(), Violation> {
        let link = &self.links[from][to];
        if link.cut || (self.network.ordered && link.session != session) {
            return Ok(());
        }
        self.arrived[to].0 += 1;
        self.arrived[to].1 += bytes.len() as u64;
        if let Some(liar) = self.liars.get_mut(&to) {
            liar.hear(bytes);
            return Ok(());
        }
        if self.nodes[to].engine.is_none() {
            return Ok(());
        }
        self.counts.received += 1;
        self.trace.number((from as u64) << 32 | to as u64);
        self.trace.bytes(bytes);
        let lie = self
            .lies(from)
            .then(|| self.contradiction(to, bytes))
            .flatten();
        let id = self.nodes[from].id;
        self.input(to, Input::Message { from: id, bytes })?;
        if let (Some(liar), Some(engine)) = (lie, &self.nodes[to].engine)
            && !engine.liars().contains(&liar)
        {
            return broken(
                "equivocation-kept",
                format!("node {to} holds two contradicting votes of node {from} and trusts it"),
            );
        }
        Ok(())
    }

    /// Whether this vote of a liar contradicts one that node `to` has taken.
    fn contradiction(&self, to: usize, bytes: &[u8]) -> Option<NodeId> {
        let Ok(Message::Vote(ballot)) = Message::from_bytes(bytes) else {
            return None;
        };
        let node = &self.nodes[to];
        let engine = node.engine.as_ref()?;
        let vote = &ballot.signed.vote;
        let params = &self.genesis.params;
        let wall = node.wall(self.now);
        let skew = u64::from(params.max_skew_s) * S;
        let member = engine.roster().get(&vote.voter)?;
        let good = vote.epoch_hash == engine.roster().epoch_hash()
            && vote.epoch == engine.roster().epoch()
            && ballot.action.check(params).is_ok()
            && (ballot.action.kind == ActionKind::Release || vote.round == 0)
            && vote.check_times(params).is_ok()
            && vote.issued_at_us <= wall + skew
            && wall <= vote.valid_until_us().saturating_add(skew)
            && signed_by(&member.record.vote_key, vote, &ballot.signed.signature);
        let contradicts = |held: &VoteSummary| {
            held.voter == vote.voter
                && (held.verdict, held.sequence, held.issued_at_us)
                    != (vote.verdict, vote.sequence, vote.issued_at_us)
        };
        (good
            && engine
                .incidents(Some(&ballot.action.subject))
                .iter()
                .filter(|i| (i.incident, i.round) == (vote.incident, vote.round))
                .any(|i| i.votes.iter().any(contradicts)))
        .then_some(vote.voter)
    }

    // --- what happens ---

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        if !matches!(happening, Happening::Lie(_) | Happening::Sees(..)) {
            self.trace.line(self.now, || format!("{happening:?}"));
        }
        match happening {
            Happening::Cut(cut) => {
                let all = self.nodes.len();
                for a in 0..all {
                    for b in 0..all {
                        let cuts = match &cut {
                            Cut::Split(side) => side.contains(&a) != side.contains(&b),
                            Cut::OneWay(side) => side.contains(&a) && !side.contains(&b),
                        };
                        self.links[a][b].cut |= cuts;
                    }
                }
            }
            Happening::Mend => {
                for row in &mut self.links {
                    for link in row {
                        link.cut = false;
                    }
                }
            }
            Happening::Crash(i, Some(after)) => self.nodes[i].crash_after = Some(after),
            Happening::Crash(i, None) => self.crash(i),
            Happening::Restart(i) => {
                if self.nodes[i].joined && !self.lies(i) && self.nodes[i].engine.is_none() {
                    self.start(i)?;
                }
            }
            Happening::DiskFails(i) => self.nodes[i].disk.fails = true,
            Happening::ClockStep(i, by) => self.nodes[i].clock_us += by,
            Happening::Sees(i, subject, class) => {
                if self.nodes[i].engine.is_some() {
                    self.trace
                        .line(self.now, || format!("{i} sees {class} by {subject}"));
                    let node = &mut self.nodes[i];
                    node.view.seen_us.insert(subject, self.now);
                    if !node.view.allow.iter().any(|a| a.overlaps(&subject)) {
                        let until = self.now + OWN_BLOCK_US;
                        node.own_blocks.insert(subject, until);
                        let id = node.id;
                        self.oracle.witnesses.entry(subject).or_default().insert(id);
                    }
                    let root = Hash(self.rng.bytes32());
                    self.input(
                        i,
                        Input::OwnEvidence {
                            subject,
                            class,
                            evidence_root: root,
                            detector_hash: Hash([0xdd; 32]),
                        },
                    )?;
                }
            }
            Happening::OperatorBlock(i, subject) => {
                if self.nodes[i].engine.is_some() {
                    let id = self.nodes[i].id;
                    self.oracle.witnesses.entry(subject).or_default().insert(id);
                    self.input(i, Input::OperatorBlock { subject })?;
                }
            }
            Happening::OperatorRelease(i, subject, signed) => {
                let wall = self.nodes[i].wall(self.now);
                if let Some(engine) = &self.nodes[i].engine {
                    let signed = signed.then(|| {
                        let release = engine.draft_release(subject, wall, 600);
                        Box::new(release.sign(&cast::operator()))
                    });
                    self.input(i, Input::OperatorRelease { subject, signed })?;
                }
            }
            Happening::Join { node, through } => return self.join(node, through),
            Happening::Lie(i) => self.lie(i),
        }
        Ok(())
    }

    fn crash(&mut self, i: usize) {
        if self.nodes[i].engine.is_some() {
            self.trace.line(self.now, || format!("{i} crashes"));
            self.counts.crashes += 1;
            self.nodes[i].crash(&mut self.rng);
        }
    }

    fn start(&mut self, i: usize) -> Result<(), Violation> {
        self.nodes[i].start(&self.genesis, self.now)?;
        // Whoever was connected to it finds a new process there.
        for peer in 0..self.nodes.len() {
            if self.links[i][peer].up {
                self.session(i, peer, false)?;
            }
        }
        self.after(i)
    }

    /// Brings back what is down, for the liveness phase.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn revive(&mut self) -> Result<(), Violation> {
        for i in 0..self.nodes.len() {
            let node = &mut self.nodes[i];
            if self.plan.liars.contains(&i) || !node.joined {
                continue;
            }
            node.crash_after = None;
            node.disk.fails = false;
            if node.silenced {
                self.crash(i);
            }
            if self.nodes[i].engine.is_none() {
                self.start(i)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, i: usize, through: usize) -> Result<(), Violation> {
        if self.nodes[i].joined || self.nodes[through].engine.is_none() {
            // Another member would do; here the joiner tries again later.
            if !self.nodes[i].joined {
                let at = self.now + 3 * S;
                self.schedule(at, Event::Happen(Happening::Join { node: i, through }));
            }
            return Ok(());
        }
        let grant = Box::new(cast::grant(&self.genesis, i));
        self.input(through, Input::OpenGrant(grant))?;
        let record = cast::by_ticket(&self.genesis, i, self.plan.zones[i], 0);
        self.input(through, Input::Admit(Box::new(record)))?;
        let Some(engine) = &self.nodes[through].engine else {
            return Ok(());
        };
        // A member whose clock is wrong refuses the ticket; it is tried again.
        if engine.roster().get(&self.nodes[i].id).is_none() {
            let at = self.now + 3 * S;
            self.schedule(at, Event::Happen(Happening::Join { node: i, through }));
            return Ok(());
        }
        self.nodes[i].disk.records = engine.admissions().cloned().collect();
        self.nodes[i].joined = true;
        self.start(i)
    }

    fn lie(&mut self, i: usize) {
        if self.truce || !self.nodes[i].joined {
            return;
        }
        let Some(example) = self.running().first().copied() else {
            return;
        };
        let Some(roster) = self.nodes[example]
            .engine
            .as_ref()
            .map(secmesh::mesh::engine::Engine::roster)
        else {
            return;
        };
        let scene = Scene {
            genesis: &self.genesis,
            epoch: (roster.epoch(), roster.epoch_hash()),
            wall_us: self.nodes[i].wall(self.now),
            peers: (0..self.nodes.len())
                .filter(|to| self.links[i][*to].up)
                .collect(),
            attackers: self.oracle.witnesses.keys().copied().collect(),
        };
        let Some(liar) = self.liars.get_mut(&i) else {
            return;
        };
        self.counts.lies += 1;
        let group = liar.group();
        let (said, shared) = liar.act(&scene, &mut self.rng);
        for (_, other) in self
            .liars
            .iter_mut()
            .filter(|(other, liar)| **other != i && liar.group() == group)
        {
            for ballot in &shared {
                other.share(ballot);
            }
        }
        for (to, bytes) in said {
            self.trace
                .line(self.now, || format!("{i} lies to {to}: {}", Shown(&bytes)));
            self.send(i, to, &bytes);
        }
    }

    // --- engines ---

    fn input(&mut self, i: usize, input: Input<'_>) -> Result<(), Violation> {
        let mut out = Vec::new();
        let now = self.now;
        let node = &mut self.nodes[i];
        let Some(mut engine) = node.engine.take() else {
            return Ok(());
        };
        node.view.now_us = now;
        engine.handle(node.wall(now), input, &node.view, &mut out);
        node.engine = Some(engine);
        let persists = out.iter().any(|o| matches!(o, Output::Persist(_)));
        let crash_after = if persists {
            node.crash_after.take()
        } else {
            None
        };
        for (done, output) in out.into_iter().enumerate() {
            if crash_after == Some(done) {
                self.crash(i);
                return Ok(());
            }
            self.output(i, output)?;
        }
        if crash_after.is_some() {
            self.crash(i);
            return Ok(());
        }
        self.after(i)
    }

    #[expect(clippy::too_many_lines, reason = "one arm per output, as in the agent")]
    fn output(&mut self, i: usize, output: Output) -> Result<(), Violation> {
        match output {
            Output::Persist(bytes) => {
                self.trace.bytes(&bytes);
                if !self.nodes[i].disk.append_durable(Entry::Vote(bytes)) {
                    self.nodes[i].silenced = true;
                }
            }
            Output::Broadcast(_) | Output::Send { .. } if self.nodes[i].silenced => {}
            Output::Broadcast(bytes) => {
                self.says(i, &bytes)?;
                let bytes: Rc<[u8]> = Rc::from(bytes);
                for to in 0..self.nodes.len() {
                    self.send(i, to, &bytes);
                }
            }
            Output::Send { to, bytes } => {
                self.says(i, &bytes)?;
                if let Some(to) = self.index.get(&to).copied() {
                    self.send(i, to, &Rc::from(bytes));
                }
            }
            Output::Decide(decision) => {
                let (known, current, wall) = self.surroundings(i);
                self.trace.line(self.now, || {
                    format!(
                        "{i} blocks {} ({})",
                        decision.action.subject, decision.action.class
                    )
                });
                self.oracle.decision(&decision, current, &known, wall)?;
                let node = &mut self.nodes[i];
                let subject = decision.action.subject;
                if node.view.allow.iter().any(|a| a.overlaps(&subject)) {
                    return broken("allowlist", format!("node {i} blocks {subject}"));
                }
                if node
                    .released
                    .get(&subject)
                    .is_some_and(|covered| *covered >= decision.bucket)
                {
                    return broken(
                        "release-stays",
                        format!("node {i} blocks {subject} again, which was released since"),
                    );
                }
                self.counts.decided += 1;
                self.decided_us.push(self.now);
                let left = decision.expires_unix_us.saturating_sub(wall);
                node.kernel.insert(
                    decision.id,
                    KernelBlock {
                        subject,
                        ends_us: self.now + left,
                    },
                );
                node.disk.append(Entry::Decision {
                    kind: ActionKind::Block,
                    warrant: decision.warrant.to_bytes(),
                    certified_unix_us: decision.certified_unix_us,
                    vetoed: None,
                });
            }
            Output::Release(decision) => {
                let (known, current, wall) = self.surroundings(i);
                self.trace.line(self.now, || {
                    format!("{i} releases {}", decision.action.subject)
                });
                self.oracle.decision(&decision, current, &known, wall)?;
                self.counts.released += 1;
                let node = &mut self.nodes[i];
                let subject = decision.action.subject;
                node.kernel.retain(|_, block| block.subject != subject);
                node.own_blocks.remove(&subject);
                let covered = node.released.entry(subject).or_default();
                *covered = decision.bucket.max(*covered);
                node.disk.append(Entry::Decision {
                    kind: ActionKind::Release,
                    warrant: decision.warrant.to_bytes(),
                    certified_unix_us: decision.certified_unix_us,
                    vetoed: None,
                });
            }
            Output::Vetoed {
                decision, reason, ..
            } => {
                self.counts.vetoed += 1;
                let node = &mut self.nodes[i];
                if let Some(known) = node.engine.as_ref().and_then(|e| e.decision(&decision)) {
                    node.disk.append(Entry::Decision {
                        kind: ActionKind::Block,
                        warrant: known.warrant.to_bytes(),
                        certified_unix_us: known.certified_unix_us,
                        vetoed: Some(reason),
                    });
                }
            }
            Output::Equivocation(proof) => {
                self.counts.proofs += 1;
                self.trace.line(self.now, || {
                    format!("{i} has a proof against {}", proof.voter())
                });
                let (one, two) = proof.votes();
                let key = self
                    .index
                    .get(&proof.voter())
                    .map(|voter| self.nodes[*voter].signer.public());
                let real = one.vote != two.vote
                    && one.vote.incident == two.vote.incident
                    && one.vote.round == two.vote.round
                    && key.is_some_and(|key| {
                        signed_by(&key, &one.vote, &one.signature)
                            && signed_by(&key, &two.vote, &two.signature)
                    });
                if !real {
                    return broken(
                        "attribution",
                        format!("node {i} takes a proof that is none"),
                    );
                }
                self.nodes[i].disk.append(Entry::Proof(proof.to_bytes()));
            }
            Output::Admitted(_) | Output::TicketBurned(_) => {
                let node = &mut self.nodes[i];
                if let Some(engine) = &node.engine {
                    node.disk.records = engine.admissions().cloned().collect();
                }
            }
            Output::VoteSeen(vote) if !vote.own => self.takes(i, &vote)?,
            Output::Watch { .. }
            | Output::VoteSeen(_)
            | Output::GrantOpened(_)
            | Output::GrantUsed { .. }
            | Output::Refused { .. }
            | Output::QuorumState(_) => {}
        }
        Ok(())
    }

    fn surroundings(&self, i: usize) -> (BTreeSet<NodeId>, Hash, u64) {
        let node = &self.nodes[i];
        let (known, current) = node.engine.as_ref().map_or_else(
            || (BTreeSet::new(), Hash([0; 32])),
            |engine| (engine.liars().clone(), engine.roster().epoch_hash()),
        );
        (known, current, node.wall(self.now))
    }

    /// What leaves a node: its own votes are on the disk, and never say two things.
    fn says(&mut self, i: usize, bytes: &[u8]) -> Result<(), Violation> {
        match Message::from_bytes(bytes) {
            Ok(Message::Vote(ballot)) => self.says_vote(i, &ballot),
            Ok(Message::Batch(parts)) => {
                for part in parts {
                    if let Ok(Message::Vote(ballot)) = Message::from_bytes(&part) {
                        self.says_vote(i, &ballot)?;
                    }
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => broken(
                "encoding",
                format!("node {i} sends what nobody reads: {error}"),
            ),
        }
    }

    fn says_vote(&mut self, i: usize, ballot: &Ballot) -> Result<(), Violation> {
        let vote = &ballot.signed.vote;
        let node = &mut self.nodes[i];
        if vote.voter != node.id {
            return Ok(());
        }
        let bytes = ballot.to_bytes();
        if !node.disk.holds_vote(&bytes) {
            return broken(
                "persist-before-send",
                format!("a vote of node {i} leaves that is not on its disk"),
            );
        }
        let slot = (vote.epoch_hash, Hash(vote.incident.0), vote.round);
        if *node.numbered.entry(vote.sequence).or_insert(slot) != slot {
            return broken(
                "own-numbers",
                format!("node {i} uses its number {} twice", vote.sequence),
            );
        }
        if *node.said.entry(slot).or_insert_with(|| bytes.clone()) != bytes {
            return broken(
                "own-word",
                format!(
                    "honest node {i} contradicts itself about {}",
                    ballot.action.subject
                ),
            );
        }
        Ok(())
    }

    /// A vote that an engine counts from now on.
    fn takes(&mut self, i: usize, vote: &VoteSummary) -> Result<(), Violation> {
        self.counts.votes_taken += 1;
        let wall = self.nodes[i].wall(self.now);
        let params = &self.genesis.params;
        let skew = u64::from(params.max_skew_s) * S;
        if vote.issued_at_us > wall + skew {
            return broken("vote-times", format!("node {i} takes a vote of the future"));
        }
        if wall > vote.issued_at_us + u64::from(params.vote_valid_s) * S + skew {
            return broken("vote-times", format!("node {i} takes a vote that is over"));
        }
        let node = &mut self.nodes[i];
        let Some(engine) = &node.engine else {
            return Ok(());
        };
        let action = match vote.action {
            ActionKind::Block => Action::block(vote.subject, vote.class, params),
            ActionKind::Release => Action::release(vote.subject),
        };
        let epoch = engine.roster().epoch_hash();
        let bucket = bucket_of(vote.issued_at_us);
        let known = (bucket.saturating_sub(1)..=bucket + 1)
            .any(|b| action.incident(self.genesis.mesh_id(), epoch, b) == vote.incident);
        if !known {
            return broken(
                "vote-epoch",
                format!("node {i} takes a vote of another epoch"),
            );
        }
        if !node.taken.insert((vote.voter, vote.sequence)) {
            return broken(
                "vote-numbers",
                format!(
                    "node {i} takes number {} of {} twice",
                    vote.sequence, vote.voter
                ),
            );
        }
        Ok(())
    }

    /// After each call: what the engine believes.
    fn after(&mut self, i: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[i];
        let Some(engine) = &node.engine else {
            return Ok(());
        };
        let epoch = engine.roster().epoch_hash();
        if node.epoch != Some(epoch) {
            node.epoch = Some(epoch);
            let mut all: Vec<[u8; 32]> = engine
                .admissions()
                .map(|admitted| sha256(&admitted.to_bytes()))
                .collect();
            all.sort_unstable();
            self.trace.line(self.now, || {
                format!("{i} is in an epoch of {}", engine.roster().len())
            });
            self.oracle.epoch(engine.roster(), sha(&all.concat()))?;
        }
        if let Some(framed) = engine
            .liars()
            .iter()
            .find(|node| !self.oracle.liars.contains(node))
        {
            return broken("attribution", format!("node {i} takes {framed} for a liar"));
        }
        Ok(())
    }

    fn after_tick(&mut self, i: usize) -> Result<(), Violation> {
        let wall = self.nodes[i].wall(self.now);
        let now = self.now;
        let node = &mut self.nodes[i];
        node.kernel.retain(|_, block| block.ends_us > now);
        node.own_blocks.retain(|_, until| *until > now);
        let Some(engine) = &node.engine else {
            return Ok(());
        };
        if let Some(decision) = engine.decisions().find(|d| d.expires_unix_us <= wall) {
            return broken(
                "block-ends",
                format!(
                    "node {i} still holds the block of {}",
                    decision.action.subject
                ),
            );
        }
        if engine.open_incidents() > MAX_OPEN {
            return broken("bounded", format!("node {i} has too many open incidents"));
        }
        Ok(())
    }

    /// What all honest nodes have to agree on, as bytes: roster, exposed liars, and each of
    /// `decisions` that the node holds.
    pub fn belief(&self, i: usize, decisions: &BTreeSet<DecisionId>) -> Option<Vec<u8>> {
        let engine = self.nodes[i].engine.as_ref()?;
        let mut bytes = engine.roster().epoch_hash().0.to_vec();
        for liar in engine.liars() {
            // A proof against somebody who is no voter any more changes nothing.
            if engine.roster().get(liar).is_some() {
                bytes.extend(liar.0);
            }
        }
        for decision in engine.decisions().filter(|d| decisions.contains(&d.id)) {
            bytes.extend(decision.id.0);
            bytes.extend(decision.action.to_bytes());
            bytes.extend(decision.bucket.to_be_bytes());
            bytes.extend(decision.expires_unix_us.to_be_bytes());
        }
        Some(bytes)
    }

    /// Decisions that somebody can prove to everybody: their votes are enough in today's epoch and without the
    /// exposed liars. Those that somebody holds from before and could not prove to a newcomer are not among them,
    /// nor those that end about now, since clocks differ, nor those of an epoch that a node cannot know any more:
    /// rosters before a ticket was found to be used twice are in memory only.
    pub fn provable(&self) -> BTreeSet<DecisionId> {
        let horizon = cast::START_US + self.now + 30 * S;
        let mut all = BTreeSet::new();
        for engine in self.nodes.iter().filter_map(|node| node.engine.as_ref()) {
            for decision in engine.decisions().filter(|d| d.expires_unix_us > horizon) {
                let counts = match &decision.warrant {
                    Warrant::Operator(_) => true,
                    Warrant::Votes(certificate) => certificate
                        .count(engine.roster(), engine.liars())
                        .check()
                        .is_ok(),
                };
                let known = self
                    .nodes
                    .iter()
                    .filter_map(|node| node.engine.as_ref())
                    .all(|engine| engine.roster_for(decision).is_some());
                if counts && known {
                    all.insert(decision.id);
                }
            }
        }
        all
    }

    /// In what two beliefs differ, for people.
    pub fn difference(&self, a: usize, b: usize, decisions: &BTreeSet<DecisionId>) -> String {
        let mut text = Vec::new();
        if let (Some(one), Some(two)) = (&self.nodes[a].engine, &self.nodes[b].engine) {
            if one.roster().epoch_hash() != two.roster().epoch_hash() {
                text.push(format!(
                    "epochs of {} and {}",
                    one.roster().len(),
                    two.roster().len()
                ));
            }
            for (engine, other, who) in [(one, two, a), (two, one, b)] {
                for liar in engine.liars().difference(other.liars()) {
                    text.push(format!(
                        "only {who} knows that {:?} lied",
                        self.index.get(liar)
                    ));
                }
                for decision in engine.decisions().filter(|d| decisions.contains(&d.id)) {
                    if other.decision(&decision.id).is_none() {
                        let votes = decision.verdict.iter().flat_map(|v| &v.votes);
                        let votes: Vec<_> = votes
                            .map(|v| format!("{:?} {}", self.index.get(&v.voter), v.verdict))
                            .collect();
                        text.push(format!(
                            "only {who} has {} {} of bucket {} ({})",
                            decision.action.kind,
                            decision.action.subject,
                            decision.bucket % 1_000,
                            votes.join(", ")
                        ));
                    }
                }
            }
        }
        format!("nodes {a} and {b} differ: {}", text.join("; "))
    }
}

/// A message, for the trace.
struct Shown<'a>(&'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Message::from_bytes(self.0) {
            Ok(Message::Vote(b)) => write!(
                f,
                "vote {} on {} {}, number {}",
                match b.signed.vote.verdict {
                    Verdict::Confirm => "confirm",
                    Verdict::Concur => "concur",
                    Verdict::Reject => "reject",
                    Verdict::Abstain => "abstain",
                },
                b.action.kind,
                b.action.subject,
                b.signed.vote.sequence
            ),
            Ok(Message::Certificate(c)) => {
                write!(
                    f,
                    "certificate on {}, {} votes",
                    c.action.subject,
                    c.votes.len()
                )
            }
            Ok(Message::Admission(_)) => write!(f, "admission"),
            Ok(Message::Equivocation(p)) => write!(f, "proof against {}", p.voter()),
            Ok(_) => write!(f, "something else"),
            Err(error) => write!(f, "garbage ({error})"),
        }
    }
}

/// Buckets are this long; what is asked for at their edge is in the next one on a fast clock.
pub const BUCKET: u64 = BUCKET_US;
