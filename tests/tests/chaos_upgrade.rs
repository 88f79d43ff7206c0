//! The maps are changed for larger ones, or for those of a newer schema, while blocked sources flood: nothing of
//! them may get through, whatever dies on the way.

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapInfo;
use aya::programs::links::{FdLink, PinnedLink};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secmesh::config::AttachMode;
use secmesh::dataplane::{Dataplane, LoadOptions, Mode};
use secmesh_common::SCHEMA;
use secmesh_tests::chaos::{Flood, attacker};
use secmesh_tests::{PATIENCE, kernel, kernel_block, lab, wait_for_blocks, words_of};
use xtask::lab::generators::Kind;
use xtask::lab::net::{Family, INTERFACE};
use xtask::lab::state::Node;
use xtask::lab::{Lab, ns};
use xtask::{clock, sh};

/// Packets of a flood that are waited for between two steps.
const SOME: u64 = 1_000;

/// Where a new set of maps is made.
fn next_dir(node: &Node) -> PathBuf {
    PathBuf::from(format!("{}-next", node.pin_dir.display()))
}

fn entries_of(node: &Node, map: &str) -> Result<u32> {
    Ok(MapInfo::from_pin(node.pin_dir.join(map))?.max_entries())
}

/// Node 1's link and the program in it, as the kernel numbers them.
fn link_of(node: &Node) -> Result<(u32, u32)> {
    for mode in ["driver", "generic"] {
        let pin = node.pin_dir.join(format!("link-{mode}-{INTERFACE}"));
        if pin.exists() {
            let info = FdLink::from(PinnedLink::from_pin(pin)?).info()?;
            return Ok((info.id(), info.program_id()));
        }
    }
    bail!("no link is pinned")
}

/// Sets keys of `[dataplane]`; they are not in the lab's configuration by themselves.
fn configure(node: &Node, lines: &str) -> Result<()> {
    let text = std::fs::read_to_string(&node.config)?;
    let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("max_")).collect();
    let text = kept
        .join("\n")
        .replace("[dataplane]\n", &format!("[dataplane]\n{lines}\n"));
    std::fs::write(&node.config, text + "\n")?;
    Ok(())
}

/// Writes the schema's number into the pinned configuration, past the agent: what an older or newer version
/// would have left.
fn stamp(node: &Node, schema: u32) -> Result<()> {
    let pin = node.pin_dir.join("CONFIG");
    let pin = pin.to_str().context("a path")?;
    let dump = sh::output(sh::command("bpftool").args(["-j", "map", "dump", "pinned", pin]))?;
    let dump: serde_json::Value = serde_json::from_slice(&dump.stdout)?;
    let mut value: Vec<String> =
        serde_json::from_value(dump.pointer("/0/value").context("an entry")?.clone())?;
    for (byte, new) in value.iter_mut().zip(schema.to_ne_bytes()) {
        *byte = format!("{new:#04x}");
    }
    let mut args = vec!["map", "update", "pinned", pin, "key", "0", "0", "0", "0"];
    args.push("value");
    args.extend(value.iter().map(String::as_str));
    sh::output(sh::command("bpftool").args(args))?;
    Ok(())
}

fn stamped(node: &Node) -> Result<u32> {
    let pin = node.pin_dir.join("CONFIG");
    let pin = pin.to_str().context("a path")?;
    let dump = sh::output(sh::command("bpftool").args(["-j", "map", "dump", "pinned", pin]))?;
    let dump: serde_json::Value = serde_json::from_slice(&dump.stdout)?;
    let schema = dump
        .pointer("/0/formatted/value/schema")
        .and_then(serde_json::Value::as_u64);
    Ok(u32::try_from(schema.context("no schema")?)?)
}

/// A flood of each family by a source that a decision blocks, and one by a source of an imported list.
struct Fire {
    floods: Vec<Flood>,
    blocked: Vec<IpAddr>,
}

