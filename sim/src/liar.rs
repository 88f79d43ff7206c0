//! Nodes that lie: they have their keys, their connections and all that they hear, and no engine of ours.

mod conduct;
mod epochs;
mod forge;
mod logs;
mod scene;

use std::collections::VecDeque;
use std::rc::Rc;

use secmesh::addr::Prefix;
use secmesh::merkle::Tree;
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::ids::{Hash, NodeId};
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::{Action, ActionKind, AttackClass, Ballot, Verdict, Vote, bucket_of};

pub use self::scene::Scene;
use crate::cast::{self, S};
use crate::plan::Plan;
use crate::rng::Rng;

/// How many messages a liar keeps to use later.
const MEMORY: usize = 96;

/// A message and to whom.
pub type Said = (usize, Rc<[u8]>);

/// A liar.
#[derive(Debug)]
pub struct Liar {
    index: usize,
    id: NodeId,
    signer: Signer,
    group: usize,
    sequence: u64,
    heard: VecDeque<Rc<[u8]>>,
    own: VecDeque<Ballot>,
    /// Votes of its group: those of its zone work together.
    group_votes: VecDeque<Ballot>,
    /// Which tricks it uses.
    tricks: Vec<Trick>,
    zone: usize,
    /// Its log of statements, as it shows it to most.
    log: Tree,
    /// Entries of its ledger, as it says.
    ledger: u64,
}

macro_rules! tricks {
    ($($name:ident,)+) => {
        /// What liars do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum Trick {
            $($name,)+
            /// Calls an honest node hostile, and the liars that are cut off good; all liars together.
            Accuse,
            /// Shows one node another log of statements than the others: one statement. In directed runs only.
            LogForkForOne,
            /// The same with so many large statements that no answer holds them. In directed runs only.
            LongLogForkForOne,
        }

        const TRICKS: &[Trick] = &[$(Trick::$name,)+];
    };
}

tricks!(
    Frame,
    FrameNetwork,
    Join,
    Equivocate,
    Split,
    Replay,
    ForgeTime,
    ForgeCertificate,
    StripCertificate,
    Masquerade,
    Flood,
    ReuseNumber,
    Garbage,
    WrongAction,
    WrongEpoch,
    Release,
    Reject,
    BurnTicket,
    Stranger,
    ForgeProof,
    OutsideWindow,
    EpochEquivocate,
    EpochPropose,
    EpochForge,
    ForgeRemoval,
    LogFork,
    LogFrame,
    LogForge,
    LedgerFork,
);

fn bytes(message: &Message) -> Rc<[u8]> {
    Rc::from(message.to_bytes())
}

fn vote_message(ballot: &Ballot) -> Rc<[u8]> {
    bytes(&Message::Vote(Box::new(*ballot)))
}

impl Liar {
    /// Node `index` of a plan, that frames with its group. It may have no trick at all: then it withholds.
    pub fn new(plan: &Plan, index: usize, rng: &mut Rng) -> Self {
        let (zone, group) = (plan.zones[index], plan.group(index));
        // A liar that was caught early can try nothing else any more, so most liars have few tricks.
        let count = *rng.pick(&[0, 1, 2, 2, 3, 3, 5, TRICKS.len()]).unwrap_or(&3);
        let mut tricks = rng.some(TRICKS, count);
        if let Some(given) = plan.tricks.get(&index) {
            tricks.clone_from(given);
        } else if plan.accusers.contains(&index) {
            tricks.push(Trick::Accuse);
        }
        Self {
            index,
            id: cast::node_id(index),
            signer: cast::signer(index),
            group,
            sequence: 0,
            heard: VecDeque::new(),
            own: VecDeque::new(),
            group_votes: VecDeque::new(),
            tricks,
            zone,
            log: Tree::default(),
            ledger: 0,
        }
    }

    /// What it does, for people.
    pub fn tricks(&self) -> String {
        format!("{:?}", self.tricks)
    }

    /// It received something.
    pub fn hear(&mut self, message: &Rc<[u8]>) {
        // Failure detection says nothing twice, and there is much of it.
        if matches!(Message::from_bytes(message), Ok(Message::Swim(_))) {
            return;
        }
        if self.heard.len() >= MEMORY {
            self.heard.pop_front();
        }
        self.heard.push_back(Rc::clone(message));
    }

    /// A vote of a liar of the same group.
    pub fn share(&mut self, ballot: &Ballot) {
        if self.group_votes.len() >= MEMORY {
            self.group_votes.pop_front();
        }
        self.group_votes.push_back(*ballot);
    }

