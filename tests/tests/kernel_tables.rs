//! The small tables that the agent wrote: what somebody else changes in them is found and put right, and what belongs
//! to the program is left alone.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use secmesh::{
    addr::Prefix,
    dataplane::{CookieMode, Differences, LoadOptions, PortRule, PortTable},
};
use secmesh_common::{
    block::{Addr4, Addr6, origin},
    hot::{self, HotSource},
    limit::Limit,
    packet::Family,
    port::{COOKIE_ALWAYS, LIMIT_UDP, PORTS, PortPolicy, SharedLimit, TRIPWIRE_TCP},
};
use secmesh_tests::{
    chaos::mono_ns,
    kernel::{BPFFS, Kernel, LONG_NS, isolated, options, shown},
    lists::frame,
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);
/// Ports compared by one call; no divisor of their number.
const SLICE: u32 = 10_000;

fn pinned(name: &str) -> Result<(Kernel, PathBuf)> {
    let pins = Path::new(BPFFS).join(name);
    let kernel = Kernel::load(&LoadOptions {
        pin_dir: Some(pins.clone()),
        ..options()
    })?;
    Ok((kernel, pins))
}

fn array<V: aya::Pod>(pins: &Path, name: &str) -> Result<Array<MapData, V>> {
    let map = MapData::from_pin(pins.join(name))?;
    Ok(Map::Array(map).try_into()?)
}

fn hash<K: aya::Pod>(pins: &Path, name: &str) -> Result<HashMap<MapData, K, u64>> {
    let map = MapData::from_pin(pins.join(name))?;
    Ok(Map::HashMap(map).try_into()?)
}

fn differences(added: usize, removed: usize) -> Differences {
    Differences { added, removed }
}

