//! `cargo xtask lab` and `cargo xtask lab attack`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::state::LabState;
use super::{Lab, Options, attack, net, pinned, report, state, takeover};
use crate::build::{self, Mode};
use crate::setup::{self, Profile};
use crate::term::{Style, paint};
use crate::{sh, stop};

/// Runs a lab until Ctrl-C.
///
/// # Errors
/// When it does not come up, or cannot be removed.
pub fn serve(nodes: usize, keep_files: bool) -> anyhow::Result<()> {
    let Some(binary) = prepare()? else {
        return Ok(());
    };
    stop::catch_signals()?;
    for id in state::remove_stale()? {
        println!("Removed what the lab {id} left, which had crashed.");
    }
    println!("Starting {nodes} nodes …");
    let lab = Lab::start(Options {
        open: true,
        keep_files,
        ..Options::new(binary).nodes(nodes)
    })?;
    print!("{}", where_to_look(lab.state()));
    while !stop::requested() {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("\nRemoving the lab …");
    let kept = keep_files.then(|| lab.state().work_dir.clone());
    drop(lab);
    if let Some(folder) = kept {
        println!("The nodes' files are kept in {}.", folder.display());
    }
    Ok(())
}

/// Attacks the running lab, or one that is started for it and removed afterwards.
///
/// # Errors
/// When the attack could not be made, or the mesh missed a bar.
pub fn attack(options: &attack::Options, nodes: usize, json: bool) -> anyhow::Result<()> {
    let Some(binary) = prepare()? else {
        return Ok(());
    };
    stop::catch_signals()?;
    let outcome = if let Some(lab) = state::open_lab()? {
        say(json, &format!("Attacking the lab {} …", lab.id));
        attack::run(&lab, options)?
    } else {
        say_start(json, nodes);
        let lab = Lab::start(Options::new(binary).nodes(nodes))?;
        attack::run(lab.state(), options)?
    };
    tell(&outcome, report::text, json)?;
    judge(outcome.ok, "the mesh missed", &outcome.failures)
}

/// Takes a node of the running lab over, or of one that is started for it and removed afterwards.
///
/// # Errors
/// When it could not be done, or something did not come about as it has to.
pub fn takeover(options: &takeover::Options, nodes: usize, json: bool) -> anyhow::Result<()> {
    let say = |text: &str| say(json, text);
    let Some(binary) = prepare()? else {
        return Ok(());
    };
    stop::catch_signals()?;
    let outcome = if let Some(lab) = state::open_lab()? {
        say(&format!("Taking a node of the lab {} over …", lab.id));
        takeover::run(&lab, options, &say)?
    } else {
        say_start(json, nodes);
        let lab = Lab::start(Options::new(binary).nodes(nodes))?;
        let outcome = takeover::run(lab.state(), options, &say);
        say("Removing the lab …");
        let state = lab.state().clone();
        drop(lab);
        let mut outcome = outcome?;
        outcome.left_behind = Some(state.leftovers()?);
        outcome.judge();
        outcome
    };
    tell(&outcome, takeover::Outcome::text, json)?;
    judge(outcome.ok, "the takeover missed", &outcome.failures)
}

/// What goes on, for people: with --json, standard output is for the result alone.
fn say(json: bool, text: &str) {
    if !json {
        println!("{text}");
    }
}

fn say_start(json: bool, nodes: usize) {
    say(
        json,
        &format!("No lab runs; starting {nodes} nodes for this …"),
    );
}

/// Prints a result.
fn tell<T: serde::Serialize>(
    outcome: &T,
    text: impl Fn(&T) -> String,
    json: bool,
) -> anyhow::Result<()> {
    if json {
        let encoded = serde_json::to_string(outcome).context("cannot encode the result")?;
        println!("{encoded}");
    } else {
        print!("{}", text(outcome));
    }
    Ok(())
}

fn judge(ok: bool, what: &str, failures: &[String]) -> anyhow::Result<()> {
    if !ok {
        bail!("{what} {} bar(s): {}", failures.len(), failures.join("; "));
    }
    Ok(())
}

/// Sets up and builds; then, if we are not root, runs this very command again through sudo.
///
/// Gives nothing if that has been done: then all is said.
fn prepare() -> anyhow::Result<Option<std::path::PathBuf>> {
    if !sh::is_root() || std::env::var_os(build::BINARY_VARIABLE).is_none() {
        setup::ensure(Profile::Lab, false, false)?;
    }
    let binary = build::agent(Mode::Release)?;
    if sh::is_root() {
        return Ok(Some(binary));
    }
    let own = std::env::current_exe().context("cannot find this program")?;
    let mut variable = std::ffi::OsString::from(build::BINARY_VARIABLE);
    variable.push("=");
    variable.push(&binary);
    let mut again = sh::as_root("env")?;
    again
        .arg(variable)
        .arg(own)
        .args(std::env::args_os().skip(1));
    sh::run(&mut again)?;
    Ok(None)
}

fn where_to_look(lab: &LabState) -> String {
    let mut text = format!(
        "{}\n",
        paint(
            Style::Good,
            &format!("The lab {} is up: {} nodes.", lab.id, lab.nodes.len())
        )
    );
    for node in &lab.nodes {
        let map = pinned::block_map(&node.pin_dir, net::node_address(net::Family::V4, 1));
        let _infallible = write!(
            text,
            "\n{}  {}  {}\n  {} --socket {} status\n  bpftool map dump pinned {}\n  {}\n",
            paint(Style::Strong, &node.name),
            LabState::address(node, net::Family::V4),
            LabState::address(node, net::Family::V6),
            lab.binary.display(),
            node.socket.display(),
            map.display(),
            node.log.display(),
        );
    }
    let _infallible = write!(
        text,
        "\nThe attacker is in the namespace {}, the client in {}, a spare server in {}.\n\
         In another terminal: cargo xtask lab attack {}\nCtrl-C removes all of it.\n",
        lab.namespace(net::ATTACKER_PORT),
        lab.namespace("client"),
        lab.namespace(net::SPARE),
        if lab.nodes.len() < takeover::MIN_NODES {
            "syn-flood"
        } else {
            "syn-flood, or node-takeover"
        }
    );
    text
}
