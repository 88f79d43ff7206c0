//! The flow table: the program that counts what leaves, and the sweep that records what has gone silent.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, Xdp,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};
use secmesh_common::flow::{FlowExport, SWEEP_SLICE, SweepOrder, UNIT_SHIFT};
use tracing::{info, warn};

use super::{Dataplane, DataplaneError, RingReader, attach, filters, take};
use crate::state::read_capped_text;

/// Where the system tells of its interfaces.
const SYSFS: &str = "/sys/class/net";
/// Counts what leaves.
pub(super) const EGRESS: &str = "secmesh_egress";
/// Records what has gone silent.
const SWEEP: &str = "secmesh_sweep";
/// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK` (`include/uapi/linux/if_arp.h`): links whose frames start with an
/// Ethernet header.
const ETHERNET_LINKS: [&str; 2] = ["1", "772"];

/// The flow table's size and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowOptions {
    /// Flows that fit, rounded up to a power of two; 328 bytes each. 0 keeps no flows.
    pub slots: u32,
    /// Silence after which a flow is over.
    pub idle: Duration,
    /// Age at which a flow that goes on is recorded and begun anew; at most 73 minutes.
    pub active: Duration,
    /// Whether outgoing packets are counted by a clsact filter also where the kernel has TCX links; for tests of what
    /// kernels before 6.6 do.
    pub by_filter: bool,
}

impl FlowOptions {
    /// Entries of the map.
    pub(super) fn entries(&self) -> u32 {
        self.slots.clamp(2, 1 << 24).next_power_of_two()
    }

    pub(super) fn enabled(&self) -> bool {
        self.slots != 0
    }
}

/// A duration in the table's units.
pub(super) fn units(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos() >> UNIT_SHIFT).unwrap_or(u32::MAX)
}

/// How an interface's outgoing packets reach the flow table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Egress {
    /// A TCX link, pinned (Linux 6.6).
    Tcx,
    /// A filter of the clsact queueing discipline, which stays when the agent ends (before Linux 6.6).
    Clsact,
    /// Not at all: flows of this interface have incoming packets only.
    Unseen {
        /// Why.
        reason: String,
    },
}

/// An interface whose flows are recorded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FlowInterface {
    /// Its name.
    pub name: String,
    /// How its outgoing packets are seen.
    #[serde(flatten)]
    pub egress: Egress,
}

/// What one sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Flows recorded.
    pub recorded: u32,
    /// Slots that hold a flow.
    pub used: u32,
    /// Whether it stopped because the ring was full; the next one goes on there.
    pub ring_full: bool,
}

/// Loads what counts and sweeps.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    egress(ebpf)?.load().map_err(DataplaneError::Verifier)?;
    sweep(ebpf)?.load().map_err(DataplaneError::Verifier)
}

fn egress(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DataplaneError> {
    ebpf.program_mut(EGRESS)
        .ok_or(DataplaneError::Missing(EGRESS))?
        .try_into()
        .map_err(DataplaneError::Verifier)
}

fn sweep(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    ebpf.program_mut(SWEEP)
        .ok_or(DataplaneError::Missing(SWEEP))?
        .try_into()
        .map_err(DataplaneError::Verifier)
}

impl Dataplane {
    /// Takes the ring of flow records.
    ///
    /// # Errors
    ///
    /// If it was taken before.
    pub fn take_flows(&mut self) -> Result<RingReader<FlowExport>, DataplaneError> {
        RingReader::new(take(&mut self.ebpf, "FLOWS")?)
    }

    /// Interfaces whose flows are recorded.
    pub fn flow_interfaces(&self) -> &[FlowInterface] {
        &self.flow_interfaces
    }

    /// The classifier that counts what leaves, for `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    ///
    /// If the object has no such program, which the build rules out.
    pub fn egress_program(&mut self) -> Result<&mut SchedClassifier, DataplaneError> {
        egress(&mut self.ebpf)
    }

    /// Slots of the flow table; 0 if no flows are kept.
    pub fn flow_slots(&self) -> u32 {
        if self.flows.enabled() {
            self.flows.entries()
        } else {
            0
        }
    }

    /// Looks at the next `slices` × [`SWEEP_SLICE`] slots and records what has gone silent; after the last
    /// slot it begins anew.
    ///
    /// # Errors
    ///
    /// If the kernel does not run the program.
    pub fn sweep_flows(&mut self, slices: u32) -> Result<Swept, DataplaneError> {
        let slots = self.flow_slots();
        let mut all = Swept::default();
        if slots == 0 {
            return Ok(all);
        }
        for _ in 0..slices {
            let from = self.sweep_from;
            let answer = run(sweep(&mut self.ebpf)?, from)?;
            all.recorded = all.recorded.saturating_add(answer.recorded);
            all.used = all.used.saturating_add(answer.used);
            let looked = answer.next.saturating_sub(from);
            self.sweep_from = if answer.next >= slots { 0 } else { answer.next };
            if looked < SWEEP_SLICE {
                all.ring_full = true;
                break;
            }
        }
        Ok(all)
    }

    /// Attaches the program that counts what leaves `interface`. Failing is no error: flows then have one
    /// direction, and status says so.
    pub(super) fn attach_egress(&mut self, interface: &str) {
        let path = self.pin_dir.as_deref().map(|dir| pin_path(dir, interface));
        if !self.flows.enabled() {
            // An earlier agent may have counted.
            if let Some(path) = path {
                if path.exists()
                    && let Err(error) = attach::unpin(&path)
                {
                    warn!(interface, %error, "the program that counted flows stays");
                }
                remove_filter(interface);
            }
            return;
        }
        let seen = egress(&mut self.ebpf)
            .map_err(|e| e.to_string())
            .and_then(|program| {
                attach_to(program, interface, path.as_deref(), self.flows.by_filter)
            })
            .unwrap_or_else(|reason| {
                warn!(interface, %reason, "flow records have incoming packets only");
                Egress::Unseen { reason }
            });
        self.flow_interfaces.push(FlowInterface {
            name: interface.to_owned(),
            egress: seen,
        });
    }
}

/// As [`attach::switch_pinned`], for the program that counts what leaves.
pub(super) fn switch_pinned(ebpf: &mut Ebpf, interface: &str, dir: &Path) {
    let path = pin_path(dir, interface);
    let switched = egress(ebpf).map_err(|e| e.to_string()).and_then(|program| {
        if path.exists() {
            take_over(program, interface, &path)?;
        }
        filters::take_over(program, interface)
    });
    if let Err(reason) = switched {
        warn!(interface, %reason, "the program that counts flows stays the old one");
    }
}

fn run(program: &Xdp, from: u32) -> Result<SweepOrder, DataplaneError> {
    let mut packet = [0u8; 64];
    let mut out = [0u8; 64];
    for (byte, value) in packet.iter_mut().zip(from.to_ne_bytes()) {
        *byte = value;
    }
    program
        .test_run(TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })
        .map_err(DataplaneError::Verifier)?;
    let word = |at: usize| {
        out.get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    };
    Ok(SweepOrder {
        from: word(0),
        next: word(4),
        recorded: word(8),
        used: word(12),
    })
}

