use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::parse::{DefaultRoute, RouteLine};
use super::*;

#[derive(Default)]
struct Recorded {
    files: BTreeMap<Source, Vec<u8>>,
    own: Vec<IpAddr>,
    env: BTreeMap<&'static str, &'static str>,
    sessions: Option<Vec<String>>,
}

impl SystemView for Recorded {
    fn open(&self, source: Source) -> io::Result<Box<dyn BufRead + '_>> {
        self.files
            .get(&source)
            .map_or(Err(io::ErrorKind::NotFound.into()), |bytes| {
                Ok(Box::new(bytes.as_slice()) as _)
            })
    }

    fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(self.own.clone())
    }

    fn env(&self, name: &str) -> Option<String> {
        self.env.get(name).map(|&value| value.to_owned())
    }

    fn login_sessions(&self) -> io::Result<Option<Vec<String>>> {
        Ok(self.sessions.clone())
    }
}

/// The kernel prints addresses as numbers in its own byte order.
fn hex_v4(text: &str) -> String {
    let octets = text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    format!("{:08X}", u32::from_ne_bytes(octets))
}

fn hex_v6(text: &str) -> String {
    let octets = text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut hex = String::new();
    for word in octets.chunks(4) {
        write!(hex, "{:08X}", u32::from_ne_bytes(word.try_into().unwrap())).unwrap();
    }
    hex
}

fn listed(system: &Recorded, reason: AllowReason) -> Vec<String> {
    discover(system)
        .allow
        .iter()
        .filter(|entry| entry.reason == reason)
        .map(|entry| entry.prefix.to_string())
        .collect()
}

fn routes_v4() -> String {
    format!(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
         eth0\t00000000\t{}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
         eth1\t00000000\t{}\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
         wg0\t00000000\t00000000\t0001\t0\t0\t300\t00000000\t0\t0\t0\n\
         down0\t00000000\t{}\t0002\t0\t0\t300\t00000000\t0\t0\t0\n\
         *\t00000000\t00000000\t0201\t0\t0\t400\t00000000\t0\t0\t0\n\
         eth0\t{}\t00000000\t0001\t0\t0\t100\t{}\t0\t0\t0\n",
        hex_v4("192.0.2.1"),
        hex_v4("198.51.100.1"),
        hex_v4("203.0.113.9"),
        hex_v4("192.0.2.0"),
        hex_v4("255.255.255.0"),
    )
}

const ROUTES_V6: &str = "\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db8000000000000000000000001 00000800 00000001 00000000 00000003     eth2
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

#[test]
fn the_fixed_entries_are_always_there() {
    let found = discover(&Recorded::default());
    let listed: Vec<String> = found
        .allow
        .iter()
        .map(|entry| format!("{}: {}", entry.prefix, entry.reason))
        .collect();
    assert_eq!(
        listed,
        [
            "0.0.0.0: hosts without an address yet",
            "127.0.0.0/8: loopback",
            "224.0.0.0/24: multicast on the local link",
            ":::  hosts without an address yet"
                .replace("  ", " ")
                .as_str(),
            "::1: loopback",
            "fe80::/10: IPv6 neighbour discovery (link-local)",
            "ff02::/16: multicast on the local link",
        ]
    );
    assert_eq!(found.warnings, Vec::<String>::new());
}

#[test]
fn all_default_gateways_of_both_families_and_their_interfaces() {
    let mut system = Recorded::default();
    system
        .files
        .insert(Source::RoutesV4, routes_v4().into_bytes());
    system.files.insert(Source::RoutesV6, ROUTES_V6.into());
    assert_eq!(
        listed(&system, AllowReason::DefaultGateway),
        ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fe80::1"]
    );
    assert_eq!(
        default_route_interfaces(&system),
        ["eth0", "eth1", "eth2", "wg0"]
    );
    assert_eq!(discover(&system).warnings, Vec::<String>::new());
}

#[test]
fn a_route_line_is_read_field_by_field() {
    let line = format!(
        "eth0 00000000 {} 0003 0 0 0 00000000 0 0 0",
        hex_v4("192.0.2.1")
    );
    let expected = DefaultRoute {
        interface: "eth0".to_owned(),
        gateway: Some("192.0.2.1".parse().unwrap()),
    };
    assert_eq!(
        parse::route_v4_line(&line),
        Some(RouteLine::Default(expected))
    );
    for broken in [
        "",
        "eth0",
        "eth0 00000000 +0000001 0003 0 0 0 00000000",
        "eth0 0 0 3 0 0 0 0",
        "eth0 00000000 0100000A 0003 0 0 0",
    ] {
        assert_eq!(parse::route_v4_line(broken), None, "{broken}");
    }
}

