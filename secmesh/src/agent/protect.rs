//! What the kernel is told to drop besides blocks, from the configuration and the system it runs on.

use std::{collections::BTreeSet, fs, path::Path};

use secmesh_common::reason::Reason;
use tracing::{info, warn};

use super::{AgentError, Options};
use crate::{
    config::TripwireConfig,
    dataplane::{PortTable, Protection},
    sense::netinfo::{self, LiveSystem},
    state::read_capped_text,
};

/// Most bytes of a file of `/proc` that are read: a hundred thousand sockets.
const MAX_FILE: u64 = 16 << 20;

/// The interfaces to protect: those of the command line, else of the configuration, else those with a default
/// route.
pub(super) fn interfaces(options: &Options) -> Vec<String> {
    let mut names = if options.interfaces.is_empty() {
        options.config.dataplane.interfaces.clone()
    } else {
        options.interfaces.clone()
    };
    if names.is_empty() {
        names = netinfo::default_route_interfaces(&LiveSystem);
    }
    names
}

/// What is dropped besides blocks.
pub(super) fn protection(options: &Options) -> Protection {
    let names = interfaces(options);
    let forwards = forwards(Path::new("/"), &names);
    if let Some(why) = &forwards {
        info!(
            %why,
            "packets without a socket here may be another machine's: the checks that ask sockets are off"
        );
    }
    let mut protection = options.config.protection(forwards.is_some());
    if names.iter().any(|name| name == "lo") && protection.checks & Reason::Land.bit() != 0 {
        warn!("on lo every packet comes from its own destination: checks.land is off");
        protection.checks &= !Reason::Land.bit();
    }
    protection
}

/// Why packets that no socket here waits for may still be somebody's: routing (and with it NAT), bridges, and
/// interfaces on top of ours. `root` is where `/proc` and `/sys` are.
fn forwards(root: &Path, interfaces: &[String]) -> Option<String> {
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = root.join("proc/sys/net").join(switch);
        if read_capped_text(&path, MAX_FILE).is_ok_and(|value| value.trim() != "0") {
            return Some(format!("net/{switch} is on"));
        }
    }
    for name in interfaces {
        let dir = root.join("sys/class/net").join(name);
        if dir.join("brport").exists() {
            return Some(format!("{name} is a port of a bridge"));
        }
        let stacked = fs::read_dir(&dir).ok().is_some_and(|entries| {
            entries.filter_map(Result::ok).any(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_some_and(|file| file.starts_with("upper_"))
            })
        });
        if stacked {
            return Some(format!("other interfaces are on top of {name}"));
        }
    }
    None
}

/// Tells the kernel what is special about ports.
pub(super) fn write_ports(options: &Options, table: &mut PortTable) -> Result<(), AgentError> {
    let config = &options.config;
    refuse_used(Path::new("/"), &config.tripwire)?;
    let mesh = options.listen.unwrap_or(config.mesh.listen).port();
    Ok(table.replace(&config.port_rules(mesh))?)
}

/// A tripwire port must be one where nothing is: otherwise everybody who uses the service would be named.
fn refuse_used(root: &Path, tripwire: &TripwireConfig) -> Result<(), AgentError> {
    for (protocol, ports) in [("tcp", &tripwire.tcp), ("udp", &tripwire.udp)] {
        if ports.is_empty() {
            continue;
        }
        let used = used_ports(root, protocol);
        if let Some(port) = ports.iter().find(|port| used.contains(port)) {
            return Err(AgentError::TripwireUsed {
                protocol,
                port: *port,
            });
        }
    }
    Ok(())
}

/// Local ports with a TCP listener or an unconnected UDP socket.
fn used_ports(root: &Path, protocol: &str) -> BTreeSet<u16> {
    let mut used = BTreeSet::new();
    for file in [protocol.to_owned(), format!("{protocol}6")] {
        let path = root.join("proc/net").join(file);
        let text = match read_capped_text(&path, MAX_FILE) {
            Ok(text) => text,
            Err(error) => {
                warn!(%error, "tripwire ports are not checked against its sockets");
                continue;
            }
        };
        used.extend(text.lines().filter_map(listening_port));
    }
    used
}

/// The port of a line of `/proc/net/{tcp,udp}{,6}` whose socket waits for whoever comes: `TCP_LISTEN`, and
/// `TCP_CLOSE`, which unconnected UDP sockets are in (`include/net/tcp_states.h`).
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    if !matches!(state, "0A" | "07") {
        return None;
    }
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::needless_pass_by_value,
        reason = "called with what `join` gives"
    )]
    fn put(path: std::path::PathBuf, text: &str) -> Result<(), crate::state::StateError> {
        crate::state::write_atomic(&path, text.as_bytes(), 0o600)
    }

    #[test]
    fn a_tripwire_where_somebody_listens_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("proc/net");
        fs::create_dir_all(&net).unwrap();
        put(
            net.join("tcp"),
            "  sl  local_address rem_address   st\n   0: 0100007F:0017 00000000:0000 0A 0\n   1: 0100007F:0916 0100007F:0016 01 0\n",
        )
        .unwrap();
        put(net.join("udp6"), "   0: 00000000000000000000000000000000:0045 00000000000000000000000000000000:0000 07 0\n").unwrap();
        let refused = |tcp: &[u16], udp: &[u16]| {
            let tripwire = TripwireConfig {
                tcp: tcp.to_vec(),
                udp: udp.to_vec(),
            };
            refuse_used(root.path(), &tripwire).map_err(|error| error.to_string())
        };
        let error = refused(&[2222, 23], &[]).unwrap_err();
        assert!(
            error.contains("tcp/23") && error.contains("remedy"),
            "{error}"
        );
        assert!(refused(&[], &[69]).is_err());
        // A connection of ours from that port is no listener, and the protocols are apart.
        assert!(refused(&[0x916, 69], &[23]).is_ok());
    }

    #[test]
    fn routers_bridges_and_stacked_interfaces_forward() {
        let root = tempfile::tempdir().unwrap();
        let names = ["eth0".to_owned()];
        let found = || forwards(root.path(), &names);
        assert_eq!(found(), None);
        let switch = root.path().join("proc/sys/net/ipv4");
        fs::create_dir_all(&switch).unwrap();
        put(switch.join("ip_forward"), "0\n").unwrap();
        let dir = root.path().join("sys/class/net/eth0");
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(found(), None);
        put(dir.join("upper_macvlan0"), "").unwrap();
        assert!(found().unwrap().contains("on top of eth0"));
        put(switch.join("ip_forward"), "1\n").unwrap();
        assert!(found().unwrap().contains("ip_forward"));
    }
}
