//! A packet generator: millions of frames per second out of one processor, with spoofed sources.
//!
//! `BPF_PROG_TEST_RUN` with live frames (Linux 5.18) runs our XDP program over a few pages again and
//! again; the program writes a frame, answers `XDP_TX`, and the kernel hands the page to the sending
//! interface's driver as any XDP program's redirect would be. What is needed of a veth pair: both ends
//! have NAPI, that is, an XDP program or GRO. See `net/bpf/test_run.c` and `drivers/net/veth.c`.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use secmesh::dataplane::set_elements;
use secmesh_common::packet::tcp_flags;

use crate::{
    frames::protocol,
    netns::{Namespace, pin},
};

/// The kernel programs of the tests.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TESTS_BPF_OBJECT"));

/// Frames that the kernel makes before it hands them to the driver: the most that it takes (`TEST_XDP_MAX_BATCH`).
/// As many pages are kept for the next frames; with fewer, most of those that the receiver gives back are freed,
/// and made anew for the next frame.
const BATCH: u32 = 256;
/// Frames of one system call: some tens of milliseconds, so that a time limit is kept.
const CHUNK: u32 = 1 << 17;
/// Bytes that the program takes off the beginning of each frame, so that it begins a cache line as frames of network
/// cards do: the kernel puts the frames of a test run 368 bytes into a page.
const AHEAD: usize = 16;

/// What the frames are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// TCP SYNs with an MSS option.
    Syn,
    /// UDP datagrams with some bytes of data.
    Udp,
}

/// Where the frames say that they come from.
#[derive(Debug, Clone, Copy)]
pub enum Sources<'a> {
    /// Anywhere: 2^30 unicast IPv4 addresses (11.0.0.0 to 74.255.255.255), or `2001:db8::/32`.
    Random,
    /// These, in turn; put them in a random order for random sources. All of the destination's family.
    Listed(&'a [IpAddr]),
}

/// A flood.
#[derive(Debug, Clone)]
pub struct Flood<'a> {
    /// What the frames are.
    pub traffic: Traffic,
    /// Where they say they come from; source ports are random.
    pub sources: Sources<'a>,
    /// Where they go; decides the family.
    pub destination: IpAddr,
    /// First destination port.
    pub port: u16,
    /// How many ports from there on, at random; from 1.
    pub ports: u16,
    /// The link address of the receiving interface.
    pub destination_mac: [u8; 6],
    /// Start of the random sequence.
    pub seed: u64,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sent {
    /// Frames handed to the driver; it drops those that the receiver's ring has no room for.
    pub frames: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// How long of it frames were made, by the sending thread's processor time. The rest is pauses: before and after
    /// each test run the kernel waits until no processor runs another program any more (RCU grace periods, by
    /// `bpf_prog_change_xdp` in `net/bpf/test_run.c`).
    pub sending: Duration,
}

impl Sent {
    /// Frames per second, pauses included.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Frames per second while it sends.
    pub fn sending_rate(&self) -> f64 {
        self.frames as f64 / self.sending.as_secs_f64().max(1e-9)
    }
}

/// Processor time of this thread so far.
fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// A loaded generator.
pub struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

impl Generator {
    /// Loads the generator's program for one flood.
    ///
    /// # Errors
    /// What the kernel says, and sources of another family than the destination.
    pub fn load(flood: &Flood<'_>) -> Result<Self> {
        ensure!(flood.ports > 0, "a flood needs a port");
        let template = Template::new(flood);
        let listed = match flood.sources {
            Sources::Random => &[],
            Sources::Listed(sources) => {
                ensure!(!sources.is_empty(), "an empty list of sources");
                sources
            }
        };
        let mut ebpf = load(
            &Setting {
                template: template.words(),
                ipv6: flood.destination.is_ipv6().into(),
                udp: (flood.traffic == Traffic::Udp).into(),
                header_sum: template.header_sum,
                transport_sum: template.transport_sum,
                port: flood.port.into(),
                ports: flood.ports.into(),
                seed: flood.seed,
                edge: [0; 4],
            },
            listed,
        )?;
        xdp(&mut ebpf, "livegen")?.load()?;
        Ok(Self {
            ebpf,
            frame: template.frame,
        })
    }

