//! One node of four is stopped, slow, in another hour, on a full disk, or replaced: the others go on, and
//! afterwards all have the same.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secmesh_tests::chaos::Installed;
use secmesh_tests::decide::confirm;
use secmesh_tests::partition::{counter, ensure_no_liars, number, quorum, same, sees};
use secmesh_tests::wallclock::WallClock;
use secmesh_tests::{PATIENCE, kernel_block, lab, options, wait_for_blocks, words_of};
use xtask::lab::net::INTERFACE;
use xtask::lab::{Lab, Options};
use xtask::{clock, sh};

const ALL: [usize; 4] = [1, 2, 3, 4];
const OTHERS: [usize; 3] = [1, 2, 3];
/// Longer than a connection is silent before it ends, and a suspicion lasts.
const NOTICED: Duration = Duration::from_secs(20);
/// How soon all have the same again.
const HEALED: Duration = Duration::from_secs(10);

fn subject(n: u8) -> IpAddr {
    Ipv4Addr::new(198, 19, 200, n).into()
}

/// Two operators confirm: the mesh decides, if it can.
fn decide(lab: &Lab, subject: IpAddr) -> Result<()> {
    confirm(lab, &[1, 2], subject)
}

fn at_least(wanted: u64) -> impl Fn(&str) -> bool {
    move |digest| number(digest, "decisions").is_ok_and(|n| n >= wanted)
}

