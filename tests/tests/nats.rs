//! The carrier NATS: nobody has to trust the server or who else is connected to it, and its end is not the mesh's.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use nix::sys::signal::Signal;
use secmesh::mesh::crypto::Signer;
use secmesh::mesh::envelope::{EnvelopeKind, SignedEnvelope};
use secmesh_tests::nats::{Intruder, Overheard};
use secmesh_tests::{PATIENCE, attack_two_nodes, ensure_defended, options, wait_for_blocks};
use xtask::clock;
use xtask::lab::broker::Broker;
use xtask::lab::generators::Kind;
use xtask::lab::{Carrier, Lab, ns};

/// What is enough to have heard each node speak to each other one.
const OVERHEARD: usize = 30;

fn lab() -> Result<Lab> {
    Lab::start(options()?.nodes(4).carrier(Carrier::Nats))
}

/// A counter of the transport, summed over all nodes.
fn sum(lab: &Lab, name: &str) -> Result<u64> {
    let mut sum = 0;
    for node in &lab.state().nodes {
        sum += lab
            .ask(node)
            .status()?
            .controller
            .get(&format!("transport_{name}"))
            .copied()
            .with_context(|| format!("no counter transport_{name}"))?;
    }
    Ok(sum)
}

fn ensure_risen(lab: &Lab, name: &str, before: u64, by: usize) -> Result<()> {
    let least = before + u64::try_from(by).context("a number of envelopes")?;
    let mut last = 0;
    let risen = clock::wait_until(PATIENCE, std::time::Duration::from_millis(100), || {
        last = sum(lab, name)?;
        Ok((last >= least).then_some(()))
    })?;
    ensure!(
        risen.is_some(),
        "{name} is {last}, not {least}: something was taken that should have been refused"
    );
    Ok(())
}

/// Does something on the bus, from the attacker's host.
fn on_the_bus<T: Send + 'static>(
    lab: &Lab,
    work: impl FnOnce(&mut Intruder) -> Result<T> + Send + 'static,
) -> Result<T> {
    ns::within(&lab.state().namespace("attacker"), move || {
        work(&mut Intruder::connect(Broker::address(), "secmesh.>")?)
    })
}

/// The same envelope with a byte changed, at the front of what is signed after the tag, or in the signature.
fn altered(envelope: &Overheard, at: usize) -> Vec<u8> {
    let mut bytes = envelope.payload.clone();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1;
    }
    bytes
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn whoever_injects_replays_or_alters_on_the_bus_is_refused_and_counted() -> Result<()> {
    let mut lab = lab()?;
    let names = [
        "malformed",
        "not_ours",
        "stranger",
        "bad_signature",
        "replayed",
        "stale",
    ];
    let counters = |lab: &Lab| -> Result<BTreeMap<&str, u64>> {
        names
            .iter()
            .map(|name| Ok((*name, sum(lab, &format!("refused_envelope_{name}"))?)))
            .collect()
    };
    let before = counters(&lab)?;
    let downs = sum(&lab, "connections_down")?;
    let overheard: Vec<Overheard> = on_the_bus(&lab, |bus| {
        let all: Vec<Overheard> = (0..OVERHEARD)
            .map(|_| bus.listen())
            .collect::<Result<_>>()?;
        for heard in &all {
            // Not an envelope; altered where it is signed, and in the signature; to somebody else; again.
            bus.publish(&heard.subject, b"secmesh")?;
            let end = heard.payload.len() - 1;
            bus.publish(&heard.subject, &altered(heard, end))?;
            // Behind tag, mesh, key, recipient, nonces: the number.
            bus.publish(&heard.subject, &altered(heard, 19 + 32 + 32 + 16 + 32 + 7))?;
            let other = all
                .iter()
                .map(|other| &other.subject)
                .find(|other| other.split('.').nth(2) != heard.subject.split('.').nth(2));
            if let Some(other) = other {
                bus.publish(other, &heard.payload)?;
            }
            bus.publish(&heard.subject, &heard.payload)?;
            // A true envelope by a key that nobody knows, with the nonces of the true sender.
            let signer = Signer::from_secret(&[0x5a; 32]);
            let read = SignedEnvelope::from_bytes(&Bytes::copy_from_slice(&heard.payload))?;
            let mut forged = read.envelope;
            forged.sender = signer.public();
            forged.sequence += u64::from(forged.kind.numbered());
            bus.publish(&heard.subject, &forged.sign(&signer).to_bytes())?;
        }
        bus.flush()?;
        Ok(all)
    })?;
    let numbered = overheard
        .iter()
        .filter_map(|heard| {
            SignedEnvelope::from_bytes(&Bytes::copy_from_slice(&heard.payload)).ok()
        })
        .filter(|read| read.envelope.kind.numbered())
        .count();
    ensure!(numbered > 0, "nothing that could be repeated was heard");
    for (name, by) in [
        ("malformed", OVERHEARD),
        ("not_ours", OVERHEARD),
        ("stranger", OVERHEARD),
        // A number that becomes 0 makes it malformed instead.
        ("bad_signature", OVERHEARD),
        ("replayed", numbered),
    ] {
        ensure_risen(&lab, &format!("refused_envelope_{name}"), before[name], by)?;
    }
    ensure!(
        sum(&lab, "connections_down")? == downs,
        "somebody on the bus made a peer go down"
    );

    // What was said to an earlier life of a node is nothing to the next.
    lab.stop_agent(1, Signal::SIGTERM)?;
    lab.start_agent(1)?;
    lab.wait_for_mesh()?;
    let stale = sum(&lab, "refused_envelope_stale")?;
    let again: Vec<Overheard> = overheard
        .into_iter()
        .filter(|heard| {
            SignedEnvelope::from_bytes(&Bytes::copy_from_slice(&heard.payload))
                .is_ok_and(|read| read.envelope.kind != EnvelopeKind::Hello)
        })
        .collect();
    on_the_bus(&lab, move |bus| {
        again
            .iter()
            .try_for_each(|heard| bus.publish(&heard.subject, &heard.payload))?;
        bus.flush()
    })?;
    ensure_risen(&lab, "refused_envelope_stale", stale, 1)?;

    // And the mesh decides as ever.
    lab.wait_for_mesh()?;
    let nodes = lab.state().nodes.clone();
    let outcome = attack_two_nodes(&lab, Kind::SynFlood, false)?;
    ensure_defended(&outcome)?;
    wait_for_blocks(&nodes, outcome.source, true)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_killed_server_that_comes_back_lets_the_mesh_catch_up() -> Result<()> {
    let mut lab = lab()?;
    let nodes = lab.state().nodes.clone();
    lab.broker()?.kill();
    let cut_off = clock::wait_until(PATIENCE * 2, std::time::Duration::from_millis(100), || {
        let states = nodes
            .iter()
            .map(|node| Ok(lab.ask(node).status()?.quorum.state))
            .collect::<Result<Vec<String>>>()?;
        Ok(states.iter().all(|state| state == "ISOLATED").then_some(()))
    })?;
    ensure!(
        cut_off.is_some(),
        "without a server the nodes see each other"
    );
    // Each victim defends itself; the others cannot know.
    let outcome = attack_two_nodes(&lab, Kind::IcmpFlood, false)?;
    wait_for_blocks(&nodes[..2], outcome.source, true)?;
    wait_for_blocks(&nodes[2..], outcome.source, false)?;

    lab.broker()?.restart()?;
    lab.wait_for_mesh()?;
    wait_for_blocks(&nodes, outcome.source, true)
}
