//! The line formats of the kernel's and the system's files. Nothing here panics or allocates more
//! than a line, whatever the files hold.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest line looked at, in bytes; longer ones are skipped whole.
pub(super) const MAX_LINE: u64 = 4096;
/// Route flags, include/uapi/linux/route.h.
const RTF_UP: u32 = 0x1;
const RTF_GATEWAY: u32 = 0x2;
const RTF_REJECT: u32 = 0x200;
/// State of an established connection, `include/net/tcp_states.h`.
const TCP_ESTABLISHED: &str = "01";

/// A usable default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    pub(super) interface: String,
    /// `None` on point-to-point links.
    pub(super) gateway: Option<IpAddr>,
}

/// A line of a routing table that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RouteLine {
    /// A usable default route.
    Default(DefaultRoute),
    /// A heading, or a route of no interest.
    Other,
}

/// One TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpSocket {
    pub(super) local_port: u16,
    pub(super) peer: IpAddr,
    pub(super) established: bool,
}

/// The SSH session this process runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SshSession {
    pub(super) peer: IpAddr,
    pub(super) local_port: u16,
}

/// Who is logged in from elsewhere.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LoginHosts {
    pub(super) addresses: BTreeSet<IpAddr>,
    /// A session gives its host by name.
    pub(super) unresolved: bool,
}

/// Gives each line to `take`, which says whether it understood it. Returns how many lines were not
/// understood, too long or not UTF-8.
pub(super) fn each_line(
    mut lines: impl BufRead,
    mut take: impl FnMut(&str) -> bool,
) -> io::Result<u64> {
    let mut skipped = 0_u64;
    let mut line = Vec::new();
    let mut inside_long_line = false;
    loop {
        line.clear();
        if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(skipped);
        }
        let complete = line.ends_with(b"\n");
        let too_long = !complete && u64::try_from(line.len()).unwrap_or(u64::MAX) >= MAX_LINE;
        let understood = if inside_long_line {
            true
        } else if too_long {
            false
        } else {
            std::str::from_utf8(&line).is_ok_and(&mut take)
        };
        if !understood {
            skipped = skipped.saturating_add(1);
        }
        inside_long_line = !complete && (inside_long_line || too_long);
    }
}

/// A line of `/proc/net/route`.
pub(super) fn route_v4_line(line: &str) -> Option<RouteLine> {
    let mut fields = line.split_ascii_whitespace();
    let interface = fields.next()?;
    let destination = fields.next()?;
    if destination == "Destination" {
        return Some(RouteLine::Other);
    }
    let destination = kernel_v4(destination)?;
    let gateway = kernel_v4(fields.next()?)?;
    let flags = hex_u32(fields.next()?, 4)?;
    // Reference count, use and metric stand before the mask.
    let mask = kernel_v4(fields.nth(3)?)?;
    if !destination.is_unspecified() || !mask.is_unspecified() || !usable(flags) {
        return Some(RouteLine::Other);
    }
    let gateway =
        (flags & RTF_GATEWAY != 0 && !gateway.is_unspecified()).then_some(IpAddr::V4(gateway));
    Some(RouteLine::Default(DefaultRoute {
        interface: interface_name(interface)?,
        gateway,
    }))
}

/// A line of `/proc/net/ipv6_route`.
pub(super) fn route_v6_line(line: &str) -> Option<RouteLine> {
    let mut fields = line.split_ascii_whitespace();
    let destination = plain_v6(fields.next()?)?;
    let destination_len = fields.next()?;
    let _source = plain_v6(fields.next()?)?;
    let source_len = fields.next()?;
    let gateway = plain_v6(fields.next()?)?;
    // Metric, reference count and use stand before the flags.
    let flags = hex_u32(fields.nth(3)?, 8)?;
    let interface = interface_name(fields.next()?)?;
    // A default route from one source prefix counts too: its gateway is as needed.
    let (destination_len, _source_len) = (hex_u32(destination_len, 2)?, hex_u32(source_len, 2)?);
    if !destination.is_unspecified() || destination_len != 0 || !usable(flags) || interface == "lo"
    {
        return Some(RouteLine::Other);
    }
    let gateway =
        (flags & RTF_GATEWAY != 0 && !gateway.is_unspecified()).then_some(IpAddr::V6(gateway));
    Some(RouteLine::Default(DefaultRoute { interface, gateway }))
}

