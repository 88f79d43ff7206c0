//! The mesh port is flooded by strangers, and a member sends garbage: the mesh goes on.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh::clock::SystemClock;
use secmesh::mesh::identity::Identity;
use secmesh::mesh::store::MeshStore;
use secmesh::mesh::transport::{
    AllowedPeers, Carrier, PeerAddress, PeerIdentity, Transport, TransportConfig, TransportEvent,
};
use secmesh::state::StateDir;
use secmesh_tests::decide::confirm;
use secmesh_tests::partition::{counter, ensure_no_liars, quorum, same};
use secmesh_tests::random::Random;
use secmesh_tests::{PATIENCE, lab, wait_for_blocks};
use xtask::clock;
use xtask::lab::net::{self, ATTACKER_PORT, Family};
use xtask::lab::state::Node;
use xtask::lab::{Lab, MESH_PORT, ns};

const ALL: [usize; 4] = [1, 2, 3, 4];
/// All but the one that sends garbage.
const HONEST: [usize; 3] = [1, 2, 3];
const NOTICED: Duration = Duration::from_secs(20);
/// Most that is spoken, and waited for its being heard: a busy machine's disk can hold agents up for half a minute.
const GARBAGE: Duration = Duration::from_mins(1);

fn transport_refusals(lab: &Lab, number: usize) -> Result<u64> {
    let counters = lab.agent(number)?.status()?.controller;
    Ok(counters
        .iter()
        .filter(|(name, _)| name.starts_with("transport_refused"))
        .map(|(_, count)| *count)
        .sum())
}

/// Memory that the agent has, kiB.
fn resident(node: &Node) -> Result<u64> {
    let agent = node.agent.context("no agent runs")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")
}

/// Threads that knock at the mesh port.
const KNOCKERS: usize = 8;
/// Connections that each of them holds open at a time.
const HELD: usize = 48;

/// Connects without end, says something that begins like TLS or nothing, and lets go late.
fn knock(mesh: SocketAddr, stop: &AtomicBool, made: &AtomicU64, seed: u64) {
    let openings: [&[u8]; 4] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 0x03, 0x01, 0x02, 0x00, 1, 0, 1, 0xfc, 3, 3],
        &[0x16, 0x03, 0x01, 0xff, 0xff, 1, 2, 3],
    ];
    let mut random = Random(seed);
    let mut held = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = TcpStream::connect_timeout(&mesh, Duration::from_millis(200)) {
            made.fetch_add(1, Ordering::Relaxed);
            if let Some(opening) = random.pick(&openings) {
                // It may have been closed already.
                let _cut_short = stream.write_all(opening);
            }
            held.push_back(stream);
        }
        if held.len() > HELD {
            held.pop_front();
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_flood_of_strangers_at_the_mesh_port_keeps_no_member_out() -> Result<()> {
    let mut lab = lab(4)?;
    let mesh = SocketAddr::new(net::node_address(Family::V4, 1), MESH_PORT);
    let before = transport_refusals(&lab, 1)?;
    let (stop, made) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut threads = Vec::new();
    // From both: should the one be blocked for what it does, the other goes on.
    for role in [ATTACKER_PORT, "client"] {
        for n in 0..KNOCKERS {
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            threads.push(ns::spawn(&lab.state().namespace(role), move || {
                knock(mesh, &stop, &made, n as u64);
                Ok(())
            })?);
        }
    }
    let outcome = (|| -> Result<()> {
        let refused = clock::wait_until(PATIENCE, Duration::from_millis(100), || {
            Ok((transport_refusals(&lab, 1)? > before + 50).then_some(()))
        })?;
        ensure!(refused.is_some(), "the flood is not there, or not counted");
        let small = resident(lab.node(1)?)?;
        let one: IpAddr = Ipv4Addr::new(198, 19, 201, 1).into();
        confirm(&lab, &[1, 2], one)?;
        wait_for_blocks(&lab.state().nodes, one, true)?;
        // A member that comes back finds a place, in both directions.
        for number in [4, 1] {
            lab.stop_agent(number, Signal::SIGTERM)?;
            lab.start_agent(number)?;
            for node in ALL {
                quorum(&lab, node, "FULL", 400, NOTICED)?;
            }
        }
        let two: IpAddr = Ipv4Addr::new(198, 19, 201, 2).into();
        confirm(&lab, &[1, 2], two)?;
        wait_for_blocks(&lab.state().nodes, two, true)?;
        let large = resident(lab.node(1)?)?;
        eprintln!(
            "{} connections by strangers; the agent has {small} kiB, then {large} kiB",
            made.load(Ordering::Relaxed)
        );
        ensure!(
            large < small + 64 * 1_024,
            "strangers cost memory: {small} kiB, then {large} kiB"
        );
        Ok(())
    })();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        // What it did is counted; how it ended matters to nobody.
        let _ended = thread.join();
    }
    outcome?;
    same(&lab, &ALL, PATIENCE, |_| true)?;
    ensure_no_liars(&lab, &ALL)
}

/// Runs as node 4, with its key, and says what no node would until told to stop, but not for ever; gives how much it
/// said.
fn garble(node: &Node, stop: Arc<AtomicBool>) -> Result<u64> {
    let (state, namespace) = (node.state_dir.clone(), node.namespace.clone());
    ns::within(&namespace, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(garbage(&StateDir::open(&state)?, &stop))
    })
}

