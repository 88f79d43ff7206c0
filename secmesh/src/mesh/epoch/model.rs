//! The lock of an epoch as a model: four nodes, one of which says whatever it likes.
//!
//! The network is the worst there is: what was sent may reach anybody at any time, or never, so a node may
//! act on any part of what was sent, and may give up waiting whenever it likes. The liar's votes for
//! everything in every round are always there. Honest nodes may crash and come back with their disks. The
//! decisions are those of [`super::rules`], which the running code uses too.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::rules;

/// What is proposed: two records for one number.
const VALUES: [u8; 2] = [1, 2];
/// Honest nodes; the liar is one more.
const HONEST: usize = 3;

/// What is built wrongly on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A lock gives way to any proposal of a later round.
    UnlockWithoutPolka,
    /// A lock gives way to a polka that is older than the lock.
    UnlockByOlderPolka,
    /// Only who is reachable counts: two of two.
    CountReachable,
    /// The node that the record is about is taken out of W: `T_hi` of three.
    SubjectOutOfTotal,
    /// A crash forgets the lock.
    ForgetLock,
    /// A crash forgets what was signed.
    ForgetVotes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    Propose,
    Prevote,
    Precommit,
}

/// One honest node: where it is, and all that it ever signed. A vote is 0 for nil.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Node {
    round: u32,
    step: Step,
    locked: Option<(u32, u8)>,
    prevotes: Vec<Option<u8>>,
    precommits: Vec<Option<u8>>,
    /// What crashes made it sign a second time.
    second: BTreeSet<(u32, u8)>,
    crashes: u8,
}

type State = Vec<Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// Prevote on the proposal of this value, shown with a polka of that round.
    Prevote(usize, u8, Option<u32>),
    PrevoteNil(usize),
    Precommit(usize, u8),
    PrecommitNil(usize),
    NextRound(usize),
    Crash(usize),
}

struct Epoch {
    rounds: u32,
    bug: Bug,
}

impl Epoch {
    fn needed(&self) -> u64 {
        match self.bug {
            Bug::CountReachable => 2,
            // Taking 1 of 4 out: floor(2 * 3 / 3) + 1 is 3 of what is left, but the subject still signs
            // elsewhere, so two honest and the liar suffice on one side, and so do they on the other.
            Bug::SubjectOutOfTotal => 2 * 2 / 3 + 1,
            _ => 4 * 2 / 3 + 1,
        }
    }

    /// Whether honest votes for `value`, with the liar's, are a quorum.
    fn quorum(&self, votes: impl Iterator<Item = bool>) -> bool {
        let honest = votes.filter(|for_it| *for_it).count() as u64;
        rules::is_quorum(honest + 1, self.needed())
    }

    fn polka(&self, state: &State, round: u32, value: u8) -> bool {
        let at = round as usize;
        self.quorum(
            state.iter().map(|node| {
                node.prevotes[at] == Some(value) || node.second.contains(&(round, value))
            }),
        )
    }

    fn decided(&self, state: &State, round: u32, value: u8) -> bool {
        let at = round as usize;
        self.quorum(state.iter().map(|node| node.precommits[at] == Some(value)))
    }

    fn may_prevote(&self, node: &Node, value: u8, polka: Option<u32>) -> bool {
        let round = node.round;
        match self.bug {
            Bug::UnlockWithoutPolka => true,
            Bug::UnlockByOlderPolka => {
                polka.is_some() || rules::may_prevote(node.locked.as_ref(), &value, polka, round)
            }
            _ => rules::may_prevote(node.locked.as_ref(), &value, polka, round),
        }
    }
}

