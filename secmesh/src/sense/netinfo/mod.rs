//! What must never be blocked on this server, found out from the running system, each with its
//! reason: losing any of these cuts the server, or its operator, off.
//!
//! - **Loopback** and the unspecified address: the server's own services talk over the first; hosts
//!   that do not have an address yet send from the second (DHCP, duplicate address detection).
//! - **Own addresses**: a flood with a forged source must not talk the server into blocking itself.
//! - **Default gateways and resolvers**: without them the server is off the network.
//! - **IPv6 link-local and local multicast**: IPv6 finds routers and neighbours with packets from
//!   `fe80::/10`; blocked, the server's IPv6 goes dark within the lifetime of its neighbour cache. A
//!   link-local sender is on the same wire and cannot be an attacker from afar.
//! - **The operator's SSH peers**: who is logged in must stay able to steer. An open connection to
//!   port 22 alone proves nothing (anybody can open one, and would thereby become unblockable), so
//!   where the system's login manager keeps sessions, only peers with a session count.
//!
//! The parsers take whatever the files hold: a line that makes no sense is skipped and counted.

mod parse;
mod system;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::addr::Prefix;
pub use system::LiveSystem;
pub(in crate::sense) use system::interface_addresses;

/// The port of sshd unless the operator's own session says another.
const SSH_PORT: u16 = 22;
/// Most entries of one reason, so that no file can make the list large.
const MAX_PER_REASON: usize = 1024;

/// Why an address is on the built-in allowlist. Written as `snake_case` words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowReason {
    /// The server talking to itself.
    Loopback,
    /// `0.0.0.0` and `::`, the source of hosts without an address.
    Unspecified,
    /// IPv6 link-local addresses, needed for neighbour discovery.
    LinkLocal,
    /// Multicast on the local link, needed for neighbour discovery and router redundancy.
    Multicast,
    /// An address of one of this server's interfaces.
    OwnAddress,
    /// A router of a default route.
    DefaultGateway,
    /// A configured DNS resolver.
    Resolver,
    /// The peer of a logged-in SSH session.
    SshPeer,
    /// The peer of an established connection to sshd on a system without a login manager: maybe the
    /// operator, maybe somebody who has not logged in.
    SshConnection,
    /// A member of the mesh. Never found here; for callers who add the members.
    MeshPeer,
}

impl fmt::Display for AllowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Unspecified => "hosts without an address yet",
            Self::LinkLocal => "IPv6 neighbour discovery (link-local)",
            Self::Multicast => "multicast on the local link",
            Self::OwnAddress => "this server's own address",
            Self::DefaultGateway => "default gateway",
            Self::Resolver => "DNS resolver",
            Self::SshPeer => "logged in over SSH",
            Self::SshConnection => "connected to sshd",
            Self::MeshPeer => "member of the mesh",
        })
    }
}

/// One entry of the built-in allowlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BuiltinAllow {
    /// What is never blocked.
    pub prefix: Prefix,
    /// Why.
    pub reason: AllowReason,
}

/// The built-in allowlist and what could not be found out for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Sorted by prefix, then reason. A prefix is there once for each of its reasons.
    pub allow: Vec<BuiltinAllow>,
    /// What failed or was skipped, in sentences for the log. What is missing from the list because
    /// of it can be blocked.
    pub warnings: Vec<String>,
}

/// A file of the running system that is read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `/proc/net/route`.
    RoutesV4,
    /// `/proc/net/ipv6_route`; missing where IPv6 is off.
    RoutesV6,
    /// `/proc/net/tcp`.
    TcpV4,
    /// `/proc/net/tcp6`; missing where IPv6 is off.
    TcpV6,
    /// `/etc/resolv.conf`.
    ResolvConf,
    /// `/run/systemd/resolve/resolv.conf`: the real resolvers behind systemd-resolved's stub.
    ResolvedUpstream,
}

