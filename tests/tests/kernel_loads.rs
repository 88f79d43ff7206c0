//! Loading and attaching: the verifier, driver and generic mode, somebody else's program, pinned state.
//!
//! Each test has a network and a BPF file system of its own, which end with it.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use secmesh::{
    addr::Prefix,
    config::AttachMode as Wanted,
    dataplane::{AttachMode, Dataplane, DataplaneError, LinkWatch, LoadOptions, Mode, detach_all},
};
use secmesh_common::block::origin;
use secmesh_tests::{
    frames::{IPV4, SOURCE4, ethernet, ipv4_from, protocol, tcp},
    kernel::{BPFFS, Kernel, XDP_DROP, XDP_PASS, difference, isolated, options, shown, tool},
};

/// What the kernel lets the verifier walk at most (`BPF_COMPLEXITY_LIMIT_INSNS`).
const VERIFIER_LIMIT: u32 = 1_000_000;

fn veth(name: &str) -> Result<()> {
    let peer = format!("{name}p");
    tool(
        "ip",
        &["link", "add", name, "type", "veth", "peer", "name", &peer],
    )?;
    for end in [name, &peer] {
        tool("ip", &["link", "set", end, "up"])?;
    }
    Ok(())
}

fn pinned() -> LoadOptions {
    LoadOptions {
        pin_dir: Some(PathBuf::from(BPFFS).join("secmesh-test")),
        ..options()
    }
}

fn pin_dir() -> Result<PathBuf> {
    pinned().pin_dir.context("set above")
}

fn blocked_source() -> Result<Prefix> {
    Ok(format!("{}", std::net::Ipv4Addr::from(SOURCE4)).parse()?)
}

fn frame() -> Vec<u8> {
    ethernet(
        &[],
        IPV4,
        &ipv4_from(SOURCE4, &[], 0, protocol::TCP, &tcp(2)),
    )
}

