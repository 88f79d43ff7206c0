//! Class 2: whole networks.

use super::*;

fn net24() -> Prefix {
    "203.0.113.0/24".parse().unwrap()
}

fn sees_network(net: &mut Net, i: u8) {
    net.sees_class(i, net24(), AttackClass::Network);
    net.run();
}

#[test]
fn a_network_takes_t_hi_where_an_address_takes_t_lo() {
    let zones = ["a", "b", "c", "d", "e", "f", "g"];
    // Two witnesses are there, but with nodes 3 and 4 only four of seven, T_hi is five.
    let mut net = Net::new(&zones);
    net.split(&[1, 2, 3, 4], &[5, 6, 7]);
    sees_network(&mut net, 1);
    sees_network(&mut net, 2);
    assert!((1..=4).all(|i| !net.blocks(i, net24())));
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, subject())), "class 1 goes on");
    // One more, and it is decided; then everybody takes it over.
    for i in 1..=4 {
        net.connect(i, 5);
    }
    net.run();
    assert!((1..=5).all(|i| net.blocks(i, net24())));
    net.connect_all();
    net.run();
    assert!((1..=7).all(|i| net.blocks(i, net24())));
    let ids: BTreeSet<_> = (1..=7).flat_map(|i| net.decided(i, net24())).collect();
    assert_eq!(ids.len(), 1);
    net.nobody_contradicts_itself();
}

#[test]
fn one_witness_blocks_no_network_whatever_its_peers_hear() {
    let mut net = Net::four();
    sees_network(&mut net, 1);
    for _ in 0..20 {
        net.tick(5 * S);
        sees_network(&mut net, 1);
    }
    assert!((1..=4).all(|i| !net.blocks(i, net24())));
    assert!((2..=4).all(|i| net.own_verdicts(i).is_empty()));
    // Nobody watches a network packet by packet.
    let watched = |i| {
        net.outputs[&i]
            .iter()
            .any(|o| matches!(o, Output::Watch { .. }))
    };
    assert!(!(2..=4).any(watched));
}

#[test]
fn only_the_two_lengths_are_voted_on_and_only_as_networks() {
    let mut net = Net::four();
    for (text, class) in [
        ("203.0.112.0/23", AttackClass::Network),
        ("203.0.113.0/25", AttackClass::Network),
        ("2001:db8::/48", AttackClass::Network),
        ("203.0.113.0/24", AttackClass::SynFlood),
        ("203.0.113.7", AttackClass::Network),
    ] {
        net.sees_class(1, text.parse().unwrap(), class);
        net.sees_class(2, text.parse().unwrap(), class);
    }
    net.run();
    assert_eq!(net.refused(1, RefusalReason::WrongAction), 5);
    let v6: Prefix = "2001:db8::/64".parse().unwrap();
    net.sees_class(1, v6, AttackClass::Network);
    net.sees_class(2, v6, AttackClass::Network);
    net.run();
    assert!((1..=4).all(|i| net.blocks(i, v6)));
}

#[test]
fn a_node_whose_allowlist_is_in_the_network_vetoes_it_and_the_others_need_t_hi_without_it() {
    let mut net = Net::four();
    net.policies[&4]
        .allowed
        .borrow_mut()
        .insert("203.0.113.200".parse().unwrap());
    sees_network(&mut net, 1);
    sees_network(&mut net, 2);
    assert!(
        (1..=3).all(|i| net.blocks(i, net24())),
        "three of four are T_hi"
    );
    assert!(!net.blocks(4, net24()));
    assert_eq!(net.own_verdicts(4), [Verdict::Reject]);

    let mut net = Net::four();
    for i in [3, 4] {
        net.policies[&i]
            .allowed
            .borrow_mut()
            .insert("203.0.113.200".parse().unwrap());
    }
    sees_network(&mut net, 1);
    sees_network(&mut net, 2);
    assert!((1..=4).all(|i| !net.blocks(i, net24())), "two of four");
}

#[test]
fn it_is_not_proposed_again_while_it_is_active_and_a_release_ends_it() {
    let mut net = Net::four();
    sees_network(&mut net, 1);
    sees_network(&mut net, 2);
    let votes = |net: &Net| net.disks.values().map(Vec::len).sum::<usize>();
    let before = votes(&net);
    for _ in 0..30 {
        net.tick(5 * S);
        sees_network(&mut net, 1);
        sees_network(&mut net, 3);
    }
    // What witnesses of the first minute add is no new proposal.
    assert!(
        votes(&net) <= before + 2,
        "{} votes more",
        votes(&net) - before
    );
    let ids: BTreeSet<_> = (1..=4).flat_map(|i| net.decided(i, net24())).collect();
    assert_eq!(ids.len(), 1);

    net.input(
        1,
        Input::OperatorRelease {
            subject: net24(),
            signed: None,
        },
    );
    net.run();
    net.tick(3 * S);
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, net24())));
}

#[test]
fn beyond_the_budget_nobody_votes() {
    let mut net = Net::four();
    let network = |n: usize| -> Prefix { format!("10.9.{n}.0/24").parse().unwrap() };
    for n in 0..MAX_NETWORKS {
        for i in [1, 2] {
            net.sees_class(i, network(n), AttackClass::Network);
        }
        net.run();
        assert!(net.blocks(4, network(n)), "{n}");
    }
    for i in [1, 2] {
        net.sees_class(i, network(MAX_NETWORKS), AttackClass::Network);
    }
    net.run();
    assert!((1..=4).all(|i| !net.blocks(i, network(MAX_NETWORKS))));
    assert_eq!(net.refused(1, RefusalReason::OverBudget), 1);
    // When the blocks are over there is room again.
    net.tick(3_600 * S + 120 * S);
    for i in [1, 2] {
        net.sees_class(i, network(MAX_NETWORKS), AttackClass::Network);
    }
    net.run();
    assert!(net.blocks(4, network(MAX_NETWORKS)));
}

#[test]
fn a_certificate_that_would_do_for_an_address_is_too_light_for_a_network() {
    let net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    let params = genesis().params;
    let action = Action::block(net24(), AttackClass::Network, &params);
    let votes = |n: u8| (1..=n).map(|i| (node_id(i), Verdict::Confirm, T0));
    let count = |action: &Action, n| {
        CertVerdict::count(net.roster(), &BTreeSet::new(), action, votes(n)).check()
    };
    assert_eq!(count(&block(subject()), 3), Ok(()));
    assert!(count(&action, 3).is_err() && count(&action, 4).is_err());
    assert_eq!(count(&action, 5), Ok(()));
}
