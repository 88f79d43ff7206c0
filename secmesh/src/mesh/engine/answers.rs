//! How much one peer may have of this node in one second: an answer is often larger than what asks for it,
//! and one message can ask thousands of times.

use std::collections::BTreeMap;

use super::io::RefusalReason;
use super::{Call, Engine};
use crate::mesh::ids::NodeId;
use crate::mesh::inventory::BUCKETS;
use crate::mesh::roster::MAX_NODES;

/// Kinds of [`Answer`].
const KINDS: usize = 7;

/// What a peer can make this node send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Epochs, with the admissions and removals that they need: megabytes.
    Epochs,
    /// The request for them, which other messages lead to as well.
    AskEpochs,
    /// What is here where the sums differ.
    Names,
    /// The first part of what the peer lacks at once; the rest waits for the ticks.
    Parts,
    /// Sizes of all authors' logs, because the peer's hash of them differs.
    Digest,
    /// The same, because the peer has shown its own.
    DigestBack,
    /// The sums of all that is here.
    Sums,
}

impl Answer {
    const fn index(self) -> usize {
        match self {
            Self::Epochs => 0,
            Self::AskEpochs => 1,
            Self::Names => 2,
            Self::Parts => 3,
            Self::Digest => 4,
            Self::DigestBack => 5,
            Self::Sums => 6,
        }
    }

    /// Most of them for one peer in one second. Requests are small, and a run of epochs that do not follow
    /// leads to several; one set of names can take several messages.
    const fn most(self) -> u8 {
        match self {
            Self::AskEpochs | Self::Parts => 4,
            Self::Epochs | Self::Names | Self::Digest | Self::DigestBack | Self::Sums => 1,
        }
    }
}

/// What one peer has had in one second.
#[derive(Debug, Clone)]
struct Given {
    second: u64,
    times: [u8; KINDS],
    buckets: [bool; BUCKETS],
    /// It has begun anew in it already.
    again: bool,
}

/// What all peers have had lately.
#[derive(Debug, Default, Clone)]
pub(super) struct Answers {
    given: BTreeMap<NodeId, Given>,
}

impl Answers {
    /// A peer came up. What was sent before may not have arrived, so it may have the same again, once in a second:
    /// who connects again and again is given little more than who stays.
    pub(super) fn begin_anew(&mut self, peer: NodeId, now_us: u64) -> bool {
        let Some(given) = self.given(peer, now_us) else {
            return false;
        };
        if given.times == [0; KINDS] && !given.buckets.contains(&true) {
            return true;
        }
        if std::mem::replace(&mut given.again, true) {
            return false;
        }
        given.times = [0; KINDS];
        given.buckets = [false; BUCKETS];
        true
    }

    /// Forgets what was given before this second.
    pub(super) fn forget_before(&mut self, now_us: u64) {
        let second = now_us / 1_000_000;
        self.given.retain(|_, given| given.second == second);
    }

    fn given(&mut self, peer: NodeId, now_us: u64) -> Option<&mut Given> {
        if self.given.len() >= MAX_NODES && !self.given.contains_key(&peer) {
            return None;
        }
        let second = now_us / 1_000_000;
        let fresh = || Given {
            second,
            times: [0; KINDS],
            buckets: [false; BUCKETS],
            again: false,
        };
        let given = self.given.entry(peer).or_insert_with(fresh);
        if given.second != second {
            *given = fresh();
        }
        Some(given)
    }

    pub(super) fn may(&mut self, peer: NodeId, now_us: u64, answer: Answer) -> bool {
        let given = self.given(peer, now_us);
        let Some(times) = given.and_then(|given| given.times.get_mut(answer.index())) else {
            return false;
        };
        let may = *times < answer.most();
        *times += u8::from(may);
        may
    }

    /// Those of the buckets that the peer was told nothing of in this second; it is told of them now.
    fn first_of(&mut self, peer: NodeId, now_us: u64, mut buckets: Vec<u8>) -> Vec<u8> {
        let Some(given) = self.given(peer, now_us) else {
            return Vec::new();
        };
        buckets.retain(|bucket| {
            let told = given.buckets.get_mut(usize::from(*bucket));
            told.is_some_and(|told| !std::mem::replace(told, true))
        });
        buckets
    }
}

impl Engine {
    /// Whether a peer may have this now; if not, that is counted. It asks again by itself.
    pub(super) fn may_answer(&mut self, call: &mut Call<'_>, peer: NodeId, answer: Answer) -> bool {
        let may = self.answers.may(peer, call.now, answer);
        if !may {
            self.refuse(call, peer, RefusalReason::TooOften);
        }
        may
    }

    /// Whether the peer may have another part of its backlog before the next tick.
    pub(super) fn may_hurry(&mut self, now: u64, peer: NodeId) -> bool {
        self.answers.may(peer, now, Answer::Parts)
    }

    /// The buckets that a peer may be told of now; none, counted, if it has been told of all of them.
    pub(super) fn may_tell(
        &mut self,
        call: &mut Call<'_>,
        peer: NodeId,
        buckets: Vec<u8>,
    ) -> Vec<u8> {
        let first = self.answers.first_of(peer, call.now, buckets);
        if first.is_empty() {
            self.refuse(call, peer, RefusalReason::TooOften);
        }
        first
    }
}
