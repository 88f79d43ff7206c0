//! `status` and `peers` for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::output::{Paint, Style, clean};
use super::table::{Cell, Table, plain, styled};
use super::time::{count, grouped, span};
use crate::api::types::{FlowsView, Peer, Status, WaitingInterface};
use crate::dataplane::{AttachMode, CookieMode, Egress, Mode};
use crate::mesh::swim::Liveness;

/// Blocks listed as not enforced; the rest is counted.
const MAX_LISTED: usize = 10;

/// The status of a node; `all` also shows the counters at zero.
pub fn status(status: &Status, all: bool, paint: Paint) -> String {
    let mut out = String::new();
    let node = &status.node;
    let mut table = Table::bare(0);
    let mut line = |name: &str, text: String| {
        // Not through `plain`: the parts are cleaned one by one, and may hold colour. It is the last
        // column, whose width does not matter.
        table.row(vec![styled(name, Style::Bold), (text, Style::Plain)]);
    };
    line(
        "node",
        format!(
            "{} ({}), zone {}",
            clean(&node.name),
            clean(&node.id),
            clean(&node.zone)
        ),
    );
    line(
        "mesh",
        format!(
            "{} ({})",
            clean(&status.mesh),
            short(&clean(&status.mesh_id))
        ),
    );
    line(
        "agent",
        format!(
            "version {}, up {}",
            clean(&status.version),
            span(status.uptime_s.saturating_mul(1_000_000))
        ),
    );
    line(
        "mode",
        match status.mode {
            Mode::Enforce => match status.pending_confirm {
                None => paint.apply(Style::Good, "enforce"),
                Some(trial) => format!(
                    "{} on trial: back to monitor in {} s unless `secmesh mode confirm` comes before",
                    paint.apply(Style::Warning, "enforce"),
                    trial.seconds_left
                ),
            },
            Mode::Monitor => format!(
                "{}: nothing is dropped, only counted",
                paint.apply(Style::Warning, "monitor")
            ),
        },
    );
    line("interfaces", interfaces(status, paint));
    if let Some(view) = &status.flows {
        line("flows", flows(view, paint));
    }
    if let Some(why) = &status.no_processes {
        line(
            "processes",
            format!("{}: {}", paint.apply(Style::Dim, "not watched"), clean(why)),
        );
    }
    line("quorum", quorum(&status.quorum, paint));
    for node in &status.quarantined {
        line("cut off", super::quarantine::line(node, paint));
    }
    line("blocks", blocks(status, paint));
    if status.lists.lists > 0 {
        line("lists", lists(status, paint));
    }
    if status.watched > 0 {
        line(
            "watched",
            format!("{} that peers reported", count(status.watched, "source")),
        );
    }
    if status.cookies.total > 0 {
        line("cookies", cookies(status, paint));
    }
    if let Some(text) = super::in_force::tables(&status.reconciled) {
        line("kernel", text);
    }
    line("limits", super::in_force::limits(&status.limits));
    if status.trust.statements > 0 {
        line("trust", trust(status, paint));
    }
    line("ledger", ledger(status, paint));
    out.push_str(&table.render(paint));
    for warning in warnings(status) {
        let _ = writeln!(out, "{} {warning}", paint.apply(Style::Bad, "warning:"));
    }
    counters(&mut out, "packets", &status.counters, all, paint);
    counters(&mut out, "agent", &status.controller, all, paint);
    out
}

fn trust(status: &Status, paint: Paint) -> String {
    let said = count(status.trust.statements, "statement");
    if status.trust.lowered.is_empty() {
        return format!("{said}, nobody lowered");
    }
    let lowered: Vec<String> = status
        .trust
        .lowered
        .iter()
        .map(|(name, weight)| format!("{} {weight}", clean(name)))
        .collect();
    let lowered = lowered.join(", ");
    format!("{said}; lowered: {}", paint.apply(Style::Warning, &lowered))
}

