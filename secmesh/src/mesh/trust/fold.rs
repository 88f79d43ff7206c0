//! The fold itself.

use std::collections::{BTreeMap, BTreeSet};

use super::count::{Epoch, Reader, Report};
use super::history::{Cause, Change, Reference};
use super::{ONE, Params, Standing, Target, vouched};
use crate::mesh::crypto::PublicKey;
use crate::mesh::evidence::{CulpritKeys, EvidenceSet, Frontier, ProofSet, Ruling};
use crate::mesh::genesis::Genesis;
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::simulation::{Bug, planted};

pub use super::count::Checks;

/// Most verdicts that are remembered so as to count them once; older ones are not counted again either.
const MAX_VERDICTS: usize = 4_096;
/// Most proofs about nodes that are no members yet.
const MAX_LATER: usize = 1_024;
/// A strike halves the weight; more than this many change nothing.
const MAX_STRIKES: u32 = 16;

/// What all nodes have to fold by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Mesh.
    pub mesh: MeshId,
    /// The operator's key, for verdicts.
    pub operator_key: PublicKey,
    /// The numbers.
    pub params: Params,
}

impl Rules {
    /// The rules of a mesh.
    pub fn new(genesis: &Genesis, params: Params) -> Self {
        Self {
            mesh: genesis.mesh_id(),
            operator_key: genesis.operator_key,
            params,
        }
    }
}

/// A node of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its keys.
    pub keys: CulpritKeys,
    /// Its weight in the quorums of that epoch: what its reports weigh.
    pub weight: u32,
}

/// The nodes of an epoch.
pub type Members = BTreeMap<NodeId, Member>;

/// Statements up to a frontier are not all known, or not the same ones, or it goes back behind an earlier
/// one: nothing can be said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the statements up to the frontier are not known here; they come from the peers")]
pub struct Missing;

/// The end of one epoch.
#[derive(Debug, Clone, Copy)]
pub struct Boundary<'a> {
    /// How far the logs had got.
    pub frontier: &'a Frontier,
    /// Who was in the mesh.
    pub members: &'a Members,
}

/// The standings after some epochs, ready for the next.
#[derive(Debug, Clone)]
pub struct Fold {
    rules: Rules,
    epoch: u64,
    frontier: Frontier,
    standings: BTreeMap<NodeId, Standing>,
    /// By (of whom, by whom): reports of each kind, ever.
    reports: BTreeMap<(NodeId, NodeId), [u32; Report::COUNT]>,
    /// Verdicts that counted, and against or for whom.
    verdicts: BTreeMap<(u64, Hash), BTreeSet<NodeId>>,
    /// No verdict signed before it counts.
    verdicts_from_us: u64,
    /// Nor any on a decision of an epoch before this one.
    from: u64,
    later: BTreeSet<(NodeId, u64)>,
}

