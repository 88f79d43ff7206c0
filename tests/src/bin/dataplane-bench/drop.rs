//! The packet of a blocked source, beside xdp-filter with one rule of each family.
//!
//! xdp-filter is loaded with what we do here and no more: both address families and the policy "allow".
//! Its program is run as its user gets it, below libxdp's dispatcher where libxdp makes one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use secmesh::addr::Prefix;
use secmesh_common::block::origin;
use secmesh_tests::{
    frames::{SOURCE4, SOURCE6},
    kernel::{Kernel, LONG_NS, options},
    livegen::Bare,
    wire::Wire,
};
use xtask::bench::{Bar, Row};

use crate::{
    Effort, ours, pass,
    peers::XdpFilter,
    testrun::{self, Side, action},
};

const GROUP: &str = "drop";

/// What [`rows`] and the pass rows block.
pub fn blocked() -> [IpAddr; 2] {
    [
        Ipv4Addr::from(SOURCE4).into(),
        Ipv6Addr::from(SOURCE6).into(),
    ]
}

/// Blocks the fixtures' sources by decisions.
pub fn block(kernel: &mut Kernel) -> Result<()> {
    for source in blocked() {
        let until = u64::MAX - LONG_NS;
        kernel
            .blocks
            .put(&Prefix::host(source), until, 1, origin::MESH)?;
    }
    Ok(())
}

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let mut kernel = Kernel::load(&options())?;
    block(&mut kernel)?;
    let own = kernel.dataplane.program()?.info()?.id();
    let mut floor = Bare::dropping()?;
    let floor = floor.program()?.info()?.id();
    let wire = Wire::new(0)?;
    let filter = XdpFilter::load(&wire, &blocked(), "skb")?;
    let mut rows = Vec::new();
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        for (state, dropped) in [("dropped", true), ("passed", false)] {
            let frame = pass::segment(ipv6, dropped);
            let side = |program, action| Side { program, action };
            let before = ours::dropped(&kernel.counters()?);
            let turns = testrun::measure(
                effort,
                &frame,
                [
                    side(own, action(dropped)),
                    side(filter.program, action(dropped)),
                    side(floor, action(true)),
                ],
            )?;
            let moved = ours::dropped(&kernel.counters()?) - before;
            let expected = if dropped {
                testrun::packets(effort)?
            } else {
                0
            };
            anyhow::ensure!(moved == expected, "{moved} drops counted, not {expected}");
            let [own, theirs, least] = turns.medians();
            let row = Row::new(GROUP, format!("{state}, {family}"), own, "ns/packet")
                .beside("xdp-filter", theirs)
                .by_turns(turns.pairs(0, 1))
                .note(format!(
                    "a program that only drops takes {least:.0}; net ratio {:.2}",
                    (own - least) / (theirs - least)
                ));
            rows.push(if dropped {
                row.bar(Bar::AtMost(0.5))
            } else {
                row
            });
        }
    }
    Ok(rows)
}