impl Fire {
    fn open(lab: &Lab, with_list: bool) -> Result<Self> {
        let node = lab.node(1)?.clone();
        let blocked = vec![attacker(Family::V4, 0)?, attacker(Family::V6, 0)?];
        for source in &blocked {
            let source_text = source.to_string();
            lab.agent(1)?
                .must(&["block", &source_text, "--for", "10m"])?;
            wait_for_blocks(std::slice::from_ref(&node), *source, true)?;
        }
        let mut sources = blocked.clone();
        if with_list {
            let listed = attacker(Family::V4, 1)?;
            let file = lab.state().work_dir.join("listed.txt");
            std::fs::write(&file, format!("{listed}\n"))?;
            let file = file.to_str().context("a path")?;
            lab.agent(1)?
                .must(&["decisions", "import", file, "--for", "1h"])?;
            sources.push(listed);
        }
        let floods = sources
            .iter()
            .map(|source| Flood::start(lab.state(), &node, Kind::UdpFlood, *source, 55))
            .collect::<Result<_>>()?;
        Ok(Self { floods, blocked })
    }

    fn ensure_held(&mut self, when: &str) -> Result<()> {
        for flood in &mut self.floods {
            flood.go_on(SOME)?;
            flood.ensure_held(when)?;
        }
        Ok(())
    }

    fn end(mut self, when: &str) -> Result<()> {
        let mut sent = 0;
        for flood in &mut self.floods {
            flood.stop();
            sent += flood.sent()?;
            flood.ensure_held(when)?;
        }
        eprintln!("{when}: {sent} packets sent, 0 got through");
        Ok(())
    }
}

/// Reads an entry of a pinned map, past the agent.
fn entry(node: &Node, map: &str, key: &[String]) -> Result<Vec<String>> {
    let mut lookup = sh::command("bpftool");
    lookup.args(["-j", "map", "lookup", "pinned"]);
    lookup.arg(node.pin_dir.join(map)).arg("key").args(key);
    let told: serde_json::Value = serde_json::from_slice(&sh::output(&mut lookup)?.stdout)?;
    Ok(serde_json::from_value(
        told.get("value").context("a value")?.clone(),
    )?)
}

/// What only the running program and its agent know: a watched source and a verified client.
struct Kept {
    watch: Vec<String>,
    until: Vec<String>,
    place: Vec<String>,
    client: Vec<String>,
}

impl Kept {
    /// Puts them where an agent and its program would have.
    fn leave(node: &Node) -> Result<Self> {
        let numbers = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:#04x}")).collect();
        let until_ns = secmesh_tests::chaos::mono_ns()? + 3_600_000_000_000;
        let client: Vec<u8> = [7u64, until_ns, 1]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        let kept = Self {
            watch: numbers(&[198, 51, 100, 77]),
            until: numbers(&until_ns.to_ne_bytes()),
            place: numbers(&5u32.to_ne_bytes()),
            client: numbers(&client),
        };
        for (map, key, value) in [
            ("WATCH4", &kept.watch, &kept.until),
            ("COOKIE_VERIFIED", &kept.place, &kept.client),
        ] {
            let mut update = sh::command("bpftool");
            update.args(["map", "update", "pinned"]);
            update.arg(node.pin_dir.join(map)).arg("key").args(key);
            sh::output(update.arg("value").args(value))?;
        }
        Ok(kept)
    }

    fn verified(&self, node: &Node) -> Result<Vec<String>> {
        entry(node, "COOKIE_VERIFIED", &self.place)
    }

    fn ensure_there(&self, node: &Node) -> Result<()> {
        let until = entry(node, "WATCH4", &self.watch)?;
        ensure!(until == self.until, "watched until {until:?}");
        let client = self.verified(node)?;
        ensure!(client == self.client, "verified: {client:?}");
        Ok(())
    }
}

