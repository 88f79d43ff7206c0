//! What signatures that hold nothing cost, and whom.

use super::super::work::{BURST, MAX_FORGED, PER_SECOND, SEAL};
use super::epochs::wait;
use super::*;
use crate::mesh::cert::Certificate;
use crate::mesh::epoch::{EpochSeal, Sealed};

fn address(n: u16) -> Prefix {
    let [high, low] = n.to_be_bytes();
    format!("198.18.{high}.{low}").parse().unwrap()
}

/// A good certificate on the `n`th address.
fn good(net: &Net, n: u16) -> Certificate {
    let votes = [1, 2, 3].map(|i| (i, Verdict::Confirm));
    certificate(net.roster(), block(address(n)), &votes)
}

/// The `n`th of as many as one likes of which one signature is none.
fn forge(certificate: &Certificate, n: u16) -> Certificate {
    let mut forged = certificate.clone();
    let first = forged.votes.first_mut().unwrap();
    first.signature[2..4].copy_from_slice(&n.to_be_bytes());
    forged
}

fn send(net: &mut Net, from: u8, certificate: &Certificate) {
    net.inject(
        from,
        4,
        &Message::Certificate(Box::new(certificate.clone())),
    );
}

#[test]
fn forged_certificates_cost_so_much_and_the_same_one_once() {
    let mut net = Net::four();
    // Nobody cuts the liar off.
    *net.policies[&4].automatic.borrow_mut() = Automatic::Off;
    let genuine = good(&net, 1);
    for _ in 0..500 {
        send(&mut net, 2, &forge(&genuine, 0xffff));
    }
    assert_eq!(net.engines[&4].signatures_checked(), 3);
    // Nor does it help to send them through others.
    send(&mut net, 3, &forge(&genuine, 0xffff));
    assert_eq!(net.engines[&4].signatures_checked(), 3);
    for n in 0..2_000 {
        send(&mut net, 2, &forge(&genuine, n));
    }
    let burst = u64::from(BURST);
    let checked = net.engines[&4].signatures_checked();
    assert!(checked <= burst && checked > burst - 3, "{checked}");
    assert!(net.refused(4, RefusalReason::TooMuchWork) > 600);
    // What it has left it has for itself: others are heard, and it is again after a while.
    let (second, third) = (good(&net, 2), good(&net, 3));
    send(&mut net, 2, &second);
    assert!(!net.blocks(4, address(2)));
    send(&mut net, 3, &second);
    assert!(net.blocks(4, address(2)));
    net.now += S;
    send(&mut net, 2, &third);
    assert!(net.blocks(4, address(3)));
    for n in 2_000..3_000 {
        send(&mut net, 2, &forge(&genuine, n));
    }
    let since = net.engines[&4].signatures_checked() - checked;
    assert!(since <= u64::from(PER_SECOND) + 6, "{since}");
}

#[test]
fn what_was_missed_in_a_partition_passes_however_much_it_is() {
    let mut net = Net::four();
    let all: Vec<Certificate> = (0..2_000).map(|n| good(&net, n)).collect();
    for certificate in &all {
        send(&mut net, 1, certificate);
    }
    assert!(net.engines[&4].signatures_checked() > u64::from(BURST));
    assert!((0..2_000).all(|n| net.blocks(4, address(n))));
    assert_eq!(net.refused_or_none(4, RefusalReason::TooMuchWork), 0);
    // And costs nothing the second time.
    let checked = net.engines[&4].signatures_checked();
    for certificate in &all {
        send(&mut net, 2, certificate);
    }
    assert_eq!(net.engines[&4].signatures_checked(), checked);
}

#[test]
fn certificates_that_held_once_are_paid_for() {
    let mut net = epochs::grown();
    let alone = roster(&["a"]);
    for n in 0..5_000 {
        let outvoted = certificate(&alone, block(address(n)), &[(1, Verdict::Confirm)]);
        send(&mut net, 1, &outvoted);
    }
    let checked = net.engines[&4].signatures_checked();
    assert!(checked <= u64::from(BURST) + 100, "{checked}");
    assert!(net.refused(4, RefusalReason::TooMuchWork) > 800);
}

#[test]
fn forged_seals_cost_so_much_and_the_same_one_once() {
    let mut net = Net::four();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    wait(&mut net, 3);
    let roster = net.engines[&4].roster();
    let seal = Sealed {
        mesh: roster.mesh(),
        number: roster.epoch(),
        hash: roster.epoch_hash(),
        node: node_id(3),
    }
    .sign(&pq(3))
    .unwrap();
    let forged = |n: u16| -> Message {
        let mut forged: EpochSeal = seal.clone();
        forged.signature[1_000..1_002].copy_from_slice(&n.to_be_bytes());
        Message::EpochSeal(Box::new(forged))
    };
    let price = u64::try_from(SEAL).unwrap();
    let before = net.engines[&4].signatures_checked();
    for _ in 0..100 {
        net.inject(2, 4, &forged(7));
    }
    assert_eq!(net.engines[&4].signatures_checked() - before, price);
    for n in 100..1_400 {
        net.inject(2, 4, &forged(n));
    }
    let cost = net.engines[&4].signatures_checked() - before;
    assert!(cost <= u64::from(BURST) + price, "{cost}");
    assert!(net.refused(4, RefusalReason::TooMuchWork) > 200);
    net.inject(3, 4, &Message::EpochSeal(Box::new(seal.clone())));
    let sealed = net.outputs[&4].iter();
    let sealed = sealed
        .filter(|o| matches!(o, Output::SealSeen { seal, .. } if seal.sealed.node == node_id(3)));
    assert_eq!(sealed.count(), 1);
}

#[test]
fn forged_epochs_cost_so_much() {
    let mut net = Net::four();
    net.input(1, Input::Admit(Box::new(by_ticket(5, "e", 0x70))));
    wait(&mut net, 3);
    let epoch = net.engines[&1].epoch().unwrap().clone();
    for next in [false, true] {
        let before = net.engines[&4].signatures_checked();
        for n in 0..2_000_u16 {
            let mut forged = epoch.clone();
            if next {
                forged.record.previous = epoch.record.hash();
                forged.record.number += 1;
            } else {
                forged.record.params.length_s += 1;
            }
            let signature = &mut forged.precommits.signatures.last_mut().unwrap().1;
            signature[2..4].copy_from_slice(&n.to_be_bytes());
            // Two peers, each at its own cost.
            net.inject(2 + u8::from(next), 4, &Message::Epoch(Box::new(forged)));
        }
        let cost = net.engines[&4].signatures_checked() - before;
        assert!(cost <= u64::from(BURST) && cost > 3_000, "{cost}");
    }
    assert_eq!(net.engines[&4].roster().epoch_hash(), epoch.record.hash());
}

#[test]
fn what_is_remembered_of_forgeries_is_bounded() {
    let mut net = Net::four();
    *net.policies[&4].automatic.borrow_mut() = Automatic::Off;
    let genuine = good(&net, 1);
    let most = u16::try_from(MAX_FORGED).unwrap();
    for n in 0..=most {
        net.now += S / 50;
        send(&mut net, 2, &forge(&genuine, n));
    }
    let checked = net.engines[&4].signatures_checked();
    // The first was forgotten, the last was not.
    send(&mut net, 2, &forge(&genuine, most));
    assert_eq!(net.engines[&4].signatures_checked(), checked);
    send(&mut net, 2, &forge(&genuine, 0));
    assert!(net.engines[&4].signatures_checked() > checked);
}
