//! The bytes of a ledger; pure functions, no files.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::reader::Fault;

/// Largest JSON of one record, in bytes.
pub const MAX_PAYLOAD: usize = 256 * 1024;
pub(super) const HEADER: usize = 122;
/// Number, time and kind.
pub(super) const MIN_BODY: usize = 17;
pub(super) const MAX_BODY: usize = MIN_BODY + MAX_PAYLOAD;
pub(super) const LENGTH: usize = 4;
pub(super) const HASH: usize = 32;
/// Chain hash and signature.
pub(super) const TRAILER: usize = HASH + 64;

const MAGIC: [u8; 8] = *b"SECMLEDG";
const VERSION: u16 = 1;
const DOMAIN_HEADER: &[u8] = b"secmesh/ledger/header/1\0";
const DOMAIN_GENESIS: &[u8] = b"secmesh/ledger/genesis/1\0";
const DOMAIN_CHAIN: &[u8] = b"secmesh/ledger/entry/1\0";
const DOMAIN_SIGN: &[u8] = b"secmesh/ledger/signature/1\0";

pub(super) type Hash = [u8; HASH];

/// A header whose signature was checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub node_id: [u8; 16],
    pub key: VerifyingKey,
    /// What the first entry is chained to.
    pub genesis: Hash,
}

/// The fixed part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyHead {
    pub seq: u64,
    pub time_unix_us: u64,
    pub kind: u8,
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn signed(domain: &[u8], bytes: &[u8]) -> Vec<u8> {
    [domain, bytes].concat()
}

pub(super) fn encode_header(node_id: [u8; 16], key: &SigningKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&node_id);
    out.extend_from_slice(key.verifying_key().as_bytes());
    let signature = key.sign(&signed(DOMAIN_HEADER, &out));
    out.extend_from_slice(&signature.to_bytes());
    out
}

pub(super) fn decode_header(bytes: &[u8; HEADER]) -> Result<Header, Fault> {
    let (content, signature) = bytes.split_at(HEADER - 64);
    let mut rest = content;
    if take::<8>(&mut rest) != Some(MAGIC) {
        return Err(Fault::NotALedger);
    }
    let version = take(&mut rest)
        .map(u16::from_be_bytes)
        .ok_or(Fault::NotALedger)?;
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let node_id = take(&mut rest).ok_or(Fault::NotALedger)?;
    let key = take(&mut rest).ok_or(Fault::NotALedger)?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| Fault::HeaderSignature)?;
    let signature = Signature::from_slice(signature).map_err(|_| Fault::HeaderSignature)?;
    key.verify_strict(&signed(DOMAIN_HEADER, content), &signature)
        .map_err(|_| Fault::HeaderSignature)?;
    Ok(Header {
        node_id,
        key,
        genesis: sha256(&[DOMAIN_GENESIS, bytes]),
    })
}

/// Appends one entry to `out` and returns its chain hash. The caller has checked the payload's size.
pub(super) fn encode_entry(
    out: &mut Vec<u8>,
    key: &SigningKey,
    previous: &Hash,
    head: BodyHead,
    payload: &[u8],
) -> Hash {
    let length = u32::try_from(MIN_BODY + payload.len()).unwrap_or(u32::MAX);
    let mut body = Vec::with_capacity(MIN_BODY + payload.len());
    body.extend_from_slice(&head.seq.to_be_bytes());
    body.extend_from_slice(&head.time_unix_us.to_be_bytes());
    body.push(head.kind);
    body.extend_from_slice(payload);
    let chain = chain_hash(previous, &body);
    let signature = key.sign(&signed(DOMAIN_SIGN, &chain));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    out.extend_from_slice(&chain);
    out.extend_from_slice(&signature.to_bytes());
    chain
}

pub(super) fn chain_hash(previous: &Hash, body: &[u8]) -> Hash {
    sha256(&[DOMAIN_CHAIN, previous, body])
}

