//! Standard output: text for people or JSON for scripts, and colour where it is wanted.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use super::error::CliError;

/// A colour or weight that carries meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// Headings.
    Bold,
    /// Of little weight.
    Dim,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Wrong.
    Bad,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Bad => "\x1b[1;31m",
        }
    }
}

/// Whether to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// Colour on a terminal, unless `NO_COLOR` (<https://no-color.org>) or `TERM=dumb` is set.
    pub fn for_stdout() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Self(io::stdout().is_terminal() && set("NO_COLOR").is_none() && !dumb)
    }

    /// `text` in `style`.
    pub fn apply(self, style: Style, text: &str) -> String {
        if self.0 && style != Style::Plain {
            format!("{}{text}\x1b[0m", style.code())
        } else {
            text.to_owned()
        }
    }
}

/// Where a command's answer goes.
pub struct Out<'a> {
    writer: &'a mut dyn Write,
    /// Whether it is for scripts.
    pub json: bool,
    /// Whether text is coloured.
    pub paint: Paint,
    /// The time that "2 s ago" counts from, unix µs.
    pub now_us: u64,
}

impl fmt::Debug for Out<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Out")
            .field("json", &self.json)
            .finish_non_exhaustive()
    }
}

impl<'a> Out<'a> {
    /// An answer that goes to `writer`.
    pub fn new(writer: &'a mut dyn Write, json: bool, paint: Paint, now_us: u64) -> Self {
        Self {
            writer,
            json,
            paint,
            now_us,
        }
    }

    /// Where the answer goes, for what is no text.
    pub fn raw(&mut self) -> &mut dyn Write {
        &mut self.writer
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn text(&mut self, text: &str) -> Result<(), CliError> {
        self.writer
            .write_all(text.as_bytes())
            .map_err(CliError::Output)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.writer.write_all(bytes).map_err(CliError::Output)
    }

    /// Writes one line of JSON.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn json<T: Serialize>(&mut self, value: &T) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(value).map_err(|e| CliError::Output(e.into()))?;
        line.push(b'\n');
        self.bytes(&line)
    }

    /// Hands everything over.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.writer.flush().map_err(CliError::Output)
    }
}

/// Text from elsewhere, made safe for a terminal: no control characters, no marks that turn the
/// direction of writing.
pub fn clean(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if harmful(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_only_where_it_is_wanted() {
        assert_eq!(Paint(false).apply(Style::Bad, "x"), "x");
        assert_eq!(Paint(true).apply(Style::Bad, "x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(Paint(true).apply(Style::Plain, "x"), "x");
    }

    #[test]
    fn text_from_elsewhere_cannot_move_the_terminal() {
        assert_eq!(
            clean("a\x1b[2Jb\nc\u{202e}d ä"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d ä"
        );
    }

    #[test]
    fn a_closed_pipe_is_an_output_error_with_exit_code_0() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut closed = Closed;
        let mut out = Out::new(&mut closed, true, Paint(false), 0);
        assert_eq!(out.json(&1).unwrap_err().exit_code(), 0);
        assert_eq!(out.text("x").unwrap_err().exit_code(), 0);
    }
}
