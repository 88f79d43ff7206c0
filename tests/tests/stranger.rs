//! Who is no member gets no word in.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use secmesh_tests::{PATIENCE, lab};
use xtask::clock;
use xtask::lab::net::{self, Family};
use xtask::lab::{Lab, MESH_PORT, ns};

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_stranger_on_the_mesh_port_is_refused_and_counted() -> Result<()> {
    let lab = lab(4)?;
    let before = refusals(&lab)?;
    let mesh = SocketAddr::new(net::node_address(Family::V4, 1), MESH_PORT);
    // No TLS at all; a TLS record that is larger than any may be; silence after a good beginning.
    let openings: [&'static [u8]; 3] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 0x03, 0x01, 0xff, 0xff, 1, 2, 3],
        &[0x16, 0x03, 0x01, 0x00, 0x05, 1],
    ];
    for opening in openings {
        let answered = ns::within(&lab.state().namespace("client"), move || {
            knock(mesh, opening)
        })?;
        ensure!(
            answered.len() < 1_024,
            "a stranger was told {} bytes",
            answered.len()
        );
    }
    let counted = clock::wait_until(PATIENCE, Duration::from_millis(100), || {
        Ok((refusals(&lab)? >= before + 2).then_some(()))
    })?;
    ensure!(
        counted.is_some(),
        "the strangers were not counted: {:?}",
        lab.agent(1)?.status()?.controller
    );

    // The mesh goes on as if nothing had been.
    lab.wait_for_mesh()?;
    let members = lab.agent(1)?.peers()?;
    ensure!(
        members.len() <= 4,
        "a stranger is among the peers: {members:?}"
    );
    Ok(())
}

/// Says something to the mesh port and gives what comes back until it is closed or a second is over.
fn knock(mesh: SocketAddr, opening: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&mesh, Duration::from_secs(1))
        .context("cannot connect to the mesh port")?;
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .context("cannot set a time limit")?;
    // It may have been closed before all was said.
    let _cut_short = stream.write_all(opening);
    let mut answer = Vec::new();
    let _closed_or_silent = stream.take(4_096).read_to_end(&mut answer);
    Ok(answer)
}

/// All that the node counts as refused on its mesh port.
fn refusals(lab: &Lab) -> Result<u64> {
    let counters = lab.agent(1)?.status()?.controller;
    Ok(counters
        .iter()
        .filter(|(name, _)| ["transport_refused"].iter().any(|word| name.contains(word)))
        .map(|(_, count)| *count)
        .sum())
}