pub(super) fn signature_holds(key: &VerifyingKey, chain: &Hash, signature: &[u8; 64]) -> bool {
    key.verify_strict(
        &signed(DOMAIN_SIGN, chain),
        &Signature::from_bytes(signature),
    )
    .is_ok()
}

pub(super) fn body_head(body: &[u8]) -> Option<(BodyHead, &[u8])> {
    let mut rest = body;
    let seq = u64::from_be_bytes(take(&mut rest)?);
    let time_unix_us = u64::from_be_bytes(take(&mut rest)?);
    let [kind] = take(&mut rest)?;
    Some((
        BodyHead {
            seq,
            time_unix_us,
            kind,
        },
        rest,
    ))
}

/// A body length that is within the limits.
pub(super) fn body_length(bytes: [u8; LENGTH]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes))
        .ok()
        .filter(|n| (MIN_BODY..=MAX_BODY).contains(n))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

/// What bytes that are not a whole entry, at the physical end of the file, mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// The beginning of an entry that was never finished.
    Torn,
    /// Something that a crash does not leave behind.
    Corrupt(&'static str),
}

/// Tells an unfinished write from damage to entries that were finished, given all bytes after the
/// last good entry. A damaged length makes finished entries look unfinished; cutting them off would
/// lose what was acknowledged. So nothing counts as torn that has a whole entry in it.
pub(super) fn classify_tail(tail: &[u8], previous: &Hash, next_seq: u64) -> Tail {
    if holds_later_entry(tail, next_seq) {
        return Tail::Corrupt("an entry does not fit, but whole ones follow it");
    }
    // A power cut can leave blocks that were allocated and never written. A signature does not end
    // in 16 zero bytes, so this is not a finished entry.
    if tail.len() >= 16 && tail.iter().rev().take(16).all(|b| *b == 0) {
        return Tail::Torn;
    }
    let Some((length, rest)) = tail.split_first_chunk::<LENGTH>() else {
        return Tail::Torn;
    };
    let Some(length) = body_length(*length) else {
        return Tail::Corrupt("the entry's length is impossible");
    };
    if rest.len() >= length + TRAILER {
        return Tail::Corrupt("the chain hash does not match");
    }
    if rest
        .first_chunk::<8>()
        .is_some_and(|seq| u64::from_be_bytes(*seq) != next_seq)
    {
        return Tail::Corrupt("the entry's number is out of order");
    }
    let whole_but_for_its_length = rest
        .split_last_chunk::<TRAILER>()
        .is_some_and(|(body, trailer)| trailer.starts_with(&chain_hash(previous, body)));
    if whole_but_for_its_length {
        return Tail::Corrupt("the entry's length is wrong");
    }
    Tail::Torn
}

/// Looks for an entry further on that is chained to whatever stands before it.
fn holds_later_entry(tail: &[u8], next_seq: u64) -> bool {
    let least = LENGTH + MIN_BODY + TRAILER;
    let span = u64::try_from(tail.len() / least).unwrap_or(u64::MAX);
    (TRAILER..tail.len().saturating_sub(least - 1)).any(|at| {
        let Some((before, here)) = tail.split_at_checked(at) else {
            return false;
        };
        let Some((length, rest)) = here.split_first_chunk::<LENGTH>() else {
            return false;
        };
        let Some(length) = body_length(*length) else {
            return false;
        };
        // The cheap test first: only a number that can follow is worth hashing for.
        let follows = rest
            .first_chunk::<8>()
            .map(|seq| u64::from_be_bytes(*seq))
            .is_some_and(|seq| seq > next_seq && seq <= next_seq.saturating_add(span));
        if !follows {
            return false;
        }
        let Some((body, after)) = rest.split_at_checked(length) else {
            return false;
        };
        let Some((_, trailer)) = before.split_last_chunk::<TRAILER>() else {
            return false;
        };
        let Some(previous) = trailer.first_chunk::<HASH>() else {
            return false;
        };
        after.len() >= TRAILER && after.starts_with(&chain_hash(previous, body))
    })
}
