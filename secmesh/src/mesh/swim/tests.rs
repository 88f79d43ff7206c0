//! Detectors that talk to each other over links that break, in a time of their own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::{Standing, Update, What};
use super::*;
use crate::mesh::message::Message;

const STEP: u64 = 100_000;
const SECOND: u64 = 1_000_000;

fn life(n: u8) -> Life {
    Life {
        node: id(n),
        incarnation: 1,
    }
}

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

/// Nodes 1 to n; all links stand at first.
struct Net {
    now: u64,
    nodes: BTreeMap<u8, Swim>,
    /// Pairs without a connection, lower number first.
    cut: BTreeSet<(u8, u8)>,
    /// They neither take nor send anything, and their connections stand.
    stopped: BTreeSet<u8>,
    /// What waits for a stopped node.
    held: Vec<(u8, u8, Vec<u8>)>,
    /// What was found, by whom: node, state.
    log: Vec<(u64, u8, u8, Liveness)>,
    bytes: usize,
    messages: usize,
    largest: usize,
}

impl Net {
    fn new(n: u8, seed: u8) -> Self {
        let mut net = Self {
            now: 10 * SECOND,
            nodes: (1..=n)
                .map(|i| (i, Swim::new(life(i), [seed.wrapping_mul(37) ^ i; 32])))
                .collect(),
            cut: BTreeSet::new(),
            stopped: BTreeSet::new(),
            held: Vec::new(),
            log: Vec::new(),
            bytes: 0,
            messages: 0,
            largest: 0,
        };
        for a in 1..=n {
            net.act(a, |swim, now, out| {
                swim.set_members(now, (1..=n).map(life), out);
            });
        }
        for a in 1..=n {
            for b in 1..=n {
                if a != b {
                    net.act(a, |swim, now, out| swim.peer_up(now, id(b), out));
                }
            }
        }
        net.log.clear();
        net
    }

