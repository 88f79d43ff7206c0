//! The watch maps: whose packets are all reported, and until when.

use std::{collections::BTreeMap, net::IpAddr};

use aya::maps::{HashMap, MapData, MapError};
use secmesh_common::block::{Addr4, Addr6};

use super::{
    Differences, TableError,
    tables::{removed, written},
};

/// What the message says when a map is full, in the place of a setting.
const NO_SETTING: &str = "nothing: 1024 sources are watched at once";

/// The two watch maps.
pub struct WatchTable {
    v4: HashMap<MapData, Addr4, u64>,
    v6: HashMap<MapData, Addr6, u64>,
    /// What this table wrote, with its end, `CLOCK_MONOTONIC` ns.
    known: BTreeMap<IpAddr, u64>,
}

impl WatchTable {
    pub(super) fn new(v4: HashMap<MapData, Addr4, u64>, v6: HashMap<MapData, Addr6, u64>) -> Self {
        Self {
            v4,
            v6,
            known: BTreeMap::new(),
        }
    }

    /// Reports every packet of `addr` until `until_ns` (`CLOCK_MONOTONIC`).
    ///
    /// # Errors
    ///
    /// A full map (1,024 sources are watched at once), or the kernel's refusal.
    pub fn put(&mut self, addr: IpAddr, until_ns: u64) -> Result<(), TableError> {
        match addr {
            IpAddr::V4(a) => written(
                self.v4.insert(Addr4 { addr: a.octets() }, until_ns, 0),
                "WATCH4",
                NO_SETTING,
            ),
            IpAddr::V6(a) => written(
                self.v6.insert(Addr6 { addr: a.octets() }, until_ns, 0),
                "WATCH6",
                NO_SETTING,
            ),
        }?;
        self.known.insert(addr, until_ns);
        Ok(())
    }

    /// Stops reporting.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn remove(&mut self, addr: IpAddr) -> Result<(), TableError> {
        self.known.remove(&addr);
        self.take_out(addr)
    }

    fn take_out(&mut self, addr: IpAddr) -> Result<(), TableError> {
        match addr {
            IpAddr::V4(a) => removed(self.v4.remove(&Addr4 { addr: a.octets() }), "WATCH4"),
            IpAddr::V6(a) => removed(self.v6.remove(&Addr6 { addr: a.octets() }), "WATCH6"),
        }
        .map(drop)
    }

    /// What is in the maps: also what an earlier agent put there.
    ///
    /// # Errors
    ///
    /// The kernel's refusal to be read.
    pub fn entries(&self) -> Result<BTreeMap<IpAddr, u64>, TableError> {
        let refused = |map: &'static str| {
            move |e: MapError| TableError::Kernel {
                map,
                reason: e.to_string(),
            }
        };
        let mut all = BTreeMap::new();
        for entry in &self.v4 {
            let (key, until) = entry.map_err(refused("WATCH4"))?;
            all.insert(IpAddr::from(key.addr), until);
        }
        for entry in &self.v6 {
            let (key, until) = entry.map_err(refused("WATCH6"))?;
            all.insert(IpAddr::from(key.addr), until);
        }
        Ok(all)
    }

    /// Compares the maps with what was written, and puts differences right: what an earlier agent left and this one
    /// did not take over is one.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; calling again goes on.
    pub fn audit(&mut self) -> Result<Differences, TableError> {
        let mut found = Differences::default();
        let there = self.entries()?;
        // First those to go: they take the room of those to come.
        for addr in there.keys() {
            if self.known.contains_key(addr) {
                continue;
            }
            found.removed += 1;
            self.take_out(*addr)?;
        }
        for (addr, until_ns) in self.known.clone() {
            if there.get(&addr) != Some(&until_ns) {
                found.added += 1;
                self.put(addr, until_ns)?;
            }
        }
        Ok(found)
    }
}
