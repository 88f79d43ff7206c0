//! What the loaded program must do with a fixture, and whether it does: verdict, counters, output bytes.
//!
//! Shared by the tests of this machine's kernel and by the guest of `cargo xtask vm`.

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, ensure};
use secmesh::{
    addr::Prefix,
    dataplane::{Compiled, Mode, Span},
    respond::Now,
};
use secmesh_common::{
    block::origin,
    counters::{Counter, Counters},
    packet::{Captured, Family, Malformed, Packet, parse_addresses},
};

use crate::{
    fixtures::{self, Fixture},
    frames::hex,
    kernel::{Kernel, LONG_NS, XDP_DROP, XDP_PASS, options, shown, without_events},
};

/// What the block maps and lists say of the fixtures' sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// Nothing.
    No,
    /// Each source by an exact entry.
    Exact,
    /// Their networks.
    Prefix,
    /// Their networks, and each source is on the allowlist.
    Allowlisted,
    /// Nothing, but a list names each source.
    Listed,
    /// Nothing, but a list names their networks.
    ListedNetwork,
}

impl Blocked {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::No,
        Self::Exact,
        Self::Prefix,
        Self::Allowlisted,
        Self::Listed,
        Self::ListedNetwork,
    ];
}

const SOURCES: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];
const NETWORKS: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/48"];
/// The same as numbers.
const SOURCES4: u32 = 0xc633_6407;
const SOURCES6: u128 = 0x2001_0db8_0001_0000_0000_0000_0000_0007;
const NETWORKS4: RangeInclusive<u32> = 0xc633_6400..=0xc633_64ff;
const NETWORKS6: RangeInclusive<u128> =
    0x2001_0db8_0001_0000_0000_0000_0000_0000..=0x2001_0db8_0001_ffff_ffff_ffff_ffff_ffff;

/// A prefix from its text.
///
/// # Errors
/// When it is none.
pub fn prefix(text: &str) -> Result<Prefix> {
    text.parse().with_context(|| text.to_owned())
}

/// `CLOCK_MONOTONIC`, ns.
///
/// # Errors
/// When there is no such clock.
pub fn now_ns() -> Result<u64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// Blocks an address or network for longer than any test.
///
/// # Errors
/// When it is none, or the kernel refuses the entry.
pub fn block(kernel: &mut Kernel, what: &str) -> Result<()> {
    block_until(kernel, what, now_ns()? + LONG_NS)
}

/// Blocks an address or network until `until_ns` (`CLOCK_MONOTONIC`).
///
/// # Errors
/// When it is none, or the kernel refuses the entry.
pub fn block_until(kernel: &mut Kernel, what: &str, until_ns: u64) -> Result<()> {
    // As the agent does: the program is told of a prefix before there is one.
    kernel.dataplane.set_sizes(1, 1, 0)?;
    kernel
        .blocks
        .put(&prefix(what)?, until_ns, 7, origin::OPERATOR)?;
    Ok(())
}

/// A loaded program with small maps, in this mode and with these blocks.
///
/// # Errors
/// What the kernel says.
pub fn kernel_with(blocked: Blocked, mode: Mode) -> Result<Kernel> {
    let mut kernel = Kernel::load(&options())?;
    kernel.dataplane.set_mode(mode)?;
    set_blocked(&mut kernel, blocked)?;
    Ok(kernel)
}

/// Blocks and allows what `blocked` says, and nothing else of what this module blocks and allows.
///
/// # Errors
/// When the kernel refuses an entry.
pub fn set_blocked(kernel: &mut Kernel, blocked: Blocked) -> Result<()> {
    for entry in SOURCES.iter().chain(&NETWORKS) {
        kernel.blocks.remove(&prefix(entry)?)?;
    }
    let entries = match blocked {
        Blocked::No | Blocked::Listed | Blocked::ListedNetwork => [].as_slice(),
        Blocked::Exact => &SOURCES,
        Blocked::Prefix | Blocked::Allowlisted => &NETWORKS,
    };
    for entry in entries {
        block(kernel, entry)?;
    }
    let allowed: Vec<Prefix> = match blocked {
        Blocked::Allowlisted => SOURCES.iter().map(|s| prefix(s)).collect::<Result<_>>()?,
        _ => Vec::new(),
    };
    kernel.allows.replace(&allowed)?;
    let wanted = match blocked {
        Blocked::Listed => Compiled {
            hosts4: vec![listed(SOURCES4..=SOURCES4)],
            hosts6: vec![listed(SOURCES6..=SOURCES6)],
            ..Compiled::default()
        },
        Blocked::ListedNetwork => Compiled {
            ranges4: vec![listed(NETWORKS4)],
            ranges6: vec![listed(NETWORKS6)],
            ..Compiled::default()
        },
        _ => Compiled::default(),
    };
    let now = Now {
        unix_us: 0,
        mono_ns: now_ns()?,
    };
    let generation = kernel.allows.generation();
    kernel
        .lists
        .replace(&wanted, generation, now, &mut |_| {})?;
    Ok(())
}

