//! The rules of epochs and of trust once more, from the design.

use std::collections::{BTreeMap, BTreeSet};

use secmesh::mesh::admission::AdmittedRecord;
use secmesh::mesh::crypto::sha256;
use secmesh::mesh::epoch::{CertifiedEpoch, EpochRecord, EpochVote, Sealed, SignedEpochVote, Step};
use secmesh::mesh::ids::{Hash, NodeId, Zone};
use secmesh::mesh::roster::Roster;
use secmesh::mesh::trust::TrustReport;

use crate::oracle::{Epoch, Oracle, Violation, Voter, broken, bytes_signed_by};

/// Admissions by the hash of the record.
type Find<'a> = &'a dyn Fn(&Hash) -> Option<AdmittedRecord>;

impl Oracle {
    fn read(&self, record: &EpochRecord, find: Find<'_>) -> Result<Epoch, Violation> {
        let mut voters = BTreeMap::new();
        for member in &record.members {
            let Some(admitted) = find(&member.record) else {
                return broken("strangers", "a member whose admission nobody has");
            };
            if admitted.verify(&self.genesis).is_err() || !self.cast.contains(&admitted.record.node)
            {
                return broken(
                    "strangers",
                    format!("{} was never admitted", admitted.record.node),
                );
            }
            let record = admitted.record;
            let voter = Voter {
                weight: u64::from(member.weight),
                zone: record.zone,
                incarnation: record.incarnation,
                key: record.vote_key,
                address: record.address.map(|a| a.ip()),
                since: member.since,
            };
            if voters.insert(record.node, voter).is_some() {
                return broken("strangers", format!("{} is in it twice", record.node));
            }
        }
        Ok(Epoch {
            number: record.number,
            voters,
        })
    }

