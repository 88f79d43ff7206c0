//! What leaves an interface, counted by a clsact filter, as on kernels before 6.6: it outlives the agent, is taken over
//! and taken off.

use std::mem::ManuallyDrop;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{
    TcAttachType,
    tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
};
use secmesh::dataplane::{Egress, detach_all};
use secmesh_tests::{
    kernel::{Kernel, isolated, tool},
    records::{SEEN, known, load, loading, recorded, send},
};
use serde_json::Value;

/// The programs of our filters on what leaves the loopback interface.
fn filters() -> Result<Vec<u32>> {
    let text = tool("tc", &["-j", "filter", "show", "dev", "lo", "egress"])?;
    let all: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
    let mut ids = Vec::new();
    for filter in &all {
        let Some(name) = filter.pointer("/options/bpf_name") else {
            continue;
        };
        ensure!(name == "secmesh_egress", "{text}");
        let id = filter.pointer("/options/prog/id").and_then(Value::as_u64);
        ids.push(u32::try_from(id.with_context(|| text.clone())?)?);
    }
    Ok(ids)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_filter_outlives_the_agent_is_taken_over_and_leaves_with_a_detach() -> Result<()> {
    isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let _entered = runtime.enter();
        tool("ip", &["link", "set", "lo", "up"])?;
        let options = loading("secmesh-filters", true);
        let pins = options.pin_dir.clone().context("set above")?;

        // What a killed agent of an older version leaves: a filter where the kernel put it.
        let mut older = Kernel::load(&loading("secmesh-older", true))?;
        qdisc_add_clsact("lo")?;
        let program = older.dataplane.egress_program()?;
        let id = program.attach_with_options(
            "lo",
            TcAttachType::Egress,
            TcAttachOptions::Netlink(NlOptions::default()),
        )?;
        let _killed = ManuallyDrop::new(program.take_link(id)?);
        drop(older);
        ensure!(filters()?.len() == 1, "{:?}", filters()?);

        let (mut first, mut ring) = load(&options)?;
        let seen = first.dataplane.flow_interfaces().to_vec();
        ensure!(seen.iter().all(|i| i.egress == Egress::Clsact), "{seen:?}");
        let one = filters()?;
        ensure!(one.len() == 1, "the older one counts on: {one:?}");
        send(4001)?;
        let packets = recorded(&mut first, &mut ring, 4001)?;
        ensure!(packets == SEEN, "{packets} packets");
        drop(ring);
        drop(first);

        // Nobody runs, and both ways are counted on.
        ensure!(filters()? == one, "{:?}", filters()?);
        send(4002)?;
        let program = *one.first().context("one")?;
        let packets = known(program, 4002)?;
        ensure!(packets == SEEN, "{packets} packets while no agent ran");

        let (mut second, mut ring) = load(&options)?;
        let two = filters()?;
        ensure!(two.len() == 1 && two != one, "{two:?} after {one:?}");
        send(4003)?;
        let packets = recorded(&mut second, &mut ring, 4003)?;
        ensure!(packets == SEEN, "{packets} packets");
        drop(ring);
        drop(second);

        // Links from now on, as after the system was given a newer kernel: the filter goes.
        let (third, _ring) = load(&loading("secmesh-filters", false))?;
        let seen = third.dataplane.flow_interfaces().to_vec();
        ensure!(seen.iter().all(|i| i.egress == Egress::Tcx), "{seen:?}");
        ensure!(filters()?.is_empty(), "{:?}", filters()?);
        drop(third);
        detach_all(&pins)?;

        // And with a detach, and where an interface is left out.
        drop(load(&options)?);
        ensure!(filters()?.len() == 1, "{:?}", filters()?);
        detach_all(&pins)?;
        ensure!(filters()?.is_empty(), "{:?}", filters()?);
        drop(load(&options)?);
        let (mut last, _ring) = load(&options)?;
        last.dataplane.take_off_all_but(&[])?;
        ensure!(filters()?.is_empty(), "{:?}", filters()?);
        drop(last);
        detach_all(&pins)?;
        Ok(())
    })
}
