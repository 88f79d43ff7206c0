//! A committee decides for all.

use super::*;
use crate::mesh::decision::Warrant;
use crate::mesh::vote::BUCKET_US;

const NODES: u8 = 13;

/// 13 nodes, of whom 5 have a seat. The second: who has one, the third: who has none.
pub(super) fn mesh() -> (WithCommittee, Net, Vec<u8>, Vec<u8>) {
    let guard = WithCommittee::of(5);
    let net = Net::new(&[
        "a", "b", "c", "d", "e", "f", "a", "b", "c", "d", "e", "f", "a",
    ]);
    let (seated, others): (Vec<u8>, Vec<u8>) =
        (1..=NODES).partition(|i| net.roster().has_seat(&node_id(*i)));
    assert_eq!(seated.len(), 5);
    (guard, net, seated, others)
}

/// Two of these, of different zones.
pub(super) fn two(others: &[u8]) -> [u8; 2] {
    let other = others.iter().find(|i| !(**i - others[0]).is_multiple_of(6));
    [others[0], *other.unwrap()]
}

fn blocked(net: &Net) -> Vec<u8> {
    let blocks = |i: &u8| net.blocks(*i, subject());
    net.ids().into_iter().filter(blocks).collect()
}

/// Who is about to hear a vote.
fn told_votes(net: &Net) -> BTreeSet<u8> {
    let is_vote = |p: &&Packet| matches!(Message::from_bytes(&p.bytes), Ok(Message::Vote(_)));
    net.queue.iter().filter(is_vote).map(|p| p.to).collect()
}

fn votes_of(net: &Net, i: u8) -> usize {
    net.own_verdicts(i).len()
}

#[test]
fn the_seats_decide_and_everybody_has_the_certificate() {
    let (_guard, mut net, seated, _) = mesh();
    net.sees(seated[0], subject());
    net.sees(seated[1], subject());
    net.run();
    assert_eq!(blocked(&net).len(), 13);
    let voted = (1..=NODES).filter(|i| votes_of(&net, *i) > 0);
    assert!(voted.clone().all(|i| seated.contains(&i)));
    // Two of five are more than a third.
    assert_eq!(voted.count(), 2);
    for i in net.ids() {
        let engine = &net.engines[&i];
        let block = engine.active_block(&subject()).unwrap();
        let verdict = block.verdict.as_ref().unwrap();
        assert_eq!((verdict.total, verdict.needed), (5, 2));
    }
}

#[test]
fn what_two_without_a_seat_have_seen_is_blocked_by_all() {
    let (_guard, mut net, _, others) = mesh();
    let two = two(&others);
    net.sees(two[0], subject());
    net.run();
    assert!(blocked(&net).is_empty(), "one witness");
    net.sees(two[1], subject());
    net.run();
    assert_eq!(blocked(&net).len(), 13);
}

#[test]
fn all_are_attacked_at_once_and_few_messages_say_so() {
    let (_guard, mut net, seated, others) = mesh();
    for i in 1..=NODES {
        net.sees(i, subject());
    }
    let votes = |net: &Net, from: &[u8]| {
        let is_vote = |p: &&Packet| matches!(Message::from_bytes(&p.bytes), Ok(Message::Vote(_)));
        let votes = net.queue.iter().filter(is_vote);
        votes.filter(|p| from.contains(&p.from)).count()
    };
    assert_eq!(votes(&net, &others), 3 * others.len());
    assert_eq!(votes(&net, &seated), 4 * seated.len());
    assert!(net.queue.iter().all(|p| seated.contains(&p.to)));
    net.run();
    assert_eq!(blocked(&net).len(), 13);
}

#[test]
fn a_witness_goes_on_to_other_desks_when_nothing_comes_of_it() {
    let (_guard, mut net, _, others) = mesh();
    for i in two(&others) {
        net.sees(i, subject());
    }
    let desks = told_votes(&net);
    assert_eq!(desks.len(), 3);
    // The desks keep it to themselves.
    net.queue.clear();
    net.tick(100_000);
    assert!(told_votes(&net).is_empty(), "not yet");
    net.tick(200_000);
    let next = told_votes(&net);
    assert!(
        next.len() == 2 && next.is_disjoint(&desks),
        "{next:?} after {desks:?}"
    );
    net.run();
    assert_eq!(blocked(&net).len(), 13);
    // And then it is quiet about it.
    for _ in 0..20 {
        net.tick(300_000);
        assert!(told_votes(&net).is_empty());
        net.run();
    }
}

