//! `epoch`: who counts how much, and why; `peers remove`: who counts no more.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::output::{Out, Paint, Style, clean};
use super::table::{Table, plain, styled};
use super::time::{rfc3339, span};
use super::{CliError, Context, asked, control, node};
use crate::api::types::{CommitteeView, EpochView, Peer, Request};
use crate::mesh::epoch::Removal;
use crate::mesh::ids::NodeId;

/// `secmesh epoch`
pub fn epoch(context: &Context, out: &mut Out<'_>) -> Result<(), CliError> {
    let view: EpochView = context.ask(&Request::Epoch {})?;
    if out.json {
        return out.json(&view);
    }
    let text = text(&view, out.now_us, out.paint);
    out.text(&text)
}

fn committee_text(committee: &CommitteeView) -> String {
    format!(
        "{} seats of {} nodes decide; T_lo {}, T_hi {}",
        committee.total,
        committee.seats.len(),
        committee.t_lo,
        committee.t_hi
    )
}

fn liars(view: &EpochView) -> String {
    match &view.not_byzantine_tolerant {
        None if view.committee.is_some() => {
            format!("{} nodes may lie, whichever they are", view.liars_withstood)
        }
        None => "less than a third of the weight may lie".to_owned(),
        Some(why) => format!("not Byzantine-tolerant: {}", clean(why)),
    }
}

fn text(view: &EpochView, now_us: u64, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _never_fails = writeln!(text, "{name:<10} {value}");
    };
    if view.number == 0 {
        line(
            "epoch",
            "none yet: this node has joined and waits for its peers".to_owned(),
        );
        return text;
    }
    line("epoch", format!("{} {}", view.number, clean(&view.hash)));
    line(
        "since",
        format!(
            "{}, the next one in {} at the latest",
            rfc3339(view.since_unix_us),
            span(view.ends_unix_us.saturating_sub(now_us))
        ),
    );
    line(
        "weight",
        format!(
            "{} of {} nodes; T_lo {}, T_hi {}",
            view.total_weight,
            view.members.len(),
            view.t_lo,
            view.t_hi
        ),
    );
    if let Some(committee) = &view.committee {
        line("committee", committee_text(committee));
    }
    line("liars", liars(view));
    line(
        "signed",
        if view.signed_by.is_empty() {
            "by nobody: it follows from the genesis".to_owned()
        } else {
            format!("by {} (round {})", names(&view.signed_by), view.round)
        },
    );
    if let Some(weight) = view.sealed_weight {
        line(
            "sealed",
            format!("with ML-DSA-44 by {weight} weight of the epoch before"),
        );
    }
    if !view.waiting.is_empty() {
        line(
            "waiting",
            format!("{} for the next epoch", names(&view.waiting)),
        );
    }
    if !view.leaving.is_empty() {
        line(
            "leaving",
            format!("{} with the next epoch", names(&view.leaving)),
        );
    }
    if let Some((number, round)) = view.agreement {
        line(
            "next",
            format!("epoch {number} is being agreed on, round {round}"),
        );
    }
    text.push('\n');
    let mut table = Table::new(&["NAME", "ID", "ZONE", "WEIGHT", "SINCE", "STATE"]).right(&[3, 4]);
    let seats = view.committee.as_ref();
    let seats = |id: &String| seats.and_then(|committee| committee.seats.get(id));
    for member in &view.members {
        let state = match member.probation_until {
            Some(until) => styled(format!("on probation until epoch {until}"), Style::Warning),
            None if member.weight == 0 => styled("no weight", Style::Bad),
            None if let Some(seats) = seats(&member.id) => plain(match seats {
                1 => "has a seat".to_owned(),
                several => format!("has {several} seats"),
            }),
            None => plain(""),
        };
        table.row(vec![
            plain(&member.name),
            plain(member.id.get(..12).unwrap_or(&member.id)),
            plain(&member.zone),
            plain(member.weight.to_string()),
            plain(member.since.to_string()),
            state,
        ]);
    }
    text + &table.render(paint)
}

