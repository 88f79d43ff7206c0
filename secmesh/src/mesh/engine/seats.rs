//! Who hears what where a committee decides: votes go to the seats, certificates down a tree.
//!
//! Who has no seat and sees an attack hands its `Confirm` to a few *desks*, seats drawn by the incident's hash, and they
//! pass it to the others while witnesses are missing. So all nodes of a large mesh may be attacked at once, and neither
//! do all of them write to all seats, nor does a seat hear all of them. Who gets no decision in time goes on to the
//! next desks, and in the end to everybody with a seat.
//!
//! The seats make the certificate themselves. From them it goes down a tree over all others, in an order that each
//! decision turns anew, and everybody checks it before passing it on. That it exists is told along two more such
//! trees, in which other nodes have branches, so that who is below a node that keeps it to itself asks for it.

use std::collections::{BTreeMap, BTreeSet};

use super::io::{Output, RefusalReason};
use super::turn::WAVE_US;
use super::{Call, Engine, Incident, IncidentKey, MAX_OPEN};
use crate::addr::Prefix;
use crate::mesh::ids::{DecisionId, NodeId};
use crate::mesh::message::Message;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::vote::{ActionKind, AttackClass, Ballot, SignedVote, Verdict};

/// Desks that a witness without a seat turns to at a time.
const DESKS: usize = 3;
/// How often it turns to the next ones, before it turns to all seats.
const DESK_WAVES: usize = 3;
/// How many nodes each one passes a certificate, or the word of it, on to.
const BRANCHES: usize = 4;
/// Other incidents that a witness is shown at a time.
const MAX_SHOWN: u32 = 4;
/// Trees along which the word of a certificate goes, besides the one for the certificate.
const WORD_TREES: usize = 2;

/// What this node has seen and no seat has decided on yet: to which desks it goes next, and when.
pub(super) type Handed = BTreeMap<IncidentKey, (usize, u64)>;

fn number(bytes: &[u8]) -> usize {
    let first = bytes.iter().take(4);
    first.fold(0, |n, byte| n << 8 | usize::from(*byte))
}

impl Engine {
    fn am_seated(&self) -> bool {
        self.roster.has_seat(&self.config.node)
    }

    /// Whether a node's verdict is anybody's business: always with a seat. Without one it says what it saw, asks for
    /// what its operator asks for, and contradicts what would end a block that it still needs; it agrees to nothing, and it
    /// accuses no node, since accusers have to weigh something.
    pub(super) fn may_say(&self, node: &NodeId, kind: ActionKind, verdict: Verdict) -> bool {
        let without_seat = match kind {
            ActionKind::Block => verdict == Verdict::Confirm,
            ActionKind::Release | ActionKind::Readmit => {
                matches!(verdict, Verdict::Confirm | Verdict::Reject)
            }
            ActionKind::Quarantine => false,
        };
        without_seat || self.roster.has_seat(node)
    }

    /// The seats in the order of a hash, those that can be reached and whose word counts.
    fn desks_of(&self, key: &IncidentKey) -> Vec<NodeId> {
        let Some(seats) = self.roster.seats() else {
            return Vec::new();
        };
        let silent = self.silent();
        let (after, before) = seats.split_at(number(key.0.as_bytes()) % seats.len().max(1));
        let order = before.iter().chain(after).map(|(seat, _)| *seat);
        order
            .filter(|seat| !silent.contains(seat) && *seat != self.config.node)
            .collect()
    }

    /// Whether somebody is told of an own vote at all: who has a seat of every one, everybody of what would end something.
    pub(super) fn is_for(&self, peer: &NodeId, ballot: &Ballot) -> bool {
        // Who still needs a block may have no seat.
        let asks = ballot.action.kind.lifts() && ballot.signed.vote.verdict == Verdict::Confirm;
        asks || self.roster.has_seat(peer)
    }

    /// Sends an own vote to those whom it concerns.
    pub(super) fn tell_vote(&mut self, call: &mut Call<'_>, key: &IncidentKey, ballot: &Ballot) {
        let bytes = Message::Vote(Box::new(*ballot)).to_bytes();
        let (lifts, verdict) = (ballot.action.kind.lifts(), ballot.signed.vote.verdict);
        if self.roster.seats().is_none() || (lifts && verdict == Verdict::Confirm) {
            call.out.push(Output::Broadcast(bytes));
        } else if self.am_seated() || verdict == Verdict::Reject {
            self.send_to(call, self.desks_of(key), &bytes);
        } else if self.handed.len() < MAX_OPEN {
            self.handed.insert(*key, (0, call.now));
            self.hand_to_desks(call, key, &bytes);
        } else {
            self.refuse(call, self.config.node, RefusalReason::Full);
        }
    }

    fn send_to(&self, call: &mut Call<'_>, to: Vec<NodeId>, bytes: &[u8]) {
        for to in to.into_iter().filter(|to| self.connected.contains(to)) {
            let bytes = bytes.to_vec();
            call.out.push(Output::Send { to, bytes });
        }
    }

