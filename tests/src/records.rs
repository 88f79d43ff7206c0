//! Flow records and processes of real traffic and real programs, over the loopback interface only: what a guest without
//! any tools can do, too.

use std::{net::UdpSocket, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use secmesh::{
    config::AttachMode,
    dataplane::{FlowOptions, LoadOptions, RingReader},
    sense::{
        flow::FlowRecord,
        process::{ProcessChange, ProcessRecord},
    },
};
use secmesh_common::{
    flow::{FlowExport, FlowSlot},
    process::ProcessEvent,
};

use crate::kernel::{BPFFS, Kernel, options};

/// Datagrams of one flow.
pub const SENT: u64 = 20;
/// What the loopback interface shows of them: each one when it leaves and when it comes.
pub const SEEN: u64 = 2 * SENT;

/// Silence after which a flow is recorded.
const IDLE: Duration = Duration::from_secs(1);
/// Turns of a tenth of a second in which a record or an event must have come; a guest without hardware help is slow.
const TURNS: usize = 300;
const TURN: Duration = Duration::from_millis(100);

/// Flows are recorded after a second of silence; pinned below [`BPFFS`].
pub fn loading(pins: &str, by_filter: bool) -> LoadOptions {
    LoadOptions {
        pin_dir: Some(PathBuf::from(BPFFS).join(pins)),
        flows: FlowOptions {
            slots: 1024,
            idle: IDLE,
            active: Duration::from_mins(10),
            by_filter,
        },
        ..options()
    }
}

/// Loads and attaches to the loopback interface, which must be up; inside a tokio runtime.
///
/// # Errors
/// What the kernel says.
pub fn load(options: &LoadOptions) -> Result<(Kernel, RingReader<FlowExport>)> {
    let mut kernel = Kernel::load(options)?;
    let ring = kernel.dataplane.take_flows()?;
    kernel.dataplane.attach("lo", AttachMode::Generic)?;
    Ok((kernel, ring))
}

/// Sends [`SENT`] datagrams to ourselves.
///
/// # Errors
/// What the system says to a socket.
pub fn send(port: u16) -> Result<()> {
    let to = UdpSocket::bind(("127.0.0.1", port))?;
    to.set_read_timeout(Some(Duration::from_secs(30)))?;
    let from = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..SENT {
        from.send_to(&[1; 100], ("127.0.0.1", port))?;
        to.recv_from(&mut [0; 200]).context("a datagram is lost")?;
    }
    Ok(())
}

/// Packets that the flow table of this program knows of flows to a port, as far as no sweep took them.
///
/// # Errors
/// When the program has gone, or the kernel does not show its map.
pub fn known(program: u32, port: u16) -> Result<u64> {
    let info = loaded_programs()
        .flatten()
        .find(|info| info.id() == program)
        .context("the program has gone")?;
    for id in info.map_ids()?.context("a program's maps")? {
        if MapInfo::from_id(id)?.name_as_str() == Some("FLOW") {
            let map = Map::Array(MapData::from_id(id)?);
            let slots: Array<MapData, FlowSlot> = map.try_into()?;
            let all: Vec<FlowSlot> = slots.iter().collect::<Result<_, _>>()?;
            return Ok(all
                .iter()
                .filter(|slot| slot.dport == port)
                .flat_map(|slot| slot.ways)
                .map(|way| u64::from(way.packets))
                .sum());
        }
    }
    bail!("it has no flow table")
}

/// The program that counts what leaves, if exactly one is loaded on this machine.
///
/// # Errors
/// When there is none or there are several.
pub fn counter() -> Result<u32> {
    let ids: Vec<u32> = loaded_programs()
        .flatten()
        .filter(|info| info.name_as_str() == Some("secmesh_egress"))
        .map(|info| info.id())
        .collect();
    let [id] = ids.as_slice() else {
        bail!("{} programs count what leaves", ids.len());
    };
    Ok(*id)
}

/// Packets in the record of the flow to a port, once it is silent.
///
/// # Errors
/// When none comes.
pub fn recorded(kernel: &mut Kernel, ring: &mut RingReader<FlowExport>, port: u16) -> Result<u64> {
    let mut exports = Vec::new();
    for _ in 0..TURNS {
        std::thread::sleep(TURN);
        kernel.dataplane.sweep_flows(2)?;
        ring.take_ready(&mut exports, usize::MAX);
        let flow = exports
            .iter()
            .filter_map(|export| FlowRecord::from_export(export, |ns| ns / 1000))
            .find(|flow| flow.dst_port == port);
        if let Some(flow) = flow {
            return Ok(u64::from(flow.forward.packets) + u64::from(flow.backward.packets));
        }
    }
    bail!("no record of the flow among {}", exports.len())
}

/// Runs a program and gives what was told of it, in order; inside a tokio runtime.
///
/// # Errors
/// When processes cannot be watched, the program not be started, or its beginning and end are not told.
pub fn processes(program: &mut Command) -> Result<Vec<ProcessRecord>> {
    let mut kernel = Kernel::load(&options())?;
    let mut ring = kernel.dataplane.watch_processes()?;
    let mut child = program.spawn()?;
    let pid = child.id();
    let status = child.wait()?;
    let mut events: Vec<ProcessEvent> = Vec::new();
    for _ in 0..TURNS {
        ring.take_ready(&mut events, usize::MAX);
        let records: Vec<ProcessRecord> = events
            .iter()
            .filter_map(|event| ProcessRecord::from_event(event, |ns| ns / 1000))
            .filter(|record| record.pid == pid)
            .collect();
        if let Some(end) = records.last()
            && end.change == ProcessChange::Exit
        {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            ensure!(end.code == code, "{end:?} after {status}");
            return Ok(records);
        }
        std::thread::sleep(TURN);
    }
    bail!(
        "no end of process {pid} is told of among {} events",
        events.len()
    )
}
