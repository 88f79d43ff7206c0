//! The ticket: one line of text that lets one new node in, once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "secmesh2-";
/// The grant of one of version 1 names no epoch to begin with, and is refused.
const VERSION: u8 = 2;
const CHECKSUM: usize = 4;
const DOMAIN: &[u8] = b"secmesh/ticket/2\0";
const MAX_PART: usize = 1024;
const MAX_LIST: usize = 8;
const MAX_ADDRESS: usize = 64;
/// Version, total length, genesis, grant, seed, addresses, pins, checksum.
const MAX_BYTES: usize =
    3 + 2 * (2 + MAX_PART) + 32 + 1 + MAX_LIST * (1 + MAX_ADDRESS) + 1 + MAX_LIST * 32 + CHECKSUM;
const MAX_TEXT: usize = PREFIX.len() + MAX_BYTES.div_ceil(3) * 4;

/// What a joining node needs to know. It is a secret until used.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The mesh's first record, at most 1 KiB; opaque here.
    pub genesis: Vec<u8>,
    /// What the operator signed for this ticket, at most 1 KiB; opaque here.
    pub grant: Vec<u8>,
    /// Ed25519 seed of the ticket's own key, which opens the connection for joining.
    pub seed: [u8; 32],
    /// Members to ask, 1 to 8 of `ADDR:PORT`, each at most 64 bytes.
    pub addresses: Vec<String>,
    /// Pins of those members' TLS keys, 1 to 8.
    pub pins: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Ticket {
    /// The seed stays out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// What is wrong with a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin like one.
    #[error("this is not a secmesh ticket: a ticket begins with \"{PREFIX}\"")]
    NotATicket,
    /// It is of another version.
    #[error(
        "the ticket is of version {0}, and this secmesh knows version {VERSION}; make a new one (secmesh invite) with the version of secmesh that this node has"
    )]
    Version(String),
    /// A character cannot be part of a ticket.
    #[error(
        "the ticket has a character that does not belong there ({character:?}, the {position}. one); copy it again"
    )]
    Character {
        /// The character.
        character: char,
        /// Where, counted from 1 without white space.
        position: usize,
    },
    /// Its end is missing.
    #[error("the ticket's end is missing; copy the whole line")]
    Truncated,
    /// There is more than a ticket.
    #[error("there is more than a ticket here; copy only the line that begins with \"{PREFIX}\"")]
    TooLong,
    /// A character was changed.
    #[error("the ticket's checksum does not match, a character was changed; copy it again")]
    Checksum,
    /// A field is outside its limits.
    #[error("the ticket's {0} is outside its limits")]
    Limits(&'static str),
}

impl Ticket {
    /// The ticket as one line, without a line break.
    ///
    /// # Errors
    /// [`TicketError::Limits`] if a field is too long, or there is no address or pin.
    pub fn encode(&self) -> Result<String, TicketError> {
        let mut body = Vec::new();
        for (part, name) in [(&self.genesis, "genesis"), (&self.grant, "grant")] {
            if part.len() > MAX_PART {
                return Err(TicketError::Limits(name));
            }
            push_u16(&mut body, part.len());
            body.extend_from_slice(part);
        }
        body.extend_from_slice(&self.seed);
        body.push(count(self.addresses.len(), "list of addresses")?);
        for address in &self.addresses {
            if address.is_empty() || address.len() > MAX_ADDRESS || !is_printable(address) {
                return Err(TicketError::Limits("address"));
            }
            body.push(u8::try_from(address.len()).unwrap_or(u8::MAX));
            body.extend_from_slice(address.as_bytes());
        }
        body.push(count(self.pins.len(), "list of pins")?);
        body.extend(self.pins.iter().flatten());
        let mut bytes = vec![VERSION];
        push_u16(&mut bytes, 3 + body.len() + CHECKSUM);
        bytes.extend_from_slice(&body);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads a ticket. White space anywhere is ignored, since terminals wrap long lines.
    ///
    /// # Errors
    /// [`TicketError`], which says what to do.
    pub fn decode(text: &str) -> Result<Self, TicketError> {
        // Cut before anything else is done with it; white space may at most double it.
        let text: String = text
            .chars()
            .take(2 * MAX_TEXT)
            .filter(|c| !c.is_whitespace())
            .collect();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            let other = text
                .strip_prefix("secmesh")
                .and_then(|rest| rest.split_once('-'))
                .map(|(v, _)| v);
            return Err(match other {
                Some(v)
                    if !v.is_empty() && v.len() < 4 && v.bytes().all(|b| b.is_ascii_digit()) =>
                {
                    TicketError::Version(v.to_owned())
                }
                _ => TicketError::NotATicket,
            });
        };
        let strange = |c: &char| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '_');
        if let Some((at, character)) = text.chars().enumerate().find(|(_, c)| strange(c)) {
            return Err(TicketError::Character {
                character,
                position: at + 1,
            });
        }
        if text.len() > MAX_TEXT {
            return Err(TicketError::TooLong);
        }
        // A length that no base64 has means that characters are missing; others come out in `split`.
        let bytes = match URL_SAFE_NO_PAD.decode(encoded) {
            Ok(bytes) => bytes,
            Err(error) => return Err(what_is_wrong(encoded, &error)),
        };
        Self::parse(split(&bytes)?)
    }

    fn parse(body: &[u8]) -> Result<Self, TicketError> {
        let mut rest = Fields(body);
        let genesis = rest.long("genesis")?.to_vec();
        let grant = rest.long("grant")?.to_vec();
        let seed = rest.array("seed")?;
        let mut addresses = Vec::new();
        for _ in 0..rest.count("list of addresses")? {
            let [length] = rest.array("address")?;
            let address = rest.bytes(usize::from(length), "address")?;
            let address =
                std::str::from_utf8(address).map_err(|_| TicketError::Limits("address"))?;
            if address.is_empty() || address.len() > MAX_ADDRESS || !is_printable(address) {
                return Err(TicketError::Limits("address"));
            }
            addresses.push(address.to_owned());
        }
        let mut pins = Vec::new();
        for _ in 0..rest.count("list of pins")? {
            pins.push(rest.array("pin")?);
        }
        if !rest.0.is_empty() {
            return Err(TicketError::Limits("length"));
        }
        Ok(Self {
            genesis,
            grant,
            seed,
            addresses,
            pins,
        })
    }
}

