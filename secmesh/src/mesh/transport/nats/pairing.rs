//! One peer, over a carrier that may forge, replay, hold back and reorder: what is believed of it.
//!
//! Each end draws a nonce. A *session* is a pair of nonces of which each end has seen that the other knows
//! both; for that an envelope has to have been made after this end drew its nonce, so nothing recorded earlier
//! counts. Within a session numbers rise by one. A number that is too low is refused; one that is too high
//! means that something was lost, and ends the session: the next one begins with `Up`, after which the peers
//! say again what matters, as after a broken connection. No clock of the peer and no file takes part.
//!
//! ```text
//!   A                                        B
//!   hello    {a, -}       ───────────────▶   answers only
//!   session (a, b), Up    ◀───────────────   answer    {b, a}
//!   heartbeat {a, b} #1   ───────────────▶   session (b, a), Up
//! ```

use bytes::Bytes;

use crate::mesh::envelope::{Envelope, EnvelopeKind, NO_NONCE, Nonce};
use crate::mesh::transport::limit::Reconnects;

/// How often a silent peer is asked for a sign of life once it is asked.
const BEAT_NS: u64 = 2_000_000_000;
/// How long a peer that is asked may be silent before it counts as gone.
const UNANSWERED_NS: u64 = 2 * BEAT_NS;
/// A heartbeat is answered by one unless this end has said something so lately. Longer than a way there and back, or
/// the answers would be answered.
const SAID_NS: u64 = 1_500_000_000;
/// How much later one of the two ends asks, so that not both do.
const STAGGER_NS: u64 = 500_000_000;
/// Bounds of [`Rhythm::ask_ns`].
const ASK_NS: (u64, u64) = (2_000_000_000, 15_000_000_000);
/// Of the time between two questions to one peer, for each peer.
const ASK_PER_PEER_NS: u64 = 500_000_000;
/// How long its session is kept after that, for what the broker still holds.
pub(super) const KEPT_NS: u64 = 30_000_000_000;
/// Shortest and longest wait between two hellos.
const HELLO_NS: (u64, u64) = (500_000_000, 5_000_000_000);
/// Shortest time between two answers to one peer: hellos can be replayed at will.
const ANSWER_NS: u64 = 100_000_000;
/// How long after a session has begun the peer's late hellos for it are ignored.
const SETTLED_NS: u64 = 2_000_000_000;

/// How long peers may be silent. The more there are, the longer: what a node sends to find all its peers there stays the
/// same, and who of many is gone is found by failure detection (`mesh/swim`) before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rhythm {
    /// Nanoseconds after which a silent peer is asked for a sign of life.
    ask_ns: u64,
}

impl Rhythm {
    /// With so many peers.
    pub(super) fn of(peers: usize) -> Self {
        let peers = u64::try_from(peers).unwrap_or(u64::MAX);
        let ask_ns = peers.saturating_mul(ASK_PER_PEER_NS);
        Self {
            ask_ns: ask_ns.clamp(ASK_NS.0, ASK_NS.1),
        }
    }

    /// Nanoseconds after which a silent peer counts as gone.
    const fn gone_ns(self) -> u64 {
        self.ask_ns + UNANSWERED_NS
    }
}

const _: () = assert!(ASK_NS.1 + UNANSWERED_NS < KEPT_NS);

/// Why an envelope of a member, rightly signed, is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Of another session than the present one: old, or of a peer that began anew.
    Stale,
    /// Taken already, or older than what was.
    Replayed,
    /// It came before others that were to come first, or those were lost; the session ends.
    Missing,
    /// A hello too soon after another, or a new session after too many.
    Hurried,
}

/// What came of it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The peer can be reached.
    Up,
    /// It cannot.
    Down,
    /// It said this.
    Message(Bytes),
    /// This is to be sent.
    Send(Draft),
}

/// An envelope to be sent, without what is the same for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) nonce: Nonce,
    pub(super) echo: Nonce,
    pub(super) sequence: u64,
    pub(super) kind: EnvelopeKind,
}