impl Source {
    /// Where it is.
    pub const fn path(self) -> &'static str {
        match self {
            Self::RoutesV4 => "/proc/net/route",
            Self::RoutesV6 => "/proc/net/ipv6_route",
            Self::TcpV4 => "/proc/net/tcp",
            Self::TcpV6 => "/proc/net/tcp6",
            Self::ResolvConf => "/etc/resolv.conf",
            Self::ResolvedUpstream => "/run/systemd/resolve/resolv.conf",
        }
    }
}

/// The system as seen from here; [`LiveSystem`] is the real one, tests bring their own.
pub trait SystemView {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] means there is none, and is no problem.
    fn open(&self, source: Source) -> io::Result<Box<dyn BufRead + '_>>;

    /// The addresses of all interfaces.
    ///
    /// # Errors
    /// What the system says.
    fn own_addresses(&self) -> io::Result<Vec<IpAddr>>;

    /// The value of an environment variable of this process.
    fn env(&self, name: &str) -> Option<String>;

    /// The contents of the login manager's session files, or `None` where no login manager runs.
    ///
    /// # Errors
    /// What the system says.
    fn login_sessions(&self) -> io::Result<Option<Vec<String>>>;
}

/// Finds out the built-in allowlist. What cannot be read is left out and told in
/// [`Discovery::warnings`]; the fixed entries are always there.
pub fn discover(system: &impl SystemView) -> Discovery {
    let mut found = Finder::default();
    for (text, reason) in [
        ("127.0.0.0/8", AllowReason::Loopback),
        ("::1", AllowReason::Loopback),
        ("0.0.0.0", AllowReason::Unspecified),
        ("::", AllowReason::Unspecified),
        ("fe80::/10", AllowReason::LinkLocal),
        ("224.0.0.0/24", AllowReason::Multicast),
        ("ff02::/16", AllowReason::Multicast),
    ] {
        match text.parse() {
            Ok(prefix) => found.prefix(prefix, reason),
            Err(_) => found
                .warnings
                .push(format!("the built-in prefix {text} is not valid")),
        }
    }
    match system.own_addresses() {
        Ok(addresses) => found.hosts(addresses, AllowReason::OwnAddress),
        Err(error) => found
            .warnings
            .push(format!("cannot list this server's own addresses: {error}")),
    }
    let routes = routes(system, &mut found.warnings);
    found.hosts(
        routes.into_iter().filter_map(|route| route.gateway),
        AllowReason::DefaultGateway,
    );
    for source in [Source::ResolvConf, Source::ResolvedUpstream] {
        let mut resolvers = Vec::new();
        read(system, source, &mut found.warnings, |line| {
            parse::resolver_line(line).map(|ip| push(&mut resolvers, ip))
        });
        found.hosts(resolvers, AllowReason::Resolver);
    }
    ssh_peers(system, &mut found);
    Discovery {
        allow: found.allow.into_iter().collect(),
        warnings: found.warnings,
    }
}

/// The interfaces that a default route goes out of, sorted, each once; they may have no gateway
/// (a point-to-point link). Empty when there is no default route.
pub fn default_route_interfaces(system: &impl SystemView) -> Vec<String> {
    let mut warnings = Vec::new();
    let names: BTreeSet<String> = routes(system, &mut warnings)
        .into_iter()
        .map(|route| route.interface)
        .collect();
    names.into_iter().collect()
}

/// Where the SSH session of this process comes from, by its environment (`SSH_CONNECTION`, `SSH_CLIENT`);
/// `None` without a session, or where something like sudo took the variables away.
pub fn own_ssh_peer(system: &impl SystemView) -> Option<IpAddr> {
    let connection = system
        .env("SSH_CONNECTION")
        .as_deref()
        .and_then(parse::ssh_connection);
    let client = || {
        system
            .env("SSH_CLIENT")
            .as_deref()
            .and_then(parse::ssh_client)
    };
    connection
        .or_else(client)
        .map(|ssh| ssh.peer.to_canonical())
}

#[derive(Default)]
struct Finder {
    allow: BTreeSet<BuiltinAllow>,
    warnings: Vec<String>,
}

impl Finder {
    fn prefix(&mut self, prefix: Prefix, reason: AllowReason) {
        self.allow.insert(BuiltinAllow { prefix, reason });
    }

