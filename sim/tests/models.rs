//! Small models, searched to the end: four nodes, one of which lies.
//!
//! What is counted, compared and signed in them is the product's own code; only who does what when is modelled.
//! Each model is also searched with the rule taken out that it is about, and then has to find the violation.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's way to fail"
)]

use std::collections::BTreeSet;

use secmesh::addr::Prefix;
use secmesh::mesh::cert::CertVerdict;
use secmesh::mesh::crypto::sha256;
use secmesh::mesh::engine::{Engine, EngineConfig, Input, Output, Policy};
use secmesh::mesh::genesis::Params;
use secmesh::mesh::ids::{Hash, NodeId};
use secmesh::mesh::message::{EquivocationProof, Message};
use secmesh::mesh::roster::Roster;
use secmesh::mesh::simulation::{self, Bug};
use secmesh::mesh::vote::{Action, AttackClass, Ballot, SignedVote, Verdict, Vote, bucket_of};
use secmesh_sim::cast;
use stateright::{Checker, Model, Property};

const LIAR: usize = 3;

fn roster(weights: [u32; 4]) -> Roster {
    let genesis = cast::genesis(Params::default());
    let members = (0..4)
        .zip(weights)
        .map(|(i, w)| (cast::record(&genesis, i, i), w));
    Roster::with_weights(genesis.mesh_id(), members)
}

// --- agreement on certificates ---

/// Two actions that exclude each other are put to the vote of class 2 at once; honest nodes vote once, the liar
/// tells each node what it likes, and messages arrive or not, in any order.
#[derive(Clone)]
struct Agreement {
    /// Whether the votes of these nodes (a bit each) are a certificate, by the product's count.
    enough: [bool; 16],
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Votes {
    /// What each honest node voted for.
    voted: [Option<bool>; 3],
    /// For each honest node and each of the two actions: whose votes arrived.
    heard: [[u8; 2]; 3],
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Vote(usize, bool),
    Arrives { from: usize, to: usize },
    Lie { to: usize, what: bool },
}

impl Agreement {
    fn new(weights: [u32; 4]) -> Self {
        let roster = roster(weights);
        let params = Params::default();
        let action = Action::block(cast::attacking_network(1), AttackClass::Network, &params);
        let mut enough = [false; 16];
        for (mask, enough) in enough.iter_mut().enumerate() {
            let votes = (0..4)
                .filter(|i| mask & (1 << i) != 0)
                .map(|i| (cast::node_id(i), Verdict::Confirm, 0));
            *enough = CertVerdict::count(&roster, &BTreeSet::new(), &action, votes)
                .check()
                .is_ok();
        }
        Self { enough }
    }
}

impl Model for Agreement {
    type State = Votes;
    type Action = Step;

    fn init_states(&self) -> Vec<Votes> {
        vec![Votes {
            voted: [None; 3],
            heard: [[0; 2]; 3],
        }]
    }

    fn actions(&self, state: &Votes, actions: &mut Vec<Step>) {
        for i in 0..3 {
            match state.voted[i] {
                None => actions.extend([Step::Vote(i, false), Step::Vote(i, true)]),
                Some(_) => actions.extend(
                    (0..3)
                        .filter(|to| *to != i)
                        .map(|to| Step::Arrives { from: i, to }),
                ),
            }
            actions.extend([false, true].map(|what| Step::Lie { to: i, what }));
        }
    }

