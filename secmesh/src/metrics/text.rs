//! The Prometheus text format, version 0.0.4: families with help and type, samples with labels.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::Write as _;

/// What a family's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, and starts again at zero.
    Counter,
    /// Rises and falls.
    Gauge,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A text that is being written, family after family.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    family: &'static str,
}

impl Text {
    /// Begins a family; all its samples come before the next one. `name` is of letters, digits and
    /// underscores, and a counter's ends in `_total`.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        self.family = name;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}");
        let _ = writeln!(self.out, "# TYPE {name} {}", kind.name());
        self
    }

    /// Adds a sample to the family. Label values may hold anything.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: u64) -> &mut Self {
        self.out.push_str(self.family);
        for (n, (name, label)) in labels.iter().enumerate() {
            let open = if n == 0 { '{' } else { ',' };
            let label = label
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.out, "{open}{name}=\"{label}\"");
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
        self
    }

    /// The text so far.
    pub fn finish(self) -> String {
        self.out
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    type Labels = BTreeMap<String, String>;

    fn is_name(text: &str) -> bool {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn labels(mut text: &str) -> Result<(Labels, &str), String> {
        let mut labels = Labels::new();
        let Some(rest) = text.strip_prefix('{') else {
            return Ok((labels, text));
        };
        text = rest;
        loop {
            let (name, rest) = text.split_once("=\"").ok_or("no label")?;
            if !is_name(name) {
                return Err(format!("label name {name}"));
            }
            let mut value = String::new();
            let mut chars = rest.char_indices();
            let end = loop {
                match chars.next().ok_or("label value does not end")? {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().ok_or("escape")?.1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        c => return Err(format!("escape {c}")),
                    },
                    (_, c) => value.push(c),
                }
            };
            if labels.insert(name.to_owned(), value).is_some() {
                return Err(format!("label {name} twice"));
            }
            text = &rest[end + 1..];
            match text.strip_prefix(',') {
                Some(rest) => text = rest,
                None => {
                    return Ok((labels, text.strip_prefix('}').ok_or("labels do not end")?));
                }
            }
        }
    }

    /// Reads the format as strictly as `promtool check metrics` does, and gives the samples.
    pub(crate) fn parse(text: &str) -> Result<BTreeMap<(String, Labels), u64>, String> {
        let mut samples = BTreeMap::new();
        let mut families = BTreeSet::new();
        let mut current: Option<(String, bool)> = None;
        let mut help: Option<String> = None;
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').ok_or("no help text")?;
                if words.is_empty() || !families.insert(name.to_owned()) {
                    return Err(format!("{name} has no help, or is there twice"));
                }
                help = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or("no type")?;
                if help.take().as_deref() != Some(name) || !is_name(name) {
                    return Err(format!("{name} has no help before its type"));
                }
                let counter = kind == "counter";
                if counter != name.ends_with("_total") || !(counter || kind == "gauge") {
                    return Err(format!("{name} is a {kind}"));
                }
                current = Some((name.to_owned(), counter));
            } else {
                let end = line.find(['{', ' ']).ok_or("no value")?;
                let name = &line[..end];
                if current.as_ref().is_none_or(|(family, _)| family != name) {
                    return Err(format!("{name} is outside of its family"));
                }
                let (labels, rest) = labels(&line[end..])?;
                let value: u64 = rest
                    .strip_prefix(' ')
                    .and_then(|v| v.parse().ok())
                    .ok_or_else(|| format!("value of {line}"))?;
                if samples.insert((name.to_owned(), labels), value).is_some() {
                    return Err(format!("twice: {line}"));
                }
            }
        }
        Ok(samples)
    }

    #[test]
    fn what_is_written_is_read_back_whatever_the_labels_hold() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "Back\\slash\nand line.")
            .sample(&[("name", "q\"u\\o\nte"), ("b", "{},=")], 7)
            .sample(&[("name", "x"), ("b", "")], u64::MAX)
            .family("b", Kind::Gauge, "Plain.")
            .sample(&[], 0);
        let text = text.finish();
        let samples = parse(&text).unwrap();
        let labels = |name: &str, b: &str| {
            Labels::from([
                ("name".to_owned(), name.to_owned()),
                ("b".to_owned(), b.to_owned()),
            ])
        };
        assert_eq!(
            samples[&("a_total".to_owned(), labels("q\"u\\o\nte", "{},="))],
            7
        );
        assert_eq!(samples.len(), 3, "{text}");
    }

    #[test]
    fn the_reader_of_the_tests_refuses_what_prometheus_refuses() {
        for wrong in [
            "a 1\n",
            "# HELP a x\n# TYPE a gauge\na 1",
            "# HELP a x\n# TYPE a gauge\na one\n",
            "# HELP a x\n# TYPE a gauge\na 1\na 2\n",
            "# HELP a x\n# TYPE a gauge\na{b=\"\\x\"} 1\n",
            "# HELP a x\n# TYPE a counter\na 1\n",
            "# TYPE a gauge\na 1\n",
            "# HELP a x\n# TYPE a gauge\nb 1\n",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
