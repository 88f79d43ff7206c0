//! Our side: the program as an agent loads it, with a blocklist and with everything armed.
//!
//! What changes with the data plane's interface is here and nowhere else.

use std::net::IpAddr;

use anyhow::Result;
use secmesh::{
    clock::{Clock as _, SystemClock},
    config::Config,
    dataplane::{Compiled, CookieMode, FlowOptions, LoadOptions, Protection, Span},
    respond::Now,
};
use secmesh_common::{
    config::features,
    counters::{Counter, Counters},
    limit::Limit,
    reason::Reason,
};
use secmesh_tests::{
    frames::{DESTINATION4, DESTINATION6},
    kernel::{Kernel, options},
};

use crate::addresses::Blocked;

/// What is armed beside the blocklist, for the notes of rows.
pub const ARMED: &str = "checks, source limits and cookies (auto)";

/// Loads the program with room for these lists and with these lists in it.
pub fn load(lists: &[&Blocked]) -> Result<Kernel> {
    load_with(lists, FlowOptions::default())
}

/// As [`load`], with flow records as an agent keeps them.
pub fn load_with_flows(lists: &[&Blocked]) -> Result<Kernel> {
    let flows = Config::default().flows;
    load_with(
        lists,
        FlowOptions {
            slots: flows.table_size,
            idle: flows.idle_timeout,
            active: flows.active_timeout,
            by_filter: false,
        },
    )
}

fn load_with(lists: &[&Blocked], flows: FlowOptions) -> Result<Kernel> {
    let most = |of: fn(&Blocked) -> usize| -> Result<u32> {
        let most = lists.iter().map(|list| of(list)).max().unwrap_or_default();
        Ok(u32::try_from(most)?.max(16))
    };
    let mut kernel = Kernel::load(&LoadOptions {
        max_list_addresses: most(|list| list.hosts.len())?,
        max_list_prefixes: most(|list| list.prefixes.len())?,
        flows,
        ..options()
    })?;
    replace(&mut kernel, &compiled(lists))?;
    Ok(kernel)
}

/// The lists as the tables want them.
pub fn compiled(lists: &[&Blocked]) -> Compiled {
    let mut all = Compiled::default();
    for list in lists {
        for host in &list.hosts {
            match host {
                IpAddr::V4(host) => all.hosts4.push(span(u32::from(*host), u32::from(*host))),
                IpAddr::V6(host) => all.hosts6.push(span(u128::from(*host), u128::from(*host))),
            }
        }
        for prefix in &list.prefixes {
            match prefix.addr() {
                IpAddr::V4(first) => {
                    let free = u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                    let first = u32::from(first);
                    all.ranges4.push(span(first, first | free));
                }
                IpAddr::V6(first) => {
                    let free = u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                    let first = u128::from(first);
                    all.ranges6.push(span(first, first | free));
                }
            }
        }
    }
    all.hosts4.sort_unstable();
    all.hosts6.sort_unstable();
    all.ranges4.sort_unstable();
    all.ranges6.sort_unstable();
    all
}

fn span<A>(start: A, end: A) -> Span<A> {
    Span {
        start,
        end,
        expires_unix_s: u64::MAX,
        list: 1,
    }
}

/// Writes the lists into the kernel in place of what was there.
pub fn replace(kernel: &mut Kernel, wanted: &Compiled) -> Result<()> {
    let now = Now {
        unix_us: SystemClock.unix_us(),
        mono_ns: SystemClock.mono_ns(),
    };
    let generation = kernel.allows.generation();
    kernel.lists.replace(wanted, generation, now, &mut |_| {})?;
    Ok(())
}

/// Arms what an agent arms by default, every limit of a source, so high that a test run's one source never
/// reaches it, and SYN cookies for the port and addresses that the packets go to.
pub fn arm(kernel: &mut Kernel) -> Result<()> {
    let tick_ns = kernel.dataplane.kernel_config().tick_ns;
    let high = Limit::per_second(1_000_000_000, 1_000_000_000, tick_ns);
    let defaults = Config::default().protection(false);
    kernel.dataplane.set_protection(&Protection {
        checks: Reason::ALL
            .iter()
            .fold(0, |mask, reason| mask | reason.bit()),
        source_limits: defaults.source_limits.map(|_none| high),
        features: defaults.features | features::SOURCE_LIMITS,
        ..defaults
    })?;
    kernel
        .dataplane
        .set_cookie_ports(&[(443, CookieMode::Auto)])?;
    kernel
        .dataplane
        .set_cookie_addresses(&[DESTINATION4.into(), DESTINATION6.into()], &[])?;
    Ok(())
}

/// Loads the program as an agent without a configuration file has it, with SYN cookies for one port of these
/// addresses; `net.ipv4.tcp_syncookies` is the caller's.
pub fn defender(port: u16, mode: CookieMode, addresses: &[IpAddr]) -> Result<Kernel> {
    let mut kernel = load_with_flows(&[])?;
    kernel
        .dataplane
        .set_protection(&Config::default().protection(false))?;
    kernel.dataplane.set_cookie_ports(&[(port, mode)])?;
    kernel.dataplane.set_cookie_addresses(addresses, &[])?;
    Ok(kernel)
}

/// Packets dropped because of a block or a list.
pub fn dropped(counters: &Counters) -> u64 {
    [Counter::DropExact, Counter::DropPrefix, Counter::DropList]
        .iter()
        .map(|counter| counters.get(*counter))
        .sum()
}
