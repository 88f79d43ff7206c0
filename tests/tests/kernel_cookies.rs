//! SYN cookies packet by packet: a SYN goes in, the exact SYN-ACK comes out; what returns it is checked.
//!
//! The socket lookups see the network of the thread, so each test listens in one of its own.

use std::{
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use secmesh::{
    addr::Prefix,
    dataplane::{CookieMode, LoadOptions, Mode},
};
use secmesh_common::{
    counters::Counter,
    packet::tcp_flags::{ACK, FIN, PSH, RST, SYN},
};
use secmesh_tests::{
    frames::{
        DESTINATION_PORT, DESTINATION4, DESTINATION6, IPV4, IPV6, QINQ, SOURCE_PORT, SOURCE4,
        SOURCE6, VLAN, checksum, ethernet, extension, fragment_header, hex, ipv4, ipv4_from, ipv6,
        patched, protocol as proto, tcp_to,
    },
    kernel::{Kernel, Outcome, XDP_DROP, XDP_PASS, XDP_TX, isolated, options, shown, tool},
};

/// The client's initial sequence number in every SYN here.
const CLIENT_SEQ: u32 = 0xfedc_ba98;
/// MTU of the interface that test runs come in on.
const MTU: u16 = 1500;

/// Listens on the fixtures' destination in this thread's network.
fn listen() -> Result<TcpListener> {
    for command in [
        &["link", "set", "lo", "mtu", "1500", "up"][..],
        &["addr", "add", "192.0.2.1/32", "dev", "lo"],
        &["addr", "add", "2001:db8:2::1/128", "dev", "lo", "nodad"],
    ] {
        tool("ip", command)?;
    }
    Ok(TcpListener::bind((
        Ipv6Addr::UNSPECIFIED,
        DESTINATION_PORT,
    ))?)
}

fn syncookies(value: u8) -> Result<()> {
    Ok(std::fs::write(
        "/proc/sys/net/ipv4/tcp_syncookies",
        value.to_string(),
    )?)
}

fn kernel(mode: Mode, cookies: CookieMode) -> Result<Kernel> {
    let mut kernel = Kernel::load(&LoadOptions { mode, ..options() })?;
    kernel
        .dataplane
        .set_cookie_ports(&[(DESTINATION_PORT, cookies)])?;
    kernel
        .dataplane
        .set_cookie_addresses(&[DESTINATION4.into(), DESTINATION6.into()], &[])?;
    Ok(kernel)
}

/// A TCP segment with these numbers and options (a multiple of four bytes) and data.
fn segment(seq: u32, ack: u32, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap_or(15);
    let fixed = tcp_to(SOURCE_PORT, DESTINATION_PORT, flags);
    let fixed = patched(fixed, 4, &seq.to_be_bytes());
    let fixed = patched(fixed, 8, &ack.to_be_bytes());
    [&patched(fixed, 12, &[words << 4]), options, data].concat()
}

fn syn(options: &[u8], data: &[u8]) -> Vec<u8> {
    segment(CLIENT_SEQ, 0, SYN, options, data)
}

/// The only SYN-ACK that answers the fixtures' SYN with this cookie, from the link header on.
fn expected(tags: &[u16], six: bool, cookie: u32) -> Vec<u8> {
    let mss = MTU - if six { 60 } else { 40 } - if tags.len() > 1 { 4 } else { 0 };
    let mut tcp = tcp_to(DESTINATION_PORT, SOURCE_PORT, SYN | ACK);
    tcp = patched(tcp, 4, &cookie.to_be_bytes());
    tcp = patched(tcp, 8, &(CLIENT_SEQ.wrapping_add(1)).to_be_bytes());
    tcp = patched(tcp, 12, &[6 << 4, SYN | ACK]);
    tcp = patched(tcp, 14, &(10 * mss).to_be_bytes());
    tcp.extend_from_slice(&[2, 4]);
    tcp.extend_from_slice(&mss.to_be_bytes());
    let pseudo = [0, 0, 0, 24, 0, 0, 0, 6];
    let (from, to): (&[u8], &[u8]) = if six {
        (&DESTINATION6, &SOURCE6)
    } else {
        (&DESTINATION4, &SOURCE4)
    };
    let sum = checksum(&[from, to, &pseudo, &tcp]);
    let tcp = patched(tcp, 16, &sum.to_be_bytes());
    let packet = if six {
        [&[0x60, 0, 0, 0, 0, 24, 6, 64][..], from, to, &tcp].concat()
    } else {
        let header = [&[0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0][..], from, to].concat();
        let sum = checksum(&[&header]);
        [&patched(header, 10, &sum.to_be_bytes()), &tcp[..]].concat()
    };
    let frame = ethernet(tags, if six { IPV6 } else { IPV4 }, &packet);
    // The fixtures' addresses, changed over.
    patched(frame, 0, &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1])
}

