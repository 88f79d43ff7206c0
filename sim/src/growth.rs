//! What a decision costs as the mesh grows: messages, bytes, virtual time.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use secmesh::mesh::genesis::Params;
use secmesh::mesh::simulation;
use secmesh::mesh::vote::AttackClass;

use crate::cast::{self, S};
use crate::oracle::{Violation, broken};
use crate::plan::{Cut, Happening, Network, Plan};
use crate::world::World;

/// Sizes of the table.
pub const SIZES: [usize; 7] = [4, 7, 16, 30, 100, 300, 1_000];
/// Up to this size the healing of a partition is measured too: every pair connects anew, and each tells the
/// other all members.
const MAX_HEALED: usize = 100;
/// Bytes per node may grow by this much more than the number of nodes from one size to the next.
const LINEAR: f64 = 1.3;
/// Seats of the committee in the second part of the table, in meshes that have more nodes.
pub const SEATS: usize = 64;
/// With a committee, bytes per node may grow by this much from its smallest mesh to its largest.
const FLAT: f64 = 1.3;

/// One size.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row {
    /// Nodes.
    pub nodes: usize,
    /// Seats of the committee; 0: everybody decides.
    pub seats: usize,
    /// Messages that arrive at a node for one decision, on average.
    pub messages_per_node: f64,
    /// Their bytes.
    pub bytes_per_node: f64,
    /// Bytes that arrive at the node that most arrive at.
    pub bytes_at_most: u64,
    /// Virtual milliseconds from the second witness to the first certificate.
    pub first_ms: f64,
    /// The same to the block on the last node.
    pub last_ms: f64,
    /// Virtual milliseconds from the end of a half-half partition, in which both sides decided, until all nodes
    /// believe the same; most of it is redialling. `None` where that was not run.
    pub heal_ms: Option<f64>,
    /// Bytes that arrive at a node for that, on average.
    pub heal_bytes_per_node: Option<f64>,
    /// Real milliseconds of one processor for the decision, per node; of this machine, in a build with
    /// debug assertions, each signature checked once for all nodes.
    pub cpu_ms_per_node: f64,
}

fn plan(nodes: usize, seats: usize) -> Plan {
    Plan {
        seed: nodes as u64,
        zones: (0..nodes).map(|i| i % 5.max(nodes.min(10))).collect(),
        nodes,
        liars: BTreeSet::new(),
        params: Params {
            committee: u32::try_from(seats).unwrap_or(0),
            ..Params::default()
        },
        // A local network.
        network: Network {
            delay_min_us: 200,
            delay_max_us: 1_000,
            loss: 0,
            duplicate: 0,
            ordered: true,
        },
        skew_us: vec![0; nodes],
        allow: vec![BTreeSet::new(); nodes],
        script: Vec::new(),
        heal_us: 0,
        to_the_end: false,
        witnesses: false,
        detector: false,
        quarantine: secmesh::mesh::engine::Automatic::Off,
        answers: std::collections::BTreeMap::new(),
        accusers: BTreeSet::new(),
        tricks: std::collections::BTreeMap::new(),
    }
}

