//! What the shortest way to a drop leaves to the others, for sources that a list names and that a decision blocks: in
//! and out of a flood.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use secmesh::{
    addr::Prefix,
    dataplane::{Compiled, Mode},
};
use secmesh_common::{block::origin, reason::Reason};
use secmesh_tests::{
    chaos::mono_ns,
    kernel::{Kernel, LONG_NS, XDP_PASS, options, shown},
    lists::{frame, replace, span},
    netns::pin,
};

/// Enough for a flood of listed sources, and for a source to be hot.
const FLOOD: u32 = 1_000;
/// More than one of them goes the long way all the same.
const MANY: u32 = 200;

/// A kernel with, of each family, a source that a list names, one in a listed range, and one that a decision blocks; all
/// of them are sending.
fn sending() -> Result<(Kernel, [(IpAddr, Reason); 6])> {
    // What is known of the latest packets is one processor's.
    pin(Pid::from_raw(0), 0)?;
    let mut kernel = Kernel::load(&options())?;
    let base = 0x2001_0db8_u128 << 96;
    let wanted = Compiled {
        hosts4: vec![span(0xc633_6407, 0xc633_6407, 1)],
        ranges4: vec![span(0xcb00_7100, 0xcb00_71ff, 2)],
        hosts6: vec![span(base | 7, base | 7, 1)],
        ranges6: vec![span(base | (1 << 80), base | ((2 << 80) - 1), 2)],
    };
    replace(&mut kernel.lists, &wanted)?;
    let sources = [
        ("198.51.100.7", Reason::List),
        ("2001:db8::7", Reason::List),
        ("203.0.113.9", Reason::List),
        ("2001:db8:1::9", Reason::List),
        ("192.0.2.1", Reason::Exact),
        ("2001:db8:7::1", Reason::Exact),
    ];
    let sources: Vec<(IpAddr, Reason)> = sources
        .into_iter()
        .map(|(text, reason)| Ok((text.parse()?, reason)))
        .collect::<Result<_>>()?;
    let sources: [(IpAddr, Reason); 6] = sources.try_into().ok().context("six")?;
    for (source, reason) in sources {
        if reason == Reason::Exact {
            let end_ns = mono_ns()? + LONG_NS;
            let prefix = Prefix::host(source);
            kernel.blocks.put(&prefix, end_ns, 1, origin::OPERATOR)?;
        }
        heat(&mut kernel, source)?;
    }
    Ok((kernel, sources))
}

/// Sends until everything is in the shortest way that can be.
fn heat(kernel: &mut Kernel, source: IpAddr) -> Result<()> {
    let moved = kernel.run_many(&frame(source), FLOOD)?;
    let dropped = moved.drop_list + moved.drop_exact;
    ensure!(dropped == u64::from(FLOOD), "{source}: {}", shown(&moved));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn who_was_allowed_since_the_lists_were_written_gets_through_at_once() -> Result<()> {
    let (mut kernel, sources) = sending()?;
    for (source, _) in sources {
        heat(&mut kernel, source)?;
        kernel.allows.replace(&[Prefix::host(source)])?;
        let moved = kernel.run_many(&frame(source), MANY)?;
        ensure!(
            moved.pass + moved.pass_allowlist == u64::from(MANY),
            "{source}: {}",
            shown(&moved)
        );
        kernel.allows.replace(&[])?;
        heat(&mut kernel, source)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn each_packet_of_who_is_sending_already_is_captured() -> Result<()> {
    let (mut kernel, sources) = sending()?;
    let mut captures = kernel.dataplane.take_captures()?;
    for (source, reason) in sources {
        heat(&mut kernel, source)?;
        captures.start(reason.bit(), 64)?;
        kernel.run_many(&frame(source), MANY)?;
        let heads = captures.take(2 * MANY as usize);
        captures.stop()?;
        ensure!(
            heads.len() == MANY as usize,
            "{source}: {} of {MANY} captured",
            heads.len()
        );
        ensure!(
            heads
                .iter()
                .all(|head| head.reason == reason as u8 && head.dropped == 1),
            "{source}: captured for another reason"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn in_monitor_mode_whoever_is_sending_already_gets_through_and_is_counted() -> Result<()> {
    let (mut kernel, sources) = sending()?;
    for (source, reason) in sources {
        heat(&mut kernel, source)?;
        kernel.dataplane.set_mode(Mode::Monitor)?;
        let moved = kernel.run_many(&frame(source), MANY)?;
        let would = match reason {
            Reason::List => moved.would_drop_list,
            _ => moved.would_drop_exact,
        };
        ensure!(would == u64::from(MANY), "{source}: {}", shown(&moved));
        ensure!(
            kernel.run(&frame(source))?.action == XDP_PASS,
            "{source} is dropped"
        );
        kernel.dataplane.set_mode(Mode::Enforce)?;
    }
    Ok(())
}
