//! Imported lists, from a file to dropped packets, with the real command and agent.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{PATIENCE, lab, words_of};
use serde_json::Value;
use xtask::clock;
use xtask::lab::agent::Client;
use xtask::lab::net::{self, Family};
use xtask::lab::{Lab, attack};

/// Two attackers of one family.
fn attackers(family: Family) -> Result<[IpAddr; 2]> {
    let mut all = net::attacker_addresses(family);
    let mut next = || all.next().context("an attacker");
    Ok([next()?, next()?])
}

/// Writes a list where the lab is removed from.
fn list_file(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.state().work_dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is text")
}

/// Fails unless connections of each of `sources` get through, or do not.
fn ensure_through(lab: &Lab, sources: &[IpAddr], expected: bool) -> Result<()> {
    for source in sources {
        ensure!(
            attack::attacker_gets_through(lab.state(), *source, lab.node(1)?)? == expected,
            "{source} {}",
            if expected {
                "is kept out"
            } else {
                "gets through"
            }
        );
    }
    Ok(())
}

fn lists(agent: &Client<'_>) -> Result<Value> {
    agent.json(&["decisions", "lists"])
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_list_is_enforced_explained_kept_over_a_crash_and_removed() -> Result<()> {
    let mut lab = lab(1)?;
    let [host4, range4] = attackers(Family::V4)?;
    let [host6, net6] = attackers(Family::V6)?;
    let mut text = format!(
        "# attackers\n{host4} ; first\n{range4}-{range4}\n{host6}\n{net6}/128\n203.0.113.0/24\n2001:db8::/32\n"
    );
    for n in 0..2000_u32 {
        let _ = writeln!(text, "198.18.{}.{}", n / 250, n % 250);
    }
    let path = list_file(&lab, "bad hosts.txt", &text)?;
    let all = [host4, range4, host6, net6];
    ensure_through(&lab, &all, true)?;
    {
        let agent = lab.agent(1)?;
        let done: Value = agent.json(&["decisions", "import", text_of(&path)?, "--for", "1h"])?;
        ensure!(
            done["list"] == "bad-hosts" && done["entries"] == 2006,
            "{done}"
        );
        ensure_through(&lab, &all, false)?;

        let told = agent.must(&["explain", &host4.to_string()])?;
        ensure!(
            told.contains("BLOCKED") && told.contains("bad-hosts covers it"),
            "explain says: {told}"
        );
        let status: Value = agent.json(&["status"])?;
        let totals = &status["lists"];
        ensure!(
            totals["lists"] == 1
                && totals["desired"].as_u64() > Some(2000)
                && totals["desired"] == totals["enforced"],
            "status says: {totals}"
        );

        // The allowlist wins at once, and is cut out of the list.
        agent.must(&["allow", "add", &host4.to_string()])?;
        ensure_through(&lab, &[host4], true)?;
        ensure_through(&lab, &[range4], false)?;
        agent.must(&["allow", "remove", &host4.to_string()])?;
        let dropped = clock::wait_until(PATIENCE, Duration::from_millis(50), || {
            Ok((!attack::attacker_gets_through(lab.state(), host4, lab.node(1)?)?).then_some(()))
        })?;
        ensure!(dropped.is_some(), "off the allowlist, {host4} gets through");
    }

    lab.stop_agent(1, Signal::SIGKILL)?;
    ensure_through(&lab, &all, false)?;
    lab.start_agent(1)?;
    ensure_through(&lab, &all, false)?;
    let agent = lab.agent(1)?;
    let view = lists(&agent)?;
    ensure!(
        view["lists"][0]["name"] == "bad-hosts" && view["totals"]["error"].is_null(),
        "{view}"
    );

    agent.must(&["decisions", "remove-list", "bad-hosts"])?;
    ensure_through(&lab, &all, true)?;
    let again = agent.output(&["decisions", "remove-list", "bad-hosts"])?;
    ensure!(again.status.code() == Some(1), "{}", words_of(&again));
    for what in ["imported", "removed"] {
        ensure_recorded(&agent, &["bad-hosts", &format!("\"what\":\"{what}\"")])?;
    }
    Ok(())
}

/// Waits until an entry of the ledger has all of `words`; it is written by a thread of its own.
fn ensure_recorded(agent: &Client<'_>, words: &[&str]) -> Result<()> {
    let found = clock::wait_until(PATIENCE, Duration::from_millis(50), || {
        let record = agent.must(&["ledger", "show", "--json"])?;
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        Ok(record.lines().any(has).then_some(()))
    })?;
    ensure!(
        found.is_some(),
        "no entry of the ledger has all of {words:?}"
    );
    Ok(())
}

/// A seeded generator (xorshift64*).
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// So many addresses and networks of each family, none of them of the lab's.
fn large(addresses: usize, networks: usize) -> String {
    let mut state = 7;
    let mut text = String::with_capacity((addresses + networks) * 64);
    for _ in 0..addresses {
        let [_, a, b, c, ..] = random(&mut state).to_be_bytes();
        let _ = writeln!(text, "{}.{a}.{b}.{c}", 100 + u16::from(a) % 24);
        let [a, b] = [random(&mut state), random(&mut state)];
        let address = (u128::from(0x2400_0000_0000_0000 | (a >> 16)) << 64) | u128::from(b);
        let _ = writeln!(text, "{}", std::net::Ipv6Addr::from_bits(address));
    }
    for _ in 0..networks {
        let [_, a, b, ..] = random(&mut state).to_be_bytes();
        let _ = writeln!(text, "{}.{a}.{b}.0/24", 130 + u16::from(b) % 24);
        let a = random(&mut state);
        let _ = writeln!(
            text,
            "2a{:02x}:{:x}:{:x}::/48",
            a & 0xff,
            (a >> 8) & 0xffff,
            (a >> 24) & 0xffff
        );
    }
    text
}

/// A tenth of what is promised, or all of it with `SECMESH_SCALE=1` (and, in `SECMESH_BIN`, an agent that was
/// built with optimisation); the times are printed.
#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_large_list_is_loaded_while_the_agent_goes_on_answering() -> Result<()> {
    let mut lab = lab(1)?;
    let (mut addresses, mut networks) = (100_000, 10_000);
    if std::env::var_os("SECMESH_SCALE").is_some() {
        (addresses, networks) = (1_000_000, 100_000);
        lab.stop_agent(1, Signal::SIGTERM)?;
        lab.agent(1)?.must(&["detach"])?;
        let config = lab.node(1)?.config.clone();
        let text = fs::read_to_string(&config)?.replace(
            "[dataplane]\n",
            "[dataplane]\nmax_list_addresses = 1048576\nmax_list_prefixes = 131072\n",
        );
        fs::write(&config, text)?;
        lab.start_agent(1)?;
    }
    let [listed, free] = attackers(Family::V4)?;
    let text = format!("{}{listed}\n", large(addresses, networks));
    let path = list_file(&lab, "large.txt", &text)?;
    let agent = lab.agent(1)?;
    let started = std::time::Instant::now();
    let mut import = agent
        .command(&["decisions", "import", text_of(&path)?])?
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the import")?;
    let (mut answers, mut slowest) = (0, Duration::ZERO);
    let status = loop {
        if let Some(status) = import.try_wait()? {
            break status;
        }
        let asked = std::time::Instant::now();
        agent.must(&["mode"])?;
        answers += 1;
        slowest = slowest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(20));
    };
    eprintln!(
        "{} bytes imported in {:?}; meanwhile {answers} answers, the slowest after {slowest:?}",
        text.len(),
        started.elapsed()
    );
    ensure!(status.success(), "the import ended with {status}");
    ensure!(answers > 1, "the agent did not answer while it loaded");
    ensure_through(&lab, &[listed], false)?;
    ensure_through(&lab, &[free], true)?;
    let view = lists(&agent)?;
    let totals = &view["totals"];
    ensure!(
        totals["enforced"] == totals["desired"]
            && totals["desired"].as_u64() > Some(u64::try_from(addresses * 19 / 10)?),
        "{totals}"
    );
    let restarted = std::time::Instant::now();
    lab.stop_agent(1, Signal::SIGTERM)?;
    lab.start_agent(1)?;
    eprintln!("restarted in {:?}", restarted.elapsed());
    ensure_through(&lab, &[listed], false)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_risky_list_is_refused_and_overridden_still_does_not_cut_off_the_node() -> Result<()> {
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    let own = net::node_address(Family::V4, 1).to_string();
    let attackers = attackers(Family::V4)?;
    let path = list_file(&lab, "wide.netset", "# all of the lab\n10.77.0.0/24\n")?;
    let path = text_of(&path)?;
    let refused = agent.output(&["decisions", "import", path])?;
    let words = words_of(&refused);
    ensure!(
        refused.status.code() == Some(1)
            && words.contains(&own)
            && words.contains("--override-risky"),
        "{words}"
    );
    ensure_through(&lab, &attackers, true)?;
    let usage = agent.output(&["decisions", "import", path, "--override-risky"])?;
    ensure!(
        usage.status.code() == Some(2),
        "without a reason: {}",
        words_of(&usage)
    );

    agent.must(&[
        "decisions",
        "import",
        path,
        "--override-risky",
        "--reason",
        "drill",
    ])?;
    ensure_through(&lab, &attackers, false)?;
    let told = agent.must(&["explain", &own])?;
    ensure!(told.contains("ALLOWLISTED"), "explain says: {told}");
    ensure_recorded(&agent, &["drill", "\"overridden\":true"])
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_list_with_a_wrong_line_changes_nothing_and_what_is_exported_can_be_imported() -> Result<()> {
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    let [one, two] = attackers(Family::V4)?;
    let path = list_file(&lab, "l.txt", &format!("{one}\n{two}/33\n"))?;
    let path = text_of(&path)?;
    let refused = agent.output(&["decisions", "import", path])?;
    let words = words_of(&refused);
    ensure!(
        refused.status.code() == Some(1) && words.contains("line 2") && words.contains("/33"),
        "{words}"
    );
    ensure_through(&lab, &[one, two], true)?;
    let dry: Value = agent.json(&["decisions", "import", path, "--skip-invalid", "--dry-run"])?;
    ensure!(dry["dry_run"] == true && dry["invalid"] == 1, "{dry}");
    ensure_through(&lab, &[one], true)?;
    agent.must(&["decisions", "import", path, "--skip-invalid"])?;
    ensure_through(&lab, &[one], false)?;
    agent.must(&["block", &two.to_string(), "--for", "10m"])?;

    for format in ["lines", "ipset", "nft", "crowdsec", "json"] {
        let file = lab.state().work_dir.join(format!("export.{format}"));
        let file = text_of(&file)?;
        agent.must(&["decisions", "export", "--format", format, "--output", file])?;
        let read: Value = agent.json(&["decisions", "import", file, "--dry-run"])?;
        ensure!(read["format"] == format && read["entries"] == 2, "{read}");
    }
    Ok(())
}
