//! Names of lists.

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// Longest name, bytes.
const MAX_NAME: usize = 64;

/// The name of a list, which is also that of its file: 1 to 64 of `a-z A-Z 0-9 . _ -`, not beginning
/// with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ListName(String);

impl ListName {
    /// Takes a name as it is.
    ///
    /// # Errors
    /// What a name may be, if `text` is not.
    pub fn new(text: &str) -> Result<Self, String> {
        let good = (1..=MAX_NAME).contains(&text.len())
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "a list's name has 1 to {MAX_NAME} of a-z A-Z 0-9 . _ - and does not begin with a dot"
            ))
        }
    }

    /// A name made from that of a file, without its folder and its last extension.
    pub fn of_file(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_string_lossy();
        let name: String = stem
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                    c
                } else {
                    '-'
                }
            })
            .take(MAX_NAME)
            .collect();
        Self::new(name.trim_start_matches('.')).ok()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ListName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for ListName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // It becomes a path, and it comes over a socket.
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_folder() {
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "ä", "a\n"] {
            assert!(ListName::new(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<ListName>(bad.into()).is_err());
        }
        for (file, made) in [
            ("/tmp/firehol_level1.netset", "firehol_level1"),
            ("my list (1).txt", "my-list--1-"),
            ("x", "x"),
        ] {
            assert_eq!(
                ListName::of_file(Path::new(file)).unwrap(),
                ListName::new(made).unwrap()
            );
        }
    }
}
