//! How the statements of all nodes reach all nodes: they are told once as they are made; then nodes compare
//! hashes, and ask for what they lack.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::answers::Answer;
use super::inventory::TELL_AGAIN_US;
use super::io::{Output, RefusalReason};
use super::statements::tell;
use super::{Call, Engine};
use crate::mesh::evidence::message::{MAX_RANGES, Range, pack};
use crate::mesh::evidence::{EvidenceMessage, Frontier, Inserted, Misconduct, Statement};
use crate::mesh::ids::NodeId;
use crate::mesh::inventory::Sums;
use crate::mesh::roster::MAX_NODES;
use crate::mesh::simulation::{Bug, planted};

/// How often this node compares itself with one peer, microseconds.
const COMPARE_US: u64 = 1_000_000;
/// How often once nothing was new and nobody differed for [`LIVELY_US`]. Who lacks something differs from all
/// others, so its own next comparison finds it, or anybody's with it.
const QUIET_COMPARE_US: u64 = 5 * 1_000_000;
/// How long something new, a peer that differed or one that came has this node compare itself often: with each of
/// some thirty peers once.
const LIVELY_US: u64 = 30 * 1_000_000;
/// How often it also compares everything else, in case something was lost on the way, microseconds.
const INVENTORY_US: u64 = 60 * 1_000_000;
/// A request that brought nothing for so long is made again, microseconds.
const REQUEST_US: u64 = 5 * 1_000_000;
/// Statements asked for at a time.
const MAX_ASKED: u64 = 2_048;
/// Messages that answer one request.
const ANSWER_MESSAGES: usize = 4;
/// Messages of statements that one peer is sent per second.
const MESSAGES_PER_S: usize = 64;

/// What a peer has that this node lacks.
#[derive(Debug, Clone, Default)]
struct Wants {
    /// Up to which number, by author.
    until: BTreeMap<NodeId, u64>,
    asked_us: u64,
}

/// What was sent because peers lacked it, since the start. What is new is told once, to all, and is not in here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncCounters {
    /// Statements.
    pub statements_sent: u64,
    /// Decisions, admissions, tickets and proofs.
    pub entries_sent: u64,
    /// Bytes of all of them.
    pub bytes_sent: u64,
    /// Statements of others that were new here, however they came.
    pub statements_new: u64,
}

impl SyncCounters {
    /// All counters with their names.
    pub fn snapshot(&self) -> [(&'static str, u64); 4] {
        [
            ("statements_sent", self.statements_sent),
            ("entries_sent", self.entries_sent),
            ("bytes_sent", self.bytes_sent),
            ("statements_new", self.statements_new),
        ]
    }

    /// Counts entries that are on their way.
    pub(super) fn entries(&mut self, parts: &[Vec<u8>]) {
        let bytes: usize = parts.iter().map(Vec::len).sum();
        self.entries_sent += parts.len() as u64;
        self.bytes_sent += bytes as u64;
    }
}

/// Who is asked for what.
#[derive(Debug, Clone, Default)]
pub(super) struct Sync {
    wants: BTreeMap<NodeId, Wants>,
    /// Second, and messages that the peer was sent in it.
    sent: BTreeMap<NodeId, (u64, usize)>,
    last_peer: Option<NodeId>,
    next_us: u64,
    /// When something was new here, or elsewhere, or a peer came.
    lively_us: u64,
    /// When everything else was compared last.
    inventory_us: u64,
    /// With whom. Its own turn: the other's may come round to one peer alone in that time.
    inventory_peer: Option<NodeId>,
    /// When a peer was told last what is here.
    pub(super) told: BTreeMap<NodeId, u64>,
    /// Who is told what is here as soon as it may be again.
    pub(super) tell_later: BTreeSet<NodeId>,
    /// Sums of peers that had an answer in this second already; they get the next when it is over.
    pub(super) unanswered: BTreeMap<NodeId, Box<Sums>>,
    /// When everybody is told once more, after the clock was set.
    pub(super) told_again_us: Option<u64>,
    /// Authors that have signed two histories of their log, and when this node gave up the one that it had. No asking
    /// brings these together; the mesh certifies one.
    forked: BTreeMap<NodeId, Option<u64>>,
    pub(super) counters: SyncCounters,
}

impl Sync {
    /// Does as if a comparison had just been made.
    #[cfg(test)]
    pub(super) const fn wait_from(&mut self, now: u64) {
        self.next_us = now + COMPARE_US;
    }

