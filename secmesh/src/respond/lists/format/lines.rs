//! One entry per line, with comments: what most published blocklists are.

use std::io::BufRead;

use super::{
    Stop,
    scan::{self, MAX_LINE},
    sink::{Ends, Sink},
};

/// Reads them all.
pub fn read(input: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<(), Stop> {
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
        let remark = line.iter().position(|b| matches!(b, b'#' | b';'));
        let entry = text.get(..remark.unwrap_or(line.len())).unwrap_or_default();
        let entry = entry.trim_ascii();
        if entry.is_empty() {
            return Ok(());
        }
        match address(entry) {
            Ok(address) => sink.entry(number, &address, line, Ends::Unsaid),
            Err(reason) => sink.problem(number, line, reason),
        }
    })
}

/// The entry before what else is in the line.
fn address(entry: &str) -> Result<std::borrow::Cow<'_, str>, &'static str> {
    let mut words = entry.split_ascii_whitespace();
    let first = words.next().unwrap_or_default();
    let Some(second) = words.next() else {
        return Ok(first.into());
    };
    if second == "-" {
        let last = words.next().unwrap_or_default();
        return Ok(format!("{first}-{last}").into());
    }
    // A word after the address is a remark. What looks like more of the address is not guessed at: read
    // wrongly, `192.0.2.0 255.255.255.0` would be one host.
    if second.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '/'))
        || scan::range(second).is_ok()
    {
        return Err(
            "figures after the address; write networks as 192.0.2.0/24, ranges as a-b, and remarks after a #",
        );
    }
    Ok(first.into())
}
