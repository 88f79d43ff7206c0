//! Which ports have SYN cookies, and which listeners are flooded.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData},
};
use secmesh_common::{
    block::Addr6,
    config::features,
    cookie::{LISTENERS, Listener, MAX_ADDRESSES, OWN, OWN_OF_VLAN},
    port::{COOKIE_ALWAYS, COOKIE_AUTO, PortPolicy},
};

use super::{Dataplane, DataplaneError, Differences, array, cell::ConfigCell, take};
use crate::config::CookieMode;

/// Flags that are ours; those of others in the same entry stay as they are.
const FLAGS: u16 = COOKIE_AUTO | COOKIE_ALWAYS;

/// The maps of the cookie stage that the controller reads or writes.
pub(super) struct CookieMaps {
    ports: Array<MapData, PortPolicy>,
    listeners: Array<MapData, Listener>,
    flood: Array<MapData, Listener>,
    addresses: HashMap<MapData, Addr6, u32>,
    /// What is in the port map; unknown if an earlier agent wrote it.
    known: Option<BTreeMap<u16, CookieMode>>,
    /// The addresses that were written last.
    written: Option<BTreeMap<[u8; 16], u32>>,
    /// Addresses that somebody else took out or put in, since they were last asked for.
    differed: Differences,
}

impl CookieMaps {
    pub(super) fn open(ebpf: &mut Ebpf, resumed: bool) -> Result<Self, DataplaneError> {
        Ok(Self {
            ports: shared(ebpf, "PORT")?,
            listeners: array(ebpf, "COOKIE_LISTENER")?,
            flood: array(ebpf, "COOKIE_FLOOD")?,
            addresses: take(ebpf, "COOKIE_ADDRESS")?
                .try_into()
                .map_err(DataplaneError::Map)?,
            known: (!resumed).then(BTreeMap::new),
            written: None,
            differed: Differences::default(),
        })
    }

    /// What the port map says.
    fn learn(&self) -> Result<BTreeMap<u16, CookieMode>, DataplaneError> {
        let mut found = BTreeMap::new();
        for port in 0..=u16::MAX {
            let policy = self
                .ports
                .get(&u32::from(port), 0)
                .map_err(DataplaneError::Map)?;
            match mode_of(policy.flags) {
                CookieMode::Off => {}
                mode => {
                    found.insert(port, mode);
                }
            }
        }
        Ok(found)
    }

    fn write(&mut self, port: u16, mode: CookieMode) -> Result<(), DataplaneError> {
        let at = u32::from(port);
        let mut policy = self.ports.get(&at, 0).map_err(DataplaneError::Map)?;
        policy.flags = policy.flags & !FLAGS | flags_of(mode);
        self.ports.set(at, policy, 0).map_err(DataplaneError::Map)
    }

    /// Makes the port map say `wanted`, and the program look at it if there is anything.
    fn apply(
        &mut self,
        config: &ConfigCell,
        wanted: &BTreeMap<u16, CookieMode>,
    ) -> Result<(), DataplaneError> {
        let before = match self.known.take() {
            Some(known) => known,
            None => self.learn()?,
        };
        let ports: BTreeSet<u16> = before.keys().chain(wanted.keys()).copied().collect();
        for port in ports {
            let mode = wanted.get(&port).copied().unwrap_or(CookieMode::Off);
            if before.get(&port).copied().unwrap_or(CookieMode::Off) != mode {
                self.write(port, mode)?;
            }
        }
        config.update(|c| {
            if wanted.is_empty() {
                c.features &= !features::COOKIES;
            } else {
                c.features |= features::COOKIES;
            }
        })?;
        self.known = Some(wanted.clone());
        Ok(())
    }
}

pub(super) fn flags_of(mode: CookieMode) -> u16 {
    match mode {
        CookieMode::Off => 0,
        CookieMode::Auto => COOKIE_AUTO,
        CookieMode::Always => COOKIE_ALWAYS,
    }
}

fn mode_of(flags: u16) -> CookieMode {
    if flags & COOKIE_ALWAYS != 0 {
        CookieMode::Always
    } else if flags & COOKIE_AUTO != 0 {
        CookieMode::Auto
    } else {
        CookieMode::Off
    }
}

/// An address as the map has it: IPv4 mapped.
fn key_of(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A handle of our own to a map that other parts of the controller use too.
fn shared<V: aya::Pod>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<Array<MapData, V>, DataplaneError> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(DataplaneError::Missing(name));
    };
    let id = map.info().map_err(DataplaneError::Map)?.id();
    let map = MapData::from_id(id).map_err(DataplaneError::Map)?;
    Array::try_from(Map::Array(map)).map_err(DataplaneError::Map)
}