/// Measures one size.
///
/// # Errors
/// A [`Violation`], as in any other run.
pub fn measure(nodes: usize, seats: usize) -> Result<Row, Violation> {
    simulation::remember_signature_checks();
    let mut world = World::new_connected(plan(nodes, seats))?;
    world.run_until(2 * S)?;
    world.arrived.fill((0, 0));
    let started = Instant::now();
    let begin = world.now;
    let subject = cast::attacker(1);
    for i in [0, 1] {
        world.plan_for(begin, Happening::Sees(i, subject, AttackClass::SynFlood));
    }
    world.run_until(begin + S)?;
    let cpu_ms = started.elapsed().as_secs_f64() * 1_000.0;
    let times: Vec<u64> = world.decided_us.clone();
    let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) else {
        return broken("liveness", "nobody decided");
    };
    if times.len() != nodes {
        return broken(
            "liveness",
            format!("{} of {nodes} nodes decided", times.len()),
        );
    }
    let average = |of: fn(&(u64, u64)) -> u64, world: &World| {
        world.arrived.iter().map(of).sum::<u64>() as f64 / nodes as f64
    };
    let ms = |at: u64| (at - begin) as f64 / 1_000.0;
    let mut row = Row {
        nodes,
        seats,
        messages_per_node: average(|a| a.0, &world),
        bytes_per_node: average(|a| a.1, &world),
        bytes_at_most: world.arrived.iter().map(|a| a.1).max().unwrap_or(0),
        first_ms: ms(*first),
        last_ms: ms(*last),
        heal_ms: None,
        heal_bytes_per_node: None,
        cpu_ms_per_node: cpu_ms / nodes as f64,
    };
    if nodes <= MAX_HEALED && seats == 0 {
        let (heal_ms, bytes) = heal(&mut world)?;
        row.heal_ms = Some(heal_ms);
        row.heal_bytes_per_node = Some(bytes);
    }
    Ok(row)
}

/// A partition in halves; both sides decide what they can; how long until all believe the same.
fn heal(world: &mut World) -> Result<(f64, f64), Violation> {
    let nodes = world.nodes.len();
    let left: BTreeSet<usize> = (0..nodes / 2).collect();
    let begin = world.now;
    world.plan_for(begin, Happening::Cut(Cut::Split(left)));
    for (n, i) in [(2, 0), (2, 1), (3, nodes - 1), (3, nodes - 2)] {
        let sees = Happening::Sees(i, cast::attacker(n), AttackClass::SynFlood);
        world.plan_for(begin + 30 * S, sees);
    }
    world.run_until(begin + 40 * S)?;
    world.arrived.fill((0, 0));
    let healed = world.now;
    world.plan_for(healed, Happening::Mend);
    let mut at = healed;
    loop {
        at += S / 10;
        world.run_until(at)?;
        let decisions = world.provable();
        let expected = world.belief(0, &decisions);
        let whole = world.all_connected();
        if whole && (1..nodes).all(|i| world.belief(i, &decisions) == expected) {
            break;
        }
        if at > healed + 120 * S {
            return broken("convergence", "not within two minutes");
        }
    }
    let bytes: u64 = world.arrived.iter().map(|a| a.1).sum();
    Ok(((at - healed) as f64 / 1_000.0, bytes as f64 / nodes as f64))
}

/// Whether bytes per node grow no worse than in proportion to the nodes, from 16 on (below, fixed parts and
/// rounding of thresholds dominate).
pub fn is_linear(rows: &[Row]) -> bool {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.seats == 0).collect();
    rows.windows(2).all(|pair| {
        let [a, b] = pair else { return true };
        a.nodes < 16
            || b.bytes_per_node / a.bytes_per_node <= LINEAR * b.nodes as f64 / a.nodes as f64
    })
}

/// How much more bytes arrive at a node of the largest mesh with a committee than at one of the smallest, on average;
/// none without two of them.
pub fn growth_with_committee(rows: &[Row]) -> Option<f64> {
    let mut rows: Vec<&Row> = rows.iter().filter(|row| row.seats > 0).collect();
    rows.sort_by_key(|row| row.nodes);
    match rows.as_slice() {
        [first, .., last] => Some(last.bytes_per_node / first.bytes_per_node),
        _ => None,
    }
}