fn names(all: &[String]) -> String {
    let cleaned: Vec<String> = all.iter().map(|name| clean(name)).collect();
    cleaned.join(", ")
}

/// `secmesh peers remove`
pub fn remove(
    context: &Context,
    node: &str,
    key: &Path,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    // The key first: who cannot read it need not ask.
    let operator = node::operator_key(key)?;
    let peers: Vec<Peer> = context.ask(&Request::Peers {})?;
    let removal = Removal {
        mesh: asked::mesh(context)?,
        node: chosen(node, &peers)?,
        issued_unix_us: out.now_us,
    };
    let signed = STANDARD.encode(removal.sign(&operator).to_bytes());
    control::done(context, &Request::RemoveNode { signed }, out)
}

/// The one node with this name or this beginning of its id.
fn chosen(given: &str, peers: &[Peer]) -> Result<NodeId, CliError> {
    let ids = |matches: &dyn Fn(&Peer) -> bool| -> Vec<String> {
        let found = peers.iter().filter(|peer| matches(peer));
        found.map(|peer| peer.id.clone()).collect()
    };
    let named = ids(&|peer| peer.name == given);
    let found = if named.is_empty() && given.len() >= 4 {
        ids(&|peer| peer.id.starts_with(given))
    } else {
        named
    };
    match found.as_slice() {
        [one] => one
            .parse()
            .map_err(|e| CliError::Failed(format!("the agent's answer: {e}"))),
        [] => Err(CliError::Usage(format!(
            "no node is called {}; `secmesh peers` lists them",
            clean(given)
        ))),
        several => Err(CliError::Usage(format!(
            "{} could be any of {}; give the id",
            clean(given),
            several.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::EpochMemberView;

    fn view() -> EpochView {
        EpochView {
            number: 7,
            hash: "ab".repeat(32),
            previous: "cd".repeat(32),
            since_unix_us: 1_700_000_000_000_000,
            ends_unix_us: 1_700_003_600_000_000,
            probation: 3,
            members: vec![EpochMemberView {
                id: "00112233445566778899aabbccddeeff".to_owned(),
                name: "n5".to_owned(),
                zone: "e".to_owned(),
                weight: 0,
                since: 6,
                probation_until: Some(9),
            }],
            committee: None,
            total_weight: 400,
            t_lo: 134,
            t_hi: 267,
            liars_withstood: 1,
            not_byzantine_tolerant: None,
            signed_by: vec!["n1".to_owned(), "n2\u{1b}".to_owned()],
            sealed_weight: Some(300),
            round: 0,
            evidence: Vec::new(),
            waiting: vec!["n6".to_owned()],
            leaving: Vec::new(),
            removed: Vec::new(),
            agreement: Some((8, 1)),
            kept: 7,
        }
    }

    #[test]
    fn the_epoch_is_told_in_words() {
        let text = text(&view(), 1_700_000_000_000_000, Paint(false));
        for part in [
            "epoch      7 abab",
            "T_lo 134, T_hi 267",
            "less than a third",
            "by n1, n2\u{fffd} (round 0)",
            "n6 for the next epoch",
            "on probation until epoch 9",
            "epoch 8 is being agreed on, round 1",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_node_is_named_by_name_or_by_the_beginning_of_its_id() {
        let peer = |id: &str, name: &str| Peer {
            id: id.to_owned(),
            name: name.to_owned(),
            zone: "z".to_owned(),
            address: None,
            connected: true,
            liveness: None,
            reachable: true,
            weight: 100,
            trust: 100,
            equivocated: false,
            quarantined: false,
            this_node: false,
        };
        let (a, b) = ("aa".repeat(16), "aabb".repeat(8));
        let peers = [peer(&a, "n1"), peer(&b, "n2")];
        assert_eq!(chosen("n2", &peers).unwrap().to_string(), b);
        assert_eq!(chosen("aaaa", &peers).unwrap().to_string(), a);
        assert!(chosen("aa", &peers).is_err(), "too short");
        assert!(chosen("n3", &peers).is_err());
    }
}
