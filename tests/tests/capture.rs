//! `secmesh capture` against a running agent, read back by our reader and by tcpdump.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use secmesh::sense::capture::CaptureReader;
use secmesh_tests::{lab, words_of};
use xtask::{lab::net::Family, sh};

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn dropped_packets_end_up_in_a_file_that_others_read_and_the_capture_ends_by_itself() -> Result<()>
{
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    let state = lab.state();
    let attacker = state.namespace("client");
    let target = xtask::lab::net::node_address(Family::V4, 1).to_string();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("drops.pcapng");
    let file = path.to_str().context("a path of ours")?;
    let capturing = agent
        .command(&[
            "capture",
            "--reason",
            "tcp_flags",
            "--count",
            "5",
            "--snap",
            "60",
            file,
        ])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let second = agent.output(&["capture", "--seconds", "1", "/dev/null"])?;
    ensure!(
        words_of(&second).contains("another capture is under way"),
        "{}",
        words_of(&second)
    );
    // No flags at all: an Xmas tree without its lights.
    sh::output(std::process::Command::new("ip").args([
        "netns", "exec", &attacker, "hping3", "-q", "-c", "10", "-i", "u20000", "-p", "80", &target,
    ]))
    .or_else(|error| {
        if format!("{error:#}").contains("packets transmitted") {
            sh::output(&mut std::process::Command::new("true"))
        } else {
            Err(error)
        }
    })?;
    let output = capturing.wait_with_output()?;
    ensure!(output.status.success(), "{}", words_of(&output));
    ensure!(
        words_of(&output).contains("5 of at most 5"),
        "{}",
        words_of(&output)
    );
    let mut reader = CaptureReader::open(&path)?;
    let mut frames = 0;
    while let Some(frame) = reader.next_frame()? {
        ensure!(frame.data.len() <= 60 && frame.orig_len >= 54, "{frame:?}");
        frames += 1;
    }
    ensure!(frames == 5, "{frames}");
    if let Some(tcpdump) = sh::which("tcpdump") {
        let shown = sh::output(std::process::Command::new(tcpdump).args(["-nr", file]))?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(
            text.lines().count() == 5 && text.contains("Flags [none]"),
            "{text}"
        );
    }
    // Nothing is dropped now: it ends when its time is over, with an empty file.
    let quiet = agent.output(&["capture", "--reason", "land", "--seconds", "1", file])?;
    ensure!(
        quiet.status.success() && words_of(&quiet).contains("0 of at most"),
        "{}",
        words_of(&quiet)
    );
    Ok(())
}
