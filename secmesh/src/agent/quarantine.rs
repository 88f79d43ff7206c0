//! Nodes that are cut off: no sessions with them, nothing of theirs taken, and what comes from their addresses
//! dropped in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tracing::{error, info, warn};

use super::{
    core::Agent,
    requests::{Answer, MAX_REASON, done},
};
use crate::{
    addr::Prefix,
    api::types::{DecisionScope, DecisionState, Origin, QuarantineView, ReleaseTerms},
    detect::Alert,
    ledger::{EffectKind, Record},
    mesh::{
        crypto::sha256,
        decision::{Decision, OperatorRelease, SignedRelease, Warrant},
        engine::Input,
        ids::{Hash, NodeId, to_hex},
        vote::{Action, ActionKind},
    },
    respond::{Entry, refusal},
};

/// How long an entry in the kernel lasts, µs. It is renewed at half of that, so that a machine on which the
/// agent is gone for good does not drop a node for ever.
const LEASE_US: u64 = 24 * 3_600 * 1_000_000;
/// How long an operator has to sign an order, seconds.
const ORDER_VALID_S: u32 = 300;
/// Addresses of one node that are dropped.
const MAX_ADDRESSES: usize = 16;

/// What is known of those who are cut off.
#[derive(Debug, Default)]
pub(super) struct CutOff {
    /// Where they were met while they were peers.
    addresses: BTreeMap<NodeId, BTreeSet<IpAddr>>,
    /// When the kernel's entries were written last, unix µs.
    renewed_us: u64,
}

/// What the ledger says of quarantines: by decision, in the order of the record.
#[derive(Debug, Default)]
pub(super) struct Remembered(Vec<Kept>);

/// Decisions on nodes that are read back at most.
const MAX_REMEMBERED: usize = 4_096;

#[derive(Debug)]
struct Kept {
    warrant: Vec<u8>,
    certified_unix_us: u64,
    addresses: Vec<IpAddr>,
}

impl Remembered {
    /// Takes what [`Record::Quarantine`] holds.
    pub fn take(&mut self, warrant: &str, certified_unix_us: u64, addresses: &[String]) {
        let Ok(warrant) = BASE64_STANDARD.decode(warrant) else {
            return;
        };
        if self.0.len() >= MAX_REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(Kept {
            warrant,
            certified_unix_us,
            addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        });
    }
}

/// Id of the entry for one address of a node.
fn entry_id(decision: &str, address: IpAddr) -> String {
    let mut id = to_hex(&sha256(
        format!("quarantine {decision} {address}").as_bytes(),
    ));
    id.truncate(32);
    id
}

impl Agent {
    /// The peer that was met at this address, if it is only one.
    pub(super) fn peer_at(&self, address: IpAddr) -> Option<NodeId> {
        let met = self.met.iter(self.clock.mono_ns());
        let mut at = met.filter(|(_, ip)| *ip == address);
        let (node, _) = at.next()?;
        at.next().is_none().then_some(*node)
    }

    /// An alert about the address of a peer: evidence against that peer.
    pub(super) async fn suspect(&mut self, alert: &Alert) {
        if !alert.subject.is_single() {
            return;
        }
        let Some(node) = self.peer_at(alert.subject.addr()) else {
            return;
        };
        warn!(peer = %self.name_of(&node), class = %alert.class, "a peer attacks");
        self.drive(Input::NodeAttacks {
            node,
            evidence_root: Hash(alert.evidence_root()),
            detector_hash: Hash(alert.detector_hash_bytes()),
        })
        .await;
    }

    /// The mesh has decided: a node is cut off.
    pub(super) async fn quarantined(&mut self, decision: &Decision) {
        let Some(node) = decision.action.subject.node() else {
            return;
        };
        let name = self.name_of(&node);
        if node == self.engine.node() {
            error!(class = %decision.action.class, decision = %decision.id, "the mesh has cut THIS node off; its operator can readmit it (`secmesh readmit` on another node)");
        } else {
            warn!(%name, class = %decision.action.class, decision = %decision.id, "the mesh has decided: the node is cut off");
        }
        self.meet(node);
        self.record_quarantine(decision, node).await;
        self.membership_changed();
        self.cut_off(node);
    }

