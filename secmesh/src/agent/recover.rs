//! What the ledger knows from before: own votes, decisions that are still in force, proofs, alerts.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use secmesh_common::block::origin;
use tracing::{info, warn};

use super::core::{Agent, MAX_ALERTS};
use super::quarantine::Remembered;
use crate::{
    api::types::{DecisionScope, DecisionState, Origin},
    detect::Alert,
    ledger::{self, EffectKind, Record},
    mesh::vote::AttackClass,
    respond::{Claim, ClaimError, Entry, Reconciled},
};

/// Own votes read back at most; older ones are about buckets that are long over.
const MAX_VOTES: usize = 65_536;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Memory {
    votes: VecDeque<Vec<u8>>,
    proofs: Vec<Vec<u8>>,
    forks: Vec<Vec<u8>>,
    alerts: VecDeque<Alert>,
    /// Decisions that had not ended when the ledger did, with their warrants.
    decisions: BTreeMap<String, (Entry, Option<Vec<u8>>)>,
    /// Decisions that an operator here ended before their time. The engine must know them, or a peer's
    /// copy would put them in force again.
    released_here: BTreeMap<String, (Entry, Option<Vec<u8>>)>,
    /// How decisions ended here, of which some are recorded again behind their end.
    ends: BTreeMap<String, EffectKind>,
    /// Who was cut off, and taken back.
    quarantines: Remembered,
    /// Releases, which the engine must know again.
    releases: Vec<(Vec<u8>, u64)>,
}

/// Reads the ledger at `path`. Entries that are not understood are skipped: their signatures were
/// checked when it was opened, so they come from another version.
pub(super) fn read(path: &Path, now_unix_us: u64) -> Memory {
    let mut memory = Memory::default();
    let entries = match ledger::iter(path) {
        Ok(entries) => entries,
        Err(error) => {
            warn!(%error, "the ledger cannot be read back");
            return memory;
        }
    };
    for entry in entries {
        let Ok(entry) = entry else {
            // A torn tail; opening for writing has cut it off or will refuse.
            break;
        };
        match entry.record() {
            Ok(record) => memory.take(record, now_unix_us),
            Err(error) => warn!(entry = entry.seq, %error, "an entry of another version, skipped"),
        }
    }
    memory
}

impl Memory {
    fn take(&mut self, record: Record, now_unix_us: u64) {
        match record {
            Record::VoteSigned { vote } => {
                if let Ok(bytes) = BASE64_STANDARD.decode(vote) {
                    if self.votes.len() >= MAX_VOTES {
                        self.votes.pop_front();
                    }
                    self.votes.push_back(bytes);
                }
            }
            Record::Equivocation { proof, .. } => {
                self.proofs.extend(BASE64_STANDARD.decode(proof).ok());
            }
            Record::Alert { alert } => {
                if let Ok(alert) = serde_json::from_value(alert) {
                    if self.alerts.len() >= MAX_ALERTS {
                        self.alerts.pop_front();
                    }
                    self.alerts.push_back(alert);
                }
            }
            Record::Decision {
                action,
                certificate,
                ..
            } => {
                let warrant = certificate.and_then(|c| BASE64_STANDARD.decode(c).ok());
                let Ok(entry) = serde_json::from_value::<Entry>(action) else {
                    return;
                };
                // What is over is over, a release too: a block that it ended has ended since.
                if entry.expires_unix_us <= now_unix_us {
                    return;
                }
                if entry.state == DecisionState::Released {
                    if let (Some(warrant), Some(at)) = (warrant, entry.certified_unix_us) {
                        self.releases.push((warrant, at));
                    }
                } else {
                    self.decisions.insert(entry.id.clone(), (entry, warrant));
                }
            }
            Record::Effect { decision, what, .. } => {
                self.effect(&decision, what);
                if matches!(what, EffectKind::Ended | EffectKind::Released) {
                    self.ends.insert(decision, what);
                }
            }
            Record::LedgerFork { proof, .. } => {
                self.forks.extend(BASE64_STANDARD.decode(proof).ok());
            }
            Record::Quarantine {
                warrant,
                certified_unix_us,
                addresses,
                ..
            } => self
                .quarantines
                .take(&warrant, certified_unix_us, &addresses),
            Record::Carried { what, .. } => self.carried(*what, now_unix_us),
            _ => {}
        }
    }

    fn effect(&mut self, decision: &str, what: EffectKind) {
        match what {
            EffectKind::Ended => {
                self.decisions.remove(decision);
            }
            EffectKind::Released => {
                if let Some((mut entry, warrant)) = self.decisions.remove(decision) {
                    entry.state = DecisionState::Released;
                    self.released_here
                        .insert(decision.to_owned(), (entry, warrant));
                }
            }
            EffectKind::Enforced | EffectKind::NotEnforced | EffectKind::Vetoed => {}
        }
    }

