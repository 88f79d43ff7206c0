//! `[cookies]`: connection attempts that are answered with SYN cookies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{check::Checker, values::CookieMode};

/// Most ports in each list.
pub const MAX_COOKIE_PORTS: usize = 1024;

/// `[cookies]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CookiesConfig {
    /// For all TCP ports that something of this host listens on. Default: auto.
    pub mode: CookieMode,
    /// Ports whose attempts are answered while their listener overflows, whatever `mode` says; at most
    /// [`MAX_COOKIE_PORTS`].
    pub auto: Vec<u32>,
    /// Ports whose attempts are always answered; at most [`MAX_COOKIE_PORTS`].
    pub always: Vec<u32>,
    /// Ports whose attempts are never answered; at most [`MAX_COOKIE_PORTS`].
    pub off: Vec<u32>,
    /// Whether the other ends of veth interfaces run an XDP program. Default: no.
    pub veth: bool,
}

impl CookiesConfig {
    /// No cookies at all.
    pub fn off() -> Self {
        Self {
            mode: CookieMode::Off,
            ..Self::default()
        }
    }

    /// The mode of each port, given the ports that this host listens on. Ports that are named here need no
    /// listener; ports without cookies are left out.
    pub fn ports(&self, listening: impl IntoIterator<Item = u16>) -> BTreeMap<u16, CookieMode> {
        let mut ports: BTreeMap<u16, CookieMode> = listening
            .into_iter()
            .map(|port| (port, self.mode))
            .collect();
        for (list, mode) in [
            (&self.auto, CookieMode::Auto),
            (&self.always, CookieMode::Always),
            (&self.off, CookieMode::Off),
        ] {
            ports.extend(
                list.iter()
                    .filter_map(|port| Some((u16::try_from(*port).ok()?, mode))),
            );
        }
        ports.retain(|_, mode| *mode != CookieMode::Off);
        ports
    }

    pub(super) fn check(&self, check: &mut Checker) {
        check.choice("mode", CookieMode::NAMES);
        check.ports("auto", &self.auto, &[], MAX_COOKIE_PORTS);
        check.ports("always", &self.always, &self.auto, MAX_COOKIE_PORTS);
        let named = [self.auto.as_slice(), &self.always].concat();
        check.ports("off", &self.off, &named, MAX_COOKIE_PORTS);
        check.flag("veth");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_port_of_its_own_wins_over_the_mode_and_needs_no_listener() {
        let text = "[cookies]\nalways = [443]\noff = [22, 25]\n";
        let config = Config::parse(text, "x").unwrap().cookies;
        let ports = config.ports([22, 80, 443]);
        let expected = [(80, CookieMode::Auto), (443, CookieMode::Always)];
        assert_eq!(ports, BTreeMap::from(expected));
        assert_eq!(config.ports([]).len(), 1);
        let off = Config::parse("[cookies]\nmode = \"off\"\nauto = [80]\n", "x").unwrap();
        assert_eq!(
            off.cookies.ports([80, 443]),
            BTreeMap::from([(80, CookieMode::Auto)])
        );
    }

    #[test]
    fn what_is_no_port_or_named_twice_is_refused_with_its_place() {
        for (text, what) in [
            ("auto = [0]", "cookies.auto[0]"),
            ("always = [443, 65536]", "cookies.always[1]"),
            ("always = [443]\noff = [443]", "cookies.off[0]"),
            ("auto = [1, 1]", "cookies.auto[1]"),
            ("mode = \"on\"", "cookies.mode"),
        ] {
            let error = Config::parse(&format!("[cookies]\n{text}\n"), "x").unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
