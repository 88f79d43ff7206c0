//! The commands.
//!
//! Each command asks the agent (or the state directory) and prints the answer: as JSON, which is the
//! agent's answer as it came, or as text for people. Renderers are functions from an answer to a
//! `String`, so that tests compare what people see.

mod alerts;
mod args;
mod asked;
mod capture;
mod control;
mod decisions;
mod epoch;
mod error;
mod explain;
mod generate;
mod in_force;
mod init;
mod invite;
mod join;
mod ledger;
mod list_args;
mod lists;
mod node;
mod output;
mod progress;
mod quarantine;
mod replay;
mod run;
mod show;
mod standby;
mod status;
mod table;
mod time;
mod trust;
mod watch;

use std::cell::OnceCell;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use args::{Cli, Command, Global};
pub use error::CliError;

use crate::api::client;
use crate::api::types::Request;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use args::{AllowCommand, DecisionsCommand, LedgerCommand, MeshCommand, PeersCommand};
use output::{Out, Paint};

const DEFAULT_CONFIG: &str = "/etc/secmesh/secmesh.toml";

/// Executes a command: the answer goes to standard output, errors to standard error. Returns the
/// process's exit code.
pub fn execute(cli: Cli) -> u8 {
    let mut stdout = BufWriter::new(io::stdout().lock());
    let mut out = Out::new(
        &mut stdout,
        cli.global.json,
        Paint::for_stdout(),
        SystemClock.unix_us(),
    );
    let context = Context {
        global: cli.global,
        config: OnceCell::new(),
    };
    let result = dispatch(&context, cli.command, &mut out);
    // What was written before an error is still wanted; of two errors the first counts.
    let flushed = out.flush();
    match result.and(flushed) {
        Ok(()) => 0,
        Err(error) => {
            let code = error.exit_code();
            if code != 0 {
                // Not `eprintln!`, which panics when standard error is closed.
                let _ = writeln!(io::stderr(), "error: {error}");
            }
            code
        }
    }
}

fn dispatch(context: &Context, command: Command, out: &mut Out<'_>) -> Result<(), CliError> {
    match command {
        Command::Run(args) => run::run(context, args),
        Command::Init(args) => init::init(context, args, out),
        Command::Invite(args) => invite::invite(context, args, out),
        Command::Join(args) => join::join(context, args, out),
        Command::Status { all } => show::status(context, all, out),
        Command::Metrics => show::metrics(context, out),
        Command::Peers { command: None } => show::peers(context, out),
        Command::Peers {
            command: Some(PeersCommand::Remove { node, operator_key }),
        } => epoch::remove(context, &node, &operator_key, out),
        Command::Epoch => epoch::epoch(context, out),
        Command::Mesh(MeshCommand::Digest) => show::digest(context, out),
        Command::Trust { node } => trust::trust(context, node, out),
        Command::Alerts { limit } => show::alerts(context, limit, out),
        Command::Flows { limit, follow } => watch::flows(context, limit, follow, out),
        Command::Processes { limit, follow } => watch::processes(context, limit, follow, out),
        Command::Explain { subject } => show::explain(context, subject, out),
        Command::Decisions(DecisionsCommand::List { all, subject }) => {
            show::decisions(context, all, subject, out)
        }
        Command::Decisions(DecisionsCommand::Show { id }) => show::decision(context, &id, out),
        Command::Decisions(DecisionsCommand::Import(args)) => lists::import(context, &args, out),
        Command::Decisions(DecisionsCommand::Export(args)) => lists::export(context, &args, out),
        Command::Decisions(DecisionsCommand::Lists) => lists::lists(context, out),
        Command::Decisions(DecisionsCommand::RemoveList { name }) => {
            lists::remove(context, &name, out)
        }
        Command::Decisions(DecisionsCommand::Add(args)) | Command::Block(args) => {
            control::block(context, args, out)
        }
        Command::Decisions(DecisionsCommand::Delete(args)) | Command::Unblock(args) => {
            control::unblock(context, &args, out)
        }
        Command::Quarantine {
            node,
            reason,
            operator_key,
        } => quarantine::quarantine(context, &node, reason, operator_key.as_deref(), out),
        Command::Readmit { node, operator_key } => {
            quarantine::readmit(context, &node, operator_key.as_deref(), out)
        }
        Command::Allow(AllowCommand::Add { prefix, reason }) => {
            control::done(context, &Request::AllowAdd { prefix, reason }, out)
        }
        Command::Allow(AllowCommand::Remove { prefix }) => {
            control::done(context, &Request::AllowRemove { prefix }, out)
        }
        Command::Allow(AllowCommand::List) => show::allowlist(context, out),
        Command::Mode {
            mode: Some(word),
            confirm,
        } => control::mode(context, word, confirm, out),
        Command::Mode { mode: None, .. } => show::mode(context, out),
        Command::Ledger(LedgerCommand::Verify { path }) => ledger::verify(context, path, out),
        Command::Ledger(LedgerCommand::Show { last, path }) => {
            ledger::show(context, last, path, out)
        }
        Command::Ledger(LedgerCommand::Prove { entry, path }) => {
            ledger::prove(context, entry, path, out)
        }
        Command::Replay { files } => replay::replay(context, &files, out),
        Command::Capture(args) => capture::capture(context, &args, out),
        Command::Detach => run::detach(context, out),
        Command::Completions { shell } => generate::completions(shell, out),
        Command::Man { dir } => generate::man(dir.as_deref(), out),
        Command::Version => generate::version(out),
    }
}