fn attach_to(
    program: &mut SchedClassifier,
    interface: &str,
    pin: Option<&Path>,
    by_filter: bool,
) -> Result<Egress, String> {
    let kind =
        read_capped_text(&Path::new(SYSFS).join(interface).join("type"), 64).unwrap_or_default();
    // A network name space of a test may see another one's sysfs; what cannot be read is tried.
    if !kind.is_empty() && !ETHERNET_LINKS.contains(&kind.trim()) {
        return Err(format!(
            "{interface} is no Ethernet link (type {})",
            kind.trim()
        ));
    }
    let stays = pin.is_some();
    if by_filter {
        return filters::put(program, interface, stays).map(|()| Egress::Clsact);
    }
    if let Some(path) = pin
        && path.exists()
        && take_over(program, interface, path)?
    {
        return Ok(Egress::Tcx);
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::last());
    match program.attach_with_options(interface, TcAttachType::Egress, order) {
        Ok(id) => {
            let Some(path) = pin else {
                return Ok(Egress::Tcx);
            };
            let link = program.take_link(id).map_err(|e| attach::chain(&e))?;
            let link = FdLink::try_from(link).map_err(|e| attach::chain(&e))?;
            link.pin(path).map_err(|e| attach::chain(&e))?;
            // Of an agent that could not have links; both would count.
            remove_filter(interface);
            Ok(Egress::Tcx)
        }
        Err(tcx) => filters::put(program, interface, stays)
            .map(|()| Egress::Clsact)
            .map_err(|legacy| format!("tcx: {}; clsact: {legacy}", attach::chain(&tcx))),
    }
}

/// Puts our program into a pinned link in one step. `false`: the link's interface is gone, so the pin was
/// removed.
fn take_over(program: &mut SchedClassifier, interface: &str, path: &Path) -> Result<bool, String> {
    let pinned = PinnedLink::from_pin(path).map_err(|e| attach::chain(&e))?;
    let link =
        SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(|e| attach::chain(&e))?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin holds the link; ours is only let go so that dropping the program does not detach.
            drop(program.take_link(id).map_err(|e| attach::chain(&e))?);
            info!(
                interface,
                "took over the pinned flow link of an earlier agent"
            );
            Ok(true)
        }
        Err(error) => {
            warn!(interface, %error, "a pinned flow link cannot be taken over; making a new one");
            attach::unpin(path).map_err(|e| e.to_string())?;
            Ok(false)
        }
    }
}

/// Takes our filters off the interfaces that `links` name.
pub(super) fn remove_filters(links: &[PathBuf]) {
    let mut names: Vec<String> = links
        .iter()
        .filter_map(|path| attach::interface_of(path))
        .collect();
    names.sort();
    names.dedup();
    for name in names {
        remove_filter(&name);
    }
}

/// Takes our filters off an interface. Most systems have none: theirs are links.
pub(super) fn remove_filter(interface: &str) {
    if let Err(error) = filters::remove(interface) {
        warn!(interface, %error, "a filter that counts flows stays; `tc filter del dev {interface} egress` removes all filters");
    }
}

fn pin_path(dir: &Path, interface: &str) -> PathBuf {
    attach::link_path(dir, "egress", interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_powers_of_two_and_times_fit() {
        let slots = |slots| FlowOptions {
            slots,
            ..FlowOptions::default()
        };
        assert!(!slots(0).enabled());
        assert_eq!(slots(0).entries(), 2);
        assert_eq!(slots(1000).entries(), 1024);
        assert_eq!(slots(u32::MAX).entries(), 1 << 24);
        assert_eq!(units(Duration::from_micros(1024)), 1000);
        assert_eq!(units(Duration::MAX), u32::MAX);
    }
}
