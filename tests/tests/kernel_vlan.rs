//! SYN cookies on a wire whose frames carry VLAN tags: real connections, and a real flood beside them.
//!
//! The tags are put on and taken off by a classifier of the tests at each end, since not every kernel has VLAN
//! interfaces; what goes over the wire, and so past the XDP program, is the same.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, TcAttachType},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, setsockopt, socket,
    sockopt::{ReceiveTimeout, SendTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use secmesh::{
    config::AttachMode,
    dataplane::{CookieMode, FlowOptions, LoadOptions},
};
use secmesh_common::counters::Counters;
use secmesh_tests::{
    frames::checksum,
    kernel::{Kernel, difference, isolated, options, shown, tool},
    livegen::OBJECT,
    wire::Wire,
};

const PORT: u16 = 8443;
/// Clients, each with an address of its own: who is verified is not asked again.
const CLIENTS: u8 = 30;
/// Attempts of the flood, from made-up addresses.
const ATTEMPTS: u64 = 3000;
/// How long a connection may take; more than three repeated SYNs.
const PATIENCE_S: i64 = 15;

/// The programs of an interface's end.
struct End(Ebpf);

impl End {
    /// Puts `tags` tags on whatever leaves this interface.
    fn new(interface: &str, tags: u32) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .override_global("TAGS", &tags, true)
            .load(OBJECT)?;
        attach(&mut ebpf, "tag", interface, TcAttachType::Egress)?;
        Ok(Self(ebpf))
    }

    /// Takes tags off whatever comes.
    fn untag(&mut self, interface: &str) -> Result<()> {
        attach(&mut self.0, "untag", interface, TcAttachType::Ingress)
    }
}

fn attach(ebpf: &mut Ebpf, name: &str, interface: &str, way: TcAttachType) -> Result<()> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .context("no such program")?
        .try_into()?;
    program.load()?;
    program.attach(interface, way)?;
    Ok(())
}

/// Tags go over the wire as part of the frame, not beside it.
fn in_the_frame(interface: &str) -> Result<()> {
    for feature in ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"] {
        tool("ethtool", &["-K", interface, feature, "off"])?;
    }
    Ok(())
}

/// Connects from one of our addresses; sends a word and gets it back.
fn ask(from: IpAddr, to: IpAddr, patience_s: i64) -> Result<()> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    let patience = TimeVal::seconds(patience_s);
    setsockopt(&socket, SendTimeout, &patience)?;
    setsockopt(&socket, ReceiveTimeout, &patience)?;
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )?;
    connect(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(to, PORT)),
    )?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"hello", "{answer:?}");
    Ok(())
}

/// Answers everybody with his own words, until the listener goes.
fn serve(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        thread::spawn(move || -> Result<()> {
            stream.set_nonblocking(false)?;
            let mut word = [0; 5];
            stream.read_exact(&mut word)?;
            stream.write_all(&word)?;
            Ok(())
        });
    }
}

