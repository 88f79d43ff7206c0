//! Connections of a real client to a real listener while a SYN flood from spoofed sources goes on.
//!
//! Flood and client come over wires of their own, as from two ports of a switch: a veth's ring holds 256
//! frames and nothing beyond them, and it is the host that is measured here and not the ring. The flood's
//! sender lets the answers to spoofed sources in no further than its driver (`edge`), for all sides alike.
//! Our program is on both of the host's interfaces, as an agent attaches it, so the clients are challenged, too.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use secmesh::{config::AttachMode, dataplane::CookieMode};
use secmesh_common::counters::Counter;
use secmesh_tests::{
    kernel::{Kernel, tool},
    livegen::{Bare, Flood, Generator, Sent, Sources, Traffic},
    netns::Napi,
    wire::{SENDER_CPU, Wire},
};
use xtask::bench::{Bar, Row, median};

use crate::{Effort, ours, peers::feed};

const GROUP: &str = "syn";
const PORT: u16 = 4430;
/// How long a client waits for its first byte: time for two more SYNs (1 s, 3 s).
const PATIENCE: Duration = Duration::from_millis(3500);
/// Clients at the same time.
const CLIENTS: usize = 8;
/// What is asked of the share of connections that succeed.
const ENOUGH: f64 = 0.999;
/// Who answers fewer of the SYNs defends nothing, and what he costs is no peer's figure.
const ANSWERING: f64 = 0.1;
/// What is asked of our processor time over synproxy's.
const HALF: f64 = 0.5;
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
    /// Our cookies, when the listener's queue is full.
    OursAuto,
    /// Our cookies, always.
    OursAlways,
}

impl Defence {
    const ALL: [Self; 6] = [
        Self::Nothing,
        Self::KernelAuto,
        Self::KernelAlways,
        Self::Synproxy,
        Self::OursAuto,
        Self::OursAlways,
    ];
    const OURS: [Self; 2] = [Self::OursAuto, Self::OursAlways];
    const PEERS: [Self; 3] = [Self::Synproxy, Self::KernelAuto, Self::KernelAlways];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no flood",
            Self::KernelAuto => "kernel cookies (tcp_syncookies=1)",
            Self::KernelAlways => "kernel cookies (tcp_syncookies=2)",
            Self::Synproxy => "nftables synproxy",
            Self::OursAuto => "secmesh (auto)",
            Self::OursAlways => "secmesh (always)",
        }
    }

    /// Our mode, if it is we who defend.
    fn cookies(self) -> Option<CookieMode> {
        match self {
            Self::OursAuto => Some(CookieMode::Auto),
            Self::OursAlways => Some(CookieMode::Always),
            Self::Nothing | Self::KernelAuto | Self::KernelAlways | Self::Synproxy => None,
        }
    }

    fn arm(self, attack: &Wire, clients: &Wire) -> Result<Armed> {
        let always = matches!(self, Self::KernelAlways | Self::OursAlways);
        let switch = if always { "2" } else { "1" };
        attack.receiver.sysctl("net/ipv4/tcp_syncookies", switch)?;
        let mut armed = Armed::default();
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
            armed.synproxy = true;
            attack
                .receiver
                .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        }
        if let Some(mode) = self.cookies() {
            let wires = [attack, clients];
            let own: Vec<IpAddr> = wires
                .iter()
                .flat_map(|wire| [wire.near4().into(), wire.near6().into()])
                .collect();
            let mut kernel = ours::defender(PORT, mode, &own)?;
            for wire in wires {
                kernel.dataplane.attach(&wire.near, AttachMode::Driver)?;
            }
            armed.kernel = Some(kernel);
        }
        Ok(armed)
    }
}

/// What defends as long as the value lives.
#[derive(Default)]
struct Armed {
    synproxy: bool,
    kernel: Option<Kernel>,
}