#[derive(Debug, Clone)]
struct Session {
    own: Nonce,
    peer: Nonce,
    received: u64,
    sent: u64,
    since_ns: u64,
    heard_ns: u64,
    told_ns: u64,
    asked_ns: u64,
}

impl Session {
    fn draft(&mut self, kind: EnvelopeKind, now_ns: u64) -> Draft {
        self.sent = self.sent.saturating_add(1);
        self.told_ns = now_ns;
        Draft {
            nonce: self.own,
            echo: self.peer,
            sequence: self.sent,
            kind,
        }
    }
}

/// What is known of one peer.
#[derive(Debug)]
pub(super) struct Pairing {
    /// For the next session; drawn anew whenever one begins or ends, so that what a peer repeats of it was
    /// written since.
    own: Nonce,
    /// Whether this end leaves it to the other one to ask first.
    second: bool,
    session: Option<Session>,
    up: bool,
    hello_ns: u64,
    pause_ns: u64,
    answered_ns: Option<u64>,
    begun: Reconnects,
}

impl Pairing {
    /// `second`: the other end asks first; true at one of the two.
    pub(super) fn new(own: Nonce, second: bool, now_ns: u64) -> Self {
        Self {
            own,
            second,
            session: None,
            up: false,
            hello_ns: now_ns,
            pause_ns: HELLO_NS.0,
            answered_ns: None,
            begun: Reconnects::default(),
        }
    }

    /// Takes an envelope whose mesh, recipient, sender and signature were checked. `fresh` is a new nonce.
    pub(super) fn take(
        &mut self,
        envelope: &Envelope,
        now_ns: u64,
        fresh: Nonce,
    ) -> (Vec<Outcome>, Option<Refusal>) {
        if envelope.kind == EnvelopeKind::Hello {
            return self.hello(envelope, now_ns);
        }
        if let Some(session) = &mut self.session
            && (session.peer, session.own) == (envelope.nonce, envelope.echo)
        {
            if envelope.kind == EnvelopeKind::Answer {
                // To a hello that was said twice.
                return (Vec::new(), None);
            }
            if envelope.sequence <= session.received {
                return (Vec::new(), Some(Refusal::Replayed));
            }
            if envelope.sequence != session.received.saturating_add(1) {
                return (self.end(now_ns, fresh), Some(Refusal::Missing));
            }
            session.received = envelope.sequence;
            session.heard_ns = now_ns;
            let asks = envelope.kind == EnvelopeKind::Heartbeat
                && now_ns.saturating_sub(session.told_ns) >= SAID_NS;
            let answer = asks.then(|| session.draft(EnvelopeKind::Heartbeat, now_ns));
            let mut outcomes = self.said(envelope, now_ns, fresh);
            outcomes.extend(answer.map(Outcome::Send));
            return (outcomes, None);
        }
        if envelope.echo != self.own {
            return (Vec::new(), Some(Refusal::Stale));
        }
        if envelope.sequence > 1 {
            return (Vec::new(), Some(Refusal::Missing));
        }
        if !self.begun.admit(now_ns) {
            return (Vec::new(), Some(Refusal::Hurried));
        }
        let mut session = Session {
            own: self.own,
            peer: envelope.nonce,
            received: envelope.sequence,
            sent: 0,
            since_ns: now_ns,
            heard_ns: now_ns,
            told_ns: now_ns,
            asked_ns: now_ns,
        };
        let first = session.draft(EnvelopeKind::Heartbeat, now_ns);
        let mut outcomes = Vec::new();
        if std::mem::take(&mut self.up) {
            outcomes.push(Outcome::Down);
        }
        self.session = Some(session);
        self.own = fresh;
        self.pause_ns = HELLO_NS.0;
        outcomes.push(Outcome::Send(first));
        outcomes.extend(self.said(envelope, now_ns, fresh));
        (outcomes, None)
    }

    /// What an envelope says that has its place in the session.
    fn said(&mut self, envelope: &Envelope, now_ns: u64, fresh: Nonce) -> Vec<Outcome> {
        if envelope.kind == EnvelopeKind::Farewell {
            return self.end(now_ns, fresh);
        }
        let mut outcomes = Vec::new();
        if !std::mem::replace(&mut self.up, true) {
            outcomes.push(Outcome::Up);
        }
        if envelope.kind == EnvelopeKind::Message {
            outcomes.push(Outcome::Message(envelope.body.clone()));
        }
        outcomes
    }