impl Dataplane {
    /// Sets which ports have SYN cookies; all others have none from then on. Ports may be named whether or
    /// not something listens there.
    ///
    /// Nothing is answered before [`Dataplane::set_cookie_addresses`] has said which addresses are ours.
    /// [`CookieMode::Always`] needs `net.ipv4.tcp_syncookies` at 2 in this network namespace,
    /// [`CookieMode::Auto`] at 1: at 2 a listener gives cookies whether it overflows or not. At other values
    /// nothing is answered, or answered too often; nothing breaks.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of a map call.
    pub fn set_cookie_ports(&mut self, ports: &[(u16, CookieMode)]) -> Result<(), DataplaneError> {
        let wanted = ports
            .iter()
            .filter(|(_, mode)| *mode != CookieMode::Off)
            .copied()
            .collect();
        self.cookies.apply(&self.config, &wanted)
    }

    /// Sets which addresses are this host's; attempts to others are not answered. Attempts to an address that is among
    /// `of_vlans` and not among `addresses` are answered only in frames with a tag. Those beyond [`MAX_ADDRESSES`] are
    /// left out, and their number is given.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of a map call.
    pub fn set_cookie_addresses(
        &mut self,
        addresses: &[IpAddr],
        of_vlans: &[IpAddr],
    ) -> Result<usize, DataplaneError> {
        let mut wanted: BTreeMap<[u8; 16], u32> = of_vlans
            .iter()
            .map(|address| (key_of(address), OWN_OF_VLAN))
            .collect();
        wanted.extend(addresses.iter().map(|address| (key_of(address), OWN)));
        let left_out = wanted.len().saturating_sub(MAX_ADDRESSES);
        let wanted: BTreeMap<_, _> = wanted.into_iter().take(MAX_ADDRESSES).collect();
        let map = &mut self.cookies.addresses;
        let known: BTreeMap<[u8; 16], u32> = map
            .iter()
            .map(|entry| entry.map(|(key, own)| (key.addr, own)))
            .collect::<Result<_, _>>()
            .map_err(DataplaneError::Map)?;
        if let Some(written) = self.cookies.written.take() {
            let (missing, foreign) = (
                written
                    .iter()
                    .filter(|(addr, own)| known.get(*addr) != Some(*own)),
                known.keys().filter(|addr| !written.contains_key(*addr)),
            );
            self.cookies.differed.added += missing.count();
            self.cookies.differed.removed += foreign.count();
        }
        for addr in known.keys().filter(|addr| !wanted.contains_key(*addr)) {
            map.remove(&Addr6 { addr: *addr })
                .map_err(DataplaneError::Map)?;
        }
        for (addr, own) in &wanted {
            if known.get(addr) != Some(own) {
                map.insert(Addr6 { addr: *addr }, own, 0)
                    .map_err(DataplaneError::Map)?;
            }
        }
        self.cookies.written = Some(wanted);
        Ok(left_out)
    }

    /// Ports that have cookies, as far as this agent set them.
    pub fn cookie_ports(&self) -> BTreeMap<u16, CookieMode> {
        self.cookies.known.clone().unwrap_or_default()
    }

    /// The same; none while what an earlier agent set was not looked at.
    pub fn known_cookie_ports(&self) -> Option<&BTreeMap<u16, CookieMode>> {
        self.cookies.known.as_ref()
    }

    /// What [`Dataplane::set_cookie_addresses`] found that somebody else had changed since it was last called; each
    /// difference once.
    pub fn take_cookie_differences(&mut self) -> Differences {
        std::mem::take(&mut self.cookies.differed)
    }

    /// Ports with a listener that is flooded at `now_ns`, `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// The kernel's refusal of a map call.
    pub fn flooded_ports(&self, now_ns: u64) -> Result<BTreeSet<u16>, DataplaneError> {
        let maps = &self.cookies;
        let last = maps.flood.get(&0, 0).map_err(DataplaneError::Map)?;
        let mut ports = BTreeSet::new();
        if !last.flooded(now_ns) {
            return Ok(ports);
        }
        for at in 0..u32::try_from(LISTENERS).unwrap_or(u32::MAX) {
            let entry = maps.listeners.get(&at, 0).map_err(DataplaneError::Map)?;
            if entry.flooded(now_ns) {
                ports.insert(entry.port);
            }
        }
        Ok(ports)
    }
}
