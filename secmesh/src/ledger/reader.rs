//! Reading a ledger: front to back, in bounded memory, trusting nothing.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use ed25519_dalek::VerifyingKey;

use super::format::{
    self, BodyHead, HEADER, Hash, Header, LENGTH, MAX_BODY, TRAILER, Tail, body_head, body_length,
    chain_hash, classify_tail, signature_holds,
};
use super::record::Record;

/// Most bytes after the last good entry that are looked at; one commit writes less.
const MAX_TAIL: u64 = 4 << 20;

/// What is wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It could not be read.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// It does not begin like a ledger.
    #[error("it is not a secmesh ledger")]
    NotALedger,
    /// Its format is not known here.
    #[error("it has format {0}, which this secmesh does not know")]
    Version(u16),
    /// The header's key or signature is wrong.
    #[error("the header's signature is wrong")]
    HeaderSignature,
    /// Signed by another key than expected.
    #[error("it was signed with another key than the expected one")]
    WrongKey,
    /// An entry is not what the chain says.
    #[error("{0}")]
    Corrupt(&'static str),
    /// An entry's signature is wrong.
    #[error("the signature is wrong")]
    Signature,
}

/// Where a ledger is wrong and how.
#[derive(Debug, thiserror::Error)]
#[error("entry {entry} at byte {offset}: {what}")]
pub struct VerifyError {
    /// Number of the entry, from 1; 0 is the header.
    pub entry: u64,
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// What is wrong.
    pub what: Fault,
}

/// What a good ledger says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// How many entries there are.
    pub entries: u64,
    /// Time of the first, in unix microseconds.
    pub first_unix_us: Option<u64>,
    /// Time of the last, in unix microseconds.
    pub last_unix_us: Option<u64>,
    /// Chain hash of the last entry: stands for the whole content.
    pub head: [u8; 32],
    /// The node that wrote it.
    pub node_id: [u8; 16],
    /// Its public ledger key.
    pub key: [u8; 32],
    /// Bytes of an unfinished entry at the end: a crash, or a writer at work. 0 if there is none.
    pub torn_tail_bytes: u64,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub seq: u64,
    /// When it was written, in unix microseconds, by the node's clock.
    pub time_unix_us: u64,
    /// Kind of record, see [`Record::kind`].
    pub kind: u8,
    /// JSON of the record.
    pub payload: Vec<u8>,
}

impl Entry {
    /// Decodes the record.
    ///
    /// # Errors
    /// If the JSON is not a record this version knows.
    pub fn record(&self) -> Result<Record, serde_json::Error> {
        serde_json::from_slice(&self.payload)
    }
}

/// An entry whose place in the chain was checked.
pub(super) struct Link {
    pub head: BodyHead,
    pub offset: u64,
    pub chain: Hash,
    pub signature: [u8; 64],
}

