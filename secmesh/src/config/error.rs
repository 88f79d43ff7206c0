//! Errors of the configuration, as people read them.

use std::fmt;
use std::io;
use std::ops::Range;

use super::MAX_FILE;

/// Longest part of a line that is quoted, in characters.
const MAX_QUOTE: usize = 120;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "{file}: cannot read the configuration: {source}; check the path and its permissions, or leave out --config to use the defaults"
    )]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE`].
    #[error(
        "{file}: the configuration is larger than {MAX_FILE} bytes; check that this is the right file"
    )]
    TooLarge {
        /// The file.
        file: String,
    },
    /// The file can be read, but not all of it is valid.
    #[error("{}", join(.0))]
    Invalid(
        /// What is wrong, in the order of the file; never empty.
        Vec<Problem>,
    ),
}

fn join(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// One thing that is wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, in characters, from 1.
    pub column: usize,
    /// The field's dotted path, where one is concerned, like `detect.syn_flood.threshold`.
    pub field: Option<String>,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub remedy: String,
    /// The line, or the part of a long one around the column.
    quote: String,
    /// How many characters of the quote stand before the marked ones, and how many are marked.
    mark: (usize, usize),
}

impl Problem {
    /// A problem with the bytes `span` of `text`.
    pub(super) fn new(
        text: &str,
        file: &str,
        span: Range<usize>,
        field: Option<String>,
        what: String,
        remedy: String,
    ) -> Self {
        let start = text.floor_char_boundary(span.start);
        let (before, after) = text.split_at_checked(start).unwrap_or((text, ""));
        let line = before.matches('\n').count().saturating_add(1);
        let line_before = before.rsplit('\n').next().unwrap_or_default();
        let line_after = after
            .split('\n')
            .next()
            .unwrap_or_default()
            .trim_end_matches('\r');
        let column = line_before.chars().count();
        // Of a long line, only what is around the place.
        let cut = column.saturating_sub(MAX_QUOTE / 2);
        // Control characters would move the marker, or the reader's terminal.
        let quote: String = line_before
            .chars()
            .skip(cut)
            .chain(line_after.chars())
            .take(MAX_QUOTE)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let before_mark = column.saturating_sub(cut);
        let marked = after
            .get(..span.end.saturating_sub(start))
            .unwrap_or_default();
        let marked = marked
            .split(['\n', '\r'])
            .next()
            .unwrap_or_default()
            .chars()
            .count();
        let room = quote.chars().count().saturating_sub(before_mark);
        Self {
            file: file.to_owned(),
            line,
            column: column.saturating_add(1),
            field,
            what,
            remedy,
            mark: (before_mark, marked.min(room).max(1)),
            quote,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            field,
            what,
            remedy,
            quote,
            mark: (before, marked),
        } = self;
        write!(f, "{file}:{line}:{column}: ")?;
        if let Some(field) = field {
            write!(f, "{field}: ")?;
        }
        writeln!(f, "{what}")?;
        let gutter = line.to_string();
        writeln!(f, "  {gutter} | {quote}")?;
        writeln!(
            f,
            "  {:width$} | {:before$}{:^<marked$}",
            "",
            "",
            "",
            width = gutter.len()
        )?;
        write!(f, "  remedy: {remedy}")
    }
}
