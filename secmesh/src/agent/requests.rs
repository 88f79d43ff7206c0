//! Operators' requests, answered from the loop so that an answer is one consistent picture.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use secmesh_common::counters::Counter;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::error;

use super::{
    core::Agent,
    limits,
    setup::{ALLOW_FILE, ALLOW_FORMAT},
};
use crate::{
    addr::Prefix,
    api::types::{
        BlockTotals, DecisionState, DecisionView, Done, InviteTerms, LedgerView, MetricsText,
        NodeView, ReconcileTotals, ReleaseTerms, Request, Status,
    },
    ledger::{LedgerState, Record},
    mesh::{admission::SignedGrant, engine::Input, ids::to_hex, vote::Action},
    respond::{Entry, Source},
};

/// How long an operator has to sign a release, seconds.
const RELEASE_VALID_S: u32 = 300;
/// Longest reason that is recorded, characters.
pub(super) const MAX_REASON: usize = 512;
/// Not-enforced blocks named in `status`.
pub(super) const MAX_NAMED: usize = 100;
/// Addresses and pins in a ticket.
const MAX_MEMBERS_IN_TICKET: usize = 8;

pub(super) type Answer = Result<Value, String>;

fn to_value<T: Serialize>(value: &T) -> Answer {
    serde_json::to_value(value).map_err(|e| e.to_string())
}

pub(super) fn done(message: String, decision: Option<String>) -> Answer {
    to_value(&Done { message, decision })
}

impl Agent {
    /// Answers one request; `{"error": …}` is a refusal.
    pub(super) async fn answer(&mut self, request: Request) -> Value {
        let answer = match request {
            Request::Status {} => to_value(&self.status()),
            Request::Metrics {} => to_value(&MetricsText {
                text: self.metrics(),
            }),
            Request::Peers {} => to_value(&self.peers()),
            Request::MeshDigest {} => {
                let now = self.clock.unix_us();
                to_value(&self.engine.whole_digest(now))
            }
            Request::Epoch {} => to_value(&self.epoch_view()),
            Request::RemoveNode { signed } => self.remove_node(&signed).await,
            Request::Quarantine {
                node,
                reason,
                signed,
            } => self.quarantine(&node, reason, signed).await,
            Request::Readmit { node, signed } => self.readmit(&node, signed).await,
            Request::OrderTerms { node, readmit } => self
                .order_terms(&node, readmit)
                .and_then(|terms| to_value(&terms)),
            Request::Alerts { limit } => {
                to_value(&self.alerts.iter().rev().take(limit).collect::<Vec<_>>())
            }
            Request::Flows { from, limit } => to_value(&self.list_flows(from, limit)),
            Request::Processes { from, limit } => to_value(&self.list_processes(from, limit)),
            Request::Decisions { all, subject } => to_value(&self.decisions(all, subject)),
            Request::Explain { subject } => to_value(&self.explain(subject)),
            Request::Block {
                subject,
                ttl_s,
                mesh,
                reason,
                override_risky,
            } => {
                self.block(subject, ttl_s, mesh, reason, override_risky)
                    .await
            }
            Request::Unblock {
                subject,
                signed,
                false_positive,
                verdict,
            } => self.unblock(subject, signed, false_positive, verdict).await,
            Request::VerdictTerms { subject } => self
                .verdict_terms(subject)
                .and_then(|terms| to_value(&terms)),
            Request::Trust { node } => self.trust_view(node.as_deref()),
            Request::ReleaseTerms { subject } => {
                let draft = self.engine.draft_order(
                    Action::release(subject),
                    self.clock.unix_us(),
                    RELEASE_VALID_S,
                );
                to_value(&ReleaseTerms {
                    release: BASE64_STANDARD.encode(draft.to_bytes()),
                })
            }
            Request::AllowList {} => to_value(&self.allowlist.list()),
            Request::AllowAdd { prefix, reason } => self.allow_add(prefix, reason),
            Request::AllowRemove { prefix } => self.allow_remove(prefix),
            Request::SetMode {
                mode,
                confirm_s,
                ssh_peer,
            } => self.set_mode(mode, confirm_s, ssh_peer),
            Request::ConfirmMode {} => self.confirm_mode(),
            Request::Lists {} => self.lists_view(),
            Request::ListLoad { name, staged_by } => self.list_load(name, staged_by),
            Request::ListRemove { name } => self.list_remove(&name),
            Request::InviteTerms {} => to_value(&self.invite_terms()),
            Request::OpenGrant { grant } => self.open_grant(&grant).await,
            Request::CaptureStart {
                reasons,
                snap,
                seconds,
            } => self
                .capture_start(&reasons, snap, seconds)
                .and_then(|started| to_value(&started)),
            Request::CaptureNext { id } => self.capture_next(id).and_then(|batch| to_value(&batch)),
            Request::CaptureStop { id } => self
                .capture_stop(id)
                .and_then(|()| done("the capture is over".to_owned(), None)),
        };
        answer.unwrap_or_else(|error| json!({ "error": error }))
    }

