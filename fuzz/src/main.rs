//! One target under libFuzzer. `cargo xtask fuzz` builds and starts this; by hand nothing is gained.
//!
//! `SECMESH_FUZZ_TARGET` names the target. With `SECMESH_FUZZ_SEEDS` its seeds are written to that folder
//! before the engine reads it.
#![no_main]

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process;
use std::sync::OnceLock;

use secmesh_fuzz::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

/// A wrong call is told in one line; the engine would print a stack.
fn refuse(why: &str) -> ! {
    eprintln!("error: {why}; start this through `cargo xtask fuzz`");
    process::exit(2)
}

fn prepare() {
    let name = std::env::var("SECMESH_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = Target::named(&name) else {
        refuse(&format!("no target is called {name:?}"))
    };
    if let Some(folder) = std::env::var_os("SECMESH_FUZZ_SEEDS")
        && let Err(error) = write_seeds(target, folder)
    {
        refuse(&format!("cannot write the seeds: {error}"));
    }
    // Set once: the engine calls this once.
    let _first = TARGET.set(target);
}

fn write_seeds(target: &Target, folder: OsString) -> std::io::Result<()> {
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder)?;
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::File::create(folder.join(format!("seed-{number:03}")))?.write_all(&seed)?;
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(
    init: prepare(),
    |input: &[u8]| {
        if let Some(target) = TARGET.get() {
            target.check(input);
        }
    }
);
