//! Blocks that would hit more than an attacker: this node's own lifelines, or a good part of the world.

use std::fmt;

use crate::addr::Prefix;

/// Shortest IPv4 prefix that is not risky for its size: 16 million addresses.
pub const SHORTEST_V4: u8 = 8;
/// The same for IPv6; registries hand out /12 to whole continents.
pub const SHORTEST_V6: u8 = 16;
/// Reasons that are spelled out; the rest is counted.
const MAX_TOLD: usize = 8;

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It contains something that must stay reachable.
    Contains {
        /// What.
        protected: Prefix,
        /// What that is to this node.
        why: String,
    },
    /// It lies within something that must stay reachable.
    Within {
        /// In what.
        protected: Prefix,
        /// What that is to this node.
        why: String,
    },
    /// It is too large.
    Wide {
        /// Shortest length that is not.
        shortest: u8,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains { protected, why } => write!(f, "it contains {protected} ({why})"),
            Self::Within { protected, why } => write!(f, "it is in {protected} ({why})"),
            Self::Wide { shortest } => write!(f, "it is shorter than /{shortest}"),
        }
    }
}

/// Why a prefix is risky to block; at least one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Risk {
    /// The reasons, in the order of what is protected, size last.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, reason) in self.reasons.iter().take(MAX_TOLD).enumerate() {
            let before = if n == 0 { "" } else { "; " };
            write!(f, "{before}{reason}")?;
        }
        let more = self.reasons.len().saturating_sub(MAX_TOLD);
        if more > 0 {
            write!(f, "; and {more} more")?;
        }
        Ok(())
    }
}

/// Why blocking `prefix` could cut off this node or far more than an attacker; `None` if nothing speaks
/// against it. `protected` says what must stay reachable and what it is: own addresses, gateways, resolvers,
/// mesh peers, SSH peers, the allowlist.
pub fn risky(prefix: &Prefix, protected: &[(Prefix, String)]) -> Option<Risk> {
    let mut reasons: Vec<Reason> = protected
        .iter()
        .filter_map(|(protected, why)| {
            let (protected, why) = (*protected, why.clone());
            if protected.contains(prefix) {
                Some(Reason::Within { protected, why })
            } else if prefix.contains(&protected) {
                Some(Reason::Contains { protected, why })
            } else {
                None
            }
        })
        .collect();
    let shortest = if prefix.is_ipv4() {
        SHORTEST_V4
    } else {
        SHORTEST_V6
    };
    if prefix.len() < shortest {
        reasons.push(Reason::Wide { shortest });
    }
    (!reasons.is_empty()).then_some(Risk { reasons })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn told(prefix: &str) -> Option<String> {
        let protected = [
            (p("10.0.0.1"), "default gateway".to_owned()),
            (p("10.0.0.2"), "DNS resolver".to_owned()),
            (p("2001:db8::/64"), "office".to_owned()),
        ];
        risky(&p(prefix), &protected).map(|risk| risk.to_string())
    }

    #[test]
    fn every_reason_is_told() {
        assert_eq!(
            told("0.0.0.0/0").unwrap(),
            "it contains 10.0.0.1 (default gateway); it contains 10.0.0.2 (DNS resolver); it is shorter than /8"
        );
        assert_eq!(
            told("10.0.0.1").unwrap(),
            "it is in 10.0.0.1 (default gateway)"
        );
        assert_eq!(
            told("2001:db8::7").unwrap(),
            "it is in 2001:db8::/64 (office)"
        );
    }

    #[test]
    fn the_size_alone_is_a_reason_from_the_limit_on() {
        for (prefix, risk) in [
            ("12.0.0.0/8", None),
            ("12.0.0.0/7", Some("it is shorter than /8")),
            ("2400::/16", None),
            ("2400::/12", Some("it is shorter than /16")),
            ("10.0.1.0/24", None),
        ] {
            assert_eq!(told(prefix).as_deref(), risk, "{prefix}");
        }
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let protected: Vec<(Prefix, String)> = (0..20u8)
            .map(|n| (p(&format!("10.0.0.{n}")), "peer".to_owned()))
            .collect();
        let text = risky(&p("10.0.0.0/24"), &protected).unwrap().to_string();
        assert!(text.ends_with("; and 12 more"), "{text}");
    }
}
