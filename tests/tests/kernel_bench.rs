//! The benchmark of the kernel program works: every row is there, and what it calls drops were drops.
//!
//! What things cost is not tested: this machine may be doing anything else just now.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, ensure};
use xtask::{bench::Row, sh};

/// Runs the benchmark with hardly any packets. It fails by itself where a program gives another answer than
/// the row says, or where a counter of drops disagrees with the driver's or with what was sent.
fn rows(arguments: &[&str]) -> Result<Vec<Row>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dataplane-bench"));
    // Its last lines are what went wrong, not where it was noticed.
    let command = command.env("RUST_BACKTRACE", "0");
    let output = sh::output(command.arg("--smoke").args(arguments))?;
    serde_json::from_slice(&output.stdout).context("the rows")
}

#[test]
#[ignore = "needs root; run by `cargo xtask test`"]
fn every_row_is_measured_and_says_whether_its_bar_is_met() -> Result<()> {
    let plot = std::env::temp_dir().join(format!("blocklist-{}.svg", std::process::id()));
    let rows = rows(&["--plot", &plot.to_string_lossy()]);
    let picture = std::fs::read_to_string(&plot);
    // Gone before anything can fail; it may also never have come.
    let _absent = std::fs::remove_file(&plot);
    let rows = rows?;
    let groups: BTreeSet<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    let expected = ["blocklist", "drop", "flood", "load", "pass", "syn"];
    ensure!(groups == BTreeSet::from(expected), "{groups:?}");
    for row in &rows {
        let told = || format!("{row:?}");
        match row.value {
            Some(value) => ensure!(value.is_finite(), told()),
            None => ensure!(row.note.is_some(), told()),
        }
        ensure!(!row.unit.is_empty(), told());
        ensure!(row.peer.is_some() == row.peer_value.is_some(), told());
        ensure!(row.bar.is_some() == row.met.is_some(), told());
        if let (Some(bar), Some(ratio)) = (row.bar, row.ratio) {
            ensure!(row.met == Some(bar.is_met_by(ratio)), told());
        }
    }
    for peer in ["xdp-filter", "nftables set", "ipset", "bare XDP drop"] {
        ensure!(
            rows.iter().any(|row| row.peer.as_deref() == Some(peer)),
            "nothing beside {peer}"
        );
    }
    let picture = picture?;
    ensure!(
        picture.starts_with("<svg") && picture.contains("nftables, hit"),
        "{picture}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root; run by `cargo xtask test`"]
fn one_row_can_be_had_alone() -> Result<()> {
    let rows = rows(&["--row", "drop"])?;
    ensure!(
        rows.len() == 4 && rows.iter().all(|row| row.group == "drop"),
        "{rows:?}"
    );
    let barred = rows.iter().filter(|row| row.bar.is_some()).count();
    ensure!(barred == 2, "{rows:?}");
    Ok(())
}
