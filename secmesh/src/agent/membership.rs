//! Who is in: admissions, what follows from a changed roster, and the allowlist that members are part of.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tracing::{error, info, warn};

use super::core::Agent;
use crate::{
    addr::Prefix,
    ledger::Record,
    mesh::{
        admission::AdmittedRecord,
        engine::Input,
        identity::ed25519_spki_sha256,
        ids::{NodeId, TicketId},
        join::{JoinReply, JoinRequest},
        transport::{PeerAddress, PeerIdentity},
    },
    respond::Source,
    sense::netinfo::{self, AllowReason, BuiltinAllow, LiveSystem},
};

impl Agent {
    /// Somebody with a ticket asks to be let in.
    pub(super) async fn admit(&mut self, ticket: TicketId, bytes: &[u8]) -> Vec<u8> {
        let refuse = |reason: String| JoinReply::Refused { reason }.to_bytes();
        let JoinRequest { record, standby } = match JoinRequest::from_bytes(bytes) {
            Ok(request) => request,
            Err(error) => return refuse(format!("the request is not understood: {error}")),
        };
        if record.ticket() != Some(ticket) {
            return refuse(
                "the request is not under the ticket that opened the connection".to_owned(),
            );
        }
        let node = record.record.node;
        // Who is in, or on its way in, is told so: its answer may have been lost.
        let spare = standby && !self.engine.admissions().any(|known| *known == record);
        if spare {
            let now = self.now().unix_us;
            if let Some(reason) = self.engine.no_spare_wanted(now) {
                self.tally.spares_waiting += 1;
                return JoinReply::Waiting { reason }.to_bytes();
            }
        }
        self.drive(Input::Admit(Box::new(record))).await;
        // It counts from the next epoch on, but it may connect from now on.
        if !self
            .engine
            .reachable_records()
            .iter()
            .any(|r| r.node == node)
        {
            return refuse(
                "not admitted: the ticket was used or has ended, or the name or address is taken (the member's log says which)"
                    .to_owned(),
            );
        }
        if spare {
            info!(%node, "it is a spare, for a node that is missing");
            self.tally.spares_let_in += 1;
        }
        let me = self.engine.node();
        let mut members: Vec<AdmittedRecord> = self.engine.admissions().cloned().collect();
        // From those whom the operator admitted in person the joiner finds the first epoch.
        members
            .sort_by_key(|m| m.record.node != me && m.record.node != node && m.grant().is_some());
        JoinReply::Accepted { members }.to_bytes()
    }

    pub(super) fn admitted(&mut self, record: &AdmittedRecord) {
        info!(name = %record.record.name, node = %record.record.node, "admitted");
        self.record(&Record::Admitted {
            node: record.record.node.to_string(),
            name: record.record.name.to_string(),
            admission: BASE64_STANDARD.encode(record.to_bytes()),
        });
        self.membership_changed();
    }

    /// The roster or the open tickets changed: who may connect, whom to dial, whom never to block, and
    /// what is on the disk.
    pub(super) fn membership_changed(&mut self) {
        self.apply_membership();
        self.store.members = self.engine.admissions().cloned().collect();
        self.store.grants = self.engine.open_grants().cloned().collect();
        if let Err(error) = self.store.save(&self.state) {
            error!(%error, "the roster is not on the disk");
        }
        self.protect_known();
    }

    pub(super) fn apply_membership(&self) {
        let me = self.engine.node();
        let records = self.engine.reachable_records();
        let cut_off = |node: &NodeId| *node != me && self.engine.is_quarantined(node);
        let members = records.iter().map(|r| {
            let who = if cut_off(&r.node) {
                PeerIdentity::Quarantined(r.node)
            } else {
                PeerIdentity::Member(r.node)
            };
            (r.tls_spki_sha256, who)
        });
        // Whoever was let in may ask again until it is in an epoch: the answer may have been lost, and a spare asks
        // a second member whether it knows of it.
        let roster = self.engine.roster();
        let coming: BTreeSet<NodeId> = records
            .iter()
            .map(|record| record.node)
            .filter(|node| roster.get(node).is_none())
            .collect();
        let admissions = self.engine.admissions();
        let coming = admissions
            .filter(|admitted| coming.contains(&admitted.record.node))
            .filter_map(AdmittedRecord::grant);
        let tickets = self.engine.open_grants().chain(coming).map(|grant| {
            (
                ed25519_spki_sha256(&grant.grant.ticket_key),
                PeerIdentity::Ticket(grant.grant.ticket),
            )
        });
        self.allowed.replace(members.chain(tickets));
        let peers = records
            .iter()
            .filter(|record| record.node != me && !cut_off(&record.node))
            .filter_map(|record| {
                Some(PeerAddress {
                    node: record.node,
                    spki_sha256: record.tls_spki_sha256,
                    address: record.address?,
                })
            })
            .collect();
        self.transport.set_peers(peers);
    }