impl Armed {
    /// Adds what our counters say; fails where cookies were not what defended.
    fn count(&self, mode: CookieMode, into: &mut BTreeMap<&'static str, u64>) -> Result<()> {
        let counters = self.kernel.as_ref().context("not armed")?.counters()?;
        ensure!(
            counters.cookie_sent > 0,
            "no SYN was answered with a cookie"
        );
        // In auto mode a short turn may end before the clients' interface has seen the listener overflow.
        ensure!(
            counters.cookie_verified > 0 || mode == CookieMode::Auto,
            "no client returned a cookie of ours"
        );
        let told = |name: &str| name.starts_with("drop_") || name.starts_with("cookie_");
        for counter in Counter::ALL {
            let moved = counters.get(*counter);
            if moved > 0 && told(counter.name()) {
                *into.entry(counter.name()).or_default() += moved;
            }
        }
        Ok(())
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if self.synproxy {
            // The name space ends soon in any case.
            let _failed = tool("nft", &["delete", "table", "inet", "bench_synproxy"]);
        }
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
    /// Of each turn: SYNs that the generator made per second, millions.
    offered: Vec<f64>,
    /// SYNs received, and answers that the spoofed sources would have got.
    received: u64,
    answers: u64,
    /// Why connections failed, and how many.
    failures: BTreeMap<String, u64>,
    /// Our counters of cookies and drops, as far as they moved.
    counters: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn share(&self) -> f64 {
        self.successes as f64 / self.attempts as f64
    }

    /// Answers per SYN received. Not all of what is sent arrives: the ring back is short, too.
    fn answered(&self) -> f64 {
        self.answers as f64 / self.received.max(1) as f64
    }
}

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let attack = Wire::new(0)?;
    let clients = Wire::new(1)?;
    let napi = attack.two_processors()?;
    let _client_napi = clients.two_processors()?;
    // What we send back arrives at a veth end only if that has a program, too (`veth_xdp_flush` in
    // drivers/net/veth.c); a real interface asks for nothing of the kind.
    let mut open = Bare::passing()?;
    clients.sender.run(|| open.attach(&clients.far))?;
    let server = Server::start()?;
    let mut rows = Vec::new();
    for ipv6 in [false, true] {
        let line = Line {
            attack: &attack,
            clients: &clients,
            napi: &napi,
            ipv6,
        };
        rows.extend(line.rows(effort)?);
    }
    drop(server);
    Ok(rows)
}

/// The wires, for one family.
struct Line<'a> {
    attack: &'a Wire,
    clients: &'a Wire,
    napi: &'a Napi,
    ipv6: bool,
}

impl Line<'_> {
    fn rows(&self, effort: &Effort) -> Result<Vec<Row>> {
        let (far, near): (IpAddr, IpAddr) = if self.ipv6 {
            (self.attack.far6().into(), self.attack.near6().into())
        } else {
            (self.attack.far4().into(), self.attack.near4().into())
        };
        let mut edge = Bare::edge(far)?;
        self.attack.sender.run(|| edge.attach(&self.attack.far))?;
        let mut generator = Generator::load(&Flood {
            traffic: Traffic::Syn,
            sources: Sources::Random,
            destination: near,
            port: PORT,
            ports: 1,
            destination_mac: self.attack.near_mac,
            seed: 1,
        })?;
        // Connections take seconds, so fewer turns.
        let turns = effort.turns.div_ceil(3);
        let mut tallies = Defence::ALL.map(|defence| (defence, Tally::default()));
        for turn in 1..=turns {
            for (defence, tally) in &mut tallies {
                eprintln!(
                    "measuring: {}, {}, turn {turn} of {turns}",
                    family(self.ipv6),
                    defence.name()
                );
                let armed = defence.arm(self.attack, self.clients)?;
                let before = edge.strangers()?;
                self.turn(*defence, &mut generator, effort, tally)?;
                tally.answers += edge.strangers()? - before;
                if let Some(mode) = defence.cookies() {
                    armed.count(mode, &mut tally.counters)?;
                }
            }
        }
        if let Some((_, quiet)) = tallies.first() {
            // Not all of them: one of 100,000 fails now and then, and is in the row's note. It may be one of 400.
            ensure!(
                quiet.share() >= ENOUGH || quiet.attempts - quiet.successes <= 1,
                "{}, without a flood {} of {} connections succeed: {:?}",
                family(self.ipv6),
                quiet.successes,
                quiet.attempts,
                quiet.failures
            );
        }
        ensure!(edge.strangers()? > 0, "no spoofed source got an answer");
        table(self.ipv6, &tallies)
    }
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