    fn linked(&self, a: u8, b: u8) -> bool {
        !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// One node does something; what follows from it arrives at once.
    fn act(&mut self, node: u8, act: impl FnOnce(&mut Swim, u64, &mut Vec<Output>)) {
        let mut queue = VecDeque::new();
        let mut out = Vec::new();
        act(self.nodes.get_mut(&node).unwrap(), self.now, &mut out);
        queue.push_back((node, out));
        while let Some((node, out)) = queue.pop_front() {
            for output in out {
                match output {
                    Output::Liveness { node: about, now } => {
                        self.log.push((self.now, node, about.0[0], now));
                    }
                    Output::Send { to, bytes } => {
                        let to = to.0[0];
                        self.messages += 1;
                        self.bytes += bytes.len();
                        self.largest = self.largest.max(bytes.len());
                        if self.stopped.contains(&to) {
                            self.held.push((node, to, bytes));
                        } else if self.linked(node, to) {
                            queue.push_back((to, self.deliver(node, to, &bytes)));
                        }
                    }
                }
            }
        }
    }

    fn deliver(&mut self, from: u8, to: u8, bytes: &[u8]) -> Vec<Output> {
        let Ok(Message::Swim(message)) = Message::from_bytes(bytes) else {
            panic!("not a message of failure detection");
        };
        let mut out = Vec::new();
        let swim = self.nodes.get_mut(&to).unwrap();
        swim.heard(self.now, id(from), &mut out);
        swim.message(self.now, id(from), &message, &mut out);
        out
    }

    fn run(&mut self, seconds: u64) {
        let until = self.now + seconds * SECOND;
        while self.now < until {
            self.now += STEP;
            let nodes: Vec<u8> = self.nodes.keys().copied().collect();
            for node in nodes {
                if !self.stopped.contains(&node) {
                    self.act(node, Swim::tick);
                }
            }
        }
    }

    fn cut(&mut self, a: u8, b: u8) {
        if self.cut.insert((a.min(b), a.max(b))) {
            self.act(a, |swim, now, out| swim.peer_down(now, id(b), out));
            self.act(b, |swim, now, out| swim.peer_down(now, id(a), out));
        }
    }

    fn mend(&mut self, a: u8, b: u8) {
        if self.cut.remove(&(a.min(b), a.max(b))) {
            self.act(a, |swim, now, out| swim.peer_up(now, id(b), out));
            self.act(b, |swim, now, out| swim.peer_up(now, id(a), out));
        }
    }

    fn go_on(&mut self, node: u8) {
        self.stopped.remove(&node);
        for (from, to, bytes) in std::mem::take(&mut self.held) {
            self.act(to, |swim, now, out| {
                let Ok(Message::Swim(message)) = Message::from_bytes(&bytes) else {
                    panic!("not a message of failure detection");
                };
                swim.heard(now, id(from), out);
                swim.message(now, id(from), &message, out);
            });
        }
    }

    fn sees(&self, node: u8, about: u8) -> Liveness {
        self.nodes[&node].liveness(&id(about)).unwrap()
    }

    fn all_alive(&self) -> bool {
        self.nodes.keys().all(|a| {
            self.nodes
                .keys()
                .all(|b| a == b || self.sees(*a, *b) == Liveness::Alive)
        })
    }
}

#[test]
fn who_answers_is_never_suspected_and_costs_little() {
    let mut net = Net::new(30, 1);
    net.run(2);
    let (messages, bytes) = (net.messages, net.bytes);
    // All connections came up in one instant, which may be too much for one second.
    let refused: u64 = net.nodes.values().map(|s| s.counters().refused_rate).sum();
    assert!(refused < 100, "{refused} refused");
    net.run(120);
    assert!(net.log.is_empty(), "{:?}", net.log);
    assert!(net.all_alive());
    let per_node = (net.bytes - bytes) / 120 / 30;
    let messages = (net.messages - messages) / 30;
    assert!(per_node < 300, "{per_node} bytes a second");
    assert!(messages < 3 * 120, "{messages} messages in 120 s");
    assert!(net.largest <= message::MAX_BODY + 15);
    assert!(net.nodes.values().all(|swim| swim.counters().errors == 0));
    let later: u64 = net.nodes.values().map(|s| s.counters().refused_rate).sum();
    assert_eq!(later, refused);
}

#[test]
fn a_stopped_node_is_suspected_then_down_and_back_when_it_goes_on() {
    for seed in 0..20 {
        let mut net = Net::new(4, seed);
        net.run(5);
        net.stopped.insert(3);
        let since = net.now;
        net.run(9);
        for other in [1, 2, 4] {
            let found: Vec<_> = net
                .log
                .iter()
                .filter(|(_, by, about, _)| (*by, *about) == (other, 3))
                .map(|(at, _, _, now)| (*now, at - since))
                .collect();
            assert!(
                matches!(found[..], [(Liveness::Suspect, _), (Liveness::Down, within)] if within <= 8 * SECOND),
                "seed {seed}: {found:?}"
            );
        }
        assert!(net.log.iter().all(|(_, _, about, _)| *about == 3));
        net.go_on(3);
        net.run(1);
        assert!(net.all_alive(), "seed {seed}: {:?}", net.log);
    }
}

#[test]
fn who_is_cut_off_from_one_stays_alive_through_others_and_is_down_when_cut_off_from_all() {
    for seed in 0..20 {
        let mut net = Net::new(5, seed);
        net.run(5);
        net.cut(1, 2);
        // The others are asked at once, and answer at once here.
        assert_eq!((net.log[0].1, net.log[0].3), (1, Liveness::Suspect));
        assert_eq!(
            net.sees(1, 2),
            Liveness::Alive,
            "seed {seed}: {:?}",
            net.log
        );
        net.run(120);
        let downs = net.log.iter().filter(|l| l.3 == Liveness::Down).count();
        assert_eq!(downs, 0, "seed {seed}: {:?}", net.log);
        for other in 3..=5 {
            net.cut(2, other);
        }
        net.run(12);
        for other in [1, 3, 4, 5] {
            assert_eq!(net.sees(other, 2), Liveness::Down, "seed {seed}");
            assert_eq!(net.sees(2, other), Liveness::Down, "seed {seed}");
        }
        // One link is enough for all to know.
        net.mend(2, 3);
        assert_eq!(net.sees(3, 2), Liveness::Alive);
        net.run(40);
        for other in [1, 4, 5] {
            assert_eq!(
                net.sees(other, 2),
                Liveness::Alive,
                "seed {seed}: by {other}"
            );
            assert_eq!(
                net.sees(2, other),
                Liveness::Alive,
                "seed {seed}: of {other}"
            );
        }
    }
}

#[test]
fn two_halves_are_down_to_each_other_and_meet_again() {
    for seed in 0..20 {
        let mut net = Net::new(4, seed);
        net.run(3);
        for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
            net.cut(a, b);
        }
        net.run(8);
        for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
            assert_eq!(net.sees(a, b), Liveness::Down, "seed {seed}");
            assert_eq!(net.sees(b, a), Liveness::Down, "seed {seed}");
        }
        assert_eq!(net.sees(1, 2), Liveness::Alive);
        assert_eq!(net.sees(4, 3), Liveness::Alive);
        for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
            net.mend(a, b);
        }
        assert!(net.all_alive(), "at once: {:?}", net.log);
        net.log.clear();
        net.run(30);
        assert!(net.log.is_empty(), "seed {seed}: {:?}", net.log);
    }
}