    /// Asks the system what must never be blocked. Bare TCP connections to the SSH port are only
    /// believed at start: later, anybody could make one to become untouchable.
    pub(super) fn discover_allowlist(&mut self, at_start: bool) {
        self.last_discovery_us = self.clock.unix_us();
        self.tally.discoveries += 1;
        let found = netinfo::discover(&LiveSystem);
        if at_start {
            for warning in &found.warnings {
                warn!("{warning}");
            }
        }
        let (ssh, others): (Vec<_>, Vec<_>) = found
            .allow
            .iter()
            .partition(|a| a.reason == AllowReason::SshConnection);
        let named = |found: Vec<&BuiltinAllow>| -> Vec<(Prefix, String)> {
            found
                .iter()
                .map(|a| (a.prefix, a.reason.to_string()))
                .collect()
        };
        self.discovered = named(others);
        if at_start {
            self.ssh_at_start = named(ssh);
        }
        self.protect_known();
    }

    /// Allowlists what the system said last and where the peers are. The system is not asked: its table of
    /// connections alone costs milliseconds, and peers come by the dozen when a mesh comes up.
    pub(super) fn protect_known(&mut self) {
        let mut entries = self.discovered.clone();
        entries.extend(self.ssh_at_start.iter().cloned());
        let liars = self.engine.liars();
        entries.extend(
            self.met
                .iter(self.clock.mono_ns())
                .filter(|(node, _)| !liars.contains(node) && !self.engine.is_quarantined(node))
                .filter_map(|(node, ip)| {
                    let member = self.engine.roster().get(node)?;
                    let reason = format!("{} {}", AllowReason::MeshPeer, member.record.name);
                    Some((Prefix::host(ip), reason))
                }),
        );
        if !self.options.config.allow.builtin {
            self.protected = entries;
            self.write_allowlist();
            return;
        }
        let reasons: BTreeMap<Prefix, String> = entries.iter().cloned().collect();
        let left_out = self.allowlist.replace(Source::Builtin, entries);
        if !left_out.is_empty() {
            error!(
                count = left_out.len(),
                "the allowlist is full; these are not protected"
            );
        }
        self.protected = left_out
            .into_iter()
            .map(|p| (p, reasons.get(&p).cloned().unwrap_or_default()))
            .collect();
        self.write_allowlist();
    }

    /// Whether the allowlist stands against a block: any overlap, or, where an operator insisted, only one
    /// that leaves nothing to block.
    pub(super) fn forbids(&self, subject: &Prefix, overridden: &[String]) -> bool {
        if overridden.is_empty() {
            self.allowlist.protects(subject).is_some()
        } else {
            self.allowlist.covers(subject).is_some()
        }
    }

    /// Makes the kernel's allowlist equal to ours, and lets go of blocks that it now forbids.
    pub(super) fn write_allowlist(&mut self) {
        let prefixes = self.allowlist.prefixes();
        self.chosen_peers = self.chosen_peers();
        if let Err(error) = self.allows.replace(&prefixes) {
            error!(%error, "the kernel's allowlist is incomplete");
        }
        self.tell_lists();
        // Only what is new can forbid a block that stands.
        let forbidden: BTreeSet<Prefix> = prefixes
            .iter()
            .filter(|prefix| !self.allow_written.contains(prefix))
            .flat_map(|prefix| self.book.active_around(prefix))
            .filter(|e| self.forbids(&e.subject, &e.overridden))
            .map(|e| e.subject)
            .collect();
        self.allow_written = prefixes.into_iter().collect();
        for subject in forbidden {
            self.release_here(&subject, "now on the allowlist", true);
        }
    }
}