/// Compares all ports.
fn audit(
    table: &mut PortTable,
    cookies: Option<&BTreeMap<u16, CookieMode>>,
) -> Result<Differences> {
    let mut all = Differences::default();
    let ports = u32::try_from(PORTS)?;
    for first in (0..ports).step_by(SLICE as usize) {
        let found = table.audit(first, SLICE, cookies)?;
        all.added += found.added;
        all.removed += found.removed;
    }
    Ok(all)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
#[expect(
    clippy::too_many_lines,
    reason = "one story from a map without a difference to one without"
)]
fn ports_and_their_limits_that_somebody_else_changed_are_put_right() -> Result<()> {
    isolated(|| {
        let (mut kernel, pins) = pinned("secmesh-ports")?;
        let mut table = kernel.dataplane.take_ports()?;
        let udp = Limit::per_second(100, 200, 0);
        let rules = BTreeMap::from([
            (
                23,
                PortRule {
                    flags: TRIPWIRE_TCP,
                    ..PortRule::default()
                },
            ),
            (
                65_535,
                PortRule {
                    flags: LIMIT_UDP,
                    udp: Some(udp),
                    ..PortRule::default()
                },
            ),
        ]);
        table.replace(&rules)?;
        kernel
            .dataplane
            .set_cookie_ports(&[(443, CookieMode::Always), (23, CookieMode::Always)])?;
        let cookies = kernel.dataplane.known_cookie_ports().cloned();
        ensure!(
            audit(&mut table, cookies.as_ref())? == differences(0, 0),
            "differences from nothing"
        );

        let mut ports: Array<MapData, PortPolicy> = array(&pins, "PORT")?;
        let right: Vec<PortPolicy> = ports.iter().collect::<Result<_, _>>()?;
        let of = |port: usize| right.get(port).copied().context("a port");
        ensure!(
            of(23)?.flags == TRIPWIRE_TCP | COOKIE_ALWAYS,
            "{:?}",
            of(23)?
        );
        // A tripwire taken out, a limit made another's, a cookie put where nobody wants one and in the very first
        // and last places.
        let stray = PortPolicy {
            flags: TRIPWIRE_TCP,
            limit: 0,
        };
        ports.set(
            23,
            PortPolicy {
                flags: COOKIE_ALWAYS,
                limit: 0,
            },
            0,
        )?;
        ports.set(443, PortPolicy::default(), 0)?;
        ports.set(
            65_535,
            PortPolicy {
                limit: 8,
                ..of(65_535)?
            },
            0,
        )?;
        for port in [0, 22, 65_534] {
            ports.set(port, stray, 0)?;
        }
        ensure!(
            audit(&mut table, cookies.as_ref())? == differences(3, 3),
            "not found"
        );
        let now: Vec<PortPolicy> = ports.iter().collect::<Result<_, _>>()?;
        ensure!(now == right, "not put right");
        ensure!(
            audit(&mut table, cookies.as_ref())? == differences(0, 0),
            "found again"
        );

        // While it is not known which ports have cookies, those stay as they are, and nothing else does.
        let cookie = PortPolicy {
            flags: COOKIE_ALWAYS | TRIPWIRE_TCP,
            limit: 0,
        };
        ports.set(80, cookie, 0)?;
        ensure!(audit(&mut table, None)? == differences(1, 0), "not found");
        ensure!(ports.get(&80, 0)?.flags == COOKIE_ALWAYS, "not put right");
        ensure!(
            audit(&mut table, cookies.as_ref())? == differences(0, 1),
            "a cookie that nobody wants"
        );

        // The limit is the agent's, where it stands is the program's.
        let mut limits: Array<MapData, SharedLimit> = array(&pins, "PORT_LIMIT")?;
        let at = u32::from(of(65_535)?.limit) + 1;
        let there = limits.get(&at, 0)?;
        ensure!(there.limit == udp, "{there:?}");
        limits.set(
            at,
            SharedLimit {
                limit: Limit::NONE,
                arrival_ns: 77,
            },
            0,
        )?;
        ensure!(
            audit(&mut table, cookies.as_ref())? == differences(1, 0),
            "not found"
        );
        let there = limits.get(&at, 0)?;
        ensure!(
            there.limit == udp && there.arrival_ns == 77,
            "not put right, or its state was touched: {there:?}"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn watches_and_addresses_that_somebody_else_changed_are_put_right() -> Result<()> {
    isolated(|| {
        let (mut kernel, pins) = pinned("secmesh-watches")?;
        let until_ns = mono_ns()? + LONG_NS;
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse()?, "2001:db8::1".parse()?);
        for addr in [v4, v6, "192.0.2.2".parse()?] {
            kernel.watches.put(addr, until_ns)?;
        }
        kernel.watches.remove("192.0.2.2".parse()?)?;
        ensure!(kernel.watches.audit()? == differences(0, 0), "of nothing");
        let wanted = kernel.watches.entries()?;
        ensure!(wanted.len() == 2, "{wanted:?}");

        let mut four: HashMap<_, Addr4, u64> = hash(&pins, "WATCH4")?;
        let mut six: HashMap<_, Addr6, u64> = hash(&pins, "WATCH6")?;
        // One that ends sooner, one that is gone, one that nobody wants.
        let key = |last| Addr4 {
            addr: [192, 0, 2, last],
        };
        four.insert(key(1), 5, 0)?;
        four.insert(key(9), until_ns, 0)?;
        let IpAddr::V6(addr) = v6 else {
            unreachable!("written so above")
        };
        six.remove(&Addr6 {
            addr: addr.octets(),
        })?;
        ensure!(kernel.watches.audit()? == differences(2, 1), "not found");
        ensure!(kernel.watches.entries()? == wanted, "not put right");
        ensure!(kernel.watches.audit()? == differences(0, 0), "found again");

        let own: Vec<IpAddr> = vec!["198.51.100.1".parse()?, v6];
        kernel.dataplane.set_cookie_addresses(&own, &[])?;
        let changed: Vec<IpAddr> = vec!["198.51.100.2".parse()?, v6];
        kernel.dataplane.set_cookie_addresses(&changed, &[])?;
        ensure!(
            kernel.dataplane.take_cookie_differences() == differences(0, 0),
            "a change of ours is no difference"
        );
        let map = MapData::from_pin(pins.join("COOKIE_ADDRESS"))?;
        let mut addresses: HashMap<MapData, Addr6, u32> = Map::HashMap(map).try_into()?;
        addresses.remove(&Addr6 {
            addr: addr.octets(),
        })?;
        addresses.insert(Addr6 { addr: [7; 16] }, 1, 0)?;
        kernel.dataplane.set_cookie_addresses(&changed, &[])?;
        ensure!(
            kernel.dataplane.take_cookie_differences() == differences(1, 1),
            "not found"
        );
        ensure!(
            kernel.dataplane.take_cookie_differences() == differences(0, 0),
            "told twice"
        );
        ensure!(
            addresses
                .get(
                    &Addr6 {
                        addr: addr.octets()
                    },
                    0
                )
                .is_ok()
                && addresses.get(&Addr6 { addr: [7; 16] }, 0).is_err(),
            "not put right"
        );
        Ok(())
    })
}

/// A slot as the program fills it, for an address that it would not fill one for.
fn forged(kernel: &mut Kernel, source: [u8; 4]) -> Result<(u32, HotSource)> {
    let config = kernel.dataplane.kernel_config();
    let addr = [u32::from_ne_bytes(source), 0, 0, 0];
    let now_ns = mono_ns()?;
    let slot = HotSource {
        addr,
        expires_ns: now_ns + LONG_NS,
        flushed: HotSource::flush_time(now_ns),
        last_ns: now_ns,
        generation: config.hot_generation,
        family: Family::V4 as u32,
        ..HotSource::default()
    };
    Ok((hot::place(&addr, Family::V4, config.table_seed), slot))
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_hot_slot_of_an_allowed_source_is_emptied_and_one_of_a_stranger_heals_by_itself() -> Result<()>
{
    isolated(|| {
        let mut kernel = Kernel::load(&options())?;
        let source: IpAddr = "203.0.113.7".parse()?;
        let prefix = Prefix::host(source);
        let end_ns = mono_ns()? + LONG_NS;
        kernel.blocks.put(&prefix, end_ns, 1, origin::OPERATOR)?;
        kernel.allows.replace(&[prefix])?;
        let packet = frame(source);
        let moved = kernel.run_many(&packet, 1)?;
        ensure!(moved.pass_allowlist == 1, "{}", shown(&moved));

        let (place, slot) = forged(&mut kernel, [203, 0, 113, 7])?;
        let mut hot: Array<MapData, HotSource> = kernel.map("HOT")?;
        hot.set(place, slot, 0)?;
        // The program takes its own memory's word, as long as the source sends.
        thread::sleep(Duration::from_nanos(2 * hot::FLUSH_NS));
        let moved = kernel.run_many(&packet, 3)?;
        ensure!(moved.drop_exact == 3, "{}", shown(&moved));
        let slots = kernel.blocks.hot_slots();
        ensure!(slots as usize == hot::SLOTS, "{slots}");
        let found = kernel.blocks.audit_hot(0, slots, |p| *p == prefix)?;
        ensure!(found == differences(0, 1), "{found:?}");
        let moved = kernel.run_many(&packet, 1)?;
        ensure!(moved.pass_allowlist == 1, "{}", shown(&moved));
        let found = kernel.blocks.audit_hot(0, slots, |p| *p == prefix)?;
        ensure!(found == differences(0, 0), "{found:?}");

        // A source that is hot and rightly so stays.
        kernel.allows.replace(&[])?;
        // The first packet asks, the second one finds it hot; a slot is older than the change of the allowlist.
        let moved = kernel.run_many(&packet, 5)?;
        ensure!(moved.drop_exact == 5, "{}", shown(&moved));
        let before = hot.get(&place, 0)?;
        ensure!(before.hits > 0, "{before:?}");
        let found = kernel.blocks.audit_hot(0, slots, |_| false)?;
        ensure!(found == differences(0, 0), "{found:?}");
        ensure!(hot.get(&place, 0)? == before, "it was touched");

        // Somebody who is not blocked, but whose neighbourhood is: the next flush asks the map.
        let stranger: IpAddr = "203.0.113.8".parse()?;
        let packet = frame(stranger);
        let (place, slot) = forged(&mut kernel, [203, 0, 113, 8])?;
        hot.set(place, slot, 0)?;
        let begun = Instant::now();
        while kernel.run_many(&packet, 1)?.pass != 1 {
            ensure!(begun.elapsed() < PATIENCE, "it is dropped for ever");
            thread::sleep(Duration::from_millis(10));
        }
        hot.set(place, slot, 0)?;
        let found = kernel.blocks.audit_hot(0, slots, |_| false)?;
        ensure!(found == differences(0, 0), "{found:?}");
        ensure!(hot.get(&place, 0)?.family == 0, "it was left there");
        Ok(())
    })
}