async fn garbage(state: &StateDir, stop: &AtomicBool) -> Result<u64> {
    let identity = Identity::load(state)?;
    let store = MeshStore::load(state)?;
    let me = identity.node_id();
    let records = || store.members.iter().map(|member| &member.record);
    let allowed = Arc::new(AllowedPeers::new());
    allowed.replace(records().map(|r| (r.tls_spki_sha256, PeerIdentity::Member(r.node))));
    let peers: Vec<PeerAddress> = records()
        .filter(|record| record.node != me)
        .filter_map(|record| {
            Some(PeerAddress {
                node: record.node,
                spki_sha256: record.tls_spki_sha256,
                address: record.address?,
            })
        })
        .collect();
    let (transport, mut events) = Transport::start(TransportConfig {
        carrier: Carrier::Grpc,
        listen: SocketAddr::from(([0, 0, 0, 0], MESH_PORT)),
        node: me,
        tls: identity.tls().clone(),
        mesh: store.genesis.genesis.mesh_id(),
        allowed,
        peers: peers.clone(),
        clock: Arc::new(SystemClock),
    })?;
    let until = tokio::time::Instant::now() + GARBAGE;
    let (mut random, mut said, mut seen) = (Random(7), 0, Vec::<Vec<u8>>::new());
    while !stop.load(Ordering::Relaxed) && tokio::time::Instant::now() < until {
        while let Some(event) = events.try_recv() {
            // What honest nodes say, for changing a byte of it.
            if let TransportEvent::Message { bytes, .. } = event
                && seen.len() < 256
            {
                seen.push(bytes.to_vec());
            }
        }
        for peer in &peers {
            let mut message = match (random.below(3), seen.get(random.index(seen.len()))) {
                // A kind that there is, and noise.
                (0, _) => {
                    let tag = b"secmesh/msg/1";
                    let mut message = vec![u8::try_from(tag.len())?];
                    message.extend_from_slice(tag);
                    message.push(random.byte() % 40);
                    message.extend((0..random.below(400)).map(|_| random.byte()));
                    message
                }
                (1, Some(honest)) => honest.clone(),
                _ => (0..random.below(2_000)).map(|_| random.byte()).collect(),
            };
            if let Some(byte) = {
                let at = random.index(message.len());
                message.get_mut(at)
            } {
                *byte ^= 1 << random.below(8);
            }
            let _queued = transport.send(peer.node, message.into());
            said += 1;
        }
        if said % 300 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    transport.shutdown().await;
    Ok(said)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_member_that_sends_garbage_is_refused_holds_nobody_up_and_is_cut_off() -> Result<()> {
    let mut lab = lab(4)?;
    lab.stop_agent(4, Signal::SIGTERM)?;
    let small = resident(lab.node(1)?)?;
    let refused = |lab: &Lab| -> Result<Vec<u64>> {
        let of = |n| counter(lab, n, "refused_malformed");
        HONEST.into_iter().map(of).collect()
    };
    let before = refused(&lab)?;
    let node = lab.node(4)?.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let talker = std::thread::spawn(move || garble(&node, told));
    // That is what a member is cut off for, by everybody: also by those whom it has not reached yet.
    let cut_off = clock::wait_until(GARBAGE, Duration::from_millis(100), || {
        for n in HONEST {
            if !lab.agent(n)?.must(&["peers"])?.contains("quarantined") {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    let after = refused(&lab)?;
    let came: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    ensure!(
        cut_off.is_some(),
        "not cut off by everybody after {came:?} malformed messages; n1's peers are\n{}",
        lab.agent(1)?.must(&["peers"])?
    );
    // Nobody is cut off on one node's word; a third of the garbage has a wrong signature and counts apart.
    ensure!(
        came.iter().filter(|came| **came >= 16).count() >= 2,
        "cut off after {came:?} malformed messages"
    );
    // It still knocks.
    let subject: IpAddr = Ipv4Addr::new(198, 19, 202, 1).into();
    confirm(&lab, &[1, 2], subject)?;
    wait_for_blocks(&lab.state().nodes[..3], subject, true)?;
    stop.store(true, Ordering::Relaxed);
    let said = talker
        .join()
        .map_err(|_| anyhow::anyhow!("the talker panicked"))??;
    let large = resident(lab.node(1)?)?;
    eprintln!(
        "{said} messages of garbage, {came:?} refused as malformed; n1 has {small} kiB, then {large} kiB"
    );
    ensure!(
        large < small + 64 * 1_024,
        "garbage costs memory: {small} kiB, then {large} kiB"
    );
    // The real one is let in again when the operator says so; it has told no lie that is proved.
    let key = lab.node(1)?.state_dir.join("operator.key");
    let key = key.to_string_lossy().into_owned();
    lab.agent(1)?
        .must(&["readmit", "n4", "--operator-key", &key])?;
    lab.start_agent(4)?;
    lab.wait_for_mesh()?;
    same(&lab, &ALL, NOTICED, |_| true)?;
    ensure_no_liars(&lab, &ALL)
}
