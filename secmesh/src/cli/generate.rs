//! What is made from the command line's own definition: completions, manual pages, the version.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use super::output::Out;
use super::{Cli, CliError};

/// `secmesh completions`
pub fn completions(shell: Shell, out: &mut Out<'_>) -> Result<(), CliError> {
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "secmesh", &mut script);
    out.bytes(&script)
}

/// `secmesh man`
pub fn man(dir: Option<&Path>, out: &mut Out<'_>) -> Result<(), CliError> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(CliError::Output)?;
        return out.bytes(&page);
    };
    let failed = |error: io::Error| {
        CliError::Failed(format!(
            "cannot write the pages to {}: {error}; does the directory exist?",
            dir.display()
        ))
    };
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
}

/// `secmesh version`
pub fn version(out: &mut Out<'_>) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    let schema = secmesh_common::SCHEMA;
    if out.json {
        return out.json(&json!({"version": version, "kernel_schema": schema}));
    }
    out.text(&format!(
        "secmesh {version} (kernel state schema {schema})\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::output::Paint;
    use super::*;

    fn written(make: impl FnOnce(&mut Out<'_>) -> Result<(), CliError>) -> String {
        let mut bytes = Vec::new();
        make(&mut Out::new(&mut bytes, false, Paint(false), 0)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn completions_and_pages_are_made_for_every_command() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            assert!(
                written(|out| completions(shell, out)).contains("explain"),
                "{shell}"
            );
        }
        assert!(written(|out| man(None, out)).contains(".TH"));
        let temp = tempfile::tempdir().unwrap();
        written(|out| man(Some(temp.path()), out));
        assert!(temp.path().join("secmesh-ledger-verify.1").exists());
        assert!(
            man(
                Some(&temp.path().join("no")),
                &mut Out::new(&mut io::sink(), false, Paint(false), 0)
            )
            .is_err()
        );
    }
}
