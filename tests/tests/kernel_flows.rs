//! Flow records: the loaded programs against the same code in user space, and against what was really sent.
//!
//! Each test has a network of its own, which ends with it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use nix::sched::{CloneFlags, setns};
use secmesh::{
    addr::Prefix,
    config::AttachMode as Wanted,
    dataplane::{Egress, FlowOptions, LoadOptions, RingReader, detach_all},
    sense::flow::{EndReason, FlowRecord, is_whole},
};
use secmesh_common::{
    block::origin,
    counters::Counter,
    flow::{Arrival, FlowEnd, FlowExport, FlowLimits, FlowSlot, LOCKED, Step, flow_place, state},
    packet::{Captured, Family, Fragment, PROTO_TCP, parse_ethernet},
};
use secmesh_tests::{
    fixtures,
    frames::{
        IPV4, IPV6, QINQ, VLAN, ethernet, ipv4_from, ipv6_from, patched, protocol, tcp_to, udp_to,
    },
    kernel::{BPFFS, Kernel, XDP_DROP, XDP_PASS, isolated, options, shown, tool},
};

/// Table of these tests.
const SLOTS: u32 = 1024;
const FIN_ACK: u8 = 0x11;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
/// The source of other frames.
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const SERVER: [u8; 4] = [192, 0, 2, 1];

fn with_flows(idle: Duration) -> LoadOptions {
    LoadOptions {
        flows: FlowOptions {
            slots: SLOTS,
            idle,
            active: Duration::from_mins(10),
            by_filter: false,
        },
        ..options()
    }
}

/// A kernel whose flows can be read.
struct Flows {
    kernel: Kernel,
    ring: RingReader<FlowExport>,
    seed: u64,
    _runtime: tokio::runtime::Runtime,
}

impl Flows {
    fn load(options: &LoadOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let mut kernel = Kernel::load(options)?;
        let ring = kernel.dataplane.take_flows()?;
        drop(entered);
        Ok(Self {
            kernel,
            ring,
            seed: options.seed,
            _runtime: runtime,
        })
    }

    fn exports(&mut self) -> Vec<FlowExport> {
        let mut out = Vec::new();
        self.ring.take_ready(&mut out, usize::MAX);
        out
    }

    fn records(&mut self) -> Result<Vec<FlowRecord>> {
        let seed = self.seed;
        self.exports()
            .iter()
            .map(|export| {
                ensure!(is_whole(export, seed), "a record of two flows: {export:?}");
                FlowRecord::from_export(export, |ns| ns / 1000).context("an unknown record")
            })
            .collect()
    }

    fn sweep(&mut self) -> Result<u32> {
        let swept = self.kernel.dataplane.sweep_flows(SLOTS / 512)?;
        ensure!(!swept.ring_full, "the ring is full");
        Ok(swept.recorded)
    }

    /// Sends a frame as if this host sent it.
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let result = self
            .kernel
            .dataplane
            .egress_program()?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ..TestRunOptions::new()
            })?;
        // "Go on": the classifier decides nothing.
        ensure!(result.return_value == u32::MAX, "{}", result.return_value);
        Ok(())
    }
}

/// A table that never pushes anything out, with the code that the kernel runs.
#[derive(Default)]
struct Oracle {
    flows: std::collections::BTreeMap<u64, FlowSlot>,
    ended: Vec<(FlowSlot, FlowEnd)>,
}