#[test]
fn resolvers_of_both_files_with_scopes_and_without_the_stub() {
    let mut system = Recorded::default();
    system.files.insert(
        Source::ResolvConf,
        b"# nameserver 192.0.2.99\nsearch example.org\nnameserver 127.0.0.53\nnameserver\t2001:db8::53\n\
          nameserver fe80::53%eth0\n nameserver 192.0.2.98\nnameserver 0.0.0.0\nnameservers 192.0.2.97\nnameserver nonsense\n"
            .into(),
    );
    system.files.insert(
        Source::ResolvedUpstream,
        b"nameserver 192.0.2.53 # office\nnameserver 2001:db8::53\n".into(),
    );
    assert_eq!(
        listed(&system, AllowReason::Resolver),
        ["192.0.2.53", "2001:db8::53"]
    );
    assert_eq!(
        discover(&system).warnings,
        ["/etc/resolv.conf: 1 lines made no sense and were skipped"]
    );
}

#[test]
fn own_addresses_are_listed_once_and_in_canonical_form() {
    let own = [
        "192.0.2.10",
        "::ffff:192.0.2.10",
        "2001:db8::10",
        "127.0.0.1",
        "fe80::10",
    ];
    let system = Recorded {
        own: own.iter().map(|text| text.parse().unwrap()).collect(),
        ..Recorded::default()
    };
    assert_eq!(
        listed(&system, AllowReason::OwnAddress),
        ["192.0.2.10", "2001:db8::10"]
    );
}

fn with_tcp() -> Recorded {
    let row = |local: String, peer: String, state: &str| {
        format!(
            "   0: {local} {peer} {state} 00000000:00000000 00:00000000 00000000     0        0 1\n"
        )
    };
    let mut tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n".to_owned();
    let v4 = |address: &str, port: &str| format!("{}:{port}", hex_v4(address));
    let v6 = |address: &str, port: &str| format!("{}:{port}", hex_v6(address));
    tcp += &row(v4("192.0.2.10", "0016"), v4("203.0.113.1", "C000"), "01");
    tcp += &row(v4("192.0.2.10", "0016"), v4("203.0.113.2", "C000"), "03");
    tcp += &row(v4("192.0.2.10", "01BB"), v4("203.0.113.3", "C000"), "01");
    tcp += &row(v4("192.0.2.10", "08AE"), v4("203.0.113.4", "C000"), "01");
    tcp += &row(v4("192.0.2.10", "C001"), v4("203.0.113.5", "0016"), "01");
    let mut tcp6 = row(v6("2001:db8::10", "0016"), v6("2001:db8::99", "C000"), "01");
    tcp6 += &row(
        v6("::ffff:192.0.2.10", "0016"),
        v6("::ffff:203.0.113.6", "C000"),
        "01",
    );
    let mut system = Recorded::default();
    system.files.insert(Source::TcpV4, tcp.into_bytes());
    system.files.insert(Source::TcpV6, tcp6.into_bytes());
    system
}

#[test]
fn without_a_login_manager_every_peer_of_sshd_is_listed_as_such() {
    let mut system = with_tcp();
    assert_eq!(
        listed(&system, AllowReason::SshConnection),
        ["203.0.113.1", "203.0.113.6", "2001:db8::99"]
    );
    assert_eq!(listed(&system, AllowReason::SshPeer), Vec::<String>::new());
    // The operator's own session is certain, and tells of a second port.
    system
        .env
        .insert("SSH_CONNECTION", "198.51.100.7 50000 192.0.2.10 2222");
    assert_eq!(listed(&system, AllowReason::SshPeer), ["198.51.100.7"]);
    assert_eq!(
        listed(&system, AllowReason::SshConnection),
        ["203.0.113.1", "203.0.113.4", "203.0.113.6", "2001:db8::99"]
    );
    assert_eq!(discover(&system).warnings, Vec::<String>::new());
}

