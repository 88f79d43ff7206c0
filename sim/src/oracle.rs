//! The rules once more, written from the design and not from the engine.
//!
//! Nothing here asks [`secmesh::mesh::cert`] whether votes are enough: a rule that is missing there must not
//! be missing here too. What is shared is the encoding (what bytes a vote has), and SHA-256.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ed25519_dalek::{Signature, VerifyingKey};
use secmesh::addr::Prefix;
use secmesh::mesh::cert::Certificate;
use secmesh::mesh::crypto::PublicKey;
use secmesh::mesh::decision::{Decision, Warrant};
use secmesh::mesh::epoch::Step;
use secmesh::mesh::genesis::Genesis;
use secmesh::mesh::ids::{Hash, NodeId, Zone};
use secmesh::mesh::vote::{ActionKind, AttackClass, BUCKET_US, Verdict, Vote};

use crate::cast::S;

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Which check saw it.
    pub check: &'static str,
    /// What it saw.
    pub detail: String,
}

/// `Err` of a violation.
///
/// # Errors
/// Always.
pub fn broken<T>(check: &'static str, detail: impl Into<String>) -> Result<T, Violation> {
    Err(Violation {
        check,
        detail: detail.into(),
    })
}

/// One member of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Voter {
    pub weight: u64,
    pub zone: Zone,
    pub incarnation: u64,
    pub key: PublicKey,
    pub address: Option<std::net::IpAddr>,
    /// The first epoch that it is in.
    pub since: u64,
}

/// One epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub number: u64,
    pub voters: BTreeMap<NodeId, Voter>,
}

impl Epoch {
    /// How many have weight.
    pub fn counting(&self) -> usize {
        self.voters.values().filter(|v| v.weight > 0).count()
    }

    /// Zones of those with weight.
    pub fn zones(&self) -> BTreeSet<&Zone> {
        let voters = self.voters.values().filter(|v| v.weight > 0);
        voters.map(|v| &v.zone).collect()
    }

    pub fn total(&self) -> u64 {
        self.voters.values().map(|v| v.weight).sum()
    }

    /// Who has how many seats, if not everybody decides: written down once more from docs/protocol.md.
    fn seats(&self, hash: &Hash, seats: u64) -> Option<BTreeMap<NodeId, u64>> {
        let place = |rest: &[u8]| {
            let tag = b"secmesh/committee/1".as_slice();
            secmesh::mesh::crypto::sha256(&[&[19][..], tag, hash.as_bytes(), rest].concat())
        };
        let voters = self.voters.iter().filter(|(_, v)| v.weight > 0);
        let mut order: Vec<(NodeId, u64)> = voters.map(|(n, v)| (*n, v.weight)).collect();
        if seats == 0 || order.len() as u64 <= seats {
            return None;
        }
        order.sort_by_key(|(node, _)| place(node.as_bytes()));
        let mut first = [0; 8];
        first.copy_from_slice(&place(&[])[..8]);
        let total = self.total();
        let first = u64::from_be_bytes(first) % total;
        let mut taken: BTreeMap<NodeId, u64> = BTreeMap::new();
        for mark in (0..seats).map(|k| (first + k * total) / seats) {
            let mut end = 0;
            let on = order.iter().find(|(_, weight)| {
                end += weight;
                mark < end
            });
            if let Some((node, _)) = on {
                *taken.entry(*node).or_default() += 1;
            }
        }
        Some(taken)
    }
}

/// Number, hash before, round, step of a vote on an epoch.
pub(crate) type EpochSlot = (u64, Hash, u32, Step);

