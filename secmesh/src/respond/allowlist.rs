//! The one allowlist: what is never blocked here, and why. It wins in the kernel, before a vote, and
//! over any certificate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{addr::Prefix, api::types::AllowView};

/// Entries at most; as many as the kernel's allow maps hold per family.
const MAX_ENTRIES: usize = 4096;

/// Who put an entry there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Found on this system at start: loopback, own addresses, gateway, resolvers, mesh peers, SSH peer.
    Builtin,
    /// `[allow] addresses`.
    Configuration,
    /// `secmesh allow add`.
    Operator,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Configuration => "configuration",
            Self::Operator => "operator",
        }
    }
}

/// Why the allowlist was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowlistError {
    /// Not there.
    #[error("{0} is not on the allowlist; `secmesh allow list` shows what is")]
    NotThere(Prefix),
    /// Not the operator's to remove.
    #[error(
        "{prefix} is on the allowlist as {reason} ({source_name}) and cannot be removed while that holds"
    )]
    NotYours {
        /// The prefix.
        prefix: Prefix,
        /// Why it is there.
        reason: String,
        /// Who put it there.
        source_name: &'static str,
    },
    /// Too many.
    #[error("the allowlist is full ({MAX_ENTRIES} entries); use prefixes, or remove some")]
    Full,
}

/// The allowlist.
#[derive(Debug, Default, Clone)]
pub struct Allowlist {
    entries: BTreeMap<(Prefix, Source), String>,
}

impl Allowlist {
    /// Adds an entry; one that is there gets the new reason.
    ///
    /// # Errors
    ///
    /// If the list is full.
    pub fn add(
        &mut self,
        prefix: Prefix,
        source: Source,
        reason: String,
    ) -> Result<(), AllowlistError> {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&(prefix, source)) {
            return Err(AllowlistError::Full);
        }
        self.entries.insert((prefix, source), reason);
        Ok(())
    }

    /// Removes an operator's entry.
    ///
    /// # Errors
    ///
    /// If there is none, or only one that is not an operator's.
    pub fn remove(&mut self, prefix: Prefix) -> Result<(), AllowlistError> {
        if self.entries.remove(&(prefix, Source::Operator)).is_some() {
            return Ok(());
        }
        let other = self
            .entries
            .iter()
            .find(|((p, _), _)| *p == prefix)
            .map(|((_, source), reason)| (*source, reason.clone()));
        Err(match other {
            Some((source, reason)) => AllowlistError::NotYours {
                prefix,
                reason,
                source_name: source.name(),
            },
            None => AllowlistError::NotThere(prefix),
        })
    }

    /// Replaces everything that came from `source`. What does not fit is left out and returned.
    pub fn replace(
        &mut self,
        source: Source,
        entries: impl IntoIterator<Item = (Prefix, String)>,
    ) -> Vec<Prefix> {
        self.entries.retain(|(_, s), _| *s != source);
        entries
            .into_iter()
            .filter_map(|(prefix, reason)| self.add(prefix, source, reason).err().map(|_| prefix))
            .collect()
    }

    /// The entry that protects (part of) `subject`: one that contains it, or that it contains. Blocking
    /// a prefix with one protected address inside would block that address.
    pub fn protects(&self, subject: &Prefix) -> Option<AllowView> {
        self.entries
            .iter()
            .find(|((prefix, _), _)| prefix.overlaps(subject))
            .map(|((prefix, source), reason)| view(prefix, *source, reason))
    }

    /// The entry that all of `subject` is in: a block of it would have no effect.
    pub fn covers(&self, subject: &Prefix) -> Option<AllowView> {
        self.entries
            .iter()
            .find(|((prefix, _), _)| prefix.contains(subject))
            .map(|((prefix, source), reason)| view(prefix, *source, reason))
    }

    /// The entry that protects (part of) `subject` and was not found on this system but chosen by a person.
    pub fn chosen(&self, subject: &Prefix) -> Option<AllowView> {
        self.entries
            .iter()
            .find(|((prefix, source), _)| *source != Source::Builtin && prefix.overlaps(subject))
            .map(|((prefix, source), reason)| view(prefix, *source, reason))
    }

    /// All entries.
    pub fn list(&self) -> Vec<AllowView> {
        self.entries
            .iter()
            .map(|((prefix, source), reason)| view(prefix, *source, reason))
            .collect()
    }

    /// The prefixes, each once.
    pub fn prefixes(&self) -> Vec<Prefix> {
        let mut all: Vec<Prefix> = self.entries.keys().map(|(p, _)| *p).collect();
        all.dedup();
        all
    }

    /// What was found on this system: addresses that it cannot do without.
    pub fn builtin(&self) -> Vec<Prefix> {
        self.entries
            .keys()
            .filter(|(_, source)| *source == Source::Builtin)
            .map(|(prefix, _)| *prefix)
            .collect()
    }

    /// What operators added, to be kept over a restart.
    pub fn operator_entries(&self) -> Vec<(Prefix, String)> {
        self.entries
            .iter()
            .filter(|((_, s), _)| *s == Source::Operator)
            .map(|((p, _), r)| (*p, r.clone()))
            .collect()
    }
}