    fn hello(&mut self, envelope: &Envelope, now_ns: u64) -> (Vec<Outcome>, Option<Refusal>) {
        let settled = |session: &Session| {
            session.peer == envelope.nonce && now_ns.saturating_sub(session.since_ns) < SETTLED_NS
        };
        if self.session.as_ref().is_some_and(settled) {
            return (Vec::new(), None);
        }
        if self
            .answered_ns
            .is_some_and(|at| now_ns.saturating_sub(at) < ANSWER_NS)
        {
            return (Vec::new(), Some(Refusal::Hurried));
        }
        self.answered_ns = Some(now_ns);
        let answer = Draft {
            nonce: self.own,
            echo: envelope.nonce,
            sequence: 0,
            kind: EnvelopeKind::Answer,
        };
        (vec![Outcome::Send(answer)], None)
    }

    /// What time brings; to be asked a few times a second.
    ///
    /// Without `can_send` nothing is to be sent: a number that is drawn and lost would end the session.
    pub(super) fn tick(
        &mut self,
        now_ns: u64,
        fresh: Nonce,
        can_send: bool,
        rhythm: Rhythm,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let ask_ns = rhythm.ask_ns + if self.second { STAGGER_NS } else { 0 };
        match &mut self.session {
            Some(session) => {
                let silent = now_ns.saturating_sub(session.heard_ns);
                if silent > rhythm.gone_ns() && std::mem::take(&mut self.up) {
                    outcomes.push(Outcome::Down);
                }
                if silent > KEPT_NS {
                    outcomes.extend(self.end(now_ns, fresh));
                } else if can_send
                    && silent >= ask_ns
                    && now_ns.saturating_sub(session.asked_ns) >= BEAT_NS
                {
                    session.asked_ns = now_ns;
                    let beat = session.draft(EnvelopeKind::Heartbeat, now_ns);
                    outcomes.push(Outcome::Send(beat));
                }
            }
            None if can_send && now_ns >= self.hello_ns => {
                self.hello_ns = now_ns.saturating_add(self.pause_ns);
                self.pause_ns = self.pause_ns.saturating_mul(2).min(HELLO_NS.1);
                outcomes.push(Outcome::Send(Draft {
                    nonce: self.own,
                    echo: NO_NONCE,
                    sequence: 0,
                    kind: EnvelopeKind::Hello,
                }));
            }
            None => {}
        }
        outcomes
    }

    /// The place of the next message, if there is a session.
    pub(super) fn message(&mut self, now_ns: u64) -> Option<Draft> {
        let session = self.session.as_mut()?;
        Some(session.draft(EnvelopeKind::Message, now_ns))
    }

    /// The message drawn last did not leave: its number is free again. To be called before anything else is drawn.
    pub(super) fn take_back(&mut self) {
        if let Some(session) = &mut self.session {
            session.sent = session.sent.saturating_sub(1);
        }
    }

    /// A last word, if there is a session; nothing may be sent after it.
    pub(super) fn farewell(&mut self, now_ns: u64) -> Option<Draft> {
        let mut session = self.session.take()?;
        Some(session.draft(EnvelopeKind::Farewell, now_ns))
    }

