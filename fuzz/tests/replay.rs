//! Every seed, and every input that once failed, through its target.
#![expect(
    clippy::disallowed_methods,
    reason = "a test that reads its own small files"
)]

use std::path::{Path, PathBuf};

use secmesh_fuzz::{LIST, MAX_INPUT, TARGETS, Target};

#[test]
fn the_list_and_the_table_name_the_same_targets() {
    let listed: Vec<&str> = LIST
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let there: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(listed, there);
}

#[test]
fn every_seed_passes_and_is_short_enough_for_the_engine() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for seed in seeds {
            assert!(seed.len() <= MAX_INPUT, "{}: {}", target.name, seed.len());
            target.check(&seed);
        }
    }
}

#[test]
fn no_input_at_all_passes_everywhere() {
    for target in TARGETS {
        for input in [[].as_slice(), &[0], &[1], &[2], &[0xff; 3]] {
            target.check(input);
        }
    }
}

fn files_of(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

#[test]
fn what_once_failed_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for folder in files_of(&root) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let target = Target::named(&name);
        assert!(target.is_some(), "regressions/{name} is of no target");
        for file in files_of(&folder) {
            let input = std::fs::read(&file).unwrap();
            target.unwrap().check(&input);
        }
    }
}
