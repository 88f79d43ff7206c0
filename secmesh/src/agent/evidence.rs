//! While an attack lasts: this node's own blocks are renewed, and so is the evidence that peers may join.

use super::core::{Agent, Evidence, QUIET_US};
use crate::{
    addr::Prefix,
    api::types::Origin,
    mesh::vote::AttackClass,
    respond::{ENDS_PER_TICK, Now},
};

/// How often own evidence is renewed while an attack lasts, µs.
const RENEW_EVIDENCE_US: u64 = 5_000_000;
/// Pieces of evidence looked at per tick.
const EVIDENCE_PER_TICK: usize = 512;

impl Agent {
    pub(super) fn keep_evidence(&mut self, subject: Prefix, evidence: Evidence) {
        let due_unix_us = self.clock.unix_us().saturating_add(RENEW_EVIDENCE_US);
        let evidence = Evidence {
            due_unix_us,
            ..evidence
        };
        if let Some(before) = self.evidence.insert(subject, evidence) {
            self.evidence_due.remove(&(before.due_unix_us, subject));
        }
        self.evidence_due.insert((due_unix_us, subject));
    }

    fn is_attacking(&self, now: Now, subject: &Prefix) -> bool {
        self.table.get(subject).is_some_and(|entry| {
            entry.last_hit_ns != 0
                && now.mono_ns.saturating_sub(entry.last_hit_ns) / 1000 <= QUIET_US
        })
    }

    /// Blocks on this node's own right are renewed while the source keeps coming, and so is the
    /// evidence that peers may join. Looks only at what is due.
    pub(super) async fn renew_unilateral(&mut self, now: Now) {
        let due: Vec<(String, Prefix, AttackClass)> = self
            .book
            .own_due(now.unix_us)
            .take(ENDS_PER_TICK)
            .map(|e| (e.id.clone(), e.subject, e.class))
            .collect();
        for (id, subject, class) in due {
            if self.is_attacking(now, &subject) {
                let reason = format!("renewed, the source still comes; before: {id}");
                self.claim_unilaterally(subject, class, reason);
            }
        }
        self.renew_evidence(now).await;
    }

    async fn renew_evidence(&mut self, now: Now) {
        let keep_us =
            u64::try_from(self.options.config.detect.evidence_ttl.as_micros()).unwrap_or(u64::MAX);
        for _ in 0..EVIDENCE_PER_TICK {
            let Some((due, subject)) = self.evidence_due.first().copied() else {
                return;
            };
            if due > now.unix_us {
                return;
            }
            self.evidence_due.pop_first();
            let Some(evidence) = self.evidence.get(&subject).copied() else {
                continue;
            };
            let own = self
                .book
                .active_on(&subject)
                .any(|e| e.origin == Origin::Unilateral);
            if own && self.is_attacking(now, &subject) {
                let renewed = Evidence {
                    renewed_unix_us: now.unix_us,
                    ..evidence
                };
                self.keep_evidence(subject, renewed);
                self.drive(evidence.about(subject)).await;
            } else if self.blocks.is_desired(&subject)
                || now.unix_us.saturating_sub(evidence.renewed_unix_us) < keep_us
            {
                self.keep_evidence(subject, evidence);
            } else {
                self.evidence.remove(&subject);
            }
        }
    }
}