/// A line of `/proc/net/tcp` or `/proc/net/tcp6`. Headings make a socket that is not established.
pub(super) fn tcp_line(line: &str) -> Option<TcpSocket> {
    let mut fields = line.split_ascii_whitespace();
    if fields.next()? == "sl" {
        return Some(TcpSocket {
            local_port: 0,
            peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            established: false,
        });
    }
    let (_, local_port) = endpoint(fields.next()?)?;
    let (peer, _) = endpoint(fields.next()?)?;
    Some(TcpSocket {
        local_port,
        peer: peer.to_canonical(),
        established: fields.next()? == TCP_ESTABLISHED,
    })
}

/// A line of a `resolv.conf`. Everything but a `nameserver` line is understood as of no interest
/// by answering with the unspecified address, which is never listed. So is a name server of
/// `0.0.0.0`, which means this host.
pub(super) fn resolver_line(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    // As in glibc, the keyword stands at the beginning of the line.
    if words.next() != Some("nameserver") || !line.starts_with('n') {
        return Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    }
    scoped_address(words.next()?)
}

/// `SSH_CONNECTION`: client address and port, server address and port.
pub(super) fn ssh_connection(value: &str) -> Option<SshSession> {
    let mut words = value.split_ascii_whitespace();
    let peer = scoped_address(words.next()?)?;
    let local_port = words.nth(2)?.parse().ok()?;
    Some(SshSession { peer, local_port })
}

/// `SSH_CLIENT`: client address and port, server port.
pub(super) fn ssh_client(value: &str) -> Option<SshSession> {
    let mut words = value.split_ascii_whitespace();
    let peer = scoped_address(words.next()?)?;
    let local_port = words.nth(1)?.parse().ok()?;
    Some(SshSession { peer, local_port })
}

impl LoginHosts {
    /// From systemd-logind's session files (`KEY=value` lines).
    pub(super) fn from_files(files: &[String]) -> Self {
        let mut hosts = Self::default();
        for file in files {
            let value = |key: &str| {
                file.lines().find_map(|line| {
                    line.strip_prefix(key)
                        .and_then(|rest| rest.strip_prefix('='))
                })
            };
            let Some(host) = value("REMOTE_HOST").filter(|host| !host.is_empty()) else {
                continue;
            };
            // A session that is being closed has nobody at its other end.
            if value("STATE") == Some("closing") {
                continue;
            }
            match scoped_address(host) {
                Some(address) => {
                    hosts.addresses.insert(address);
                }
                None => hosts.unresolved = true,
            }
        }
        hosts
    }
}

const fn usable(flags: u32) -> bool {
    flags & RTF_UP != 0 && flags & RTF_REJECT == 0
}

/// An address that may carry a scope (`fe80::1%eth0`), in canonical form.
fn scoped_address(text: &str) -> Option<IpAddr> {
    let text = text
        .split_once('%')
        .map_or(text, |(address, _scope)| address);
    text.parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
}

/// An interface name as the kernel allows it: 1 to 15 bytes, no slash, not `.` or `..`.
fn interface_name(text: &str) -> Option<String> {
    let valid =
        (1..16).contains(&text.len()) && !text.contains(['/', '\0']) && text != "." && text != "..";
    valid.then(|| text.to_owned())
}

fn hex_u32(text: &str, digits: usize) -> Option<u32> {
    // `from_str_radix` would also take a sign.
    let valid = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// An address printed as one number of the machine's byte order.
fn kernel_v4(text: &str) -> Option<Ipv4Addr> {
    hex_u32(text, 8).map(|number| Ipv4Addr::from(number.to_ne_bytes()))
}

/// An address printed as four numbers of the machine's byte order.
fn kernel_v6(text: &str) -> Option<Ipv6Addr> {
    let mut bytes = [0_u8; 16];
    if text.len() != 32 {
        return None;
    }
    for (word, at) in bytes.chunks_exact_mut(4).zip([0_usize, 8, 16, 24]) {
        let number = hex_u32(text.get(at..at.saturating_add(8))?, 8)?;
        word.copy_from_slice(&number.to_ne_bytes());
    }
    Some(Ipv6Addr::from(bytes))
}

/// An address printed byte by byte.
fn plain_v6(text: &str) -> Option<Ipv6Addr> {
    let valid = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid
        .then(|| u128::from_str_radix(text, 16).ok().map(Ipv6Addr::from))
        .flatten()
}

/// `ADDRESS:PORT` in hexadecimal; the port is a plain number.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let address = match address.len() {
        8 => IpAddr::V4(kernel_v4(address)?),
        _ => IpAddr::V6(kernel_v6(address)?),
    };
    Some((address, u16::try_from(hex_u32(port, 4)?).ok()?))
}
