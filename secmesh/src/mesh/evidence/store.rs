//! The statements on the disk: one file that is only appended to.
//!
//! ```text
//! evidence.log  tag | mesh id 32 | node id 16 | each: length u32, statement, first 8 bytes of its SHA-256
//! ```
//! A node's own statement is on the disk before it leaves: two statements under one number are a lie,
//! whatever the reason. What this node has let go of is left out when the file is written anew
//! ([`EvidenceFile::rewrite`]). A crash leaves a last record cut off, which is taken away at the next start; damage
//! before the end is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::log::EvidenceSet;
use super::statement::MAX_STATEMENT;
use crate::mesh::crypto::sha256;
use crate::mesh::ids::{MeshId, NodeId};
use crate::mesh::wire::Encoder;

/// Its name in the state directory.
pub const EVIDENCE_FILE: &str = "evidence.log";
const TAG: &str = "secmesh/evidence-log/1";
/// The tag up to the version.
const TAG_START: &[u8] = b"secmesh/evidence-log/";
const CHECKSUM: usize = 8;
/// Largest file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 30;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceFileError {
    /// I/O.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is of another version.
    #[error("{} is of version {found}, this program knows version 1: run the program that wrote it, or move the file away, and this node learns the statements again from its peers", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// It is another node's.
    #[error("{} belongs to another node or mesh; each node has its own state directory", path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
    },
    /// It was changed.
    #[error("{} is damaged at byte {at}: {why}; move it away, and this node learns the statements again from its peers. Do not put an older copy in its place: this node would say other things under numbers that it has used, which counts as a lie", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// The open file.
#[derive(Debug)]
pub struct EvidenceFile {
    path: PathBuf,
    file: File,
    /// Whether something was appended that the disk may not have yet.
    unsynced: bool,
    /// Where the next record begins.
    end: u64,
    /// Whose it is.
    header: (MeshId, NodeId),
    /// What was written of a record that failed could not be taken back: behind it nothing can be written.
    failed: bool,
}

/// What was in the file.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The statements' bytes, in the order in which they were learned.
    pub statements: Vec<Vec<u8>>,
    /// Whether the file was there: only then is it sure that this node has said nothing else.
    pub existed: bool,
    /// Bytes of an unfinished record that were cut off.
    pub truncated: u64,
}

fn header(mesh: MeshId, node: NodeId) -> Vec<u8> {
    let mut e = Encoder::tagged(TAG);
    e.fixed(mesh.as_bytes()).fixed(node.as_bytes());
    e.finish()
}