    /// Where the node was met; an address that others are met at too is not its own.
    fn meet(&mut self, node: NodeId) {
        let now_ns = self.clock.mono_ns();
        let Some(address) = self.met.at(&node, now_ns) else {
            return;
        };
        let shared = self.met.iter(now_ns).any(|(other, ip)| {
            ip == address && *other != node && !self.engine.is_quarantined(other)
        });
        let known = self.cut_off.addresses.entry(node).or_default();
        if !shared && known.len() < MAX_ADDRESSES {
            known.insert(address);
        }
    }

    async fn record_quarantine(&self, decision: &Decision, node: NodeId) {
        let addresses = self.cut_off.addresses.get(&node);
        self.record_surely(&Record::Quarantine {
            node: node.to_string(),
            name: self.name_of(&node),
            what: match decision.action.kind {
                ActionKind::Readmit => "readmitted",
                _ => "quarantined",
            }
            .to_owned(),
            class: decision.action.class.to_string(),
            decision: decision.id.to_string(),
            certified_unix_us: decision.certified_unix_us,
            addresses: addresses
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
            warrant: BASE64_STANDARD.encode(decision.warrant.to_bytes()),
        })
        .await;
    }

    /// Writes the kernel's entries for a node that is cut off, or renews them.
    fn cut_off(&mut self, node: NodeId) {
        if node == self.engine.node() {
            return;
        }
        let Some(decision) = self.engine.quarantine_of(&node).cloned() else {
            return;
        };
        let name = self.name_of(&node);
        let addresses = self.cut_off.addresses.get(&node).cloned();
        for address in addresses.into_iter().flatten() {
            let subject = Prefix::host(address);
            let id = entry_id(&decision.id.to_string(), address);
            // The operator's allowlist stands above the mesh; that of the peers no longer names this node.
            if let Some(entry) = self.allowlist.protects(&subject) {
                let reason = refusal(&subject, &entry);
                warn!(%name, reason, "the node is cut off, and its address is not blocked here");
                self.record(&Record::Effect {
                    decision: id,
                    subject: subject.to_string(),
                    what: EffectKind::Vetoed,
                    reason: Some(reason),
                });
                continue;
            }
            let now_unix_us = self.clock.unix_us();
            let entry = Entry {
                id,
                subject,
                origin: Origin::Quarantine,
                scope: DecisionScope::Mesh,
                state: DecisionState::Active,
                reason: Some(format!("node {name} is quarantined until it is readmitted")),
                expires_unix_us: now_unix_us.saturating_add(LEASE_US),
                ..self.entry_about(&decision, subject)
            };
            // The outcome is in the book and in the record; a failed write is tried again.
            drop(self.enforce(entry, None));
        }
    }

    /// The mesh or the operator has decided: a node is taken back.
    pub(super) async fn readmitted(&mut self, decision: &Decision) {
        let Some(node) = decision.action.subject.node() else {
            return;
        };
        let name = self.name_of(&node);
        info!(%name, decision = %decision.id, "the node is taken back");
        self.record_quarantine(decision, node).await;
        if !self.engine.is_quarantined(&node) {
            let addresses = self.cut_off.addresses.remove(&node);
            for address in addresses.into_iter().flatten() {
                self.let_in(&Prefix::host(address), &format!("readmission of {name}"));
            }
        }
        self.membership_changed();
    }

    /// Takes the entries of quarantines out of the kernel, and nothing else about that address.
    fn let_in(&mut self, subject: &Prefix, reason: &str) {
        let now = self.now();
        let claims = self.blocks.claims(subject).into_iter();
        let claims: Vec<String> = claims
            .filter(|(_, claim)| claim.origin == Origin::Quarantine)
            .map(|(id, _)| id)
            .collect();
        for id in claims {
            let hits = self.table.get(subject).map(|e| (e.hits, e.bytes));
            if let Err(error) = self.blocks.release(&mut self.table, now, subject, &id) {
                error!(%subject, %error, "the kernel keeps the entry until its time is over");
            }
            let reason = Some(reason.to_owned());
            self.close(subject, &id, DecisionState::Released, hits, reason);
        }
        self.update_sizes();
    }

