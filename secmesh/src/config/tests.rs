use std::io::Write as _;

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/secmesh.example.toml"
));

fn error(text: &str) -> String {
    Config::parse(text, "secmesh.toml").unwrap_err().to_string()
}

#[test]
fn an_empty_file_and_the_example_are_the_defaults() {
    assert_eq!(Config::parse("", "x").unwrap(), Config::default());
    assert_eq!(
        Config::parse(EXAMPLE, "example").unwrap(),
        Config::default()
    );
}

#[test]
fn the_example_has_every_key_with_what_it_takes() {
    let described = Config::default().described();
    let mut section = String::new();
    let mut allowed = "";
    let mut seen = Vec::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some(text) = line.strip_prefix("# Allowed: ") {
            allowed = text;
        } else if let Some((key, _)) = line.split_once(" = ") {
            let path = format!("{section}.{}", key.trim_start_matches("# "));
            assert_eq!(described.expects(&path), Some(allowed), "{path}");
            seen.push(path);
            allowed = "";
        }
    }
    let fields: Vec<String> = described
        .fields
        .iter()
        .filter(|(_, expects)| !expects.starts_with("a section"))
        .map(|(path, _)| path.clone())
        .collect();
    seen.sort();
    let mut expected = fields.clone();
    expected.sort();
    assert_eq!(seen, expected);
    // And every key that serde knows is described.
    for path in fields {
        let mut value = &toml::Value::Table(Config::known_keys());
        for key in path.split('.') {
            value = &value[key];
        }
    }
    assert_eq!(leaves(&Config::known_keys()), expected.len());
}

fn leaves(table: &toml::Table) -> usize {
    table
        .values()
        .map(|value| value.as_table().map_or(1, leaves))
        .sum()
}

#[test]
fn a_carrier_without_what_it_needs_is_refused_with_its_line() {
    let text = "[mesh]\ncarrier = \"nats\"\n";
    let told = error(text);
    assert!(told.contains("secmesh.toml:2"), "{told}");
    assert!(told.contains("needs servers"), "{told}");
    for (line, what) in [
        (
            "servers = [\"192.0.2.1:4222\"]",
            "is no address of a server",
        ),
        ("servers = [\"nats://u:p@192.0.2.1:4222\"]", "is no address"),
        (
            "servers = [\"tls://nats.example:4222\"]",
            "which certificates",
        ),
        ("user = \"n1\"", "stands without password_file"),
        ("key_file = \"/k\"", "stands without cert_file"),
        ("ca_file = \"ca.pem\"", "is not an absolute path"),
        ("replicas = 6", "is out of range"),
    ] {
        let told = error(&format!("[mesh.nats]\n{line}\n"));
        assert!(
            told.contains("secmesh.toml:2") && told.contains(what),
            "{told}"
        );
    }
    let good = Config::parse(
        "[mesh]\ncarrier = \"nats\"\n[mesh.nats]\nservers = [\"nats://192.0.2.1:4222\"]\n",
        "x",
    );
    assert_ne!(
        good.unwrap().mesh.carrier(),
        MeshConfig::default().carrier()
    );
}

#[test]
fn a_partial_detector_keeps_its_own_other_defaults() {
    let config = Config::parse(
        "[detect.udp_flood]\nthreshold = 500\nwindow = \"500ms\"\n",
        "x",
    )
    .unwrap();
    let mut expected = Config::default();
    expected.detect.udp_flood.threshold = 500;
    expected.detect.udp_flood.window = Duration::from_millis(500);
    assert_eq!(config, expected);
    assert_eq!(config.detect.udp_flood.watch_threshold, 100);
}

