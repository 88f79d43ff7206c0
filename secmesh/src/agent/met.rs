//! Where peers were met: the addresses that sessions with them, made with their keys, came from or went to.
//!
//! An address is a peer's while it is connected, and for a while after that. Later it may be anybody's: addresses
//! of rented machines go to the next tenant within minutes or days.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::mesh::ids::NodeId;

/// How long an address counts as a peer's after the session with it ended, nanoseconds: longer than a restart or
/// a lost connection takes.
const KEPT_NS: u64 = 10 * 60 * 1_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Place {
    ip: IpAddr,
    /// When the session ended, by the monotonic clock; none while there is one.
    left_ns: Option<u64>,
}

/// The places, by node. As many as there were nodes in the mesh.
#[derive(Debug, Default)]
pub(super) struct Met(BTreeMap<NodeId, Place>);

impl Met {
    /// A session with a node is there. Says whether its address was not known as its own.
    pub fn up(&mut self, node: NodeId, ip: IpAddr, now_ns: u64) -> bool {
        let known = self.at(&node, now_ns) == Some(ip);
        self.0.insert(node, Place { ip, left_ns: None });
        !known
    }

    /// The session with a node is over.
    pub fn down(&mut self, node: NodeId, now_ns: u64) {
        if let Some(place) = self.0.get_mut(&node) {
            place.left_ns.get_or_insert(now_ns);
        }
    }

    /// Where a node is, or was until minutes ago.
    pub fn at(&self, node: &NodeId, now_ns: u64) -> Option<IpAddr> {
        self.0.get(node).filter(|p| p.counts(now_ns)).map(|p| p.ip)
    }

    /// All of that.
    pub fn iter(&self, now_ns: u64) -> impl Iterator<Item = (&NodeId, IpAddr)> {
        let counts = self.0.iter().filter(move |(_, p)| p.counts(now_ns));
        counts.map(|(node, place)| (node, place.ip))
    }

    /// Where each node was met last, however long ago: for what an operator says of nodes, not of addresses.
    pub fn last(&self) -> impl Iterator<Item = (&NodeId, IpAddr)> {
        self.0.iter().map(|(node, place)| (node, place.ip))
    }
}

impl Place {
    const fn counts(&self, now_ns: u64) -> bool {
        match self.left_ns {
            None => true,
            Some(left) => now_ns.saturating_sub(left) < KEPT_NS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_peers_while_it_is_there_and_minutes_longer() {
        let (node, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let mut met = Met::default();
        assert!(met.up(node, ip, 5));
        assert!(!met.up(node, ip, 6), "known");
        assert_eq!(met.at(&node, u64::MAX), Some(ip), "as long as it is there");
        met.down(other, 7);
        met.down(node, 10);
        // Said twice, the first counts.
        met.down(node, 10 + KEPT_NS);
        assert_eq!(met.at(&node, 9 + KEPT_NS), Some(ip));
        assert_eq!(met.iter(9 + KEPT_NS).count(), 1);
        assert_eq!(met.at(&node, 10 + KEPT_NS), None, "it may be anybody's");
        assert_eq!(met.iter(10 + KEPT_NS).count(), 0);
        assert_eq!(met.last().collect::<Vec<_>>(), [(&node, ip)]);
        assert!(met.up(node, ip, 11 + KEPT_NS), "to be protected anew");
        assert_eq!(met.at(&node, u64::MAX), Some(ip));
    }
}
