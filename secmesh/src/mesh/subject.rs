//! Whom an action concerns: an address or a network, or a node of the mesh itself.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::ids::NodeId;
use super::wire::{Decoder, Encoder, WireError};
use crate::addr::{PREFIX_BYTES, Prefix, PrefixError};

/// First byte of a node among subjects, where a prefix has its family.
const NODE: u8 = 0;
/// Second byte of a node: the length of its id, in bits.
const NODE_BITS: u8 = 128;

/// Whom an action concerns. 18 bytes on the wire either way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An address, or the network of one.
    Net(Prefix),
    /// A node.
    Node(NodeId),
}

impl Subject {
    /// The address or network; none for a node.
    pub const fn prefix(&self) -> Option<Prefix> {
        match self {
            Self::Net(prefix) => Some(*prefix),
            Self::Node(_) => None,
        }
    }

    /// The node; none for an address or network.
    pub const fn node(&self) -> Option<NodeId> {
        match self {
            Self::Net(_) => None,
            Self::Node(node) => Some(*node),
        }
    }

    /// Writes the canonical bytes.
    pub(super) fn write(&self, e: &mut Encoder) {
        match self {
            Self::Net(prefix) => e.prefix(prefix),
            Self::Node(node) => e.u8(NODE).u8(NODE_BITS).fixed(node.as_bytes()),
        };
    }

    /// Reads what [`Subject::write`] wrote.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        if d.rest().first() != Some(&NODE) {
            return d.prefix("subject").map(Self::Net);
        }
        let bytes = d.fixed::<PREFIX_BYTES>("subject")?;
        let [_, bits, id @ ..] = bytes;
        if bits == NODE_BITS {
            Ok(Self::Node(NodeId(id)))
        } else {
            Err(WireError::Invalid {
                field: "subject",
                why: "not a canonical node",
            })
        }
    }
}

impl From<Prefix> for Subject {
    fn from(prefix: Prefix) -> Self {
        Self::Net(prefix)
    }
}

impl From<&Prefix> for Subject {
    fn from(prefix: &Prefix) -> Self {
        Self::Net(*prefix)
    }
}

impl From<NodeId> for Subject {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

impl From<&NodeId> for Subject {
    fn from(node: &NodeId) -> Self {
        Self::Node(*node)
    }
}

impl From<&Self> for Subject {
    fn from(subject: &Self) -> Self {
        *subject
    }
}

impl PartialEq<Prefix> for Subject {
    fn eq(&self, other: &Prefix) -> bool {
        self.prefix() == Some(*other)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(prefix) => fmt::Display::fmt(prefix, f),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subject {
    type Err = PrefixError;

    /// Reads an address or network; nodes are named otherwise.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Net)
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