    /// The first epoch, as a node has it: everybody has the same one.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn first_epoch(&mut self, record: &EpochRecord, find: Find<'_>) -> Result<(), Violation> {
        let hash = record.hash();
        if self.epochs.contains_key(&hash) {
            return Ok(());
        }
        let epoch = self.read(record, find)?;
        self.number(1, hash)?;
        self.epochs.insert(hash, epoch);
        Ok(())
    }

    fn number(&mut self, number: u64, hash: Hash) -> Result<(), Violation> {
        if *self.numbered.entry(number).or_insert(hash) != hash {
            return broken("one-epoch", format!("there are two epochs {number}"));
        }
        Ok(())
    }

    /// A node has taken a certified epoch; it was in epoch `was` before.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn certified(
        &mut self,
        certified: &CertifiedEpoch,
        was: u64,
        find: Find<'_>,
    ) -> Result<(), Violation> {
        let record = &certified.record;
        let (number, hash) = (record.number, record.hash());
        if number <= was {
            return broken("only-grows", format!("epoch {number} after epoch {was}"));
        }
        self.number(number, hash)?;
        let Some(before) = self.epochs.get(&record.previous).cloned() else {
            return broken("epoch-certificate", "an epoch that follows none");
        };
        let epoch = self.read(record, find)?;
        // Whoever was away for long takes a later epoch on the word of the one it was in.
        let basis = self
            .numbered
            .get(&was)
            .and_then(|hash| self.epochs.get(hash));
        let enough = [Some(&before), basis]
            .into_iter()
            .flatten()
            .any(|basis| enough(basis, &epoch, certified));
        if !enough {
            return broken(
                "epoch-certificate",
                format!("epoch {number} is signed by too few"),
            );
        }
        self.follows(&before, &epoch)?;
        self.epochs.insert(hash, epoch);
        Ok(())
    }

    /// Changes of the roster are the operator's, and weights move slowly.
    fn follows(&self, before: &Epoch, epoch: &Epoch) -> Result<(), Violation> {
        let number = epoch.number;
        if number != before.number + 1 {
            return broken(
                "epoch-certificate",
                format!("epoch {number} leaves one out"),
            );
        }
        for node in before.voters.keys() {
            if !epoch.voters.contains_key(node) && !self.removed.contains(node) {
                return broken(
                    "strangers",
                    format!("epoch {number} is without {node}, whom nobody has removed"),
                );
            }
        }
        let was = |node: &NodeId| before.voters.get(node).map_or(0, |v| v.weight);
        let stayed = epoch.voters.keys().filter(|n| was(n) > 0).count();
        let small = before.counting() < 4 || stayed < 4;
        let gained: u64 = epoch
            .voters
            .iter()
            .map(|(node, voter)| voter.weight.saturating_sub(was(node)))
            .sum();
        if !small && gained > before.total() / 10 {
            return broken(
                "epoch-weights",
                format!(
                    "in epoch {number} nodes gain {gained} of {} weight",
                    before.total()
                ),
            );
        }
        let probation = u64::from(self.genesis.params.probation_epochs);
        let early = epoch
            .voters
            .iter()
            .find(|(node, v)| was(node) == 0 && v.weight > 0 && number < v.since + probation);
        if let Some((node, _)) = early.filter(|_| !small) {
            return broken(
                "epoch-weights",
                format!("{node} has weight in epoch {number}, on probation"),
            );
        }
        let mut zones: BTreeMap<&Zone, u64> = BTreeMap::new();
        for voter in epoch.voters.values().filter(|v| v.weight > 0) {
            *zones.entry(&voter.zone).or_default() += voter.weight;
        }
        let total = epoch.total();
        if zones.len() >= 4
            && let Some((zone, weight)) = zones.iter().find(|(_, weight)| **weight * 3 >= total)
        {
            return broken(
                "epoch-weights",
                format!("zone {zone} has {weight} of {total} weight in epoch {number}"),
            );
        }
        Ok(())
    }

    /// A node counts votes by this roster.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn in_force(&self, roster: &Roster) -> Result<(), Violation> {
        // A node that has just joined has none.
        if roster.is_empty() {
            return Ok(());
        }
        let Some(epoch) = self.epochs.get(&roster.epoch_hash()) else {
            return broken("epoch-certificate", "a roster of an epoch that never was");
        };
        let same = epoch.number == roster.epoch()
            && epoch.total() == roster.total()
            && epoch.voters.len() == roster.len()
            && roster.members().all(|(node, member)| {
                epoch
                    .voters
                    .get(node)
                    .is_some_and(|v| v.weight == u64::from(member.weight))
            });
        if !same {
            return broken("weights", "a roster that is not its epoch's");
        }
        let drawn = self.seated(&roster.epoch_hash());
        let held = roster.seats().map(|seats| {
            let held = seats.iter().map(|(node, n)| (*node, u64::from(*n)));
            held.collect::<BTreeMap<_, _>>()
        });
        if held != drawn {
            return broken(
                "seats",
                format!(
                    "others have a seat in epoch {} than its hash draws",
                    epoch.number
                ),
            );
        }
        Ok(())
    }

    /// An honest node has proposed a record: the same members and frontier give the same weights.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn proposed(&mut self, record: &EpochRecord) -> Result<(), Violation> {
        let mut bare = record.clone();
        for member in &mut bare.members {
            member.weight = 0;
        }
        let hash = record.hash();
        if *self.followed.entry(bare.hash()).or_insert(hash) != hash {
            return broken(
                "equal-weights",
                format!(
                    "equal members and evidence, different weights in epoch {}",
                    record.number
                ),
            );
        }
        Ok(())
    }

    /// An honest node has voted on an epoch: nobody precommits to what too few prevoted for.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn voted(&mut self, signed: &SignedEpochVote) -> Result<(), Violation> {
        let vote = &signed.vote;
        let slot = (vote.number, vote.previous, vote.round, vote.step);
        self.epoch_votes
            .entry(slot)
            .or_default()
            .insert(vote.voter, vote.value);
        if vote.step == Step::Prevote {
            return self.bound(vote);
        }
        let (Step::Precommit, Some(value)) = (vote.step, vote.value) else {
            return Ok(());
        };
        let Some(before) = self.epochs.get(&vote.previous) else {
            return broken("epoch-certificate", "a precommit after no epoch");
        };
        if before.counting() < 4 {
            return Ok(());
        }
        // Liars may have said anything to this node.
        let prevotes =
            self.epoch_votes
                .get(&(vote.number, vote.previous, vote.round, Step::Prevote));
        let weight: u64 = before
            .voters
            .iter()
            .filter(|(node, _)| {
                // Its own it may have signed before a crash.
                self.liars.contains(node)
                    || **node == vote.voter
                    || prevotes.is_some_and(|p| p.get(node) == Some(&Some(value)))
            })
            .map(|(_, v)| v.weight)
            .sum();
        if weight < 2 * before.total() / 3 + 1 {
            return broken(
                "epoch-quorum",
                format!(
                    "{} precommits to epoch {} and {weight} of {} weight can have prevoted for it",
                    vote.voter,
                    vote.number,
                    before.total()
                ),
            );
        }
        Ok(())
    }

    /// Who has precommitted to a record prevotes for no other one in a later round, unless so many have prevoted
    /// for that one since that the first cannot have been decided.
    fn bound(&self, vote: &EpochVote) -> Result<(), Violation> {
        let Some(value) = vote.value else {
            return Ok(());
        };
        let of = |step, round| {
            let slot = (vote.number, vote.previous, round, step);
            self.epoch_votes.get(&slot)
        };
        let locked = (0..vote.round).rev().find_map(|round| {
            let precommits = of(Step::Precommit, round)?;
            Some((round, (*precommits.get(&vote.voter)?)?))
        });
        let Some((round, locked)) = locked.filter(|(_, locked)| *locked != value) else {
            return Ok(());
        };
        let Some(before) = self.epochs.get(&vote.previous) else {
            return Ok(());
        };
        let freed = (round..vote.round).any(|at| {
            let prevotes = of(Step::Prevote, at);
            let said = |node: &NodeId| prevotes.is_some_and(|p| p.get(node) == Some(&Some(value)));
            let can = before.voters.iter();
            let can = can.filter(|(node, _)| self.liars.contains(node) || said(node));
            can.map(|(_, v)| v.weight).sum::<u64>() > 2 * before.total() / 3
        });
        if !freed {
            return broken(
                "lock",
                format!(
                    "{} is locked on {locked} in round {round} of epoch {} and prevotes {value} in round {}",
                    vote.voter, vote.number, vote.round
                ),
            );
        }
        Ok(())
    }

    /// A seal was taken: of an epoch there is, by a voter of the one before.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn sealed(&self, sealed: &Sealed) -> Result<(), Violation> {
        let before = self
            .numbered
            .get(&sealed.number.saturating_sub(1))
            .and_then(|hash| self.epochs.get(hash));
        let known = self.numbered.get(&sealed.number) == Some(&sealed.hash)
            && before.is_some_and(|e| e.voters.get(&sealed.node).is_some_and(|v| v.weight > 0));
        if !known {
            return broken(
                "seals",
                format!("a seal on epoch {} that is none", sealed.number),
            );
        }
        Ok(())
    }

    /// Where node `i` finds everybody to stand: a function of the evidence alone, and no honest node is struck.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn trust(
        &mut self,
        i: usize,
        key: (u64, Hash, Hash),
        report: &TrustReport,
    ) -> Result<(), Violation> {
        let bits = Hash(sha256(format!("{:?}", report.nodes).as_bytes()));
        let (first, expected) = *self.trusted.entry(key).or_insert((i, bits));
        if expected != bits {
            return broken(
                "equal-weights",
                format!("nodes {first} and {i} have equal evidence and find different trust in it"),
            );
        }
        let struck = report.nodes.iter().find(|(node, trust)| {
            let standing = &trust.standing;
            !self.liars.contains(node) && (!standing.proofs.is_empty() || standing.strikes > 0)
        });
        if let Some((node, trust)) = struck {
            return broken(
                "strikes",
                format!(
                    "node {i} finds that honest {node} is struck: {:?}",
                    trust.standing
                ),
            );
        }
        Ok(())
    }
}

/// Whether enough of `basis` signed an epoch, by a count of its own.
fn enough(basis: &Epoch, epoch: &Epoch, certified: &CertifiedEpoch) -> bool {
    let record = &certified.record;
    let value = Some(record.hash());
    let mut weight = 0;
    let mut seen = BTreeSet::new();
    for (voter, signature) in &certified.precommits.signatures {
        let Some(known) = basis.voters.get(voter) else {
            continue;
        };
        let vote = EpochVote {
            mesh: record.mesh,
            number: record.number,
            previous: record.previous,
            round: certified.precommits.round,
            step: Step::Precommit,
            value,
            voter: *voter,
            incarnation: known.incarnation,
        };
        if seen.insert(*voter) && bytes_signed_by(&known.key, &vote.to_bytes(), signature) {
            weight += known.weight;
        }
    }
    let needed = if basis.counting() < 4 {
        // All who are not taken out.
        let stay = basis.voters.iter();
        let stay = stay.filter(|(node, _)| epoch.voters.contains_key(node));
        stay.map(|(_, v)| v.weight).sum()
    } else {
        2 * basis.total() / 3 + 1
    };
    weight >= needed
}
