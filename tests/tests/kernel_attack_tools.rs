//! The same attacks from the tools that people attack with, over a wire, beside honest traffic.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use secmesh::{
    config::{AttachMode, Config},
    dataplane::LoadOptions,
};
use secmesh_common::{counters::Counter, reason::Reason};
use secmesh_tests::kernel::{Kernel, difference, isolated, options, shown, tool};

/// A network of its own, at the other end of a wire; ends when dropped.
struct Attacker(Child);

impl Attacker {
    fn start() -> Result<Self> {
        let attacker = Self(
            Command::new("unshare")
                .args(["-n", "sleep", "120"])
                .spawn()?,
        );
        let ours = fs::read_link("/proc/thread-self/ns/net")?;
        let theirs = format!("/proc/{}/ns/net", attacker.0.id());
        for _ in 0..200 {
            if fs::read_link(&theirs)? != ours {
                return Ok(attacker);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("unshare did not make a network")
    }

    /// Runs a tool there; whether it got answers is not its business here.
    fn run(&self, command: &str) -> Result<String> {
        let id = self.0.id().to_string();
        let words: Vec<&str> = command.split(' ').collect();
        let output = Command::new("nsenter")
            .args(["-t", &id, "-n"])
            .args(&words)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() != Some(127), "{command}: {errors}");
        Ok(text + &errors)
    }

    /// Does something in its network.
    fn there<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.0.id()))?;
        std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            act()
        })
        .join()
        .map_err(|_panic| anyhow::anyhow!("the thread panicked"))?
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const HERE: &str = "192.0.2.1";

/// The program on one end of a wire, an attacker on the other.
fn wired(text: &str) -> Result<(Kernel, Attacker)> {
    let attacker = Attacker::start()?;
    tool("ip", &["link", "set", "lo", "up"])?;
    tool(
        "ip",
        &["link", "add", "v0", "type", "veth", "peer", "name", "v1"],
    )?;
    tool(
        "ip",
        &["link", "set", "v1", "netns", &attacker.0.id().to_string()],
    )?;
    tool("ip", &["addr", "add", "192.0.2.1/24", "dev", "v0"])?;
    tool("ip", &["link", "set", "v0", "up"])?;
    for command in [
        "ip link set lo up",
        "ip addr add 192.0.2.2/24 brd 192.0.2.255 dev v1",
        "ip link set v1 up",
    ] {
        attacker.run(command)?;
    }
    let config = Config::parse(text, "test")?;
    let mut kernel = Kernel::load(&LoadOptions {
        protection: config.protection(false),
        ..options()
    })?;
    kernel
        .dataplane
        .take_ports()?
        .replace(&config.port_rules(4747))?;
    kernel.dataplane.attach("v0", AttachMode::Generic)?;
    attacker.run("hping3 -q -1 -c 1 192.0.2.1")?;
    Ok((kernel, attacker))
}

const LIMITS: &str = "[limits]\nstrays = \"20/s burst 20\"\namplified = \"20/s burst 20\"\nfragments = \"50/s burst 100\"\n\
                      [limits.source]\nstrays = \"20/s burst 20\"\nicmp = \"20/s burst 20\"\nudp = \"100/s burst 400\"";

