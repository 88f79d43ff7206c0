//! A node, its ledger, and witnesses, without files or sockets.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::ledger::checkpoint::Checkpoint;
use crate::merkle::Tree;
use crate::mesh::pq::PqSigner;

/// A node whose ledger is a tree of numbers.
struct Author {
    node: NodeId,
    key: SigningKey,
    pq: PqSigner,
    tree: Tree,
}

impl Author {
    fn new(n: u8) -> Self {
        Self {
            node: NodeId([n; 16]),
            key: SigningKey::from_bytes(&[n; 32]),
            pq: PqSigner::from_seed(&[n; 32]).unwrap(),
            tree: Tree::default(),
        }
    }

    fn keys(&self) -> AuthorKeys {
        AuthorKeys {
            node: self.node.0,
            key: self.key.verifying_key().to_bytes(),
            pq: self.pq.public().clone(),
        }
    }

    fn log(&self) -> LogKeys {
        LogKeys {
            node: self.node,
            key: self.key.verifying_key().to_bytes(),
            pq_key_hash: self.pq.public().hash(),
        }
    }

    fn grow(&mut self, until: u64, with: u8) {
        while self.tree.size() < until {
            self.tree.push(&[with]);
        }
    }

    fn signed(&self, size: u64, time_s: u64) -> SignedCheckpoint {
        let root = self.tree.root_at(size).unwrap();
        let note = Checkpoint::of(&self.node.0, size, root)
            .sign(&self.key, &self.pq, time_s)
            .unwrap();
        SignedCheckpoint::verify(note.to_string().as_bytes(), &self.keys()).unwrap()
    }

    fn offer(&self, old: u64, new: u64, time_s: u64) -> Offer {
        Offer {
            old_size: old,
            proof: self.tree.consistency(old, new).unwrap_or_default(),
            note: self.signed(new, time_s).note.to_string().into_bytes(),
            pq: Some(self.pq.public().clone()),
        }
    }
}

fn witness(n: u8) -> Witness {
    Witness::new(NodeId([n; 16]), SigningKey::from_bytes(&[n; 32]))
}

fn outcome(step: &Step) -> &Outcome {
    &step.answer.as_ref().unwrap().outcome
}

fn cosigned(step: &Step) -> bool {
    matches!(outcome(step), Outcome::Cosigned { .. })
}

#[test]
fn a_ledger_that_grows_is_cosigned_and_remembered_first() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(10, 1);
    let step = w.offer(&author.log(), &author.offer(0, 4, 100), 7);
    assert!(cosigned(&step) && step.persist.is_some() && step.fork.is_none());
    w.written(&author.node);
    // The answer was lost: the same again, with nothing to remember.
    let again = w.offer(&author.log(), &author.offer(0, 4, 100), 8);
    assert!(cosigned(&again) && again.persist.is_none());
    let step = w.offer(&author.log(), &author.offer(4, 9, 101), 9);
    assert!(cosigned(&step));
    // After a crash, the memory on the disk is the witness's memory.
    let mut restarted = witness(9);
    restarted
        .restore(&author.log(), &step.persist.unwrap())
        .unwrap();
    assert_eq!(restarted.size_of(&author.node), Some(9));
    let back = restarted.offer(&author.log(), &author.offer(4, 6, 101), 10);
    assert!(matches!(outcome(&back), Outcome::Knows(Some(_))));
    assert!(back.persist.is_none());
}

#[test]
fn what_could_not_be_written_is_to_be_written_before_it_is_cosigned() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(10, 1);
    let first = w.offer(&author.log(), &author.offer(0, 4, 100), 7);
    assert!(first.persist.is_some());
    // The disk was full. The node offers the same again.
    let again = w.offer(&author.log(), &author.offer(0, 4, 100), 8);
    assert_eq!(again.persist, first.persist);
    w.written(&author.node);
    let again = w.offer(&author.log(), &author.offer(0, 4, 100), 9);
    assert!(cosigned(&again) && again.persist.is_none());
    // And the next one is to be written again.
    assert!(
        w.offer(&author.log(), &author.offer(4, 9, 101), 10)
            .persist
            .is_some()
    );
    assert!(
        w.offer(&author.log(), &author.offer(4, 9, 101), 11)
            .persist
            .is_some()
    );
}