    fn status(&mut self) -> Status {
        let trust = self.trust_totals();
        let genesis = self.engine.genesis();
        let (desired, enforced, not_enforced) = self.blocks.totals(MAX_NAMED);
        let ledger = self.ledger.status();
        Status {
            node: NodeView {
                id: self.engine.node().to_string(),
                name: self.identity.name().to_string(),
                zone: self.identity.zone().to_string(),
            },
            mesh: genesis.mesh_name.to_string(),
            mesh_id: genesis.mesh_id().to_string(),
            mode: self.dataplane.mode(),
            pending_confirm: self.pending_confirm(),
            interfaces: self.dataplane.attached().to_vec(),
            waiting: self.interfaces.waiting(),
            flows: self.flows_view(),
            no_processes: self.watch.no_processes.clone(),
            carrier_trouble: self.transport.carrier_trouble(),
            awaited_epoch: self.engine.awaited().map(|mark| mark.number),
            quorum: serde_json::to_value(self.engine.quorum()).unwrap_or_default(),
            quarantined: self.quarantine_views(),
            blocks: BlockTotals {
                desired,
                enforced,
                not_enforced,
                reconciled: self.reconciler.totals(),
            },
            lists: self.list_totals(),
            reconciled: self.reconciled_tables(),
            limits: limits::view(&self.dataplane.kernel_config()),
            watched: self.watched.len(),
            cookies: self.cookies_view(),
            counters: self.kernel_counters(),
            controller: self.controller_counters(),
            trust,
            ledger: LedgerView {
                entries: ledger.entries,
                head: to_hex(&ledger.head),
                state: match ledger.state {
                    LedgerState::Ok => "running".to_owned(),
                    LedgerState::Failed(why) => why,
                },
                dropped: ledger.dropped,
            },
            uptime_s: self.clock.mono_ns().saturating_sub(self.started_ns) / 1_000_000_000,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What comparing the tables other than the blocks' has found.
    pub(super) fn reconciled_tables(&self) -> BTreeMap<String, ReconcileTotals> {
        let audits = self.list_audits();
        let mut all = self.reconciler.small.totals();
        all.extend(
            [
                ("allowlist", self.reconciler.allowlist()),
                ("lists", audits.lists),
                ("guards", audits.guards),
                ("config", audits.config),
            ]
            .map(|(name, totals)| (name.to_owned(), totals)),
        );
        all
    }

    fn kernel_counters(&self) -> BTreeMap<String, u64> {
        match self.counters.read() {
            Ok(counters) => Counter::ALL
                .iter()
                .map(|c| (c.name().to_owned(), counters.get(*c)))
                .collect(),
            Err(error) => {
                error!(%error, "reading the kernel's counters");
                BTreeMap::new()
            }
        }
    }

    pub(super) fn controller_counters(&self) -> BTreeMap<String, u64> {
        let tally = &self.tally;
        let reconciled = self.reconciler.totals();
        let own = [
            ("events_read", tally.events),
            ("events_unknown", tally.events_unknown),
            ("alerts", tally.alerts),
            ("alerts_allowlisted", tally.alerts_allowlisted),
            ("alerts_cooled_down", self.detectors.cooled_down),
            ("detector_sources_forgotten", self.detectors.forgotten()),
            ("votes_not_sent", tally.votes_not_sent),
            ("outbox_dropped", self.outbox.dropped()),
            ("watch_full", tally.watch_full),
            ("clock_steps", tally.clock_steps),
            ("spares_waiting", tally.spares_waiting),
            ("spares_let_in", tally.spares_let_in),
            ("discoveries", tally.discoveries),
            ("escalations_dropped", self.escalation.dropped),
            ("reconcile_runs", reconciled.runs),
            ("reconcile_added", reconciled.added),
            ("reconcile_removed", reconciled.removed),
            ("reconcile_failed", reconciled.failed),
            ("flow_records", self.watch.flows.next()),
            ("flow_records_mixed", self.watch.flows_mixed),
            ("process_records", self.watch.processes.next()),
            ("records_unknown", self.watch.unknown),
            ("evidence_not_kept", self.trust.not_kept),
            ("outcomes_dropped", self.trust.outcomes_dropped),
            ("ratifications_proposed", self.ratification.proposed),
            ("ratifications_ratified", self.ratification.ratified),
            ("ratifications_expired", self.ratification.expired),
            ("ratifications_dropped", self.ratification.dropped),
        ];
        let scrapes = self.scrapes.iter().flat_map(|scrapes| {
            [
                ("metrics_served", &scrapes.served),
                ("metrics_refused", &scrapes.refused),
                ("metrics_busy", &scrapes.busy),
            ]
            .map(|(name, n)| (name, n.load(Ordering::Relaxed)))
        });
        let notary = &self.notary.counters;
        let witness = [
            ("ledger_cosigned", &notary.cosigned),
            ("ledger_cosignatures", &notary.got),
            ("ledger_offers_refused", &notary.refused),
            ("ledger_messages_dropped", &notary.dropped),
            ("ledger_cut_back_from", &notary.cut_back),
        ]
        .map(|(name, n)| (name, n.load(Ordering::Relaxed)));
        let transport = self.transport.counters();
        let swim = self.watchman.swim.counters().snapshot();
        let sync = self.engine.sync_counters().snapshot();
        let refusals = self.engine.refusals();
        own.into_iter()
            .chain(scrapes)
            .chain(self.list_counters())
            .chain(witness)
            .chain([(
                "ledger_forks",
                self.engine.forks().count().try_into().unwrap_or(u64::MAX),
            )])
            .map(|(k, v)| (k.to_owned(), v))
            .chain(
                transport
                    .into_iter()
                    .map(|(k, v)| (format!("transport_{k}"), v)),
            )
            .chain(swim.into_iter().map(|(k, v)| (format!("swim_{k}"), v)))
            .chain(sync.into_iter().map(|(k, v)| (format!("sync_{k}"), v)))
            .chain(
                refusals
                    .into_iter()
                    .map(|(k, v)| (format!("refused_{}", k.name()), v)),
            )
            .collect()
    }

    pub(super) fn decisions(&self, all: bool, subject: Option<Prefix>) -> Vec<DecisionView> {
        self.book
            .newest_first()
            .into_iter()
            .filter(|e| all || e.state == DecisionState::Active)
            .filter(|e| subject.is_none_or(|s| e.subject.overlaps(&s)))
            .map(|e| self.view(e))
            .collect()
    }

    fn view(&self, entry: &Entry) -> DecisionView {
        let active = entry.state == DecisionState::Active;
        let kernel = active.then(|| self.table.get(&entry.subject)).flatten();
        let (hits, bytes) = entry
            .final_hits
            .or_else(|| kernel.map(|k| (k.hits, k.bytes)))
            .unwrap_or_default();
        DecisionView {
            id: entry.id.clone(),
            subject: entry.subject,
            class: entry.class,
            scope: entry.scope,
            origin: entry.origin,
            state: entry.state,
            incident: entry.incident.clone(),
            reason: entry.reason.clone(),
            created_unix_us: entry.created_unix_us,
            certified_unix_us: entry.certified_unix_us,
            enforced_unix_us: entry.enforced_unix_us,
            expires_unix_us: entry.expires_unix_us,
            overridden: entry.overridden.clone(),
            enforced: kernel.is_some(),
            not_enforced_reason: active
                .then(|| self.blocks.not_enforced(&entry.subject).map(str::to_owned))
                .flatten(),
            hits,
            bytes,
            first_hit_unix_us: kernel.and_then(|k| self.kernel_time(k.first_hit_ns)),
            last_hit_unix_us: kernel.and_then(|k| self.kernel_time(k.last_hit_ns)),
            votes: entry.votes.clone(),
            certificate: entry.certificate.clone(),
        }
    }

    fn allow_add(&mut self, prefix: Prefix, reason: Option<String>) -> Answer {
        let reason: String = reason
            .unwrap_or_else(|| "operator".to_owned())
            .chars()
            .take(MAX_REASON)
            .collect();
        self.allowlist
            .add(prefix, Source::Operator, reason.clone())
            .map_err(|e| e.to_string())?;
        self.save_allowlist()?;
        self.record(&Record::Allow {
            prefix: prefix.to_string(),
            added: true,
            by: "operator".to_owned(),
            reason: Some(reason),
        });
        self.write_allowlist();
        done(format!("{prefix} is on the allowlist of this node"), None)
    }

    fn allow_remove(&mut self, prefix: Prefix) -> Answer {
        self.allowlist.remove(prefix).map_err(|e| e.to_string())?;
        self.save_allowlist()?;
        self.record(&Record::Allow {
            prefix: prefix.to_string(),
            added: false,
            by: "operator".to_owned(),
            reason: None,
        });
        self.write_allowlist();
        done(format!("{prefix} is off the allowlist of this node"), None)
    }

    fn save_allowlist(&self) -> Result<(), String> {
        self.state
            .write_json(ALLOW_FILE, ALLOW_FORMAT, &self.allowlist.operator_entries())
            .map_err(|e| format!("the allowlist is changed but not on the disk: {e}"))
    }

    fn invite_terms(&self) -> InviteTerms {
        let me = self.engine.node();
        let roster = self.engine.roster().members();
        let mut members: Vec<_> = roster
            .filter(|(node, _)| !self.engine.is_quarantined(node))
            .collect();
        // This node first: it surely knows of the ticket.
        members.sort_by_key(|(node, _)| **node != me);
        let reachable: Vec<_> = members
            .iter()
            .filter_map(|(_, m)| Some((m.record.address?, m.record.tls_spki_sha256)))
            .take(MAX_MEMBERS_IN_TICKET)
            .collect();
        InviteTerms {
            genesis: BASE64_STANDARD.encode(self.store.genesis.to_bytes()),
            addresses: reachable.iter().map(|(a, _)| a.to_string()).collect(),
            pins: reachable.iter().map(|(_, pin)| to_hex(pin)).collect(),
            epoch: self.engine.roster().epoch(),
            epoch_hash: self.engine.roster().epoch_hash().to_string(),
        }
    }

    async fn open_grant(&mut self, grant: &str) -> Answer {
        let bytes = BASE64_STANDARD
            .decode(grant)
            .map_err(|e| format!("the grant is not base64: {e}"))?;
        let grant = SignedGrant::from_bytes(&bytes)
            .map_err(|e| format!("the grant is not understood: {e}"))?;
        grant
            .verify(self.engine.genesis())
            .map_err(|e| format!("the grant is refused: {e}"))?;
        let ticket = grant.grant.ticket;
        self.drive(Input::OpenGrant(Box::new(grant))).await;
        if !self.engine.open_grants().any(|g| g.grant.ticket == ticket) {
            return Err(
                "the ticket was not opened: it has ended, was used, or too many are open"
                    .to_owned(),
            );
        }
        done("the ticket is open".to_owned(), None)
    }
}