    /// Its group.
    pub const fn group(&self) -> usize {
        self.group
    }

    fn action(scene: &Scene<'_>, subject: Prefix) -> Action {
        let class = if subject.is_single() {
            AttackClass::SynFlood
        } else {
            AttackClass::Network
        };
        Action::block(subject, class, &scene.genesis.params)
    }

    fn ballot(&mut self, scene: &Scene<'_>, action: Action, verdict: Verdict) -> Ballot {
        self.sequence += 1;
        self.ballot_with(scene, action, verdict, |_| {})
    }

    fn ballot_with(
        &mut self,
        scene: &Scene<'_>,
        action: Action,
        verdict: Verdict,
        change: impl FnOnce(&mut Vote),
    ) -> Ballot {
        let (epoch, epoch_hash) = scene.epoch;
        let mesh = scene.genesis.mesh_id();
        let bucket = bucket_of(scene.wall_us);
        let mut vote = Vote {
            mesh,
            epoch,
            epoch_hash,
            incident: action.incident(mesh, epoch_hash, bucket),
            round: 0,
            bucket,
            action_hash: action.hash(),
            verdict,
            evidence_root: Hash([0x11; 32]),
            detector_hash: Hash([0x22; 32]),
            voter: self.id,
            incarnation: 1,
            sequence: self.sequence,
            issued_at_us: scene.wall_us,
            valid_for_s: scene.genesis.params.vote_valid_s,
        };
        change(&mut vote);
        vote.incident = action.incident(vote.mesh, vote.epoch_hash, vote.bucket);
        vote.action_hash = action.hash();
        let ballot = Ballot {
            action,
            signed: vote.sign(&self.signer),
        };
        if self.own.len() >= MEMORY {
            self.own.pop_front();
        }
        self.own.push_back(ballot);
        ballot
    }

