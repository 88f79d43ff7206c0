//! The bytes of a ledger; pure functions, no files.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::checkpoint::Checkpoint;
use super::fault::Fault;
use crate::merkle::{Frontier, Hash, leaf_hash};
use crate::mesh::pq::{PUBLIC_KEY, PqPublic};

/// Largest JSON of one record, in bytes.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// Number, time and kind.
pub(super) const MIN_BODY: usize = 17;
pub(super) const MAX_BODY: usize = MIN_BODY + MAX_PAYLOAD;
/// Length and kind of a frame.
pub(super) const FRAME: usize = 5;
pub(super) const CHECK: usize = 8;
/// Size, root and signature.
pub(super) const SEAL: usize = 8 + 32 + 64;

const MAGIC: [u8; 8] = *b"SECMLEDG";
const VERSION: u16 = 2;
const DOMAIN_HEADER: &[u8] = b"secmesh/ledger/header/2\0";
const DOMAIN_SEAL: &[u8] = b"secmesh/ledger/seal/2\0";
const KIND_ENTRY: u8 = 1;
const KIND_SEAL: u8 = 2;

/// A header whose signature was checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub node_id: [u8; 16],
    pub key: VerifyingKey,
    pub pq: PqPublic,
    /// The log before the segment's first entry.
    pub start: Frontier,
    /// Length of the header in bytes.
    pub length: usize,
}

/// The fixed part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyHead {
    pub seq: u64,
    pub time_unix_us: u64,
    pub kind: u8,
}

/// The node's signature over all entries so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    pub size: u64,
    pub root: Hash,
    /// Over [`Checkpoint::text`], as in a signed note.
    pub signature: [u8; 64],
}

pub(super) fn encode_header(
    node_id: [u8; 16],
    key: &SigningKey,
    pq: &PqPublic,
    start: &Frontier,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&node_id);
    out.extend_from_slice(key.verifying_key().as_bytes());
    out.extend_from_slice(pq.as_bytes());
    out.extend_from_slice(&start.size().to_be_bytes());
    for peak in start.peaks() {
        out.extend_from_slice(peak);
    }
    let signature = key.sign(&[DOMAIN_HEADER, &out].concat());
    out.extend_from_slice(&signature.to_bytes());
    out
}

pub(super) fn decode_header(bytes: &[u8]) -> Result<Header, Fault> {
    let mut rest = bytes;
    if take::<8>(&mut rest) != Some(MAGIC) {
        return Err(Fault::NotALedger);
    }
    let version = take(&mut rest)
        .map(u16::from_be_bytes)
        .ok_or(Fault::NotALedger)?;
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let cut = Fault::HeaderSignature;
    let (Some(node_id), Some(key)) = (take(&mut rest), take(&mut rest)) else {
        return Err(cut);
    };
    let (Some(pq), Some(size)) = (take::<PUBLIC_KEY>(&mut rest), take(&mut rest)) else {
        return Err(cut);
    };
    let size = u64::from_be_bytes(size);
    let mut peaks = Vec::new();
    for _ in 0..size.count_ones() {
        peaks.push(take(&mut rest).ok_or(Fault::HeaderSignature)?);
    }
    let content = bytes.len().saturating_sub(rest.len());
    let signature = take(&mut rest).ok_or(Fault::HeaderSignature)?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| Fault::HeaderSignature)?;
    let signed = [DOMAIN_HEADER, bytes.get(..content).unwrap_or_default()].concat();
    key.verify_strict(&signed, &Signature::from_bytes(&signature))
        .map_err(|_| Fault::HeaderSignature)?;
    Ok(Header {
        node_id,
        key,
        pq: PqPublic::from_bytes(&pq).map_err(|_| Fault::HeaderSignature)?,
        start: Frontier::resume(size, peaks).ok_or(Fault::HeaderSignature)?,
        length: bytes.len().saturating_sub(rest.len()),
    })
}

fn frame(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]], check: &Hash) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    out.push(kind);
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend(check.iter().take(CHECK));
}

/// The leaf of an entry.
pub(super) fn encode_body(head: BodyHead, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(MIN_BODY + payload.len());
    body.extend_from_slice(&head.seq.to_be_bytes());
    body.extend_from_slice(&head.time_unix_us.to_be_bytes());
    body.push(head.kind);
    body.extend_from_slice(payload);
    body
}

/// Appends one entry to `out` and returns its leaf hash. The caller has checked the payload's size.
pub(super) fn encode_entry(out: &mut Vec<u8>, head: BodyHead, payload: &[u8]) -> Hash {
    let body = encode_body(head, payload);
    let leaf = leaf_hash(&body);
    frame(out, KIND_ENTRY, &[&body], &leaf);
    leaf
}

fn seal_check(payload: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN_SEAL);
    hasher.update(payload);
    hasher.finalize().into()
}

/// Appends the signature over everything so far.
pub(super) fn encode_seal(
    out: &mut Vec<u8>,
    key: &SigningKey,
    node_id: &[u8; 16],
    size: u64,
    root: Hash,
) -> Seal {
    let text = Checkpoint::of(node_id, size, root).text();
    let seal = Seal {
        size,
        root,
        signature: key.sign(text.as_bytes()).to_bytes(),
    };
    let payload = [
        seal.size.to_be_bytes().as_slice(),
        &seal.root,
        &seal.signature,
    ]
    .concat();
    frame(out, KIND_SEAL, &[&payload], &seal_check(&payload));
    seal
}