/// The rows in the form of `cargo xtask bench` (`xtask::bench::Row`).
pub fn bench_rows(rows: &[Row]) -> Vec<serde_json::Value> {
    let value = |name: String, value: f64, unit: &str, note: Option<&str>| {
        serde_json::json!({
            "group": "simulation", "name": name, "value": value, "unit": unit, "peer": null,
            "peer_value": null, "ratio": null, "bar": null, "met": null, "note": note,
        })
    };
    let mut all = Vec::new();
    for row in rows {
        let n = match row.seats {
            0 => format!("{} nodes", row.nodes),
            seats => format!("{} nodes, committee of {seats}", row.nodes),
        };
        all.push(value(
            format!("{n}, messages for a decision"),
            row.messages_per_node,
            "messages/node",
            None,
        ));
        all.push(value(
            format!("{n}, bytes for a decision"),
            row.bytes_per_node,
            "bytes/node",
            None,
        ));
        all.push(value(
            format!("{n}, second witness to first certificate"),
            row.first_ms,
            "virtual ms",
            None,
        ));
        all.push(value(
            format!("{n}, second witness to the last node's block"),
            row.last_ms,
            "virtual ms",
            None,
        ));
        if let (Some(ms), Some(bytes)) = (row.heal_ms, row.heal_bytes_per_node) {
            let note = Some("two halves decided apart; redialling takes seconds of it");
            all.push(value(
                format!("{n}, healing to one belief"),
                ms,
                "virtual ms",
                note,
            ));
            all.push(value(
                format!("{n}, bytes of healing"),
                bytes,
                "bytes/node",
                None,
            ));
        }
    }
    // How much faster than the number of nodes the bytes of a node grow, from 16 on; 1 is in proportion.
    let everybody: Vec<&Row> = rows.iter().filter(|row| row.seats == 0).collect();
    let worst = everybody
        .windows(2)
        .filter_map(|pair| match pair {
            [a, b] if a.nodes >= 16 => {
                Some(b.bytes_per_node / a.bytes_per_node * a.nodes as f64 / b.nodes as f64)
            }
            _ => None,
        })
        .fold(0.0_f64, f64::max);
    let mut growth = value(
        "growth of bytes/node against growth of nodes".to_owned(),
        worst,
        "times",
        Some("1 is in proportion; the worst step from 16 nodes on"),
    );
    growth["bar"] = serde_json::json!({ "at_most": LINEAR });
    growth["met"] = serde_json::json!(is_linear(rows));
    all.push(growth);
    if let Some(grown) = growth_with_committee(rows) {
        let mut growth = value(
            format!("growth of bytes/node with a committee of {SEATS}"),
            grown,
            "times",
            Some("1 is flat; from the smallest mesh that has one to the largest"),
        );
        growth["bar"] = serde_json::json!({ "at_most": FLAT });
        growth["met"] = serde_json::json!(grown <= FLAT);
        all.push(growth);
    }
    all
}

/// For people.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "nodes  seats  messages/node  bytes/node   bytes/(node·n)  most at a node  first certificate  last node   after healing  healing bytes/node  cpu/node\n",
    );
    for row in rows {
        let heal = row
            .heal_ms
            .map_or("–".to_owned(), |ms| format!("{ms:.0} ms"));
        let bytes = row
            .heal_bytes_per_node
            .map_or("–".to_owned(), |b| format!("{b:.0}"));
        let seats = match row.seats {
            0 => "all".to_owned(),
            seats => seats.to_string(),
        };
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{:>5}  {seats:>5}  {:>13.1}  {:>10.0}  {:>15.1}  {:>14}  {:>14.2} ms  {:>7.2} ms  {heal:>13}  {bytes:>18}  {:>5.2} ms",
            row.nodes,
            row.messages_per_node,
            row.bytes_per_node,
            row.bytes_per_node / row.nodes as f64,
            row.bytes_at_most,
            row.first_ms,
            row.last_ms,
            row.cpu_ms_per_node
        )
        .is_ok();
    }
    text
}

