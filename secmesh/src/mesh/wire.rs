//! The canonical encoding that everything signed or hashed goes through.
//!
//! Integers are big-endian and of fixed width, variable parts carry a `u16` length, and everything
//! that is signed or hashed begins with a domain tag (`u8` length, ASCII), so that bytes signed for
//! one purpose never verify for another. There is exactly one encoding of a value: a decoder takes
//! all of its input and refuses what an encoder would not have written.

use crate::addr::{PREFIX_BYTES, Prefix};

use super::ids::Text;

/// Largest message one node sends another, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Why bytes are not the canonical encoding of what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends inside a field.
    #[error("the message ends inside `{field}`: it needs {wanted} more bytes and has {left}")]
    Truncated {
        /// Field that was being read.
        field: &'static str,
        /// Bytes the field needs.
        wanted: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// The domain tag is not the expected one.
    #[error("the message does not begin with the tag `{expected}`: other kind or other version")]
    WrongTag {
        /// The tag that was expected.
        expected: &'static str,
    },
    /// A variable part is longer than its limit.
    #[error("`{field}` is {len} long, the limit is {max}")]
    TooLong {
        /// Field that is too long.
        field: &'static str,
        /// Its length.
        len: usize,
        /// Its limit.
        max: usize,
    },
    /// Bytes follow the end of the value.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    /// A field holds a value that nobody writes.
    #[error("`{field}` holds a value that is not allowed: {why}")]
    Invalid {
        /// Field in question.
        field: &'static str,
        /// What is wrong with the value.
        why: &'static str,
    },
}

/// Why a value is refused that only a later version knows.
pub const UNKNOWN_CODE: &str = "unknown code";

/// Writes the canonical encoding.
#[derive(Debug, Default)]
pub struct Encoder {
    buf: Vec<u8>,
}

impl Encoder {
    /// Starts a value that is signed, hashed or sent by itself: with its domain tag.
    /// Tags are ASCII constants of at most 255 bytes.
    pub fn tagged(tag: &'static str) -> Self {
        let mut encoder = Self::default();
        encoder.u8(u8::try_from(tag.len()).unwrap_or(u8::MAX));
        encoder.fixed(tag.as_bytes());
        encoder
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.buf.push(value);
        self
    }

    /// Appends two bytes, big-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.fixed(&value.to_be_bytes())
    }

    /// Appends four bytes, big-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.fixed(&value.to_be_bytes())
    }

    /// Appends eight bytes, big-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.fixed(&value.to_be_bytes())
    }

    /// Appends bytes whose number the format fixes, without a length.
    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self
    }

    /// Appends a prefix in its 18 canonical bytes.
    pub fn prefix(&mut self, prefix: &Prefix) -> &mut Self {
        self.fixed(&prefix.to_bytes())
    }

    /// Appends a bounded text with its `u16` length.
    pub fn text<const MAX: usize>(&mut self, text: &Text<MAX>) -> &mut Self {
        const { assert!(MAX <= 0xffff, "the length is written as a u16") };
        self.u16(u16::try_from(text.as_str().len()).unwrap_or(u16::MAX));
        self.fixed(text.as_str().as_bytes())
    }

    /// Appends bytes with their `u16` length.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when there are more than `max` or than 65,535 of them; nothing is
    /// written then.
    pub fn bytes(
        &mut self,
        field: &'static str,
        bytes: &[u8],
        max: usize,
    ) -> Result<&mut Self, WireError> {
        let too_long = WireError::TooLong {
            field,
            len: bytes.len(),
            max: max.min(usize::from(u16::MAX)),
        };
        if bytes.len() > max {
            return Err(too_long);
        }
        let len = u16::try_from(bytes.len()).map_err(|_| too_long)?;
        self.u16(len);
        Ok(self.fixed(bytes))
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// The encoding.
    pub fn finish(self) -> Vec<u8> {
        self.buf
    }
}