    fn hand_to_desks(&mut self, call: &mut Call<'_>, key: &IncidentKey, bytes: &[u8]) {
        let Some((wave, _)) = self.handed.get(key).copied() else {
            return;
        };
        let reachable = |seat: &NodeId| self.connected.contains(seat) && self.is_reachable(seat);
        let desks = self.desks_of(key).into_iter().filter(reachable);
        if wave < DESK_WAVES {
            let desks = desks.skip(wave * DESKS).take(DESKS).collect();
            self.send_to(call, desks, bytes);
            let next = call.now.saturating_add(WAVE_US);
            self.handed.insert(*key, (wave + 1, next));
        } else {
            let desks = desks.collect();
            self.send_to(call, desks, bytes);
            self.handed.remove(key);
        }
    }

    /// At each tick: what nobody has decided on goes to the next desks.
    pub(super) fn hand_on(&mut self, call: &mut Call<'_>) {
        if planted(Bug::DesksOnce) {
            return;
        }
        let latest = call.now.saturating_add(WAVE_US);
        // A clock that was set back makes nobody wait longer.
        let due = self
            .handed
            .iter()
            .filter(|(_, (_, at))| *at <= call.now || *at > latest);
        let due: Vec<IncidentKey> = due.map(|(key, _)| *key).collect();
        for key in due {
            let slot = (self.roster.epoch_hash(), key.0, key.1);
            let open = self.incidents.get(&key);
            let open = open.is_some_and(|i| !i.decided && i.is_open(call.now));
            match self.own_votes.get(&slot).filter(|_| open) {
                Some(ballot) => {
                    let bytes = Message::Vote(Box::new(*ballot)).to_bytes();
                    self.hand_to_desks(call, &key, &bytes);
                }
                None => {
                    self.handed.remove(&key);
                }
            }
        }
    }

    /// Whether somebody may bring another node's vote: a seat that of a witness, to a seat, or to a witness of the same.
    pub(super) fn may_pass_on(&self, from: &NodeId, ballot: &Ballot) -> bool {
        let vote = &ballot.signed.vote;
        let prefix = ballot.action.subject.prefix();
        let saw_it = || prefix.is_some_and(|subject| self.saw(subject));
        self.roster.seats().is_some()
            && self.roster.has_seat(from)
            && ballot.action.kind == ActionKind::Block
            && vote.verdict == Verdict::Confirm
            && if self.am_seated() {
                !self.roster.has_seat(&vote.voter)
            } else {
                saw_it()
            }
    }

    /// Whether a seat shows this node, which has none, another witness's vote. It may come when what this node saw is
    /// over, and is no garbage then.
    pub(super) fn is_answer_to_a_witness(&self, from: &NodeId, ballot: &Ballot) -> bool {
        !self.am_seated()
            && self.roster.has_seat(from)
            && ballot.action.kind == ActionKind::Block
            && ballot.signed.vote.verdict == Verdict::Confirm
    }

    /// As [`Engine::refuse`], of a vote that a seat has passed on: others do so too, and some come late. It counts as one
    /// of what there was no room for, of which there may be many.
    pub(super) fn refuse_passed_on(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        reason: RefusalReason,
    ) {
        self.count_refusal(call, from, reason);
        self.note_refusal(call, from, RefusalReason::TooOften);
    }

    /// Whether a vote is that of a witness whom an incident lacks: one more, or of another zone.
    pub(super) fn adds_a_witness(&self, key: &IncidentKey, voter: &NodeId) -> bool {
        let Some(member) = self.roster.get(voter).filter(|m| m.weight > 0) else {
            return false;
        };
        let Some(incident) = self.incidents.get(key) else {
            return true;
        };
        let tally = self.tally(incident);
        let mut confirm = incident
            .votes
            .iter()
            .filter(|(_, signed)| signed.vote.verdict == Verdict::Confirm);
        let zone = |of: &NodeId| self.roster.get(of).map(|m| &m.record.zone);
        let new_zone = confirm.all(|(other, _)| zone(other) != Some(&member.record.zone));
        !incident.decided
            && (tally.confirms < tally.confirms_needed
                || (tally.zones < tally.zones_needed && new_zone))
    }

    /// Witnesses without a seat that a certificate needs because those with one are too few, or of too few zones.
    pub(super) fn missing_witnesses(
        &self,
        incident: &Incident,
        ordered: &[(u8, &SignedVote)],
    ) -> BTreeSet<NodeId> {
        let zone = |of: &NodeId| self.roster.get(of).map(|m| &m.record.zone);
        let tally = self.tally(incident);
        let confirms = |seated: bool| {
            let confirm = ordered.iter().map(|(_, signed)| &signed.vote);
            confirm.filter(move |vote| {
                vote.verdict == Verdict::Confirm && self.roster.has_seat(&vote.voter) == seated
            })
        };
        let mut count = confirms(true).count();
        let mut zones: BTreeSet<_> = confirms(true).map(|vote| zone(&vote.voter)).collect();
        let mut taken = BTreeSet::new();
        for vote in confirms(false) {
            let new_zone = zones.len() < tally.zones_needed && !zones.contains(&zone(&vote.voter));
            // The last place is for another zone, where one is needed.
            let missing = tally.zones_needed.saturating_sub(zones.len());
            let room = tally.confirms_needed.saturating_sub(count) > missing;
            if new_zone || room {
                count += 1;
                zones.insert(zone(&vote.voter));
                taken.insert(vote.voter);
            }
        }
        taken
    }

