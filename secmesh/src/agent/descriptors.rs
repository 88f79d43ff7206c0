//! How many files and connections this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Below this it is said: connections of 350 peers and handshakes, maps, the ledger, the operator's calls.
const ENOUGH: u64 = 4_096;

/// Raises the limit to the hard one. The usual soft limit of 1024 is meant for programs that use `select`; out of
/// descriptors, the ledger could not begin its next segment.
pub(super) fn raise() {
    match raised() {
        Ok(limit) if limit < ENOUGH => warn!(
            limit,
            "few files may be open at once; set LimitNOFILE= in the unit, or `ulimit -Hn`"
        ),
        Ok(limit) => info!(limit, "files that may be open at once"),
        Err(error) => warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn raised() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // A little less than there was: other tests run in this process.
        let less = soft.min(hard - 1);
        setrlimit(Resource::RLIMIT_NOFILE, less, hard).unwrap();
        assert_eq!(raised(), Ok(hard));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
    }
}