    /// Sends from an interface of this thread's network namespace, on the processor that this thread
    /// runs on, until so many frames were made or so much time has gone.
    ///
    /// # Errors
    /// When the kernel has no live frames, or the interface no NAPI.
    pub fn send(&mut self, interface: u32, frames: u64, within: Duration) -> Result<Sent> {
        let frame = [&[0; AHEAD], self.frame.as_slice()].concat();
        let length = u32::try_from(frame.len())?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, length, 0, interface, 0, 0]
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        let before = (self.frames()?, processor_time()?);
        let start = Instant::now();
        let mut left = frames;
        while left > 0 && start.elapsed() < within {
            let repeat = CHUNK.min(u32::try_from(left).unwrap_or(CHUNK));
            xdp(&mut self.ebpf, "livegen")?
                .test_run(TestRunOptions {
                    data_in: Some(&frame),
                    ctx_in: Some(&context),
                    repeat,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::new()
                })
                .context("a test run with live frames: Linux 5.18, and NAPI on both ends of the veth pair")?;
            left -= u64::from(repeat);
        }
        Ok(Sent {
            frames: self.frames()? - before.0,
            elapsed: start.elapsed(),
            sending: processor_time()?.saturating_sub(before.1),
        })
    }

    /// [`Self::send`] from a named interface of another namespace, on one processor.
    ///
    /// # Errors
    /// Those of [`Self::send`], and when there is no such interface or processor.
    pub fn send_from(
        &mut self,
        namespace: &Namespace,
        interface: &str,
        cpu: usize,
        frames: u64,
        within: Duration,
    ) -> Result<Sent> {
        namespace.run(|| {
            pin(Pid::from_raw(0), cpu)?;
            let index = nix::net::if_::if_nametoindex(interface)?;
            self.send(index, frames, within)
        })
    }

    fn frames(&self) -> Result<u64> {
        state(&self.ebpf, STATE_FRAMES)
    }
}

/// A program in front of another one, that gives each packet of a test run the next source of a list.
///
/// So that the time of many different packets can be had by one system call.
pub struct Walk {
    ebpf: Ebpf,
    // Holds the other program in its place.
    _next: ProgramArray<aya::maps::MapData>,
}

impl Walk {
    /// Puts itself in front of `next`; all sources must be of one family.
    ///
    /// # Errors
    /// What the kernel says; it joins only programs of one kind, with or without `frags`.
    pub fn load(next: &ProgramFd, sources: &[IpAddr]) -> Result<Self> {
        let first = sources.first().context("an empty list of sources")?;
        let setting = Setting {
            ipv6: first.is_ipv6().into(),
            ..Setting::default()
        };
        let mut ebpf = load(&setting, sources)?;
        xdp(&mut ebpf, "walk")?.load()?;
        let map = ebpf.take_map("NEXT").context("no map NEXT")?;
        let mut array = ProgramArray::try_from(map)?;
        array.set(0, next, 0)?;
        Ok(Self { ebpf, _next: array })
    }

    /// Runs `packets` copies of `frame` (at least 80 bytes, without tags), each with another source; gives
    /// the last answer and the average ns per packet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run(&mut self, frame: &[u8], packets: u32) -> Result<(u32, f64)> {
        let result = xdp(&mut self.ebpf, "walk")?.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: packets,
            ..TestRunOptions::new()
        })?;
        let nanoseconds = result.duration.as_nanos();
        Ok((result.return_value, u32::try_from(nanoseconds)?.into()))
    }
}

/// Bytes of the frames that [`Play`] plays; shorter ones end with zeros.
pub const PLAYED: usize = 128;

