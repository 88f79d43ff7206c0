//! The benchmark of the mesh works: every row is there and says whether its bar is met.
//!
//! What things cost is not tested: this machine may be doing anything else just now.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use xtask::{bench::Row, sh};

#[test]
fn the_ledgers_rows_are_measured_and_have_their_bars() -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-bench"));
    let output = sh::output(command.args(["--smoke", "--row", "ledger"]))?;
    let rows: Vec<Row> = serde_json::from_slice(&output.stdout).context("the rows")?;
    ensure!(rows.len() == 4, "{rows:?}");
    for row in &rows {
        ensure!(
            row.group == "ledger" && row.value.is_some_and(|v| v.is_finite() && v > 0.0),
            "{row:?}"
        );
    }
    let with_bar = |row: &&Row| row.bar.is_some() && row.met.is_some();
    ensure!(rows.iter().filter(with_bar).count() == 3, "{rows:?}");
    Ok(())
}

fn measured(groups: &[&str]) -> Result<Vec<Row>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-bench"));
    command.arg("--smoke");
    for group in groups {
        command.args(["--row", group]);
    }
    // With SECMESH_BIN, as in `cargo xtask test`, that agent is measured and none is built.
    let output = sh::output(&mut command)?;
    let rows: Vec<Row> = serde_json::from_slice(&output.stdout).context("the rows")?;
    for row in &rows {
        ensure!(
            row.value.is_some_and(|v| v.is_finite() && v >= 0.0),
            "{row:?}"
        );
        ensure!(row.bar.is_some() == row.met.is_some(), "{row:?}");
    }
    Ok(rows)
}

#[test]
fn votes_are_verified_and_counted() -> Result<()> {
    let rows = measured(&["votes"])?;
    ensure!(rows.len() == 1 && rows.iter().all(|row| row.met.is_some()));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn real_agents_rows_are_measured_and_have_their_bars() -> Result<()> {
    let rows = measured(&["latency", "latency-30", "idle"])?;
    let barred = rows.iter().filter(|row| row.bar.is_some()).count();
    ensure!(rows.len() == 7 && barred == 5, "{rows:?}");
    // Every alert led to a block on every node.
    let all = rows.iter().filter_map(|row| row.note.as_deref());
    ensure!(all.clone().count() > 0);
    for note in all {
        ensure!(!note.contains("were not blocked"), "{note}");
    }
    Ok(())
}
