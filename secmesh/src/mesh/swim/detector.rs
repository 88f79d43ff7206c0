//! foca, with the timers that it asks for and the answers of the connections.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{
    Config, Foca, Member, NoCustomBroadcast, Notification, PeriodicParams, Runtime, State, Timer,
};

use super::chance::Chance;
use super::codec::{Form, MAX_PACKET, from_foca, to_foca};
use super::message::{Life, SwimMessage, What};
use super::through::Asked;
use super::{
    ANSWER_US, Liveness, MESSAGES_PER_S, NUMBERS_AT_ONCE, Output, PROBE_US, SUSPECT_US,
    SwimCounters,
};
use crate::mesh::crypto::sha256;
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;
use crate::mesh::roster::MAX_NODES;

/// A member, without this node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Of its admission.
    pub(super) incarnation: u64,
    /// What was said of it last.
    pub(super) shown: Liveness,
    /// Without a connection: when it is given up.
    pub(super) given_up_us: Option<u64>,
    /// When it sent something last.
    pub(super) heard_us: Option<u64>,
    /// When it was looked for on a peer's word.
    pub(super) looked_for_us: Option<u64>,
    /// Second, and messages of it in that second.
    budget: (u64, u32),
    /// Who was asked about it, while it is suspected and not connected.
    pub(super) asked: Asked,
}

/// What foca wants, in order.
enum Wish {
    Send(Life, Vec<u8>),
    Wake(Timer<Life>, u64),
    /// Nobody is there any more: what it wanted to be woken for before is void.
    Void,
}

#[derive(Default)]
struct Wishes(Vec<Wish>);

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Runtime<Life> for Wishes {
    fn notify(&mut self, notification: Notification<'_, Life>) {
        if matches!(notification, Notification::Idle) {
            self.0.push(Wish::Void);
        }
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.0.push(Wish::Send(to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Life>, after: Duration) {
        self.0.push(Wish::Wake(event, micros(after)));
    }
}

/// The failure detector of one node.
pub struct Swim {
    pub(super) foca: Foca<Life, Form, Chance, NoCustomBroadcast>,
    pub(super) me: Life,
    pub(super) members: BTreeMap<NodeId, Peer>,
    pub(super) connected: BTreeSet<NodeId>,
    /// By time and order. foca has a handful at a time: some for whom it asks now, and one per suspect and
    /// probe, all within [`SUSPECT_US`], and two periodic ones.
    timers: BTreeMap<(u64, u64), Timer<Life>>,
    order: u64,
    /// For the choices that are not foca's.
    pub(super) chance: Chance,
    /// Second, and nodes for whom others were asked in it.
    pub(super) asked_for: (u64, usize),
    /// How often this node has refuted a suspicion.
    pub(super) refutations: u16,
    /// When it did last.
    pub(super) refuted_us: Option<u64>,
    /// Numbers of refutations that it may use now, and since when it has earned none.
    pub(super) numbers: (u16, Option<u64>),
    pub(super) counters: SwimCounters,
}

const fn at_least_one(n: usize) -> NonZeroUsize {
    match NonZeroUsize::new(n) {
        Some(n) => n,
        None => NonZeroUsize::MIN,
    }
}

fn config() -> Config {
    Config {
        probe_period: Duration::from_micros(PROBE_US),
        probe_rtt: Duration::from_micros(ANSWER_US),
        num_indirect_probes: at_least_one(3),
        max_transmissions: NonZeroU8::MIN.saturating_add(5),
        suspect_to_down_after: Duration::from_micros(SUSPECT_US),
        // Who is down is forgotten when it speaks; see `there`.
        remove_down_after: None,
        max_packet_size: at_least_one(MAX_PACKET),
        // Who is down by our word could not refute it.
        notify_down_members: false,
        periodic_announce: Some(PeriodicParams {
            frequency: Duration::from_secs(10),
            num_members: NonZeroUsize::MIN,
        }),
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: Duration::from_millis(500),
            num_members: at_least_one(2),
        }),
    }
}

