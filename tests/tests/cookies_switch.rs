//! SYN cookies and the system: its switch, its listeners, and interfaces that cannot send back.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{options, words_of};
use serde_json::Value;
use xtask::{
    clock,
    lab::{Lab, echo, net, ns},
};

/// `net.ipv4.tcp_syncookies` of the node.
fn switch(lab: &Lab) -> Result<u8> {
    ns::within(&lab.node(1)?.namespace, || {
        let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies")?;
        Ok(text.trim().parse()?)
    })
}

fn set_switch(lab: &Lab, value: u8) -> Result<()> {
    ns::within(&lab.node(1)?.namespace, move || {
        Ok(fs::write(
            "/proc/sys/net/ipv4/tcp_syncookies",
            value.to_string(),
        )?)
    })
}

fn expect_switch(lab: &Lab, when: &str, value: u8) -> Result<()> {
    let is = switch(lab)?;
    ensure!(is == value, "{when}: tcp_syncookies is {is}, not {value}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_systems_switch_is_set_while_armed_and_put_back_also_after_a_crash() -> Result<()> {
    let mut wanted = options()?.nodes(1);
    "[cookies]\nalways = [7007]\nveth = true\n".clone_into(&mut wanted.extra_config);
    let mut lab = Lab::start(wanted)?;
    expect_switch(&lab, "armed", 2)?;
    lab.agent(1)?.must(&["mode", "monitor"])?;
    expect_switch(&lab, "in monitor mode", 1)?;
    lab.agent(1)?.must(&["mode", "enforce"])?;
    expect_switch(&lab, "armed again", 2)?;
    lab.stop_agent(1, Signal::SIGKILL)?;
    expect_switch(&lab, "while the program goes on alone", 2)?;
    lab.start_agent(1)?;
    lab.agent(1)?.must(&["mode", "monitor"])?;
    expect_switch(&lab, "put back by the next agent", 1)?;
    lab.agent(1)?.must(&["mode", "enforce"])?;
    lab.stop_agent(1, Signal::SIGKILL)?;
    lab.agent(1)?.must(&["detach"])?;
    expect_switch(&lab, "put back by detach after a crash", 1)?;

    // Somebody else's change stays, and status says what it means.
    lab.start_agent(1)?;
    expect_switch(&lab, "armed", 2)?;
    set_switch(&lab, 0)?;
    let told = clock::wait_until(Duration::from_secs(20), Duration::from_millis(200), || {
        let status = lab.agent(1)?.output(&["status"])?;
        Ok(words_of(&status)
            .contains("somebody set net.ipv4.tcp_syncookies to 0")
            .then_some(()))
    })?;
    told.context("status does not tell of the change")?;
    expect_switch(&lab, "after somebody else's change", 0)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let detached = lab.agent(1)?.output(&["detach"])?;
    ensure!(
        words_of(&detached).contains("stays 0"),
        "{}",
        words_of(&detached)
    );
    expect_switch(&lab, "after detach", 0)?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_listener_that_opens_later_gets_cookies_and_one_on_loopback_does_not() -> Result<()> {
    let mut wanted = options()?.nodes(1);
    wanted.attach = "generic";
    let lab = Lab::start(wanted)?;
    let namespace = lab.node(1)?.namespace.clone();
    let open = ns::within(&namespace, || {
        Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8123))?)
    })?;
    let _own = ns::within(&namespace, || Ok(TcpListener::bind("127.0.0.1:8124")?))?;
    let has = |port: u64| -> Result<bool> {
        let output = lab.agent(1)?.output(&["status", "--json"])?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let ports = status.pointer("/cookies/ports").and_then(Value::as_array);
        Ok(ports
            .context("no ports")?
            .iter()
            .any(|p| p.get("port").and_then(Value::as_u64) == Some(port)))
    };
    let patience = Duration::from_secs(20);
    let wait_for = |wanted| {
        clock::wait_until(patience, Duration::from_millis(200), || {
            Ok((has(8123)? == wanted).then_some(()))
        })
    };
    wait_for(true)?.context("the new listener has no cookies")?;
    if has(8124)? {
        bail!("a listener on loopback has cookies");
    }
    drop(open);
    wait_for(false)?.context("the closed port still has cookies")?;
    expect_switch(&lab, "auto needs no change", 1)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_veth_that_would_keep_the_answers_has_no_cookies_and_status_says_why() -> Result<()> {
    let mut wanted = options()?.nodes(1);
    "[cookies]\nmode = \"always\"\n".clone_into(&mut wanted.extra_config);
    let lab = Lab::start(wanted)?;
    let output = lab.agent(1)?.output(&["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        status.pointer("/cookies/total").and_then(Value::as_u64) == Some(0),
        "{status}"
    );
    let trouble = status.pointer("/cookies/trouble").and_then(Value::as_str);
    ensure!(
        trouble.is_some_and(|why| why.contains("eth0 is a veth in driver mode")),
        "{trouble:?}"
    );
    expect_switch(&lab, "without cookies", 1)?;
    let service = SocketAddr::new("10.77.0.1".parse()?, echo::PORT);
    ns::within(&net::namespace(&lab.state().id, "client"), move || {
        echo::ask(service)
    })
}