fn table(ipv6: bool, tallies: &[(Defence, Tally)]) -> Result<Vec<Row>> {
    let of = |defence: Defence| {
        let found = tallies.iter().find(|(other, _)| *other == defence);
        found
            .map(|(_, tally)| tally)
            .with_context(|| format!("no turn of {}", defence.name()))
    };
    let family = family(ipv6);
    let mut rows = Vec::new();
    for (defence, tally) in tallies {
        let name = format!("connections that succeed, {family}, {}", defence.name());
        let row = Row::new(GROUP, name, tally.share(), "share");
        let mut note = format!("{} of {}", tally.successes, tally.attempts);
        for (failure, count) in &tally.failures {
            let _ = write!(note, ", {count} {failure}");
        }
        if tally.received > 0 {
            let share = tally.answered() * 100.0;
            let _ = write!(note, "; {share:.0} of 100 spoofed SYNs answered");
        }
        if defence.cookies().is_some() {
            for (counter, moved) in &tally.counters {
                let _ = write!(note, ", {counter} {moved}");
            }
            rows.push(row.bar(Bar::AtLeast(ENOUGH)).note(note));
        } else {
            rows.push(row.note(note));
        }
    }
    for own in Defence::OURS {
        let mine = of(own)?;
        for peer in Defence::PEERS {
            let theirs = of(peer)?;
            let name = format!("receiver's CPU, {family}, {}", own.name());
            let (own_cpu, their_cpu) = (median(mine.cpu_ns.clone()), median(theirs.cpu_ns.clone()));
            let row = Row::new(GROUP, name, own_cpu, "ns/SYN");
            if theirs.answered() < ANSWERING {
                rows.push(row.note(format!(
                    "no comparison: {} answers {:.1} of 100 SYNs, at {their_cpu:.0} ns/SYN",
                    peer.name(),
                    theirs.answered() * 100.0
                )));
                continue;
            }
            let row = row.beside(peer.name(), their_cpu);
            let row = if peer == Defence::Synproxy {
                row.bar(Bar::AtMost(HALF))
            } else {
                row
            };
            let two = |of: fn(&Tally) -> &Vec<f64>| {
                let of = |tally| median(of(tally).clone());
                format!("{:.2} and {:.2} Mpps", of(mine), of(theirs))
            };
            rows.push(row.note(format!(
                "received {}, offered {}",
                two(|tally| &tally.mpps),
                two(|tally| &tally.offered)
            )));
        }
    }
    Ok(rows)
}

impl Line<'_> {
    fn turn(
        &self,
        defence: Defence,
        generator: &mut Generator,
        effort: &Effort,
        tally: &mut Tally,
    ) -> Result<()> {
        let before = (self.attack.received()?, self.napi.cpu_ns()?);
        let stop = AtomicBool::new(false);
        let (attempts, successes) = (AtomicU64::new(0), AtomicU64::new(0));
        let failures = Mutex::new(&mut tally.failures);
        let host: IpAddr = if self.ipv6 {
            self.clients.near6().into()
        } else {
            self.clients.near4().into()
        };
        let target = SocketAddr::new(host, PORT);
        let sent = thread::scope(|scope| -> Result<Option<Sent>> {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    // A client that cannot move to its namespace makes no attempt, which is noticed below.
                    if self.clients.sender.enter().is_err() {
                        return;
                    }
                    while !stop.load(Ordering::Relaxed) {
                        attempts.fetch_add(1, Ordering::Relaxed);
                        match connects(target) {
                            Ok(()) => {
                                successes.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(failure) => {
                                let mut failures =
                                    failures.lock().unwrap_or_else(PoisonError::into_inner);
                                *failures.entry(failure).or_default() += 1;
                            }
                        }
                        thread::sleep(PAUSE);
                    }
                });
            }
            let sent = if defence == Defence::Nothing {
                thread::sleep(effort.connections);
                Ok(None)
            } else {
                generator
                    .send_from(
                        &self.attack.sender,
                        &self.attack.far,
                        SENDER_CPU,
                        u64::MAX,
                        effort.connections,
                    )
                    .map(Some)
            };
            stop.store(true, Ordering::Relaxed);
            sent
        })?;
        let (attempts, successes) = (attempts.into_inner(), successes.into_inner());
        ensure!(attempts > 0, "no client tried");
        tally.attempts += attempts;
        tally.successes += successes;
        if let Some(sent) = sent {
            let packets = self.attack.received()? - before.0;
            ensure!(packets > 0, "no SYN arrived");
            tally.received += packets;
            let cpu = self.napi.cpu_ns()? - before.1;
            tally.cpu_ns.push(cpu as f64 / packets as f64);
            let seconds = sent.elapsed.as_secs_f64();
            tally.mpps.push(packets as f64 / seconds / 1e6);
            tally.offered.push(sent.rate() / 1e6);
        }
        Ok(())
    }
}

