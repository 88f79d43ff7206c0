//! JSON: decisions of CrowdSec in each of the shapes that it gives them, and our own export.
//!
//! `cscli decisions list -o json` prints alerts with their `decisions`; the local API gives a plain
//! array, or `{"new": […], "deleted": […]}`; ours has `entries`. All are walked by one visitor that
//! keeps one decision at a time.

use std::{
    cell::Cell,
    fmt,
    io::{self, BufRead, Read},
    rc::Rc,
};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    Stop, scan,
    sink::{Ends, Sink},
};

/// Longest text (or stretch without any), bytes; serde's reader would let it grow.
const MAX_TEXT: u32 = 64 << 10;

/// Reads them all.
pub fn read(input: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let line = Rc::new(Cell::new(1));
    let mut broken = None;
    let mut stopped = false;
    let reader = Watched {
        input,
        line: Rc::clone(&line),
        since_quote: 0,
        broken: &mut broken,
    };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let walk = Walk {
        sink,
        line: &line,
        stopped: &mut stopped,
    };
    let result = walk.deserialize(&mut json).and_then(|()| json.end());
    drop(json);
    match (result, broken) {
        (_, Some(error)) => Err(Stop::Read(error)),
        (Err(_), None) if stopped => Err(Stop::Enough),
        (Err(error), None) => Err(Stop::Syntax {
            line: line.get(),
            reason: error.to_string(),
        }),
        (Ok(()), None) => Ok(()),
    }
}

/// Counts lines exactly (serde asks for one byte at a time), and bounds texts.
struct Watched<'a, R> {
    input: &'a mut R,
    line: Rc<Cell<u64>>,
    since_quote: u32,
    /// The system's error, which serde would only quote.
    broken: &'a mut Option<io::Error>,
}

impl<R: BufRead> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let chunk = match self.input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                *self.broken = Some(error);
                return Err(io::Error::other("reading failed"));
            }
        };
        let (Some(byte), Some(to)) = (chunk.first().copied(), buffer.first_mut()) else {
            return Ok(0);
        };
        *to = byte;
        self.input.consume(1);
        if byte == b'\n' {
            self.line.set(self.line.get() + 1);
        }
        if byte == b'"' {
            self.since_quote = 0;
        } else {
            self.since_quote += 1;
            if self.since_quote > MAX_TEXT {
                return Err(io::Error::other(format!(
                    "more than {MAX_TEXT} bytes without an end of a text"
                )));
            }
        }
        Ok(1)
    }
}

/// Walks down to the decisions.
struct Walk<'a, 's> {
    sink: &'a mut Sink<'s>,
    line: &'a Cell<u64>,
    stopped: &'a mut bool,
}

impl<'s> Walk<'_, 's> {
    fn again(&mut self) -> Walk<'_, 's> {
        Walk {
            sink: &mut *self.sink,
            line: self.line,
            stopped: &mut *self.stopped,
        }
    }

    fn passed<E: serde::de::Error>(&mut self, result: Result<(), Stop>) -> Result<(), E> {
        result.map_err(|_enough| {
            *self.stopped = true;
            E::custom("enough")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("decisions or addresses")
    }

    /// No decisions at all: `cscli` and the API say `null`.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        let result = self
            .sink
            .entry(self.line.get(), text, text.as_bytes(), Ends::Unsaid);
        self.passed(result)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.again())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut decision = Decision::default();
        let mut container = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "decisions" | "new" | "entries" => {
                    container = true;
                    map.next_value_seed(self.again())?;
                }
                // What an earlier answer had and this one takes back; an import replaces the list.
                "deleted" => {
                    container = true;
                    map.next_value::<IgnoredAny>()?;
                }
                "value" => decision.value = map.next_value()?,
                "scope" => decision.scope = map.next_value()?,
                "type" => decision.kind = map.next_value()?,
                "duration" => decision.duration = map.next_value()?,
                "expires_unix_s" => decision.expires_unix_s = map.next_value()?,
                "simulated" => decision.simulated = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if container {
            return Ok(());
        }
        let result = decision.put(self.line.get(), self.sink);
        self.passed(result)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Err(E::custom("true or false where a decision should be"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        Err(E::custom("a number where a decision should be"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        Err(E::custom("a number where a decision should be"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        Err(E::custom("a number where a decision should be"))
    }
}

/// What counts of one decision.
#[derive(Default)]
struct Decision {
    value: Option<String>,
    scope: Option<String>,
    kind: Option<String>,
    duration: Option<String>,
    expires_unix_s: Option<u64>,
    simulated: Option<bool>,
}

impl Decision {
    fn put(&self, line: u64, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let Some(value) = &self.value else {
            return sink.problem(line, b"{}", "a decision without a `value`");
        };
        let is = |field: &Option<String>, names: &[&str]| {
            field
                .as_deref()
                .is_none_or(|f| names.iter().any(|n| f.eq_ignore_ascii_case(n)))
        };
        // Captchas, countries and networks of providers are decisions, too, but none of ours.
        if !is(&self.scope, &["ip", "range"])
            || !is(&self.kind, &["ban"])
            || self.simulated == Some(true)
        {
            sink.ignore();
            return Ok(());
        }
        let ends = match (&self.duration, self.expires_unix_s) {
            (_, Some(at)) => Ends::AtS(at),
            (None, None) => Ends::Unsaid,
            (Some(duration), None) => match scan::duration_s(duration) {
                Some(seconds) => Ends::InS(seconds),
                None => {
                    return sink.problem(
                        line,
                        format!("{value} {duration}").as_bytes(),
                        "a `duration` that is not like 3h59m57s",
                    );
                }
            },
        };
        sink.entry(line, value, value.as_bytes(), ends)
    }
}
