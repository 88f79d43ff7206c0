//! The only program of the guest that `cargo xtask vm` boots: process 1 of its kernel.
//!
//! Mounts what a kernel has to offer, loads the modules that came along, tries every program of the object
//! and every fixture, writes one line of JSON per result to the second serial port, and turns the machine
//! off. Outside such a guest it refuses to do anything.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsRawFd as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
    sys::utsname::uname,
};
use secmesh::dataplane::{Accepted, Mode, ProgramReport, check_system, try_programs};
use secmesh_tests::{
    fixtures::{self, Fixture},
    kernel::{BPFFS, Kernel},
    sizes::{Size, halve},
    verdicts::{Blocked, compare, set_blocked},
};
use xtask::{
    sh,
    vm::{Line, MODULE_FOLDER, ProgramLine},
};

/// The serial port for results; the first one is the console.
const RESULTS: &str = "/dev/ttyS1";
/// `MODULE_INIT_COMPRESSED_FILE` (include/uapi/linux/module.h, Linux 5.17): the kernel decompresses.
const COMPRESSED: u32 = 4;
/// Bytes of an instruction.
const INSTRUCTION: u32 = 8;
/// Lines of a verifier's log in a report.
const LOG_LINES: usize = 30;
/// The kernel frees maps behind our back; so often and so long is waited for memory before less is asked.
const MEMORY_WAITS: u32 = 3;
const MEMORY_PAUSE: Duration = Duration::from_secs(1);
/// Halvings of the tables until the guest's memory holds them.
const HALVINGS: u32 = 8;

/// Where the lines go; the console until the port is open.
static PORT: Mutex<Option<File>> = Mutex::new(None);

fn main() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is the first program of the guest of `cargo xtask vm`, and does nothing elsewhere"
    );
    std::panic::set_hook(Box::new(|panic| fail("a panic", &panic.to_string())));
    // A panic ends this thread only; whatever happens, the machine is turned off.
    let checked = std::thread::spawn(|| attempt("the guest", guest)).join();
    if checked.is_ok() {
        say(&Line::End);
    }
    power_off()
}

fn power_off() -> Result<()> {
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF)? {}
}

/// Writes a line to the port and, for people, to the console.
fn say(line: &Line) {
    let text = serde_json::to_string(line)
        .unwrap_or_else(|error| format!("a line that cannot be written: {error}"));
    println!("{text}");
    let mut port = PORT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(port) = port.as_mut()
        && let Err(error) = writeln!(port, "{text}")
    {
        println!("{RESULTS}: {error}");
    }
}

fn fail(what: &str, error: &str) {
    say(&Line::Failure {
        what: what.to_owned(),
        error: error.to_owned(),
    });
}

/// An error with its causes, but for those whose text the one before has already: a verifier's log is long.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    sh::tail(&text, LOG_LINES)
}

/// Does something; an error is told and not passed on.
fn attempt(what: &str, body: impl FnOnce() -> Result<()>) {
    if let Err(error) = body() {
        fail(what, &told(&error));
    }
}

fn guest() -> Result<()> {
    mounts()?;
    let port = File::options().write(true).open(RESULTS).context(RESULTS)?;
    *PORT.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
    let release = uname()?.release().to_string_lossy().into_owned();
    say(&Line::Kernel {
        release,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: memory_mib("MemTotal")?,
    });
    attempt("the time limit", limit);
    attempt("bringing the loopback interface up", loopback_up);
    attempt("loading kernel modules", modules);
    // What the agent asks at its start.
    attempt(
        "the agent's own check of the system",
        || Ok(check_system()?),
    );
    for size in Size::ALL {
        let name = size.name();
        attempt(&format!("the {name} configuration"), || {
            let mut kernel = configuration(size)?;
            // The default one has the instructions of the smallest: the fixtures would say the same.
            if size != Size::Default {
                every_fixture(name, &mut kernel)?;
                canary(&mut kernel)?;
            }
            Ok(())
        });
    }
    Ok(())
}

fn mounts() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("bpf", BPFFS),
        // For tracepoints.
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {kind} at {at}"))?;
    }
    Ok(())
}

/// Starts the clock that the command line of the kernel sets, seconds.
fn limit() -> Result<()> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let seconds = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("secmesh.limit="))
        .context("no secmesh.limit= on the kernel's command line")?
        .parse()?;
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(seconds));
        fail("the guest", &format!("not done after {seconds} s"));
        if let Err(error) = power_off() {
            println!("turning off: {error}");
        }
    });
    Ok(())
}

nix::ioctl_write_ptr_bad!(
    /// Sets an interface's flags.
    set_flags,
    nix::libc::SIOCSIFFLAGS,
    nix::libc::ifreq
);

fn loopback_up() -> Result<()> {
    // SAFETY: zeroes are valid for every field of it.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(nix::libc::IFF_UP | nix::libc::IFF_RUNNING).context("two low bits")?;
    // Any socket will do for the call.
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::empty(),
        None,
    )?;
    // SAFETY: the request lives over the call, which only reads it.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }?;
    // It is up when somebody can listen there.
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on the loopback interface")?;
    Ok(())
}