/// Honest traffic: a transfer over TCP, an asked answer, a datagram in fragments, an echo.
fn honest(kernel: &Kernel, attacker: &Attacker) -> Result<()> {
    let before = kernel.counters()?;
    let listener = TcpListener::bind((HERE, 0))?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn({
        let network = fs::File::open(format!("/proc/{}/ns/net", attacker.0.id()))?;
        move || -> Result<()> {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            std::net::TcpStream::connect(address)?.write_all(&vec![7; 4 << 20])?;
            Ok(())
        }
    });
    let (mut stream, _) = listener.accept()?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got)?;
    sender
        .join()
        .map_err(|_panic| anyhow::anyhow!("the sender panicked"))??;
    ensure!(got.len() == 4 << 20, "{} bytes arrived", got.len());

    let asking = UdpSocket::bind((HERE, 0))?;
    asking.set_read_timeout(Some(Duration::from_secs(2)))?;
    let to = asking.local_addr()?;
    // From DNS's port, and larger than a packet.
    attacker.there(move || {
        let server = UdpSocket::bind("192.0.2.2:53")?;
        for _ in 0..30 {
            server.send_to(b"answer", to)?;
        }
        server.send_to(&[9; 4096], to)?;
        Ok(())
    })?;
    let mut buffer = [0; 5000];
    for _ in 0..30 {
        ensure!(asking.recv(&mut buffer)? == 6, "an answer");
    }
    ensure!(asking.recv(&mut buffer)? == 4096, "a datagram in fragments");
    let ping = attacker.run("hping3 -q -1 -c 2 -i u200000 192.0.2.1")?;
    ensure!(ping.contains("2 packets received"), "{ping}");
    let moved = difference(&kernel.counters()?, &before);
    for reason in Reason::ALL {
        ensure!(
            moved.get(reason.dropped()) == 0,
            "honest: {}",
            shown(&moved)
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
#[expect(clippy::too_many_lines, reason = "a table of attacks")]
fn the_packets_of_hping3_and_nmap_are_dropped_by_name_and_honest_traffic_passes() -> Result<()> {
    isolated(|| {
        let (kernel, attacker) = wired(LIMITS)?;
        honest(&kernel, &attacker)?;
        let listener = TcpListener::bind((HERE, 80))?;
        for (command, counter, least) in [
            (
                "hping3 -q -c 5 -i u1000 -a 192.0.2.1 -S -p 80 192.0.2.1",
                Counter::DropLand,
                5,
            ),
            (
                "hping3 -q -c 5 -i u1000 -a 127.0.0.1 -S -p 80 192.0.2.1",
                Counter::DropLand,
                5,
            ),
            (
                "hping3 -q -c 5 -i u1000 -Y -p 80 192.0.2.1",
                Counter::DropTcpFlags,
                5,
            ),
            (
                "hping3 -q -c 5 -i u1000 -S -F -p 80 192.0.2.1",
                Counter::DropTcpFlags,
                5,
            ),
            (
                "hping3 -q -c 5 -i u1000 -S -R -p 80 192.0.2.1",
                Counter::DropTcpFlags,
                5,
            ),
            (
                "nmap -n -Pn -sN -p 1-20 --max-retries 0 192.0.2.1",
                Counter::DropTcpFlags,
                20,
            ),
            (
                "nmap -n -Pn -sX -p 1-20 --max-retries 0 192.0.2.1",
                Counter::DropTcpFlags,
                20,
            ),
            (
                "nmap -n -Pn -sF -p 1-20 --max-retries 0 192.0.2.1",
                Counter::DropTcpFlags,
                20,
            ),
            // Fragments of eight bytes: the first is too small for a TCP header.
            (
                "nmap -n -Pn -sS -f -p 1-5 --max-retries 0 192.0.2.1",
                Counter::DropTinyFragment,
                5,
            ),
            (
                "hping3 -q -2 -c 300 -i u500 -x -d 32 --rand-source 192.0.2.1",
                Counter::DropFragmentFlood,
                100,
            ),
            (
                "hping3 -q -1 -c 5 -i u1000 192.0.2.255",
                Counter::DropSmurf,
                5,
            ),
            (
                "hping3 -q -1 -c 200 -i u500 192.0.2.1",
                Counter::DropIcmpFlood,
                100,
            ),
            (
                "hping3 -q -A -c 200 -i u500 -p 80 192.0.2.1",
                Counter::DropAckFlood,
                100,
            ),
            (
                "hping3 -q -A -c 200 -i u500 -p 80 --rand-source 192.0.2.1",
                Counter::DropAckFlood,
                100,
            ),
            (
                "hping3 -q -R -c 200 -i u500 -p 80 192.0.2.1",
                Counter::DropRstFlood,
                100,
            ),
            (
                "hping3 -q -F -A -c 200 -i u500 -p 80 192.0.2.1",
                Counter::DropFinFlood,
                100,
            ),
            (
                "hping3 -q -S -A -c 200 -i u500 -p 80 192.0.2.1",
                Counter::DropSynAckFlood,
                100,
            ),
            (
                "hping3 -q -2 -c 200 -i u500 -k -s 11211 -p 9999 --rand-source -d 100 192.0.2.1",
                Counter::DropAmplification,
                100,
            ),
            (
                "hping3 -q -2 -c 900 -i u500 -k -s 7 -p 9999 192.0.2.1",
                Counter::DropUdpFlood,
                100,
            ),
        ] {
            let before = kernel.counters()?;
            let said = attacker.run(command)?;
            let moved = difference(&kernel.counters()?, &before);
            println!("{command}: {}", shown(&moved));
            ensure!(
                moved.get(counter) >= least,
                "{command}: {}\n{said}",
                shown(&moved)
            );
        }
        drop(listener);
        // What the attacker used up of its limits comes back within a second or two.
        std::thread::sleep(Duration::from_secs(6));
        honest(&kernel, &attacker)
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_packet_to_a_tripwire_port_names_its_source_and_passes() -> Result<()> {
    isolated(|| {
        let (mut kernel, attacker) = wired("[tripwire]\ntcp = [23]\nudp = [69]")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut events = runtime.block_on(async { kernel.events() })?;
        let before = kernel.counters()?;
        attacker.run("hping3 -q -c 1 -S -p 23 192.0.2.1")?;
        attacker.run("hping3 -q -c 1 -A -p 23 192.0.2.1")?;
        attacker.run("hping3 -q -c 1 -2 -p 69 192.0.2.1")?;
        attacker.run("hping3 -q -c 1 -S -p 69 192.0.2.1")?;
        let moved = difference(&kernel.counters()?, &before);
        ensure!(moved.tripwire == 3, "{}", shown(&moved));
        ensure!(moved.get(Counter::DropTcpFlags) == 0);
        let mut seen = Vec::new();
        runtime.block_on(async { events.read(&mut seen, 1000).await })?;
        let tripped: Vec<_> = seen
            .iter()
            .filter(|event| event.kind == secmesh_common::event::EventKind::Tripwire as u8)
            .map(|event| (event.src[..4].to_vec(), event.proto, event.dport))
            .collect();
        let source = vec![192, 0, 2, 2];
        ensure!(
            tripped
                == [
                    (source.clone(), 6, 23),
                    (source.clone(), 6, 23),
                    (source, 17, 69)
                ],
            "{tripped:?}"
        );
        let first = seen.first().context("an event")?;
        ensure!(secmesh::sense::observation::Observation::from_event(first).is_some());
        Ok(())
    })
}
