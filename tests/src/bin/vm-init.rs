//! The only program of the guest that `cargo xtask vm` boots: process 1 of its kernel.
//!
//! Mounts what a kernel has to offer, loads the modules that came along, tries every program of the object
//! and every fixture, sends real traffic and runs a real program, writes one line of JSON per result to the second
//! serial port, and turns the machine
//! off. Outside such a guest it refuses to do anything.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::{fd::AsRawFd as _, unix::process::ExitStatusExt as _},
    path::Path,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::Signal,
        utsname::uname,
    },
};
use secmesh::dataplane::{Accepted, Egress, Mode, ProgramReport, check_system, try_programs};
use secmesh_tests::{
    fixtures::{self, Fixture},
    kernel::{BPFFS, Kernel},
    records,
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
/// How often the tables are halved until the guest's memory holds them. The first size is tried twice,
/// because the kernel frees the maps of the one before behind our back.
const HALVINGS: [u32; 6] = [0, 0, 1, 2, 3, 4];
/// So long is waited for memory that is being freed.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);
/// Exit code of a child that the guest's memory does not hold.
const NO_MEMORY: u8 = 12;
/// Tells a child that it runs in the guest.
const GUEST: &str = "SECMESH_GUEST";

/// Where the lines go; the console until the port is open.
static PORT: Mutex<Option<File>> = Mutex::new(None);

fn main() -> Result<ExitCode> {
    if std::env::var_os(GUEST).is_some() {
        return child();
    }
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
    power_off()?;
    Ok(ExitCode::SUCCESS)
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
    open_port()?;
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
        attempt(&format!("the {} configuration", size.name()), || {
            parent(size)
        });
    }
    attempt("flows and processes, live", live);
    Ok(())
}

/// Real datagrams over the loopback interface with an agent's data plane, without one, and with the next; and a real
/// program.
fn live() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    let loading = records::loading("secmesh-live", false);
    let (mut first, mut ring) = records::load(&loading)?;
    let egress = match first.dataplane.flow_interfaces() {
        [interface] => match &interface.egress {
            Egress::Tcx => "tcx".to_owned(),
            Egress::Clsact => "clsact".to_owned(),
            Egress::Unseen { reason } => bail!("what leaves is not seen: {reason}"),
        },
        others => bail!("one interface is attached to, and there are {others:?}"),
    };
    records::send(4001)?;
    let with_first = records::recorded(&mut first, &mut ring, 4001)?;
    drop((first, ring));
    records::send(4002)?;
    let with_none = records::known(records::counter()?, 4002)?;
    let (mut second, mut ring) = records::load(&loading)?;
    ensure!(
        second
            .dataplane
            .attached()
            .iter()
            .all(|attached| attached.resumed),
        "the link was not taken over"
    );
    records::send(4003)?;
    let with_second = records::recorded(&mut second, &mut ring, 4003)?;
    drop((second, ring));
    // A child that is asked for nonsense ends at once.
    let told = records::processes(Command::new("/proc/self/exe").env(GUEST, "1").arg("none"))?;
    say(&Line::Live {
        egress,
        packets: [with_first, with_none, with_second],
        wanted: records::SEEN,
        process: told
            .iter()
            .map(|record| format!("{:?}", record.change).to_lowercase())
            .collect(),
    });
    Ok(())
}

fn open_port() -> Result<()> {
    let port = File::options().write(true).open(RESULTS).context(RESULTS)?;
    *PORT.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
    Ok(())
}

/// Tries a configuration in a process of its own. When the memory is used up, the kernel kills that one, and
/// the next gets smaller tables.
fn parent(size: Size) -> Result<()> {
    for halvings in HALVINGS {
        let status = Command::new("/proc/self/exe")
            .env(GUEST, "1")
            .args([size.name(), &halvings.to_string()])
            .status()
            .context("starting a process for it")?;
        if status.success() {
            return Ok(());
        }
        let killed = status.signal() == Some(Signal::SIGKILL as i32);
        ensure!(
            killed || status.code() == Some(NO_MEMORY.into()),
            "its process ended with {status}"
        );
        println!("not enough memory for the {} configuration", size.name());
        std::thread::sleep(MEMORY_PAUSE);
    }
    bail!("the guest's memory does not hold it, nor a smaller one")
}

/// Tries the configuration that the arguments name. What fails is told in lines.
fn child() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let (name, halvings) = (arguments.next(), arguments.next());
    let size = Size::ALL
        .into_iter()
        .find(|size| Some(size.name()) == name.as_deref())
        .context("no such configuration")?;
    let halvings: u32 = halvings.context("how often halved?")?.parse()?;
    // The one to kill when the memory is used up.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    open_port()?;
    if let Err(error) = configuration(size, halvings) {
        if is_out_of_memory(&error) {
            return Ok(ExitCode::from(NO_MEMORY));
        }
        fail(&format!("the {} configuration", size.name()), &told(&error));
    }
    Ok(ExitCode::SUCCESS)
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

/// Loads every program in this configuration, with tables halved so often, and sends the fixtures.
fn configuration(size: Size, halvings: u32) -> Result<()> {
    let mut options = size.options();
    for _ in 0..halvings {
        halve(&mut options);
    }
    let before = memory_mib("MemAvailable")?;
    let mut kernel = match Kernel::load(&options) {
        Ok(kernel) => kernel,
        Err(error) if is_out_of_memory(&error) => return Err(error),
        Err(error) => {
            // Which program, and what of the others?
            let lines = try_programs(&options)?
                .into_iter()
                .map(|report| program_line(size, report));
            let mut one_refused = false;
            for line in lines {
                one_refused |= line.refused.is_some();
                say(&Line::Program(line));
            }
            ensure!(!one_refused, "the agent could not load it");
            return Err(error.context("the agent could not load it"));
        }
    };
    let after = memory_mib("MemAvailable")?;
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
        used_mib: before.saturating_sub(after),
    });
    for report in kernel.dataplane.programs() {
        say(&Line::Program(program_line(size, report)));
    }
    // The default one has the instructions of the smallest: the fixtures would say the same.
    if size != Size::Default {
        every_fixture(size.name(), &mut kernel)?;
        canary(&mut kernel)?;
    }
    Ok(())
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
