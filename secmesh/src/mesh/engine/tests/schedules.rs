//! Random interleavings of a four-node mesh, with loss, duplication and reordering.

use super::*;
use crate::mesh::cert::CertVote;
use proptest::prelude::*;

/// What a random schedule does next.
#[derive(Debug, Clone)]
enum Step {
    Deliver(prop::sample::Index),
    Lose(prop::sample::Index),
    Duplicate(prop::sample::Index),
    Sees(u8, u8),
    Pass(u64),
    Lie(u8, u8, u8, bool),
    Crash(u8),
    Cut(u8, u8),
    Join(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 1..=4_u8;
    prop_oneof![
        10 => any::<prop::sample::Index>().prop_map(Step::Deliver),
        1 => any::<prop::sample::Index>().prop_map(Step::Lose),
        2 => any::<prop::sample::Index>().prop_map(Step::Duplicate),
        4 => (1..=3_u8, 0..3_u8).prop_map(|(i, s)| Step::Sees(i, s)),
        2 => (0..20_u64).prop_map(Step::Pass),
        4 => (0..4_u8, 1..=3_u8, 0..4_u8, any::<bool>())
            .prop_map(|(kind, to, s, v)| Step::Lie(kind, to, s, v)),
        1 => (1..=3_u8).prop_map(Step::Crash),
        1 => (node(), node()).prop_map(|(a, b)| Step::Cut(a, b)),
        2 => (node(), node()).prop_map(|(a, b)| Step::Join(a, b)),
    ]
}

fn target(n: u8) -> Prefix {
    format!("203.0.113.{n}").parse().unwrap()
}

const FRAMED: u8 = 3;

/// Node 4 lies: it has its keys and its connections and runs no engine of ours.
struct World {
    net: Net,
    lies: u64,
    seen: BTreeMap<u8, BTreeSet<u8>>,
    heard: Vec<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let mut net = Net::four();
        net.engines.remove(&4);
        Self {
            net,
            lies: 0,
            seen: BTreeMap::new(),
            heard: Vec::new(),
        }
    }

    fn run(&mut self, step: &Step) {
        let net = &mut self.net;
        let len = net.queue.len();
        match step {
            Step::Deliver(at) if len > 0 => {
                let packet = net.queue.remove(at.index(len));
                if packet.to == 4 {
                    self.heard.push(packet.bytes.clone());
                }
                net.deliver(&packet);
            }
            Step::Lose(at) if len > 0 => {
                net.queue.remove(at.index(len));
            }
            Step::Duplicate(at) if len > 0 => {
                let packet = net.queue[at.index(len)].clone();
                net.queue.push(packet);
            }
            &Step::Sees(i, s) => {
                self.seen.entry(s).or_default().insert(i);
                net.sees(i, target(s));
            }
            &Step::Pass(s) => net.tick(s * S),
            &Step::Lie(kind, to, s, confirm) => self.lie(kind, to, s, confirm),
            &Step::Crash(i) => {
                net.crash(i);
                for j in 1..=4 {
                    if j != i {
                        net.disconnect_dead(i, j);
                    }
                }
            }
            &Step::Cut(a, b) if a != b && a != 4 && b != 4 => net.disconnect(a, b),
            &Step::Join(a, b) if a != b && a != 4 && b != 4 => net.connect(a, b),
            _ => {}
        }
    }