    /// There may be more to come: compares often for a while, beginning soon.
    pub(super) fn stir(&mut self, now: u64) {
        self.lively_us = now;
        self.next_us = self.next_us.min(now.saturating_add(COMPARE_US));
    }

    /// How long the next comparison can wait.
    const fn pause_us(&self, now: u64) -> u64 {
        // A clock that was set back makes it compare often, too.
        if now.abs_diff(self.lively_us) < LIVELY_US || self.lively_us > now {
            COMPARE_US
        } else {
            QUIET_COMPARE_US
        }
    }

    /// A peer is out of the mesh.
    pub(super) fn forget(&mut self, peer: &NodeId) {
        self.wants.remove(peer);
        self.sent.remove(peer);
        self.told.remove(peer);
        self.tell_later.remove(peer);
        self.unanswered.remove(peer);
        self.forked.remove(peer);
    }

    /// An author has signed two histories of its log.
    fn note_fork(&mut self, author: NodeId) {
        if self.forked.len() < MAX_NODES {
            self.forked.entry(author).or_default();
        }
    }

    /// Whether a log that is not the certified one may be given up now: not as often as somebody shows another one.
    fn may_give_up(&mut self, author: &NodeId, now: u64) -> bool {
        let Some(last) = self.forked.get_mut(author) else {
            return false;
        };
        let may = last.is_none_or(|at| now.abs_diff(at) >= REQUEST_US);
        if may {
            *last = Some(now);
        }
        may
    }

    /// These logs are of no use any more, whoever has them.
    pub(super) fn let_go(&mut self, gone: &BTreeSet<NodeId>) {
        for wants in self.wants.values_mut() {
            wants.until.retain(|author, _| !gone.contains(author));
        }
    }

    /// A peer may have again what it had in this second.
    pub(super) fn begin_anew(&mut self, peer: &NodeId) {
        self.sent.remove(peer);
        self.told.remove(peer);
    }

    /// A peer has gone. What it was given in this second is not forgotten: it may be back at once.
    pub(super) fn disconnected(&mut self, peer: &NodeId, now: u64) {
        self.wants.remove(peer);
        self.tell_later.remove(peer);
        self.unanswered.remove(peer);
        let this = now / 1_000_000;
        self.sent.retain(|_, (second, _)| *second == this);
        self.told.retain(|_, at| now.abs_diff(*at) < TELL_AGAIN_US);
    }
}

impl Engine {
    /// What was sent because peers lacked it.
    pub const fn sync_counters(&self) -> &SyncCounters {
        &self.statements.sync.counters
    }

    /// Compares with a peer: says the hash of everything, and nothing more if it has the same.
    pub(super) fn compare_with(&mut self, call: &mut Call<'_>, peer: NodeId) {
        if !self.connected.contains(&peer) {
            return;
        }
        self.peer_is_up(peer, call.now);
        let hash = self.statements.set.frontier_hash();
        tell(call, peer, EvidenceMessage::Summary(hash));
    }

    pub(super) fn evidence_message(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        message: EvidenceMessage,
    ) {
        match message {
            EvidenceMessage::Summary(hash) => {
                if hash == self.statements.set.frontier_hash() {
                    return self.agrees(from);
                }
                self.statements.sync.stir(call.now);
                if !self.may_answer(call, from, Answer::Digest) {
                    return;
                }
                let frontier = self.statements.set.frontier();
                let answer = false;
                tell(call, from, EvidenceMessage::Digest { answer, frontier });
            }
            EvidenceMessage::Digest { answer, frontier } => {
                self.digest(call, from, answer, &frontier);
            }
            EvidenceMessage::Request(ranges) => self.requested(call, from, &ranges),
            EvidenceMessage::Statements(statements) => self.take(call, from, statements),
            EvidenceMessage::Question {
                commitment,
                subject,
            } => self.asked(call, from, commitment, subject),
            EvidenceMessage::Answer { commitment, answer } => {
                self.answered(call, from, commitment, answer);
            }
        }
    }

