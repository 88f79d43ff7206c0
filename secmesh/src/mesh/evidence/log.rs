//! The logs of all authors: a set that only grows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::statement::{SignedHead, Statement};
use crate::merkle;
use crate::mesh::crypto;
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::roster::MAX_NODES;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const FRONTIER_TAG: &str = "secmesh/frontier/1";
/// Bytes that are counted for a statement beside its encoding.
const OVERHEAD: usize = 256;

/// How far a log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LogHead {
    /// Statements in it.
    pub size: u64,
    /// Its root.
    pub root: Hash,
}

/// How far every log goes: two nodes with the same frontier know the same statements. An epoch record names
/// the one that its weights were folded from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Frontier(BTreeMap<NodeId, LogHead>);

impl Frontier {
    /// The logs, by author. Empty ones are not there.
    pub const fn logs(&self) -> &BTreeMap<NodeId, LogHead> {
        &self.0
    }

    /// Statements of `author` in it.
    pub fn size(&self, author: &NodeId) -> u64 {
        self.0.get(author).map_or(0, |head| head.size)
    }

    /// Sets how far one log goes.
    ///
    /// # Errors
    /// [`WireError::TooLong`] beyond [`MAX_NODES`] logs.
    pub fn set(&mut self, author: NodeId, head: LogHead) -> Result<(), WireError> {
        if self.0.len() >= MAX_NODES && !self.0.contains_key(&author) {
            return Err(WireError::TooLong {
                field: "frontier",
                len: self.0.len() + 1,
                max: MAX_NODES,
            });
        }
        self.0.insert(author, head);
        Ok(())
    }

    /// The logs of these authors.
    #[must_use]
    pub fn of(&self, wanted: impl Fn(&NodeId) -> bool) -> Self {
        let logs = self.0.iter().filter(|(author, _)| wanted(author));
        Self(logs.map(|(author, head)| (*author, *head)).collect())
    }

    /// Whether no author's log is shorter here than in `before`, and none of the same length another:
    /// evidence is never taken back.
    pub fn continues(&self, before: &Self) -> bool {
        before.0.iter().all(|(author, old)| {
            self.0
                .get(author)
                .is_some_and(|new| new.size > old.size || new == old)
        })
    }

    /// The longer of both for each author; `self` where they are of one length.
    #[must_use]
    pub fn joined(mut self, other: &Self) -> Self {
        for (author, head) in &other.0 {
            if self.size(author) < head.size
                && (self.0.len() < MAX_NODES || self.0.contains_key(author))
            {
                self.0.insert(*author, *head);
            }
        }
        self
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(FRONTIER_TAG);
        self.write_logs(&mut e);
        e.finish()
    }

    /// The logs without a tag, as they are inside an epoch record.
    pub(in crate::mesh) fn write_logs(&self, e: &mut Encoder) {
        e.u16(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        for (author, head) in &self.0 {
            e.fixed(author.as_bytes())
                .u64(head.size)
                .fixed(head.root.as_bytes());
        }
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(FRONTIER_TAG)?;
        Self::read_logs(d)
    }

    /// Reads [`Frontier::write_logs`].
    pub(in crate::mesh) fn read_logs(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        let count = usize::from(d.u16("number of logs")?);
        if count > MAX_NODES {
            return Err(WireError::TooLong {
                field: "frontier",
                len: count,
                max: MAX_NODES,
            });
        }
        let mut logs = BTreeMap::new();
        let mut last = None;
        for _ in 0..count {
            let author = NodeId(d.fixed("author")?);
            let head = LogHead {
                size: d.u64("size")?,
                root: Hash(d.fixed("root")?),
            };
            if last.is_some_and(|last| last >= author) || head.size == 0 {
                return Err(WireError::Invalid {
                    field: "frontier",
                    why: "authors not in ascending order, or an empty log",
                });
            }
            last = Some(author);
            logs.insert(author, head);
        }
        Ok(Self(logs))
    }

    /// Reads [`Frontier::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let frontier = Self::read(&mut d)?;
        d.finish()?;
        Ok(frontier)
    }

    /// SHA-256 of the canonical bytes.
    pub fn hash(&self) -> Hash {
        Hash(crypto::sha256(&self.to_bytes()))
    }
}

/// What came of offering a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// It is new.
    New,
    /// It was known.
    Known,
    /// Statements before it are missing; so many are known.
    Gap(u64),
    /// Another statement of the author has this number: both signed heads, which prove a lie if both
    /// signatures are good.
    Conflict(Box<(SignedHead, SignedHead)>),
    /// It does not continue the author's log as it is known here: there are two histories, and the
    /// statement before this one will prove it.
    OtherHistory,
    /// The author has used up its room.
    Full,
}

#[derive(Debug, Clone)]
struct Log {
    tree: merkle::Frontier,
    /// Root of the tree.
    root: Hash,
    statements: Vec<Arc<Statement>>,
    bytes: usize,
}

/// All statements that are known, at most one per author and number.
#[derive(Debug, Clone)]
pub struct EvidenceSet {
    mesh: MeshId,
    logs: BTreeMap<NodeId, Log>,
}

impl EvidenceSet {
    /// The empty set of a mesh.
    pub const fn new(mesh: MeshId) -> Self {
        Self {
            mesh,
            logs: BTreeMap::new(),
        }
    }

    /// The mesh.
    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Statements of all authors.
    pub fn len(&self) -> usize {
        self.logs.values().map(|log| log.statements.len()).sum()
    }

