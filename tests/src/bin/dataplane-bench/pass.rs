//! The packet of somebody whom nobody blocked, with a large blocklist and everything armed.

use anyhow::Result;
use secmesh_tests::{
    frames::{
        IPV4, IPV6, SOURCE4, SOURCE6, ethernet, ipv4_from, ipv6_from, protocol, tcp_to, udp_to,
    },
    livegen::Bare,
    wire::Wire,
};
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

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let lists = [false, true].map(|ipv6| Blocked::new(ipv6, effort.hosts, effort.prefixes));
    let [v4, v6] = lists;
    let (v4, v6) = (v4?, v6?);
    let mut plain = ours::load(&[&v4, &v6])?;
    let mut flows = ours::load(&[&v4, &v6])?;
    ours::arm(&mut plain, false)?;
    ours::arm(&mut flows, true)?;
    let plain = plain.dataplane.program()?.info()?.id();
    let flows = flows.dataplane.program()?.info()?.id();
    let mut floor = Bare::passing()?;
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
            let [plain, flows, theirs, least] = testrun::measure(
                effort,
                &frame,
                [side(plain), side(flows), side(filter.program), side(floor)],
            )?;
            for (state, own, bar) in [("off", plain, 1.0), ("on", flows, 1.6)] {
                let name = format!("{kind}, {family}, flow records {state}");
                let row = Row::new(GROUP, name, own, "ns/packet")
                    .beside("xdp-filter", theirs)
                    .bar(Bar::AtMost(bar))
                    .note(format!(
                        "armed: {}; {}; a program that only passes takes {least:.0}",
                        ours::ARMED,
                        ours::FLOWS
                    ));
                rows.push(row);
            }
        }
    }
    Ok(rows)
}
