//! One description of every field: what it takes, and whether its value is that.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Component, Path};
use std::time::Duration;

use crate::addr::Prefix;

/// A value that is not allowed.
#[derive(Debug)]
pub(super) struct Finding {
    /// Dotted path of the field.
    pub(super) path: String,
    /// The element, where the field is a list and one element is at fault.
    pub(super) item: Option<usize>,
    /// The field to point at where the first is not in the file.
    pub(super) or_path: Option<String>,
    /// What is wrong, to be read after the quoted value.
    pub(super) what: String,
    /// How to mend it.
    pub(super) remedy: String,
}

/// Walks over a configuration. Each field method takes note of what the field expects, whatever
/// its value is, and of a finding when the value is not that.
#[derive(Debug, Default)]
pub(super) struct Checker {
    prefix: String,
    /// Dotted path and what it takes, to be read after "use".
    pub(super) fields: Vec<(String, String)>,
    pub(super) findings: Vec<Finding>,
    /// Paths up to the dot behind which any key may be, and what those take.
    open: Vec<(String, String)>,
}

impl Checker {
    /// Describes a section.
    pub(super) fn section(&mut self, name: &str, describe: impl FnOnce(&mut Self)) {
        let path = self.at(name);
        self.fields.push((
            path.clone(),
            format!("a section, which starts with the line [{path}]"),
        ));
        let outer = std::mem::replace(&mut self.prefix, path);
        describe(self);
        self.prefix = outer;
    }

