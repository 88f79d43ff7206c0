//! Whom to let in.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tokio::sync::watch;

use crate::mesh::ids::{NodeId, TicketId};

/// Who holds a TLS key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A member of the mesh.
    Member(NodeId),
    /// A member that is cut off: not let in, and told apart from strangers.
    Quarantined(NodeId),
    /// Somebody with a ticket, who may ask to join and nothing else.
    Ticket(TicketId),
}

/// The TLS keys that are let in, by the SHA-256 of their `SubjectPublicKeyInfo`. Changes take effect at
/// once, also on connections that are up: those of a key that was removed are closed.
#[derive(Debug)]
pub struct AllowedPeers {
    keys: RwLock<HashMap<[u8; 32], PeerIdentity>>,
    changed: watch::Sender<()>,
}

impl Default for AllowedPeers {
    fn default() -> Self {
        Self {
            keys: RwLock::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl AllowedPeers {
    /// Lets nobody in.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a key in, or changes who it stands for.
    pub fn insert(&self, spki_sha256: [u8; 32], who: PeerIdentity) {
        self.change(|keys| keys.insert(spki_sha256, who));
    }

    /// Lets a key in no more.
    pub fn remove(&self, spki_sha256: &[u8; 32]) {
        self.change(|keys| keys.remove(spki_sha256));
    }

    /// Replaces the whole set.
    pub fn replace(&self, all: impl IntoIterator<Item = ([u8; 32], PeerIdentity)>) {
        let all = all.into_iter().collect();
        self.change(|keys| *keys = all);
    }

    /// Whom a key stands for.
    pub fn get(&self, spki_sha256: &[u8; 32]) -> Option<PeerIdentity> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(spki_sha256)
            .copied()
    }

    /// Says whether a key of this member is let in.
    pub fn is_member(&self, node: NodeId) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.values().any(|who| *who == PeerIdentity::Member(node))
    }

    /// All members.
    pub fn members(&self) -> Vec<NodeId> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.values()
            .filter_map(|who| {
                if let PeerIdentity::Member(node) = who {
                    Some(*node)
                } else {
                    None
                }
            })
            .collect()
    }

    /// Notified on each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn change<T>(&self, f: impl FnOnce(&mut HashMap<[u8; 32], PeerIdentity>) -> T) {
        f(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}
