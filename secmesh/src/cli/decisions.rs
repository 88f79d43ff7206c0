//! Decisions for people.

use std::fmt::Write as _;

use super::output::{Paint, Style, clean};
use super::status::short;
use super::table::{Cell, Table, plain, styled};
use super::time::{at, bytes, count, end, grouped, relative, rfc3339};
use crate::api::types::{
    CertificateView, DecisionScope, DecisionState, DecisionView, Origin, VoteView,
};

/// A list of decisions.
pub fn list(decisions: &[DecisionView], now_us: u64, paint: Paint) -> String {
    if decisions.is_empty() {
        return "No decisions.\n".to_owned();
    }
    let mut table = Table::new(&[
        "ID", "SUBJECT", "CLASS", "BY", "STATE", "ENDS", "PACKETS", "BYTES", "LAST HIT",
    ])
    .right(&[6, 7]);
    let mut reasons = String::new();
    for decision in decisions {
        table.row(vec![
            plain(short(&decision.id)),
            plain(decision.subject.to_string()),
            plain(decision.class.name()),
            plain(by(decision)),
            state(decision),
            plain(end(decision.expires_unix_us, now_us)),
            plain(grouped(decision.hits)),
            plain(bytes(decision.bytes)),
            plain(
                decision
                    .last_hit_unix_us
                    .map_or_else(|| "-".to_owned(), |last| relative(last, now_us)),
            ),
        ]);
        if let Some(why) = missing(decision) {
            let _ = writeln!(
                reasons,
                "{} {} is not enforced: {}",
                paint.apply(Style::Bad, "warning:"),
                decision.subject,
                clean(why)
            );
        }
    }
    table.render(paint) + &reasons
}

fn by(decision: &DecisionView) -> String {
    match (decision.origin, decision.scope) {
        (Origin::Quorum, DecisionScope::Mesh) => "mesh".to_owned(),
        (Origin::Unilateral, DecisionScope::Node) => "this node".to_owned(),
        (Origin::Operator, DecisionScope::Node) => "operator, this node".to_owned(),
        (Origin::Operator, DecisionScope::Mesh) => "operator, mesh".to_owned(),
        (Origin::Quorum, DecisionScope::Node) => "mesh, this node".to_owned(),
        (Origin::Unilateral, DecisionScope::Mesh) => "this node, mesh".to_owned(),
        (Origin::Quarantine, _) => "quarantine".to_owned(),
    }
}

/// Why an active decision is not in force.
fn missing(decision: &DecisionView) -> Option<&str> {
    let missing = decision.state == DecisionState::Active && !decision.enforced;
    missing.then(|| {
        decision
            .not_enforced_reason
            .as_deref()
            .unwrap_or("not yet written")
    })
}

fn state(decision: &DecisionView) -> Cell {
    match decision.state {
        DecisionState::Active if decision.enforced => styled("enforced", Style::Good),
        DecisionState::Active => styled("NOT ENFORCED", Style::Bad),
        DecisionState::Ended => styled("ended", Style::Dim),
        DecisionState::Released => styled("released", Style::Dim),
        DecisionState::Refused => styled("REFUSED (no room)", Style::Bad),
        DecisionState::Vetoed => styled("vetoed here (allowlist)", Style::Warning),
    }
}

/// One decision with its votes, indented.
pub fn story(out: &mut String, decision: &DecisionView, now_us: u64, paint: Paint) {
    let (state, style) = state(decision);
    let _ = writeln!(
        out,
        "  {} of {} for {}, by {}: {}, {}",
        paint.apply(
            Style::Bold,
            &format!("block {}", clean(short(&decision.id)))
        ),
        decision.subject,
        decision.class.name(),
        by(decision),
        paint.apply(style, &state),
        end(decision.expires_unix_us, now_us)
    );
    let mut table = Table::bare(4);
    let mut line = |name: &str, text: String| table.row(vec![plain(name), plain(text)]);
    line("id", decision.id.clone());
    if let Some(incident) = &decision.incident {
        line("incident", incident.clone());
    }
    if let Some(reason) = &decision.reason {
        line("reason", reason.clone());
    }
    line("first heard of", at(decision.created_unix_us, now_us));
    if let Some(certified) = decision.certified_unix_us {
        line("certified", after(certified, decision.created_unix_us));
    }
    match (decision.enforced_unix_us, missing(decision)) {
        (Some(enforced), None) => line("in the kernel", after(enforced, decision.created_unix_us)),
        (_, Some(why)) => line("NOT in the kernel", why.to_owned()),
        (None, None) => {}
    }
    line("ends", at(decision.expires_unix_us, now_us));
    line(
        "met",
        hits(
            decision.hits,
            decision.bytes,
            decision.first_hit_unix_us,
            decision.last_hit_unix_us,
            now_us,
        ),
    );
    out.push_str(&table.render(paint));
    if let Some(certificate) = &decision.certificate {
        out.push_str(&verdict(certificate, paint));
    }
    votes(out, &decision.votes, paint);
}

/// A time, and how long it took since `start`.
fn after(unix_us: u64, start: u64) -> String {
    let took = unix_us.saturating_sub(start);
    format!(
        "{} (after {}.{:03} ms)",
        rfc3339(unix_us),
        took / 1_000,
        took % 1_000
    )
}

/// What met a block.
pub fn hits(packets: u64, size: u64, first: Option<u64>, last: Option<u64>, now_us: u64) -> String {
    let mut text = format!("{} packets, {}", grouped(packets), bytes(size));
    if let (Some(first), Some(last)) = (first, last) {
        let _ = write!(
            text,
            "; first {}, last {}",
            rfc3339(first),
            at(last, now_us)
        );
    }
    text
}

