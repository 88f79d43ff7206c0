//! Sets of nftables: what `nft list set` prints, and scripts with `add element … { … }` (nft(8)).
//!
//! Read byte by byte, since a set may stand in one line of many megabytes; what is bounded is the
//! length of an element.

use std::io::{self, BufRead};

use super::{
    Stop,
    scan::{self, MAX_LINE},
    sink::{Ends, Sink},
};

/// What has been read of a file.
struct Reader {
    /// Whether we are between the braces of elements.
    inside: bool,
    /// The statement before a brace, or the element.
    text: Vec<u8>,
    quoted: bool,
    comment: bool,
    line: u64,
    /// The line in which `text` begins.
    began: u64,
}

/// Reads them all.
pub fn read(input: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let mut reader = Reader {
        inside: false,
        text: Vec::with_capacity(MAX_LINE),
        quoted: false,
        comment: false,
        line: 1,
        began: 1,
    };
    loop {
        let chunk = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if chunk.is_empty() {
            break;
        }
        let length = chunk.len();
        for byte in chunk {
            reader.take(*byte, sink)?;
        }
        input.consume(length);
    }
    if reader.inside {
        let shown = reader.text.clone();
        sink.problem(
            reader.line,
            &shown,
            "the file ends inside of a set's elements; it may be cut off",
        )?;
    }
    Ok(())
}

impl Reader {
    fn take(&mut self, byte: u8, sink: &mut Sink<'_>) -> Result<(), Stop> {
        if byte == b'\n' {
            self.line += 1;
            self.comment = false;
            // No string of nft goes over a line; a lone quote must not swallow the rest of the file.
            self.quoted = false;
        } else if self.comment {
            return Ok(());
        } else if byte == b'"' {
            self.quoted = !self.quoted;
        } else if byte == b'#' && !self.quoted {
            self.comment = true;
            return Ok(());
        }
        if self.quoted {
            self.push(byte);
            return Ok(());
        }
        if self.inside {
            match byte {
                b',' => self.element(sink),
                b'}' => {
                    self.inside = false;
                    self.element(sink)
                }
                _ => {
                    self.push(byte);
                    Ok(())
                }
            }
        } else {
            match byte {
                b'{' => {
                    self.inside = opens_elements(&self.text);
                    self.text.clear();
                }
                b'}' | b';' | b'\n' => self.text.clear(),
                _ => self.push(byte),
            }
            Ok(())
        }
    }

    fn push(&mut self, byte: u8) {
        if self.text.is_empty() {
            if byte.is_ascii_whitespace() {
                return;
            }
            self.began = self.line;
        }
        // One more than allowed tells that it is too long.
        if self.text.len() <= MAX_LINE {
            self.text.push(byte);
        }
    }

    fn element(&mut self, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let text = std::mem::take(&mut self.text);
        let result = element(self.began, &text, sink);
        self.text = text;
        self.text.clear();
        result
    }
}

/// Whether a brace after this statement holds elements.
fn opens_elements(statement: &[u8]) -> bool {
    let text = String::from_utf8_lossy(statement);
    let mut words = text.split(|c: char| c.is_ascii_whitespace() || c == '=');
    let first = words.find(|w| !w.is_empty()).unwrap_or_default();
    match first {
        "elements" | "define" => text.trim_end().ends_with('='),
        "add" | "create" | "element" => text.split_ascii_whitespace().any(|w| w == "element"),
        _ => false,
    }
}

fn element(line: u64, text: &[u8], sink: &mut Sink<'_>) -> Result<(), Stop> {
    if text.len() > MAX_LINE {
        return sink.problem(
            line,
            text,
            format!("an element of more than {MAX_LINE} bytes"),
        );
    }
    let Ok(words) = std::str::from_utf8(text) else {
        return sink.problem(line, text, "not UTF-8 text; is it compressed, or UTF-16?");
    };
    let mut words = words.split_ascii_whitespace();
    let Some(address) = words.next() else {
        // A comma before the closing brace.
        return Ok(());
    };
    let mut timeout = Ends::Unsaid;
    let mut expires = Ends::Unsaid;
    while let Some(word) = words.next() {
        match word {
            "." | ":" => {
                return sink.problem(
                    line,
                    text,
                    "an element of a map or of several fields; only sets of type ipv4_addr or ipv6_addr are read",
                );
            }
            "timeout" | "expires" => {
                let ends = match words.next() {
                    Some("never") => Ends::Unsaid,
                    Some(duration) => match scan::duration_s(duration) {
                        Some(seconds) => Ends::InS(seconds),
                        None => {
                            return sink.problem(line, text, "a time that is not like 1h2m3s");
                        }
                    },
                    None => return sink.problem(line, text, "a timeout without a time"),
                };
                if word == "timeout" {
                    timeout = ends;
                } else {
                    expires = ends;
                }
            }
            // A remark in quotes is the last thing that nft prints.
            "comment" => break,
            _ => {}
        }
    }
    // What is left counts, not what it once had.
    let ends = if expires == Ends::Unsaid {
        timeout
    } else {
        expires
    };
    sink.entry(line, address, text, ends)
}