pub(super) struct Reader {
    file: BufReader<File>,
    size: u64,
    pub(super) header: Header,
    /// Where the next entry begins.
    pub(super) offset: u64,
    /// Chain hash of the last one.
    pub(super) chain: Hash,
    pub(super) next_seq: u64,
    /// Bytes of a torn tail, once the end was reached.
    pub(super) torn: u64,
    body: Vec<u8>,
    done: bool,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, VerifyError> {
        let fail = |what| VerifyError {
            entry: 0,
            offset: 0,
            what,
        };
        let file = File::open(path).map_err(|e| fail(e.into()))?;
        // The size now; what a writer appends while we read is not looked at.
        let size = file.metadata().map_err(|e| fail(e.into()))?.len();
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut bytes = [0; HEADER];
        file.read_exact(&mut bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => fail(Fault::NotALedger),
            _ => fail(e.into()),
        })?;
        let header = format::decode_header(&bytes).map_err(fail)?;
        let chain = header.genesis;
        let offset = u64::try_from(HEADER).unwrap_or(u64::MAX);
        Ok(Self {
            file,
            size,
            header,
            offset,
            chain,
            next_seq: 1,
            torn: 0,
            body: Vec::new(),
            done: false,
        })
    }

    /// The next entry, its chain hash checked, its signature not. `None` at the end, torn or not.
    pub(super) fn next(&mut self) -> Result<Option<Link>, VerifyError> {
        if self.done {
            return Ok(None);
        }
        let result = self.step();
        // After a fault there is no next entry to speak of.
        self.done = !matches!(result, Ok(Some(_)));
        result.map_err(|what| VerifyError {
            entry: self.next_seq,
            offset: self.offset,
            what,
        })
    }

    /// The JSON of the entry [`Reader::next`] returned last.
    pub(super) fn payload(&self) -> &[u8] {
        body_head(&self.body).map_or(&[], |(_, payload)| payload)
    }

    fn step(&mut self) -> Result<Option<Link>, Fault> {
        let left = self.size.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        let mut length = [0; LENGTH];
        if left < 4 {
            return self.tail(left, &[]);
        }
        self.file.read_exact(&mut length)?;
        let Some(size) = body_length(length) else {
            return self.tail(left, &length);
        };
        let whole = u64::try_from(LENGTH + size + TRAILER).unwrap_or(u64::MAX);
        if whole > left {
            return self.tail(left, &length);
        }
        self.body.resize(size, 0);
        self.file.read_exact(&mut self.body)?;
        let mut chain: Hash = [0; 32];
        self.file.read_exact(&mut chain)?;
        let mut signature = [0; 64];
        self.file.read_exact(&mut signature)?;
        if chain != chain_hash(&self.chain, &self.body) {
            // Only the last commit before a power cut may be half there.
            let mut seen = length.to_vec();
            seen.extend_from_slice(&self.body);
            seen.extend_from_slice(&chain);
            seen.extend_from_slice(&signature);
            return self.tail(left, &seen);
        }
        let (head, _) = body_head(&self.body).ok_or(Fault::Corrupt("the entry is too short"))?;
        if head.seq != self.next_seq {
            return Err(Fault::Corrupt("the entry's number is out of order"));
        }
        let link = Link {
            head,
            offset: self.offset,
            chain,
            signature,
        };
        self.offset += whole;
        self.chain = chain;
        self.next_seq += 1;
        Ok(Some(link))
    }

    /// `left` bytes do not begin with a whole good entry; `seen` are those already read.
    fn tail(&mut self, left: u64, seen: &[u8]) -> Result<Option<Link>, Fault> {
        if left > MAX_TAIL {
            return Err(Fault::Corrupt(
                "the entry does not match the chain, and more follows than one write leaves",
            ));
        }
        let mut bytes = seen.to_vec();
        let rest = left.saturating_sub(u64::try_from(seen.len()).unwrap_or(u64::MAX));
        (&mut self.file).take(rest).read_to_end(&mut bytes)?;
        match classify_tail(&bytes, &self.chain, self.next_seq) {
            Tail::Torn => {
                self.torn = left;
                Ok(None)
            }
            Tail::Corrupt(what) => Err(Fault::Corrupt(what)),
        }
    }

    pub(super) fn signed(&self, link: &Link) -> Result<(), VerifyError> {
        if signature_holds(&self.header.key, &link.chain, &link.signature) {
            return Ok(());
        }
        Err(VerifyError {
            entry: link.head.seq,
            offset: link.offset,
            what: Fault::Signature,
        })
    }
}

/// Checks a ledger, or a copy of one, with the key its header names: structure, chain, and every
/// signature. Memory does not grow with the file. Reads while an agent writes are fine.
///
/// # Errors
/// [`VerifyError`] for the first thing that is wrong.
pub fn verify(path: &Path) -> Result<VerifyReport, VerifyError> {
    verify_with_key(path, None)
}

/// As [`verify`], and with `expected` the ledger must be signed with that key.
///
/// # Errors
/// As [`verify`], and [`Fault::WrongKey`].
pub fn verify_with_key(
    path: &Path,
    expected: Option<&VerifyingKey>,
) -> Result<VerifyReport, VerifyError> {
    let mut reader = Reader::open(path)?;
    if expected.is_some_and(|key| *key != reader.header.key) {
        return Err(VerifyError {
            entry: 0,
            offset: 0,
            what: Fault::WrongKey,
        });
    }
    let (mut first, mut last) = (None, None);
    while let Some(link) = reader.next()? {
        reader.signed(&link)?;
        first = first.or(Some(link.head.time_unix_us));
        last = Some(link.head.time_unix_us);
    }
    Ok(VerifyReport {
        entries: reader.next_seq - 1,
        first_unix_us: first,
        last_unix_us: last,
        head: reader.chain,
        node_id: reader.header.node_id,
        key: reader.header.key.to_bytes(),
        torn_tail_bytes: reader.torn,
    })
}

/// The entries of a ledger in order; see [`iter`].
pub struct Entries {
    reader: Reader,
}

impl Entries {
    /// The node that wrote the ledger.
    pub fn node_id(&self) -> [u8; 16] {
        self.reader.header.node_id
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, VerifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let link = match self.reader.next() {
            Ok(link) => link?,
            Err(e) => return Some(Err(e)),
        };
        let BodyHead {
            seq,
            time_unix_us,
            kind,
        } = link.head;
        Some(Ok(Entry {
            seq,
            time_unix_us,
            kind,
            payload: self.reader.payload().to_vec(),
        }))
    }
}

/// Reads a ledger entry by entry, checking the chain but not the signatures (the last signature
/// covers all; [`verify`] checks each). Ends before a torn tail, and after the first error.
///
/// # Errors
/// [`VerifyError`] if the file cannot be opened or its header is wrong.
pub fn iter(path: &Path) -> Result<Entries, VerifyError> {
    Reader::open(path).map(|reader| Entries { reader })
}

const _: () = assert!(
    MAX_BODY < 4 << 20,
    "a torn entry must fit into what is looked at"
);
