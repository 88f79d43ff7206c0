//! The file as a tree that remembers where everything stands.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::{Checker, Finding};
use super::error::Problem;

/// Longest value quoted within a sentence, in characters.
const MAX_VALUE: usize = 60;

/// A configuration file whose syntax is right.
pub(super) struct Document<'a> {
    text: &'a str,
    file: &'a str,
    root: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// Reads the syntax.
    pub(super) fn parse(text: &'a str, file: &'a str) -> Result<Self, Box<Problem>> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { text, file, root }),
            Err(error) => {
                let span = error.span().unwrap_or_default();
                let remedy = syntax_remedy(error.message());
                Err(Box::new(Problem::new(
                    text,
                    file,
                    span,
                    None,
                    one_line(error.message()),
                    remedy.to_owned(),
                )))
            }
        }
    }

    /// All keys that are not among `known`, in the order of the file.
    pub(super) fn unknown_keys(&self, known: &toml::Table) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.unknown_in(self.root.get_ref(), "", known, known, &mut problems);
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems
    }

    fn unknown_in(
        &self,
        table: &DeTable<'_>,
        path: &str,
        known: &toml::Table,
        all: &toml::Table,
        problems: &mut Vec<Problem>,
    ) {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let here = join(path, name);
            match (known.get(name), value.get_ref()) {
                // An empty table among the known keys is one that takes any.
                (Some(toml::Value::Table(known)), DeValue::Table(inner)) if !known.is_empty() => {
                    self.unknown_in(inner, &here, known, all, problems);
                }
                (Some(_), _) => {}
                (None, _) => problems.push(Problem::new(
                    self.text,
                    self.file,
                    key.span(),
                    Some(shorten(&here)),
                    "there is no such key".to_owned(),
                    unknown_remedy(name, path, known, all),
                )),
            }
        }
    }

    /// A value that is not of the type its field takes.
    pub(super) fn type_problem(&self, error: &toml::de::Error, described: &Checker) -> Problem {
        let mut span = error.span().unwrap_or_default();
        let mut path = path_at(self.root.get_ref(), span.start, "");
        // For an element of a list, the deserializer tells the place of the whole list. Our own
        // messages begin with the text that they are about.
        if let Some(DeValue::Array(items)) = path
            .as_deref()
            .and_then(|path| self.find(path))
            .map(Spanned::get_ref)
        {
            let about = |item: &Spanned<DeValue<'_>>| {
                item.get_ref()
                    .as_str()
                    .is_some_and(|text| error.message().starts_with(&format!("`{text}`")))
            };
            if let Some((at, item)) = items.iter().enumerate().find(|(_, item)| about(item)) {
                span = item.span();
                path = path.map(|path| format!("{path}[{at}]"));
            }
        }
        let field = path
            .as_deref()
            .map(|path| path.split('[').next().unwrap_or(path));
        match field.and_then(|field| described.expects(field)) {
            Some(expects) => {
                // What the deserializer expects is a Rust type; the description says it better.
                let what = error
                    .message()
                    .split(", expected ")
                    .next()
                    .unwrap_or_default();
                self.problem_at(span, path, one_line(what), format!("use {expects}"))
            }
            None => self.problem_at(
                span,
                path,
                one_line(error.message()),
                "see secmesh.example.toml".to_owned(),
            ),
        }
    }

    /// A value that its field does not allow.
    pub(super) fn problem(&self, finding: &Finding) -> Problem {
        let place = self.find(&finding.path).map(|value| (value, &finding.path));
        let or_path = finding.or_path.as_ref();
        let place =
            place.or_else(|| or_path.and_then(|path| self.find(path).map(|value| (value, path))));
        let Some((value, path)) = place else {
            // Only a default that breaks its own rule gets here, and a test sees to that.
            return self.problem_at(
                0..0,
                Some(finding.path.clone()),
                finding.what.clone(),
                finding.remedy.clone(),
            );
        };
        let (value, path) = match (finding.item, value.get_ref()) {
            (Some(item), DeValue::Array(items)) => {
                (items.get(item).unwrap_or(value), format!("{path}[{item}]"))
            }
            _ => (value, path.clone()),
        };
        let span = value.span();
        let shown = shorten(&one_line(self.text.get(span.clone()).unwrap_or_default()));
        self.problem_at(
            span,
            Some(path),
            format!("`{shown}` {}", finding.what),
            finding.remedy.clone(),
        )
    }

    fn problem_at(
        &self,
        span: Range<usize>,
        field: Option<String>,
        what: String,
        remedy: String,
    ) -> Problem {
        Problem::new(self.text, self.file, span, field, what, remedy)
    }

    /// The value at a dotted path.
    fn find(&self, path: &str) -> Option<&Spanned<DeValue<'a>>> {
        let mut keys = path.split('.');
        let mut value = child(self.root.get_ref(), keys.next()?)?;
        for key in keys {
            let DeValue::Table(table) = value.get_ref() else {
                return None;
            };
            value = child(table, key)?;
        }
        Some(value)
    }
}

