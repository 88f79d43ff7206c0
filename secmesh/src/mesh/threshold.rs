//! What weights add up to, and how much of that a decision needs.

/// What the weights of some nodes add up to, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weights {
    total: u64,
    voters: usize,
    max: u32,
}

impl Weights {
    /// Adds up the weights of some nodes.
    pub fn of(weights: impl IntoIterator<Item = u32>) -> Self {
        weights
            .into_iter()
            .filter(|weight| *weight > 0)
            .fold(Self::default(), |sum, weight| Self {
                total: sum.total.saturating_add(u64::from(weight)),
                voters: sum.voters + 1,
                max: sum.max.max(weight),
            })
    }

    /// W: the sum of all weights. Fixed: neither unreachable nodes, nor liars, nor the subject of
    /// a decision are taken out of it.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Those with weight.
    pub const fn voters(&self) -> usize {
        self.voters
    }

    /// The largest weight of a node: so many votes can be enough at the earliest.
    pub const fn max_weight(&self) -> u32 {
        self.max
    }

    /// ⌊W/3⌋ + 1: at least one honest voter is among them.
    pub const fn t_lo(&self) -> u64 {
        self.total / 3 + 1
    }

    /// ⌊2W/3⌋ + 1: two such sets share an honest voter.
    pub const fn t_hi(&self) -> u64 {
        self.total * 2 / 3 + 1
    }

    /// Whether a node decides only together with every other one (two or three nodes with weight).
    pub const fn needs_all(&self) -> bool {
        matches!(self.voters, 2..=3)
    }

    /// Weight that a decision of class 1, or a release, needs.
    pub fn needed(&self) -> u64 {
        if self.voters < 4 {
            // A roster of nobody needs one weight nobody has.
            self.total.max(1)
        } else {
            self.t_lo()
        }
    }

    /// Weight that a decision of class 2 needs.
    pub fn needed_class_2(&self) -> u64 {
        if self.voters < 4 {
            self.needed()
        } else {
            self.t_hi()
        }
    }
}