impl Swim {
    /// A detector for this node, which knows nobody yet. Whom it asks follows from `seed`.
    pub fn new(me: Life, seed: [u8; 32]) -> Self {
        Self {
            foca: Foca::new(me, config(), Chance::new(seed), Form),
            me,
            members: BTreeMap::new(),
            connected: BTreeSet::new(),
            timers: BTreeMap::new(),
            order: 0,
            chance: Chance::new(sha256(&seed)),
            asked_for: (0, 0),
            refutations: 0,
            refuted_us: None,
            numbers: (NUMBERS_AT_ONCE, None),
            counters: SwimCounters::default(),
        }
    }

    /// When [`Swim::tick`] is wanted next, monotonic microseconds.
    pub fn next_us(&self) -> Option<u64> {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        let given_up = self.members.values().filter_map(|p| p.given_up_us).min();
        timer.into_iter().chain(given_up).min()
    }

    /// What is known of a member; none for this node and for strangers.
    pub fn liveness(&self, node: &NodeId) -> Option<Liveness> {
        self.members.get(node).map(|peer| peer.shown)
    }

    /// What was counted.
    pub const fn counters(&self) -> &SwimCounters {
        &self.counters
    }

    /// Takes over who is a member, each with the incarnation in its admission. A node that was set up anew
    /// begins anew here, too. Beyond [`MAX_NODES`] members, the rest is not looked after.
    pub fn set_members(
        &mut self,
        now_us: u64,
        members: impl IntoIterator<Item = Life>,
        out: &mut Vec<Output>,
    ) {
        let wanted: BTreeMap<NodeId, u64> = members
            .into_iter()
            .filter(|life| life.node != self.me.node)
            .take(MAX_NODES)
            .map(|life| (life.node, life.incarnation))
            .collect();
        let gone: Vec<Life> = self
            .members
            .iter()
            .filter(|(node, peer)| wanted.get(node) != Some(&peer.incarnation))
            .map(|(node, peer)| Life {
                node: *node,
                incarnation: peer.incarnation,
            })
            .collect();
        for life in gone {
            self.forget(now_us, life, out);
            self.members.remove(&life.node);
        }
        for (node, incarnation) in wanted {
            if self.members.contains_key(&node) {
                continue;
            }
            self.members.insert(
                node,
                Peer {
                    incarnation,
                    shown: Liveness::Down,
                    given_up_us: None,
                    heard_us: None,
                    looked_for_us: None,
                    budget: (0, 0),
                    asked: Asked::default(),
                },
            );
            if self.connected.contains(&node) {
                self.there(now_us, node, out);
            } else {
                out.push(Output::Liveness {
                    node,
                    now: Liveness::Down,
                });
            }
        }
    }

    /// A connection to a peer stands: it is there.
    pub fn peer_up(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        if self.connected.len() < MAX_NODES {
            self.connected.insert(node);
        }
        // It may be another process: it counts its refutations from zero.
        if let Some(life) = self.life(&node) {
            self.forget(now_us, life, out);
        }
        self.there(now_us, node, out);
        // Who lacks a connection hears of the rest from whoever it has one to.
        let complete = self
            .members
            .keys()
            .all(|member| self.connected.contains(member));
        if let Some(life) = self.life(&node)
            && !complete
        {
            let mut wishes = Wishes::default();
            let fine = self.foca.announce(life, &mut wishes).is_ok();
            self.counters.errors += u64::from(!fine);
            self.grant(now_us, wishes, out);
        }
    }

    /// The connection to a peer is gone: it is suspected, and others are asked.
    pub fn peer_down(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        self.connected.remove(&node);
        let Some(life) = self.life(&node) else {
            return;
        };
        if let Some((State::Alive, refutations)) = self.known(&node) {
            self.apply(
                now_us,
                Member::new(life, refutations, State::Suspect),
                // A broken connection is nobody else's business.
                false,
                out,
            );
        }
        self.show(now_us, out);
        self.ask_others(now_us, out);
    }

    /// A peer has sent something, whatever it was: it is there.
    pub fn heard(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        if !self.connected.contains(&node) {
            return;
        }
        if let Some(peer) = self.members.get_mut(&node) {
            peer.heard_us = Some(now_us);
            if peer.shown != Liveness::Alive {
                self.there(now_us, node, out);
            }
        }
    }