    /// Whether messages can be sent.
    pub(super) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Whether the peer counts as reachable.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    fn end(&mut self, now_ns: u64, fresh: Nonce) -> Vec<Outcome> {
        self.session = None;
        self.own = fresh;
        self.hello_ns = now_ns;
        if std::mem::take(&mut self.up) {
            vec![Outcome::Down]
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mesh::ids::{MeshId, NodeId};

    const S: u64 = 1_000_000_000;
    /// Of a small mesh.
    const FEW: usize = 3;

    /// One end, with nonces that are easy to tell apart.
    struct End {
        pairing: Pairing,
        drawn: u32,
        side: u8,
        peers: usize,
    }

    impl End {
        fn new(side: u8) -> Self {
            let own = [side; 16];
            Self {
                pairing: Pairing::new(own, side >= 0xb0, 0),
                drawn: 0,
                side,
                peers: FEW,
            }
        }

        fn fresh(&mut self) -> Nonce {
            self.drawn += 1;
            let mut nonce = [self.side; 16];
            nonce[1..5].copy_from_slice(&self.drawn.to_be_bytes());
            nonce
        }

        fn take(&mut self, envelope: &Envelope, now: u64) -> (Vec<Outcome>, Option<Refusal>) {
            let fresh = self.fresh();
            self.pairing.take(envelope, now, fresh)
        }

        fn tick(&mut self, now: u64) -> Vec<Outcome> {
            let fresh = self.fresh();
            self.pairing.tick(now, fresh, true, Rhythm::of(self.peers))
        }

        fn say(&mut self, body: &'static [u8], now: u64) -> Envelope {
            let draft = self.pairing.message(now).expect("a session");
            Envelope {
                body: Bytes::from_static(body),
                ..envelope(&draft)
            }
        }
    }

    fn envelope(draft: &Draft) -> Envelope {
        Envelope {
            mesh: MeshId([0; 32]),
            sender: [0; 32],
            recipient: NodeId([0; 16]),
            nonce: draft.nonce,
            echo: draft.echo,
            sequence: draft.sequence,
            kind: draft.kind,
            body: Bytes::new(),
        }
    }

    fn sent(outcomes: &[Outcome]) -> Vec<Envelope> {
        outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Send(draft) => Some(envelope(draft)),
                _ => None,
            })
            .collect()
    }

    /// Lets both talk until nobody has anything to say; gives all that was said.
    fn settle(ends: &mut [End; 2], now: u64) -> Vec<(usize, Envelope)> {
        let mut said = Vec::new();
        let mut queue: Vec<(usize, Envelope)> = Vec::new();
        for (at, end) in ends.iter_mut().enumerate() {
            let outcomes = end.tick(now);
            queue.extend(sent(&outcomes).into_iter().map(|e| (1 - at, e)));
        }
        for _ in 0..50 {
            if queue.is_empty() {
                return said;
            }
            let (to, envelope) = queue.remove(0);
            let (outcomes, _) = ends[to].take(&envelope, now);
            said.push((to, envelope));
            queue.extend(sent(&outcomes).into_iter().map(|e| (1 - to, e)));
        }
        panic!("they never stop");
    }

    fn pair() -> ([End; 2], Vec<(usize, Envelope)>) {
        let mut ends = [End::new(0xa0), End::new(0xb0)];
        let said = settle(&mut ends, 1);
        assert!(ends.iter().all(|end| end.pairing.is_up()));
        (ends, said)
    }

    #[test]
    fn both_come_up_and_messages_are_taken_once_and_in_order() {
        let ([mut a, mut b], _) = pair();
        let (one, two) = (a.say(b"1", S), a.say(b"2", S));
        let message = |e: &Envelope| (vec![Outcome::Message(e.body.clone())], None);
        assert_eq!(b.take(&one, S), message(&one));
        assert_eq!(b.take(&one, S), (Vec::new(), Some(Refusal::Replayed)));
        assert_eq!(b.take(&two, S), message(&two));
        assert_eq!(b.take(&one, S), (Vec::new(), Some(Refusal::Replayed)));
    }

    #[test]
    fn what_did_not_leave_is_said_again_in_its_place() {
        let ([mut a, mut b], _) = pair();
        a.say(b"lost", S);
        a.pairing.take_back();
        let one = a.say(b"1", S);
        let (outcomes, refusal) = b.take(&one, S);
        assert_eq!(refusal, None);
        assert_eq!(outcomes, [Outcome::Message(one.body)]);
    }

    #[test]
    fn a_farewell_is_down_at_once_and_a_next_life_is_found() {
        let ([mut a, mut b], _) = pair();
        let word = a.pairing.farewell(S).expect("a session");
        let word = envelope(&word);
        assert_eq!(b.take(&word, S), (vec![Outcome::Down], None));
        assert!(!b.pairing.is_up() && !b.pairing.has_session());
        assert_eq!(b.take(&word, S), (Vec::new(), Some(Refusal::Stale)));
        let mut ends = [End::new(0xa1), b];
        settle(&mut ends, 2 * S);
        assert!(ends.iter().all(|end| end.pairing.is_up()));
    }

