//! The packet of somebody whom nobody blocked, with a large blocklist and everything armed.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use aya::programs::ProgramFd;
use secmesh_tests::{
    frames::{
        ARP, DESTINATION4, DESTINATION6, IPV4, IPV6, SOURCE4, SOURCE6, ethernet, ipv4_from,
        ipv6_from, protocol, tcp_to, udp_to,
    },
    kernel::tool,
    livegen::{Bare, PLAYED, Play},
    wire::Wire,
};
use tokio::net::TcpSocket;
use xtask::bench::{Bar, Row};

use crate::{
    Effort,
    addresses::Blocked,
    drop, ours,
    peers::XdpFilter,
    testrun::{self, Side, action},
};

const GROUP: &str = "pass";
/// A source that nobody blocked.
const CLEAR4: [u8; 4] = [198, 51, 100, 99];
/// A source that nobody blocked.
const CLEAR6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x63];

/// An acknowledgement, as an established connection sends them all the time.
pub fn segment(ipv6: bool, blocked: bool) -> Vec<u8> {
    frame(ipv6, blocked, protocol::TCP, &tcp_to(50_000, 443, 0x10))
}

fn frame(ipv6: bool, blocked: bool, proto: u8, payload: &[u8]) -> Vec<u8> {
    if ipv6 {
        let source = if blocked { SOURCE6 } else { CLEAR6 };
        ethernet(&[], IPV6, &ipv6_from(source, proto, payload))
    } else {
        let source = if blocked { SOURCE4 } else { CLEAR4 };
        ethernet(&[], IPV4, &ipv4_from(source, &[], 0, proto, payload))
    }
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
            let address = address.to_string();
            // Even here nobody can bind to an IPv6 address until a worker of the kernel's has looked at it
            // (`addrconf_dad_work` in net/ipv6/addrconf.c), and that waits for everybody who changes a network.
            let at_once: &[&str] = if from.is_ipv6() { &["nodad"] } else { &[] };
            tool(
                "ip",
                &[&["addr", "add", &address, "dev", "lo"], at_once].concat(),
            )?;
        }
        let listener =
            TcpListener::bind((to, 443)).with_context(|| format!("listening at {to}"))?;
        let stream = runtime
            .block_on(async {
                let socket = match from {
                    IpAddr::V4(_) => TcpSocket::new_v4(),
                    IpAddr::V6(_) => TcpSocket::new_v6(),
                }?;
                socket.bind(SocketAddr::new(from, 50_000))?;
                socket.connect(SocketAddr::new(to, 443)).await?.into_std()
            })
            .with_context(|| format!("connecting {from} with {to}"))?;
        open.push((listener, stream));
    }
    Ok(open)
}

/// What a packet takes that comes after one of no IP protocol, and so has no lease, less what a program that only passes
/// takes: of each of our programs.
fn first_of_tick(
    effort: &Effort,
    programs: &[ProgramFd; 2],
    floor: &ProgramFd,
    frame: &[u8],
) -> Result<[f64; 2]> {
    let other = ethernet(&[], ARP, &[0; 28]);
    let mixed = [frame.to_vec(), other.clone()];
    let (mut sides, mut players) = (Vec::new(), Vec::new());
    for (program, frames) in [
        (&programs[0], &mixed[..]),
        (&programs[1], &mixed[..]),
        (&programs[0], &mixed[1..]),
        (&programs[1], &mixed[1..]),
        (floor, &mixed[1..]),
    ] {
        let mut play = Play::load(program, frames)?;
        sides.push(Side {
            program: play.program()?.info()?.id(),
            action: action(false),
        });
        players.push(play);
    }
    let sides: [Side; 5] = sides.try_into().ok().context("five")?;
    let [off, on, other_off, other_on, playing] =
        testrun::measure(effort, &[0; PLAYED], sides)?.medians();
    // Of two packets one is the other; and each is put in its place.
    let alone = |both: f64, other: f64| 2.0f64.mul_add(both, -other) - playing;
    Ok([alone(off, other_off), alone(on, other_on)])
}

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let lists = [false, true].map(|ipv6| Blocked::new(ipv6, effort.hosts, effort.prefixes));
    let [v4, v6] = lists;
    let (v4, v6) = (v4?, v6?);
    let mut plain = ours::load(&[&v4, &v6])?;
    let mut flows = ours::load_with_flows(&[&v4, &v6])?;
    ours::arm(&mut plain)?;
    ours::arm(&mut flows)?;
    // The segments that pass belong to connections: what belongs to none would be dropped as a flood.
    let _connections = connections()?;
    let mut floor = Bare::passing()?;
    let fds = [
        plain.dataplane.program()?.fd()?.try_clone()?,
        flows.dataplane.program()?.fd()?.try_clone()?,
    ];
    let floor_fd = floor.program()?.fd()?.try_clone()?;
    let plain = plain.dataplane.program()?.info()?.id();
    let flows = flows.dataplane.program()?.info()?.id();
    let floor = floor.program()?.info()?.id();
    let wire = Wire::new(0)?;
    let filter = XdpFilter::load(&wire, &drop::blocked(), "skb")?;
    let mut rows = Vec::new();
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let datagram = frame(ipv6, false, protocol::UDP, &udp_to(50_000, 443, b"secmesh"));
        for (kind, frame) in [("TCP", segment(ipv6, false)), ("UDP", datagram)] {
            let side = |program| Side {
                program,
                action: action(false),
            };
            let alone = first_of_tick(effort, &fds, &floor_fd, &frame)?;
            let turns = testrun::measure(
                effort,
                &frame,
                [side(plain), side(flows), side(filter.program), side(floor)],
            )?;
            let [plain, flows, theirs, least] = turns.medians();
            for (side, state, own, bar) in [(0, "off", plain, 1.0), (1, "on", flows, 1.6)] {
                let name = format!("{kind}, {family}, flow records {state}");
                let row = Row::new(GROUP, name, own, "ns/packet")
                    .beside("xdp-filter", theirs)
                    .by_turns(turns.pairs(side, 2))
                    .bar(Bar::AtMost(bar))
                    .note(format!(
                        "armed: {}; a program that only passes takes {least:.0}",
                        ours::ARMED
                    ));
                rows.push(row);
            }
            for (state, own) in ["off", "on"].into_iter().zip(alone) {
                let name = format!("{kind}, {family}, flow records {state}, first of its tick");
                rows.push(
                    Row::new(GROUP, name, own + least, "ns/packet")
                        .beside("xdp-filter", theirs)
                        .note("what a packet costs that has no lease"),
                );
            }
        }
    }
    Ok(rows)
}