#[test]
fn a_certificate_without_seats_is_refused_however_many_signed_it() {
    let (_guard, mut net, seated, others) = mesh();
    let action = block(subject());
    let roster = net.roster().clone();
    let votes: Vec<(u8, Verdict)> = others.iter().map(|i| (*i, Verdict::Confirm)).collect();
    let made = Message::Certificate(Box::new(certificate(&roster, action, &votes)));
    net.inject(others[0], others[1], &made);
    assert_eq!(net.refused(others[1], RefusalReason::TooLight), 1);
    // Two witnesses without a seat, and two seats that agree.
    let mut votes: Vec<_> = two(&others).map(|i| (i, Verdict::Confirm)).to_vec();
    votes.push((seated[0], Verdict::Concur));
    let light = Message::Certificate(Box::new(certificate(&roster, action, &votes)));
    net.inject(others[0], others[2], &light);
    assert_eq!(net.refused(others[2], RefusalReason::TooLight), 1);
    votes.push((seated[1], Verdict::Concur));
    let enough = Message::Certificate(Box::new(certificate(&roster, action, &votes)));
    net.inject(others[0], others[2], &enough);
    assert!(net.blocks(others[2], subject()));
}

#[test]
fn only_a_seat_brings_the_word_of_another_and_only_of_a_witness_without_one() {
    let (_guard, mut net, seated, others) = mesh();
    let action = block(subject());
    let confirm = vote_of(&net, others[0], action, Verdict::Confirm, 1);
    net.inject(others[1], seated[0], &confirm);
    assert_eq!(net.refused(seated[0], RefusalReason::NotOwnVote), 1);
    let of_seat = vote_of(&net, seated[2], action, Verdict::Confirm, 1);
    net.inject(seated[1], seated[0], &of_seat);
    assert_eq!(net.refused(seated[0], RefusalReason::NotOwnVote), 2);
    let concur = vote_of(&net, others[0], action, Verdict::Concur, 1);
    net.inject(seated[1], seated[0], &concur);
    assert_eq!(net.refused(seated[0], RefusalReason::NotOwnVote), 3);
    // That one is as it should be; from a second desk it is no replay that is held against anybody.
    net.inject(seated[1], seated[0], &confirm);
    net.inject(seated[2], seated[0], &confirm);
    assert_eq!(net.refused(seated[0], RefusalReason::Replayed), 1);
    assert!(net.engines[&seated[0]].suspicions(net.now).is_empty());
    let incident = net.engines[&seated[0]].incidents.about(&subject().into());
    assert_eq!(incident.len(), 1);
}

#[test]
fn an_operator_at_a_node_without_a_seat_ends_a_block() {
    let (_guard, mut net, seated, others) = mesh();
    net.sees(seated[0], subject());
    net.sees(seated[1], subject());
    net.run();
    assert_eq!(blocked(&net).len(), 13);
    net.tick(60 * S);
    net.run();
    net.input(
        others[3],
        Input::OperatorRelease {
            subject: subject(),
            signed: None,
        },
    );
    net.run();
    for _ in 0..30 {
        net.tick(S / 5);
        net.run();
    }
    assert_eq!(blocked(&net), Vec::<u8>::new());
    assert!(
        others
            .iter()
            .filter(|i| **i != others[3])
            .all(|i| votes_of(&net, *i) == 0)
    );
}

/// Runs for so many tenths of a second; what `lost` picks gets lost.
pub(super) fn run_with_loss(net: &mut Net, tenths: u32, lost: impl Fn(&Packet) -> bool) {
    for _ in 0..tenths {
        while !net.queue.is_empty() {
            let packet = net.queue.remove(0);
            if !lost(&packet) {
                net.deliver(&packet);
            }
        }
        net.tick(100_000);
    }
}

#[test]
fn who_keeps_certificates_back_keeps_them_from_nobody() {
    for lazy in 0..5 {
        let (_guard, mut net, seated, _) = mesh();
        let mut active = seated.clone();
        active.remove(lazy);
        for i in two(&active) {
            net.sees(i, subject());
        }
        // No rumour goes round that soon.
        run_with_loss(&mut net, 4, |p| p.from == seated[lazy]);
        let mut without = net.ids();
        without.retain(|i| !net.blocks(*i, subject()));
        assert!(without.is_empty(), "{without:?}, lazy: {}", seated[lazy]);
    }
}

#[test]
fn who_is_below_liars_in_every_tree_hears_of_it_all_the_same() {
    let (_guard, mut net, seated, others) = mesh();
    let poor = others[0];
    net.sees(seated[0], subject());
    net.sees(seated[1], subject());
    // For half a second whatever is for it gets lost: that is the certificate and the word along the trees.
    run_with_loss(&mut net, 4, |p| p.to == poor);
    net.queue.retain(|p| p.to != poor);
    assert_eq!(blocked(&net).len(), 12);
    run_with_loss(&mut net, 40, |_| false);
    assert_eq!(blocked(&net).len(), 13);
}

