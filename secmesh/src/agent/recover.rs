//! What the ledger knows from before: own votes, decisions that are still in force, proofs, alerts.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use secmesh_common::block::origin;
use tracing::{info, warn};

use super::{
    AgentError,
    core::{Agent, MAX_ALERTS, Watch},
    effects::MAX_WATCHED,
    quarantine::Remembered,
};
use crate::{
    addr::Prefix,
    api::types::{DecisionScope, DecisionState, Origin},
    detect::Alert,
    ledger::{self, EffectKind, Record},
    mesh::{
        engine::{Engine, RestoreError},
        vote::AttackClass,
    },
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

/// Kinds of entries that hold an own vote: as it was signed, or carried out of an older segment.
const WITH_VOTES: [u8; 2] = [4, 17];

/// Reads the ledger at `path`, which was opened for writing just now: what a crash left unfinished is cut
/// off. Entries that are not understood are skipped: their signatures were checked when it was opened, so
/// they come from another version.
///
/// # Errors
/// [`AgentError::OwnVotes`] if any of it cannot be read: an own vote may be in that part.
pub(super) fn read(path: &Path, now_unix_us: u64) -> Result<Memory, AgentError> {
    let mut memory = Memory::default();
    for entry in ledger::iter(path).map_err(|error| own_votes(path, &error))? {
        let entry = entry.map_err(|error| own_votes(path, &error))?;
        match entry.record() {
            Ok(record) => memory.take(record, now_unix_us),
            Err(error) if WITH_VOTES.contains(&entry.kind) => {
                return Err(own_votes(path, &format!("entry {}: {error}", entry.seq)));
            }
            Err(error) => warn!(entry = entry.seq, %error, "an entry of another version, skipped"),
        }
    }
    Ok(memory)
}

fn own_votes(path: &Path, why: &dyn std::fmt::Display) -> AgentError {
    AgentError::OwnVotes {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// What does not decode is no vote, and is told from one when it is given to the engine.
fn vote_bytes(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).unwrap_or_default()
}

impl Memory {
    /// Gives the engine back what this node has signed.
    ///
    /// # Errors
    /// [`AgentError::OwnVotes`] for one that is no vote. Those of an earlier incarnation are not this node's.
    pub(super) fn restore_votes(
        &mut self,
        path: &Path,
        engine: &mut Engine,
    ) -> Result<(), AgentError> {
        for vote in self.votes.drain(..) {
            match engine.restore_vote(&vote) {
                Ok(()) | Err(RestoreError::NotOwn) => {}
                Err(error) => return Err(own_votes(path, &error)),
            }
        }
        Ok(())
    }

    fn take(&mut self, record: Record, now_unix_us: u64) {
        match record {
            Record::VoteSigned { vote } => {
                if self.votes.len() >= MAX_VOTES {
                    self.votes.pop_front();
                }
                self.votes.push_back(vote_bytes(&vote));
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
                self.votes.push_front(vote_bytes(&vote));
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
        self.adopt_watches();
        // At a start differences are no news: after a reboot everything is missing.
        let _: Reconciled = self.reconcile(now);
        if restored + adopted > 0 {
            info!(
                restored,
                adopted, "blocks from before the start are in force"
            );
        }
    }

    /// Sources that the agent before watched are watched on until their time is over; who reported them is not
    /// remembered. What has ended or is allowed now goes.
    fn adopt_watches(&mut self) {
        let now = self.now();
        let base = self.time_base();
        let found = match self.watches.entries() {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "what an earlier agent watched is not known; it is watched again when a peer reports it");
                return;
            }
        };
        let mut adopted = 0usize;
        for (addr, until_ns) in found {
            let wanted = until_ns > now.mono_ns
                && self.watched.len() < MAX_WATCHED
                && self.allowlist.protects(&Prefix::host(addr)).is_none();
            let result = if wanted {
                self.watches.put(addr, until_ns)
            } else {
                self.watches.remove(addr)
            };
            if let Err(error) = result {
                warn!(%addr, %error, "a watched source of an earlier agent");
                continue;
            }
            if wanted {
                let watch = Watch {
                    until_unix_us: base.unix_us(until_ns),
                    reported_by: None,
                    packets: 0,
                };
                self.watched.insert(addr, watch);
                adopted += 1;
            }
        }
        if adopted > 0 {
            info!(
                adopted,
                "sources that were watched before the start are watched on"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, LedgerKeys, Retention};
    use crate::mesh::engine::EngineConfig;
    use crate::mesh::testing::{
        T0, admitted, ballot, genesis, node_id, pq, roster, signer, subject,
    };
    use crate::mesh::vote::{Action, Verdict};
    use crate::state::{PRIVATE, read_capped, write_atomic};
    use ed25519_dalek::SigningKey;
    use std::sync::Arc;

    fn engine() -> Engine {
        Engine::new(
            EngineConfig {
                genesis: genesis(),
                node: node_id(1),
                incarnation: 1,
                signer: signer(1),
                evidence_ttl_s: 60,
            },
            [admitted(1, "a")],
        )
    }

    /// A ledger of votes by node `i`, and the bytes of its only segment.
    fn ledger(dir: &Path, i: u8, votes: u64) -> std::path::PathBuf {
        let keys = LedgerKeys {
            node: [9; 16],
            key: SigningKey::from_bytes(&[7; 32]),
            pq: Arc::new(pq(7)),
        };
        let (mut ledger, _) = Ledger::open(dir, keys, Retention::default(), 99).unwrap();
        for sequence in 1..=votes {
            let action = Action::block(subject(), AttackClass::SynFlood, &genesis().params);
            let ballot = ballot(&roster(&["a"]), i, action, Verdict::Confirm, sequence, T0);
            let vote = BASE64_STANDARD.encode(ballot.to_bytes());
            ledger
                .append(T0 + sequence, &Record::VoteSigned { vote })
                .unwrap();
            ledger.sync().unwrap();
        }
        let mut files = std::fs::read_dir(dir).unwrap();
        files
            .find_map(|file| {
                let path = file.unwrap().path();
                (path.metadata().unwrap().len() > 1_000).then_some(path)
            })
            .unwrap()
    }

    #[test]
    fn own_votes_are_read_back_and_those_of_others_left_out() {
        for (i, restored) in [(1, 3), (2, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ledger");
            ledger(&path, i, 3);
            let mut engine = engine();
            let mut memory = read(&path, T0).unwrap();
            assert_eq!(memory.votes.len(), 3);
            memory.restore_votes(&path, &mut engine).unwrap();
            assert_eq!(engine.sequence(), restored);
        }
    }

    #[test]
    fn a_node_that_cannot_read_all_its_votes_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let segment = ledger(&path, 1, 8);
        let mut bytes = read_capped(&segment, 1 << 20).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        write_atomic(&segment, &bytes, PRIVATE).unwrap();
        let error = read(&path, T0).unwrap_err().to_string();
        assert!(error.contains("remedy"), "{error}");
        std::fs::remove_file(&segment).unwrap();
        read(&path, T0).unwrap_err();
        // What is in the place of a vote and is none.
        let mut memory = Memory::default();
        let vote = "?".to_owned();
        memory.take(Record::VoteSigned { vote }, T0);
        memory.restore_votes(&path, &mut engine()).unwrap_err();
    }
}