#[test]
fn the_key_is_asked_for_once() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(3, 1);
    let mut offer = author.offer(0, 3, 1);
    offer.pq = None;
    assert_eq!(
        outcome(&w.offer(&author.log(), &offer, 1)),
        &Outcome::NeedsKey
    );
    offer.pq = Some(Author::new(2).pq.public().clone());
    let step = w.offer(&author.log(), &offer, 1);
    assert_eq!(step.refused, Some(WitnessRefusal::BadCheckpoint));
    assert!(step.answer.is_none());
    offer.pq = Some(author.pq.public().clone());
    assert!(cosigned(&w.offer(&author.log(), &offer, 1)));
    offer.pq = None;
    assert!(cosigned(&w.offer(&author.log(), &offer, 1)));
}

#[test]
fn a_rollback_is_answered_with_what_is_known_and_a_later_one_is_a_proof() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(10, 1);
    assert!(cosigned(&w.offer(
        &author.log(),
        &author.offer(0, 8, 100),
        1
    )));
    // An old checkpoint that comes late proves nothing.
    let step = w.offer(&author.log(), &author.offer(0, 5, 100), 1);
    let Outcome::Knows(Some(note)) = outcome(&step) else {
        panic!("{step:?}");
    };
    let known = SignedCheckpoint::verify(note, &author.keys()).unwrap();
    assert_eq!((known.checkpoint.size, step.fork), (8, None));
    // Signed after the larger one, it does.
    let step = w.offer(&author.log(), &author.offer(0, 5, 101), 1);
    let proof = step.fork.expect("a rollback");
    assert_eq!(proof.node(), author.node);
    let log = author.log();
    proof.verify_with(&log.key, &log.pq_key_hash).unwrap();
    assert!(!matches!(
        step.answer.unwrap().outcome,
        Outcome::Cosigned { .. }
    ));
    assert_eq!(w.size_of(&author.node), Some(8), "what is known stays");
}

#[test]
fn a_rewritten_ledger_is_not_cosigned() {
    let (mut honest, mut other, mut w) = (Author::new(1), Author::new(1), witness(9));
    honest.grow(6, 1);
    other.grow(12, 2);
    assert!(cosigned(&w.offer(
        &honest.log(),
        &honest.offer(0, 6, 100),
        1
    )));
    // Longer, with the proof that its own tree gives.
    let step = w.offer(&other.log(), &other.offer(6, 12, 101), 1);
    assert_eq!(outcome(&step), &Outcome::Inconsistent);
    assert_eq!(step.refused, Some(WitnessRefusal::Inconsistent));
    assert!(step.persist.is_none());
    // Of the same size it is a proof.
    let step = w.offer(&other.log(), &other.offer(0, 6, 101), 1);
    assert!(step.fork.is_some() && step.persist.is_none());
    assert_eq!(w.size_of(&honest.node), Some(6));
}

#[test]
fn two_witnesses_find_a_split_view() {
    let (mut one, mut two) = (Author::new(1), Author::new(1));
    one.grow(6, 1);
    two.grow(6, 2);
    let (mut a, mut b) = (witness(8), witness(9));
    assert!(cosigned(&a.offer(&one.log(), &one.offer(0, 6, 100), 1)));
    assert!(cosigned(&b.offer(&two.log(), &two.offer(0, 6, 100), 1)));
    let told: Vec<LedgerMessage> = a.last_seen(&one.node).into_iter().collect();
    let [LedgerMessage::Seen { node, note }] = told.as_slice() else {
        panic!("{told:?}");
    };
    let log = one.log();
    assert_eq!(*node, log.node);
    let proof = b.seen(&log, note).expect("two roots of one size");
    proof.verify_with(&log.key, &log.pq_key_hash).unwrap();
    // What it knows itself, or does not know, is no proof.
    assert_eq!(a.seen(&log, note), None);
    assert_eq!(witness(7).seen(&log, note), None);
    assert_eq!(b.seen(&log, b"nonsense"), None);
}

#[test]
fn a_stranger_offers_nothing() {
    let (mut author, other, mut w) = (Author::new(1), Author::new(2), witness(9));
    author.grow(3, 1);
    let offer = author.offer(0, 3, 1);
    let step = w.offer(&other.log(), &offer, 1);
    assert_eq!(step.refused, Some(WitnessRefusal::BadCheckpoint));
    let mut forged = offer.clone();
    let text = String::from_utf8(forged.note).unwrap();
    forged.note = text.replace("\n3\n", "\n4\n").into_bytes();
    let step = w.offer(&author.log(), &forged, 1);
    assert_eq!(step.refused, Some(WitnessRefusal::BadCheckpoint));
    assert_eq!(w.size_of(&author.node), None);
}