    /// Adds single addresses, except those that a fixed entry covers anyway.
    fn hosts(&mut self, addresses: impl IntoIterator<Item = IpAddr>, reason: AllowReason) {
        let (mut count, mut left_out) = (0_usize, 0_usize);
        for address in addresses {
            let address = address.to_canonical();
            let fixed = address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            // A link-local router is worth showing as the gateway it is.
            let shown = reason == AllowReason::DefaultGateway && !address.is_unspecified();
            if fixed && !shown {
                continue;
            }
            if count >= MAX_PER_REASON {
                left_out = left_out.saturating_add(1);
                continue;
            }
            count = count.saturating_add(1);
            self.prefix(Prefix::host(address), reason);
        }
        if left_out > 0 {
            self.warnings.push(format!(
                "{left_out} addresses ({reason}) beyond the first {MAX_PER_REASON} are not on the built-in allowlist"
            ));
        }
    }
}

fn routes(system: &impl SystemView, warnings: &mut Vec<String>) -> Vec<parse::DefaultRoute> {
    let mut routes = Vec::new();
    let mut add = |line: parse::RouteLine| {
        if let parse::RouteLine::Default(route) = line {
            push(&mut routes, route);
        }
    };
    read(system, Source::RoutesV4, warnings, |line| {
        parse::route_v4_line(line).map(&mut add)
    });
    read(system, Source::RoutesV6, warnings, |line| {
        parse::route_v6_line(line).map(&mut add)
    });
    routes
}

fn ssh_peers(system: &impl SystemView, found: &mut Finder) {
    let connection = system
        .env("SSH_CONNECTION")
        .as_deref()
        .and_then(parse::ssh_connection);
    let client = system
        .env("SSH_CLIENT")
        .as_deref()
        .and_then(parse::ssh_client);
    found.hosts(
        connection.iter().chain(&client).map(|ssh| ssh.peer),
        AllowReason::SshPeer,
    );
    let mut ports = BTreeSet::from([SSH_PORT]);
    ports.extend(connection.iter().chain(&client).map(|ssh| ssh.local_port));

    let mut connected = BTreeSet::new();
    for source in [Source::TcpV4, Source::TcpV6] {
        read(system, source, &mut found.warnings, |line| {
            parse::tcp_line(line).map(|socket| {
                // One more than the limit, so that `hosts` can tell that some were left out.
                if socket.established
                    && ports.contains(&socket.local_port)
                    && connected.len() <= MAX_PER_REASON
                {
                    connected.insert(socket.peer);
                }
            })
        });
    }
    let sessions = match system.login_sessions() {
        Ok(sessions) => sessions.map(|files| parse::LoginHosts::from_files(&files)),
        Err(error) => {
            found.warnings.push(format!("cannot read the login sessions ({error}); every peer connected to sshd is allowlisted"));
            None
        }
    };
    match sessions {
        // A session names its host by name (sshd's UseDNS): which peer it is cannot be told.
        Some(hosts) if !hosts.unresolved => {
            found.hosts(
                connected
                    .into_iter()
                    .filter(|peer| hosts.addresses.contains(peer)),
                AllowReason::SshPeer,
            );
        }
        _ => found.hosts(connected, AllowReason::SshConnection),
    }
}

/// Gives each line of a source to `take`, which answers `None` to a line it cannot make sense of.
fn read(
    system: &impl SystemView,
    source: Source,
    warnings: &mut Vec<String>,
    mut take: impl FnMut(&str) -> Option<()>,
) {
    let path = source.path();
    let lines = match system.open(source) {
        Ok(lines) => lines,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            warnings.push(format!("cannot open {path}: {error}"));
            return;
        }
    };
    match parse::each_line(lines, |line| take(line).is_some()) {
        Ok(0) => {}
        Ok(skipped) => warnings.push(format!(
            "{path}: {skipped} lines made no sense and were skipped"
        )),
        Err(error) => warnings.push(format!("cannot read {path} to its end: {error}")),
    }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    // One more than the limit, so that `hosts` can tell that some were left out.
    if list.len() <= MAX_PER_REASON {
        list.push(item);
    }
}