    /// A message of a peer, as the connection has authenticated it.
    pub fn message(
        &mut self,
        now_us: u64,
        from: NodeId,
        message: &SwimMessage,
        out: &mut Vec<Output>,
    ) {
        let Some(src) = self
            .life(&from)
            .filter(|life| life.incarnation == message.incarnation)
            .filter(|life| self.connected.contains(&life.node))
            .filter(|_| message.to == self.me.incarnation)
        else {
            self.counters.refused_unknown += 1;
            return;
        };
        if !self.within_budget(now_us, &from) {
            self.counters.refused_rate += 1;
            return;
        }
        if !self.names_members(src, &message.what) {
            self.counters.refused_named += 1;
            return;
        }
        self.counters.received += 1;
        self.heard(now_us, from, out);
        let what = if self.answered_through(now_us, from, &message.what, out) {
            // Not for foca, which may have asked under the same number for somebody else.
            What::Gossip
        } else {
            message.what
        };
        let message = SwimMessage {
            what,
            updates: self.news(now_us, src, &message.updates, out),
            ..*message
        };
        let mut wishes = Wishes::default();
        let taken = match to_foca(src, self.me, &message) {
            Ok(packet) => self.foca.handle_data(&packet, &mut wishes).is_ok(),
            Err(_) => false,
        };
        self.counters.errors += u64::from(!taken);
        self.grant(now_us, wishes, out);
        self.show(now_us, out);
        self.ask_others(now_us, out);
    }

