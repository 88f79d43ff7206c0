//! Epochs on the disk: what was certified, and what this node has signed on the way.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tracing::{error, info, warn};

use super::{
    AgentError,
    core::Agent,
    requests::{Answer, done},
};
use crate::{
    api::types::{CommitteeView, EpochMemberView, EpochView},
    ledger::Record,
    mesh::{
        admission::EpochMark,
        crypto::sha256,
        engine::{Engine, Input, Output},
        epoch::{
            CertifiedEpoch, EpochProof, EpochSeal, LockState, MAX_CHAIN_BYTES, SignedRemoval,
            StoredEpochs,
        },
        ids::{NodeId, to_hex},
        roster::Tolerance,
    },
    state::{StateDir, StateError, read_capped},
};

/// The certified epochs and the removals.
const EPOCHS_FILE: &str = "epochs.bin";
/// What this node signed last about an epoch.
const LOCK_FILE: &str = "epoch-lock.bin";
/// Twice what is kept, and the removals.
const MAX_EPOCHS_FILE: u64 = 2 * MAX_CHAIN_BYTES as u64 + (1 << 20);
/// Two records of 60 kB at most, and signatures.
const MAX_LOCK_FILE: u64 = 256 << 10;

fn without_lock(why: &str) -> String {
    format!(
        "{why}; without it this node may contradict what it has signed: have it removed (secmesh peers \
         remove) and join anew"
    )
}

/// Puts down that nothing was signed, before the first epochs are on the disk, so that a file that is missing
/// later was lost.
fn begin_lock(state: &StateDir, engine: &Engine) -> Result<(), StateError> {
    if state.has(LOCK_FILE) || state.has(EPOCHS_FILE) {
        return Ok(());
    }
    state.write(LOCK_FILE, &LockState::unsigned(engine.roster()).to_bytes())
}

/// Gives the engine back what it knew and had signed.
pub(super) fn restore(state: &StateDir, engine: &mut Engine) -> Result<(), AgentError> {
    let damaged = |file: &str, detail: String| StateError::Damaged {
        path: state.file(file),
        detail,
    };
    if state.has(EPOCHS_FILE) {
        // It was there before the first epochs were: without it nobody knows what this node has signed.
        if !state.has(LOCK_FILE) {
            return Err(damaged(LOCK_FILE, without_lock("it is missing")).into());
        }
        let bytes = read_capped(&state.file(EPOCHS_FILE), MAX_EPOCHS_FILE)?;
        let stored = StoredEpochs::from_bytes(&bytes).map_err(|e| {
            damaged(
                EPOCHS_FILE,
                format!("{e}; move it away, and the node gets the epochs from its peers"),
            )
        })?;
        if let Err(error) = engine.restore_epochs(stored) {
            warn!(%error, "an epoch on the disk does not follow; the rest comes from the peers");
        }
    }
    if state.has(LOCK_FILE) {
        let bytes = read_capped(&state.file(LOCK_FILE), MAX_LOCK_FILE)?;
        engine
            .restore_lock(&bytes)
            .map_err(|e| damaged(LOCK_FILE, without_lock(&e.to_string())))?;
    }
    Ok(())
}

impl Agent {
    /// Carries out what the engine wants about epochs; gives the seal that was asked for.
    pub(super) async fn epoch_output(&mut self, output: Output) -> Option<EpochSeal> {
        match output {
            Output::PersistEpoch(state) => self.persist_epoch_lock(&state),
            Output::Epoch(epoch) => self.epoch_began(&epoch),
            Output::ForkedEpoch(epoch) => self.epoch_forked(&epoch),
            Output::Seal(sealed) => match sealed.sign(self.identity.ledger_pq_key()) {
                Ok(seal) => return Some(seal),
                Err(error) => error!(%error, "this epoch is not sealed by this node"),
            },
            Output::SealSeen { seal, weight } => self.seal_seen(&seal, weight),
            Output::Removal(removal) => self.removal_known(&removal),
            Output::EpochLie(proof) => self.epoch_lied(&proof).await,
            _ => {}
        }
        None
    }

    /// The node says nothing more if the disk does not take what it has signed.
    fn persist_epoch_lock(&mut self, bytes: &[u8]) {
        let evidence = self.sync_evidence().map_err(|e| e.to_string());
        let written = evidence.and_then(|()| {
            self.state
                .write(LOCK_FILE, bytes)
                .map_err(|e| e.to_string())
        });
        if let Err(error) = written {
            error!(%error, "a vote on the next epoch is not on the disk: this node votes and states nothing more until it is restarted; enforcement and the witnessing of ledgers go on");
            self.tally.votes_not_sent += 1;
            self.outbox.silence();
        }
    }

