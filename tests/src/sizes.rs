//! The smallest, the default and the largest configuration that an agent can be given.

use std::ops::RangeInclusive;

use secmesh::{
    config::{
        DataplaneConfig, EVENT_BUDGET, MAX_BLOCKS, MAX_LIST_ADDRESSES, MAX_LIST_PREFIXES,
        MAX_PREFIXES,
    },
    dataplane::LoadOptions,
};

use crate::kernel::options;

/// `aya-log`'s highest level: every message of the kernel program is compiled in.
const LOG_ALL: u8 = 5;

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Every table as small as the configuration file may make it; no kernel log.
    Smallest,
    /// What an agent without a configuration file has.
    Default,
    /// Every table as large as the configuration file may make it, and the whole kernel log.
    Largest,
}

/// Makes every table half as large.
pub fn halve(options: &mut LoadOptions) {
    for size in [
        &mut options.max_blocks,
        &mut options.max_prefixes,
        &mut options.max_list_addresses,
        &mut options.max_list_prefixes,
    ] {
        *size = (*size / 2).max(1);
    }
}

impl Size {
    /// All of them, small ones first.
    pub const ALL: [Self; 3] = [Self::Smallest, Self::Default, Self::Largest];

    /// How it reads in a report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smallest => "smallest",
            Self::Default => "default",
            Self::Largest => "largest",
        }
    }

    /// How to load it; pins nothing. A new setting that sizes a map belongs in here.
    pub fn options(self) -> LoadOptions {
        let default = DataplaneConfig::default();
        let of = |range: RangeInclusive<u32>, default: u32| match self {
            Self::Smallest => *range.start(),
            Self::Default => default,
            Self::Largest => *range.end(),
        };
        LoadOptions {
            max_blocks: of(MAX_BLOCKS, default.max_blocks),
            max_prefixes: of(MAX_PREFIXES, default.max_prefixes),
            max_list_addresses: of(MAX_LIST_ADDRESSES, default.max_list_addresses),
            max_list_prefixes: of(MAX_LIST_PREFIXES, default.max_list_prefixes),
            event_budget: of(EVENT_BUDGET, default.event_budget),
            log_level: if self == Self::Largest { LOG_ALL } else { 0 },
            ..options()
        }
    }
}

#[cfg(test)]
mod tests {
    use secmesh::dataplane::KERNEL_FLOOR;
    use xtask::vm::Series;

    use super::*;

    #[test]
    fn the_three_differ_and_grow() {
        let [smallest, default, largest] = Size::ALL.map(Size::options);
        assert!(smallest.max_blocks < default.max_blocks);
        assert!(default.max_blocks < largest.max_blocks);
        assert!(smallest.max_prefixes < default.max_prefixes);
        assert!(default.max_prefixes < largest.max_prefixes);
        assert!(default.log_level < largest.log_level);
        let mut half = largest.clone();
        halve(&mut half);
        assert_eq!(half.max_list_addresses, largest.max_list_addresses / 2);
    }

    #[test]
    fn the_kernel_floor_is_the_oldest_kernel_that_is_booted() {
        let oldest = Series::ALL.iter().map(|series| series.number()).min();
        assert_eq!(oldest, Some(KERNEL_FLOOR));
    }
}