    #[test]
    fn a_hello_is_answered_ten_times_a_second_and_a_late_one_of_this_session_not_at_all() {
        let (ends, said) = pair();
        let [_, mut b] = ends;
        let is_hello = |(to, e): &&(usize, Envelope)| *to == 1 && e.kind == EnvelopeKind::Hello;
        let (_, hello) = said.iter().find(is_hello).expect("it began with that");
        // The pair came up at 1.
        assert_eq!(b.take(hello, SETTLED_NS), (Vec::new(), None));
        // By then its sender may have lost the session.
        let mut now = 1 + SETTLED_NS;
        for _ in 0..3 {
            let (outcomes, refusal) = b.take(hello, now);
            assert_eq!(refusal, None);
            assert_eq!(sent(&outcomes)[0].kind, EnvelopeKind::Answer);
            now += ANSWER_NS;
            let hurried = (Vec::new(), Some(Refusal::Hurried));
            assert_eq!(b.take(hello, now - 1), hurried);
        }
        assert!(b.pairing.is_up(), "hellos end nothing");
    }

    #[test]
    fn who_begins_again_and_again_has_to_wait() {
        let (mut ends, _) = pair();
        let mut refused = 0;
        for _ in 0..40 {
            // A begins anew each time, as fast as it is answered.
            ends[0] = End::new(0xa0);
            ends[0].drawn = 1_000 + refused;
            ends[0].pairing.own = [0x77; 16];
            ends[0].pairing.own[1..5].copy_from_slice(&refused.to_be_bytes());
            let answer = Draft {
                nonce: ends[0].pairing.own,
                echo: ends[1].pairing.own,
                sequence: 1,
                kind: EnvelopeKind::Heartbeat,
            };
            let (_, refusal) = ends[1].take(&envelope(&answer), S);
            refused += u32::from(refusal == Some(Refusal::Hurried));
        }
        assert!((24..=25).contains(&refused), "{refused}");
        let mut ends = [End::new(0xa9), ends.into_iter().nth(1).expect("two")];
        for now in 1..20 {
            settle(&mut ends, now * 4 * S);
        }
        assert!(ends.iter().all(|end| end.pairing.is_up()));
    }

    #[test]
    fn what_is_missing_ends_the_session_and_the_next_begins_with_up() {
        let ([mut a, mut b], _) = pair();
        let (one, two) = (a.say(b"1", S), a.say(b"2", S));
        assert_eq!(
            b.take(&two, S),
            (vec![Outcome::Down], Some(Refusal::Missing))
        );
        // What was held back is of no session any more.
        assert_eq!(b.take(&one, S), (Vec::new(), Some(Refusal::Stale)));
        let mut ends = [a, b];
        settle(&mut ends, 2 * S);
        assert!(ends.iter().all(|end| end.pairing.is_up()));
        let [mut a, mut b] = ends;
        let again = a.say(b"3", 2 * S);
        assert!(matches!(
            b.take(&again, 2 * S),
            (outcomes, None) if outcomes == [Outcome::Message(Bytes::from_static(b"3"))]
        ));
    }

    #[test]
    fn nothing_of_an_earlier_life_is_believed() {
        let (ends, mut recorded) = pair();
        let [mut a, mut b] = ends;
        for _ in 0..3 {
            let message = a.say(b"old", S);
            b.take(&message, S);
            recorded.push((1, message));
        }
        // B starts anew; somebody plays it everything that A ever said.
        let mut b = End::new(0xb1);
        for round in 0..3u64 {
            for (to, envelope) in &recorded {
                let (outcomes, refusal) = b.take(envelope, (2 + round) * S);
                if *to == 1 && envelope.kind != EnvelopeKind::Hello {
                    assert_eq!((outcomes, refusal), (Vec::new(), Some(Refusal::Stale)));
                }
            }
        }
        assert!(!b.pairing.is_up());
        // The true A is found all the same.
        let mut ends = [a, b];
        settle(&mut ends, 10 * S);
        assert!(ends.iter().all(|end| end.pairing.is_up()));
        // And an old hello takes nothing away from it.
        for (to, envelope) in &recorded {
            ends[*to].take(envelope, 20 * S);
        }
        assert!(ends.iter().all(|end| end.pairing.is_up()));
    }