    /// What the field at `path` takes.
    pub(super) fn expects(&self, path: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known == path)
            .or_else(|| self.open.iter().find(|(open, _)| path.starts_with(open)))
            .map(|(_, expects)| expects.as_str())
    }

    pub(super) fn count(&mut self, key: &str, value: u32, range: RangeInclusive<u32>) {
        let expects = format!("a whole number from {} to {}", range.start(), range.end());
        self.field(
            key,
            expects,
            (!range.contains(&value)).then(|| "is out of range".to_owned()),
        );
    }

    pub(super) fn duration(&mut self, key: &str, value: Duration, range: RangeInclusive<Duration>) {
        let text = |duration: &Duration| humantime::format_duration(*duration).to_string();
        let expects = format!(
            "a duration from \"{}\" to \"{}\"",
            text(range.start()),
            text(range.end())
        );
        self.field(
            key,
            expects,
            (!range.contains(&value)).then(|| "is out of range".to_owned()),
        );
    }

    pub(super) fn flag(&mut self, key: &str) {
        self.field(key, "true or false".to_owned(), None);
    }

    /// A text whose form its type has checked while it was read.
    pub(super) fn text(&mut self, key: &str, expects: &str) {
        self.field(key, expects.to_owned(), None);
    }

    /// A section whose keys are not known beforehand.
    pub(super) fn table(&mut self, key: &str, len: usize, max: usize, expects: &str) {
        self.section(key, |_| {});
        let path = self.at(key);
        self.open.push((format!("{path}."), expects.to_owned()));
        if len > max {
            self.findings.push(Finding {
                path,
                item: None,
                or_path: None,
                what: format!("has {len} entries"),
                remedy: format!("use at most {max}"),
            });
        }
    }

    pub(super) fn port_numbers(&mut self, key: &str, ports: &[u16], max: usize) {
        let mut seen = BTreeSet::new();
        for (item, port) in ports.iter().enumerate() {
            if *port == 0 {
                self.item(key, item, "is no port", "ports go from 1 to 65535");
            } else if !seen.insert(port) {
                self.item(key, item, "is there twice", "remove one of them");
            }
        }
        let expects = format!("a list of at most {max} ports, like [23, 2323]");
        self.list(key, expects, ports.len(), max);
    }

    pub(super) fn choice(&mut self, key: &str, words: &[&str]) {
        let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
        self.field(key, format!("one of {}", words.join(", ")), None);
    }

    pub(super) fn path(&mut self, key: &str, value: &Path, max_bytes: Option<usize>) {
        let limit = max_bytes.map_or_else(String::new, |max| format!(" of at most {max} bytes"));
        let len = value.as_os_str().len();
        let wrong = if !value.is_absolute() {
            Some("is not an absolute path".to_owned())
        } else if value.components().any(|part| part == Component::ParentDir) {
            Some("goes up with `..`".to_owned())
        } else if value.as_os_str().as_encoded_bytes().contains(&0) {
            Some("contains a NUL character".to_owned())
        } else {
            max_bytes
                .filter(|max| len > *max)
                .map(|_| format!("is {len} bytes long"))
        };
        self.field(key, format!("an absolute path{limit}, without `..`"), wrong);
    }

    /// A network address with its port; `exact` for one that others connect to.
    pub(super) fn socket(&mut self, key: &str, value: Option<SocketAddr>, exact: bool) {
        let wrong = value.and_then(|value| {
            if value.port() == 0 {
                Some("has no port".to_owned())
            } else if exact && (value.ip().is_unspecified() || value.ip().is_multicast()) {
                Some("is not an address that others can connect to".to_owned())
            } else {
                None
            }
        });
        let expects = "an address and port, like \"192.0.2.1:4747\" or \"[2001:db8::1]:4747\"";
        self.field(key, expects.to_owned(), wrong);
    }

    /// A network address with its port, or nothing.
    pub(super) fn socket_or_off(&mut self, key: &str, value: Option<SocketAddr>) {
        let wrong = value
            .filter(|value| value.port() == 0)
            .map(|_| "has no port".to_owned());
        let expects = "an address and port, like \"127.0.0.1:9477\", or \"\" for none";
        self.field(key, expects.to_owned(), wrong);
    }

    pub(super) fn interfaces(&mut self, key: &str, names: &[String], max: usize) {
        let expects = format!("a list of at most {max} interface names, like [\"eth0\"]");
        let mut seen = BTreeSet::new();
        for (item, name) in names.iter().enumerate() {
            // dev_valid_name() in net/core/dev.c.
            let valid = (1..16).contains(&name.len())
                && name != "."
                && name != ".."
                && !name.contains(|c: char| {
                    c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace()
                });
            if !valid {
                self.item(
                    key,
                    item,
                    "cannot be the name of an interface",
                    "`ip link` lists the names there are",
                );
            } else if !seen.insert(name) {
                self.item(key, item, "is there twice", "remove one of them");
            }
        }
        self.list(key, expects, names.len(), max);
    }

    pub(super) fn prefixes(&mut self, key: &str, prefixes: &[Prefix], max: usize) {
        let expects = format!(
            "a list of at most {max} addresses or networks, like [\"192.0.2.7\", \"2001:db8::/32\"]"
        );
        for (item, prefix) in prefixes.iter().enumerate() {
            if prefix.len() == 0 {
                self.item(
                    key,
                    item,
                    "would allow every address of its family, and so end all protection",
                    "name the networks that you trust; to drop nothing, set mode = \"monitor\" in [dataplane]",
                );
            }
        }
        self.list(key, expects, prefixes.len(), max);
    }

    /// Ports, none of which is in `before` (another field's).
    pub(super) fn ports(&mut self, key: &str, ports: &[u32], before: &[u32], max: usize) {
        let expects = format!("a list of at most {max} ports from 1 to 65535, like [443]");
        for (item, port) in ports.iter().enumerate() {
            if !(1..=65_535).contains(port) {
                self.item(key, item, "is no port", "a port is from 1 to 65535");
            } else if before.contains(port) || ports.iter().take(item).any(|other| other == port) {
                self.item(key, item, "is there twice", "remove one of them");
            }
        }
        self.list(key, expects, ports.len(), max);
    }

    /// A number that must not be above another one.
    pub(super) fn not_above(&mut self, (key, value): (&str, u32), (limit_key, limit): (&str, u32)) {
        if value > limit {
            self.findings.push(Finding {
                path: self.at(key),
                item: None,
                or_path: Some(self.at(limit_key)),
                what: format!("does not fit: {key} ({value}) is above {limit_key} ({limit})"),
                remedy: format!("set {key} to {limit_key} or less"),
            });
        }
    }

    /// Says that a value cannot stand as it is because of another one.
    pub(super) fn needs(&mut self, key: &str, what: &str, remedy: &str) {
        self.findings.push(Finding {
            path: self.at(key),
            item: None,
            or_path: None,
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        });
    }

    /// Two keys that are there both or not at all.
    pub(super) fn together(&mut self, one: (&str, bool), other: (&str, bool)) {
        let (there, missing) = match (one.1, other.1) {
            (true, false) => (one.0, other.0),
            (false, true) => (other.0, one.0),
            _ => return,
        };
        self.needs(
            there,
            &format!("stands without {missing}"),
            &format!("set {missing} too"),
        );
    }

    /// Addresses of message servers.
    pub(super) fn servers(&mut self, key: &str, servers: &[String], max: usize) {
        let expects = format!(
            "a list of at most {max} addresses like \"nats://192.0.2.1:4222\" or \"tls://nats.example:4222\""
        );
        for (item, server) in servers.iter().enumerate() {
            let rest = ["nats://", "tls://"]
                .into_iter()
                .find_map(|scheme| server.strip_prefix(scheme));
            let good = rest.is_some_and(|rest| {
                !rest.is_empty()
                    && rest.len() <= 300
                    && rest.bytes().all(|b| {
                        b.is_ascii_alphanumeric()
                            || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
                    })
            });
            if !good {
                self.item(
                    key,
                    item,
                    "is no address of a server",
                    "write it like \"nats://192.0.2.1:4222\"; user and password have keys of their own",
                );
            }
        }
        self.list(key, expects, servers.len(), max);
    }

    fn list(&mut self, key: &str, expects: String, len: usize, max: usize) {
        self.field(
            key,
            expects,
            (len > max).then(|| format!("has {len} entries")),
        );
    }

    fn item(&mut self, key: &str, item: usize, what: &str, remedy: &str) {
        self.findings.push(Finding {
            path: self.at(key),
            item: Some(item),
            or_path: None,
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        });
    }

    fn field(&mut self, key: &str, expects: String, wrong: Option<String>) {
        let path = self.at(key);
        if let Some(what) = wrong {
            self.findings.push(Finding {
                path: path.clone(),
                item: None,
                or_path: None,
                what,
                remedy: format!("use {expects}"),
            });
        }
        self.fields.push((path, expects));
    }

    fn at(&self, key: &str) -> String {
        if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.prefix)
        }
    }
}