impl Oracle {
    fn take(&mut self, frame: &[u8], seed: u64, limits: FlowLimits) {
        let Ok(packet) = parse_ethernet(&Captured::whole(frame)) else {
            return;
        };
        if matches!(packet.family, Family::Other) {
            return;
        }
        let at = usize::from(packet.l4) + 12;
        let word = match frame.get(at..at + 4).and_then(|b| b.try_into().ok()) {
            Some(word)
                if packet.proto == PROTO_TCP && !matches!(packet.fragment, Fragment::Later) =>
            {
                word
            }
            _ => [0; 4],
        };
        let arrival = Arrival {
            // BPF_PROG_TEST_RUN's packets come from the loopback interface.
            ifindex: 1,
            ..Arrival::default()
        }
        .with_tcp(word);
        let place = flow_place(&packet, 1, seed, SLOTS - 1);
        let begin = || FlowSlot::begin(place.tag, &place, &packet, &arrival);
        let slot = self.flows.entry(place.tag).or_insert_with(begin);
        match slot.next_step(&packet, 0, &limits) {
            Step::Late => return,
            Step::Begin => *slot = begin(),
            Step::Count | Step::Record(_) => {}
        }
        let way = slot.way(&place);
        if let Some(end) = slot.count(way, &packet, &arrival) {
            self.ended.push((*slot, end));
            slot.state = state::ENDED;
        }
    }
}

/// A flow without what depends on the time and on the table.
fn timeless(mut slot: FlowSlot) -> FlowSlot {
    slot.first_ns = 0;
    slot.gap_sq = 0;
    slot.gap_sum = 0;
    slot.gap_min = 0;
    slot.gap_max = 0;
    slot.last = 0;
    for way in &mut slot.ways {
        way.gap_sq = 0;
        way.gap_sum = 0;
        way.gap_min = 0;
        way.gap_max = 0;
        way.first = 0;
        way.last = 0;
    }
    slot
}