/// The pinned counters of all processors together, while no agent runs.
fn lab_counters(node: &Node) -> Result<std::collections::BTreeMap<String, u64>> {
    let mut dump = sh::command("bpftool");
    dump.args(["-j", "map", "dump", "pinned"]);
    dump.arg(node.pin_dir.join("COUNTERS"));
    let told: serde_json::Value = serde_json::from_slice(&sh::output(&mut dump)?.stdout)?;
    let each = told.pointer("/0/formatted/values").context("an entry")?;
    let mut all = std::collections::BTreeMap::new();
    for cpu in each.as_array().context("one for each processor")? {
        for (name, value) in cpu
            .get("value")
            .and_then(serde_json::Value::as_object)
            .context("counters")?
        {
            *all.entry(name.clone()).or_insert(0) += value.as_u64().unwrap_or(0);
        }
    }
    Ok(all)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn other_sizes_are_taken_on_without_one_packet_passing() -> Result<()> {
    let mut lab = lab(1)?;
    let node = lab.node(1)?.clone();
    let mut fire = Fire::open(&lab, true)?;
    let allowed = "203.0.113.77";
    lab.agent(1)?.must(&["allow", "add", allowed])?;
    let before = lab.agent(1)?.status()?.counters;
    let mut last = link_of(&node)?;
    for (blocks, lists) in [(4_096, 5_000), (300_000, 300_000), (2_048, 1_000)] {
        configure(
            &node,
            &format!("max_blocks = {blocks}\nmax_list_addresses = {lists}"),
        )?;
        lab.stop_agent(1, Signal::SIGTERM)?;
        fire.ensure_held("stopped")?;
        lab.start_agent(1)?;
        fire.ensure_held(&format!("{blocks} blocks"))?;
        ensure!(
            entries_of(&node, "BLOCK4")? == blocks,
            "not of the size that is configured: {}",
            entries_of(&node, "BLOCK4")?
        );
        let now = link_of(&node)?;
        ensure!(now.0 == last.0, "another link: there was a gap");
        ensure!(now.1 != last.1, "the old program still runs");
        last = now;
        ensure!(
            !next_dir(&node).exists(),
            "the old maps are still pinned beside"
        );
        for source in &fire.blocked {
            let block = kernel_block(&node, *source)?.context("the block left the kernel")?;
            ensure!(block.hits > 0, "{block:?}");
        }
    }
    // Counters and allowlist came along.
    let after = lab.agent(1)?.status()?.counters;
    ensure!(
        after.get("drop_exact") > before.get("drop_exact")
            && after.get("rx_packets") > before.get("rx_packets"),
        "{before:?} {after:?}"
    );
    ensure!(lab.agent(1)?.must(&["allow", "list"])?.contains(allowed));
    fire.end("three changes of size")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_older_schema_is_taken_over_without_one_packet_passing_and_a_newer_one_is_refused()
-> Result<()> {
    let mut lab = lab(1)?;
    let node = lab.node(1)?.clone();
    let mut fire = Fire::open(&lab, true)?;
    let (link, program) = link_of(&node)?;
    lab.stop_agent(1, Signal::SIGKILL)?;
    stamp(&node, SCHEMA - 1)?;
    let kept = Kept::leave(&node)?;
    let before = lab_counters(&node)?;
    lab.start_agent(1)?;
    fire.ensure_held("an older schema")?;
    kept.ensure_there(&node)?;
    let told: serde_json::Value = lab.agent(1)?.json(&["status"])?;
    ensure!(
        told.pointer("/watched") == Some(&1.into()),
        "what was watched is not watched on: {told}"
    );
    let status = lab.agent(1)?.status()?;
    ensure!(
        status.counters.get("drop_exact") >= before.get("drop_exact")
            && status.counters.get("rx_packets") >= before.get("rx_packets"),
        "counters began anew: {:?} after {before:?}",
        status.counters
    );
    ensure!(stamped(&node)? == SCHEMA, "still of the older schema");
    let (new_link, new_program) = link_of(&node)?;
    ensure!(new_link == link && new_program != program, "a gap");
    ensure!(!next_dir(&node).exists(), "the old maps are still pinned");

    // What the first schemas had in these maps means something else: told, and begun anew.
    lab.stop_agent(1, Signal::SIGKILL)?;
    stamp(&node, 2)?;
    lab.start_agent(1)?;
    fire.ensure_held("a much older schema")?;
    ensure!(
        kept.verified(&node)?.iter().all(|byte| byte == "0x00"),
        "verified clients of another schema were taken over"
    );
    let log = std::fs::read_to_string(&node.log)?;
    ensure!(
        log.contains("they begin empty") && log.contains("COOKIE_VERIFIED"),
        "nobody was told: {log}"
    );

    lab.stop_agent(1, Signal::SIGKILL)?;
    for unknown in [SCHEMA + 1, 77] {
        stamp(&node, unknown)?;
        let refused = lab.agent(1)?.output(&["run"])?;
        let words = words_of(&refused);
        ensure!(
            !refused.status.success()
                && words.contains(&format!("schema {unknown}"))
                && words.contains("start the version that made it"),
            "{words}"
        );
        ensure!(stamped(&node)? == unknown, "it was written to");
        fire.ensure_held("a newer schema")?;
    }
    stamp(&node, SCHEMA)?;
    lab.start_agent(1)?;
    fire.end("schemas")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_size_below_what_is_in_force_is_refused_and_everything_stays_in_force() -> Result<()> {
    let mut lab = lab(1)?;
    let node = lab.node(1)?.clone();
    for n in 0..20 {
        let network = format!("198.51.{n}.0/24");
        lab.agent(1)?.must(&["block", &network, "--for", "10m"])?;
    }
    let mut fire = Fire::open(&lab, false)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    let before = (link_of(&node)?, entries_of(&node, "PREFIX4")?);
    configure(&node, "max_prefixes = 16")?;
    let refused = lab.agent(1)?.output(&["run"])?;
    let words = words_of(&refused);
    ensure!(
        !refused.status.success()
            && words.contains("more entries are in force than the kernel's PREFIX4 map would hold"),
        "{words}"
    );
    ensure!(
        before == (link_of(&node)?, entries_of(&node, "PREFIX4")?),
        "something changed"
    );
    ensure!(!next_dir(&node).exists(), "it left something behind");
    fire.ensure_held("refused")?;
    configure(&node, "")?;
    lab.start_agent(1)?;
    fire.end("a refused change")
}

/// Where [`changes_in_a_child`] is to kill itself.
const STEP: &str = "SECMESH_TEST_CHANGE_STEP";
/// On which pins.
const PINS: &str = "SECMESH_TEST_CHANGE_PINS";

/// Not a test of its own: what [`a_death_at_any_step_leaves_one_set_in_force`] starts in the node's namespace, so
/// that there is something to kill.
#[test]
#[ignore = "started by another test"]
fn changes_in_a_child() -> Result<()> {
    let (Ok(step), Some(pins)) = (std::env::var(STEP), std::env::var_os(PINS)) else {
        return Ok(());
    };
    let pins = PathBuf::from(pins);
    let mut name = pins.clone().into_os_string();
    name.push("-next");
    let next = PathBuf::from(name);
    let die_at = |now: &str| {
        if now == step {
            let _: Result<(), _> = kill(Pid::this(), Signal::SIGKILL);
        }
    };
    let mut dataplane = Dataplane::load(&LoadOptions {
        pin_dir: Some(pins.clone()),
        max_blocks: 3_333,
        mode: Mode::Monitor,
        ..kernel::options()
    })?;
    let _blocks = dataplane.take_blocks()?;
    die_at("filled");
    dataplane.attach(INTERFACE, AttachMode::Auto)?;
    die_at("switched");
    if ["linked", "exchanged"].contains(&step.as_str()) {
        // What `finish_change` does, up to there.
        for entry in std::fs::read_dir(&pins)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("link-") {
                FdLink::from(PinnedLink::from_pin(entry.path())?)
                    .pin(next.join(entry.file_name()))?;
            }
        }
        die_at("linked");
        renameat2(
            AT_FDCWD,
            &next,
            AT_FDCWD,
            &pins,
            RenameFlags::RENAME_EXCHANGE,
        )?;
        die_at("exchanged");
    }
    dataplane.finish_change()?;
    die_at("finished");
    bail!("no step is called {step}")
}

/// Starts [`changes_in_a_child`] and waits for its death.
fn change_and_die(node: &Node, step: &str) -> Result<()> {
    let mut child = ns::command(&node.namespace, std::env::current_exe()?)?;
    let output = child
        .args(["--exact", "changes_in_a_child", "--ignored", "--nocapture"])
        .env(STEP, step)
        .env(PINS, &node.pin_dir)
        .output()?;
    ensure!(
        output.status.signal() == Some(Signal::SIGKILL as i32),
        "it did not get as far as `{step}`: {}",
        words_of(&output)
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_death_at_any_step_leaves_one_set_in_force() -> Result<()> {
    let mut lab = lab(1)?;
    let node = lab.node(1)?.clone();
    let mut fire = Fire::open(&lab, false)?;
    let (link, _) = link_of(&node)?;
    lab.stop_agent(1, Signal::SIGKILL)?;
    for (step, counts, blocks) in [
        ("filled", false, 7_000),
        ("switched", false, 8_000),
        ("linked", false, 9_000),
        ("exchanged", true, 10_000),
        ("finished", true, 11_000),
    ] {
        change_and_die(&node, step)?;
        fire.ensure_held(&format!("died when {step}"))?;
        ensure!(
            next_dir(&node).exists() == (step != "finished"),
            "{step}: what a death leaves"
        );
        ensure!(
            (entries_of(&node, "BLOCK4")? == 3_333) == counts,
            "{step}: the wrong set is in its place"
        );
        // The real one, of other sizes than both, begins anew.
        configure(&node, &format!("max_blocks = {blocks}"))?;
        lab.start_agent(1)?;
        fire.ensure_held(&format!("started after a death when {step}"))?;
        ensure!(link_of(&node)?.0 == link, "{step}: another link, so a gap");
        ensure!(!next_dir(&node).exists(), "{step}: something was left");
        ensure!(
            entries_of(&node, "BLOCK4")? == blocks,
            "{step}: {}",
            entries_of(&node, "BLOCK4")?
        );
        let status = lab.agent(1)?.status()?;
        ensure!(status.mode == "enforce", "{step}: {}", status.mode);
        lab.stop_agent(1, Signal::SIGKILL)?;
    }
    fire.end("five deaths of a change")
}

/// Starts the agent and kills it as soon as `path` is there.
fn run_until(lab: &Lab, path: &Path) -> Result<bool> {
    let mut agent = lab
        .agent(1)?
        .command(&["run"])?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let seen = clock::wait_until(PATIENCE, Duration::from_micros(200), || {
        Ok((path.exists() || agent.try_wait()?.is_some()).then_some(()))
    });
    agent.kill()?;
    agent.wait()?;
    Ok(seen?.is_some() && path.exists())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_agent_killed_while_it_makes_new_maps_changes_nothing() -> Result<()> {
    let mut lab = lab(1)?;
    let node = lab.node(1)?.clone();
    let mut fire = Fire::open(&lab, true)?;
    lab.stop_agent(1, Signal::SIGTERM)?;
    configure(&node, "max_blocks = 5000")?;
    let before = link_of(&node)?;
    let next = next_dir(&node);
    for pin in [
        next.clone(),
        next.join("BLOCK4"),
        next.join("CONFIG"),
        next.join("COUNTERS"),
    ] {
        ensure!(run_until(&lab, &pin)?, "{} never came", pin.display());
        fire.ensure_held(&format!("killed at {}", pin.display()))?;
        ensure!(link_of(&node)? == before, "the link was touched");
        ensure!(entries_of(&node, "BLOCK4")? == 131_072, "changed already");
    }
    lab.start_agent(1)?;
    ensure!(entries_of(&node, "BLOCK4")? == 5_000, "not changed");
    ensure!(!next.exists(), "something was left");
    fire.end("killed while it filled")
}
