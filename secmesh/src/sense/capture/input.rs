//! A byte source that knows its offset and tells a short end from a failure.

use std::io::{self, BufRead, BufReader, Read};

/// Which way round multi-byte numbers of a file or section are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endian {
    Little,
    Big,
}

impl Endian {
    pub(super) const fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    pub(super) const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    pub(super) const fn i64(self, bytes: [u8; 8]) -> i64 {
        match self {
            Self::Little => i64::from_le_bytes(bytes),
            Self::Big => i64::from_be_bytes(bytes),
        }
    }

    /// The u32 at `at`, if the slice reaches that far.
    pub(super) fn u32_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        bytes.get(at..)?.first_chunk().map(|chunk| self.u32(*chunk))
    }

    /// The u16 at `at`, if the slice reaches that far.
    pub(super) fn u16_at(self, bytes: &[u8], at: usize) -> Option<u16> {
        bytes.get(at..)?.first_chunk().map(|chunk| self.u16(*chunk))
    }
}

/// The source of a capture's bytes, decompressed.
pub(super) struct Input {
    source: BufReader<Box<dyn Read + Send>>,
    offset: u64,
    cut_short: bool,
}

impl Input {
    pub(super) fn new(source: Box<dyn Read + Send>) -> Self {
        Self {
            source: BufReader::with_capacity(64 * 1024, source),
            offset: 0,
            cut_short: false,
        }
    }

    /// Bytes taken so far.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the compressed stream stopped before its trailer.
    pub(super) const fn cut_short(&self) -> bool {
        self.cut_short
    }

    /// Fills `into` as far as the source goes; fewer bytes than asked for mean the end. A gzip
    /// stream that stops before its trailer counts as an end, like a plain file that stops.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) => break,
                Ok(n) => {
                    done = done.saturating_add(n);
                    self.advance(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.cut_short = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Fills a fixed array; `None` when the source ends before.
    pub(super) fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        let got = self.fill(&mut bytes)?;
        Ok((got == N).then_some(bytes))
    }

    /// Puts exactly `len` bytes into `into`; false when the source ends before. The caller has
    /// checked `len` against its limit.
    pub(super) fn read_into(&mut self, into: &mut Vec<u8>, len: u32) -> io::Result<bool> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        into.clear();
        // Exactly: the doubling of `resize` would go beyond the documented bound.
        into.reserve_exact(len);
        into.resize(len, 0);
        Ok(self.fill(into)? == len)
    }

    /// Passes over `len` bytes without keeping them; false when the source ends before.
    pub(super) fn skip(&mut self, len: u64) -> io::Result<bool> {
        let mut left = len;
        while left > 0 {
            let have = match self.source.fill_buf() {
                Ok(bytes) => bytes.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.cut_short = true;
                    0
                }
                Err(error) => return Err(error),
            };
            if have == 0 {
                return Ok(false);
            }
            let step = have.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.source.consume(step);
            self.advance(step);
            left = left.saturating_sub(u64::try_from(step).unwrap_or(u64::MAX));
        }
        Ok(true)
    }

    fn advance(&mut self, by: usize) {
        self.offset = self
            .offset
            .saturating_add(u64::try_from(by).unwrap_or(u64::MAX));
    }
}
