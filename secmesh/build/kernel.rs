//! What the build scripts of this package and of the tests share: kernel programs are built with the toolchain that
//! builds everything else.
//!
//! `aya-build` does the same with a floating nightly; here the pinned stable compiler is allowed its
//! unstable flags for this one crate, so that a checkout builds the same object next year.

use std::{env, path::PathBuf, process::Command};

/// Builds the package `package` of the workspace for the kernel's instruction set, whenever one of `inputs` (paths in
/// the workspace) changes; the compiler then finds the object's path in the environment variable `variable`.
pub fn build(package: &str, inputs: &[&str], variable: &str) {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let root = manifest_dir
        .parent()
        .expect("the workspace is one level up");
    for input in [".cargo/config.toml", "rust-toolchain.toml", "secmesh/build"]
        .iter()
        .chain(inputs)
    {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").expect("set by cargo");
    let target = match endian.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let target_dir = out_dir.join("bpf");
    let mut command = Command::new(env::var_os("CARGO").expect("set by cargo"));
    command
        .current_dir(root)
        .args([
            "build",
            "--package",
            package,
            "--release",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_with_cargo_bin());
    // What cargo set for this crate must not reach the other build: its flags and wrappers are for the
    // host, and clippy's wrapper would check instead of build.
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    let status = command.status().expect("cargo runs, it is running us");
    assert!(
        status.success(),
        "the kernel programs did not build; `cargo xtask setup` installs what that needs (rust-src and bpf-linker)"
    );
    let object = target_dir.join(target).join("release").join(package);
    let place = out_dir.join(format!("{package}.o"));
    std::fs::copy(&object, &place).expect("the object that was just built");
    println!("cargo:rustc-env={variable}={}", place.display());
}

/// `cargo install` puts bpf-linker where rustup's PATH entry points; a shell opened before that entry
/// existed does not have it.
fn path_with_cargo_bin() -> std::ffi::OsString {
    let mut paths: Vec<PathBuf> =
        env::var_os("PATH").map_or_else(Vec::new, |p| env::split_paths(&p).collect());
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")));
    if let Some(home) = home {
        paths.push(home.join("bin"));
    }
    env::join_paths(paths).expect("PATH was split from a valid one")
}