/// Bytes per node over nodes, both logarithmic, beside a line of slope one.
pub fn svg(rows: &[Row]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 420.0;
    const EDGE: f64 = 60.0;
    let log = |v: f64| v.max(1.0).log10();
    let (x0, x1) = (log(3.0), log(1_500.0));
    let top = rows.iter().map(|r| r.bytes_per_node).fold(1e4, f64::max);
    let (y0, y1) = (log(500.0), log(top * 2.0));
    let x = |n: f64| EDGE + (log(n) - x0) / (x1 - x0) * (WIDTH - 2.0 * EDGE);
    let y = |b: f64| HEIGHT - EDGE - (log(b) - y0) / (y1 - y0) * (HEIGHT - 2.0 * EDGE);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{EDGE}\" y=\"24\" font-size=\"14\">Bytes that arrive at a node for one decision</text>\n"
    );
    let mut put = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for n in SIZES {
        let at = x(n as f64);
        put(format!(
            "<line x1=\"{at:.1}\" y1=\"{EDGE}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"#eee\"/><text x=\"{at:.1}\" \
             y=\"{}\" text-anchor=\"middle\">{n}</text>",
            HEIGHT - EDGE,
            HEIGHT - EDGE + 18.0
        ));
    }
    for power in 3..9 {
        let bytes = 10_f64.powi(power);
        if log(bytes) > y1 {
            break;
        }
        let at = y(bytes);
        put(format!(
            "<line x1=\"{EDGE}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#eee\"/><text x=\"{}\" \
             y=\"{:.1}\" text-anchor=\"end\">10^{power}</text>",
            WIDTH - EDGE,
            EDGE - 6.0,
            at + 4.0
        ));
    }
    let line = |committee: bool, of: &dyn Fn(&Row) -> f64| -> String {
        rows.iter()
            .filter(|row| (row.seats > 0) == committee)
            .map(|r| format!("{:.1},{:.1}", x(r.nodes as f64), y(of(r))))
            .collect::<Vec<_>>()
            .join(" ")
    };
    put(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#c33\" stroke-width=\"2\"/>",
        line(false, &|r| r.bytes_per_node)
    ));
    put(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#36c\" stroke-width=\"2\"/>",
        line(true, &|r| r.bytes_per_node)
    ));
    if let Some(start) = rows.iter().find(|r| r.nodes >= 16).or(rows.first()) {
        let per = start.bytes_per_node / start.nodes as f64;
        put(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#888\" stroke-dasharray=\"4\"/>",
            line(false, &|r| per * r.nodes as f64)
        ));
    }
    put(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">nodes</text><text x=\"{}\" y=\"44\" fill=\"#c33\">measured\
         </text><text x=\"{}\" y=\"44\" fill=\"#36c\">with a committee of {SEATS}</text><text x=\"{}\" y=\"44\" \
         fill=\"#888\">in proportion to the nodes, from 16 on</text>",
        WIDTH / 2.0,
        HEIGHT - 20.0,
        EDGE,
        EDGE + 80.0,
        EDGE + 240.0
    ));
    put("</svg>".to_owned());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(nodes: usize, bytes_per_node: f64) -> Row {
        Row {
            nodes,
            seats: 0,
            messages_per_node: 1.0,
            bytes_per_node,
            bytes_at_most: 1,
            first_ms: 1.0,
            last_ms: 1.0,
            heal_ms: None,
            heal_bytes_per_node: None,
            cpu_ms_per_node: 1.0,
        }
    }

    #[test]
    fn quadratic_growth_is_told_from_linear() {
        let rows = |power: i32| -> Vec<Row> {
            SIZES
                .map(|n| row(n, 400.0 * (n as f64).powi(power)))
                .to_vec()
        };
        assert!(is_linear(&rows(0)) && is_linear(&rows(1)) && !is_linear(&rows(2)));
    }

    #[test]
    fn with_a_committee_more_nodes_cost_a_node_nothing() {
        let rows = [40, 120].map(|nodes| measure(nodes, 16).unwrap());
        let grown = growth_with_committee(&rows).unwrap();
        assert!(grown <= FLAT, "{grown}: {rows:?}");
    }

    #[test]
    fn four_nodes_decide_in_a_few_round_trips() {
        let row = measure(4, 0).unwrap();
        assert!(row.first_ms < 10.0 && row.last_ms < 20.0, "{row:?}");
        assert!(row.heal_ms.is_some());
        assert_eq!(growth_with_committee(std::slice::from_ref(&row)), None);
        assert!(
            svg(std::slice::from_ref(&row)).ends_with("</svg>\n")
                && table(&[row]).lines().count() == 2
        );
    }
}
