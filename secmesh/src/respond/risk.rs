//! What an operator should think about twice before blocking it.

use std::fmt;

use crate::addr::Prefix;

/// Shortest IPv4 prefix that is blocked without a second thought: 16 million addresses.
const WIDEST_V4: u8 = 8;
/// The same for IPv6: what a registry hands out to a whole region is shorter.
const WIDEST_V6: u8 = 16;

/// Why blocking a prefix is risky.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Risk {
    /// It contains an address that this node cannot do without.
    Contains(Prefix),
    /// It is shorter than /8 (IPv4) or /16 (IPv6).
    Wide {
        /// The shortest length that is not risky.
        shortest: u8,
    },
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains(protected) => {
                write!(f, "overlaps {protected}, which this node needs")
            }
            Self::Wide { shortest } => write!(f, "is wider than /{shortest}"),
        }
    }
}

/// Why blocking `prefix` could cut off this node or half of the world; `None` if nothing speaks
/// against it. `protected` are own addresses, gateways, resolvers and mesh peers.
pub fn risky(prefix: &Prefix, protected: &[Prefix]) -> Option<Risk> {
    let shortest = if prefix.is_ipv4() {
        WIDEST_V4
    } else {
        WIDEST_V6
    };
    if let Some(inside) = protected.iter().find(|p| prefix.overlaps(p)) {
        return Some(Risk::Contains(*inside));
    }
    (prefix.len() < shortest).then_some(Risk::Wide { shortest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn what_holds_a_protected_address_or_is_very_wide_is_risky() {
        let protected = [p("10.0.0.1"), p("2001:db8::/64")];
        for (prefix, risk) in [
            ("10.0.0.1", Some(Risk::Contains(p("10.0.0.1")))),
            ("10.0.0.0/24", Some(Risk::Contains(p("10.0.0.1")))),
            ("10.0.1.0/24", None),
            ("2001:db8::7", Some(Risk::Contains(p("2001:db8::/64")))),
            ("12.0.0.0/8", None),
            ("12.0.0.0/7", Some(Risk::Wide { shortest: 8 })),
            ("2400::/16", None),
            ("2400::/12", Some(Risk::Wide { shortest: 16 })),
            ("0.0.0.0/0", Some(Risk::Contains(p("10.0.0.1")))),
        ] {
            assert_eq!(risky(&p(prefix), &protected), risk, "{prefix}");
        }
    }
}
