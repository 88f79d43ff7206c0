//! Writing blocks in the formats that [`super::format`] reads, so that other tools take them, too.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    format::Format,
    span::{Address, NEVER, Span, Spans, prefixes},
};
use crate::addr::Prefix;

/// Longest timeout that ipset takes, seconds (ipset(8)).
const IPSET_MAX_TIMEOUT: u64 = 2_147_483;
/// What stands for no end where a format has to have one: ten years in hours.
const TEN_YEARS_H: u64 = 87_600;

/// Something to be written.
#[derive(Debug)]
pub struct Part<'a> {
    /// Name of the list, or what else it is.
    pub name: &'a str,
    /// What it blocks.
    pub spans: &'a Spans,
}

/// Writes `parts` as `format`, without what has ended by `now_unix_s`.
///
/// # Errors
/// The writer's.
pub fn write(
    out: &mut impl Write,
    format: Format,
    parts: &[Part<'_>],
    now_unix_s: u64,
) -> io::Result<()> {
    match format {
        Format::Lines => lines(out, parts, now_unix_s),
        Format::Ipset => ipset(out, parts, now_unix_s),
        Format::Nft => nft(out, parts, now_unix_s),
        Format::Crowdsec => crowdsec(out, parts, now_unix_s),
        Format::Json => json(out, parts, now_unix_s),
    }
}

/// The prefixes of one family with what is left of each, seconds; `None` is for ever.
fn left<A: Address>(
    spans: &[Span<A>],
    now_unix_s: u64,
) -> impl Iterator<Item = (Prefix, Option<u64>)> {
    spans
        .iter()
        .filter(move |s| s.expires_unix_s > now_unix_s)
        .flat_map(move |s| {
            let left = (s.expires_unix_s != NEVER).then(|| s.expires_unix_s - now_unix_s);
            prefixes(s.start, s.end).map(move |p| (p, left))
        })
}

fn both(spans: &Spans, now_unix_s: u64) -> impl Iterator<Item = (Prefix, Option<u64>)> {
    left(&spans.v4, now_unix_s).chain(left(&spans.v6, now_unix_s))
}

fn lines(out: &mut impl Write, parts: &[Part<'_>], now: u64) -> io::Result<()> {
    writeln!(
        out,
        "# exported by secmesh; ends are not part of this format"
    )?;
    for part in parts {
        writeln!(out, "# {}", part.name)?;
        for (prefix, _) in both(part.spans, now) {
            writeln!(out, "{prefix}")?;
        }
    }
    Ok(())
}

/// `hash:net` knows no prefix of length 0.
fn halves(prefix: Prefix) -> Vec<Prefix> {
    if prefix.len() > 0 {
        return vec![prefix];
    }
    match super::span::Range::from(prefix) {
        super::span::Range::V4(..) => [0, 1 << 31]
            .into_iter()
            .filter_map(|a: u32| Prefix::truncating(a.ip(), 1).ok())
            .collect(),
        super::span::Range::V6(..) => [0, 1 << 127]
            .into_iter()
            .filter_map(|a: u128| Prefix::truncating(a.ip(), 1).ok())
            .collect(),
    }
}

fn ipset(out: &mut impl Write, parts: &[Part<'_>], now: u64) -> io::Result<()> {
    let (mut v4, mut v6) = (0, 0);
    for part in parts {
        v4 += left(&part.spans.v4, now).count() + 1;
        v6 += left(&part.spans.v6, now).count() + 1;
    }
    for (set, family, most) in [("secmesh4", "inet", v4), ("secmesh6", "inet6", v6)] {
        let most = most.max(65_536);
        writeln!(
            out,
            "create {set} hash:net family {family} maxelem {most} timeout 0"
        )?;
    }
    for part in parts {
        for (prefix, left) in both(part.spans, now) {
            let set = if prefix.is_ipv4() {
                "secmesh4"
            } else {
                "secmesh6"
            };
            let timeout = left.map_or(0, |left| left.min(IPSET_MAX_TIMEOUT));
            for prefix in halves(prefix) {
                // Two lists may hold the same prefix with different ends.
                writeln!(out, "add {set} {prefix} timeout {timeout} -exist")?;
            }
        }
    }
    Ok(())
}

fn nft(out: &mut impl Write, parts: &[Part<'_>], now: u64) -> io::Result<()> {
    writeln!(out, "table inet secmesh {{")?;
    nft_set(
        out,
        "secmesh4",
        "ipv4_addr",
        parts.iter().map(|p| left(&p.spans.v4, now)),
    )?;
    nft_set(
        out,
        "secmesh6",
        "ipv6_addr",
        parts.iter().map(|p| left(&p.spans.v6, now)),
    )?;
    writeln!(out, "}}")
}

fn nft_set<I: Iterator<Item = (Prefix, Option<u64>)>>(
    out: &mut impl Write,
    set: &str,
    kind: &str,
    parts: impl Iterator<Item = I>,
) -> io::Result<()> {
    writeln!(
        out,
        "\tset {set} {{\n\t\ttype {kind}\n\t\tflags interval,timeout"
    )?;
    let mut first = true;
    for (prefix, left) in parts.flatten() {
        write!(
            out,
            "{}{prefix}",
            if first {
                "\t\telements = { "
            } else {
                ",\n\t\t\t"
            }
        )?;
        if let Some(left) = left {
            write!(out, " timeout {left}s")?;
        }
        first = false;
    }
    if !first {
        writeln!(out, " }}")?;
    }
    writeln!(out, "\t}}")
}

#[derive(Serialize)]
struct Ban<'a> {
    duration: String,
    origin: &'a str,
    reason: &'a str,
    scope: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    value: Prefix,
}

fn crowdsec(out: &mut impl Write, parts: &[Part<'_>], now: u64) -> io::Result<()> {
    let mut between = "[\n";
    for part in parts {
        for (value, left) in both(part.spans, now) {
            out.write_all(between.as_bytes())?;
            let ban = Ban {
                // It has no bans without an end.
                duration: left.map_or_else(|| format!("{TEN_YEARS_H}h"), |left| format!("{left}s")),
                origin: "secmesh",
                reason: part.name,
                scope: if value.is_single() { "Ip" } else { "Range" },
                kind: "ban",
                value,
            };
            serde_json::to_writer(&mut *out, &ban)?;
            between = ",\n";
        }
    }
    out.write_all(if between == ",\n" { b"\n]\n" } else { b"[]\n" })
}

#[derive(Serialize)]
struct Entry<'a> {
    value: Prefix,
    list: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_unix_s: Option<u64>,
}

fn json(out: &mut impl Write, parts: &[Part<'_>], now: u64) -> io::Result<()> {
    out.write_all(b"{\"format\":\"secmesh-list\",\"version\":1,\"entries\":[")?;
    let mut between = "\n";
    for part in parts {
        for (value, left) in both(part.spans, now) {
            out.write_all(between.as_bytes())?;
            let entry = Entry {
                value,
                list: part.name,
                expires_unix_s: left.map(|left| now.saturating_add(left)),
            };
            serde_json::to_writer(&mut *out, &entry)?;
            between = ",\n";
        }
    }
    out.write_all(b"\n]}\n")
}
