//! The lab itself, without agents: does it build what it says, and remove it?

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::lab::generators::{Attack, Generators, Kind, Target};
use xtask::lab::net::{self, ATTACKER_PORT, Family, INTERFACE, Network};
use xtask::lab::pinned::{Block, BlockMap, Field};
use xtask::lab::state::{self, LabState, ProcessRef};
use xtask::lab::tap::Tap;
use xtask::lab::{Lab, Options, echo, ns};

fn network_only(nodes: usize) -> Result<Lab> {
    Lab::start(Options {
        agents: false,
        ..Options::new(PathBuf::from("/bin/false")).nodes(nodes)
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn honest_connections_reach_every_node_over_both_families() -> Result<()> {
    let lab = network_only(3)?;
    for family in [Family::V4, Family::V6] {
        let services: Vec<SocketAddr> = (1..=3)
            .map(|number| SocketAddr::new(net::node_address(family, number), echo::PORT))
            .collect();
        let client = echo::Client::start(&lab.state().namespace("client"), &services)?;
        std::thread::sleep(Duration::from_secs(1));
        let tally = client.stop()?;
        ensure!(tally.ok == tally.attempts, "{family:?}: {tally:?}");
        ensure!(
            (30..=60).contains(&tally.attempts),
            "about 50 a second, not {}",
            tally.attempts
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn every_attack_tool_hits_its_targets_and_nobody_else() -> Result<()> {
    let lab = network_only(3)?;
    let namespace = lab.state().namespace(ATTACKER_PORT);
    let source_link = net::link_address(&namespace)?;
    let log = lab.state().work_dir.join("attack.log");
    for family in [Family::V4, Family::V6] {
        let targets = lab
            .state()
            .nodes
            .iter()
            .take(2)
            .map(|node| {
                Ok(Target {
                    address: LabState::address(node, family),
                    link_address: net::link_address(&node.namespace)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        for (kind, source) in Kind::ALL.into_iter().zip(net::attacker_addresses(family)) {
            let wire = Tap::open(
                &lab.state().namespace("switch"),
                ATTACKER_PORT,
                source,
                None,
            )?;
            let taps = lab
                .state()
                .nodes
                .iter()
                .map(|node| Tap::open(&node.namespace, INTERFACE, source, None))
                .collect::<Result<Vec<_>>>()?;
            ensure!(
                wire.first_unix_us()?.is_none(),
                "a packet before the attack"
            );
            let started = xtask::clock::unix_us();
            let attack = Attack {
                kind,
                namespace: &namespace,
                source,
                source_link: &source_link,
                targets: &targets,
                rate: 1_000,
                seconds: 5,
                work_dir: &lab.state().work_dir,
                log: &log,
            };
            let mut running = Generators::start(&attack)?;
            std::thread::sleep(Duration::from_secs(2));
            running.stop();
            std::thread::sleep(Duration::from_millis(50));

            let told = std::fs::read_to_string(&log).unwrap_or_default();
            let first = wire
                .first_unix_us()?
                .with_context(|| format!("{kind:?} {family:?} sent nothing: {told}"))?;
            ensure!(
                (started..started + 2_000_000).contains(&first),
                "{kind:?}: first packet at {first}, attack at {started}"
            );
            let counts = taps.iter().map(Tap::packets).collect::<Result<Vec<_>>>()?;
            let all = wire.packets()?;
            eprintln!("{kind:?} {family:?}: {all} on the wire, {counts:?} on the nodes");
            ensure!(
                counts.iter().take(2).all(|count| *count >= 200),
                "{kind:?} {family:?}: {counts:?}: {told}"
            );
            ensure!(
                counts.last() == Some(&0),
                "{kind:?} {family:?} hit a bystander: {counts:?}"
            );
            ensure!(
                counts.iter().sum::<u64>() == all,
                "{kind:?} {family:?}: {all} on the wire, {counts:?} arrived"
            );
            ensure!(
                all <= 4_500,
                "{kind:?} {family:?} is faster than told: {all}"
            );
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    let lab = network_only(2)?;
    let state = lab.state().clone();
    ensure!(
        net::existing_namespaces()?
            .iter()
            .any(|name| state.namespaces.contains(name)),
        "the lab made no namespace"
    );
    drop(lab);
    ensure_gone(&state)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_a_crashed_lab_left_is_removed_by_the_next_start() -> Result<()> {
    // An owner that is dead: a child that has ended.
    let mut owner = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .context("cannot start sleep")?;
    let dead = ProcessRef::of(owner.id()).context("no such process")?;
    dead.kill();
    owner.wait().context("cannot wait")?;

    let mut crashed = LabState::claim(1, &PathBuf::from("/bin/false"))?;
    crashed.owner = dead;
    Network::plan(&crashed.id, 1).build()?;
    let node = crashed.nodes.first().context("a lab of one node")?.clone();
    std::fs::create_dir_all(&node.state_dir).context("cannot make the work folder")?;
    std::fs::create_dir_all(&node.pin_dir).context("cannot make the pin folder")?;
    let mut left_running = ns::command(&node.namespace, "sleep")?
        .arg("60")
        .spawn()
        .context("cannot start sleep")?;
    crashed.save()?;

    let next = network_only(1)?;
    ensure!(
        state::all()?.iter().all(|lab| lab.id != crashed.id),
        "the crashed lab is still written down"
    );
    ensure!(
        !node.pin_dir.exists(),
        "{} is still there",
        node.pin_dir.display()
    );
    ensure_gone(&crashed)?;
    let ended = left_running.wait().context("cannot wait")?;
    ensure!(
        !ended.success(),
        "the process in the namespace was left to end by itself"
    );
    ensure!(
        state::all()?.iter().any(|lab| lab.id == next.state().id),
        "the new lab is gone too"
    );
    Ok(())
}

fn ensure_gone(lab: &LabState) -> Result<()> {
    let left: Vec<String> = net::existing_namespaces()?
        .into_iter()
        .filter(|name| lab.namespaces.contains(name))
        .collect();
    ensure!(left.is_empty(), "namespaces are left: {left:?}");
    ensure!(!lab.work_dir.exists(), "{} is left", lab.work_dir.display());
    ensure!(
        state::all()?.iter().all(|other| other.id != lab.id),
        "the lab is still written down"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_pinned_map_is_read_as_bpftool_wrote_it() -> Result<()> {
    let pin =
        PathBuf::from(xtask::setup::BPFFS).join(format!("secmesh-harness-{}", std::process::id()));
    let bpftool = |args: &[&str]| xtask::sh::output(xtask::sh::command("bpftool").args(args));
    let file = pin.to_string_lossy().into_owned();
    bpftool(&[
        "map", "create", &file, "type", "hash", "key", "4", "value", "16", "entries", "4", "name",
        "harness",
    ])?;
    let looked_up = (|| {
        let update = "key 10 77 0 200 value 3 1 0 0 0 0 0 0 9 0 0 0 0 0 0 0";
        let words: Vec<&str> = ["map", "update", "pinned", &file]
            .into_iter()
            .chain(update.split(' '))
            .collect();
        bpftool(&words)?;
        let at = |at| Field { at, size: 8 };
        let map = BlockMap::with_layout(&pin, 16, at(0), at(8))?;
        let no_names = BlockMap::open(&pin).err().map(|error| format!("{error:#}"));
        Ok::<_, anyhow::Error>((
            map.get("10.77.0.200".parse()?)?,
            map.get("10.77.0.201".parse()?)?,
            no_names,
        ))
    })();
    std::fs::remove_file(&pin).context("cannot unpin the map")?;
    let (there, absent, no_names) = looked_up?;
    ensure!(
        there
            == Some(Block {
                hits: 259,
                first_hit_ns: 9
            }),
        "{there:?}"
    );
    ensure!(absent.is_none(), "{absent:?}");
    ensure!(
        no_names.is_some(),
        "a map without type information was taken for a block map"
    );
    Ok(())
}
