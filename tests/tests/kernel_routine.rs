//! The shortest way to a pass counts what the long way counts: the same packets, plain from one source and with a tag from
//! another. What has a tag always goes the long way.

use std::net::{Ipv6Addr, TcpListener};

use anyhow::{Result, ensure};
use nix::unistd::Pid;
use secmesh::{
    config::Config,
    dataplane::{CookieMode, Protection},
};
use secmesh_common::{
    account::SourceSlot,
    config::{RateClass, features},
    counters::Counters,
    limit::{Limit, SourceLimit},
    reason::Reason,
};
use secmesh_tests::{
    chaos::mono_ns,
    frames::{DESTINATION4, DESTINATION6},
    kernel::{Kernel, LONG_NS, isolated, options, shown, tool, without_events},
    netns::pin,
    transfer::{Sent, besides, frame, slot},
};

/// Packets at a time: enough for a source to be known.
const MANY: u32 = 300;

/// What is sent, and how often.
const SENT: &[(Sent, u32)] = &[
    (Sent::Tcp(0x02), 1),
    (Sent::Tcp(0x10), MANY),
    (Sent::Tcp(0x18), MANY),
    (Sent::Tcp(0x02), 3),
    (Sent::Tcp(0x10), MANY),
    (Sent::Udp(443), MANY),
    (Sent::Udp(444), 2),
    (Sent::Udp(443), MANY),
    (Sent::Icmp, 2),
    (Sent::Tcp(0x11), 1),
    (Sent::Udp(444), MANY),
];

/// What of it depends on neither the clock nor the address.
fn counted(slot: &SourceSlot) -> [u32; 6] {
    let [syn, udp, icmp] = slot.count;
    [slot.packets, slot.score, slot.attempts, syn, udp, icmp]
}

fn kernel(rate: u64, burst: u64) -> Result<Kernel> {
    // Counts are lower bounds where two processors meet.
    pin(Pid::from_raw(0), 0)?;
    let mut options = options();
    // No window ends while this runs.
    for class in &mut options.levels.rates {
        class.window_ns = 3_600_000_000_000;
    }
    options.levels.contact_window_ns = 3_600_000_000_000;
    let mut kernel = Kernel::load(&options)?;
    let tick_ns = kernel.dataplane.kernel_config().tick_ns;
    let limit = Limit::per_second(rate, burst, tick_ns);
    let defaults = Config::default().protection(false);
    kernel.dataplane.set_protection(&Protection {
        checks: Reason::ALL
            .iter()
            .fold(0, |mask, reason| mask | reason.bit()),
        source_limits: [limit; SourceLimit::COUNT],
        // There are no connections here that segments could belong to.
        stray_limit: Limit::per_second(1_000_000_000, 1_000_000_000, tick_ns),
        strays_limit: Limit::per_second(1_000_000_000, 1_000_000_000, tick_ns),
        features: defaults.features | features::SOURCE_LIMITS,
        ..defaults
    })?;
    Ok(kernel)
}

