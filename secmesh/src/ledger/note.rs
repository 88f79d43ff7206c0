//! The signed note format of C2SP (`c2sp.org/signed-note`): text, an empty line, lines of signatures.
//!
//! Stricter than the specification where that costs nothing: base64 has one spelling, and what is
//! parsed is written again byte for byte.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::mesh::crypto::sha256;

/// Largest note, in bytes.
pub const MAX_NOTE: usize = 48 * 1024;
/// Most signatures on a note; the specification asks for 16 at least.
pub const MAX_SIGNATURES: usize = 64;

const DASH: &str = "\u{2014} ";

/// Which algorithm a key's signatures are of: the specification's signature type byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureType {
    /// Ed25519 over the text.
    Ed25519,
    /// Ed25519 by a witness, with the time (`c2sp.org/tlog-cosignature`).
    Cosignature,
    /// ML-DSA-44, with the time (`c2sp.org/tlog-cosignature`).
    MlDsa44,
}

impl SignatureType {
    /// The type's byte.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::Cosignature => 0x04,
            Self::MlDsa44 => 0x06,
        }
    }
}

/// Short name of a key: tells signatures apart, and proves nothing.
pub fn key_id(name: &str, kind: SignatureType, key: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes(), b"\n", &[kind.byte()], key].concat());
    [a, b, c, d]
}

/// Why bytes are not a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Longer than [`MAX_NOTE`].
    #[error("the note has {0} bytes, the limit is {MAX_NOTE}")]
    TooLong(usize),
    /// Not text, or with control characters.
    #[error("the note is not plain UTF-8 text")]
    NotText,
    /// No empty line between text and signatures, or no text, or no signature.
    #[error("the note has no text, or no signatures behind an empty line")]
    NoSignatures,
    /// More than [`MAX_SIGNATURES`].
    #[error("the note has more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// A signature line is not one.
    #[error("signature line {0} of the note is malformed")]
    Signature(usize),
}

/// One signature line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// Name of the key.
    pub name: String,
    /// See [`key_id`].
    pub id: [u8; 4],
    /// What the algorithm says.
    pub signature: Vec<u8>,
}

/// A text and the signatures on it; nothing is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// A note of `text`, which ends in a line break and has neither an empty line at its end nor
    /// control characters. Without a signature it is not one yet.
    pub(super) const fn new(text: String) -> Self {
        Self {
            text,
            signatures: Vec::new(),
        }
    }

    /// The text, with its last line break.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures, in order.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Adds a signature, in place of one by the same name and id. Left out when there are
    /// [`MAX_SIGNATURES`] already.
    pub fn add(&mut self, signature: NoteSignature) {
        let same = |s: &NoteSignature| s.name == signature.name && s.id == signature.id;
        if let Some(old) = self.signatures.iter_mut().find(|s| same(s)) {
            *old = signature;
        } else if self.signatures.len() < MAX_SIGNATURES {
            self.signatures.push(signature);
        }
    }

    /// The same text with only those signatures that `keep` wants.
    #[must_use]
    pub fn with_only(&self, keep: impl Fn(&NoteSignature) -> bool) -> Self {
        Self {
            text: self.text.clone(),
            signatures: self
                .signatures
                .iter()
                .filter(|s| keep(s))
                .cloned()
                .collect(),
        }
    }

    /// What the key of that name and id has signed, if there is exactly such a line.
    pub fn signature(&self, name: &str, id: [u8; 4]) -> Option<&[u8]> {
        self.signatures
            .iter()
            .find(|s| s.name == name && s.id == id)
            .map(|s| s.signature.as_slice())
    }

    /// Reads what [`fmt::Display`] writes.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > MAX_NOTE {
            return Err(NoteError::TooLong(bytes.len()));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
        if whole.chars().any(|c| c.is_control() && c != '\n') {
            return Err(NoteError::NotText);
        }
        let (text, lines) = whole.rsplit_once("\n\n").ok_or(NoteError::NoSignatures)?;
        let lines = lines.strip_suffix('\n').ok_or(NoteError::NoSignatures)?;
        if text.is_empty() {
            return Err(NoteError::NoSignatures);
        }
        let mut signatures = Vec::new();
        for (number, line) in (1..).zip(lines.split('\n')) {
            if signatures.len() >= MAX_SIGNATURES {
                return Err(NoteError::TooManySignatures);
            }
            signatures.push(parse_line(line).ok_or(NoteError::Signature(number))?);
        }
        Ok(Self {
            text: format!("{text}\n"),
            signatures,
        })
    }
}

fn parse_line(line: &str) -> Option<NoteSignature> {
    let (name, encoded) = line.strip_prefix(DASH)?.split_once(' ')?;
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '+') {
        return None;
    }
    let bytes = STANDARD.decode(encoded).ok()?;
    let (id, signature) = bytes.split_first_chunk()?;
    // base64 with other bits behind the last byte, or without padding, is another spelling.
    (!signature.is_empty() && STANDARD.encode(&bytes) == encoded).then(|| NoteSignature {
        name: name.to_owned(),
        id: *id,
        signature: signature.to_vec(),
    })
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for line in &self.signatures {
            let bytes = [line.id.as_slice(), &line.signature].concat();
            writeln!(f, "{DASH}{} {}", line.name, STANDARD.encode(bytes))?;
        }
        Ok(())
    }
}