/// The first characters of an id, enough to tell two apart by eye.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn interfaces(status: &Status, paint: Paint) -> String {
    if status.interfaces.is_empty() && status.waiting.is_empty() {
        return paint.apply(Style::Bad, "none: nothing is protected");
    }
    let each = status.interfaces.iter().map(|interface| {
        let style = match interface.attach_mode {
            AttachMode::Driver => Style::Good,
            AttachMode::Generic => Style::Warning,
        };
        format!(
            "{} ({})",
            clean(&interface.name),
            paint.apply(style, &format!("{} mode", interface.attach_mode))
        )
    });
    let waiting = status.waiting.iter().map(|interface| {
        let word = if is_absent(interface) {
            "absent"
        } else {
            "NOT PROTECTED"
        };
        format!(
            "{} ({})",
            clean(&interface.name),
            paint.apply(Style::Bad, word)
        )
    });
    each.chain(waiting).collect::<Vec<_>>().join(", ")
}

fn is_absent(interface: &WaitingInterface) -> bool {
    interface.why.starts_with("absent")
}

fn flows(view: &FlowsView, paint: Paint) -> String {
    let mut text = format!(
        "{} of {} in use",
        grouped(view.in_use.into()),
        grouped(view.slots.into())
    );
    for interface in &view.interfaces {
        if let Egress::Unseen { reason } = &interface.egress {
            let what = paint.apply(Style::Warning, "incoming packets only");
            let _ = write!(
                text,
                "; {}: {what} ({})",
                clean(&interface.name),
                clean(reason)
            );
        }
    }
    text
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn quorum(quorum: &Value, paint: Paint) -> String {
    let state = clean(
        quorum
            .get("state")
            .and_then(Value::as_str)
            .unwrap_or("unknown"),
    );
    let style = match state.as_str() {
        "FULL" => Style::Good,
        "SINGLE" | "DEGRADED" | "NOT-BFT" => Style::Warning,
        _ => Style::Bad,
    };
    let mut text = format!(
        "{}: {} of {} weight in reach, {} needed (T_lo {}, T_hi {}); {}, epoch {}",
        paint.apply(style, &state),
        number(quorum, "reachable_weight"),
        number(quorum, "total_weight"),
        number(quorum, "needed"),
        number(quorum, "t_lo"),
        number(quorum, "t_hi"),
        count(
            usize::try_from(number(quorum, "nodes")).unwrap_or(usize::MAX),
            "node"
        ),
        number(quorum, "epoch"),
    );
    if let Some(seats) = quorum.pointer("/committee/seats").and_then(Value::as_u64) {
        let own = quorum
            .pointer("/committee/own_seat")
            .and_then(Value::as_bool);
        let own = if own == Some(true) {
            "has one"
        } else {
            "has none"
        };
        let _ = write!(text, "; {seats} seats decide, this node {own}");
    }
    if let Some(why) = quorum.pointer("/tolerance/why").and_then(Value::as_str) {
        let _ = write!(text, "; {}", clean(why));
    }
    text
}

fn blocks(status: &Status, paint: Paint) -> String {
    let blocks = &status.blocks;
    let missing = blocks.desired.saturating_sub(blocks.enforced);
    let repaired = blocks
        .reconciled
        .added
        .saturating_add(blocks.reconciled.removed);
    let mut text = format!("{} of {} enforced", blocks.enforced, blocks.desired);
    if repaired > 0 {
        let _ = write!(
            text,
            "; {} found missing and {} left over in the kernel, put right",
            blocks.reconciled.added, blocks.reconciled.removed
        );
    }
    if missing == 0 {
        text
    } else {
        paint.apply(Style::Bad, &text)
    }
}

fn lists(status: &Status, paint: Paint) -> String {
    let lists = &status.lists;
    let number = |n: usize| grouped(u64::try_from(n).unwrap_or(u64::MAX));
    let text = format!(
        "{}: {} of {} entries enforced",
        count(lists.lists, "list"),
        number(lists.enforced),
        number(lists.desired)
    );
    if lists.busy {
        paint.apply(Style::Warning, &format!("{text}, loading"))
    } else if lists.enforced < lists.desired || lists.damaged > 0 {
        paint.apply(Style::Bad, &text)
    } else {
        text
    }
}

fn cookies(status: &Status, paint: Paint) -> String {
    let cookies = &status.cookies;
    let of = |mode| cookies.ports.iter().filter(|p| p.mode == mode).count();
    let mut text = count(cookies.total, "port");
    let always = of(CookieMode::Always);
    if always > 0 {
        let _ = write!(text, ", {always} of them always");
    }
    let flooded: Vec<String> = cookies
        .ports
        .iter()
        .filter(|p| p.flooded)
        .take(MAX_LISTED)
        .map(|p| p.port.to_string())
        .collect();
    if flooded.is_empty() {
        text.push_str("; none is flooded");
    } else {
        let now = format!("flooded now: {}", flooded.join(", "));
        let _ = write!(text, "; {}", paint.apply(Style::Warning, &now));
    }
    text
}

fn ledger(status: &Status, paint: Paint) -> String {
    let ledger = &status.ledger;
    let state = clean(&ledger.state);
    let style = if state == "running" {
        Style::Good
    } else {
        Style::Bad
    };
    format!(
        "{}, {} entries, head {}",
        paint.apply(style, &state),
        grouped(ledger.entries),
        short(&clean(&ledger.head))
    )
}

fn warnings(status: &Status) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(why) = &status.carrier_trouble {
        warnings.push(format!("no connection to NATS: {}", clean(why)));
    }
    if let Some(number) = status.awaited_epoch {
        warnings.push(format!(
            "this node takes part in nothing until a peer shows it epoch {number}, which its ticket names; if that \
             lasts, the log says why"
        ));
    }
    for interface in status.waiting.iter().filter(|i| !is_absent(i)) {
        warnings.push(format!(
            "{} is not protected: {}",
            clean(&interface.name),
            clean(&interface.why)
        ));
    }
    let missing = &status.blocks.not_enforced;
    for (prefix, reason) in missing.iter().take(MAX_LISTED) {
        warnings.push(format!(
            "{} is not enforced: {}",
            clean(prefix),
            clean(reason)
        ));
    }
    let not_enforced = status.blocks.desired.saturating_sub(status.blocks.enforced);
    let rest = not_enforced
        .max(missing.len())
        .saturating_sub(missing.len().min(MAX_LISTED));
    if rest > 0 {
        warnings.push(format!(
            "{rest} more blocks are not enforced; --json lists up to 100 with the reason"
        ));
    }
    if status.blocks.reconciled.failed > 0 {
        warnings.push(format!(
            "{} differences between desired and enforced blocks could not be put right",
            grouped(status.blocks.reconciled.failed)
        ));
    }
    for (table, totals) in status.reconciled.iter().filter(|(_, t)| t.failed > 0) {
        warnings.push(format!(
            "{}: comparing with the kernel failed {} times; the log says why",
            clean(table),
            grouped(totals.failed)
        ));
    }
    if let Some(error) = &status.lists.error {
        warnings.push(format!(
            "the lists are not enforced as they should be: {}",
            clean(error)
        ));
    }
    if status.lists.damaged > 0 {
        warnings.push(format!(
            "{} cannot be read and is not enforced; `secmesh decisions lists` says why",
            count(status.lists.damaged, "list")
        ));
    }
    if let Some(trouble) = &status.cookies.trouble {
        warnings.push(clean(trouble));
    }
    if status.ledger.dropped > 0 {
        warnings.push(format!(
            "{} entries did not get into the ledger",
            grouped(status.ledger.dropped)
        ));
    }
    warnings
}

