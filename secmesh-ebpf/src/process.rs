//! Processes that begin, become another program, and end.
//!
//! Raw tracepoints hand over the kernel's own structures; where their fields are differs between kernels, so
//! the controller reads it from the kernel's type information and puts it into globals before loading. The
//! formatted tracepoints would not do: their layout differs too (names are of variable length in 6.18 and
//! were not in 6.1), and they need tracefs, which not every system mounts.

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_uid_gid, bpf_ktime_get_ns,
        bpf_probe_read_kernel,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use secmesh_common::{
    counters::Counter,
    process::{ProcessEvent, ProcessKind},
};

use crate::{
    count::{bump, counters},
    maps::{CONFIG, PROCESS_BUDGET, PROCESSES},
};

/// Offset of `task_struct.pid`, bytes.
#[unsafe(no_mangle)]
pub static TASK_PID: Global<u32> = Global::new(0);
/// Offset of `task_struct.tgid`.
#[unsafe(no_mangle)]
pub static TASK_TGID: Global<u32> = Global::new(0);
/// Offset of `task_struct.real_parent`.
#[unsafe(no_mangle)]
pub static TASK_PARENT: Global<u32> = Global::new(0);
/// Offset of `task_struct.exit_code`.
#[unsafe(no_mangle)]
pub static TASK_EXIT_CODE: Global<u32> = Global::new(0);
/// Offset of `task_struct.signal`.
#[unsafe(no_mangle)]
pub static TASK_SIGNAL: Global<u32> = Global::new(0);
/// Offset of `signal_struct.live`, the number of threads that have not ended.
#[unsafe(no_mangle)]
pub static SIGNAL_LIVE: Global<u32> = Global::new(0);

/// `sched_process_fork(parent, child)`.
#[raw_tracepoint]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the attribute's wrapper hands the context over"
)]
pub fn secmesh_fork(ctx: RawTracePointContext) -> i32 {
    let child: u64 = ctx.arg(1);
    let (Some(pid), Some(tgid)) = (number(child, &TASK_PID), number(child, &TASK_TGID)) else {
        return 0;
    };
    // Threads have the number of their first one as group.
    if pid == tgid {
        send(child, tgid, ProcessKind::Fork);
    }
    0
}

/// `sched_process_exec(task, old_pid, program)`.
#[raw_tracepoint]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the attribute's wrapper hands the context over"
)]
pub fn secmesh_exec(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    if let Some(tgid) = number(task, &TASK_TGID) {
        send(task, tgid, ProcessKind::Exec);
    }
    0
}

/// `sched_process_exit(task, …)`.
#[raw_tracepoint]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the attribute's wrapper hands the context over"
)]
pub fn secmesh_exit(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let (Some(tgid), Some(signal)) = (number(task, &TASK_TGID), pointer(task, &TASK_SIGNAL)) else {
        return 0;
    };
    // Decremented before this point for every thread (do_exit in kernel/exit.c).
    if number(signal, &SIGNAL_LIVE) == Some(0) {
        send(task, tgid, ProcessKind::Exit);
    }
    0
}

#[inline(always)]
fn number(structure: u64, offset: &Global<u32>) -> Option<u32> {
    let at = structure.wrapping_add(u64::from(offset.load()));
    // SAFETY: the helper checks the address itself and fails on one that is not there (Linux 5.5).
    unsafe { bpf_probe_read_kernel(at as *const u32) }.ok()
}

#[inline(always)]
fn pointer(structure: u64, offset: &Global<u32>) -> Option<u64> {
    let at = structure.wrapping_add(u64::from(offset.load()));
    // SAFETY: as in `number`.
    unsafe { bpf_probe_read_kernel(at as *const u64) }.ok()
}

#[inline(always)]
fn send(task: u64, pid: u32, kind: ProcessKind) {
    let (Some(counters), Some(config)) = (counters(), CONFIG.get(0)) else {
        return;
    };
    // SAFETY: no arguments, no effects.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(budget) = PROCESS_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU entry; these tracepoints do not interrupt each other.
    let budget = unsafe { &mut *budget };
    if now.wrapping_sub(budget.tick_start_ns) >= config.event_tick_ns {
        budget.tick_start_ns = now;
        budget.used = 0;
    }
    if budget.used >= u64::from(config.event_budget) {
        bump(counters, Counter::ProcessOverBudget);
        return;
    }
    budget.used += 1;
    let ppid = pointer(task, &TASK_PARENT).and_then(|parent| number(parent, &TASK_TGID));
    let exit_code = match kind {
        ProcessKind::Exit => number(task, &TASK_EXIT_CODE).unwrap_or(0),
        ProcessKind::Fork | ProcessKind::Exec => 0,
    };
    let comm = bpf_get_current_comm().unwrap_or_default();
    let Some(mut entry) = PROCESSES.reserve(0) else {
        bump(counters, Counter::ProcessRingFull);
        return;
    };
    entry.write(ProcessEvent {
        ts_ns: now,
        // SAFETY: no arguments, no effects.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        pid,
        ppid: ppid.unwrap_or(0),
        uid: bpf_get_current_uid_gid() as u32,
        exit_code,
        comm,
        kind: kind as u8,
        pad: [0; 7],
    });
    entry.submit(0);
    bump(counters, Counter::ProcessSent);
}
