//! The agreement of one voter, fed by hand.

use super::*;
use crate::mesh::epoch::EpochParams;
use crate::mesh::roster::Registry;
use crate::mesh::testing::{genesis, node_id, records, signer};

const S: u64 = 1_000_000;

/// What a node finds of records, as a test sets it.
struct Rules {
    fresh: Option<EpochRecord>,
    /// Whether what changes with time (removals, tickets, clocks) speaks for a record.
    eligible: bool,
    voters: Vec<u8>,
}

impl App for Rules {
    fn fresh(&self) -> Option<EpochRecord> {
        self.fresh.clone()
    }

    fn is_valid(&self, _: &EpochRecord) -> bool {
        self.eligible
    }

    fn is_sound(&self, _: &EpochRecord) -> bool {
        true
    }

    fn members(&self, _: &EpochRecord) -> Option<BTreeSet<NodeId>> {
        Some(self.voters.iter().map(|i| node_id(*i)).collect())
    }
}

fn roster(zones: &[&str]) -> Roster {
    let mut registry = Registry::default();
    for record in records(zones) {
        registry.offer(record);
    }
    let first = registry.first_epoch(genesis().mesh_id(), &genesis().params);
    registry.roster(&first).unwrap()
}

/// Some record that could follow; `length_s` tells them apart.
fn record(before: &Roster, length_s: u32) -> EpochRecord {
    EpochRecord {
        mesh: before.mesh(),
        number: before.epoch() + 1,
        previous: before.epoch_hash(),
        members: Vec::new(),
        params: EpochParams {
            length_s,
            probation: 0,
        },
        frontier: crate::mesh::evidence::Frontier::default(),
    }
}

fn lock(before: &Roster, i: u8) -> Lock {
    Lock::new(LockConfig {
        before: before.clone(),
        node: node_id(i),
        incarnation: 1,
        signer: signer(i),
    })
}

fn vote(before: &Roster, i: u8, round: u32, step: Step, value: Option<Hash>) -> SignedEpochVote {
    EpochVote {
        mesh: before.mesh(),
        number: before.epoch() + 1,
        previous: before.epoch_hash(),
        round,
        step,
        value,
        voter: node_id(i),
        incarnation: 1,
    }
    .sign(&signer(i))
}

fn proposal(before: &Roster, i: u8, round: u32, record: &EpochRecord) -> Proposal {
    Proposal {
        record: record.clone(),
        signed: vote(before, i, round, Step::Propose, Some(record.hash())),
        polka: None,
    }
}

fn polka(before: &Roster, round: u32, record: &EpochRecord, voters: &[u8]) -> VoteSet {
    let mut signatures: Vec<_> = voters
        .iter()
        .map(|i| {
            let signed = vote(before, *i, round, Step::Prevote, Some(record.hash()));
            (node_id(*i), signed.signature)
        })
        .collect();
    signatures.sort_unstable();
    VoteSet { round, signatures }
}

fn proposer(lock: &Lock, round: u32) -> u8 {
    let node = lock.proposer(round).unwrap();
    (1..=4).find(|i| node_id(*i) == node).unwrap()
}

fn rules(fresh: Option<EpochRecord>) -> Rules {
    Rules {
        fresh,
        eligible: true,
        voters: vec![1, 2, 3, 4],
    }
}

/// All that this node said, and the votes among it.
fn said(out: &[LockOut]) -> Vec<EpochVote> {
    out.iter()
        .filter_map(|o| match o {
            LockOut::Vote(signed) => Some(signed.vote),
            LockOut::Propose(proposal) => Some(proposal.signed.vote),
            _ => None,
        })
        .collect()
}

fn never_contradicts_itself(out: &[LockOut]) {
    let mut slots = BTreeMap::new();
    for vote in said(out) {
        let other = slots.insert((vote.round, vote.step), vote.value);
        assert!(other.is_none_or(|value| value == vote.value), "{vote:?}");
    }
}