fn view(prefix: &Prefix, source: Source, reason: &str) -> AllowView {
    AllowView {
        prefix: *prefix,
        reason: reason.to_owned(),
        source: source.name().to_owned(),
    }
}

/// The refusal that an operator reads.
pub fn refusal(subject: &Prefix, entry: &AllowView) -> String {
    let how = if entry.prefix == *subject {
        format!("{subject} is")
    } else if entry.prefix.contains(subject) {
        format!("{subject} is in {}, which is", entry.prefix)
    } else {
        format!("{subject} contains {}, which is", entry.prefix)
    };
    format!(
        "{how} on the allowlist ({}, {})",
        entry.reason, entry.source
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn list() -> Allowlist {
        let mut list = Allowlist::default();
        list.add(p("127.0.0.0/8"), Source::Builtin, "loopback".into())
            .unwrap();
        list.add(p("10.0.0.1"), Source::Builtin, "default gateway".into())
            .unwrap();
        list.add(p("192.0.2.0/24"), Source::Operator, "office".into())
            .unwrap();
        list
    }

    #[test]
    fn an_address_in_an_allowed_prefix_is_protected() {
        let entry = list().protects(&p("192.0.2.7")).unwrap();
        assert_eq!(
            refusal(&p("192.0.2.7"), &entry),
            "192.0.2.7 is in 192.0.2.0/24, which is on the allowlist (office, operator)"
        );
        assert!(list().protects(&p("198.51.100.1")).is_none());
    }

    #[test]
    fn a_prefix_that_contains_an_allowed_address_is_protected() {
        let entry = list().protects(&p("10.0.0.0/8")).unwrap();
        assert_eq!(
            refusal(&p("10.0.0.0/8"), &entry),
            "10.0.0.0/8 contains 10.0.0.1, which is on the allowlist (default gateway, builtin)"
        );
    }

    #[test]
    fn operators_remove_their_own_entries_only() {
        let mut list = list();
        list.remove(p("192.0.2.0/24")).unwrap();
        assert!(list.protects(&p("192.0.2.7")).is_none());
        assert!(matches!(
            list.remove(p("10.0.0.1")),
            Err(AllowlistError::NotYours { .. })
        ));
        assert!(matches!(
            list.remove(p("10.9.9.9")),
            Err(AllowlistError::NotThere(_))
        ));
    }

    #[test]
    fn it_is_bounded_and_says_what_did_not_fit() {
        let mut list = Allowlist::default();
        let many = (0..5000u32).map(|n| {
            (
                Prefix::host(std::net::Ipv4Addr::from(n).into()),
                String::new(),
            )
        });
        assert_eq!(
            list.replace(Source::Configuration, many).len(),
            5000 - MAX_ENTRIES
        );
    }
}
