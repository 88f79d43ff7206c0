//! Where the readers put what they find: entries, problems, and the limits of both.

use std::fmt;

use super::{
    Format, FormatError, MAX_ENTRIES, Options, Stop,
    scan::{self},
};
use crate::respond::lists::span::{NEVER, Range, Span, Spans};

/// Problems that are told; reading stops at so many unless bad lines are skipped.
pub const MAX_PROBLEMS: usize = 20;
/// Characters of the input that a problem shows.
const MAX_SHOWN: usize = 80;

/// One thing that is wrong with a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: u64,
    /// What stands there, escaped and cut.
    pub text: String,
    /// What is wrong with it, and what to write instead.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: `{}`: {}", self.line, self.text, self.reason)
    }
}

/// When an entry ends, as its list says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// It does not say.
    Unsaid,
    /// In so many seconds.
    InS(u64),
    /// At that unix second.
    AtS(u64),
}

/// A list as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// How it was read.
    pub format: Format,
    /// Its entries in the order of the file; [`NEVER`] where none says when it ends.
    pub spans: Spans,
    /// Entries left out because they have ended, or block something else than addresses.
    pub ignored: u64,
    /// Entries left out because they are wrong.
    pub invalid: u64,
    /// The first of those.
    pub problems: Vec<Problem>,
}

/// Takes what readers find.
pub struct Sink<'a> {
    options: &'a Options<'a>,
    spans: Spans,
    ignored: u64,
    invalid: u64,
    problems: Vec<Problem>,
    too_many: bool,
}

impl<'a> Sink<'a> {
    pub fn new(options: &'a Options<'a>) -> Self {
        Self {
            options,
            spans: Spans::default(),
            ignored: 0,
            invalid: 0,
            problems: Vec::new(),
            too_many: false,
        }
    }

    /// An address, network or range that stands in `line`; `shown` is what a problem would show.
    pub fn entry(&mut self, line: u64, text: &str, shown: &[u8], ends: Ends) -> Result<(), Stop> {
        match scan::range(text) {
            Ok(range) => self.take(range, ends),
            Err(reason) => self.problem(line, shown, reason),
        }
    }

    fn take(&mut self, range: Range, ends: Ends) -> Result<(), Stop> {
        let now = self.options.now_unix_s;
        let expires_unix_s = match ends {
            Ends::Unsaid => NEVER,
            Ends::InS(seconds) => now.saturating_add(seconds),
            Ends::AtS(at) => at,
        };
        if expires_unix_s <= now {
            self.ignore();
            return Ok(());
        }
        if self.spans.len() >= MAX_ENTRIES {
            self.too_many = true;
            return Err(Stop::Enough);
        }
        match range {
            Range::V4(start, end) => self.spans.v4.push(Span {
                start,
                end,
                expires_unix_s,
                list: 0,
            }),
            Range::V6(start, end) => self.spans.v6.push(Span {
                start,
                end,
                expires_unix_s,
                list: 0,
            }),
        }
        Ok(())
    }

    /// Something that is right and blocks no address (any more).
    pub fn ignore(&mut self) {
        self.ignored += 1;
    }

    /// Something wrong.
    pub fn problem(
        &mut self,
        line: u64,
        shown: &[u8],
        reason: impl Into<String>,
    ) -> Result<(), Stop> {
        self.invalid += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                line,
                text: escaped(shown),
                reason: reason.into(),
            });
        }
        if self.options.skip_invalid || self.problems.len() < MAX_PROBLEMS {
            Ok(())
        } else {
            Err(Stop::Enough)
        }
    }

    /// The list, if it is good enough.
    pub fn finish(mut self, format: Format) -> Result<Parsed, FormatError> {
        let name = self.options.name.to_owned();
        if self.too_many {
            return Err(FormatError::TooMany { name });
        }
        if self.invalid > 0 && !self.options.skip_invalid {
            return Err(FormatError::Invalid {
                name,
                format,
                more: self.problems.len() >= MAX_PROBLEMS,
                problems: self.problems,
            });
        }
        if self.spans.is_empty() {
            return if self.problems.is_empty() {
                Err(FormatError::Empty {
                    name,
                    format,
                    ignored: self.ignored,
                })
            } else {
                Err(FormatError::Invalid {
                    name,
                    format,
                    more: self.invalid > self.problems.len() as u64,
                    problems: self.problems,
                })
            };
        }
        self.spans.v4.shrink_to_fit();
        self.spans.v6.shrink_to_fit();
        Ok(Parsed {
            format,
            spans: self.spans,
            ignored: self.ignored,
            invalid: self.invalid,
            problems: self.problems,
        })
    }
}

/// Bytes of a file as text that cannot harm a terminal, cut.
fn escaped(bytes: &[u8]) -> String {
    // Four bytes make a character at most.
    let head = bytes.get(..MAX_SHOWN * 4).unwrap_or(bytes);
    let text = String::from_utf8_lossy(head);
    let mut out: String = text
        .trim()
        .chars()
        .take(MAX_SHOWN)
        .flat_map(|c| -> Box<dyn Iterator<Item = char>> {
            let plain = c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric();
            if plain {
                Box::new(std::iter::once(c))
            } else {
                Box::new(c.escape_default())
            }
        })
        .collect();
    if text.trim().chars().count() > MAX_SHOWN || head.len() < bytes.len() {
        out.push('…');
    }
    out
}