#[test]
fn a_damaged_memory_is_noticed() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(3, 1);
    let bytes = w
        .offer(&author.log(), &author.offer(0, 3, 1), 1)
        .persist
        .unwrap();
    let mut fresh = witness(9);
    assert!(fresh.restore(&Author::new(2).log(), &bytes).is_err());
    for at in (0..bytes.len()).step_by(37) {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(fresh.restore(&author.log(), &bad).is_err(), "byte {at}");
        assert!(fresh.restore(&author.log(), &bytes[..at]).is_err());
    }
    assert!(bytes.len() as u64 <= MAX_FILE);
    fresh.restore(&author.log(), &bytes).unwrap();
}

/// Publisher and witness together, whatever the publisher believes at first.
fn converge(publisher: &mut Publisher, author: &Author, w: &mut Witness) -> Vec<Told> {
    let log = LogKeys {
        node: w.node,
        key: w.key.verifying_key().to_bytes(),
        pq_key_hash: [0; 32],
    };
    let mut told = Vec::new();
    while let Some((old, new)) = publisher.wanted(log.node) {
        let proof = author.tree.consistency(old, new).unwrap();
        let offer = publisher.offer(log.node, old, proof).unwrap();
        let message = LedgerMessage::Offer(Box::new(offer));
        let Ok(LedgerMessage::Offer(offer)) = LedgerMessage::from_bytes(8, &message.to_bytes())
        else {
            panic!("an offer is read back");
        };
        let Some(answer) = w.offer(&author.log(), &offer, 50).answer else {
            break;
        };
        told.push(publisher.answered(&log, &answer));
        if told.last() != Some(&Told::Again) {
            break;
        }
    }
    told
}

#[test]
fn a_publisher_that_forgot_finds_out_what_its_witness_has() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(20, 1);
    let mut publisher = Publisher::new(author.keys());
    let there = BTreeSet::from([w.node]);
    assert_eq!(publisher.publish(author.signed(5, 10), &there), [w.node]);
    let told = converge(&mut publisher, &author, &mut w);
    let [Told::Cosigned(signed)] = told.as_slice() else {
        panic!("{told:?}");
    };
    let key = w.key.verifying_key().to_bytes();
    assert!(signed.cosignature(&[9; 16], &key).unwrap().is_some());
    let todo = publisher.publish(author.signed(5, 10), &there);
    assert!(todo.is_empty(), "nothing to do");
    // Restarted: it thinks that the witness has nothing.
    let mut publisher = Publisher::new(author.keys());
    publisher.publish(author.signed(12, 11), &BTreeSet::new());
    let told = converge(&mut publisher, &author, &mut w);
    assert!(matches!(told.as_slice(), [Told::Again, Told::Cosigned(_)]));
    // The witness restarted with nothing: not even the key.
    let mut empty = witness(9);
    publisher.publish(author.signed(15, 12), &BTreeSet::new());
    let told = converge(&mut publisher, &author, &mut empty);
    assert!(
        matches!(
            told.as_slice(),
            [Told::Again, Told::Again, Told::Cosigned(_)]
        ),
        "{told:?}"
    );
}

#[test]
fn a_checkpoint_that_was_signed_while_nobody_was_there_is_offered_to_who_comes() {
    let mut author = Author::new(1);
    author.grow(5, 1);
    let (signed, mut publisher) = (author.signed(5, 10), Publisher::new(author.keys()));
    let mut asked = |nodes: &[u8]| {
        let there = nodes.iter().map(|n| NodeId([*n; 16])).collect();
        let mut asked = publisher.publish(signed.clone(), &there);
        for node in &asked {
            assert_eq!(publisher.wanted(*node), Some((0, 5)));
        }
        asked.sort_unstable();
        asked.into_iter().map(|node| node.0[0]).collect::<Vec<u8>>()
    };
    assert!(asked(&[]).is_empty());
    assert_eq!(asked(&[8]), [8]);
    assert_eq!(asked(&[8, 9]), [8, 9]);
    assert_eq!(asked(&[8, 9]), [8, 9]);
    // Neither answers, and the first was asked often enough.
    assert_eq!(asked(&[8, 9]), [9]);
    assert!(asked(&[8, 9]).is_empty());
    // One that comes back may be another process.
    publisher.gone(&NodeId([8; 16]));
    assert_eq!(
        publisher.publish(signed, &BTreeSet::from([NodeId([8; 16])])),
        [NodeId([8; 16])]
    );
}