/// Why characters that are no base64 are no ticket either. A cut can fall so that the last character has
/// bits left over; the bytes before it still say how long the ticket should be.
fn what_is_wrong(encoded: &str, error: &base64::DecodeError) -> TicketError {
    let whole = encoded.get(..encoded.len() / 4 * 4).unwrap_or_default();
    match (URL_SAFE_NO_PAD.decode(whole), error) {
        (Ok(bytes), _) => match split(&bytes) {
            // All of a ticket, and a character more.
            Ok(_) => TicketError::TooLong,
            Err(why) => why,
        },
        (Err(_), base64::DecodeError::InvalidLength(_)) => TicketError::Truncated,
        (Err(_), _) => TicketError::Checksum,
    }
}

/// Checks version, length and checksum, and returns what is between.
fn split(bytes: &[u8]) -> Result<&[u8], TicketError> {
    let [version, high, low, ..] = bytes else {
        return Err(TicketError::Truncated);
    };
    if *version != VERSION {
        return Err(TicketError::Version(version.to_string()));
    }
    let total = usize::from(u16::from_be_bytes([*high, *low]));
    if bytes.len() < total {
        return Err(TicketError::Truncated);
    }
    if bytes.len() > total {
        return Err(TicketError::TooLong);
    }
    let (content, sum) = bytes
        .split_last_chunk::<CHECKSUM>()
        .ok_or(TicketError::Truncated)?;
    if checksum(content) != *sum {
        return Err(TicketError::Checksum);
    }
    content.get(3..).ok_or(TicketError::Truncated)
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], TicketError> {
        let (first, rest) = self
            .0
            .split_at_checked(n)
            .ok_or(TicketError::Limits(what))?;
        self.0 = rest;
        Ok(first)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], TicketError> {
        self.bytes(N, what)?
            .try_into()
            .map_err(|_| TicketError::Limits(what))
    }

    fn long(&mut self, what: &'static str) -> Result<&'a [u8], TicketError> {
        let length = usize::from(u16::from_be_bytes(self.array(what)?));
        if length > MAX_PART {
            return Err(TicketError::Limits(what));
        }
        self.bytes(length, what)
    }

    fn count(&mut self, what: &'static str) -> Result<u8, TicketError> {
        let [n] = self.array(what)?;
        count(usize::from(n), what)
    }
}

fn count(n: usize, what: &'static str) -> Result<u8, TicketError> {
    u8::try_from(n)
        .ok()
        .filter(|_| (1..=MAX_LIST).contains(&n))
        .ok_or(TicketError::Limits(what))
}

fn push_u16(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes());
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(bytes);
    let hash: [u8; 32] = hasher.finalize().into();
    hash.first_chunk().copied().unwrap_or_default()
}