/// An attempt without any option, the shortest that there is, and the whole answer to it.
fn shortest(from: Ipv4Addr, to: Ipv4Addr, tags: u32) -> Result<()> {
    let raw = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::Tcp,
    )?;
    setsockopt(&raw, ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
    let arguments = [
        "-q", "-S", "-c", "1", "-M", "1000", "-s", "4321", "-p", "8443",
    ];
    let mut sender = Command::new("hping3")
        .args(arguments)
        .arg(to.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("hping3")?;
    let mut packet = [0; 2048];
    let answer = loop {
        let length = recv(raw.as_raw_fd(), &mut packet, MsgFlags::empty())
            .context("no answer to an attempt without options")?;
        let packet = packet.get(..length).context("a packet")?;
        let (ip, tcp) = packet.split_at_checked(20).context("a header")?;
        let ports = [PORT.to_be_bytes(), 4321_u16.to_be_bytes()].concat();
        if ip.get(12..16) == Some(&to.octets()[..]) && tcp.starts_with(&ports) {
            break packet.to_vec();
        }
    };
    sender.wait()?;
    let (ip, tcp) = answer.split_at_checked(20).context("a header")?;
    ensure!(answer.len() == 44, "{} bytes", answer.len());
    ensure!(checksum(&[ip]) == 0, "{ip:?}");
    let pseudo = [&to.octets()[..], &from.octets(), &[0, 6, 0, 24]].concat();
    ensure!(checksum(&[&pseudo, tcp]) == 0, "{tcp:?}");
    // Acknowledges the attempt, and says how large segments may be.
    let mss: u16 = if tags > 1 { 1456 } else { 1460 };
    ensure!(
        tcp.get(8..12) == Some(&1001_u32.to_be_bytes()[..]),
        "{tcp:?}"
    );
    ensure!(tcp.get(12..14) == Some(&[6 << 4, 0x12][..]), "{tcp:?}");
    let option = [[2, 4], mss.to_be_bytes()].concat();
    ensure!(tcp.get(20..) == Some(&option[..]), "{tcp:?}");
    Ok(())
}

/// The clients' addresses.
fn clients() -> Vec<(Ipv4Addr, Ipv6Addr)> {
    (0..CLIENTS)
        .map(|n| {
            (
                Ipv4Addr::new(10, 77, 9, 100 + n),
                Ipv6Addr::new(0xfd77, 0, 0, 9, 0, 0, 0, 0x100 + u16::from(n)),
            )
        })
        .collect()
}

/// The clients' end of the wire, tags and all.
fn far_end(wire: &Wire, tags: u32) -> Result<End> {
    let (near, far) = (wire.near.as_str(), wire.far.as_str());
    in_the_frame(near)?;
    let there = wire.sender.run(|| {
        in_the_frame(far)?;
        for (v4, v6) in clients() {
            tool("ip", &["addr", "add", &format!("{v4}/24"), "dev", far])?;
            let v6 = format!("{v6}/64");
            tool("ip", &["addr", "add", &v6, "dev", far, "nodad"])?;
        }
        // Attempts from anywhere come back to who sent them.
        let gateway = wire.near4().to_string();
        tool("ip", &["route", "add", "default", "via", &gateway])?;
        let mut end = End::new(far, tags)?;
        end.untag(far)?;
        Ok(end)
    })?;
    // The clients' addresses are at the wire's other end.
    let far_mac = "02:00:00:00:09:02";
    for (v4, v6) in clients() {
        for addr in [v4.to_string(), v6.to_string()] {
            tool(
                "ip",
                &[
                    "neigh",
                    "replace",
                    &addr,
                    "lladdr",
                    far_mac,
                    "dev",
                    near,
                    "nud",
                    "permanent",
                ],
            )?;
        }
    }
    Ok(there)
}

/// Our program at the other end, with cookies for every attempt.
fn armed(wire: &Wire) -> Result<Kernel> {
    let mut kernel = Kernel::load(&LoadOptions {
        flows: FlowOptions {
            slots: 1 << 14,
            idle: Duration::from_secs(15),
            active: Duration::from_mins(1),
            by_filter: false,
        },
        ..options()
    })?;
    kernel
        .dataplane
        .set_cookie_ports(&[(PORT, CookieMode::Always)])?;
    let own: [IpAddr; 2] = [wire.near4().into(), wire.near6().into()];
    kernel.dataplane.set_cookie_addresses(&[], &own)?;
    kernel.dataplane.attach(&wire.near, AttachMode::Generic)?;
    Ok(kernel)
}

/// Real connections over a wire with so many tags, first alone and then beside a flood; what the program counted.
fn over_tags(tags: u32) -> Result<Counters> {
    let wire = Wire::new(9)?;
    let near = wire.near.as_str();
    let there = far_end(&wire, tags)?;
    wire.receiver.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let kernel = armed(&wire)?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
    listener.set_nonblocking(true)?;
    let over = AtomicBool::new(false);
    let before = kernel.counters()?;
    thread::scope(|scope| -> Result<()> {
        let serving = scope.spawn(|| serve(&listener, &over));
        let result = (|| -> Result<()> {
            let first = clients();
            let (v4, _) = first.first().copied().context("some clients")?;
            let mut here = End::new(near, tags)?;
            // Nobody takes the tags off yet, so nobody is heard: they are really there.
            let heard = wire
                .sender
                .run(|| Ok(ask(v4.into(), wire.near4().into(), 1).is_ok()))?;
            ensure!(!heard, "the frames carry no tags");
            here.untag(near)?;
            let each = |from: usize, to: usize| {
                wire.sender.run(|| {
                    for (v4, v6) in clients().get(from..to).context("clients")? {
                        for (from, to) in [
                            (IpAddr::from(*v4), IpAddr::from(wire.near4())),
                            ((*v6).into(), wire.near6().into()),
                        ] {
                            ask(from, to, PATIENCE_S)
                                .with_context(|| format!("{from} with {tags} tags"))?;
                        }
                    }
                    Ok(())
                })
            };
            let half = usize::from(CLIENTS / 2);
            each(0, half)?;
            let calm = difference(&kernel.counters()?, &before);
            ensure!(
                calm.cookie_verified >= 2 * half as u64,
                "connections without cookies: {}",
                shown(&calm)
            );
            wire.sender
                .run(|| shortest(wire.far4(), wire.near4(), tags))
                .with_context(|| format!("{tags} tags"))?;
            // Attempts from everywhere, which get their cookies, too.
            let to = wire.near4().to_string();
            let port = PORT.to_string();
            let count = ATTEMPTS.to_string();
            let flood = wire.sender.run(|| {
                Ok(Command::new("hping3")
                    .args(["-q", "-S", "--rand-source", "-i", "u500", "-c", &count])
                    .args(["-p", &port, &to])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()?)
            });
            let mut flood = flood.context("hping3")?;
            let during = each(half, CLIENTS.into());
            let ended = flood.wait();
            during?;
            ended?;
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        drop(serving.join());
        result
    })?;
    let moved = difference(&kernel.counters()?, &before);
    // Until here frames have tags.
    drop((there, kernel));
    Ok(moved)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn cookies_go_and_come_back_over_one_and_two_tags_also_beside_a_flood() -> Result<()> {
    for tags in [1, 2] {
        let moved = isolated(move || over_tags(tags))?;
        println!("{tags} tags: {}", shown(&moved));
        ensure!(
            moved.cookie_verified >= 2 * u64::from(CLIENTS),
            "{}",
            shown(&moved)
        );
        // Of the flood a veth's queue may lose some.
        ensure!(
            moved.cookie_sent >= ATTEMPTS / 2 + 2 * u64::from(CLIENTS),
            "{}",
            shown(&moved)
        );
        ensure!(
            moved.drop_bad_cookie == 0 && moved.cookie_failed == 0,
            "{}",
            shown(&moved)
        );
    }
    Ok(())
}