    #[test]
    fn nothing_of_a_peers_earlier_life_is_believed() {
        let ([mut a, b], mut recorded) = pair();
        let said = a.say(b"old", S);
        recorded.push((1, said));
        // A starts anew, and B has not: what the first A said was written for this very B.
        let mut ends = [End::new(0xa1), b];
        settle(&mut ends, 20 * S);
        assert!(ends.iter().all(|end| end.pairing.is_up()));
        for (_, envelope) in recorded.iter().filter(|(to, _)| *to == 1) {
            if envelope.kind != EnvelopeKind::Hello {
                let taken = ends[1].take(envelope, 21 * S);
                assert_eq!(taken, (Vec::new(), Some(Refusal::Stale)), "{envelope:?}");
            }
        }
    }

    #[test]
    fn a_peer_that_begins_anew_goes_down_and_up() {
        let ([a, _], _) = pair();
        let mut ends = [a, End::new(0xb1)];
        let hello = sent(&ends[1].tick(3 * S));
        let (answer, refusal) = ends[0].take(&hello[0], 3 * S);
        assert_eq!(refusal, None);
        let (outcomes, _) = ends[1].take(&sent(&answer)[0], 3 * S);
        assert!(outcomes.contains(&Outcome::Up));
        let (outcomes, _) = ends[0].take(&sent(&outcomes)[0], 3 * S);
        let events: Vec<_> = outcomes
            .into_iter()
            .filter(|o| !matches!(o, Outcome::Send(_)))
            .collect();
        assert_eq!(events, [Outcome::Down, Outcome::Up]);
    }

    #[test]
    fn silence_is_down_and_a_late_word_is_up_again() {
        let ([mut a, mut b], _) = pair();
        let late = a.say(b"late", S);
        let gone = Rhythm::of(FEW).gone_ns();
        assert!(!b.tick(gone).contains(&Outcome::Down));
        assert!(b.tick(gone + 2).contains(&Outcome::Down));
        let (outcomes, refusal) = b.take(&late, 20 * S);
        assert_eq!(refusal, None);
        assert_eq!(
            outcomes,
            [Outcome::Up, Outcome::Message(Bytes::from_static(b"late"))]
        );
        b.tick(20 * S + KEPT_NS + 1);
        assert!(!b.pairing.has_session());
        assert_eq!(
            a.pairing.farewell(S).map(|d| d.kind),
            Some(EnvelopeKind::Farewell)
        );
        assert!(a.pairing.message(S).is_none());
    }

    /// What an idle pair of a mesh with so many peers says within five minutes.
    fn said_idle(peers: usize) -> usize {
        let (mut ends, _) = pair();
        for end in &mut ends {
            end.peers = peers;
        }
        let mut said = 0;
        for quarter in 4..=4 * 300u64 {
            said += settle(&mut ends, quarter * S / 4).len();
            assert!(ends.iter().all(|end| end.pairing.is_up()), "{quarter}");
        }
        said
    }

    #[test]
    fn a_silent_peer_is_asked_by_one_end_and_answers_and_more_peers_cost_no_more() {
        // A question and an answer, each 2 s or each 14.5 s.
        assert!((298..=302).contains(&said_idle(FEW)));
        assert!((38..=44).contains(&said_idle(29)));
        let per_node = |peers: usize| peers * said_idle(peers) / 2;
        assert!(per_node(29) <= 2 * 300 + 29, "two a second");
        assert!(per_node(12) <= 2 * 300 + 29);
    }