pub(super) fn seal_holds(header: &Header, seal: &Seal) -> bool {
    let text = Checkpoint::of(&header.node_id, seal.size, seal.root).text();
    header
        .key
        .verify_strict(text.as_bytes(), &Signature::from_bytes(&seal.signature))
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

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

/// What a whole frame holds; its check was compared.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Entry {
        head: BodyHead,
        payload: &'a [u8],
        leaf: Hash,
    },
    Seal(Seal),
}

/// Why the bytes do not begin with a whole good frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// They end inside it.
    Short,
    /// They do not.
    Bad(&'static str),
}

/// The payload of a possible frame by its first bytes: how long, and of which kind.
fn frame_head(bytes: &[u8]) -> Result<(usize, u8), Broken> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(Broken::Short)?;
    let kind = *rest.first().ok_or(Broken::Short)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    match kind {
        KIND_ENTRY if (MIN_BODY..=MAX_BODY).contains(&length) => Ok((length, kind)),
        KIND_SEAL if length == SEAL => Ok((length, kind)),
        KIND_ENTRY | KIND_SEAL => Err(Broken::Bad("the entry's length is impossible")),
        _ => Err(Broken::Bad("neither an entry nor a seal begins here")),
    }
}

/// Reads one frame; returns it and how long it is.
pub(super) fn decode_frame(bytes: &[u8]) -> Result<(Content<'_>, usize), Broken> {
    let (length, kind) = frame_head(bytes)?;
    let whole = FRAME + length + CHECK;
    let body = bytes.get(FRAME..FRAME + length).ok_or(Broken::Short)?;
    let check = bytes.get(FRAME + length..whole).ok_or(Broken::Short)?;
    let content = content(kind, body, check)?;
    Ok((content, whole))
}

fn content<'a>(kind: u8, body: &'a [u8], check: &[u8]) -> Result<Content<'a>, Broken> {
    let bad = Broken::Bad("the entry does not match its checksum");
    if kind == KIND_ENTRY {
        let leaf = leaf_hash(body);
        let (head, payload) = body_head(body).ok_or(Broken::Short)?;
        return if leaf.starts_with(check) {
            Ok(Content::Entry {
                head,
                payload,
                leaf,
            })
        } else {
            Err(bad)
        };
    }
    if !seal_check(body).starts_with(check) {
        return Err(bad);
    }
    let mut rest = body;
    let (Some(size), Some(root), Some(signature)) =
        (take(&mut rest), take(&mut rest), take(&mut rest))
    else {
        return Err(Broken::Short);
    };
    Ok(Content::Seal(Seal {
        size: u64::from_be_bytes(size),
        root,
        signature,
    }))
}

/// What the bytes after the last good seal mean, of which the first does not begin a whole good frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// The beginning of a write that was never finished.
    Torn,
    /// Something that a crash does not leave behind.
    Corrupt(&'static str),
}

/// Tells an unfinished write from damage to what was finished, given all bytes from the first broken
/// frame to the end. A damaged length makes finished entries look unfinished; cutting them off would
/// lose what was acknowledged. So nothing counts as torn that has a whole entry or seal behind it.
pub(super) fn classify_tail(tail: &[u8], next_seq: u64) -> Tail {
    if holds_later_frame(tail, next_seq) {
        return Tail::Corrupt("an entry does not fit, but whole ones follow it");
    }
    // A power cut can leave blocks that were allocated and never written. A hash does not end in
    // eight zero bytes behind eight more, so this is not a finished frame.
    if tail.len() >= 16 && tail.iter().rev().take(16).all(|b| *b == 0) {
        return Tail::Torn;
    }
    match frame_head(tail) {
        Err(Broken::Short) => return Tail::Torn,
        Err(Broken::Bad(what)) => return Tail::Corrupt(what),
        Ok((length, _)) if tail.len() >= FRAME + length + CHECK => {
            return Tail::Corrupt("the entry does not match its checksum");
        }
        Ok(_) => {}
    }
    let whole_but_for_its_length = tail
        .get(FRAME..)
        .and_then(|rest| rest.split_last_chunk::<CHECK>())
        .is_some_and(|(body, check)| {
            leaf_hash(body).starts_with(check) || seal_check(body).starts_with(check)
        });
    if whole_but_for_its_length {
        return Tail::Corrupt("the entry's length is wrong");
    }
    Tail::Torn
}

/// Looks for a whole frame further on.
fn holds_later_frame(tail: &[u8], next_seq: u64) -> bool {
    let least = FRAME + MIN_BODY + CHECK;
    let span = u64::try_from(tail.len() / least)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let latest = next_seq.saturating_add(span);
    (1..tail.len().saturating_sub(least - 1)).any(|at| {
        let Some(here) = tail.get(at..) else {
            return false;
        };
        // The cheap test first: only a number that can follow is worth hashing for. An entry's body
        // begins with its number, a seal's with that of the last entry.
        frame_head(here).is_ok()
            && here
                .get(FRAME..)
                .and_then(|rest| rest.first_chunk())
                .map(|number| u64::from_be_bytes(*number))
                .is_some_and(|number| number >= next_seq.saturating_sub(1) && number <= latest)
            && decode_frame(here).is_ok()
    })
}
