//! `secmesh flows` and `secmesh processes`.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::output::{Out, Paint, Style};
use super::table::{Table, plain, styled};
use super::time::{bytes, grouped, rfc3339, span};
use super::{CliError, Context};
use crate::api::types::{Listing, Request};
use crate::sense::flow::FlowRecord;
use crate::sense::process::ProcessRecord;

/// How often a follower asks.
const PAUSE: Duration = Duration::from_millis(500);
/// Records that a follower asks for at once.
const STEP: usize = 1000;

/// `secmesh flows`
pub fn flows(
    context: &Context,
    limit: usize,
    follow: bool,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    let ask = |from, limit| Request::Flows { from, limit };
    show(context, limit, follow, out, ask, flow_table)
}

/// `secmesh processes`
pub fn processes(
    context: &Context,
    limit: usize,
    follow: bool,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    let ask = |from, limit| Request::Processes { from, limit };
    show(context, limit, follow, out, ask, process_table)
}

fn show<T: Serialize + DeserializeOwned>(
    context: &Context,
    limit: usize,
    follow: bool,
    out: &mut Out<'_>,
    ask: impl Fn(Option<u64>, usize) -> Request,
    table: impl Fn(&[T], bool, Paint) -> String,
) -> Result<(), CliError> {
    let mut listing: Listing<T> = context.ask(&ask(None, limit))?;
    if out.json && !follow {
        return out.json(&listing.records);
    }
    let mut headings = true;
    loop {
        if out.json {
            for record in &listing.records {
                out.json(record)?;
            }
        } else if headings || !listing.records.is_empty() {
            let paint = out.paint;
            out.text(&table(&listing.records, headings, paint))?;
            headings = false;
        }
        if !follow {
            return Ok(());
        }
        out.flush()?;
        std::thread::sleep(PAUSE);
        listing = context.ask(&ask(Some(listing.next), STEP))?;
    }
}

fn flow_table(flows: &[FlowRecord], headings: bool, paint: Paint) -> String {
    let names = [
        "ENDED", "LASTED", "PROTO", "FROM", "TO", "PACKETS", "BYTES", "ANSWERED", "BYTES", "END",
    ];
    let mut table = rows(headings, &names).right(&[5, 6, 7, 8]);
    for flow in flows {
        table.row(vec![
            plain(rfc3339(flow.last_unix_us)),
            styled(span(flow.duration_us), Style::Dim),
            plain(protocol(flow.proto)),
            plain(endpoint(flow.src, flow.src_port)),
            plain(endpoint(flow.dst, flow.dst_port)),
            plain(grouped(flow.forward.packets.into())),
            plain(bytes(flow.forward.bytes)),
            plain(grouped(flow.backward.packets.into())),
            plain(bytes(flow.backward.bytes)),
            plain(flow.end.name()),
        ]);
    }
    table.render(paint)
}

fn process_table(processes: &[ProcessRecord], headings: bool, paint: Paint) -> String {
    let names = ["TIME", "WHAT", "PID", "PARENT", "UID", "NAME", "STATUS"];
    let mut table = rows(headings, &names).right(&[2, 3, 4]);
    for process in processes {
        let status = match (process.code, process.signal) {
            (_, Some(signal)) => styled(format!("signal {signal}"), Style::Warning),
            (Some(0) | None, None) => plain(process.code.map_or("", |_zero| "0")),
            (Some(code), None) => styled(code.to_string(), Style::Warning),
        };
        table.row(vec![
            plain(rfc3339(process.unix_us)),
            plain(process.change.name()),
            plain(process.pid.to_string()),
            plain(process.ppid.to_string()),
            plain(process.uid.to_string()),
            plain(&process.comm),
            status,
        ]);
    }
    table.render(paint)
}

/// A table; what follows the first part has no headings.
fn rows(headings: bool, names: &[&str]) -> Table {
    if headings {
        Table::new(names)
    } else {
        Table::bare(0)
    }
}

fn endpoint(addr: std::net::IpAddr, port: u16) -> String {
    match port {
        0 => addr.to_string(),
        _ => std::net::SocketAddr::new(addr, port).to_string(),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn processes_are_a_table_whose_rest_has_no_headings() {
        let record = |change: &str, code: Option<u8>, signal: Option<u8>| -> ProcessRecord {
            serde_json::from_value(json!({
                "unix_us": 1_700_000_000_000_000_u64, "change": change, "pid": 4711, "ppid": 1, "uid": 0,
                "cgroup": 5, "comm": "sh", "code": code, "signal": signal
            }))
            .unwrap()
        };
        let all = [
            record("exec", None, None),
            record("exit", Some(0), None),
            record("exit", Some(3), None),
            record("exit", None, Some(9)),
        ];
        let text = process_table(&all, true, Paint(false));
        assert_eq!(
            text,
            "\
TIME                      WHAT   PID  PARENT  UID  NAME  STATUS
2023-11-14T22:13:20.000Z  exec  4711       1    0  sh
2023-11-14T22:13:20.000Z  exit  4711       1    0  sh    0
2023-11-14T22:13:20.000Z  exit  4711       1    0  sh    3
2023-11-14T22:13:20.000Z  exit  4711       1    0  sh    signal 9
"
        );
        assert!(!process_table(&all, false, Paint(false)).contains("TIME"));
    }

    #[test]
    fn endpoints_are_written_as_people_type_them() {
        let v6 = "2001:db8::1".parse().unwrap();
        assert_eq!(endpoint(v6, 443), "[2001:db8::1]:443");
        assert_eq!(endpoint(v6, 0), "2001:db8::1");
        assert_eq!(
            (protocol(17).as_str(), protocol(132).as_str()),
            ("udp", "132")
        );
    }
}
