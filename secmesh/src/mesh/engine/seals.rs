//! ML-DSA-44 seals on the current epoch. Nothing waits for them.

use super::io::{Output, RefusalReason};
use super::work::{SEAL, Worth};
use super::{Call, Engine};
use crate::mesh::epoch::{EpochSeal, Sealed};
use crate::mesh::ids::NodeId;
use crate::mesh::message::Message;

impl Engine {
    /// Weight of the epoch before that has sealed the current record, and what `T_hi` of it is. None while
    /// the epoch before is not known here, and for the first epoch.
    pub fn sealed_weight(&self) -> Option<(u64, u64)> {
        let before = self.before()?;
        let weight = |node: &NodeId| before.get(node).map_or(0, |m| u64::from(m.weight));
        Some((
            self.seals.keys().map(weight).sum(),
            before.needed_for_epoch(),
        ))
    }

    pub(super) fn ask_for_seal(&mut self, call: &mut Call<'_>) {
        let me = self.config.node;
        let voter = self.before().and_then(|before| before.get(&me));
        let number = self.roster.epoch();
        if self.seal_asked == number || voter.is_none_or(|m| m.weight == 0) {
            return;
        }
        self.seal_asked = number;
        call.out.push(Output::Seal(Sealed {
            mesh: self.mesh,
            number,
            hash: self.roster.epoch_hash(),
            node: me,
        }));
    }

    /// Takes a seal on the current epoch. One of an epoch that is over, or not yet here, is of no use.
    pub(super) fn seal(&mut self, call: &mut Call<'_>, from: NodeId, seal: EpochSeal) {
        let sealed = seal.sealed;
        if sealed.mesh != self.mesh {
            return self.refuse(call, from, RefusalReason::WrongMesh);
        }
        let current = (self.roster.epoch(), self.roster.epoch_hash());
        if (sealed.number, sealed.hash) != current || self.seals.contains_key(&sealed.node) {
            return;
        }
        let Some(before) = self.before() else { return };
        let Some(member) = before.get(&sealed.node).filter(|m| m.weight > 0) else {
            return self.refuse(call, from, RefusalReason::UnknownVoter);
        };
        let key_hash = member.record.pq_key_hash;
        let Some(job) = self.begin_work(call, from, &seal.to_bytes(), SEAL) else {
            return;
        };
        let holds = seal.verify(&key_hash).is_ok();
        self.end_work(job, if holds { Worth::Paid } else { Worth::Forged });
        if !holds {
            return self.refuse(call, from, RefusalReason::BadSignature);
        }
        self.seals.insert(sealed.node, seal.clone());
        let seal = Box::new(seal);
        if sealed.node == self.config.node {
            call.out.push(Output::Broadcast(
                Message::EpochSeal(seal.clone()).to_bytes(),
            ));
        }
        let weight = self.sealed_weight().map_or(0, |(weight, _)| weight);
        call.out.push(Output::SealSeen { seal, weight });
    }
}