/// Sends all of [`SENT`] as one source; what the counters moved by after each.
fn send(kernel: &mut Kernel, ipv6: bool, tagged: bool) -> Result<Vec<Counters>> {
    SENT.iter()
        .map(|(sent, times)| {
            let moved = kernel.run_many(&frame(ipv6, tagged, *sent), *times)?;
            let tag = if tagged { 4 * u64::from(*times) } else { 0 };
            Ok(Counters {
                rx_bytes: moved.rx_bytes - tag,
                ..without_events(moved)
            })
        })
        .collect()
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_transfer_is_counted_as_on_the_long_way() -> Result<()> {
    for ipv6 in [false, true] {
        let mut kernel = kernel(1_000_000_000, 1_000_000_000)?;
        let short = send(&mut kernel, ipv6, false)?;
        let long = send(&mut kernel, ipv6, true)?;
        for ((short, long), sent) in short.iter().zip(&long).zip(SENT) {
            ensure!(
                short == long,
                "{sent:?}: {} and with a tag {}",
                shown(short),
                shown(long)
            );
        }
        let passed: u64 = short.iter().map(|moved| moved.pass).sum();
        ensure!(passed > u64::from(6 * MANY), "only {passed} passed");
        let [short, long] =
            [false, true].map(|tagged| slot(&mut kernel, &frame(ipv6, tagged, Sent::Udp(443))));
        let (short, long) = (short?, long?);
        ensure!(
            counted(&short) == counted(&long),
            "{short:?} and with a tag {long:?}"
        );
        ensure!(short.packets > 6 * MANY, "{short:?}");
        ensure!(
            short.count[RateClass::Udp as usize] == 3 * MANY + 2,
            "{short:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_limit_ends_it_where_it_ends_the_long_way() -> Result<()> {
    for ipv6 in [false, true] {
        for sent in [Sent::Tcp(0x10), Sent::Udp(443)] {
            let mut kernel = kernel(1, 100)?;
            let [short, long] = [false, true].map(|tagged| {
                let frame = frame(ipv6, tagged, sent);
                // Known, and after that within a tick.
                kernel.run_many(&frame, 20)?;
                kernel.run_many(&frame, MANY)
            });
            let (short, long) = (short?, long?);
            ensure!(
                short.pass.abs_diff(long.pass) <= 3 && (20..=90).contains(&short.pass),
                "{sent:?}: {} and with a tag {}",
                shown(&short),
                shown(&long)
            );
        }
    }
    Ok(())
}

/// Some thirty, and then they are over the limit.
const FEW: Limit = Limit {
    cost_ns: 1_000_000_000,
    burst_ns: 30_000_000_000,
};

/// Protection with everything on, and next to nothing let through of what belongs to nobody.
fn strict() -> Protection {
    let defaults = Config::default().protection(false);
    Protection {
        checks: Reason::ALL
            .iter()
            .fold(0, |mask, reason| mask | reason.bit()),
        stray_limit: FEW,
        strays_limit: FEW,
        amplified_limit: FEW,
        features: defaults.features | features::ATTACKS,
        ..defaults
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn whatever_else_a_known_source_sends_is_judged_as_on_the_long_way() -> Result<()> {
    for ipv6 in [false, true] {
        let sides = [false, true].map(|tagged| {
            besides(ipv6, tagged)
                .into_iter()
                .map(|(name, frame)| {
                    // Limits of all sources together begin anew.
                    let mut kernel = kernel(1_000_000_000, 1_000_000_000)?;
                    for known in [Sent::Tcp(0x10), Sent::Udp(443)] {
                        kernel.run_many(&self::frame(ipv6, tagged, known), MANY)?;
                    }
                    kernel.dataplane.set_protection(&strict())?;
                    let moved = kernel.run_many(&frame, MANY)?;
                    let tag = if tagged { 4 * u64::from(MANY) } else { 0 };
                    let moved = Counters {
                        rx_bytes: moved.rx_bytes - tag,
                        ..without_events(moved)
                    };
                    Ok((name, moved))
                })
                .collect::<Result<Vec<_>>>()
        });
        let [short, long] = sides;
        for ((name, short), (_, long)) in short?.iter().zip(&long?) {
            ensure!(
                short == long && short.pass < u64::from(MANY / 2),
                "{name}: {} and with a tag {}",
                shown(short),
                shown(long)
            );
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_watched_source_and_a_tripwire_are_told_of_however_well_known_it_is() -> Result<()> {
    for ipv6 in [false, true] {
        let segment = frame(ipv6, false, Sent::Tcp(0x10));
        let source = if ipv6 {
            "2001:db8:1::1"
        } else {
            "198.51.100.1"
        };
        let mut kernel = kernel(1_000_000_000, 1_000_000_000)?;
        kernel.run_many(&segment, MANY)?;
        let moved = kernel.run_many(&segment, MANY)?;
        ensure!(moved.events_sent == 0, "{}", shown(&moved));
        kernel.dataplane.set_sizes(0, 0, 1)?;
        kernel.watches.put(source.parse()?, mono_ns()? + LONG_NS)?;
        let moved = kernel.run_many(&segment, MANY)?;
        ensure!(moved.events_sent == u64::from(MANY), "{}", shown(&moved));

        kernel.dataplane.set_sizes(0, 0, 0)?;
        let config = Config::parse("[tripwire]\ntcp = [443]\n", "test")?;
        let mut ports = kernel.dataplane.take_ports()?;
        ports.replace(&config.port_rules(4747))?;
        kernel.dataplane.set_protection(&config.protection(false))?;
        let moved = kernel.run_many(&segment, MANY)?;
        ensure!(moved.tripwire == u64::from(MANY), "{}", shown(&moved));
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_known_source_needs_a_good_cookie_like_everybody_while_a_listener_is_flooded() -> Result<()> {
    isolated(|| {
        for command in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", "192.0.2.1/32", "dev", "lo"],
            &["addr", "add", "2001:db8:2::1/128", "dev", "lo", "nodad"],
        ] {
            tool("ip", command)?;
        }
        std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")?;
        let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 443))?;
        for ipv6 in [false, true] {
            let segment = frame(ipv6, false, Sent::Tcp(0x10));
            let mut kernel = kernel(1_000_000_000, 1_000_000_000)?;
            let dataplane = &mut kernel.dataplane;
            dataplane.set_cookie_ports(&[(443, CookieMode::Always)])?;
            dataplane.set_cookie_addresses(&[DESTINATION4.into(), DESTINATION6.into()], &[])?;
            kernel.run_many(&segment, MANY)?;
            let calm = kernel.run_many(&segment, MANY)?;
            ensure!(calm.pass == u64::from(MANY), "{}", shown(&calm));
            // Attempts that the listener is said not to hold.
            let moved = kernel.run_many(&frame(ipv6, false, Sent::Tcp(0x02)), 10)?;
            ensure!(moved.cookie_sent > 0, "{}", shown(&moved));
            let moved = kernel.run_many(&segment, MANY)?;
            ensure!(
                moved.drop_bad_cookie == u64::from(MANY),
                "{}",
                shown(&moved)
            );
        }
        Ok(())
    })
}