/// The global options, and what follows from them.
struct Context {
    global: Global,
    config: OnceCell<Config>,
}

impl Context {
    /// The configuration, read when it is first needed: a broken file does not keep a command from
    /// working that was told all it has to know.
    fn config(&self) -> Result<&Config, CliError> {
        if self.config.get().is_none() {
            let path = self.global.config.as_deref();
            let config = Config::load(path.unwrap_or(Path::new(DEFAULT_CONFIG)), path.is_some())?;
            return Ok(self.config.get_or_init(|| config));
        }
        Ok(self.config.get_or_init(Config::default))
    }

    fn socket(&self) -> Result<PathBuf, CliError> {
        match &self.global.socket {
            Some(socket) => Ok(socket.clone()),
            None => Ok(self.config()?.node.socket.clone()),
        }
    }

    fn state_dir(&self) -> Result<PathBuf, CliError> {
        match &self.global.state {
            Some(dir) => Ok(dir.clone()),
            None => Ok(self.config()?.node.state_dir.clone()),
        }
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, CliError> {
        Ok(client::ask(&self.socket()?, request)?)
    }
}

/// Says something to the person that is not the answer.
fn note(text: &str) {
    // Losing a remark is no reason to fail.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(global: Global) -> Context {
        Context {
            global,
            config: OnceCell::new(),
        }
    }

    #[test]
    fn options_win_over_the_configuration_and_that_over_the_defaults() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secmesh.toml");
        crate::state::write_atomic(&path, b"[node]\nstate_dir = \"/from/config\"\n", 0o600)
            .unwrap();
        let from_file = context(Global {
            config: Some(path.clone()),
            ..Global::default()
        });
        assert_eq!(from_file.state_dir().unwrap(), Path::new("/from/config"));
        assert_eq!(
            from_file.socket().unwrap(),
            Path::new("/run/secmesh/secmesh.sock")
        );
        let given = Global {
            config: Some(path),
            state: Some("/given".into()),
            ..Global::default()
        };
        assert_eq!(context(given).state_dir().unwrap(), Path::new("/given"));
    }

    #[test]
    fn a_configuration_that_is_named_must_be_there_but_only_if_it_is_needed() {
        let global = Global {
            config: Some("/nonexistent/secmesh.toml".into()),
            socket: Some("/nonexistent/s".into()),
            ..Global::default()
        };
        let context = context(global);
        assert_eq!(context.state_dir().unwrap_err().exit_code(), 2);
        let error = context
            .ask::<serde_json::Value>(&Request::Peers {})
            .unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
    }
}