/// Where TCP begins in an answer.
fn tcp_at(tags: &[u16], six: bool) -> usize {
    14 + 4 * tags.len() + if six { 40 } else { 20 }
}

fn cookie_of(outcome: &Outcome, tags: &[u16], six: bool) -> Result<u32> {
    let at = tcp_at(tags, six) + 4;
    let bytes = outcome.output.get(at..at + 4).context("a short answer")?;
    Ok(u32::from_be_bytes(bytes.try_into()?))
}

/// Sends a SYN that must be answered with exactly the right frame; gives its cookie.
fn challenged(
    kernel: &mut Kernel,
    name: &str,
    frame: &[u8],
    tags: &[u16],
    six: bool,
) -> Result<u32> {
    let outcome = kernel.run(frame)?;
    ensure!(
        outcome.action == XDP_TX && outcome.moved.cookie_sent == 1,
        "{name}: {}, {}",
        outcome.action,
        shown(&outcome.moved)
    );
    let cookie = cookie_of(&outcome, tags, six)?;
    let expected = expected(tags, six, cookie);
    ensure!(
        outcome.output == expected,
        "{name}\n got      {}\n expected {}",
        hex(&outcome.output),
        hex(&expected)
    );
    Ok(cookie)
}

/// What the client sends next, with this number acknowledged.
fn returned(tags: &[u16], six: bool, acknowledged: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let tcp = segment(CLIENT_SEQ.wrapping_add(1), acknowledged, flags, &[], data);
    if six {
        ethernet(tags, IPV6, &ipv6(proto::TCP, &tcp))
    } else {
        ethernet(tags, IPV4, &ipv4(&[], 0, proto::TCP, &tcp))
    }
}

/// MSS 1460, SACK, timestamps, window scale: what Linux sends.
const LINUX_OPTIONS: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
];

