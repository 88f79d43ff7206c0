//! What comes late: found by the simulation (`sim/`).

use super::*;

#[test]
fn a_release_reaches_a_node_that_was_away_for_longer_than_its_minute() {
    let mut net = Net::four();
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    net.split(&[4], &[1, 2, 3]);
    net.tick(20 * S);
    net.input(
        1,
        Input::OperatorRelease {
            subject: subject(),
            signed: None,
        },
    );
    net.run();
    net.tick(3 * S);
    net.run();
    assert!((1..=3).all(|i| !net.blocks(i, subject())));
    assert!(net.blocks(4, subject()));
    net.tick(200 * S);
    net.connect_all();
    net.run();
    assert!(!net.blocks(4, subject()), "still blocked on the node that was away");
}

#[test]
fn votes_that_outlive_the_block_decide_nothing() {
    let mut net = Net::four();
    let ttl_s = u64::from(genesis().params.block_ttl_s);
    // The second vote is good for as long as votes are, and the clock of node 3 has gone past the block's end.
    let action = block(subject());
    let first = vote_of(&net, 1, action, Verdict::Confirm, 1);
    let second = vote_of(&net, 2, action, Verdict::Confirm, 1);
    net.inject(1, 3, &first);
    let engine = net.engines.get_mut(&3).unwrap();
    engine.config.genesis.params.vote_valid_s = 600 + u32::try_from(ttl_s).unwrap();
    net.now += (ttl_s + 61) * S;
    net.inject(2, 3, &second);
    assert!(net.decided(3, subject()).is_empty());
}
