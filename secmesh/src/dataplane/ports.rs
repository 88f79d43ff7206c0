//! What is special about ports, as the kernel is told.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, MapData};
use secmesh_common::{
    limit::Limit,
    port::{
        LIMIT_TCP, LIMIT_UDP, MESH, PORT_LIMITS, PortPolicy, SharedLimit, TRIPWIRE_TCP,
        TRIPWIRE_UDP,
    },
};

use super::DataplaneError;

/// The flags that this table sets; others belong to others.
const OURS: u16 = TRIPWIRE_TCP | TRIPWIRE_UDP | MESH | LIMIT_TCP | LIMIT_UDP;

/// What is special about one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortRule {
    /// Bits of [`secmesh_common::port`].
    pub flags: u16,
    /// What everybody together may send there over TCP: new connections.
    pub tcp: Option<Limit>,
    /// What everybody together may send there over UDP: datagrams.
    pub udp: Option<Limit>,
}

/// Writes the map of ports.
pub struct PortTable {
    ports: Array<MapData, PortPolicy>,
    limits: Array<MapData, SharedLimit>,
    written: Option<BTreeSet<u16>>,
}

impl PortTable {
    pub(super) fn new(
        ports: Array<MapData, PortPolicy>,
        limits: Array<MapData, SharedLimit>,
    ) -> Self {
        Self {
            ports,
            limits,
            written: None,
        }
    }

    /// Puts `rules` in the place of all earlier ones, also those of an earlier agent. Flags that are not of
    /// this table stay.
    ///
    /// A port's limit is a pair of neighbouring entries: TCP at the even index, UDP behind it.
    ///
    /// # Errors
    ///
    /// The kernel's refusal, or more limited ports than [`PORT_LIMITS`] has pairs.
    pub fn replace(&mut self, rules: &BTreeMap<u16, PortRule>) -> Result<(), DataplaneError> {
        let before: Vec<u16> = match self.written.take() {
            Some(written) => written.into_iter().collect(),
            None => (0..=u16::MAX).collect(),
        };
        for port in before.into_iter().filter(|port| !rules.contains_key(port)) {
            self.write(port, 0, 0)?;
        }
        let mut next: u16 = 2;
        for (port, rule) in rules {
            let mut index = 0;
            if rule.flags & (LIMIT_TCP | LIMIT_UDP) != 0 {
                index = next;
                next = next.saturating_add(2);
                if usize::from(next) > PORT_LIMITS {
                    return Err(DataplaneError::TooManyPortLimits);
                }
                for (entry, limit) in [(index, rule.tcp), (index.saturating_add(1), rule.udp)] {
                    let limit = limit.unwrap_or(Limit::NONE);
                    let shared = SharedLimit {
                        limit,
                        arrival_ns: 0,
                    };
                    self.limits
                        .set(u32::from(entry), shared, 0)
                        .map_err(DataplaneError::Map)?;
                }
            }
            self.write(*port, rule.flags, index)?;
        }
        self.written = Some(rules.keys().copied().collect());
        Ok(())
    }

    fn write(&mut self, port: u16, flags: u16, limit: u16) -> Result<(), DataplaneError> {
        let index = u32::from(port);
        let now = self.ports.get(&index, 0).map_err(DataplaneError::Map)?;
        let wanted = PortPolicy {
            flags: (now.flags & !OURS) | (flags & OURS),
            limit,
        };
        if wanted == now {
            return Ok(());
        }
        self.ports
            .set(index, wanted, 0)
            .map_err(DataplaneError::Map)
    }
}