    fn epoch_began(&mut self, epoch: &CertifiedEpoch) {
        self.save_epochs();
        self.record_epoch(epoch);
        let roster = self.engine.roster();
        info!(
            epoch = epoch.record.number,
            nodes = roster.len(),
            voters = roster.voters(),
            weight = roster.total(),
            "a new epoch is in force"
        );
        let left_out = self.engine.left_out();
        if left_out > 0 {
            error!(
                left_out,
                "nodes wait that the epoch has no room for: 350 is the most, fewer where many have left (docs/protocol.md)"
            );
        }
        self.membership_changed();
    }

    /// A peer shows this node, which is new, another history of the mesh than its ticket does.
    pub(super) fn other_history(&self, from: &NodeId, mark: EpochMark) {
        error!(
            peer = %self.name_of(from), epoch = mark.number, hash = %mark.hash,
            "refused: the peer has other epochs than the one that this node's ticket names; either it lies, or the \
             ticket was made on a node that does. This node takes part in nothing until a peer shows it that epoch. \
             Compare `secmesh epoch` on the members; if no member has it any more, have this node removed (secmesh \
             peers remove) and join with a new ticket and an empty state directory"
        );
    }

    /// Both are in the record then, with who signed them.
    fn epoch_forked(&mut self, epoch: &CertifiedEpoch) {
        error!(
            epoch = epoch.record.number,
            own = %self.engine.roster().epoch_hash(),
            other = %epoch.record.hash(),
            "two epochs of one number are certified: a third of the weight lies or keys were stolen; this node \
             stays with its own. Compare who signed them (secmesh ledger show) and remove those who signed both"
        );
        self.record_epoch(epoch);
    }

    fn record_epoch(&self, epoch: &CertifiedEpoch) {
        self.record(&Record::Epoch {
            number: epoch.record.number,
            hash: epoch.record.hash().to_string(),
            epoch: BASE64_STANDARD.encode(epoch.to_bytes()),
        });
    }

    /// Seals go into the record until they suffice: with the epoch's entry they prove it, offline.
    fn seal_seen(&self, seal: &EpochSeal, weight: u64) {
        let before = self.engine.sealed_weight().map_or(0, |(_, needed)| needed);
        let own = self.engine.node() == seal.sealed.node;
        let last = self
            .engine
            .roster()
            .get(&seal.sealed.node)
            .map_or(0, |m| u64::from(m.weight));
        if own || weight.saturating_sub(last) < before {
            self.record(&Record::EpochSeal {
                number: seal.sealed.number,
                node: seal.sealed.node.to_string(),
                seal: BASE64_STANDARD.encode(seal.to_bytes()),
            });
        }
    }

    fn removal_known(&mut self, removal: &SignedRemoval) {
        let node = removal.removal.node;
        info!(node = %self.name_of(&node), "the operator removes a node; it leaves with the next epoch");
        self.save_epochs();
        self.record(&Record::Removal {
            node: node.to_string(),
            removal: BASE64_STANDARD.encode(removal.to_bytes()),
        });
        self.membership_changed();
    }

    fn save_epochs(&mut self) {
        let bytes = self.engine.stored_epochs().to_bytes();
        let written = begin_lock(&self.state, &self.engine)
            .and_then(|()| self.state.write(EPOCHS_FILE, &bytes));
        if let Err(error) = written {
            error!(%error, "the epoch is not on the disk: this node votes and states nothing more until it is restarted; enforcement and the witnessing of ledgers go on");
            self.tally.votes_not_sent += 1;
            self.outbox.silence();
        }
    }

    /// `secmesh peers remove`.
    pub(super) async fn remove_node(&mut self, signed: &str) -> Answer {
        let bytes = BASE64_STANDARD
            .decode(signed)
            .map_err(|e| format!("the removal is not base64: {e}"))?;
        let removal = SignedRemoval::from_bytes(&bytes)
            .map_err(|e| format!("the removal is not understood: {e}"))?;
        removal.verify(self.engine.genesis()).map_err(|e| {
            format!("the removal is refused: {e}; is this the mesh's operator key?")
        })?;
        let node = removal.removal.node;
        let name = self.name_of(&node);
        let known = self.engine.removals().any(|r| r.removal.node == node);
        self.drive(Input::Remove(Box::new(removal))).await;
        if known {
            return Err(format!("{name} was removed already"));
        }
        if !self.engine.removals().any(|r| r.removal.node == node) {
            return Err(
                "the removal was not taken: it is of another time or mesh; is the clock right?"
                    .to_owned(),
            );
        }
        let message = if self.engine.roster().get(&node).is_none() {
            format!("{name} is out of the mesh")
        } else {
            format!(
                "{name} leaves with the next epoch, which needs T_hi of the others (`secmesh epoch`)"
            )
        };
        done(message, None)
    }

