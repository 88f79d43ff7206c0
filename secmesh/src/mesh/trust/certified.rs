//! The fold over the certified epochs: what the next epoch takes its weights from, and what is shown.
//!
//! Every epoch record names the evidence it rests on, so the records cut all logs into epochs in one way for
//! everybody. The last [`WINDOW`] of them are folded one by one. What was said before them is read once, for
//! the proofs in it, the verdicts that have counted and what has been vouched for; what it did to α, β and
//! strikes has faded (to less than a fiftieth) and is taken as 0. So a node that joined today, and has only
//! the records that its peers still keep, computes the same bits as one that was there from the start.
//!
//! Read are the logs of those who were in one of these epochs. Whoever left before has told nothing that is still
//! counted but proofs, and what was proved of a member is in the records themselves: so statements of nodes that have
//! left end with the window.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::fold::{Boundary, Checks, Fold, Members, Missing, Rules};
use super::history::Change;
use super::report::{MAX_CHANGES, NodeTrust, TrustReport};
use crate::mesh::evidence::{EvidenceSet, Frontier, ProofSet};
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::simulation::{Bug, planted};

/// Epochs that are folded one by one.
pub const WINDOW: usize = 64;
/// Frontiers whose weights are remembered: the proposals of a few rounds.
const MAX_TRIED: usize = 16;

/// One certified epoch, as the fold needs it.
#[derive(Debug, Clone)]
pub struct PastEpoch {
    /// Its number.
    pub number: u64,
    /// The evidence up to which everything was counted before it began.
    pub began: Frontier,
    /// Who was in it, with which weight.
    pub members: Members,
    /// What its record says was proved of whom.
    pub proved: BTreeMap<NodeId, ProofSet>,
}

/// What the evidence comes to for one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target {
    /// What it deserves to weigh.
    pub weight: u32,
    /// What was proved of it.
    pub proved: ProofSet,
}

/// What there is to fold.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The statements that this node has.
    pub set: &'a EvidenceSet,
    /// The mesh's rules.
    pub rules: &'a Rules,
    /// Hash of the current epoch's record.
    pub tip: Hash,
    /// Gives the last epochs, at most [`WINDOW`] and one, without a gap, first to last, the current one at
    /// the end; `None` if one of them is not known here. Called only when the current epoch has changed.
    pub past: &'a dyn Fn() -> Option<Vec<PastEpoch>>,
}

impl std::fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known")
            .field("tip", &self.tip)
            .finish_non_exhaustive()
    }
}

type Changes = BTreeMap<NodeId, VecDeque<Change>>;
/// What each node deserves.
type Targets = Arc<BTreeMap<NodeId, Target>>;
/// A current epoch, and a frontier after it.
type Place = (Hash, Hash);

/// Everything up to the beginning of the current epoch.
#[derive(Debug, Clone)]
struct Base {
    tip: Hash,
    fold: Fold,
    members: Members,
    changes: Changes,
    /// Whether it rests on all evidence and all records that it should.
    whole: bool,
}

#[derive(Debug, Default)]
struct Cache {
    checks: Checks,
    base: Option<Base>,
    /// By current epoch and frontier: what each node deserves.
    tried: VecDeque<(Place, Targets)>,
    report: Option<(Place, Arc<TrustReport>)>,
}

/// The fold over the certified epochs, which remembers what it has computed.
#[derive(Debug, Default)]
pub struct EpochFold(Mutex<Cache>);

fn note(changes: &mut Changes, change: Change) {
    let list = changes.entry(change.node).or_default();
    if list.len() >= MAX_CHANGES {
        list.pop_front();
    }
    list.push_back(change);
}

impl Base {
    /// Folds the epochs before the current one. `partly`: as far as the evidence is here.
    fn new(known: &Known<'_>, checks: &mut Checks, partly: bool) -> Result<Self, Missing> {
        let past = (known.past)();
        let whole = past.is_some();
        let past = past.unwrap_or_default();
        if !whole && !partly {
            return Err(Missing);
        }
        let (first, current) = past.first().zip(past.last()).ok_or(Missing)?;
        let nodes = past.iter().flat_map(|epoch| epoch.members.keys());
        let authors: BTreeSet<NodeId> = nodes.copied().collect();
        let part = |frontier: &Frontier| {
            let read = frontier.of(|author| authors.contains(author));
            if partly {
                known.set.known_part(&read)
            } else {
                read
            }
        };
        let mut fold = Fold::new(*known.rules);
        let mut changes = Changes::new();
        let began = part(&first.began);
        let before = Boundary {
            frontier: &began,
            members: &first.members,
        };
        fold.begin(known.set, before, first.number, checks)?;
        fold.carry(&first.proved);
        for pair in past.windows(2) {
            if let [epoch, next] = pair {
                let end = part(&next.began);
                let tell = &mut |change| note(&mut changes, change);
                fold.epoch(known.set, &end, &epoch.members, checks, tell)?;
                fold.carry(&next.proved);
            }
        }
        Ok(Self {
            tip: known.tip,
            members: current.members.clone(),
            whole: whole && known.set.covers(&current.began.of(|a| authors.contains(a))),
            fold,
            changes,
        })
    }
}

