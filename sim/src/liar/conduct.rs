//! Lies about nodes, and answers to test questions.

use std::rc::Rc;

use secmesh::addr::Prefix;
use secmesh::mesh::decision::OperatorRelease;
use secmesh::mesh::evidence::{EvidenceMessage, Say, question};
use secmesh::mesh::ids::{Hash, MeshId, NodeId};
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::{Action, AttackClass, Verdict, bucket_of};

use super::{Liar, Said, Scene, bytes, vote_message};
use crate::rng::Rng;

/// What a node can be accused of.
const CLASSES: [AttackClass; 4] = [
    AttackClass::HostileNode,
    AttackClass::Misconduct,
    AttackClass::MeshAbuse,
    AttackClass::Manual,
];

impl Liar {
    /// Confirms that an honest node is hostile: in each minute all liars of the mesh the same node, of the same
    /// thing, so that their votes add up. Also orders it with its own key, and votes for liars to be taken back.
    pub(super) fn accuse(&mut self, scene: &Scene<'_>, rng: &mut Rng, said: &mut Vec<Said>) {
        let bucket = bucket_of(scene.wall_us);
        let turn = usize::try_from(bucket).unwrap_or(0);
        let mut honest = scene.honest.clone();
        honest.sort_unstable();
        let Some(victim) = honest.get(turn % honest.len().max(1)).copied() else {
            return;
        };
        let class = CLASSES[turn % CLASSES.len()];
        let mut actions = vec![(Action::quarantine(victim, class), 0)];
        if let Some(fellow) = rng.pick(&scene.cut_off).copied() {
            let round = u32::try_from(rng.below(4)).unwrap_or(0);
            actions.push((Action::readmit(fellow), round));
        }
        for (action, round) in actions {
            let incident = action.incident(scene.genesis.mesh_id(), scene.epoch.1, bucket);
            // Once per incident: it does not want to be caught.
            let said_before = self.own.iter().any(|ballot| {
                (ballot.signed.vote.incident, ballot.signed.vote.round) == (incident, round)
            });
            if said_before {
                continue;
            }
            self.sequence += 1;
            let ballot = self.ballot_with(scene, action, Verdict::Confirm, |v| v.round = round);
            let message = vote_message(&ballot);
            said.extend(scene.peers.iter().map(|to| (*to, Rc::clone(&message))));
        }
        if rng.percent(30) {
            let action = if rng.percent(50) {
                Action::readmit(self.id)
            } else {
                OperatorRelease::quarantine(victim)
            };
            let order = OperatorRelease::new(
                scene.genesis.mesh_id(),
                scene.epoch.1,
                action,
                scene.wall_us,
                600,
            );
            let message = bytes(&Message::Release(Box::new(order.sign(&self.signer))));
            said.extend(scene.peers.iter().map(|to| (*to, Rc::clone(&message))));
        }
    }

    /// The answer to a test question of `asker`.
    pub fn answer(
        &self,
        (mesh, asker): (MeshId, NodeId),
        (commitment, subject): (Hash, Prefix),
        say: Say,
    ) -> Rc<[u8]> {
        let answer = question::Answer {
            mesh,
            asker,
            target: self.id,
            commitment,
            subject,
            say,
        }
        .sign(&self.signer);
        let message = EvidenceMessage::Answer { commitment, answer };
        bytes(&Message::Evidence(Box::new(message)))
    }
}