#[test]
fn an_open_connection_without_a_login_makes_nobody_unblockable() {
    let mut system = with_tcp();
    system.sessions = Some(vec![
        "UID=0\nREMOTE=1\nREMOTE_HOST=203.0.113.1\nSTATE=active\n".to_owned(),
        "UID=0\nREMOTE=1\nREMOTE_HOST=203.0.113.6\nSTATE=closing\n".to_owned(),
        "UID=0\nREMOTE=0\nSTATE=active\n".to_owned(),
        // Has a session but no connection any more.
        "UID=0\nREMOTE=1\nREMOTE_HOST=203.0.113.77\nSTATE=online\n".to_owned(),
    ]);
    assert_eq!(listed(&system, AllowReason::SshPeer), ["203.0.113.1"]);
    assert_eq!(
        listed(&system, AllowReason::SshConnection),
        Vec::<String>::new()
    );
    // A session that names its host by name could be any of the peers.
    system.sessions = Some(vec![
        "REMOTE_HOST=desk.example.org\nSTATE=active\n".to_owned(),
    ]);
    assert_eq!(listed(&system, AllowReason::SshConnection).len(), 3);
}

#[test]
fn the_environment_of_an_ssh_session() {
    for (name, value, expected) in [
        (
            "SSH_CONNECTION",
            "198.51.100.7 50000 192.0.2.10 22",
            vec!["198.51.100.7"],
        ),
        ("SSH_CLIENT", "198.51.100.8 50000 22", vec!["198.51.100.8"]),
        (
            "SSH_CLIENT",
            "2001:db8::8%eth0 50000 22",
            vec!["2001:db8::8"],
        ),
        ("SSH_CONNECTION", "UNKNOWN 65535 UNKNOWN 65535", vec![]),
        ("SSH_CONNECTION", "", vec![]),
        ("SSH_CLIENT", "198.51.100.8 50000 99999", vec![]),
    ] {
        let system = Recorded {
            env: BTreeMap::from([(name, value)]),
            ..Recorded::default()
        };
        assert_eq!(listed(&system, AllowReason::SshPeer), expected, "{value}");
    }
}

#[test]
fn the_list_is_bounded_and_says_so() {
    let own = (0..2000_u32)
        .map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()))
        .collect();
    let system = Recorded {
        own,
        ..Recorded::default()
    };
    assert_eq!(
        listed(&system, AllowReason::OwnAddress).len(),
        MAX_PER_REASON
    );
    assert_eq!(
        discover(&system).warnings,
        [
            "976 addresses (this server's own address) beyond the first 1024 are not on the built-in allowlist"
        ]
    );
}

#[test]
fn a_long_line_is_skipped_whole() {
    let mut file = b"nameserver 192.0.2.1\nnameserver ".to_vec();
    file.extend(vec![b' '; 10_000]);
    file.extend(b"192.0.2.2\nnameserver 192.0.2.3");
    let mut system = Recorded::default();
    system.files.insert(Source::ResolvConf, file);
    assert_eq!(
        listed(&system, AllowReason::Resolver),
        ["192.0.2.1", "192.0.2.3"]
    );
}

#[test]
fn reasons_are_snake_case_words() {
    let json = serde_json::to_string(&AllowReason::DefaultGateway).unwrap();
    assert_eq!(json, "\"default_gateway\"");
}

#[test]
fn the_running_system_can_be_read() {
    let found = discover(&LiveSystem);
    assert!(found.allow.len() >= 7);
    assert!(found.allow.is_sorted());
    let _ = default_route_interfaces(&LiveSystem);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_files_neither_panic_nor_grow_the_list(
        files in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 6),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let sources = [Source::RoutesV4, Source::RoutesV6, Source::TcpV4, Source::TcpV6, Source::ResolvConf, Source::ResolvedUpstream];
        let mut system = Recorded { files: sources.into_iter().zip(files).collect(), ..Recorded::default() };
        prop_assert!(discover(&system).allow.len() < 30);
        // Real files with some bytes changed.
        system = with_tcp();
        system.files.insert(Source::RoutesV4, routes_v4().into_bytes());
        system.files.insert(Source::RoutesV6, ROUTES_V6.into());
        for file in system.files.values_mut() {
            for (at, value) in &noise {
                let at = at.index(file.len());
                file[at] = *value;
            }
        }
        prop_assert!(discover(&system).allow.len() < 40);
        let _ = default_route_interfaces(&system);
    }

    #[test]
    fn any_line_is_survived(line in "\\PC{0,80}") {
        let _ = (parse::route_v4_line(&line), parse::route_v6_line(&line), parse::tcp_line(&line));
        let _ = (parse::resolver_line(&line), parse::ssh_connection(&line), parse::ssh_client(&line));
    }
}
