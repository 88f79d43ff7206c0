//! Reading lists in the formats that people have them in, as a stream: memory grows with the entries,
//! never with a line.

mod ipset;
mod json;
mod lines;
mod nft;
mod scan;
mod sink;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, BufReader, Read},
};

pub use self::sink::{MAX_PROBLEMS, Parsed, Problem};
use self::{scan::Metered, sink::Sink};

/// Most entries of one list, and of all lists together: as many as the kernel's tables are sized for.
pub const MAX_ENTRIES: usize = 4_194_304;
/// Largest input, bytes.
pub const MAX_INPUT: u64 = 1 << 30;
/// How far into a file its format is looked for, bytes.
const LOOK: usize = 64 << 10;

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One address, network or range per line; `FireHOL`'s netset and ipset files are that, too.
    Lines,
    /// What `ipset save` prints.
    Ipset,
    /// What `nft list set` prints, or a script with `add element`.
    Nft,
    /// JSON of CrowdSec: `cscli decisions list -o json`, or decisions as its local API gives them.
    Crowdsec,
    /// Our own JSON.
    Json,
}

impl Format {
    /// Its name, as the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Ipset => "ipset",
            Self::Nft => "nft",
            Self::Crowdsec => "crowdsec",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to read.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// What the input is called in messages.
    pub name: &'a str,
    /// Its format; `None` looks.
    pub format: Option<Format>,
    /// Leave out what is wrong instead of refusing all of it.
    pub skip_invalid: bool,
    /// What relative ends count from, unix seconds.
    pub now_unix_s: u64,
}

/// Why a list was not read. Nothing of it is used then.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The input could not be read.
    #[error("cannot read {name}: {source}")]
    Read {
        /// The input.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// The input is too large.
    #[error(
        "{name} is larger than {MAX_INPUT} bytes; split it and import the parts with --list, each under its own name"
    )]
    TooLarge {
        /// The input.
        name: String,
    },
    /// It has too many entries.
    #[error(
        "{name} has more than {MAX_ENTRIES} entries, the most that fit; leave some out, or use networks"
    )]
    TooMany {
        /// The input.
        name: String,
    },
    /// Something in it is wrong.
    #[error("{}", refused(name, *format, problems, *more))]
    Invalid {
        /// The input.
        name: String,
        /// How it was read.
        format: Format,
        /// What is wrong, at most [`MAX_PROBLEMS`].
        problems: Vec<Problem>,
        /// Whether reading stopped there.
        more: bool,
    },
    /// The JSON is broken.
    #[error(
        "{name}, line {line}: this is not JSON any more: {reason}\n  remedy: get the file again, it may be cut off; or name its --format"
    )]
    Syntax {
        /// The input.
        name: String,
        /// Where.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Nothing is in it.
    #[error("{name} has no entries (read as {format}{}); an empty list is not imported, since it would end all that an earlier one blocked\n  remedy: name the right --format; `secmesh decisions remove-list` ends a list", left_out(*ignored))]
    Empty {
        /// The input.
        name: String,
        /// How it was read.
        format: Format,
        /// Entries that were no address blocks or had ended.
        ignored: u64,
    },
}

fn left_out(ignored: u64) -> String {
    if ignored == 0 {
        String::new()
    } else {
        format!(", {ignored} left out: they have ended or block no addresses")
    }
}

fn refused(name: &str, format: Format, problems: &[Problem], more: bool) -> String {
    use fmt::Write as _;
    let mut text = format!("{name} is not imported (read as {format}), because of");
    for problem in problems {
        let _ = write!(text, "\n  {name}, {problem}");
    }
    if more {
        let _ = write!(
            text,
            "\n  and maybe more: reading stopped after {MAX_PROBLEMS}"
        );
    }
    text.push_str(
        "\n  remedy: correct that, name the right --format, or leave it out with --skip-invalid",
    );
    text
}

/// Reads a list; `progress` is called with the bytes read so far, now and then.
///
/// # Errors
/// [`FormatError`]; then nothing of the list is to be used.
pub fn parse(
    input: impl Read,
    options: &Options<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Parsed, FormatError> {
    let name = options.name;
    let mut input = Metered::new(input, MAX_INPUT, progress);
    let read_error = |source: io::Error| {
        if scan::is_too_large(&source) {
            FormatError::TooLarge {
                name: name.to_owned(),
            }
        } else {
            FormatError::Read {
                name: name.to_owned(),
                source,
            }
        }
    };
    // All of it, however small the parts in which a pipe gives it: a byte order mark may be cut by them.
    let mut head = Vec::new();
    input
        .by_ref()
        .take(LOOK as u64)
        .read_to_end(&mut head)
        .map_err(read_error)?;
    if head.starts_with(b"\xef\xbb\xbf") {
        head.drain(..3);
    }
    let format = options.format.unwrap_or_else(|| detect(&head));
    let mut input = BufReader::with_capacity(LOOK, io::Cursor::new(head).chain(input));
    let mut sink = Sink::new(options);
    let stopped = match format {
        Format::Lines => lines::read(&mut input, &mut sink),
        Format::Ipset => ipset::read(&mut input, &mut sink),
        Format::Nft => nft::read(&mut input, &mut sink),
        Format::Crowdsec | Format::Json => json::read(&mut input, &mut sink),
    };
    match stopped {
        Ok(()) | Err(Stop::Enough) => sink.finish(format),
        Err(Stop::Read(source)) => Err(read_error(source)),
        Err(Stop::Syntax { line, reason }) => Err(FormatError::Syntax {
            name: name.to_owned(),
            line,
            reason,
        }),
    }
}

/// Why reading ended before the end.
enum Stop {
    /// The sink has seen enough: too many entries or problems.
    Enough,
    /// The input broke.
    Read(io::Error),
    /// The structure broke.
    Syntax {
        /// In which line.
        line: u64,
        /// How.
        reason: String,
    },
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// The format of what begins like this.
fn detect(head: &[u8]) -> Format {
    let head = String::from_utf8_lossy(head);
    if head.starts_with("#!") && head.lines().next().is_some_and(|l| l.contains("nft")) {
        return Format::Nft;
    }
    let content = head
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    let Some(line) = content else {
        return Format::Lines;
    };
    let mut words = line.split_ascii_whitespace();
    match (words.next().unwrap_or_default(), words.next()) {
        (first, _) if first.starts_with(['{', '[']) || first == "null" => {
            if head.contains("\"secmesh-list\"") {
                Format::Json
            } else {
                Format::Crowdsec
            }
        }
        ("add" | "create", Some("element" | "table" | "set" | "chain"))
            if line.contains(['{', ';']) || line.contains("table") =>
        {
            Format::Nft
        }
        ("table" | "set" | "elements" | "define" | "flush" | "include" | "elements={", _) => {
            Format::Nft
        }
        ("add" | "create" | "-A" | "-N" | "--add" | "--create", Some(_)) => Format::Ipset,
        _ => Format::Lines,
    }
}
