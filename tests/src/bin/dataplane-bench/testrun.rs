//! Nanoseconds per packet by `BPF_PROG_TEST_RUN`, the same frame again and again.
//!
//! A whole nanosecond is what the kernel tells, so differences of one mean nothing.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use secmesh_tests::kernel::{XDP_DROP, XDP_PASS};
use xtask::{bench::median, sh};

use crate::Effort;

/// A program and what it must answer.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    /// Its number in the kernel.
    pub program: u32,
    /// The action.
    pub action: u32,
}

/// The action of a program that blocks the source, or does not.
pub fn action(blocked: bool) -> u32 {
    if blocked { XDP_DROP } else { XDP_PASS }
}

/// Turns for each of [`Effort::turns`], with half of its packets each: a virtual machine may be half as fast for a moment,
/// and the middle one of seven is then of that moment.
const PARTS: usize = 3;

/// Packets of each side in a [`measure`], those of its first turn too.
pub fn packets(effort: &Effort) -> Result<u64> {
    let turns = u64::try_from(effort.turns * PARTS + 1)?;
    Ok(turns * u64::from(effort.packets / 2))
}

/// What each side took in each turn, ns per packet.
#[derive(Debug)]
pub struct Turns<const N: usize>([Vec<f64>; N]);

impl<const N: usize> Turns<N> {
    /// The median of each side.
    pub fn medians(&self) -> [f64; N] {
        self.0.each_ref().map(|times| median(times.clone()))
    }

    /// The turns of two sides.
    pub fn pairs(&self, own: usize, other: usize) -> impl Iterator<Item = (f64, f64)> {
        let times = |side: usize| self.0.get(side).into_iter().flatten().copied();
        times(own).zip(times(other))
    }
}

/// Runs all sides in turns.
pub fn measure<const N: usize>(
    effort: &Effort,
    frame: &[u8],
    sides: [Side; N],
) -> Result<Turns<N>> {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for turn in 0..=effort.turns * PARTS {
        let mut order: Vec<(Side, &mut Vec<f64>)> = sides.into_iter().zip(&mut times).collect();
        // Who goes first changes, so that nobody always runs on the warmer processor.
        let first = turn % N.max(1);
        order.rotate_left(first);
        for (side, times) in order {
            let time = run(side, frame, effort.packets / 2)?;
            // The first turn only warms up.
            if turn > 0 {
                times.push(time);
            }
        }
    }
    Ok(Turns(times))
}

/// One turn: average ns per packet.
fn run(side: Side, frame: &[u8], packets: u32) -> Result<f64> {
    use std::io::Write as _;

    let id = side.program.to_string();
    let repeat = packets.to_string();
    let mut command = sh::command("bpftool");
    command.args([
        "-j", "prog", "run", "id", &id, "data_in", "-", "repeat", &repeat,
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped above")?;
    input.write_all(frame)?;
    drop(input);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("bpftool prog run id {id}: {text}");
    }
    let shown: serde_json::Value = serde_json::from_str(&text).with_context(|| text.to_string())?;
    let number = |name| shown.get(name).and_then(serde_json::Value::as_u64);
    let answer = number("retval").with_context(|| text.to_string())?;
    ensure!(
        answer == u64::from(side.action),
        "program {id} answers {answer} instead of {}",
        side.action
    );
    let time = number("duration").with_context(|| text.to_string())?;
    Ok(u32::try_from(time)?.into())
}