impl Model for Epoch {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let rounds = self.rounds as usize;
        vec![vec![
            Node {
                round: 0,
                step: Step::Propose,
                locked: None,
                prevotes: vec![None; rounds],
                precommits: vec![None; rounds],
                second: BTreeSet::new(),
                crashes: 0,
            };
            HONEST
        ]]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (i, node) in state.iter().enumerate() {
            match node.step {
                Step::Propose => {
                    for value in VALUES {
                        // Whoever proposes: the liar's turn may come in any round, and an honest proposer
                        // may be told anything before. More behaviour than there is, never less.
                        let polkas = (0..node.round).filter(|at| self.polka(state, *at, value));
                        for polka in polkas.map(Some).chain([None]) {
                            if self.may_prevote(node, value, polka) {
                                actions.push(Action::Prevote(i, value, polka));
                            }
                        }
                    }
                    actions.push(Action::PrevoteNil(i));
                }
                Step::Prevote => {
                    for value in VALUES {
                        if self.polka(state, node.round, value) {
                            actions.push(Action::Precommit(i, value));
                        }
                    }
                    actions.push(Action::PrecommitNil(i));
                }
                Step::Precommit if node.round + 1 < self.rounds => {
                    actions.push(Action::NextRound(i));
                }
                Step::Precommit => {}
            }
            let crash = matches!(self.bug, Bug::ForgetLock | Bug::ForgetVotes);
            if crash && node.crashes == 0 {
                actions.push(Action::Crash(i));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Prevote(i, value, _) => {
                let node = &mut state[i];
                let at = node.round as usize;
                if node.prevotes[at].is_some_and(|before| before != value) {
                    node.second.insert((node.round, value));
                } else {
                    node.prevotes[at] = Some(value);
                }
                node.step = Step::Prevote;
            }
            Action::PrevoteNil(i) => {
                let node = &mut state[i];
                let at = node.round as usize;
                node.prevotes[at].get_or_insert(0);
                node.step = Step::Prevote;
            }
            Action::Precommit(i, value) => {
                let node = &mut state[i];
                node.precommits[node.round as usize] = Some(value);
                node.locked = Some((node.round, value));
                node.step = Step::Precommit;
            }
            Action::PrecommitNil(i) => {
                let node = &mut state[i];
                node.precommits[node.round as usize] = Some(0);
                node.step = Step::Precommit;
            }
            Action::NextRound(i) => {
                let node = &mut state[i];
                node.round += 1;
                node.step = Step::Propose;
            }
            // Without a bug the disk has everything, and a crash is nothing but a pause.
            Action::Crash(i) => {
                let node = &mut state[i];
                node.crashes += 1;
                match self.bug {
                    Bug::ForgetLock => node.locked = None,
                    Bug::ForgetVotes if node.step == Step::Prevote => node.step = Step::Propose,
                    _ => {}
                }
            }
        }
        // Honest nodes are alike: states that differ in their order are one.
        state.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "one record for one number",
                |model: &Self, state: &State| {
                    let decided: BTreeSet<u8> = VALUES
                        .into_iter()
                        .filter(|v| (0..model.rounds).any(|round| model.decided(state, round, *v)))
                        .collect();
                    decided.len() < 2
                },
            ),
            Property::always("nobody honest signs two things", |_, state: &State| {
                state.iter().all(|node| node.second.is_empty())
            }),
            // The model is of something: records are decided in it, also after a lock had to wait.
            Property::sometimes("decided at once", |model: &Self, state: &State| {
                model.decided(state, 0, 1)
            }),
            Property::sometimes(
                "decided later than locked",
                |model: &Self, state: &State| {
                    let locked = state.iter().any(|n| n.precommits[0] == Some(2));
                    locked && (1..model.rounds).any(|round| model.decided(state, round, 2))
                },
            ),
        ]
    }
}

fn broken(bug: Bug, rounds: u32) -> Vec<&'static str> {
    let checker = Epoch { rounds, bug }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let mut broken: Vec<&'static str> = checker
        .discoveries()
        .into_keys()
        .filter(|name| !name.starts_with("decided"))
        .collect();
    broken.sort_unstable();
    let states = checker.unique_state_count();
    eprintln!("{bug:?}, {rounds} rounds: {states} states, broken: {broken:?}");
    if bug == Bug::None {
        let seen = checker.discoveries();
        assert!(
            seen.contains_key("decided at once"),
            "the model is of nothing"
        );
        assert!(seen.contains_key("decided later than locked"));
    }
    broken
}

#[test]
fn one_liar_of_four_never_makes_two_records_of_one_number() {
    assert_eq!(broken(Bug::None, 3), [""; 0]);
}

#[test]
fn the_model_finds_what_is_built_wrongly() {
    let two = "one record for one number";
    for (bug, rounds, expected) in [
        (Bug::UnlockWithoutPolka, 2, two),
        (Bug::UnlockByOlderPolka, 3, two),
        (Bug::CountReachable, 2, two),
        (Bug::SubjectOutOfTotal, 2, two),
        (Bug::ForgetLock, 2, two),
        (Bug::ForgetVotes, 2, "nobody honest signs two things"),
    ] {
        assert!(
            broken(bug, rounds).contains(&expected),
            "{bug:?} was not found"
        );
    }
}
