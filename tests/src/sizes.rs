//! The smallest, the default and the largest configuration that an agent can be given.

use secmesh::{
    config::{DataplaneConfig, EVENT_BUDGET, MAX_BLOCKS, MAX_PREFIXES},
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

    /// How to load it; pins nothing. A new setting that changes what is loaded belongs in here.
    pub fn options(self) -> LoadOptions {
        let default = DataplaneConfig::default();
        let (max_blocks, max_prefixes, event_budget, log_level) = match self {
            Self::Smallest => (
                *MAX_BLOCKS.start(),
                *MAX_PREFIXES.start(),
                *EVENT_BUDGET.start(),
                0,
            ),
            Self::Default => (
                default.max_blocks,
                default.max_prefixes,
                default.event_budget,
                0,
            ),
            Self::Largest => (
                *MAX_BLOCKS.end(),
                *MAX_PREFIXES.end(),
                *EVENT_BUDGET.end(),
                LOG_ALL,
            ),
        };
        LoadOptions {
            max_blocks,
            max_prefixes,
            event_budget,
            log_level,
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
    }

    #[test]
    fn the_kernel_floor_is_the_oldest_kernel_that_is_booted() {
        let oldest = Series::ALL.iter().map(|series| series.number()).min();
        assert_eq!(oldest, Some(KERNEL_FLOOR));
    }
}
