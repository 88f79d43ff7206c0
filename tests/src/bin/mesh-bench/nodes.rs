//! A mesh of real agents in network namespaces: from an alert to the kernel of every node, and what a node
//! costs when nothing happens.
//!
//! The alerts are real: one packet from a new source to a tripwire port of each of two nodes. Times are the
//! agents' own, of one machine's clock: from the first alert to the last node's write into its kernel table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use xtask::bench::{Bar, Row, median};
use xtask::build::{self, Mode};
use xtask::lab::agent::{Alert, Decision};
use xtask::lab::net::{self, Family};
use xtask::lab::{Carrier, Lab, Options, ns};

use crate::Effort;

/// A port where nothing is: a packet to it is an alert.
const TRIPWIRE: u16 = 7;
/// Clock ticks of `/proc/PID/stat` per second; Linux shows it so on every machine.
const TICKS: f64 = 100.0;
/// How long agents are left alone before they are measured.
const SETTLE: Duration = Duration::from_secs(3);

fn lab(nodes: usize, carrier: Carrier) -> Result<(Lab, f64)> {
    let options = Options::new(build::agent(Mode::Release)?);
    let mut options = options.nodes(nodes).carrier(carrier);
    // A block of a sample must not meet the next one.
    options.extra_config = format!("[tripwire]\nudp = [{TRIPWIRE}]\n");
    let start = Instant::now();
    let lab = Lab::start(options)?;
    let took = start.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    Ok((lab, took))
}

/// The source of a sample: never used twice, nobody's, and the only one of its /24. The fifth of one network has
/// the mesh block all of it, and then nobody sees the others any more.
fn source(sample: usize) -> Ipv4Addr {
    let [high, low] = u16::try_from(sample).unwrap_or(u16::MAX).to_be_bytes();
    Ipv4Addr::new(45, 80_u8.saturating_add(high), low, 7)
}

/// A UDP packet without content, as a host with that address would send it. The kernel adds the checksum.
fn packet(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 28] {
    let mut bytes = [0; 28];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        for byte in part {
            if let Some(place) = bytes.get_mut(at) {
                *place = *byte;
            }
            at += 1;
        }
    };
    // Version and length, no service, total length, no fragments, 64 hops, UDP.
    put(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    put(&from.octets());
    put(&to.octets());
    put(&40_000_u16.to_be_bytes());
    put(&TRIPWIRE.to_be_bytes());
    put(&[0, 8, 0, 0]);
    bytes
}

/// Sends the packets of all samples, one sample every `apart`.
fn attack(lab: &Lab, samples: usize, apart: Duration) -> Result<()> {
    let targets: Vec<Ipv4Addr> = (1..=2)
        .filter_map(|number| match net::node_address(Family::V4, number) {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    let attacker = net::namespace(&lab.state().id, "attacker");
    ns::within(&attacker, move || {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Raw,
        )
        .context("cannot open a raw socket")?;
        for sample in 0..samples {
            for target in &targets {
                let to = SockaddrIn::from(SocketAddrV4::new(*target, 0));
                let bytes = packet(source(sample), *target);
                sendto(socket.as_raw_fd(), &bytes, &to, MsgFlags::empty())
                    .context("cannot send a packet")?;
            }
            std::thread::sleep(apart);
        }
        Ok(())
    })
}

/// Milliseconds from the first alert to the last node's kernel, for each sample that every node has; and how
/// many samples some node has not.
fn latencies(lab: &Lab, samples: usize) -> Result<(Vec<f64>, usize)> {
    let mut alerted: BTreeMap<String, u64> = BTreeMap::new();
    for number in 1..=2 {
        let alerts: Vec<Alert> = lab.agent(number)?.json(&["alerts", "--limit", "2000"])?;
        for alert in alerts {
            let first = alerted.entry(alert.subject).or_insert(u64::MAX);
            *first = alert.raised_unix_us.min(*first);
        }
    }
    // By subject: nodes that have it in the kernel, and when the last did.
    let mut enforced: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for node in &lab.state().nodes {
        let decisions: Vec<Decision> = lab.ask(node).json(&["decisions", "list"])?;
        let mut here: BTreeMap<String, (bool, u64)> = BTreeMap::new();
        for decision in decisions {
            let entry = here.entry(decision.subject).or_insert((false, u64::MAX));
            entry.0 |= decision.scope == "mesh";
            entry.1 = decision.enforced_unix_us.unwrap_or(u64::MAX).min(entry.1);
        }
        for (subject, (of_the_mesh, at)) in here {
            if of_the_mesh && at < u64::MAX {
                let all = enforced.entry(subject).or_default();
                *all = (all.0 + 1, at.max(all.1));
            }
        }
    }
    let mut out = Vec::new();
    for sample in 0..samples {
        let subject = source(sample).to_string();
        let done = enforced
            .get(&subject)
            .filter(|(nodes, _)| *nodes == lab.state().nodes.len());
        if let (Some(raised), Some((_, last))) = (alerted.get(&subject), done) {
            #[expect(clippy::cast_precision_loss, reason = "microseconds below 2^52")]
            out.push(last.saturating_sub(*raised) as f64 / 1_000.0);
        }
    }
    let missing = samples - out.len();
    if out.is_empty() {
        bail!("no sample was blocked on every node: {alerted:?} {enforced:?}");
    }
    Ok((out, missing))
}

fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a short list"
    )]
    let at = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Four nodes.