    #[test]
    fn who_hears_nothing_asks_again_and_then_gives_up() {
        for peers in [FEW, 29] {
            let (ends, _) = pair();
            let [_, mut b] = ends;
            b.peers = peers;
            let rhythm = Rhythm::of(peers);
            let (mut asked, mut down) = (Vec::new(), None);
            for quarter in 1..=4 * 25u64 {
                let now = quarter * S / 4;
                let outcomes = b.tick(now);
                if !sent(&outcomes).is_empty() {
                    asked.push(now);
                }
                if outcomes.contains(&Outcome::Down) {
                    down = Some(now);
                }
            }
            let first = rhythm.ask_ns + STAGGER_NS;
            let due = |at: &u64, by: u64| (by..=by + S / 4).contains(at);
            assert!(
                due(&asked[0], first) && due(&asked[1], first + BEAT_NS),
                "{asked:?}"
            );
            assert!(
                down.is_some_and(|at| due(&at, rhythm.gone_ns())),
                "{down:?}"
            );
        }
    }

    #[test]
    fn a_peer_of_before_that_only_tells_is_answered() {
        // It sends a heartbeat each 2 s, whatever it hears, and takes 6 s of silence for the end.
        let ([mut a, mut b], _) = pair();
        b.peers = 29;
        let mut heard = Vec::new();
        for second in 1..60 {
            let now = 2 * second * S;
            let draft = a
                .pairing
                .session
                .as_mut()
                .map(|s| s.draft(EnvelopeKind::Heartbeat, now));
            let (outcomes, refusal) = b.take(&envelope(&draft.expect("a session")), now);
            assert_eq!(refusal, None);
            heard.extend(sent(&outcomes).iter().map(|_| now));
        }
        assert_eq!(heard.len(), 59);
    }

    proptest! {
        /// Somebody in between drops, repeats and swaps at will: what is taken of one session is a beginning of
        /// what was said in it, and once left alone both find each other.
        #[test]
        fn only_a_beginning_of_what_was_said_is_taken(choices in proptest::collection::vec((0..6u8, any::<proptest::sample::Index>()), 1..200)) {
            let (mut ends, _) = pair();
            let mut wire: Vec<(usize, Envelope)> = Vec::new();
            let mut now = S;
            let mut said: [Vec<(Nonce, u8)>; 2] = Default::default();
            let mut heard: [Vec<(Nonce, u8)>; 2] = Default::default();
            let mut count = 0u8;
            for (choice, index) in choices {
                now += S / 20;
                match choice {
                    0 | 1 => {
                        let from = usize::from(choice);
                        if let Some(draft) = ends[from].pairing.message(now) {
                            let body = Bytes::copy_from_slice(&[count]);
                            wire.push((1 - from, Envelope { body, ..envelope(&draft) }));
                            said[1 - from].push((draft.nonce, count));
                            count += 1;
                        }
                    }
                    2 => for (at, end) in ends.iter_mut().enumerate() {
                        let outcomes = end.tick(now);
                        wire.extend(sent(&outcomes).into_iter().map(|e| (1 - at, e)));
                    },
                    _ if wire.is_empty() => {}
                    3 => { wire.remove(index.index(wire.len())); }
                    _ => {
                        // Delivered, out of order, and perhaps once more later.
                        let at = if choice == 4 { 0 } else { index.index(wire.len()) };
                        let (to, e) = wire[at].clone();
                        if choice == 4 { wire.remove(0); }
                        let (outcomes, _) = ends[to].take(&e, now);
                        for outcome in &outcomes {
                            if let Outcome::Message(body) = outcome {
                                heard[to].push((e.nonce, body[0]));
                            }
                        }
                        wire.extend(sent(&outcomes).into_iter().map(|e| (1 - to, e)));
                    }
                }
            }
            for to in 0..2 {
                for (nonce, _) in &heard[to] {
                    let of = |all: &[(Nonce, u8)]| -> Vec<u8> {
                        all.iter().filter(|(n, _)| n == nonce).map(|(_, m)| *m).collect()
                    };
                    prop_assert!(of(&said[to]).starts_with(&of(&heard[to])));
                }
            }
            for _ in 0..200 {
                now += S / 4;
                settle(&mut ends, now);
            }
            prop_assert!(ends.iter().all(|end| end.pairing.is_up()));
        }
    }
}
