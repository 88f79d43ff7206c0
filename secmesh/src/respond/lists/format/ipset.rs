//! What `ipset save` prints: `create NAME TYPE …` and `add NAME ENTRY [timeout N] …` (ipset(8)).

use std::{collections::BTreeMap, io::BufRead};

use super::{
    Stop,
    scan::{self, MAX_LINE},
    sink::{Ends, Sink},
};

/// Sets whose type is remembered; a save of more is no blocklist.
const MAX_SETS: usize = 1024;

/// Reads them all.
pub fn read(input: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<(), Stop> {
    // What is wrong with the type of a set, by its name.
    let mut unfit: BTreeMap<String, String> = BTreeMap::new();
    scan::lines(input, |number, line| {
        if line.len() > MAX_LINE {
            return sink.problem(
                number,
                line,
                format!("a line of more than {MAX_LINE} bytes"),
            );
        }
        let Ok(text) = std::str::from_utf8(line) else {
            return sink.problem(number, line, "not UTF-8 text; is it compressed, or UTF-16?");
        };
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        let mut words = text
            .split_ascii_whitespace()
            .filter(|w| !matches!(*w, "-exist" | "-!"));
        match (words.next().unwrap_or_default(), words.next(), words.next()) {
            ("create" | "-N" | "--create", Some(set), Some(kind)) => {
                if let Some(reason) = unfit_type(kind) {
                    if unfit.len() < MAX_SETS {
                        unfit.insert(set.to_owned(), reason);
                    }
                } else {
                    unfit.remove(set);
                }
                Ok(())
            }
            ("add" | "-A" | "--add", Some(set), Some(entry)) => {
                if let Some(reason) = unfit.get(set) {
                    return sink.problem(number, line, reason.clone());
                }
                match options(words) {
                    Ok(ends) => sink.entry(number, entry, line, ends),
                    Err(reason) => sink.problem(number, line, reason),
                }
            }
            ("flush" | "-F" | "--flush" | "destroy" | "-X" | "COMMIT", ..) => Ok(()),
            _ => sink.problem(
                number,
                line,
                "neither `create SET TYPE` nor `add SET ENTRY`, as `ipset save` prints them",
            ),
        }
    })
}

/// Why sets of this type hold no plain addresses.
fn unfit_type(kind: &str) -> Option<String> {
    let plain = matches!(
        kind,
        "hash:ip" | "hash:net" | "bitmap:ip" | "iphash" | "nethash" | "ipmap" | "iptree"
    );
    (!plain).then(|| {
        let kind: String = kind
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | ',' | '-'))
            .take(32)
            .collect();
        format!(
            "the set is of type {kind}; only hash:ip, hash:net and bitmap:ip hold plain addresses"
        )
    })
}

#[expect(
    single_use_lifetimes,
    reason = "anonymous lifetimes in impl Trait are unstable"
)]
fn options<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Ends, &'static str> {
    let mut ends = Ends::Unsaid;
    while let Some(word) = words.next() {
        match word {
            "nomatch" => {
                return Err(
                    "an exception (nomatch) cannot be imported; `secmesh allow add` protects addresses",
                );
            }
            "timeout" => {
                let seconds = words
                    .next()
                    .and_then(|w| w.parse().ok())
                    .ok_or("`timeout` needs a number of seconds")?;
                // To ipset 0 is no timeout.
                ends = if seconds == 0 {
                    Ends::Unsaid
                } else {
                    Ends::InS(seconds)
                };
            }
            // A remark in quotes is the last thing that ipset prints.
            "comment" => break,
            _ => {}
        }
    }
    Ok(ends)
}