/// A span of a list, for good.
fn listed<A: Copy>(of: RangeInclusive<A>) -> Span<A> {
    Span {
        start: *of.start(),
        end: *of.end(),
        expires_unix_s: u64::MAX,
        list: 1,
    }
}

/// The verdict and the counters that follow from what the parser says.
pub fn expected(
    parsed: Result<Packet, Malformed>,
    frame: &[u8],
    blocked: Blocked,
    mode: Mode,
) -> (u32, Counters) {
    let mut moved = Counters {
        rx_packets: 1,
        rx_bytes: frame.len() as u64,
        ..Counters::default()
    };
    // A block is looked up as soon as the addresses are known: what comes after them is not looked at.
    let parsed = match blocked {
        Blocked::Exact | Blocked::Prefix | Blocked::Listed | Blocked::ListedNetwork => {
            parse_addresses(&Captured::whole(frame))
        }
        Blocked::No | Blocked::Allowlisted => parsed,
    };
    let enforce = mode == Mode::Enforce;
    let mut refuse = |enforced: Counter, monitored: Counter| {
        *moved.get_mut(if enforce { enforced } else { monitored }) += 1;
        if enforce { XDP_DROP } else { XDP_PASS }
    };
    let action = match (parsed, blocked) {
        (Err(reason), _) => {
            let action = refuse(Counter::DropMalformed, Counter::WouldDropMalformed);
            *moved.get_mut(Counter::from(reason)) += 1;
            action
        }
        (Ok(packet), _) if packet.family == Family::Other => {
            moved.pass_other += 1;
            XDP_PASS
        }
        (Ok(_), Blocked::No) => {
            moved.pass += 1;
            XDP_PASS
        }
        (Ok(_), Blocked::Exact) => refuse(Counter::DropExact, Counter::WouldDropExact),
        (Ok(_), Blocked::Prefix) => refuse(Counter::DropPrefix, Counter::WouldDropPrefix),
        (Ok(_), Blocked::Listed | Blocked::ListedNetwork) => {
            refuse(Counter::DropList, Counter::WouldDropList)
        }
        (Ok(_), Blocked::Allowlisted) => {
            moved.pass_allowlist += 1;
            XDP_PASS
        }
    };
    (action, moved)
}

/// Sends a frame and compares everything with what user space makes of it.
///
/// # Errors
/// What is different, with the frame; or the kernel's refusal to run it.
pub fn compare(
    kernel: &mut Kernel,
    name: &str,
    frame: &[u8],
    parsed: Result<Packet, Malformed>,
    blocked: Blocked,
    mode: Mode,
) -> Result<()> {
    let outcome = kernel.run(frame)?;
    let (action, moved) = expected(parsed, frame, blocked, mode);
    let told = || format!("{name}, blocked: {blocked:?}, {mode} mode: {}", hex(frame));
    ensure!(
        outcome.action == action,
        "action {} instead of {action}: {}; counters: {}",
        outcome.action,
        told(),
        shown(&outcome.moved)
    );
    ensure!(
        without_events(outcome.moved) == moved,
        "counters {} instead of {}: {}",
        shown(&without_events(outcome.moved)),
        shown(&moved),
        told()
    );
    ensure!(outcome.output == frame, "the frame was changed: {}", told());
    Ok(())
}

/// Sends every fixture and compares, up to the first that differs.
///
/// # Errors
/// As [`compare`] and [`kernel_with`].
pub fn every_fixture(blocked: Blocked, mode: Mode) -> Result<()> {
    let mut kernel = kernel_with(blocked, mode)?;
    for Fixture {
        name,
        frame,
        expected,
        ..
    } in fixtures::all()
    {
        compare(&mut kernel, name, &frame, expected, blocked, mode)?;
    }
    Ok(())
}