#[test]
fn every_value_can_be_set() {
    let text = r#"
node = { state_dir = "/s", socket = "/k" }
[dataplane]
interfaces = ["eth0", "bond0.12"]
mode = "enforce"
attach = "driver"
kernel_log = "debug"
detach_on_exit = true
[mesh]
listen = "192.0.2.1:1"
advertise = "[2001:db8::1]:4747"
[allow]
addresses = ["10.0.0.0/8", "2001:db8::7"]
builtin = false
[detect.port_scan]
enabled = false
hosts = 5
[respond]
own_block = "90s"
"#;
    let config = Config::parse(text, "x").unwrap();
    assert_eq!(config.node.socket, PathBuf::from("/k"));
    assert_eq!(
        (config.dataplane.mode, config.dataplane.attach),
        (Mode::Enforce, AttachMode::Driver)
    );
    assert_eq!(config.dataplane.kernel_log, KernelLog::Debug);
    assert_eq!(config.dataplane.interfaces, ["eth0", "bond0.12"]);
    assert_eq!(
        config.mesh.advertise.unwrap().to_string(),
        "[2001:db8::1]:4747"
    );
    assert_eq!(config.allow.addresses[0].to_string(), "10.0.0.0/8");
    assert!(
        !config.detect.port_scan.enabled
            && !config.allow.builtin
            && config.dataplane.detach_on_exit
    );
    assert_eq!(config.respond.own_block, Duration::from_secs(90));
    // And it survives being written and read again.
    assert_eq!(
        Config::parse(&toml::to_string(&config).unwrap(), "x").unwrap(),
        config
    );
}

#[test]
fn words_are_what_serde_reads() {
    for word in KernelLog::NAMES {
        let config = Config::parse(&format!("dataplane.kernel_log = \"{word}\""), "x").unwrap();
        assert_eq!(config.dataplane.kernel_log.to_string(), *word);
    }
    assert_eq!(
        (
            Mode::NAMES.len(),
            AttachMode::NAMES.len(),
            KernelLog::NAMES.len()
        ),
        (2, 3, 6)
    );
}

#[test]
fn an_unknown_key_gets_the_nearest_known_one() {
    assert_eq!(
        error("[dataplane]\nmode = \"monitor\"\nmax_block = 2000\n"),
        "\
secmesh.toml:3:1: dataplane.max_block: there is no such key
  3 | max_block = 2000
    | ^^^^^^^^^
  remedy: did you mean `max_blocks`?"
    );
    assert_eq!(
        error("[node]\nmode = \"enforce\"\n[detekt]\nx = 1\n[respond]\nquite_else = 1"),
        "\
secmesh.toml:2:1: node.mode: there is no such key
  2 | mode = \"enforce\"
    | ^^^^
  remedy: `mode` belongs in [cookies] or [dataplane]
secmesh.toml:3:2: detekt: there is no such key
  3 | [detekt]
    |  ^^^^^^
  remedy: did you mean `detect`?
secmesh.toml:6:1: respond.quite_else: there is no such key
  6 | quite_else = 1
    | ^^^^^^^^^^
  remedy: [respond] takes own_block, reconcile"
    );
}