fn counters(
    out: &mut String,
    title: &str,
    counters: &BTreeMap<String, u64>,
    all: bool,
    paint: Paint,
) {
    let mut table = Table::bare(2).right(&[1]);
    let mut any = false;
    for (name, value) in counters.iter().filter(|(_, value)| all || **value > 0) {
        table.row(vec![plain(name), plain(grouped(*value))]);
        any = true;
    }
    if any {
        let _ = writeln!(out, "{}", paint.apply(Style::Bold, title));
        out.push_str(&table.render(paint));
    }
}

/// Whether a peer is there, and how that is known.
fn liveness(peer: &Peer) -> Cell {
    match (peer.connected, peer.liveness) {
        (true, None | Some(Liveness::Alive)) => styled("connected", Style::Good),
        (true, Some(Liveness::Suspect)) => styled("connected, suspect", Style::Warning),
        (true, Some(Liveness::Down)) => styled("down (connected, silent)", Style::Bad),
        (false, Some(Liveness::Alive)) => styled("alive through others", Style::Warning),
        (false, Some(Liveness::Suspect)) => styled("suspect, not connected", Style::Warning),
        (false, Some(Liveness::Down)) => styled("down", Style::Bad),
        (false, None) => styled("not connected", Style::Warning),
    }
}

/// The nodes of the mesh.
pub fn peers(peers: &[Peer], paint: Paint) -> String {
    let headings = ["NAME", "ID", "ZONE", "ADDRESS", "WEIGHT", "TRUST", "STATE"];
    let mut table = Table::new(&headings).right(&[4, 5]);
    for peer in peers {
        let state = if peer.quarantined {
            styled("quarantined", Style::Bad)
        } else if peer.equivocated {
            styled("proved to lie, counts nothing", Style::Bad)
        } else if peer.this_node {
            styled("this node", Style::Dim)
        } else {
            liveness(peer)
        };
        table.row(vec![
            plain(&peer.name),
            plain(short(&peer.id)),
            plain(&peer.zone),
            plain(peer.address.as_deref().unwrap_or("-")),
            plain(peer.weight.to_string()),
            plain(peer.trust.to_string()),
            state,
        ]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fixture() -> Status {
        serde_json::from_value(json!({
            "node": {"id": "00112233445566778899aabbccddeeff", "name": "n1", "zone": "z1"},
            "mesh": "lab", "mesh_id": "abcdefabcdefabcdef",
            "mode": "enforce",
            "interfaces": [{"name": "eth0", "index": 2, "attach_mode": "driver", "resumed": false},
                           {"name": "eth1", "index": 3, "attach_mode": "generic", "resumed": true}],
            "quorum": {"state": "FULL", "reachable_weight": 400, "total_weight": 400, "t_lo": 134, "t_hi": 267,
                       "needed": 134, "nodes": 4, "epoch": 4, "tolerance": {"kind": "tolerant"}},
            "blocks": {"desired": 2, "enforced": 2, "not_enforced": {}},
            "watched": 1,
            "counters": {"pass": 12345, "drop_block4": 7, "malformed": 0},
            "controller": {},
            "ledger": {"entries": 1500, "head": "0123456789abcdef0123", "state": "running", "dropped": 0},
            "uptime_s": 5400, "version": "0.1.0"
        }))
        .unwrap()
    }

    #[test]
    fn status_is_compact() {
        assert_eq!(
            status(&fixture(), false, Paint(false)),
            "\
node        n1 (00112233445566778899aabbccddeeff), zone z1
mesh        lab (abcdefabcdef)
agent       version 0.1.0, up 1 h 30 min
mode        enforce
interfaces  eth0 (driver mode), eth1 (generic mode)
quorum      FULL: 400 of 400 weight in reach, 134 needed (T_lo 134, T_hi 267); 4 nodes, epoch 4
blocks      2 of 2 enforced
watched     1 source that peers reported
limits      none
ledger      running, 1,500 entries, head 0123456789ab
packets
  drop_block4       7
  pass         12,345
"
        );
        assert!(status(&fixture(), true, Paint(false)).contains("malformed         0\n"));
    }

    #[test]
    fn a_trial_is_shown_with_the_seconds_that_are_left() {
        let mut fixture = fixture();
        fixture.pending_confirm = Some(crate::api::types::PendingConfirm { seconds_left: 42 });
        let text = status(&fixture, false, Paint(false));
        assert!(
            text.contains("mode        enforce on trial: back to monitor in 42 s unless"),
            "{text}"
        );
    }

    #[test]
    fn interfaces_that_are_waited_for_are_shown() {
        let mut fixture = fixture();
        for (name, why) in [("eth7", "absent: there is none"), ("eth8", "it is busy")] {
            fixture.waiting.push(WaitingInterface {
                name: name.to_owned(),
                why: why.to_owned(),
            });
        }
        let text = status(&fixture, false, Paint(false));
        assert!(
            text.contains("eth1 (generic mode), eth7 (absent), eth8 (NOT PROTECTED)\n"),
            "{text}"
        );
        assert!(
            text.contains("warning: eth8 is not protected: it is busy\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_enforced_is_a_warning() {
        let mut fixture = fixture();
        fixture.blocks.desired = 14;
        for n in 0..12 {
            fixture
                .blocks
                .not_enforced
                .insert(format!("192.0.2.{n}"), "the map is full".to_owned());
        }
        fixture.ledger.dropped = 3;
        let text = status(&fixture, false, Paint(false));
        assert!(text.contains("blocks      2 of 14 enforced\n"), "{text}");
        assert!(
            text.contains("warning: 192.0.2.0 is not enforced: the map is full\n"),
            "{text}"
        );
        assert_eq!(text.matches("the map is full").count(), 10);
        assert!(
            text.contains("warning: 2 more blocks are not enforced"),
            "{text}"
        );
        assert!(
            text.contains("warning: 3 entries did not get into the ledger\n"),
            "{text}"
        );
    }

    #[test]
    fn lists_are_desired_and_enforced() {
        let mut fixture = fixture();
        fixture.lists.lists = 2;
        fixture.lists.desired = 1_000_000;
        fixture.lists.enforced = 1_000_000;
        let text = status(&fixture, false, Paint(false));
        assert!(
            text.contains("lists       2 lists: 1,000,000 of 1,000,000 entries enforced\n"),
            "{text}"
        );
        fixture.lists.damaged = 1;
        fixture.lists.error = Some("LIST4 is full".to_owned());
        let text = status(&fixture, false, Paint(false));
        assert!(
            text.contains("as they should be: LIST4 is full\n"),
            "{text}"
        );
        assert!(text.contains("1 list cannot be read"), "{text}");
    }

    #[test]
    fn cookies_are_one_line_and_what_keeps_them_back_a_warning() {
        let mut fixture = fixture();
        fixture.cookies = serde_json::from_value(json!({
            "ports": [{"port": 22, "mode": "auto", "flooded": false},
                      {"port": 443, "mode": "always", "flooded": true}],
            "total": 2, "syncookies": 2, "trouble": "somebody set it"
        }))
        .unwrap();
        let text = status(&fixture, false, Paint(false));
        assert!(
            text.contains("cookies     2 ports, 1 of them always; flooded now: 443\n"),
            "{text}"
        );
        assert!(text.contains("warning: somebody set it\n"), "{text}");
    }

    #[test]
    fn the_quorums_state_is_coloured_by_what_it_means() {
        let mut fixture = fixture();
        for (state, code) in [
            ("FULL", "\x1b[32m"),
            ("NOT-BFT", "\x1b[33m"),
            ("ISOLATED", "\x1b[1;31m"),
        ] {
            fixture.quorum["state"] = json!(state);
            fixture.quorum["tolerance"] =
                json!({"kind": "not_byzantine_tolerant", "why": "2 nodes", "needs_all": true});
            let text = status(&fixture, false, Paint(true));
            assert!(
                text.contains(&format!("{code}{state}\x1b[0m: 400")),
                "{text}"
            );
            assert!(text.contains("epoch 4; 2 nodes"), "{text}");
        }
        fixture.quorum = Value::Null;
        assert!(status(&fixture, false, Paint(false)).contains("quorum      unknown"));
    }

    #[test]
    fn who_is_trusted_less_is_named() {
        let mut status = fixture();
        status.trust.statements = 7;
        assert!(
            super::status(&status, false, Paint(false)).contains("7 statements, nobody lowered")
        );
        status.trust.lowered.insert("n2".to_owned(), 33);
        let text = super::status(&status, false, Paint(false));
        assert!(text.contains("7 statements; lowered: n2 33"), "{text}");
    }

    #[test]
    fn peers_are_a_table() {
        let list: Vec<Peer> = serde_json::from_value(json!([
            {"id": "00112233445566778899aabbccddeeff", "name": "n1", "zone": "z1", "address": "10.0.0.1:4747",
             "connected": false, "weight": 100, "trust": 98, "equivocated": false, "this_node": true},
            {"id": "ff112233445566778899aabbccddeeff", "name": "node2", "zone": "z2", "address": null,
             "connected": true, "weight": 0, "equivocated": true, "this_node": false},
        ]))
        .unwrap();
        assert_eq!(
            peers(&list, Paint(false)),
            "\
NAME   ID            ZONE  ADDRESS        WEIGHT  TRUST  STATE
n1     001122334455  z1    10.0.0.1:4747     100     98  this node
node2  ff1122334455  z2    -                   0      0  proved to lie, counts nothing
"
        );
    }
}