/// Makes a connection and waits for its first byte; says what failed.
fn connects(target: SocketAddr) -> Result<(), String> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| match error.kind() {
            // What a socket's timeout is to read(2).
            ErrorKind::TimedOut | ErrorKind::WouldBlock => format!("{what} in time"),
            _ => format!("{what}: {error}"),
        }
    };
    let connected = TcpStream::connect_timeout(&target, PATIENCE);
    let mut stream = connected.map_err(failed("not connected"))?;
    let set = stream.set_read_timeout(Some(PATIENCE));
    set.map_err(failed("no timeout"))?;
    // A server behind cookies may know of the connection only with the client's first data.
    let written = stream.write_all(b"?");
    written.map_err(failed("nothing sent"))?;
    let greeted = stream.read_exact(&mut [0]);
    greeted.map_err(failed("no first byte"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(successes: u64, answers: u64, cpu_ns: f64) -> Tally {
        Tally {
            attempts: 1000,
            successes,
            received: 1000,
            answers,
            cpu_ns: vec![cpu_ns + 1.0, cpu_ns, cpu_ns - 1.0],
            mpps: vec![1.0],
            offered: vec![2.0],
            ..Tally::default()
        }
    }

    fn rows_of(own: &Tally, proxy: &Tally) -> Vec<Row> {
        let tallies = Defence::ALL.map(|defence| {
            let tally = match defence {
                Defence::OursAuto | Defence::OursAlways => own.clone(),
                Defence::Synproxy => proxy.clone(),
                _ => tally(1000, 1000, 5000.0),
            };
            (defence, tally)
        });
        table(false, &tallies).unwrap()
    }

    fn met(rows: &[Row], name: &str) -> Option<bool> {
        let found = rows
            .iter()
            .find(|row| row.bar.is_some() && row.name.contains(name));
        found.and_then(|row| row.met)
    }

    #[test]
    fn one_of_a_thousand_may_fail_and_half_of_synproxy_is_allowed() {
        let proxy = tally(1000, 700, 4000.0);
        for (own, shares, cpu) in [
            (tally(999, 700, 2000.0), true, true),
            (tally(998, 700, 2000.0), false, true),
            (tally(1000, 700, 2001.0), true, false),
        ] {
            let rows = rows_of(&own, &proxy);
            assert_eq!(met(&rows, "succeed"), Some(shares), "{rows:?}");
            assert_eq!(met(&rows, "CPU"), Some(cpu), "{rows:?}");
        }
    }

    #[test]
    fn who_answers_nobody_is_no_peer() {
        let own = tally(1000, 700, 1000.0);
        let rows = rows_of(&own, &tally(1000, 99, 900.0));
        assert_eq!(met(&rows, "CPU"), None, "{rows:?}");
        let told = "no comparison: nftables synproxy answers 9.9 of 100 SYNs";
        let notes: Vec<&str> = rows.iter().filter_map(|row| row.note.as_deref()).collect();
        assert!(notes.iter().any(|note| note.contains(told)), "{notes:?}");
        let rows = rows_of(&own, &tally(1000, 100, 900.0));
        assert_eq!(met(&rows, "CPU"), Some(false), "{rows:?}");
    }
}
