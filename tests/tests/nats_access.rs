//! NATS servers that do not let everybody in: TLS with users, tokens, and what a wrong secret looks like.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use secmesh_tests::nats::Intruder;
use secmesh_tests::{PATIENCE, options};
use xtask::clock;
use xtask::lab::broker::{Access, Broker};
use xtask::lab::state::Node;
use xtask::lab::{Carrier, Lab, ns};

const PASSWORD: &str = "kX9-right-password-of-the-lab";
const WRONG: &str = "zQ4-some-other-password";
const TOKEN: &str = "tV7-token-of-the-lab";

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

fn secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("{text}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// An authority and a server's certificate for the broker's address: `ca.pem`, `server.pem`, `server.key`.
fn certificates(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key)?;
    let issuer = Issuer::new(authority, key);
    let server_key = KeyPair::generate()?;
    let server = CertificateParams::new(vec![Broker::address().ip().to_string()])?
        .signed_by(&server_key, &issuer)?;
    fs::write(folder.join("ca.pem"), pem("CERTIFICATE", ca.der()))?;
    fs::write(folder.join("server.pem"), pem("CERTIFICATE", server.der()))?;
    secret(
        &folder.join("server.key"),
        &pem("PRIVATE KEY", &server_key.serialize_der()),
    )
}

fn with_password(folder: &Path, users: &[(&str, &str)]) -> String {
    let users: Vec<String> = users
        .iter()
        .map(|(user, password)| format!("{{user: \"{user}\", password: \"{password}\"}}"))
        .collect();
    let folder = folder.display();
    format!(
        "tls {{\n  cert_file: \"{folder}/server.pem\"\n  key_file: \"{folder}/server.key\"\n}}\n\
         authorization {{ users: [{}] }}\n",
        users.join(", ")
    )
}

/// None of the secrets is in any log, nor in what the agents tell.
fn ensure_nothing_told(lab: &Lab, secrets: &[&str]) -> Result<()> {
    for node in &lab.state().nodes {
        let log = fs::read_to_string(&node.log)?;
        ensure!(log.contains("NATS"), "{} logs nothing of NATS", node.name);
        let client = lab.ask(node);
        let told = [
            log,
            client.must(&["status", "--json"])?,
            client.must(&["status", "--all"])?,
            client.must(&["config", "show"]).unwrap_or_default(),
        ];
        for secret in secrets {
            ensure!(
                told.iter().all(|text| !text.contains(secret)),
                "a secret of {} is in its log or answers",
                node.name
            );
        }
    }
    Ok(())
}

fn trouble(lab: &Lab, node: &Node) -> Result<Option<String>> {
    let status: serde_json::Value = lab.ask(node).json(&["status"])?;
    Ok(status
        .get("carrier_trouble")
        .and_then(|why| why.as_str())
        .map(str::to_owned))
}

fn failed(lab: &Lab, node: &Node) -> Result<u64> {
    let status = lab.ask(node).status()?;
    let count = status.controller.get("transport_nats_connect_failed");
    count.copied().context("no counter of failed connections")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_mesh_meets_through_tls_with_a_password_and_a_wrong_one_is_told_and_tried_again() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    certificates(folder.path())?;
    for node in 1..=3 {
        secret(&folder.path().join(format!("password-n{node}")), PASSWORD)?;
    }
    let path = folder.path().display();
    let mut options = options()?.nodes(3).carrier(Carrier::Nats);
    options.access = Access {
        server: with_password(folder.path(), &[("mesh", PASSWORD)]),
        nodes: format!(
            "user = \"mesh\"\npassword_file = \"{path}/password-{{node}}\"\nca_file = \"{path}/ca.pem\"\n"
        ),
        tls: true,
    };
    let mut lab = Lab::start(options)?;
    let third = lab.node(3)?.clone();
    for node in &lab.state().nodes.clone() {
        ensure!(trouble(&lab, node)?.is_none(), "{} has trouble", node.name);
    }
    // Whoever is on the bus without both gets nothing.
    let stranger = ns::within(&lab.state().namespace("attacker"), || {
        Intruder::connect(Broker::address(), "secmesh.>").and_then(|mut bus| bus.listen())
    });
    ensure!(stranger.is_err(), "a stranger without TLS hears the mesh");

    secret(&folder.path().join("password-n3"), WRONG)?;
    lab.stop_agent(3, Signal::SIGTERM)?;
    lab.start_agent(3)?;
    let told = clock::wait_until(PATIENCE, Duration::from_millis(100), || {
        trouble(&lab, &third)
    })?;
    let told = told.context("a wrong password is not told of")?;
    ensure!(
        told.contains("refuses") && told.contains("password_file"),
        "{told}"
    );
    let shown = lab.ask(&third).must(&["status"])?;
    ensure!(
        shown.contains("refuses this node's user and password"),
        "{shown}"
    );
    let log = fs::read_to_string(&third.log)?;
    ensure!(
        log.contains("refuses this node's user and password"),
        "not in the log"
    );
    let before = failed(&lab, &third)?;
    let again = clock::wait_until(PATIENCE * 2, Duration::from_millis(200), || {
        Ok((failed(&lab, &third)? >= before + 2).then_some(()))
    })?;
    ensure!(again.is_some(), "it does not try again");

    // The server learns that password: the agent comes in without being restarted.
    let users = [("mesh", WRONG), ("other", PASSWORD)];
    for node in 1..=2 {
        secret(&folder.path().join(format!("password-n{node}")), WRONG)?;
    }
    lab.broker()?
        .reconfigure(with_password(folder.path(), &users))?;
    let came = clock::wait_until(PATIENCE * 2, Duration::from_millis(100), || {
        Ok(trouble(&lab, &third)?.is_none().then_some(()))
    })?;
    ensure!(came.is_some(), "the agent has given up");
    for node in 1..=2 {
        lab.stop_agent(node, Signal::SIGTERM)?;
        lab.start_agent(node)?;
    }
    lab.wait_for_mesh()?;
    ensure_nothing_told(&lab, &[PASSWORD, WRONG])
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_mesh_meets_with_a_token_and_a_server_of_another_authority_is_told_of() -> Result<()> {
    let folder = tempfile::tempdir()?;
    certificates(folder.path())?;
    secret(&folder.path().join("token"), TOKEN)?;
    let path = folder.path().display().to_string();
    let mut options = options()?.nodes(2).carrier(Carrier::Nats);
    let server = format!(
        "tls {{\n  cert_file: \"{path}/server.pem\"\n  key_file: \"{path}/server.key\"\n}}\n\
         authorization {{ token: \"{TOKEN}\" }}\n"
    );
    options.access = Access {
        server: server.clone(),
        nodes: format!("token_file = \"{path}/token\"\nca_file = \"{path}/ca.pem\"\n"),
        tls: true,
    };
    let mut lab = Lab::start(options)?;
    // The same address with a certificate of somebody else.
    certificates(folder.path())?;
    lab.broker()?.reconfigure(server)?;
    let first = lab.node(1)?.clone();
    let told = clock::wait_until(PATIENCE * 2, Duration::from_millis(100), || {
        Ok(trouble(&lab, &first)?.filter(|why| why.contains("ca_file")))
    })?;
    ensure!(
        told.is_some(),
        "another authority's certificate is not told of"
    );
    ensure_nothing_told(&lab, &[TOKEN])
}