    /// Does one thing: this one, or one of its own. The ballots in the second place are for the others of its group.
    #[expect(
        clippy::too_many_lines,
        reason = "one arm per trick, read one at a time"
    )]
    pub fn act(
        &mut self,
        scene: &Scene<'_>,
        trick: Option<Trick>,
        rng: &mut Rng,
    ) -> (Vec<Said>, Vec<Ballot>) {
        let Some(trick) = trick.or_else(|| rng.pick(&self.tricks).copied()) else {
            return (Vec::new(), Vec::new());
        };
        let mut said = Vec::new();
        let before = self.own.len();
        let all = |said: &mut Vec<Said>, message: &Rc<[u8]>| {
            said.extend(scene.peers.iter().map(|to| (*to, Rc::clone(message))));
        };
        let someone = rng.pick(&scene.peers).copied();
        let real = rng.pick(&scene.attackers).copied();
        let victim = cast::victim(self.group, rng.index(3));
        let real_or_victim = real.filter(|_| rng.percent(60)).unwrap_or(victim);
        match trick {
            Trick::Frame | Trick::FrameNetwork => {
                let subject = if trick == Trick::Frame {
                    victim
                } else {
                    cast::victim_network(self.group)
                };
                let action = Self::action(scene, subject);
                let slot = action.incident(
                    scene.genesis.mesh_id(),
                    scene.epoch.1,
                    bucket_of(scene.wall_us),
                );
                // Once per incident: it does not want to be caught.
                if !self.own.iter().any(|b| b.signed.vote.incident == slot) {
                    let ballot = self.ballot(scene, action, Verdict::Confirm);
                    all(&mut said, &vote_message(&ballot));
                }
            }
            Trick::Join => {
                if let Some(subject) = real {
                    let action = Self::action(scene, subject);
                    let verdict = *rng
                        .pick(&[Verdict::Confirm, Verdict::Concur])
                        .unwrap_or(&Verdict::Confirm);
                    let slot = action.incident(
                        scene.genesis.mesh_id(),
                        scene.epoch.1,
                        bucket_of(scene.wall_us),
                    );
                    if !self.own.iter().any(|b| b.signed.vote.incident == slot) {
                        let ballot = self.ballot(scene, action, verdict);
                        // To some only.
                        for to in rng.some(&scene.peers, 1 + rng.clone().index(scene.peers.len())) {
                            said.push((to, vote_message(&ballot)));
                        }
                    }
                }
            }
            Trick::Equivocate | Trick::Split => {
                let action = Self::action(scene, real_or_victim);
                let one = self.ballot(scene, action, Verdict::Confirm);
                let verdict = *rng
                    .pick(&[Verdict::Reject, Verdict::Confirm, Verdict::Abstain])
                    .unwrap_or(&Verdict::Reject);
                self.sequence += 1;
                let root = Hash(rng.bytes32());
                let two = self.ballot_with(scene, action, verdict, |v| v.evidence_root = root);
                for to in &scene.peers {
                    let both = trick == Trick::Equivocate && rng.percent(30);
                    let first = rng.percent(50);
                    if both || first {
                        said.push((*to, vote_message(&one)));
                    }
                    if both || !first {
                        said.push((*to, vote_message(&two)));
                    }
                }
            }
            Trick::Replay => {
                for _ in 0..rng.between(1, 6) {
                    let heard: Vec<_> = self.heard.iter().cloned().collect();
                    let own: Vec<_> = self.own.iter().copied().collect();
                    let message = if rng.percent(50) {
                        rng.pick(&heard).cloned()
                    } else {
                        rng.pick(&own).map(vote_message)
                    };
                    if let (Some(to), Some(message)) = (rng.pick(&scene.peers), message) {
                        said.push((*to, message));
                    }
                }
                if self.own.len() < 3 {
                    let action = Self::action(scene, real_or_victim);
                    let ballot = self.ballot(scene, action, Verdict::Confirm);
                    all(&mut said, &vote_message(&ballot));
                }
            }
            Trick::ForgeTime => {
                let action = Self::action(scene, real_or_victim);
                let by = *rng
                    .pick(&[20, 60, 140, 160, 200, 400, 3_600, u64::MAX / S])
                    .unwrap_or(&60);
                let later = rng.percent(50);
                let shift = |t: u64| {
                    if later {
                        t.saturating_add(by.saturating_mul(S))
                    } else {
                        t.saturating_sub(by.saturating_mul(S))
                    }
                };
                let wild = rng.percent(20);
                self.sequence += 1;
                let ballot = self.ballot_with(scene, action, Verdict::Confirm, |v| {
                    v.issued_at_us = shift(v.issued_at_us);
                    v.bucket = bucket_of(v.issued_at_us);
                    if wild {
                        v.valid_for_s = u32::MAX;
                    }
                });
                all(&mut said, &vote_message(&ballot));
            }
            Trick::OutsideWindow => {
                // A bucket next to the one it is signed in, and numbers far apart.
                let action = Self::action(scene, real_or_victim);
                self.sequence += *rng.pick(&[1, 1_000, 1_024, 5_000]).unwrap_or(&1);
                let near = rng.below(4);
                let ballot = self.ballot_with(scene, action, Verdict::Confirm, |v| {
                    v.bucket = (v.bucket + near).saturating_sub(1);
                });
                all(&mut said, &vote_message(&ballot));
            }
            Trick::ForgeCertificate => {
                if let (Some(to), Some(made)) =
                    (someone, self.forged_certificate(scene, victim, rng))
                {
                    said.push((to, bytes(&Message::Certificate(Box::new(made)))));
                }
            }
            Trick::StripCertificate => {
                if let (Some(to), Some(made)) = (someone, self.stripped_certificate(rng)) {
                    said.push((to, bytes(&Message::Certificate(Box::new(made)))));
                }
            }
            Trick::Masquerade => {
                let action = Self::action(scene, victim);
                let mut ballot = self.ballot(scene, action, Verdict::Confirm);
                if let Some(other) = rng.pick(&scene.peers) {
                    ballot.signed.vote.voter = cast::node_id(*other);
                    all(&mut said, &vote_message(&ballot));
                }
            }
            Trick::Flood => {
                for n in 0..rng.between(20, 120) {
                    let subject = Prefix::host(std::net::IpAddr::from([
                        100,
                        64,
                        u8::try_from(self.group % 250).unwrap_or(0),
                        u8::try_from(n).unwrap_or(0),
                    ]));
                    let action = Self::action(scene, subject);
                    let ballot = self.ballot(scene, action, Verdict::Confirm);
                    if let Some(to) = someone {
                        said.push((to, vote_message(&ballot)));
                    }
                }
            }
            Trick::ReuseNumber => {
                let (a, b) = (cast::victim(self.group, 3), cast::victim(self.group, 4));
                let (a, b) = (Self::action(scene, a), Self::action(scene, b));
                let one = self.ballot(scene, a, Verdict::Confirm);
                let two = self.ballot_with(scene, b, Verdict::Confirm, |_| {});
                all(&mut said, &vote_message(&one));
                all(&mut said, &vote_message(&two));
            }
            Trick::Garbage => {
                if let Some(to) = someone {
                    let mut wire = self
                        .heard
                        .back()
                        .map_or_else(|| rng.bytes32().to_vec(), |heard| heard.to_vec());
                    for _ in 0..rng.between(1, 4) {
                        let at = rng.index(wire.len());
                        if let Some(byte) = wire.get_mut(at) {
                            *byte ^= 1 << rng.below(8);
                        }
                    }
                    if rng.percent(20) {
                        wire.truncate(rng.index(wire.len()));
                    }
                    said.push((to, Rc::from(wire)));
                }
            }
            Trick::WrongAction => {
                let mut action = Self::action(scene, victim);
                match rng.below(4) {
                    0 => action.ttl_s = action.ttl_s.saturating_mul(1_000),
                    1 => action.class = AttackClass::Network,
                    2 => {
                        let wide = Prefix::truncating(victim.addr(), 16).unwrap_or(victim);
                        action.subject = wide.into();
                        action.class = AttackClass::Network;
                    }
                    _ => {
                        action.kind = ActionKind::Release;
                        action.ttl_s = 1;
                    }
                }
                let ballot = self.ballot(scene, action, Verdict::Confirm);
                all(&mut said, &vote_message(&ballot));
            }
            Trick::WrongEpoch => {
                let action = Self::action(scene, real_or_victim);
                let other = Hash(rng.bytes32());
                let number_only = rng.percent(30);
                self.sequence += 1;
                let ballot = self.ballot_with(scene, action, Verdict::Confirm, |v| {
                    if number_only {
                        v.epoch += 1;
                    } else {
                        v.epoch_hash = other;
                    }
                });
                all(&mut said, &vote_message(&ballot));
            }
            Trick::Release | Trick::Reject => {
                if let Some(subject) = real {
                    let (action, verdict) = if trick == Trick::Release {
                        (Action::release(subject), Verdict::Confirm)
                    } else if rng.percent(50) {
                        (Action::release(subject), Verdict::Reject)
                    } else {
                        (Self::action(scene, subject), Verdict::Reject)
                    };
                    self.sequence += 1;
                    let round = u32::try_from(rng.below(18)).unwrap_or(0);
                    let release = action.kind == ActionKind::Release;
                    let ballot = self.ballot_with(scene, action, verdict, |v| {
                        if release {
                            v.round = round;
                        }
                    });
                    all(&mut said, &vote_message(&ballot));
                }
            }
            Trick::BurnTicket => {
                // Its own ticket, used twice: both records under it stop counting.
                let made = cast::by_ticket(scene.genesis, self.index, self.zone, rng.below(3));
                all(&mut said, &bytes(&Message::Admission(Box::new(made))));
            }
            Trick::Stranger => {
                if let Some(to) = someone {
                    let made = self.stranger(scene, rng);
                    said.push((to, bytes(&Message::Admission(Box::new(made)))));
                }
            }
            Trick::EpochEquivocate => self.equivocate_on_epoch(scene, rng, &mut said),
            Trick::EpochPropose => self.propose_epochs(scene, rng, &mut said),
            Trick::EpochForge => self.forge_epoch(scene, rng, &mut said),
            Trick::ForgeRemoval => self.forge_removal(scene, rng, &mut said),
            Trick::LogFork => self.fork_log(scene, rng, &mut said),
            Trick::LogForkForOne => self.fork_log_for_one(scene, rng, false, &mut said),
            Trick::LongLogForkForOne => self.fork_log_for_one(scene, rng, true, &mut said),
            Trick::LogFrame => self.frame_in_log(scene, rng, &mut said),
            Trick::LogForge => self.forge_in_log(scene, rng, &mut said),
            Trick::LedgerFork => self.fork_ledger(scene, rng, &mut said),
            Trick::Accuse => self.accuse(scene, rng, &mut said),
            Trick::ForgeProof => {
                if let (Some(to), Some(proof)) = (someone, self.forged_proof(rng)) {
                    said.push((to, bytes(&Message::Equivocation(Box::new(proof)))));
                }
            }
        }
        let made = self.own.iter().skip(before.min(self.own.len())).copied();
        let shared = made.collect();
        (said, shared)
    }
}
