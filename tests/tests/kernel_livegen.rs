//! The packet generator sends what it says, and a host takes it for real packets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use secmesh::{addr::Prefix, config::AttachMode};
use secmesh_common::{block::origin, counters::Counter};
use secmesh_tests::{
    kernel::{Kernel, LONG_NS, isolated, options, tool},
    livegen::{Bare, Flood, Generator, Sources, Traffic},
    wire::{SENDER_CPU, Wire},
};

/// Frames of one flood.
const FRAMES: u64 = 20_000;
const PORT: u16 = 4433;

/// A counter of the kernel's network stack, of this namespace.
fn stack_counter(wire: &Wire, name: &str) -> Result<u64> {
    let text = wire.receiver.run(|| tool("nstat", &["-asz", name]))?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{name}: {text}"))
}

fn flood<'a>(wire: &Wire, traffic: Traffic, to: IpAddr, sources: Sources<'a>) -> Flood<'a> {
    Flood {
        traffic,
        sources,
        destination: to,
        port: PORT,
        ports: 1,
        destination_mac: wire.near_mac,
        seed: 7,
    }
}

fn send(wire: &Wire, flood: &Flood<'_>, frames: u64) -> Result<u64> {
    let sent = Generator::load(flood)?.send_from(
        &wire.sender,
        &wire.far,
        SENDER_CPU,
        frames,
        Duration::from_secs(5),
    )?;
    ensure!(sent.frames == frames, "{sent:?}");
    Ok(sent.frames)
}

#[test]
#[ignore = "needs root; run by `cargo xtask test`"]
fn a_real_listener_answers_the_generated_syns_with_cookies() -> Result<()> {
    isolated(|| {
        let wire = Wire::new(0)?;
        wire.receiver.sysctl("net/ipv4/tcp_syncookies", "2")?;
        let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        for to in [IpAddr::from(wire.near4()), wire.near6().into()] {
            let before = stack_counter(&wire, "TcpExtSyncookiesSent")?;
            let sent = send(
                &wire,
                &flood(&wire, Traffic::Syn, to, Sources::Random),
                FRAMES,
            )?;
            let cookies = stack_counter(&wire, "TcpExtSyncookiesSent")? - before;
            ensure!(stack_counter(&wire, "TcpInCsumErrors")? == 0, "checksums");
            // The receiver's ring is short; what it had no room for was dropped.
            ensure!(
                cookies > sent / 100 && cookies <= sent,
                "{to}: {cookies} cookies for {sent} SYNs"
            );
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root; run by `cargo xtask test`"]
fn a_real_socket_gets_the_generated_datagrams() -> Result<()> {
    isolated(|| {
        let wire = Wire::new(0)?;
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        for (to, from) in [
            (IpAddr::from(wire.near4()), IpAddr::from([198, 51, 100, 9])),
            (wire.near6().into(), "2001:db8:7::9".parse()?),
        ] {
            let sources = [from];
            let flood = flood(&wire, Traffic::Udp, to, Sources::Listed(&sources));
            // Each takes a page of the socket's buffer, so no more than fit.
            send(&wire, &flood, 16)?;
            let mut data = [0; 64];
            let (length, sender) = socket.recv_from(&mut data)?;
            ensure!(sender.ip().to_canonical() == from, "{sender} is not {from}");
            ensure!(data[..length].iter().all(|byte| *byte == b's'), "{data:?}");
            for _ in 1..16 {
                socket.recv_from(&mut data)?;
            }
        }
        ensure!(stack_counter(&wire, "UdpInCsumErrors")? == 0, "checksums");
        Ok(())
    })
}

#[test]
#[ignore = "needs root; run by `cargo xtask test`"]
fn a_flood_from_blocked_sources_is_dropped_and_the_driver_counts_the_same() -> Result<()> {
    isolated(|| {
        let wire = Wire::new(0)?;
        let mut kernel = Kernel::load(&options())?;
        let sources: Vec<IpAddr> = (1..=200)
            .map(|last| Ipv4Addr::new(198, 51, 100, last).into())
            .collect();
        for source in &sources {
            let until = u64::MAX - LONG_NS;
            kernel
                .blocks
                .put(&Prefix::host(*source), until, 1, origin::MESH)?;
        }
        kernel.dataplane.attach(&wire.near, AttachMode::Driver)?;
        let flood = flood(
            &wire,
            Traffic::Udp,
            wire.near4().into(),
            Sources::Listed(&sources),
        );
        let sent = send(&wire, &flood, FRAMES)?;
        let dropped = kernel.counters()?.get(Counter::DropExact);
        ensure!(
            dropped == wire.xdp_drops()?,
            "{dropped}: {:?}",
            wire.statistics()?
        );
        ensure!(
            dropped > sent / 100 && dropped <= sent,
            "{dropped} of {sent}"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root; run by `cargo xtask test`"]
fn an_edge_lets_in_only_what_is_for_its_address() -> Result<()> {
    isolated(|| {
        let wire = Wire::new(0)?;
        for (own, other) in [
            (IpAddr::from(wire.near4()), IpAddr::from([192, 0, 2, 9])),
            (wire.near6().into(), "2001:db8::9".parse()?),
        ] {
            let mut edge = Bare::edge(own)?;
            edge.attach(&wire.near)?;
            let to = |to| flood(&wire, Traffic::Udp, to, Sources::Random);
            send(&wire, &to(own), FRAMES)?;
            ensure!(edge.strangers()? == 0, "{own} is no stranger");
            let before = wire.xdp_drops()?;
            send(&wire, &to(other), FRAMES)?;
            let strangers = edge.strangers()?;
            ensure!(
                strangers > 0 && strangers == wire.xdp_drops()? - before,
                "{other}"
            );
        }
        Ok(())
    })
}