/// Every shape of SYN, with its tags and family.
fn shapes() -> Vec<(&'static str, Vec<u8>, Vec<u16>, bool)> {
    let mut shapes = Vec::new();
    for (tagged, tags) in [
        ("untagged", vec![]),
        ("one tag", vec![VLAN]),
        ("two tags", vec![QINQ, VLAN]),
    ] {
        for (options, data) in [
            (&[][..], &[][..]),
            (&LINUX_OPTIONS, &[]),
            (&[1; 40], &[]),
            (&LINUX_OPTIONS, b"data in a SYN"),
        ] {
            let tcp = syn(options, data);
            let four = ipv4(&[], 0x4000, proto::TCP, &tcp);
            shapes.push((tagged, ethernet(&tags, IPV4, &four), tags.clone(), false));
            let six = ipv6(proto::TCP, &tcp);
            shapes.push((tagged, ethernet(&tags, IPV6, &six), tags.clone(), true));
        }
    }
    let tcp = syn(&LINUX_OPTIONS, &[]);
    let options = ipv4(&[1; 40], 0, proto::TCP, &tcp);
    shapes.push(("IPv4 options", ethernet(&[], IPV4, &options), vec![], false));
    let chain = [
        extension(proto::DESTINATION_OPTIONS, 2),
        extension(proto::TCP, 0),
        tcp,
    ]
    .concat();
    let extended = ipv6(proto::HOP_BY_HOP, &chain);
    shapes.push((
        "extension headers",
        ethernet(&[], IPV6, &extended),
        vec![],
        true,
    ));
    let ecn = segment(CLIENT_SEQ, 0, SYN | 0xc0, &[], &[]);
    let ecn = ipv4(&[], 0, proto::TCP, &ecn);
    shapes.push(("ECN", ethernet(&[], IPV4, &ecn), vec![], false));
    let padded = [
        ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &syn(&[], &[]))),
        vec![0; 46],
    ];
    shapes.push(("padding", padded.concat(), vec![], false));
    shapes
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn every_shape_of_syn_is_answered_byte_for_byte_and_only_its_own_cookie_comes_back() -> Result<()> {
    isolated(|| {
        let _listener = listen()?;
        syncookies(2)?;
        for (name, frame, tags, six) in shapes() {
            // A new one each time: a source that is verified is not challenged again.
            let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
            let first = challenged(&mut kernel, name, &frame, &tags, six)?;
            // The second comes without the socket's help, and is the same within a minute.
            let cookie = challenged(&mut kernel, name, &frame, &tags, six)?;
            let seldom = challenged(&mut kernel, name, &frame, &tags, six)?;
            ensure!(first == cookie || cookie == seldom, "{name}: three cookies");
            for (what, wrong) in [
                // The numbers next to a cookie are cookies for another MSS (net/ipv4/syncookies.c).
                ("above", cookie.wrapping_add(100)),
                ("below", cookie.wrapping_sub(100)),
                ("nothing", 0),
            ] {
                let outcome = kernel.run(&returned(&tags, six, wrong, ACK, &[]))?;
                ensure!(
                    outcome.action == XDP_DROP && outcome.moved.drop_bad_cookie == 1,
                    "{name}, {what}: {outcome:?}"
                );
            }
            let outcome = kernel.run(&returned(&tags, six, cookie.wrapping_add(1), ACK, &[]))?;
            ensure!(
                outcome.action == XDP_PASS && outcome.moved.cookie_verified == 1,
                "{name}: {outcome:?}"
            );
            let again = kernel.run(&frame)?;
            ensure!(
                again.action == XDP_PASS && again.output == frame && again.moved.pass == 1,
                "{name}: a verified client is challenged: {again:?}"
            );
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_first_data_returns_the_cookie_too_and_other_segments_are_left_alone() -> Result<()> {
    isolated(|| {
        let _listener = listen()?;
        syncookies(2)?;
        let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
        let frame = ethernet(
            &[],
            IPV4,
            &ipv4(&[], 0, proto::TCP, &syn(&LINUX_OPTIONS, &[])),
        );
        let cookie = challenged(&mut kernel, "plain", &frame, &[], false)?;
        for flags in [RST, RST | ACK, SYN | ACK, FIN] {
            let outcome = kernel.run(&returned(&[], false, 1, flags, &[]))?;
            ensure!(outcome.action == XDP_PASS, "{flags:#x}: {outcome:?}");
        }
        for flags in [ACK, ACK | PSH, ACK | FIN] {
            let outcome = kernel.run(&returned(&[], false, 1, flags, b"data"))?;
            ensure!(
                outcome.moved.drop_bad_cookie == 1,
                "{flags:#x}: {outcome:?}"
            );
        }
        let good = returned(&[], false, cookie.wrapping_add(1), ACK | PSH, b"data");
        let outcome = kernel.run(&good)?;
        ensure!(outcome.moved.cookie_verified == 1, "{outcome:?}");
        Ok(())
    })
}

fn passes(kernel: &mut Kernel, what: &str, frame: &[u8]) -> Result<Outcome> {
    let outcome = kernel.run(frame)?;
    ensure!(
        outcome.action == XDP_PASS && outcome.output == frame && outcome.moved.cookie_sent == 0,
        "{what}: {} {}",
        outcome.action,
        shown(&outcome.moved)
    );
    Ok(outcome)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_is_not_for_a_listener_of_this_host_passes() -> Result<()> {
    isolated(|| {
        let listener = listen()?;
        syncookies(2)?;
        let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
        kernel.dataplane.set_cookie_ports(&[
            (DESTINATION_PORT, CookieMode::Always),
            (81, CookieMode::Always),
        ])?;
        let tcp = syn(&[], &[]);
        let plain = ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &tcp));
        challenged(&mut kernel, "the listener", &plain, &[], false)?;
        let elsewhere = patched(plain.clone(), 30, &[203, 0, 113, 9]);
        passes(&mut kernel, "another machine", &elsewhere)?;
        let to = |port| ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &tcp_to(9, port, SYN)));
        passes(&mut kernel, "nobody listens", &to(81))?;
        passes(&mut kernel, "a port without cookies", &to(82))?;
        let foreign = patched(returned(&[], false, 1, ACK, &[]), 30, &[203, 0, 113, 9]);
        passes(&mut kernel, "a segment to another machine", &foreign)?;
        // As soon as the socket is asked again, a second later, nobody answers for it any more.
        drop(listener);
        std::thread::sleep(Duration::from_millis(1100));
        passes(&mut kernel, "the listener went away", &plain)?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn addresses_of_vlans_are_answered_only_in_frames_with_a_tag() -> Result<()> {
    isolated(|| {
        let _listener = listen()?;
        syncookies(2)?;
        let own = [DESTINATION4.into(), DESTINATION6.into()];
        let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
        kernel.dataplane.set_cookie_addresses(&[], &own)?;
        let of_shape = |tagged| {
            shapes()
                .into_iter()
                .filter(move |shape| shape.2.is_empty() != tagged)
        };
        // Also once the listener is known to be flooded, which what has tags says of it.
        for when in ["before", "after"] {
            for (name, frame, ..) in of_shape(false) {
                passes(&mut kernel, &format!("{name}, {when}"), &frame)?;
            }
            for (name, frame, tags, six) in of_shape(true) {
                challenged(&mut kernel, name, &frame, &tags, six)?;
            }
        }
        kernel.dataplane.set_cookie_addresses(&own, &own)?;
        // The next attempt after a while asks again.
        std::thread::sleep(Duration::from_millis(1100));
        for (name, frame, tags, six) in shapes() {
            challenged(&mut kernel, name, &frame, &tags, six)?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_listener_that_does_not_overflow_gets_its_attempts_itself() -> Result<()> {
    isolated(|| {
        let _listener = listen()?;
        syncookies(1)?;
        let plain = ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &syn(&[], &[])));
        for mode in [CookieMode::Auto, CookieMode::Always] {
            let mut kernel = kernel(Mode::Enforce, mode)?;
            for _ in 0..100 {
                let outcome = passes(&mut kernel, "calm", &plain)?;
                ensure!(outcome.moved.pass == 1, "{outcome:?}");
            }
            // Nor is anything checked that returns no cookie.
            passes(&mut kernel, "calm", &returned(&[], false, 1, ACK, &[]))?;
        }
        let mut off = kernel(Mode::Enforce, CookieMode::Off)?;
        syncookies(2)?;
        passes(&mut off, "off", &plain)?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn monitor_mode_counts_what_it_would_answer_and_the_allowlist_is_never_challenged() -> Result<()> {
    isolated(|| {
        let _listener = listen()?;
        let plain = ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &syn(&[], &[])));
        // Also where the system call is not set for it: monitor mode does not set it.
        for value in [1, 2] {
            syncookies(value)?;
            let mut kernel = kernel(Mode::Monitor, CookieMode::Always)?;
            for _ in 0..3 {
                let outcome = passes(&mut kernel, "monitor", &plain)?;
                ensure!(outcome.moved.would_cookie == 1, "{value}: {outcome:?}");
            }
            let outcome = passes(&mut kernel, "monitor", &returned(&[], false, 1, ACK, &[]))?;
            ensure!(outcome.moved.would_drop_bad_cookie == 0, "{outcome:?}");
        }
        let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
        challenged(&mut kernel, "before", &plain, &[], false)?;
        let source: Prefix = "198.51.100.0/24".parse()?;
        kernel.allows.replace(&[source])?;
        let outcome = passes(&mut kernel, "allowlisted", &plain)?;
        ensure!(
            outcome.moved.get(Counter::PassAllowlistOther) == 1,
            "{outcome:?}"
        );
        let bad = passes(
            &mut kernel,
            "allowlisted",
            &returned(&[], false, 1, ACK, &[]),
        )?;
        ensure!(bad.moved.get(Counter::PassAllowlistOther) == 1, "{bad:?}");
        let other = ipv4_from([203, 0, 113, 7], &[], 0, proto::TCP, &syn(&[], &[]));
        let outcome = kernel.run(&ethernet(&[], IPV4, &other))?;
        ensure!(outcome.moved.cookie_sent == 1, "{outcome:?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_fragmented_attempt_does_not_get_past_a_flooded_listener() -> Result<()> {
    isolated(|| {
        let _listener = listen()?;
        syncookies(2)?;
        let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
        let tcp = syn(&[], &[]);
        let plain = ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &tcp));
        challenged(&mut kernel, "whole", &plain, &[], false)?;
        let first4 = ethernet(&[], IPV4, &ipv4(&[], 0x2000, proto::TCP, &tcp));
        let outcome = kernel.run(&first4)?;
        ensure!(outcome.moved.drop_bad_cookie == 1, "{outcome:?}");
        let whole6 = ethernet(&[], IPV6, &ipv6(proto::TCP, &tcp));
        challenged(&mut kernel, "whole", &whole6, &[], true)?;
        let fragment = [fragment_header(proto::TCP, 0, true), tcp].concat();
        let first6 = ethernet(&[], IPV6, &ipv6(proto::FRAGMENT, &fragment));
        let outcome = kernel.run(&first6)?;
        ensure!(outcome.moved.drop_bad_cookie == 1, "{outcome:?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_ports_of_a_connection_that_is_known_or_just_over_are_left_to_the_kernel() -> Result<()> {
    isolated(|| {
        let listener = listen()?;
        syncookies(2)?;
        // The kernel's own connections to the destination come from the fixtures' source.
        let [source, destination] = [SOURCE4, DESTINATION4].map(|a| Ipv4Addr::from(a).to_string());
        let own = format!("{source}/32");
        tool("ip", &["addr", "add", &own, "dev", "lo"])?;
        let route = "route replace table local local";
        let mut words: Vec<&str> = route.split(' ').collect();
        words.extend([&destination, "dev", "lo", "src", &source]);
        tool("ip", &words)?;
        let mut client = TcpStream::connect((destination.as_str(), DESTINATION_PORT))?;
        let (server, peer) = listener.accept()?;
        ensure!(peer.ip().to_canonical().to_string() == source, "{peer}");
        let from = |port: u16| {
            let tcp = patched(syn(&LINUX_OPTIONS, &[]), 0, &port.to_be_bytes());
            ethernet(&[], IPV4, &ipv4(&[], 0, proto::TCP, &tcp))
        };
        let other = peer.port() ^ 1;
        let mut kernel = kernel(Mode::Enforce, CookieMode::Always)?;
        // Asks the socket, and may not be taken for a listener that is gone.
        passes(&mut kernel, "established, asked first", &from(peer.port()))?;
        for _ in 0..2 {
            let outcome = kernel.run(&from(other))?;
            ensure!(outcome.moved.cookie_sent == 1, "{outcome:?}");
            passes(&mut kernel, "established", &from(peer.port()))?;
        }
        // Who closes first keeps the ports for a minute.
        drop(server);
        ensure!(client.read(&mut [0])? == 0, "the server closed");
        drop(client);
        std::thread::sleep(Duration::from_millis(1100));
        passes(&mut kernel, "over, asked first", &from(peer.port()))?;
        let outcome = kernel.run(&from(other))?;
        ensure!(outcome.moved.cookie_sent == 1, "{outcome:?}");
        passes(&mut kernel, "over", &from(peer.port()))?;
        Ok(())
    })
}
