//! Links, sessions, what is under way.

use std::rc::Rc;
use std::sync::Arc;

use secmesh::mesh::engine::{Input, VoteSummary};
use secmesh::mesh::epoch::Step;
use secmesh::mesh::evidence::{Body, EvidenceMessage, Statement};
use secmesh::mesh::ids::NodeId;
use secmesh::mesh::message::Message;

use super::{Event, World};
use crate::cast::S;
use crate::oracle::{Violation, broken, signed_by};
use crate::plan::Swallowed;

/// Where a message says of which kind it is: behind the length of its tag and the tag.
pub(super) const KIND_AT: usize = 1 + "secmesh/msg/1".len();
/// Statements.
const STATEMENTS: u8 = 27;

/// Whether a message is or contains a prevote on an epoch.
fn has_prevote(bytes: &[u8]) -> bool {
    match Message::from_bytes(bytes) {
        Ok(Message::EpochVote(signed)) => signed.vote.step == Step::Prevote,
        Ok(Message::Batch(parts)) => parts.iter().any(|part| has_prevote(part)),
        _ => false,
    }
}

impl World {
    fn alive(&self, i: usize) -> bool {
        self.nodes[i].joined && (self.lies(i) || self.nodes[i].engine.is_some())
    }

    fn whole(&self, a: usize, b: usize) -> bool {
        let open = !self.links[a][b].cut && !self.links[b][a].cut;
        open && !self.shuns(a, b) && !self.shuns(b, a)
    }

    /// Whether node `a` has no connection to `b` any more because that one is cut off, or removed by the operator.
    fn shuns(&self, a: usize, b: usize) -> bool {
        let id = self.nodes[b].id;
        let engine = self.nodes[a].engine.as_ref();
        if engine.is_some_and(|engine| engine.is_quarantined(&id)) {
            return true;
        }
        self.oracle.removed.contains(&id)
            && self.nodes[a].engine.as_ref().is_some_and(|engine| {
                engine.roster().get(&id).is_none()
                    && engine.removals().any(|removal| removal.removal.node == id)
            })
    }

    pub(super) fn maintain(&mut self) {
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

    pub(super) fn session(&mut self, a: usize, b: usize, up: bool) -> Result<(), Violation> {
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
                self.watch_session(x, peer, up)?;
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

    pub(super) fn send(&mut self, from: usize, to: usize, bytes: &Rc<[u8]>) {
        let link = self.links[from][to];
        if from == to || !link.up {
            return;
        }
        if !self.lies(from) {
            self.counts.sent += 1;
            self.counts.sent_bytes += bytes.len() as u64;
        }
        let gone = match link.swallowed {
            Swallowed::Nothing => false,
            Swallowed::All => true,
            Swallowed::Prevotes => has_prevote(bytes),
        };
        if gone || link.cut || self.rng.below(1_000) < self.network.loss {
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

    pub(super) fn deliver(
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
            self.answer(to, from, bytes);
            return Ok(());
        }
        if self.nodes[to].engine.is_none() {
            return Ok(());
        }
        self.counts.received += 1;
        self.trace.number((from as u64) << 32 | to as u64);
        self.trace.message(bytes);
        let id = self.nodes[from].id;
        let engine = self.nodes[to].engine.as_ref();
        // What somebody says who is cut off is not looked at.
        let heard = engine.is_some_and(|engine| !engine.is_quarantined(&id));
        let lie = (heard && self.lies(from))
            .then(|| self.contradiction(from, to, bytes))
            .flatten();
        let forked = self.forked(to, bytes).filter(|_| heard);
        self.input(to, Input::Message { from: id, bytes })?;
        self.watch_message(to, id)?;
        if let Some(author) = forked.filter(|author| !self.knows_fork(to, author)) {
            return broken(
                "log-forks",
                format!(
                    "node {to} holds one and was shown another statement of {author} under one number, and has not caught it"
                ),
            );
        }
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

    /// The author of a statement that contradicts the one that node `to` holds.
    fn forked(&self, to: usize, bytes: &[u8]) -> Option<NodeId> {
        // Statements are few; the others need not be read for this.
        if bytes.get(KIND_AT) != Some(&STATEMENTS) {
            return None;
        }
        let Ok(Message::Evidence(message)) = Message::from_bytes(bytes) else {
            return None;
        };
        let EvidenceMessage::Statements(statements) = *message else {
            return None;
        };
        let engine = self.nodes[to].engine.as_ref()?;
        let found = statements.iter().find(|statement| {
            let head = statement.head();
            let held = engine.evidence().get(&head.author, head.sequence);
            let member = engine.roster().get(&head.author);
            held.is_some_and(|held| held.head() != head)
                && head.mesh == self.genesis.mesh_id()
                && member.is_some_and(|m| statement.signed.verify(&m.record.vote_key).is_ok())
        })?;
        Some(found.head().author)
    }

    fn knows_fork(&self, to: usize, author: &NodeId) -> bool {
        let node = &self.nodes[to];
        let proved = |statement: &Arc<Statement>| match &statement.body {
            Body::Misconduct(misconduct) => misconduct.culprit() == *author,
            _ => false,
        };
        node.caught.contains(author)
            || node.engine.as_ref().is_none_or(|engine| {
                engine.liars().contains(author) || engine.evidence().iter().any(proved)
            })
    }

    /// Whether this vote of a liar contradicts one that node `to` has taken.
    fn contradiction(&self, from: usize, to: usize, bytes: &[u8]) -> Option<NodeId> {
        let Ok(Message::Vote(ballot)) = Message::from_bytes(bytes) else {
            return None;
        };
        let node = &self.nodes[to];
        let engine = node.engine.as_ref()?;
        let vote = &ballot.signed.vote;
        // Whose votes others bring are not held: those are refused before anything else.
        if vote.voter != self.nodes[from].id {
            return None;
        }
        let params = &self.genesis.params;
        let wall = node.wall(self.now);
        let skew = u64::from(params.max_skew_s) * S;
        let member = engine.roster().get(&vote.voter)?;
        let good = vote.epoch_hash == engine.roster().epoch_hash()
            && vote.epoch == engine.roster().epoch()
            && ballot.action.check(params).is_ok()
            && (ballot.action.kind.lifts() || vote.round == 0)
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
                .incidents(ballot.action.subject.prefix().as_ref())
                .iter()
                .filter(|i| (i.incident, i.round) == (vote.incident, vote.round))
                .any(|i| i.votes.iter().any(contradicts)))
        .then_some(vote.voter)
    }
}
