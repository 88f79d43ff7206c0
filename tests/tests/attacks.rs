//! Each attack is blocked on all nodes while the client keeps working.

use anyhow::{Result, ensure};
use secmesh_tests::{attack_two_nodes, ensure_defended, lab};
use xtask::lab::attack::{self, Options};
use xtask::lab::generators::Kind;

/// Both families in one lab: each attack has an address of its own.
fn over_both_families(kind: Kind) -> Result<()> {
    let lab = lab(4)?;
    for ipv6 in [false, true] {
        ensure_defended(&attack_two_nodes(&lab, kind, ipv6)?)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_syn_flood_is_blocked_on_all_nodes_while_the_client_keeps_working() -> Result<()> {
    over_both_families(Kind::SynFlood)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_udp_flood_is_blocked_on_all_nodes_while_the_client_keeps_working() -> Result<()> {
    over_both_families(Kind::UdpFlood)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_icmp_flood_is_blocked_on_all_nodes_while_the_client_keeps_working() -> Result<()> {
    over_both_families(Kind::IcmpFlood)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_port_scan_is_blocked_on_all_nodes_while_the_client_keeps_working() -> Result<()> {
    over_both_families(Kind::PortScan)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_attack_on_one_node_stays_that_nodes_own_block_until_a_second_one_is_touched() -> Result<()> {
    let lab = lab(4)?;
    for kind in [Kind::SynFlood, Kind::PortScan] {
        let outcome = attack::run(
            lab.state(),
            &Options {
                seconds: 4,
                ..Options::new(kind)
            }
            .targets(1),
        )?;
        ensure!(
            outcome.t_own_block_ms.is_some(),
            "the hit node did not block: {outcome:?}"
        );
        ensure!(
            outcome.others_free_until_contact == Some(true),
            "others blocked before they were touched: {outcome:?}"
        );
        let own_then_contact = outcome
            .t_own_block_ms
            .zip(outcome.t_contact_ms)
            .is_some_and(|(own, contact)| own < contact);
        ensure!(
            own_then_contact,
            "the hit node waited for the contact: {outcome:?}"
        );
        ensure_defended(&outcome)?;
    }
    Ok(())
}