    pub(super) fn epoch_view(&self) -> EpochView {
        let engine = &self.engine;
        let params = &engine.genesis().params;
        let roster = engine.roster();
        let epoch = engine.epoch();
        let since = |hash| {
            epoch
                .and_then(|e| e.record.member(&hash))
                .map_or(0, |member| member.since)
        };
        let members = roster
            .members()
            .map(|(node, member)| {
                let since = since(member.record.hash());
                let until = since.saturating_add(u64::from(params.probation_epochs));
                EpochMemberView {
                    id: node.to_string(),
                    name: member.record.name.to_string(),
                    zone: member.record.zone.to_string(),
                    weight: u64::from(member.weight),
                    since,
                    probation_until: (member.weight == 0 && until > roster.epoch())
                        .then_some(until),
                }
            })
            .collect();
        let removed: Vec<_> = engine.removals().map(|r| r.removal.node).collect();
        let waiting = engine.reachable_records().into_iter();
        EpochView {
            number: epoch.map_or(0, |e| e.record.number),
            hash: roster.epoch_hash().to_string(),
            previous: epoch.map_or_else(String::new, |e| e.record.previous.to_string()),
            since_unix_us: engine.epoch_since_us(),
            ends_unix_us: engine
                .epoch_since_us()
                .saturating_add(u64::from(params.epoch_s).saturating_mul(1_000_000)),
            probation: params.probation_epochs,
            members,
            committee: roster.seats().map(|seats| CommitteeView {
                seats: seats
                    .iter()
                    .map(|(node, seats)| (node.to_string(), *seats))
                    .collect(),
                total: roster.deciding().total(),
                t_lo: roster.deciding().t_lo(),
                t_hi: roster.deciding().t_hi(),
            }),
            liars_withstood: roster.liars_withstood(),
            total_weight: roster.total(),
            t_lo: roster.t_lo(),
            t_hi: roster.t_hi(),
            not_byzantine_tolerant: match roster.tolerance() {
                Tolerance::Tolerant => None,
                Tolerance::Single => Some("one node: it decides for itself".to_owned()),
                Tolerance::NotByzantineTolerant { why, .. } => Some(why),
            },
            signed_by: epoch.map_or_else(Vec::new, |e| {
                let signed = e.precommits.signatures.iter();
                signed.map(|(node, _)| self.name_of(node)).collect()
            }),
            sealed_weight: engine.sealed_weight().map(|(weight, _)| weight),
            round: epoch.map_or(0, |e| e.precommits.round),
            evidence: epoch.map_or_else(Vec::new, |e| {
                let logs = e.record.frontier.logs().iter();
                logs.map(|(author, head)| (self.name_of(author), head.size))
                    .collect()
            }),
            waiting: waiting
                .filter(|record| roster.get(&record.node).is_none())
                .map(|record| record.name.to_string())
                .collect(),
            leaving: removed
                .iter()
                .filter(|node| roster.get(node).is_some())
                .map(|node| self.name_of(node))
                .collect(),
            removed: removed.iter().map(ToString::to_string).collect(),
            agreement: engine.agreement(),
            kept: engine.epochs().len(),
        }
    }

    async fn epoch_lied(&self, proof: &EpochProof) {
        let bytes = proof.to_bytes();
        warn!(voter = %self.name_of(&proof.voter()), "proved to have lied about an epoch; its votes count for nothing");
        self.record_surely(&Record::Equivocation {
            voter: proof.voter().to_string(),
            proof: BASE64_STANDARD.encode(&bytes),
            hash: to_hex(&sha256(&bytes)),
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::crypto::Signer;
    use crate::mesh::engine::EngineConfig;
    use crate::mesh::testing::{genesis, node_id, records};

    fn engine() -> Engine {
        let config = EngineConfig {
            genesis: genesis(),
            node: node_id(1),
            incarnation: 1,
            signer: Signer::from_secret(&[1; 32]),
            evidence_ttl_s: 60,
        };
        Engine::new(config, records(&["a", "b", "c", "d"]))
    }

    #[test]
    fn what_was_signed_is_known_to_be_lost() {
        let dir = std::env::temp_dir().join(format!("secmesh-epochs-{}", std::process::id()));
        let state = StateDir::create(&dir).unwrap();
        let started = || restore(&state, &mut engine());
        // Before the first epoch there is nothing.
        assert!(started().is_ok());
        let made = engine();
        begin_lock(&state, &made).unwrap();
        let epochs = made.stored_epochs().to_bytes();
        state.write(EPOCHS_FILE, &epochs).unwrap();
        let after = started();
        std::fs::remove_file(state.file(LOCK_FILE)).unwrap();
        let lost = started().map_err(|e| e.to_string());
        // Nor is it made anew.
        begin_lock(&state, &made).unwrap();
        let made_anew = state.has(LOCK_FILE);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(after.is_ok());
        let lost = lost.unwrap_err();
        assert!(
            lost.contains("epoch-lock.bin") && lost.contains("join anew"),
            "{lost}"
        );
        assert!(!made_anew);
    }
}