/// What node 4, a liar, says to `to`.
fn lie(net: &mut Net, to: u8, what: What, updates: Vec<Update>) {
    let message = SwimMessage {
        incarnation: 1,
        refutations: 0,
        to: 1,
        what,
        updates,
    };
    net.act(to, |swim, now, out| swim.message(now, id(4), &message, out));
}

fn says(n: u8, refutations: u16, standing: Standing) -> Update {
    Update {
        life: life(n),
        refutations,
        standing,
    }
}

#[test]
fn a_liar_uses_up_few_refutations_of_another() {
    for ahead in [0, MAX_AHEAD] {
        let mut net = Net::new(4, 3);
        net.run(3);
        let suspect = |net: &mut Net, seconds: u64| {
            for _ in 0..seconds {
                let said = net.nodes[&1].refutations;
                lie(
                    net,
                    1,
                    What::Gossip,
                    vec![says(1, said + ahead, Standing::Suspect)],
                );
                net.run(1);
            }
            net.nodes[&1].refutations
        };
        // What it says first is believed, for it may be left of an earlier life.
        assert!((ahead + 1..=3 * (ahead + 1)).contains(&suspect(&mut net, 3)));
        let said = suspect(&mut net, 100);
        assert!(
            (NUMBERS_AT_ONCE - ahead..=NUMBERS_AT_ONCE).contains(&said),
            "{said}"
        );
        assert!(net.nodes[&1].counters().unrefuted > 0);
        // An hour later it has earned six.
        net.now += 6 * NUMBER_US;
        let later = suspect(&mut net, 10);
        assert!(later > said && later <= NUMBERS_AT_ONCE + 6, "{later}");
        // A day earns no more than what it had at first.
        net.now += 144 * NUMBER_US;
        let last = suspect(&mut net, 100);
        assert!(last > later && last - later <= NUMBERS_AT_ONCE, "{last}");
    }
}

#[test]
fn who_has_no_refutations_left_answers_through_others() {
    let mut net = Net::new(4, 3);
    net.run(3);
    net.cut(1, 2);
    net.run(3);
    for _ in 0..200 {
        for to in [1, 2] {
            let known = net.nodes[&to].known(&id(1)).map_or(0, |(_, number)| number);
            let said = net.nodes[&1].refutations.max(known);
            lie(
                &mut net,
                to,
                What::Gossip,
                vec![says(1, said, Standing::Suspect)],
            );
        }
        net.run(1);
        assert_ne!(net.sees(2, 1), Liveness::Down);
    }
    assert!(net.nodes[&1].counters().unrefuted > 0);
    net.run(5);
    assert!(net.all_alive());
}

#[test]
fn a_liar_makes_nobody_down_who_answers() {
    let mut net = Net::new(4, 3);
    net.run(3);
    for round in 0..2_000_u16 {
        for to in 1..=3 {
            let about: Vec<Update> = (1..=3)
                .flat_map(|n| {
                    [
                        says(n, 0, Standing::Down),
                        says(n, round, Standing::Suspect),
                        says(n, u16::MAX, Standing::Suspect),
                        says(n, u16::MAX, Standing::Alive),
                    ]
                })
                .collect();
            lie(&mut net, to, What::Gossip, about);
        }
        let turn = u8::try_from(round % 3).unwrap();
        let (a, b) = (1 + turn, 1 + (turn + 1) % 3);
        assert_ne!(net.sees(a, b), Liveness::Down, "round {round}");
        net.now += STEP;
        for node in 1..=4 {
            net.act(node, Swim::tick);
        }
    }
    let downs = net.log.iter().filter(|l| l.3 == Liveness::Down).count();
    assert_eq!(downs, 0);
    net.run(5);
    assert!(net.all_alive(), "{:?}", net.log.last());
    assert!(net.nodes[&1].counters().news_ignored > 1_000);
}

