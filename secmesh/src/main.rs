//! The `secmesh` command.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use secmesh::cli::{self, Cli, Command};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help into a closed pipe (`secmesh --help | head -1`) is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    log(matches!(cli.command, Command::Run(_)), cli.global.verbose);
    ExitCode::from(cli::execute(cli))
}

/// Logs to standard error: what `RUST_LOG` says, else information of the agent and warnings of other
/// commands, and more for each `-v`.
fn log(agent: bool, verbose: u8) {
    let levels = ["warn", "info", "debug", "trace"];
    let level = usize::from(agent).saturating_add(usize::from(verbose));
    let default = levels.get(level).copied().unwrap_or("trace");
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.trim().is_empty());
    let filter = match wanted.as_deref().map(EnvFilter::try_new) {
        None => EnvFilter::new(default),
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            let _ = writeln!(
                io::stderr(),
                "warning: RUST_LOG is not understood ({error}); logging as without it"
            );
            EnvFilter::new(default)
        }
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !no_color)
        // It would write to the standard error that just failed, and panic.
        .log_internal_errors(false)
        .init();
}
