//! Flow records: the loaded programs against the same code in user space, and against what was really sent.
use anyhow::Result;
use secmesh_tests::kernel::{Kernel, options};
use secmesh::dataplane::FlowOptions;
use std::time::Duration;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn loads() -> Result<()> {
    let mut o = options();
    println!("off {:?}", Kernel::load(&o)?.dataplane.verified_instructions());
    o.flows = FlowOptions { slots: 4096, idle: Duration::from_secs(15), active: Duration::from_secs(60) };
    let mut k = Kernel::load(&o)?;
    println!("on {:?}", k.dataplane.verified_instructions());
    println!("egress {:?}", k.dataplane.egress_program()?.info()?.verified_instruction_count());
    println!("{:?}", k.dataplane.sweep_flows(3)?);
    Ok(())
}
