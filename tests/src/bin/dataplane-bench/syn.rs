//! Connections of a real client to a real listener while a SYN flood from spoofed sources goes on.
//!
//! Flood and client come over wires of their own, as from two ports of a switch: a veth's ring holds 256
//! frames and nothing beyond them, and it is the host that is measured here and not the ring. The flood's
//! sender lets the answers to spoofed sources in no further than its driver (`edge`), for all sides alike.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use secmesh_tests::{
    kernel::tool,
    livegen::{Bare, Flood, Generator, Sources, Traffic},
    netns::Napi,
    wire::{SENDER_CPU, Wire},
};
use xtask::bench::Row;

use crate::{Effort, median, peers::feed};

const GROUP: &str = "syn";
const PORT: u16 = 4430;
/// How long a client waits for its first byte: time for two more SYNs (1 s, 3 s).
const PATIENCE: Duration = Duration::from_millis(3500);
/// Clients at the same time.
const CLIENTS: usize = 8;
/// Between two attempts of one client.
const PAUSE: Duration = Duration::from_millis(5);

/// Who defends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defence {
    /// Nobody attacks: what the method itself loses.
    Nothing,
    /// The kernel's cookies, when the listener's queue is full.
    KernelAuto,
    /// The kernel's cookies, always.
    KernelAlways,
    /// nftables' synproxy.
    Synproxy,
}

impl Defence {
    const ALL: [Self; 4] = [
        Self::Nothing,
        Self::KernelAuto,
        Self::KernelAlways,
        Self::Synproxy,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no flood",
            Self::KernelAuto => "kernel cookies (tcp_syncookies=1)",
            Self::KernelAlways => "kernel cookies (tcp_syncookies=2)",
            Self::Synproxy => "nftables synproxy",
        }
    }

    fn arm(self, wire: &Wire) -> Result<()> {
        let cookies = if self == Self::KernelAlways { "2" } else { "1" };
        wire.receiver.sysctl("net/ipv4/tcp_syncookies", cookies)?;
        if self == Self::Synproxy {
            // As in the nftables wiki: SYNs past connection tracking, the rest of the handshake to the proxy.
            let rules = format!(
                "table inet bench_synproxy {{\n\
                 chain pre {{ type filter hook prerouting priority raw; policy accept;\n\
                 tcp dport {PORT} tcp flags syn notrack\n}}\n\
                 chain guard {{ type filter hook input priority filter; policy accept;\n\
                 tcp dport {PORT} ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm\n\
                 ct state invalid drop\n}}\n}}\n"
            );
            feed("nft", &["-f", "-"], &rules)?;
            wire.receiver
                .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        }
        Ok(())
    }

    fn disarm(self) -> Result<()> {
        if self == Self::Synproxy {
            tool("nft", &["delete", "table", "inet", "bench_synproxy"])?;
        }
        Ok(())
    }
}