#[test]
fn a_node_is_cut_off_by_the_seats_and_by_none_without_one() {
    let (_guard, mut net, seated, others) = mesh();
    let liar = others[0];
    let attacks = |net: &mut Net, i: u8| {
        net.input(
            i,
            Input::NodeAttacks {
                node: node_id(liar),
                evidence_root: Hash([i; 32]),
                detector_hash: Hash([0xdd; 32]),
            },
        );
    };
    for i in &others[1..] {
        attacks(&mut net, *i);
    }
    net.run();
    let cut_off = |net: &Net| {
        let cut = |i: &u8| net.engines[i].is_quarantined(&node_id(liar));
        net.ids().into_iter().filter(cut).count()
    };
    assert_eq!(cut_off(&net), 0);
    for i in &seated {
        attacks(&mut net, *i);
    }
    net.run();
    // The one that is cut off is told, too.
    assert_eq!(cut_off(&net), 13);
}

#[test]
fn the_state_is_that_of_the_committee() {
    let _guard = WithCommittee::of(5);
    let zones = [
        "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m",
    ];
    let mut net = Net::new(&zones);
    let (seated, others): (Vec<u8>, Vec<u8>) =
        (1..=NODES).partition(|i| net.roster().has_seat(&node_id(*i)));
    let state = net.engines[&seated[0]].quorum();
    assert_eq!((state.total_weight, state.t_lo, state.t_hi), (5, 2, 4));
    assert_eq!(
        state.committee,
        Some(CommitteeState {
            seats: 5,
            own_seat: true
        })
    );
    assert_eq!(state.state, QuorumLevel::Full);
    assert!(!net.engines[&others[0]].quorum().committee.unwrap().own_seat);
    // All without a seat gone: nothing is lost; three of the five seats: no class 2 any more.
    net.split(&seated, &others);
    assert_eq!(net.engines[&seated[0]].quorum().state, QuorumLevel::Full);
    net.split(&seated[..3], &seated[3..]);
    assert_eq!(
        net.engines[&seated[0]].quorum().state,
        QuorumLevel::Degraded
    );
    assert_eq!(
        net.engines[&others[0]].quorum().state,
        QuorumLevel::Isolated
    );
}

#[test]
fn with_as_many_seats_as_nodes_nothing_is_different() {
    let _guard = WithCommittee::of(4);
    let mut net = Net::four();
    assert!(net.roster().seats().is_none());
    net.sees(1, subject());
    net.sees(2, subject());
    net.run();
    assert_eq!(blocked(&net).len(), 4);
}

/// Two witnesses without a seat who name the attack differently, or in different minutes.
#[test]
fn two_witnesses_of_different_incidents_meet() {
    for minutes in [false, true] {
        let (_guard, mut net, _, others) = mesh();
        let [one, other] = two(&others);
        if minutes {
            net.now = (net.now / BUCKET_US + 1) * BUCKET_US - 100_000;
        }
        net.sees(one, subject());
        net.run();
        net.tick(200_000);
        net.run();
        let class = if minutes {
            AttackClass::SynFlood
        } else {
            AttackClass::PortScan
        };
        net.sees_class(other, subject(), class);
        net.run();
        assert_eq!(blocked(&net).len(), 13, "minutes: {minutes}");
    }
}

#[test]
fn who_has_no_seat_and_is_still_attacked_keeps_its_block() {
    let (_guard, mut net, seated, others) = mesh();
    net.sees(others[0], subject());
    net.sees(seated[0], subject());
    net.sees(seated[1], subject());
    net.run();
    assert_eq!(blocked(&net).len(), 13);
    net.tick(60 * S);
    net.run();
    *net.policies[&others[0]].noisy.borrow_mut() = true;
    let release = || Input::OperatorRelease {
        subject: subject(),
        signed: None,
    };
    net.input(others[3], release());
    net.run();
    run_with_loss(&mut net, 60, |_| false);
    assert_eq!(blocked(&net).len(), 13);
    *net.policies[&others[0]].noisy.borrow_mut() = false;
    net.tick(60 * S);
    net.run();
    net.input(others[4], release());
    run_with_loss(&mut net, 60, |_| false);
    assert_eq!(blocked(&net), Vec::<u8>::new());
}

