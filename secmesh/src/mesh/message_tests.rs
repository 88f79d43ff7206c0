use super::super::testing::*;
use super::*;
use crate::mesh::cert::MAX_CERT_VOTES;
use crate::mesh::decision::OperatorRelease;
use crate::mesh::genesis::Params;
use crate::mesh::ids::Hash;
use crate::mesh::vote::{Action, AttackClass, Verdict};
use proptest::prelude::*;

fn all() -> Vec<Message> {
    let roster = roster(&["a", "b", "c", "d"]);
    let block = Action::block(subject(), AttackClass::SynFlood, &Params::default());
    let vote = ballot(&roster, 1, block, Verdict::Confirm, 1, T0);
    let lie = ballot(&roster, 1, block, Verdict::Reject, 2, T0);
    let release = OperatorRelease::new(
        roster.mesh(),
        Hash([1; 32]),
        Action::release(subject()),
        T0,
        60,
    );
    let votes = [(1, Verdict::Confirm), (2, Verdict::Confirm)];
    vec![
        Message::Vote(Box::new(vote)),
        Message::Certificate(Box::new(certificate(&roster, block, &votes))),
        Message::Admission(Box::new(by_ticket(3, "a", 0x70))),
        Message::Grant(Box::new(grant(0x70))),
        Message::Equivocation(Box::new(
            EquivocationProof::new(vote.signed, lie.signed).unwrap(),
        )),
        Message::Release(Box::new(release.sign(&operator()))),
        Message::Decided(Announcement {
            decision: DecisionId([7; 32]),
            incident: IncidentId([8; 32]),
            round: 3,
        }),
        Message::WantDecision(DecisionId([7; 32])),
        Message::Batch(vec![vec![1, 2], vec![]]),
    ]
}

#[test]
fn every_message_is_read_back() {
    for message in all() {
        assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
    }
}

#[test]
fn the_largest_certificate_fits_a_message_and_a_batch() {
    let roster = roster(&["a"]);
    let block = Action::block(subject(), AttackClass::SynFlood, &Params::default());
    let mut large = certificate(&roster, block, &[(1, Verdict::Confirm)]);
    large.votes = vec![large.votes[0]; MAX_CERT_VOTES];
    let bytes = Message::Certificate(Box::new(large)).to_bytes();
    assert!(bytes.len() <= MAX_MESSAGE);
    let batches = pack([bytes.clone()]);
    assert_eq!(batches.len(), 1);
    assert_eq!(
        Message::from_bytes(&batches[0]),
        Ok(Message::Batch(vec![bytes]))
    );
}

#[test]
fn packing_keeps_everything_in_order_and_in_size() {
    let parts: Vec<Vec<u8>> = (0..2_000_u32)
        .map(|i| i.to_be_bytes().repeat(1 + (i as usize * 7) % 90))
        .collect();
    let mut unpacked = Vec::new();
    for batch in pack(parts.clone()) {
        assert!(batch.len() <= MAX_MESSAGE);
        let Ok(Message::Batch(parts)) = Message::from_bytes(&batch) else {
            panic!("a batch");
        };
        unpacked.extend(parts);
    }
    assert_eq!(unpacked, parts);
}

#[test]
fn votes_that_agree_or_are_about_different_things_prove_nothing() {
    let roster = roster(&["a", "b"]);
    let block = Action::block(subject(), AttackClass::SynFlood, &Params::default());
    let other = Action::block(subject(), AttackClass::UdpFlood, &Params::default());
    let vote = |i, action, verdict| ballot(&roster, i, action, verdict, 1, T0).signed;
    let confirm = vote(1, block, Verdict::Confirm);
    assert!(EquivocationProof::new(confirm, confirm).is_none());
    assert!(EquivocationProof::new(confirm, vote(1, other, Verdict::Confirm)).is_none());
    assert!(EquivocationProof::new(confirm, vote(2, block, Verdict::Confirm)).is_none());
    let proof = EquivocationProof::new(confirm, vote(1, block, Verdict::Reject)).unwrap();
    assert_eq!(proof.verify(&roster), Ok(()));
    // Nobody makes a liar of an honest node by inventing its second vote.
    let mut invented = vote(1, block, Verdict::Reject);
    invented.signature = vote(2, block, Verdict::Reject).signature;
    let forged = EquivocationProof::new(confirm, invented).unwrap();
    assert!(forged.verify(&roster).is_err());
}

proptest! {
    #[test]
    fn whatever_is_read_is_written_the_same(
        which in 0..7_usize, at: prop::sample::Index, value: u8,
    ) {
        let mut bytes = all()[which].to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(message) = Message::from_bytes(&bytes) {
            prop_assert_eq!(message.to_bytes(), bytes);
        }
    }

    #[test]
    fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Message::from_bytes(&bytes).is_err());
    }
}