#[test]
fn all_values_out_of_range_are_reported_at_once() {
    let text = "\
[dataplane]
max_blocks = 5
event_budget = -1
interfaces = [\"eth0\", \"a/b\", \"eth0\"]
pin_dir = \"bpf\"
[allow]
addresses = [\"10.0.0.0/8\",
  \"::/0\"]
[detect.syn_flood]
window = \"2h\"
threshold = 10
[mesh]
advertise = \"0.0.0.0:4747\"
[respond]
own_block = \"16m\"
";
    assert_eq!(
        error(text),
        "\
secmesh.toml:2:14: dataplane.max_blocks: `5` is out of range
  2 | max_blocks = 5
    |              ^
  remedy: use a whole number from 1024 to 4194304
secmesh.toml:3:16: dataplane.event_budget: `-1` is out of range
  3 | event_budget = -1
    |                ^^
  remedy: use a whole number from 100 to 1000000
secmesh.toml:4:23: dataplane.interfaces[1]: `\"a/b\"` cannot be the name of an interface
  4 | interfaces = [\"eth0\", \"a/b\", \"eth0\"]
    |                       ^^^^^
  remedy: `ip link` lists the names there are
secmesh.toml:4:30: dataplane.interfaces[2]: `\"eth0\"` is there twice
  4 | interfaces = [\"eth0\", \"a/b\", \"eth0\"]
    |                              ^^^^^^
  remedy: remove one of them
secmesh.toml:5:11: dataplane.pin_dir: `\"bpf\"` is not an absolute path
  5 | pin_dir = \"bpf\"
    |           ^^^^^
  remedy: use an absolute path, without `..`
secmesh.toml:8:3: allow.addresses[1]: `\"::/0\"` would allow every address of its family, and so end all protection
  8 |   \"::/0\"]
    |   ^^^^^^
  remedy: name the networks that you trust; to drop nothing, set mode = \"monitor\" in [dataplane]
secmesh.toml:10:10: detect.syn_flood.window: `\"2h\"` is out of range
  10 | window = \"2h\"
     |          ^^^^
  remedy: use a duration from \"100ms\" to \"1m\"
secmesh.toml:11:13: detect.syn_flood.threshold: `10` does not fit: watch_threshold (16) is above threshold (10)
  11 | threshold = 10
     |             ^^
  remedy: set watch_threshold to threshold or less
secmesh.toml:13:13: mesh.advertise: `\"0.0.0.0:4747\"` is not an address that others can connect to
  13 | advertise = \"0.0.0.0:4747\"
     |             ^^^^^^^^^^^^^^
  remedy: use an address and port, like \"192.0.2.1:4747\" or \"[2001:db8::1]:4747\"
secmesh.toml:15:13: respond.own_block: `\"16m\"` is out of range
  15 | own_block = \"16m\"
     |             ^^^^^
  remedy: use a duration from \"1s\" to \"15m\""
    );
}

#[test]
fn the_ends_of_a_range_are_inside() {
    for (text, valid) in [
        ("dataplane.max_blocks = 1024", true),
        ("dataplane.max_blocks = 1023", false),
        ("dataplane.max_blocks = 4194304", true),
        ("dataplane.max_blocks = 4194305", false),
        ("dataplane.max_blocks = 9223372036854775807", false),
        ("respond.own_block = \"15m\"", true),
        ("respond.own_block = \"15m 1ns\"", false),
        ("respond.own_block = \"999ms\"", false),
        ("detect.port_scan.hosts = 2", false),
        (
            "detect.port_scan = { hosts = 2, watch_threshold = 2 }",
            true,
        ),
        ("mesh.listen = \"[::]:0\"", false),
        ("node.socket = \"/run/../tmp/s\"", false),
    ] {
        assert_eq!(Config::parse(text, "x").is_ok(), valid, "{text}");
    }
    let long = |len: usize| format!("node.socket = \"/{}\"", "s".repeat(len - 1));
    assert!(Config::parse(&long(107), "x").is_ok());
    assert!(error(&long(108)).contains("is 108 bytes long"));
}

#[test]
fn a_wrong_type_is_told_by_what_the_field_takes() {
    for (text, expected) in [
        (
            "[dataplane]\nmode = \"enforced\"\n",
            "\
secmesh.toml:2:8: dataplane.mode: unknown variant `enforced`
  2 | mode = \"enforced\"
    |        ^^^^^^^^^^
  remedy: use one of \"monitor\", \"enforce\"",
        ),
        (
            "[detect.syn_flood]\ncooldown = 10\n",
            "\
secmesh.toml:2:12: detect.syn_flood.cooldown: invalid type: integer `10`
  2 | cooldown = 10
    |            ^^
  remedy: use a duration from \"1s\" to \"1h\"",
        ),
        (
            "[detect.port_scan]\nwindow = \"10 parsec\"\n",
            "\
secmesh.toml:2:10: detect.port_scan.window: `10 parsec` is not a duration
  2 | window = \"10 parsec\"
    |          ^^^^^^^^^^^
  remedy: use a duration from \"1s\" to \"10m\"",
        ),
        (
            "[allow]\naddresses = [\"10.0.0.0/8\", \"host\"]\n",
            "\
secmesh.toml:2:28: allow.addresses[1]: `host` is not an IP address; write one like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32
  2 | addresses = [\"10.0.0.0/8\", \"host\"]
    |                            ^^^^^^
  remedy: use a list of at most 4096 addresses or networks, like [\"192.0.2.7\", \"2001:db8::/32\"]",
        ),
        (
            "detect = 3\n",
            "\
secmesh.toml:1:10: detect: invalid type: integer `3`
  1 | detect = 3
    |          ^
  remedy: use a section, which starts with the line [detect]",
        ),
        (
            "[mesh]\nlisten = \"4747\"\n",
            "\
secmesh.toml:2:10: mesh.listen: invalid socket address syntax
  2 | listen = \"4747\"
    |          ^^^^^^
  remedy: use an address and port, like \"192.0.2.1:4747\" or \"[2001:db8::1]:4747\"",
        ),
    ] {
        assert_eq!(error(text), expected);
    }
}

#[test]
fn broken_syntax_is_told_with_its_place() {
    assert_eq!(
        error("[dataplane]\nmode = enforce\n"),
        "\
secmesh.toml:2:8: string values must be quoted, expected literal string
  2 | mode = enforce
    |        ^^^^^^^
  remedy: put words, addresses and durations into quotes, like mode = \"monitor\""
    );
    assert_eq!(
        error("[node]\n[mesh]\n[node]\n"),
        "\
secmesh.toml:3:2: duplicate key
  3 | [node]
    |  ^^^^
  remedy: keep one of them"
    );
}

#[test]
fn files_that_are_missing_too_large_or_not_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secmesh.toml");
    let name = path.display();
    assert_eq!(Config::load(&path, false).unwrap(), Config::default());
    assert_eq!(
        Config::load(&path, true).unwrap_err().to_string(),
        format!(
            "{name}: cannot read the configuration: No such file or directory (os error 2); check the path and its \
             permissions, or leave out --config to use the defaults"
        )
    );
    let write = |bytes: &[u8]| File::create(&path).unwrap().write_all(bytes).unwrap();
    write(b"[node]\nstate_dir = \"/\xff\"\n");
    assert_eq!(
        Config::load(&path, true).unwrap_err().to_string(),
        format!(
            "{name}:2:15: the file is not UTF-8 text here\n  2 | state_dir = \"/\u{fffd}\"\n    |               ^\n  \
             remedy: save the file as UTF-8"
        )
    );
    let max = usize::try_from(MAX_FILE).unwrap();
    write(&vec![b'\n'; max]);
    assert_eq!(Config::load(&path, true).unwrap(), Config::default());
    write(&vec![b'\n'; max + 1]);
    assert_eq!(
        Config::load(&path, true).unwrap_err().to_string(),
        format!(
            "{name}: the configuration is larger than 1048576 bytes; check that this is the right file"
        )
    );
    assert!(matches!(
        Config::load(dir.path(), false),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn long_lines_and_deep_nesting_are_survived() {
    let text = error(&format!("{}x = 1", " ".repeat(5000)));
    assert!(text.starts_with("secmesh.toml:1:5001: x: there is no such key\n"));
    assert!(text.len() < 500, "{text}");
    for open in ["[", "{a=", "a."] {
        let _ = error(&format!("a = {}", open.repeat(200_000)));
        let _ = error(&open.repeat(200_000));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_neither_panic_nor_lose_their_place(
        changes in prop::collection::vec((any::<prop::sample::Index>(), "\\PC|[\\[\\]{}\"=\n.,#]"), 1..5),
    ) {
        let mut text: Vec<String> = EXAMPLE.chars().map(String::from).collect();
        for (at, change) in changes {
            let at = at.index(text.len());
            text[at] = change;
        }
        let text = text.concat();
        if let Err(ConfigError::Invalid(problems)) = Config::parse(&text, "x") {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(problem.line <= text.lines().count() + 1);
                prop_assert!(!problem.remedy.is_empty());
            }
        }
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        let _ = Config::parse(&text, "x").map_err(|error| error.to_string());
    }
}
