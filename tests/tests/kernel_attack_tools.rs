//! The same attacks from the tools that people attack with, over a wire, beside honest traffic.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use secmesh_common::{counters::Counter, reason::Reason};
use secmesh_tests::{
    attacker::{Attacker, HERE, HERE6, MAC, THERE, THERE6, wired},
    kernel::{Kernel, difference, isolated, shown},
};

const LIMITS: &str = "[limits]\nstrays = \"20/s burst 20\"\namplified = \"20/s burst 20\"\nfragments = \"50/s burst 100\"\n\
                      [limits.source]\nstrays = \"20/s burst 20\"\nicmp = \"20/s burst 20\"\nudp = \"100/s burst 400\"";

/// Honest traffic: a transfer over TCP, an asked answer, a datagram in fragments, an echo.
fn honest(kernel: &Kernel, attacker: &Attacker, ipv6: bool) -> Result<()> {
    let (here, there) = if ipv6 { (HERE6, THERE6) } else { (HERE, THERE) };
    let before = kernel.counters()?;
    let listener = TcpListener::bind((here, 0))?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn({
        let network = attacker.network()?;
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

    let asking = UdpSocket::bind((here, 0))?;
    let server: IpAddr = there.parse()?;
    asking.set_read_timeout(Some(Duration::from_secs(2)))?;
    let to = asking.local_addr()?;
    // From DNS's port, and larger than a packet.
    attacker.there(move || {
        let server = UdpSocket::bind((server, 53))?;
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
    if ipv6 {
        let echoes = scapy(
            attacker,
            "print(len(srp(e/IPv6(src=a,dst=h)/ICMPv6EchoRequest(seq=[1,2]),iface='v1',timeout=5,verbose=0)[0]))",
        )?;
        ensure!(echoes.trim() == "2", "{echoes}");
    } else {
        let ping = attacker.run("hping3 -q -1 -c 2 -i u200000 192.0.2.1")?;
        ensure!(ping.contains("2 packets received"), "{ping}");
    }
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
        honest(&kernel, &attacker, false)?;
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
        honest(&kernel, &attacker, false)
    })
}

/// Runs statements with scapy in the attacker's network: `e` is the link header, `h` this end, `a` the
/// attacker, and `many(packet, n)` sends so many, from random sources where the packet has none.
fn scapy(attacker: &Attacker, statements: &str) -> Result<String> {
    let script = format!(
        "import random\n\
         from scapy.all import *\n\
         conf.verb=0\n\
         e=Ether(dst='{MAC}',src=get_if_hwaddr('v1')); h='{HERE6}'; a='{THERE6}'\n\
         def stranger(): return '2001:db8::%x:%x'%(random.randrange(65536),random.randrange(65536))\n\
         def many(make,n): sendp([e/make() for _ in range(n)],iface='v1')\n\
         {statements}\n"
    );
    attacker.run_words(&["/usr/bin/python3", "-c", &script])
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
#[expect(clippy::too_many_lines, reason = "a table of attacks")]
fn the_same_over_ipv6_from_scapy_and_nmap() -> Result<()> {
    isolated(|| {
        let (kernel, attacker) = wired(LIMITS)?;
        honest(&kernel, &attacker, true)?;
        let listener = TcpListener::bind((HERE6, 80))?;
        for scan in ["-sN", "-sX", "-sF"] {
            let before = kernel.counters()?;
            let said = attacker.run(&format!(
                "nmap -6 -n -Pn {scan} -p 1-20 --max-retries 0 {HERE6}"
            ))?;
            let moved = difference(&kernel.counters()?, &before);
            println!("nmap -6 {scan}: {}", shown(&moved));
            let dropped = moved.get(Counter::DropTcpFlags);
            ensure!(dropped >= 20, "{scan}: {}\n{said}", shown(&moved));
        }
        for (statement, counter, least) in [
            (
                "many(lambda: IPv6(src=h,dst=h)/TCP(dport=80,flags='S'),5)",
                Counter::DropLand,
                5,
            ),
            (
                "many(lambda: IPv6(src='::1',dst=h)/TCP(dport=80,flags='S'),5)",
                Counter::DropLand,
                5,
            ),
            (
                "many(lambda: IPv6(src='ff02::1',dst=h)/UDP(dport=9),5)",
                Counter::DropLand,
                5,
            ),
            (
                "many(lambda: IPv6(src=a,dst=h)/TCP(dport=80,flags='SF'),5)",
                Counter::DropTcpFlags,
                5,
            ),
            (
                "many(lambda: IPv6(src=a,dst=h)/IPv6ExtHdrDestOpt()/TCP(dport=80,flags='SR'),5)",
                Counter::DropTcpFlags,
                5,
            ),
            // RFC 7112: a first fragment without the whole chain of headers.
            (
                "many(lambda: IPv6(src=a,dst=h)/IPv6ExtHdrFragment(nh=6,m=1,id=7)/Raw(bytes(TCP(dport=80,flags='S'))[:8]),5)",
                Counter::DropTinyFragment,
                5,
            ),
            // The second fragment writes over the first one's TCP flags.
            (
                "many(lambda: IPv6(src=a,dst=h)/IPv6ExtHdrFragment(nh=6,offset=1,id=8)/Raw(bytes(16)),5)",
                Counter::DropTinyFragment,
                5,
            ),
            (
                "many(lambda: IPv6(src=stranger(),dst=h)/IPv6ExtHdrFragment(nh=17,m=1,id=9)/UDP(dport=9)/Raw(bytes(24)),300)",
                Counter::DropFragmentFlood,
                100,
            ),
            (
                "many(lambda: IPv6(src=a,dst=h)/ICMPv6EchoRequest(),200)",
                Counter::DropIcmpFlood,
                100,
            ),
            (
                "many(lambda: IPv6(src=stranger(),dst=h)/TCP(dport=80,flags='A'),200)",
                Counter::DropAckFlood,
                100,
            ),
            (
                "many(lambda: IPv6(src=stranger(),dst=h)/TCP(dport=80,flags='R'),200)",
                Counter::DropRstFlood,
                100,
            ),
            (
                "many(lambda: IPv6(src=stranger(),dst=h)/TCP(dport=80,flags='FA'),200)",
                Counter::DropFinFlood,
                100,
            ),
            (
                "many(lambda: IPv6(src=stranger(),dst=h)/TCP(dport=80,flags='SA'),200)",
                Counter::DropSynAckFlood,
                100,
            ),
            (
                "many(lambda: IPv6(src=stranger(),dst=h)/UDP(sport=11211,dport=9999)/Raw(bytes(100)),200)",
                Counter::DropAmplification,
                100,
            ),
            (
                "many(lambda: IPv6(src=a,dst=h)/UDP(sport=7,dport=9999),900)",
                Counter::DropUdpFlood,
                100,
            ),
        ] {
            let before = kernel.counters()?;
            let said = scapy(&attacker, statement)?;
            let moved = difference(&kernel.counters()?, &before);
            println!("{statement}: {}", shown(&moved));
            ensure!(
                moved.get(counter) >= least,
                "{statement}: {}\n{said}",
                shown(&moved)
            );
        }
        drop(listener);
        // What the attacker used up of its limits comes back within a second or two.
        std::thread::sleep(Duration::from_secs(6));
        honest(&kernel, &attacker, true)
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