/// A program in front of another one, that puts one frame of a list after the other in a packet's place.
///
/// So that different packets come within one tick of the kernel's timer: between two test runs are many.
pub struct Play {
    ebpf: Ebpf,
    // Holds the other program in its place.
    _next: ProgramArray<aya::maps::MapData>,
}

impl Play {
    /// Puts itself in front of `next`.
    ///
    /// # Errors
    /// What the kernel says, and a frame that is too long.
    pub fn load(next: &ProgramFd, frames: &[Vec<u8>]) -> Result<Self> {
        let count = u32::try_from(frames.len())?;
        let mut ebpf = EbpfLoader::new()
            .override_global("FRAME_COUNT", &count, true)
            .map_max_entries("FRAMES", count)
            .load(OBJECT)
            .context("the programs of the tests")?;
        let map = ebpf.map_mut("FRAMES").context("no map FRAMES")?;
        let mut map: Array<_, [u32; PLAYED / 4]> = Array::try_from(map)?;
        for (n, frame) in (0..).zip(frames) {
            ensure!(frame.len() <= PLAYED, "a frame of {} bytes", frame.len());
            let mut words = [0; PLAYED / 4];
            for (word, bytes) in words.iter_mut().zip(frame.chunks(4)) {
                let mut whole = [0; 4];
                for (byte, of_frame) in whole.iter_mut().zip(bytes) {
                    *byte = *of_frame;
                }
                *word = u32::from_ne_bytes(whole);
            }
            map.set(n, words, 0)?;
        }
        xdp(&mut ebpf, "play")?.load()?;
        let map = ebpf.take_map("NEXT").context("no map NEXT")?;
        let mut array = ProgramArray::try_from(map)?;
        array.set(0, next, 0)?;
        Ok(Self { ebpf, _next: array })
    }

    /// The program.
    ///
    /// # Errors
    /// If it is not loaded.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        xdp(&mut self.ebpf, "play")
    }

    /// Plays so many packets, from the beginning of the list or from where it stopped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run(&mut self, packets: u32) -> Result<()> {
        self.program()?.test_run(TestRunOptions {
            data_in: Some(&[0; PLAYED]),
            repeat: packets,
            ..TestRunOptions::new()
        })?;
        Ok(())
    }
}

/// One of the object's programs that do nothing else.
pub struct Bare {
    ebpf: Ebpf,
    name: &'static str,
}

impl Bare {
    /// `XDP_DROP`, always.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dropping() -> Result<Self> {
        Self::load("bare_drop", [0; 4])
    }

    /// `XDP_PASS`, always.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn passing() -> Result<Self> {
        Self::load("bare_pass", [0; 4])
    }

    /// Reads each packet's source and drops it, whatever it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reading() -> Result<Self> {
        Self::load("bare_read", [0; 4])
    }

    /// Looks at one cache line of so many for each packet's source and drops it, whatever it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn looking(lines: u32) -> Result<Self> {
        let room = Room {
            lines,
            ..Room::default()
        };
        Self::load_sized("bare_line", [0; 4], room)
    }

    /// Drops these IPv4 sources by one look-up in a hash map of the kernel that has room for just them.
    ///
    /// # Errors
    /// What the kernel says, and an IPv6 address.
    pub fn hash(sources: &[IpAddr]) -> Result<Self> {
        let room = Room {
            hashed: u32::try_from(sources.len())?.max(1),
            ..Room::default()
        };
        let mut this = Self::load_sized("bare_hash", [0; 4], room)?;
        let map = this.ebpf.map_mut("HASH").context("no map HASH")?;
        let mut map: HashMap<_, u32, u32> = HashMap::try_from(map)?;
        for source in sources {
            ensure!(source.is_ipv4(), "{source} is no IPv4 address");
            let [word, ..] = words(*source);
            map.insert(word, 1, 0)?;
        }
        Ok(this)
    }

    /// Passes what is for `address` or no IP, and drops the rest.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn edge(address: IpAddr) -> Result<Self> {
        Self::load("edge", words(address))
    }

    fn load(name: &'static str, edge: [u32; 4]) -> Result<Self> {
        Self::load_sized(name, edge, Room::default())
    }

    fn load_sized(name: &'static str, edge: [u32; 4], room: Room) -> Result<Self> {
        let setting = Setting {
            edge,
            ..Setting::default()
        };
        let mut ebpf = load_sized(&setting, &[], room)?;
        xdp(&mut ebpf, name)?.load()?;
        Ok(Self { ebpf, name })
    }

    /// Attaches to an interface of this thread's namespace in driver mode, until the value is dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&mut self, interface: &str) -> Result<()> {
        xdp(&mut self.ebpf, self.name)?.attach(interface, XdpMode::Driver)?;
        Ok(())
    }

    /// The program, for test runs.
    ///
    /// # Errors
    /// None that the build does not rule out.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        xdp(&mut self.ebpf, self.name)
    }

    /// Packets that an edge did not let in.
    ///
    /// # Errors
    /// The kernel's refusal of the map read.
    pub fn strangers(&self) -> Result<u64> {
        state(&self.ebpf, STATE_STRANGERS)
    }
}

