//! SYN cookies follow what listens on this host, which addresses it has, and the system's own switch.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::core::Agent;
use crate::{
    api::types::{CookieView, CookiesView},
    config::{CookieMode, CookiesConfig, Mode},
    dataplane::{
        AttachMode, driver_of,
        syncookies::{self, Restored},
        takes_tags_out,
    },
    sense::{listeners, vlans},
    state::StateDir,
};

/// How often listeners, addresses and the switch are looked at, µs.
const REFRESH_US: u64 = 5_000_000;
/// Ports named in `status`.
const MAX_NAMED: usize = 1024;

/// What the agent knows of cookies.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    refreshed_unix_us: u64,
    /// `net.ipv4.tcp_syncookies` when it was last looked at.
    switch: Option<u8>,
    /// What keeps cookies from being as configured.
    trouble: Option<String>,
}

/// The modes that the switch lets be: at 2 a listener gives cookies whether it overflows or not, so `auto`
/// could not tell, and the kernel answers every attempt with a cookie by itself; at 0 it takes none back.
fn possible(
    wanted: BTreeMap<u16, CookieMode>,
    switch: Option<u8>,
    enforce: bool,
) -> (Vec<(u16, CookieMode)>, Option<String>) {
    let any = |mode| wanted.values().any(|m| *m == mode);
    let trouble = match switch {
        Some(0) if enforce && !wanted.is_empty() => Some(
            "somebody set net.ipv4.tcp_syncookies to 0, so no connection attempt is answered with a cookie; set it to 1"
                .to_owned(),
        ),
        Some(1) if enforce && any(CookieMode::Always) => Some(
            "somebody set net.ipv4.tcp_syncookies to 1, so cookies of mode \"always\" are sent only while a listener overflows; set it to 2"
                .to_owned(),
        ),
        Some(2) if any(CookieMode::Auto) => Some(
            "net.ipv4.tcp_syncookies is 2, so ports of mode \"auto\" are left to the kernel, which answers every attempt with a cookie itself"
                .to_owned(),
        ),
        _ => None,
    };
    let ports = wanted
        .into_iter()
        .filter(|(_, mode)| match switch {
            Some(0) => !enforce,
            Some(2) => *mode == CookieMode::Always,
            _ => true,
        })
        .collect();
    (ports, trouble)
}

/// Puts the system's switch back, if we changed it.
pub(super) fn restore_syncookies(state: &StateDir) {
    match syncookies::restore(state) {
        Ok(Restored::Untouched) => {}
        Ok(Restored::Back(value)) => info!(value, "net.ipv4.tcp_syncookies is as it was"),
        Ok(Restored::Foreign(value)) => warn!(
            value,
            "somebody else changed net.ipv4.tcp_syncookies; it stays so"
        ),
        Ok(Restored::Elsewhere) => warn!(
            "an earlier agent changed net.ipv4.tcp_syncookies in another network namespace; `secmesh detach` there puts it back"
        ),
        Err(error) => warn!(%error, "net.ipv4.tcp_syncookies is not put back"),
    }
}

impl Agent {
    /// Looks at listeners, addresses and the switch again if it is time, or `now`.
    pub(super) fn refresh_cookies(&mut self, now: bool) {
        let at = self.clock.unix_us();
        if !now && at.abs_diff(self.cookies.refreshed_unix_us) < REFRESH_US {
            return;
        }
        self.cookies.refreshed_unix_us = at;
        let trouble = match self.apply_cookies() {
            Ok(trouble) => trouble,
            Err(error) => Some(error),
        };
        if trouble != self.cookies.trouble {
            if let Some(trouble) = &trouble {
                warn!(%trouble, "SYN cookies");
            } else {
                info!("SYN cookies are as configured again");
            }
            self.cookies.trouble = trouble;
        }
    }