    fn digest(&mut self, call: &mut Call<'_>, from: NodeId, answer: bool, theirs: &Frontier) {
        let me = self.config.node;
        // Only who differs says so much.
        self.statements.sync.stir(call.now);
        let set = &self.statements.set;
        let mut until = BTreeMap::new();
        let mut probes = Vec::new();
        for (author, head) in theirs.logs() {
            let Some(size) = self.wanted_size(author, head.size) else {
                continue;
            };
            if size > set.head(author).size {
                if self.is_on_its_way(call.now, from, author, size) {
                    continue;
                }
                until.insert(*author, size);
            } else if head.size <= set.head(author).size
                && set.root_at(author, head.size) != Some(head.root)
                && !self.statements.is_caught(author)
            {
                // Two histories, and one statement proves it: each head names the root before it.
                probes.push(Range {
                    author: *author,
                    from: head.size - 1,
                    until: head.size,
                });
            }
        }
        let they_lack = set
            .frontier()
            .logs()
            .iter()
            .any(|(author, head)| theirs.size(author) < head.size);
        if theirs.size(&me) <= set.head(&me).size {
            self.agrees(from);
        }
        if !answer && they_lack && self.may_answer(call, from, Answer::DigestBack) {
            let frontier = self.statements.set.frontier();
            let answer = true;
            tell(call, from, EvidenceMessage::Digest { answer, frontier });
        }
        probes.truncate(MAX_RANGES);
        if !probes.is_empty() {
            tell(call, from, EvidenceMessage::Request(probes));
        }
        if until.is_empty() {
            self.statements.sync.wants.remove(&from);
        } else if self.statements.sync.wants.len() < MAX_NODES {
            let wants = self.statements.sync.wants.entry(from).or_default();
            wants.until = until;
            // Another request may be under way; it is made again when that one brings something.
            if call.now.abs_diff(wants.asked_us) >= REQUEST_US || wants.asked_us == 0 {
                self.request(call, from);
            }
        }
    }

    /// How many of an author's first `size` statements are worth asking a peer for: of an author with two histories
    /// those that are certified, for the peer has the other one.
    fn wanted_size(&self, author: &NodeId, size: u64) -> Option<u64> {
        let forked = &self.statements.sync.forked;
        if !forked.contains_key(author) || planted(Bug::ForkStalls) {
            return self.useful_size(author, size);
        }
        let certified = self.certified_size(author).min(size);
        (certified > 0).then_some(certified)
    }

    /// Whether another peer, which has served this node no worse, was asked for all of it just now: what
    /// several have is asked of one.
    fn is_on_its_way(&self, now: u64, from: NodeId, author: &NodeId, size: u64) -> bool {
        let local = &self.statements.local;
        self.statements.sync.wants.iter().any(|(peer, wants)| {
            *peer != from
                && wants.until.get(author).is_some_and(|until| *until >= size)
                && now.abs_diff(wants.asked_us) < REQUEST_US
                && local.score(peer) >= local.score(&from)
        })
    }

    /// Asks a peer for the next of what it has and this node lacks.
    fn request(&mut self, call: &mut Call<'_>, peer: NodeId) {
        let set = &self.statements.set;
        let Some(wants) = self.statements.sync.wants.get_mut(&peer) else {
            return;
        };
        wants
            .until
            .retain(|author, until| *until > set.head(author).size);
        let mut ranges = Vec::new();
        let mut room = MAX_ASKED;
        for (author, until) in &wants.until {
            let from = set.head(author).size;
            let until = (*until).min(from.saturating_add(room));
            if until > from && ranges.len() < MAX_RANGES {
                room -= until - from;
                ranges.push(Range {
                    author: *author,
                    from,
                    until,
                });
            }
        }
        if ranges.is_empty() {
            self.statements.sync.wants.remove(&peer);
            return;
        }
        wants.asked_us = call.now;
        tell(call, peer, EvidenceMessage::Request(ranges));
    }

