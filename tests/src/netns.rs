//! Network namespaces without names: they end with the value, also when the process is killed.

use std::{fs::File, os::fd::AsRawFd as _, path::Path, process, thread};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    unistd::Pid,
};

/// A network namespace, held by an open file.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// What the kernel says; needs root.
    pub fn new() -> Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace: needs root")?;
            Self::current()
        })
    }

    /// The one that this thread is in.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
        Ok(Self { file })
    }

    /// What `ip link … netns` takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// Moves this thread there.
    ///
    /// # Errors
    /// What the kernel says; needs root.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("setns")
    }

    /// Runs `body` there, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// `body`'s, or the kernel's refusal.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            self.enter()?;
            body()
        })
    }

    /// Writes a setting of this namespace below `/proc/sys/`, such as `net/ipv4/tcp_syncookies`.
    ///
    /// # Errors
    /// When there is no such setting or it does not take the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| {
            let path = Path::new("/proc/sys").join(name);
            std::fs::write(&path, value).with_context(|| format!("{}", path.display()))
        })
    }

    /// Has an interface's packets received by a kernel thread of its own instead of whoever sent them,
    /// and lets that thread run on one processor only.
    ///
    /// A veth end else receives in the soft interrupt of the sending processor, and there would be
    /// nothing to compare: the two would share one processor.
    ///
    /// # Errors
    /// When the kernel has no threaded NAPI (5.12) or the interface none at all.
    pub fn thread_napi(&self, interface: &str, cpu: usize) -> Result<Napi> {
        self.run(|| {
            // The /sys that is mounted shows the interfaces of the namespace that it was mounted from.
            unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace: needs root")?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            let sysfs = Some("sysfs");
            mount(sysfs, "/sys", sysfs, MsFlags::empty(), None::<&str>).context("mounting /sys")?;
            let path = format!("/sys/class/net/{interface}/threaded");
            std::fs::write(&path, "1").with_context(|| path.clone())
        })?;
        let napi = Napi::find(interface)?;
        for pid in &napi.threads {
            pin(*pid, cpu)?;
        }
        Ok(napi)
    }
}

/// The kernel threads that receive for one interface.
#[derive(Debug, Clone)]
pub struct Napi {
    threads: Vec<Pid>,
}

impl Napi {
    /// By their names, so the interface's name should be nobody else's on this machine.
    fn find(interface: &str) -> Result<Self> {
        let wanted = format!("napi/{interface}-");
        let mut threads = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process may end while we look.
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if name.starts_with(&wanted) {
                threads.push(Pid::from_raw(pid));
            }
        }
        if threads.is_empty() {
            return Err(anyhow!(
                "no kernel thread {wanted}…; has {interface} NAPI (GRO or XDP)?"
            ));
        }
        Ok(Self { threads })
    }

    /// Time on a processor since the threads began, ns.
    ///
    /// The scheduler's own figure, so what else the machine does is not in it.
    ///
    /// # Errors
    /// When a thread has ended, with its interface.
    pub fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.threads {
            let path = format!("/proc/{pid}/schedstat");
            let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            let first = text.split_whitespace().next().unwrap_or_default();
            sum += first
                .parse::<u64>()
                .with_context(|| format!("{path}: {text}"))?;
        }
        Ok(sum)
    }
}

/// Lets a thread run on one processor only; `Pid::from_raw(0)` is this thread.
///
/// # Errors
/// When there is no such processor or thread.
pub fn pin(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("processor {cpu}"))?;
    sched_setaffinity(thread, &set).with_context(|| format!("pinning to processor {cpu}"))
}

fn on_a_thread<T: Send>(body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(body)
            .join()
            .map_err(|_panic| anyhow!("the thread panicked"))?
    })
}