    fn apply_cookies(&mut self) -> Result<Option<String>, String> {
        if let Some(interface) = self.cannot_send_back() {
            restore_syncookies(&self.state);
            self.dataplane
                .set_cookie_ports(&[])
                .map_err(|e| e.to_string())?;
            return Ok(Some(format!(
                "no connection attempt is answered with a cookie: {interface} is a veth in driver mode, and what is sent back there arrives only if its other end runs an XDP program; set attach = \"generic\" in [dataplane] (after `secmesh detach`), or veth = true in [cookies]"
            )));
        }
        let config = &self.options.config.cookies;
        let listening = listeners::tcp_ports()
            .map_err(|e| format!("the ports that are listened on are not known: {e}"))?;
        let wanted = config.ports(listening);
        let enforce = self.dataplane.mode() == Mode::Enforce;
        let mut trouble = None;
        let switch = if enforce && !wanted.is_empty() {
            let always = wanted.values().any(|mode| *mode == CookieMode::Always);
            match syncookies::hold(&self.state, always) {
                Ok(value) => Ok(value),
                Err(error) => {
                    trouble = Some(error.to_string());
                    syncookies::current()
                }
            }
        } else {
            restore_syncookies(&self.state);
            syncookies::current()
        };
        let switch = switch.ok();
        self.cookies.switch = switch;
        let (ports, why) = possible(wanted, switch, enforce);
        let addresses = vlans::own_addresses()
            .map_err(|e| format!("this host's addresses are not known: {e}"))?;
        let left_out = self
            .dataplane
            .set_cookie_addresses(&addresses.plain, &addresses.of_vlans)
            .map_err(|e| e.to_string())?;
        self.dataplane
            .set_cookie_ports(&ports)
            .map_err(|e| e.to_string())?;
        let without_tags = || {
            let (address, others) = addresses
                .of_vlans
                .split_first()
                .filter(|_| !ports.is_empty())?;
            let interface = self.takes_tags_out()?;
            let others = match others.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            Some(format!(
                "{interface} takes VLAN tags out before anybody sees them, so attempts to addresses of VLANs ({address}{others}) are left to the kernel's own cookies; `ethtool -K {interface} rxvlan off` keeps the tags"
            ))
        };
        Ok(trouble.or(why).or_else(without_tags).or_else(|| {
            (left_out > 0).then(|| {
                format!("{left_out} addresses of this host do not fit; attempts to them are not answered with cookies")
            })
        }))
    }

    /// An interface whose frames come without the VLAN tags that they had on the wire.
    fn takes_tags_out(&self) -> Option<String> {
        self.dataplane
            .attached()
            .iter()
            .find(|interface| takes_tags_out(&interface.name).unwrap_or(false))
            .map(|interface| interface.name.clone())
    }

    /// An interface whose answers might never leave (`veth_xdp_flush` in drivers/net/veth.c).
    fn cannot_send_back(&self) -> Option<String> {
        let config = &self.options.config.cookies;
        if config.veth || *config == CookiesConfig::off() {
            return None;
        }
        self.dataplane
            .attached()
            .iter()
            .filter(|interface| interface.attach_mode == AttachMode::Driver)
            .find(|interface| driver_of(&interface.name).is_ok_and(|driver| driver == "veth"))
            .map(|interface| interface.name.clone())
    }

    pub(super) fn cookies_view(&self) -> CookiesView {
        let ports = self.dataplane.cookie_ports();
        let (flooded, trouble) = match self.dataplane.flooded_ports(self.clock.mono_ns()) {
            Ok(flooded) => (flooded, self.cookies.trouble.clone()),
            Err(error) => (BTreeSet::new(), Some(error.to_string())),
        };
        CookiesView {
            ports: ports
                .iter()
                .take(MAX_NAMED)
                .map(|(port, mode)| CookieView {
                    port: *port,
                    mode: *mode,
                    flooded: flooded.contains(port),
                })
                .collect(),
            total: ports.len(),
            syncookies: self.cookies.switch,
            trouble,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> BTreeMap<u16, CookieMode> {
        BTreeMap::from([(80, CookieMode::Auto), (443, CookieMode::Always)])
    }

    #[test]
    fn the_switch_decides_which_modes_are_possible_and_status_says_why() {
        let ports = |switch, enforce| {
            let (ports, trouble) = possible(both(), switch, enforce);
            let ports: Vec<u16> = ports.into_iter().map(|(port, _)| port).collect();
            (ports, trouble.is_some())
        };
        assert_eq!(ports(Some(2), true), (vec![443], true));
        assert_eq!(ports(Some(1), true), (vec![80, 443], true));
        assert_eq!(ports(Some(0), true), (vec![], true));
        assert_eq!(ports(Some(1), false), (vec![80, 443], false));
        assert_eq!(ports(Some(0), false), (vec![80, 443], false));
        let auto = BTreeMap::from([(80, CookieMode::Auto)]);
        assert_eq!(possible(auto, Some(1), true).1, None);
        let always = BTreeMap::from([(443, CookieMode::Always)]);
        assert_eq!(possible(always, Some(2), true).1, None);
    }
}