    fn requested(&mut self, call: &mut Call<'_>, from: NodeId, ranges: &[Range]) {
        if self.roster.get(&from).is_none() {
            return self.refuse(call, from, RefusalReason::UnknownAuthor);
        }
        let second = call.now / 1_000_000;
        let sent = self
            .statements
            .sync
            .sent
            .get(&from)
            .filter(|(at, _)| *at == second)
            .map_or(0, |(_, sent)| *sent);
        let room = ANSWER_MESSAGES.min(MESSAGES_PER_S.saturating_sub(sent));
        if room == 0 {
            return self.refuse(call, from, RefusalReason::TooMuchEvidence);
        }
        let set = &self.statements.set;
        // No message holds more than some three hundred of the smallest statements.
        let statements: Vec<Arc<Statement>> = ranges
            .iter()
            .flat_map(|range| set.range(&range.author, range.from, range.until))
            .take(room * 512)
            .map(Arc::clone)
            .collect();
        let messages = pack(&statements, room);
        let count = messages.len();
        for message in messages {
            if let EvidenceMessage::Statements(statements) = &message {
                let counters = &mut self.statements.sync.counters;
                let bytes: usize = statements.iter().map(|s| s.to_bytes().len()).sum();
                counters.statements_sent += statements.len() as u64;
                counters.bytes_sent += bytes as u64;
            }
            tell(call, from, message);
        }
        if self.connected.contains(&from) {
            let sent = sent + count;
            self.statements.sync.sent.insert(from, (second, sent));
        }
    }

    fn take(&mut self, call: &mut Call<'_>, from: NodeId, statements: Vec<Statement>) {
        let mut new = 0_usize;
        let mut stuck = false;
        let mut others = BTreeSet::new();
        for statement in statements {
            let (author, next) = (statement.head().author, statement.head().sequence);
            // What comes after a statement that does not fit does not fit either. To take it for the end of a gap
            // would ask for all of it again, and so on, as fast as answers come.
            if others.contains(&author) && !planted(Bug::ForkAskedAgain) {
                continue;
            }
            let was_next = self.statements.set.head(&author).size == next;
            if self.take_one(call, from, statement) {
                new += 1;
            } else if was_next && let Some(wants) = self.statements.sync.wants.get_mut(&from) {
                // Its author has shown that peer another log. It cannot give what this node wants, and the logs of
                // others must not wait for that.
                stuck |= wants.until.remove(&author).is_some();
                others.insert(author);
            }
        }
        if new > 0 && self.statements.sync.wants.contains_key(&from) {
            self.statements.local.served(from);
            self.request(call, from);
        } else if stuck && !planted(Bug::ForkStalls) {
            self.request(call, from);
        }
        // A proposal may have waited for this.
        self.agree(call);
    }

    /// Asks a peer for what it has shown to have and this node lacks, up to a frontier that it proposes.
    pub(super) fn fetch_up_to(&mut self, call: &mut Call<'_>, from: NodeId, frontier: &Frontier) {
        let lacking: Vec<(NodeId, u64)> = frontier
            .logs()
            .iter()
            .filter_map(|(author, head)| Some((*author, self.useful_size(author, head.size)?)))
            .filter(|(author, size)| *size > self.statements.set.head(author).size)
            .collect();
        for (author, until) in lacking {
            self.fill_gap(call, from, author, until);
        }
    }

    /// Takes a statement; says whether it was new.
    fn take_one(&mut self, call: &mut Call<'_>, from: NodeId, statement: Statement) -> bool {
        let head = *statement.head();
        if head.mesh != self.mesh {
            self.refuse(call, from, RefusalReason::WrongMesh);
            return false;
        }
        let keys = self.author_keys(&head.author);
        let (Some(keys), Some((count, bytes))) = (keys, self.allowance(&head.author, call.now))
        else {
            self.refuse(call, from, RefusalReason::UnknownAuthor);
            return false;
        };
        if self.statements.set.contains(&statement) {
            return false;
        }
        let known = self.statements.set.head(&head.author);
        // Nothing of it is verified yet.
        let after = head.sequence.saturating_add(1);
        if head.sequence > known.size {
            return self.follows_a_gap(call, from, head.author, after);
        }
        // A lie is worth knowing whatever its author has used up.
        if head.sequence == known.size && head.sequence >= count {
            self.refuse(call, from, RefusalReason::TooMuchEvidence);
            return false;
        }
        if statement.signed.verify(&keys.vote).is_err() {
            self.refuse(call, from, RefusalReason::BadSignature);
            self.statements.local.failed(from);
            return false;
        }
        let kept = statement.clone();
        let bytes = self.room_for(&head.author, head.sequence, bytes);
        match self.statements.set.insert(statement, bytes) {
            Inserted::New => {
                self.statements.sync.counters.statements_new += 1;
                self.statements.sync.stir(call.now);
                self.noted(&kept);
                call.out.push(Output::KeepEvidence {
                    bytes: kept.to_bytes(),
                    own: head.author == self.config.node,
                });
                return true;
            }
            Inserted::Known => {}
            Inserted::Gap(_) => return self.follows_a_gap(call, from, head.author, after),
            Inserted::Conflict(heads) => {
                self.refuse(call, from, RefusalReason::ForkedEvidence);
                self.statements.sync.note_fork(head.author);
                if let Some(misconduct) = Misconduct::fork(heads.0, heads.1)
                    && !planted(Bug::LogForkIgnored)
                {
                    self.catch(call, misconduct);
                }
            }
            Inserted::OtherHistory => {
                self.refuse(call, from, RefusalReason::ForkedEvidence);
                let author = head.author;
                self.statements.sync.note_fork(author);
                if head.sequence > 0 && !self.statements.is_caught(&author) {
                    let probe = Range {
                        author,
                        from: head.sequence - 1,
                        until: head.sequence,
                    };
                    tell(call, from, EvidenceMessage::Request(vec![probe]));
                } else if author != self.config.node
                    && head.sequence < self.certified_size(&author)
                    && self.statements.sync.may_give_up(&author, call.now)
                    && !planted(Bug::ForkKept)
                {
                    // What this node has is shorter than what is certified, and perhaps no part of it. Without it,
                    // whoever has the certified log can give it all.
                    self.statements.set.drop_log(&author);
                }
            }
            Inserted::Full => self.refuse(call, from, RefusalReason::TooMuchEvidence),
        }
        false
    }