    fn next_state(&self, state: &Votes, step: Step) -> Option<Votes> {
        let mut next = state.clone();
        match step {
            Step::Vote(i, what) => {
                next.voted[i] = Some(what);
                next.heard[i][usize::from(what)] |= 1 << i;
            }
            Step::Arrives { from, to } => {
                let what = state.voted[from]?;
                next.heard[to][usize::from(what)] |= 1 << from;
            }
            Step::Lie { to, what } => next.heard[to][usize::from(what)] |= 1 << LIAR,
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn certified(model: &Agreement, state: &Votes, what: usize) -> bool {
            state
                .heard
                .iter()
                .any(|heard| model.enough[usize::from(heard[what])])
        }
        vec![
            Property::always("no two certificates contradict", |model, state| {
                !(certified(model, state, 0) && certified(model, state, 1))
            }),
            Property::sometimes("a certificate can be made", |model, state| {
                certified(model, state, 0)
            }),
        ]
    }
}

#[test]
fn two_certificates_of_class_2_never_contradict_each_other() {
    // Every weight below a third; the liar's is the largest of all in the last.
    for weights in [
        [100, 100, 100, 100],
        [80, 100, 110, 120],
        [100, 101, 99, 140],
    ] {
        let checker = Agreement::new(weights).checker().spawn_bfs().join();
        assert!(checker.unique_state_count() > 10_000);
        checker.assert_properties();
    }
}

#[test]
fn with_a_lower_threshold_the_model_finds_two_that_do() {
    simulation::plant(Some(Bug::TLoForClass2));
    let model = Agreement::new([100; 4]);
    simulation::plant(None);
    let checker = model.checker().spawn_bfs().join();
    assert!(
        checker
            .discovery("no two certificates contradict")
            .is_some()
    );
}

// --- attribution ---

/// Votes of two nodes, one honest, one lying, over two incidents, two rounds and two verdicts, and what the liar
/// signs in the honest one's name. Whoever holds any two of them may put them together.
#[derive(Clone)]
struct Attribution {
    /// Slot and truth of each vote: (by the honest node's key, slot, verdict).
    votes: Vec<(Author, usize, bool)>,
    /// Whom each pair convicts.
    convicts: Vec<Vec<Option<NodeId>>>,
    /// An honest node that does not remember what it signed before a crash.
    forgets: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Author {
    Honest,
    Liar,
    /// In the honest node's name, with the liar's key.
    Forged,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Signed {
    /// Votes that exist and travel.
    out: u32,
    /// What the honest node knows that it said, by slot.
    memory: [Option<bool>; 4],
    /// The same on its disk.
    disk: [Option<bool>; 4],
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    Sign(usize),
    Crash,
}

impl Attribution {
    fn new(forgets: bool) -> Self {
        let genesis = cast::genesis(Params::default());
        let roster = roster([100; 4]);
        let params = Params::default();
        let mut votes = Vec::new();
        let mut signed: Vec<SignedVote> = Vec::new();
        for author in [Author::Honest, Author::Liar, Author::Forged] {
            for slot in 0..4_usize {
                for verdict in [false, true] {
                    let action =
                        Action::block(cast::attacker(slot % 2), AttackClass::SynFlood, &params);
                    let bucket = bucket_of(cast::START_US);
                    let name = if author == Author::Liar { LIAR } else { 0 };
                    let key = if author == Author::Honest { 0 } else { LIAR };
                    let vote = Vote {
                        mesh: genesis.mesh_id(),
                        epoch: roster.epoch(),
                        epoch_hash: roster.epoch_hash(),
                        incident: action.incident(genesis.mesh_id(), roster.epoch_hash(), bucket),
                        round: u32::try_from(slot / 2).unwrap(),
                        bucket,
                        action_hash: action.hash(),
                        verdict: if verdict {
                            Verdict::Confirm
                        } else {
                            Verdict::Reject
                        },
                        evidence_root: Hash([0; 32]),
                        detector_hash: Hash([0; 32]),
                        voter: cast::node_id(name),
                        incarnation: 1,
                        sequence: slot as u64 + 1,
                        issued_at_us: cast::START_US,
                        valid_for_s: 120,
                    };
                    votes.push((author, slot, verdict));
                    signed.push(vote.sign(&cast::signer(key)));
                }
            }
        }
        let convicts = signed
            .iter()
            .map(|a| {
                signed
                    .iter()
                    .map(|b| {
                        let proof = EquivocationProof::new(*a, *b)?;
                        proof.verify(&roster).is_ok().then(|| proof.voter())
                    })
                    .collect()
            })
            .collect();
        Self {
            votes,
            convicts,
            forgets,
        }
    }

    fn convicted(&self, state: &Signed, node: usize) -> bool {
        let out: Vec<usize> = (0..self.votes.len())
            .filter(|i| state.out & (1 << i) != 0)
            .collect();
        out.iter().any(|a| {
            out.iter()
                .any(|b| self.convicts[*a][*b] == Some(cast::node_id(node)))
        })
    }
}

impl Model for Attribution {
    type State = Signed;
    type Action = Deed;

    fn init_states(&self) -> Vec<Signed> {
        vec![Signed {
            out: 0,
            memory: [None; 4],
            disk: [None; 4],
        }]
    }

    fn actions(&self, state: &Signed, actions: &mut Vec<Deed>) {
        for (i, (author, slot, verdict)) in self.votes.iter().enumerate() {
            // The honest node votes once per slot, by what it remembers. For the others two slots are enough.
            let may = match author {
                Author::Honest => state.memory[*slot].is_none(),
                Author::Liar => *slot < 2,
                Author::Forged => *verdict && *slot < 2,
            };
            if may && state.out & (1 << i) == 0 {
                actions.push(Deed::Sign(i));
            }
        }
        if state.memory.iter().any(Option::is_some) {
            actions.push(Deed::Crash);
        }
    }

    fn next_state(&self, state: &Signed, deed: Deed) -> Option<Signed> {
        let mut next = state.clone();
        match deed {
            Deed::Sign(i) => {
                next.out |= 1 << i;
                if let (Author::Honest, slot, verdict) = self.votes[i] {
                    next.memory[slot] = Some(verdict);
                    if !self.forgets {
                        next.disk[slot] = Some(verdict);
                    }
                }
            }
            Deed::Crash => next.memory = next.disk,
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the honest node is never convicted", |model, state| {
                !model.convicted(state, 0)
            }),
            Property::sometimes("the liar can be convicted", |model, state| {
                model.convicted(state, LIAR)
            }),
        ]
    }
}

#[test]
fn an_honest_node_is_never_proved_to_lie() {
    let checker = Attribution::new(false).checker().spawn_bfs().join();
    assert!(checker.unique_state_count() > 5_000);
    checker.assert_properties();
}

#[test]
fn a_node_that_forgets_what_it_signed_convicts_itself() {
    let checker = Attribution::new(true).checker().spawn_bfs().join();
    assert!(
        checker
            .discovery("the honest node is never convicted")
            .is_some()
    );
}

// --- persist before send ---

/// The product's engine itself: every sequence of three inputs, each with a crash after any of its outputs.
#[derive(Clone)]
struct Crashes {
    bug: Option<Bug>,
    /// An engine that has just been started for the first time.
    fresh: Engine,
}

/// What happened so far, and whether the rules held.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Past {
    turns: Vec<Turn>,
    /// A vote left.
    spoke: bool,
    /// Each was on the disk before.
    persisted: bool,
    /// No slot and no number was used twice.
    once: bool,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Happens {
    /// Its own sensors: the evidence differs each time, and so would the vote.
    Sees(u8),
    /// A peer confirms.
    PeerConfirms(usize),
    /// Its operator puts the subject on the allowlist, or takes it off.
    Allow,
    /// A minute passes.
    Later,
}

/// What happened, and after how many outputs the node crashed then.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Turn {
    what: Happens,
    crash: Option<usize>,
}

struct Allow(bool);

impl Policy for Allow {
    fn vetoes(&self, _: &Prefix) -> Option<String> {
        self.0.then(|| "allowlist".to_owned())
    }

