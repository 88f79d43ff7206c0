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
    assert!(
        !net.blocks(4, subject()),
        "still blocked on the node that was away"
    );
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

#[test]
fn a_clock_that_jumps_and_comes_back_makes_nobody_contradict_itself() {
    let mut net = Net::four();
    net.sees(3, subject());
    // The clock of node 3 is an hour ahead for one tick: what it said is an hour old.
    net.now += 3_600 * S;
    net.input(3, Input::Tick);
    net.now -= 3_590 * S;
    net.sees(3, subject());
    net.nobody_contradicts_itself();
    assert_eq!(net.own_verdicts(3), [Verdict::Confirm]);
    // From the next minute on it votes again.
    net.tick(60 * S);
    net.sees(3, subject());
    assert_eq!(net.own_verdicts(3), [Verdict::Confirm; 2]);
    net.nobody_contradicts_itself();
}

#[test]
fn a_vote_told_to_one_node_only_still_decides_for_everybody() {
    let mut net = Net::four();
    let liar = vote_of(&net, 4, block(subject()), Verdict::Confirm, 1);
    net.sees(1, subject());
    net.run();
    // Node 2 has two witnesses now, and its own vote is not needed.
    net.inject(4, 2, &liar);
    assert!(net.blocks(2, subject()));
    net.run();
    net.tick(S);
    net.run();
    assert!((1..=3).all(|i| net.blocks(i, subject())));
}

#[test]
fn what_was_announced_and_never_given_is_asked_for_elsewhere_and_then_no_more() {
    let mut net = Net::four();
    let announced = |id: u8| {
        Message::Decided(crate::mesh::message::Announcement {
            decision: DecisionId([id; 32]),
            incident: IncidentId([id; 32]),
            round: 0,
        })
    };
    net.links.clear();
    net.inject(4, 1, &announced(1));
    net.inject(3, 1, &announced(1));
    let asked = |net: &Net| -> Vec<NodeId> {
        let want = Message::WantDecision(DecisionId([1; 32])).to_bytes();
        let sent = net.outputs.get(&1).into_iter().flatten();
        sent.filter_map(|o| match o {
            Output::Send { to, bytes } if *bytes == want => Some(*to),
            _ => None,
        })
        .collect()
    };
    assert_eq!(asked(&net), [node_id(4)]);
    net.tick(S);
    assert_eq!(asked(&net), [node_id(4), node_id(3)]);
    for _ in 0..100 {
        net.tick(S);
    }
    assert_eq!(asked(&net).len(), 2);
    // One peer cannot fill the table.
    for id in 2..=200 {
        net.inject(4, 1, &announced(id));
    }
    assert!(net.refused(1, RefusalReason::Full) > 0);
    net.inject(3, 1, &announced(250));
    let last = Message::WantDecision(DecisionId([250; 32])).to_bytes();
    assert!(
        net.outputs[&1].iter().any(
            |o| matches!(o, Output::Send { to, bytes } if *to == node_id(3) && *bytes == last)
        )
    );
}

#[test]
fn in_a_large_mesh_that_something_is_decided_is_told_with_the_next_tick_once_for_all() {
    let zones: Vec<String> = (0..25).map(|n| format!("z{n}")).collect();
    let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
    let mut net = Net::new(&zones);
    let told = |net: &Net| -> Vec<Vec<Message>> {
        let outputs = net.outputs.values().flatten();
        let broadcasts = outputs.filter_map(|output| match output {
            Output::Broadcast(bytes) => Message::from_bytes(bytes).ok(),
            _ => None,
        });
        let parts = broadcasts.map(|message| match message {
            Message::Batch(parts) => parts
                .iter()
                .filter_map(|part| Message::from_bytes(part).ok())
                .collect(),
            other => vec![other],
        });
        parts
            .filter(|parts: &Vec<Message>| {
                parts.iter().any(|part| matches!(part, Message::Decided(_)))
            })
            .collect()
    };
    let subjects: Vec<Prefix> = ["198.51.100.9/32", "203.0.113.9/32"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    for subject in &subjects {
        net.sees(1, *subject);
        net.sees(2, *subject);
    }
    net.run();
    for subject in &subjects {
        assert!((1..=25).all(|i| net.blocks(i, *subject)));
    }
    assert_eq!(told(&net).len(), 0, "votes and certificates go first");
    net.tick(S);
    let told = told(&net);
    // Each node once, for both; eight of them have sent the certificate instead.
    assert!((1..=25).contains(&told.len()), "{}", told.len());
    let said: usize = told.iter().map(Vec::len).sum();
    assert!((2 * 17..=2 * 25).contains(&said), "{said}");
}