pub(crate) fn latency(effort: Effort) -> Result<Vec<Row>> {
    let (lab, _) = lab(4, Carrier::Grpc)?;
    attack(&lab, effort.alerts, Duration::from_millis(100))?;
    std::thread::sleep(Duration::from_secs(1));
    let (times, missing) = latencies(&lab, effort.alerts)?;
    let note = format!(
        "{} alerts, 4 nodes in namespaces, TLS with client certificates{}",
        times.len(),
        missed(missing)
    );
    Ok(vec![
        Row::new(
            "latency",
            "alert to kernel on 4 nodes, p50",
            median(times.clone()),
            "ms",
        )
        .bar(Bar::AtMost(5.0))
        .note(note),
        Row::new(
            "latency",
            "alert to kernel on 4 nodes, p99",
            percentile(&times, 0.99),
            "ms",
        )
        .bar(Bar::AtMost(25.0)),
    ])
}

fn missed(missing: usize) -> String {
    if missing == 0 {
        String::new()
    } else {
        format!("; {missing} samples were not blocked on every node")
    }
}

/// Thirty nodes, on however few processors there are.
pub(crate) fn latency_30(effort: Effort) -> Result<Vec<Row>> {
    let (lab, up) = lab(effort.nodes, Carrier::Grpc)?;
    attack(&lab, effort.alerts / 2, Duration::from_millis(500))?;
    std::thread::sleep(Duration::from_secs(3));
    let (times, missing) = latencies(&lab, effort.alerts / 2)?;
    let nodes = effort.nodes;
    Ok(vec![
        Row::new(
            "latency-30",
            format!("alert to kernel on {nodes} nodes, p50"),
            median(times.clone()),
            "ms",
        )
        .bar(Bar::AtMost(60.0))
        .note(format!("{} alerts{}", times.len(), missed(missing))),
        Row::new(
            "latency-30",
            format!("alert to kernel on {nodes} nodes, p99"),
            percentile(&times, 0.99),
            "ms",
        ),
        Row::new("latency-30", format!("{nodes} nodes brought up"), up, "s"),
    ])
}

/// Bytes that a process's network namespace has sent and received, and ticks of processor time it has used.
fn usage(pid: i32) -> Result<(u64, u64)> {
    let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))
        .context("cannot read an agent's counters")?;
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix(net::INTERFACE)?.strip_prefix(':'))
        .context("an agent without an interface")?;
    let fields: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
    let bytes = fields.first().zip(fields.get(8));
    let (received, sent) = bytes.context("an interface without counters")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15, behind the name in brackets, which is the second.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let times: Vec<u64> = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    ensure!(times.len() == 2, "/proc/{pid}/stat without times");
    Ok((received + sent, times.iter().sum()))
}

/// Nothing happens: what each node sends, receives and computes all the same.
pub(crate) fn idle(effort: Effort, carrier: Carrier) -> Result<Vec<Row>> {
    let (lab, _) = lab(effort.nodes, carrier)?;
    let (group, over) = match carrier {
        Carrier::Grpc => ("idle", ""),
        Carrier::Nats => ("idle-nats", " over NATS"),
    };
    std::thread::sleep(effort.calm);
    let pids: Vec<i32> = lab
        .state()
        .nodes
        .iter()
        .filter_map(|node| Some(node.agent.as_ref()?.pid))
        .collect();
    let read = || {
        pids.iter()
            .map(|pid| usage(*pid))
            .collect::<Result<Vec<_>>>()
    };
    let (start, before) = (Instant::now(), read()?);
    std::thread::sleep(effort.quiet);
    let (seconds, after) = (start.elapsed().as_secs_f64(), read()?);
    #[expect(clippy::cast_precision_loss, reason = "bytes and ticks of seconds")]
    let per_second: Vec<(f64, f64)> = before
        .iter()
        .zip(&after)
        .map(|(b, a)| {
            let bytes = a.0.saturating_sub(b.0) as f64 / seconds / 1_000.0;
            let cpu = 100.0 * a.1.saturating_sub(b.1) as f64 / TICKS / seconds;
            (bytes, cpu)
        })
        .collect();
    let nodes = effort.nodes;
    #[expect(clippy::cast_precision_loss, reason = "some nodes")]
    let count = per_second.len().max(1) as f64;
    let (bytes, cpu) = per_second
        .iter()
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let most = per_second.iter().map(|one| one.0).fold(0.0, f64::max);
    Ok(vec![
        Row::new(
            group,
            format!("traffic of a node, {nodes} nodes idle{over}"),
            bytes / count,
            "kB/s",
        )
        .bar(Bar::AtMost(5.0))
        .note(format!(
            "sent and received, all layers; most of one node {most:.1} kB/s"
        )),
        Row::new(
            group,
            format!("processor of a node, {nodes} nodes idle{over}"),
            cpu / count,
            "% of a core",
        )
        .bar(Bar::AtMost(1.0)),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use secmesh::addr::Prefix;
    use secmesh::mesh::vote::network_of;

    use super::*;

    #[test]
    fn no_two_samples_are_of_one_network() {
        // With `--full`, and beyond.
        let networks: BTreeSet<Option<Prefix>> = (0..1_000)
            .map(|sample| network_of(&Prefix::host(source(sample).into())))
            .collect();
        assert_eq!(networks.len(), 1_000);
        assert!(!networks.contains(&None));
    }
}