impl Cache {
    /// The base of the current epoch; the whole one, or (`partly`) as much as there is.
    fn base(&mut self, known: &Known<'_>, partly: bool) -> Result<&Base, Missing> {
        let usable = |base: &Base| base.tip == known.tip && (base.whole || partly);
        if !self.base.as_ref().is_some_and(usable) {
            self.base = None;
            self.base = Some(Base::new(known, &mut self.checks, partly)?);
            self.report = None;
        }
        self.base.as_ref().ok_or(Missing)
    }
}

/// A copy computes anew.
impl Clone for EpochFold {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl EpochFold {
    /// What each member of the current epoch deserves if it ends at `frontier`; who is not in it deserves a
    /// newcomer's weight. `None` while some of that evidence, or of the records before, is not here, or is not the
    /// same.
    pub fn targets(
        &self,
        known: &Known<'_>,
        frontier: &Frontier,
    ) -> Option<Arc<BTreeMap<NodeId, Target>>> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (known.tip, frontier.hash());
        if let Some((_, targets)) = cache.tried.iter().find(|(tried, _)| *tried == key) {
            return Some(Arc::clone(targets));
        }
        if !known.set.covers(frontier) {
            return None;
        }
        let base = cache.base(known, false).ok()?;
        let (mut fold, members) = (base.fold.clone(), base.members.clone());
        fold.epoch(
            known.set,
            frontier,
            &members,
            &mut cache.checks,
            &mut |_| {},
        )
        .ok()?;
        let targets: Targets = Arc::new(
            members
                .keys()
                .map(|node| (*node, fold.target(node)))
                .collect(),
        );
        if cache.tried.len() >= MAX_TRIED {
            cache.tried.pop_front();
        }
        cache.tried.push_back((key, Arc::clone(&targets)));
        Some(targets)
    }

    /// Forgets what was found about statements of authors that are of no use any more.
    pub fn let_go(&self, gone: &BTreeSet<NodeId>) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.checks.forget(gone);
    }

    /// What was found about statements of an author.
    #[cfg(test)]
    pub fn checked(&self, author: &NodeId) -> BTreeSet<NodeId> {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let authors = cache.checks.authors();
        authors.into_iter().filter(|a| a == author).collect()
    }

    /// Where everybody stands by all that is known here, the open epoch included, with the reasons.
    pub fn report(&self, known: &Known<'_>) -> Arc<TrustReport> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (known.tip, known.set.frontier_hash());
        if let Some((shown, report)) = &cache.report
            && (*shown == key || (planted(Bug::StaleFold) && shown.0 == key.0))
        {
            return Arc::clone(report);
        }
        // A part of it is tried again each time: the rest may have come.
        if cache.base.as_ref().is_some_and(|base| !base.whole) {
            cache.base = None;
        }
        let Ok(base) = cache.base(known, true).cloned() else {
            return Arc::default();
        };
        let Base {
            mut fold,
            members,
            mut changes,
            whole,
            ..
        } = base;
        let frontier = known.set.frontier();
        let tell = &mut |change| note(&mut changes, change);
        let done = fold.epoch(known.set, &frontier, &members, &mut cache.checks, tell);
        debug_assert!(done.is_ok(), "what is here is covered by what is here");
        let nodes = members.keys().map(|node| {
            let trust = NodeTrust {
                standing: fold.standings().get(node).cloned().unwrap_or_default(),
                weight: fold.weight(node),
                statements: known.set.head(node).size,
                changes: changes.remove(node).unwrap_or_default(),
            };
            (*node, trust)
        });
        let report = Arc::new(TrustReport {
            epoch: fold.epochs(),
            whole,
            nodes: nodes.collect(),
        });
        cache.report = Some((key, Arc::clone(&report)));
        report
    }
}
