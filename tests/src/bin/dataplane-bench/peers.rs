//! The other side: nftables, ipset and xdp-filter, set up as their manuals say.

use std::{
    fmt::Write as _,
    net::IpAddr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use secmesh_tests::{
    kernel::{BPFFS, tool},
    wire::Wire,
};
use xtask::sh;

use crate::addresses::Blocked;

/// How long one command of a peer may take: loading 2^20 addresses takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// What xdp-filter's address tables hold (its `filter_ipv4` and `filter_ipv6` maps).
pub const XDP_FILTER_ROOM: usize = 10_000;

/// xdp-filter on one interface; one at a time, because its maps are pinned under one name.
pub struct XdpFilter {
    interface: String,
    /// The number of the program that it attached.
    pub program: u32,
}

impl XdpFilter {
    /// Attaches it, in `skb` or `native` mode, with these sources blocked.
    ///
    /// All but the first of each family are written into its map directly: a process for each would take
    /// minutes.
    pub fn load(wire: &Wire, blocked: &[IpAddr], mode: &str) -> Result<Self> {
        let near = wire.near.as_str();
        tool("xdp-filter", &["load", "-m", mode, "-f", "ipv4,ipv6", near])?;
        let mut this = Self {
            interface: near.to_owned(),
            program: 0,
        };
        for ipv6 in [false, true] {
            let mut family = blocked.iter().filter(|source| source.is_ipv6() == ipv6);
            let Some(first) = family.next() else {
                continue;
            };
            let others: Vec<&IpAddr> = family.collect();
            tool("xdp-filter", &["ip", &first.to_string(), "-m", "src"])?;
            let map = if ipv6 { "filter_ipv6" } else { "filter_ipv4" };
            let map = MapData::from_pin(format!("{BPFFS}/xdp-filter/{map}"))?;
            match first {
                IpAddr::V4(_) => fill(map, *first, &others, |address| match address {
                    IpAddr::V4(address) => address.octets(),
                    IpAddr::V6(_) => [0; 4],
                })?,
                IpAddr::V6(_) => fill(map, *first, &others, |address| match address {
                    IpAddr::V6(address) => address.octets(),
                    IpAddr::V4(_) => [0; 16],
                })?,
            }
        }
        let text = tool("bpftool", &["-j", "net", "show", "dev", near])?;
        let shown: serde_json::Value = serde_json::from_str(&text)?;
        let id = shown
            .pointer("/0/xdp/0/id")
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("bpftool names no XDP program: {text}"))?;
        this.program = u32::try_from(id)?;
        Ok(this)
    }
}

impl Drop for XdpFilter {
    fn drop(&mut self) {
        // The name space ends soon in any case.
        let _failed = tool("xdp-filter", &["unload", &self.interface]);
    }
}

/// Gives all addresses the entry that the first one has.
fn fill<const N: usize>(
    map: MapData,
    first: IpAddr,
    others: &[&IpAddr],
    key: impl Fn(&IpAddr) -> [u8; N],
) -> Result<()> {
    let mut map: PerCpuHashMap<_, [u8; N], u64> = Map::PerCpuHashMap(map).try_into()?;
    let entry: Vec<u64> = map.get(&key(&first), 0)?.iter().copied().collect();
    for address in others {
        map.insert(key(address), PerCpuValues::try_from(entry.clone())?, 0)?;
    }
    Ok(())
}

/// How nftables takes a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Addresses and prefixes: `flags interval`.
    Interval,
    /// Addresses only: a hash.
    Hash,
}

/// A table of nftables with a set of blocked sources in an interface's ingress hook.
pub struct Nft {
    table: String,
    hosts: String,
    kind: SetKind,
    ipv6: bool,
}

impl Nft {
    /// Loads it. With `drop_rest` a second rule drops what the set does not have.
    pub fn load(wire: &Wire, list: &Blocked, kind: SetKind, drop_rest: bool) -> Result<Self> {
        let ipv6 = list.hosts.first().is_some_and(IpAddr::is_ipv6);
        let this = Self {
            table: format!("t_{}", wire.near),
            hosts: elements(list),
            kind,
            ipv6,
        };
        let (family, header) = if ipv6 {
            ("ipv6_addr", "ip6")
        } else {
            ("ipv4_addr", "ip")
        };
        let flags = match kind {
            SetKind::Interval => "flags interval; ".to_owned(),
            SetKind::Hash => format!("size {}; ", list.hosts.len().max(16) * 2),
        };
        let rest = if drop_rest { "counter drop" } else { "" };
        let script = format!(
            "table netdev {table} {{\n\
             set blocked {{ type {family}; {flags}elements = {{ {hosts} }} }}\n\
             chain guard {{ type filter hook ingress device \"{device}\" priority -500;\n\
             {header} saddr @blocked counter drop\n{rest}\n}}\n}}\n",
            table = this.table,
            hosts = this.hosts,
            device = wire.near,
        );
        feed("nft", &["-f", "-"], &script)?;
        Ok(this)
    }

    /// Puts another list of the same kind in its place, in one transaction.
    pub fn replace(&mut self, list: &Blocked) -> Result<()> {
        self.hosts = elements(list);
        let table = &self.table;
        let script = format!(
            "flush set netdev {table} blocked\nadd element netdev {table} blocked {{ {} }}\n",
            self.hosts
        );
        feed("nft", &["-f", "-"], &script)
    }

    /// Packets dropped: by the set, and by the rule behind it. For that nft fetches all elements of the set from
    /// the kernel, terse or not: seconds for a million.
    pub fn dropped(&self) -> Result<(u64, u64)> {
        let text = tool(
            "nft",
            &["-j", "list", "chain", "netdev", &self.table, "guard"],
        )?;
        let shown: serde_json::Value = serde_json::from_str(&text)?;
        let mut counts = Vec::new();
        collect_packets(&shown, &mut counts);
        let by_set = *counts
            .first()
            .with_context(|| format!("no counter: {text}"))?;
        Ok((by_set, counts.get(1).copied().unwrap_or_default()))
    }

