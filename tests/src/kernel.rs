//! The kernel program under `BPF_PROG_TEST_RUN`, with its maps at hand.

use std::{collections::BTreeMap, path::Path, process::Command, thread};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::{TestRun as _, TestRunOptions},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use secmesh::dataplane::{
    AllowTable, BlockTable, CounterReader, Dataplane, EventReader, FlowOptions, Levels, ListTables,
    LoadOptions, Mode, Protection, WatchTable,
};
use secmesh_common::{
    config::RateLevels,
    counters::{Counter, Counters},
};
use xtask::sh;

use crate::livegen::Play;

/// `XDP_DROP` (include/uapi/linux/bpf.h).
pub const XDP_DROP: u32 = 1;
/// `XDP_PASS`.
pub const XDP_PASS: u32 = 2;
/// `XDP_TX`.
pub const XDP_TX: u32 = 3;

/// Shorter frames are refused by `BPF_PROG_TEST_RUN` itself (`ETH_HLEN`).
pub const MIN_FRAME: usize = 14;

/// Longer frames than any fixture; a second buffer (XDP fragments) begins before its end.
const OUTPUT: usize = 8192;

/// Far longer than any test, ns.
pub const LONG_NS: u64 = 3_600_000_000_000;

/// What one packet did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The program's answer.
    pub action: u32,
    /// The frame afterwards.
    pub output: Vec<u8>,
    /// What the counters moved by.
    pub moved: Counters,
}

/// A loaded program and its maps; attached nowhere, pinned nowhere, gone when dropped.
pub struct Kernel {
    /// The program.
    pub dataplane: Dataplane,
    /// Its block maps.
    pub blocks: BlockTable,
    /// Its allow maps.
    pub allows: AllowTable,
    /// Its watch maps.
    pub watches: WatchTable,
    /// Its list tables.
    pub lists: ListTables,
    counters: CounterReader,
    last: Counters,
    output: Vec<u8>,
}

/// Small maps, enforce mode, the levels that the agent has by default.
pub fn options() -> LoadOptions {
    LoadOptions {
        pin_dir: None,
        max_blocks: 1024,
        max_prefixes: 256,
        max_list_addresses: 4096,
        max_list_prefixes: 1024,
        protection: Protection::default(),
        flows: FlowOptions::default(),
        event_budget: 20_000,
        log_level: 0,
        seed: 0x005e_ed0f_7e57,
        mode: Mode::Enforce,
        levels: default_levels(),
    }
}

/// The levels of an agent without a configuration file.
pub fn default_levels() -> Levels {
    let second = 1_000_000_000;
    let rate = |watch, alert| RateLevels {
        window_ns: second,
        watch,
        alert,
    };
    Levels {
        rates: [rate(16, 200), rate(100, 2000), rate(20, 200)],
        contact_window_ns: 10 * second,
    }
}

impl Kernel {
    /// Loads the program.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        let mut dataplane = Dataplane::load(options)?;
        let counters = dataplane.take_counters()?;
        // Pinned ones go on from where they are.
        let last = counters.read()?;
        Ok(Self {
            blocks: dataplane.take_blocks()?,
            allows: dataplane.take_allows()?,
            watches: dataplane.take_watches()?,
            lists: dataplane.take_lists()?,
            counters,
            last,
            output: vec![0; OUTPUT],
            dataplane,
        })
    }

    /// Plays a thousand frames, every so many times `other` and else `good`; what the counters moved by.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn play_among(&mut self, good: &[u8], other: &[u8], every: usize) -> Result<Counters> {
        let mut frames = vec![good.to_vec(); every.saturating_sub(1)];
        frames.push(other.to_vec());
        let program = self.dataplane.program()?.fd()?.try_clone()?;
        let before = self.counters()?;
        Play::load(&program, &frames)?.run(1000)?;
        Ok(difference(&self.counters()?, &before))
    }

    /// Takes the event ring; call it inside a tokio runtime.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn events(&mut self) -> Result<EventReader> {
        Ok(self.dataplane.take_events()?)
    }

    /// Sends one frame through the program.
    ///
    /// # Errors
    /// The kernel's refusal, such as of a frame below [`MIN_FRAME`].
    pub fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        let result = self
            .dataplane
            .program()?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut self.output),
                repeat: 1,
                ..TestRunOptions::new()
            })
            .with_context(|| format!("running {}", crate::frames::hex(frame)))?;
        let length = usize::try_from(result.data_size_out)?;
        let output = self.output.get(..length).context("output length")?.to_vec();
        let now = self.counters.read()?;
        let moved = difference(&now, &self.last);
        self.last = now;
        Ok(Outcome {
            action: result.return_value,
            output,
            moved,
        })
    }

    /// Sends one frame through the program again and again and says what the counters moved by.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn run_many(&mut self, frame: &[u8], times: u32) -> Result<Counters> {
        self.apart().0.run(frame, times)
    }

    /// What sends frames, and the list tables: for a test in which one thread does the one and another the
    /// other.
    pub fn apart(&mut self) -> (Runner<'_>, &mut ListTables) {
        let runner = Runner {
            dataplane: &mut self.dataplane,
            counters: &self.counters,
            last: &mut self.last,
        };
        (runner, &mut self.lists)
    }

    /// The words of the guards of both families that are not zero.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn guards(&mut self) -> Result<BTreeMap<(&'static str, u32), u64>> {
        let mut words = BTreeMap::new();
        for name in ["GUARD4", "GUARD6"] {
            let map: Array<MapData, u64> = self.map(name)?;
            for (n, word) in (0..).zip(map.iter()) {
                let word = word?;
                if word != 0 {
                    words.insert((name, n), word);
                }
            }
        }
        Ok(words)
    }

    /// Another handle to an array of the program.
    ///
    /// # Errors
    /// If the program has no such map.
    pub fn map<V: aya::Pod>(&mut self, name: &str) -> Result<Array<MapData, V>> {
        let ids = self.dataplane.program()?.info()?.map_ids()?;
        for id in ids.context("the kernel lists a program's maps")? {
            if MapInfo::from_id(id)?.name_as_str() == Some(name) {
                let map = Map::Array(MapData::from_id(id)?);
                return Ok(map.try_into()?);
            }
        }
        Err(anyhow!("the program has no map {name}"))
    }

    /// The counters as they are, without sending anything.
    ///
    /// # Errors
    /// The kernel's refusal of the map read.
    pub fn counters(&self) -> Result<Counters> {
        Ok(self.counters.read()?)
    }
}