#[test]
fn strangers_and_other_lives_are_not_believed_in_nor_kept() {
    let mut net = Net::new(4, 5);
    net.run(3);
    let before = net.nodes[&1].foca.iter_membership_state().len();
    for n in 10..=250_u8 {
        let stranger = says(n, 0, Standing::Alive);
        let mut other_life = says(2, 0, Standing::Alive);
        other_life.life.incarnation = u64::from(n);
        lie(&mut net, 1, What::Gossip, vec![stranger, other_life]);
        let target = stranger.life;
        lie(&mut net, 1, What::Request { target, number: n }, Vec::new());
        net.now += SECOND / 8;
    }
    assert_eq!(net.nodes[&1].foca.iter_membership_state().len(), before);
    let counters = *net.nodes[&1].counters();
    assert_eq!((counters.news_unknown, counters.refused_named), (482, 241));
    // From a node that is none, in or for another life, or about its sender.
    for (from, incarnation, to) in [(9, 1, 1), (4, 2, 1), (4, 1, 2)] {
        let message = SwimMessage {
            incarnation,
            refutations: 0,
            to,
            what: What::Announce,
            updates: Vec::new(),
        };
        net.act(1, |swim, now, out| {
            swim.message(now, id(from), &message, out);
            assert!(out.is_empty(), "answered: {out:?}");
        });
    }
    assert_eq!(
        net.nodes[&1].counters().refused_unknown,
        counters.refused_unknown + 3
    );
    lie(
        &mut net,
        1,
        What::Request {
            target: life(4),
            number: 1,
        },
        Vec::new(),
    );
    lie(
        &mut net,
        1,
        What::Forwarded {
            origin: life(1),
            number: 1,
        },
        Vec::new(),
    );
    assert_eq!(net.nodes[&1].counters().refused_named, 243);
}

#[test]
fn one_peer_is_heard_so_often_and_no_more() {
    let mut net = Net::new(4, 6);
    net.run(3);
    net.now += SECOND - net.now % SECOND;
    let sent = net.nodes[&1].counters().sent;
    for number in 0..=255 {
        lie(&mut net, 1, What::Ping { number }, Vec::new());
    }
    let counters = net.nodes[&1].counters();
    assert_eq!(counters.sent - sent, u64::from(MESSAGES_PER_S));
    assert_eq!(counters.refused_rate, 256 - u64::from(MESSAGES_PER_S));
    // The others are heard all the same.
    net.run(10);
    assert!(net.all_alive());
}

#[test]
fn a_dead_node_is_not_kept_alive_by_hearsay_alone() {
    let mut net = Net::new(4, 7);
    net.run(3);
    for other in [1, 2, 4] {
        net.cut(3, other);
    }
    net.run(10);
    assert_eq!(net.sees(1, 3), Liveness::Down);
    net.log.clear();
    // A liar says that it is there, and never answers for it.
    for _ in 0..600 {
        lie(&mut net, 1, What::Gossip, vec![says(3, 0, Standing::Alive)]);
        net.run(1);
        assert_ne!(net.sees(1, 3), Liveness::Alive);
    }
    assert!(
        net.log.len() < 600 * 2 / 10 * 3,
        "it flaps: {}",
        net.log.len()
    );
}

#[test]
fn a_node_that_was_set_up_anew_begins_anew() {
    let mut net = Net::new(4, 8);
    net.run(3);
    net.cut(1, 2);
    let again = Life {
        incarnation: 2,
        ..life(2)
    };
    let members: Vec<Life> = vec![life(1), again, life(3)];
    net.act(1, |swim, now, out| swim.set_members(now, members, out));
    assert_eq!(net.nodes[&1].liveness(&id(2)), Some(Liveness::Down));
    assert_eq!(net.nodes[&1].liveness(&id(4)), None, "it was removed");
    assert_eq!(net.nodes[&1].liveness(&id(1)), None, "it is itself");
    net.act(1, |swim, now, out| swim.peer_up(now, id(2), out));
    assert_eq!(net.nodes[&1].liveness(&id(2)), Some(Liveness::Alive));
    assert!(net.nodes[&1].foca.iter_membership_state().len() <= 2);
}

#[test]
fn one_seed_gives_one_course() {
    let course = |seed| {
        let mut net = Net::new(6, seed);
        net.run(3);
        net.cut(1, 2);
        net.stopped.insert(5);
        net.run(20);
        (net.log, net.messages, net.bytes)
    };
    assert_eq!(course(1), course(1));
    assert_ne!(course(1), course(2));
}

#[test]
fn it_says_when_it_wants_to_be_woken_and_what_it_waits_for_stays_little() {
    let mut net = Net::new(4, 9);
    for round in 0..200_u8 {
        net.cut(1, 2 + round % 3);
        net.run(1);
        net.mend(1, 2 + round % 3);
        for other in 2..=4 {
            net.cut(1, other);
        }
        net.now += STEP;
        for other in 2..=4 {
            net.mend(1, other);
        }
    }
    let swim = &net.nodes[&1];
    let next = swim.next_us().unwrap();
    assert!(next > net.now - SECOND && next <= net.now + SECOND);
    assert!(swim.waiting() < 64, "{} timers", swim.waiting());
}
