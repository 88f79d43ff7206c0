//! The one source of randomness.
//!
//! Everything else takes random bytes from here (or has them handed in), so that logic that depends
//! on chance can be replayed and so that there is one place to look at when asking where keys come
//! from.

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel gave no random bytes: {0}; check that getrandom(2) is not blocked by a seccomp filter"
)]
pub struct EntropyError(getrandom::Error);

/// Fills `buffer` with random bytes from the kernel, fit for keys.
///
/// # Errors
/// [`EntropyError`] if getrandom(2) fails; `buffer` then holds nothing useful.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that asks the kernel"
)]
pub fn fill(buffer: &mut [u8]) -> Result<(), EntropyError> {
    getrandom::fill(buffer).map_err(EntropyError)
}

/// Returns `N` random bytes, fit for keys.
///
/// # Errors
/// As [`fill`].
pub fn bytes<const N: usize>() -> Result<[u8; N], EntropyError> {
    let mut out = [0; N];
    fill(&mut out)?;
    Ok(out)
}

/// Returns a number in `0..bound` (0 if `bound` is 0), for jitter. The bias of the modulo is below
/// one in 2^32 for bounds below 2^32.
///
/// # Errors
/// As [`fill`].
pub fn below(bound: u64) -> Result<u64, EntropyError> {
    let value = u64::from_be_bytes(bytes()?);
    Ok(value.checked_rem(bound).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(bytes::<32>().unwrap(), bytes::<32>().unwrap());
    }

    #[test]
    fn below_stays_below() {
        assert_eq!(below(0).unwrap(), 0);
        assert_eq!(below(1).unwrap(), 0);
        for _ in 0..200 {
            assert!(below(7).unwrap() < 7);
        }
    }
}
