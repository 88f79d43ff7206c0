//! `cargo xtask run`: an agent on this machine, to try it out.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::build::{self, Mode};
use crate::lab::toml_string;
use crate::setup::{self, BPFFS, Profile};
use crate::sh;

/// Sets up, builds and runs an agent in monitor mode on the interface of the default route.
///
/// Its state is kept in cargo's target folder, apart from that of an installed agent. Ctrl-C ends it
/// and takes its program off the interface. `args` go to `secmesh run` and win over what is set here.
///
/// # Errors
/// When setting up or building fails. Does not return otherwise: this process becomes the agent.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    setup::ensure(Profile::Run, false, false)?;
    let binary = build::agent(Mode::Release)?;
    let home = state_folder(&binary)?;
    let config = home.join("secmesh.toml");
    write_config(&home, &config)?;

    // The agent's own files are root's and may not be ours to look at, so ask as root.
    let state = home.join("state");
    let known = sh::as_root("test")?
        .arg("-d")
        .arg(&state)
        .status()
        .is_ok_and(|status| status.success());
    if !known {
        let mut init = sh::as_root(&binary)?;
        init.arg("--config")
            .arg(&config)
            .args(["init", "--name", &host_name()]);
        sh::run(&mut init).context("cannot make this node's identity")?;
    }
    let mut agent = sh::as_root(&binary)?;
    agent
        .arg("--config")
        .arg(&config)
        .args(["run", "--detach-on-exit"])
        .args(args);
    println!("Running `{}`; Ctrl-C ends it.", sh::shown(&agent));
    let error = agent.exec();
    Err(error).with_context(|| format!("cannot start {}", binary.display()))
}

fn state_folder(binary: &Path) -> anyhow::Result<PathBuf> {
    let target = binary
        .parent()
        .and_then(Path::parent)
        .context("the agent's binary is in no target folder")?;
    let home = target.join("xtask-run");
    std::fs::create_dir_all(&home)
        .with_context(|| format!("cannot make the folder {}", home.display()))?;
    Ok(home)
}

fn write_config(home: &Path, config: &Path) -> anyhow::Result<()> {
    let state = toml_string(&home.join("state"));
    let text = format!(
        "# Written by `cargo xtask run`, and written anew each time.\n\
         [node]\nstate_dir = {state}\nsocket = \"/run/secmesh-try.sock\"\n\n\
         [dataplane]\nmode = \"monitor\"\npin_dir = \"{BPFFS}/secmesh-try\"\n"
    );
    std::fs::write(config, text).with_context(|| format!("cannot write {}", config.display()))
}

fn host_name() -> String {
    let name = nix::sys::utsname::uname().map_or_else(
        |_| String::new(),
        |system| system.nodename().to_string_lossy().into_owned(),
    );
    let plain: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    if plain.is_empty() {
        "node".to_owned()
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_try_out_agent_only_watches_and_keeps_apart() {
        let folder = std::env::temp_dir().join(format!("xtask-run-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("secmesh.toml");
        write_config(&folder, &file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(text.contains("mode = \"monitor\""), "{text}");
        assert!(text.contains("secmesh-try"), "{text}");
        assert!(!text.contains("/var/lib/secmesh"), "{text}");
    }
}