    /// A record out of a segment that is gone. It is older than everything that stands before it.
    fn carried(&mut self, record: Record, now_unix_us: u64) {
        match record {
            Record::VoteSigned { vote } => {
                if let Ok(bytes) = BASE64_STANDARD.decode(vote) {
                    self.votes.push_front(bytes);
                }
            }
            Record::Decision { ref decision, .. } => {
                let id = decision.clone();
                let newer =
                    self.decisions.contains_key(&id) || self.released_here.contains_key(&id);
                if newer {
                    return;
                }
                let end = self.ends.get(&id).copied();
                self.take(record, now_unix_us);
                if let Some(end) = end {
                    self.effect(&id, end);
                }
            }
            // Nobody carries what was carried.
            Record::Carried { .. } => {}
            record => self.take(record, now_unix_us),
        }
    }
}

impl Agent {
    /// Puts back what was read, then makes the kernel's maps agree with it.
    pub(super) fn recover(&mut self, memory: Memory) {
        let now = self.now();
        let skipped = |what: &str, error: &dyn std::fmt::Display| {
            warn!(%error, "{what} of the ledger is not taken back");
        };
        for vote in &memory.votes {
            if let Err(error) = self.engine.restore_vote(vote) {
                skipped("a vote", &error);
            }
        }
        for proof in &memory.proofs {
            if let Err(error) = self.engine.restore_proof(proof) {
                skipped("a proof", &error);
            }
        }
        for proof in &memory.forks {
            if let Err(error) = self.engine.restore_fork(proof) {
                skipped("a proof", &error);
            }
        }
        for (warrant, certified) in &memory.releases {
            if let Err(error) = self
                .engine
                .restore_decision(now.unix_us, warrant, *certified, None)
            {
                skipped("a release", &error);
            }
        }
        // Before the decisions: whose votes count in those depends on it.
        self.recover_quarantines(memory.quarantines);
        self.alerts = memory.alerts;
        let mut restored = 0usize;
        let all = memory
            .decisions
            .into_values()
            .chain(memory.released_here.into_values());
        for (mut entry, warrant) in all {
            if let Some(warrant) = &warrant {
                let certified = entry.certified_unix_us.unwrap_or(entry.created_unix_us);
                let vetoed = (entry.state == DecisionState::Vetoed)
                    .then(|| entry.reason.clone().unwrap_or_default());
                match self
                    .engine
                    .restore_decision(now.unix_us, warrant, certified, vetoed)
                {
                    Ok(Some(_)) => {}
                    Ok(None) => continue,
                    Err(error) => {
                        skipped("a decision", &error);
                        continue;
                    }
                }
            }
            // Written anew already, for those who still are.
            if entry.origin == Origin::Quarantine {
                continue;
            }
            if entry.state == DecisionState::Active
                && !self.forbids(&entry.subject, &entry.overridden)
            {
                let claim = Claim {
                    origin: entry.origin,
                    expires_unix_us: entry.expires_unix_us,
                    rule: entry.rule,
                };
                let id = entry.id.clone();
                // Any other failure shows as not enforced and is tried again.
                if let Err(error @ ClaimError::Limit(_)) =
                    self.blocks
                        .claim(&mut self.table, now, entry.subject, id, claim)
                {
                    entry.state = DecisionState::Refused;
                    entry.reason = Some(error.to_string());
                } else {
                    restored += 1;
                }
            }
            self.book.put(entry);
        }
        let adopted = self.adopt();
        // At a start differences are no news: after a reboot everything is missing.
        let _: Reconciled = self.reconcile(now);
        if restored + adopted > 0 {
            info!(
                restored,
                adopted, "blocks from before the start are in force"
            );
        }
    }

    /// A crash between the kernel's map and the record leaves blocks that no decision explains. They
    /// stay until their time is over, and are shown.
    fn adopt(&mut self) -> usize {
        let now = self.now();
        let base = self.time_base();
        let mut adopted = 0;
        for (subject, kernel) in self.table.entries() {
            if self.blocks.is_desired(&subject)
                || kernel.expires_ns <= now.mono_ns
                || self.allowlist.protects(&subject).is_some()
            {
                continue;
            }
            let origin = match kernel.flags & 0xff {
                origin::MESH => Origin::Quorum,
                origin::NODE => Origin::Unilateral,
                // Of a node that is not cut off any more: reconciling removes it.
                origin::QUARANTINE => continue,
                _ => Origin::Operator,
            };
            let rule = self.book.next_rule();
            let entry = Entry {
                id: super::effects::local_id(&subject, now.unix_us),
                subject,
                class: AttackClass::Manual,
                scope: DecisionScope::Node,
                origin,
                state: DecisionState::Active,
                incident: None,
                reason: Some("found in the kernel's map at the start; the agent before crashed before it was recorded".to_owned()),
                created_unix_us: now.unix_us,
                certified_unix_us: None,
                enforced_unix_us: None,
                expires_unix_us: base.unix_us(kernel.expires_ns),
                votes: Vec::new(),
                certificate: None,
                rule,
                overridden: Vec::new(),
                final_hits: None,
            };
            drop(self.enforce(entry, None));
            adopted += 1;
        }
        adopted
    }
}