    fn saw(&self, subject: Prefix) -> bool {
        let seen = |class: &AttackClass| self.evidence.contains_key(&(subject, *class));
        AttackClass::ALL.iter().any(seen)
    }

    /// A witness without a seat hears of no incident but its own. A seat that knows of others about the same subject,
    /// of another class or minute, shows it one vote on each, and it confirms those, too.
    pub(super) fn tell_of_others(&self, call: &mut Call<'_>, key: &IncidentKey, ballot: &Ballot) {
        let vote = &ballot.signed.vote;
        let asks = self.roster.seats().is_some()
            && self.am_seated()
            && !self.roster.has_seat(&vote.voter)
            && ballot.action.kind == ActionKind::Block;
        if !asks {
            return;
        }
        let mut told = 0;
        for other in self.incidents.about(&ballot.action.subject) {
            let Some(incident) = self.incidents.get(&other).filter(|i| {
                other != *key
                    && !i.decided
                    && i.action.kind == ActionKind::Block
                    && i.is_open(call.now)
                    && !i.votes.contains_key(&vote.voter)
            }) else {
                continue;
            };
            let confirm = |signed: &&SignedVote| signed.vote.verdict == Verdict::Confirm;
            if let Some(signed) = incident.votes.values().find(confirm).copied() {
                let shown = Ballot {
                    action: incident.action,
                    signed,
                };
                call.out.push(Output::Send {
                    to: vote.voter,
                    bytes: Message::Vote(Box::new(shown)).to_bytes(),
                });
                told += 1;
            }
            if told >= MAX_SHOWN {
                return;
            }
        }
    }

    /// As a desk: passes what a witness handed in on to the other seats.
    pub(super) fn pass_on(&self, call: &mut Call<'_>, key: &IncidentKey, ballot: &Ballot) {
        let of_seat = self.roster.has_seat(&ballot.signed.vote.voter);
        if !self.am_seated()
            || of_seat
            || ballot.action.kind != ActionKind::Block
            || planted(Bug::DesksKeep)
        {
            return;
        }
        // The voter counts desks as this node does, but for those that it cannot reach.
        let Some(seats) = self.roster.seats() else {
            return;
        };
        let me = self.config.node;
        let first = number(key.0.as_bytes()) % seats.len().max(1);
        let own = seats.iter().position(|(seat, _)| *seat == me).unwrap_or(0);
        if (own + seats.len() - first) % seats.len() < 2 * DESKS * DESK_WAVES {
            let bytes = Message::Vote(Box::new(*ballot)).to_bytes();
            self.send_to(call, self.desks_of(key), &bytes);
        }
    }

    /// Everybody in the order in which certificates go round: the seats, then the others, both from where the hash
    /// says; the others turned on by `turn` of `turns`. And how many seats there are.
    fn order(&self, id: &DecisionId, turn: usize, turns: usize) -> (Vec<NodeId>, usize) {
        let seats = self.roster.seats().unwrap_or_default();
        let mut order: Vec<NodeId> = seats.iter().map(|(seat, _)| *seat).collect();
        let mut rest = Vec::new();
        let members = self.roster.members().map(|(node, _)| *node);
        rest.extend(members.filter(|node| !self.roster.has_seat(node)));
        let first = number(id.as_bytes());
        let len = order.len().max(1);
        order.rotate_left(first % len);
        let len = rest.len().max(1);
        rest.rotate_left((first % len + turn * len / turns.max(1)) % len);
        let seats = order.len();
        order.extend(rest);
        (order, seats)
    }

    fn below(&self, id: &DecisionId, turn: usize) -> Vec<NodeId> {
        let (order, roots) = self.order(id, turn, WORD_TREES + 1);
        let me = self.config.node;
        let own = order.iter().position(|node| *node == me);
        let branches = own.map(|own| roots + own * BRANCHES);
        let branches = branches.and_then(|from| order.get(from..));
        let branches = branches.unwrap_or_default().iter();
        branches.take(BRANCHES).copied().collect()
    }

    /// Passes a certificate on to those below this node.
    pub(super) fn send_down(&self, call: &mut Call<'_>, id: &DecisionId, bytes: &[u8]) {
        self.send_to(call, self.below(id, 0), bytes);
    }

    /// Those whom this node tells that it has a certificate.
    pub(super) fn told_by_this(&self, id: &DecisionId) -> Vec<NodeId> {
        let trees = 1..=WORD_TREES;
        trees.flat_map(|turn| self.below(id, turn)).collect()
    }
}