#[test]
fn a_node_whose_ledger_was_cut_back_learns_it_from_its_witness() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(20, 1);
    let mut publisher = Publisher::new(author.keys());
    publisher.publish(author.signed(15, 100), &BTreeSet::new());
    converge(&mut publisher, &author, &mut w);
    // From a backup, with the clock of then.
    let mut publisher = Publisher::new(author.keys());
    publisher.publish(author.signed(8, 90), &BTreeSet::new());
    assert_eq!(
        converge(&mut publisher, &author, &mut w),
        [Told::KnowsMore { size: 15 }]
    );
}

#[test]
fn answers_that_are_not_true_change_nothing() {
    let (mut author, mut w) = (Author::new(1), witness(9));
    author.grow(5, 1);
    let mut publisher = Publisher::new(author.keys());
    let signed = author.signed(5, 10);
    publisher.publish(signed.clone(), &BTreeSet::new());
    let (old, new) = publisher.wanted(NodeId([9; 16])).unwrap();
    let offer = publisher.offer(
        NodeId([9; 16]),
        old,
        author.tree.consistency(old, new).unwrap(),
    );
    let answer = w.offer(&author.log(), &offer.unwrap(), 5).answer.unwrap();
    let witness = |n: u8, key: &SigningKey| LogKeys {
        node: NodeId([n; 16]),
        key: key.verifying_key().to_bytes(),
        pq_key_hash: [0; 32],
    };
    // Not asked, another's key, another root.
    let key = w.key.clone();
    assert_eq!(
        publisher.answered(&witness(7, &key), &answer),
        Told::Nothing
    );
    assert_eq!(
        publisher.answered(&witness(9, &author.key), &answer),
        Told::Nothing
    );
    let other = Answer {
        root: [1; 32],
        ..answer.clone()
    };
    assert_eq!(publisher.answered(&witness(9, &key), &other), Told::Nothing);
    let lie = Answer {
        outcome: Outcome::Knows(Some(b"no note".to_vec())),
        ..answer.clone()
    };
    assert_eq!(publisher.answered(&witness(9, &key), &lie), Told::Nothing);
    assert!(matches!(
        publisher.answered(&witness(9, &key), &answer),
        Told::Cosigned(_)
    ));
}

#[test]
fn witnesses_are_the_same_while_they_are_there_and_few() {
    let publisher = Publisher::new(Author::new(1).keys());
    let all: BTreeSet<NodeId> = (1..=30).map(|n| NodeId([n; 16])).collect();
    let chosen = publisher.choose(&all);
    assert_eq!(chosen.len(), WITNESSES);
    assert!(!chosen.contains(&NodeId([1; 16])));
    assert_eq!(publisher.choose(&all), chosen);
    let mut fewer = all.clone();
    fewer.remove(&chosen[0]);
    assert_eq!(publisher.choose(&fewer)[..WITNESSES - 1], chosen[1..]);
    let other = Publisher::new(Author::new(2).keys());
    assert_ne!(other.choose(&all), chosen);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_are_read_back_and_nothing_else_is(kind in 7u8..13, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = LedgerMessage::from_bytes(kind, &bytes) {
            prop_assert_eq!(message.kind(), kind);
            prop_assert_eq!(message.to_bytes(), bytes);
        }
    }

    /// Whatever is offered in whatever order, a witness cosigns only along one history.
    #[test]
    fn what_is_cosigned_is_one_history(offers in proptest::collection::vec((any::<bool>(), 0u64..12, 1u64..12), 1..12)) {
        let (mut a, mut b) = (Author::new(1), Author::new(1));
        a.grow(12, 1);
        b.grow(4, 1);
        b.grow(12, 2);
        let mut w = witness(9);
        let mut seen: Vec<SignedCheckpoint> = Vec::new();
        for (first, old, new) in offers {
            let author = if first { &a } else { &b };
            let old = old.min(new);
            let step = w.offer(&author.log(), &author.offer(old, new, 100), 1);
            if step.answer.as_ref().is_some_and(|a| matches!(a.outcome, Outcome::Cosigned { .. })) {
                seen.push(author.signed(new, 100));
            }
        }
        let history = |author: &Author| seen.iter().all(|s| {
            s.checkpoint.root == author.tree.root_at(s.checkpoint.size).unwrap()
        });
        prop_assert!(history(&a) || history(&b));
        prop_assert!(seen.windows(2).all(|w| w[0].checkpoint.size <= w[1].checkpoint.size));
    }
}
