//! Somebody else writes the kernel's block maps; the agent puts them right and says so.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use secmesh_tests::chaos::attacker;
use secmesh_tests::{PATIENCE, kernel_block, lab, wait_for_blocks};
use serde_json::Value;
use xtask::lab::{Lab, attack, net::Family};
use xtask::{clock, sh};

const POLL: Duration = Duration::from_millis(100);

fn controller(lab: &Lab, name: &str) -> Result<u64> {
    let counters = lab.agent(1)?.status()?.controller;
    counters
        .get(name)
        .copied()
        .with_context(|| format!("no counter {name} among {counters:?}"))
}

fn bpftool(lab: &Lab, verb: &str, map: &str, rest: &[&str]) -> Result<()> {
    let pin = lab.node(1)?.pin_dir.join(map);
    let pin = pin.to_str().context("a path")?;
    let mut args = vec!["map", verb, "pinned", pin];
    args.extend(rest);
    sh::output(sh::command("bpftool").args(&args))?;
    Ok(())
}

/// A lab of one node that compares every second; with lines more in its configuration.
fn hasty_lab(more: &str) -> Result<Lab> {
    let mut lab = lab(1)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let config = lab.node(1)?.config.clone();
    // Small tables, which bpftool prints in no time.
    let text = std::fs::read_to_string(&config)?.replace(
        "[dataplane]\n",
        "[dataplane]\nmax_list_addresses = 1024\nmax_list_prefixes = 64\n",
    );
    std::fs::write(
        &config,
        format!("{text}\n[respond]\nreconcile = \"1s\"\n{more}"),
    )?;
    lab.start_agent(1)?;
    Ok(lab)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn entries_that_were_taken_out_come_back_and_strays_go() -> Result<()> {
    let lab = hasty_lab("")?;
    let missing: IpAddr = "192.0.2.9".parse()?;
    lab.agent(1)?
        .must(&["block", "192.0.2.9", "--for", "10m"])?;
    lab.agent(1)?
        .must(&["block", "198.51.100.0/24", "--for", "10m"])?;
    wait_for_blocks(&lab.state().nodes, missing, true)?;
    let before = controller(&lab, "reconcile_runs")?;
    let key = ["key", "192", "0", "2", "9"];
    bpftool(&lab, "delete", "BLOCK4", &key)?;
    // The trie's key: length in host order, address, padding.
    let net = [
        "key", "24", "0", "0", "0", "198", "51", "100", "0", "0", "0", "0", "0",
    ];
    bpftool(&lab, "delete", "PREFIX4", &net)?;
    let stray = ["192", "0", "2", "10"];
    let mut value = vec!["255"; 8];
    // Hits, bytes, times and the rule are zero; the flags say "operator".
    value.extend(["0"; 36]);
    value.extend(["3", "0", "0", "0"]);
    let mut rest = vec!["key"];
    rest.extend(stray);
    rest.push("value");
    rest.extend(value);
    bpftool(&lab, "update", "BLOCK4", &rest)?;

    let stray: IpAddr = "192.0.2.10".parse()?;
    let right = clock::wait_until(PATIENCE, POLL, || {
        let node = lab.node(1)?;
        let back = kernel_block(node, missing)?.is_some();
        let gone = kernel_block(node, stray)?.is_none();
        Ok((back && gone && controller(&lab, "reconcile_runs")? > before + 1).then_some(()))
    })?;
    ensure!(
        right.is_some(),
        "not put right: {:?}, {:?}",
        kernel_block(lab.node(1)?, missing)?,
        kernel_block(lab.node(1)?, stray)?
    );
    let (added, removed) = (
        controller(&lab, "reconcile_added")?,
        controller(&lab, "reconcile_removed")?,
    );
    ensure!(
        (added, removed) == (2, 1),
        "found {added} missing and {removed} left over, not 2 and 1"
    );
    let told = lab.agent(1)?.must(&["status"])?;
    ensure!(
        told.contains("2 of 2 enforced; 2 found missing and 1 left over"),
        "{told}"
    );
    Ok(())
}

/// What a map holds at `key`, as its pin tells, and how to write it.
fn value_of(lab: &Lab, map: &str, key: u32) -> Result<Vec<String>> {
    let pin = lab.node(1)?.pin_dir.join(map);
    let mut lookup = sh::command("bpftool");
    lookup.args(["-j", "map", "lookup", "pinned"]).arg(pin);
    lookup.arg("key");
    lookup.args(key.to_ne_bytes().map(|b| b.to_string()));
    let told: Value = serde_json::from_slice(&sh::output(&mut lookup)?.stdout)?;
    let value = told.get("value").context("a value")?;
    Ok(serde_json::from_value(value.clone())?)
}

fn write(lab: &Lab, map: &str, key: u32, value: &[String]) -> Result<()> {
    let key = key.to_ne_bytes().map(|b| b.to_string());
    let mut rest = vec!["key"];
    rest.extend(key.iter().map(String::as_str));
    rest.push("value");
    rest.extend(value.iter().map(String::as_str));
    bpftool(lab, "update", map, &rest)
}

/// The entries of an array that are not zero.
fn used(lab: &Lab, map: &str) -> Result<Vec<(u32, Vec<String>)>> {
    let pin = lab.node(1)?.pin_dir.join(map);
    let mut dump = sh::command("bpftool");
    dump.args(["-j", "map", "dump", "pinned"]).arg(pin);
    let all: Vec<Value> = serde_json::from_slice(&sh::output(&mut dump)?.stdout)?;
    let mut used = Vec::new();
    for (key, entry) in (0..).zip(&all) {
        let value: Vec<String> =
            serde_json::from_value(entry.get("value").context("a value")?.clone())?;
        if value.iter().any(|byte| byte != "0x00") {
            used.push((key, value));
        }
    }
    ensure!(!used.is_empty(), "{map} is empty");
    Ok(used)
}

/// Takes an IPv4 address out of the table of listed hosts, where it is without its uppermost bit (`lane4`). What is in the
/// free slots of its bucket is wanted there, and need not be zeros.
fn take_out_of_lists(lab: &Lab, address: IpAddr) -> Result<()> {
    let IpAddr::V4(address) = address else {
        anyhow::bail!("{address} is no IPv4 address");
    };
    let [a, b, c, d] = address.octets();
    let host = [a, b, c, d & 0x7f].map(|byte| format!("0x{byte:02x}"));
    for (bucket, mut value) in used(lab, "LIST4")? {
        let free = value.chunks(4).find(|slot| *slot != host);
        let free = free.context("a slot")?.to_vec();
        for slot in value.chunks_mut(4).filter(|slot| *slot == host) {
            slot.clone_from_slice(&free);
        }
        write(lab, "LIST4", bucket, &value)?;
    }
    Ok(())
}

fn found(lab: &Lab, table: &str) -> Result<(u64, u64)> {
    let status: Value = lab.agent(1)?.json(&["status"])?;
    let number = |what: &str| {
        status
            .pointer(&format!("/reconciled/{table}/{what}"))
            .and_then(Value::as_u64)
            .with_context(|| format!("no {what} of {table} in {status}"))
    };
    Ok((number("added")?, number("removed")?))
}

/// Waits until so much was found in `table` and put right.
fn wait_for(lab: &Lab, table: &str, expected: (u64, u64)) -> Result<()> {
    let mut last = (0, 0);
    let done = clock::wait_until(PATIENCE, POLL, || {
        last = found(lab, table)?;
        Ok((last == expected).then_some(()))
    })?;
    ensure!(done.is_some(), "{table}: {last:?} found, not {expected:?}");
    Ok(())
}

/// Waits until more was found in `table` than `before`, and nothing that nobody wants; gives how much.
fn wait_for_more(lab: &Lab, table: &str, before: u64) -> Result<u64> {
    let mut last = (0, 0);
    let done = clock::wait_until(PATIENCE, POLL, || {
        last = found(lab, table)?;
        Ok((last.0 > before && last.1 == 0).then_some(last.0))
    })?;
    done.with_context(|| format!("{table}: {last:?} found, not more than {before}"))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn allowlist_lists_guards_and_mode_that_were_tampered_with_are_shown_and_put_right() -> Result<()> {
    let lab = hasty_lab("[limits.source]\nsyn = \"250/s burst 500\"\n")?;
    let listed = attacker(Family::V4, 0)?;
    let file = lab.state().work_dir.join("listed.txt");
    std::fs::write(&file, format!("{listed}\n203.0.113.0/24\n2001:db8:1::1\n"))?;
    lab.agent(1)?.must(&[
        "decisions",
        "import",
        file.to_str().context("a path")?,
        "--for",
        "1h",
    ])?;
    lab.agent(1)?.must(&["allow", "add", "192.0.2.77"])?;
    let held = || attack::attacker_gets_through(lab.state(), listed, lab.node(1)?).map(|t| !t);
    ensure!(held()?, "not enforced to begin with");
    for table in ["allowlist", "lists", "guards", "config"] {
        wait_for(&lab, table, (0, 0))?;
    }

    // The allowlist: one taken out, one that nobody wants put in.
    let allowed = [
        "key", "32", "0", "0", "0", "192", "0", "2", "77", "0", "0", "0", "0",
    ];
    bpftool(&lab, "delete", "ALLOW4", &allowed)?;
    wait_for(&lab, "allowlist", (1, 0))?;
    bpftool(&lab, "lookup", "ALLOW4", &allowed).context("it did not come back")?;
    let mut all = vec!["key", "0", "0", "0", "0"];
    all.extend(["0"; 8]);
    let mut rest = all.clone();
    rest.push("value");
    rest.extend(["0"; 16]);
    bpftool(&lab, "update", "ALLOW4", &rest)?;
    wait_for(&lab, "allowlist", (1, 1))?;
    ensure!(
        held()?,
        "the allowlist was opened for everybody and stayed so"
    );

    // Lists: a host taken out, ranges moved. What is found is counted once each time it is looked for, which may be
    // between two of the writes.
    take_out_of_lists(&lab, listed)?;
    wait_for_more(&lab, "lists", 0)?;
    let right = clock::wait_until(PATIENCE, POLL, || Ok(held()?.then_some(())))?;
    ensure!(right.is_some(), "not put right");
    let emptied = wait_for_more(&lab, "lists", 0)?;
    // Also in the half that is not in use, where nobody looks.
    let ranges = used(&lab, "RANGE4")?;
    for (range, value) in &ranges {
        let mut moved = value.clone();
        if let Some(byte) = moved.first_mut() {
            "0x01".clone_into(byte);
        }
        write(&lab, "RANGE4", *range, &moved)?;
    }
    wait_for_more(&lab, "lists", emptied)?;
    let right = clock::wait_until(PATIENCE, POLL, || {
        let again = used(&lab, "RANGE4")?;
        let is_back = ranges.iter().any(|range| again.contains(range));
        Ok(is_back.then_some(()))
    })?;
    ensure!(right.is_some(), "not put right: {ranges:?} before");

    // Guards: every word cleared that guards something.
    let words = used(&lab, "GUARD4")?;
    for (word, value) in &words {
        write(&lab, "GUARD4", *word, &vec!["0".to_owned(); value.len()])?;
    }
    wait_for(&lab, "guards", (words.len() as u64, 0))?;
    ensure!(held()?, "not put right");

    // The mode: word 1 of the configuration, set to monitor.
    let mut config = value_of(&lab, "CONFIG", 0)?;
    if let Some(byte) = config.get_mut(4) {
        "0x00".clone_into(byte);
    }
    write(&lab, "CONFIG", 0, &config)?;
    wait_for(&lab, "config", (1, 0))?;
    ensure!(held()?, "in monitor mode still");

    let lists = wait_for_more(&lab, "lists", emptied)?;
    let told = lab.agent(1)?.must(&["status"])?;
    for words in [
        "allowlist: 1 found missing or wrong and 1 left over",
        &format!("lists: {lists} found"),
        &format!("guards: {} found", words.len()),
        "config: 1 found",
        "source.syn 250/s (burst 500)",
    ] {
        ensure!(told.contains(words), "`{words}` is not in {told}");
    }
    let metrics = lab.agent(1)?.must(&["metrics"])?;
    for sample in [
        &format!(
            "secmesh_reconcile_total{{table=\"guards\",outcome=\"added\"}} {}",
            words.len()
        ),
        &format!("secmesh_reconcile_total{{table=\"lists\",outcome=\"added\"}} {lists}"),
        "secmesh_reconcile_total{table=\"allowlist\",outcome=\"removed\"} 1",
    ] {
        ensure!(metrics.contains(sample), "`{sample}` is not in {metrics}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn ports_watches_addresses_and_hot_sources_that_were_tampered_with_are_put_right() -> Result<()> {
    let lab = hasty_lab("[tripwire]\ntcp = [23]\n[cookies]\nmode = \"off\"\n")?;
    let tables = ["ports", "watches", "addresses", "hot"];
    for table in tables {
        wait_for(&lab, table, (0, 0))?;
    }
    // A port that nobody touches any more: scans would go unnoticed.
    let tripwire = value_of(&lab, "PORT", 23)?;
    ensure!(
        tripwire.iter().any(|byte| byte != "0x00"),
        "no tripwire: {tripwire:?}"
    );
    write(&lab, "PORT", 23, &vec!["0".to_owned(); tripwire.len()])?;
    wait_for(&lab, "ports", (1, 0))?;
    ensure!(value_of(&lab, "PORT", 23)? == tripwire, "not put right");
    // One that should be none: everybody who uses a service would be named.
    write(&lab, "PORT", 443, &tripwire)?;
    wait_for(&lab, "ports", (1, 1))?;
    let none = value_of(&lab, "PORT", 443)?;
    ensure!(none.iter().all(|byte| byte == "0x00"), "left: {none:?}");

    // Somebody whom no peer reported is watched until the end of time.
    let mut watch = vec!["key", "198", "51", "100", "9", "value"];
    watch.extend(["255"; 8]);
    bpftool(&lab, "update", "WATCH4", &watch)?;
    wait_for(&lab, "watches", (0, 1))?;

    // An address of this host is not one any more.
    let pin = lab.node(1)?.pin_dir.join("COOKIE_ADDRESS");
    let mut dump = sh::command("bpftool");
    dump.args(["-j", "map", "dump", "pinned"]).arg(pin);
    let all: Vec<Value> = serde_json::from_slice(&sh::output(&mut dump)?.stdout)?;
    let first = all.first().context("this host has an address")?;
    let key: Vec<String> = serde_json::from_value(first.get("key").context("a key")?.clone())?;
    let mut rest = vec!["key"];
    rest.extend(key.iter().map(String::as_str));
    bpftool(&lab, "delete", "COOKIE_ADDRESS", &rest)?;
    wait_for(&lab, "addresses", (1, 0))?;
    bpftool(&lab, "lookup", "COOKIE_ADDRESS", &rest).context("it did not come back")?;

    let told = lab.agent(1)?.must(&["status"])?;
    for words in [
        "ports: 1 found missing or wrong and 1 left over",
        "watches: 0 found missing or wrong and 1 left over",
        "addresses: 1 found",
    ] {
        ensure!(told.contains(words), "`{words}` is not in {told}");
    }
    let metrics = lab.agent(1)?.must(&["metrics"])?;
    for sample in [
        "secmesh_reconcile_total{table=\"ports\",outcome=\"removed\"} 1",
        "secmesh_reconcile_total{table=\"watches\",outcome=\"removed\"} 1",
        "secmesh_reconcile_total{table=\"addresses\",outcome=\"added\"} 1",
        "secmesh_reconcile_total{table=\"hot\",outcome=\"removed\"} 0",
    ] {
        ensure!(metrics.contains(sample), "`{sample}` is not in {metrics}");
    }
    Ok(())
}