/// What is known to be true of a run.
#[derive(Debug)]
pub struct Oracle {
    pub(crate) genesis: Genesis,
    pub(crate) epochs: BTreeMap<Hash, Epoch>,
    /// The epoch of each number.
    pub(crate) numbered: BTreeMap<u64, Hash>,
    /// What was proposed by honest nodes, by what it has to follow from.
    pub(crate) followed: BTreeMap<Hash, Hash>,
    /// What honest nodes voted on epochs.
    pub(crate) epoch_votes: BTreeMap<EpochSlot, BTreeMap<NodeId, Option<Hash>>>,
    /// Trust by what it has to follow from, and who said so first.
    pub(crate) trusted: BTreeMap<(u64, Hash, Hash), (usize, Hash)>,
    /// What each witness cosigned last of each ledger: size and root.
    pub cosigned: BTreeMap<(NodeId, NodeId), (u64, [u8; 32])>,
    /// Whom the operator has taken out.
    pub removed: BTreeSet<NodeId>,
    /// Nodes that lie.
    pub liars: BTreeSet<NodeId>,
    /// Nodes there can be.
    pub cast: BTreeSet<NodeId>,
    /// Which honest nodes really saw whom.
    pub witnesses: BTreeMap<Prefix, BTreeSet<NodeId>>,
    /// Nodes that the operator has ordered to be cut off (false) or taken back (true).
    pub ordered: BTreeSet<(NodeId, bool)>,
    /// Nodes that some honest node's operator wanted cut off by vote.
    pub asked: BTreeSet<NodeId>,
    /// The first certificate of class 2 for each epoch, incident and round: what it decided.
    class_2: BTreeMap<(Hash, Hash, u32), Hash>,
}

/// Answers by key, signature and hash of the vote.
type Checked = HashMap<(PublicKey, [u8; 64], [u8; 32]), bool>;

thread_local! {
    static CHECKED: RefCell<Checked> = RefCell::new(HashMap::new());
}

/// Most signature checks remembered; then all are forgotten.
const MAX_CHECKED: usize = 1 << 20;

/// Whether this is the key's signature; remembered, as the answer never changes.
pub fn signed_by(key: &PublicKey, vote: &Vote, signature: &[u8; 64]) -> bool {
    bytes_signed_by(key, &vote.to_bytes(), signature)
}

/// The same for any bytes.
pub fn bytes_signed_by(key: &PublicKey, bytes: &[u8], signature: &[u8; 64]) -> bool {
    let at = (*key, *signature, secmesh::mesh::crypto::sha256(bytes));
    CHECKED.with_borrow_mut(|checked| {
        if checked.len() >= MAX_CHECKED {
            checked.clear();
        }
        *checked.entry(at).or_insert_with(|| {
            VerifyingKey::from_bytes(key).is_ok_and(|key| {
                key.verify_strict(bytes, &Signature::from_bytes(signature))
                    .is_ok()
            })
        })
    })
}

impl Oracle {
    /// For a mesh whose nodes are `cast`, of whom `liars` lie.
    pub fn new(genesis: Genesis, cast: BTreeSet<NodeId>, liars: BTreeSet<NodeId>) -> Self {
        Self {
            genesis,
            epochs: BTreeMap::new(),
            numbered: BTreeMap::new(),
            followed: BTreeMap::new(),
            epoch_votes: BTreeMap::new(),
            trusted: BTreeMap::new(),
            cosigned: BTreeMap::new(),
            removed: BTreeSet::new(),
            liars,
            cast,
            witnesses: BTreeMap::new(),
            ordered: BTreeSet::new(),
            asked: BTreeSet::new(),
            class_2: BTreeMap::new(),
        }
    }

