//! Enforcing on trial: back to monitor unless it is confirmed, whatever becomes of the agent.

use std::{net::IpAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{PATIENCE, options, wait_for_blocks, words_of};
use xtask::clock;
use xtask::lab::net::{self, Family};
use xtask::lab::{Lab, attack};

const POLL: Duration = Duration::from_millis(100);

fn monitoring() -> Result<(Lab, IpAddr)> {
    let lab = Lab::start(options()?.nodes(1).mode("monitor"))?;
    let attacker = net::attacker_addresses(Family::V4)
        .next()
        .context("an attacker")?;
    lab.agent(1)?
        .must(&["block", &attacker.to_string(), "--for", "10m"])?;
    wait_for_blocks(&lab.state().nodes, attacker, true)?;
    Ok((lab, attacker))
}

fn gets_through(lab: &Lab, attacker: IpAddr) -> Result<bool> {
    attack::attacker_gets_through(lab.state(), attacker, lab.node(1)?)
}

fn wait_until_through(lab: &Lab, attacker: IpAddr) -> Result<()> {
    let through = clock::wait_until(PATIENCE * 2, POLL, || {
        Ok(gets_through(lab, attacker)?.then_some(()))
    })?;
    ensure!(
        through.is_some(),
        "still dropped long after the trial ended"
    );
    Ok(())
}

fn records(lab: &Lab) -> Result<String> {
    lab.agent(1)?.must(&["ledger", "show", "--json"])
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_trial_ends_by_itself_a_confirmed_one_does_not() -> Result<()> {
    let (lab, attacker) = monitoring()?;
    let agent = lab.agent(1)?;
    agent.must(&["mode", "enforce", "--confirm", "6s"])?;
    ensure!(!gets_through(&lab, attacker)?, "the trial drops nothing");
    wait_until_through(&lab, attacker)?;
    ensure!(agent.status()?.mode == "monitor", "still shown as enforce");
    let late = agent.output(&["mode", "confirm"])?;
    ensure!(
        late.status.code() == Some(1) && words_of(&late).contains("nothing to confirm"),
        "confirmed too late: {}",
        words_of(&late)
    );

    agent.must(&["mode", "enforce", "--confirm", "6s"])?;
    let told = agent.must(&["status"])?;
    ensure!(told.contains("on trial: back to monitor in"), "{told}");
    agent.must(&["mode", "confirm"])?;
    sleep(Duration::from_secs(7));
    ensure!(!gets_through(&lab, attacker)?, "a confirmed mode went back");
    ensure!(
        records(&lab)?.contains("nobody confirmed in time"),
        "not recorded: {}",
        records(&lab)?
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_kernel_goes_back_while_no_agent_runs_and_the_next_start_knows() -> Result<()> {
    let (mut lab, attacker) = monitoring()?;
    lab.agent(1)?
        .must(&["mode", "enforce", "--confirm", "6s"])?;
    lab.stop_agent(1, Signal::SIGKILL)?;
    ensure!(!gets_through(&lab, attacker)?, "the trial drops nothing");
    wait_until_through(&lab, attacker)?;

    lab.start_agent(1)?;
    let agent = lab.agent(1)?;
    ensure!(agent.status()?.mode == "monitor", "enforcing again");
    ensure!(
        records(&lab)?.contains("the time ended while no agent ran"),
        "not recorded"
    );

    // Killed in the middle, and back in time: the trial goes on and can be confirmed.
    agent.must(&["mode", "enforce", "--confirm", "60s"])?;
    lab.stop_agent(1, Signal::SIGKILL)?;
    lab.start_agent(1)?;
    let agent = lab.agent(1)?;
    let told = agent.must(&["mode"])?;
    ensure!(
        told.contains("enforce, back to monitor in"),
        "the trial is forgotten: {told}"
    );
    agent.must(&["mode", "confirm"])?;
    ensure!(
        !gets_through(&lab, attacker)?,
        "confirmed, and not enforced"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn enforcing_is_refused_while_a_block_covers_the_asking_ssh_session() -> Result<()> {
    let (lab, attacker) = monitoring()?;
    let agent = lab.agent(1)?;
    let mut command = agent.command(&["mode", "enforce"])?;
    command.env("SSH_CONNECTION", format!("{attacker} 50000 192.0.2.1 22"));
    let refused = command.output()?;
    let words = words_of(&refused);
    ensure!(
        refused.status.code() == Some(1)
            && words.contains(&attacker.to_string())
            && words.contains("secmesh allow add"),
        "{words}"
    );
    ensure!(agent.status()?.mode == "monitor", "switched all the same");
    agent.must(&["allow", "add", &attacker.to_string()])?;
    let mut command = agent.command(&["mode", "enforce"])?;
    command.env("SSH_CONNECTION", format!("{attacker} 50000 192.0.2.1 22"));
    let done = command.output()?;
    ensure!(done.status.success(), "{}", words_of(&done));
    Ok(())
}