fn child<'t, 'a>(table: &'t DeTable<'a>, key: &str) -> Option<&'t Spanned<DeValue<'a>>> {
    table
        .iter()
        .find(|(name, _)| name.get_ref().as_ref() == key)
        .map(|(_, value)| value)
}

/// The dotted path of the innermost value or key that stands at a byte of the file.
fn path_at(table: &DeTable<'_>, at: usize, path: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let here = join(path, key.get_ref());
        let inner = match value.get_ref() {
            DeValue::Table(inner) => path_at(inner, at, &here),
            DeValue::Array(items) => items
                .iter()
                .position(|item| item.span().contains(&at))
                .map(|item| format!("{here}[{item}]")),
            _ => None,
        };
        inner.or_else(|| (key.span().contains(&at) || value.span().contains(&at)).then_some(here))
    })
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The nearest known key; else the section the key belongs in; else what there is.
fn unknown_remedy(name: &str, path: &str, known: &toml::Table, all: &toml::Table) -> String {
    let nearest = known.keys().map(|key| (distance(name, key), key)).min();
    // One typing error in three characters still is the same word.
    if let Some((errors, key)) = nearest
        && errors <= (key.len() / 3).max(1)
    {
        return format!("did you mean `{key}`?");
    }
    let mut elsewhere = Vec::new();
    sections_with(name, all, "", &mut elsewhere);
    if !elsewhere.is_empty() {
        return format!("`{name}` belongs in {}", elsewhere.join(" or "));
    }
    let keys = known
        .keys()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if path.is_empty() {
        format!("the sections are {keys}")
    } else {
        format!("[{path}] takes {keys}")
    }
}

fn sections_with(name: &str, table: &toml::Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        if let toml::Value::Table(inner) = value {
            let here = join(path, key);
            if inner.contains_key(name) {
                found.push(format!("[{here}]"));
            }
            sections_with(name, inner, &here, found);
        }
    }
}

/// How many characters have to be changed, added or removed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    // Keys are short; a long text is none of them.
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let replaced = diagonal.saturating_add(usize::from(from != to));
            diagonal = *cell;
            *cell = replaced
                .min(cell.saturating_add(1))
                .min(left.saturating_add(1));
            left = *cell;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

fn syntax_remedy(message: &str) -> &'static str {
    if message.contains("duplicate key") {
        "keep one of them"
    } else if message.contains("must be quoted") {
        "put words, addresses and durations into quotes, like mode = \"monitor\""
    } else if message.contains("string") {
        "a text starts and ends with the same quote on one line, like mode = \"monitor\""
    } else {
        "write one `key = value` on a line, under its [section]; see secmesh.example.toml"
    }
}

fn one_line(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_VALUE).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
