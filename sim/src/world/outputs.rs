//! What an engine wants done.

use std::collections::BTreeSet;
use std::rc::Rc;

use secmesh::mesh::engine::{Output, RefusalReason};
use secmesh::mesh::ids::{Hash, NodeId};
use secmesh::mesh::vote::{ActionKind, Ballot};

use super::World;
use super::shown::Shown;
use crate::cast::S;
use crate::node::{Entry, KernelBlock};
use crate::oracle::{Violation, broken, signed_by};
use crate::plan::Happening;

impl World {
    #[expect(clippy::too_many_lines, reason = "one arm per output, as in the agent")]
    pub(super) fn output(&mut self, i: usize, output: Output) -> Result<(), Violation> {
        match output {
            Output::Persist(bytes) => {
                self.trace.bytes(&bytes);
                // When it is cast; it may leave later, when things are different.
                if let Ok(ballot) = Ballot::from_bytes(&bytes) {
                    self.casts_about_node(i, &ballot)?;
                }
                let written = self.nodes[i].disk.append_durable(Entry::Vote(bytes));
                self.nodes[i].silenced |= !written;
            }
            Output::PersistEpoch(bytes) => {
                self.trace.bytes(&bytes);
                let written = self.nodes[i].disk.put_lock(bytes);
                self.nodes[i].silenced |= !written;
            }
            Output::KeepEvidence { bytes, own } => {
                self.trace.bytes(&bytes);
                self.counts.statements += u64::from(own);
                let written = self.nodes[i].disk.append_evidence(bytes, own);
                self.nodes[i].silenced |= !written;
            }
            Output::Epoch(_)
            | Output::Removal(_)
            | Output::EpochLie(_)
            | Output::Seal(_)
            | Output::SealSeen { .. } => return self.epoch_output(i, output),
            Output::Broadcast(_) | Output::Send { .. } if self.nodes[i].silenced => {}
            Output::Broadcast(bytes) => {
                self.says(i, &bytes)?;
                self.trace
                    .line(self.now, || format!("{i} to all: {}", Shown(&bytes)));
                let bytes: Rc<[u8]> = Rc::from(bytes);
                for to in 0..self.nodes.len() {
                    self.send(i, to, &bytes);
                }
            }
            Output::Send { to, bytes } => {
                self.says(i, &bytes)?;
                self.trace.line(self.now, || {
                    format!("{i} to {:?}: {}", self.index.get(&to), Shown(&bytes))
                });
                if let Some(to) = self.index.get(&to).copied() {
                    self.asks(i, to, &bytes)?;
                    self.send(i, to, &Rc::from(bytes));
                }
            }
            Output::Decide(decision) => {
                let (known, current, wall) = self.surroundings(i);
                self.trace.line(self.now, || {
                    format!(
                        "{i} blocks {} ({})",
                        decision.action.subject, decision.action.class
                    )
                });
                self.oracle.decision(&decision, current, &known, wall)?;
                let node = &mut self.nodes[i];
                let Some(subject) = decision.action.subject.prefix() else {
                    return broken("warrant", "a block of something that is no address");
                };
                if node.view.allow.iter().any(|a| a.overlaps(&subject)) {
                    return broken("allowlist", format!("node {i} blocks {subject}"));
                }
                if node
                    .released
                    .get(&subject)
                    .is_some_and(|covered| *covered >= decision.bucket)
                {
                    return broken(
                        "release-stays",
                        format!("node {i} blocks {subject} again, which was released since"),
                    );
                }
                self.counts.decided += 1;
                self.decided_us.push(self.now);
                let left = decision.expires_unix_us.saturating_sub(wall);
                node.kernel.insert(
                    decision.id,
                    KernelBlock {
                        subject,
                        ends_us: self.now + left,
                    },
                );
                node.disk.append(Entry::Decision {
                    kind: ActionKind::Block,
                    warrant: decision.warrant.to_bytes(),
                    certified_unix_us: decision.certified_unix_us,
                    vetoed: None,
                });
                // Whether its source goes on is evidence, for those who look.
                let at = self.now + 10 * S + self.rng.below(10 * S);
                if self.rng.percent(40) {
                    self.plan_for(at, Happening::Outcome(i, decision.id));
                }
            }
            Output::Release(decision) => {
                let (known, current, wall) = self.surroundings(i);
                self.trace.line(self.now, || {
                    format!("{i} releases {}", decision.action.subject)
                });
                self.oracle.decision(&decision, current, &known, wall)?;
                self.counts.released += 1;
                let node = &mut self.nodes[i];
                let Some(subject) = decision.action.subject.prefix() else {
                    return broken("warrant", "a release of something that is no address");
                };
                node.kernel.retain(|_, block| block.subject != subject);
                node.own_blocks.remove(&subject);
                let covered = node.released.entry(subject).or_default();
                *covered = decision.bucket.max(*covered);
                node.disk.append(Entry::Decision {
                    kind: ActionKind::Release,
                    warrant: decision.warrant.to_bytes(),
                    certified_unix_us: decision.certified_unix_us,
                    vetoed: None,
                });
            }
            Output::Vetoed {
                decision, reason, ..
            } => {
                self.counts.vetoed += 1;
                let node = &mut self.nodes[i];
                if let Some(known) = node.engine.as_ref().and_then(|e| e.decision(&decision)) {
                    node.disk.append(Entry::Decision {
                        kind: ActionKind::Block,
                        warrant: known.warrant.to_bytes(),
                        certified_unix_us: known.certified_unix_us,
                        vetoed: Some(reason),
                    });
                }
            }
            Output::Quarantine(decision) | Output::Readmit(decision) => {
                return self.about_node(i, &decision);
            }
            Output::ForkedEpoch(epoch) => {
                let number = epoch.record.number;
                return broken(
                    "one-epoch",
                    format!("node {i} has two epochs {number}, both certified"),
                );
            }
            Output::Equivocation(proof) => {
                self.counts.proofs += 1;
                self.trace.line(self.now, || {
                    format!("{i} has a proof against {}", proof.voter())
                });
                let (one, two) = proof.votes();
                let key = self
                    .index
                    .get(&proof.voter())
                    .map(|voter| self.nodes[*voter].signer.public());
                let real = one.vote != two.vote
                    && one.vote.incident == two.vote.incident
                    && one.vote.round == two.vote.round
                    && key.is_some_and(|key| {
                        signed_by(&key, &one.vote, &one.signature)
                            && signed_by(&key, &two.vote, &two.signature)
                    });
                if !real {
                    return broken(
                        "attribution",
                        format!("node {i} takes a proof that is none"),
                    );
                }
                self.nodes[i].disk.append(Entry::Proof(proof.to_bytes()));
            }
            Output::Caught { node, proof } => {
                self.trace
                    .line(self.now, || format!("{i} has caught {node}: {proof:?}"));
                self.counts.caught += 1;
                self.nodes[i].caught.insert(node);
                if !self.oracle.liars.contains(&node) {
                    return broken(
                        "attribution",
                        format!("node {i} has caught {node}, which is honest"),
                    );
                }
            }
            Output::LedgerFork(proof) => {
                self.counts.forks += 1;
                self.trace.line(self.now, || {
                    format!("{i} has a ledger fork of {}", proof.node())
                });
                if !self.oracle.liars.contains(&proof.node()) {
                    return broken(
                        "attribution",
                        format!(
                            "node {i} has a ledger fork of {}, which is honest",
                            proof.node()
                        ),
                    );
                }
                self.nodes[i].disk.append(Entry::Fork(proof.to_bytes()));
            }
            Output::Ledger { from, message } => return self.about_ledgers(i, from, *message),
            Output::Admitted(_) | Output::TicketBurned(_) => {
                let node = &mut self.nodes[i];
                if let Some(engine) = &node.engine {
                    node.disk.records = engine.admissions().cloned().collect();
                }
            }
            Output::VoteSeen(vote) if !vote.own => self.takes(i, &vote)?,
            Output::Refused { from, reason } => {
                if reason == RefusalReason::ClockSetBack {
                    self.nodes[i].mute_at = Some(self.now);
                }
                self.trace.line(self.now, || {
                    format!("{i} refuses {reason} of {:?}", self.index.get(&from))
                });
            }
            Output::Swim { message, .. } => self.keep_for_watchman(*message),
            Output::Watch { .. }
            | Output::VoteSeen(_)
            | Output::GrantOpened(_)
            | Output::GrantUsed { .. }
            | Output::QuorumState(_) => {}
        }
        Ok(())
    }

    fn surroundings(&self, i: usize) -> (BTreeSet<NodeId>, Hash, u64) {
        let node = &self.nodes[i];
        let (known, current) = node.engine.as_ref().map_or_else(
            || (BTreeSet::new(), Hash([0; 32])),
            |engine| (engine.liars().clone(), node.in_force),
        );
        (known, current, node.wall(self.now))
    }
}