    /// Whether it is what the caller thinks, for messages.
    pub fn shown(&self) -> String {
        let kind = match self.kind {
            SetKind::Interval => "interval set",
            SetKind::Hash => "hash set",
        };
        format!(
            "nftables {kind}, {}",
            if self.ipv6 { "IPv6" } else { "IPv4" }
        )
    }
}

impl Drop for Nft {
    fn drop(&mut self) {
        let _failed = tool("nft", &["delete", "table", "netdev", &self.table]);
    }
}

/// All `packets` in a JSON tree, in order.
fn collect_packets(value: &serde_json::Value, into: &mut Vec<u64>) {
    match value {
        serde_json::Value::Array(all) => all.iter().for_each(|v| collect_packets(v, into)),
        serde_json::Value::Object(all) => {
            into.extend(all.get("packets").and_then(serde_json::Value::as_u64));
            all.values().for_each(|v| collect_packets(v, into));
        }
        _ => {}
    }
}

fn elements(list: &Blocked) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for host in &list.hosts {
        let _ = write!(text, "{host},");
    }
    for prefix in &list.prefixes {
        let _ = write!(text, "{prefix},");
    }
    text.pop();
    text
}

/// A set of ipset's, asked by iptables before anything else is done with a packet (raw table).
pub struct Ipset {
    name: String,
    device: String,
}

impl Ipset {
    /// Loads it, IPv4 addresses only; what is not in the set is dropped by the rule behind it.
    pub fn load(wire: &Wire, list: &Blocked) -> Result<Self> {
        let this = Self {
            name: format!("s_{}", wire.near),
            device: wire.near.clone(),
        };
        feed("ipset", &["restore"], &Self::script(&this.name, list))?;
        for rule in this.rules() {
            let mut arguments = vec!["-w", "-t", "raw", "-A", "PREROUTING", "-i", &this.device];
            arguments.extend(rule.iter().map(String::as_str));
            tool("iptables", &arguments)?;
        }
        Ok(this)
    }

    /// Puts another list in its place: a second set, exchanged for the first.
    pub fn replace(&mut self, list: &Blocked) -> Result<()> {
        let other = format!("{}b", self.name);
        let mut script = Self::script(&other, list);
        let _ = write!(script, "swap {other} {}\ndestroy {other}\n", self.name);
        feed("ipset", &["restore"], &script)
    }

    fn script(name: &str, list: &Blocked) -> String {
        let size = list.hosts.len().max(64);
        let mut script = format!(
            "create {name} hash:ip family inet hashsize {} maxelem {size}\n",
            (size / 4).next_power_of_two().max(64)
        );
        for host in &list.hosts {
            let _ = writeln!(script, "add {name} {host}");
        }
        script
    }

    fn rules(&self) -> [Vec<String>; 2] {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        [
            words(&format!("-m set --match-set {} src -j DROP", self.name)),
            words("-j DROP"),
        ]
    }

    /// Packets dropped: by the set, and by the rule behind it.
    pub fn dropped(&self) -> Result<(u64, u64)> {
        let text = tool("iptables", &["-w", "-t", "raw", "-nvxL", "PREROUTING"])?;
        let mut counts = text
            .lines()
            .filter(|line| line.contains(&self.device))
            .map(|line| {
                let first = line.split_whitespace().next().unwrap_or_default();
                first.parse::<u64>().with_context(|| line.to_owned())
            });
        let mut next = || counts.next().with_context(|| format!("no rule: {text}"))?;
        Ok((next()?, next()?))
    }
}

impl Drop for Ipset {
    fn drop(&mut self) {
        for rule in self.rules() {
            let mut arguments = vec!["-w", "-t", "raw", "-D", "PREROUTING", "-i", &self.device];
            arguments.extend(rule.iter().map(String::as_str));
            let _failed = tool("iptables", &arguments);
        }
        let _failed = tool("ipset", &["destroy", &self.name]);
    }
}

/// Runs a program with this on its standard input, for [`PATIENCE`] at most.
pub fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    feed_within(PATIENCE, program, arguments, input)
}

fn feed_within(limit: Duration, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    use std::io::Write as _;

    let mut child = sh::command(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().context("piped above")?;
    let deadline = Instant::now() + limit;
    thread::scope(|scope| {
        // Of their own, so that neither a program that does not read nor a full pipe stops the clock.
        let writer = scope.spawn(move || stdin.write_all(input.as_bytes()));
        let ended = loop {
            if child.try_wait()?.is_some() {
                break true;
            }
            if Instant::now() >= deadline {
                child.kill()?;
                break false;
            }
            thread::sleep(Duration::from_millis(1));
        };
        let output = child.wait_with_output()?;
        let written = writer.join().map_err(|_panic| anyhow!("the writer"))?;
        let shown = || format!("{program} {}", arguments.join(" "));
        ensure!(ended, "{} was not done within {limit:?}", shown());
        ensure!(
            output.status.success(),
            "{}: {}",
            shown(),
            sh::last_words(&output)
        );
        written.with_context(|| format!("writing to {program}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let large = "x".repeat(1 << 20);
        let told =
            feed_within(Duration::from_millis(50), "sleep", &["infinity"], &large).unwrap_err();
        assert!(told.to_string().contains("was not done within"), "{told}");
        feed("cat", &[], &large).unwrap();
        let told = feed("sh", &["-c", "echo no >&2; exit 3"], "").unwrap_err();
        assert!(told.to_string().contains("no"), "{told}");
    }
}
