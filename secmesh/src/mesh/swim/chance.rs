//! The random choices of failure detection: from one seed, so that a run can be repeated.

use std::convert::Infallible;

use rand::TryRng;

use crate::mesh::crypto::sha256;

/// SHA-256 of seed and counter. Who does not know the seed does not know whom a node asks next.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    seed: [u8; 32],
    counter: u64,
}

impl Chance {
    pub(super) const fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    fn block(&mut self) -> [u8; 32] {
        self.counter = self.counter.wrapping_add(1);
        let parts: [&[u8]; 3] = [
            b"secmesh/swim-chance/1",
            &self.seed,
            &self.counter.to_be_bytes(),
        ];
        sha256(&parts.concat())
    }
}

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        for chunk in dst.chunks_mut(32) {
            let block = self.block();
            for (to, from) in chunk.iter_mut().zip(block) {
                *to = from;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_and_another_seed_another() {
        let draw = |seed| {
            let mut chance = Chance::new([seed; 32]);
            let mut bytes = [0; 40];
            chance.try_fill_bytes(&mut bytes).unwrap();
            (chance.try_next_u32(), chance.try_next_u64(), bytes)
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let (_, _, bytes) = draw(3);
        assert_ne!(bytes[..8], bytes[32..], "the blocks differ");
    }
}
