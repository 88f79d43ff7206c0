//! What an operator may do, what is refused, and with which words.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::{PATIENCE, kernel_block, lab, options, wait_for_blocks, words_of};
use xtask::lab::net::{self, Family};
use xtask::lab::{Lab, attack, pinned};

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn blocking_an_allowlisted_address_or_a_prefix_around_one_is_refused_with_the_reason() -> Result<()>
{
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    agent.must(&["allow", "add", "198.51.100.7", "--reason", "the auditor"])?;
    let own = net::node_address(Family::V4, 1).to_string();
    for (what, why) in [
        ("198.51.100.7", "the auditor"),
        ("198.51.100.0/24", "198.51.100.7"),
        ("127.0.0.1", "loopback"),
        (own.as_str(), own.as_str()),
    ] {
        let refused = agent.output(&["block", what])?;
        let words = words_of(&refused);
        ensure!(
            refused.status.code() == Some(1),
            "block {what} gave {}: {words}",
            refused.status
        );
        ensure!(
            words.contains(why) && words.contains("allow"),
            "block {what} gives no reason: {words}"
        );
    }
    ensure!(
        kernel_block(lab.node(1)?, "198.51.100.7".parse()?)?.is_none(),
        "it is blocked all the same"
    );

    agent.must(&["allow", "remove", "198.51.100.7"])?;
    agent.must(&["block", "198.51.100.7"])?;
    wait_for_blocks(&lab.state().nodes, "198.51.100.7".parse()?, true)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_risky_network_takes_insisting_and_even_then_the_allowlist_gets_through() -> Result<()> {
    let lab = lab(1)?;
    let (agent, node) = (lab.agent(1)?, lab.node(1)?);
    let mut attackers = net::attacker_addresses(Family::V4);
    let (friend, foe) = (
        attackers.next().context("an address")?,
        attackers.next().context("another")?,
    );
    agent.must(&[
        "allow",
        "add",
        &friend.to_string(),
        "--reason",
        "the auditor",
    ])?;
    let IpAddr::V4(address) = foe else {
        anyhow::bail!("{foe} is not IPv4");
    };
    let around = format!(
        "{}/16",
        std::net::Ipv4Addr::from_bits(address.to_bits() & 0xffff_0000)
    );
    for what in [around.as_str(), "0.0.0.0/1"] {
        let refused = agent.output(&["block", what])?;
        let words = words_of(&refused);
        ensure!(
            refused.status.code() == Some(1) && words.contains("--override-risky"),
            "block {what}: {words}"
        );
    }
    let bare = agent.output(&["block", &around, "--override-risky"])?;
    ensure!(
        bare.status.code() == Some(2),
        "without a reason: {}",
        words_of(&bare)
    );

    let told = agent.must(&[
        "block",
        &around,
        "--override-risky",
        "--reason",
        "ticket 4711",
    ])?;
    ensure!(told.contains("allowlist"), "{told}");
    ensure!(
        !attack::attacker_gets_through(lab.state(), foe, node)?,
        "the network is not blocked"
    );
    ensure!(
        attack::attacker_gets_through(lab.state(), friend, node)?,
        "the allowlist lost"
    );
    let recorded = agent.must(&["ledger", "show", "--json"])?;
    ensure!(
        recorded.contains("overridden")
            && recorded.contains("the auditor")
            && recorded.contains("ticket 4711"),
        "{recorded}"
    );
    // What is on the allowlist as a whole cannot be blocked at all.
    let whole = agent.output(&[
        "block",
        &friend.to_string(),
        "--override-risky",
        "--reason",
        "x",
    ])?;
    ensure!(whole.status.code() == Some(1), "{}", words_of(&whole));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn bpftool_shows_a_block_with_the_names_of_its_fields() -> Result<()> {
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    for address in ["192.0.2.9", "2001:db8::9"] {
        agent.must(&["block", address, "--for", "10m"])?;
        let address: IpAddr = address.parse()?;
        wait_for_blocks(&lab.state().nodes, address, true)?;
        let entries = pinned::dump(&pinned::block_map(&lab.node(1)?.pin_dir, address))?;
        let entry = entries
            .iter()
            .find(|entry| entry.is_of(address))
            .with_context(|| format!("{entries:?}"))?;
        let value = entry
            .formatted
            .as_ref()
            .and_then(|entry| entry.get("value"))
            .context("bpftool prints bytes only")?;
        for field in [
            "expires_ns",
            "hits",
            "bytes",
            "first_hit_ns",
            "last_hit_ns",
            "rule",
            "flags",
        ] {
            ensure!(value.get(field).is_some(), "no field {field} in {value}");
        }
    }
    let told = agent.must(&["explain", "192.0.2.9"])?;
    ensure!(
        told.contains("192.0.2.9") && told.contains("operator"),
        "explain says: {told}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn monitor_mode_counts_what_it_would_drop_and_passes_it() -> Result<()> {
    let lab = Lab::start(options()?.nodes(1).mode("monitor"))?;
    let (agent, node) = (lab.agent(1)?, lab.node(1)?);
    let attacker = net::attacker_addresses(Family::V4)
        .next()
        .context("an attacker")?;
    agent.must(&["block", &attacker.to_string(), "--for", "10m"])?;
    wait_for_blocks(&lab.state().nodes, attacker, true)?;
    let before = would_drop(&lab)?;
    ensure!(
        attack::attacker_gets_through(lab.state(), attacker, node)?,
        "monitor mode dropped"
    );
    let counted = xtask::clock::wait_until(PATIENCE, std::time::Duration::from_millis(50), || {
        Ok((would_drop(&lab)? > before).then_some(()))
    })?;
    ensure!(
        counted.is_some(),
        "monitor mode did not count what it would have dropped"
    );

    agent.must(&["mode", "enforce"])?;
    ensure!(
        agent.status()?.mode == "enforce",
        "the mode is {}",
        agent.status()?.mode
    );
    ensure!(
        !attack::attacker_gets_through(lab.state(), attacker, node)?,
        "enforce mode did not drop"
    );
    agent.must(&["mode", "monitor"])?;
    ensure!(
        attack::attacker_gets_through(lab.state(), attacker, node)?,
        "back in monitor mode, it dropped"
    );
    Ok(())
}

/// The counter of what monitor mode would have dropped, whatever more its name says.
fn would_drop(lab: &Lab) -> Result<u64> {
    let counters = lab.agent(1)?.status()?.counters;
    let matching: Vec<u64> = counters
        .iter()
        .filter(|(name, _)| name.contains("would_drop"))
        .map(|(_, count)| *count)
        .collect();
    ensure!(
        !matching.is_empty(),
        "no counter would_drop among {counters:?}"
    );
    Ok(matching.into_iter().sum())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_program_is_attached_in_driver_mode_and_a_clean_stop_leaves_the_blocks() -> Result<()> {
    let mut lab = lab(1)?;
    let status = lab.agent(1)?.status()?;
    let interface = status.interfaces.first().context("no interface")?;
    ensure!(
        interface.name == net::INTERFACE && interface.attach_mode == "driver",
        "{interface:?}"
    );
    let attacker = net::attacker_addresses(Family::V6)
        .next()
        .context("an attacker")?;
    lab.agent(1)?
        .must(&["block", &attacker.to_string(), "--for", "10m"])?;
    wait_for_blocks(&lab.state().nodes, attacker, true)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    ensure!(
        !attack::attacker_gets_through(lab.state(), attacker, lab.node(1)?)?,
        "the block went with the agent"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_wrong_configuration_exits_2_and_names_file_line_and_field() -> Result<()> {
    let mut lab = lab(1)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let config = lab.node(1)?.config.clone();
    let good = std::fs::read_to_string(&config).context("cannot read the configuration")?;
    for (addition, field) in [
        ("\n[detect.syn_flood]\nthreshhold = 5\n", "threshhold"),
        ("\n[detect.syn_flood]\nthreshold = \"many\"\n", "threshold"),
        ("\n[respond]\nown_block = \"3h\"\n", "own_block"),
    ] {
        let text = format!("{good}{addition}");
        let line = text
            .lines()
            .position(|line| line.starts_with(field))
            .context("the field's line")?
            + 1;
        std::fs::write(&config, text).context("cannot write the configuration")?;
        let refused = lab.agent(1)?.output(&["run"])?;
        let words = words_of(&refused);
        ensure!(
            refused.status.code() == Some(2),
            "{field}: exit {}: {words}",
            refused.status
        );
        ensure!(
            words.contains("secmesh.toml"),
            "{field}: no file name: {words}"
        );
        ensure!(
            words.contains(field),
            "{field}: the field is not named: {words}"
        );
        ensure!(
            words.contains(&line.to_string()),
            "{field}: line {line} is not named: {words}"
        );
    }
    Ok(())
}
