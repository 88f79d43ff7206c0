//! Messages, for people.

use secmesh::mesh::message::Message;
use secmesh::mesh::vote::Verdict;

/// A message, for the trace.
pub(super) struct Shown<'a>(pub &'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Message::from_bytes(self.0) {
            Ok(Message::Vote(b)) => write!(
                f,
                "vote {} on {} {}, number {}",
                match b.signed.vote.verdict {
                    Verdict::Confirm => "confirm",
                    Verdict::Concur => "concur",
                    Verdict::Reject => "reject",
                    Verdict::Abstain => "abstain",
                },
                b.action.kind,
                b.action.subject,
                b.signed.vote.sequence
            ),
            Ok(Message::Certificate(c)) => {
                write!(
                    f,
                    "certificate on {}, {} votes",
                    c.action.subject,
                    c.votes.len()
                )
            }
            Ok(Message::Admission(_)) => write!(f, "admission"),
            Ok(Message::Equivocation(p)) => write!(f, "proof against {}", p.voter()),
            Ok(Message::EpochProposal(p)) => write!(
                f,
                "proposal of epoch {}, round {}",
                p.record.number, p.signed.vote.round
            ),
            Ok(Message::EpochVote(v)) => write!(
                f,
                "{:?} on epoch {}, round {}, {}",
                v.vote.step,
                v.vote.number,
                v.vote.round,
                if v.vote.value.is_some() { "yes" } else { "nil" }
            ),
            Ok(Message::Epoch(e)) => write!(f, "epoch {}", e.record.number),
            Ok(Message::Evidence(e)) => write!(f, "evidence, kind {}", e.kind()),
            Ok(Message::Ledger(m)) => write!(f, "ledger, kind {}", m.kind()),
            Ok(Message::Decided(d)) => write!(f, "has {}", d.decision),
            Ok(Message::WantDecision(id)) => write!(f, "wants {id}"),
            Ok(Message::EpochWant(number)) => write!(f, "is in epoch {number}"),
            Ok(Message::EpochSeal(seal)) => write!(f, "seal on {}", seal.sealed.number),
            Ok(Message::Inventory(_)) => write!(f, "inventory"),
            Ok(Message::Removal(_)) => write!(f, "removal"),
            Ok(Message::EpochLie(p)) => write!(f, "proof about epochs against {}", p.voter()),
            Ok(Message::Grant(_)) => write!(f, "grant"),
            Ok(Message::Release(_)) => write!(f, "release"),
            Ok(Message::Swim(_)) => write!(f, "failure detection"),
            Ok(Message::Batch(parts)) => {
                write!(f, "batch:")?;
                parts
                    .iter()
                    .try_for_each(|part| write!(f, " [{}]", Shown(part)))
            }
            Err(error) => write!(f, "garbage ({error})"),
        }
    }
}