#[test]
fn what_t_hi_prevoted_for_stays_valid_though_somebody_in_it_was_removed_since() {
    let before = roster(&["a", "b", "c", "d"]);
    let mut lock = lock(&before, 1);
    let value = record(&before, 1);
    let mut rules = rules(None);
    let mut out = Vec::new();
    let by = proposer(&lock, 0);
    if by == 1 {
        rules.fresh = Some(value.clone());
    } else {
        lock.take_proposal(proposal(&before, by, 0, &value), &mut out);
    }
    lock.advance(S, &rules, &mut out);
    for i in [2, 3, 4] {
        let prevote = vote(&before, i, 0, Step::Prevote, Some(value.hash()));
        lock.take_vote(prevote, &mut out);
    }
    lock.advance(2 * S, &rules, &mut out);
    assert_eq!(lock.locked, Some((0, value.hash())));
    // The operator removes a node that the record lets in. This node is locked on it all the same, and
    // so may be others: nothing else can be decided any more.
    rules.eligible = false;
    let round = (1..8).find(|r| proposer(&lock, *r) != 1).unwrap();
    let by = proposer(&lock, round);
    let again = Proposal {
        polka: Some(polka(&before, 0, &value, &[2, 3, 4])),
        ..proposal(&before, by, round, &value)
    };
    lock.enter(round, 3 * S);
    lock.take_proposal(again, &mut out);
    let mut out = Vec::new();
    lock.advance(4 * S, &rules, &mut out);
    for i in [2, 3, 4] {
        let prevote = vote(&before, i, round, Step::Prevote, Some(value.hash()));
        lock.take_vote(prevote, &mut out);
    }
    lock.advance(20 * S, &rules, &mut out);
    let voted: Vec<_> = said(&out)
        .into_iter()
        .filter(|v| v.round == round)
        .map(|v| (v.step, v.value))
        .collect();
    let value = Some(value.hash());
    assert!(voted.contains(&(Step::Prevote, value)), "{voted:?}");
    assert!(voted.contains(&(Step::Precommit, value)), "{voted:?}");
}
#[test]
fn a_proposer_that_comes_back_without_its_proposal_still_ends_the_round() {
    let before = roster(&["a", "b", "c", "d"]);
    let me = proposer(&lock(&before, 1), 0);
    let rules = rules(Some(record(&before, 1)));
    let mut first = lock(&before, me);
    let mut out = Vec::new();
    first.advance(S, &rules, &mut out);
    // The disk took the proposal, and not the prevote that followed.
    let LockOut::Persist(bytes) = &out[0] else {
        panic!("{out:?}")
    };
    let state = LockState::from_bytes(bytes).unwrap();
    let mut again = lock(&before, me);
    assert!(again.restore(state));
    let mut out = Vec::new();
    for second in 2..10 {
        again.advance(second * S, &rules, &mut out);
    }
    let prevoted = said(&out).iter().any(|v| v.step == Step::Prevote);
    assert!(prevoted, "the others may wait for it for ever");
    never_contradicts_itself(&out);
}

#[test]
fn the_last_round_of_all_makes_nobody_vote_twice() {
    let before = roster(&["a", "b"]);
    let (me, other) = (1, 2);
    let rules = Rules {
        voters: vec![1, 2],
        ..rules(Some(record(&before, 1)))
    };
    let mut lock = lock(&before, me);
    let mut out = Vec::new();
    let far = u32::MAX;
    let mut now = S;
    assert!(!lock.take_vote(vote(&before, other, far, Step::Prevote, None), &mut out));
    lock.advance(now, &rules, &mut out);
    assert!(lock.round().is_some_and(|round| round < 2), "{lock:?}");
    // Where the last round is reached all the same, it is the last.
    lock.enter(far, now);
    for _ in 0..10 {
        for step in [Step::Prevote, Step::Precommit] {
            lock.take_vote(vote(&before, other, far, step, None), &mut out);
        }
        now += 60 * S;
        lock.advance(now, &rules, &mut out);
    }
    let record = record(&before, 9);
    lock.take_proposal(proposal(&before, other, far, &record), &mut out);
    lock.advance(now + 60 * S, &rules, &mut out);
    never_contradicts_itself(&out);
}

#[test]
fn a_round_is_entered_once() {
    let before = roster(&["a", "b", "c", "d"]);
    let rules = rules(Some(record(&before, 1)));
    let mut lock = lock(&before, 1);
    let mut out = Vec::new();
    lock.advance(S, &rules, &mut out);
    lock.advance(10 * S, &rules, &mut out);
    let own = lock.own.clone();
    assert!(!own.is_empty());
    lock.enter(lock.round, 11 * S);
    assert_eq!(lock.own, own);
}

#[test]
fn of_one_proposer_one_record_a_round_is_kept_however_many_it_sends() {
    let before = roster(&["a", "b", "c", "d"]);
    let first = lock(&before, 1);
    let round = (0..4).find(|r| proposer(&first, *r) != 1).unwrap();
    let liar = proposer(&first, round);
    let mut lock = lock(&before, 1);
    let mut out = Vec::new();
    for length_s in 1..=50 {
        let record = record(&before, length_s);
        lock.take_proposal(proposal(&before, liar, round, &record), &mut out);
    }
    assert!(out.iter().any(|o| matches!(o, LockOut::Lied(_))));
    assert_eq!(lock.records.len(), 1);
}

#[test]
fn a_copy_without_the_prevotes_does_not_keep_the_proposal_out() {
    let before = roster(&["a", "b", "c", "d"]);
    let mut lock = lock(&before, 1);
    let round = (1..8).find(|r| proposer(&lock, *r) != 1).unwrap();
    let by = proposer(&lock, round);
    let value = record(&before, 1);
    let bare = proposal(&before, by, round, &value);
    let whole = Proposal {
        polka: Some(polka(&before, 0, &value, &[2, 3, 4])),
        ..bare.clone()
    };
    let bogus = Proposal {
        polka: Some(VoteSet {
            round: 0,
            signatures: vec![(node_id(2), [7; 64])],
        }),
        ..bare.clone()
    };
    let rules = rules(None);
    let mut out = Vec::new();
    for copy in [bare, bogus, whole] {
        lock.take_proposal(copy, &mut out);
    }
    // Locked on something else in the same round as the prevotes that the proposal shows.
    lock.locked = Some((0, Hash([9; 32])));
    lock.enter(round, S);
    for second in 2..30 {
        lock.advance(second * S, &rules, &mut out);
    }
    let prevote = said(&out)
        .into_iter()
        .find(|v| v.step == Step::Prevote && v.round == round);
    assert_eq!(prevote.map(|v| v.value), Some(Some(value.hash())));
}