    fn lie(&mut self, kind: u8, to: u8, s: u8, confirm: bool) {
        self.lies += 1;
        let net = &mut self.net;
        let verdict = if confirm {
            Verdict::Confirm
        } else {
            Verdict::Reject
        };
        let action = block(target(s));
        let roster = roster(&["a", "b", "c", "d"]);
        match kind {
            0 => {
                let vote = ballot(&roster, 4, action, verdict, self.lies, net.now);
                net.inject(4, to, &Message::Vote(Box::new(vote)));
            }
            1 => {
                // In the name of another.
                let mut vote = ballot(&roster, 4, action, verdict, self.lies, net.now);
                vote.signed.vote.voter = node_id(to % 3 + 1);
                net.inject(4, to, &Message::Vote(Box::new(vote)));
            }
            2 => {
                if let Some(bytes) = self.heard.pop() {
                    net.deliver(&Packet { from: 4, to, bytes });
                }
            }
            _ => {
                // A certificate out of its own vote, twice, and with an honest vote on another
                // subject pasted in.
                let mut made = certificate(&roster, action, &[(4, Verdict::Confirm)]);
                let honest: Vec<CertVote> = self
                    .heard
                    .iter()
                    .filter_map(|bytes| match Message::from_bytes(bytes) {
                        Ok(Message::Vote(b)) => Some(CertVote {
                            voter: b.signed.vote.voter,
                            verdict: Verdict::Confirm,
                            signature: b.signed.signature,
                            ..made.votes[0]
                        }),
                        _ => None,
                    })
                    .take(2)
                    .collect();
                made.votes.extend(honest);
                made.votes.sort_by_key(|v| v.voter);
                net.inject(4, to, &Message::Certificate(Box::new(made)));
            }
        }
    }
}

impl Net {
    /// Both ends notice, and connect again.
    fn disconnect_dead(&mut self, a: u8, b: u8) {
        let was = self.links.contains(&(a, b));
        if was && self.engines.contains_key(&b) {
            self.disconnect(a, b);
            self.connect(a, b);
        }
    }

    fn input_if_there(&mut self, i: u8, peer: u8) {
        if self.engines.contains_key(&i) {
            self.input(i, Input::PeerUp(node_id(peer)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_happens_one_liar_frames_nobody_and_two_witnesses_convince_everybody(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in steps {
            world.run(&step);
            // Safety, at each step.
            for i in 1..=3_u8 {
                prop_assert!(!world.net.blocks(i, target(FRAMED)), "framed on node {}", i);
                for s in 0..3_u8 {
                    let honest = world.seen.get(&s).map_or(0, BTreeSet::len);
                    prop_assert!(honest > 0 || !world.net.blocks(i, target(s)));
                }
                let liars = world.net.engines[&i].liars();
                prop_assert!(liars.iter().all(|n| *n == node_id(4)), "an honest node accused");
            }
        }
        world.net.nobody_contradicts_itself();
        // Liveness: the network heals, the attack goes on for a while.
        let net = &mut world.net;
        for a in 1..=3 {
            for b in 1..=3 {
                if a < b {
                    net.disconnect(a, b);
                    net.connect(a, b);
                }
            }
        }
        net.run();
        net.tick(130 * S);
        for i in [1, 2] {
            net.sees(i, subject());
        }
        net.run();
        for i in 1..=3 {
            net.input_if_there(i, 4);
            prop_assert!(net.blocks(i, subject()), "node {} does not block", i);
        }
        let ids: BTreeSet<_> = (1..=3).flat_map(|i| net.decided(i, subject())).collect();
        prop_assert_eq!(ids.len(), 1);
    }

    #[test]
    fn any_order_of_delivery_leads_to_one_decision(
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
        witnesses in (1..=4_u8, 1..=3_u8),
    ) {
        let mut net = Net::four();
        let (first, step) = witnesses;
        let second = (first + step - 1) % 4 + 1;
        net.sees(first, subject());
        net.sees(second, subject());
        for at in order {
            if !net.queue.is_empty() {
                let packet = net.queue.remove(at.index(net.queue.len()));
                net.deliver(&packet);
            }
        }
        net.run();
        let ids: BTreeSet<_> = (1..=4).flat_map(|i| net.decided(i, subject())).collect();
        prop_assert_eq!(ids.len(), 1);
        prop_assert!((1..=4).all(|i| net.blocks(i, subject())));
    }
}
