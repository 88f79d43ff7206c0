//! The lab's network: a switch, and hosts plugged into it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use anyhow::{Context as _, bail};

use crate::sh;

/// The interface of every host.
pub const INTERFACE: &str = "eth0";
/// The attacker's port on the switch.
pub const ATTACKER_PORT: &str = "attacker";
/// The most nodes a lab has; their addresses have to fit in, and the spare server's.
pub const MAX_NODES: usize = 40;
/// The port of a server that is no node of the mesh: it can become one.
pub const SPARE: &str = "spare";
/// How many addresses an attacker can attack from, one after the other.
pub const ATTACKER_ADDRESSES: u8 = 40;

const FIRST_ATTACKER: u8 = 200;
const CLIENT: u8 = 250;
/// Addresses of a node besides its own.
const EXTRA_ADDRESSES: u8 = 2;

/// One of the two families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

fn address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 77, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

/// The address of node `number` (from 1).
pub fn node_address(family: Family, number: usize) -> IpAddr {
    address(family, u8::try_from(number).unwrap_or(u8::MAX))
}

/// The client's address.
pub fn client_address(family: Family) -> IpAddr {
    address(family, CLIENT)
}

/// All the addresses that the attacker owns.
pub fn attacker_addresses(family: Family) -> impl Iterator<Item = IpAddr> {
    (0..ATTACKER_ADDRESSES).map(move |offset| address(family, FIRST_ATTACKER + offset))
}

/// A host plugged into the switch.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its network namespace.
    pub namespace: String,
    /// Its port on the switch.
    pub port: String,
    addresses: Vec<String>,
}

/// The names of a lab's namespaces, and the hosts in it.
#[derive(Debug, Clone)]
pub struct Network {
    /// The namespace with the bridge in it.
    pub switch: String,
    /// Nodes, then the spare server, attacker, client.
    pub hosts: Vec<Host>,
}

/// The namespace called `role` of the lab `id`.
pub fn namespace(id: &str, role: &str) -> String {
    format!("sm{id}-{role}")
}

impl Network {
    /// Plans the network of the lab `id`; builds nothing.
    pub fn plan(id: &str, nodes: usize) -> Self {
        let mut hosts = Vec::new();
        for number in 1..=nodes + 1 {
            let own = u8::try_from(number).unwrap_or(u8::MAX);
            // Extra addresses lie above all the nodes' own ones: 10.77.0.101, .102; .103, .104; …
            let extra = (1..=EXTRA_ADDRESSES).map(|n| 100 + (own - 1) * EXTRA_ADDRESSES + n);
            let role = if number > nodes {
                SPARE.to_owned()
            } else {
                format!("n{number}")
            };
            hosts.push(Host::plan(id, &role, std::iter::once(own).chain(extra)));
        }
        hosts.push(Host::plan(
            id,
            ATTACKER_PORT,
            (0..ATTACKER_ADDRESSES).map(|offset| FIRST_ATTACKER + offset),
        ));
        hosts.push(Host::plan(id, "client", std::iter::once(CLIENT)));
        Self {
            switch: namespace(id, "switch"),
            hosts,
        }
    }

    /// All namespaces of this network.
    pub fn namespaces(&self) -> Vec<String> {
        std::iter::once(self.switch.clone())
            .chain(self.hosts.iter().map(|host| host.namespace.clone()))
            .collect()
    }