    /// Something before a statement is missing. Of a log with two histories the next comparison asks for what is worth it:
    /// the rest of an answer that does not fit looks the same, and would bring it again, as fast as answers come.
    fn follows_a_gap(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        author: NodeId,
        until: u64,
    ) -> bool {
        let forked = self.statements.sync.forked.contains_key(&author)
            && !planted(Bug::ForkStalls)
            && !planted(Bug::ForkAskedAgain);
        !forked && self.fill_gap(call, from, author, until)
    }

    /// Something before a statement is missing: asks the sender for it. Never new.
    fn fill_gap(&mut self, call: &mut Call<'_>, from: NodeId, author: NodeId, until: u64) -> bool {
        let wants = &mut self.statements.sync.wants;
        if wants.contains_key(&from) || wants.len() < MAX_NODES {
            let wants = wants.entry(from).or_default();
            let known = wants.until.entry(author).or_default();
            *known = until.max(*known);
            if call.now.abs_diff(wants.asked_us) >= REQUEST_US || wants.asked_us == 0 {
                self.request(call, from);
            }
        }
        false
    }

    /// Compares with the next peer when it is time.
    pub(super) fn sync_some(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        if self
            .statements
            .sync
            .told_again_us
            .is_some_and(|at| at <= now)
        {
            self.statements.sync.told_again_us = None;
            self.tell_everybody(call);
        }
        self.tell_now(call);
        let (next, pause) = (
            self.statements.sync.next_us,
            self.statements.sync.pause_us(now),
        );
        if now < next && next <= now.saturating_add(QUIET_COMPARE_US) {
            return;
        }
        self.statements.sync.next_us = now.saturating_add(pause);
        let late: Vec<NodeId> = self
            .statements
            .sync
            .wants
            .iter()
            .filter(|(_, wants)| now.abs_diff(wants.asked_us) >= REQUEST_US)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in late {
            // It comes up again in the next digest, of this peer or of another.
            self.statements.local.failed(peer);
            self.statements.sync.wants.remove(&peer);
        }
        if let Some(peer) = self.peer_after(self.statements.sync.last_peer) {
            self.statements.sync.last_peer = Some(peer);
            self.compare_with(call, peer);
        }
        let told_us = self.statements.sync.inventory_us;
        if told_us == 0 {
            // Everybody is told when it comes.
            self.statements.sync.inventory_us = now;
        } else if now.abs_diff(told_us) >= INVENTORY_US
            && let Some(peer) = self.peer_after(self.statements.sync.inventory_peer)
        {
            self.statements.sync.inventory_us = now;
            self.statements.sync.inventory_peer = Some(peer);
            self.tell_sums(call, peer);
        }
    }

    /// The connected peer whose turn is after that one's.
    pub(super) fn peer_after(&self, last: Option<NodeId>) -> Option<NodeId> {
        self.connected
            .iter()
            .find(|peer| last.is_none_or(|last| **peer > last))
            .or_else(|| self.connected.first())
            .copied()
    }
}
