//! A node is taken over: the others cut it off by vote, and a spare server that waited takes its place. Nobody else
//! comes for the same node, also after a restart.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secmesh_tests::{PATIENCE, lab};
use serde_json::Value;
use xtask::clock;
use xtask::lab::Lab;
use xtask::lab::agent::Client;
use xtask::lab::state::Node;
use xtask::lab::takeover::{self, MIN_NODES, Options};

const POLL: Duration = Duration::from_millis(100);
/// Some turns of a spare that asks every few seconds.
const TURNS: Duration = Duration::from_mins(1);

/// A second spare server: the client's machine.
struct Second<'a> {
    lab: &'a Lab,
    node: Node,
    child: Child,
}

impl<'a> Second<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let state = lab.state();
        let spare = state.spare.clone().context("a spare server")?;
        let home = state.work_dir.join("second");
        std::fs::create_dir(&home)?;
        let node = Node {
            namespace: state.namespace("client"),
            state_dir: home.join("state"),
            log: home.join("log"),
            ..spare
        };
        let ticket: Value = lab.agent(2)?.json(&[
            "invite",
            "--operator-key",
            &lab.node(1)?
                .state_dir
                .join("operator.key")
                .to_string_lossy(),
        ])?;
        let ticket = ticket.get("ticket").and_then(Value::as_str);
        let ticket = ticket.context("a ticket")?.to_owned();
        let log = std::fs::File::create(&node.log)?;
        let mut child = Client::new(state, &node)
            .command(&["join", "-", "--standby", "--name", "second"])?
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut input = child.stdin.take().context("standard input")?;
        input.write_all(ticket.as_bytes())?;
        Ok(Self { lab, node, child })
    }

    fn said(&self) -> String {
        takeover::spare::said(&self.node.log)
    }

    /// Waits until members have told it `times` more to wait.
    fn is_told_to_wait(&mut self, times: u64) -> Result<()> {
        let before = waits(self.lab)?;
        let done = clock::wait_until(TURNS, POLL, || {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "it ended ({ended:?}): {}", self.said());
            Ok((waits(self.lab)? >= before + times).then_some(()))
        })?;
        done.with_context(|| format!("nobody tells it to wait: {}", self.said()))
    }

    /// Ctrl-C: nothing of it stays.
    fn stop(mut self) -> Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGINT,
        )?;
        let ended = clock::wait_until(PATIENCE, POLL, || Ok(self.child.try_wait()?))?;
        let ended = ended.context("it does not end")?;
        ensure!(ended.code() == Some(1), "{ended}: {}", self.said());
        ensure!(
            self.said().contains("ticket can be used again"),
            "{}",
            self.said()
        );
        ensure!(!self.node.state_dir.exists(), "its keys are left");
        Ok(())
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        // It may have ended.
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn waits(lab: &Lab) -> Result<u64> {
    let mut all = 0;
    for number in 1..=MIN_NODES {
        let status = lab.agent(number)?.status()?;
        all += status
            .controller
            .get("spares_waiting")
            .copied()
            .unwrap_or(0);
    }
    Ok(all)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_node_that_is_taken_over_is_cut_off_and_replaced_by_one_spare() -> Result<()> {
    let mut lab = lab(MIN_NODES)?;
    let state = lab.state().clone();
    let outcome = takeover::run(lab.state(), &Options::default(), &|step| {
        eprintln!("{step}");
    })?;
    ensure!(
        outcome.ok,
        "{}\n{}",
        outcome.text(),
        serde_json::to_string_pretty(&outcome)?
    );
    eprint!("{}", outcome.text());

    // The place is taken, whoever is asked and whatever they forgot: who came is in the certified epoch.
    for number in [1, 2, 3] {
        lab.stop_agent(number, Signal::SIGKILL)?;
    }
    for number in [1, 2, 3] {
        lab.start_agent(number)?;
    }
    let mut second = Second::start(&lab)?;
    second.is_told_to_wait(5)?;
    let roster = lab.agent(1)?.status()?.quorum.nodes;
    ensure!(roster == MIN_NODES + 1, "{roster} nodes in the roster");
    second.stop()?;

    drop(lab);
    let left = state.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
