//! `run` and `detach`.

use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::json;
use tokio::runtime::Builder;

use super::args::RunArgs;
use super::output::Out;
use super::time::count;
use super::{CliError, Context};
use crate::agent::{self, Options};
use crate::dataplane::{
    self,
    syncookies::{self, Restored},
};
use crate::state::{StateDir, StateError};

/// Threads of the agent's runtime: one for the loop that owns the state, one for everything else.
const WORKERS: usize = 2;

/// `secmesh run`
pub fn run(context: &Context, args: RunArgs) -> Result<(), CliError> {
    let config = context.config()?.clone();
    let options = Options {
        interfaces: args.interfaces,
        mode: args.mode.map(Into::into),
        listen: args.listen,
        state_dir: context.state_dir()?,
        socket: context.socket()?,
        detach_on_exit: args.detach_on_exit || config.dataplane.detach_on_exit,
        config,
    };
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("secmesh")
        .enable_all()
        .build();
    let runtime =
        runtime.map_err(|e| CliError::Failed(format!("cannot start the runtime: {e}")))?;
    Ok(runtime.block_on(agent::run(options))?)
}

/// Puts the system's switch back; without a state directory nothing was changed.
fn restore_syncookies(state_dir: &Path) -> Result<Restored, CliError> {
    let state = match StateDir::open(state_dir) {
        Err(StateError::Missing(_)) => return Ok(Restored::Untouched),
        opened => opened.map_err(|e| CliError::Failed(e.to_string()))?,
    };
    syncookies::restore(&state).map_err(|e| CliError::Failed(e.to_string()))
}

/// `secmesh detach`
pub fn detach(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    let socket = context.socket()?;
    if UnixStream::connect(&socket).is_ok() {
        return Err(CliError::Failed(format!(
            "an agent runs here ({}) and would go on believing that its blocks are in force; stop it first",
            socket.display()
        )));
    }
    let dir = &context.config()?.dataplane.pin_dir;
    let removed = dataplane::detach_all(dir)?;
    let restored = restore_syncookies(&context.state_dir()?)?;
    if out.json {
        let value = match restored {
            Restored::Back(value) => Some(value),
            _ => None,
        };
        return out.json(&json!({"pin_dir": dir, "removed": removed, "syncookies": value}));
    }
    match restored {
        Restored::Untouched => {}
        Restored::Back(value) => {
            out.text(&format!("net.ipv4.tcp_syncookies is {value} again.\n"))?;
        }
        Restored::Foreign(value) => out.text(&format!(
            "net.ipv4.tcp_syncookies stays {value}: somebody else changed it after secmesh did.\n"
        ))?,
        Restored::Elsewhere => out.text(
            "secmesh changed net.ipv4.tcp_syncookies in another network namespace; run `secmesh detach` there to put it back.\n",
        )?,
    }
    out.text(&match removed {
        0 => format!("There was nothing of secmesh in {}.\n", dir.display()),
        _ => format!(
            "Removed {} from {}; no packet is dropped by secmesh any more.\n",
            count(removed, "pin"),
            dir.display()
        ),
    })
}
