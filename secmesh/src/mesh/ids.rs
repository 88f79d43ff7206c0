//! Identifiers (hashes with a purpose) and bounded labels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an identifier or label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not hexadecimal of the right length.
    #[error("not a {what}: expected {digits} hexadecimal digits")]
    Hex {
        /// What it should be.
        what: &'static str,
        /// Number of digits expected.
        digits: usize,
    },
    /// A label that is empty, too long, or has other characters.
    #[error("`{given}` cannot be used: 1 to {max} characters out of a-z A-Z 0-9 . _ -")]
    Label {
        /// What was given, at most 80 characters of it.
        given: String,
        /// The limit.
        max: usize,
    },
}

/// Lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .filter_map(|nibble| DIGITS.get(usize::from(nibble)))
        .map(|digit| char::from(*digit))
        .collect()
}

/// Reads exactly `N` bytes of lower-case hexadecimal; `None` for anything else.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    fn nibble(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut out = [0_u8; N];
    for (to, [high, low]) in out.iter_mut().zip(pairs) {
        *to = (nibble(*high)? << 4) | nibble(*low)?;
    }
    Some(out)
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $size:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $size]);

        impl $name {
            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $size] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                from_hex(text).map(Self).ok_or(IdError::Hex {
                    what: $what,
                    digits: $size * 2,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

identifier!(
    /// A mesh: the SHA-256 of its genesis.
    MeshId, 32, "mesh id"
);
identifier!(
    /// A node: the first 16 bytes of a SHA-256 over its vote key and incarnation. Never reused.
    NodeId, 16, "node id"
);
identifier!(
    /// A joining ticket; drawn at random when it is made, used by one node.
    TicketId, 16, "ticket id"
);
identifier!(
    /// One occurrence of one attack class by one subject, in one minute, in one epoch.
    IncidentId, 32, "incident id"
);
identifier!(
    /// A decision, whichever votes happen to prove it.
    DecisionId, 32, "decision id"
);
identifier!(
    /// Any other SHA-256.
    Hash, 32, "hash"
);

/// A text of 1 to `MAX` characters out of `a-z A-Z 0-9 . _ -`: safe to print, to log and to use in
/// a file name. A leading dot is refused for the last of these.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Checks and takes a text.
    ///
    /// # Errors
    /// [`IdError::Label`] when it is empty, too long, begins with a dot, or has other characters.
    pub fn new(text: &str) -> Result<Self, IdError> {
        let fits = !text.is_empty()
            && text.len() <= MAX
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Label {
                given: text.chars().take(80).collect(),
                max: MAX,
            })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a node or a mesh.
pub type Name = Text<64>;
/// Name of a failure zone (rack, site, provider).
pub type Zone = Text<32>;

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MAX: usize> FromStr for Text<MAX> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_refuse_what_could_do_harm_elsewhere() {
        for text in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "ä",
            "a\n",
            "\u{1b}[31m",
            &"x".repeat(33),
        ] {
            assert!(Zone::new(text).is_err(), "{text:?}");
        }
        assert!(Zone::new(&"x".repeat(32)).is_ok());
    }

    #[test]
    fn identifiers_have_one_spelling() {
        let id = NodeId([0xab; 16]);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<NodeId>().is_err());
        assert!("ab".parse::<NodeId>().is_err());
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }

    proptest! {
        #[test]
        fn hex_is_read_back(bytes: [u8; 32]) {
            prop_assert_eq!(from_hex::<32>(&to_hex(&bytes)), Some(bytes));
        }
    }
}