#[test]
fn a_seat_takes_nothing_else_from_who_has_none() {
    let (_guard, mut net, seated, others) = mesh();
    let said = [
        (block(subject()), Verdict::Concur),
        (block(subject()), Verdict::Reject),
        (Action::release(subject()), Verdict::Concur),
        (Action::release(subject()), Verdict::Abstain),
        (
            Action::quarantine(node_id(seated[1]), AttackClass::HostileNode),
            Verdict::Confirm,
        ),
    ];
    for (sequence, (action, verdict)) in (1..).zip(said) {
        let vote = vote_of(&net, others[0], action, verdict, sequence);
        net.inject(others[0], seated[0], &vote);
        assert_eq!(net.refused(seated[0], RefusalReason::NoSeat), sequence);
    }
    // An operator is told why.
    let node = node_id(others[1]);
    net.input(others[0], Input::OperatorQuarantine { node });
    assert_eq!(net.refused(others[0], RefusalReason::NoSeat), 1);
}

#[test]
fn a_certificate_holds_no_more_witnesses_without_a_seat_than_it_needs() {
    let (_guard, mut net, seated, others) = mesh();
    let confirm = |net: &Net, i: u8| vote_of(net, i, block(subject()), Verdict::Confirm, 1);
    for i in &others {
        let vote = confirm(&net, *i);
        net.inject(*i, seated[0], &vote);
    }
    let decided = |net: &Net| net.engines[&seated[0]].active_block(&subject()).cloned();
    for i in &seated[1..] {
        if decided(&net).is_none() {
            let vote = vote_of(&net, *i, block(subject()), Verdict::Concur, 1);
            net.inject(*i, seated[0], &vote);
        }
    }
    let block = decided(&net).unwrap();
    let Warrant::Votes(certificate) = &block.warrant else {
        panic!("{block:?}")
    };
    // Two of eight witnesses, and two seats.
    let voters = certificate.votes.iter().map(|vote| &vote.voter);
    let without = voters.filter(|voter| !net.roster().has_seat(voter));
    assert_eq!((without.count(), certificate.votes.len()), (2, 4));
}

#[test]
fn after_a_restart_a_witness_hands_in_again_what_it_saw() {
    let (_guard, mut net, _, others) = mesh();
    let [one, other] = two(&others);
    net.sees(one, subject());
    // It gets lost, and so does the witness's memory.
    net.queue.clear();
    net.crash(one);
    net.links.retain(|(a, b)| *a != one && *b != one);
    net.connect_all();
    net.run();
    net.queue.clear();
    net.sees(one, subject());
    net.tick(100_000);
    net.run();
    net.sees(other, subject());
    net.run();
    net.tick(300_000);
    net.run();
    assert_eq!(blocked(&net).len(), 13);
}

#[test]
fn a_vote_passed_on_across_epochs_is_held_against_nobody() {
    let (_guard, mut net, seated, others) = mesh();
    // Of an epoch that has no committee.
    let other = roster(&["a", "b", "c", "d"]);
    let vote = ballot(
        &other,
        others[0],
        block(subject()),
        Verdict::Confirm,
        1,
        net.now,
    );
    net.inject(seated[1], seated[0], &Message::Vote(Box::new(vote)));
    assert_eq!(net.refused(seated[0], RefusalReason::WrongEpoch), 1);
    assert_eq!(net.refused_or_none(seated[0], RefusalReason::NotOwnVote), 0);
}

#[test]
fn a_vote_that_a_witness_is_shown_too_late_is_held_against_no_seat() {
    let (_guard, mut net, seated, others) = mesh();
    let showing = |net: &mut Net, from: u8, verdict: Verdict| {
        for sequence in 1..=40 {
            let vote = vote_of(net, others[1], block(subject()), verdict, sequence);
            net.inject(from, others[0], &vote);
        }
    };
    // It has seen nothing of that.
    showing(&mut net, seated[0], Verdict::Confirm);
    assert_eq!(net.refused(others[0], RefusalReason::NotOwnVote), 40);
    let against = |net: &Net, i: u8| {
        let all = net.engines[&others[0]].suspicions(net.now);
        all.iter().any(|s| s.node == node_id(i))
    };
    assert!(!against(&net, seated[0]));
    // No seat says such a thing for another, and who has none says nothing for anybody.
    showing(&mut net, seated[1], Verdict::Concur);
    showing(&mut net, others[2], Verdict::Confirm);
    assert!(against(&net, seated[1]) && against(&net, others[2]));
}

#[test]
fn word_that_finds_no_room_is_counted() {
    let (_guard, mut net, seated, _) = mesh();
    let one = seated[0];
    let engine = net.engines.get_mut(&one).unwrap();
    engine.spread.fill();
    net.sees(one, subject());
    net.sees(seated[1], subject());
    net.run();
    assert!(net.blocks(one, subject()));
    assert_eq!(net.refused(one, RefusalReason::Full), 1);
}
