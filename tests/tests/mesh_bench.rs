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
