//! What somebody could try against a committee, and what may happen to one.

use super::seats::{mesh, run_with_loss, two};
use super::*;
use crate::mesh::decision::OperatorRelease;
use crate::mesh::message::Announcement;
use crate::mesh::vote::BUCKET_US;

/// An epoch of before, with so many seats: nodes 1, 2, … of these weights, each in a zone of its own.
fn earlier(seats: usize, weights: &[u32]) -> Roster {
    let members = (1..).zip(weights);
    let members = members.map(|(i, weight)| (record(i, &format!("z{i}")), *weight));
    Roster::with_weights(genesis().mesh_id(), members).with_committee(seats)
}

/// Node 1 has been through that epoch.
fn remember(net: &mut Net, epoch: &Roster) {
    let engine = net.engines.get_mut(&1).unwrap();
    engine.known.push_front(epoch.clone());
}

/// A node that was away learns that another one is cut off, also if the mesh has no more voters than seats by now.
#[test]
fn what_seats_decided_on_a_node_holds_in_a_mesh_that_has_shrunk() {
    let _guard = WithCommittee::of(5);
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    assert!(net.roster().seats().is_none());
    let mut weights = [100; 13];
    weights[5..].fill(1);
    let before = earlier(5, &weights);
    let seated: Vec<u8> = (1..=5).filter(|i| before.has_seat(&node_id(*i))).collect();
    let accusers: Vec<(u8, Verdict)> = seated[1..].iter().map(|i| (*i, Verdict::Confirm)).collect();
    assert_eq!(accusers.len(), 4, "{seated:?}");
    remember(&mut net, &before);
    let action = Action::quarantine(node_id(seated[0]), AttackClass::HostileNode);
    let made = certificate(&before, action, &accusers);
    let told = if seated[0] == 1 { 2 } else { 1 };
    if told != 1 {
        let engine = net.engines.get_mut(&told).unwrap();
        engine.known.push_front(before);
    }
    net.inject(3, told, &Message::Certificate(Box::new(made)));
    assert_eq!(net.refused(told, RefusalReason::OutvotedEpoch), 0);
    assert!(net.engines[&told].is_quarantined(&node_id(seated[0])));
    // And it tells others.
    let id = net.engines[&told].decisions().next().unwrap().id;
    let now = net.now;
    let short = u64::from_be_bytes(id.as_bytes()[..8].try_into().unwrap());
    let told = net.engines.get_mut(&told).unwrap();
    assert!(told.inventory(now).contains(&short));
}

/// Two of thirteen may lie today. In an epoch long ago, these two had three seats of seven: what they sign of that
/// epoch today is worth nothing.
#[test]
fn seats_of_long_ago_decide_nothing_for_as_few_as_may_lie_today() {
    let _guard = WithCommittee::of(7);
    let zones = [
        "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m",
    ];
    let mut net = Net::new(&zones);
    assert_eq!(net.roster().liars_withstood(), 2);
    let mut weights = [100; 13];
    weights[1..3].fill(600);
    let before = earlier(7, &weights);
    let seats: u64 = [2, 3].map(|i| before.vote_weight(&node_id(i))).iter().sum();
    assert!(seats >= before.deciding().t_lo(), "{seats}");
    remember(&mut net, &before);
    let votes = [(2, Verdict::Confirm), (3, Verdict::Confirm)];
    let made = certificate(&before, block(subject()), &votes);
    net.inject(2, 1, &Message::Certificate(Box::new(made)));
    assert!(!net.blocks(1, subject()));
    assert_eq!(net.refused(1, RefusalReason::OutvotedEpoch), 1);
    // One more with a seat is an honest one.
    let third = (4..=13).find(|i| before.has_seat(&node_id(*i))).unwrap();
    let votes = [votes[0], votes[1], (third, Verdict::Concur)];
    let made = certificate(&before, block(subject()), &votes);
    net.inject(2, 1, &Message::Certificate(Box::new(made)));
    assert!(net.blocks(1, subject()));
}

/// Whoever has no seat may sign as many votes as it likes that only a seat may give.
#[test]
fn votes_that_take_a_seat_cost_a_seat_no_signature_and_their_voter_its_place() {
    let (_guard, mut net, seated, others) = mesh();
    for n in 1..=40 {
        let vote = ballot(
            net.roster(),
            others[0],
            block(subject()),
            Verdict::Concur,
            n,
            net.now,
        );
        let mut forged = vote;
        forged.signed.signature[0] ^= 1;
        net.inject(others[0], seated[0], &Message::Vote(Box::new(forged)));
    }
    assert_eq!(net.refused(seated[0], RefusalReason::NoSeat), 40);
    assert_eq!(net.refused(seated[0], RefusalReason::BadSignature), 0);
    let held = net.engines[&seated[0]].suspicions(net.now);
    assert!(held.iter().any(|s| s.node == node_id(others[0])));
}