/// The standings after these epochs, in order of node ids.
///
/// # Errors
/// [`Missing`].
pub fn fold(
    set: &EvidenceSet,
    boundaries: &[Boundary<'_>],
    rules: &Rules,
) -> Result<Vec<(NodeId, Standing)>, Missing> {
    let mut fold = Fold::new(*rules);
    let mut checks = Checks::default();
    for boundary in boundaries {
        fold.epoch(
            set,
            boundary.frontier,
            boundary.members,
            &mut checks,
            &mut |_| {},
        )?;
    }
    Ok(fold.standings.into_iter().collect())
}

/// Hits and misses of one node in one epoch, as far as the caps leave room.
struct Room {
    hits: u32,
    misses: u32,
}

impl Room {
    fn take(&mut self, hits: u32, misses: u32) -> (u32, u32) {
        let taken = (hits.min(self.hits), misses.min(self.misses));
        self.hits -= taken.0;
        self.misses -= taken.1;
        taken
    }
}

impl Fold {
    /// Before the first epoch.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            epoch: 0,
            frontier: Frontier::default(),
            standings: BTreeMap::new(),
            reports: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            verdicts_from_us: 0,
            from: 0,
            later: BTreeSet::new(),
        }
    }

    /// Where everybody stands.
    pub const fn standings(&self) -> &BTreeMap<NodeId, Standing> {
        &self.standings
    }

    /// Epochs so far.
    pub const fn epochs(&self) -> u64 {
        self.epoch
    }

    /// The weight of a node; K/2 within its limits for one that nothing is known of.
    pub fn weight(&self, node: &NodeId) -> u32 {
        let unknown = Standing::default();
        self.standings
            .get(node)
            .unwrap_or(&unknown)
            .weight(&self.rules.params)
    }

    /// What the evidence comes to for a node.
    pub fn target(&self, node: &NodeId) -> Target {
        let standing = self.standings.get(node);
        let kinds = standing.into_iter().flat_map(|s| s.proofs.iter().copied());
        Target {
            weight: self.weight(node),
            proved: kinds.collect(),
        }
    }

    /// Takes over what a certified record says was proved. The statements may be gone by now.
    pub(super) fn carry(&mut self, proved: &BTreeMap<NodeId, ProofSet>) {
        for (node, proofs) in proved {
            let standing = self.standings.entry(*node).or_default();
            standing.proofs.extend(proofs.kinds());
            standing.proofs.sort_unstable();
            standing.proofs.dedup();
        }
    }

    /// Epochs in which nobody said anything.
    pub fn pass(&mut self, epochs: u64) {
        self.epoch = self.epoch.saturating_add(epochs);
        for standing in self.standings.values_mut() {
            standing.idle_epochs = standing.idle_epochs.saturating_add(epochs);
            for _ in 0..epochs {
                let before = (standing.alpha, standing.beta);
                fade(standing);
                if before == (standing.alpha, standing.beta) {
                    break;
                }
            }
        }
    }

    /// Takes what was said before epoch `number` as known, without judging anybody by it: proofs stay, what
    /// reports have counted for does not count again, nor do verdicts on what was decided before, and everybody begins
    /// neutral.
    ///
    /// # Errors
    /// [`Missing`]; nothing has changed then.
    pub(super) fn begin(
        &mut self,
        set: &EvidenceSet,
        before: Boundary<'_>,
        number: u64,
        checks: &mut Checks,
    ) -> Result<(), Missing> {
        self.from = number;
        self.epoch(set, before.frontier, before.members, checks, &mut |_| {})?;
        for standing in self.standings.values_mut() {
            *standing = Standing {
                proofs: std::mem::take(&mut standing.proofs),
                ..Standing::default()
            };
        }
        self.epoch = number.saturating_sub(1);
        Ok(())
    }

    /// One more epoch, which ends at `frontier`; `story` hears of each change.
    ///
    /// # Errors
    /// [`Missing`]; nothing has changed then.
    pub fn epoch(
        &mut self,
        set: &EvidenceSet,
        frontier: &Frontier,
        members: &Members,
        checks: &mut Checks,
        story: &mut dyn FnMut(Change),
    ) -> Result<(), Missing> {
        let shrinks = self
            .frontier
            .logs()
            .iter()
            .any(|(author, head)| frontier.size(author) < head.size);
        if shrinks || !set.covers(frontier) {
            return Err(Missing);
        }
        let mut said = Epoch::default();
        let mut reader = Reader {
            set,
            rules: &self.rules,
            members,
            checks,
            from: self.from,
        };
        for (author, sequence) in std::mem::take(&mut self.later) {
            if let Some(statement) = set.get(&author, sequence) {
                reader.read(statement, &mut said);
            }
        }
        for (author, head) in frontier.logs() {
            for statement in set.range(author, self.frontier.size(author), head.size) {
                reader.read(statement, &mut said);
            }
        }
        self.later = std::mem::take(&mut said.later);
        while self.later.len() > MAX_LATER {
            self.later.pop_last();
        }
        self.frontier = frontier.clone();
        self.epoch = self.epoch.saturating_add(1);
        self.standings.retain(|node, _| members.contains_key(node));
        self.reports
            .retain(|(of, by), _| members.contains_key(of) && members.contains_key(by));
        for node in members.keys() {
            let standing = self.standings.entry(*node).or_default();
            fade(standing);
            standing.idle_epochs = standing.idle_epochs.saturating_add(1);
        }
        self.catch(&said, story);
        let mut news: BTreeMap<(NodeId, Report), u32> = BTreeMap::new();
        for (of, kind, _) in said.reports.keys() {
            // What members vouched for before, by today's weights: so it is the reports that make the
            // difference, and not who came or left.
            news.entry((*of, *kind))
                .or_insert_with(|| self.vouched_for(*of, members, *kind));
        }
        for ((of, kind, by), count) in &said.reports {
            if members.contains_key(of)
                && let Some(total) = self
                    .reports
                    .entry((*of, *by))
                    .or_default()
                    .get_mut(kind.index())
            {
                *total = total.saturating_add(*count);
            }
        }
        for ((of, kind), before) in &mut news {
            *before = self
                .vouched_for(*of, members, *kind)
                .saturating_sub(*before);
        }
        let verdicts = self.take_verdicts(&said);
        for node in members.keys() {
            self.judge(*node, &news, &said, &verdicts, story);
        }
        Ok(())
    }

    /// Proofs first: who was caught reports nothing any more.
    fn catch(&mut self, said: &Epoch, story: &mut dyn FnMut(Change)) {
        for ((node, proof), why) in &said.caught {
            let Some(standing) = self.standings.get_mut(node) else {
                continue;
            };
            if standing.proofs.contains(proof) {
                continue;
            }
            standing.proofs.push(*proof);
            standing.proofs.sort_unstable();
            standing.idle_epochs = 0;
            story(Change {
                epoch: self.epoch,
                node: *node,
                cause: Cause::Proof { proof: *proof },
                hits: 0,
                misses: 0,
                strikes: standing.strikes,
                because: vec![why.clone()],
            });
        }
    }

    /// Which voters this epoch's verdicts concern that they did not concern before, and how often.
    fn take_verdicts(&mut self, said: &Epoch) -> BTreeMap<(NodeId, Ruling), u32> {
        let mut counts = BTreeMap::new();
        for (key, (ruling, voters)) in &said.verdicts {
            if key.0 < self.verdicts_from_us {
                continue;
            }
            let counted = self.verdicts.entry(*key).or_default();
            for voter in voters {
                if counted.insert(*voter) {
                    let count: &mut u32 = counts.entry((*voter, *ruling)).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
        while self.verdicts.len() > MAX_VERDICTS {
            if let Some(((issued, _), _)) = self.verdicts.pop_first() {
                self.verdicts_from_us = issued.saturating_add(1);
            }
        }
        counts
    }

    /// What enough members say of a node, of one kind, up to now.
    fn vouched_for(&self, node: NodeId, members: &Members, kind: Report) -> u32 {
        // Always of the whole weight, whoever was caught or says nothing, as in every quorum.
        let total: u64 = members.values().map(|m| u64::from(m.weight)).sum();
        let reports: Vec<(u64, u32)> = self
            .reports
            .range((node, NodeId([0; 16]))..=(node, NodeId([0xff; 16])))
            .filter(|((_, by), _)| *by != node)
            .filter(|((_, by), _)| self.standings.get(by).is_some_and(|s| s.proofs.is_empty()))
            .filter_map(|((_, by), counts)| {
                let weight = u64::from(members.get(by)?.weight);
                Some((weight, *counts.get(kind.index())?))
            })
            .collect();
        if planted(Bug::OneReporter) {
            return vouched(reports, 1);
        }
        vouched(reports, total / 3 + 1)
    }

    fn judge(
        &mut self,
        node: NodeId,
        news: &BTreeMap<(NodeId, Report), u32>,
        said: &Epoch,
        verdicts: &BTreeMap<(NodeId, Ruling), u32>,
        story: &mut dyn FnMut(Change),
    ) {
        let params = self.rules.params;
        let news = |kind| news.get(&(node, kind)).copied().unwrap_or(0);
        let mut changes: Vec<(Cause, u32, u32, Vec<Reference>)> = Vec::new();
        for ruling in [Ruling::FalsePositive, Ruling::TruePositive] {
            let count = verdicts.get(&(node, ruling)).copied().unwrap_or(0);
            let (hits, misses) = match ruling {
                Ruling::FalsePositive => (0, count.saturating_mul(params.verdict_misses)),
                Ruling::TruePositive => (count, 0),
            };
            let because = said.because_verdict.get(&(node, ruling));
            changes.push((
                Cause::Verdict { ruling },
                hits,
                misses,
                because.cloned().unwrap_or_default(),
            ));
        }
        for (kind, cause) in [
            (Report::OutcomeHit, Cause::OutcomeHit),
            (Report::Right, Cause::QuestionRight),
            (Report::OutcomeMiss, Cause::OutcomeMiss),
            (Report::Wrong, Cause::QuestionWrong),
        ] {
            let news = news(kind);
            let (hits, misses) = match kind {
                Report::OutcomeHit | Report::Right => (news, 0),
                _ => (0, news.saturating_mul(params.report_misses)),
            };
            let because = said.because.get(&(node, kind));
            changes.push((cause, hits, misses, because.cloned().unwrap_or_default()));
        }
        let succeeded = news(Report::Succeeded);
        // What a node says against itself needs no witness; once per epoch.
        let own = said.reports.contains_key(&(node, Report::Failed, node));
        let failed = news(Report::Failed).saturating_add(u32::from(own));
        let Some(standing) = self.standings.get_mut(&node) else {
            return;
        };
        let mut room = Room {
            hits: params.hits_per_epoch,
            misses: params.misses_per_epoch,
        };
        let mut told = Vec::new();
        for (cause, hits, misses, because) in changes {
            let (hits, misses) = room.take(hits, misses);
            if hits + misses > 0 {
                standing.alpha = standing.alpha.saturating_add(u64::from(hits) * ONE);
                standing.beta = standing.beta.saturating_add(u64::from(misses) * ONE);
                told.push((cause, hits, misses, because));
            }
        }
        let because = |kind| said.because.get(&(node, kind)).cloned().unwrap_or_default();
        if succeeded > 0 {
            standing.strikes = 0;
            let why = because(Report::Succeeded);
            told.push((Cause::RemediationSucceeded, 0, 0, why));
        }
        if failed > 0 {
            standing.strikes = standing.strikes.saturating_add(failed).min(MAX_STRIKES);
            told.push((Cause::RemediationFailed, 0, 0, because(Report::Failed)));
        }
        if !told.is_empty() {
            standing.idle_epochs = 0;
        }
        let strikes = standing.strikes;
        for (cause, hits, misses, because) in told {
            story(Change {
                epoch: self.epoch,
                node,
                cause,
                hits,
                misses,
                strikes,
                because,
            });
        }
    }
}

/// Toward neutral, by a sixteenth.
const fn fade(standing: &mut Standing) {
    standing.alpha -= standing.alpha >> 4;
    standing.beta -= standing.beta >> 4;
}