    /// Whether nothing was said yet.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Bytes that an author takes up.
    pub fn bytes_of(&self, author: &NodeId) -> usize {
        self.logs.get(author).map_or(0, |log| log.bytes)
    }

    /// How far one log goes.
    pub fn head(&self, author: &NodeId) -> LogHead {
        self.logs.get(author).map_or_else(
            || LogHead {
                size: 0,
                root: Hash(merkle::empty_root()),
            },
            |log| LogHead {
                size: log.tree.size(),
                root: log.root,
            },
        )
    }

    /// The root that a log had at an earlier size.
    pub fn root_at(&self, author: &NodeId, size: u64) -> Option<Hash> {
        let head = self.head(author);
        if size == head.size {
            return Some(head.root);
        }
        self.get(author, size).map(|next| next.head().before)
    }

    /// How far all logs go.
    pub fn frontier(&self) -> Frontier {
        Frontier(
            self.logs
                .keys()
                .map(|author| (*author, self.head(author)))
                .collect(),
        )
    }

    /// [`Frontier::hash`] of [`EvidenceSet::frontier`].
    pub fn frontier_hash(&self) -> Hash {
        self.frontier().hash()
    }

    /// Whether everything up to `frontier` is known here, with the same roots.
    pub fn covers(&self, frontier: &Frontier) -> bool {
        frontier
            .logs()
            .iter()
            .all(|(author, head)| self.root_at(author, head.size) == Some(head.root))
    }

    /// As much of `frontier` as is known here: for what is shown while the rest is on its way.
    #[must_use]
    pub fn known_part(&self, frontier: &Frontier) -> Frontier {
        let known = frontier.logs().iter().filter_map(|(author, head)| {
            let size = head.size.min(self.head(author).size);
            let root = self.root_at(author, size)?;
            (size > 0).then_some((*author, LogHead { size, root }))
        });
        Frontier(known.collect())
    }

    /// Who has stated something.
    pub fn authors(&self) -> impl Iterator<Item = &NodeId> {
        self.logs.keys()
    }

    /// Forgets an author's log, because the mesh has certified another history of it, or rests on none.
    pub fn drop_log(&mut self, author: &NodeId) {
        self.logs.remove(author);
    }

    /// Forgets what an author has stated beyond its first `size` statements.
    pub fn shorten_log(&mut self, author: &NodeId, size: u64) {
        let Some(log) = self.logs.remove(author) else {
            return;
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let kept: Vec<Arc<Statement>> = log.statements.into_iter().take(size).collect();
        if kept.is_empty() {
            return;
        }
        let mut tree = merkle::Frontier::default();
        let mut bytes = 0;
        for statement in &kept {
            tree.push(&statement.head().to_bytes());
            bytes += statement.to_bytes().len() + OVERHEAD;
        }
        let root = Hash(tree.root());
        self.logs.insert(
            *author,
            Log {
                tree,
                root,
                statements: kept,
                bytes,
            },
        );
    }

    /// The statement of an author with this number.
    pub fn get(&self, author: &NodeId, sequence: u64) -> Option<&Arc<Statement>> {
        let at = usize::try_from(sequence).ok()?;
        self.logs.get(author)?.statements.get(at)
    }

    /// An author's statements from one number up to, not including, another.
    pub fn range(
        &self,
        author: &NodeId,
        from: u64,
        until: u64,
    ) -> impl Iterator<Item = &Arc<Statement>> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let until = usize::try_from(until).unwrap_or(usize::MAX);
        self.logs
            .get(author)
            .and_then(|log| {
                let until = until.min(log.statements.len());
                log.statements.get(from.min(until)..until)
            })
            .unwrap_or_default()
            .iter()
    }

    /// All statements, by author and number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.logs.values().flat_map(|log| &log.statements)
    }

    /// Whether this very statement is known.
    pub fn contains(&self, statement: &Statement) -> bool {
        let head = statement.head();
        self.get(&head.author, head.sequence)
            .is_some_and(|known| known.head() == head)
    }

    /// Adds a statement whose signature (and mesh) the caller has checked; an author may take up
    /// `max_bytes`.
    pub fn insert(&mut self, statement: Statement, max_bytes: usize) -> Inserted {
        let head = *statement.head();
        let known = self.head(&head.author);
        if head.sequence < known.size {
            let Some(held) = self.get(&head.author, head.sequence) else {
                return Inserted::Known;
            };
            return if *held.head() == head {
                Inserted::Known
            } else {
                Inserted::Conflict(Box::new((held.signed, statement.signed)))
            };
        }
        if head.sequence > known.size {
            return Inserted::Gap(known.size);
        }
        if head.before != known.root {
            return Inserted::OtherHistory;
        }
        let size = statement.to_bytes().len() + OVERHEAD;
        if self.bytes_of(&head.author).saturating_add(size) > max_bytes
            || (self.logs.len() >= MAX_NODES && !self.logs.contains_key(&head.author))
        {
            return Inserted::Full;
        }
        let log = self.logs.entry(head.author).or_insert_with(|| Log {
            tree: merkle::Frontier::default(),
            root: known.root,
            statements: Vec::new(),
            bytes: 0,
        });
        log.tree.push(&head.to_bytes());
        log.root = Hash(log.tree.root());
        log.bytes += size;
        log.statements.push(Arc::new(statement));
        Inserted::New
    }
}