    /// Renews what is in the kernel in time.
    pub(super) fn renew_quarantines(&mut self) {
        let now = self.clock.unix_us();
        let age = now.abs_diff(self.cut_off.renewed_us);
        if age < LEASE_US / 2 {
            return;
        }
        self.cut_off.renewed_us = now;
        let nodes: Vec<NodeId> = self.engine.quarantined().copied().collect();
        for node in nodes {
            self.cut_off(node);
        }
    }

    /// Puts back who was cut off before the start.
    pub(super) fn recover_quarantines(&mut self, remembered: Remembered) {
        let now = self.clock.unix_us();
        for kept in remembered.0 {
            let restored =
                self.engine
                    .restore_decision(now, &kept.warrant, kept.certified_unix_us, None);
            match restored {
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "a quarantine of the ledger is not taken back");
                    continue;
                }
            }
            let Ok(warrant) = Warrant::from_bytes(&kept.warrant) else {
                continue;
            };
            let action = warrant.action();
            if let Some(node) = action.subject.node() {
                let known = self.cut_off.addresses.entry(node).or_default();
                let room = MAX_ADDRESSES.saturating_sub(known.len());
                known.extend(kept.addresses.into_iter().take(room));
            }
        }
        let engine = &self.engine;
        self.cut_off
            .addresses
            .retain(|node, _| engine.is_quarantined(node));
        self.renew_quarantines();
    }

    /// The node with this name or id.
    fn node_called(&self, given: &str) -> Result<NodeId, String> {
        let records = self.engine.reachable_records();
        let found = records
            .iter()
            .find(|r| r.node.to_string() == given || r.name.to_string() == given);
        found
            .map(|r| r.node)
            .ok_or_else(|| format!("no node is called {given}; `secmesh peers` lists them"))
    }

    /// What the operator signs to have a node cut off, or taken back.
    pub(super) fn order_terms(&self, node: &str, readmit: bool) -> Result<ReleaseTerms, String> {
        let node = self.node_called(node)?;
        let action = if readmit {
            Action::readmit(node)
        } else {
            OperatorRelease::quarantine(node)
        };
        let draft = self
            .engine
            .draft_order(action, self.clock.unix_us(), ORDER_VALID_S);
        Ok(ReleaseTerms {
            release: BASE64_STANDARD.encode(draft.to_bytes()),
        })
    }

    fn signed_order(&self, text: &str, kind: ActionKind) -> Result<SignedRelease, String> {
        let bytes = BASE64_STANDARD
            .decode(text)
            .map_err(|e| format!("the signed order is not base64: {e}"))?;
        let order = SignedRelease::from_bytes(&bytes)
            .map_err(|e| format!("the signed order is not understood: {e}"))?;
        order
            .verify(self.engine.genesis())
            .map_err(|e| format!("the signed order is refused: {e}"))?;
        if order.release.action.kind == kind {
            Ok(order)
        } else {
            Err(format!("the signed order is not to {kind} a node"))
        }
    }

    /// `secmesh quarantine`
    pub(super) async fn quarantine(
        &mut self,
        node: &str,
        reason: Option<String>,
        signed: Option<String>,
    ) -> Answer {
        let id = self.node_called(node)?;
        if id == self.engine.node() {
            return Err(
                "this is the node itself; ask another one, or stop it (`systemctl stop secmesh`)"
                    .to_owned(),
            );
        }
        if self.engine.is_quarantined(&id) {
            return Err(format!("{node} is quarantined already"));
        }
        if signed.is_none() && !self.engine.roster().has_seat(&self.engine.node()) {
            return Err(format!(
                "this node has no seat on the committee of this epoch, and only seats vote on cutting {node} off: \
                 say it on those that have (`secmesh epoch`), or use --operator-key"
            ));
        }
        // Of one minute the readmission counts, whichever came later.
        let now = self.clock.unix_us();
        if let Some(until) = self.engine.readmitted_until(&id)
            && until > now
        {
            let seconds = (until - now).div_ceil(1_000_000);
            return Err(format!(
                "{node} was taken back within this minute; say it again in {seconds} s"
            ));
        }
        let reason: Option<String> = reason.map(|r| r.chars().take(MAX_REASON).collect());
        let by_key = signed.is_some();
        match signed {
            Some(text) => {
                let order = self.signed_order(&text, ActionKind::Quarantine)?;
                self.drive(Input::Order(Box::new(order))).await;
            }
            None => self.drive(Input::OperatorQuarantine { node: id }).await,
        }
        self.record(&Record::Asked {
            what: "quarantine".to_owned(),
            subject: id.to_string(),
            by: "operator".to_owned(),
            signed: by_key,
            reason,
        });
        let decision = self.engine.quarantine_of(&id).map(|d| d.id.to_string());
        let message = match (&decision, by_key) {
            (Some(_), true) => format!("{node} is cut off by the operator's signature"),
            (Some(_), false) => format!("{node} is cut off"),
            (None, true) => {
                return Err(
                    "the order was not taken: it is of another time, or was used; is the clock right?"
                        .to_owned(),
                );
            }
            (None, false) => format!(
                "this node votes for cutting {node} off; it takes the same on nodes with more than a third \
                 of the weight, and T_hi of all (`secmesh status`), or --operator-key"
            ),
        };
        done(message, decision)
    }

    /// `secmesh readmit`
    pub(super) async fn readmit(&mut self, node: &str, signed: Option<String>) -> Answer {
        let id = self.node_called(node)?;
        if !self.engine.is_quarantined(&id) {
            return Err(format!(
                "{node} is not quarantined; `secmesh peers` shows who is"
            ));
        }
        let by_key = signed.is_some();
        match signed {
            Some(text) => {
                let order = self.signed_order(&text, ActionKind::Readmit)?;
                self.drive(Input::Order(Box::new(order))).await;
            }
            None => self.drive(Input::OperatorReadmit { node: id }).await,
        }
        self.record(&Record::Asked {
            what: "readmit".to_owned(),
            subject: id.to_string(),
            by: "operator".to_owned(),
            signed: by_key,
            reason: None,
        });
        let still = self.engine.is_quarantined(&id);
        match (still, by_key) {
            (false, _) => done(format!("{node} is a peer again"), None),
            (true, true) => Err(
                "the order was not taken: it is of another time, or was used; is the clock right?"
                    .to_owned(),
            ),
            (true, false) => done(
                format!(
                    "this node votes for taking {node} back; it takes T_hi, and nodes that have proof \
                     against it say no: then it takes --operator-key"
                ),
                None,
            ),
        }
    }

    /// Who is cut off, for `status`.
    pub(super) fn quarantine_views(&self) -> Vec<QuarantineView> {
        let nodes = self.engine.quarantined();
        nodes
            .filter_map(|node| {
                let decision = self.engine.quarantine_of(node)?;
                let addresses = self.cut_off.addresses.get(node);
                Some(QuarantineView {
                    id: node.to_string(),
                    name: self.name_of(node),
                    class: decision.action.class,
                    decision: decision.id.to_string(),
                    by_operator: matches!(decision.warrant, Warrant::Operator(_)),
                    since_unix_us: decision.certified_unix_us,
                    addresses: addresses
                        .into_iter()
                        .flatten()
                        .map(|a| (*a, self.table.get(&Prefix::host(*a)).is_some()))
                        .collect(),
                    votes: decision
                        .verdict
                        .as_ref()
                        .map_or_else(Vec::new, |verdict| self.votes_of(verdict)),
                })
            })
            .collect()
    }

    /// Whom this node's own operator protects, for the engine.
    pub(super) fn chosen_peers(&self) -> BTreeMap<NodeId, String> {
        self.met
            .last()
            .filter_map(|(node, ip)| {
                let subject = Prefix::host(ip);
                let entry = self.allowlist.chosen(&subject)?;
                Some((*node, refusal(&subject, &entry)))
            })
            .collect()
    }
}
