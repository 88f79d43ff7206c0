//! Which of this host's addresses only VLANs have.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::Path};

use super::netinfo::interface_addresses;
use crate::state::read_capped_text;

/// Most bytes of an interface's `uevent`, which has three short lines.
const MAX_FILE: u64 = 4096;
/// Interfaces on top of each other that are followed (`MAX_NEST_DEV`, include/linux/netdevice.h).
const MAX_NEST: u32 = 8;

/// This host's addresses, without those of the loopback network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnAddresses {
    /// Those that frames without a VLAN tag may be for.
    pub plain: Vec<IpAddr>,
    /// Those of VLAN interfaces, and of what is on top of nothing but such.
    pub of_vlans: Vec<IpAddr>,
}

/// Reads the addresses of this network namespace. Interfaces of which `/sys` does not tell are taken for plain ones.
///
/// # Errors
/// What the system says of its addresses.
pub fn own_addresses() -> io::Result<OwnAddresses> {
    Ok(told_apart(
        Path::new("/sys/class/net"),
        interface_addresses()?,
    ))
}

fn told_apart(root: &Path, addresses: impl Iterator<Item = (String, IpAddr)>) -> OwnAddresses {
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    let mut own = OwnAddresses::default();
    for (label, address) in addresses.filter(|(_, address)| !address.is_loopback()) {
        let name = label.split(':').next().unwrap_or_default();
        let is_of_vlan = known
            .get(name)
            .copied()
            .unwrap_or_else(|| is_of_vlan(root, name, MAX_NEST));
        known.insert(name.to_owned(), is_of_vlan);
        if is_of_vlan {
            own.of_vlans.push(address);
        } else {
            own.plain.push(address);
        }
    }
    own
}

/// Whether all that comes to an interface has lost a tag on its way: it is a VLAN's, or all below it are.
fn is_of_vlan(root: &Path, name: &str, nest: u32) -> bool {
    let folder = root.join(name);
    let is_vlan = read_capped_text(&folder.join("uevent"), MAX_FILE)
        .is_ok_and(|text| text.lines().any(|line| line == "DEVTYPE=vlan"));
    if is_vlan || nest == 0 {
        return is_vlan;
    }
    let Ok(entries) = fs::read_dir(&folder) else {
        return false;
    };
    let mut lower = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("lower_")?
                    .to_owned(),
            )
        })
        .peekable();
    lower.peek().is_some() && lower.all(|name| is_of_vlan(root, &name, nest - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/sys/class/net` as it is with such interfaces; whether the running kernel has VLANs is its own affair.
    fn system(interfaces: &[(&str, &str, &[&str])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, uevent, lower) in interfaces {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            crate::state::write_atomic(&folder.join("uevent"), uevent.as_bytes(), 0o600).unwrap();
            for lower in *lower {
                fs::create_dir(folder.join(format!("lower_{lower}"))).unwrap();
            }
        }
        root
    }

    #[test]
    fn what_is_on_top_of_vlans_only_is_of_them() {
        let root = system(&[
            ("eth0", "INTERFACE=eth0\nIFINDEX=2\n", &[]),
            ("eth0.10", "DEVTYPE=vlan\nINTERFACE=eth0.10\n", &["eth0"]),
            ("br10", "DEVTYPE=bridge\n", &["eth0.10"]),
            ("mv10", "DEVTYPE=macvlan\n", &["br10"]),
            ("br0", "DEVTYPE=bridge\n", &["eth0", "eth0.10"]),
            ("vlan", "INTERFACE=vlan\n", &[]),
            ("loop", "DEVTYPE=bridge\n", &["loop"]),
        ]);
        let of_vlan = |name| is_of_vlan(root.path(), name, MAX_NEST);
        for name in ["eth0.10", "br10", "mv10"] {
            assert!(of_vlan(name), "{name}");
        }
        for name in ["eth0", "br0", "vlan", "loop", "none"] {
            assert!(!of_vlan(name), "{name}");
        }
    }

    #[test]
    fn addresses_go_with_their_interface_whatever_its_label() {
        let root = system(&[
            ("eth0", "INTERFACE=eth0\n", &[]),
            ("eth0.10", "DEVTYPE=vlan\n", &["eth0"]),
        ]);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = [
            ("lo", "127.0.0.1"),
            ("eth0", "192.0.2.1"),
            ("eth0:1", "192.0.2.2"),
            ("eth0.10:web", "198.51.100.1"),
            ("eth0.10", "2001:db8::1"),
        ];
        let found = found.map(|(name, text)| (name.to_owned(), address(text)));
        assert_eq!(
            told_apart(root.path(), found.into_iter()),
            OwnAddresses {
                plain: vec![address("192.0.2.1"), address("192.0.2.2")],
                of_vlans: vec![address("198.51.100.1"), address("2001:db8::1")],
            }
        );
    }
}