/// Sends frames through the program of a [`Kernel`].
pub struct Runner<'a> {
    dataplane: &'a mut Dataplane,
    counters: &'a CounterReader,
    last: &'a mut Counters,
}

impl Runner<'_> {
    /// As [`Kernel::run_many`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn run(&mut self, frame: &[u8], times: u32) -> Result<Counters> {
        self.dataplane
            .program()?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                repeat: times,
                ..TestRunOptions::new()
            })
            .with_context(|| format!("running {}", crate::frames::hex(frame)))?;
        let now = self.counters.read()?;
        let moved = difference(&now, self.last);
        *self.last = now;
        Ok(moved)
    }
}

/// `now - before`, counter by counter.
pub fn difference(now: &Counters, before: &Counters) -> Counters {
    let mut moved = Counters::default();
    for counter in Counter::ALL {
        *moved.get_mut(*counter) = now.get(*counter).wrapping_sub(before.get(*counter));
    }
    moved
}

/// The same counters without those of events, which depend on what was sent before.
#[must_use]
pub fn without_events(mut counters: Counters) -> Counters {
    for counter in [
        Counter::EventsSent,
        Counter::EventsOverBudget,
        Counter::EventsRingFull,
    ] {
        *counters.get_mut(counter) = 0;
    }
    counters
}

/// The counters that are not zero, by name, for messages.
pub fn shown(counters: &Counters) -> String {
    let parts: Vec<String> = Counter::ALL
        .iter()
        .filter(|c| counters.get(**c) != 0)
        .map(|c| format!("{}={}", c.name(), counters.get(*c)))
        .collect();
    parts.join(" ")
}

/// Runs `body` on a thread with a network and a BPF file system of its own.
///
/// Interfaces, programs attached to them and pins are gone when the thread ends, also when it panics or
/// the process is killed: nothing can be left behind and nothing of the machine can be touched. Programs
/// that `body` starts see the same two.
///
/// # Errors
/// `body`'s, and what the kernel says to a new name space.
pub fn isolated<T: Send + 'static>(body: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    thread::spawn(move || {
        isolate()?;
        body()
    })
    .join()
    .map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => anyhow!("{text}"),
        Err(_other) => anyhow!("the thread panicked"),
    })?
}

/// Moves this thread to a network and a BPF file system of its own.
///
/// # Errors
/// What the kernel says; needs root.
pub fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("a name space of our own: needs root")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("private mounts")?;
    let bpffs = Some("bpf");
    mount(bpffs, BPFFS, bpffs, MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {BPFFS}"))?;
    Ok(())
}

/// Where [`isolate`] mounts the BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or fails, with what it printed.
pub fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = match sh::which(program) {
        Some(path) => Command::new(path),
        None => Command::new(Path::new("/usr/sbin").join(program)),
    };
    let output = sh::output(command.args(arguments))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
