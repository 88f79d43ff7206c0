//! What happened, as one number, and as lines for people who ask.

use secmesh::mesh::message::Message;

use crate::rng::mix;

/// The hash of all that happened; the same seed gives the same.
#[derive(Debug, Clone)]
pub struct Trace {
    hash: u64,
    /// Lines are printed as things happen.
    pub print: bool,
}

impl Trace {
    /// Of nothing.
    pub const fn new(print: bool) -> Self {
        Self {
            hash: 0x5ec3_e54d,
            print,
        }
    }

    /// Takes a number in.
    pub const fn number(&mut self, n: u64) {
        self.hash = mix(self.hash.rotate_left(5) ^ n);
    }

    /// Takes bytes in.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.number(u64::from_le_bytes(word));
        }
    }

    /// Takes a message in. Of what was signed with random bytes only how long it is.
    pub fn message(&mut self, bytes: &[u8]) {
        match Message::from_bytes(bytes) {
            Ok(Message::EpochSeal(seal)) => self.bytes(&seal.sealed.to_bytes()),
            Ok(Message::Ledger(_)) => self.number(bytes.len() as u64),
            Ok(Message::Batch(parts)) => parts.iter().for_each(|part| self.message(part)),
            _ => self.bytes(bytes),
        }
    }

    /// Prints a line if lines are wanted.
    pub fn line(&self, now_us: u64, text: impl FnOnce() -> String) {
        if self.print {
            println!(
                "{:>6}.{:06} {}",
                now_us / 1_000_000,
                now_us % 1_000_000,
                text()
            );
        }
    }

    /// The number.
    pub const fn hash(&self) -> u64 {
        self.hash
    }
}