    /// Makes the namespaces and plugs everything together.
    ///
    /// # Errors
    /// When `ip` refuses something; what was made so far is left for the caller to remove.
    pub fn build(&self) -> anyhow::Result<()> {
        let mut names = String::new();
        for namespace in self.namespaces() {
            let _infallible = writeln!(names, "netns add {namespace}");
        }
        ip_batch(None, &names)?;

        // No spanning tree and no multicast snooping: both would keep the first packets back.
        let mut switch = String::from(
            "link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 addrgenmode none up\n",
        );
        for Host {
            namespace, port, ..
        } in &self.hosts
        {
            let _infallible = write!(
                switch,
                "link add {port} type veth peer name {INTERFACE} netns {namespace}\n\
                 link set {port} addrgenmode none master br0 up\n"
            );
        }
        ip_batch(Some(&self.switch), &switch)?;

        for host in &self.hosts {
            let mut lines = String::from("link set lo up\n");
            for address in &host.addresses {
                // Duplicate address detection would hold an IPv6 address back for a second or two.
                let nodad = if address.contains(':') { " nodad" } else { "" };
                let _infallible = writeln!(lines, "addr add {address} dev {INTERFACE}{nodad}");
            }
            let _infallible = writeln!(lines, "link set {INTERFACE} up");
            ip_batch(Some(&host.namespace), &lines)?;
        }
        Ok(())
    }
}

impl Host {
    fn plan(id: &str, role: &str, numbers: impl Iterator<Item = u8>) -> Self {
        let addresses = numbers
            .flat_map(|number| {
                [
                    format!("{}/24", address(Family::V4, number)),
                    format!("{}/64", address(Family::V6, number)),
                ]
            })
            .collect();
        Self {
            namespace: namespace(id, role),
            port: role.to_owned(),
            addresses,
        }
    }
}

/// The link-layer address of a host's interface.
///
/// # Errors
/// When `ip` fails or says nothing of the kind.
pub fn link_address(namespace: &str) -> anyhow::Result<String> {
    let output =
        sh::output(sh::command("ip").args(["-n", namespace, "-j", "link", "show", INTERFACE]))?;
    let links: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cannot read what `ip -j link` printed")?;
    links
        .pointer("/0/address")
        .and_then(serde_json::Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("`ip link` shows no address of {INTERFACE} in {namespace}"))
}

/// The names of all network namespaces on this machine.
///
/// # Errors
/// When `ip` fails.
pub fn existing_namespaces() -> anyhow::Result<Vec<String>> {
    let output = sh::output(sh::command("ip").args(["netns", "list"]))?;
    // A line is `NAME` or `NAME (id: N)`.
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Ends what runs in the namespace, and removes it. Says nothing if there is no such namespace.
///
/// # Errors
/// When `ip` refuses.
pub fn remove_namespace(name: &str) -> anyhow::Result<()> {
    if !super::ns::file_of(name).exists() {
        return Ok(());
    }
    // Whatever is in there was started for this lab: nobody else knows the name.
    let inside = sh::output(sh::command("ip").args(["netns", "pids", name]))?;
    for pid in String::from_utf8_lossy(&inside.stdout)
        .lines()
        .filter_map(|line| line.trim().parse::<i32>().ok())
    {
        if u32::try_from(pid).is_ok_and(|pid| pid != std::process::id()) {
            // It may have ended by itself meanwhile.
            let _gone = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    sh::output(sh::command("ip").args(["netns", "del", name]))?;
    Ok(())
}

fn ip_batch(namespace: Option<&str>, lines: &str) -> anyhow::Result<()> {
    let mut ip = sh::command("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace]);
    }
    ip.args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = ip
        .spawn()
        .context("cannot start `ip`; `cargo xtask setup` installs it")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(lines.as_bytes())
            .context("cannot write to `ip`")?;
    }
    let output = child.wait_with_output().context("cannot wait for `ip`")?;
    if !output.status.success() {
        bail!(
            "`ip` refused to build the lab's network: {}",
            sh::last_words(&output)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_given_twice_even_in_the_largest_lab() {
        let network = Network::plan("abcd", MAX_NODES);
        let mut all: Vec<&String> = network
            .hosts
            .iter()
            .flat_map(|host| &host.addresses)
            .collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn port_names_fit_an_interface_name() {
        for host in Network::plan("abcd", MAX_NODES).hosts {
            assert!(host.port.len() <= 15, "{}", host.port);
        }
    }
}
