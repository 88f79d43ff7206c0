//! `secmesh explain`: everything this node knows of an address, gathered in one answer.

use super::core::Agent;
use crate::{
    addr::Prefix,
    api::lists::ListCover,
    api::types::{
        DecisionScope, DecisionState, DecisionView, Explanation, IncidentView, KernelEntry, Origin,
    },
    config::Mode,
    respond::refusal,
};

/// Alerts in one explanation.
const MAX_ALERTS: usize = 20;

impl Agent {
    pub(super) fn explain(&self, subject: Prefix) -> Explanation {
        let decisions = self.decisions(true, Some(subject));
        let mut covering: Vec<&DecisionView> = decisions
            .iter()
            .filter(|d| d.state == DecisionState::Active && d.subject.contains(&subject))
            .collect();
        // Of several, the one with most behind it speaks.
        covering.sort_by_key(|d| d.scope != DecisionScope::Mesh);
        let allowlisted = self.allowlist.protects(&subject);
        let watch = self.watched.get(&subject.addr());
        let lists = self.covering_lists(&subject);
        let listed = lists.iter().find(|l| l.whole);
        let (verdict, summary) = if let Some(entry) = &allowlisted {
            (
                "allowlisted",
                format!("{}: it cannot be blocked here", refusal(&subject, entry)),
            )
        } else if let Some(decision) = covering.iter().find(|d| d.enforced) {
            ("blocked", self.blocked(&subject, decision))
        } else if let Some(decision) = covering.first() {
            let why = decision.not_enforced_reason.as_deref().unwrap_or("unknown");
            (
                "not_enforced",
                format!("{subject} should be blocked and is NOT: {why}"),
            )
        } else if let Some(cover) = listed {
            self.listed(&subject, cover)
        } else if watch.is_some() {
            (
                "watched",
                format!(
                    "{subject} is not blocked here; a peer saw it attack, so its first hostile contact is enough"
                ),
            )
        } else {
            ("clear", format!("{subject} is not blocked here"))
        };
        Explanation {
            verdict: verdict.to_owned(),
            summary,
            mode: self.dataplane.mode(),
            allowlisted,
            watched_until_unix_us: watch.map(|w| w.until_unix_us),
            watched_by: watch.and_then(|w| Some(self.name_of(&w.reported_by?))),
            watched_packets: watch.map(|w| w.packets),
            alerts: self
                .alerts
                .iter()
                .rev()
                .filter(|a| a.subject.overlaps(&subject))
                .take(MAX_ALERTS)
                .cloned()
                .collect(),
            kernel: covering.iter().find_map(|d| self.kernel_entry(&d.subject)),
            incidents: self.incidents(&subject),
            lists,
            decisions,
            subject,
        }
    }

    fn blocked(&self, subject: &Prefix, decision: &DecisionView) -> String {
        let whose = match decision.scope {
            DecisionScope::Mesh => "by decision of the mesh",
            DecisionScope::Node => "by this node alone",
        };
        let how = self.what_happens();
        // Of a network it matters why all of it is meant.
        let why = match &decision.reason {
            Some(reason) if decision.origin == Origin::Quarantine => format!(": {reason}"),
            Some(reason) if !decision.subject.is_single() => {
                format!(": all of {}, {reason}", decision.subject)
            }
            _ => String::new(),
        };
        format!(
            "{subject} is blocked {whose} ({}{why}); {how}",
            decision.class
        )
    }

    /// What it means for `subject` to be on a list.
    fn listed(&self, subject: &Prefix, cover: &ListCover) -> (&'static str, String) {
        let totals = self.list_totals();
        if totals.enforced < totals.desired {
            let why = totals
                .error
                .unwrap_or_else(|| "the kernel is being written".to_owned());
            return (
                "not_enforced",
                format!(
                    "{subject} is on the list {}, and the lists are not all enforced: {why}",
                    cover.list
                ),
            );
        }
        (
            "blocked",
            format!(
                "{subject} is on the list {}; {}",
                cover.list,
                self.what_happens()
            ),
        )
    }

    fn what_happens(&self) -> &'static str {
        match self.dataplane.mode() {
            Mode::Enforce => "its packets are dropped",
            Mode::Monitor => "monitor mode: its packets are counted, not dropped",
        }
    }

    fn kernel_entry(&self, prefix: &Prefix) -> Option<KernelEntry> {
        let entry = self.table.get(prefix)?;
        let map = match (prefix.is_ipv4(), prefix.is_single()) {
            (true, true) => "BLOCK4",
            (false, true) => "BLOCK6",
            (true, false) => "PREFIX4",
            (false, false) => "PREFIX6",
        };
        Some(KernelEntry {
            map: map.to_owned(),
            prefix: *prefix,
            expires_unix_us: self.kernel_time(entry.expires_ns).unwrap_or_default(),
            rule: entry.rule,
            hits: entry.hits,
            bytes: entry.bytes,
            first_hit_unix_us: self.kernel_time(entry.first_hit_ns),
            last_hit_unix_us: self.kernel_time(entry.last_hit_ns),
        })
    }

    fn incidents(&self, subject: &Prefix) -> Vec<IncidentView> {
        self.engine
            .incidents(Some(subject))
            .into_iter()
            .filter(|i| !i.decided)
            .filter_map(|i| Some((i.action.subject.prefix()?, i)))
            .map(|(subject, i)| IncidentView {
                id: i.incident.to_string(),
                subject,
                class: i.action.class,
                action: i.action.kind.to_string(),
                weight: i.verdict.weight,
                needed: i.verdict.needed,
                votes: self.votes_of(&i.verdict),
            })
            .collect()
    }
}