fn modules() -> Result<()> {
    let folder = Path::new(MODULE_FOLDER);
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files {
        let shown = file.display().to_string();
        let plain = file.extension().is_some_and(|kind| kind == "ko");
        let flags = if plain {
            ModuleInitFlags::empty()
        } else {
            ModuleInitFlags::from_bits_retain(COMPRESSED)
        };
        let module = File::open(&file).with_context(|| shown.clone())?;
        finit_module(module, c"", flags).context(shown)?;
    }
    Ok(())
}

/// Loads every program in this configuration, or in the largest that the guest's memory holds.
fn configuration(size: Size) -> Result<Kernel> {
    let mut options = size.options();
    let mut halvings = 0;
    let (mut kernel, used_mib) = loop {
        let before = memory_mib("MemAvailable")?;
        match patiently(|| Kernel::load(&options)) {
            Ok(kernel) => {
                let after = memory_mib("MemAvailable")?;
                break (kernel, before.saturating_sub(after));
            }
            Err(error) if is_out_of_memory(&error) && halvings < HALVINGS => {
                halvings += 1;
                halve(&mut options);
                println!("not enough memory; max_blocks {} next", options.max_blocks);
            }
            Err(error) => {
                // Which program, and what of the others?
                for report in try_programs(&options)? {
                    say(&Line::Program(program_line(size, report)));
                }
                return Err(error.context("the agent could not load it"));
            }
        }
    };
    say(&Line::Configuration {
        size: size.name().to_owned(),
        settings: [
            ("max_blocks", options.max_blocks),
            ("max_prefixes", options.max_prefixes),
            ("max_list_addresses", options.max_list_addresses),
            ("max_list_prefixes", options.max_list_prefixes),
            ("event_budget", options.event_budget),
            ("kernel log level", options.log_level.into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec(),
        reduced: halvings > 0,
        used_mib,
    });
    for report in kernel.dataplane.programs() {
        say(&Line::Program(program_line(size, report)));
    }
    Ok(kernel)
}

/// Does it again after a little when there is no memory: it may be about to be freed.
fn patiently<T>(mut body: impl FnMut() -> Result<T>) -> Result<T> {
    let mut waits = 0;
    loop {
        match body() {
            Err(error) if is_out_of_memory(&error) && waits < MEMORY_WAITS => {
                waits += 1;
                std::thread::sleep(MEMORY_PAUSE);
            }
            result => return result,
        }
    }
}

fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error)
            == Some(Errno::ENOMEM as i32)
    })
}

fn program_line(size: Size, report: ProgramReport) -> ProgramLine {
    let (accepted, refused) = match report.outcome {
        Ok(accepted) => (accepted, None),
        Err(error) => (
            Accepted::default(),
            Some(sh::tail(&error.to_string(), LOG_LINES)),
        ),
    };
    ProgramLine {
        size: size.name().to_owned(),
        program: report.name,
        program_type: report.kind,
        verified: accepted.verified,
        translated: accepted.translated_bytes.map(|bytes| bytes / INSTRUCTION),
        jited_bytes: accepted.jited_bytes,
        refused,
    }
}

/// Sends every fixture against each state of the block maps, in both modes.
fn every_fixture(size: &str, kernel: &mut Kernel) -> Result<()> {
    let all = fixtures::all();
    for blocked in Blocked::ALL {
        set_blocked(kernel, blocked)?;
        for mode in [Mode::Enforce, Mode::Monitor] {
            kernel.dataplane.set_mode(mode)?;
            let failed: Vec<String> = all
                .iter()
                .filter_map(|f| compare(kernel, f.name, &f.frame, f.expected, blocked, mode).err())
                .map(|error| told(&error))
                .collect();
            say(&Line::Fixtures {
                size: size.to_owned(),
                blocked: format!("{blocked:?}"),
                mode: mode.to_string(),
                sent: all.len(),
                failed,
            });
        }
    }
    Ok(())
}

/// Expects of a packet that nobody blocked that it is dropped.
fn canary(kernel: &mut Kernel) -> Result<()> {
    let (blocked, mode) = (Blocked::No, Mode::Enforce);
    set_blocked(kernel, blocked)?;
    kernel.dataplane.set_mode(mode)?;
    let fixture = fixtures::all()
        .into_iter()
        .find(|fixture| fixture.name == "a SYN over IPv6")
        .context("no fixture of that name")?;
    let Fixture {
        name,
        frame,
        expected,
        ..
    } = fixture;
    compare(kernel, name, &frame, expected, blocked, mode)?;
    let wrong = compare(kernel, name, &frame, expected, Blocked::Exact, mode);
    say(&Line::Canary {
        noticed: wrong.is_err(),
    });
    Ok(())
}

/// A line of `/proc/meminfo`, in MiB.
fn memory_mib(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("/proc/meminfo has no {name}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