/// One turn, or several added up.
#[derive(Debug, Clone, Default)]
struct Tally {
    attempts: u64,
    successes: u64,
    /// Of each turn: receiver's processor time per SYN received, ns.
    cpu_ns: Vec<f64>,
    /// Of each turn: SYNs received per second, millions.
    mpps: Vec<f64>,
}

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let attack = Wire::new(0)?;
    let clients = Wire::new(1)?;
    let napi = attack.two_processors()?;
    let _client_napi = clients.two_processors()?;
    let mut edge = Bare::edge(attack.far4().into())?;
    attack.sender.run(|| edge.attach(&attack.far))?;
    let mut generator = Generator::load(&Flood {
        traffic: Traffic::Syn,
        sources: Sources::Random,
        destination: attack.near4().into(),
        port: PORT,
        ports: 1,
        destination_mac: attack.near_mac,
        seed: 1,
    })?;
    let server = Server::start()?;
    // Connections take seconds, so fewer turns.
    let turns = effort.turns.div_ceil(3);
    let mut tallies = Defence::ALL.map(|defence| (defence, Tally::default()));
    for _ in 0..turns {
        for (defence, tally) in &mut tallies {
            defence.arm(&attack)?;
            let turn = turn(
                *defence,
                &attack,
                &clients,
                &napi,
                &mut generator,
                effort,
                tally,
            );
            defence.disarm()?;
            turn?;
        }
    }
    drop(server);
    if let Some((_, quiet)) = tallies.first() {
        ensure!(
            quiet.successes == quiet.attempts && quiet.attempts > 0,
            "without a flood {} of {} connections succeed",
            quiet.successes,
            quiet.attempts
        );
    }
    ensure!(edge.strangers()? > 0, "no spoofed source got an answer");
    let mut rows = Vec::new();
    for (defence, tally) in tallies {
        let share = tally.successes as f64 / tally.attempts as f64;
        rows.push(
            Row::new(
                GROUP,
                format!("connections that succeed, {}", defence.name()),
                share,
                "share",
            )
            .note(format!("{} of {}", tally.successes, tally.attempts)),
        );
        if defence == Defence::Nothing {
            continue;
        }
        rows.push(
            Row::new(
                GROUP,
                format!("receiver's CPU, {}", defence.name()),
                median(tally.cpu_ns),
                "ns/SYN",
            )
            .note(format!("{:.2} Mpps received", median(tally.mpps))),
        );
    }
    rows.push(Row::not_measured(
        GROUP,
        "connections that succeed, secmesh",
        "share",
        "not armed: this row does not arm the cookies of the program yet",
    ));
    Ok(rows)
}

fn turn(
    defence: Defence,
    attack: &Wire,
    clients: &Wire,
    napi: &Napi,
    generator: &mut Generator,
    effort: &Effort,
    tally: &mut Tally,
) -> Result<()> {
    let received = || -> Result<u64> {
        let all = attack.statistics()?;
        let name = "rx_queue_0_xdp_packets";
        all.get(name)
            .copied()
            .with_context(|| format!("no {name} among {all:?}"))
    };
    let before = (received()?, napi.cpu_ns()?, Instant::now());
    let stop = AtomicBool::new(false);
    let (attempts, successes) = (AtomicU64::new(0), AtomicU64::new(0));
    let target = SocketAddr::new(IpAddr::V4(clients.near4()), PORT);
    let flood = thread::scope(|scope| -> Result<()> {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                // A client that cannot move to its namespace makes no attempt, which is noticed below.
                if clients.sender.enter().is_err() {
                    return;
                }
                while !stop.load(Ordering::Relaxed) {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    if connects(target) {
                        successes.fetch_add(1, Ordering::Relaxed);
                    }
                    thread::sleep(PAUSE);
                }
            });
        }
        let sent = if defence == Defence::Nothing {
            thread::sleep(effort.connections);
            Ok(())
        } else {
            generator
                .send_from(
                    &attack.sender,
                    &attack.far,
                    SENDER_CPU,
                    u64::MAX,
                    effort.connections,
                )
                .map(|_sent| ())
        };
        stop.store(true, Ordering::Relaxed);
        sent
    });
    flood?;
    tally.attempts += attempts.into_inner();
    tally.successes += successes.into_inner();
    if defence != Defence::Nothing {
        let packets = received()? - before.0;
        ensure!(packets > 0, "no SYN arrived");
        tally
            .cpu_ns
            .push((napi.cpu_ns()? - before.1) as f64 / packets as f64);
        tally
            .mpps
            .push(packets as f64 / effort.connections.as_secs_f64() / 1e6);
    }
    Ok(())
}

/// Whether a connection is made and its first byte comes in time.
fn connects(target: SocketAddr) -> bool {
    let greeted = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // A server behind cookies may know of the connection only with the client's first data.
        stream.write_all(b"?")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)
    };
    greeted().is_ok()
}

/// A listener of this thread's namespace that greets whoever connects; ends with the value.
struct Server {
    stop: std::sync::Arc<AtomicBool>,
}

impl Server {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                // One thread each: one that was never finished must not hold up the others.
                thread::spawn(move || {
                    let _quiet = stream.set_read_timeout(Some(PATIENCE));
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).is_ok() {
                        let _gone = stream.write_all(b"!");
                    }
                });
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let _gone = TcpStream::connect((Ipv6Addr::LOCALHOST, PORT));
    }
}