fn tcp4(from: [u8; 4], sport: u16, dport: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = tcp_to(sport, dport, flags);
    segment.extend_from_slice(data);
    let packet = ipv4_from(from, &[], 0, protocol::TCP, &segment);
    let other = if from == CLIENT { SERVER } else { CLIENT };
    ethernet(&[], IPV4, &patched(packet, 16, &other))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_kernel_records_what_the_same_code_records_of_the_same_packets() -> Result<()> {
    // Longer than this process is kept waiting between two packets of one flow.
    let mut flows = Flows::load(&with_flows(Duration::from_secs(2)))?;
    let limits = FlowLimits {
        idle: u32::MAX,
        active: u32::MAX,
    };
    let mut oracle = Oracle::default();
    let mut frames: Vec<Vec<u8>> = fixtures::all().into_iter().map(|f| f.frame).collect();
    for port in 1000..1040_u16 {
        let data = vec![0; usize::from(port) - 990];
        frames.push(tcp4(CLIENT, port, 80, SYN, &[]));
        frames.push(tcp4(SERVER, 80, port, SYN_ACK, &[]));
        frames.push(tcp4(CLIENT, port, 80, ACK, &[]));
        frames.push(tcp4(CLIENT, port, 80, ACK | 8, &data));
        frames.push(tcp4(SERVER, 80, port, ACK | 8, &[0; 1000]));
        if port % 3 == 0 {
            frames.push(tcp4(SERVER, 80, port, RST, &[]));
        } else if port % 3 == 1 {
            frames.push(tcp4(CLIENT, port, 80, FIN_ACK, &[]));
            frames.push(tcp4(SERVER, 80, port, FIN_ACK, &[]));
            frames.push(tcp4(CLIENT, port, 80, ACK, &[]));
            // Late: belongs to no flow any more.
            frames.push(tcp4(SERVER, 80, port, ACK, &[]));
        }
    }
    for frame in &frames {
        let outcome = flows.kernel.run(frame)?;
        if outcome.action == XDP_PASS {
            oracle.take(frame, flows.seed, limits);
        }
    }
    std::thread::sleep(Duration::from_millis(2100));
    flows.sweep()?;
    let mut seen: Vec<(FlowSlot, u32)> = flows
        .exports()
        .iter()
        .map(|e| (timeless(e.slot), e.end))
        .collect();
    let live = oracle
        .flows
        .into_values()
        .filter(|s| s.state != state::ENDED);
    let mut wanted: Vec<(FlowSlot, u32)> = oracle
        .ended
        .into_iter()
        .chain(live.map(|slot| (slot, FlowEnd::Idle)))
        .map(|(slot, end)| (timeless(slot), end as u32))
        .collect();
    seen.sort_by_key(|(slot, _)| slot.tag);
    wanted.sort_by_key(|(slot, _)| slot.tag);
    println!("{} packets, {} flows", frames.len(), wanted.len());
    ensure!(wanted.len() > 50, "{} flows", wanted.len());
    ensure!(
        seen.len() == wanted.len(),
        "{} of {}",
        seen.len(),
        wanted.len()
    );
    for (seen, wanted) in seen.iter().zip(&wanted) {
        ensure!(seen == wanted, "\n{seen:?}\n{wanted:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn both_directions_of_any_header_shape_are_one_flow() -> Result<()> {
    let mut flows = Flows::load(&with_flows(Duration::from_secs(1)))?;
    let question = udp_to(5000, 53, &[7; 30]);
    let answer = udp_to(53, 5000, &[7; 400]);
    let swapped = |packet: Vec<u8>, at: usize, length: usize| {
        let source: Vec<u8> = packet.iter().skip(at).take(length).copied().collect();
        let target: Vec<u8> = packet
            .iter()
            .skip(at + length)
            .take(length)
            .copied()
            .collect();
        patched(patched(packet, at, &target), at + length, &source)
    };
    let mut shapes = Vec::new();
    for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
        let last = u8::try_from(tags.len())? + 1;
        let source = [198, 51, 100, last];
        let there = ipv4_from(source, &[], 0, protocol::UDP, &question);
        let back = swapped(ipv4_from(source, &[], 0, protocol::UDP, &answer), 12, 4);
        shapes.push((ethernet(tags, IPV4, &there), ethernet(tags, IPV4, &back)));
        let source = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let there = ipv6_from(source, protocol::UDP, &question);
        let back = swapped(ipv6_from(source, protocol::UDP, &answer), 8, 16);
        shapes.push((ethernet(tags, IPV6, &there), ethernet(tags, IPV6, &back)));
    }
    for (there, back) in &shapes {
        flows.kernel.run(there)?;
        flows.send(back)?;
        flows.send(back)?;
    }
    std::thread::sleep(Duration::from_millis(1100));
    flows.sweep()?;
    let records = flows.records()?;
    ensure!(records.len() == shapes.len(), "{records:#?}");
    for (there, back) in &shapes {
        let wanted = (1, there.len() as u64, 30, 2, 2 * back.len() as u64, 800);
        let found = records.iter().any(|r| {
            let (f, b) = (&r.forward, &r.backward);
            let is = (
                f.packets,
                f.bytes,
                f.payload_bytes,
                b.packets,
                b.bytes,
                b.payload_bytes,
            );
            is == wanted && !r.outgoing && r.end == EndReason::Idle && r.dst_port == 53
        });
        ensure!(found, "{wanted:?} is not among {records:#?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_is_dropped_is_in_no_flow() -> Result<()> {
    let mut flows = Flows::load(&with_flows(Duration::from_millis(100)))?;
    let prefix: Prefix = "198.51.100.7".parse()?;
    flows
        .kernel
        .blocks
        .put(&prefix, u64::MAX, 1, origin::MESH)?;
    for _ in 0..10 {
        let outcome = flows.kernel.run(&tcp4(CLIENT, 1, 80, SYN, &[]))?;
        ensure!(outcome.action == XDP_DROP, "{}", shown(&outcome.moved));
        ensure!(outcome.moved.flow_started == 0, "{}", shown(&outcome.moved));
    }
    std::thread::sleep(Duration::from_millis(200));
    ensure!(flows.sweep()? == 0, "a dropped packet made a flow");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_spoofed_flood_neither_grows_the_table_nor_pushes_connections_out() -> Result<()> {
    let mut flows = Flows::load(&with_flows(Duration::from_secs(15)))?;
    let connections = 1000..1100_u16;
    for port in connections.clone() {
        flows.kernel.run(&tcp4(CLIENT, port, 80, SYN, &[]))?;
        flows.send(&tcp4(SERVER, 80, port, SYN_ACK, &[]))?;
        flows.kernel.run(&tcp4(CLIENT, port, 80, ACK, &[]))?;
    }
    // Sixty for each slot; what they push out had one packet and is not worth a record.
    for n in 0..60 * SLOTS {
        let [_, a, b, c] = n.to_be_bytes();
        flows.kernel.run(&tcp4([10, a, b, c], 7, 80, SYN, &[]))?;
    }
    let counters = flows.kernel.counters()?;
    println!("after the flood: {}", shown(&counters));
    ensure!(
        counters.flow_contended > u64::from(SLOTS),
        "{}",
        shown(&counters)
    );
    ensure!(flows.exports().is_empty(), "the flood filled the ring");
    for port in connections.clone() {
        flows.kernel.run(&tcp4(CLIENT, port, 80, FIN_ACK, &[]))?;
        flows.send(&tcp4(SERVER, 80, port, FIN_ACK, &[]))?;
        flows.kernel.run(&tcp4(CLIENT, port, 80, ACK, &[]))?;
    }
    let records = flows.records()?;
    let whole = records
        .iter()
        .filter(|r| r.end == EndReason::Fin)
        .filter(|r| (r.forward.packets, r.backward.packets) == (4, 2))
        .count();
    println!(
        "{whole} of {} connections recorded whole",
        connections.len()
    );
    // Some had both places taken by other connections from the beginning; strangers must not cost any.
    ensure!(
        whole >= connections.len() - 2,
        "{whole} of {}",
        connections.len()
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_full_ring_is_counted_and_the_sweep_goes_on_where_it_stopped() -> Result<()> {
    let mut flows = Flows::load(&LoadOptions {
        flows: FlowOptions {
            slots: 16_384,
            idle: Duration::from_secs(1),
            active: Duration::from_mins(10),
            by_filter: false,
        },
        ..options()
    })?;
    for n in 0..9000_u32 {
        let [_, _, b, c] = n.to_be_bytes();
        flows.kernel.run(&tcp4([10, 9, b, c], 7, 80, SYN, &[]))?;
    }
    std::thread::sleep(Duration::from_millis(1200));
    let slices = 16_384 / 512;
    let first = flows.kernel.dataplane.sweep_flows(slices)?;
    ensure!(first.ring_full, "{first:?}");
    let mut read = flows.exports().len();
    let second = flows.kernel.dataplane.sweep_flows(slices)?;
    read += flows.exports().len();
    let counters = flows.kernel.counters()?;
    println!("{first:?} {second:?}, {read} read; {}", shown(&counters));
    ensure!(!second.ring_full, "{second:?}");
    ensure!(read as u64 == counters.flow_exported, "{read} read");
    let third = flows.kernel.dataplane.sweep_flows(slices)?;
    ensure!(
        (third.recorded, third.used) == (0, 0),
        "left over: {third:?}"
    );
    // Only what strangers pushed out, of one packet each, has no record.
    let pushed_out = counters.flow_started - counters.flow_exported;
    ensure!(
        pushed_out < counters.flow_contended / 2,
        "{pushed_out} pushed out"
    );
    // Ends that are told in passing have nowhere to wait.
    for n in 0..9000_u32 {
        let [_, _, b, c] = n.to_be_bytes();
        flows.kernel.run(&tcp4([10, 8, b, c], 7, 80, RST, &[]))?;
    }
    let counters = flows.kernel.counters()?;
    ensure!(counters.flow_ring_full > 0, "{}", shown(&counters));
    Ok(())
}

/// The pair's far end, in a network of its own.
fn in_network<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> Result<T> + Send + 'static,
) -> std::thread::JoinHandle<Result<T>> {
    std::thread::spawn(move || {
        let file = std::fs::File::open(format!("/run/netns/{name}"))?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
        body()
    })
}

/// Removes a named network when it goes.
struct Network(String);

impl Drop for Network {
    fn drop(&mut self) {
        drop(tool("ip", &["netns", "del", &self.0]));
    }
}

/// Packets and bytes from far to near and back, as both ends counted them.
///
/// Towards an end with an XDP program, a pair counts where the program gets the packet, which is behind the
/// Ethernet header (`veth_get_stats64` and `veth_xdp_rcv_one` in drivers/net/veth.c).
fn wire(netns: &str) -> Result<[u64; 4]> {
    let far = tool(
        "ip",
        &["-n", netns, "-j", "-s", "link", "show", "dev", "fl1"],
    )?;
    let near = tool("ip", &["-j", "-s", "link", "show", "dev", "fl0"])?;
    let sent = |text: &str, what: &str| {
        let shown: serde_json::Value = serde_json::from_str(text)?;
        shown
            .pointer(&format!("/0/stats64/tx/{what}"))
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("{what}: {text}"))
    };
    let packets = sent(&far, "packets")?;
    Ok([
        packets,
        sent(&far, "bytes")? + 14 * packets,
        sent(&near, "packets")?,
        sent(&near, "bytes")?,
    ])
}

/// Programs that see what leaves.
fn counting(interface: &str) -> Result<usize> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Egress)?;
    Ok(programs.len())
}

const BODY: usize = 300_000;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
#[expect(
    clippy::too_many_lines,
    reason = "one story from a fresh interface to a clean one"
)]
fn a_real_transfer_is_recorded_to_the_byte_in_both_directions() -> Result<()> {
    let name = format!("secmesh-flow-{}", std::process::id());
    isolated(move || {
        let network = Network(name.clone());
        tool("ip", &["netns", "add", &name])?;
        tool(
            "ip",
            &["link", "add", "fl0", "type", "veth", "peer", "name", "fl1"],
        )?;
        tool("ip", &["link", "set", "fl1", "netns", &name])?;
        // No neighbour or router questions: the interface's counters are to be those of the flow.
        let quiet = |netns: Option<&str>, dev: &str, addr: &str, mac: &str, other: (&str, &str)| {
            let prefix: Vec<&str> = netns.map_or(vec![], |n| vec!["-n", n]);
            let ip = |rest: &[&str]| tool("ip", &[&prefix[..], rest].concat()).map(drop);
            ip(&["link", "set", dev, "address", mac, "arp", "off"])?;
            ip(&["link", "set", dev, "addrgenmode", "none"])?;
            // One frame is one packet: no segments for a card that is not there to cut.
            ip(&["link", "set", dev, "gso_max_segs", "1"])?;
            ip(&["addr", "add", addr, "dev", dev])?;
            ip(&["link", "set", dev, "up"])?;
            ip(&["neigh", "replace", other.0, "lladdr", other.1, "dev", dev])
        };
        let (near, far) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        quiet(None, "fl0", "192.0.2.1/24", near, ("192.0.2.2", far))?;
        quiet(Some(&name), "fl1", "192.0.2.2/24", far, ("192.0.2.1", near))?;
        let loading = LoadOptions {
            pin_dir: Some(PathBuf::from(BPFFS).join("secmesh-flows")),
            ..with_flows(Duration::from_secs(2))
        };
        let mut flows = Flows::load(&loading)?;
        flows.kernel.dataplane.attach("fl0", Wanted::Driver)?;
        let seen = flows.kernel.dataplane.flow_interfaces().to_vec();
        println!("{seen:?}");
        ensure!(seen.iter().all(|i| i.egress == Egress::Tcx), "{seen:?}");
        let before = wire(&name)?;
        let listener = TcpListener::bind("192.0.2.1:8080")?;
        let client = in_network(name.clone(), || {
            let mut stream = TcpStream::connect("192.0.2.1:8080")?;
            stream.write_all(&[1; 100])?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer.len())
        });
        let (mut stream, _) = listener.accept()?;
        let mut question = [0; 100];
        stream.read_exact(&mut question)?;
        stream.write_all(&vec![2; BODY])?;
        drop(stream);
        let answer = client.join().map_err(|_| anyhow::anyhow!("the client"))??;
        ensure!(answer == BODY, "{answer} bytes came");
        std::thread::sleep(Duration::from_millis(1500));
        let now = wire(&name)?;
        let moved: Vec<u64> = now.iter().zip(&before).map(|(n, b)| n - b).collect();
        flows.sweep()?;
        let records = flows.records()?;
        let flow = records
            .iter()
            .find(|r| r.dst_port == 8080)
            .with_context(|| format!("{records:#?}"))?;
        let (f, b) = (&flow.forward, &flow.backward);
        println!("interface: {moved:?}\nflow: {flow:#?}");
        ensure!(records.len() == 1, "{records:#?}");
        ensure!(flow.end == EndReason::Fin && !flow.outgoing, "{flow:#?}");
        // A busy machine sends some of it twice.
        let sent_once = f.payload_bytes >= 100 && b.payload_bytes >= BODY as u64;
        ensure!(sent_once && b.payload_first == 1448, "{flow:#?}");
        ensure!(
            f.header_bytes + b.header_bytes + f.payload_bytes + b.payload_bytes
                == f.bytes + b.bytes
        );
        let flags = [f.syn, b.syn, f.fin, b.fin];
        ensure!(
            flags.iter().all(|n| *n >= 1) && (f.rst, b.rst) == (0, 0),
            "{flow:#?}"
        );
        let is = [u64::from(f.packets), f.bytes, u64::from(b.packets), b.bytes];
        ensure!(
            moved == is,
            "the interface counted {moved:?}, the flow {is:?}"
        );

        // UDP, begun here.
        let socket = UdpSocket::bind("192.0.2.1:4000")?;
        let echo = in_network(name.clone(), || {
            let socket = UdpSocket::bind("192.0.2.2:5000")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut data = [0; 2000];
            for _ in 0..5 {
                let (length, from) = socket.recv_from(&mut data)?;
                socket.send_to(data.get(..length / 2).unwrap_or_default(), from)?;
            }
            Ok(())
        });
        std::thread::sleep(Duration::from_millis(300));
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        for _ in 0..5 {
            socket.send_to(&[3; 400], "192.0.2.2:5000")?;
            socket.recv_from(&mut [0; 2000])?;
        }
        echo.join().map_err(|_| anyhow::anyhow!("the echo"))??;
        std::thread::sleep(Duration::from_millis(2300));
        flows.sweep()?;
        let records = flows.records()?;
        let flow = records
            .iter()
            .find(|r| r.dst_port == 5000)
            .with_context(|| format!("{records:#?}"))?;
        ensure!(flow.outgoing && flow.end == EndReason::Idle, "{flow:#?}");
        let (f, b) = (&flow.forward, &flow.backward);
        ensure!(
            (f.packets, f.payload_bytes, f.bytes) == (5, 2000, 2210),
            "{flow:#?}"
        );
        ensure!(
            (b.packets, b.payload_bytes, b.bytes) == (5, 1000, 1210),
            "{flow:#?}"
        );

        // Everything comes off, and takes over as it should.
        let dir = loading.pin_dir.clone().context("set above")?;
        ensure!(
            dir.join("link-egress-fl0").exists(),
            "the link is not pinned"
        );
        drop(flows);
        let mut next = Flows::load(&loading)?;
        next.kernel.dataplane.attach("fl0", Wanted::Auto)?;
        drop(next);
        ensure!(counting("fl0")? == 1, "one program counts what leaves");
        detach_all(&dir)?;
        // The kernel takes a link off when it next has time (`bpf_link_put` in kernel/bpf/syscall.c).
        let mut turns = 0;
        while counting("fl0")? != 0 {
            turns += 1;
            ensure!(turns < 500, "a program stays");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(network);
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn no_table_no_cost_and_no_flows() -> Result<()> {
    let mut kernel = Kernel::load(&options())?;
    let outcome = kernel.run(&tcp4(CLIENT, 1, 80, SYN, &[]))?;
    ensure!(outcome.moved.get(Counter::FlowStarted) == 0);
    ensure!(kernel.dataplane.sweep_flows(3)?.used == 0);
    ensure!(LOCKED.is_multiple_of(2), "a tag could be the lock");
    let mut on = Flows::load(&with_flows(Duration::from_secs(1)))?;
    let count = on.kernel.dataplane.verified_instructions();
    let egress = on.kernel.dataplane.egress_program()?.info()?;
    println!(
        "verified: {count:?} in, {:?} out",
        egress.verified_instruction_count()
    );
    Ok(())
}
