//! Interfaces that come and go, and one that somebody else's program is on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{PATIENCE, lab};
use serde_json::Value;
use xtask::{
    clock,
    lab::{Lab, ns},
    sh,
};

const POLL: Duration = Duration::from_millis(200);

fn ip(lab: &Lab, words: &str) -> Result<()> {
    let mut command = ns::command(&lab.node(1)?.namespace, "ip")?;
    sh::output(command.args(words.split(' '))).map(drop)
}

/// Starts the agent anew with these interfaces besides the lab's own.
fn configure(lab: &mut Lab, interfaces: &str) -> Result<()> {
    lab.stop_agent(1, Signal::SIGTERM)?;
    let config = lab.node(1)?.config.clone();
    let text = std::fs::read_to_string(&config)?;
    let text: Vec<String> = text
        .lines()
        .map(|line| {
            if line.starts_with("interfaces") {
                format!("interfaces = [{interfaces}]")
            } else {
                line.to_owned()
            }
        })
        .collect();
    std::fs::write(&config, text.join("\n") + "\n")?;
    lab.start_agent(1)
}

/// The index of the interface that the agent says it is on.
fn attached(lab: &Lab, name: &str) -> Result<Option<u64>> {
    let status: Value = lab.agent(1)?.json(&["status"])?;
    let interfaces = status
        .get("interfaces")
        .and_then(Value::as_array)
        .context("a list")?;
    Ok(interfaces
        .iter()
        .find(|i| i["name"] == name)
        .and_then(|i| i["index"].as_u64()))
}

fn why_waiting(lab: &Lab, name: &str) -> Result<Option<String>> {
    let status: Value = lab.agent(1)?.json(&["status"])?;
    let waiting = status
        .get("waiting")
        .and_then(Value::as_array)
        .context("a list")?;
    Ok(waiting
        .iter()
        .find(|i| i["name"] == name)
        .and_then(|i| i["why"].as_str().map(str::to_owned)))
}

/// Whether the kernel has a program on it.
fn runs_xdp(lab: &Lab, name: &str) -> Result<bool> {
    let mut command = ns::command(&lab.node(1)?.namespace, "ip")?;
    let shown = sh::output(command.args(["-j", "link", "show", "dev", name]))?;
    let links: Value = serde_json::from_slice(&shown.stdout)?;
    Ok(links.pointer("/0/xdp/prog/id").is_some())
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    clock::wait_until(PATIENCE, POLL, || Ok(is_so()?.then_some(())))?
        .with_context(|| format!("waited in vain: {what}"))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_interface_is_waited_for_lost_found_renamed_and_taken_off() -> Result<()> {
    let mut lab = lab(1)?;
    configure(&mut lab, "\"eth0\", \"late0\"")?;
    ensure!(attached(&lab, "eth0")?.is_some(), "eth0 is not protected");
    let why = why_waiting(&lab, "late0")?.context("late0 is not waited for")?;
    ensure!(why.starts_with("absent"), "{why}");
    let told = lab.agent(1)?.must(&["status"])?;
    ensure!(told.contains("late0 (absent)"), "{told}");

    ip(&lab, "link add late0 type veth peer name late0p")?;
    wait_for("late0 to be protected", || runs_xdp(&lab, "late0"))?;
    wait_for(
        "status to say so",
        || Ok(attached(&lab, "late0")?.is_some()),
    )?;
    let first = attached(&lab, "late0")?;

    ip(&lab, "link del late0")?;
    wait_for("its loss to be seen", || {
        Ok(why_waiting(&lab, "late0")?.is_some())
    })?;
    ip(&lab, "link add late0 type veth peer name late0p")?;
    wait_for("the new one to be protected", || runs_xdp(&lab, "late0"))?;
    wait_for("its index", || {
        let now = attached(&lab, "late0")?;
        Ok(now.is_some() && now != first)
    })?;

    // Renamed, and another one takes the name: the link must not be mistaken for the new one's.
    lab.stop_agent(1, Signal::SIGTERM)?;
    ip(&lab, "link set dev late0 name old0")?;
    ip(&lab, "link add late0 type veth peer name late1p")?;
    ensure!(!runs_xdp(&lab, "late0")?, "a new interface with a program");
    lab.start_agent(1)?;
    ensure!(
        runs_xdp(&lab, "late0")? && attached(&lab, "late0")?.is_some(),
        "the interface that took the name is not protected"
    );

    configure(&mut lab, "\"eth0\"")?;
    ensure!(!runs_xdp(&lab, "late0")?, "still on what is not listed");
    ensure!(runs_xdp(&lab, "eth0")?, "eth0 lost its program");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn another_program_on_an_interface_is_named_and_the_others_are_protected() -> Result<()> {
    let mut lab = lab(1)?;
    ip(&lab, "link add busy0 type veth peer name busy0p")?;
    // The same program, as another one: attached by hand, past any link.
    // No dots in names there.
    let pin = format!("{}-other", lab.node(1)?.pin_dir.display());
    let shown = {
        let mut command = ns::command(&lab.node(1)?.namespace, "ip")?;
        sh::output(command.args(["-j", "link", "show", "dev", "eth0"]))?
    };
    let links: Value = serde_json::from_slice(&shown.stdout)?;
    let id = links
        .pointer("/0/xdp/prog/id")
        .and_then(Value::as_u64)
        .context("a program on eth0")?
        .to_string();
    sh::output(sh::command("bpftool").args(["prog", "pin", "id", &id, &pin]))?;
    let attached_by_hand = ip(&lab, &format!("link set dev busy0 xdpgeneric pinned {pin}"));
    let unpinned = std::fs::remove_file(&pin);
    attached_by_hand?;
    unpinned?;

    configure(&mut lab, "\"eth0\", \"busy0\"")?;
    ensure!(attached(&lab, "eth0")?.is_some(), "eth0 is not protected");
    let why = why_waiting(&lab, "busy0")?.context("busy0 is attached")?;
    ensure!(
        why.contains(&format!("id {id}, `secmesh`")) && why.contains("remedy"),
        "{why}"
    );
    ip(&lab, "link set dev busy0 xdpgeneric off")?;
    wait_for("busy0 to be protected", || {
        Ok(attached(&lab, "busy0")?.is_some())
    })
}
