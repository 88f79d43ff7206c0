//! Who has what: two nodes that meet compare sums, then the ids behind those that differ, and then only
//! what is missing travels. Message kinds 30 and 31.
//!
//! An id here is the first eight bytes of a hash. Two things of one id would hide each other from this
//! comparison; both were told to everybody when they were new.

use super::wire::{Decoder, Encoder, MAX_MESSAGE, WireError};

/// Buckets: ids by their first byte.
pub const BUCKETS: usize = 256;
/// Most ids in one message.
pub const MAX_IDS: usize = (MAX_MESSAGE - 1_024) / 8;

/// Sums of the ids in each bucket.
pub type Sums = [u64; BUCKETS];

/// The bucket of an id.
pub const fn bucket_of(id: u64) -> u8 {
    let [first, ..] = id.to_be_bytes();
    first
}

/// The sums of these ids.
pub fn sums(ids: impl IntoIterator<Item = u64>) -> Box<Sums> {
    let mut sums = Box::new([0_u64; BUCKETS]);
    for id in ids {
        if let Some(sum) = sums.get_mut(usize::from(bucket_of(id))) {
            *sum = sum.wrapping_add(id);
        }
    }
    sums
}

/// A message about what the sender has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inventory {
    /// The sums of all that it has.
    Sums(Box<Sums>),
    /// All ids that it has in some buckets.
    Ids {
        /// The buckets, in ascending order.
        buckets: Vec<u8>,
        /// The ids, in ascending order; at most [`MAX_IDS`].
        ids: Vec<u64>,
    },
}

impl Inventory {
    /// Its kind on the wire.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Sums(_) => 30,
            Self::Ids { .. } => 31,
        }
    }

    /// Writes what follows the kind.
    pub fn write(&self, e: &mut Encoder) {
        match self {
            Self::Sums(sums) => {
                for sum in sums.iter() {
                    e.u64(*sum);
                }
            }
            Self::Ids { buckets, ids } => {
                e.u16(u16::try_from(buckets.len()).unwrap_or(u16::MAX));
                e.fixed(buckets);
                for id in ids.iter().take(MAX_IDS) {
                    e.u64(*id);
                }
            }
        }
    }

    /// Reads what follows the kind.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_body(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(body);
        let invalid = |field, why| Err(WireError::Invalid { field, why });
        match kind {
            30 => {
                let mut sums = Box::new([0; BUCKETS]);
                for sum in sums.iter_mut() {
                    *sum = d.u64("sum")?;
                }
                d.finish()?;
                Ok(Self::Sums(sums))
            }
            31 => {
                let count = usize::from(d.u16("number of buckets")?);
                if count > BUCKETS {
                    return Err(WireError::TooLong {
                        field: "buckets",
                        len: count,
                        max: BUCKETS,
                    });
                }
                let mut buckets = Vec::new();
                for _ in 0..count {
                    buckets.push(d.u8("bucket")?);
                }
                let mut ids = Vec::new();
                while !d.rest().is_empty() {
                    if ids.len() >= MAX_IDS {
                        return Err(WireError::TooLong {
                            field: "ids",
                            len: MAX_IDS + 1,
                            max: MAX_IDS,
                        });
                    }
                    ids.push(d.u64("id")?);
                }
                if !buckets.is_sorted_by(|a, b| a < b) || !ids.is_sorted_by(|a, b| a < b) {
                    return invalid("ids", "not distinct and in ascending order");
                }
                if ids
                    .iter()
                    .any(|id| buckets.binary_search(&bucket_of(*id)).is_err())
                {
                    return invalid("ids", "in no bucket that is named");
                }
                Ok(Self::Ids { buckets, ids })
            }
            _ => invalid("message kind", "unknown code"),
        }
    }
}

/// Where `mine` differs from `theirs`: the ids that are here, in as few messages as they fit.
pub fn differing(mine: &Sums, theirs: &Sums, ids: &[u64]) -> Vec<Inventory> {
    let mut out = Vec::new();
    let (mut buckets, mut chosen) = (Vec::new(), Vec::new());
    for (bucket, (a, b)) in (0..=u8::MAX).zip(mine.iter().zip(theirs)) {
        if a == b {
            continue;
        }
        let mut inside: Vec<u64> = ids
            .iter()
            .copied()
            .filter(|id| bucket_of(*id) == bucket)
            .collect();
        inside.sort_unstable();
        inside.dedup();
        // What does not fit is sent although the other has it; that does no harm.
        inside.truncate(MAX_IDS);
        if chosen.len() + inside.len() > MAX_IDS {
            out.push(Inventory::Ids {
                buckets: std::mem::take(&mut buckets),
                ids: std::mem::take(&mut chosen),
            });
        }
        buckets.push(bucket);
        chosen.extend(inside);
    }
    if !buckets.is_empty() {
        out.push(Inventory::Ids {
            buckets,
            ids: chosen,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(inventory: &Inventory) -> Vec<u8> {
        let mut e = Encoder::default();
        inventory.write(&mut e);
        e.finish()
    }

    proptest! {
        #[test]
        fn what_differs_is_named_and_read_back(
            common in proptest::collection::btree_set(any::<u64>(), 0..300),
            only_mine in proptest::collection::btree_set(any::<u64>(), 0..40),
            only_theirs in proptest::collection::btree_set(any::<u64>(), 0..40),
        ) {
            let mine: Vec<u64> = common.union(&only_mine).copied().collect();
            let theirs: Vec<u64> = common.union(&only_theirs).copied().collect();
            let (a, b) = (sums(mine.iter().copied()), sums(theirs.iter().copied()));
            let messages = differing(&a, &b, &mine);
            prop_assert_eq!(messages.is_empty(), mine == theirs);
            for id in mine.iter().filter(|id| !theirs.contains(id)) {
                let named = messages.iter().any(|m| matches!(m, Inventory::Ids { ids, .. } if ids.contains(id)));
                prop_assert!(named);
            }
            for message in messages.into_iter().chain([Inventory::Sums(a)]) {
                let written = bytes(&message);
                prop_assert_eq!(Inventory::from_body(message.kind(), &written), Ok(message));
            }
        }

        #[test]
        fn noise_is_read_and_written_the_same_or_refused(
            kind in 30_u8..32, body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(inventory) = Inventory::from_body(kind, &body) {
                prop_assert_eq!(bytes(&inventory), body);
            }
        }
    }

    #[test]
    fn many_ids_take_several_messages_of_bounded_size() {
        let ids: Vec<u64> = (0..20_000_u64).map(|i| i << 49 | i).collect();
        let messages = differing(&sums(ids.iter().copied()), &sums([]), &ids);
        assert!(messages.len() > 1);
        let mut named = 0;
        for message in &messages {
            assert!(bytes(message).len() + 64 < MAX_MESSAGE);
            if let Inventory::Ids { ids, .. } = message {
                named += ids.len();
            }
        }
        assert_eq!(named, 20_000);
    }
}