fn verdict(certificate: &CertificateView, paint: Paint) -> String {
    let CertificateView {
        valid,
        error,
        weight,
        needed,
        total,
        confirms,
        confirms_needed,
        zones,
        epoch,
    } = certificate;
    let word = if *valid {
        paint.apply(Style::Good, "valid")
    } else {
        let why = clean(error.as_deref().unwrap_or("no reason given"));
        paint.apply(Style::Bad, &format!("NOT valid: {why}"))
    };
    format!(
        "    certificate: {word}; weight {weight} of {total}, {needed} needed; {} saw it, {confirms_needed} needed; \
         {}; epoch {epoch}\n",
        count(*confirms, "node"),
        count(*zones, "zone")
    )
}

/// A list of votes, indented.
pub fn votes(out: &mut String, votes: &[VoteView], paint: Paint) {
    if votes.is_empty() {
        return;
    }
    let mut table = Table::bare(6).right(&[2]);
    for vote in votes {
        let style = match vote.verdict.as_str() {
            "confirm" => Style::Good,
            "reject" => Style::Bad,
            _ => Style::Plain,
        };
        table.row(vec![
            plain(&vote.name),
            styled(&vote.verdict, style),
            plain(format!("weight {}", vote.weight)),
            styled(rfc3339(vote.issued_unix_us), Style::Dim),
        ]);
    }
    out.push_str("    votes:\n");
    out.push_str(&table.render(paint));
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::alerts::tests::T;
    use super::*;

    pub(in crate::cli) fn decision() -> DecisionView {
        serde_json::from_value(serde_json::json!({
            "id": "d00112233445566778899", "subject": "203.0.113.9", "class": "syn_flood",
            "scope": "mesh", "origin": "quorum", "state": "active", "incident": "i0011", "reason": null,
            "created_unix_us": T, "certified_unix_us": T + 12_345, "enforced_unix_us": T + 12_900,
            "expires_unix_us": T + 3_600_000_000_u64, "enforced": true, "not_enforced_reason": null,
            "hits": 12345, "bytes": 740_700, "first_hit_unix_us": T + 13_000, "last_hit_unix_us": T + 1_000_000,
            "votes": [
                {"node": "aa", "name": "n1", "verdict": "confirm", "weight": 100, "issued_unix_us": T},
                {"node": "bb", "name": "node2", "verdict": "concur", "weight": 100, "issued_unix_us": T + 9_000}],
            "certificate": {"valid": true, "error": null, "weight": 200, "needed": 134, "total": 400,
                "confirms": 2, "confirms_needed": 2, "zones": 2, "epoch": 4}
        }))
        .unwrap()
    }

    #[test]
    fn the_list_is_a_table() {
        assert_eq!(
            list(&[decision()], T + 2_000_000, Paint(false)),
            "\
ID            SUBJECT      CLASS      BY    STATE     ENDS            PACKETS     BYTES  LAST HIT
d00112233445  203.0.113.9  syn_flood  mesh  enforced  ends in 59 min   12,345  740.7 kB  1 s ago
"
        );
        assert_eq!(list(&[], T, Paint(false)), "No decisions.\n");
    }

    #[test]
    fn a_block_that_is_not_in_force_is_a_warning() {
        let decision = DecisionView {
            enforced: false,
            not_enforced_reason: Some("the map is full".to_owned()),
            ..decision()
        };
        let text = list(std::slice::from_ref(&decision), T, Paint(false));
        assert!(text.contains("NOT ENFORCED"), "{text}");
        assert!(
            text.ends_with("warning: 203.0.113.9 is not enforced: the map is full\n"),
            "{text}"
        );
        let ended = DecisionView {
            state: DecisionState::Ended,
            ..decision
        };
        assert!(!list(&[ended], T, Paint(false)).contains("warning"));
    }

    #[test]
    fn the_story_has_votes_weights_verdict_and_hits() {
        let mut out = String::new();
        story(&mut out, &decision(), T + 2_000_000, Paint(false));
        assert_eq!(
            out,
            "  block d00112233445 of 203.0.113.9 for syn_flood, by mesh: enforced, ends in 59 min
    id              d00112233445566778899
    incident        i0011
    first heard of  2023-11-14T22:13:20.000Z (2 s ago)
    certified       2023-11-14T22:13:20.012Z (after 12.345 ms)
    in the kernel   2023-11-14T22:13:20.012Z (after 12.900 ms)
    ends            2023-11-14T23:13:20.000Z (in 59 min)
    met             12,345 packets, 740.7 kB; first 2023-11-14T22:13:20.013Z, last 2023-11-14T22:13:21.000Z (1 s ago)
    certificate: valid; weight 200 of 400, 134 needed; 2 nodes saw it, 2 needed; 2 zones; epoch 4
    votes:
      n1     confirm  weight 100  2023-11-14T22:13:20.000Z
      node2  concur   weight 100  2023-11-14T22:13:20.009Z
"
        );
    }

    #[test]
    fn a_certificate_that_does_not_hold_says_why() {
        let mut decision = decision();
        if let Some(certificate) = &mut decision.certificate {
            certificate.valid = false;
            certificate.error = Some("too little weight".to_owned());
        }
        let mut out = String::new();
        story(&mut out, &decision, T, Paint(false));
        assert!(
            out.contains("certificate: NOT valid: too little weight; weight 200"),
            "{out}"
        );
    }
}
