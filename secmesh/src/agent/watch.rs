//! Flow records and processes: from the kernel's rings to who wants them.

use std::future::pending;

use secmesh_common::{
    flow::{FlowExport, SWEEP_SLICE},
    process::ProcessEvent,
};
use serde::Serialize;
use tracing::{debug, warn};

use super::core::Agent;
use crate::{
    api::types::{FlowsView, Listing},
    dataplane::{Dataplane, RingReader},
    sense::{
        flow::{FlowRecord, FlowSink, Recent, is_whole},
        process::ProcessRecord,
    },
};

/// Records taken from a ring before anything else gets a turn.
const BATCH: usize = 512;
/// Turns of the loop's clock in which the whole flow table is swept once: four seconds.
const SWEEP_TURNS: u32 = 20;

/// What the agent keeps of flows and processes.
#[derive(Default)]
pub(super) struct Watched {
    pub flows: Recent<FlowRecord>,
    pub processes: Recent<ProcessRecord>,
    /// Why processes are not watched; `None` if they are.
    pub no_processes: Option<String>,
    /// Seed of the flow table's hash.
    pub seed: u64,
    /// Records whose parts are of two flows.
    pub flows_mixed: u64,
    /// Records that this version does not know.
    pub unknown: u64,
    /// Slots that held a flow, counted in the current round of the sweep and in the last one.
    in_use: (u32, u32),
    turn: u32,
}

/// The rings that feed it.
pub(super) struct WatchStreams {
    pub flows: Option<RingReader<FlowExport>>,
    pub processes: Option<RingReader<ProcessEvent>>,
    flow_batch: Vec<FlowExport>,
    process_batch: Vec<ProcessEvent>,
}

impl Watched {
    /// Opens the rings that the configuration wants. Processes that cannot be watched are no reason not to run.
    pub fn open(
        dataplane: &mut Dataplane,
        processes: bool,
        seed: u64,
    ) -> Result<(Self, WatchStreams), crate::dataplane::DataplaneError> {
        let flows = match dataplane.flow_slots() {
            0 => None,
            _ => Some(dataplane.take_flows()?),
        };
        let (ring, no_processes) = if processes {
            match dataplane.watch_processes() {
                Ok(ring) => (Some(ring), None),
                Err(error) => {
                    warn!(%error, "processes are not watched");
                    (None, Some(error.to_string()))
                }
            }
        } else {
            (None, Some("off".to_owned()))
        };
        let watched = Self {
            no_processes,
            seed,
            ..Self::default()
        };
        let streams = WatchStreams {
            flows,
            processes: ring,
            flow_batch: Vec::new(),
            process_batch: Vec::new(),
        };
        Ok((watched, streams))
    }
}

impl WatchStreams {
    /// Waits until one of the rings has something. Cancel safe: what was read stays in the batches.
    pub async fn ready(&mut self) {
        let flows = read(&mut self.flows, &mut self.flow_batch);
        let processes = read(&mut self.processes, &mut self.process_batch);
        tokio::select! {
            () = flows => {}
            () = processes => {}
        }
    }
}

/// Reads; a ring that fails is read no more, one that is not there never has anything.
async fn read<T: aya::Pod>(ring: &mut Option<RingReader<T>>, batch: &mut Vec<T>) {
    let Some(reader) = ring else {
        return pending().await;
    };
    if let Err(error) = reader.read(batch, BATCH).await {
        warn!(%error, "a ring of records failed and is read no more");
        *ring = None;
    }
}

impl Agent {
    /// Takes what [`WatchStreams::ready`] has read.
    pub(super) fn take_watched(&mut self, streams: &mut WatchStreams) {
        let base = self.time_base();
        for export in streams.flow_batch.drain(..) {
            if !is_whole(&export, self.watch.seed) {
                self.watch.flows_mixed += 1;
            } else if let Some(flow) = FlowRecord::from_export(&export, |ns| base.unix_us(ns)) {
                self.watch.flows.take(&flow);
            } else {
                self.watch.unknown += 1;
            }
        }
        for event in streams.process_batch.drain(..) {
            match ProcessRecord::from_event(&event, |ns| base.unix_us(ns)) {
                Some(record) => self.watch.processes.keep(record),
                None => self.watch.unknown += 1,
            }
        }
    }

    /// Sweeps the next part of the flow table.
    pub(super) fn sweep_flows(&mut self) {
        let slices = self.dataplane.flow_slots().div_ceil(SWEEP_SLICE);
        if slices == 0 {
            return;
        }
        let watch = &mut self.watch;
        match self.dataplane.sweep_flows(slices.div_ceil(SWEEP_TURNS)) {
            Ok(swept) => watch.in_use.0 = watch.in_use.0.saturating_add(swept.used),
            Err(error) => debug!(%error, "the flow table was not swept"),
        }
        watch.turn += 1;
        if watch.turn >= SWEEP_TURNS {
            watch.turn = 0;
            watch.in_use = (0, watch.in_use.0);
        }
    }

    pub(super) fn flows_view(&self) -> Option<FlowsView> {
        let slots = self.dataplane.flow_slots();
        (slots != 0).then(|| FlowsView {
            slots,
            in_use: self.watch.in_use.1,
            interfaces: self.dataplane.flow_interfaces().to_vec(),
        })
    }

    pub(super) fn list_flows(&self, from: Option<u64>, limit: usize) -> Listing<FlowRecord> {
        listing(&self.watch.flows, from, limit)
    }

    pub(super) fn list_processes(&self, from: Option<u64>, limit: usize) -> Listing<ProcessRecord> {
        listing(&self.watch.processes, from, limit)
    }
}

fn listing<T: Clone + Serialize>(
    recent: &Recent<T>,
    from: Option<u64>,
    limit: usize,
) -> Listing<T> {
    let records = recent.list(from, limit);
    let held = u64::try_from(records.len()).unwrap_or(u64::MAX);
    // A follower goes on after what it got, which is not the newest if there was more than it takes at once.
    let next = match from {
        Some(from) => recent.first_from(from).saturating_add(held),
        None => recent.next(),
    };
    Listing { records, next }
}
