//! Builds the kernel programs.
#![expect(
    clippy::expect_used,
    reason = "a build script's way to fail is to panic with a message"
)]

#[path = "build/kernel.rs"]
mod kernel;

fn main() {
    kernel::build(
        "secmesh-ebpf",
        &["secmesh-ebpf", "secmesh-common"],
        "SECMESH_BPF_OBJECT",
    );
}
