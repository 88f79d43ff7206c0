//! `secmesh.toml`.

use secmesh::config::{Config, ConfigError};

const EXAMPLE: &str = include_str!("../../../docs/secmesh.example.toml");
const FILE: &str = "fuzz.toml";

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = EXAMPLE
        .split("\n\n")
        .map(|section| section.as_bytes().to_vec())
        .collect();
    let bare: Vec<&str> = EXAMPLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    seeds.push(bare.join("\n").into_bytes());
    for text in [
        "[allow]\naddresses = [\"192.0.2.0/24\", \"2001:db8::/32\", \"::ffff:10.0.0.0/104\"]\nbuiltin = false\n",
        "[dataplane]\ninterfaces = [\"eth0\", \"wg0\"]\nmax_blocks = 1_024\nmode = 'enforce'\n",
        "mesh = { listen = \"0.0.0.0:1\", advertise = \"[2001:db8::1]:4747\" }\n",
        "[respond]\nown_block = \"1m 30s\"\n[node]\nsocket = \"/a/\\u00e9\"\n",
        "[nod]\nstate = 1\n",
        "[detect.syn_flood]\nwindow = \"500ms\"\n",
    ] {
        seeds.push(text.into());
    }
    seeds
}

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Config::parse(text, FILE) {
        Ok(config) => {
            let written = toml::to_string(&config);
            assert!(written.is_ok(), "{config:?} has no text: {written:?}");
            let written = written.unwrap_or_default();
            match Config::parse(&written, FILE) {
                Ok(again) => assert_eq!(again, config, "{written}"),
                Err(error) => assert!(written.is_empty(), "refused again: {error}\n{written}"),
            }
        }
        Err(ConfigError::Invalid(problems)) => {
            assert!(!problems.is_empty(), "refused for nothing");
            let lines = text.lines().count().max(1);
            for problem in &problems {
                assert!(
                    (1..=lines + 1).contains(&problem.line) && problem.column >= 1,
                    "{problem:?} of {lines} lines"
                );
                assert!(!problem.what.is_empty() && !problem.remedy.is_empty());
                assert!(problem.to_string().starts_with(FILE), "{problem}");
            }
        }
        Err(error) => assert!(input.len() as u64 > secmesh::config::MAX_FILE, "{error}"),
    }
}