/// A statement's record.
fn encoded(statement: &[u8]) -> Vec<u8> {
    let len = u32::try_from(statement.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(statement);
    bytes.extend_from_slice(&checksum(statement));
    bytes
}

/// Bytes that statements take up in a file.
pub fn stored_bytes(set: &EvidenceSet) -> u64 {
    set.iter()
        .map(|statement| len64(4 + statement.to_bytes().len() + CHECKSUM))
        .sum()
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let sum = sha256(bytes);
    let mut first = [0; CHECKSUM];
    for (to, from) in first.iter_mut().zip(sum) {
        *to = from;
    }
    first
}

/// A statement, and what comes after its record; or what is wrong with it.
type Record<'a> = Result<(&'a [u8], &'a [u8]), &'static str>;

/// The next record, if it is whole.
fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    if len > MAX_STATEMENT {
        return Some(Err("a record is longer than any can be"));
    }
    let (statement, rest) = rest.split_at_checked(len)?;
    let (sum, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    if checksum(statement) != *sum {
        // Cut off by a crash, if nothing follows: file systems write blocks in any order.
        return (!rest.is_empty()).then_some(Err("a record's checksum is wrong"));
    }
    Some(Ok((statement, rest)))
}

impl EvidenceFile {
    /// Opens or makes the file in `dir`, and reads it.
    ///
    /// # Errors
    /// [`EvidenceFileError`].
    pub fn open(
        dir: &Path,
        mesh: MeshId,
        node: NodeId,
    ) -> Result<(Self, Recovered), EvidenceFileError> {
        let path = dir.join(EVIDENCE_FILE);
        let io = |source| EvidenceFileError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(io)?;
        if file.metadata().map_err(io)?.len() > MAX_FILE {
            return Err(EvidenceFileError::Damaged {
                path,
                at: MAX_FILE,
                why: "longer than it can be",
            });
        }
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let header = header(mesh, node);
        if header.starts_with(&bytes) && bytes.len() < header.len() {
            // New, or a crash while it was made: nothing was said yet.
            let existed = !bytes.is_empty();
            file.set_len(0).map_err(io)?;
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            file.write_all(&header).map_err(io)?;
            file.sync_all().map_err(io)?;
            File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
            let end = len64(header.len());
            let recovered = Recovered {
                existed,
                ..Recovered::default()
            };
            return Ok((Self::at(path, file, end, (mesh, node)), recovered));
        }
        let Some(mut rest) = bytes.strip_prefix(header.as_slice()) else {
            return Err(wrong_header(path, &bytes));
        };
        let mut recovered = Recovered {
            existed: true,
            ..Recovered::default()
        };
        let mut end = len64(header.len());
        // A file system may have made a file longer and not written what belongs there.
        while !rest.iter().all(|b| *b == 0)
            && let Some(read) = record(rest)
        {
            let (statement, after) = read.map_err(|why| EvidenceFileError::Damaged {
                path: path.clone(),
                at: end,
                why,
            })?;
            end += len64(rest.len() - after.len());
            recovered.statements.push(statement.to_vec());
            rest = after;
        }
        recovered.truncated = len64(rest.len());
        if !rest.is_empty() {
            file.set_len(end).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        Ok((Self::at(path, file, end, (mesh, node)), recovered))
    }

    const fn at(path: PathBuf, file: File, end: u64, header: (MeshId, NodeId)) -> Self {
        Self {
            path,
            file,
            unsynced: false,
            failed: false,
            end,
            header,
        }
    }

    /// Waits until the disk has everything that was appended.
    ///
    /// # Errors
    /// I/O.
    pub fn sync(&mut self) -> Result<(), EvidenceFileError> {
        if self.unsynced {
            self.file
                .sync_data()
                .map_err(|source| EvidenceFileError::Io {
                    path: self.path.clone(),
                    source,
                })?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Its length, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.end
    }

    /// Puts a file with these statements, each with its author's earlier ones before it, in the place of this one.
    ///
    /// # Errors
    /// I/O, or [`EvidenceFileError::Damaged`] where they are more than a file holds; the file is as it was then.
    pub fn rewrite(
        &mut self,
        statements: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), EvidenceFileError> {
        let temp = self.path.with_extension("log.new");
        let io = |source| EvidenceFileError::Io {
            path: temp.clone(),
            source,
        };
        let written = self.write_new(&temp, statements);
        let renamed = written.and_then(|(file, end)| {
            std::fs::rename(&temp, &self.path).map_err(io)?;
            Ok((file, end))
        });
        let (file, end) = renamed.inspect_err(|_| {
            // Written again from the start next time, should it stay.
            drop(std::fs::remove_file(&temp));
        })?;
        *self = Self::at(self.path.clone(), file, end, self.header);
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)
    }

    fn write_new(
        &self,
        temp: &Path,
        statements: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(File, u64), EvidenceFileError> {
        let io = |source| EvidenceFileError::Io {
            path: temp.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(temp)
            .map_err(io)?;
        let header = header(self.header.0, self.header.1);
        let mut end = len64(header.len());
        let mut out = io::BufWriter::new(file);
        out.write_all(&header).map_err(io)?;
        for statement in statements {
            let bytes = encoded(&statement);
            end += len64(bytes.len());
            if end > MAX_FILE {
                return Err(EvidenceFileError::Damaged {
                    path: self.path.clone(),
                    at: end,
                    why: "what is to be kept is longer than it can be",
                });
            }
            out.write_all(&bytes).map_err(io)?;
        }
        let file = out.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok((file, end))
    }

    /// Appends a statement; `durable` waits until the disk has it, and with it all before.
    ///
    /// # Errors
    /// I/O, or [`EvidenceFileError::Damaged`] when the file is full. What was written of it is taken back.
    pub fn append(&mut self, statement: &[u8], durable: bool) -> Result<(), EvidenceFileError> {
        let bytes = encoded(statement);
        if statement.len() > MAX_STATEMENT || self.end + len64(bytes.len()) > MAX_FILE {
            return Err(EvidenceFileError::Damaged {
                path: self.path.clone(),
                at: self.end,
                why: "the file, or the statement, would be longer than it can be",
            });
        }
        if self.failed {
            return Err(EvidenceFileError::Io {
                path: self.path.clone(),
                source: io::Error::other(
                    "an unfinished statement could not be taken back; the agent's next start cuts it off",
                ),
            });
        }
        let written = self.file.write_all(&bytes).and_then(|()| {
            if durable {
                self.file.sync_data()
            } else {
                Ok(())
            }
        });
        if let Err(source) = written {
            // Half a record in the middle would be damage.
            let taken_back = self
                .file
                .set_len(self.end)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.end)));
            self.failed = taken_back.is_err();
            return Err(EvidenceFileError::Io {
                path: self.path.clone(),
                source,
            });
        }
        self.unsynced = !durable;
        self.end += len64(bytes.len());
        Ok(())
    }
}

fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn wrong_header(path: PathBuf, bytes: &[u8]) -> EvidenceFileError {
    let tag = bytes
        .split_first()
        .and_then(|(len, rest)| rest.get(..usize::from(*len)));
    match tag.and_then(|tag| tag.strip_prefix(TAG_START)) {
        Some(b"1") => EvidenceFileError::OtherNode { path },
        Some(found) => EvidenceFileError::Version {
            path,
            found: String::from_utf8_lossy(found).chars().take(16).collect(),
        },
        None => EvidenceFileError::Damaged {
            path,
            at: 0,
            why: "it does not begin as an evidence log does",
        },
    }
}