fn verified(loading: &LoadOptions) -> Result<u32> {
    Dataplane::load(loading)?
        .verified_instructions()
        .context("the kernel does not tell how many instructions it verified")
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_verifier_accepts_the_smallest_and_the_largest_configuration() -> Result<()> {
    let smallest = LoadOptions {
        max_blocks: 1,
        max_prefixes: 1,
        max_list_addresses: 1,
        max_list_prefixes: 1,
        event_budget: 1,
        ..options()
    };
    // The largest that the configuration file allows is a question of memory; this is 16 times the default.
    let largest = LoadOptions {
        max_blocks: 1 << 21,
        max_prefixes: 1 << 18,
        max_list_addresses: 1 << 21,
        max_list_prefixes: 1 << 18,
        event_budget: u32::MAX,
        log_level: 5,
        seed: u64::MAX,
        ..options()
    };
    for (name, loading) in [
        ("smallest", smallest),
        ("default", options()),
        ("largest", largest),
    ] {
        let count = verified(&loading)?;
        println!("{name} configuration: {count} instructions verified of {VERIFIER_LIMIT}");
        ensure!(
            count < VERIFIER_LIMIT / 4,
            "{name}: {count} leaves too little room"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn logging_that_is_off_leaves_no_instructions_and_no_records() -> Result<()> {
    let with_level = |log_level| LoadOptions {
        log_level,
        ..options()
    };
    let (off, on) = (verified(&with_level(0))?, verified(&with_level(5))?);
    println!("verified: {off} without log, {on} with it");
    ensure!(
        off < on,
        "{off} instructions with the log off, {on} with it on"
    );
    for (level, records) in [(0, false), (5, true)] {
        let seen = isolated(move || {
            let mut kernel = Kernel::load(&with_level(level))?;
            // Malformed: an IPv4 frame without IPv4. The program logs these.
            let outcome = kernel.run(&ethernet(&[], IPV4, &[]))?;
            ensure!(outcome.action == XDP_DROP, "action {}", outcome.action);
            log_bytes(&mut kernel)
        })?;
        ensure!(
            (seen > 0) == records,
            "log level {level}: {seen} bytes in the log ring"
        );
    }
    Ok(())
}

/// How many bytes the program has written to its log ring.
fn log_bytes(kernel: &mut Kernel) -> Result<u64> {
    let program = kernel.dataplane.program()?.info()?;
    for id in program
        .map_ids()?
        .context("the kernel lists a program's maps")?
    {
        let map = aya::maps::MapInfo::from_id(id)?;
        if map.name_as_str() != Some("AYA_LOGS") {
            continue;
        }
        return produced(&map);
    }
    // A program whose log is compiled out does not refer to the ring.
    Ok(0)
}

/// The producer position of a ring: its page is the second of the mapping (kernel/bpf/ringbuf.c).
fn produced(map: &aya::maps::MapInfo) -> Result<u64> {
    let data = aya::maps::MapData::from_id(map.id())?;
    let mut ring = aya::maps::RingBuf::try_from(aya::maps::Map::RingBuf(data))?;
    let mut bytes = 0;
    while let Some(record) = ring.next() {
        bytes += record.len() as u64;
    }
    Ok(bytes)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_program_attaches_to_a_veth_in_driver_mode_and_in_generic_mode() -> Result<()> {
    isolated(|| {
        for (policy, mode, word) in [
            (Wanted::Auto, AttachMode::Driver, "xdp"),
            (Wanted::Driver, AttachMode::Driver, "xdp"),
            (Wanted::Generic, AttachMode::Generic, "xdpgeneric"),
        ] {
            veth("v0")?;
            let mut dataplane = Dataplane::load(&options())?;
            let attached = dataplane.attach("v0", policy)?;
            ensure!(attached.attach_mode == mode, "{policy:?}: {attached:?}");
            ensure!(!attached.resumed, "{attached:?}");
            let shown = tool("ip", &["-o", "link", "show", "v0"])?;
            ensure!(
                shown
                    .split_whitespace()
                    .any(|w| w == word || w == format!("{word}/id")),
                "{policy:?}: {shown}"
            );
            drop(dataplane);
            let shown = tool("ip", &["-o", "link", "show", "v0"])?;
            ensure!(
                !shown.contains("xdp"),
                "without pins the program must go: {shown}"
            );
            tool("ip", &["link", "del", "v0"])?;
        }
        Ok(())
    })
}

/// A process that does nothing in a network of its own; ends when dropped.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Result<Self> {
        let neighbour = Self(
            Command::new("unshare")
                .args(["-n", "sleep", "60"])
                .spawn()?,
        );
        let ours = fs::read_link("/proc/thread-self/ns/net")?;
        let theirs = format!("/proc/{}/ns/net", neighbour.0.id());
        for _ in 0..200 {
            if fs::read_link(&theirs)? != ours {
                return Ok(neighbour);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("unshare did not make a network")
    }

    fn id(&self) -> String {
        self.0.id().to_string()
    }

    /// Runs a program in the neighbour's network.
    fn run(&self, command: &[&str]) -> Result<String> {
        let id = self.id();
        tool("nsenter", &[&["-t", &id, "-n"], command].concat())
    }

    /// Sends a datagram from the neighbour's network.
    fn say(&self, to: SocketAddr) -> Result<()> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.0.id()))?;
        let sending = std::thread::spawn(move || -> Result<()> {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", to)?;
            Ok(())
        });
        sending
            .join()
            .map_err(|_panic| anyhow!("the thread panicked"))?
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_neighbour_is_heard_until_it_is_blocked_in_driver_and_in_generic_mode() -> Result<()> {
    for policy in [Wanted::Driver, Wanted::Generic] {
        isolated(move || {
            let neighbour = Neighbour::start()?;
            veth("v0")?;
            tool("ip", &["link", "set", "v0p", "netns", &neighbour.id()])?;
            tool("ip", &["addr", "add", "192.0.2.1/24", "dev", "v0"])?;
            neighbour.run(&["ip", "addr", "add", "192.0.2.2/24", "dev", "v0p"])?;
            neighbour.run(&["ip", "link", "set", "v0p", "up"])?;
            let service = UdpSocket::bind("192.0.2.1:0")?;
            service.set_read_timeout(Some(Duration::from_millis(500)))?;
            let address = service.local_addr()?;
            let mut kernel = Kernel::load(&options())?;
            kernel.dataplane.attach("v0", policy)?;
            neighbour.say(address)?;
            service
                .recv(&mut [0; 8])
                .context("not heard before the block")?;
            let before = kernel.counters()?;
            ensure!(before.pass >= 1, "{policy:?}: {}", shown(&before));
            kernel
                .blocks
                .put(&"192.0.2.2".parse()?, u64::MAX, 1, origin::OPERATOR)?;
            neighbour.say(address)?;
            ensure!(
                service.recv(&mut [0; 8]).is_err(),
                "{policy:?}: heard in spite of the block"
            );
            let moved = difference(&kernel.counters()?, &before);
            ensure!(moved.drop_exact >= 1, "{policy:?}: {}", shown(&moved));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_interface_that_runs_another_program_is_refused_as_busy() -> Result<()> {
    isolated(|| {
        veth("v0")?;
        let mut first = Dataplane::load(&options())?;
        first.attach("v0", Wanted::Auto)?;
        let mut second = Dataplane::load(&options())?;
        for policy in [Wanted::Auto, Wanted::Driver] {
            match second.attach("v0", policy) {
                Err(DataplaneError::Busy { name, holder }) => {
                    ensure!(name == "v0" && holder.contains("id "), "{name}: {holder}");
                }
                other => bail!("{policy:?}: {other:?}"),
            }
        }
        drop(first);
        second.attach("v0", Wanted::Auto)?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_interface_that_runs_xdp_filter_is_refused_as_busy_and_stays_as_it_is() -> Result<()> {
    for mode in ["native", "skb"] {
        isolated(move || {
            veth("v0")?;
            tool("xdp-filter", &["load", "-m", mode, "v0"])?;
            let before = tool("bpftool", &["-j", "net", "show", "dev", "v0"])?;
            let mut ours = Dataplane::load(&options())?;
            match ours.attach("v0", Wanted::Auto) {
                Err(DataplaneError::Busy { name, holder }) => {
                    ensure!(name == "v0" && holder.contains("id "), "{name}: {holder}");
                }
                other => bail!("xdp-filter in {mode} mode: {other:?}"),
            }
            let after = tool("bpftool", &["-j", "net", "show", "dev", "v0"])?;
            ensure!(before == after, "{before} became {after}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_second_agent_takes_over_the_pinned_link_with_blocks_hits_and_mode() -> Result<()> {
    isolated(|| {
        veth("v0")?;
        let mut first = Kernel::load(&pinned())?;
        let attached = first.dataplane.attach("v0", Wanted::Auto)?;
        ensure!(
            !attached.resumed && !first.dataplane.resumed,
            "{attached:?}"
        );
        first
            .blocks
            .put(&blocked_source()?, u64::MAX, 7, origin::MESH)?;
        ensure!(first.run(&frame())?.action == XDP_DROP, "not dropped");
        ensure!(first.run(&frame())?.action == XDP_DROP, "not dropped");
        drop(first);
        let link = || tool("ip", &["-o", "link", "show", "v0"]);
        ensure!(
            link()?.contains("xdp"),
            "the program left with its agent: {}",
            link()?
        );
        // The second one is configured to monitor; what is pinned wins.
        let mut second = Kernel::load(&LoadOptions {
            mode: Mode::Monitor,
            ..pinned()
        })?;
        ensure!(
            second.dataplane.resumed,
            "the pinned maps were not taken over"
        );
        ensure!(
            second.dataplane.mode() == Mode::Enforce,
            "the mode was forgotten"
        );
        let entry = second
            .blocks
            .get(&blocked_source()?)
            .context("the block is gone")?;
        ensure!(entry.hits == 2 && entry.rule == 7, "{entry:?}");
        let before = link()?;
        let attached = second.dataplane.attach("v0", Wanted::Auto)?;
        ensure!(attached.resumed, "{attached:?}");
        ensure!(attached.attach_mode == AttachMode::Driver, "{attached:?}");
        ensure!(
            link()?.contains("xdp") && link()? != before,
            "the program was not replaced"
        );
        ensure!(
            second.run(&frame())?.action == XDP_DROP,
            "the block was lost"
        );
        let entry = second
            .blocks
            .get(&blocked_source()?)
            .context("the block is gone")?;
        ensure!(entry.hits == 3, "{entry:?}");
        drop(second);
        ensure!(detach_all(&pin_dir()?)? > 0, "there were pins to remove");
        // The kernel lets go of a link a moment after its last pin.
        let mut shown = link()?;
        for _ in 0..500 {
            if !shown.contains("xdp") {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            shown = link()?;
        }
        ensure!(!shown.contains("xdp"), "still attached: {shown}");
        let mut third = Kernel::load(&pinned())?;
        ensure!(!third.dataplane.resumed, "removed state came back");
        ensure!(
            third.run(&frame())?.action == XDP_PASS,
            "a removed block drops"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn pinned_prefixes_block_on_while_nobody_runs_and_are_known_to_the_next_agent() -> Result<()> {
    isolated(|| {
        let network: Prefix = "198.51.100.0/24".parse()?;
        let mut first = Kernel::load(&pinned())?;
        first.dataplane.set_sizes(1, 0, 0)?;
        first.blocks.put(&network, u64::MAX, 9, origin::MESH)?;
        drop(first);
        let mut second = Kernel::load(&pinned())?;
        ensure!(
            second.run(&frame())?.action == XDP_DROP,
            "the prefix was lost"
        );
        ensure!(
            second.blocks.prefix_counts() == (1, 0),
            "{:?}",
            second.blocks.prefix_counts()
        );
        let entry = second.blocks.get(&network).context("not known")?;
        ensure!(entry.hits == 1, "{entry:?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_pin_whose_interface_is_gone_gives_way_to_a_new_link() -> Result<()> {
    isolated(|| {
        veth("v0")?;
        let mut first = Dataplane::load(&pinned())?;
        first.attach("v0", Wanted::Auto)?;
        drop(first);
        tool("ip", &["link", "del", "v0"])?;
        veth("v0")?;
        let mut second = Dataplane::load(&pinned())?;
        let attached = second.attach("v0", Wanted::Auto)?;
        ensure!(!attached.resumed, "{attached:?}");
        let shown = tool("ip", &["-o", "link", "show", "v0"])?;
        ensure!(shown.contains("xdp"), "{shown}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn pinned_maps_of_another_layout_are_refused_and_left_alone() -> Result<()> {
    isolated(|| {
        fs::create_dir_all(pin_dir()?)?;
        let foreign = pin_dir()?.join("BLOCK4");
        let path = foreign.to_str().context("a name in UTF-8")?;
        // A key of the right size and a value of another.
        let map = "type hash key 4 value 16 entries 8 name foreign";
        let words: Vec<&str> = ["map", "create", path]
            .into_iter()
            .chain(map.split(' '))
            .collect();
        tool("bpftool", &words)?;
        match Dataplane::load(&pinned()) {
            Err(DataplaneError::ForeignState {
                path, found, ours, ..
            }) => {
                ensure!(path == foreign, "{}", path.display());
                ensure!(found == (4, 16) && ours.0 == 4, "{found:?} {ours:?}");
            }
            Err(other) => bail!("{other}"),
            Ok(_) => bail!("took over a map of another layout"),
        }
        ensure!(foreign.exists(), "the other version's state was removed");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn bpftool_prints_the_fields_of_a_block_by_name() -> Result<()> {
    isolated(|| {
        let mut kernel = Kernel::load(&pinned())?;
        kernel
            .blocks
            .put(&blocked_source()?, u64::MAX, 7, origin::MESH)?;
        kernel.run(&frame())?;
        let map = kernel.dataplane.pin_dir().context("pinned")?.join("BLOCK4");
        let dump = dump(&map)?;
        let entry = dump.get(0).context("no entry")?;
        let value = entry
            .pointer("/formatted/value")
            .or_else(|| entry.get("value"))
            .with_context(|| entry.to_string())?;
        ensure!(
            value.get("hits").and_then(serde_json::Value::as_u64) == Some(1),
            "{entry}"
        );
        ensure!(value.get("expires_ns").is_some(), "{entry}");
        Ok(())
    })
}

fn dump(map: &Path) -> Result<serde_json::Value> {
    let path = map.to_str().context("a name in UTF-8")?;
    let text = tool("bpftool", &["-j", "map", "dump", "pinned", path])?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_interface_that_does_not_exist_is_named() -> Result<()> {
    let mut dataplane = Dataplane::load(&options())?;
    match dataplane.attach("no-such-if0", Wanted::Auto) {
        Err(DataplaneError::NoInterface { name }) => ensure!(name == "no-such-if0", "{name}"),
        other => bail!("{other:?}"),
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn one_agent_protects_several_interfaces_with_one_set_of_blocks() -> Result<()> {
    isolated(|| {
        veth("v0")?;
        veth("v1")?;
        let mut dataplane = Dataplane::load(&options())?;
        dataplane.attach("v0", Wanted::Driver)?;
        dataplane.attach("v1", Wanted::Generic)?;
        let names: Vec<_> = dataplane
            .attached()
            .iter()
            .map(|a| (a.name.as_str(), a.attach_mode))
            .collect();
        ensure!(
            names == [("v0", AttachMode::Driver), ("v1", AttachMode::Generic)],
            "{names:?}"
        );
        let shown = [
            tool("ip", &["-o", "link", "show", "v0"])?,
            tool("ip", &["-o", "link", "show", "v1"])?,
        ];
        let programs: Vec<_> = shown
            .iter()
            .filter_map(|line| line.split("prog/xdp id ").nth(1))
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        ensure!(
            programs.len() == 2 && programs.first() == programs.last(),
            "not the same program on both: {shown:?}"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_running_link_of_a_mode_that_is_not_wanted_any_more_gives_way() -> Result<()> {
    isolated(|| {
        veth("v0")?;
        let mut first = Dataplane::load(&pinned())?;
        first.attach("v0", Wanted::Driver)?;
        drop(first);
        let mut second = Dataplane::load(&pinned())?;
        let attached = second.attach("v0", Wanted::Generic)?;
        ensure!(
            attached.attach_mode == AttachMode::Generic && !attached.resumed,
            "{attached:?}"
        );
        let shown = tool("ip", &["-o", "link", "show", "v0"])?;
        ensure!(shown.contains("xdpgeneric"), "{shown}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_interface_that_comes_or_goes_is_told_at_once() -> Result<()> {
    isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut links = LinkWatch::open()?;
            let patience = Duration::from_secs(5);
            let silence = Duration::from_millis(50);
            for change in ["link add one0 type veth peer name one1", "link del one0"] {
                let words: Vec<&str> = change.split(' ').collect();
                tool("ip", &words)?;
                tokio::time::timeout(patience, links.changed())
                    .await
                    .with_context(|| format!("no notice of `ip {change}`"))??;
                // What came with it is taken with it, now or in a moment.
                while tokio::time::timeout(silence, links.changed()).await.is_ok() {}
            }
            Ok(())
        })
    })
}
