//! Nanoseconds per packet of our program and of xdp-filter's, on the same packet in the same run.
//!
//! Prints one JSON array of rows; `cargo xtask bench dataplane` builds, runs and frames it. Both
//! programs are timed by the same call, `bpftool prog run … repeat N`, in turns, so that whatever else
//! the machine does meets both; the value is the median over the turns. A whole nanosecond is what the
//! kernel tells, so differences of one mean nothing.
//!
//! xdp-filter is loaded with what we do here and no more: both address families and the policy "allow".
//! Its program is run as its user gets it, below libxdp's dispatcher where libxdp makes one.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use secmesh::{addr::Prefix, config::Config, dataplane::LoadOptions};
use secmesh_common::block::origin;
use secmesh_tests::{
    frames::{
        DESTINATION4, DESTINATION6, IPV4, IPV6, SOURCE4, SOURCE6, ethernet, ipv4_from, ipv6_from,
        protocol, tcp_to,
    },
    kernel::{Kernel, LONG_NS, XDP_DROP, XDP_PASS, isolate, options, tool},
};
use tokio::net::TcpSocket;
use xtask::{bench::Row, sh};

/// Packets in one turn.
const REPEAT: &str = "1000000";
/// Turns of each program; odd, so that the median is one of them.
const TURNS: usize = 15;
/// What the turns of both programs share.
const INTERFACE: &str = "bench0";
/// A source that nobody blocked.
const CLEAR4: [u8; 4] = [198, 51, 100, 99];
/// A source that nobody blocked.
const CLEAR6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x63];

/// One measurement.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    action: u32,
}

fn main() -> Result<()> {
    for program in ["bpftool", "xdp-filter", "ip"] {
        ensure!(
            sh::which(program).is_some(),
            "{program} is not installed; `cargo xtask setup` installs it"
        );
    }
    isolate()?;
    // The packets that pass belong to connections: what belongs to none would be dropped as a flood.
    let _connections = connections()?;
    let mut ours = ours()?;
    let ours = ours.dataplane.program()?.info()?.id();
    let theirs = xdp_filter()?;
    let rows = cases()
        .iter()
        .map(|case| measure(case, ours, theirs))
        .collect::<Result<Vec<Row>>>()?;
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

fn blocked() -> [IpAddr; 2] {
    [
        Ipv4Addr::from(SOURCE4).into(),
        Ipv6Addr::from(SOURCE6).into(),
    ]
}

/// Connections of this network with itself that the packets which pass belong to.
fn connections() -> Result<Vec<(TcpListener, TcpStream)>> {
    tool("ip", &["link", "set", "lo", "up"])?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut open = Vec::new();
    for (from, to) in [
        (IpAddr::from(CLEAR4), IpAddr::from(DESTINATION4)),
        (IpAddr::from(CLEAR6), IpAddr::from(DESTINATION6)),
    ] {
        for address in [from, to] {
            tool("ip", &["addr", "add", &address.to_string(), "dev", "lo"])?;
        }
        let listener = TcpListener::bind((to, 443))?;
        let stream = runtime.block_on(async {
            let socket = match from {
                IpAddr::V4(_) => TcpSocket::new_v4(),
                IpAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            socket.bind(SocketAddr::new(from, 50_000))?;
            socket.connect(SocketAddr::new(to, 443)).await?.into_std()
        })?;
        open.push((listener, stream));
    }
    Ok(open)
}

/// Our program as the agent loads it by default, enforcing, with one block of each family.
fn ours() -> Result<Kernel> {
    let mut kernel = Kernel::load(&LoadOptions {
        max_blocks: 131_072,
        max_prefixes: 16_384,
        protection: Config::default().protection(false),
        ..options()
    })?;
    for source in blocked() {
        kernel
            .blocks
            .put(&Prefix::host(source), u64::MAX - LONG_NS, 1, origin::MESH)?;
    }
    Ok(kernel)
}

/// Loads xdp-filter with the same two blocks; gives the id of what it attached.
fn xdp_filter() -> Result<u32> {
    let peer = format!("{INTERFACE}p");
    tool(
        "ip",
        &[
            "link", "add", INTERFACE, "type", "veth", "peer", "name", &peer,
        ],
    )?;
    tool(
        "xdp-filter",
        &["load", "-m", "skb", "-f", "ipv4,ipv6", INTERFACE],
    )?;
    for source in blocked() {
        tool("xdp-filter", &["ip", &source.to_string(), "-m", "src"])?;
    }
    let text = tool("bpftool", &["-j", "net", "show", "dev", INTERFACE])?;
    let shown: serde_json::Value = serde_json::from_str(&text)?;
    let id = shown
        .pointer("/0/xdp/0/id")
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("bpftool names no XDP program: {text}"))?;
    Ok(u32::try_from(id)?)
}

fn cases() -> [Case; 4] {
    // An acknowledgement, as an established connection sends them all the time.
    let segment = tcp_to(50_000, 443, 0x10);
    let v4 = |source| {
        ethernet(
            &[],
            IPV4,
            &ipv4_from(source, &[], 0, protocol::TCP, &segment),
        )
    };
    let v6 = |source| ethernet(&[], IPV6, &ipv6_from(source, protocol::TCP, &segment));
    let case = |name, frame, action| Case {
        name,
        frame,
        action,
    };
    [
        case("pass, IPv4", v4(CLEAR4), XDP_PASS),
        case("drop, IPv4", v4(SOURCE4), XDP_DROP),
        case("pass, IPv6", v6(CLEAR6), XDP_PASS),
        case("drop, IPv6", v6(SOURCE6), XDP_DROP),
    ]
}

fn measure(case: &Case, ours: u32, theirs: u32) -> Result<Row> {
    let (mut own, mut peer) = (Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        // Who goes first alternates, so that neither always runs on the warmer processor.
        let mut pair = [(ours, &mut own), (theirs, &mut peer)];
        if turn % 2 == 1 {
            pair.reverse();
        }
        for (program, times) in pair {
            let time = run(program, case)?;
            // The first turn only warms up.
            if turn > 0 {
                times.push(time);
            }
        }
    }
    let (own, peer) = (median(own)?, median(peer)?);
    Ok(Row::new(
        case.name,
        own,
        "ns/packet",
        Some(("xdp-filter", peer)),
    ))
}

fn median(mut times: Vec<u32>) -> Result<f64> {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).context("nothing was measured")?;
    Ok(f64::from(*middle))
}

/// One turn: average ns per packet.
fn run(program: u32, case: &Case) -> Result<u32> {
    let id = program.to_string();
    let mut child = Command::new(sh::which("bpftool").context("bpftool")?)
        .args([
            "-j", "prog", "run", "id", &id, "data_in", "-", "repeat", REPEAT,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped above")?;
    input.write_all(&case.frame)?;
    drop(input);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("bpftool prog run id {id}: {text}");
    }
    let shown: serde_json::Value = serde_json::from_str(&text).with_context(|| text.to_string())?;
    let number = |name| shown.get(name).and_then(serde_json::Value::as_u64);
    let action = number("retval").with_context(|| text.to_string())?;
    ensure!(
        action == u64::from(case.action),
        "{}: program {id} answers {action} instead of {}",
        case.name,
        case.action
    );
    let time = number("duration").with_context(|| text.to_string())?;
    Ok(u32::try_from(time)?)
}
