//! The programs that tell of processes; attached while an agent runs, never pinned: nobody else would read
//! what they write.

use aya::{Ebpf, EbpfLoader, programs::RawTracePoint};
use secmesh_common::process::ProcessEvent;

use super::{
    Dataplane, DataplaneError, RingReader,
    kernel_types::{KernelTypes, KernelTypesError},
    take,
};

/// Programs and the tracepoints they belong to (include/trace/events/sched.h).
const PROGRAMS: [(&str, &str); 3] = [
    ("secmesh_fork", "sched_process_fork"),
    ("secmesh_exec", "sched_process_exec"),
    ("secmesh_exit", "sched_process_exit"),
];

/// Offsets that the programs read by, in the order of [`GLOBALS`].
type Offsets = [u32; GLOBALS.len()];

/// Globals of the programs, and the fields whose offsets they hold.
const GLOBALS: [(&str, &str, &str); 6] = [
    ("TASK_PID", "task_struct", "pid"),
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_PARENT", "task_struct", "real_parent"),
    ("TASK_EXIT_CODE", "task_struct", "exit_code"),
    ("TASK_SIGNAL", "task_struct", "signal"),
    ("SIGNAL_LIVE", "signal_struct", "live"),
];

/// Offsets in the running kernel.
pub(super) struct ProcessOffsets(Offsets);

impl ProcessOffsets {
    pub(super) fn of_running_kernel() -> Result<Self, KernelTypesError> {
        let types = KernelTypes::running()?;
        let mut offsets = [0; GLOBALS.len()];
        for (offset, (_, structure, field)) in offsets.iter_mut().zip(GLOBALS) {
            *offset = types.offset(structure, field)?;
        }
        Ok(Self(offsets))
    }

    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (offset, (global, ..)) in self.0.iter().zip(GLOBALS) {
            loader.override_global(global, offset, true);
        }
    }
}

impl Dataplane {
    /// Attaches the programs that tell of processes, and takes their ring. They are gone with this agent.
    ///
    /// # Errors
    ///
    /// If the kernel has no type information or refuses; then nothing is attached.
    pub fn watch_processes(&mut self) -> Result<RingReader<ProcessEvent>, DataplaneError> {
        if let Some(reason) = &self.no_offsets {
            return Err(DataplaneError::Processes(reason.clone()));
        }
        for (name, tracepoint) in PROGRAMS {
            if let Err(error) = attach(&mut self.ebpf, name, tracepoint) {
                self.unwatch_processes();
                return Err(error);
            }
        }
        RingReader::new(take(&mut self.ebpf, "PROCESSES")?)
    }

    fn unwatch_processes(&mut self) {
        for (name, _) in PROGRAMS {
            if let Ok(program) = program(&mut self.ebpf, name) {
                // Unloading ends its links; one that was not loaded has none.
                drop(program.unload());
            }
        }
    }
}

fn attach(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), DataplaneError> {
    let program = program(ebpf, name)?;
    program.load().map_err(DataplaneError::Verifier)?;
    program
        .attach(tracepoint)
        .map_err(|e| DataplaneError::Processes(format!("tracepoint {tracepoint}: {e}")))?;
    Ok(())
}

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, DataplaneError> {
    ebpf.program_mut(name)
        .ok_or(DataplaneError::Missing(name))?
        .try_into()
        .map_err(DataplaneError::Verifier)
}