    fn is_quiet(&self, _: &Prefix) -> bool {
        true
    }
}

const NODE: usize = 0;

impl Crashes {
    fn new(bug: Option<Bug>) -> Self {
        let genesis = cast::genesis(Params::default());
        let records: Vec<_> = (0..4).map(|i| cast::admitted(&genesis, i, i)).collect();
        let config = EngineConfig {
            genesis,
            node: cast::node_id(NODE),
            incarnation: 1,
            signer: cast::signer(NODE),
            evidence_ttl_s: 60,
        };
        Self {
            bug,
            fresh: Engine::new(config, records),
        }
    }

    /// Starts from what is on the disk.
    fn engine(&self, disk: &[Vec<u8>]) -> Engine {
        let mut engine = self.fresh.clone();
        for vote in disk {
            engine.restore_vote(vote).unwrap();
        }
        engine
    }

    /// Runs the history; gives all ballots that left, and whether each was on the disk then.
    fn replay(&self, history: &[Turn]) -> (Vec<Ballot>, bool) {
        simulation::remember_signature_checks();
        simulation::plant(self.bug);
        let mut disk: Vec<Vec<u8>> = Vec::new();
        let mut engine = self.engine(&disk);
        let (mut left, mut persisted) = (Vec::new(), true);
        let mut allow = Allow(false);
        let mut now = cast::START_US;
        let subject = cast::attacker(1);
        for turn in history {
            let mut out = Vec::new();
            now += 1_000;
            match turn.what {
                Happens::Sees(n) => engine.handle(
                    now,
                    Input::OwnEvidence {
                        subject,
                        class: AttackClass::SynFlood,
                        evidence_root: Hash(sha256(&[n])),
                        detector_hash: Hash([1; 32]),
                    },
                    &allow,
                    &mut out,
                ),
                Happens::PeerConfirms(peer) => {
                    let bytes = confirm(&engine, peer, subject, now);
                    let from = cast::node_id(peer);
                    let input = Input::Message {
                        from,
                        bytes: &bytes,
                    };
                    engine.handle(now, input, &allow, &mut out);
                }
                Happens::Allow => allow.0 = !allow.0,
                Happens::Later => {
                    now += 60_000_000;
                    engine.handle(now, Input::Tick, &allow, &mut out);
                }
            }
            let done = turn.crash.unwrap_or(usize::MAX);
            for output in out.into_iter().take(done) {
                match output {
                    Output::Persist(vote) => disk.push(vote),
                    Output::Broadcast(bytes) => {
                        if let Ok(Message::Vote(ballot)) = Message::from_bytes(&bytes) {
                            persisted &= disk.contains(&ballot.to_bytes());
                            left.push(*ballot);
                        }
                    }
                    _ => {}
                }
            }
            if turn.crash.is_some() {
                engine = self.engine(&disk);
            }
        }
        simulation::plant(None);
        (left, persisted)
    }
}

fn confirm(engine: &Engine, peer: usize, subject: Prefix, now: u64) -> Vec<u8> {
    let roster = engine.roster();
    let action = Action::block(subject, AttackClass::SynFlood, &Params::default());
    let bucket = bucket_of(now);
    let vote = Vote {
        mesh: roster.mesh(),
        epoch: roster.epoch(),
        epoch_hash: roster.epoch_hash(),
        incident: action.incident(roster.mesh(), roster.epoch_hash(), bucket),
        round: 0,
        bucket,
        action_hash: action.hash(),
        verdict: Verdict::Confirm,
        evidence_root: Hash([9; 32]),
        detector_hash: Hash([9; 32]),
        voter: cast::node_id(peer),
        incarnation: 1,
        sequence: now,
        issued_at_us: now,
        valid_for_s: 120,
    };
    let signed = vote.sign(&cast::signer(peer));
    Message::Vote(Box::new(Ballot { action, signed })).to_bytes()
}

impl Model for Crashes {
    type State = Past;
    type Action = Turn;