fn pid(lab: &Lab, number: usize) -> Result<Pid> {
    let agent = lab.node(number)?.agent.context("no agent runs")?;
    Ok(Pid::from_raw(agent.pid))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_stopped_node_is_suspected_then_down_and_back_without_an_operator() -> Result<()> {
    let lab = lab(4)?;
    let agent = pid(&lab, 4)?;
    for round in 1..=2 {
        kill(agent, Signal::SIGSTOP)?;
        let stopped = (|| {
            for node in OTHERS {
                sees(&lab, node, 4, "down", NOTICED)?;
                quorum(&lab, node, "FULL", 300, PATIENCE)?;
            }
            decide(&lab, subject(round))?;
            let others: Vec<_> = lab.state().nodes[..3].to_vec();
            wait_for_blocks(&others, subject(round), true)
        })();
        kill(agent, Signal::SIGCONT)?;
        stopped?;
        for node in OTHERS {
            sees(&lab, node, 4, "alive", PATIENCE)?;
            quorum(&lab, node, "FULL", 400, PATIENCE)?;
            ensure!(counter(&lab, node, "swim_suspected")? >= u64::from(round));
        }
        same(&lab, &ALL, HEALED, at_least(round.into()))?;
        wait_for_blocks(&lab.state().nodes, subject(round), true)?;
    }
    ensure_no_liars(&lab, &ALL)
}

/// A link of so few bits; whole again when dropped.
struct SlowLink {
    ends: [(String, String); 2],
}

impl SlowLink {
    fn make(lab: &Lab, number: usize, rate: &str) -> Result<Self> {
        let node = lab.node(number)?;
        let link = Self {
            ends: [
                (node.namespace.clone(), INTERFACE.to_owned()),
                (lab.state().namespace("switch"), node.name.clone()),
            ],
        };
        for (namespace, device) in &link.ends {
            sh::output(sh::command("tc").args([
                "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
                "burst", "4k", "latency", "2s",
            ]))?;
        }
        Ok(link)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        for (namespace, device) in &self.ends {
            // With the namespace it goes anyway.
            let _gone = sh::output(
                sh::command("tc").args(["-n", namespace, "qdisc", "del", "dev", device, "root"]),
            );
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_slow_peer_holds_nobody_up_and_has_all_in_the_end() -> Result<()> {
    let lab = lab(4)?;
    let slow = SlowLink::make(&lab, 4, "32kbit")?;
    let others: Vec<_> = lab.state().nodes[..3].to_vec();
    for n in 0..40 {
        decide(&lab, subject(n))?;
    }
    wait_for_blocks(&others, subject(39), true)?;
    let behind = kernel_block(lab.node(4)?, subject(39))?.is_none();
    eprintln!("the slow one was behind the others: {behind}");
    for node in OTHERS {
        quorum(&lab, node, "FULL", 400, NOTICED)?;
    }
    drop(slow);
    same(&lab, &ALL, NOTICED, at_least(40))?;
    wait_for_blocks(&lab.state().nodes, subject(39), true)?;
    ensure_no_liars(&lab, &ALL)
}

/// Sets the clock of node 4 and waits until its agent has noticed.
fn step(lab: &Lab, clock: &WallClock, seconds: i64) -> Result<()> {
    let before = counter(lab, 4, "clock_steps")?;
    clock.set(seconds)?;
    clock::wait_until(PATIENCE, Duration::from_millis(50), || {
        Ok((counter(lab, 4, "clock_steps")? > before).then_some(()))
    })?
    .with_context(|| format!("nobody noticed a clock at {seconds} s"))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_in_another_hour_holds_nobody_up_and_agrees_when_it_is_back() -> Result<()> {
    let built = options()?;
    let (clock, stand_in) = WallClock::make(&built.binary, Some("/n4/"))?;
    let lab = Lab::start(
        Options {
            binary: stand_in,
            ..built
        }
        .nodes(4),
    )?;
    let others: Vec<_> = lab.state().nodes[..3].to_vec();
    decide(&lab, subject(1))?;
    same(&lab, &ALL, NOTICED, at_least(1))?;
    for (round, seconds) in [(2_u8, 3_600_i64), (3, -3_600)] {
        step(&lab, &clock, seconds)?;
        decide(&lab, subject(round))?;
        wait_for_blocks(&others, subject(round), true)?;
        same(&lab, &OTHERS, PATIENCE, at_least(round.into()))?;
        // Who answers is there, whatever its clock says.
        for node in OTHERS {
            quorum(&lab, node, "FULL", 400, PATIENCE)?;
            sees(&lab, node, 4, "alive", PATIENCE)?;
        }
        ensure!(
            kernel_block(lab.node(4)?, subject(1))?.is_some(),
            "a block ended with the clock at {seconds} s"
        );
        step(&lab, &clock, 0)?;
        same(&lab, &ALL, NOTICED, at_least(round.into()))?;
        wait_for_blocks(&lab.state().nodes, subject(round), true)?;
        ensure_no_liars(&lab, &ALL)?;
    }
    Ok(())
}

/// A node's state directory on a disk of its own, of so few bytes.
struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    fn make(place: &Path, bytes: &str) -> Result<Self> {
        let aside = place.with_extension("aside");
        std::fs::rename(place, &aside)?;
        std::fs::create_dir(place)?;
        let mut mount = sh::command("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700")]);
        sh::output(mount.arg("secmesh-small-disk").arg(place))?;
        let disk = Self {
            place: place.to_path_buf(),
        };
        let mut copy = sh::command("cp");
        copy.arg("-a").arg(aside.join("."));
        sh::output(copy.arg(place))?;
        std::fs::remove_dir_all(&aside)?;
        Ok(disk)
    }

    /// Fills it to the last byte.
    fn fill(&self) -> Result<PathBuf> {
        let ballast = self.place.join("ballast");
        let block = [0_u8; 4_096];
        let mut file = std::fs::File::create(&ballast)?;
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        Ok(ballast)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = sh::command("umount");
        umount.arg("--lazy");
        if let Err(error) = sh::output(umount.arg(&self.place)) {
            eprintln!("{} stays mounted: {error:#}", self.place.display());
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_whose_disk_is_full_signs_nothing_still_blocks_and_says_so() -> Result<()> {
    let mut lab = lab(4)?;
    decide(&lab, subject(1))?;
    same(&lab, &ALL, NOTICED, at_least(1))?;
    lab.stop_agent(4, Signal::SIGTERM)?;
    let disk = SmallDisk::make(&lab.node(4)?.state_dir.clone(), "16m")?;
    lab.start_agent(4)?;
    lab.wait_for_mesh()?;
    let ballast = disk.fill()?;

    // Its own word needs the disk first: it is not given. The others' word is enough for the block.
    let asked = lab
        .agent(4)?
        .output(&["block", &subject(2).to_string(), "--mesh"])?;
    eprintln!("{}: {}", asked.status, words_of(&asked));
    decide(&lab, subject(2))?;
    wait_for_blocks(&lab.state().nodes[..3], subject(2), true)?;
    // What is left of the last page of its ledger takes a few more.
    let mut more = 100;
    let told = clock::wait_until(NOTICED, Duration::from_millis(20), || {
        let one_more = subject(more).to_string();
        more = more.saturating_add(1);
        lab.agent(4)?.output(&["block", &one_more, "--mesh"])?;
        let status = lab.agent(4)?.must(&["status", "--all"])?;
        Ok((counter(&lab, 4, "votes_not_sent")? > 0).then_some(status))
    })?
    .context("it does not say that it signs nothing any more")?;
    ensure!(told.contains("No space left"), "why is not told: {told}");
    // It says nothing any more, and so it is not counted on.
    for node in OTHERS {
        sees(&lab, node, 4, "down", NOTICED)?;
        quorum(&lab, node, "FULL", 300, PATIENCE)?;
    }
    wait_for_blocks(&lab.state().nodes, subject(2), true)?;
    ensure_no_liars(&lab, &OTHERS)?;

    std::fs::remove_file(ballast)?;
    lab.stop_agent(4, Signal::SIGKILL)?;
    lab.start_agent(4)?;
    for node in OTHERS {
        quorum(&lab, node, "FULL", 400, NOTICED)?;
    }
    same(&lab, &ALL, HEALED, at_least(2))?;
    let verified = lab.agent(4)?.output(&["ledger", "verify"])?;
    ensure!(
        verified.status.success(),
        "the ledger is not whole: {}",
        words_of(&verified)
    );
    lab.stop_agent(4, Signal::SIGTERM)?;
    drop(disk);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_rolling_upgrade_keeps_the_quorum_and_every_decision() -> Result<()> {
    let installed = Installed::new("rolling", options()?)?;
    roll(
        Lab::start(installed.options().clone().nodes(4))?,
        &installed,
    )
}

fn roll(mut lab: Lab, installed: &Installed) -> Result<()> {
    decide(&lab, subject(0))?;
    same(&lab, &ALL, NOTICED, at_least(1))?;
    for number in ALL {
        installed.renew()?;
        // The second half is not even asked to end.
        let signal = if number <= 2 {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        };
        lab.stop_agent(number, signal)?;
        let rest: Vec<usize> = ALL.into_iter().filter(|other| *other != number).collect();
        for node in &rest {
            quorum(&lab, *node, "FULL", 300, NOTICED)?;
        }
        // The others go on deciding: by an attack that two of them see.
        let round = u8::try_from(number)?;
        for node in rest.iter().take(2) {
            let subject = subject(round).to_string();
            lab.agent(*node)?.output(&["block", &subject, "--mesh"])?;
        }
        let nodes: Vec<_> = rest
            .iter()
            .map(|node| Ok(lab.node(*node)?.clone()))
            .collect::<Result<_>>()?;
        wait_for_blocks(&nodes, subject(round), true)?;
        lab.start_agent(number)?;
        lab.wait_for_mesh()?;
        same(&lab, &ALL, HEALED, at_least(u64::from(round) + 1))?;
        for earlier in 0..=round {
            wait_for_blocks(&lab.state().nodes, subject(earlier), true)?;
        }
    }
    ensure_no_liars(&lab, &ALL)
}