/// Reads the canonical encoding; every read names its field for the error.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Starts reading a value that has no tag of its own.
    pub const fn untagged(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Starts reading a tagged value.
    ///
    /// # Errors
    /// [`WireError::WrongTag`] when the bytes begin otherwise.
    pub fn tagged(bytes: &'a [u8], tag: &'static str) -> Result<Self, WireError> {
        let mut decoder = Self::untagged(bytes);
        decoder.expect_tag(tag)?;
        Ok(decoder)
    }

    /// Reads a domain tag in the middle of a value.
    ///
    /// # Errors
    /// [`WireError::WrongTag`] when another one, or none, is there.
    pub fn expect_tag(&mut self, tag: &'static str) -> Result<(), WireError> {
        let wrong = WireError::WrongTag { expected: tag };
        let len = self.u8("tag length").map_err(|_| wrong.clone())?;
        match self.take("tag", usize::from(len)) {
            Ok(found) if found == tag.as_bytes() => Ok(()),
            _ => Err(wrong),
        }
    }

    /// Whether this tag comes next; nothing is taken.
    pub fn next_is_tag(&self, tag: &'static str) -> bool {
        let rest = self.rest.split_first();
        rest.is_some_and(|(len, rest)| {
            usize::from(*len) == tag.len() && rest.starts_with(tag.as_bytes())
        })
    }

    fn take(&mut self, field: &'static str, wanted: usize) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(wanted) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(WireError::Truncated {
                field,
                wanted,
                left: self.rest.len(),
            }),
        }
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let left = self.rest.len();
        let taken = self.take(field, N)?;
        <[u8; N]>::try_from(taken).map_err(|_| WireError::Truncated {
            field,
            wanted: N,
            left,
        })
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.fixed(field).map(u8::from_be_bytes)
    }

    /// Reads a big-endian `u16`.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.fixed(field).map(u16::from_be_bytes)
    }

    /// Reads a big-endian `u32`.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.fixed(field).map(u32::from_be_bytes)
    }

    /// Reads a big-endian `u64`.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.fixed(field).map(u64::from_be_bytes)
    }

    /// Reads a prefix in its 18 canonical bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`], or [`WireError::Invalid`] when it is not canonical.
    pub fn prefix(&mut self, field: &'static str) -> Result<Prefix, WireError> {
        let bytes = self.fixed::<PREFIX_BYTES>(field)?;
        Prefix::from_bytes(&bytes).map_err(|_| WireError::Invalid {
            field,
            why: "not a canonical prefix",
        })
    }

    /// Reads bytes with their `u16` length.
    ///
    /// # Errors
    /// [`WireError::TooLong`] above `max`, [`WireError::Truncated`].
    pub fn bytes(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], WireError> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(WireError::TooLong { field, len, max });
        }
        self.take(field, len)
    }

    /// Reads a bounded text with its `u16` length.
    ///
    /// # Errors
    /// [`WireError::TooLong`], [`WireError::Truncated`], or [`WireError::Invalid`] for characters
    /// that are not allowed in it.
    pub fn text<const MAX: usize>(&mut self, field: &'static str) -> Result<Text<MAX>, WireError> {
        let bytes = self.bytes(field, MAX)?;
        std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| Text::new(text).ok())
            .ok_or(WireError::Invalid {
                field,
                why: "allowed are a-z A-Z 0-9 . _ -",
            })
    }

    /// Reads `len` bytes, for which the caller has a length and a limit.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn take_exactly(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], WireError> {
        self.take(field, len)
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`WireError::Trailing`] when something is left.
    pub const fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing(self.rest.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq)]
    enum Part {
        U8(u8),
        U16(u16),
        U32(u32),
        U64(u64),
        Bytes(Vec<u8>),
        Text(String),
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            any::<u8>().prop_map(Part::U8),
            any::<u16>().prop_map(Part::U16),
            any::<u32>().prop_map(Part::U32),
            any::<u64>().prop_map(Part::U64),
            proptest::collection::vec(any::<u8>(), 0..64).prop_map(Part::Bytes),
            "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,31}".prop_map(Part::Text),
        ]
    }

    fn encode(parts: &[Part]) -> Vec<u8> {
        let mut e = Encoder::tagged("test/1");
        for part in parts {
            match part {
                Part::U8(v) => e.u8(*v),
                Part::U16(v) => e.u16(*v),
                Part::U32(v) => e.u32(*v),
                Part::U64(v) => e.u64(*v),
                Part::Bytes(v) => e.bytes("b", v, 64).unwrap(),
                Part::Text(v) => e.text(&Text::<32>::new(v).unwrap()),
            };
        }
        e.finish()
    }

    /// Reads the same sequence of kinds that `shape` has.
    fn decode(bytes: &[u8], shape: &[Part]) -> Result<Vec<Part>, WireError> {
        let mut d = Decoder::tagged(bytes, "test/1")?;
        let parts = shape
            .iter()
            .map(|part| {
                Ok(match part {
                    Part::U8(_) => Part::U8(d.u8("f")?),
                    Part::U16(_) => Part::U16(d.u16("f")?),
                    Part::U32(_) => Part::U32(d.u32("f")?),
                    Part::U64(_) => Part::U64(d.u64("f")?),
                    Part::Bytes(_) => Part::Bytes(d.bytes("f", 64)?.to_vec()),
                    Part::Text(_) => Part::Text(d.text::<32>("f")?.to_string()),
                })
            })
            .collect::<Result<_, WireError>>()?;
        d.finish()?;
        Ok(parts)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(parts in proptest::collection::vec(part(), 0..12)) {
            prop_assert_eq!(decode(&encode(&parts), &parts).unwrap(), parts);
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(
            parts in proptest::collection::vec(part(), 1..8),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = encode(&parts);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(read) = decode(&bytes, &parts) {
                prop_assert_eq!(encode(&read), bytes);
            }
        }

        #[test]
        fn every_cut_and_every_extra_byte_is_refused(
            parts in proptest::collection::vec(part(), 1..8),
            cut: prop::sample::Index,
        ) {
            let mut bytes = encode(&parts);
            prop_assert!(decode(&bytes[..cut.index(bytes.len())], &parts).is_err());
            bytes.push(0);
            prop_assert_eq!(decode(&bytes, &parts), Err(WireError::Trailing(1)));
        }
    }

    #[test]
    fn lengths_above_the_limit_are_refused_before_anything_is_taken() {
        let mut e = Encoder::tagged("t");
        assert!(e.bytes("x", &[0; 9], 8).is_err());
        assert!(e.bytes("x", &vec![0; 70_000], 100_000).is_err());
        e.bytes("x", &[0; 9], 9).unwrap();
        let bytes = e.finish();
        let mut d = Decoder::tagged(&bytes, "t").unwrap();
        assert_eq!(
            d.bytes("x", 8),
            Err(WireError::TooLong {
                field: "x",
                len: 9,
                max: 8
            })
        );
    }

    #[test]
    fn another_tag_is_refused() {
        let bytes = Encoder::tagged("secmesh/a").finish();
        assert!(Decoder::tagged(&bytes, "secmesh/b").is_err());
        assert!(Decoder::tagged(&bytes, "secmesh/ab").is_err());
        assert!(Decoder::tagged(&[], "secmesh/a").is_err());
    }
}