    fn init_states(&self) -> Vec<Past> {
        vec![Past {
            turns: Vec::new(),
            spoke: false,
            persisted: true,
            once: true,
        }]
    }

    fn actions(&self, state: &Past, actions: &mut Vec<Turn>) {
        if state.turns.len() >= 3 {
            return;
        }
        let inputs = [
            Happens::Sees(1),
            Happens::Sees(2),
            Happens::PeerConfirms(1),
            Happens::PeerConfirms(2),
            Happens::Allow,
            Happens::Later,
        ];
        for what in inputs {
            actions.push(Turn { what, crash: None });
            if matches!(what, Happens::Sees(_) | Happens::PeerConfirms(2)) {
                actions.extend((0..3).map(|n| Turn {
                    what,
                    crash: Some(n),
                }));
            }
        }
    }

    fn next_state(&self, state: &Past, turn: Turn) -> Option<Past> {
        let mut turns = state.turns.clone();
        turns.push(turn);
        let (left, persisted) = self.replay(&turns);
        let once = left.iter().all(|a| {
            left.iter().all(|b| {
                let (x, y) = (&a.signed.vote, &b.signed.vote);
                a == b
                    || ((x.incident, x.round) != (y.incident, y.round) && x.sequence != y.sequence)
            })
        });
        Some(Past {
            turns,
            spoke: !left.is_empty(),
            persisted,
            once,
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "no vote leaves before it is on the disk",
                |_, state: &Past| state.persisted,
            ),
            Property::always("no slot and no number is used twice", |_, state: &Past| {
                state.once
            }),
            Property::sometimes("a vote leaves", |_, state: &Past| state.spoke),
        ]
    }
}

#[test]
fn whatever_output_a_crash_follows_the_node_keeps_its_word() {
    let checker = Crashes::new(None).checker().threads(2).spawn_bfs().join();
    assert!(checker.unique_state_count() > 3_000);
    checker.assert_properties();
}

#[test]
fn sending_first_or_forgetting_is_found() {
    for (bug, property) in [
        (
            Bug::SendBeforePersist,
            "no vote leaves before it is on the disk",
        ),
        (Bug::VotesForgotten, "no slot and no number is used twice"),
        (Bug::SequenceRestarts, "no slot and no number is used twice"),
    ] {
        let checker = Crashes::new(Some(bug))
            .checker()
            .threads(2)
            .spawn_bfs()
            .join();
        assert!(checker.discovery(property).is_some(), "{bug:?}");
    }
}