/// What the programs are told; the fields of `maps.rs` in `tests-ebpf`.
#[derive(Debug, Default)]
struct Setting {
    template: [u64; 10],
    ipv6: u32,
    udp: u32,
    header_sum: u32,
    transport_sum: u32,
    port: u32,
    ports: u32,
    seed: u64,
    edge: [u32; 4],
}

/// Entries of maps that few of the programs need.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Of `HASH`.
    hashed: u32,
    /// Of `LINES`.
    lines: u32,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            hashed: 1,
            lines: 1,
        }
    }
}

fn load(setting: &Setting, sources: &[IpAddr]) -> Result<Ebpf> {
    load_sized(setting, sources, Room::default())
}

/// As [`load`], with maps of these sizes.
fn load_sized(setting: &Setting, sources: &[IpAddr], room: Room) -> Result<Ebpf> {
    let count = u32::try_from(sources.len())?;
    let mut ebpf = EbpfLoader::new()
        .override_global("TEMPLATE", &setting.template, true)
        .override_global("IPV6", &setting.ipv6, true)
        .override_global("UDP", &setting.udp, true)
        .override_global("HEADER_SUM", &setting.header_sum, true)
        .override_global("TRANSPORT_SUM", &setting.transport_sum, true)
        .override_global("PORT", &setting.port, true)
        .override_global("PORTS", &setting.ports, true)
        .override_global("SEED", &setting.seed, true)
        .override_global("EDGE", &setting.edge, true)
        .override_global("SOURCE_COUNT", &count, true)
        .map_max_entries("SOURCES", count.max(1))
        .override_global("LINE_COUNT", &room.lines, true)
        .map_max_entries("HASH", room.hashed)
        .map_max_entries("LINES", room.lines)
        .load(OBJECT)
        .context("the programs of the tests")?;
    let map = ebpf.map_mut("SOURCES").context("no map SOURCES")?;
    let map: Array<_, [u32; 4]> = Array::try_from(map)?;
    let family = sources.first().map(IpAddr::is_ipv6);
    let other = sources
        .iter()
        .find(|source| Some(source.is_ipv6()) != family);
    ensure!(
        other.is_none(),
        "{other:?} is of another family than the sources before it"
    );
    let words: Vec<[u32; 4]> = sources.iter().map(|source| words(*source)).collect();
    // A million of them, for several programs: one by one that is most of a benchmark's time.
    set_elements(&map, 0, &words)?;
    Ok(ebpf)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// Index of a field of `State` in `tests-ebpf`.
const STATE_FRAMES: usize = 1;
/// Another one.
const STATE_STRANGERS: usize = 2;

/// One field of the programs' state, added up over all processors.
fn state(ebpf: &Ebpf, field: usize) -> Result<u64> {
    let map = ebpf.map("STATE").context("no map STATE")?;
    let map: PerCpuArray<_, [u64; 4]> = PerCpuArray::try_from(map)?;
    let values = map.get(&0, 0)?;
    Ok(values.iter().filter_map(|state| state.get(field)).sum())
}

/// An address as words in the order of the packet.
fn words(address: IpAddr) -> [u32; 4] {
    let mut words = [0; 4];
    match address {
        IpAddr::V4(address) => words[0] = u32::from_ne_bytes(address.octets()),
        IpAddr::V6(address) => {
            for (word, bytes) in words.iter_mut().zip(address.octets().as_chunks::<4>().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
        }
    }
    words
}

/// A frame without source, source port, destination port and checksums.
struct Template {
    frame: Vec<u8>,
    header_sum: u32,
    transport_sum: u32,
}

impl Template {
    fn new(flood: &Flood<'_>) -> Self {
        let (length, header_length) = match (flood.destination, flood.traffic) {
            (IpAddr::V6(_), Traffic::Syn) => (80, 40),
            (IpAddr::V6(_), Traffic::Udp) => (64, 40),
            (IpAddr::V4(_), _) => (64, 20),
        };
        let (proto, segment) = match flood.traffic {
            Traffic::Syn => (protocol::TCP, syn()),
            Traffic::Udp => (protocol::UDP, datagram(length - 14 - header_length)),
        };
        let size = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        let mut frame = flood.destination_mac.to_vec();
        // Locally administered, nobody's.
        frame.extend_from_slice(&[2, 0, 0, 0x5e, 0xc0, 1]);
        let (ethertype, header, pseudo) = match flood.destination {
            IpAddr::V4(destination) => {
                let mut header = vec![0x45, 0];
                header.extend_from_slice(&(20 + size).to_be_bytes());
                // No identification, do not fragment, 64 hops.
                header.extend_from_slice(&[0, 0, 0x40, 0, 64, proto, 0, 0, 0, 0, 0, 0]);
                header.extend_from_slice(&destination.octets());
                (crate::frames::IPV4, header, destination.octets().to_vec())
            }
            IpAddr::V6(destination) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend_from_slice(&size.to_be_bytes());
                header.extend_from_slice(&[proto, 64]);
                header.extend_from_slice(&[0; 16]);
                header.extend_from_slice(&destination.octets());
                (crate::frames::IPV6, header, destination.octets().to_vec())
            }
        };
        frame.extend_from_slice(&ethertype.to_be_bytes());
        let header_sum = sum(&header);
        let length_and_protocol = [size.to_be_bytes(), [0, proto]].concat();
        let transport_sum = sum(&pseudo) + sum(&length_and_protocol) + sum(&segment);
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&segment);
        frame.resize(length, 0);
        Self {
            frame,
            header_sum,
            transport_sum,
        }
    }

    fn words(&self) -> [u64; 10] {
        let mut words = [0; 10];
        for (word, bytes) in words.iter_mut().zip(self.frame.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

fn syn() -> Vec<u8> {
    let mut segment = vec![0, 0, 0, 0, 0x5e, 0xc0, 0xde, 0x01, 0, 0, 0, 0];
    // Six words of header, the last one an MSS of 1460.
    segment.extend_from_slice(&[0x60, tcp_flags::SYN, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    segment
}

fn datagram(length: usize) -> Vec<u8> {
    let mut datagram = vec![0, 0, 0, 0];
    datagram.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.resize(length, b's');
    datagram
}

/// The sum of an even number of bytes as 16-bit words, as this machine reads them.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.as_chunks::<2>().0;
    words
        .iter()
        .map(|word| u32::from(u16::from_ne_bytes(*word)))
        .sum()
}
