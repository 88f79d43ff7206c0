//! Who is still there: failure detection by SWIM (the `foca` crate) inside the connections that stand.
//!
//! It is a core without input or output, as the engine is: the time (monotonic, microseconds), the seed of
//! its random choices and the messages go in; messages, and changes of [`Liveness`], come out, and
//! [`Swim::next_us`] says when it wants to be woken.
//!
//! What is foca's: whom to ask when, to ask through others when an answer stays out, to suspect before
//! giving up, and to spread the news. What is decided here is whose word counts:
//!
//! - Only members of the roster are named, in the incarnation that the roster has. Others are refused.
//! - A node's own connection comes first: whatever it sends over it proves that it is there, and ends every
//!   suspicion at once. What others say of a node that is connected and was heard of lately is ignored.
//! - Nobody's word makes a node `Down`: a peer's "down" counts as suspicion. `Down` follows from an own
//!   question that stayed unanswered, directly and through others, or from the own connection's end, and
//!   then only when the node has not refuted it within [`SUSPECT_US`].
//! - A node that is not connected is `Alive` only by the refutation of a suspicion or by answers through
//!   others. A liar among those can keep a dead one alive for so long as it lies; SWIM does not prevent that,
//!   and nothing is decided by it: votes are counted by signature.

mod chance;
mod codec;
mod detector;
mod hearsay;
pub mod message;
#[cfg(test)]
mod tests;
mod through;

use serde::{Deserialize, Serialize};

use crate::mesh::ids::NodeId;
pub use detector::Swim;
pub use message::{Life, SwimMessage};

/// How often a node asks another one, microseconds.
pub const PROBE_US: u64 = 1_000_000;
/// How long an answer may take before others are asked to ask, microseconds.
pub const ANSWER_US: u64 = 400_000;
/// How long a suspected node has to refute it, microseconds.
pub const SUSPECT_US: u64 = 3_000_000;
/// A connected node that was heard of within this time is not suspected on others' word, microseconds.
pub const HEARD_US: u64 = 2_000_000;
/// How often the suspicion of a peer is answered, and a node that is down looked for on a peer's word,
/// microseconds.
pub const REFUTE_US: u64 = 1_000_000;
/// By how much a peer's number of refutations may be ahead of what is known here.
pub const MAX_AHEAD: u16 = 4;
/// Numbers of refutations that a node gives away at once, and then one each [`NUMBER_US`]. They are 65,534 in all until
/// its restart, and a liar can have it use one with each suspicion: so they last for more than a year of that. What is
/// not refuted is answered through others all the same.
pub const NUMBERS_AT_ONCE: u16 = 64;
/// See [`NUMBERS_AT_ONCE`], microseconds.
pub const NUMBER_US: u64 = 600 * 1_000_000;
/// Messages of one peer that are looked at in a second; an honest one sends some ten.
pub const MESSAGES_PER_S: u32 = 32;

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It is connected, or answers through others.
    Alive,
    /// It did not answer, or its connection broke, just now.
    Suspect,
    /// It has not answered for long enough.
    Down,
}

impl Liveness {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Alive, Self::Suspect, Self::Down];

    /// Stable name, as in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send to a peer that is connected.
    Send {
        /// To whom.
        to: NodeId,
        /// A whole message of the mesh.
        bytes: Vec<u8>,
    },
    /// A node is in another state than before. For the engine, and for people.
    Liveness {
        /// The node.
        node: NodeId,
        /// Its state now.
        now: Liveness,
    },
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What is counted since the start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct SwimCounters { $($(#[$doc])* pub $name: u64,)+ }

        impl SwimCounters {
            /// All counters with their names.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

counters! {
    /// Messages sent.
    sent,
    /// Messages for a node that is not connected: it is asked through others.
    unsent,
    /// Messages taken.
    received,
    /// Refused: from a node that is not a member, or in, or for, another incarnation.
    refused_unknown,
    /// Suspicions of this node that it did not refute: it has used up what it has for ten minutes.
    unrefuted,
    /// Refused: more than [`MESSAGES_PER_S`] of one peer in a second.
    refused_rate,
    /// Refused: names a node that is not a member, or the sender itself where that makes no sense.
    refused_named,
    /// News left out: of nodes that are not members in that incarnation.
    news_unknown,
    /// News left out: this node knows better by its own connection, or it is too far ahead.
    news_ignored,
    /// Messages that make no sense where they came; also answers that were too late to matter.
    errors,
    /// Nodes that were suspected.
    suspected,
    /// Nodes that went down.
    went_down,
    /// Nodes that came back.
    came_back,
}
