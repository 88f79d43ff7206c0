//! `secmesh block`: an operator's block, weighed first.

use super::{
    core::Agent,
    effects::local_id,
    requests::{Answer, MAX_NAMED, MAX_REASON, done},
};
use crate::{
    addr::Prefix,
    api::types::{DecisionScope, DecisionState, Origin},
    config::Mode,
    mesh::{engine::Input, vote::AttackClass},
    respond::{ClaimError, Entry, Risk, risky},
};

/// Longest block that an operator can ask for on this node, seconds.
const MAX_BLOCK_S: u64 = 30 * 86_400;

impl Agent {
    /// Why `subject` must not be blocked just so: all reasons, or that it would have no effect.
    fn risk_of(&self, subject: &Prefix) -> Option<Risk> {
        let mut protected: Vec<(Prefix, String)> = self
            .allowlist
            .list()
            .into_iter()
            .map(|e| (e.prefix, format!("allowlist: {}, {}", e.reason, e.source)))
            .collect();
        protected.extend(self.protected.iter().cloned());
        risky(subject, &protected)
    }

    /// Lets a block through that is not risky, or that an operator insists on; gives what was overridden.
    fn weigh(
        &self,
        subject: &Prefix,
        mesh: bool,
        reason: Option<&str>,
        override_risky: bool,
    ) -> Result<Vec<String>, String> {
        let Some(risk) = self.risk_of(subject) else {
            return Ok(Vec::new());
        };
        if self.allowlist.covers(subject).is_some() {
            return Err(format!(
                "not blocked: {subject} is on the allowlist, which wins in the kernel: {risk}; `secmesh allow list` shows the allowlist"
            ));
        }
        if !override_risky {
            return Err(format!(
                "not blocked: {subject} is risky: {risk}\n  \
                 remedy: block less, or insist with --override-risky --reason TEXT, which is recorded (`secmesh allow list` shows what is protected)"
            ));
        }
        if mesh {
            return Err(
                "--override-risky is for this node alone: every other node judges by its own allowlist; leave out --mesh"
                    .to_owned(),
            );
        }
        if reason.is_none_or(|r| r.trim().is_empty()) {
            return Err("--override-risky takes --reason TEXT, for the record".to_owned());
        }
        Ok(risk.reasons.iter().map(ToString::to_string).collect())
    }

    pub(super) async fn block(
        &mut self,
        subject: Prefix,
        ttl_s: u64,
        mesh: bool,
        reason: Option<String>,
        override_risky: bool,
    ) -> Answer {
        let mut overridden = self.weigh(&subject, mesh, reason.as_deref(), override_risky)?;
        overridden.truncate(MAX_NAMED);
        if ttl_s == 0 || ttl_s > MAX_BLOCK_S {
            return Err(format!(
                "a block lasts from 1 second to {} days",
                MAX_BLOCK_S / 86_400
            ));
        }
        if mesh && !subject.is_single() {
            return Err(format!(
                "the mesh decides on single addresses, {subject} is a network; without --mesh it is blocked on this node"
            ));
        }
        let reason = reason.map(|r| r.chars().take(MAX_REASON).collect());
        let now = self.now();
        let entry = Entry {
            id: local_id(&subject, now.unix_us),
            subject,
            class: AttackClass::Manual,
            scope: DecisionScope::Node,
            origin: Origin::Operator,
            state: DecisionState::Active,
            incident: None,
            reason,
            created_unix_us: now.unix_us,
            certified_unix_us: None,
            enforced_unix_us: None,
            expires_unix_us: now.unix_us.saturating_add(ttl_s.saturating_mul(1_000_000)),
            votes: Vec::new(),
            certificate: None,
            rule: self.book.next_rule(),
            overridden,
            final_hits: None,
        };
        let insisted = !entry.overridden.is_empty();
        let id = entry.id.clone();
        self.enforce(entry, None).map_err(|e| match e {
            ClaimError::Limit(_) => format!("{subject} is NOT blocked: {e}"),
            ClaimError::Table(e) => format!(
                "{subject} is NOT blocked: {e}. It is tried again until it is, or its time is over."
            ),
        })?;
        let mode = self.mode_note();
        if mesh {
            self.drive(Input::OperatorBlock { subject }).await;
            return done(
                format!(
                    "{subject} is blocked on this node and proposed to the mesh: another node has to confirm it{mode}"
                ),
                Some(id),
            );
        }
        let note = if insisted {
            "; recorded as insisted on. What the allowlist holds still gets through: the kernel asks it last"
        } else {
            ""
        };
        done(
            format!("{subject} is blocked on this node{mode}{note}"),
            Some(id),
        )
    }

    fn mode_note(&self) -> &'static str {
        match self.dataplane.mode() {
            Mode::Monitor => " (monitor mode: its packets are counted, not dropped)",
            Mode::Enforce => "",
        }
    }
}
