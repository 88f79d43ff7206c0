//! Builds the kernel programs of the tests, as the agent's are built.
#![expect(
    clippy::expect_used,
    reason = "a build script's way to fail is to panic with a message"
)]

#[path = "../secmesh/build/kernel.rs"]
mod kernel;

fn main() {
    kernel::build("secmesh-tests-ebpf", &["tests-ebpf"], "TESTS_BPF_OBJECT");
}
