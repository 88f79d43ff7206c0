//! A scrape of a running agent.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use secmesh_tests::{lab, wait_for_blocks};
use xtask::lab::ns;

/// The value of a series, written exactly so.
fn value(text: &str, series: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .with_context(|| format!("no {series} in {text}"))?
        .parse()
        .with_context(|| series.to_owned())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_scrape_over_http_and_the_command_say_the_same() -> Result<()> {
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    agent.must(&["block", "192.0.2.9", "--for", "10m"])?;
    wait_for_blocks(&lab.state().nodes, "192.0.2.9".parse()?, true)?;
    let answer = ns::within(&lab.node(1)?.namespace, || {
        let mut stream = TcpStream::connect("127.0.0.1:9477")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let (head, scraped) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let printed = agent.must(&["metrics"])?;
    for (series, wanted) in [
        ("secmesh_blocks{state=\"desired\"}", 1),
        ("secmesh_blocks{state=\"enforced\"}", 1),
        ("secmesh_decisions{origin=\"operator\"}", 1),
        ("secmesh_quorum_state{state=\"SINGLE\"}", 1),
        ("secmesh_quorum_state{state=\"FULL\"}", 0),
        ("secmesh_enforcing", 1),
    ] {
        for text in [scraped, printed.as_str()] {
            let found = value(text, series)?;
            ensure!(found == wanted, "{series} is {found}, not {wanted}");
        }
    }
    let names = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.rsplit_once(' ').map(|(series, _)| series.to_owned()))
            .filter(|series| !series.starts_with('#'))
            .collect()
    };
    ensure!(names(scraped) == names(&printed), "not the same series");
    value(scraped, "secmesh_packets_total{reason=\"rx_packets\"}").map(drop)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn peers_and_members_that_come_do_not_have_the_system_asked_again() -> Result<()> {
    // Each of them is admitted, gets weight and connects: a dozen changes on each node.
    let lab = lab(4)?;
    let asked = |number: usize| -> Result<u64> {
        let status = lab.agent(number)?.status()?;
        let asked = status.controller.get("discoveries");
        asked.copied().context("no counter")
    };
    let mut before = Vec::new();
    for number in 1..=4 {
        let asked = asked(number)?;
        // At start, and each minute.
        ensure!(
            (1..=3).contains(&asked),
            "n{number} has asked {asked} times"
        );
        before.push(asked);
    }
    // Also not by and by, whatever the agents are busy with.
    std::thread::sleep(Duration::from_secs(10));
    for (number, before) in (1..=4).zip(before) {
        let more = asked(number)?.saturating_sub(before);
        ensure!(more <= 1, "n{number} has asked {more} times within seconds");
    }
    Ok(())
}

/// Puts the limit back that other tests of this process had.
struct Files(u64, u64);

impl Drop for Files {
    fn drop(&mut self) {
        // What it was before, so there is nothing that could refuse it.
        let _restored = setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_agent_may_open_as_many_files_as_it_is_allowed_to() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let _files = Files(soft, hard);
    // What an agent gets that is started by hand.
    let little = 512;
    ensure!(hard > little, "the hard limit is {hard} here");
    setrlimit(Resource::RLIMIT_NOFILE, little, hard)?;
    let lab = lab(1)?;
    let agent = lab.state().nodes.first().and_then(|node| node.agent);
    let pid = agent.context("no agent")?.pid;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let fields: Vec<&str> = files.context("no limit")?.split_whitespace().collect();
    let hard = hard.to_string();
    ensure!(
        fields.get(3..5) == Some([hard.as_str(), hard.as_str()].as_slice()),
        "{fields:?}"
    );
    Ok(())
}
