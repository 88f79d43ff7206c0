//! What is special about ports, as the kernel is told.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use secmesh_common::{
    limit::Limit,
    port::{
        COOKIE_ALWAYS, COOKIE_AUTO, LIMIT_TCP, LIMIT_UDP, MESH, PORT_LIMITS, PORTS, PortPolicy,
        SharedLimit, TRIPWIRE_TCP, TRIPWIRE_UDP,
    },
};

use super::{DataplaneError, Differences, batch, cookies::flags_of};
use crate::config::CookieMode;

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
    /// What [`PortTable::replace`] wrote; none before, and after it failed.
    written: Option<Written>,
}

/// What is in the maps because of the rules.
#[derive(Debug, Default)]
struct Written {
    ports: BTreeMap<u16, PortPolicy>,
    limits: BTreeMap<u32, Limit>,
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
            Some(written) => written.ports.into_keys().collect(),
            None => (0..=u16::MAX).collect(),
        };
        for port in before.into_iter().filter(|port| !rules.contains_key(port)) {
            self.write(port, 0, 0)?;
        }
        let mut written = Written::default();
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
                    written.limits.insert(u32::from(entry), limit);
                }
            }
            self.write(*port, rule.flags, index)?;
            let policy = PortPolicy {
                flags: rule.flags & OURS,
                limit: index,
            };
            written.ports.insert(*port, policy);
        }
        self.written = Some(written);
        Ok(())
    }

    /// Compares the next `count` ports from `first` on with what was written, and with the limits when these are the
    /// last ones; what differs is written again. `cookies` are the ports that have SYN cookies, none if that is not
    /// known now. Where a limit stands is the kernel's to say and stays.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn audit(
        &mut self,
        first: u32,
        count: u32,
        cookies: Option<&BTreeMap<u16, CookieMode>>,
    ) -> Result<Differences, DataplaneError> {
        let mut found = Differences::default();
        let Some(written) = &self.written else {
            return Ok(found);
        };
        let there = batch::get(&self.ports, first, count).map_err(DataplaneError::Map)?;
        for (at, there) in (first..).zip(there) {
            let Ok(port) = u16::try_from(at) else { break };
            let mut right = written.ports.get(&port).copied().unwrap_or_default();
            right.flags |= match cookies {
                Some(cookies) => cookies.get(&port).map_or(0, |mode| flags_of(*mode)),
                None => there.flags & (COOKIE_AUTO | COOKIE_ALWAYS),
            };
            if there != right {
                found.note(right != PortPolicy::default(), true);
                self.ports.set(at, right, 0).map_err(DataplaneError::Map)?;
            }
        }
        if first.saturating_add(count) < u32::try_from(PORTS).unwrap_or(u32::MAX) {
            return Ok(found);
        }
        for (at, limit) in &written.limits {
            let there = self.limits.get(at, 0).map_err(DataplaneError::Map)?;
            if there.limit != *limit {
                found.note(true, false);
                let right = SharedLimit {
                    limit: *limit,
                    ..there
                };
                self.limits
                    .set(*at, right, 0)
                    .map_err(DataplaneError::Map)?;
            }
        }
        Ok(found)
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
