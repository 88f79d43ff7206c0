//! Reading one segment, of which the whole is in memory; trusting nothing.

use super::fault::Fault;
use super::format::{
    self, BodyHead, Broken, Content, Header, Seal, Tail, classify_tail, decode_frame, seal_holds,
};
use crate::merkle::{Frontier, Hash};

/// Most bytes of a segment: the largest that can be configured, and the commit that fills it.
pub(super) const MAX_SEGMENT: u64 = (64 << 20) + (4 << 20);
/// Most bytes after the last seal; one commit writes less.
pub(super) const MAX_TAIL: usize = 4 << 20;

/// An entry that a seal covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryRef<'a> {
    pub head: BodyHead,
    pub payload: &'a [u8],
    pub leaf: Hash,
}

/// Who wants to know what is in a segment.
pub(super) trait Visit {
    /// A segment begins.
    fn segment(&mut self, _header: &Header) {}
    /// An entry that a seal covers.
    fn entry(&mut self, _entry: &EntryRef<'_>) {}
    /// The seal behind those entries.
    fn sealed(&mut self, _seal: &Seal) {}
}

/// Calls a closure for each entry.
pub(super) struct Each<F>(pub F);

impl<F: FnMut(&EntryRef<'_>)> Visit for Each<F> {
    fn entry(&mut self, entry: &EntryRef<'_>) {
        (self.0)(entry);
    }
}

/// What a good segment says.
#[derive(Debug)]
pub(super) struct Scan {
    pub header: Header,
    /// The log up to the last seal.
    pub sealed: Frontier,
    pub last_seal: Option<Seal>,
    /// Where the last sealed entry ends, in bytes.
    pub end: usize,
    /// Bytes behind it: an unfinished write.
    pub torn: usize,
}

/// Where in the segment it is wrong.
#[derive(Debug)]
pub(super) struct SegmentFault {
    pub entry: u64,
    pub offset: usize,
    pub what: Fault,
}

/// Checks a segment: the header, each entry, the root in each seal, and the signature of the last one,
/// which covers everything before it. `visit` is told of each entry once a seal covers it.
pub(super) fn scan(bytes: &[u8], visit: &mut impl Visit) -> Result<Scan, SegmentFault> {
    let header = format::decode_header(bytes).map_err(|what| SegmentFault {
        entry: 0,
        offset: 0,
        what,
    })?;
    visit.segment(&header);
    let mut frontier = header.start.clone();
    let mut scan = Scan {
        sealed: frontier.clone(),
        end: header.length,
        header,
        last_seal: None,
        torn: 0,
    };
    let mut at = scan.end;
    let mut waiting: Vec<EntryRef<'_>> = Vec::new();
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let fail = |entry, what| SegmentFault {
            entry,
            offset: at,
            what: Fault::Corrupt(what),
        };
        let next = frontier.size().saturating_add(1);
        let (content, length) = match decode_frame(rest) {
            Ok(found) => found,
            Err(broken) => {
                torn(bytes, &mut scan, rest, next, broken).map_err(|what| fail(next, what))?;
                break;
            }
        };
        match content {
            Content::Entry {
                head,
                payload,
                leaf,
            } => {
                if head.seq != next {
                    return Err(fail(next, "the entry's number is out of order"));
                }
                frontier.push_hash(leaf);
                waiting.push(EntryRef {
                    head,
                    payload,
                    leaf,
                });
            }
            Content::Seal(seal) => {
                let entry = frontier.size();
                if seal.size != entry || seal.root != frontier.root() {
                    return Err(fail(entry, "the entries are not those that were signed"));
                }
                waiting.drain(..).for_each(|entry| visit.entry(&entry));
                visit.sealed(&seal);
                scan.sealed.clone_from(&frontier);
                scan.last_seal = Some(seal);
                scan.end = at.saturating_add(length);
            }
        }
        at = at.saturating_add(length);
    }
    // Whole entries without a seal are an unfinished write too.
    scan.torn = bytes.len().saturating_sub(scan.end);
    if scan.torn > MAX_TAIL {
        return Err(SegmentFault {
            entry: scan.sealed.size().saturating_add(1),
            offset: scan.end,
            what: Fault::Corrupt("more follows the last signature than one write leaves"),
        });
    }
    if let Some(seal) = &scan.last_seal
        && !seal_holds(&scan.header, seal)
    {
        return Err(SegmentFault {
            entry: seal.size,
            offset: scan.end,
            what: Fault::Signature,
        });
    }
    Ok(scan)
}

/// Whether `rest`, which does not begin with a whole good frame, is what a crash leaves.
fn torn(
    bytes: &[u8],
    scan: &mut Scan,
    rest: &[u8],
    next: u64,
    broken: Broken,
) -> Result<(), &'static str> {
    if bytes.len().saturating_sub(scan.end) > MAX_TAIL {
        return Err("the entry is broken, and more follows than one write leaves");
    }
    match (classify_tail(rest, next), broken) {
        (Tail::Torn, _) => Ok(()),
        (Tail::Corrupt(_), Broken::Bad(what)) | (Tail::Corrupt(what), Broken::Short) => Err(what),
    }
}
