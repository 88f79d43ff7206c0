//! What has to outlive the segment it is in: proofs, decisions in force, the last own vote.

use std::collections::BTreeMap;
use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::LedgerError;
use super::reader::walk;
use super::record::{EffectKind, Record};
use super::segment::{EntryRef, Visit};
use super::writer::encode;
use crate::mesh::epoch::EpochProof;

/// Most records of each kind that are carried; further ones are left behind and counted. The mesh has no more
/// decisions in force.
const MOST: usize = 65_536;

/// A record, and where it stands.
#[derive(Debug, Clone)]
struct Kept {
    /// Number of the entry that holds it now.
    stands: u64,
    /// Number and time it had first.
    entry: u64,
    time_unix_us: u64,
    record: Record,
}

/// How the ends of decisions are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// All: the decision may come later.
    All,
    /// None: there were too many. All is read once more for those of the decisions that are carried.
    Later,
    /// Those of the decisions that are known, and nothing else is looked at.
    Known,
}

/// What is still needed of all that was recorded.
#[derive(Debug)]
struct Needed {
    now_unix_us: u64,
    /// [`MOST`].
    most: usize,
    gathers: Ends,
    /// Records for which there was no room.
    left_behind: u64,
    vote: Option<Kept>,
    proofs: BTreeMap<String, Kept>,
    decisions: BTreeMap<String, Kept>,
    /// How decisions ended. One that is carried stands behind its end.
    ends: BTreeMap<String, Kept>,
}

impl Visit for Needed {
    fn entry(&mut self, entry: &EntryRef<'_>) {
        // Votes, decisions, effects, proofs, and what was carried; the rest is not worth decoding.
        if !matches!(entry.head.kind, 4 | 6 | 7 | 12 | 16 | 17 | 25) {
            return;
        }
        let Ok(record) = serde_json::from_slice(entry.payload) else {
            return;
        };
        let kept = Kept {
            stands: entry.head.seq,
            entry: entry.head.seq,
            time_unix_us: entry.head.time_unix_us,
            record,
        };
        match kept.record {
            Record::Carried {
                entry,
                time_unix_us,
                what,
            } => self.take(Kept {
                stands: kept.stands,
                entry,
                time_unix_us,
                record: *what,
            }),
            _ => self.take(kept),
        }
    }
}

fn is_epoch_proof(proof: &str) -> bool {
    let bytes = BASE64_STANDARD.decode(proof).unwrap_or_default();
    EpochProof::from_bytes(&bytes).is_ok()
}

/// False if there is no room.
fn put(map: &mut BTreeMap<String, Kept>, most: usize, key: String, kept: Kept) -> bool {
    let room = map.len() < most || map.contains_key(&key);
    if room {
        map.insert(key, kept);
    }
    room
}

impl Needed {
    /// Keeps the latest of what has this key. What was carried stands behind what is later than it.
    fn latest(&mut self, key: String, kept: Kept) {
        let known = self.proofs.get(&key);
        if known.is_none_or(|known| known.entry <= kept.entry) {
            let room = put(&mut self.proofs, self.most, key, kept);
            self.left_behind += u64::from(!room);
        }
    }

    const fn new(now_unix_us: u64, most: usize) -> Self {
        Self {
            now_unix_us,
            most,
            gathers: Ends::All,
            left_behind: 0,
            vote: None,
            proofs: BTreeMap::new(),
            decisions: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    fn take(&mut self, kept: Kept) {
        match &kept.record {
            _ if self.gathers == Ends::Known && !matches!(kept.record, Record::Effect { .. }) => {}
            Record::VoteSigned { .. }
                if self.vote.as_ref().is_none_or(|v| v.entry < kept.entry) =>
            {
                self.vote = Some(kept);
            }
            // Two kinds of lies, of which each has its proof.
            Record::Equivocation { voter, proof, .. } => {
                let kind = if is_epoch_proof(proof) {
                    "epoch"
                } else {
                    "vote"
                };
                let key = format!("{kind} {voter}");
                self.latest(key, kept);
            }
            // The last word on a node; what came before it no longer counts.
            Record::Quarantine { node, .. } => {
                let key = format!("quarantine {node}");
                self.latest(key, kept);
            }
            Record::LedgerFork { node, .. } => {
                let key = format!("ledger {node}");
                self.latest(key, kept);
            }
            Record::Decision {
                decision, action, ..
            } => {
                let expires = action.get("expires_unix_us").and_then(Value::as_u64);
                if expires.is_some_and(|at| at > self.now_unix_us) {
                    let key = decision.clone();
                    let room = put(&mut self.decisions, self.most, key, kept);
                    self.left_behind += u64::from(!room);
                }
            }
            Record::Effect {
                decision,
                what: EffectKind::Ended | EffectKind::Released,
                ..
            } => {
                let key = decision.clone();
                // Without its decision, which may be carried further on, nobody knows if it matters.
                match self.gathers {
                    Ends::All => {
                        if !put(&mut self.ends, self.most, key, kept) {
                            self.gathers = Ends::Later;
                            self.ends.clear();
                        }
                    }
                    Ends::Later => {}
                    Ends::Known => {
                        if self.decisions.contains_key(&key) {
                            self.ends.insert(key, kept);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn into_kept(mut self) -> Vec<Kept> {
        self.ends.retain(|id, end| {
            let known = self.decisions.get(id).is_some_and(|d| d.entry < end.entry);
            let ended = matches!(
                end.record,
                Record::Effect {
                    what: EffectKind::Ended,
                    ..
                }
            );
            if known && ended {
                self.decisions.remove(id);
            }
            known && !ended
        });
        let mut kept: Vec<Kept> = self.vote.into_iter().collect();
        kept.extend(self.proofs.into_values());
        kept.extend(self.decisions.into_values());
        kept.extend(self.ends.into_values());
        kept.sort_by_key(|k| k.entry);
        kept
    }
}

/// Records in the first `before` entries that are still needed at `now_unix_us`, as [`Record::Carried`]:
/// kind and JSON.
pub(super) fn out_of(
    dir: &Path,
    before: u64,
    now_unix_us: u64,
) -> Result<Vec<(u8, Vec<u8>)>, LedgerError> {
    no_more_than(MOST, dir, before, now_unix_us)
}

/// The same, with so many of each kind.
pub(super) fn no_more_than(
    most: usize,
    dir: &Path,
    before: u64,
    now_unix_us: u64,
) -> Result<Vec<(u8, Vec<u8>)>, LedgerError> {
    let mut needed = Needed::new(now_unix_us, most);
    walk(dir, &mut needed)?;
    if needed.gathers == Ends::Later {
        needed.gathers = Ends::Known;
        walk(dir, &mut needed)?;
    }
    if needed.left_behind > 0 {
        tracing::warn!(
            left_behind = needed.left_behind,
            most,
            "proofs, or decisions in force, are dropped from the ledger with its oldest segments: there are too many"
        );
    }
    let mut out = Vec::new();
    for kept in needed.into_kept() {
        if kept.stands > before {
            continue;
        }
        let carried = Record::Carried {
            entry: kept.entry,
            time_unix_us: kept.time_unix_us,
            what: Box::new(kept.record),
        };
        match encode(&carried) {
            Ok(json) => out.push((carried.kind(), json)),
            // A little larger than it was, it may be too large now.
            Err(LedgerError::TooLarge { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(out)
}
