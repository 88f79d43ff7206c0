//! Bounded reading: bytes counted, lines cut, and the words that all formats share.

use std::io::{self, BufRead, Read};

use super::Stop;
use crate::{
    addr::{Prefix, PrefixError},
    respond::lists::span::Range,
};

/// Longest line, bytes.
pub const MAX_LINE: usize = 4096;

/// A reader that counts, tells, and refuses to read more than a limit.
pub struct Metered<'a, R> {
    input: R,
    read: u64,
    max: u64,
    progress: &'a mut dyn FnMut(u64),
}

#[derive(Debug, thiserror::Error)]
#[error("too large")]
struct TooLarge;

/// Whether an error is [`Metered`]'s refusal.
pub fn is_too_large(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.downcast_ref::<TooLarge>().is_some())
}

impl<'a, R: Read> Metered<'a, R> {
    pub fn new(input: R, max: u64, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            input,
            read: 0,
            max,
            progress,
        }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read = self
            .read
            .saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if self.read > self.max {
            return Err(io::Error::other(TooLarge));
        }
        (self.progress)(self.read);
        Ok(read)
    }
}

/// Calls `each` with every line's number, from 1, and its bytes without the line break; of a line
/// that is too long only a little more than [`MAX_LINE`] bytes are kept.
pub fn lines(
    input: &mut impl BufRead,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    // One more than allowed tells that it is too long; the break comes on top.
    let most = u64::try_from(MAX_LINE + 2).unwrap_or(u64::MAX);
    let mut line = Vec::with_capacity(MAX_LINE + 2);
    let mut number = 0;
    loop {
        line.clear();
        if input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        } else if line.len() > MAX_LINE {
            input.skip_until(b'\n')?;
        }
        each(number, &line)?;
    }
}

/// Reads an address, a network, or a range `a-b` as it stands in a list.
pub fn range(text: &str) -> Result<Range, String> {
    let Some((first, last)) = text.split_once('-') else {
        return text
            .parse::<Prefix>()
            .map(Range::from)
            .map_err(|error| remark(&error));
    };
    let host = |text: &str| -> Result<Range, String> {
        let text = text.trim();
        if text.contains('/') {
            return Err("a range goes from address to address, not between networks".to_owned());
        }
        text.parse::<Prefix>()
            .map(Range::from)
            .map_err(|error| remark(&error))
    };
    match (host(first)?, host(last)?) {
        (Range::V4(start, _), Range::V4(_, end)) if start <= end => Ok(Range::V4(start, end)),
        (Range::V6(start, _), Range::V6(_, end)) if start <= end => Ok(Range::V6(start, end)),
        (Range::V4(..), Range::V4(..)) | (Range::V6(..), Range::V6(..)) => {
            Err("the range ends before it begins; write the smaller address first".to_owned())
        }
        _ => Err("the ends of the range are of different families".to_owned()),
    }
}

/// What is wrong, without the text, which the problem shows already.
fn remark(error: &PrefixError) -> String {
    match error {
        PrefixError::Address(_) => {
            "not an IP address; write one like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32".to_owned()
        }
        PrefixError::Length { max, .. } => {
            format!("the prefix length must be a number from 0 to {max}")
        }
        PrefixError::HostBits { meant, .. } => {
            format!("bits are set beyond the prefix length; did you mean {meant}?")
        }
        PrefixError::Encoding => error.to_string(),
    }
}

/// Most seconds that are believed: a hundred years. More is for ever.
const MAX_SECONDS: f64 = 100.0 * 365.25 * 86_400.0;

/// Reads a duration as nft (`1d2h3m4s500ms`) and Go (`3h59m57.12s`, `-1h2m`) write it, in whole seconds,
/// rounded up; nothing is left of a negative one.
pub fn duration_s(text: &str) -> Option<u64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut seconds = 0.0_f64;
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|end| (1..=20).contains(end))?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_s = match unit {
            "w" => 604_800.0,
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit_s;
        any = true;
        rest = tail;
    }
    if !any {
        return None;
    }
    if negative {
        return Some(0);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a sum of non-negative numbers, capped"
    )]
    let whole = seconds.min(MAX_SECONDS).ceil() as u64;
    Some(whole)
}