/// What a node without a seat may not say proves its lie all the same.
#[test]
fn who_has_no_seat_is_caught_contradicting_itself() {
    let (_guard, mut net, seated, others) = mesh();
    for (sequence, verdict) in [(1, Verdict::Confirm), (2, Verdict::Concur)] {
        let vote = vote_of(&net, others[0], block(subject()), verdict, sequence);
        net.inject(others[0], seated[0], &vote);
    }
    assert!(
        net.engines[&seated[0]]
            .liars()
            .contains(&node_id(others[0]))
    );
}

/// Liars say that they have decisions that nobody has.
#[test]
fn made_up_word_of_a_few_keeps_nobody_from_asking_for_what_there_is() {
    let (_guard, mut net, seated, others) = mesh();
    let [poor, liars @ ..] = [others[0], others[1], others[2], others[3], others[4]];
    for (n, liar) in (0..2_000_u32).zip(liars.into_iter().cycle()) {
        let mut id = [liar; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let made_up = Announcement {
            decision: DecisionId(id),
            incident: IncidentId(id),
            round: 0,
        };
        net.inject(liar, poor, &Message::Decided(made_up));
    }
    net.queue.clear();
    // For half a second whatever is for it gets lost: the certificate and the word along the trees.
    net.sees(seated[0], subject());
    net.sees(seated[1], subject());
    run_with_loss(&mut net, 4, |p| p.to == poor);
    net.queue.retain(|p| p.to != poor);
    // Nobody compares what there is that soon.
    run_with_loss(&mut net, 40, |_| false);
    assert!(net.blocks(poor, subject()));
}

/// More than fit one round of word are decided between two ticks.
#[test]
fn a_burst_of_decisions_is_told_at_once() {
    let (_guard, mut net, mut seated, _) = mesh();
    // The first of them has somebody to tell of decision 0.
    seated.sort_by_key(|i| node_id(*i));
    let one = seated[0];
    let engine = net.engines.get_mut(&one).unwrap();
    engine.spread.fill_untold();
    net.sees(one, subject());
    net.sees(seated[1], subject());
    let mut told = 0;
    while !net.queue.is_empty() {
        let packet = net.queue.remove(0);
        let from_it = packet.from == one;
        let decided = |bytes: &[u8]| matches!(Message::from_bytes(bytes), Ok(Message::Decided(_)));
        told += usize::from(
            from_it
                && match Message::from_bytes(&packet.bytes) {
                    Ok(Message::Batch(parts)) => parts.iter().any(|part| decided(part)),
                    _ => decided(&packet.bytes),
                },
        );
        net.deliver(&packet);
    }
    assert!(net.blocks(one, subject()));
    assert!(told > 0, "not before the next tick");
    assert_eq!(net.refused(one, RefusalReason::Full), 0);
}

/// Who has no seat, is attacked still, and was away when the end of the block was asked for.
#[test]
fn who_comes_back_hears_of_a_release_that_is_being_voted_on() {
    let (_guard, mut net, seated, others) = mesh();
    let attacked = others[0];
    net.sees(attacked, subject());
    net.sees(seated[0], subject());
    net.sees(seated[1], subject());
    net.run();
    net.tick(60 * S);
    net.run();
    *net.policies[&attacked].noisy.borrow_mut() = true;
    for i in net.ids() {
        if i != attacked {
            net.disconnect(attacked, i);
        }
    }
    net.input(
        others[3],
        Input::OperatorRelease {
            subject: subject(),
            signed: None,
        },
    );
    net.run();
    net.tick(S);
    net.run();
    net.connect_all();
    net.run();
    run_with_loss(&mut net, 60, |_| false);
    assert!(net.ids().iter().all(|i| net.blocks(*i, subject())));
}

/// A third of the seats is gone, and a third of the mesh is not.
#[test]
fn a_committee_that_is_too_few_is_drawn_anew() {
    let (_guard, mut net, seated, others) = mesh();
    let (gone, there) = (&seated[..2], [&seated[2..], &others].concat());
    net.split(gone, &there);
    let state = |net: &Net| net.engines[&there[0]].quorum();
    assert_eq!(state(&net).state, QuorumLevel::Degraded);
    let first = state(&net).epoch;
    // Not at once: they may come back.
    for _ in 0..10 {
        net.settle(60);
    }
    assert_eq!(state(&net).epoch, first);
    for _ in 0..30 {
        net.settle(60);
        if state(&net).reachable_weight >= state(&net).t_hi {
            break;
        }
    }
    assert!(state(&net).epoch > first);
    assert!(state(&net).reachable_weight >= state(&net).t_hi);
    // Those who are gone got nothing for it, and it stays at that.
    let epoch = state(&net).epoch;
    for _ in 0..20 {
        net.settle(60);
    }
    assert_eq!(state(&net).epoch, epoch);
    assert_eq!(net.engines[&gone[0]].roster().epoch(), first);
}

/// Nobody ends an epoch by saying that it is over, nor where too few are left for the next one.
#[test]
fn an_epoch_ends_early_only_for_those_who_miss_its_seats() {
    let (_guard, mut net, seated, others) = mesh();
    // Everybody is there.
    for _ in 0..30 {
        net.settle(60);
    }
    assert!(net.engines.values().all(|e| e.roster().epoch() == 1));
    // Some are gone for a while.
    let there: Vec<u8> = [&seated[2..], &others].concat();
    net.split(&seated[..2], &there);
    net.settle(20);
    net.connect_all();
    net.settle(60);
    assert!(net.engines.values().all(|e| e.roster().epoch() == 1));
    // A third of all are gone, and more than a third of the seats.
    let gone = [&seated[..2], &others[..3]].concat();
    let there: Vec<u8> = net
        .ids()
        .into_iter()
        .filter(|i| !gone.contains(i))
        .collect();
    net.split(&gone, &there);
    for _ in 0..20 {
        net.settle(60);
    }
    assert!(net.engines.values().all(|e| e.roster().epoch() == 1));
    assert!(net.engines.values().all(|e| e.agreement().is_none()));
}

/// Whoever alone misses seats, also the one whose turn it is to propose: the others do not.
#[test]
fn nobody_ends_an_epoch_by_proposing_the_next() {
    let mut tried = 0;
    for alone in 1..=13 {
        let (_guard, mut net, seated, _) = mesh();
        let missed = seated.into_iter().filter(|i| *i != alone);
        let missed: Vec<u8> = missed.take(2).collect();
        net.split(&[alone], &missed);
        net.settle(1);
        net.now += 900 * S;
        net.settle(65);
        let out = net.outputs.values().flatten();
        tried += out
            .filter(|o| match o {
                Output::Broadcast(bytes) => {
                    matches!(Message::from_bytes(bytes), Ok(Message::EpochProposal(_)))
                }
                _ => false,
            })
            .count();
        assert!(net.engines.values().all(|e| e.roster().epoch() == 1));
    }
    assert!(tried > 0, "nobody proposed anything");
}

/// One that says that it still hears those who are gone.
#[test]
fn a_liar_keeps_no_committee_that_is_too_few() {
    let (_guard, mut net, seated, others) = mesh();
    let (gone, there) = (&seated[..2], [&seated[2..], &others].concat());
    net.split(gone, &there);
    for i in &there {
        for node in gone {
            let node = node_id(*node);
            let now = Liveness::Alive;
            net.input(*i, Input::Liveness { node, now });
        }
    }
    for _ in 0..30 {
        net.settle(60);
    }
    assert!(net.engines[&there[0]].roster().epoch() > 1);
}

/// With two thirds of the weight a spare may come, whoever of the seats is gone: it brings the next draw with it.
#[test]
fn a_spare_is_let_in_for_a_seat_that_is_lost() {
    let (_guard, mut net, seated, others) = mesh();
    let (gone, there) = (&seated[..2], [&seated[2..], &others].concat());
    net.order(there[0], OperatorRelease::quarantine(node_id(gone[0])));
    net.split(gone, &there);
    let now = net.now + S;
    for i in there {
        let engine = net.engines.get_mut(&i).unwrap();
        assert_eq!(engine.no_spare_wanted(now), None, "node {i}");
    }
}

/// The votes of one incident may come to the desks in any order, and across the end of a minute.
#[test]
fn a_witness_at_the_end_of_an_epoch_is_heard_in_the_next() {
    let (_guard, mut net, _, others) = mesh();
    let [one, other] = two(&others);
    // The epoch begins.
    net.tick(1);
    net.sees(one, subject());
    // It gets lost on the way, and then there is a new epoch with other seats.
    net.queue.clear();
    net.now += 3_600 * S;
    net.sees(one, subject());
    net.sees(other, subject());
    net.queue.clear();
    for _ in 0..50 {
        net.tick(100_000);
        net.run();
    }
    assert!(net.roster().epoch() > 1);
    assert!(net.ids().iter().all(|i| net.blocks(*i, subject())));
    assert!(net.now < T0 + 3_600 * S + 2 * BUCKET_US);
}

/// What a seat passes on to others may be of no use, through no fault of its own. Not without end.
#[test]
fn a_seat_that_passes_on_the_same_for_ever_is_held_to_account() {
    let (_guard, mut net, seated, others) = mesh();
    let confirm = vote_of(&net, others[0], block(subject()), Verdict::Confirm, 1);
    let suspects = |net: &Net, at: u8| net.engines[&at].suspicions(net.now);
    for _ in 0..16_000 {
        net.inject(seated[1], seated[0], &confirm);
        net.inject(seated[1], others[1], &confirm);
    }
    for at in [seated[0], others[1]] {
        assert!(suspects(&net, at).is_empty());
    }
    for _ in 0..400 {
        net.inject(seated[1], seated[0], &confirm);
        net.inject(seated[1], others[1], &confirm);
    }
    for at in [seated[0], others[1]] {
        let held = suspects(&net, at);
        assert!(held.iter().all(|s| s.node == node_id(seated[1])) && !held.is_empty());
    }
}