    /// A node acts on this decision, by its clock at `now`, when it is in epoch `current`.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn decision(
        &mut self,
        decision: &Decision,
        current: Hash,
        known_liars: &BTreeSet<NodeId>,
        now: u64,
    ) -> Result<(), Violation> {
        let action = &decision.action;
        let certificate = match &decision.warrant {
            Warrant::Operator(signed) => {
                return match signed.verify(&self.genesis) {
                    Ok(()) if action.kind == ActionKind::Release => Ok(()),
                    _ => broken("warrant", "an operator's release that is none"),
                };
            }
            Warrant::Votes(certificate) => certificate,
        };
        if certificate.action != *action {
            return broken("warrant", "the certificate is for another action");
        }
        self.enough(certificate, certificate.epoch_hash, known_liars)?;
        // The first node of a mesh must not go on deciding alone.
        self.enough(certificate, current, known_liars)?;
        self.well_formed(certificate)?;
        let Some(subject) = action.subject.prefix() else {
            return broken("warrant", "a block of a node");
        };
        if action.kind == ActionKind::Block {
            let length = action.expires_unix_us(decision.bucket).saturating_sub(now);
            let most = u64::from(self.genesis.params.block_ttl_s) * S
                + 3 * BUCKET_US
                + u64::from(self.genesis.params.max_skew_s) * S;
            if length == 0 || length > most {
                return broken("block-ends", format!("a block of {} s", length / S));
            }
            if self.witnesses.get(&subject).is_none_or(BTreeSet::is_empty) {
                return broken(
                    "framed",
                    format!("{} is blocked and no honest node saw it", action.subject),
                );
            }
        }
        if !subject.is_single() {
            self.agrees(certificate)?;
        }
        Ok(())
    }

    /// No other action was certified in that slot.
    fn agrees(&mut self, certificate: &Certificate) -> Result<(), Violation> {
        let action = certificate.action.hash();
        let slot = (
            certificate.epoch_hash,
            Hash(certificate.incident().0),
            certificate.round,
        );
        if *self.class_2.entry(slot).or_insert(action) != action {
            return broken(
                "class-2-agreement",
                "two certificates contradict each other",
            );
        }
        Ok(())
    }

    /// A node cuts another off, or takes it back, when it is in epoch `current`; the votes of `silent` count for
    /// nothing there.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn about_node(
        &mut self,
        decision: &Decision,
        current: Hash,
        silent: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        let action = &decision.action;
        let Some(node) = action.subject.node() else {
            return broken("warrant", "not about a node");
        };
        let back = action.kind == ActionKind::Readmit;
        let certificate = match &decision.warrant {
            Warrant::Operator(signed) => {
                return match signed.verify(&self.genesis) {
                    Ok(()) if self.ordered.contains(&(node, back)) => Ok(()),
                    _ => broken("warrant", "an operator's order that is none"),
                };
            }
            Warrant::Votes(certificate) => certificate,
        };
        let fits = certificate.action == *action
            && action.ttl_s == 0
            && (back || certificate.round == 0)
            && (action.class == AttackClass::Manual || !back && action.class.is_conduct());
        if !fits {
            return broken("warrant", format!("not an action of this mesh: {action:?}"));
        }
        self.enough(certificate, certificate.epoch_hash, silent)?;
        self.enough(certificate, current, silent)?;
        self.agrees(certificate)?;
        // Honest nodes are seen attacking by nobody in these runs.
        if !back && !self.liars.contains(&node) && !self.asked.contains(&node) {
            return broken("framed-node", format!("honest {node} is cut off"));
        }
        Ok(())
    }

    fn well_formed(&self, certificate: &Certificate) -> Result<(), Violation> {
        let params = &self.genesis.params;
        let action = &certificate.action;
        let Some(subject) = action.subject.prefix() else {
            return broken(
                "warrant",
                format!("not an action of these runs: {action:?}"),
            );
        };
        let single = subject.is_single();
        let network = subject.len() == if subject.is_ipv4() { 24 } else { 64 };
        let fits = match action.kind {
            ActionKind::Block => {
                action.ttl_s == params.block_ttl_s
                    && certificate.round == 0
                    && (single != matches!(action.class, AttackClass::Network))
            }
            ActionKind::Release => action.ttl_s == 0 && action.class == AttackClass::Manual,
            ActionKind::Quarantine | ActionKind::Readmit => false,
        };
        if !fits || !(single || network) {
            return broken("warrant", format!("not an action of this mesh: {action:?}"));
        }
        Ok(())
    }

    /// Who has which seats in an epoch; none if everybody decides.
    pub(crate) fn seated(&self, hash: &Hash) -> Option<BTreeMap<NodeId, u64>> {
        let seats = u64::from(self.genesis.params.committee);
        self.epochs.get(hash)?.seats(hash, seats)
    }

    /// Whether the votes are enough under the rules of one epoch.
    fn enough(
        &self,
        certificate: &Certificate,
        hash: Hash,
        known_liars: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        let action = &certificate.action;
        let Some(epoch) = self.epochs.get(&hash) else {
            return broken("warrant", "a certificate of an epoch that never was");
        };
        let own = epoch.number == certificate.epoch;
        // Where a committee decided, its seats count.
        let seated = self.seated(&certificate.epoch_hash);
        let (mut weight, mut witnesses) = (0, BTreeSet::new());
        let mut witnessed = 0;
        let mut zones: BTreeSet<&Zone> = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let (mut latest, mut earliest_end) = (0, u64::MAX);
        for signed in certificate.signed_votes() {
            let vote = &signed.vote;
            let Some(voter) = epoch.voters.get(&vote.voter) else {
                if own {
                    return broken("warrant", "a voter who is not in the epoch");
                }
                continue;
            };
            if !seen.insert(vote.voter) {
                return broken("warrant", "a voter counts twice");
            }
            if !matches!(vote.verdict, Verdict::Confirm | Verdict::Concur) {
                return broken("warrant", "a rejection in a certificate");
            }
            if voter.incarnation != vote.incarnation
                || !signed_by(&voter.key, vote, &signed.signature)
            {
                return broken("warrant", format!("{} never signed that", vote.voter));
            }
            if (vote.issued_at_us / BUCKET_US).abs_diff(vote.bucket) > 1
                || vote.valid_for_s > self.genesis.params.vote_valid_s
            {
                return broken("warrant", "a vote with impossible times");
            }
            latest = latest.max(vote.issued_at_us);
            earliest_end = earliest_end.min(vote.issued_at_us + u64::from(vote.valid_for_s) * S);
            let concerned = voter
                .address
                .zip(action.subject.prefix())
                .is_some_and(|(a, subject)| subject.contains_addr(a))
                || action.subject.node() == Some(vote.voter);
            if concerned || voter.weight == 0 || known_liars.contains(&vote.voter) {
                continue;
            }
            let counts = seated.as_ref().map_or(voter.weight, |seated| {
                seated.get(&vote.voter).copied().unwrap_or(0)
            });
            weight += counts;
            if vote.verdict == Verdict::Confirm {
                witnesses.insert(vote.voter);
                witnessed += counts;
                zones.insert(&voter.zone);
            }
        }
        if latest > earliest_end {
            return broken("warrant", "votes that never were valid at one time");
        }
        let (total, n) = match &seated {
            Some(seated) => (seated.values().sum(), seated.len()),
            None => (epoch.total(), epoch.counting()),
        };
        let class_2 = match action.kind {
            ActionKind::Block => action.subject.prefix().is_some_and(|s| !s.is_single()),
            ActionKind::Quarantine | ActionKind::Readmit => true,
            ActionKind::Release => false,
        };
        // More than W/3, or more than 2W/3; up to three nodes: all.
        let needed = match (n, class_2) {
            (0..=3, _) => total.max(1),
            (_, false) => total / 3 + 1,
            (_, true) => 2 * total / 3 + 1,
        };
        if weight < needed {
            return broken(
                "warrant",
                format!("{weight} of {total} weight, {needed} are needed"),
            );
        }
        if action.kind.lifts() {
            return Ok(());
        }
        let all = epoch.zones();
        let cuts_off = action.kind == ActionKind::Quarantine;
        // Where a node is cut off, witnesses of more than a third: one of them is honest.
        if cuts_off && witnessed < total / 3 + 1 {
            return broken(
                "witnesses",
                format!("witnesses of {witnessed} of {total} weight against a node"),
            );
        }
        let least = if cuts_off { 2 } else { epoch.counting().min(2) };
        if witnesses.len() < least || zones.len() < all.len().min(2) {
            return broken(
                "witnesses",
                format!("{} witnesses in {} zones", witnesses.len(), zones.len()),
            );
        }
        Ok(())
    }
}