    /// Time has passed; as often as [`Swim::next_us`] says, or on a beat of some hundred milliseconds.
    pub fn tick(&mut self, now_us: u64, out: &mut Vec<Output>) {
        // What a timer sets off is due later: at most one round of those that are due now.
        let due: Vec<(u64, u64)> = self
            .timers
            .range(..=(now_us, u64::MAX))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            // An earlier one may have made it void.
            if let Some(timer) = self.timers.remove(&key) {
                let mut wishes = Wishes::default();
                let fine = self.foca.handle_timer(timer, &mut wishes).is_ok();
                self.counters.errors += u64::from(!fine);
                self.grant(now_us, wishes, out);
            }
        }
        let given_up: Vec<Life> = self
            .members
            .iter()
            .filter(|(_, peer)| peer.given_up_us.is_some_and(|at| at <= now_us))
            .map(|(node, peer)| Life {
                node: *node,
                incarnation: peer.incarnation,
            })
            .collect();
        for life in given_up {
            if let Some((State::Suspect, refutations)) = self.known(&life.node) {
                self.apply(
                    now_us,
                    Member::new(life, refutations, State::Down),
                    true,
                    out,
                );
            }
        }
        // An own question that was not answered in time says little of one that spoke meanwhile.
        let speaking: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(node, peer)| {
                self.connected.contains(node)
                    && peer.heard_us.is_some_and(|at| now_us < at + PROBE_US)
            })
            .map(|(node, _)| *node)
            .collect();
        for node in speaking {
            if matches!(self.known(&node), Some((State::Suspect, _))) {
                self.there(now_us, node, out);
            }
        }
        self.show(now_us, out);
        self.ask_others(now_us, out);
    }

    /// A member in its present life.
    pub(super) fn life(&self, node: &NodeId) -> Option<Life> {
        let peer = self.members.get(node)?;
        Some(Life {
            node: *node,
            incarnation: peer.incarnation,
        })
    }

    /// What foca has of a node: its state, and its refutations.
    pub(super) fn known(&self, node: &NodeId) -> Option<(State, u16)> {
        let mut members = self.foca.iter_membership_state();
        let member = members.find(|member| member.id().node == *node)?;
        Some((member.state(), member.incarnation()))
    }

    fn within_budget(&mut self, now_us: u64, from: &NodeId) -> bool {
        let Some(peer) = self.members.get_mut(from) else {
            return false;
        };
        let second = now_us / 1_000_000;
        if peer.budget.0 != second {
            peer.budget = (second, 0);
        }
        peer.budget.1 = peer.budget.1.saturating_add(1);
        peer.budget.1 <= MESSAGES_PER_S
    }

    /// It is there beyond doubt: every suspicion ends, and what was to follow from it.
    pub(super) fn there(&mut self, now_us: u64, node: NodeId, out: &mut Vec<Output>) {
        let Some(life) = self.life(&node) else {
            return;
        };
        let refutations = match self.known(&node) {
            Some((State::Alive, _)) => return self.show(now_us, out),
            Some((_, refutations)) => refutations,
            None => 0,
        };
        self.forget(now_us, life, out);
        self.apply(
            now_us,
            Member::new(life, refutations, State::Alive),
            true,
            out,
        );
        self.show(now_us, out);
    }

    /// Takes a node out of foca: that knows no way back from down, nor from a suspicion that the node has
    /// not heard of.
    pub(super) fn forget(&mut self, now_us: u64, life: Life, out: &mut Vec<Output>) {
        self.timers.retain(|_, timer| {
            !matches!(timer, Timer::ChangeSuspectToDown { member_id, .. } if member_id.node == life.node)
        });
        if let Some((_, refutations)) = self.known(&life.node) {
            self.apply(
                now_us,
                Member::new(life, refutations, State::Down),
                false,
                out,
            );
            let mut wishes = Wishes::default();
            // Nothing of it can fail: it is down.
            let fine = self
                .foca
                .handle_timer(Timer::RemoveDown(life), &mut wishes)
                .is_ok();
            self.counters.errors += u64::from(!fine);
            self.grant(now_us, wishes, out);
        }
    }

    /// Tells foca of a node.
    pub(super) fn apply(
        &mut self,
        now_us: u64,
        member: Member<Life>,
        tell: bool,
        out: &mut Vec<Output>,
    ) {
        let mut wishes = Wishes::default();
        let fine = self
            .foca
            .apply_many(std::iter::once(member), tell, &mut wishes)
            .is_ok();
        self.counters.errors += u64::from(!fine);
        self.grant(now_us, wishes, out);
    }

    /// Does what foca wants.
    fn grant(&mut self, now_us: u64, wishes: Wishes, out: &mut Vec<Output>) {
        for wish in wishes.0 {
            match wish {
                Wish::Void => self.timers.clear(),
                Wish::Wake(timer, after) => {
                    self.order += 1;
                    self.timers
                        .insert((now_us.saturating_add(after), self.order), timer);
                }
                Wish::Send(to, packet) => {
                    let Ok(Some(message)) = from_foca(&packet) else {
                        self.counters.errors += 1;
                        continue;
                    };
                    self.refutations = self.refutations.max(message.refutations);
                    self.say(to, message, out);
                }
            }
        }
    }

    /// Sends, if there is a connection.
    pub(super) fn say(&mut self, to: Life, message: SwimMessage, out: &mut Vec<Output>) {
        if !self.connected.contains(&to.node) {
            self.counters.unsent += 1;
            return;
        }
        self.counters.sent += 1;
        out.push(Output::Send {
            to: to.node,
            bytes: Message::Swim(Box::new(message)).to_bytes(),
        });
    }

    /// Says what has changed, and notes when who is not connected is given up.
    fn show(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let known: BTreeMap<NodeId, State> = self
            .foca
            .iter_membership_state()
            .map(|member| (member.id().node, member.state()))
            .collect();
        for (node, peer) in &mut self.members {
            let now = match known.get(node) {
                Some(State::Alive) => Liveness::Alive,
                Some(State::Suspect) => Liveness::Suspect,
                Some(State::Down) | None => Liveness::Down,
            };
            let waits = now == Liveness::Suspect && !self.connected.contains(node);
            peer.given_up_us = waits.then(|| {
                peer.given_up_us
                    .unwrap_or(now_us.saturating_add(SUSPECT_US))
            });
            if now == peer.shown {
                continue;
            }
            match now {
                Liveness::Alive => self.counters.came_back += 1,
                Liveness::Suspect => self.counters.suspected += 1,
                Liveness::Down => self.counters.went_down += 1,
            }
            peer.shown = now;
            out.push(Output::Liveness { node: *node, now });
        }
    }
}

#[cfg(test)]
impl Swim {
    /// Timers that wait.
    pub(super) fn waiting(&self) -> usize {
        self.timers.len()
    }
}
